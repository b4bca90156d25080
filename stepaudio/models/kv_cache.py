"""Key/value caches: what the decoder keeps, what it evicts, and at which positions it places what is kept.

`kv_protocol` says what all of them do.

Position conventions. *absolute*: a key is rotated once, at the position where it was read. *reindexed*: distances are
those of ranks among the positions still held (StreamingLLM, Xiao et al. 2023, section 3.2), so that none ever exceeds
the limit. See `moved_keys`; keys of few bits, and all where most of them stay, are stored unrotated and rotated at each
step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from ..choices import MAX_COUNT, CacheKind, Positions, is_count, shown
from ..constants import MAX_CACHE_LEN, SINKS
from ..errors import DecodeError
from .kv_store import Layers, bits_of_head
from .moved_keys import MovedKeys
from .rope import Rope, Turns

KV_BITS = (8, 4)


class NoCache:
    """Keeps nothing: one causal pass over a whole sequence (training, logits of a prompt).

    `pad` (B,) counts positions at the left of each sequence that hold nothing.
    """

    offset = 0
    nbytes = 0

    def __init__(self, rope: Rope, pad: mx.array | None = None):
        self._rope, self._pad = rope, pad

    def plan(self, n: int) -> None:
        """See the head of `kv_protocol`, as for all four."""
        self._n = n
        self._mask = "causal" if self._pad is None else left_pad_mask(self._pad, 0, n)

    @property
    def slots(self) -> np.ndarray:
        """(n,) the new positions themselves."""
        return np.arange(self._n)

    def update(self, layer: int, q: mx.array, k: mx.array, v: mx.array):
        """Rotate, store nothing."""
        return self._rope(q, 0), self._rope(k, 0), v, self._mask

    def advance(self) -> None:
        """Nothing to count."""


def left_pad_mask(pad: mx.array, offset: int, n: int) -> mx.array:
    """(B, 1, n, offset+n) booleans: causal, and blind to the padding of each sequence.

    A padding query sees itself, because a softmax over nothing is NaN and NaN spreads.
    """
    key, query = mx.arange(offset + n)[None, :], mx.arange(offset, offset + n)[:, None]
    seen = (key <= query)[None] & (key[None] >= pad[:, None, None])
    return (seen | (key == query)[None])[:, None]


class FullCache(Layers):
    """Keeps everything; grows in blocks. Holds a batch of prompts of unlike length too.

    `pad` (B,): unused positions at the left of each sequence, for prompts of different length in one batch.
    """

    def __init__(self, n_layers: int, rope: Rope, pad: np.ndarray | None = None, bits: int | None = None):
        super().__init__(n_layers, bits_of_head(bits, rope.dims))
        self._rope = rope
        self._pad = None if pad is None or not np.any(pad) else mx.array(np.asarray(pad, dtype=np.int32))
        self.offset = self._settled = 0

    def room(self, n: int) -> int:
        """How many of `n` new positions may come in one step: all."""
        return n

    def plan(self, n: int) -> None:
        """Prepare for n new positions."""
        self._n = n
        if self._pad is not None:
            self._mask = left_pad_mask(self._pad, self.offset, n)
        else:
            self._mask = "causal" if n > 1 else None

    @property
    def slots(self) -> np.ndarray:
        """(L,) everything so far and the new positions; padding at the left counts."""
        return np.arange(self.offset + self._n)

    def update(self, layer: int, q: mx.array, k: mx.array, v: mx.array):
        """Rotate, store, and return queries, all keys, all values and the mask."""
        q, k = self._rope(q, self.offset), self._rope(k, self.offset)
        end = self.offset + self._n
        self._keys[layer].write(k, self.offset)
        self._values[layer].write(v, self.offset)
        return q, self._keys[layer].read(end), self._values[layer].read(end), self._mask

    def advance(self) -> None:
        """Count the new positions as past."""
        self.offset += self._n

    def hold(self) -> None:
        """Take the positions that come now on trial."""
        self._settled = self.offset

    def settle(self, n: int) -> None:
        """Keep the first `n` positions that came on trial; what the buffers hold behind them is written over."""
        self.offset = self._settled + n

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all sequences of the batch but these."""
        index = mx.array(rows)
        for store in self.stores:
            store.keep_rows(index)
        self._pad = None if self._pad is None else self._pad[index]

    @property
    def held(self) -> np.ndarray:
        """Absolute positions that can still be attended to."""
        return np.arange(self.offset)

    def state(self) -> dict[str, mx.array]:
        """All that it holds, for `restore`."""
        return {**self.copied(), "offset": mx.array([self.offset])}

    def restore(self, state: dict[str, mx.array]) -> None:
        """Go on from the state of a cache of the same kind and size."""
        self.put_back(state)
        self.offset = int(np.array(state["offset"])[0])


