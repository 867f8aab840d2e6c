"""`tinygpt lab cascade`: the n-gram baseline, then a tiny model, then a pretrained one, then a person.

Each stage answers the lines of which it is confident enough; the others go to the next one, as in the detector of Viola
and Jones (2001) and in FrugalGPT (Chen et al. 2023); Belcak et al. (2025) argue for small models first. A stage's
threshold is the lowest one at which, of the validation lines that reach it, the answered ones have the target accuracy.
"""

import hashlib
import statistics
import timeit
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.memory import write_dataset
from tinygpt.examine.eval.classify import ngrams
from tinygpt.examine.experiment.models import classifier, right, train
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.examine.experiment.summary import Share, Summary, Table, Verdict, percent, pooled, spread
from tinygpt.learn.lab.confidence import FEWEST, TASK, threshold
from tinygpt.learn.lab.definition import HOUR, Lab, seeds

SPLITS = ("val", "test")  # thresholds, and figures
PERSON_SECONDS = 10.0  # an assumption, as that a person is always right
PERSON_PRICE = 50.0  # of 1,000 answers of a person: 18 per hour
TIMED = 30  # lines
TARGETS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # of the picture
GAIN = 0.05  # a stage that cuts the cost by a smaller share is not worth its complexity
FULL, QUICK = (500, 100), (200, 20)  # iterations of the tiny model, and of the pretrained one


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    path, (tiny_steps, large_steps) = config.pretrained, QUICK if config.quick else FULL
    for seed in seeds(config):
        out = folder / f"seed-{seed}"
        tiny, large = out / "tiny", out / f"pretrained-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        learn = partial(fit, folder / "data", seed)
        learn_tiny = partial(learn, "lab_classifier", tiny, tiny_steps)
        yield Stage(f"train: tiny, seed {seed}", 3 + tiny_steps / 25, learn_tiny)
        yield Stage(f"ask: ngram, seed {seed}", 4, partial(ask, seed))
        yield Stage(f"ask: tiny, seed {seed}", 4, partial(ask, seed, tiny))
        if path and seed == 1:
            tune = partial(learn, "finetune_transactions_pretrained", large, large_steps, ckpt=path)
            yield Stage(f"train: pretrained {path}, seed 1", 10 + large_steps, tune)
            yield Stage(f"ask: pretrained {path}, seed 1", 200, partial(ask, seed, large))


def fit(data: Path, seed: int, preset: str, out: Path, iterations: int, **base: str) -> float:
    """Train a model on the dataset of a seed, from a base if there is one; return the seconds."""
    dataset = write_dataset(data / f"transactions-{seed}", TASK.make(seed), TASK.labels)
    settings: dict[str, Any] = {"seed": seed, "max_iters": iterations, "eval_iters": 10, **base}
    return train("finetune" if base else "train", preset, out, dataset.folder, **settings).seconds


def ask(seed: int, out: Path | None = None) -> dict[str, Any]:
    """Measure a model, or without `out` the n-gram baseline; latency: of one line, in seconds."""
    pairs, results = TASK.make(seed), {}
    classify = classifier(out, TASK.labels) if out else ngrams(pairs["train"], TASK.labels)
    for split in SPLITS:
        probs = classify([prompt for prompt, _ in pairs[split]])
        correct = right(probs, pairs[split], TASK.labels)
        results[split] = {"confidence": probs.max(axis=1).tolist(), "right": correct.tolist()}
    seconds = [timeit.timeit(partial(classify, [prompt]), number=1) for prompt, _ in pairs["test"][:TIMED]]
    return {**results, "latency": statistics.median(seconds)}


class System(NamedTuple):
    """A stage that answers: confidence and correctness of its answers by split, (n,) each, and the cost of a line."""

    confidence: dict[str, np.ndarray]
    right: dict[str, np.ndarray]
    seconds: float
    price: float  # of 1,000 lines


class Run(NamedTuple):
    """The result of a cascade, or of a system alone, on the test lines."""

    thresholds: list[float]
    answered: dict[str, list[Share]]  # by split, for each stage: the right ones among the answered lines
    shares: list[float]  # answered by each stage, and by the person
    accuracy: float
    cost: float  # of 1,000 lines
    seconds: float  # mean per line


def cascade(systems: Sequence[System], target: float) -> Run:
    """Pass the lines through the systems; a person answers the rest. Without a system, the person answers all."""
    remaining = {split: np.ones_like(right) for split, right in systems[0].right.items()} if systems else {}
    answered: dict[str, list[Share]] = {split: [] for split in remaining}
    thresholds, shares, cost, seconds = [], [], 0.0, 0.0
    for system in systems:
        reached = remaining["val"]
        thresholds.append(threshold(system.confidence["val"][reached], system.right["val"][reached], target))
        reach = float(remaining["test"].mean())
        cost, seconds = cost + reach * system.price, seconds + reach * system.seconds
        for split in remaining:
            answered_here = remaining[split] & (system.confidence[split] >= thresholds[-1])
            answered[split].append(Share(int(system.right[split][answered_here].sum()), int(answered_here.sum())))
            remaining[split] = remaining[split] & ~answered_here
        shares.append(reach - float(remaining["test"].mean()))
    rest = 1 - sum(shares)
    hits = sum(share.hits for share in answered.get("test", []))
    accuracy = (hits / len(remaining["test"]) if systems else 0) + rest
    totals = cost + rest * PERSON_PRICE, seconds + rest * PERSON_SECONDS
    return Run(thresholds, answered, [*shares, rest], accuracy, *totals)


