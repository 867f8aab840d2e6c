"""The precision-recall trade-off of a rare label: which prompts to flag, at which threshold, and at what cost.

A prompt is flagged if its score, P(positive), is at least a threshold. A false alarm is a flagged prompt without the
positive label; a miss, a positive prompt that is not flagged, costs as much as `miss_cost` false alarms. The threshold
is chosen on the validation split, where it costs least. If P(positive) is calibrated, the cheapest threshold is
1 / (1 + miss_cost) (Elkan 2001). The precision-recall curve suits rare labels: it does not count the many negatives
that nobody flags (Saito and Rehmsmeier 2015).

Shapes: scores float64 (n,), positive bool (n,), which is the truth.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.intervals import INTERVALS, intervals, wilson
from tinygpt.base.terminal import counted, cut, escaped, table
from tinygpt.examine.report.drawing import drawing

MISLEADING = 0.9  # accuracy of flagging nothing from which the report warns about accuracy
Scored = tuple[dict[str, np.ndarray], np.ndarray]  # the scores by each classifier, and the truth
NAMES = {"model": "model", "ngram": "n-gram baseline", "nothing": "flag nothing", "everything": "flag everything"}


class Curve(NamedTuple):
    """A precision-recall curve: the results of each distinct score as the threshold, in descending order, (T,) each."""

    thresholds: np.ndarray  # float64
    hits: np.ndarray  # int64: positive prompts that are flagged, at the lowest threshold all of them
    false_alarms: np.ndarray  # int64
    precision: np.ndarray  # float64: share of the flagged prompts that are positive
    recall: np.ndarray  # float64: share of the positive prompts that are flagged


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> Curve:
    """Count hits and false alarms at each threshold, with at least one positive prompt. Prompts with equal scores are
    flagged together."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of each group of equal scores
    hits = np.cumsum(positive[order])[last]
    return Curve(ordered[last], hits, last + 1 - hits, hits / (last + 1), hits / hits[-1])


def average_precision(curve: Curve) -> float:
    """Compute the area below the curve as steps: the mean precision, weighted by the increase in recall."""
    return float((np.diff(curve.recall, prepend=0) * curve.precision).sum())


def cheapest_threshold(curve: Curve, miss_cost: float) -> float:
    """Return the threshold with the lowest cost, the highest of several; infinity if flagging nothing is as cheap."""
    hits = np.append(0, curve.hits)
    false_alarms = np.append(0, curve.false_alarms)
    costs = false_alarms + miss_cost * (hits[-1] - hits)
    return float(np.append(np.inf, curve.thresholds)[costs.argmin()])


def lowest_threshold(confidence: np.ndarray, levels: np.ndarray, holds: Callable[[np.ndarray], bool]) -> float | None:
    """Return the lowest of the levels at which `holds` is true of the mask of the lines with at least this confidence;
    None if there is none."""
    return next((float(level) for level in np.unique(levels) if holds(confidence >= level)), None)


def outcome(scores: np.ndarray, positive: np.ndarray, threshold: float, miss_cost: float) -> dict[str, Any]:
    """Measure a threshold: precision (None if nothing is flagged), recall, accuracy; and per 1,000 prompts the false
    alarms, the misses and the cost, in false alarms; with 95% intervals (None for a recall that is 0 or 1 by
    definition)."""
    flagged = scores >= threshold
    n = len(scores)
    hits = int((flagged & positive).sum())
    false_alarms = int((flagged & ~positive).sum())
    misses = int((~flagged & positive).sum())
    positives = int(positive.sum())
    recall = hits / positives
    precision = hits / (hits + false_alarms) if hits + false_alarms else None
    weights = 1000 * (threshold < math.inf), 1000 * miss_cost * (threshold > 0)  # 0: there can be no such error
    shares = {"precision": precision, "recall": recall if all(weights) else None}
    return {
        "threshold": threshold if math.isfinite(threshold) else None,
        "precision": precision,
        "recall": recall,
        **intervals(shares, {"precision": hits + false_alarms, "recall": positives}),
        "accuracy": 1 - (false_alarms + misses) / n,
        "false_alarms": 1000 * false_alarms / n,
        "misses": 1000 * misses / n,
        "cost": 1000 * (false_alarms + miss_cost * misses) / n,
        "cost_interval": sum_interval(weights, (false_alarms / n, misses / n), n),
    }


def sum_interval(weights: Sequence[float], shares: Sequence[float], n: int) -> list[float]:
    """Compute the 95% interval of a weighted sum of shares of n prompts, as if these were independent (Zou and Donner
    2008). Shares of different outcomes exclude each other, which makes it too wide, if anything."""
    total = float(np.dot(weights, shares))
    bounds = np.array([wilson(share, n) for share in shares])
    below, above = np.linalg.norm((bounds - np.array(shares)[:, None]) * np.array(weights)[:, None], axis=0).tolist()
    return [max(0.0, total - below), total + above]


