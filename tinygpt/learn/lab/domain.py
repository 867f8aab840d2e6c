"""`tinygpt lab domain`: does pretraining on text of one's own field help?

BloombergGPT (Wu et al. 2023) was pretrained on financial text and compared with models of general text; this lab does
so in miniature. Three equal base models, without pretraining, pretrained on Shakespeare, and on as many characters of
descriptions of industries, are fine-tuned on a task of that field (sectors.py) and on one of another (`transactions`),
with few and with all examples. A longer fine-tuning on few shows whether pretraining only saves iterations. The text
about industries does not contain those of val and test of `sectors`; all datasets have the same vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import counted
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, gap, percent, side, spread
from tinygpt.learn.lab import sectors
from tinygpt.learn.lab.definition import Classifier, Lab, accuracy, learn, seeds, stage

TEXTS = ("Shakespeare", "industries")
BASES = ("none", *TEXTS)
BASELINES = {"n-gram baseline": "--", "majority baseline": ":"}  # and their lines in the picture
REPEATED = "23%"  # of the characters of the last tenth about industries, in passages that occur in the rest, too
MARGIN = 0.03  # of accuracy: about the standard error of the difference of two models on the test prompts

Case = tuple[str, int, int]  # a fine-tuning: its task, its number of training examples (0: all), its iterations
Figures = dict[Case, dict[str, Records]]  # by base or baseline: a record for each seed

FULL = 300, (  # iterations of a base; the fine-tunings
    ("sectors", 200, 40), ("sectors", 200, 120), ("sectors", 0, 150),
    ("transactions", 200, 40), ("transactions", 0, 150),
)  # fmt: skip
QUICK = 60, (("sectors", 200, 40),)


def title(task: str, examples: int, iterations: int = 0) -> str:
    """Name a fine-tuning, or without iterations its data."""
    return f"{task}, {examples or 'all'} examples" + (f", {iterations} iterations" if iterations else "")


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    pretraining, cases = QUICK if config.quick else FULL
    yield stage("datasets", 2, prepare, folder, list(dict.fromkeys(task for task, _, _ in cases)))
    for task, examples in dict.fromkeys((task, examples) for task, examples, _ in cases):
        name = f"baselines: {title(task, examples)}"
        yield stage(name, 1 if examples else 6, baselines, task=task, examples=examples)
    for seed in seeds(config):
        for base in BASES:
            n = pretraining if base in TEXTS else 0
            yield stage(f"base: {base}, seed {seed}", 3 + n / 35, pretrain, folder, n, base=base, seed=seed)
        for task, examples, n in cases:
            for base in BASES:
                name = f"{base}: {title(task, examples, n)}, seed {seed}"
                case = {"base": base, "task": task, "examples": examples, "iterations": n, "seed": seed}
                yield stage(name, 3 + n / 30, finetune, folder, **case)


def pairs_of(task: str) -> tuple[dict[str, list[tuple[str, str]]], tuple[str, ...]]:
    """Return the examples of a task by split, and its labels."""
    return (sectors.examples(), sectors.SECTORS) if task == "sectors" else api.task(task)[:2]


def prepare(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Write the texts, of equal length, and the tasks, all with one vocabulary; return the number of characters."""
    industries = sectors.corpus()
    texts = dict(zip(TEXTS, (api.corpus("shakespeare_char")[: len(industries)], industries), strict=True))
    vocabulary = [texts, [pairs_of(name)[0] for name in names]]
    for name in names:
        splits, labels = pairs_of(name)
        dataset = api.write_dataset(folder / "tasks" / name, splits, labels, vocabulary)
    for name, text in texts.items():
        api.write_dataset(folder / "texts" / name, text, tokenizer=dataset.tokenizer)
    return {"characters": len(industries)}


def pretrain(folder: Path, iterations: int, base: str, seed: int) -> dict[str, float]:
    """Train a base; return its loss on each text, in bits per character."""
    datasets = {text: api.Dataset(str(folder / "texts"), text) for text in TEXTS}
    own = datasets.get(base, datasets[TEXTS[0]])  # without an iteration, only the vocabulary matters
    settings = {"seed": seed, "dropout": 0, "max_iters": iterations, "eval_interval": max(iterations, 1)}
    model = learn("lab_classifier", folder / f"seed-{seed}" / base, own, **settings).load(
        device="cpu", dtype="bfloat16"
    )
    held_out = {text: dataset.tokenizer.decode(dataset.splits["val"]) for text, dataset in datasets.items()}
    return {name: model.loss(text) / math.log(2) for name, text in held_out.items()}


def finetune(folder: Path, base: str, task: str, examples: int, iterations: int, seed: int) -> dict[str, Any]:
    dataset = api.Dataset(str(folder / "tasks"), task)
    ckpt = folder / f"seed-{seed}" / base
    out = ckpt.with_name(f"{base}-{task}-{examples or 'all'}-{iterations}")
    settings: dict[str, Any] = {"ckpt": ckpt, "seed": seed, "examples": examples, "max_iters": iterations}
    run = learn("finetune_sectors", out, dataset, **settings)
    return measured(run.load(device="cpu").probabilities, task)


