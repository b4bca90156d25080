"""Edits: what a run with them computes, in every way of dividing it into passes, and what is refused before it."""

from dataclasses import replace as changed

import mlx.core as mx
import numpy as np
import pytest
import tiny

from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import ConfigError
from stepaudio.interp import editor, names, running
from stepaudio.interp import edits as making
from stepaudio.interp.edits import Place
from stepaudio.interp.recorder import record
from stepaudio.models.kv_cache import CachePolicy, FullCache

GREEDY = Sampling.greedy()
N = 6
HOW = {"sampling": GREEDY, "max_tokens": N, "on_loop": "off"}


@pytest.fixture(scope="module")
def clip():
    return tiny.noise(1.3)


@pytest.fixture(scope="module")
def plain(tiny_model, clip):
    return running.activations(tiny_model, clip, **HOW)


@pytest.fixture(scope="module")
def donor(tiny_model):
    return running.activations(tiny_model, tiny.noise(1.3, 7), **HOW)


def free(model, clip, edits, **how):
    return record(model, clip, "logits", edits=edits, **HOW | how)


def every_kind(donor):
    """One edit of each kind, of each way to say where, in each net."""
    rng = np.random.default_rng(0)
    vector = rng.normal(size=32)
    return {
        "zero a head": making.zero("decoder.1.z", heads=2),
        "zero keys of audio": making.zero("decoder.0.pattern", heads=[0, 3], keys=Place(seconds=(0.3, 0.7))),
        "replace positions": making.replace("decoder.0.resid_mid", vector, positions=[3, 4, -1]),
        "replace by head": making.replace("decoder.0.k", rng.normal(size=(2, 8))),
        "add to steps": making.add("decoder.*.resid_post", vector, steps=slice(1, None)),
        "add to step 2": making.add("decoder.0.mlp_out", 3 * vector, steps=2),
        "scale seconds": making.scale("encoder.0.mlp_out", -2.0, seconds=(0.2, 0.6)),
        "scale the mel": making.scale("encoder.mel", 0.5, seconds=(0.5, 1.0)),
        "scale a value cache": making.scale("decoder.0.v_cache", 0.5, seconds=(0, 0.8)),
        "scale logits": making.scale("logits", -1.0, steps=[0, 3]),
        "adapter": making.zero("adapter.out", positions=range(2, 9)),
        "mean": making.mean("decoder.1.attn_out", donor),
        "mean of heads": making.mean(["decoder.0.z", "encoder.0.z"], [donor, donor], heads=1),
        "patch": making.patch("decoder.0.resid_post", donor, seconds=(0.2, 0.9)),
        "patch a pattern": making.patch("decoder.1.pattern", donor, heads=0),
        "patch logits": making.patch("logits", donor, steps=1),
        "resample": making.resample("decoder.0.v", donor, seed=3),
        "tokens": making.zero("decoder.*.mlp_out", tokens=range(0, 300)),
        "tokens as keys": making.scale("decoder.*.pattern", 0.25, keys=Place(tokens=range(0, 150))),
        "several": making.zero("decoder.0.z", heads=1)
        + making.scale("decoder.0.z", 2.0)
        + making.add("decoder.out", 0.1),
    }


KINDS = [
    "zero a head", "zero keys of audio", "replace positions", "replace by head", "add to steps", "add to step 2",
    "scale seconds", "scale the mel", "scale a value cache", "scale logits", "adapter", "mean", "mean of heads",
    "patch", "patch a pattern", "patch logits", "resample", "tokens", "tokens as keys", "several",
]  # fmt: skip
# Kinds whose place, values or draws differ from row to row of a batch; what is in the audio is edited clip by clip.
BY_ROW = [
    "zero keys of audio", "replace positions", "add to steps", "scale a value cache", "mean of heads", "patch",
    "patch a pattern", "patch logits", "resample", "tokens as keys",
]  # fmt: skip


# ---- edits that must not change anything, and those that must change all ----


def test_an_identity_edit_changes_no_bit(tiny_model, clip, plain):
    every = [n for n in names.activation_names(tiny_model.config) if n not in names.FIXED]
    for name in every:
        trace = free(tiny_model, clip, making.scale(name, 1.0) + making.add(name, 0.0), max_tokens=3)
        np.testing.assert_array_equal(np.stack(trace["logits"], axis=1), plain["logits"][:, :3], err_msg=name)


