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

from tinygpt.evaluate.classify import confusion_matrix, quality
from tinygpt.evaluate.share import Z, wilson

CHANCE = 0.05  # one-sided p-value below which a difference is more than chance
DRAWS = 10_000  # of a permutation test
RESAMPLES = 1000  # of a bootstrap
TARGET = 0.95  # accuracy above the threshold
LEVELS = 20  # thresholds that are tried: those above which 5, 10, ..., 100 % of the lines are


def accuracy_interval(right: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of the accuracy: Wilson's, for the effective number of independent lines."""
    from scipy.stats import t

    n, share = len(right), float(right.mean()) if len(right) else 0.0
    _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    G = len(sizes)
    if n == G or n == 0:
        return wilson(share, n)
    if G == 1:
        return 0.0, 1.0
    if 0 < share < 1:
        sums = np.bincount(index, right - share)
        variance = G / (G - 1) * float((sums**2).sum()) / n**2
        effective = min(n, share * (1 - share) / variance) if variance else n
    else:
        effective = G  # the variance within clusters is unknown
    return wilson(share, effective * (Z / float(t.ppf(0.975, G - 1))) ** 2)


def macro_f1_interval(truth: np.ndarray, predicted: np.ndarray, clusters: np.ndarray, L: int) -> tuple[float, float]:
    """Compute the 95 % interval of macro-F1: percentiles of a bootstrap over clusters."""
    generator, (_, index) = np.random.default_rng(1), np.unique(clusters, return_inverse=True)
    G, cell, values = int(index.max()) + 1, truth * L + predicted, []
    for _ in range(RESAMPLES):
        weights = np.bincount(generator.integers(0, G, G), minlength=G)[index]
        confusion = np.bincount(cell, weights, L * L).reshape(L, L)
        values.append(quality(confusion)["macro_f1"])
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


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


class Tested(NamedTuple):
    """The answers of a contender on the lines that it was tested on."""

    lines: np.ndarray  # indices of the lines, int64 (n,)
    probabilities: np.ndarray  # float64 (n, L)

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)


class Comparison(NamedTuple):
    """Another contender against one, on the lines that both were tested on."""

    name: str  # of the other
    lines: int
    gain: float  # accuracy of the other minus that of the one
    p: float

    @property
    def beats(self) -> bool:
        return self.gain > 0 and self.p < CHANCE


def compare(tested: Mapping[str, Tested], truth: np.ndarray, clusters: np.ndarray, name: str) -> list[Comparison]:
    """Compare all other contenders with the contender `name`."""
    comparisons = []
    for other, results in tested.items():
        lines, mine, theirs = np.intersect1d(tested[name].lines, results.lines, return_indices=True)
        if other == name or not len(lines):
            continue
        first = tested[name].predicted[mine] == truth[lines]
        second = results.predicted[theirs] == truth[lines]
        gain, p = float(second.mean() - first.mean()), p_value(second, first, clusters[lines])
        comparisons.append(Comparison(other, len(lines), gain, p))
    return comparisons


class Advice(NamedTuple):
    name: str  # of the contender
    why: str
    beaten_by: dict[str, list[Comparison]]  # for each simpler contender, what beats it


def advise(tested: Mapping[str, Tested], truth: np.ndarray, clusters: np.ndarray, majority: str) -> Advice:
    """Choose the simplest contender that no other beats by more than chance; the majority only if all are as bad.

    tested: by name, the simplest first. majority: the name of the contender that always gives the commonest label."""
    beaten: dict[str, list[Comparison]] = {}
    for name in tested:
        comparisons = compare(tested, truth, clusters, name)
        better = [one for one in comparisons if one.beats]
        if name == majority and not better:
            better = [one for one in comparisons if one.gain > 0]
            if better:
                beaten[name] = better
                continue
        if not better:
            return Advice(name, reason(name, beaten, comparisons), beaten)
        beaten[name] = better
    name = max(tested, key=lambda name: float((tested[name].predicted == truth[tested[name].lines]).mean()))
    return Advice(name, "each contender is beaten by another; this one has the highest accuracy", beaten)


def reason(name: str, beaten: Mapping[str, Sequence[Comparison]], comparisons: Sequence[Comparison]) -> str:
    """Say which simpler contenders are beaten, and how the others compare with the chosen one."""
    parts = []
    for simpler, better in beaten.items():
        best = max(better, key=lambda one: one.gain)
        chance = f"p = {best.p:.2g}" if best.beats else f"not more than chance, p = {best.p:.2g}"
        parts.append(f"{best.name} is right {100 * best.gain:.1f} points more often than {simpler} ({chance})")
    close = max(comparisons, key=lambda one: one.gain, default=None)
    if close is not None and close.gain > 0:
        parts.append(
            f"{close.name} is {100 * close.gain:.1f} points better than it, which can be chance (p = {close.p:.2g})"
        )
    elif comparisons:
        parts.append("no other contender is right more often")
    return "; ".join(parts)


# ---- the threshold ----------------------------------------------------------------------------------------------


def threshold(confidence: np.ndarray, right: np.ndarray, clusters: np.ndarray) -> float | None:
    """Find the lowest confidence at which the lower end of the interval of the accuracy, of the lines that are as
    confident, is at least TARGET; None if there is none."""
    levels = np.unique(np.quantile(confidence, np.arange(LEVELS) / LEVELS, method="higher"))
    for level in levels:
        sure = confidence >= level
        if accuracy_interval(right[sure], clusters[sure])[0] >= TARGET:
            return float(level)
    return None


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


# ---- learning curve, errors -------------------------------------------------------------------------------------


def gain_interval(first: np.ndarray, second: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of the mean of second - first (paired), by a bootstrap over clusters."""
    _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    sums, generator = np.bincount(index, second.astype(float) - first), np.random.default_rng(1)
    drawn = generator.integers(0, len(sizes), (RESAMPLES, len(sizes))) if len(sizes) <= 5000 else None
    if drawn is None:
        mean, error = sums.sum() / sizes.sum(), float(np.std(sums)) * math.sqrt(len(sums)) / sizes.sum()
        return mean - Z * error, mean + Z * error
    low, high = np.percentile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (2.5, 97.5))
    return float(low), float(high)


def confident_errors(tested: Tested, truth: np.ndarray, count: int = 10) -> list[int]:
    """Return the positions in `tested` of the wrong answers with the highest probability, the highest first."""
    wrong = np.flatnonzero(tested.predicted != truth[tested.lines])
    confidence = tested.probabilities.max(axis=1)
    return sorted(wrong.tolist(), key=lambda position: -confidence[position])[:count]


def per_label(tested: Tested, truth: np.ndarray, L: int) -> np.ndarray:
    """Count tested lines by label and answer: the confusion matrix, int64 (L, L)."""
    return confusion_matrix(truth[tested.lines], tested.predicted, L)
