"""Samples to mel spectra, as the reference's front ends make them, in numpy on the host.

`log_mel` is for the audio encoder and the speech tokenizer, `flow_mel` for the flow, `kaldi_fbank` for the speaker
encoder. Frames go through in bounded chunks, so that memory beyond samples and result does not grow with length.

Axes: (n_samples,) at the stated rate; (n_mels, n_frames) for `log_mel` and `flow_mel`; (n_frames, n_mels) for kaldi.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..constants import HOP, N_FFT, SAMPLE_RATE, TAIL_PADDING, exact_div
from ..errors import AudioError
from .filters import KALDI_N_FFT, KALDI_N_MELS, N_MELS, hann, kaldi_filterbank, mel_filterbank, povey, stretch

POWER_FLOOR = 1e-10  # smallest mel power before the logarithm
DYNAMIC_RANGE = 8.0  # log10 units kept below the loudest value, 80 dB
CHUNK_FRAMES = 1024  # STFT frames at a time: 5 MB of work, which stays in the cache of the processor


@np.errstate(invalid="ignore", over="ignore")  # reported by our own error instead
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
        raise AudioError(
            f"log_mel: expected float samples of shape (n,) and padding >= 0, found {samples.dtype} "
            f"{samples.shape}, padding {padding}; load_audio makes such samples"
        )
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
        signal = stretch(samples, padding, first, (stop - 1) * HOP + N_FFT // 2)
        spectrum = np.fft.rfft(sliding_window_view(signal, N_FFT)[::HOP] * window)  # (frames, bins), complex64
        yield start, spectrum.real**2 + spectrum.imag**2


FLOW_SAMPLE_RATE = 24_000
FLOW_N_FFT, FLOW_HOP = 1920, 480  # 80 ms every 20 ms
FLOW_PAD = exact_div(FLOW_N_FFT - FLOW_HOP, 2)  # mirrored at each end
FLOW_N_MELS = 80
FLOW_FMAX = 8000.0  # Hz
MAGNITUDE_FLOOR = 1e-9  # added under the square root
FLOW_FLOOR = 1e-5  # smallest mel magnitude before the logarithm
PREEMPHASIS = 0.97
KALDI_FLOOR = np.finfo(np.float32).eps  # smallest mel power before the logarithm


@np.errstate(invalid="ignore", over="ignore")  # reported by our own error instead
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
    chunk = max(1, CHUNK_FRAMES * N_FFT // FLOW_N_FFT)  # as many samples of work as in `log_mel`
    for start in range(0, out.shape[1], chunk):
        stop = min(start + chunk, out.shape[1])
        signal = stretch(samples, 0, start * FLOW_HOP - FLOW_PAD, (stop - 1) * FLOW_HOP - FLOW_PAD + FLOW_N_FFT)
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
    for start in range(0, len(out), CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, len(out))
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


def _checked(name: str, samples, shortest: int, sample_rate: int) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(
            f"{name}: expected float samples of shape (n,) at {sample_rate} Hz, found {samples.dtype} "
            f"{samples.shape}; load_audio makes such samples"
        )
    if samples.size < shortest:
        milliseconds = samples.size / sample_rate * 1000
        raise AudioError(
            f"{name}: {samples.size} samples ({milliseconds:.0f} ms) are too short; expected "
            f"{shortest} or more at {sample_rate} Hz: use a longer clip"
        )
    return samples


def _finite(name: str, out: np.ndarray) -> np.ndarray:
    if not np.isfinite(out.sum(dtype=np.float64)):  # a sum, because isfinite(out) would need another array
        raise AudioError(f"{name}: samples hold NaN or Inf, or exceed what float32 holds; load_audio refuses such")
    return out
