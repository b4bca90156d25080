"""What is added to speech has the level and the colour that its name says, and is the same at every level."""

import numpy as np
import pytest

from stepaudio.errors import ConfigError
from stepaudio.experiments.faults import faulty
from stepaudio.experiments.faulty_sound import KINDS, parse, rotten, speech_power

TONE = (0.1 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000)).astype(np.float32)  # its mean square is 0.005
POWER = 0.005


def added(kind, dose, samples=TONE):
    return rotten(samples, kind, dose).astype(np.float64) - samples


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dose", [20, 0, -10])
def test_the_level_is_the_one_asked_for(kind, dose):
    assert 10 * np.log10(POWER / np.mean(added(kind, dose) ** 2)) == pytest.approx(dose, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_level_changes_with_the_dose(kind):
    assert np.allclose(added(kind, 0), 10 * added(kind, 20), atol=2e-5)
    assert np.array_equal(rotten(TONE, kind, 0), rotten(TONE, kind, 0))
    other = np.roll(TONE, 7)
    assert not np.allclose(added(kind, 0), added(kind, 0, other), atol=1e-3)


def octaves(x):
    """Power from 250 to 500 Hz, 500 to 1000, 1000 to 2000 and 2000 to 4000 Hz."""
    power, hertz = np.abs(np.fft.rfft(x)) ** 2, np.fft.rfftfreq(len(x), 1 / 16_000)
    return np.array([power[(hertz >= low) & (hertz < 2 * low)].sum() for low in (250, 500, 1000, 2000)])


def test_colours():
    white, pink = octaves(added("white", 0)), octaves(added("pink", 0))
    assert white[1:] / white[:-1] == pytest.approx(2, rel=0.2)  # equal power at every frequency
    assert pink[1:] / pink[:-1] == pytest.approx(1, rel=0.2)  # equal power in every octave


def test_a_room_rings_for_its_time_and_only_after_the_sound():
    click = np.zeros(24_000, np.float32)
    click[8_000] = 0.5
    tail = added("room", 0, click)
    assert np.abs(tail[:7_990]).max() < 1e-6
    early, late = np.mean(tail[8_000:8_800] ** 2), np.mean(tail[12_800:13_600] ** 2)  # 0.3 s apart: half of 60 dB
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)


def test_speech_is_measured_where_somebody_speaks():
    assert speech_power(np.concatenate([TONE, np.zeros(160_000, np.float32)])) == pytest.approx(POWER, rel=0.01)


def test_silence_comes_first_and_is_faint():
    found = rotten(TONE, "quiet", 1.5)
    assert len(found) == 24_000 + len(TONE) and np.array_equal(found[24_000:], TONE)
    assert np.sqrt(np.mean(found[:24_000] ** 2)) == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(1600, np.float32)])
def test_nothing_to_be_louder_than(samples):
    assert np.array_equal(rotten(samples, "white", 0), samples)


@pytest.mark.parametrize("name", ["white", "white:", "white:loud", "white:nan", "brown:3", "quiet:-1", "room:inf"])
def test_names_that_mean_nothing(name, tiny_model):
    with pytest.raises(ConfigError):
        parse(name)
    with pytest.raises(ConfigError):
        faulty(tiny_model, name)


def test_a_model_hears_it_and_the_other_does_not(tiny_model):
    noisy = faulty(tiny_model, "white:0+mel_scale")
    assert np.array_equal(noisy.pipeline.load(TONE, sample_rate=16_000), rotten(TONE, "white", 0))
    assert np.array_equal(tiny_model.pipeline.load(TONE, sample_rate=16_000), TONE)
    assert noisy.pipeline.mel is not tiny_model.pipeline.mel
