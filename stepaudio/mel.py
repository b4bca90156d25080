"""Samples to mel spectra, as the reference's front ends make them, in numpy on the host.

Works through bounded chunks of STFT frames, so that memory beyond samples and result does not grow with length.
Knows nothing of files, pieces or nets.

Axes: (n_samples,) at the stated rate; (n_mels, n_frames) for mels; (n_mels, n_fft // 2 + 1) for filterbanks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .errors import AudioError
from .units import HOP, N_FFT, SAMPLE_RATE, TAIL_PADDING

N_MELS = 128
CHUNK_FRAMES = 1024  # STFT frames at a time: 5 MB of work, which stays in the cache of the processor
POWER_FLOOR = 1e-10  # smallest mel power before the logarithm
DYNAMIC_RANGE = 8.0  # log10 units kept below the loudest value, 80 dB
MEL_KNEE_HZ = 1000.0  # Slaney's scale: linear below, logarithmic above
MELS_PER_HZ = 3 / 200
MELS_PER_LOG = 27 / np.log(6.4)


def hz_to_mel(hz):
    """Slaney's mel scale: 15 mels at 1 kHz, linear below it, 27 mels per factor of 6.4 above (Auditory Toolbox)."""
    hz = np.asarray(hz, np.float64)
    log_part = np.log(np.maximum(hz, MEL_KNEE_HZ) / MEL_KNEE_HZ) * MELS_PER_LOG
    return np.minimum(hz, MEL_KNEE_HZ) * MELS_PER_HZ + log_part


def mel_to_hz(mel):
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    knee = MEL_KNEE_HZ * MELS_PER_HZ
    return np.minimum(mel, knee) / MELS_PER_HZ * np.exp(np.maximum(mel - knee, 0) / MELS_PER_LOG)


@lru_cache(maxsize=8)
def mel_filterbank(
    sample_rate: int = SAMPLE_RATE,
    n_fft: int = N_FFT,
    n_mels: int = N_MELS,
    fmin: float = 0.0,
    fmax: float | None = None,
) -> np.ndarray:
    """Triangular filters of equal area on Slaney's mel scale.

    Parameters
    ----------
    sample_rate : int > 0
        In Hz.
    n_fft : int > 0
        Samples per STFT frame.
    n_mels : int > 0
        Number of filters.
    fmin, fmax : number
        Lower edge of the first and upper edge of the last filter, 0 <= fmin < fmax <= sample_rate / 2 (the
        default of `fmax`), in Hz.

    Returns
    -------
    np.ndarray
        float32, (n_mels, n_fft // 2 + 1), in 1/Hz, read-only. Equal to `librosa.filters.mel` with its defaults,
        which is what the reference's table was made with.

    Raises
    ------
    AudioError
        Edges out of order or beyond half the sample rate.
    """
    fmax = sample_rate / 2 if fmax is None else fmax
    if not 0 <= fmin < fmax <= sample_rate / 2:
        raise AudioError(
            f"mel_filterbank: expected 0 <= fmin < fmax <= {sample_rate / 2:g} Hz, found {fmin} and {fmax}"
        )
    bins = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    edges = mel_to_hz(np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), n_mels + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(0)
    filters = (triangles * 2 / (high - low)).astype(np.float32)
    filters.flags.writeable = False  # one table for all callers
    return filters


@lru_cache(maxsize=4)
def hann(n: int) -> np.ndarray:
    """Periodic Hann window, float32, (n,): one period of a raised cosine, so its last sample is not zero."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).astype(np.float32)
    window.flags.writeable = False
    return window


@np.errstate(invalid="ignore", over="ignore")  # told by our own error instead
def log_mel(samples: np.ndarray, n_mels: int = N_MELS, padding: int = TAIL_PADDING) -> np.ndarray:
    """Log mel spectrum of the audio encoder, and with `padding=0` that of the speech tokenizer.

    Zeros are appended, frames of 25 ms are centred every 10 ms with mirrored ends, the last frame is dropped;
    power, mel filters, log10 of at least 1e-10, nothing more than 8 below the loudest value of this call, then
    (x + 4) / 4. Source: `log_mel_spectrogram` in StepFun's `utils.py` and in s3tokenizer, themselves Whisper's.

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
        16 kHz, in [-1, 1] by convention; n + padding > 200, the mirrored half frame.
    n_mels : int > 0
        Number of filters between 0 and 8 kHz.
    padding : int >= 0
        Zeros appended: 479 (encoder) or 0 (speech tokenizer).

    Returns
    -------
    np.ndarray
        float32, (n_mels, (n + padding) // 160). The values span at most 2.

    Raises
    ------
    AudioError
        Wrong shape or type, too short to mirror, NaN or Inf.

    Examples
    --------
    >>> log_mel(np.zeros(16_000, np.float32)).shape
    (128, 102)
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f" or padding < 0:
        raise AudioError(f"log_mel: expected float samples of shape (n,) and padding >= 0, found {samples.dtype} "
                         f"{samples.shape}, padding {padding}; load_audio makes such samples")
    if samples.size == 0 or samples.size + padding <= N_FFT // 2:
        raise AudioError(f"log_mel: {samples.size} samples are shorter than half an STFT frame ({N_FFT // 2})")
    filters = mel_filterbank(SAMPLE_RATE, N_FFT, n_mels)
    mel = np.empty((n_mels, (samples.size + padding) // HOP), np.float32)
    for start, power in _power_chunks(samples, padding, mel.shape[1]):
        np.matmul(filters, power.T, out=mel[:, start : start + len(power)])
        _log10(mel[:, start : start + len(power)])
    peak = mel.max()
    if not np.isfinite(peak):
        raise AudioError("log_mel: samples hold NaN or Inf, or exceed what float32 holds; load_audio refuses such")
    np.maximum(mel, peak - np.float32(DYNAMIC_RANGE), out=mel)
    mel += np.float32(4)
    mel /= np.float32(4)
    return mel


def _log10(mel: np.ndarray) -> None:
    np.maximum(mel, np.float32(POWER_FLOOR), out=mel)
    np.log10(mel, out=mel)


def _power_chunks(samples: np.ndarray, padding: int, n_frames: int) -> Iterator[tuple[int, np.ndarray]]:
    """Power spectra (frames, bins), `CHUNK_FRAMES` at a time, each with the index of its first frame."""
    window = hann(N_FFT)
    for start in range(0, n_frames, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, n_frames)
        first = start * HOP - N_FFT // 2
        signal = _stretch(samples, padding, first, (stop - 1) * HOP + N_FFT // 2)
        spectrum = np.fft.rfft(sliding_window_view(signal, N_FFT)[::HOP] * window)  # (frames, bins), complex64
        yield start, spectrum.real**2 + spectrum.imag**2


def _stretch(samples: np.ndarray, padding: int, first: int, stop: int) -> np.ndarray:
    """Samples [first, stop) of the signal with zeros appended and both ends mirrored, without making it whole."""
    if first >= 0 and stop <= samples.size:
        return samples[first:stop].astype(np.float32, copy=False)
    last = samples.size + padding - 1
    index = np.abs(np.arange(first, stop))  # mirror at the first sample ...
    index = np.where(index > last, 2 * last - index, index)  # ... and at the last appended zero
    inside = index < samples.size
    signal = np.zeros(stop - first, np.float32)
    signal[inside] = samples[index[inside]]
    return signal