class WindowCache(Layers):
    """Keeps chosen positions for ever and, beside them, the most recent others: never more than `max_len`.

    Position p sees position j <= p if j is in `kept`, or j is among the last `max_len - len(kept)` positions
    that are not. With `kept` empty this is a sliding window; with the first few positions, attention sinks;
    with a span of audio, span pinning. A batch of one only: see `batch_cache`. The rule also holds inside a prefill,
    through the mask.
    """

    def __init__(
        self, n_layers: int, rope: Rope, max_len: int, kept=(), reindex: bool = False, bits: int | None = None
    ):
        self._kept = np.unique(np.asarray(list(kept), dtype=np.int64))
        self.max_len, self._window, self._reindex = max_len, max_len - len(self._kept), reindex
        if self._window < 1:
            n = len(self._kept)
            raise DecodeError(too_many_kept(max_len, n))
        super().__init__(n_layers, bits_of_head(bits, rope.dims))
        self._rope = rope
        self.held = np.zeros(0, dtype=np.int64)  # absolute position in each slot
        self.slots = self.held  # of the pass that is going on
        self.offset = 0
        self._settled: int | None = None  # slots that were held when positions began to come on trial
        turn_all = bits is not None or 2 * len(self._kept) > max_len  # moving most of them costs more
        self._turns = Turns(rope) if reindex and turn_all else None
        self._moved = MovedKeys(rope, n_layers, self._kept) if reindex and not turn_all else None

    def _is_kept(self, positions: np.ndarray) -> np.ndarray:
        return np.isin(positions, self._kept)

    def room(self, n: int) -> int:
        """How many of `n` new positions may come in one step.

        Re-indexed positions move whenever something is evicted, so a step ends before that, or is one position.
        """
        if not self._reindex:
            return min(n, self.max_len)
        new = np.arange(self.offset, self.offset + n)
        loose = np.count_nonzero(~self._is_kept(self.held)) + np.cumsum(~self._is_kept(new))
        return max(1, int(np.count_nonzero(loose <= self._window)))

    def plan(self, n: int) -> None:
        """Prepare for n new positions."""
        new = np.arange(self.offset, self.offset + n)
        self._n = n
        if n == 1 and self._settled is None:
            self._plan_one(new)
        else:
            self._plan_many(new)
        if self._turns:
            self._turns.to(np.argsort(np.argsort(self.slots)))
        if self._moved:
            self._moved.plan(self.offset + n - len(self.slots), self.slots)

    def _plan_one(self, new: np.ndarray) -> None:
        """Decode: the new position takes a free slot, or that of the oldest one that may go."""
        kept, newly = np.searchsorted(self._kept, [self.offset, self.offset + 1])  # none of these was ever evicted
        full = kept == newly and len(self.held) - kept >= self._window
        if full:
            loose = np.flatnonzero(~self._is_kept(self.held))
            self._slot = int(loose[np.argmin(self.held[loose])])
        else:
            self._slot = len(self.held)
        self._after = self.held.copy() if full else np.append(self.held, -1)
        self._after[self._slot] = new[0]
        self.slots = self._after
        self._mask = self._survivors = None

    def _plan_many(self, new: np.ndarray) -> None:
        """Prefill: everything held and everything new, seen through the rule; then only the survivors stay."""
        both = self.slots = np.concatenate([self.held, new])
        loose = ~self._is_kept(both)
        if len(both) == self.offset + self._n and np.count_nonzero(loose) <= self._window:  # nothing was or is evicted
            self._mask, self._survivors, self._after = "causal", None, both
            return
        order = self._order(self.offset + self._n)
        key, query = (mx.array(at.astype(np.int32)) for at in (both, new))
        before_key, before_query = (mx.array(order[at].astype(np.int32)) for at in (both, new))
        recent = before_query[:, None] - before_key < self._window
        self._mask = ((key <= query[:, None]) & (recent | mx.array(~loose)))[None, None]
        alive = self._alive(both, new[-1]) if self._settled is None else np.ones(len(both), bool)
        self._survivors = None if alive.all() else mx.array(np.flatnonzero(alive))
        self._after = both[alive]

    def _order(self, n: int) -> np.ndarray:
        """How many positions that may be evicted there are up to each of the first `n`."""
        return np.cumsum(~self._is_kept(np.arange(n)))

    def _alive(self, positions: np.ndarray, newest: int) -> np.ndarray:
        """Which of these positions are still held once `newest` has come."""
        order = self._order(newest + 1)
        return self._is_kept(positions) | (order[newest] - order[positions] < self._window)

    def update(self, layer: int, q: mx.array, k: mx.array, v: mx.array):
        """Rotate, store, and return queries, keys and values by slot, and the mask."""
        keys, values = self._keys[layer], self._values[layer]
        if self._moved:
            self._moved.update(layer, keys)
        if not self._turns:
            q, k = self._rope(q, self.offset), self._rope(k, self.offset)
        if self._n == 1 and self._settled is None:
            keys.write(k, self._slot, self.max_len)
            values.write(v, self._slot, self.max_len)
            n = len(self._after)
            k, v = keys.read(n), values.read(n)
            if self._turns:
                q, k = self._rope(q, n - 1), self._turns(k)
            return q, k, v, self._mask
        n = len(self.held)
        if self._settled is None:
            keys.extend(k, n)
            values.extend(v, n)
        else:  # on trial: nothing moves, so that what is taken back only has to be forgotten
            keys.write(k, n, self.max_len + self._n)
            values.write(v, n, self.max_len + self._n)
        k, v = keys.read(n + self._n), values.read(n + self._n)
        if self._survivors is not None:
            keys.keep(self._survivors)
            values.keep(self._survivors)
        if self._turns:  # `room` saw to it that nothing is evicted during this step: ranks stay as they are
            q, k = self._rope(q, n), self._turns(k)
        return q, k, v, self._mask

    def advance(self) -> None:
        """Count the new positions as past; what was evicted is no longer held."""
        if self._moved and self._survivors is not None:
            self._moved.forget_slots()
        self.held = self._after
        self.offset += self._n

    def hold(self) -> None:
        """Take the positions that come now on trial: until `settle` they stand beside all that is held."""
        self._settled = len(self.held)

    def settle(self, n: int) -> None:
        """Keep the first `n` positions that came on trial, and evict what has to go for them."""
        before, self._settled = cast(int, self._settled), None
        self.offset -= len(self.held) - before - n
        positions = self.held[: before + n]
        alive = self._alive(positions, self.offset - 1)
        self.held = positions[alive]
        if not alive.all():
            stay = mx.array(np.flatnonzero(alive))
            for store in self.stores:
                store.keep(stay)
            if self._moved:
                self._moved.forget_slots()

    def state(self) -> dict[str, mx.array]:
        """All that it holds, for `restore`."""
        moved = self._moved.state() if self._moved else {}
        places = {"offset": mx.array([self.offset]), "held": mx.array(self.held.astype(np.int32))}
        return {**self.copied(), **places, **moved}

    def restore(self, state: dict[str, mx.array]) -> None:
        """Go on from the state of a cache of the same kind and size."""
        self.put_back(state)
        self.offset, self.held = int(np.array(state["offset"])[0]), np.array(state["held"]).astype(np.int64)
        if self._moved:
            self._moved.restore(state)


