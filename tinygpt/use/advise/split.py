"""Divide examples into lines to train on and lines to test on, as the model will be used.

At random, a line may come from the same customer, and from the same month, as a training line. By group, no group is on
both sides: how good is the model for customers that it has not seen? By time, the newest lines are tested: how good is
it next month? At random, lines with the same prompt (but for case, spacing and punctuation) are on the same side.
"""

import contextlib
import re
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted
from tinygpt.data.pairs import normalised

FOLDS = 5
CROSS_VALIDATED = 3000  # lines up to which each is tested once; of more, a fifth is tested
TESTED = 0.2  # share of the lines, without cross-validation
FEWEST_GROUPS = 10  # with fewer, an interval says little
DATES = ("%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%y", "%Y-%m")  # besides ISO 8601
NUMBERS = {  # that a sheet makes of dates, and that are not in the order of time
    "a date without a year": r"(0?[1-9]|[12]\d|3[01])\.(0?[1-9]|1[0-2])",
    "a date that begins with the day": r"(0?[1-9]|[12]\d|3[01])(0[1-9]|1[0-2])(19|20)\d\d",
}


class Split(NamedTuple):
    """The folds: indices of training lines and of tested lines, int64 each. No line is tested twice."""

    how: str  # for a person
    folds: list[tuple[np.ndarray, np.ndarray]]
    clusters: np.ndarray  # int64 (n,): lines of one cluster may be right or wrong together
    order: np.ndarray | None  # float64 (n,): time, if the split is by time
    warning: str = ""

    @property
    def tested(self) -> np.ndarray:
        """Return the indices of all tested lines, fold after fold, int64."""
        return np.concatenate([test for _, test in self.folds])

    def part(self, indices: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Choose about this share of some lines, as the test lines were chosen: the newest ones, or whole clusters.

        Returns bool (len(indices),)."""
        if self.order is not None:
            times = self.order[indices]
            return times >= np.quantile(times, 1 - share, method="higher")
        clusters = self.clusters[indices]
        names, sizes = np.unique(clusters, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(names))
        total = np.cumsum(sizes[order])
        return np.isin(clusters, names[order[total <= max(share * len(clusters), total[0])]])


def split(prompts: Sequence[str], truth: np.ndarray, by: Sequence[str] | None, times: np.ndarray | None) -> Split:
    """Divide lines into folds. truth: indices of labels, int64 (n,). by: the group of each line; times: float64 (n,).

    Errors: TinyGPTError if there are too few groups, or all times are equal.
    """
    same = clusters_of([normalised(prompt) for prompt in prompts])
    if not same.any():
        raise TinyGPTError("all prompts are the same, so none can be held out", "add examples of other prompts")
    if times is not None:
        return by_time(times, same)
    clusters = same
    warning = ""
    if by is not None:
        clusters = clusters_of(by)
        count = int(clusters.max()) + 1
        if count < 2:
            raise TinyGPTError("all lines are in one group, so none can be held out", "another column for --by")
        if count < FEWEST_GROUPS:
            warning = f"only {count} groups: the figures depend on which of them are alike"
    folds = stratified(truth, clusters)
    total = len(truth)
    if total > CROSS_VALIDATED:
        folds = folds[:1]
        how = f"at random: {len(folds[0][1]):,} of {total:,} lines are tested, the others train"
    else:
        how = f"at random, in {len(folds)} folds: each line is tested once, by a model trained without its fold"
    if by is not None:
        how = how.replace("at random", "by group (no group is both in training and in the test)")
    return Split(how, folds, clusters, None, warning)


def stratified(truth: np.ndarray, clusters: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make folds of whole clusters, in which the labels are as frequent as in all lines, as far as possible."""
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(FOLDS, int(clusters.max()) + 1, int(np.bincount(truth).max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels with fewer lines than folds
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=1).split(truth, truth, clusters)
        return [(train, test) for train, test in folds if len(train) and len(test)]


def by_time(times: np.ndarray, clusters: np.ndarray) -> Split:
    """Test the newest fifth; lines with the same time are on the same side."""
    first = np.sort(times)[-max(1, round(TESTED * len(times)))]  # the time of the oldest tested line
    if first == times.min():
        first = np.nextafter(first, np.inf)
    train = np.flatnonzero(times < first)
    test = np.flatnonzero(times >= first)
    if not len(test):
        raise TinyGPTError("all lines have the same time, so none is newer than the others", "drop --time")
    how = f"by time: tested on the newest {counted(len(test), 'line')}, trained on the older ones ({len(train):,})"
    few = f"only {counted(len(train), 'line')} to train on, since so many have the newest times"
    return Split(how, [(train, test)], clusters, times, few if len(train) < len(test) else "")


def clusters_of(names: Sequence[str]) -> np.ndarray:
    """Number the distinct names, and return the number of each line, int64 (n,)."""
    return np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1]


def parsed_times(texts: Sequence[str], column: str, locations: Sequence[str]) -> np.ndarray:
    """Convert dates (ISO 8601, or 31.12.2025) or numbers to float64 (n,). Errors: TinyGPTError with its location, also
    for numbers that are all like 31.12 or 31122025, which are dates in another order."""
    for kind, pattern in NUMBERS.items():
        if all(re.fullmatch(pattern, text.strip()) for text in texts):
            raise TinyGPTError(f"{locations[0]}: {column} {texts[0]!r} is {kind}", "write dates as 2025-12-31")
    with contextlib.suppress(ValueError):
        values = np.array([float(text) for text in texts])
        if np.isfinite(values).all():
            return values
    return np.array([parsed_time(text.strip(), column, at) for text, at in zip(texts, locations, strict=True)])


def parsed_time(text: str, column: str, location: str) -> float:
    for parse in (datetime.fromisoformat, *((lambda text, form=form: datetime.strptime(text, form)) for form in DATES)):
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return parse(text).timestamp()
    raise TinyGPTError(f"{location}: {column} {text[:30]!r} is not a date", "write dates as 2025-12-31")
