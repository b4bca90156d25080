"""Patching between runs: faults that are planted are found where they were planted, and nowhere else."""

import numpy as np
import pytest
import tiny

from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import StepAudioError
from stepaudio.experiments.faulty_mel import WrongMel
from stepaudio.interp import ablation, names, patching, placebos, running
from stepaudio.interp import edits as making

HOW = {"sampling": Sampling.greedy(), "max_tokens": 5, "on_loop": "off"}
ORDER = [f"decoder.{i}.{name}" for i in range(2) for name in ("resid_pre", "resid_mid", "resid_post")]


@pytest.fixture(scope="module")
def clip():
    return tiny.noise(1.3)


@pytest.mark.parametrize("stage", ["decoder.0.mlp_out", "decoder.1.attn_out"])
@pytest.mark.parametrize("measure", ["logit_difference", "probability"])
def test_a_planted_stage_restores_all_and_the_one_before_nothing(tiny_model, clip, stage, measure):
    """The fault: a stage is negated. The residual stream before it is clean anyway, behind it clean by the patch."""
    fault = making.scale(stage, -1.0)
    places = [{"names": name} for name in (*ORDER, stage)]
    found = patching.patch_between(tiny_model, clip, None, places, measure, fault=fault, **HOW)
    behind = ORDER.index(f"decoder.{stage[8]}.resid_post" if "mlp" in stage else f"decoder.{stage[8]}.resid_mid")
    want = [0.0] * behind + [1.0] * (len(ORDER) - behind) + [1.0]
    assert abs(found.clean - found.corrupt) > 1e-3
    np.testing.assert_allclose(found.recovered, want, atol=1e-3)
    assert found.table().count("100.0%") == sum(x == 1 for x in want)


def test_patching_the_audio_restores_another_recordings_answer(tiny_model, clip):
    found = patching.patch_between(
        tiny_model, clip, tiny.noise(1.3, 7), [{"names": "adapter.out"}, {"names": "encoder.mel"}], **HOW
    )
    np.testing.assert_allclose(found.recovered, 1.0, atol=1e-3)


def test_a_placebo_at_the_same_place_restores_less(tiny_model, clip):
    place = {"names": "decoder.0.resid_post"}
    found = patching.patch_between(tiny_model, clip, tiny.noise(1.3, 7), place, placebos=8, **HOW)
    assert found.recovered[0] == pytest.approx(1.0, abs=1e-3) and found.placebos.shape == (1, 8)
    shares = (found.placebos - found.corrupt) / (found.clean - found.corrupt)
    assert (np.abs(shares - 1) > 0.05).all()
    np.testing.assert_allclose(found.placebo_range, np.quantile(shares, (0.025, 0.975), axis=1).T)
    again = patching.patch_between(tiny_model, clip, tiny.noise(1.3, 7), place, placebos=8, **HOW)
    np.testing.assert_array_equal(found.placebos, again.placebos)


PLACES = {
    "one position": {"names": "decoder.1.resid_post", "steps": 0},
    "a stretch of audio": {"names": "decoder.0.resid_post", "seconds": (0.2, 0.7)},
    "a head of a stretch": {"names": "decoder.0.z", "heads": 1, "seconds": (0.2, 0.7)},
    "keys in the cache": {"names": "decoder.1.k_cache", "seconds": (0.2, 0.7)},
    "frames of the encoder": {"names": "encoder.0.resid_post", "seconds": (0.2, 0.7)},
    "logits": {"names": "logits", "steps": (1, 2)},
    "a token": {"names": "decoder.0.resid_post", "tokens": range(300)},
    "everything": {"names": "encoder.mel"},
    "everything in the decoder": {"names": "decoder.0.resid_post"},
}


def computed(model, clip, name, pair, edits=None):
    """One activation along the clean answer, with edits: an array for each position."""
    seen = []
    running.forced_logits(
        model,
        running.lay_out(model, clip),
        pair.tokens,
        edits,
        lambda n, x: seen.append(np.array(x)) if n == name else None,
    )
    axes = ("B", "n", "V") if name == "logits" else names.GLOSSARY[names.pattern_of(name)].axes
    return list(np.moveaxis(seen[0][0], next(i for i, a in enumerate(axes) if a in "TSPRnL") - 1, 0))