def too_many_kept(limit: int, n: int) -> str:
    """What is said of `n` positions that must stay where only `limit` are held."""
    return (
        f"cache limit of {limit} positions cannot hold the {n} positions that must stay "
        f"(sinks and pinned audio): allow more than {n} (max_cache_len, --max-cache-len), or choose another cache"
    )


@dataclass(frozen=True)
class CachePolicy:
    """What the decoder's cache keeps. Immutable; `build` makes the cache of one run.

    Parameters
    ----------
    kind : CacheKind or its name
        "full" (everything), "window" (the last `max_len`), "sinks" (the first `sinks` and the most recent), "pinned"
        (sinks, every audio embedding of the prompt, and the most recent).
    max_len : int >= 1, optional
        Positions that all kinds but "full" hold at most; None takes the config's `max_cache_len` (4096 unless it says
        otherwise).
    sinks : int >= 0
        First positions that "sinks" and "pinned" never evict.
    positions : Positions or its name
        "absolute" or "reindexed".
    bits : {8, 4}, optional
        Of a number in keys and values, in groups of a head's channels that share a scale and an offset; None for the
        dtype of what is computed.

    Raises
    ------
    DecodeError
        Anything else, and re-indexed positions of a full cache.
    """

    kind: CacheKind | str = CacheKind.SINKS
    max_len: int | None = None
    sinks: int = SINKS
    positions: Positions | str = Positions.ABSOLUTE
    bits: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "kind", CacheKind.of(self.kind, "cache kind"))
        object.__setattr__(self, "positions", Positions.of(self.positions, "cache positions"))
        if self.kind == CacheKind.FULL and self.positions == Positions.REINDEXED:
            raise DecodeError("a full cache evicts nothing, so there is nothing to re-index: positions='absolute'")
        if self.max_len is not None and not is_count(self.max_len, 1):
            raise DecodeError(
                f"cache max_len {shown(self.max_len)}: expected a whole number of at least 1 position and at most "
                f"{MAX_COUNT}"
            )
        if not is_count(self.sinks):
            raise DecodeError(
                f"cache sinks {shown(self.sinks)}: expected a whole number, 0 or more, at most {MAX_COUNT}"
            )

        if self.bits is not None and not (is_count(self.bits) and self.bits in KV_BITS):
            raise DecodeError(f"kv_bits: expected 8, 4 or none, found {shown(self.bits)}")

    def limit(self, default: int = MAX_CACHE_LEN) -> int | None:
        """Most positions held, None for no limit."""
        return None if self.kind == CacheKind.FULL else self.max_len or default

    def build(self, n_layers: int, rope: Rope, default_len: int = MAX_CACHE_LEN, spans=()) -> FullCache | WindowCache:
        """A cache for one prompt. `spans`: (start, length) of the audio embeddings, used by "pinned"."""
        limit = self.limit(default_len)
        if limit is None:
            return FullCache(n_layers, rope, bits=self.bits)
        return WindowCache(
            n_layers, rope, limit, self.kept(limit, spans), self.positions == Positions.REINDEXED, self.bits
        )

    def kept(self, limit: int, spans=()) -> list[int]:
        """Positions that are never evicted; `DecodeError` if the sinks alone fill the limit."""
        sinks = 0 if self.kind == CacheKind.WINDOW else self.sinks
        if sinks >= limit:
            raise DecodeError(too_many_kept(limit, sinks))  # before anything of that size is made
        pinned = spans if self.kind == CacheKind.PINNED else ()
        return [*range(sinks), *(p for start, length in pinned for p in range(start, start + length))]
