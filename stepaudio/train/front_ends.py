"""What the speaking half's nets are fed with, for whole batches on the accelerator: mels, filterbanks, other rates.

B rows, n samples, F frames, M bands. Each is the twin of a function on the host (a test holds it to that), but for
what is around a row's ends, which the docstrings tell.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from ..mel import hann, mel_filterbank
from ..mel_speaking import (
    FLOW_FLOOR,
    FLOW_FMAX,
    FLOW_HOP,
    FLOW_N_FFT,
    FLOW_N_MELS,
    FLOW_PAD,
    FLOW_SAMPLE_RATE,
    KALDI_FLOOR,
    KALDI_N_FFT,
    MAGNITUDE_FLOOR,
    PREEMPHASIS,
    kaldi_filterbank,
    povey,
)
from ..units import HOP, N_FFT

HALF_TAPS, CUT_OFF, BETA = 128, 7600.0, 8.0  # of the resampler: flat to 7.3 kHz, gone at 7.9 kHz
BLOCK = 3 << 21  # samples at 24 kHz that are worked on at a time


def frames_of(x: mx.array, size: int, hop: int) -> mx.array:
    """(B, n) -> (B, F, size), frames every `hop` samples, none beyond the end; `hop` divides `size`.

    Made of slices that stand side by side: their gradient is a sum of slices, where that of a strided view scatters.
    """
    blocks = x[:, : x.shape[1] // hop * hop].reshape(x.shape[0], -1, hop)
    k = size // hop
    F = blocks.shape[1] - k + 1
    return mx.concatenate([blocks[:, j : j + F] for j in range(k)], axis=-1)


def magnitudes(x: mx.array, size: int, hop: int, floor: float = MAGNITUDE_FLOOR) -> mx.array:
    """(B, n) -> (B, F, size / 2 + 1): sqrt(re^2 + im^2 + floor) under a periodic Hann window."""
    spectrum = mx.fft.rfft(frames_of(x, size, hop) * _hann(size))
    return mx.sqrt(mx.square(spectrum.real) + mx.square(spectrum.imag) + floor)


@lru_cache(maxsize=8)
def _hann(size: int) -> mx.array:
    return mx.array(hann(size).astype(np.float32))


def mirrored(x: mx.array, n: int) -> mx.array:
    """(B, m) -> (B, m + 2 n), both ends mirrored without the outermost sample."""
    return mx.concatenate([x[:, n:0:-1], x, x[:, -2 : -n - 2 : -1]], axis=1)


def flow_mel_batch(x: mx.array) -> mx.array:
    """(B, n + 1440) samples at 24 kHz, 720 of them before and after what counts -> (B, n / 480, 80) natural log.

    With both ends `mirrored` it is `mel_speaking.flow_mel`; with the sound that is there, a stretch of a longer one.
    """
    mel = magnitudes(x, FLOW_N_FFT, FLOW_HOP) @ _flow_filters()
    return mx.log(mx.maximum(mel, FLOW_FLOOR))


@lru_cache(maxsize=1)
def _flow_filters() -> mx.array:
    filters = mel_filterbank(FLOW_SAMPLE_RATE, FLOW_N_FFT, FLOW_N_MELS, 0.0, FLOW_FMAX)
    return mx.array(np.ascontiguousarray(filters.T, np.float32))


def fbank_batch(x: mx.array) -> mx.array:
    """(B, n) samples at 16 kHz -> (B, 1 + (n - 400) / 160, 80), `mel_speaking.kaldi_fbank` of each row."""
    F = 1 + (x.shape[1] - N_FFT) // HOP
    frames = frames_of(x, 3 * HOP, HOP)[:, :, :N_FFT]  # 480 samples, of which the first 400 are the frame
    if frames.shape[1] < F:  # the last frame may end before the third block does
        x = mx.pad(x, ((0, 0), (0, 3 * HOP)))
        frames = frames_of(x, 3 * HOP, HOP)[:, :F, :N_FFT]
    frames = frames - frames.mean(-1, keepdims=True)
    before = mx.concatenate([mx.zeros_like(frames[..., :1]), frames[..., :-1]], axis=-1)
    frames = (frames - PREEMPHASIS * before) * mx.array(povey(N_FFT))
    spectrum = mx.fft.rfft(frames, n=KALDI_N_FFT)[..., :-1]
    power = mx.square(spectrum.real) + mx.square(spectrum.imag)
    log = mx.log(mx.maximum(power @ mx.array(np.ascontiguousarray(kaldi_filterbank().T)), float(KALDI_FLOOR)))
    return log - log.mean(axis=1, keepdims=True)


@lru_cache(maxsize=1)
def _taps() -> mx.array:
    """(2, 257, 1) windowed sincs of the two outputs that three inputs make, at input times 3 m and 3 m + 1.5."""
    t = np.arange(-HALF_TAPS, HALF_TAPS + 1)
    t = np.stack([t, t - 1.5])
    window = np.i0(BETA * np.sqrt(np.maximum(1 - (t / (HALF_TAPS + 1.5)) ** 2, 0)))
    taps = np.sinc(2 * CUT_OFF / FLOW_SAMPLE_RATE * t) * window
    return mx.array((taps / taps.sum(1, keepdims=True)).astype(np.float32)[..., None])


def at_16k(pcm: np.ndarray) -> mx.array:
    """(3 k,) int16 at 24 kHz -> (2 k,) int16 at 16 kHz."""
    padded = np.pad(pcm, HALF_TAPS)
    pieces = []
    for start in range(0, len(pcm), BLOCK):
        stop = min(start + BLOCK, len(pcm))
        x = mx.array(padded[start : stop + 2 * HALF_TAPS]).astype(mx.float32)
        pairs = mx.conv1d(x[None, :, None], _taps(), stride=3)  # (1, outputs / 2, 2)
        pieces.append(mx.clip(mx.round(pairs.reshape(-1)), -32768, 32767).astype(mx.int16))
        mx.eval(pieces[-1])
    return mx.concatenate(pieces)


def flow_mels(pcm: mx.array) -> mx.array:
    """(n,) int16 at 24 kHz -> (n / 480, 80) float16, frames that see their neighbours; the ends see silence."""
    pieces, n = [], pcm.shape[0] // FLOW_HOP * FLOW_HOP
    for start in range(0, n, BLOCK // FLOW_HOP * FLOW_HOP):
        stop = min(start + BLOCK // FLOW_HOP * FLOW_HOP, n)
        x = pcm[max(start - FLOW_PAD, 0) : stop + FLOW_PAD].astype(mx.float32) / 32768
        before = FLOW_PAD if start == 0 else 0
        x = mx.pad(x, (before, stop - start + 2 * FLOW_PAD - before - x.shape[0]))
        pieces.append(flow_mel_batch(x[None])[0].astype(mx.float16))
        mx.eval(pieces[-1])
    return mx.concatenate(pieces)


def resident(x: np.ndarray) -> mx.array:
    """An array in the accelerator's own memory, one zero longer: what comes from numpy would lie in memory that the
    host shares, and be fetched anew each time."""
    array = mx.array(x)
    array = mx.concatenate([array, mx.zeros((1, *array.shape[1:]), array.dtype)])
    mx.eval(array)
    return array


def cut(x: mx.array, start: mx.array, n: int) -> mx.array:
    """Stretches of n of a long array's first axis, one from each start (B,): (B, n, …)."""
    return x[start[:, None] + mx.arange(n)[None]]
