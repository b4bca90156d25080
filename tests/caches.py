"""Caches run position by position in chunks of any length, shared by the tests of every kind of them."""

from itertools import cycle

import mlx.core as mx
import numpy as np

from stepaudio.models.kv_cache import WindowCache

N, LIMIT = 61, 19
SPANS = ((7, 5), (30, 3))  # audio: one near the start, one that comes after the limit is reached
KEPT = {"window": set(), "sinks": {0, 1, 2, 3}, "pinned": {0, 1, 2, 3, *range(7, 12), *range(30, 33)}}
KINDS = [("full", "absolute"), *((k, p) for k in KEPT for p in ("absolute", "reindexed"))]
CHUNKS = {
    "one by one": [1],
    "whole": [N],
    "odd": [5, 1, 7, 3, 11],
    "long prefill, then decode": [45] + [1] * N,
    "longer than the limit": [20, 2],
}


def run(cache, x: mx.array, chunks, net) -> np.ndarray:
    """Logits (n, V) of all positions through a cache, in chunks no longer than the cache allows."""
    out, done, chunks = [], 0, cycle(chunks)
    while done < len(x):
        wanted = min(next(chunks), len(x) - done)
        while wanted:
            take = cache.room(wanted)
            assert 1 <= take <= wanted
            out.append(np.array(net.logits(x[None, done : done + take], cache)[0]))
            done, wanted = done + take, wanted - take
            check_bounds(cache)
    return np.concatenate(out)


def check_bounds(cache) -> None:
    """What must hold after every step of every cache."""
    assert cache.nbytes == sum(a.nbytes for a in cache.arrays)
    if isinstance(cache, WindowCache):
        assert len(cache.held) <= cache.max_len
        assert all(a.shape[2] <= cache.max_len for a in cache.arrays)


def off(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.sqrt(np.mean(want**2)))
