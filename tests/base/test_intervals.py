"""Intervals of shares: equal to those of scipy, and never empty, if all of a few cases are right."""

import numpy as np
import pytest
from scipy.stats import binomtest

from tinygpt.base.intervals import intervals, lowest_threshold, percent, wilson


def scipys(hits: int, n: int) -> tuple[float, float]:
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return found.low, found.high


@pytest.mark.parametrize("n", [1, 5, 40, 10_000])
def test_the_interval_is_that_of_scipy(n: int) -> None:
    for hits in {*range(min(n, 20) + 1), n // 2, n - 1, n}:
        assert wilson(hits / n, n) == pytest.approx(scipys(hits, n), abs=1e-6)


def test_cases_by_hand() -> None:
    """5 of 5: the lower bound is n / (n + z^2) = 5 / 8.84; none of 5 is its mirror image."""
    assert percent(1.0, 5) == "100.0% (57 to 100)" and percent(0.0, 5) == "  0.0% (0 to 43)"
    assert percent(0.94, 1000) == " 94.0% (92.4 to 95.3)" and percent(0.998, 5000) == " 99.8% (99.6 to 99.9)"
    assert wilson(0.0, 0) == (0, 1)
    assert intervals({"a": 1.0, "b": None}, {"a": 5, "b": 0}) == {"a_interval": [*wilson(1, 5)], "b_interval": None}


def test_the_lowest_threshold() -> None:
    """By hand: of the answers from 0.6 on 2 of 3 are right, from 0.8 on all."""
    confidence, right = np.array([0.9, 0.6, 0.8, 0.5]), np.array([1, 0, 1, 0])
    assert lowest_threshold(confidence, lambda sure: right[sure].mean() > 0.6) == 0.6
    assert lowest_threshold(confidence, lambda sure: right[sure].mean() == 1) == 0.8
    assert lowest_threshold(confidence, lambda sure: right[sure].mean() > 0.6, np.array([0.7])) == 0.7
    assert lowest_threshold(confidence, lambda sure: sure.sum() > 4) is None