def alone(system: System) -> Run:
    """Run a system that answers every line."""
    answered = {split: [Share(int(right.sum()), len(right))] for split, right in system.right.items()}
    return Run([0.0], answered, [1.0, 0.0], float(system.right["test"].mean()), system.price, system.seconds)


def systems_of(results: Results, config: LabConfig, seed: int) -> dict[str, System]:
    """Collect the systems of a seed by name, the cheapest first."""
    names = {"ngram": "n-gram baseline", "tiny": "tiny model"}
    if config.pretrained:
        names[f"pretrained {config.pretrained}"] = "pretrained model"
    by_name = {}
    for key, name in names.items():
        if (result := results.get(f"ask: {key}, seed {seed}")) is not None:
            price = 1000 * result["latency"] / 3600 * HOUR
            arrays = {key: {split: np.array(result[split][key]) for split in SPLITS} for key in ("confidence", "right")}
            by_name[name] = System(seconds=result["latency"], price=price, **arrays)
    return by_name


class AllRuns:
    """The runs of each system alone and of each cascade: lists over the seeds that have all of its systems."""

    def __init__(self, systems: list[dict[str, System]], target: float) -> None:
        """systems: those of each seed by name; the first seed has all."""
        self.seeds, self.target, self.names = systems, target, list(systems[0])
        lengths = range(2, len(self.names) + 1)  # each system with a person, and the first ones together
        self.cascades = [*((name,) for name in self.names), *(tuple(self.names[:length]) for length in lengths)]
        self.longest = self.cascades[-1]

    def having(self, names: Sequence[str]) -> list[dict[str, System]]:
        return [by_name for by_name in self.seeds if set(names) <= set(by_name)]

    def alone(self, name: str) -> list[Run]:
        return [alone(by_name[name]) for by_name in self.having([name])]

    def cascade(self, names: Sequence[str], target: float | None = None) -> list[Run]:
        chosen = [[by_name[name] for name in names] for by_name in self.having(names)]
        return [cascade(systems, target or self.target) for systems in chosen]


def median(runs: Sequence[Run], key: str) -> float:
    return statistics.median(getattr(run, key) for run in runs)


def summarise(results: Results, config: LabConfig) -> Summary:
    """Summarise cost and accuracy of each system and each cascade."""
    systems = [systems_of(results, config, seed) for seed in seeds(config)]
    all_runs, rows = AllRuns(systems, config.target), []
    common = AllRuns(all_runs.having(all_runs.longest), config.target)  # the same lines for each system
    runs_of: list[tuple[str, Sequence[str], list[Run]]] = [
        *((f"{name} alone", [name], all_runs.alone(name)) for name in all_runs.names),
        *((f"{', '.join(names)}, person", names, all_runs.cascade(names)) for names in all_runs.cascades),
        ("person alone", [], all_runs.cascade([])),
    ]
    for name, names, runs in runs_of:
        row = {"system": name, "accuracy": percent([run.accuracy for run in runs])}
        row |= {"cost of 1,000": money([run.cost for run in runs]), "time per line": time_of(median(runs, "seconds"))}
        row |= {f"by {who}": "" for who in [*all_runs.names, "person"]}
        for who, *shares in zip([*names, "person"], *(run.shares for run in runs), strict=True):
            row[f"by {who}"] = percent([statistics.median(shares)], ".0f")
        rows.append(row)
    rows_note = (
        "On 1,000 test lines with brands that do not occur in training; median over the seeds (minimum to maximum), "
        "a pretrained model has one seed. Cost of 1,000 lines: the latency of single lines on this "
        f"machine, at {HOUR:g} per hour; a person {PERSON_PRICE:g}. By: share of the lines answered by this system. A "
        f"person is assumed to be always correct and to take {PERSON_SECONDS:g} seconds for a line."
    )
    if config.pretrained:
        rows_note += f" The pretrained model is {config.pretrained}."
    stages_note = (
        f"The cascade of {', '.join(all_runs.longest)} and person. Threshold: the lowest confidence at which "
        f"{100 * config.target:g}% of the answered validation lines at this stage are correct (--target), if there are "
        f"at least {FEWEST}; none: no confidence reaches it. Accuracy: on the lines answered by the stage, in percent "
        "(95% interval, pooled over the seeds)."
    )
    runs = all_runs.cascade(all_runs.longest)
    steps = [
        {
            "stage": name,
            "threshold": spread([run.thresholds[index] for run in runs], ".2f"),
            "reaches it": percent([1 - sum(run.shares[:index]) for run in runs]),
            "answers": percent([run.shares[index] for run in runs]),
            "accuracy, validation": str(pooled([run.answered["val"][index] for run in runs])),
            "accuracy, test": str(pooled([run.answered["test"][index] for run in runs])),
            "latency": time_of(statistics.median(run.seconds for run in all_runs.alone(name))),
        }
        for index, name in enumerate(all_runs.longest)
    ]
    return Summary(
        "Start simple, and add a system only where it is needed",
        "Card-statement lines: each stage answers those of which it is confident enough; the rest go to the next one.",
        [
            Table("Systems alone, and cascades", rows, rows_note),
            Table("The stages of the longest cascade", steps, stages_note),
        ],
        [simple(common), compared(common), promise(all_runs)],
        "Accuracy against cost; a line is a cascade at several targets, a circle the chosen one",
        partial(draw, all_runs),
    )


