"""Features of whole batches on the accelerator: mels of the flow, filterbanks of the speaker encoder, resampling.

B examples, n samples, F frames, M bands. Each function equals one of `audio.features` on the host (tests hold it to
that), except at the ends of an example, where the docstrings say what is different.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from ...audio.features import (
    FLOW_FLOOR,
    FLOW_FMAX,
    FLOW_HOP,
    FLOW_N_FFT,
    FLOW_N_MELS,
    FLOW_PAD,
    FLOW_SAMPLE_RATE,
    KALDI_FLOOR,
    MAGNITUDE_FLOOR,
    PREEMPHASIS,
)
from ...audio.filters import KALDI_N_FFT, hann, kaldi_filterbank, mel_filterbank, povey
from ...constants import HOP, N_FFT

HALF_WIDTH, CUT_OFF, BETA = 128, 7600.0, 8.0  # of the resampler's kernel: flat to 7.3 kHz, nothing above 7.9 kHz
BLOCK = 3 << 21  # samples at 24 kHz that are worked on at a time


def frames_of(x: mx.array, size: int, hop: int) -> mx.array:
    """(B, n) -> (B, F, size), frames every `hop` samples, none beyond the end; `hop` divides `size`.

    Made of slices laid side by side: their gradient is a sum of slices, where that of a strided view scatters.
    """
    blocks = x[:, : x.shape[1] // hop * hop].reshape(x.shape[0], -1, hop)
    k = size // hop
    F = blocks.shape[1] - k + 1
    return mx.concatenate([blocks[:, j : j + F] for j in range(k)], axis=-1)


def magnitudes(x: mx.array, size: int, hop: int, floor: float = MAGNITUDE_FLOOR) -> mx.array:
    """(B, n) -> (B, F, size / 2 + 1): sqrt(re^2 + im^2 + floor) under a periodic Hann window."""
    spectrum = windowed_spectrum(frames_of(x, size, hop), size)
    return mx.sqrt(mx.square(spectrum.real) + mx.square(spectrum.imag) + floor)


def windowed_spectrum(frames: mx.array, size: int) -> mx.array:
    """(B, F, size) -> (B, F, size / 2 + 1), complex, under a periodic Hann window."""
    return mx.fft.rfft(frames * _hann(size))


@lru_cache(maxsize=8)
def _hann(size: int) -> mx.array:
    return mx.array(hann(size))


def mirrored(x: mx.array, n: int) -> mx.array:
    """(B, m) -> (B, m + 2 n), both ends mirrored without the outermost sample."""
    return mx.concatenate([x[:, n:0:-1], x, x[:, -2 : -n - 2 : -1]], axis=1)


def flow_mel_batch(x: mx.array) -> mx.array:
    """(B, n + 1440) samples at 24 kHz, of which the first and last 720 are context -> (B, n / 480, 80), natural log.

    With both ends `mirrored` it equals `audio.features.flow_mel`; with the true context, an excerpt of a longer mel.
    """
    mel = magnitudes(x, FLOW_N_FFT, FLOW_HOP) @ _flow_filters()
    return mx.log(mx.maximum(mel, FLOW_FLOOR))


@lru_cache(maxsize=1)
def _flow_filters() -> mx.array:
    filters = mel_filterbank(FLOW_SAMPLE_RATE, FLOW_N_FFT, FLOW_N_MELS, 0.0, FLOW_FMAX)
    return mx.array(np.ascontiguousarray(filters.T, np.float32))


def fbank_batch(x: mx.array) -> mx.array:
    """(B, n) samples at 16 kHz -> (B, 1 + (n - 400) / 160, 80), `audio.features.kaldi_fbank` of each example."""
    F = 1 + (x.shape[1] - N_FFT) // HOP
    frames = frames_of(x, 3 * HOP, HOP)[:, :, :N_FFT]  # 480 samples, of which the first 400 are the frame
    if frames.shape[1] < F:  # the last frame may end before the third block does
        x = mx.pad(x, [(0, 0), (0, 3 * HOP)])
        frames = frames_of(x, 3 * HOP, HOP)[:, :F, :N_FFT]
    frames = frames - frames.mean(-1, keepdims=True)
    before = mx.concatenate([mx.zeros_like(frames[..., :1]), frames[..., :-1]], axis=-1)
    frames = (frames - PREEMPHASIS * before) * mx.array(povey(N_FFT))
    spectrum = mx.fft.rfft(frames, n=KALDI_N_FFT)[..., :-1]
    power = mx.square(spectrum.real) + mx.square(spectrum.imag)
    log = mx.log(mx.maximum(power @ mx.array(np.ascontiguousarray(kaldi_filterbank().T)), float(KALDI_FLOOR)))
    return log - log.mean(axis=1, keepdims=True)


@lru_cache(maxsize=1)
def _resampling_kernels() -> mx.array:
    """(2, 257, 1) windowed sincs of the two outputs that three inputs make, at input times 3 m and 3 m + 1.5."""
    t = np.arange(-HALF_WIDTH, HALF_WIDTH + 1)
    t = np.stack([t, t - 1.5])
    window = np.i0(BETA * np.sqrt(np.maximum(1 - (t / (HALF_WIDTH + 1.5)) ** 2, 0)))
    kernels = np.sinc(2 * CUT_OFF / FLOW_SAMPLE_RATE * t) * window
    return mx.array((kernels / kernels.sum(1, keepdims=True)).astype(np.float32)[..., None])


def at_16k(pcm: np.ndarray) -> mx.array:
    """(3 k,) int16 at 24 kHz -> (2 k,) int16 at 16 kHz, low-pass filtered at 7.6 kHz; silence beyond the ends."""
    padded = np.pad(pcm, HALF_WIDTH)
    blocks = []
    for start in range(0, len(pcm), BLOCK):
        stop = min(start + BLOCK, len(pcm))
        x = mx.array(padded[start : stop + 2 * HALF_WIDTH]).astype(mx.float32)
        pairs = mx.conv1d(x[None, :, None], _resampling_kernels(), stride=3)  # (1, outputs / 2, 2)
        blocks.append(mx.clip(mx.round(pairs.reshape(-1)), -32768, 32767).astype(mx.int16))
        mx.eval(blocks[-1])
    return mx.concatenate(blocks)


def flow_mels(pcm: mx.array) -> mx.array:
    """(n,) int16 at 24 kHz -> (n / 480, 80) float16 mels of a long recording; silence beyond its ends."""
    blocks, n = [], pcm.shape[0] // FLOW_HOP * FLOW_HOP
    for start in range(0, n, BLOCK // FLOW_HOP * FLOW_HOP):
        stop = min(start + BLOCK // FLOW_HOP * FLOW_HOP, n)
        x = pcm[max(start - FLOW_PAD, 0) : stop + FLOW_PAD].astype(mx.float32) / 32768
        before = FLOW_PAD if start == 0 else 0
        x = mx.pad(x, (before, stop - start + 2 * FLOW_PAD - before - x.shape[0]))
        blocks.append(flow_mel_batch(x[None])[0].astype(mx.float16))
        mx.eval(blocks[-1])
    return mx.concatenate(blocks)


def resident(x: np.ndarray) -> mx.array:
    """An array in the accelerator's own memory, one zero longer.

    What comes straight from numpy lies in memory that the host shares, and would be fetched anew at each use; the
    result of a computation does not.
    """
    array = mx.array(x)
    array = mx.concatenate([array, mx.zeros((1, *array.shape[1:]), array.dtype)])
    mx.eval(array)
    return array


def excerpts(x: mx.array, start: mx.array, n: int) -> mx.array:
    """Excerpts of length n of a long array's first axis, one from each start (B,): (B, n, …)."""
    return x[start[:, None] + mx.arange(n)[None]]
