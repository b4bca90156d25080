"""Rotary position embedding (Su et al. 2021), halves convention as Qwen2: at consecutive positions, or at any.

B sequences of a batch, H heads, n positions, D channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..backend.ops import rope

BLOCK = 512  # positions by which a table grows


@dataclass(frozen=True)
class Rope:
    """The rotation of one decoder. `dims` = channels of a head."""

    dims: int
    base: float

    def __call__(self, x: mx.array, offset: int) -> mx.array:
        """Rotate (B, H, n, D) at consecutive positions from `offset` on."""
        return rope(x, self.dims, self.base, offset)

    def table(self, n: int) -> tuple[mx.array, mx.array]:
        """Cosines and sines (n, 2, D/2) of positions 0 to n-1, float32; sines of the first half are negative."""
        half = self.dims // 2
        angle = np.arange(n)[:, None] * self.base ** (-np.arange(half) / half)
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        return mx.array(np.stack([cos, cos], axis=1)), mx.array(np.stack([-sin, sin], axis=1))


class Turns:
    """The rotation at positions that change from pass to pass: looked up once a pass, applied in every layer."""

    def __init__(self, rope: Rope):
        self._rope, self._length = rope, 0

    def to(self, positions: np.ndarray) -> None:
        """Take these positions (n,) from now on."""
        most = int(positions.max()) + 1
        if most > self._length:
            self._length = -(-most // BLOCK) * BLOCK
            self._table = self._rope.table(self._length)
        index = mx.array(positions.astype(np.int32))
        self._cos, self._sin = (a[index] for a in self._table)

    def __call__(self, x: mx.array) -> mx.array:
        """Rotate (B, H, n, D)."""
        halves = x.astype(mx.float32).reshape(*x.shape[:-1], 2, -1)
        turned = halves * self._cos + halves[..., ::-1, :] * self._sin  # a view turned round, where joining would copy
        return turned.reshape(x.shape).astype(x.dtype)
