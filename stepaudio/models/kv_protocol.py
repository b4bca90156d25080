"""What attention asks of a cache, without asking which kind it has.

Once a pass, or once a layer:
    plan(n)              n new positions are coming: work out positions and mask, once for all layers
    update(i, q, k, v)   rotate, store and return (q, k, v, mask) for layer i
    advance()            the new positions are now part of the past
    slots                after `plan`: which absolute position each of the L slots holds that this pass reads
A cache of a run can also take positions on trial, which speculative decoding does:
    hold()               what comes from here on evicts nothing
    settle(n)            the first n positions since then stay, and evict what they evict; the others never were
Axes: B sequences of a batch, H key/value heads, L cached positions, D channels of a head. Caches know no tokens and no
text.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np


class KVCache(Protocol):
    """What attention asks of a cache; the head of this file says what each call means."""

    @property
    def slots(self) -> np.ndarray:
        """(L,) absolute position in each slot that this pass reads."""
        ...

    def plan(self, n: int) -> None:
        """Prepare for n new positions."""
        ...

    def update(
        self, layer: int, q: mx.array, k: mx.array, v: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, mx.array | str | None]:
        """Rotate and store what layer `layer` made of them; queries, all keys, all values and the mask."""
        ...

    def advance(self) -> None:
        """Count the new positions as past."""
        ...
