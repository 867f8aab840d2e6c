"""`tinygpt lab drift`: a model trained on last year's merchants meets next year's. What does the change cost, how many
new labels restore the accuracy, and what does the model then forget?

Last year's lines name 25 brands of each category. Next year, half of the lines name one of as many new brands. The tiny
model learns last year's lines, and is then updated with lines about the new brands: fine-tuned on these alone,
fine-tuned with replay of old lines, or trained from scratch on all.
"""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import duration
from tinygpt.data.pairs import tokenizer_of_pairs
from tinygpt.data.tasks import Pair
from tinygpt.data.tasks.generate import generate
from tinygpt.data.tasks.merchants import Merchant, merchants_by_label
from tinygpt.data.tasks.transactions import line_of
from tinygpt.examine.eval.classify import Classifier
from tinygpt.examine.experiment.models import classifier, ngrams, right, train, write_dataset
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent
from tinygpt.learn.lab.definition import Lab, seeds

BRANDS = 25  # of each category, in each year; coffee has no more in its smallest split
LINES = {"train": 3000, "val": 100, "test": 500}  # of each year; of next year's train, only the first are used
SCRATCH, SCRATCH_QUICK = 250, 150  # iterations of a training from scratch
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

Lines = dict[str, dict[str, list[Pair]]]  # year -> split -> pairs


def lines(seed: int) -> Lines:
    """Make lines of last year's and of new brands, whose names share no word; in each split the labels alternate."""
    by_year: Lines = {}
    for year, split in (("old", "train"), ("new", "test")):
        rng = random.Random(seed)
        brands = {label: rng.sample(splits[split], BRANDS) for label, splits in merchants_by_label().items()}
        drawn = generate(seed, tuple(brands), partial(draw_line, brands))
        by_year[year] = {name: in_turn(pairs)[: LINES[name]] for name, pairs in drawn.items()}
    return by_year


def draw_line(brands: dict[str, list[Merchant]], rng: random.Random, split: str, label: str, number: int) -> str:
    return line_of(rng, rng.choice(brands[label]), label)


def in_turn(pairs: Sequence[Pair]) -> list[Pair]:
    """Sort the pairs so that their labels alternate: the first pair of each label, then the second of each, ..."""
    seen: defaultdict[str, Iterator[int]] = defaultdict(count)
    return sorted(pairs, key=lambda pair: next(seen[pair[1]]))


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    sizes, methods = ((QUICK,), ("new", "replay")) if config.quick else (UPDATE, ("new", "replay", "scratch"))
    scratch = SCRATCH_QUICK if config.quick else SCRATCH
    for seed in seeds(config):
        for size, method in [(0, "scratch"), *((size, method) for size in sizes for method in methods)]:
            length = scratch if method == "scratch" else UPDATE[size]
            name = f"{size:,} new lines, {METHODS[method]}, seed {seed}" if size else f"last year's model, seed {seed}"
            yield Stage(name, 4 + length / 25, partial(measure, folder, seed, method, size, length))


def measure(folder: Path, seed: int, method: str, size: int, iterations: int) -> dict[str, Any]:
    """Train a model with `size` new lines in one of METHODS; return its accuracies by year, and the seconds.

    The results of last year's model and of replay include the n-gram baseline, trained on all old and new lines.
    """
    by_year, labels = lines(seed), list(merchants_by_label())
    tokenizer = tokenizer_of_pairs({f"{year} {name}": by_year[year][name] for year in YEARS for name in LINES})
    new = by_year["new"]["train"][:size]
    all_lines, name = by_year["old"]["train"] + new, f"{method}-{size}-{seed}"
    splits = by_year["old"] | {"train": all_lines if method == "scratch" else new}
    dataset = write_dataset(folder / "data" / name, splits, labels, tokenizer)
    settings: dict[str, Any] = {"seed": seed, "max_iters": iterations}
    if method != "scratch":
        settings |= {"ckpt": folder / f"scratch-0-{seed}", "replay": REPLAY if method == "replay" else 0}
    kind = ("train", "lab_classifier") if method == "scratch" else ("finetune", "finetune_lab_drift")
    cost = train(*kind, folder / name, dataset, **settings)

    def accuracies(classify: Classifier) -> dict[str, float]:
        tests = {year: by_year[year]["test"] for year in YEARS}
        probs = {year: classify([prompt for prompt, _ in test]) for year, test in tests.items()}
        return {year: float(right(probs[year], test, labels).mean()) for year, test in tests.items()}

    result: dict[str, Any] = {"way": method, "lines": size, "seed": seed, "seconds": cost.seconds}
    result["model"] = accuracies(classifier(folder / name, labels))
    if method == "replay" or not size:
        start = time.monotonic()
        ngram = accuracies(ngrams(all_lines, labels))
        result |= {"ngram_seconds": time.monotonic() - start, "ngram": ngram}
    return result


