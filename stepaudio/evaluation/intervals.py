"""Bootstrap intervals of an error rate, and of the difference of two rates over the same clips.

Clips are the sample of the world, so clips are resampled; the seeds of a clip stay together, because they share a
recording. The input is the rows of a sweep (dicts or a pandas table), known by their column names.
Efron & Tibshirani 1993, chapter 13 (percentile interval); Bisani & Ney 2004 (paired, for word error rates).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError

Row = Mapping[str, Any]
# Name of a rate -> numerator and denominator of one run; both are summed over runs.
MEASURES: dict[str, tuple[Callable[[Row], int], Callable[[Row], int]]] = {
    "wer": (lambda row: row["errors"], lambda row: row["words"]),
    "cer": (lambda row: row["char_errors"], lambda row: row["chars"]),
    "loop_rate": (lambda row: int(row["loops"] > 0), lambda row: 1),
}
BLOCK = 1000  # resamples drawn at a time: bounds memory at BLOCK x clips counts


@dataclass(frozen=True)
class Interval:
    """A rate or a difference of rates with its percentile interval at `level`, over `n_clips` clips."""

    measure: str
    estimate: float
    low: float
    high: float
    level: float
    n_clips: int
    n_resamples: int

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference of 0 lies outside: only then do the data carry a finding."""
        return self.low > 0 or self.high < 0

    def __format__(self, spec: str) -> str:
        """Estimate and ends, each in the format `spec`: f"{found:.1%}" -> "4.2% [0.0%, 10.4%]"; without: all of it."""
        if not spec:
            return str(self)
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return (
            f"{self.measure} {self.estimate:+.4f} [{self.low:+.4f}, {self.high:+.4f}] "
            f"({self.level:.0%}, {self.n_clips} clips)"
        )


def pick(rows, **wanted) -> list[dict]:
    """The rows whose columns have these values: `pick(rows, setting="planned", defect="none")`.

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


def interval(rows, measure: str = "wer", *, level: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Bootstrap interval of a rate over the clips of `rows`.

    Parameters
    ----------
    rows : runs of one setting, as a `Table`, a list of dicts, or a pandas table; every clip equally often.
    measure : "wer" (errors / words), "cer", or "loop_rate" (runs with a loop / runs).
    level : coverage aimed at, 0 < level < 1.
    n_resamples : at least 100.
    seed : of the resampling; the same seed gives the same interval.

    Raises
    ------
    DataError : fewer than two clips, failed runs, unequal numbers of seeds, or a denominator of zero.
    """
    _, above, below = _per_clip(_records(rows), measure)
    return _bootstrap(measure, above[None], below[None], lambda rates: rates[0], level, n_resamples, seed)


def paired_difference(
    rows_a, rows_b, measure: str = "wer", *, level: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of (rate of a) - (rate of b) over the same clips, resampled together; below 0, a is better.

    Parameters
    ----------
    rows_a, rows_b : as `rows` in `interval`, over exactly the same clips; a greedy setting may have fewer seeds.
    measure, level, n_resamples, seed : as in `interval`.

    Raises
    ------
    DataError : as `interval`, and if the clips differ.
    """
    clips_a, above_a, below_a = _per_clip(_records(rows_a), measure)
    clips_b, above_b, below_b = _per_clip(_records(rows_b), measure)
    if clips_a != clips_b:
        odd = sorted(set(clips_a) ^ set(clips_b))
        raise DataError(
            f"paired intervals need the same clips on both sides: {len(odd)} are on one side only, for "
            f"instance {odd[0]!r}; pick the clips both have, or finish the sweep"
        )
    return _bootstrap(
        measure,
        np.stack([above_a, above_b]),
        np.stack([below_a, below_b]),
        lambda rates: rates[0] - rates[1],
        level,
        n_resamples,
        seed,
    )


def _records(rows) -> list[dict]:
    """A list of dicts from a list, a `Table` or a pandas table."""
    if hasattr(rows, "rows"):
        rows = rows.rows
    elif hasattr(rows, "to_dict"):
        rows = rows.to_dict("records")
    return list(rows)


def _per_clip(rows: Iterable[Row], measure: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Clip names in order, and the numerator and denominator of each clip, summed over its seeds."""
    if measure not in MEASURES:
        raise DataError(f"measure {measure!r}: expected one of {', '.join(MEASURES)}")
    numerator, denominator = MEASURES[measure]
    sums, runs = defaultdict(lambda: [0, 0]), Counter()
    for row in rows:
        if row.get("error"):
            raise DataError(f"clip {row['clip']!r} failed ({row['error']}): leave it out of every setting compared")
        sums[row["clip"]][0] += numerator(row)
        sums[row["clip"]][1] += denominator(row)
        runs[row["clip"], row.get("seed")] += 1
    _check_balance(runs, sums)
    clips = sorted(sums)
    table = np.array([sums[c] for c in clips], dtype=np.float64)
    return clips, table[:, 0], table[:, 1]


def _check_balance(runs: Counter, sums: Mapping) -> None:
    """Every clip once per seed, the same seeds for all: else a rate would silently weigh clips unequally."""
    if len(sums) < 2:
        raise DataError(f"an interval over clips needs at least two of them, found {len(sums)}")
    twice = [key for key, n in runs.items() if n > 1]
    if twice:
        raise DataError(
            f"clip {twice[0][0]!r} occurs {runs[twice[0]]} times with seed {twice[0][1]}: these are rows of "
            "several settings or faults; `pick` one"
        )
    seeds = defaultdict(set)
    for clip, seed in runs:
        seeds[clip].add(seed)
    if len({frozenset(s) for s in seeds.values()}) > 1:
        raise DataError("the clips were not all run with the same seeds: finish the sweep, or pick seeds that all have")


def _bootstrap(
    measure: str,
    above: np.ndarray,
    below: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    level: float,
    n_resamples: int,
    seed: int,
) -> Interval:
    """above, below (settings, clips): one resample of clips serves all settings, which is what pairs them."""
    if not 0 < level < 1 or n_resamples < 100:
        raise DataError(f"expected 0 < level < 1 and at least 100 resamples, found {level} and {n_resamples}")
    if (below.sum(axis=1) == 0).any():
        raise DataError(f"{measure} is not defined: nothing was expected in any clip")
    n, rng, found = above.shape[1], np.random.default_rng(seed), []
    for start in range(0, n_resamples, BLOCK):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(BLOCK, n_resamples - start))  # (draws, clips)
        under = below @ counts.T
        usable = (under > 0).all(axis=0)  # a resample of wordless clips alone has no rate
        found.append(statistic((above @ counts.T)[:, usable] / under[:, usable]))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    estimate = statistic(above.sum(axis=1) / below.sum(axis=1))
    return Interval(measure, float(estimate), float(low), float(high), level, n, n_resamples)
