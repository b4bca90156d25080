"""Intervals of word error rate and loop rate over clips, and of the differences between two conditions.

Clips are the sample of the world: words of a clip err together, and the seeds of a clip share a recording, so what
counts is how clips differ. The total word error rate mixes two populations, runs that loop and runs that do not, and
where loops are rare no bootstrap covers it. So the three are kept apart: the rate of loops, the errors of runs without
one, and the total, which has an upper bound only where loops were seen in two clips at least.

Methods: Clopper & Pearson 1934 (exact interval of a rate); Korn & Graubard 1998 (the same with the effective number of
words of clustered data); MOVER, Zou & Donner 2008 (sums and differences, from the limits of their parts). The
coverage of each is measured by `stepaudio.evaluation.coverage`; a percentile bootstrap falls below 0.75 there.

The input is the rows of a sweep (dicts or a pandas table), known by their column names.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError
from .limits import LoopPart, change_limits, combine, rate_limits, share_limits

Row = Mapping[str, Any]
# Measure -> columns of errors and of what they are out of.
COLUMNS = {
    "wer": ("errors", "words"),
    "cer": ("char_errors", "chars"),
    "mixed": ("mixed_errors", "mixed_units"),
    "loop_free_wer": ("errors", "words"),
    "loop_free_cer": ("char_errors", "chars"),
    "loop_free_mixed": ("mixed_errors", "mixed_units"),
    "loop_rate": ("loops", None),
}


@dataclass(frozen=True)
class Interval:
    """A rate or a difference of rates, with the interval that holds the true one `level` of the time.

    Attributes
    ----------
    measure : one of `MEASURES`.
    estimate, low, high : shares (1 is 100 %). `high` is infinite (in a difference also `low`) where the data bound
        nothing: a total error rate while fewer than two clips looped.
    level, n_clips : coverage aimed at; clips that entered.
    """

    measure: str
    estimate: float
    low: float
    high: float
    level: float
    n_clips: int

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference of 0 lies outside: only then do the data carry a finding."""
        return self.low > 0 or self.high < 0

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __format__(self, spec: str) -> str:
        """Estimate and ends, each in the format `spec`: f"{found:.1%}" -> "4.2% [0.0%, 10.4%]"; without: all of it."""
        if not spec:
            return str(self)
        low, high = (format(v, spec) if math.isfinite(v) else "no bound" for v in (self.low, self.high))
        return f"{self.estimate:{spec}} [{low}, {high}]"

    def __str__(self) -> str:
        return f"{self.measure} {self:+.4f} ({self.level:.0%}, {self.n_clips} clips)"


MEASURES = tuple(COLUMNS)


def pick(rows, **wanted) -> list[dict]:
    """The rows whose columns have these values: `pick(rows, setting="planned", fault="none")`.

    Parameters
    ----------
    rows : as in `interval`. wanted : column name and the value it must have.

    Raises
    ------
    DataError : a column is unknown, or no row is left; the message says which values there are.
    """
    rows = _records(rows)
    for column, value in wanted.items():
        if rows and column not in rows[0]:
            raise DataError(f"no column {column!r}; there are {', '.join(rows[0])}")
        left = [row for row in rows if row[column] == value]
        if not left:
            values = sorted({str(row[column]) for row in rows})
            raise DataError(f"no row with {column} {value!r}; there are {', '.join(values[:12]) or 'no rows at all'}")
        rows = left
    return rows


def interval(rows, measure: str = "wer", *, level: float = 0.95) -> Interval:
    """Interval of a rate over the clips of `rows`.

    Parameters
    ----------
    rows : runs of one setting, as a `Table`, a list of dicts, or a pandas table; every clip equally often.
    measure : "wer" (errors / words), "loop_rate" (runs with a loop / runs), "loop_free_wer" (the word error rate of
        the runs without one); "cer" and "loop_free_cer" by characters, "mixed" and "loop_free_mixed" by both.
    level : coverage aimed at, 0 < level < 1.

    Returns
    -------
    Interval: of 0 loops in n clips, `high` is the rate that is excluded. The total "wer" has no upper bound where fewer
    than two clips looped: how long a loop is, is then unknown.

    Raises
    ------
    DataError : fewer than two clips (without a loop, where only these count), failed runs, unequal numbers of seeds,
        nothing expected in any clip.
    """
    runs = _runs(rows, measure, level)
    table = [[(e, w, loop) for e, w, loop in clip.values()] for clip in runs.values()]
    if measure == "loop_rate":
        events = np.array([sum(loop for *_, loop in clip) for clip in table], dtype=np.float64)
        exposure = np.array([len(clip) for clip in table], dtype=np.float64)
        return _found(measure, events.sum() / exposure.sum(), share_limits(events, exposure, level), level, len(table))
    if measure.startswith("loop_free"):
        table = [kept for clip in table if (kept := [run for run in clip if not run[2]])]
        _need_two(len(table), "without a loop")
        events, exposure = _sums(table)
        _need_words(measure, exposure)
        return _found(measure, events.sum() / exposure.sum(), rate_limits(events, exposure, level), level, len(table))
    total, exposure = _sums(table)
    _need_words(measure, exposure)
    free = np.array([sum(e for e, _, loop in clip if not loop) for clip in table], dtype=np.float64)
    looped = [[e for e, _, loop in clip if loop] for clip in table]
    part = LoopPart.of(looped, [len(clip) for clip in table], exposure, level)
    rate, (low, high) = free.sum() / exposure.sum(), rate_limits(free, exposure, level)
    ends = combine([(rate, low, high), (part.value, part.low, part.high)])
    return _found(measure, total.sum() / exposure.sum(), ends, level, len(table))


