"""Probes: ridge against least squares, the whole procedure against a slow one of its own, planted labels, no leaks."""

import numpy as np
import pytest
import tiny

from stepaudio.errors import ConfigError
from stepaudio.interp.frames import audio_frames, framed_names
from stepaudio.interp.probe_rows import ProbeData, probe_data
from stepaudio.interp.probes import RIDGES, Ridge, train_probes
from stepaudio.interp.recorder import record

CLASSES = np.array(["fan", "sea", "tin"])


def drawn(rows, channels, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, channels))


def planted(rows=90, channels=12, per_clip=6, classes=CLASSES, far=12.0):
    """Noise, and the same with the class written along directions of its own; labels and recordings."""
    noise, which = drawn(rows, channels), np.random.default_rng(1).integers(len(classes), size=rows)
    directions = np.linalg.qr(drawn(channels, channels, 2))[0][: len(classes)]
    return noise, noise + far * directions[which], classes[which], np.arange(rows) // per_clip


# ---------------------------------------------------------------- the regression


@pytest.mark.parametrize(("rows", "channels"), [(40, 7), (9, 30)])
def test_ridge_is_least_squares_with_the_penalty_as_rows(rows, channels):
    """Minimising |z w - y|^2 + s |w|^2 is least squares on z with sqrt(s) times the identity below it."""
    x, y, new = drawn(rows, channels) * np.arange(1, channels + 1), drawn(rows, 2, 1), drawn(5, channels, 2)
    x[:, 3] = 4.0  # never changes: counts for nothing, whatever stands there later
    z, at = ((a - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), np.inf) for a in (x, new))
    found = Ridge(x, y).predict(new, RIDGES)
    unit = np.trace(z.T @ z) / channels
    for strength, one in zip(RIDGES, found, strict=True):
        tall = np.concatenate([z, np.sqrt(strength * unit) * np.eye(channels)])
        w = np.linalg.lstsq(tall, np.concatenate([y - y.mean(0), np.zeros((channels, 2))]), rcond=None)[0]
        np.testing.assert_allclose(one, at @ w + y.mean(0), atol=1e-8)


def slow_predictions(x, labels, fold):
    """Nested choice of the ridge, one fit after another, for one set of labels."""
    classes = sorted(set(labels)) if isinstance(labels[0], str) else None
    y = np.array(labels, float)[:, None] if classes is None else np.array([[c == v for c in classes] for v in labels])

    def fit(train, judged, strength):
        mean, spread = x[train].mean(0), x[train].std(0)
        z, shift = (x[train] - mean) / spread, y[train].mean(0)
        penalty = strength * np.trace(z.T @ z) / z.shape[1] * np.eye(z.shape[1])
        w = np.linalg.solve(z.T @ z + penalty, z.T @ (y[train] - shift))
        return (x[judged] - mean) / spread @ w + shift

    found = np.empty(y.shape)
    for held in set(fold):
        losses = []
        for s in RIDGES:
            inner = [(fold != held) & (fold != f) for f in set(fold) - {held}]
            judged = [fold == f for f in set(fold) - {held}]
            losses.append(sum(((fit(t, j, s) - y[j]) ** 2).sum() for t, j in zip(inner, judged, strict=True)))
        found[fold == held] = fit(fold != held, fold == held, RIDGES[np.argmin(losses)])
    return found[:, 0] if classes is None else np.array(classes)[found.argmax(1)]


