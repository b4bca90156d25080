"""From one rate to another, block by block: by soxr, or by the kernel of the reference.

Knows no files and no channels, and has no opinion on which of the two is used when.

o, n: the two rates divided by their greatest common divisor, so that n samples come of o; K: kernel size in samples.
Reference: torchaudio's `Resample` with its defaults (a sinc under a Hann window, 6 zero crossings on either side,
roll-off 0.99), which StepFun's code calls for every recording; after Smith, Digital Audio Resampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from ..choices import Resampler, alternatives, hint, shown
from ..errors import AudioError, ConfigError

ZERO_CROSSINGS = 6  # of the sinc, on either side
ROLL_OFF = 0.99  # cut-off over the Nyquist frequency of the lower rate
MOST_WEIGHTS = 1 << 21  # of a kernel, over all its phases: 8 MiB of float32
RUN_VALUES = 1 << 19  # inputs that a run multiplies, each as often as it is used: 2 MiB of float32


def checked_resampler(resampler: object) -> Resampler:
    """The resampler that a word names; `ConfigError` for any other value."""
    names = Resampler.values()
    if isinstance(resampler, str) and resampler in names:
        return Resampler(resampler)
    raise ConfigError(f"resampler: expected {alternatives(names)}, found {shown(resampler)}{hint(resampler, names)}")


def resampled(blocks: Iterable[np.ndarray], rate: float, to: int, resampler: Resampler) -> Iterator[np.ndarray]:
    """Mono float32 blocks at `rate` Hz as blocks at `to` Hz, in memory that does not grow with their sum.

    Raises
    ------
    AudioError
        A pair of rates that the reference's kernel does not serve: a rate that is not whole, or a ratio whose kernel
        is too large.
    """
    if resampler == Resampler.REFERENCE:
        return _by_kernel(blocks, *_ratio(rate, to))
    return _by_soxr(blocks, rate, to)


def _by_soxr(blocks: Iterable[np.ndarray], rate: float, to: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(rate, to, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _ratio(rate: float, to: int) -> tuple[int, int]:
    """O and n, with a kernel of a size that can be held."""
    if rate != int(rate):
        raise AudioError(
            f"resampler 'reference': expected a whole rate, as the reference does, found {rate!r} Hz; "
            f"use resampler='soxr', which takes any"
        )
    divisor = math.gcd(int(rate), to)
    o, n = int(rate) // divisor, to // divisor
    if (weights := n * _kernel_size(o, n)) > MOST_WEIGHTS:
        raise AudioError(
            f"resampler 'reference': {int(rate)} to {to} Hz is a ratio of {o} to {n}, whose kernel has {weights} "
            f"weights; expected at most {MOST_WEIGHTS}: use resampler='soxr'"
        )
    return o, n


def _half_width(o: int, n: int) -> int:
    return math.ceil(ZERO_CROSSINGS * o / (min(o, n) * ROLL_OFF))


def _kernel_size(o: int, n: int) -> int:
    return 2 * _half_width(o, n) + 2


@lru_cache(maxsize=8)
def _kernel(o: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, K) float32, a row for each of n outputs, and the place (n,) of the first among the inputs.

    Output p of every n lies at p * o / n inputs. Of the o + 2 * half width inputs that the reference multiplies with
    each row all but K have weight zero. The reference rounds p / n to float32; where n is large, as from 22.05 and
    44.1 kHz, that moves the sound by 1e-6, so it is done here as well.
    """
    cut_off = min(o, n) * ROLL_OFF
    first = np.arange(n) * o // n - _half_width(o, n)
    phase = np.arange(n, dtype=np.float32) / np.float32(n)
    place = (first[:, None] + np.arange(_kernel_size(o, n))) / o - phase.astype(np.float64)[:, None]
    crossing = np.clip(place * cut_off, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(crossing * (np.pi / ZERO_CROSSINGS / 2)) ** 2
    return (np.sinc(crossing) * window * (cut_off / o)).astype(np.float32), first


def _by_kernel(blocks: Iterable[np.ndarray], o: int, n: int) -> Iterator[np.ndarray]:
    """Runs of a fixed number of outputs, so that the sizes of the blocks do not change a bit of the result."""
    weights, first = _kernel(o, n)
    K, before = weights.shape[1], -int(first[0])
    turns = max(1, RUN_VALUES // weights.size)  # of n outputs and o inputs each
    stride = turns * o
    needed = stride - o + before + int(first[-1]) + K  # inputs that a run looks at
    starts = np.arange(turns)[:, None] * o + first + before  # (turns, n)

    def finished(x: np.ndarray) -> Iterator[np.ndarray]:
        for at in range(0, len(x) - needed + 1, stride):
            windows = sliding_window_view(x[at : at + needed], K)[starts]  # (turns, n, K)
            yield np.einsum("tnk,nk->tn", windows, weights).reshape(-1)

    held, n_held, n_in, n_out = [np.zeros(before, np.float32)], before, 0, 0
    for block in blocks:
        held.append(block)
        n_held, n_in = n_held + len(block), n_in + len(block)
        if n_held < needed:
            continue
        x = np.concatenate(held)
        yield from finished(x)
        n_runs = (n_held - needed) // stride + 1
        held, n_held, n_out = [x[n_runs * stride :].copy()], n_held - n_runs * stride, n_out + n_runs * turns * n
    left = math.ceil(n * n_in / o) - n_out  # the reference gives as many
    for run in finished(np.concatenate([*held, np.zeros(needed + stride, np.float32)])):
        yield run[: max(0, left)]
        left -= len(run)