def paired_difference(rows_a, rows_b, measure: str = "wer", *, level: float = 0.95) -> Interval:
    """Interval of (rate of a) - (rate of b) over the same clips; below 0, a is better.

    Parameters
    ----------
    rows_a, rows_b : as `rows` in `interval`, over exactly the same clips. With the same seeds on both sides runs are
        paired by clip and seed, otherwise every run of a clip with every other (a greedy setting may have one).
    measure, level : as in `interval`. "loop_free_wer" is taken over the pairs in which neither side loops.

    Returns
    -------
    Interval: where no pair differs, it still has a width: as if one more clip had changed by as much as clips err.

    Raises
    ------
    DataError : as `interval`, and if the clips differ.
    """
    a, b = _runs(rows_a, measure, level), _runs(rows_b, measure, level)
    if list(a) != list(b):
        odd = sorted(set(a) ^ set(b))
        raise DataError(
            f"paired intervals need the same clips on both sides: {len(odd)} are on one side only, for "
            f"instance {odd[0]!r}; pick the clips both have, or finish the sweep"
        )
    pairs = [_pairs(a[clip], b[clip]) for clip in a]
    if measure == "loop_rate":
        table = [[(float(x[2]), float(y[2]), 1.0) for x, y in clip] for clip in pairs]
        found = _difference(measure, table, level)
        return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))
    words = {clip: {w for _, w, _ in (*a[clip].values(), *b[clip].values())} for clip in a}
    if other := [clip for clip, found in words.items() if len(found) > 1]:
        raise DataError(f"clip {other[0]!r} has another number of expected words on one side: are the texts the same?")
    if measure.startswith("loop_free"):
        table = [[(x[0], y[0], x[1]) for x, y in clip if not (x[2] or y[2])] for clip in pairs]
        table = [clip for clip in table if clip]
        _need_two(len(table), "in which neither side loops")
        return _difference(measure, table, level)
    return _total_difference(measure, pairs, level)


@dataclass(frozen=True)
class Comparison:
    """Two conditions over the same clips: what moved, a - b, for each of the three measures (as `Interval`s)."""

    loop_rate: Interval
    loop_free: Interval
    total: Interval

    @property
    def moved(self) -> tuple[str, ...]:
        """The measures whose interval leaves out 0."""
        return tuple(found.measure for found in (self.loop_rate, self.loop_free, self.total) if found.excludes_zero)

    def __str__(self) -> str:
        parts = ", ".join(f"{f.measure} {f:+.1%}" for f in (self.loop_rate, self.loop_free, self.total))
        return f"{parts}; moved: {', '.join(self.moved) or 'none'}"


def compare(rows_a, rows_b, *, unit: str = "wer", level: float = 0.95) -> Comparison:
    """All three paired differences at once: loops, errors where neither side loops, and the total.

    Parameters
    ----------
    rows_a, rows_b, level : as in `paired_difference`. unit : "wer", "cer" or "mixed".

    Raises
    ------
    DataError : as in `paired_difference`.
    """
    if unit not in ("wer", "cer", "mixed"):
        raise DataError(f"unit {unit!r}: expected wer, cer or mixed")
    measures = ("loop_rate", f"loop_free_{unit}", unit)
    return Comparison(*(paired_difference(rows_a, rows_b, measure, level=level) for measure in measures))


# --- rows -----------------------------------------------------------------------------------------------------------


def _records(rows) -> list[dict]:
    """A list of dicts from a list, a `Table` or a pandas table."""
    if hasattr(rows, "rows"):
        rows = rows.rows
    elif hasattr(rows, "to_dict"):
        rows = rows.to_dict("records")
    return list(rows)


Run = tuple[float, float, bool]  # errors, words expected, whether it looped


