"""The front ends of flow and speaker encoder against the reference's own numbers, plain code and other chunks."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from stepaudio.audio import features as mel
from stepaudio.audio.features import flow_mel, kaldi_fbank
from stepaudio.audio.filters import kaldi_filterbank, mel_filterbank, povey
from stepaudio.errors import AudioError

ASSETS = Path(__file__).parents[1] / "assets"
TENSORS = load_file(ASSETS / "mel_speaking.safetensors")
WHITE_NOISE = load_file(ASSETS / "mel.safetensors")["in.white_noise.wav"]
TOLERANCE = 1e-4
# The reference computes in float32, and is itself up to 2.7e-4 away from float64 in kaldi's narrow low bands.
KALDI_TOLERANCE, KALDI_RMS = 1e-3, 2e-5


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)


def close(got: np.ndarray, want: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance


def kaldi_close(got: np.ndarray, want: np.ndarray) -> None:
    close(got, want, KALDI_TOLERANCE)
    assert np.sqrt(np.mean((got - want) ** 2)) <= KALDI_RMS


def test_flow_mel_equals_the_reference():
    close(flow_mel(TENSORS["in.noise24k.wav"]), TENSORS["out.noise24k.flow_mel"])


def test_kaldi_features_equal_the_reference():
    kaldi_close(kaldi_fbank(WHITE_NOISE), TENSORS["out.white_noise.kaldi_fbank_cmn"])


def test_speech_equals_the_reference(goldens):
    tensors = load_file(goldens / "mel.safetensors")
    close(flow_mel(tensors["in.speech24k.wav"]), tensors["out.speech24k.flow_mel"])
    speech = tensors["in.speech.wav"]
    kaldi_close(kaldi_fbank(speech, subtract_mean=False), tensors["out.speech.kaldi_fbank"])
    kaldi_close(kaldi_fbank(speech), tensors["out.speech.kaldi_fbank_cmn"])


def test_kaldi_filterbank_equals_the_reference():
    # The reference's table is computed in float32, whose steps at 2800 mel are 2e-4 of 30.
    assert np.abs(kaldi_filterbank() - TENSORS["out.kaldi_mel_banks_80"]).max() < 2e-5


def test_povey_window_is_symmetric_and_wider_than_hann():
    window = povey(400)
    assert np.array_equal(window, window[::-1]) and window[0] == 0
    assert window[100] > 0.5 - 0.5 * np.cos(2 * np.pi * 100 / 399)


@pytest.mark.parametrize("n", [721, 959, 960, 961, 2399, 2400, 24_000])
def test_flow_frames(n):
    assert flow_mel(noise(n)).shape == (80, n // 480)


@pytest.mark.parametrize("n", [400, 559, 560, 561, 1999, 16_000])
def test_kaldi_frames(n):
    assert kaldi_fbank(noise(n)).shape == (1 + (n - 400) // 160, 80)


@pytest.mark.parametrize("n", [721, 1000, 1920, 9607])
def test_flow_mel_equals_a_plain_reference(n):
    whole = np.pad(noise(n).astype(np.float64), 720, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1920) / 1920)
    frames = np.stack([whole[i * 480 : i * 480 + 1920] * window for i in range(n // 480)])
    magnitude = np.sqrt(np.abs(np.fft.rfft(frames)) ** 2 + 1e-9)
    expected = np.log(np.maximum(mel_filterbank(24_000, 1920, 80, 0.0, 8000.0) @ magnitude.T, 1e-5))
    assert np.abs(flow_mel(noise(n)) - expected).max() < TOLERANCE


def test_kaldi_equals_a_plain_reference():
    samples = noise(4000)
    rows = []
    for start in range(0, 4000 - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame -= frame.mean()
        frame = np.array([frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(400)])
        frame *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
        power = np.abs(np.fft.rfft(frame, 512)[:256]) ** 2
        rows.append(np.log(np.maximum(kaldi_filterbank() @ power, np.finfo(np.float32).eps)))
    assert np.abs(kaldi_fbank(samples, subtract_mean=False) - rows).max() < KALDI_TOLERANCE


@pytest.mark.parametrize("chunk", [1, 2, 7, 60])
def test_chunked_equals_whole(monkeypatch, chunk):
    samples = noise(40_123)
    whole = flow_mel(samples), kaldi_fbank(samples)
    monkeypatch.setattr(mel, "CHUNK_FRAMES", chunk)
    for got, want in zip((flow_mel(samples), kaldi_fbank(samples)), whole, strict=True):
        assert np.abs(got - want).max() < TOLERANCE


def test_mean_over_time_is_removed():
    samples = noise(16_000)
    with_mean, without = kaldi_fbank(samples, subtract_mean=False), kaldi_fbank(samples)
    assert np.abs(without.mean(axis=0)).max() < 1e-5 < np.abs(with_mean.mean(axis=0)).min()
    assert np.abs(with_mean - with_mean.mean(axis=0) - without).max() < 1e-5


def test_silence_sits_on_the_floors():
    silence = np.zeros(24_000, np.float32)
    assert np.all(kaldi_fbank(silence, subtract_mean=False) == np.log(np.finfo(np.float32).eps))
    assert np.all(kaldi_fbank(silence) == 0)
    assert np.isfinite(flow_mel(silence)).all()


def test_a_constant_offset_changes_nothing_for_kaldi():
    samples = noise(8000)
    assert np.abs(kaldi_fbank(samples + np.float32(0.25)) - kaldi_fbank(samples)).max() < 5e-3


@pytest.mark.parametrize(("front_end", "shortest"), [(flow_mel, 721), (kaldi_fbank, 400)])
def test_refuses_what_is_too_short(front_end, shortest):
    assert np.isfinite(front_end(noise(shortest))).all()
    for n in (0, 1, shortest - 1):
        with pytest.raises(AudioError, match=f"too short; expected {shortest}"):
            front_end(noise(n))


@pytest.mark.parametrize("front_end", [flow_mel, kaldi_fbank])
@pytest.mark.parametrize("bad", [np.zeros((2, 8000), np.float32), np.zeros(8000, np.int16), np.float32(1.0)])
def test_refuses_what_is_not_mono_float(front_end, bad):
    with pytest.raises(AudioError, match=front_end.__name__):
        front_end(bad)


@pytest.mark.parametrize("front_end", [flow_mel, kaldi_fbank])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_nan_and_inf(front_end, value):
    samples = noise(8000)
    samples[4000] = value
    with pytest.raises(AudioError, match="NaN or Inf"):
        front_end(samples)


@pytest.mark.parametrize("front_end", [flow_mel, kaldi_fbank])
def test_memory_does_not_grow_with_length(front_end):
    def working_memory(seconds: int) -> int:
        samples = noise(seconds * 24_000)
        tracemalloc.start()
        result = front_end(samples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - result.nbytes

    front_end(noise(24_000))  # tables
    one, four = working_memory(60), working_memory(240)
    assert four < one + 200_000
    assert one < 20e6
