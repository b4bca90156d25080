"""Weight norm, as the vocoder is published with it: a kernel is stored as magnitude and direction, and held merged.

Source: Salimans and Kingma 2016; names as `torch.nn.utils.parametrizations.weight_norm` stores them.
"""

from __future__ import annotations

import re

import numpy as np

from ..errors import WeightsError

MAGNITUDE, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
PAIRED = re.compile(
    r"(conv_(pre|post)|ups\.\d+|(source_)?resblocks\.\d+\.convs[12]\.\d+|f0_predictor\.condnet\.\d+)\.weight"
)  # the vocoder's kernels but those of source_downs


def weight_norm_pair(kernel: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the two published tensors that make the kernel of this (published) shape."""
    stem = kernel.removesuffix(".weight")
    return {stem + MAGNITUDE: (shape[0], *(1 for _ in shape[1:])), stem + DIRECTION: shape}


def merge_weight_norm(magnitude: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Compute the kernel g v / |v|, the length taken over all axes but the first.

    Parameters
    ----------
    magnitude : array (n, 1, 1)
        g. Of a transposed convolution, too, it has one entry for each index of the first axis, which is `in` there.
    direction : array (n, ., .)
        v.

    Returns
    -------
    array (n, ., .), float32

    Raises
    ------
    WeightsError
        A direction of length zero.
    """
    v = np.asarray(direction, np.float64)
    length = np.sqrt((v**2).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
    if not length.all():
        raise WeightsError("weight norm: a kernel has a direction of length zero; the file is damaged")
    return (np.asarray(magnitude, np.float64) * v / length).astype(np.float32)
