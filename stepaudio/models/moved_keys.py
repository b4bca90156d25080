"""Re-indexed positions for keys held as floats: nothing but what lies before a gap is ever moved.

Scores depend on distances alone. So keys and queries are rotated once, at the position where they were read, and the
distance of two is that of their ranks, but for positions evicted between them. Those evicted are always the oldest that
may be; only keys that never go (sinks, pinned audio) can lie before them. These few are turned on, whenever something
was evicted behind them, by as many positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .kv_store import Store
from .rope import Rope


class _Run(NamedTuple):
    """Neighbours that move on alike: which of the moved keys, their first slot, and by how many positions."""

    which: slice
    slot: int
    steps: int


class MovedKeys:
    """Keys of one sequence that never go, each turned on from what it was when it was read: roundings do not add up.

    Parameters
    ----------
    kept : (K,) positions that are never evicted, rising.
    """

    def __init__(self, rope: Rope, n_layers: int, kept: np.ndarray):
        self._rope = rope
        self._before = kept - np.arange(len(kept))  # positions that may be evicted, in front of each
        self._kept = kept
        self._first: list[mx.array] = [mx.zeros((1, 0, 0, 0))] * n_layers  # (1, H, moved, D) as read
        self._evicted = self._n = 0
        self._runs: list[_Run] = []
        self._new: mx.array | None = None
        self._where: np.ndarray | None = None

    def plan(self, evicted: int, slots: np.ndarray) -> None:
        """For a pass that reads `slots` (L,), the position in each, when so many positions are evicted in all."""
        self._runs, self._new = [], None
        if evicted == self._evicted:
            return
        self._evicted = evicted
        steps = np.maximum(evicted - self._before, 0)
        n = int(np.count_nonzero(steps))  # the first ones: the later, the less lies behind
        if n == 0:
            return
        if self._where is None or len(self._where) != n:
            order = np.argsort(slots)
            self._where = order[np.searchsorted(slots, self._kept[:n], sorter=order)]
        where = self._where
        if n > self._n:
            self._new, self._n = mx.array(where[self._n :]), n
        ends = np.flatnonzero((np.diff(where) != 1) | (np.diff(steps[:n]) != 0)) + 1
        self._runs = [_Run(slice(a, b), int(where[a]), int(steps[a])) for a, b in pairwise([0, *ends.tolist(), n])]

    def update(self, layer: int, keys: Store) -> None:
        """Move the keys of a layer in their buffer."""
        if self._new is not None:
            new = keys.arrays[0][:, :, self._new]
            self._first[layer] = mx.concatenate([self._first[layer], new], axis=2) if self._first[layer].size else new
        first = self._first[layer]
        for which, slot, steps in self._runs:
            x = first if which == slice(0, self._n) else first[:, :, which]
            keys.write(self._rope(x.reshape(1, -1, 1, x.shape[-1]), steps).reshape(x.shape), slot)

    def forget_slots(self) -> None:
        """Slots hold other positions from now on."""
        self._where = None

    def state(self) -> dict[str, mx.array]:
        """All that it holds, for `restore`."""
        moved = {f"moved.{i}": mx.array(a) for i, a in enumerate(self._first) if self._n}
        return moved | {"evicted": mx.array([self._evicted])}

    def restore(self, state: dict[str, mx.array]) -> None:
        """Go on from such a state."""
        self._evicted = int(np.array(state["evicted"])[0])
        self._n = int(np.count_nonzero(self._evicted > self._before))
        self._first = [mx.array(state.get(f"moved.{i}", a)) for i, a in enumerate(self._first)]
        self.forget_slots()