@pytest.mark.parametrize("numbers", [False, True])
def test_the_procedure_against_a_slow_one(numbers):
    """With a fold for each group, there is one way to split."""
    _, x, labels, clips = planted(30, 5, far=1.5)
    if numbers:
        labels = x @ np.arange(5) + drawn(30, 1, 4)[:, 0]
    found = train_probes(ProbeData({"a": x}, labels.tolist(), clips), folds=5, shuffles=2)
    slow = slow_predictions(x, labels.tolist(), clips)
    if numbers:
        np.testing.assert_allclose(found.predicted[0], slow, atol=1e-8)
        mean = np.array([labels[clips != c].mean() for c in clips])
        expected = 1 - ((slow - labels) ** 2).sum() / ((mean - labels) ** 2).sum()
    else:
        assert found.predicted[0].tolist() == slow.tolist()
        expected = (slow == labels).mean()
    score = found.scores[0]
    assert score.estimate == pytest.approx(expected) and score.low < expected < score.high and 0.2 < expected < 1
    assert found.selectivity[0].estimate == pytest.approx(expected - found.controls[0].mean())


def test_a_planted_label_is_found_and_noise_is_not():
    noise, marked, labels, clips = planted()
    found = train_probes(ProbeData({"noise": noise, "marked": marked}, labels.tolist(), clips))
    assert found.names == ("noise", "marked") and found.measure == "accuracy"
    assert found.scores[1].estimate == 1.0 and found.predicted[1].tolist() == labels.tolist()
    chance = max(np.mean(labels == c) for c in CLASSES)
    assert abs(found.controls.mean() - 1 / 3) < 0.08 and found.guess <= chance
    assert found.selectivity[1].low > 0.4 and not found.selectivity[0].excludes_zero
    assert found.scores[0].low < chance
    again = train_probes(ProbeData({"noise": noise, "marked": marked}, labels.tolist(), clips))
    np.testing.assert_array_equal(again.controls, found.controls)
    assert "marked        1.00 [" in found.table() and "90 rows of 15 groups" in found.table()


