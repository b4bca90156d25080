"""Repetition loops: an exact, incremental detector of a repeating tail of tokens. Plain numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DecodeError

EARLY = {"min_repeats": 3, "min_ids": 24}  # thresholds at which an adaptive penalty begins: before a loop is one


@dataclass(frozen=True)
class Loop:
    """A tail that repeats: a block of `period` tokens from index `onset` on, `repeats` times over.

    `repeats` is no whole number if the last one is unfinished.
    """

    period: int
    onset: int
    repeats: float


class LoopDetector:
    """Watches tokens one by one.

    A repetition loop is a tail of at least `min_ids` tokens that is one block of `period` <= `max_period` tokens,
    repeated at least `min_repeats` times. The thresholds leave what people rightly repeat alone: "no no no", a series
    of equal digits, a chorus of two lines. Costs one comparison per period and token.

    Parameters
    ----------
    max_period : int >= 1
        Longest block, in tokens.
    min_repeats : int >= 2
    min_ids : int >= 2
        Shortest tail, in tokens.

    Raises
    ------
    DecodeError
        A threshold below its least value.
    """

    def __init__(self, max_period: int = 64, min_repeats: int = 4, min_ids: int = 32):
        limits = (("max_period", max_period, 1), ("min_repeats", min_repeats, 2), ("min_ids", min_ids, 2))
        for name, value, least in limits:
            if value < least:
                raise DecodeError(f"loop detector: {name} must be at least {least}, found {value}")
        self._tail = np.full(max_period, -1, dtype=np.int64)  # most recent token first
        self._run = np.zeros(max_period, dtype=np.int64)  # latest tokens that equalled the one `period` before
        self._period = np.arange(1, max_period + 1)
        self._need = np.maximum(min_repeats * self._period, min_ids)
        self._n = 0
        self.loop: Loop | None = None

    def push(self, token: int) -> Loop | None:
        """Take the next token; returns the loop that the tail now forms, the shortest period first, or None."""
        self._run = np.where(self._tail == token, self._run + 1, 0)
        self._tail = np.concatenate([[token], self._tail[:-1]])
        self._n += 1
        length = self._run + self._period
        found = np.flatnonzero(length >= self._need)
        if len(found) == 0:
            return None
        period = int(self._period[found[0]])
        self.loop = Loop(period, self._n - int(length[found[0]]), int(length[found[0]]) / period)
        return self.loop


def find_loop(tokens, **thresholds) -> Loop | None:
    """The last repetition loop in a finished run, or None; `thresholds` as `LoopDetector` takes them."""
    detector = LoopDetector(**thresholds)
    for token in tokens:
        detector.push(int(token))
    return detector.loop
