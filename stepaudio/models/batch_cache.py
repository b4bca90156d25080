"""A bounded cache for several prompts of unlike length: each sequence holds what it would hold alone.

Axes: B sequences of a batch, H key/value heads, L slots, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..errors import DecodeError
from .kv_cache import too_many_kept
from .kv_store import Layers, bits_of_head
from .rope import Rope

BLANK = -1  # in the place of a position: padding, or a slot that holds nothing


class BatchWindowCache(Layers):
    """The rule of `WindowCache` for each sequence of a batch by itself.

    Sequences evict at their own pace, so a slot holds another position in each of them, and one that holds fewer has
    blank slots, which the mask hides. Keys are rotated where they stand in the padded batch: rotary attention sees
    distances only.

    Parameters
    ----------
    kept : for each sequence, the positions of its own prompt or answer that are never evicted.
    pad : (B,) unused positions at the left of each sequence.

    Raises
    ------
    DecodeError
        A limit that what must stay fills.
    """

    def __init__(
        self,
        n_layers: int,
        rope: Rope,
        max_len: int,
        kept: Sequence[Collection[int]],
        pad: np.ndarray,
        bits: int | None = None,
    ):
        super().__init__(n_layers, bits_of_head(bits, rope.dims))
        self._kept = np.zeros((len(kept), 1 + max((max(k, default=0) for k in kept), default=0)), bool)
        for row, positions in zip(self._kept, kept, strict=True):
            row[list(positions)] = True
        self._rope, self.max_len, self._pad = rope, max_len, np.asarray(pad, np.int64)
        self._window = max_len - self._kept.sum(axis=1)
        if self._window.min() < 1:
            raise DecodeError(too_many_kept(max_len, int(self._kept.sum(axis=1).max())))
        self.held = np.zeros((len(kept), 0), np.int64)  # absolute position in each slot, of its own sequence
        self.slots = self.held  # of the pass that is going on
        self.offset = 0

    def _is_kept(self, positions: np.ndarray) -> np.ndarray:
        """(B, L) positions -> (B, L)."""
        known = (positions >= 0) & (positions < self._kept.shape[1])
        return known & np.take_along_axis(self._kept, np.where(known, positions, 0), axis=1)

    def _order(self, positions: np.ndarray) -> np.ndarray:
        """How many positions that may be evicted there are up to each of these (B, L); blanks have any number."""
        kept = np.cumsum(self._kept, axis=1)
        last = np.clip(positions, 0, kept.shape[1] - 1)
        return positions + 1 - np.take_along_axis(kept, last, axis=1)

    def room(self, n: int) -> int:
        """How many of `n` new positions may come in one step."""
        return min(n, self.max_len)

    def plan(self, n: int) -> None:
        """Prepare for n new positions of each sequence."""
        self._n = n
        new = np.maximum(self.offset + np.arange(n)[None] - self._pad[:, None], BLANK)
        self._one = n == 1 and bool((new >= 0).all())
        if self._one:
            self._plan_one(new)
        else:
            self._plan_many(new)

    def _plan_one(self, new: np.ndarray) -> None:
        """Decode: in each sequence the new position takes a blank slot, or that of the oldest one that may go."""
        held = self.held
        loose = (held >= 0) & ~self._is_kept(held)
        full = ~self._is_kept(new)[:, 0] & (loose.sum(axis=1) >= self._window)
        held = np.concatenate([held, np.full_like(new, BLANK)], axis=1)  # a blank slot for whoever has none
        blank = np.argmax(held < 0, axis=1)
        oldest = np.argmin(np.where(loose, held[:, :-1], np.iinfo(np.int64).max), axis=1) if loose.size else blank
        self._slot = np.where(full, oldest, blank)
        held[np.arange(len(held)), self._slot] = new[:, 0]
        self._after = self.slots = held if (held[:, -1] >= 0).any() else held[:, :-1]
        self._mask = None if (self._after >= 0).all() else mx.array(cast(Any, self._after >= 0))[:, None, None]

    def _plan_many(self, new: np.ndarray) -> None:
        """Prefill: everything held and everything new, seen through the rule; then only the survivors stay."""
        both = self.slots = np.concatenate([self.held, new], axis=1)
        kept, order, window = self._is_kept(both), self._order(both), self._window
        recent = self._order(new)[:, :, None] - order[:, None] < window[:, None, None]
        seen = (both[:, None] <= new[:, :, None]) & (both >= 0)[:, None] & (kept[:, None] | recent)
        own = np.arange(both.shape[1])[None] == np.arange(self.held.shape[1], both.shape[1])[:, None]
        seen |= own & (new < 0)[:, :, None]  # padding sees itself: a softmax over nothing is NaN, and NaN spreads
        self._mask = mx.array(cast(Any, seen))[:, None]
        alive = (both >= 0) & (kept | (self._order(new[:, -1:]) - order < window[:, None]))
        stay = np.argsort(~alive, axis=1, kind="stable")[:, : alive.sum(axis=1).max()]
        self._after = np.take_along_axis(np.where(alive, both, BLANK), stay, axis=1)
        self._survivors = None if alive.all() else mx.array(stay)

    def update(self, layer: int, q: mx.array, k: mx.array, v: mx.array):
        """Rotate, store, and return queries, keys and values by slot, and the mask."""
        q, k = self._rope(q, self.offset), self._rope(k, self.offset)
        keys, values = self._keys[layer], self._values[layer]
        if self._one:
            keys.put(k, self._slot, self.max_len)
            values.put(v, self._slot, self.max_len)
            n = self._after.shape[1]
            return q, keys.read(n), values.read(n), self._mask
        held = self.held.shape[1]
        keys.extend(k, held)
        values.extend(v, held)
        k, v = keys.read(held + self._n), values.read(held + self._n)
        if self._survivors is not None:
            keys.keep_each(self._survivors)
            values.keep_each(self._survivors)
        return q, k, v, self._mask

    def advance(self) -> None:
        """Count the new positions as past; what was evicted is no longer held."""
        self.held = self._after
        self.offset += self._n

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all sequences of the batch but these."""
        for store in self.stores:
            store.keep_rows(mx.array(rows))
        self._kept, self._pad, self._window, self.held = (
            a[rows] for a in (self._kept, self._pad, self._window, self.held)
        )
