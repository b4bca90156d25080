"""Normal noise by frame: an array that is passed in, or a seed. There is no noise without either.

The reference makes unseeded noise once per process, so its sound cannot be made again.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from ...choices import is_whole, shown
from ...errors import DecodeError

NOISE_BLOCK = 1024  # frames of seeded noise that are made together
KEPT = 5_000_000  # numbers at the beginning of a seed that are kept, 20 MB: 23 s of sound in the published vocoder
Noise = mx.array | int  # (1, frames, width), or a seed


@lru_cache(maxsize=2)  # one for the flow, one for the vocoder
def _kept(_seed: int, _width: int) -> dict[int, np.ndarray]:
    """Blocks of a seed that were drawn, by number."""
    return {}


def _block(seed: int, width: int, number: int) -> np.ndarray:
    kept = _kept(seed, width) if (number + 1) * NOISE_BLOCK * width <= KEPT else {}
    if number not in kept:
        rng = np.random.default_rng((seed, width, number))
        kept[number] = rng.standard_normal((NOISE_BLOCK, width), np.float32)
    return kept[number]


def noise_frames(noise: Noise, start: int, n: int, width: int) -> mx.array:
    """Frames start … start+n-1 of the noise.

    Frame i of a seed is the same however it is asked for, so a stream in other chunks starts from the same noise.

    Parameters
    ----------
    noise : a seed >= 0, or an array (1, at least start + n, width).

    Returns
    -------
    (1, n, width) float32, standard normal.

    Raises
    ------
    DecodeError : an array that is too short or of another width, a negative seed.
    """
    if not isinstance(noise, (mx.array, np.ndarray)):
        if not (is_whole(noise) and 0 <= noise < 2**64):
            raise DecodeError(
                f"noise: a seed must not be negative, and be a whole number of 64 bits, found {shown(noise)}"
            )
        first, last = start // NOISE_BLOCK, (start + max(n, 1) - 1) // NOISE_BLOCK
        blocks = [_block(int(noise), width, b) for b in range(first, last + 1)]
        offset = start - first * NOISE_BLOCK
        return mx.array(np.concatenate(blocks)[None, offset : offset + n])
    if noise.ndim != 3 or noise.shape[0] != 1 or noise.shape[2] != width or noise.shape[1] < start + n:
        raise DecodeError(
            f"noise: expected shape (1, at least {start + n}, {width}), found {tuple(noise.shape)}; "
            "pass a longer array or a seed"
        )
    return mx.array(noise)[:, start : start + n]