def make_tradeoff(
    positive: str, split: str, miss_cost: float, val: Scored, evaluated: Scored
) -> tuple[dict[str, Any], dict[str, Curve]]:
    """Choose thresholds on `val`, measure them on `evaluated`: values for JSON, and the curve of each classifier.
    `rows` are outcomes, with the keys classifier (of NAMES) and chosen (on val)."""
    scores, truth = evaluated
    curves = {key: precision_recall(class_scores, truth) for key, class_scores in scores.items()}
    candidates = []
    for key in scores:
        cheapest = cheapest_threshold(precision_recall(val[0][key], val[1]), miss_cost)
        candidates += [(key, 0.5, False), (key, cheapest, True)]
    candidates += [("nothing", math.inf, False), ("everything", 0.0, False)]
    no_scores = np.zeros(len(truth))
    report = {
        "positive": positive,
        "split": split,
        "n": len(truth),
        "positives": int(truth.sum()),
        "miss_cost": miss_cost,
        "average_precision": {key: average_precision(curve) for key, curve in curves.items()},
        "rows": [
            {
                "classifier": key,
                "chosen": chosen,
                **outcome(scores.get(key, no_scores), truth, threshold, miss_cost),
            }
            for key, threshold, chosen in candidates
        ],
    }
    return report, curves


def as_text(report: dict[str, Any]) -> str:
    """Format for the terminal, in 100 columns."""
    name = cut(repr(report["positive"]), 30)
    share = report["positives"] / report["n"]
    lines = [
        f"precision-recall trade-off of {escaped(name)}: {report['positives']:,} of {counted(report['n'], 'prompt')} "
        f"({100 * share:.1f}%)",
        f"per 1,000 prompts, a miss costs {report['miss_cost']:g} false alarms".rjust(100),
    ]
    rows = []
    for row in report["rows"]:
        threshold = "none" if row["threshold"] is None else f"{row['threshold']:.4f}"
        threshold = "" if row["classifier"] not in report["average_precision"] else threshold + " (val)" * row["chosen"]
        shares = (with_interval(row, key) for key in ("precision", "recall"))
        errors = row["false_alarms"], row["misses"], f" {with_interval(row, 'cost', 1, 0)}"
        rows.append((NAMES[row["classifier"]], threshold, *shares, *errors))
    heads = {"": "<16", "threshold": ">13", "precision": ">17", "recall": ">17"}
    lines += table(heads | {"false alarms": ">13.1f", "misses": ">7.1f", "cost": ">17"}, rows)
    areas = (f"{NAMES[key]} {area:.3f}" for key, area in report["average_precision"].items())
    lines += [
        "",
        f"average precision: {', '.join(areas)}; a random ranking {share:.3f}",
        f"  {INTERVALS}",
        "  (val): the threshold that costs least on the validation split; none: flagging nothing costs least",
        f"  if the probabilities were calibrated, the threshold would be 1 / (1 + {report['miss_cost']:g}) = "
        f"{1 / (1 + report['miss_cost']):.4f}",
    ]
    if report["split"] == "val":
        lines.append("  the thresholds were chosen on this same split, so their costs are too low")
    if 1 - share >= MISLEADING:
        half, chosen = (f"{100 * row['accuracy']:.1f}%" for row in report["rows"][:2])
        lines += [
            f"accuracy misleads: flagging nothing is correct for {100 * (1 - share):.1f}% of the prompts and "
            "misses all positives;",
            f"  the model is correct for {half} at threshold 0.5, and for {chosen} at the chosen threshold",
        ]
    return "\n".join(lines)


def with_interval(row: dict[str, Any], name: str, digits: int = 2, bound_digits: int = 2) -> str:
    """Format a value of an `outcome` and its interval, for the table."""
    value = row[name]
    interval = row[f"{name}_interval"]
    if value is None:
        return "-"
    low_high = f" ({interval[0]:.{bound_digits}f}-{interval[1]:.{bound_digits}f})" if interval else ""
    return f"{value:.{digits}f}{low_high}"


def draw_curves(task: str, report: dict[str, Any], curves: dict[str, Curve], path: Path) -> None:
    """Draw precision against recall as a PNG, with the chosen thresholds and 0.5. Errors: TinyGPTError."""
    with drawing(path, "the picture of the precision-recall curve", (620, 430)) as (figure, axes):
        for index, (key, curve) in enumerate(curves.items()):
            color = f"C{index}"
            label = f"{NAMES[key]}, average precision {report['average_precision'][key]:.2f}"
            recall = np.append(0, curve.recall)
            precision = np.append(curve.precision[0], curve.precision)
            axes.step(recall, precision, color=color, label=label)
            for row in report["rows"]:
                if row["classifier"] == key and row["precision"] is not None:
                    fill = color if row["chosen"] else "white"
                    axes.plot(row["recall"], row["precision"], "o", color=color, markerfacecolor=fill, markersize=8)
        share = report["positives"] / report["n"]
        axes.axhline(share, color="gray", linestyle="--", linewidth=1, label="random ranking")
        axes.plot([], [], "o", color="gray", label=f"chosen on val, a miss costs {report['miss_cost']:g} false alarms")
        axes.plot([], [], "o", color="gray", markerfacecolor="white", label="threshold 0.5")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04))
        axes.set_xlabel("recall: share of the positive prompts that are flagged")
        axes.set_ylabel("precision: positive share of flagged prompts")
        figure.legend(loc="outside lower center", ncols=2, fontsize=10)
        name = cut(escaped(report["positive"]), 24)
        title = f"{task}, {report['split']}: {name} is {100 * share:.1f}% of {counted(report['n'], 'prompt')}"
        figure.suptitle(title, fontsize=12)
