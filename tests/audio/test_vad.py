"""Long silence is left out whatever lies under it, speech never is, and any detector may take the place of ours."""

import builtins
import sys
import types

import numpy as np
import pytest

from stepaudio.audio.load import load_audio
from stepaudio.audio.vad import MARGIN_SECONDS, energy_spans, speech_spans
from stepaudio.errors import AudioError, ConfigError
from stepaudio.evaluation.manifest import read_manifest
from stepaudio.resources import speech_manifest

RATE = 16_000
CLIPS = [c.file for c in read_manifest(speech_manifest()) if c.text]


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return load_audio(next(f for f in CLIPS if f.name == "free_emma.flac"))


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def noise(n: int, level: float, colour: float = 0.0, seed: int = 0) -> np.ndarray:
    """Noise at `level` dBFS; its power falls by `colour` times 3 dB an octave."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=n))
    x = np.fft.irfft(spectrum / np.maximum(np.fft.rfftfreq(n, 1 / RATE), 20) ** (colour / 2), n)
    return (x / x.std() * 10 ** (level / 20)).astype(np.float32)


def hum(n: int, level: float, hertz: float) -> np.ndarray:
    t = np.arange(n) / RATE
    x = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in (1, 2, 3, 5))
    return (x / x.std() * 10 ** (level / 20)).astype(np.float32)


UNDER = {  # what lies under a whole recording of n samples
    "nothing": lambda n: np.zeros(n, np.float32),
    "an offset": lambda n: np.full(n, 0.3, np.float32),
    "white noise at -60 dBFS": lambda n: noise(n, -60),
    "white noise at -45 dBFS": lambda n: noise(n, -45),
    "pink noise at -50 dBFS": lambda n: noise(n, -50, 1),
    "brown noise at -40 dBFS": lambda n: noise(n, -40, 2),
    "hum of 50 Hz at -30 dBFS": lambda n: hum(n, -30, 50),
    "hum of 60 Hz at -35 dBFS": lambda n: hum(n, -35, 60),
    "the last bit": lambda n: np.random.default_rng(0).integers(-1, 2, n).astype(np.float32) / 2**15,
    "noise that steps": lambda n: np.concatenate([noise(n // 3, -70), noise(n - n // 3, -50)]),
    "noise that fades": lambda n: noise(n, -50) * np.linspace(1, 0.2, n, dtype=np.float32),
}


@pytest.mark.parametrize("under", UNDER)
def test_long_silence_is_skipped_and_the_speech_is_not(clip, under):
    """9 s before, 8 s between, 7 s after; where the clip begins and ends is heard to about 0.15 s."""
    x = np.concatenate([quiet(9), clip, quiet(8), clip, quiet(7)])
    x = x + UNDER[under](len(x))
    spans = speech_spans(x)
    begins = [9, 17 + len(clip) / RATE]
    assert len(spans) == 2
    for (start, end), begin in zip(spans, begins, strict=True):
        assert begin - 0.6 < start / RATE < begin - 0.2  # 0.12 s of the clip are silent
        assert begin + len(clip) / RATE + 0.1 < end / RATE < begin + len(clip) / RATE + 0.6


@pytest.mark.parametrize("gain", [8.0, 1.0, 0.01, 0.003])
def test_any_level_of_speech(clip, gain):
    x = np.concatenate([quiet(6), clip, quiet(6)])
    ((start, end),) = speech_spans(x * np.float32(gain))
    assert 5 * RATE < start < 6 * RATE and 6 * RATE + len(clip) < end < 7 * RATE + len(clip)


@pytest.mark.parametrize("path", CLIPS, ids=lambda p: p.name)
def test_recordings_without_long_silence_stay_whole(path):
    x = load_audio(path)
    assert speech_spans(x) == [(0, len(x))]


def test_soft_words_beside_loud_ones_are_kept(clip):
    """40 dB below the others, and over noise that is 20 dB softer still."""
    soft = clip * np.float32(0.01)
    x = np.concatenate([quiet(4), clip, quiet(6), soft, quiet(6), clip])
    spans = speech_spans(x + noise(len(x), -83))
    begin = 4 * RATE + len(clip) + 6 * RATE
    assert any(start <= begin + 0.15 * RATE and end >= begin + len(clip) - 0.3 * RATE for start, end in spans)


@pytest.mark.parametrize("n", [1, 100, 320])
def test_clicks_are_no_speech(clip, n):
    x = np.concatenate([quiet(20), clip, quiet(20)])
    x[5 * RATE : 5 * RATE + n] = 0.9
    x[30 * RATE : 30 * RATE + n] = -0.9
    assert len(speech_spans(x)) == 1


def test_one_short_word_is_kept(clip):
    """A tenth of a second of voice in half a minute."""
    word = clip[int(0.5 * RATE) : int(0.62 * RATE)]
    ((start, end),) = speech_spans(np.concatenate([quiet(14), word, quiet(15)]))
    assert start <= 14 * RATE and end >= 14 * RATE + len(word)


def test_music_and_noise_that_cannot_be_told_from_speech_are_kept(clip):
    n = 12 * RATE
    t = np.arange(n) / RATE
    tune = (0.1 * np.sin(2 * np.pi * np.repeat(220 * 2 ** (np.arange(24) % 7 / 12), n // 24) * t)).astype(np.float32)
    surf = noise(n, -30) * (1 + 0.9 * np.sin(2 * np.pi * 0.3 * t)).astype(np.float32)
    for x in (tune, surf, noise(n, -30)):
        assert speech_spans(x) == [(0, n)]
    for x in (tune, surf):
        assert speech_spans(np.concatenate([x, clip]))[0][0] == 0


@pytest.mark.parametrize("seconds", [0.1, 0.5, 3, 40])
def test_nothing_to_decode_in_silence(seconds):
    assert speech_spans(quiet(seconds)) == [] == speech_spans(quiet(seconds) + np.float32(0.2))
    x = noise(round(seconds * RATE), -78)
    assert speech_spans(x) == [] == speech_spans(x * (np.arange(len(x)) % 9000 > 4000))


@pytest.mark.parametrize(("silence", "n_spans", "starts"), [(0.7, 1, True), (1.3, 1, False)])
def test_short_edges_are_kept(clip, silence, n_spans, starts):
    spans = speech_spans(np.concatenate([quiet(silence), clip]))
    assert len(spans) == n_spans and (spans[0][0] == 0) is starts


def test_pauses_below_two_seconds_are_kept(clip):
    for pause, n_spans in ((0.5, 1), (1.5, 1), (2.5, 2)):
        assert len(speech_spans(np.concatenate([clip, quiet(pause), clip]))) == n_spans


def test_spans_of_a_detector_get_margins_and_are_joined():
    x, s = quiet(60), RATE
    asked = []

    def mine(samples, rate):
        asked.append((len(samples), rate))
        return [(5 * s, 6 * s), (7 * s, 8 * s), (30 * s, np.int64(31 * s)), (58 * s, 59.5 * s)]

    margin = round(MARGIN_SECONDS * s)
    assert speech_spans(x, mine) == [
        (5 * s - margin, 8 * s + margin), (30 * s - margin, 31 * s + margin), (58 * s - margin, 60 * s)
    ]  # fmt: skip
    assert asked == [(60 * s, 16_000)] and speech_spans(x, lambda samples, rate: ()) == []


def test_every_sample_is_there_without_a_detector():
    for off in ("off", None, False):
        assert speech_spans(quiet(30), off) == [(0, 30 * RATE)]


@pytest.mark.parametrize("found", [
    None, 3, [(1, 2, 3)], [(5, 4)], [(-1, 4)], [(0, 10**9)], [(8, 9), (1, 2)], [("a", "b")], [(0, float("nan"))],
    [(0, float("inf"))], [{"start": 1, "end": 2}],
])  # fmt: skip
def test_what_is_no_span_is_refused(found):
    with pytest.raises(ConfigError, match=r"the detector is to return pairs") as refused:
        speech_spans(quiet(1), lambda samples, rate: found)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("vad", ["enrgy", "", 3, 1.5, ["energy"]])
def test_unknown_detectors(vad):
    with pytest.raises(ConfigError, match="vad: expected energy, silero or off") as refused:
        speech_spans(quiet(1), vad)
    assert vad != "enrgy" or "did you mean 'energy'" in str(refused.value)


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros((9, 2), np.float32), np.zeros(9, np.int16)])
def test_what_is_no_mono_signal(samples):
    with pytest.raises(AudioError, match="expected float samples"):
        speech_spans(samples)


def test_nan_and_other_rates():
    for bad in (np.nan, np.inf):
        with pytest.raises(AudioError, match="NaN or Inf"):
            speech_spans(np.full(RATE, bad, np.float32))
    with pytest.raises(AudioError, match="16000 Hz"):
        energy_spans(quiet(1), 8000)


def test_silero_is_asked_for_by_name(monkeypatch):
    """What the package is called with, by a stand-in for it; absent, one sentence says what to install."""
    given = {}

    def stamps(audio, model, *, sampling_rate):
        given.update(samples=np.asarray(audio), model=model, rate=sampling_rate)
        return [{"start": 3 * RATE, "end": 5 * RATE}]

    torch = types.SimpleNamespace(from_numpy=lambda x: x)
    package = types.SimpleNamespace(get_speech_timestamps=stamps, load_silero_vad=lambda: "net")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "silero_vad", package)
    x = noise(10 * RATE, -30).astype(np.float64)
    margin = round(MARGIN_SECONDS * RATE)
    assert speech_spans(x, "silero") == [(3 * RATE - margin, 5 * RATE + margin)]
    assert given["model"] == "net" and given["rate"] == RATE and given["samples"].dtype == np.float32
    monkeypatch.delitem(sys.modules, "silero_vad")
    real = builtins.__import__

    def absent(name, *rest):
        if name == "silero_vad":
            raise ModuleNotFoundError("No module named 'silero_vad'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r'pip install "stepaudio\[silero\]"'):
        speech_spans(x, "silero")
