"""The two front ends of the speaking half, in numpy on the host: the flow's prompt mel and the speaker features.

As in `mel`, frames go through in bounded chunks, so that memory beyond samples and result does not grow with
length. Knows nothing of files or nets.

Axes: (n_samples,) at the stated rate; (n_mels, n_frames) for the flow; (n_frames, n_mels) for kaldi features.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from . import mel
from .errors import AudioError
from .mel import _stretch, hann, mel_filterbank
from .units import HOP, N_FFT, SAMPLE_RATE, exact_div

FLOW_SAMPLE_RATE = 24_000
FLOW_N_FFT, FLOW_HOP = 1920, 480  # 80 ms every 20 ms
FLOW_PAD = exact_div(FLOW_N_FFT - FLOW_HOP, 2)  # mirrored at each end
FLOW_N_MELS = 80
FLOW_FMAX = 8000.0  # Hz
MAGNITUDE_FLOOR = 1e-9  # added under the square root
FLOW_FLOOR = 1e-5  # smallest mel magnitude before the logarithm

KALDI_N_FFT = 512  # a frame of 400 samples, zeros after it
KALDI_N_MELS = 80
KALDI_FMIN = 20.0  # Hz
PREEMPHASIS = 0.97
POVEY_POWER = 0.85
KALDI_FLOOR = np.finfo(np.float32).eps  # smallest mel power before the logarithm


@np.errstate(invalid="ignore", over="ignore")  # told by our own error instead
def flow_mel(samples: np.ndarray, n_mels: int = FLOW_N_MELS) -> np.ndarray:
    """Mel spectrum that the flow-matching net continues, of a voice prompt at 24 kHz.

    Both ends mirrored by 720 samples, frames of 80 ms every 20 ms, magnitude sqrt(re^2 + im^2 + 1e-9), Slaney mel
    filters up to 8 kHz, natural logarithm of at least 1e-5. Source: `mel_spectrogram` of flashcosyvoice.

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
        24 kHz, in [-1, 1] by convention; n > 720, the mirrored part.
    n_mels : int > 0
        Number of filters between 0 and 8 kHz.

    Returns
    -------
    np.ndarray
        float32, (n_mels, n // 480), 50 frames per second.

    Raises
    ------
    AudioError
        Wrong shape or type, too short to mirror, NaN or Inf.

    Examples
    --------
    >>> flow_mel(np.zeros(24_000, np.float32)).shape
    (80, 50)
    """
    samples = _checked("flow_mel", samples, FLOW_PAD + 1, FLOW_SAMPLE_RATE)
    filters = mel_filterbank(FLOW_SAMPLE_RATE, FLOW_N_FFT, n_mels, 0.0, FLOW_FMAX)
    window = hann(FLOW_N_FFT)
    out = np.empty((n_mels, samples.size // FLOW_HOP), np.float32)
    chunk = max(1, mel.CHUNK_FRAMES * N_FFT // FLOW_N_FFT)  # as many samples of work as in `mel`
    for start in range(0, out.shape[1], chunk):
        stop = min(start + chunk, out.shape[1])
        signal = _stretch(samples, 0, start * FLOW_HOP - FLOW_PAD, (stop - 1) * FLOW_HOP - FLOW_PAD + FLOW_N_FFT)
        spectrum = np.fft.rfft(sliding_window_view(signal, FLOW_N_FFT)[::FLOW_HOP] * window)
        magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + np.float32(MAGNITUDE_FLOOR))
        np.matmul(filters, magnitude.T, out=out[:, start:stop])
    np.maximum(out, np.float32(FLOW_FLOOR), out=out)
    return _finite("flow_mel", np.log(out, out=out))


@np.errstate(invalid="ignore", over="ignore")
def kaldi_fbank(samples: np.ndarray, n_mels: int = KALDI_N_MELS, subtract_mean: bool = True) -> np.ndarray:
    """Log mel filterbank of the speaker encoder, as kaldi computes it without dither.

    Whole frames of 25 ms every 10 ms, none beyond the ends; in each frame the mean is removed, then pre-emphasis
    of 0.97, Povey's window, power of a transform of 512, triangular filters on the HTK mel scale, natural
    logarithm of at least 1.19e-7. Samples stay in [-1, 1]: kaldi's own factor of 32768 is not applied, as in the
    reference. Source: `torchaudio.compliance.kaldi.fbank` as StepFun's `token2wav.py` calls it.

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
        16 kHz, n >= 400.
    n_mels : int > 0
        Number of filters between 20 Hz and 8 kHz.
    subtract_mean : bool
        Subtract each band's mean over time, as the speaker encoder wants it.

    Returns
    -------
    np.ndarray
        float32, (1 + (n - 400) // 160, n_mels), time first.

    Raises
    ------
    AudioError
        Wrong shape or type, shorter than one frame, NaN or Inf.

    Examples
    --------
    >>> kaldi_fbank(np.zeros(16_000, np.float32)).shape
    (98, 80)
    """
    samples = _checked("kaldi_fbank", samples, N_FFT, SAMPLE_RATE)
    filters, window = kaldi_filterbank(n_mels), povey(N_FFT)
    out = np.empty((1 + (samples.size - N_FFT) // HOP, n_mels), np.float32)
    for start in range(0, len(out), mel.CHUNK_FRAMES):
        stop = min(start + mel.CHUNK_FRAMES, len(out))
        signal = samples[start * HOP : (stop - 1) * HOP + N_FFT].astype(np.float32, copy=False)
        frames = sliding_window_view(signal, N_FFT)[::HOP]
        frames = frames - frames.mean(axis=1, keepdims=True)
        frames[:, 1:] -= np.float32(PREEMPHASIS) * frames[:, :-1]  # the first sample has no weight in the window
        frames *= window
        spectrum = np.fft.rfft(frames, KALDI_N_FFT)[:, :-1]  # the Nyquist bin has no weight
        np.matmul(spectrum.real**2 + spectrum.imag**2, filters.T, out=out[start:stop])
    np.maximum(out, np.float32(KALDI_FLOOR), out=out)
    np.log(out, out=out)
    if subtract_mean:
        out -= out.mean(axis=0, dtype=np.float64).astype(np.float32)
    return _finite("kaldi_fbank", out)


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


def _checked(name: str, samples, shortest: int, sample_rate: int) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(f"{name}: expected float samples of shape (n,) at {sample_rate} Hz, found {samples.dtype} "
                         f"{samples.shape}; load_audio makes such samples")
    if samples.size < shortest:
        milliseconds = samples.size / sample_rate * 1000
        raise AudioError(f"{name}: {samples.size} samples ({milliseconds:.0f} ms) are too short; expected "
                         f"{shortest} or more at {sample_rate} Hz: use a longer clip")
    return samples


def _finite(name: str, out: np.ndarray) -> np.ndarray:
    if not np.isfinite(out.sum(dtype=np.float64)):  # a sum, because isfinite(out) would need another array
        raise AudioError(f"{name}: samples hold NaN or Inf, or exceed what float32 holds; load_audio refuses such")
    return out
