"""Compare contenders on the lines that they were tested on: intervals, paired tests, the rule, and the threshold.

Lines of one cluster (a customer, or the same prompt) may be right or wrong together, so intervals and tests count
clusters: the effective sample size is that of Korn and Graubard (1998), and a paired test flips the sign of whole
clusters; with one line in each it is McNemar's exact test. They hold for the trained models, and leave out how much
another training would differ (Bouckaert and Frank 2004).

Shapes: n tested lines, L labels; right bool (n,); clusters int64 (n,).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tinygpt.base.intervals import Z, lowest_threshold, wilson
from tinygpt.examine.eval.classify import confusion_matrix, rates

CHANCE = 0.05  # one-sided p-value below which a difference is more than chance
NOISE = 0.02  # at most this probability that random labels get a model
DRAWS = 10_000  # of a permutation test
TARGET = 0.95  # accuracy above the threshold
LEVELS = 20  # thresholds that are tried: those above which 5, 10, ..., 100% of the lines are


def accuracy_interval(right: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Compute the 95% interval of the accuracy. With few clusters that are wholly right or wrong it is too narrow: at
    an accuracy of 97%, 10 clusters and a correlation of 0.3 within them, 80% of such intervals hold it."""
    share = float(right.mean()) if len(right) else 0.0
    return interval(share, (right - share) / max(1, len(right)), clusters)


def macro_f1_interval(truth: np.ndarray, predicted: np.ndarray, clusters: np.ndarray, L: int) -> tuple[float, float]:
    """Compute the 95% interval of macro-F1."""
    confusion = confusion_matrix(truth, predicted, L)
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = rates(confusion)["f1"]
    influence = (2.0 * (truth == predicted) - f1[truth]) / occurs[truth] - f1[predicted] / occurs[predicted]
    return interval(float(f1[occurs > 0].mean()), influence / np.count_nonzero(occurs), clusters)


def interval(share: float, influence: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Compute the 95% interval of a share: Wilson's, for the effective number of independent lines.

    influence: of each line on the share, float64 (n,), with the sum 0: the share's derivative by the line's weight.
    """
    n = len(influence)
    G, variance = clustered(influence, clusters)
    if G < 2:
        return wilson(share, n) if n == G else (0.0, 1.0)
    effective = float(G)  # of a share of 0 or 1, which says nothing about the correlation within clusters
    if 0 < share < 1:
        effective = min(n, share * (1 - share) / variance) if variance else n
    return wilson(share, effective if n == G else effective * (Z / student(G)) ** 2)


def clustered(influence: np.ndarray, clusters: np.ndarray) -> tuple[int, float]:
    """Return the number of clusters, and the variance of an estimate from the influence of its lines."""
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], influence)
    return len(sums), float((sums**2).sum())


def student(G: int) -> float:
    """Return the 97.5% quantile of Student's t distribution, for a variance that was estimated from G clusters."""
    from scipy.stats import t

    return float(t.ppf(0.975, G - 1)) * math.sqrt(G / (G - 1))


def p_value(first: np.ndarray, second: np.ndarray, clusters: np.ndarray) -> float:
    """Compute the one-sided p-value: how often chance makes `first` right more often than `second` by as much, on the
    same lines, if both are equally good."""
    from scipy.stats import binomtest

    difference = first.astype(int) - second.astype(int)
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], difference)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    if (np.abs(sums) == 1).all():
        return float(binomtest(int((sums > 0).sum()), len(sums), alternative="greater").pvalue)
    signs = np.random.default_rng(1).choice((-1, 1), (DRAWS, len(sums))) if len(sums) < 2000 else None
    if signs is None:  # the normal approximation of the same test
        return math.erfc(float(sums.sum()) / math.sqrt(2 * float((sums**2).sum()))) / 2
    extreme = signs @ sums >= int(sums.sum())
    return float((1 + extreme.sum()) / (1 + DRAWS))


class Comparison(NamedTuple):
    """Another contender against one, on the tested lines."""

    name: str  # of the other
    gain: float  # accuracy of the other minus that of the one
    p: float

    @property
    def beats(self) -> bool:
        return self.gain > 0 and self.p < CHANCE


def compare(right: Mapping[str, np.ndarray], clusters: np.ndarray, name: str) -> list[Comparison]:
    """Compare all other contenders with the contender `name`. right: by name, bool (n,)."""
    return [
        Comparison(other, float(answers.mean() - right[name].mean()), p_value(answers, right[name], clusters))
        for other, answers in right.items()
        if other != name
    ]


class Advice(NamedTuple):
    name: str  # of the contender
    why: str


