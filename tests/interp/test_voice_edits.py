"""Edits in the nets that read a voice: against weights changed by hand, codes worked out by hand, and other clips."""

import copy

import mlx.core as mx
import numpy as np
import pytest
import tiny

from stepaudio.errors import ConfigError
from stepaudio.interp import edits as making
from stepaudio.interp.edits import Edits
from stepaudio.interp.voice_edits import voice_names, voice_with_edits
from stepaudio.synthesis.synthesizer import Synthesizer
from stepaudio.synthesis.voice import Voice

CLIP = tiny.noise(1.53)


@pytest.fixture(scope="module")
def plain(synthesizer):
    return voice_with_edits(synthesizer, CLIP, Edits(), keep="*")


def test_every_name_is_kept_and_without_edits_it_is_the_plain_voice(synthesizer, plain):
    voice, kept = plain
    assert voice == synthesizer.voice(CLIP)
    names = voice_names(synthesizer.parts)
    assert set(kept.arrays) == set(names)
    for name, (axes, sizes) in names.items():
        assert len(axes) == kept[name].ndim, name
        for axis, size in zip(axes, kept[name].shape, strict=True):
            assert sizes.get(axis, size) == size, (name, axis)
    assert kept["speech_tokenizer.out"].shape[1] == len(voice.codes) == 39
    np.testing.assert_array_equal(kept["speaker_encoder.embedding"][0], voice.speaker)


def test_an_identity_edit_changes_no_bit(synthesizer, plain):
    edits = making.scale("speech_tokenizer.*", 1.0) + making.add("speaker_encoder.*", 0)
    assert voice_with_edits(synthesizer, CLIP, edits)[0] == plain[0]


def test_a_hook_that_watches_a_clip_being_read_changes_nothing(synthesizer, plain):
    seen = {}
    voice = Voice.from_clip(synthesizer.parts, CLIP, tap=lambda name, x: seen.update({name: np.array(x)}))
    assert voice == plain[0] and set(seen) == set(plain[1].arrays)
    for name, array in seen.items():
        np.testing.assert_array_equal(array, plain[1][name], err_msg=name)


def test_a_silenced_head_is_one_whose_columns_of_the_projection_are_zero(synthesizer, plain):
    tokenizer = copy.deepcopy(synthesizer.parts.tokenizer)
    config, out = tokenizer.config, tokenizer.encoder.blocks[0].attn.out
    size = config.n_audio_state // config.n_audio_head
    weight = np.array(out.weight)
    weight[:, size : 2 * size] = 0
    out.weight = mx.array(weight)
    parts = copy.copy(synthesizer.parts)
    object.__setattr__(parts, "tokenizer", tokenizer)
    name = "speech_tokenizer.project_down"
    want = voice_with_edits(Synthesizer(parts), CLIP, Edits(), keep=name)[1][name]
    _, kept = voice_with_edits(synthesizer, CLIP, making.zero("speech_tokenizer.0.z", heads=1), keep=name)
    np.testing.assert_allclose(kept[name], want, atol=1e-5)
    assert np.abs(want - plain[1][name]).max() > 1e-3


def test_codes_follow_the_digits_that_are_put_there(synthesizer, plain):
    """Digit k of base 3 is 0, 1 or 2 for a value far below, at, or far above zero; 0.4 to 0.6 s are codes 10 to 14."""
    digits = [2, 0, 1, 2] * 2
    n = synthesizer.parts.tokenizer.config.n_dims
    values = [10.0 * (d - 1) for d in digits[:n]]
    edits = making.replace("speech_tokenizer.project_down", values, seconds=(0.4, 0.6))
    voice, _ = voice_with_edits(synthesizer, CLIP, edits)
    want = plain[0].codes.copy()
    want[10:15] = sum(d * 3**k for k, d in enumerate(digits[:n]))
    np.testing.assert_array_equal(voice.codes, want)
    np.testing.assert_array_equal(voice.speaker, plain[0].speaker)