@pytest.mark.parametrize("what", PLACES)
def test_a_placebo_never_puts_what_the_patch_puts(tiny_model, clip, what):
    """Whatever is drawn stands elsewhere in the clean run, where the patch puts nothing if there is such a place."""
    place, other = PLACES[what], tiny.noise(1.3, 7)
    name, heads = place["names"], slice(place.get("heads"), place.get("heads", -1) + 1 or None)
    pair = patching.run_pair(tiny_model, clip, other, name, **HOW)
    patch = making.patch(donor=pair.donor, **place)
    tap = running.edit_tap(tiny_model, patch, [pair.layout], 5)
    clean, corrupt = computed(tiny_model, clip, name, pair), computed(tiny_model, other, name, pair)
    marked = computed(tiny_model, other, name, pair, making.replace(value=1e3, **place))
    patched = {i for i, entry in enumerate(marked) if np.all(entry[heads] == 1e3)}
    left = set(range(len(clean))) - patched
    assert patched and (left or "everything" in what)
    for seed in range(8):
        edits = placebos.placebo(place, pair.donor, tap, (*pair.layout.prompt.tokens, *pair.tokens), seed)
        for i, new in enumerate(computed(tiny_model, other, name, pair, edits)):
            if i in patched:
                source = {j for j, one in enumerate(clean) if np.array_equal(one[heads], new[heads])}
                assert source & (left or patched) and i not in source, (seed, i)
            else:
                assert np.array_equal(new, corrupt[i]), (seed, i)


def test_silence_has_no_placebo_but_what_is_not_silent(tiny_model):
    """Frames of silence are alike: another one of them would be the treatment."""
    clean = np.concatenate([np.zeros(16_000, np.float32), tiny.noise(0.3)])
    pair = patching.run_pair(tiny_model, clean, tiny.noise(1.3, 7), "encoder.mel", **HOW)
    place = {"names": "encoder.mel", "seconds": (0.2, 0.5)}
    tap = running.edit_tap(tiny_model, making.patch(donor=pair.donor, **place), [pair.layout], 5)
    silent = pair.donor["encoder.mel"][0][:, 30]
    for seed in range(5):
        edits = placebos.placebo(place, pair.donor, tap, (), seed)
        put = computed(tiny_model, tiny.noise(1.3, 7), "encoder.mel", pair, edits)
        assert not any(np.array_equal(frame, silent) for frame in put[20:50])
    with pytest.raises(StepAudioError, match="nothing else to put at position"):
        patching.patch_between(
            tiny_model, np.zeros(16_000, np.float32), tiny.noise(1.0), {"names": "encoder.mel", "positions": range(40)},
            placebos=1, **HOW,
        )  # fmt: skip


def test_measures_of_what_is_generated(tiny_model, clip):
    """The corrupt run can only say one token, over and over: a loop by construction, and every word wrong."""
    token = int(tiny_model.tokenizer.encode("cat")[0])
    shout = np.zeros(tiny_model.config.text_config.vocab_size, np.float32)
    shout[token] = 1e4
    how = HOW | {"fault": making.add("logits", shout), "max_tokens": 48}
    loop = patching.patch_between(tiny_model, clip, None, {"names": "logits"}, "loop", **how)
    assert (loop.corrupt, loop.values[0]) == (1.0, loop.clean) and loop.clean == 0.0
    words = patching.patch_between(tiny_model, clip, None, {"names": "logits"}, "wer", **how)
    assert words.clean == 0 == words.values[0] and words.corrupt > 0.5


def test_a_wrong_mel_is_patched_through_the_layers(tiny_model, clip):
    from dataclasses import replace

    wrong = tiny_model.altered(pipeline=replace(tiny_model.pipeline, mel=WrongMel(scale="htk")))
    found = patching.patch_between(
        tiny_model, clip, None, [{"names": "encoder.mel"}, {"names": "decoder.1.v"}], corrupt_model=wrong, **HOW
    )
    assert found.recovered[0] == pytest.approx(1.0, abs=1e-3) and found.recovered[1] < 0.999