class Row(NamedTuple):
    """The accuracies and times of a method with a number of new lines; each list has a value for each seed."""

    method: str
    lines: int
    old: list[float]  # accuracy on last year's brands
    new: list[float]  # on new brands
    seconds: list[float]

    def next_year(self) -> list[float]:
        """Return the accuracy on next year's lines, of which half name a new brand."""
        return [(old + new) / 2 for old, new in zip(self.old, self.new, strict=True)]


def rows_of(results: Results) -> list[Row]:
    """Make the rows, sorted by method, as in METHODS, and number of new lines. With 0 new lines nothing is updated, so
    all methods have the same row: that of the model trained from scratch on last year's lines."""
    rows: dict[tuple[str, int], Row] = {}
    for result in results.values():
        methods = ["new", "replay", "scratch"] if not result["lines"] else [result["way"]]
        keys = [(method, "model", "seconds") for method in methods]
        keys += [("ngram", "ngram", "ngram_seconds")] * ("ngram" in result)
        for method, key, seconds in keys:
            row = rows.setdefault((method, result["lines"]), Row(method, result["lines"], [], [], []))
            row.old.append(result[key]["old"])
            row.new.append(result[key]["new"])
            row.seconds.append(result[seconds])
    updated = {method for method, size in rows if size}  # all, except in the quick form
    return [rows[key] for method in METHODS if method in updated for key in sorted(rows) if key[0] == method]


def summarise(results: Results, _: LabConfig) -> Summary:
    rows = rows_of(results)
    base, most = rows[0], max(row.lines for row in rows)
    names = {"new": "tiny model, not updated", "ngram": "n-gram baseline, not updated"}
    cells = [
        {
            "method": METHODS[row.method] if row.lines else names[row.method],
            "new lines": f"{row.lines:,}",
            YEARS["old"]: percent(row.old, ".0f"),
            YEARS["new"]: percent(row.new, ".0f"),
            "next year": percent(row.next_year(), ".0f"),
            "training": duration(statistics.median(row.seconds)),
        }
        for row in rows
        if row.lines or row.method in names  # without new lines, the models of all methods are the same
    ]
    note = (
        f"Accuracy: median over the seeds (minimum to maximum), each measured on {LINES['test']} lines about last "
        f"year's brands and {LINES['test']} about new brands, so uncertain by up to 4 percentage points (95% "
        "confidence). Training and test lines name the same brands, but no line occurs twice. Next year: half of "
        f"the lines name a new brand. All methods start from {LINES['train']:,} lines of last year. Training: time, "
        "that of the n-gram baseline includes its answers."
    )
    return Summary(
        "A model meets next year's merchants",
        "Spending categories of card-statement lines: what accuracy new brands cost, and what restores it.",
        [Table("Accuracy before and after the update", cells, note)],
        [
            cost_of_drift(base, next(row for row in rows if row.method == "ngram")),
            repair(base, rows),
            gain_of_replay({row.method: row for row in rows if row.lines == most}, base),
            cheapest([row for row in rows if row.lines == most]),
        ],
        "Accuracy against the number of new labelled lines",
        partial(draw, rows=rows),
    )


def middle(values: Sequence[float]) -> float:
    """Return the median, in percent."""
    return 100 * statistics.median(values)


def cost_of_drift(base: Row, ngram: Row) -> Verdict:
    statements = [
        f"{name} has {middle(row.old):.1f}% on last year's brands and {middle(row.new):.1f}% on new ones, so "
        f"{middle(row.next_year()):.1f}% next year"
        for name, row in (("the tiny model", base), ("the n-gram baseline", ngram))
    ]
    rule = "accuracies before the update; next year is the mean of the two"
    return Verdict(f"Without an update, {'; '.join(statements)}.", rule)


