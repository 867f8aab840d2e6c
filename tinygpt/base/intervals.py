"""The 95% confidence interval of a share of n cases, and the threshold of a confidence.

It is the score interval of Wilson (1927), which also holds for few cases and for shares of 0 and 1, where the standard
error sqrt(p (1 - p) / n) is 0 as if nothing were uncertain (Brown, Cai and DasGupta 2001).

    percent(1.0, 5)          # "100.0% (57 to 100)"
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Z = 1.959964  # 97.5% of a normal distribution lie below
INTERVALS = "in parentheses: 95% confidence intervals (Wilson)"


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95% interval of a share of n cases; 0 to 1 if n = 0. n may be an effective number of cases."""
    if not n:
        return 0.0, 1.0
    middle = share + Z * Z / (2 * n)
    half = Z * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - half) / (1 + Z * Z / n)), min(1.0, (middle + half) / (1 + Z * Z / n))


def percent(share: float, n: int) -> str:
    """Format a share of n cases and its interval in percent, with tenths if the interval is at most ten points wide."""
    low, high = (100 * bound for bound in wilson(share, n))
    form = ".0f" if high - low > 10 else ".1f"
    return f"{100 * share:5.1f}% ({low:{form}} to {high:{form}})"


def by_group(groups: Sequence[str], passed: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Count the cases n of each group, and the share that passes each check. `passed`: bool (cases,) each."""
    by_name = {}
    names = np.array(groups)
    for name in sorted(set(groups)):
        shares = {check: float(ok[names == name].mean()) for check, ok in passed.items()}
        by_name[name] = {"n": groups.count(name), **shares}
    return by_name


def intervals(shares: Mapping[str, Any], cases: Mapping[str, int]) -> dict[str, list[float] | None]:
    """Compute the interval of each share, as NAME_interval, for JSON. `cases`: n by name. None if the share is None."""
    bounds = {name: None if shares[name] is None else [*wilson(shares[name], n)] for name, n in cases.items()}
    return {f"{name}_interval": both for name, both in bounds.items()}


def lowest_threshold(
    confidence: np.ndarray, holds: Callable[[np.ndarray], bool], levels: np.ndarray | None = None
) -> float | None:
    """Return the lowest confidence at which `holds` is true of the answers with at least this confidence, bool (n,);
    None if there is none. confidence: float64 (n,). levels: those that are tried; by default each confidence."""
    tried = np.unique(confidence if levels is None else levels)
    return next((float(level) for level in tried if holds(confidence >= level)), None)