def test_a_fault_in_one_stretch_is_traced_to_it(tiny_model, clip):
    """Audio embeddings from 0.4 to 0.8 s are spoilt; patching them there, and only there, restores everything."""
    fault = making.scale("adapter.out", -2.0, seconds=(0.4, 0.8))
    found = patching.causal_trace(tiny_model, clip, None, ["adapter.out", "decoder.1.resid_post"], fault=fault, **HOW)
    assert found.names == ("adapter.out", "decoder.1.resid_post") and found.recovered.shape == (2, 4)
    np.testing.assert_allclose(found.edges, [0, 0.4, 0.8, 1.2, 1.28])
    np.testing.assert_allclose(found.recovered[0], [0, 1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(found.recovered[1], 0, atol=1e-3)  # too late: only the last position is read behind it


def test_a_trace_ends_with_the_sound(tiny_model):
    """The last audio embedding reaches beyond a recording whose length is no multiple of 80 ms."""
    for seconds in (1.25, 1.27, 1.3):
        fault = making.scale("adapter.out", -2.0, seconds=(1.2, seconds))
        found = patching.causal_trace(tiny_model, tiny.noise(seconds, 3), None, "adapter.out", fault=fault, **HOW)
        assert abs(found.edges[-1] - seconds) < 0.08
        assert found.recovered[0, -1] == pytest.approx(1.0, abs=1e-3)


def test_heads_by_hand(tiny_model, clip):
    clips = [clip, tiny.noise(1.5, 3)]
    found = ablation.ablate_heads(tiny_model, clips, **HOW)
    assert found.lost.shape == (2, 2, 4) and found.table().count("\n") == 2
    layout = running.lay_out(tiny_model, clips[1])
    tokens = running.run_with_edits(tiny_model, [clips[1]], making.Edits(), **HOW)[0].tokens

    def score(tap):
        logits = running.forced_logits(tiny_model, layout, tokens, tap=tap).astype(float)
        return np.mean(
            [row[t] - np.log(np.exp(row - row.max()).sum()) - row.max() for row, t in zip(logits, tokens, strict=True)]
        )

    def silent(name, x):
        return x * np.array([1, 1, 0, 1])[None, :, None, None].astype(np.float32) if name == "decoder.1.z" else None

    assert found.lost[1, 1, 2] == pytest.approx(score(None) - score(silent), abs=1e-4)
    donor = running.activations(tiny_model, clip, "encoder.*.z", **HOW)
    assert ablation.ablate_heads(tiny_model, [clip], "encoder.*.z", donors=donor, **HOW).lost.shape == (1, 1, 2)


@pytest.mark.parametrize("call, message", [
    (lambda m, c: patching.patch_between(m, c, None, {"names": "decoder.0.z"}, **HOW), "nothing is corrupt"),
    (lambda m, c: patching.patch_between(m, c, tiny.noise(2.0), {"names": "decoder.0.z"}, **HOW), "the same length"),
    (lambda m, c: patching.patch_between(m, c, c, [], **HOW), "at least one"),
    (lambda m, c: patching.patch_between(m, c, c, {"heads": 1}, **HOW), "names"),
    (lambda m, c: patching.patch_between(m, c, c, {"names": "logits", "donor": 1}, **HOW), "names"),
    (lambda m, c: patching.patch_between(m, c, c, {"names": "logits"}, placebos="2", **HOW), "placebos"),
    (lambda m, c: patching.patch_between(m, c, c, {"names": "decoder.0.pattern"}, placebos=1, **HOW), "axis of time"),
    (lambda m, c: patching.causal_trace(m, c, c, seconds="1", **HOW), "seconds"),
    (lambda m, c: ablation.ablate_heads(m, [c], 3, **HOW), "heads of one net"),
    (lambda m, c: patching.patch_between(m, c, c, {"names": "decoder.0.z"}, "loss", **HOW), "measure"),
    (lambda m, c: patching.patch_between(m, c, c, {"names": "decoder.0.z", "heads": 9}, **HOW), "head 9"),
    (lambda m, c: ablation.ablate_heads(m, c, **HOW), "list of recordings"),
    (lambda m, c: ablation.ablate_heads(m, [c], "decoder.*.mlp_out", **HOW), "heads of one net"),
    (lambda m, c: patching.causal_trace(m, c, c, seconds=0.01, **HOW), "at least 0.08"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(tiny_model, clip, call, message):
    with pytest.raises(StepAudioError, match=message):
        call(tiny_model, clip)


def test_audio_that_no_edit_touches_is_encoded_once(tiny_model, clip, monkeypatch):
    calls, encode = [], type(tiny_model.net).encode_audio
    monkeypatch.setattr(type(tiny_model.net), "encode_audio", lambda *a, **k: calls.append(1) or encode(*a, **k))
    places = [{"names": name} for name in ORDER]
    fault = making.scale("decoder.0.mlp_out", -1.0)
    patching.patch_between(tiny_model, clip, None, places, fault=fault, **HOW)
    few = len(calls)
    patching.patch_between(tiny_model, clip, None, places + places, fault=fault, **HOW)
    assert len(calls) == 2 * few
    patching.patch_between(tiny_model, clip, None, [{"names": "adapter.out"}], fault=fault, **HOW)
    assert len(calls) == 3 * few + 1


def test_a_rate_against_an_answer_without_words_is_refused(tiny_model, clip, monkeypatch):
    monkeypatch.setattr(tiny_model.engine, "decode", lambda tokens: "")
    with pytest.raises(StepAudioError, match="no words"):
        patching.patch_between(tiny_model, clip, tiny.noise(1.3, 7), {"names": "logits"}, "wer", **HOW)
