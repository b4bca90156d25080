"""Quantiles against values of SciPy 1.17 (`beta.ppf`, `t.ppf`)."""

import pytest

from stepaudio.evaluation.quantiles import beta_quantile, exact_interval, incomplete_beta, student_quantile


@pytest.mark.parametrize(
    "q, a, b, expected",
    [
        (0.025, 3, 46, 0.01307924441),
        (0.975, 0.4, 12.7, 0.1641508171),
        (0.5, 500, 2500, 0.1665925874),
        (0.975, 1, 40, 0.08809730288),
        (0.9, 8000, 20, 0.9981881385),
        (0.3, 1, 1, 0.3),
    ],
)
def test_beta(q, a, b, expected):
    x = beta_quantile(q, a, b)
    assert x == pytest.approx(expected, rel=1e-9) and incomplete_beta(a, b, x) == pytest.approx(q, abs=1e-9)


@pytest.mark.parametrize(
    "q, freedom, expected",
    [
        (0.975, 1, 12.70620474),
        (0.975, 15, 2.131449546),
        (0.95, 2.5, 2.558218614),
        (0.025, 47, -2.011740514),
        (0.995, 499, 2.585717683),
    ],
)
def test_student(q, freedom, expected):
    assert student_quantile(q, freedom) == pytest.approx(expected, rel=1e-9)


def test_no_event_in_n_trials_excludes_what_would_have_shown():
    """(1 - p)^n = 0.025 at the upper end."""
    low, high = exact_interval(0, 60)
    assert low == 0 and (1 - high) ** 60 == pytest.approx(0.025)
    assert exact_interval(60, 60) == pytest.approx((1 - high, 1.0))
