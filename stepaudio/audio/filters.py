"""What mel spectra are made with: filterbanks on the scales of Slaney and HTK, windows, and mirrored edges.

Axes: (n_samples,) at the stated rate; (n_mels, n_fft // 2 + 1) for filterbanks.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..constants import N_FFT, SAMPLE_RATE
from ..errors import AudioError

KALDI_N_FFT = 512  # a frame of 400 samples, zeros after it
KALDI_N_MELS = 80
KALDI_FMIN = 20.0  # Hz
POVEY_POWER = 0.85


@lru_cache(maxsize=4)
def kaldi_filterbank(n_mels: int = KALDI_N_MELS) -> np.ndarray:
    """Triangles of height one on the HTK mel scale, 1127 ln(1 + f / 700), from 20 Hz to 8 kHz.

    Returns float32, (n_mels, 256), read-only: bins of a transform of 512 without the last, whose weight is 0.
    Unlike Slaney's they are straight in mel and not in Hz, and not normalised (kaldi, `mel-computations.cc`).
    """
    bins = _htk_mel(np.arange(KALDI_N_FFT // 2) * (SAMPLE_RATE / KALDI_N_FFT))
    edges = np.linspace(_htk_mel(KALDI_FMIN), _htk_mel(SAMPLE_RATE / 2), n_mels + 2)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(0).astype(np.float32)
    filters.flags.writeable = False
    return filters


def _htk_mel(hz):
    return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)


@lru_cache(maxsize=4)
def povey(n: int) -> np.ndarray:
    """Symmetric Hann window to the power of 0.85, float32, (n,); kaldi's default window."""
    window = ((0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n - 1))) ** POVEY_POWER).astype(np.float32)
    window.flags.writeable = False
    return window


N_MELS = 128
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


def stretch(samples: np.ndarray, padding: int, first: int, stop: int) -> np.ndarray:
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
