"""Edits inside token2wav: what they leave alone, what a donor restores, and what is refused."""

import mlx.core as mx
import numpy as np
import pytest

from stepaudio.errors import ConfigError
from stepaudio.interp import edits as making
from stepaudio.interp.edits import Edits
from stepaudio.interp.names import TOKEN2WAV_GLOSSARY
from stepaudio.interp.places import Place
from stepaudio.interp.sound_axes import sound_names
from stepaudio.interp.sound_edits import sound_with_edits, streamed_with_edits
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.synthesis.streaming import StreamOptions

HOW = {"options": FlowOptions(2)}
CUT = {"chunk_codes": 6, "mel_frames": 4, "cross_fade": "even"}  # 20 codes in three chunks
STREAM = {"options": StreamOptions(FlowOptions(2, noise="position"), **CUT)}
CODES = np.random.default_rng(0).integers(0, 81, 20).tolist()


@pytest.fixture(scope="module")
def plain(synthesizer, voices):
    return sound_with_edits(synthesizer, CODES, voices[0], Edits(), keep="*", **HOW)


def test_every_name_is_handed_out_and_without_edits_it_is_the_plain_sound(synthesizer, voices, plain):
    sound, kept = plain
    want = synthesizer.decode(CODES, voices[0], **HOW)
    np.testing.assert_array_equal(sound.wave, want.wave)
    np.testing.assert_array_equal(sound.mel, want.mel)
    names = sound_names(synthesizer.parts.flow, synthesizer.parts.hift, 2)
    assert set(kept.arrays) == set(names)
    for name, (axes, sizes) in names.items():
        for axis, size in zip(axes, kept[name].shape, strict=True):
            assert sizes.get(axis, size) == size, (name, axis)
    assert {n.split(".")[0] for n in names} <= set(TOKEN2WAV_GLOSSARY)


def test_an_identity_edit_changes_no_bit(synthesizer, voices, plain):
    for pattern in ("flow.*", "vocoder.*"):
        sound, _ = sound_with_edits(
            synthesizer, CODES, voices[0], making.scale(pattern, 1.0) + making.add(pattern, 0), **HOW
        )
        np.testing.assert_array_equal(sound.wave, plain[0].wave)


def test_a_donors_mel_gives_the_donors_sound(synthesizer, voices, plain):
    other = np.random.default_rng(1).integers(0, 81, 20).tolist()
    donor, kept = sound_with_edits(synthesizer, other, voices[0], Edits(), keep=["flow.*", "vocoder.source"], **HOW)
    assert not np.array_equal(donor.wave, plain[0].wave)
    for name in ("flow.encoder.out", "flow.mu", "flow.euler.1.x"):
        sound, _ = sound_with_edits(synthesizer, CODES, voices[0], making.patch(name, kept), **HOW)
        np.testing.assert_array_equal(sound.wave, donor.wave, err_msg=name)


def test_seconds_are_those_of_the_sound(synthesizer, voices):
    """0.2 to 0.4 s of sound: behind the prompt, mel frames 10 to 19, codes 5 to 9, 4800 samples from 4800 on."""
    n = len(voices[0].codes)
    places = {"flow.encoder.embed": (n + 5, n + 10), "flow.mu": (2 * n + 10, 2 * n + 20), "vocoder.conv_pre": (10, 20)}
    for name, (start, stop) in places.items():
        edits = making.replace(name, 7.0, seconds=(0.2, 0.4))
        _, kept = sound_with_edits(synthesizer, CODES, voices[0], edits, keep=name, **HOW)
        assert np.flatnonzero((kept[name][0] == 7).all(axis=1)).tolist() == list(range(start, stop)), name
    sound, _ = sound_with_edits(synthesizer, CODES, voices[0], making.zero("vocoder.wave", seconds=(0.2, 0.4)), **HOW)
    assert not sound.wave[4800:9600].any() and sound.wave[:4800].any() and sound.wave[9600:].any()


def test_a_head_is_silenced_in_both_guided_rows(synthesizer, voices, plain):
    name = "flow.euler.0.dit.0.z"
    _, kept = sound_with_edits(synthesizer, CODES, voices[0], making.zero(name, heads=1), keep=name, **HOW)
    assert not kept[name][:, 1].any() and kept[name].shape[0] == 2
    np.testing.assert_array_equal(kept[name][:, 0], plain[1][name][:, 0])