def money(values: Sequence[float]) -> str:
    """Format prices, with two decimals, or five if they are low."""
    return spread(values, ".2f" if statistics.median(values) >= 0.1 else ".5f")


def time_of(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def simple(all_runs: AllRuns) -> Verdict:
    """Choose the cascade with the fewest stages whose cost is close to that of the cheapest."""
    costs = {names: median(all_runs.cascade(names), "cost") for names in all_runs.cascades}
    low = min(costs.values())
    names = next(names for names in costs if costs[names] <= (1 + GAIN) * low)
    first = (all_runs.longest[: number + 1] for number in range(len(all_runs.longest)))
    steps = [f"{', '.join(cascade_names)} and person: {costs[cascade_names]:.2f}" for cascade_names in first]
    return Verdict(
        f"Start with: {' and '.join(names)}; a person answers the rest. Cost: {costs[names]:.2f} per 1,000 lines; the "
        f"cheapest cascade costs {low:.2f}. Stage by stage: {'; '.join(steps)}.",
        f"the cascade with the fewest and simplest stages among those at most {100 * GAIN:.0f}% above the cheapest; "
        "on common seeds",
    )


def compared(all_runs: AllRuns) -> Verdict:
    """Compare the longest cascade with the best system alone and with a person alone."""
    runs = all_runs.cascade(all_runs.longest)
    accuracy = {name: median(all_runs.alone(name), "accuracy") for name in all_runs.names}
    best = max(accuracy, key=lambda name: accuracy[name])
    saved = 100 * (1 - median(runs, "cost") / PERSON_PRICE)
    return Verdict(
        f"The longest cascade has {100 * median(runs, 'accuracy'):.1f}% correct answers and costs {saved:.0f}% less "
        f"than a person alone; the best system alone, {best}, has {100 * accuracy[best]:.1f}%.",
        "medians over the seeds that all systems have; a person counts as always correct",
    )


def promise(all_runs: AllRuns) -> Verdict:
    """Judge whether the answered test lines reach the accuracy for which the thresholds were chosen."""
    runs, target, statements = all_runs.cascade(all_runs.longest), all_runs.target, []
    for index, name in enumerate(all_runs.longest):
        share = pooled([run.answered["test"][index] for run in runs])
        low, high = share.interval()
        kept = "kept" if low <= target <= high else "exceeded" if low > target else "missed"
        statements.append(f"{name}: {kept} ({share}%)" if share.total else f"{name}: no answers")
    return Verdict(
        f"The target of each stage is {100 * target:g}% correct answers. On the test lines: {'; '.join(statements)}.",
        "a stage keeps the target if the 95% interval contains it: correct ones among its test lines, all seeds",
    )


def draw(all_runs: AllRuns, axes: Any) -> None:
    """Draw accuracy against cost: a line for each cascade, a point for each system alone."""

    def point(runs: Sequence[Run]) -> tuple[float, float]:
        return median(runs, "cost"), 100 * median(runs, "accuracy")

    for index, names in enumerate(all_runs.cascades):
        points = zip(*(point(all_runs.cascade(names, target)) for target in TARGETS), strict=True)
        width = 2 + len(all_runs.cascades) - index  # lines that coincide remain visible
        size = {"linewidth": width, "markersize": width + 2}
        axes.plot(*points, "o-", color=f"C{index}", label=f"{', '.join(names)}, person", **size)
        axes.plot(*point(all_runs.cascade(names)), "o", color=f"C{index}", markersize=12, markerfacecolor="none")
    alone = [*((name, all_runs.alone(name)) for name in all_runs.names), ("person", all_runs.cascade([]))]
    for number, (name, runs) in enumerate(alone):
        axes.plot(*point(runs), "ks", markersize=6)
        side = "right" if name == "person" else "left"
        offset = -8 if name == "person" else 8, -15 if number == 2 else -4  # the third is often close to the second
        axes.annotate(name, point(runs), offset, textcoords="offset points", ha=side, fontsize=9)
    axes.set(xlabel="cost of 1,000 lines", ylabel="accuracy (%)")
    axes.margins(x=0.2, y=0.1)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


ABOUT = "n-gram baseline, tiny model, pretrained model, person: which is needed for which lines?"
LAB = Lab(ABOUT, stages, summarise, models=("pretrained",), others=("target",), quick=True, ngrams=True)