def test_patching_everything_gives_the_donors_run_to_the_bit(tiny_model, clip, plain, donor):
    assert not np.array_equal(plain["logits"], donor["logits"])
    for pattern in ("*", "adapter.out", "decoder.1.resid_post", ("encoder.*", "adapter.*")):
        trace = free(tiny_model, clip, making.patch(pattern, donor))
        np.testing.assert_array_equal(np.stack(trace["logits"], axis=1), donor["logits"], err_msg=str(pattern))


@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_equals_one_pass_without_a_cache(tiny_model, clip, plain, donor, kind):
    edits = every_kind(donor)[kind]
    trace = free(tiny_model, clip, edits)
    got = np.stack(trace["logits"], axis=1)[0]
    want = running.forced_logits(tiny_model, running.lay_out(tiny_model, clip), trace.tokens, edits)
    np.testing.assert_allclose(got, want, atol=2e-4, rtol=1e-4)
    assert np.abs(got - plain["logits"][0]).max() > 1e-2, "the edit did nothing"


@pytest.mark.parametrize("kind", BY_ROW)
def test_a_batch_gives_what_each_gets_alone(tiny_model, clip, donor, kind):
    lengths = (1.3, 1.3) if kind == "patch logits" else (2.1, 1.7)  # a donor has logits from its own prompt's end on
    edits, clips = every_kind(donor)[kind], [clip, tiny.noise(lengths[0], 3), tiny.noise(lengths[1], 4)]
    together = running.run_with_edits(tiny_model, clips, edits, **HOW)
    for one, run in zip(clips, together, strict=True):
        alone = running.run_with_edits(tiny_model, [one], edits, **HOW)[0]
        assert run.tokens == alone.tokens
        np.testing.assert_allclose(run.logprobs, alone.logprobs, atol=1e-3)


def test_each_run_of_a_batch_may_have_edits_of_its_own(tiny_model, clip, donor):
    """Also patches whose donors are of other lengths, each of which has positions for its own run alone."""
    clips = [clip, tiny.noise(2.1, 3), tiny.noise(1.7, 4)]
    own = [running.activations(tiny_model, tiny.noise(s, 9), "decoder.*.resid_post", **HOW) for s in (2.1, 1.7)]
    audio = tiny_model.tokenizer.audio_patch
    each = [
        every_kind(donor)["several"] + making.scale("adapter.out", -1.0, seconds=(0, 0.4)),
        making.patch("decoder.0.resid_post", own[0], steps=slice(0, None)),
        making.patch("decoder.1.resid_post", own[1], tokens=audio) + every_kind(donor)["zero keys of audio"],
    ]
    together = running.run_with_edits(tiny_model, clips, each, **HOW)
    plain = running.run_with_edits(tiny_model, clips, making.Edits(), **HOW)
    encoded = [tiny_model.engine.encode_layout(running.lay_out(tiny_model, c)) for c in clips]
    known = [r.embeddings[s.start : s.start + s.length] for r, c in zip(encoded, clips, strict=True)
             for s in running.lay_out(tiny_model, c).prompt.slots]  # fmt: skip
    given = running.run_with_edits(tiny_model, clips, each, audio=known, **HOW)
    for i, (one, run) in enumerate(zip(clips, together, strict=True)):
        alone = running.run_with_edits(tiny_model, [one], each[i], **HOW)[0]
        assert run.tokens == alone.tokens == given[i].tokens
        np.testing.assert_allclose(run.logprobs, alone.logprobs, atol=1e-3)
        assert np.abs(np.array(run.logprobs) - plain[i].logprobs).max() > 1e-3, i
    with pytest.raises(ConfigError, match="edits for each of 3 runs, found 2"):
        running.run_with_edits(tiny_model, clips, each[:2], **HOW)


@pytest.mark.parametrize(
    "kind", ["add to steps", "replace positions", "patch", "resample", "tokens as keys", "scale a value cache"]
)
def test_a_prompt_read_in_parts_is_edited_as_one(tiny_model, clip, donor, kind, monkeypatch):
    edits = every_kind(donor)[kind]
    whole = free(tiny_model, clip, edits)
    monkeypatch.setattr("stepaudio.decoding.prefill.positions_at_once", lambda *_: 7)
    parts = free(tiny_model, clip, edits)
    assert len(parts["logits"]) == len(whole["logits"]) == N
    np.testing.assert_allclose(np.stack(parts["logits"]), np.stack(whole["logits"]), atol=2e-4, rtol=1e-4)