def repair(base: Row, rows: Sequence[Row]) -> Verdict:
    """State how many new lines bring next year's accuracy back to last year's."""
    goal = middle(base.old) - 100 * ENOUGH
    reached, missed = [], []
    for method in dict.fromkeys(row.method for row in rows):
        by_lines = {row.lines: middle(row.next_year()) for row in rows if row.method == method and row.lines}
        if enough := next((lines for lines, share in by_lines.items() if share >= goal), None):
            reached.append(f"{METHODS[method]} with {enough:,} new lines ({by_lines[enough]:.1f}%)")
        else:
            missed.append(f"{METHODS[method]} ({max(by_lines.values()):.1f}%)")
    statements = [f"It is reached by {'; '.join(reached)}." if reached else "No method reaches it."]
    statements += [f"The best of the others: {'; '.join(missed)}."] if missed else []
    return Verdict(
        f"The drift is repaired with {goal:.1f}% next year. {' '.join(statements)}",
        f"the tiny model's accuracy last year, {middle(base.old):.1f}%, less {100 * ENOUGH:.0f} percentage points; "
        "with the fewest new lines that reach it",
    )


def gain_of_replay(last: dict[str, Row], base: Row) -> Verdict:
    """Judge how much fine-tuning forgets, and replay prevents. last: the rows with the most new lines, by method."""
    alone, replay = last["new"], last["replay"]
    lost, kept = (statistics.median(base.old) - statistics.median(row.old) for row in (alone, replay))
    price = statistics.median(alone.new) - statistics.median(replay.new)
    advice = "Replay old lines." if lost - kept > CLOSE and price <= lost - kept else "Replay is not needed here."
    return Verdict(
        f"{advice} With {alone.lines:,} new lines, fine-tuning on these alone changes the accuracy on last year's "
        f"brands by {-100 * lost:+.1f} points, with replay by {-100 * kept:+.1f}. On new brands, replay changes the "
        f"accuracy by {-100 * price:+.1f} points.",
        f"replay if it saves more than {100 * CLOSE:.0f} points on last year's brands, and no less than it costs on "
        "new brands",
    )


def cheapest(last: Sequence[Row]) -> Verdict:
    """Choose the fastest method whose accuracy next year is close to the best."""
    best = max(statistics.median(row.next_year()) for row in last)
    good = [row for row in last if statistics.median(row.next_year()) >= best - CLOSE]
    row = min(good, key=lambda row: statistics.median(row.seconds))
    return Verdict(
        f"With {row.lines:,} new lines, choose: {METHODS[row.method]} ({middle(row.next_year()):.1f}% next year, "
        f"{duration(statistics.median(row.seconds))} of training).",
        f"the shortest training among the methods within {100 * CLOSE:.0f} points of the best accuracy next year",
    )


def draw(axes: Any, rows: Sequence[Row]) -> None:
    line_counts = sorted({row.lines for row in rows})
    for method in dict.fromkeys(row.method for row in rows):
        own, style = [row for row in rows if row.method == method], {"color": f"C{list(METHODS).index(method)}"}
        positions = [line_counts.index(row.lines) for row in own]
        axes.plot(positions, [middle(row.old) for row in own], "o-", label=METHODS[method], markersize=4, **style)
        axes.plot(positions, [middle(row.new) for row in own], "s--", markersize=4, **style)
    axes.plot([], [], "o-", color="gray", label=f"solid: {YEARS['old']}", markersize=4)
    axes.plot([], [], "s--", color="gray", label=f"dashed: {YEARS['new']}", markersize=4)
    axes.set(xlabel="new labelled lines", ylabel="accuracy (%)", ylim=(0, 103))
    axes.set_xticks(range(len(line_counts)), [f"{line_count:,}" for line_count in line_counts])
    axes.legend(frameon=False, fontsize=8, loc="lower right")


ABOUT = "a model meets next year's merchants: what does it cost, and what repairs it?"
LAB = Lab(ABOUT, stages, summarise, quick=True, ngrams=True)
