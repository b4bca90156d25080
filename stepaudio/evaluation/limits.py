"""Limits of a rate over clustered clips, of sums and differences of rates, and of what loops add.

How `stepaudio.evaluation.intervals` finds its ends; the methods and their sources are named there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .quantiles import exact_interval, student_quantile

HALF = 0.5  # error rates above it are no longer like a share of words: insertions count, and the tails are even
BAD_CLIP = 2  # times the errors of an erring clip: a bad one that a small sample may have missed
PRIOR_CLIPS = 2  # changed clips that a difference is given beforehand, as bad as clips err
Part = tuple[float, float, float]  # value, low, high


def rate_limits(
    events: np.ndarray, exposure: np.ndarray, level: float, clump: float | None = None
) -> tuple[float, float]:
    """Limits of the rate events / exposure, both (clips,).

    clump: events of one more clip, which enters the variance, so that what few clips had does not look certain; by
    default BAD_CLIP times the mean of the clips that had any.
    """
    n, whole = len(events), exposure.sum()
    rate = events.sum() / whole
    if clump is None and (exposure == 1).all() and np.isin(events, (0, 1)).all():
        return exact_interval(events.sum(), n, level)
    if clump is None:
        clump = BAD_CLIP * float(events[events > 0].mean()) if events.any() else 0.0
    t = student_quantile((1 + level) / 2, n - 1)
    deviations = events - rate * exposure
    variance = (n / (n - 1) * (deviations**2).sum() + clump**2) / whole**2
    if rate > HALF:
        half = t * math.sqrt(variance)
        return max(0.0, rate - half), rate + half
    seen = max(rate, min(clump / whole, HALF))
    if seen == 0:  # as though the words of a clip erred together
        effective = whole**2 / (exposure**2).sum()
    else:
        shrunk = (NormalDist().inv_cdf((1 + level) / 2) / t) ** 2  # the variance is an estimate from n clips
        effective = min(seen * (1 - seen) / variance, whole) * shrunk
    return exact_interval(rate * effective, effective, level)


def share_limits(events: np.ndarray, exposure: np.ndarray, level: float) -> tuple[float, float]:
    """As `rate_limits` of events that are some of the exposure, such as runs that loop among all; never above 1.

    Above a half they are those of the rest, turned round: a share of 99 in 100 is as well known as one of 1 in 100.
    """
    if events.sum() <= exposure.sum() / 2:
        return rate_limits(events, exposure, level)
    low, high = rate_limits(exposure - events, exposure, level)
    return 1 - high, 1 - low


def combine(parts: Iterable[Part], minus: Iterable[Part] = (), correlation: float = 0.0) -> tuple[float, float]:
    """Limits of a sum of parts less the sum of others (MOVER).

    correlation: between the first of the parts and the first of the others.
    """
    parts, minus = list(parts), list(minus)
    value = sum(v for v, *_ in parts) - sum(v for v, *_ in minus)
    down = [v - low for v, low, _ in parts] + [high - v for v, _, high in minus]
    up = [high - v for v, _, high in parts] + [v - low for v, low, _ in minus]
    cross = len(parts)  # index of the first of the others

    def spread(ends: list[float]) -> float:
        square = sum(end**2 for end in ends)
        if minus and correlation:
            square -= 2 * correlation * ends[0] * ends[cross]
        return math.sqrt(max(square, 0.0))

    return value - spread(down), value + spread(up)


@dataclass(frozen=True)
class LoopPart:
    """What runs that loop add to the total error rate: their share of runs x the errors of one / words of a run."""

    value: float
    low: float
    high: float

    @classmethod
    def of(
        cls, looped: Sequence[Sequence[float]], runs: Sequence[int], exposure: np.ndarray, level: float, other=()
    ) -> LoopPart:
        """looped: errors of the looping runs of each clip. other: sizes to go by where fewer than two clips looped."""
        events = np.array([len(found) for found in looped], dtype=np.float64)
        per_run = exposure.sum() / sum(runs)
        share, (low, high) = events.sum() / sum(runs), share_limits(events, np.array(runs, dtype=np.float64), level)
        sizes = [float(np.mean(found)) for found in looped if found]
        value = share * float(np.mean([e for found in looped for e in found] or [0.0])) / per_run
        known = sizes if len(sizes) >= 2 else [*sizes, *other]
        if len(known) < 2:
            return cls(value, 0.0, math.inf)
        logs = np.log1p(known)
        spread = student_quantile((1 + level) / 2, len(known) - 1) * logs.std(ddof=1) / math.sqrt(len(known))
        mean = float(np.mean(known)) / per_run
        if not sizes:
            return cls(0.0, 0.0, high * mean * math.exp(spread))
        down, up = math.hypot(math.log(share / low), spread), math.hypot(math.log(high / share), spread)
        return cls(value, value * math.exp(-down), value * math.exp(up))


def change_limits(a: np.ndarray, b: np.ndarray, exposure: np.ndarray, level: float) -> tuple[float, float]:
    """Limits of the difference of two rates from what was gained and what was lost, clip by clip."""
    gained, lost, whole = np.maximum(a - b, 0), np.maximum(b - a, 0), exposure.sum()
    # What one more changed clip might bring: as the changes seen in that direction, drawn towards all changes, and
    # these towards what an erring clip has.
    erring = np.concatenate([a, b])
    prior = float(erring[erring > 0].mean()) if erring.any() else whole / len(exposure)
    prior = _drawn_mean(gained + lost, prior)
    parts = [
        (side.sum() / whole, *rate_limits(side, exposure, level, _drawn_mean(side, prior))) for side in (gained, lost)
    ]
    residuals = [side - side.sum() / whole * exposure for side in (gained, lost)]
    norms = math.sqrt((residuals[0] ** 2).sum() * (residuals[1] ** 2).sum())
    correlation = float((residuals[0] * residuals[1]).sum() / norms) if norms else 0.0
    return combine(parts[:1], parts[1:], correlation)


def _drawn_mean(sizes: np.ndarray, prior: float) -> float:
    """Mean of the sizes that are not zero, as if PRIOR_CLIPS more of size `prior` had been seen."""
    return float((sizes.sum() + PRIOR_CLIPS * prior) / (np.count_nonzero(sizes) + PRIOR_CLIPS))
