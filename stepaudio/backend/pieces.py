"""A long forward pass in pieces, so that Python gets a turn between them and Ctrl-C need not wait for all of it.

MLX runs whatever has been asked for in one go, and Python sees no signal meanwhile: the encoder over half a minute of
sound, or a minute of speech on its way through the flow. So nets ask for the end of a layer once enough has come
together, and wait for the piece before: the device need not wait for the host. What alone is more than a piece, such as
the wide matrices of a layer over a long prompt, is computed some positions at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from .device import on_cpu

LAYER = 12  # multiply-adds of a transformer layer per element and channel: four matrices of C x C, and two of C x 4 C
ENOUGH_ON_CPU, ENOUGH_ON_GPU = 1e9, 1e12  # multiply-adds of a piece: some hundredths of a second
PART = 4  # times that: what is computed in one go, be it ever so easily divided
LEAST_ROWS = 64  # with fewer the time goes into reading the matrices


def enough() -> float:
    """Multiply-adds of a piece on this device."""
    return ENOUGH_ON_CPU if on_cpu() else ENOUGH_ON_GPU


def finish(x: mx.array) -> mx.array:
    """x, evaluated unless this is inside `mx.compile` or `mx.vmap`, where nothing can be."""
    with contextlib.suppress(ValueError):
        mx.eval(x)
    return x


class Pieces:
    """The pieces of one forward pass."""

    def __init__(self):
        self._enough, self._work = enough(), 0.0
        self._before: mx.array | None = None  # the end of the last piece, which may still be computed

    def end(self, x: mx.array, cost: float = LAYER) -> mx.array:
        """The end of a layer: x (..., C) as it is, asked for if it ends a piece. `cost` like `LAYER`."""
        per_element = x.shape[-1] * cost
        if cost == LAYER:
            per_element += 2 * x.shape[-2]  # every position with every other
        self._work += x.size * per_element
        if self._work >= self._enough:
            self._work = 0.0
            with contextlib.suppress(ValueError):  # as in `finish`
                mx.async_eval(x)
                if self._before is not None:
                    mx.eval(self._before)
                self._before = x
        return x


def in_parts(f: Callable[..., mx.array], cost: float, *arrays: mx.array) -> mx.array:
    """f(*arrays) for an f that treats every row by itself, as many rows at a time as make a piece.

    Parameters
    ----------
    f : callable
        Arrays of the same n rows (n, ...) to one with n rows.
    cost : float
        Multiply-adds of one row.
    *arrays : mx.array, (rows, ...)
    """
    rows = len(arrays[0])
    n = min(rows, math.ceil(rows * cost / (PART * enough())))
    if n <= 1:
        return f(*arrays)
    parts, ends = [], [rows * i // n for i in range(n + 1)]
    for start, stop in pairwise(ends):
        parts.append(finish(f(*(a[start:stop] for a in arrays))))
    return mx.concatenate(parts)


def by_positions(layer: nn.Module, x: mx.array) -> mx.array:
    """layer(x) of x (..., n, C), for a layer of matrices that treats every position by itself, by `in_parts`."""
    rows = x.size // x.shape[-1]
    if rows <= LEAST_ROWS or rows * (cost := min(n_weights(layer), PART * enough() / LEAST_ROWS)) <= PART * enough():
        return layer(x)
    return in_parts(layer, cost, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def n_weights(net: nn.Module) -> int:
    """Multiply-adds of a net for each position, as far as all of its weights are matrices or kernels."""
    total, left = 0, [net]
    while left:  # by hand: `parameters` and `tree_flatten` take as long as a small layer
        one = left.pop()
        if isinstance(one, mx.array):
            total += one.size
        elif isinstance(one, nn.Module):
            left += [part for name, part in one.items() if not name.startswith("_")]
        elif isinstance(one, list | tuple):
            left += one
    return total
