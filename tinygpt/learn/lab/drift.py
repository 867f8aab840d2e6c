"""`tinygpt lab drift`: a model trained on last year's merchants meets next year's. What does the change cost, how many
new labels restore the accuracy, and what does the model then forget?

Last year's lines name 25 brands of each category. Next year, half of the lines name one of as many new brands. The tiny
model learns last year's lines, and is then updated with lines about the new brands: fine-tuned on these alone,
fine-tuned with replay of old lines, or trained from scratch on all.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import duration
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, gap, percent
from tinygpt.learn.lab.definition import Lab, accuracy, learn, seeds, stage

BRANDS = 25  # of each category, in each year; coffee has no more in its smallest split
LINES = {"train": 3000, "val": 100, "test": 500}  # of each year; of next year's train, only the first are used
# iterations of a training from scratch
SCRATCH = 250
SCRATCH_QUICK = 150
UPDATE = {50: 40, 200: 60, 1000: 150}  # iterations of an update, by the number of new lines
QUICK = 200  # new labelled lines
REPLAY = 0.5  # share of old lines in an update with replay
ENOUGH = 0.05  # below last year's accuracy, a model counts as repaired
CLOSE = 0.02  # accuracies that differ by less count as equal
METHODS = {
    "new": "fine-tuned on the new lines",
    "replay": "fine-tuned, half of the lines replayed",
    "scratch": "trained from scratch on all lines",
    "ngram": "n-gram baseline, trained on all lines",
}
YEARS = {"old": "last year's brands", "new": "new brands"}
MARKS = {"old": "o-", "new": "s--"}  # of the lines in the picture

Curves = dict[str, dict[int, Records]]  # method -> number of new lines -> a record for each seed


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    sizes, methods = ((QUICK,), ("new", "replay")) if config.quick else (UPDATE, ("new", "replay", "scratch"))
    scratch = SCRATCH_QUICK if config.quick else SCRATCH
    for seed in seeds(config):
        for lines, method in [(0, "scratch"), *((size, method) for size in sizes for method in methods)]:
            iterations = scratch if method == "scratch" else UPDATE[lines]
            name = f"{lines:,} new lines, {METHODS[method]}" if lines else "last year's model"
            case = {"seed": seed, "method": method, "lines": lines, "iterations": iterations}
            yield stage(f"{name}, seed {seed}", 4 + iterations / 25, measure, folder, **case)


def measure(folder: Path, seed: int, method: str, lines: int, iterations: int) -> list[dict[str, Any]]:
    """Train a model with `lines` new lines in one of METHODS, and measure its accuracy on the brands of each year; of
    last year's model and with replay, that of the n-gram baseline, too, trained on all old and new lines."""
    years = {year: lines_of(year, seed) for year in YEARS}
    labels = sorted({label for _, label in years["old"]["test"]})
    old = years["old"]
    new = years["new"]["train"][:lines]
    known = old["train"] + new
    name = f"{method}-{lines}-{seed}"
    vocabulary = {f"{year} {split}": pairs for year, splits in years.items() for split, pairs in splits.items()}
    splits = old | {"train": known if method == "scratch" else new}
    dataset = api.write_dataset(folder / "data" / name, splits, labels, vocabulary)
    settings: dict[str, Any] = {"seed": seed, "max_iters": iterations}
    if method == "scratch":
        run = learn("lab_classifier", folder / name, dataset, **settings)
    else:
        settings |= {"ckpt": folder / f"scratch-0-{seed}", "replay": REPLAY if method == "replay" else 0}
        run = learn("finetune_lab_drift", folder / name, dataset, **settings)

    def accuracies(classify: Callable[[list[str]], np.ndarray]) -> dict[str, float]:
        tests = {year: splits["test"] for year, splits in years.items()}
        return {year: accuracy(classify([line for line, _ in test]), test, labels) for year, test in tests.items()}

    model = run.load(device="cpu")
    measurements = [{"method": method, **accuracies(model.probabilities), "seconds": run.cost.seconds}]
    if method == "replay" or not lines:
        began = time.monotonic()
        ngram = accuracies(api.ngrams(known, labels))
        measurements.append({"method": "ngram", **ngram, "seconds": time.monotonic() - began})
    return measurements


def lines_of(year: str, seed: int) -> dict[str, list[tuple[str, str]]]:
    """Make lines about the brands of a year, whose names share no word with those of the other year, by split."""
    task = api.task("transactions", seed, brands=BRANDS, of="train" if year == "old" else "test")
    return {split: pairs[: LINES[split]] for split, pairs in task.splits.items()}


