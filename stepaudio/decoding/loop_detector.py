"""Does a run of ids go in circles? An exact, incremental detector of a repeating tail. Plain numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DecodeError

ON_LOOP = ("off", "report", "stop", "escape")


@dataclass(frozen=True)
class Loop:
    """A tail that repeats: `period` ids long, first seen at index `onset`, `repeats` times over (may be broken)."""

    period: int
    onset: int
    repeats: float


class LoopDetector:
    """Watches ids one by one.

    A loop is a tail of at least `min_ids` ids that is one block of `period` <= `max_period` ids said at least
    `min_repeats` times. The thresholds leave what people rightly repeat alone: "no no no", a row of equal digits,
    a chorus of two lines. Costs one comparison per period and id.
    """

    def __init__(self, max_period: int = 64, min_repeats: int = 4, min_ids: int = 32):
        limits = (("max_period", max_period, 1), ("min_repeats", min_repeats, 2), ("min_ids", min_ids, 2))
        for name, value, least in limits:
            if value < least:
                raise DecodeError(f"loop detector: {name} must be at least {least}, found {value}")
        self._tail = np.full(max_period, -1, dtype=np.int64)  # most recent id first
        self._run = np.zeros(max_period, dtype=np.int64)  # ids in a row that equalled the one `period` before
        self._period = np.arange(1, max_period + 1)
        self._need = np.maximum(min_repeats * self._period, min_ids)
        self._n = 0
        self.loop: Loop | None = None

    def push(self, token: int) -> Loop | None:
        """Take the next id; returns the loop that the tail now forms, the shortest period first, or None."""
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


def find_loop(ids, **thresholds) -> Loop | None:
    """The last loop in a finished run, or None."""
    detector = LoopDetector(**thresholds)
    for token in ids:
        detector.push(int(token))
    return detector.loop