@pytest.mark.parametrize("edits, message", [
    (making.zero("decoder.0.z"), "no activation of token2wav"),
    (making.zero("flow.euler.2.x"), "no activation of token2wav"),
    (making.zero("flow.mu", heads=0), "has no heads"),
    (making.zero("flow.encoder.0.z", heads=99), "head 99"),
    (making.zero("flow.mu", seconds=(0, 1)), "the sound is 0.80 s long"),
    (making.zero("flow.mu", positions=10_000), "position 10000"),
    (making.zero("vocoder.wave", positions=19_200), "position 19200: the run has 19200"),
    (making.zero("flow.encoder.pos_embed", positions=0), "no axis of time"),
    (making.zero("flow.mu", steps=1), "no steps"),
    (making.zero("flow.speaker", seconds=(0, 0.4)), "no axis of time"),
    (making.add("flow.mu", [1.0, 2.0]), "values of shape"),
])  # fmt: skip
def test_what_cannot_apply_is_refused_before_anything_runs(synthesizer, voices, edits, message, monkeypatch):
    monkeypatch.setattr(type(synthesizer.parts.flow), "__call__", None)
    with pytest.raises(ConfigError, match=message):
        sound_with_edits(synthesizer, CODES, voices[0], edits, **HOW)


# ---------------------------------------------------------------- as a stream


@pytest.fixture(scope="module")
def stream(synthesizer, voices):
    return streamed_with_edits(synthesizer, CODES, voices[0], Edits(), keep="*", **STREAM)


def test_a_stream_without_edits_or_with_edits_that_change_nothing_is_the_plain_stream(synthesizer, voices, stream):
    want = np.concatenate([c.wave for c in synthesizer.stream(CODES, voices[0], **STREAM)])
    np.testing.assert_array_equal(stream[0].wave, want)
    edits = making.scale("flow.*", 1.0) + making.add("vocoder.*", 0)
    sound, _ = streamed_with_edits(synthesizer, CODES, voices[0], edits, **STREAM)
    np.testing.assert_array_equal(sound.wave, want)


def test_what_a_stream_computes_stands_where_the_whole_has_it(voices, plain, stream):
    """Sizes of all; values of what does not depend on how the codes are divided."""
    shapes = [
        {n: a.shape for n, a in kept.arrays.items() if not n.endswith("pos_embed")} for _, kept in (plain, stream)
    ]
    assert shapes[0] == shapes[1]
    for name in ("flow.speaker", "flow.encoder.embed", "flow.noise"):
        np.testing.assert_array_equal(stream[1][name], plain[1][name], err_msg=name)
    n = len(voices[0].codes)  # at the prompt's end its own first codes stand in for the next three
    ours, whole = (np.delete(kept["flow.encoder.pre_lookahead"], range(n - 3, n + 2), 1) for _, kept in (stream, plain))
    np.testing.assert_allclose(ours, whole, atol=1e-5)


@pytest.mark.parametrize("memory", ["reference", "recent"])
def test_the_estimators_keys_are_known_by_position(synthesizer, voices, memory):
    """Each row of its pattern is the softmax, worked out here, over the frames that were looked at."""
    options = StreamOptions(FlowOptions(1, recent_frames=10, noise="position", memory=memory), chunk_codes=3)
    at = "flow.euler.0.dit.0."
    _, kept = streamed_with_edits(
        synthesizer, CODES, voices[0], Edits(), keep=[f"{at}{n}" for n in ("q", "k", "pattern")], options=options
    )
    attention = synthesizer.parts.flow.decoder.estimator.blocks[0].attn
    q, k = (np.array(f(mx.array(kept[at + n]))) for n, f in (("q", attention.q_norm), ("k", attention.k_norm)))
    scores = np.exp((q @ k.swapaxes(-1, -2)) * q.shape[-1] ** -0.5)
    seen = kept[f"{at}pattern"] > 0
    want = np.where(seen, scores, 0)
    np.testing.assert_allclose(kept[f"{at}pattern"], want / want.sum(-1, keepdims=True), atol=1e-5)
    prompt, shown = 2 * len(voices[0].codes), [np.flatnonzero(row) for row in seen[0, 0]]
    assert shown[0].tolist() == list(range(prompt)) and len(shown[-1]) == prompt + 10 + 2 * 5
    if memory == "recent":  # all of the prompt, the last ten frames, and its own: the last chunk is of five codes
        assert shown[-1].tolist() == [*range(prompt), *range(prompt + 20, prompt + 40)]