def test_a_planted_number_is_found():
    noise, labels = drawn(90, 12), drawn(90, 1, 5)[:, 0]
    marked = noise + 5 * labels[:, None] * np.linalg.qr(drawn(12, 12, 2))[0][0]
    found = train_probes(ProbeData({"noise": noise, "marked": marked}, labels.tolist(), np.arange(90) // 6))
    assert found.measure == "R2" and found.scores[1].estimate > 0.9 and found.guess == 0
    assert found.scores[1].high <= 1 and found.selectivity[1].low > 0.4
    assert found.scores[0].estimate < 0.1 and found.scores[0].low < 0 and np.abs(found.controls).max() < 0.3


def test_noise_with_labels_balanced_in_each_group_is_no_finding():
    """Labels dealt out over all folds would put the control below chance, and chance above it."""
    more = []
    for seed in range(8):
        data = ProbeData({"a": drawn(60, 40, seed)}, CLASSES[np.arange(60) % 3].tolist(), np.arange(60) // 3)
        more.append(train_probes(data, seed=seed).selectivity[0].estimate)
    assert abs(np.mean(more)) < 0.06


def test_what_marks_a_group_is_of_no_use_for_its_label():
    """Each group has a direction of its own, which a split by rows would exploit: held out, chance is left."""
    groups = np.repeat(np.arange(24), 5)
    x = 0.1 * drawn(120, 30) + 4 * np.eye(30)[groups]
    labels = CLASSES[:2][np.random.default_rng(3).permutation(np.arange(24) % 2)][groups]
    grouped = train_probes(ProbeData({"a": x}, labels.tolist(), np.arange(120), groups.tolist()))
    by_row = train_probes(ProbeData({"a": x}, labels.tolist(), np.arange(120)))
    assert by_row.scores[0].estimate > 0.95 and grouped.scores[0].estimate < 0.75
    assert grouped.n_groups == 24 and grouped.scores[0].n_clips == 24


@pytest.mark.parametrize(("change", "message"), [
    ({"labels": ["a"] * 12}, "at least two that differ"),
    ({"labels": ["a", 1] * 6}, "all of one kind"),
    ({"labels": [True, False] * 6}, "strings .classes. or numbers"),
    ({"labels": [1.0, float("nan")] * 6}, "NaN"),
    ({"labels": ["a", "b"]}, "one for each of the 2 labels"),
    ({"groups": [0] * 11}, "groups: expected one for each"),
    ({"groups": ["a", 0] * 6}, "all of one kind"), ({"groups": [None] * 12}, "groups: expected strings"),
    ({"groups": [0.5] * 12}, "groups: expected strings"), ({"arrays": [drawn(12, 3)]}, "activations by name"),
    ({"labels": [["a"]] * 12}, "strings .classes. or numbers"),
    ({"clips": np.arange(12) / 2}, "whole numbers"),
    ({"clips": np.arange(12) // 2, "groups": list(range(12))}, "stands in two"),
    ({"arrays": {}}, "activations by name, at least one"),
    ({"arrays": {"a": drawn(11, 3)}}, r"shape \(12, channels\)"),
    ({"arrays": {"a": np.full((12, 3), np.inf)}}, "finite"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_refused(change, message):
    rows = {"arrays": {"a": drawn(12, 3)}, "labels": ["a", "b"] * 6, "clips": np.arange(12), "groups": ()}
    with pytest.raises(ConfigError, match=message):
        ProbeData(**rows | change)


@pytest.mark.parametrize(("rows", "how", "message"), [
    ({"groups": [0] * 12}, {}, "at least two groups"),
    ({"labels": ["a", "b", "c"] + ["a", "b"] * 4 + ["a"]}, {}, "label 'c': all its groups are held out"),
    ({"arrays": {"a": drawn(12, 3)[[0, 0, *range(2, 12)]]}}, {}, "recordings 0 and 1 have the same a"),
    ({}, {"folds": 1}, "folds: expected a whole number from 2"),
    ({}, {"shuffles": 0}, "shuffles"), ({}, {"seed": -1}, "seed"), ({}, {"level": 1}, "level"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused(rows, how, message):
    given = {"arrays": {"a": drawn(12, 3)}, "labels": ["a", "b"] * 6, "clips": np.arange(12), "groups": ()}
    with pytest.raises(ConfigError, match=message):
        train_probes(ProbeData(**given | rows), **how)


def test_what_is_no_data_is_refused():
    with pytest.raises(ConfigError, match="expected what probe_data gives"):
        train_probes({"a": drawn(12, 3)})


# ---------------------------------------------------------------- rows of a model


def test_frames_are_what_the_recorder_has(tiny_model):
    """Longer than one segment of audio, so that its parts are joined."""
    clip = tiny.noise(31.0)
    names = ["encoder.0.resid_post", "encoder.0.z", "encoder.out", "adapter.out", "decoder.1.resid_post"]
    found = audio_frames(tiny_model, clip, names)
    trace = record(tiny_model, clip, names, sampling="greedy", max_tokens=1)
    assert list(found) == [names[1], names[0], *names[2:]] and len(trace.spans) == 2
    positions = trace.audio_positions
    np.testing.assert_array_equal(found[names[4]].values, trace[names[4]][0][0, positions])
    np.testing.assert_allclose(found[names[4]].start, trace.audio_seconds)
    last = found["encoder.0.z"].values[-1].reshape(2, 16)
    np.testing.assert_array_equal(
        last, trace["encoder.0.z"][0][1][:, (trace.frames[1] + 1) // 2 - 2]
    )  # the last is padding
    assert {n: f.rate for n, f in found.items()} == dict(zip(found, (50, 50, 25, 12.5, 12.5), strict=True))
    for frames in found.values():
        assert frames.seconds == pytest.approx(31.0) and 31 - 1.5 / frames.rate < frames.start[-1] < 31
        assert len(frames.start) == len(frames.values) and (np.diff(frames.start) > 0).all()


def test_rows_are_means_over_stretches(tiny_model):
    clips = [tiny.noise(1.3, i) for i in range(2)]
    name = "encoder.0.resid_post"
    data = probe_data(
        tiny_model, clips, [name, "adapter.out"], [[(0.2, 0.3, "a"), (0.31, 0.32, "b")], [(1.2, 1.3, "a")]]
    )
    frames = [audio_frames(tiny_model, c, name)[name].values for c in clips]
    np.testing.assert_allclose(data.arrays[name][0], frames[0][10:15].mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.arrays[name][1:], [frames[0][15], frames[1][60:65].mean(0)], rtol=1e-5)
    assert data.labels == ("a", "b", "a") and data.clips.tolist() == [0, 0, 1] and data.groups == (0, 0, 1)
    whole = probe_data(tiny_model, clips, name, [1.5, 2], ["x", "y"])
    np.testing.assert_allclose(whole.arrays[name], [f.mean(0) for f in frames], rtol=1e-5)
    assert whole.groups == ("x", "y") and whole.labels == (1.5, 2)


def test_loud_is_told_from_quiet(tiny_model):
    clips = [tiny.noise(1.0, i, level) for i, level in enumerate([0.01, 0.3] * 4)]
    data = probe_data(tiny_model, clips, "encoder.0.resid_post", ["quiet", "loud"] * 4)
    assert train_probes(data, folds=4).scores[0].estimate == 1.0


def test_names_stand_in_the_order_of_the_nets(tiny_model):
    patterns = ["decoder.*.resid_post", "decoder.out", "adapter.*", "encoder.out", "encoder.conv2", "encoder.*.resid_*"]
    assert framed_names(patterns, tiny_model.config) == [
        "encoder.conv2", "encoder.0.resid_pre", "encoder.0.resid_mid", "encoder.0.resid_post", "encoder.out",
        "adapter.conv", "adapter.out", "decoder.0.resid_post", "decoder.1.resid_post", "decoder.out",
    ]  # fmt: skip


MESSAGES = [{"role": "human", "content": "Hi"}]


@pytest.mark.parametrize(("call", "message"), [
    (lambda m, x: probe_data(m, x, "decoder.9.z", ["a", "b"]), "no activation is called"),
    (lambda m, x: probe_data(m, x, "decoder.0.pattern", ["a", "b"]), "channels at every position"),
    (lambda m, x: probe_data(m, x, "encoder.mel", ["a", "b"]), "channels at every position"),
    (lambda m, x: probe_data(m, x, 3, ["a", "b"]), "names: expected a pattern"),
    (lambda m, x: probe_data(m, x[0], "encoder.out", ["a"]), "sources: expected a list"),
    (lambda m, x: probe_data(m, x, "encoder.out", ["a"]), "labels: expected one for each of the 2"),
    (lambda m, x: probe_data(m, x, "encoder.out", "ab"), "labels: expected one for each of the 2"),
    (lambda m, x: probe_data(m, x, "encoder.out", 3), "labels: expected one for each of the 2"),
    (lambda m, x: probe_data(m, x, "encoder.out", ["a", "b"], ["s"]), "groups: expected one for each of the 2"),
    (lambda m, x: probe_data(m, x, "encoder.out", ["a", None]), "recording 1: expected a string, a number or a list"),
    (lambda m, x: probe_data(m, x, "encoder.out", ["a", [(0.5, 0.2, "b")]]), "0 <= start < end"),
    (lambda m, x: probe_data(m, x, "encoder.out", ["a", [(0.5, 1.2, "b")]]), "second 1.2: the recording is 1.00 s"),
    (lambda m, x: probe_data(m, x, "encoder.out", [[], []]), "labels"),
    (lambda m, x: probe_data(m, [x[0], MESSAGES], "encoder.out", ["a", "b"]), "found a conversation"),
])  # fmt: skip
def test_what_has_no_rows_is_refused(tiny_model, call, message):
    with pytest.raises(ConfigError, match=message):
        call(tiny_model, [tiny.noise(1.0), tiny.noise(1.0, 1)])