def summarise(records: Records, _: LabConfig) -> Summary:
    for record in records:
        record["next"] = (record["old"] + record["new"]) / 2  # next year, half of the lines name a new brand
    groups = records.by("method", "lines")
    base = groups["scratch", 0]
    most = max(records.values("lines"))
    curves: Curves = {method: {0: base} for method in METHODS if (method, most) in groups}
    for method, lines in sorted(groups):
        if method in curves:
            curves[method][lines] = groups[method, lines]
    first = {("new", 0): "tiny model, not updated", ("ngram", 0): "n-gram baseline, not updated"}
    cells = [
        {
            "method": METHODS[method] if lines else first[method, 0],
            "new lines": f"{lines:,}",
            YEARS["old"]: percent(own.values("old"), ".0f"),
            YEARS["new"]: percent(own.values("new"), ".0f"),
            "next year": percent(own.values("next"), ".0f"),
            "training": duration(own.median("seconds")),
        }
        for method, curve in curves.items()
        for lines, own in curve.items()
        if lines or (method, 0) in first  # without new lines, the models of all methods are the same
    ]
    note = (
        f"Accuracy: median over the seeds (minimum to maximum), each measured on {LINES['test']} lines about last "
        f"year's brands and {LINES['test']} about new brands, so uncertain by up to {98 / LINES['test'] ** 0.5:.1f} "
        "percentage points (95% confidence). Training and test lines name the same brands, but no line occurs twice. "
        f"Next year: half of the lines name a new brand. All methods start from {LINES['train']:,} lines of last year. "
        "Training: time, that of the n-gram baseline includes its answers."
    )
    last = {method: curves[method][most] for method in curves}
    return Summary(
        "A model meets next year's merchants",
        "Spending categories of card-statement lines: what accuracy new brands cost, and what restores it.",
        [Table("Accuracy before and after the update", cells, note)],
        [cost_of_drift(base, curves["ngram"][0]), repair(base, curves), gain_of_replay(last, base), cheapest(last)],
        "Accuracy against the number of new labelled lines",
        picture(curves),
    )


def cost_of_drift(base: Records, ngram: Records) -> Verdict:
    return Verdict(
        f"Without an update, the tiny model is right on {base.percent('old'):.0f}% of lines with last year's brands "
        f"and on {base.percent('new'):.0f}% of those with new ones; the n-gram baseline on {ngram.percent('old'):.0f}% "
        f"and {ngram.percent('new'):.0f}%.",
        "accuracies before the update",
    )


def repair(base: Records, curves: Curves) -> Verdict:
    """State how many new lines bring next year's accuracy back to last year's."""
    goal = base.percent("old") - 100 * ENOUGH
    reached = []
    missed = []
    for method, curve in curves.items():
        by_lines = {lines: own.percent("next") for lines, own in curve.items() if lines}
        if enough := next((lines for lines, share in by_lines.items() if gap(share, goal) >= 0), None):
            reached.append(f"{METHODS[method]} with {enough:,} new lines ({by_lines[enough]:.1f}%)")
        else:
            missed.append(f"{METHODS[method]} ({max(by_lines.values()):.1f}%)")
    statements = [f"It is reached by {'; '.join(reached)}." if reached else "No method reaches it."]
    statements += [f"The best of the others: {'; '.join(missed)}."] if missed else []
    return Verdict(
        f"The drift is repaired with {goal:.1f}% next year. {' '.join(statements)}",
        f"the tiny model's accuracy last year, {base.percent('old'):.1f}%, less {100 * ENOUGH:.0f} percentage points; "
        "with the fewest new lines that reach it",
    )


def gain_of_replay(last: dict[str, Records], base: Records) -> Verdict:
    """Judge how much fine-tuning forgets, and replay prevents. last: the most new lines, by method."""
    alone = last["new"]
    replay = last["replay"]
    forgotten, kept = (gap(own.percent("old"), base.percent("old")) for own in (alone, replay))
    saved = gap(kept, forgotten)
    gained = gap(replay.percent("new"), alone.percent("new"))
    advice = "Replay old lines." if gap(saved, -gained) >= 0 else "Replay costs more than it saves here."
    if saved <= 100 * CLOSE:
        advice = "Replay saves too little here."
    return Verdict(
        f"{advice} With {alone[0]['lines']:,} new lines, fine-tuning on these alone changes the accuracy on last "
        f"year's brands by {forgotten:+.1f} points, with replay by {kept:+.1f}. On new brands, replay changes the "
        f"accuracy by {gained:+.1f} points.",
        f"replay if it saves more than {100 * CLOSE:.0f} points on last year's brands, and no less than it costs on "
        "new brands",
    )


def cheapest(last: dict[str, Records]) -> Verdict:
    """Choose the fastest method whose accuracy next year is close to the best."""
    best = max(own.median("next") for own in last.values())
    good = [method for method, own in last.items() if gap(best, own.median("next")) <= CLOSE]
    method = min(good, key=lambda method: last[method].median("seconds"))
    own = last[method]
    return Verdict(
        f"With {own[0]['lines']:,} new lines, choose: {METHODS[method]} ({own.percent('next'):.1f}% next year, "
        f"{duration(own.median('seconds'))} of training).",
        f"the shortest training among the methods within {100 * CLOSE:.0f} points of the best accuracy next year",
    )


def picture(curves: Curves) -> Plane:
    """Draw both accuracies of each method; the numbers of lines have equal distances."""
    line_counts = sorted({lines for curve in curves.values() for lines in curve})
    drawn = [
        Line(METHODS[method] if year == "old" else "", [line_counts.index(lines) for lines in curve],
             [own.percent(year) for own in curve.values()], mark, f"C{list(METHODS).index(method)}")
        for method, curve in curves.items()
        for year, mark in MARKS.items()
    ]  # fmt: skip
    drawn += [
        Line(f"{name}: {YEARS[year]}", [], [], MARKS[year]) for name, year in (("solid", "old"), ("dashed", "new"))
    ]
    ticks = {place: f"{lines:,}" for place, lines in enumerate(line_counts)}
    return Plane("new labelled lines", "accuracy (%)", drawn, ticks, ylim=(0, 103))


LAB = Lab("what do next year's new merchants cost, and what helps?", stages, summarise, quick=True, ngrams=True)