def advise(right: Mapping[str, np.ndarray], clusters: np.ndarray, majority: str) -> Advice:
    """Choose the simplest contender that no other beats by more than chance, among those that beat the majority; the
    majority, if none does.

    tested: by name, the simplest first. majority: the name of the one that always gives the most common response."""
    beaten: dict[str, list[Comparison]] = {}
    candidates = list(right)
    for name in right:
        if name not in candidates:
            continue
        comparisons = compare(right, clusters, name)
        better = [one for one in comparisons if one.beats]
        if name == majority:  # one of several contenders may be ahead by chance (Bonferroni)
            better = [one for one in better if one.p < NOISE / len(comparisons)]
            candidates = [one.name for one in better]
        if not better:
            why = reason(name, beaten, comparisons)
            groups = len(np.unique(clusters))
            few = name == majority and 0.5**groups >= NOISE / max(1, len(comparisons))  # of the signs of a paired test
            if few:
                why += f"; with only {groups} groups no difference can be significant"
            return Advice(name, why)
        beaten[name] = better
    name = max(candidates, key=lambda name: float(right[name].mean()))
    return Advice(name, "each contender is beaten by another; this one has the highest accuracy")


def shown_p(p: float) -> str:
    """Format a p-value; that of a permutation test is never smaller than 1 / DRAWS."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def reason(name: str, beaten: Mapping[str, Sequence[Comparison]], comparisons: Sequence[Comparison]) -> str:
    """Say which simpler contenders are beaten, and how the others compare with the chosen one."""
    parts = []
    for simpler, better in beaten.items():
        best = max(better, key=lambda one: (one.name == name, one.gain))
        p = shown_p(best.p)
        parts.append(f"{best.name} is right {100 * best.gain:.1f} points more often than {simpler} ({p})")
    close = max(comparisons, key=lambda one: one.gain, default=None)
    if close is not None and close.gain > 0:
        gain = 100 * close.gain
        chance = f"which can be chance ({shown_p(close.p)})"
        parts.append(f"{close.name} is right {gain:.1f} points more often than {name}, {chance}")
    elif comparisons:
        parts.append("no other contender is right more often")
    return "; ".join(parts)


# ---- the threshold ----------------------------------------------------------------------------------------------


def threshold(confidence: np.ndarray, right: np.ndarray, clusters: np.ndarray) -> float | None:
    """Find the lowest confidence at which the lower end of the interval of the accuracy, of the lines that are as
    confident, is at least TARGET; None if there is none.

    Some of the 20 hold by chance. In simulations of `sure` with 200 to 2000 independent lines, calibrated or not, 0 to
    2% of the data sets got a threshold above which the accuracy is below TARGET (but above 91%); with 10 groups that
    differ much, 5%. With 200 lines few get any, since it takes 73 answers that are all right."""
    if not len(confidence):
        return None
    levels = np.quantile(confidence, np.arange(LEVELS) / LEVELS, method="higher")
    return lowest_threshold(
        confidence, lambda sure: accuracy_interval(right[sure], clusters[sure])[0] >= TARGET, levels
    )


class Sure(NamedTuple):
    """A threshold, and what it does on lines that did not choose it."""

    threshold: float | None
    answered: int  # lines
    right: int
    total: int
    interval: tuple[float, float]  # of the accuracy on the answered lines

    @property
    def keeps(self) -> bool:
        return bool(self.answered) and self.right / self.answered >= TARGET


def sure(confidence: np.ndarray, right: np.ndarray, clusters: np.ndarray, parts: np.ndarray) -> Sure:
    """Choose a threshold on all tested lines; and for each part of them on the others, to count what it does there.

    parts: the part of each line, int64 (n,), each of whole clusters. The threshold is None, too, if the lines that did
    not choose it are right less often than TARGET.
    """
    answered = np.zeros(len(right), dtype=bool)
    for part in np.unique(parts):
        inside = parts == part
        chosen = threshold(confidence[~inside], right[~inside], clusters[~inside])
        if chosen is not None:
            answered |= inside & (confidence >= chosen)
    interval = accuracy_interval(right[answered], clusters[answered])
    result = Sure(None, int(answered.sum()), int(right[answered].sum()), len(right), interval)
    return result._replace(threshold=threshold(confidence, right, clusters)) if result.keeps else result


# ---- learning curve ---------------------------------------------------------------------------------------------


def gain_interval(first: np.ndarray, second: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Compute the 95% interval of the mean of second - first, paired: Student's t, with a line more that is gained and
    one that is lost (Bonett and Price 2012), so that the interval has a width if no line differs."""
    difference = np.append(second.astype(float) - first, [1, -1])
    clusters = np.append(clusters, clusters.max() + np.array([1, 2]))
    mean = float(difference.mean())
    G, variance = clustered((difference - mean) / len(difference), clusters)
    half = student(G) * math.sqrt(variance)
    return mean - half, mean + half