def _runs(rows, measure: str, level: float) -> dict[str, dict[Any, Run]]:
    """Clip -> seed -> run, clips in order."""
    if measure not in COLUMNS:
        raise DataError(f"measure {measure!r}: expected one of {', '.join(COLUMNS)}")
    if not 0 < level < 1:
        raise DataError(f"expected 0 < level < 1, found {level}")
    above, below = COLUMNS[measure]
    clips: dict[str, dict[Any, Run]] = defaultdict(dict)
    count: Counter = Counter()
    for row in _records(rows):
        if row.get("error"):
            raise DataError(f"clip {row['clip']!r} failed ({row['error']}): leave it out of every setting compared")
        count[row["clip"], row.get("seed")] += 1
        words = float(row[below]) if below else 1.0
        clips[row["clip"]][row.get("seed")] = (float(row[above]), words, row["loops"] > 0)
    _check_balance(count, clips)
    return dict(sorted(clips.items()))


def _check_balance(runs: Counter, clips: Mapping) -> None:
    """Every clip once per seed, the same seeds for all: else a rate would silently weigh clips unequally."""
    _need_two(len(clips))
    twice = [key for key, n in runs.items() if n > 1]
    if twice:
        raise DataError(
            f"clip {twice[0][0]!r} occurs {runs[twice[0]]} times with seed {twice[0][1]}: these are rows of "
            "several settings or faults; `pick` one"
        )
    if len({frozenset(seeds) for seeds in clips.values()}) > 1:
        raise DataError("the clips were not all run with the same seeds: finish the sweep, or pick seeds that all have")


def _pairs(a: Mapping[Any, Run], b: Mapping[Any, Run]) -> list[tuple[Run, Run]]:
    if a.keys() == b.keys():
        return [(a[seed], b[seed]) for seed in a]
    return [(x, y) for x in a.values() for y in b.values()]


def _sums(table: Iterable[Sequence[Run]]) -> tuple[np.ndarray, np.ndarray]:
    """Errors and words of each clip, summed over its runs."""
    sums = np.array([(sum(e for e, *_ in clip), sum(w for _, w, _ in clip)) for clip in table], dtype=np.float64)
    return sums[:, 0], sums[:, 1]


def _need_two(n: int, which: str = "") -> None:
    if n < 2:
        raise DataError(f"an interval over clips needs at least two of them{which and ' ' + which}, found {n}")


def _need_words(measure: str, exposure: np.ndarray) -> None:
    if exposure.sum() == 0:
        raise DataError(f"{measure} is not defined: nothing was expected in any clip")


def _found(measure: str, estimate: float, ends: tuple[float, float], level: float, n: int) -> Interval:
    return Interval(measure, float(estimate), float(ends[0]), float(ends[1]), level, n)


# --- differences ----------------------------------------------------------------------------------------------------


def _difference(measure: str, table: Sequence[Sequence[tuple[float, float, float]]], level: float) -> Interval:
    """table: per clip, per pair, events of a, of b, and what they are out of."""
    a, b, exposure = np.array([np.sum(clip, axis=0) for clip in table], dtype=np.float64).T
    _need_words(measure, exposure)
    ends = change_limits(a, b, exposure, level)
    return _found(measure, (a.sum() - b.sum()) / exposure.sum(), ends, level, len(table))


def _total_difference(measure: str, pairs: Sequence[Sequence[tuple[Run, Run]]], level: float) -> Interval:
    """Errors where neither loops, and what was gained and lost in the pairs in which one does."""
    exposure = np.array([sum(x[1] for x, _ in clip) for clip in pairs], dtype=np.float64)
    _need_words(measure, exposure)
    free = np.zeros((2, len(pairs)))
    gained: list[list[float]] = []
    lost: list[list[float]] = []
    for i, clip in enumerate(pairs):
        quiet = [(x[0], y[0]) for x, y in clip if not (x[2] or y[2])]
        free[:, i] = np.sum(quiet, axis=0) if quiet else 0
        changes = [x[0] - y[0] for x, y in clip if x[2] or y[2]]
        gained.append([change for change in changes if change > 0])
        lost.append([-change for change in changes if change < 0])
    runs = [len(clip) for clip in pairs]
    sizes = [[float(np.mean(found)) for found in side if found] for side in (gained, lost)]
    more = LoopPart.of(gained, runs, exposure, level, sizes[1])
    less = LoopPart.of(lost, runs, exposure, level, sizes[0])
    change = (free[0].sum() - free[1].sum()) / exposure.sum()
    parts = [(change, *change_limits(free[0], free[1], exposure, level)), (more.value, more.low, more.high)]
    ends = combine(parts, [(less.value, less.low, less.high)])
    return _found(measure, change + more.value - less.value, ends, level, len(pairs))
