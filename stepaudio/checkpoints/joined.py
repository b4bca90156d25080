"""A tensor that a file stores as several: numbers of few bits, and what they are multiplied by and added to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from .header import TensorInfo


@dataclass(frozen=True)
class JoinedTensor(TensorInfo):
    """What several stored tensors mean together; `shape` is that of the values, `nbytes` counts all of them."""

    @property
    def step(self) -> float:
        """Distance of neighbouring values, as a share of the largest of a row, at most."""
        raise NotImplementedError

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Values of some rows, float32, in whatever shape. Raises `OSError` or `ValueError` as files do."""
        raise NotImplementedError

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """The values, flat, as float32, whole rows at a time, about `size` values. Raises as `rows`."""
        rows, width = self.shape[0], prod(self.shape[1:])
        step = max(1, size // width) if width else 1
        for first in range(0, rows if width else 0, step):
            yield self.rows(first, min(first + step, rows)).reshape(-1)

    def values(self) -> np.ndarray:
        """All values, float32. Raises as `rows`."""
        found = list(self.blocks(prod(self.shape)))
        return (found[0] if found else np.zeros(0, np.float32)).reshape(self.shape)
