"""A long forward pass in pieces, so that Python gets a turn between them and Ctrl-C need not wait for all of it.

MLX runs whatever has been asked for in one go, and Python sees no signal meanwhile: the encoder over half a minute of
sound, or a minute of speech on its way through the flow. So nets evaluate at the end of a layer once enough has come
together that the wait costs nothing beside the work.
"""

from __future__ import annotations

import mlx.core as mx

from .device import on_cpu

LAYER = 12  # multiply-adds of a transformer layer per element and channel: four matrices of C x C, and two of C x 4 C
ENOUGH_ON_CPU, ENOUGH_ON_GPU = 1e9, 1e12  # multiply-adds of a piece: some hundredths of a second


class Pieces:
    """The pieces of one forward pass."""

    def __init__(self):
        self._enough, self._work = ENOUGH_ON_CPU if on_cpu() else ENOUGH_ON_GPU, 0.0

    def end(self, x: mx.array, cost: float = LAYER) -> mx.array:
        """The end of a layer: x (..., C) as it is, evaluated if it ends a piece. `cost` as `LAYER`, or another kind's.

        Nothing is evaluated inside `mx.compile` and `mx.vmap`, where nothing can be.
        """
        per_element = x.shape[-1] * cost
        if cost == LAYER:
            per_element += 2 * x.shape[-2]  # every position with every other
        self._work += x.size * per_element
        if self._work >= self._enough:
            self._work = 0.0
            try:
                mx.eval(x)
            except ValueError:
                self._enough = float("inf")
        return x