class Uploads:
    """mx for a module, with a count of the host's arrays and numbers that it hands to the device."""

    def __init__(self):
        self.count = 0

    def __getattr__(self, name):
        return getattr(mx, name)

    def array(self, value, *rest):
        self.count += not isinstance(value, mx.array)
        return mx.array(value, *rest)


@pytest.mark.parametrize("kind", ["patch", "resample", "add", "scale", "zero"])
def test_a_longer_answer_uploads_no_more(tiny_model, clip, kind, monkeypatch):
    """What an edit puts at a head of every layer is the same at every step, or lies in a donor from step to step."""
    donor = running.activations(tiny_model, clip, "decoder.*.z", **HOW | {"max_tokens": 24})
    given = {"patch": (donor,), "resample": (donor,), "add": (np.ones(8),), "scale": (0.5,), "zero": ()}[kind]
    edits, counts, logits = getattr(making, kind)("decoder.*.z", *given, heads=1), [], []
    for steps, ahead in ((4, 64), (24, 64), (24, 5), (24, 1)):
        monkeypatch.setattr(editor, "mx", uploads := Uploads())
        monkeypatch.setattr(editor, "AHEAD", ahead)
        logits.append(np.stack(free(tiny_model, clip, edits, max_tokens=steps)["logits"]))
        counts.append(uploads.count)
    assert counts[1] == counts[0]
    assert (counts[3] > counts[2] > counts[1]) == (kind in ("patch", "resample"))
    for other in logits[2:]:
        np.testing.assert_array_equal(other, logits[1])


def test_a_cache_that_evicts_is_edited_by_position(tiny_model, clip):
    """Zeros at positions of the prompt, written by hand through a plain hook that counts for itself."""

    def by_hand(name, x):
        if name == "decoder.positions":
            by_hand.newest = int(x.max())
        if name != "decoder.1.v":
            return None
        at = mx.arange(by_hand.newest + 1 - x.shape[2], by_hand.newest + 1)[None, None, :, None]
        return mx.where((at >= 40) & (at < 60), mx.zeros_like(x), x)

    for policy in (CachePolicy("window", 24), CachePolicy("sinks", 24, sinks=3)):
        want = record(tiny_model, clip, "logits", tap=by_hand, cache=policy, **HOW)
        got = free(tiny_model, clip, making.zero("decoder.1.v", positions=range(40, 60)), cache=policy)
        np.testing.assert_array_equal(np.stack(got["logits"]), np.stack(want["logits"]))


def test_seconds_are_those_of_the_audio(tiny_model, clip):
    """0.4 to 0.8 s: mel frames 40 to 79, encoder frames 20 to 39, audio embeddings 5 to 9 and their positions."""
    places = {"encoder.mel": (2, 40, 80), "encoder.0.resid_pre": (1, 20, 40), "encoder.pooled": (1, 10, 20),
              "adapter.out": (1, 5, 10)}  # fmt: skip
    for name, (axis, start, stop) in {**places, "decoder.0.resid_pre": (1, None, None)}.items():
        trace = record(tiny_model, clip, name, edits=making.replace(name, 7.0, seconds=(0.4, 0.8)), **HOW)
        array = np.moveaxis(trace[name][0][0], axis - 1, 0)
        hit = np.flatnonzero((array == 7.0).all(axis=1))
        first = trace.spans[0][0] + 5 if start is None else start
        last = trace.spans[0][0] + 10 if stop is None else stop
        assert hit.tolist() == list(range(first, last)), name


def test_step_i_is_the_pass_that_chooses_token_i(tiny_model, clip, plain):
    """The stream behind the last layer is read by the head alone: what was chosen before stays, to the bit."""
    for i in (0, 2):
        trace = free(tiny_model, clip, making.replace("decoder.1.resid_post", 1.0, steps=i))
        got = np.stack(trace["logits"], axis=1)[0]
        np.testing.assert_array_equal(got[:i], plain["logits"][0, :i])
        assert np.abs(got[i] - plain["logits"][0, i]).max() > 0.1
    last = free(tiny_model, clip, making.replace("decoder.1.resid_post", 1.0, positions=-1))
    first = free(tiny_model, clip, making.replace("decoder.1.resid_post", 1.0, steps=0))
    np.testing.assert_array_equal(np.stack(last["logits"]), np.stack(first["logits"]))


