"""Quantiles of the beta and of Student's distribution, and the exact interval of a binomial rate, without SciPy.

The incomplete beta function is computed by its continued fraction (NIST Handbook of Mathematical Functions, 8.17.22),
its inverse by Newton's method between bounds.
"""

from __future__ import annotations

import math
from functools import lru_cache

TINY = 1e-300  # keeps a step of the fraction from dividing by zero


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), for a, b > 0 and 0 <= x <= 1."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # beyond it the fraction converges slowly, and its mirror image fast
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    value = above = 1.0  # the fraction so far, and the two ratios of its recurrence
    below = 0.0
    for n in range(1, 10_000):
        m = n // 2
        if n % 2 == 0:
            term = m * (b - m) * x / ((a + n - 1) * (a + n))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + n - 1) * (a + n))
        below = 1 / (1 + term * below or TINY)
        above = 1 + term / above or TINY
        value *= above * below
        if abs(above * below - 1) < 1e-14:
            break
    return math.exp(log_front) / (a * value)


@lru_cache(maxsize=4096)
def beta_quantile(q: float, a: float, b: float) -> float:
    """The x in [0, 1] with I_x(a, b) = q, for 0 <= q <= 1 and a, b > 0."""
    low, high, x = 0.0, 1.0, a / (a + b)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    while high - low > 1e-14 + 1e-12 * low:
        excess = incomplete_beta(a, b, x) - q
        low, high = (low, x) if excess > 0 else (x, high)
        slope = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - log_beta)
        step = excess / slope if slope else math.inf
        if abs(step) <= 1e-13 * x:
            return x
        x = x - step if low < x - step < high else (low + high) / 2  # Newton's step, or halves where it leads away
    return (low + high) / 2


def student_quantile(q: float, freedom: float) -> float:
    """Quantile of Student's t with `freedom` > 0 degrees of freedom, for 0 < q < 1."""
    if q < 0.5:
        return -student_quantile(1 - q, freedom)
    x = beta_quantile(2 * (1 - q), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


def exact_interval(events: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Clopper & Pearson's interval of a rate: (low, high), each in [0, 1].

    Parameters
    ----------
    events, trials : 0 <= events <= trials and trials > 0; they need not be whole (Korn & Graubard 1998 use effective
        numbers).
    level : its coverage is at least this, 0 < level < 1.
    """
    tail = (1 - level) / 2
    low = beta_quantile(tail, events, trials - events + 1) if events > 0 else 0.0
    high = beta_quantile(1 - tail, events + 1, trials - events) if events < trials else 1.0
    return low, high
