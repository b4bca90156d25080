"""Edits inside token2wav: what they leave alone, what a donor restores, and what is refused."""

import numpy as np
import pytest

from stepaudio.errors import ConfigError
from stepaudio.interp import edits as making
from stepaudio.interp.edits import Edits
from stepaudio.interp.names import TOKEN2WAV_GLOSSARY
from stepaudio.interp.sound_edits import sound_names, sound_with_edits
from stepaudio.models.token2wav.flow import FlowOptions

HOW = {"options": FlowOptions(2)}
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
    (making.zero("vocoder.wave", positions=3), "give seconds"),
    (making.zero("flow.mu", steps=1), "no steps"),
    (making.zero("flow.speaker", seconds=(0, 0.4)), "no axis of time"),
    (making.add("flow.mu", [1.0, 2.0]), "values of shape"),
])  # fmt: skip
def test_what_cannot_apply_is_refused_before_anything_runs(synthesizer, voices, edits, message, monkeypatch):
    monkeypatch.setattr(type(synthesizer.parts.flow), "__call__", None)
    with pytest.raises(ConfigError, match=message):
        sound_with_edits(synthesizer, CODES, voices[0], edits, **HOW)