def test_seconds_are_those_of_the_clip(synthesizer):
    """0.2 to 0.4 s at 100, 50 and 25 entries per second; to the end of the clip is to the end of every axis."""
    rates = {"speech_tokenizer.conv1": 50, "speech_tokenizer.1.resid_mid": 25, "speaker_encoder.head": 100,
             "speaker_encoder.tdnn": 50, "speaker_encoder.transit1": 50}  # fmt: skip
    for start, stop in ((0.2, 0.4), (1.0, 1.53)):
        edits = making.replace(list(rates), 7.0, seconds=(start, stop))
        _, kept = voice_with_edits(synthesizer, CLIP, edits, keep=list(rates))
        for name, rate in rates.items():
            held = np.flatnonzero((kept[name][0] == 7).all(axis=1))
            end = round(stop * rate) if stop < 1 else kept[name].shape[1]
            assert held.tolist() == list(range(round(start * rate), end)), name


def test_a_donors_activations_give_the_donors_voice(synthesizer, plain):
    other = tiny.noise(1.53, seed=5)
    donor, kept = voice_with_edits(synthesizer, other, Edits(), keep=["speech_tokenizer.*", "speaker_encoder.*"])
    assert not np.array_equal(donor.codes, plain[0].codes)
    for ours, theirs in (("speech_tokenizer.conv2", "codes"), ("speaker_encoder.head", "speaker")):
        voice, _ = voice_with_edits(synthesizer, CLIP, making.patch(ours, kept))
        np.testing.assert_array_equal(getattr(voice, theirs), getattr(donor, theirs), err_msg=ours)
    voice, _ = voice_with_edits(
        synthesizer, CLIP, making.replace("speaker_encoder.embedding", kept["speaker_encoder.embedding"][0])
    )
    np.testing.assert_array_equal(voice.speaker, donor.speaker)
    np.testing.assert_array_equal(voice.codes, plain[0].codes)
    assert synthesizer.decode(voice.codes[:5].tolist(), voice).wave.any()  # such a voice speaks


@pytest.mark.parametrize("edits, message", [
    (making.zero("flow.mu"), "expected a pattern over speech_tokenizer.<name> and speaker_encoder.<name>"),
    (making.zero("speech_tokenizer.99.z"), "no activation of token2wav"),
    (making.zero("speaker_encoder.transit0"), "no activation of token2wav"),
    (making.zero("speech_tokenizer.0.z", heads=99), "head 99"),
    (making.zero("speaker_encoder.tdnn", heads=0), "has no heads"),
    (making.zero("speaker_encoder.stats", seconds=(0, 1)), "no axis of time"),
    (making.zero("speech_tokenizer.out", seconds=(1, 2)), "the sound is 1.53 s long"),
    (making.zero("speech_tokenizer.out", positions=39), "position 39: the run has 39"),
    (making.zero("speech_tokenizer.out", steps=0), "no steps"),
    (making.add("speaker_encoder.tdnn", [1.0, 2.0]), "values of shape"),
])  # fmt: skip
def test_what_cannot_apply_is_refused_before_the_nets_run(synthesizer, edits, message, monkeypatch):
    monkeypatch.setattr(type(synthesizer.parts.tokenizer), "__call__", None)
    monkeypatch.setattr(type(synthesizer.parts.speaker), "__call__", None)
    with pytest.raises(ConfigError, match=message):
        voice_with_edits(synthesizer, CLIP, edits)


def test_a_donor_of_another_model_is_refused(synthesizer, plain):
    from stepaudio.interp.donor import Activations

    donor = Activations({"speech_tokenizer.out": np.zeros((1, 39, 3), np.float32)}, 0, 39)
    with pytest.raises(ConfigError, match="another model's: 3 where this one has"):
        voice_with_edits(synthesizer, CLIP, making.patch("speech_tokenizer.out", donor))