def test_a_token_is_found_where_it_is_read(tiny_model, clip, plain):
    """A generated token that the prompt lacks: the pass that reads it is the first to change."""
    trace = free(tiny_model, clip, making.Edits())
    prompt = running.lay_out(tiny_model, clip).prompt.tokens
    i, token = next((i, t) for i, t in enumerate(trace.tokens[:-1]) if t not in (*prompt, *trace.tokens[:i]))
    edited = free(tiny_model, clip, making.replace("decoder.1.resid_post", 1.0, tokens=token))
    got = np.stack(edited["logits"], axis=1)[0]
    np.testing.assert_array_equal(got[: i + 1], plain["logits"][0, : i + 1])
    assert np.abs(got[i + 1] - plain["logits"][0, i + 1]).max() > 0.1
    x = tiny_model.net.embed(np.array([[1, 2, 3]]))
    tap = running.edit_tap(tiny_model, making.zero("decoder.0.z", tokens=1), [running.lay_out(tiny_model, clip)], 1)
    with pytest.raises(ConfigError, match="without token ids"):
        tiny_model.net.logits(x, FullCache(2, tiny_model.net.model.rope), tap)


def test_a_mean_leaves_out_what_a_batch_was_padded_with(tiny_model):
    """Two segments of one recording, the second shorter: its own frames count, by hand."""
    small = tiny_model.altered(pipeline=changed(tiny_model.pipeline, chunk_samples=16_000))
    donor = running.activations(small, tiny.noise(1.5), "encoder.out", **HOW)
    assert donor["encoder.out"].shape[0] == 2 and donor.frames[0] > donor.frames[1]
    own = [donor["encoder.out"][row, : (donor.frames[row] + 1) // 2 // 2] for row in range(2)]
    edits = making.mean("adapter.conv", running.activations(small, tiny.noise(1.5), "adapter.conv", **HOW))
    assert (
        record(small, tiny.noise(1.5), "adapter.conv", edits=edits, **HOW)["adapter.conv"][0].std(axis=1).max() < 1e-6
    )
    trace = record(small, tiny.noise(1.5), "encoder.out", edits=making.mean("encoder.out", donor), **HOW)
    np.testing.assert_allclose(trace["encoder.out"][0][0, 0], np.concatenate(own).mean(axis=0), atol=1e-5)


# ---- edits as values ----


def test_edits_are_values(donor):
    one, same = every_kind(donor), every_kind(donor)
    for kind in KINDS:
        assert one[kind] == same[kind] and hash(one[kind]) == hash(same[kind])
        assert one[kind].digest == same[kind].digest
        assert str(one[kind]).count("\n") == len(one[kind]) - 1
    assert len({one[kind].digest for kind in KINDS}) == len(KINDS) == len(one)
    with pytest.raises(AttributeError):
        one["zero a head"].edits[0].heads = (0,)
    with pytest.raises(ValueError, match="read-only"):
        donor["logits"][0] = 0


def test_the_digest_knows_every_number_of_an_edit():
    base = {"names": "decoder.0.z", "value": 1.0, "heads": 0, "positions": 3}
    others = [{"names": "decoder.1.z"}, {"value": 2.0}, {"heads": 1}, {"positions": 4}, {"steps": 1}, {"tokens": 5},
              {"seconds": (0, 1)}, {"keys": Place(positions=1)}]  # fmt: skip
    found = {making.replace(**base | other).digest for other in [{}, *others]}
    assert len(found) == len(others) + 1
    assert (
        making.zero("logits", steps=range(2, 5))
        == making.zero("logits", steps=[4, 2, 3])
        == making.zero("logits", steps=slice(2, 5))
    )


REFUSED = {
    "no activation": lambda d: making.zero("decoder.9.z"),
    "can be read, not replaced": lambda d: making.zero("decoder.positions"),
    "has no heads": lambda d: making.zero("decoder.0.resid_mid", heads=0),
    "head 4: expected numbers from 0 to 3": lambda d: making.zero("decoder.0.z", heads=4),
    "head 2: expected numbers from 0 to 1": lambda d: making.zero("decoder.0.k", heads=[1, 2]),
    "position 900": lambda d: making.zero("decoder.0.z", positions=900),
    "position -900": lambda d: making.zero("decoder.0.z", positions=-900),
    "position 140": lambda d: making.zero("encoder.mel", positions=range(100, 141)),
    "second 4: clip 0 is 1.3": lambda d: making.zero("adapter.out", seconds=(1, 4)),
    "clip 1": lambda d: making.zero("decoder.0.z", seconds=(0, 1), clip=1),
    "step 6: the answer has at most 6": lambda d: making.zero("decoder.0.z", steps=6),
    "token 100000": lambda d: making.zero("decoder.0.z", tokens=100000),
    "the audio has no steps": lambda d: making.zero("encoder.0.z", steps=1),
    "the cache has no steps": lambda d: making.zero("decoder.0.k_cache", steps=1),
    "keys: expected a pattern": lambda d: making.zero("decoder.0.z", keys=Place(positions=1)),
    "no position of the run": lambda d: making.zero("decoder.0.z", positions=2, steps=1),
    r"values of shape \(31,\)": lambda d: making.add("decoder.0.resid_mid", np.zeros(31)),
    r"values of shape \(3, 8\)": lambda d: making.add("decoder.0.z", np.zeros((3, 8))),
    r"values of shape \(8,\)": lambda d: making.add("decoder.0.pattern", np.zeros(8)),
    "the donor has no adapter.conv": lambda d: making.patch("adapter.conv", d),
    "the donor has 0 to": lambda d: making.patch("decoder.0.z", d, steps=5),
    "no channels": lambda d: making.mean("decoder.0.pattern", d),
    "as long as its position is late": lambda d: making.resample("decoder.0.pattern", d),
}


@pytest.fixture(scope="module")
def few(tiny_model, clip):
    """A donor with one layer and fewer tokens."""
    return running.activations(tiny_model, clip, "decoder.0.*", sampling=GREEDY, max_tokens=4, on_loop="off")


@pytest.mark.parametrize("message", REFUSED)
def test_an_edit_that_cannot_apply_is_refused_before_anything_runs(tiny_model, clip, few, monkeypatch, message):
    edits = REFUSED[message](few)
    monkeypatch.setattr(type(tiny_model.net), "encode_audio", None)
    for run in (
        lambda: free(tiny_model, clip, edits),
        lambda: running.run_with_edits(tiny_model, [clip], edits, **HOW),
    ):
        with pytest.raises(ConfigError, match=message):
            run()


@pytest.mark.parametrize("make", [
    lambda: making.zero("decoder.0.z", positions=[]), lambda: making.zero("decoder.0.z", positions=1.5),
    lambda: making.zero("decoder.0.z", positions="all"), lambda: making.zero("decoder.0.z", steps=-1),
    lambda: making.zero("decoder.0.z", steps=slice(5, 2)), lambda: making.zero("decoder.0.z", steps=slice(0, 9, 2)),
    lambda: making.zero("decoder.0.z", seconds=(1, 1)), lambda: making.zero("decoder.0.z", seconds=3),
    lambda: making.zero("decoder.0.z", seconds=(0, float("nan"))), lambda: making.zero("decoder.0.z", clip=-1),
    lambda: making.zero("decoder.0.z", heads=True), lambda: making.zero("decoder.0.z", heads=slice(1, None)),
    lambda: making.zero("decoder.0.z", clip=1),
    lambda: making.zero([]), lambda: making.zero(3), lambda: making.zero("decoder.0.z", keys=3),
    lambda: making.add("logits", float("nan")), lambda: making.add("logits", "much"),
    lambda: making.add("logits", np.zeros((2, 2, 2))), lambda: making.add("logits", 1, layer=3),
    lambda: making.patch("logits", None), lambda: making.mean("logits", []), lambda: making.resample("logits", 3, -1),
])  # fmt: skip
def test_what_is_no_edit_is_refused_when_it_is_made(make):
    with pytest.raises(ConfigError):
        make()


def test_what_is_no_edits_is_refused_by_a_run(tiny_model, clip):
    one = making.zero("decoder.0.z")
    for given in ([one], one.edits[0], {}, "zero"):
        with pytest.raises(ConfigError, match=r"joined with \+"):
            free(tiny_model, clip, given)


def test_values_may_be_arrays_of_the_device():
    vector = mx.arange(32).astype(mx.bfloat16)
    assert making.add("decoder.out", vector) == making.add("decoder.out", np.arange(32))
