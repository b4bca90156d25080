"""Does a clip look as if it were at 16 kHz? Pitch against a signal of known pitch, doubts against bundled speech."""

import csv
import warnings

import numpy as np
import pytest
import soundfile as sf
import soxr

from stepaudio.audio.load import load_audio
from stepaudio.audio.rate import contradiction, pitch_and_high_share
from stepaudio.resources import speech_manifest

RATE = 16_000


def clips() -> dict[str, np.ndarray]:
    """Spoken clips of the project, the first channel at 16 kHz."""
    with open(speech_manifest(), encoding="utf-8") as table:
        names = [row["file"] for row in csv.DictReader(table, delimiter="\t") if row["text"]]
    read = {name: sf.read(speech_manifest().parent / name, always_2d=True) for name in names}
    return {name: soxr.resample(x[:, 0], rate, RATE).astype(np.float32) for name, (x, rate) in read.items()}


CLIPS = clips()


@pytest.mark.parametrize("period", [400, 230, 144, 72, 36])
def test_pitch_of_a_pulse_train(period):
    x = np.zeros(2 * RATE)
    x[::period] = 1
    pitch, share = pitch_and_high_share(x)
    assert pitch == RATE / period and share == pytest.approx(0.5, abs=0.05)  # pulses are white


def test_noise_silence_and_what_is_short_have_no_pitch():
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    for x in (noise, np.zeros(RATE), noise[:1600]):
        assert pitch_and_high_share(x) == (np.inf, 1.0) and contradiction(x) is None


@pytest.mark.parametrize("name", CLIPS)
def test_speech_at_16_khz_is_not_doubted(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(CLIPS[name])


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_most_speech_at_a_higher_rate_is_doubted(rate):
    doubted = [contradiction(soxr.resample(x, RATE, rate)) for x in CLIPS.values()]
    assert sum(d is not None and "pitch of" in d for d in doubted) >= 0.8 * len(doubted)


def test_the_first_channel_of_a_real_recording_at_44_khz():
    x, rate = sf.read(speech_manifest().parent / "free_michael_44k_stereo.flac", dtype="float32")
    assert rate == 44_100 and x.shape[1] == 2
    for taken in (x, x[:, 0]):
        with pytest.warns(UserWarning, match=r"pitch of 4\d Hz .* 44.1 or 48 kHz"):
            load_audio(taken)