def test_edits_hold_where_they_do_in_the_whole(synthesizer, voices):
    """0.2 to 0.4 s: over the end of the first chunk, which the vocoder reads twice."""
    names = [
        "flow.encoder.embed", "flow.encoder.0.z", "flow.encoder.up.conv", "flow.mu", "flow.euler.1.dit.0.k",
        "vocoder.f0", "vocoder.sines", "vocoder.source", "vocoder.source_stft", "vocoder.0.up", "vocoder.0.source",
        "vocoder.conv_post", "vocoder.wave",
    ]  # fmt: skip
    last = len(synthesizer.parts.hift.ups) - 1
    names += [f"vocoder.{last}.up", f"vocoder.{last}.out"]
    edits = making.replace(names, 7.0, seconds=(0.2, 0.4))
    _, whole = sound_with_edits(synthesizer, CODES, voices[0], edits, keep=names, **HOW)
    _, kept = streamed_with_edits(synthesizer, CODES, voices[0], edits, keep=names, **STREAM)
    for name in names:
        np.testing.assert_array_equal(kept[name] == 7, whole[name] == 7, err_msg=name)
        assert (whole[name] == 7).any() and not (whole[name] == 7).all(), name


def test_what_stands_in_for_codes_behind_the_prompt_is_edited_everywhere_or_not_at_all(synthesizer, voices):
    """Seven in all codes: each sees the same but the two behind which nothing is; by position not the codes put in."""
    n, name, seen = len(voices[0].codes), "flow.encoder.embed", "flow.encoder.pre_lookahead"
    for where, differ in (({}, []), ({"positions": slice(0, None)}, list(range(n - 3, n + 2)))):
        edits = making.replace(name, 7.0, **where)
        _, kept = streamed_with_edits(synthesizer, CODES, voices[0], edits, keep=seen, **STREAM)
        rows = kept[seen][0, 2 : n + 10]
        assert (2 + np.flatnonzero((np.abs(rows - rows[5]) > 1e-5).any(axis=1))).tolist() == differ


def test_a_pattern_is_edited_by_query_and_key(synthesizer, voices, stream):
    """The keys of the prompt, seen from the second half of the sound, in conformer and estimator."""
    n = len(voices[0].codes)
    for name, up in (("flow.encoder.0.pattern", 1), ("flow.euler.0.dit.1.pattern", 2)):
        edits = making.zero(name, seconds=(0.4, 0.8), keys=Place(positions=range(up * n)), heads=0)
        _, kept = streamed_with_edits(synthesizer, CODES, voices[0], edits, keep=name, **STREAM)
        want = stream[1][name].copy()
        assert (want[:, 0, up * (n + 10) :, : up * n] > 0).any()
        want[:, 0, up * (n + 10) :, : up * n] = 0
        np.testing.assert_array_equal(kept[name], want, err_msg=name)


def test_what_the_whole_computed_makes_a_stream_the_whole(synthesizer, voices, plain):
    """The mel, bit for bit; the sound, as even cross-fades weigh it by one."""
    edits = making.patch("flow.euler.1.x", plain[1]) + making.patch("vocoder.wave", plain[1])
    sound, _ = streamed_with_edits(synthesizer, CODES, voices[0], edits, **STREAM)
    np.testing.assert_array_equal(sound.mel, plain[0].mel)
    np.testing.assert_allclose(sound.wave, plain[0].wave, atol=1e-6)


def test_what_is_added_to_the_source_is_added_once(synthesizer, voices, stream):
    edits = making.add("vocoder.source", 0.5)
    _, kept = streamed_with_edits(synthesizer, CODES, voices[0], edits, keep="vocoder.source", **STREAM)
    np.testing.assert_allclose(kept["vocoder.source"], stream[1]["vocoder.source"] + 0.5, atol=1e-6)


def test_an_edit_moves_stream_and_whole_alike(synthesizer, voices, plain, stream):
    """Further apart than without the edit they are not, and the edit moves both much further."""
    edits = making.scale("flow.mu", 3.0, seconds=(0.2, 0.5)) + making.zero("flow.euler.*.dit.1.z", heads=0)
    whole, _ = sound_with_edits(synthesizer, CODES, voices[0], edits, **HOW)
    sound, _ = streamed_with_edits(synthesizer, CODES, voices[0], edits, **STREAM)
    apart = np.linalg.norm(stream[0].mel - plain[0].mel)
    assert np.linalg.norm(sound.mel - whole.mel) < 1.5 * apart
    assert np.linalg.norm(whole.mel - plain[0].mel) > 5 * apart


def test_a_stream_refuses_before_anything_runs(synthesizer, voices, monkeypatch):
    monkeypatch.setattr(type(synthesizer.parts.flow), "begin", None)
    with pytest.raises(ConfigError, match="the sound is 0.80 s long"):
        streamed_with_edits(synthesizer, CODES, voices[0], making.zero("flow.mu", seconds=(0, 1)), **STREAM)
