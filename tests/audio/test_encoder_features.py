"""The mel front end against the reference's own numbers, and against itself in other chunk sizes."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from stepaudio import constants as units
from stepaudio.audio import features as mel
from stepaudio.audio.features import log_mel
from stepaudio.audio.filters import hann, hz_to_mel, mel_filterbank, mel_to_hz
from stepaudio.errors import AudioError

TENSORS = load_file(Path(__file__).parents[1] / "assets" / "mel.safetensors")
CASES = sorted(name for name in TENSORS if name.endswith("logmel"))
TOLERANCE = 1e-4  # float32 on both sides; the reference itself is up to 4e-5 away from float64


def padding_of(case: str) -> int:
    return 0 if case.endswith("s3_logmel") else units.TAIL_PADDING


def close_to_golden(tensors: dict, case: str) -> None:
    got = log_mel(tensors[f"in.{case.split('.')[1]}.wav"], padding=padding_of(case))
    assert got.dtype == np.float32 and got.shape == tensors[case].shape
    assert np.abs(got - tensors[case]).max() <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_log_mel_equals_the_reference(case):
    close_to_golden(TENSORS, case)


def test_log_mel_of_speech_equals_the_reference(goldens):
    tensors = load_file(goldens / "mel.safetensors")
    for case in ("out.speech.step_logmel", "out.speech.s3_logmel", "out.mixed.step_logmel"):
        close_to_golden(tensors, case)


def test_filterbank_of_the_encoder():
    assert np.abs(mel_filterbank() - TENSORS["out.mel_filters_128"]).max() < 1e-7


def test_filterbank_is_general():
    got = mel_filterbank(24_000, 1920, 80, 0.0, 8000.0)
    assert got.shape == (80, 961)
    assert np.abs(got[::8] - TENSORS["out.mel_filters_24k_80.every_8th"]).max() < 1e-7


def test_filterbank_has_a_lower_edge():
    bins = np.flatnonzero(mel_filterbank(16_000, 400, 20, fmin=1000.0).any(axis=0)) * 40
    assert bins.min() > 1000 and bins.max() < 8000


@pytest.mark.parametrize(("fmin", "fmax"), [(-1, 8000), (4000, 4000), (0, 8001), (0, float("nan"))])
def test_filterbank_refuses_impossible_edges(fmin, fmax):
    with pytest.raises(AudioError, match="fmin < fmax"):
        mel_filterbank(fmin=fmin, fmax=fmax)


def test_mel_scale():
    # Slaney's Auditory Toolbox: 200/3 Hz per mel up to 1 kHz, then 27 steps to 6.4 times the frequency.
    assert np.allclose(hz_to_mel([0, 200, 1000, 6400]), [0, 3, 15, 42])
    hz = np.linspace(0, 12_000, 501)
    assert np.allclose(mel_to_hz(hz_to_mel(hz)), hz)


def test_hann_is_periodic():
    # The overlapped halves of a periodic window add to one; those of a symmetric one do not.
    assert np.abs(hann(400)[:200] + hann(400)[200:] - 1).max() < 1e-6


@pytest.mark.parametrize("padding", [0, 479])
@pytest.mark.parametrize("n", [201, 400, 1599, 1600, 1601, 4000, 16_007])
def test_frame_count(n, padding):
    assert log_mel(np.ones(n, np.float32), padding=padding).shape == (128, (n + padding) // 160)
    if padding == units.TAIL_PADDING:
        assert (n + padding) // 160 == units.n_mel_frames(n)


@pytest.mark.parametrize("padding", [0, 479])
@pytest.mark.parametrize("chunk", [1, 2, 7, 100, 1000])
def test_chunked_equals_whole(monkeypatch, chunk, padding):
    samples = np.random.default_rng(1).normal(0, 0.1, 16_040).astype(np.float32)
    monkeypatch.setattr(mel, "CHUNK_FRAMES", 10_000)
    whole = log_mel(samples, padding=padding)
    monkeypatch.setattr(mel, "CHUNK_FRAMES", chunk)
    assert np.abs(log_mel(samples, padding=padding) - whole).max() < 1e-5


@pytest.mark.parametrize(
    ("n", "padding"), [(201, 0), (399, 0), (480, 0), (5120, 0), (150, 160), (250, 160), (1, 479), (5000, 479)]
)
def test_edges_equals_a_plain_reference(n, padding):
    samples = np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)
    whole = np.pad(np.concatenate([samples, np.zeros(padding)]), 200, mode="reflect")  # float64, all at once
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([whole[i * 160 : i * 160 + 400] for i in range((n + padding) // 160)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    expected = np.log10(np.maximum(mel_filterbank() @ power.T, 1e-10))
    expected = (np.maximum(expected, expected.max() - 8) + 4) / 4
    assert np.abs(log_mel(samples, padding=padding) - expected).max() < 1e-4


def test_values_span_at_most_eighty_decibels():
    samples = np.zeros(32_000, np.float32)
    samples[:16_000] = np.random.default_rng(0).normal(0, 0.5, 16_000)
    got = log_mel(samples)
    assert got.max() - got.min() == pytest.approx(2.0)  # the clamp sees the whole input, not a chunk of it


def test_float64_and_strided_input():
    samples = np.random.default_rng(2).normal(0, 0.1, (8000, 2))
    want = log_mel(samples[:, 1].astype(np.float32).copy())
    assert np.array_equal(log_mel(samples[:, 1]), want)
    assert np.array_equal(log_mel(samples[:, 1].astype(np.float32)), want)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 8000), np.float32),
        np.zeros(8000, np.int16),
        np.zeros(0, np.float32),
        np.float32(1.0),
    ],
)
def test_refuses_what_is_not_mono_float(bad):
    with pytest.raises(AudioError, match="log_mel"):
        log_mel(bad)


def test_refuses_less_than_half_a_frame():
    with pytest.raises(AudioError, match="half an STFT frame"):
        log_mel(np.ones(200, np.float32), padding=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_nan_and_inf(value):
    samples = np.zeros(8000, np.float32)
    samples[4000] = value
    with pytest.raises(AudioError, match="NaN or Inf"):
        log_mel(samples)


def working_memory(seconds: int) -> int:
    """Peak bytes that `log_mel` allocates beyond its result."""
    samples = np.random.default_rng(0).normal(0, 0.1, seconds * 16_000).astype(np.float32)
    log_mel(samples[:16_000])  # tables
    tracemalloc.start()
    result = log_mel(samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - result.nbytes


def test_memory_does_not_grow_with_length():
    one_minute, ten_minutes = working_memory(60), working_memory(600)
    assert ten_minutes < one_minute + 100_000
    assert one_minute < 20e6