def baselines(task: str, examples: int) -> list[dict[str, Any]]:
    """Measure the n-gram baseline and the majority baseline on the same training examples."""
    splits, labels = pairs_of(task)
    train = splits["train"][: examples or None]
    counts = [sum(own == label for _, own in train) for label in labels]
    classifiers = api.ngrams(train, labels), lambda prompts: np.array([counts] * len(prompts))
    return [{"base": base, **measured(classify, task)} for base, classify in zip(BASELINES, classifiers, strict=True)]


def measured(classify: Classifier, task: str) -> dict[str, Any]:
    splits, labels = pairs_of(task)
    test = splits["test"]
    return {"accuracy": accuracy(classify([prompt for prompt, _ in test]), test, labels), "prompts": len(test)}


def summarise(records: Records, config: LabConfig) -> Summary:
    bits = records.having(TEXTS[0]).by("base")
    figures: Figures = {}
    for (task, examples, iterations), own in records.having("iterations").by("task", "examples", "iterations").items():
        by_base = records.where(task=task, examples=examples).by("base") | own.by("base")
        figures[task, examples, iterations] = {name: by_base[name] for name in (*BASES, *BASELINES)}
    shared = f"Median of {counted(len(seeds(config)), 'seed')} (minimum to maximum). "
    knows = [{"base": base, **{text: spread(own.values(text), ".2f") for text in TEXTS}} for base, own in bits.items()]
    note = (
        "Before fine-tuning, on the last tenth of each text. Less is better. The text about industries repeats itself: "
        f"{REPEATED} of its last tenth occurs word for word, in passages of 50 characters or more, in the rest."
    )
    tables = [Table("Loss of each base model, in bits per character of held-out text", knows, shared + note)]
    for task, own in records.having("prompts").by("task").items():
        n = own[0]["prompts"]
        error = f"the standard error of an accuracy is about {100 * (0.25 / n) ** 0.5:.0f} points"
        note = f"On {n:,} test prompts; {error}."
        tables.append(Table(f"Accuracy on {task}", rows(figures, task), shared + note))
    return Summary(
        "Does pretraining on text of one's own field help?",
        f"A tiny model reads {records[0]['characters']:,} characters of Shakespeare, or of descriptions of "
        "industries, or nothing; then it learns to name the sector of a business activity, or another task.",
        tables,
        [*(compared(figures, base, other) for base, other in combinations(BASES[::-1], 2))],
        "Accuracy after fine-tuning; each point is a seed",
        picture(figures),
    )


def rows(figures: Figures, task: str) -> list[dict[str, str]]:
    """Make a row for each base and baseline, with a column for each case of the task."""
    cases = {title(*case).removeprefix(f"{task}, "): own for case, own in figures.items() if case[0] == task}
    return [
        {"base": name, **{column: percent(own[name].values("accuracy")) for column, own in cases.items()}}
        for name in (*BASES, *BASELINES)
    ]


def compared(figures: Figures, base: str, other_base: str) -> Verdict:
    """Compare two bases in each case."""
    outcomes: dict[str, list[str]] = {"better than": [], "worse than": [], "no different from": []}
    for case, own in figures.items():
        accuracies, other_accuracies = (own[name].values("accuracy") for name in (base, other_base))
        gain = gap(median(accuracies), median(other_accuracies))
        overlap = min(accuracies) <= max(other_accuracies) and max(accuracies) >= min(other_accuracies)
        outcome = side(gain, MARGIN, ("worse than", "no different from", "better than"))
        outcomes["no different from" if overlap else outcome].append(
            f"{title(*case)}: accuracy {100 * median(accuracies):.0f}% and {100 * median(other_accuracies):.0f}%"
        )
    names = {"none": "no pretraining", **{text: f"pretraining on {text}" for text in TEXTS}}
    subject = names[base][0].upper() + names[base][1:]
    parts = [f"{name} {names[other_base]}: {'; '.join(cases)}" for name, cases in outcomes.items() if cases]
    return Verdict(
        f"{subject} is {'. It is '.join(parts)}.",
        f"a difference counts if the ranges of accuracy over the seeds do not overlap, and the medians differ by more "
        f"than {100 * MARGIN:.0f} percentage points",
    )


def picture(figures: Figures) -> Plane:
    lines = []
    for position, own in enumerate(figures.values()):
        for index, base in enumerate(BASES):
            values = [100 * share for share in own[base].values("accuracy")]
            label = "" if position else f"pretraining: {base}"
            lines.append(
                Line(label, [position + 0.18 * (index - 1)] * len(values), values, "o", f"C{index}", {"alpha": 0.8})
            )
        for name, style in BASELINES.items():
            height = own[name].percent("accuracy")
            lines.append(Line("" if position else name, [position - 0.35, position + 0.35], [height] * 2, style))
    ticks = {position: title(*case).replace(", ", "\n") for position, case in enumerate(figures)}
    return Plane("", "accuracy (%)", lines, ticks, ylim=(0, 90))


LAB = Lab("does pretraining on text of the task's own field help?", stages, summarise, quick=True, ngrams=True)
