"""Does an array that came without a rate look as if it were not at 16 kHz? Its length, shape and spectrum may tell."""

from __future__ import annotations

import numpy as np

CD_FAMILY = 11_025  # Hz; 22 050 and 44 100 are multiples, and no multiple below 22 s is one of 16 000's
GRID = 160  # samples, 10 ms at 16 kHz
READER_TYPES = ("float64", "int16", "int32")  # what soundfile and scipy give for a file, unless asked otherwise


def contradiction(array: np.ndarray) -> str | None:
    """What about an array, (n,) or (n, channels), speaks against a rate of 16 kHz; None if nothing does."""
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.name in READER_TYPES:
        return (
            f"{array.shape[1]} channels of {array.dtype} are what is read from a file, and most files with several "
            "channels are at 44.1 or 48 kHz"
        )
    if len(array) % CD_FAMILY == 0 and len(array) % GRID:
        for rate in (4 * CD_FAMILY, 2 * CD_FAMILY, CD_FAMILY):
            if len(array) % rate == 0:
                return f"{len(array)} samples are {len(array) // rate} s to the sample at {rate} Hz"
    return None
