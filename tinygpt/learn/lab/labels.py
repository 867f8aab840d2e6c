"""`tinygpt lab labels`: how many labels does a task need, and how accurate must they be?

The tiny model and the n-gram baseline learn the transactions from 50 to 4,000 examples, a share of which has a wrong
label. The labels of validation and test are correct; a second table shows how wrong labels in the test split change a
measured accuracy. A pretrained model adds a column.
"""

import dataclasses
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.pairs import tokenizer_of_pairs
from tinygpt.data.tasks import TASKS, Pair
from tinygpt.examine.experiment.models import classifier, ngrams, right, train, write_dataset
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent, spread
from tinygpt.learn.lab import methods
from tinygpt.learn.lab.definition import Lab, seeds

TASK = TASKS["transactions"]
ITERATIONS = {50: 60, 200: 60, 1000: 120, 4000: 300}  # by the number of examples; many passes over few are memorised
PRETRAINED = {50: 30, 200: 50, 1000: 100, 4000: 250}  # the same for the pretrained model
SHARES = (0.0, 0.1, 0.2)  # of wrong labels
GRID = [(size, share) for size in ITERATIONS for share in SHARES]
QUICK = [(50, 0.0), (1000, 0.0), (1000, 0.2)]  # of GRID
WORST = max(SHARES)  # also of the test split, for the second table
KINDS = ("correct", "wrong")  # labels of the test split that an accuracy is measured with
CLOSE = 0.02  # accuracies that differ by less count as equal
LEARNERS = {"model": "tiny model", "ngram": "n-gram baseline"}

Curve = dict[int, float]  # number of examples -> accuracy, median over the seeds


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    grid = QUICK if config.quick else GRID
    for seed in seeds(config):
        for size, share in grid:
            name = f"{size:,} examples, {100 * share:.0f}% wrong labels, seed {seed}"
            yield Stage(name, 4 + ITERATIONS[size] / 25, partial(measure, folder, size, share, seed))
        if config.pretrained:
            yield from (pretrained(config, folder, size, seed) for size, share in grid if not share)


def measure(folder: Path, size: int, share: float, seed: int) -> dict[str, Any]:
    """Train both learners on `size` lines, a share of them with wrong labels; return their accuracies, by KINDS."""
    task, labels = TASK.make(1337), TASK.labels
    examples = mislabelled(random.Random(seed).sample(task["train"], len(task["train"]))[:size], share, seed)
    name, iterations = f"{size}-{100 * share:.0f}-{seed}", ITERATIONS[size]
    dataset = write_dataset(folder / "data" / name, task | {"train": examples}, labels, tokenizer_of_pairs(task))
    lengths = {"max_iters": iterations, "eval_interval": iterations // 2}
    train("train", "lab_classifier", folder / name, dataset, seed=seed, **lengths)
    learners = {"model": classifier(folder / name, labels), "ngram": ngrams(examples, labels)}
    prompts = [prompt for prompt, _ in task["test"]]
    probs = {learner: classify(prompts) for learner, classify in learners.items()}
    result: dict[str, Any] = {"examples": size, "share": share, "seed": seed}
    for kind, test in zip(KINDS, (task["test"], mislabelled(task["test"], WORST, seed)), strict=True):
        result[kind] = {learner: float(right(own, test, labels).mean()) for learner, own in probs.items()}
    return result


def mislabelled(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Replace the labels of a share of the pairs (rounded) by other labels of the task, with equal probabilities.

    With the same seed, the wrong labels of a smaller share are among those of a larger one.
    """
    rng = random.Random(seed)
    other_labels = [rng.choice([label for label in TASK.labels if label != right]) for _, right in pairs]
    wrong = set(rng.sample(range(len(pairs)), len(pairs))[: round(share * len(pairs))])
    return [(pair[0], other_labels[i]) if i in wrong else pair for i, pair in enumerate(pairs)]


def pretrained(config: LabConfig, folder: Path, size: int, seed: int) -> Stage:
    """Make the stage that fine-tunes the pretrained model with LoRA on `size` lines, as in docs/FINETUNING.md."""
    lengths = {"examples": size, "max_iters": PRETRAINED[size]}
    method = methods.Method("finetune", methods.LARGE, lengths, "pretrained")
    job = methods.TrainingJob(f"pretrained, LoRA, {size:,} examples", method, config.pretrained, seed)

    def compute() -> dict[str, Any]:
        write_dataset(folder / "data" / TASK.name, TASK.make(1337), TASK.labels)
        figures = methods.measure(job, dataclasses.replace(config, data_dir=str(folder / "data")), folder)
        return {"examples": size, "share": 0.0, "seed": seed, "correct": {"pretrained": figures["accuracy"]}}

    return Stage(job.title(), 60 + 2 * PRETRAINED[size], compute)


def accuracies(results: Results, learner: str, share: float, kind: str = "correct") -> dict[int, list[float]]:
    """Collect a learner's accuracies with a share of wrong labels: by number of examples, one for each seed."""
    by_size: dict[int, list[float]] = {}
    for result in results.values():
        if result["share"] == share and learner in result.get(kind, {}):
            by_size.setdefault(result["examples"], []).append(result[kind][learner])
    return by_size


def summarise(results: Results, config: LabConfig) -> Summary:
    learners = LEARNERS | ({"pretrained": "pretrained model, LoRA"} if config.pretrained else {})
    sizes, shares = (sorted({result[key] for result in results.values()}) for key in ("examples", "share"))
    by_learner = {(learner, share): accuracies(results, learner, share) for learner in learners for share in shares}
    curves = {
        key: {size: statistics.median(values) for size, values in by_size.items()}
        for key, by_size in by_learner.items()
        if by_size
    }
    rows = []
    for size, share in product(sizes, shares):
        cells = {name: by_learner[learner, share].get(size) for learner, name in learners.items()}
        if size in by_learner["model", share]:
            row = {"examples": f"{size:,}", "wrong labels": f"{100 * share:.0f}%"}
            rows.append(row | {name: percent(values) if values else "" for name, values in cells.items()})
    note = (
        "Accuracy on 1,000 test lines with brands that do not occur in training, all with correct labels: median over "
        "the seeds (minimum to maximum). Each seed draws its own examples and its own wrong labels, each of the eleven "
        "other labels with the same probability. The choice of the test lines makes each accuracy uncertain by up to 3 "
        "percentage points (95% confidence); all rows are measured on the same lines. The tiny model's checkpoint is "
        "chosen on 500 validation lines with correct labels, in each row."
    )
    if config.pretrained:
        note += f" The pretrained model ({config.pretrained}) learns the first examples, the same with each seed."
    reported = {
        learner: [statistics.median(accuracies(results, learner, 0.0, kind)[sizes[-1]]) for kind in KINDS]
        for learner in LEARNERS
    }
    return Summary(
        "How many labels does a task need, and how accurate must they be?",
        "Spending categories of card-statement lines, learned from few or many labels, some of them wrong.",
        [
            Table("Accuracy", rows, note),
            Table(
                f"The same models, measured with {100 * WORST:.0f}% wrong labels in the test split",
                [
                    {
                        "learner": LEARNERS.get(learner, learner),
                        "correct labels": percent([right]),
                        "wrong labels": percent(wrong) if wrong else "",
                        "expected": percent([on_wrong_labels(right)]),
                    }
                    for learner, (right, *wrong) in {**reported, "perfect model": [1.0]}.items()
                ],
                f"Learners of {sizes[-1]:,} examples with correct labels. Expected: a (1 - w) + "
                f"(1 - a) w / 11 for the accuracy a and the share w = {WORST} of wrong labels, since a wrong answer "
                "agrees with a wrong label in one of eleven cases.",
            ),
        ],
        [
            *(cost_of_wrong(LEARNERS[key], {share: by_learner[key, share] for share in shares}) for key in LEARNERS),
            more_labels({name: curves[learner, 0.0] for learner, name in learners.items()}),
            better(curves["model", 0.0], curves["ngram", 0.0]),
            Verdict(
                f"A test split with {100 * WORST:.0f}% wrong labels reports {100 * reported['model'][1]:.1f}% for a "
                f"model whose accuracy is {100 * reported['model'][0]:.1f}%. Correct the labels of the test split "
                "before those of train.",
                "the tiny model of the second table; the same answers, compared with correct and with wrong labels",
            ),
        ],
        "Accuracy on correct labels against the number of training examples",
        partial(draw, curves=curves, names=learners),
    )


def on_wrong_labels(right: float) -> float:
    """Compute the accuracy measured on a test split with the share `WORST` of wrong labels, from the true accuracy."""
    return right * (1 - WORST) + (1 - right) * WORST / (len(TASK.labels) - 1)


def cost_of_wrong(name: str, by_share: dict[float, dict[int, list[float]]]) -> Verdict:
    """State how many correct labels give the same accuracy. by_share: share of wrong ones -> examples -> accuracies."""
    clean, statements = by_share[0.0], []
    most = max(clean)
    for share in sorted(by_share)[1:]:
        lost = statistics.median(right - wrong for right, wrong in zip(clean[most], by_share[share][most], strict=True))
        cost = "are worth as much as correct ones"
        if lost > CLOSE:
            curves = ({size: values[seed] for size, values in clean.items()} for seed in range(len(clean[most])))
            worths = [worth(curve, wrong) for curve, wrong in zip(curves, by_share[share][most], strict=True)]
            cost = f"are worth about {spread(worths, ',.0f')} correct ones"
        statements.append(f"{most:,} labels, {100 * share:.0f}% of them wrong, {cost} ({-100 * lost:+.1f} points)")
    return Verdict(
        f"{name}: {'; '.join(statements)}.",
        "the number of correct labels with the same accuracy, by interpolation between the rows without wrong "
        "labels (linear in its logarithm), for each seed: median (minimum to maximum); a median loss of up to "
        f"{100 * CLOSE:.0f} percentage points is not counted. It holds for uniformly drawn errors and "
        "checkpoints chosen on correct labels",
    )


def worth(clean: Curve, accuracy: float) -> int:
    """Find how many correct labels give an accuracy, by interpolation over the logarithm of their number."""
    sizes = sorted(clean)
    heights = np.maximum.accumulate([clean[size] for size in sizes])  # interpolation needs a rising curve
    return round(math.exp(np.interp(accuracy, heights, np.log(sizes))))


def more_labels(clean: dict[str, Curve]) -> Verdict:
    """Judge whether more examples would help, by the last step of each curve."""
    fewer, most = sorted(next(iter(clean.values())))[-2:]
    gains = {name: curve[most] - curve[fewer] for name, curve in clean.items()}
    advice = {name: "collect more examples" if gain > CLOSE else "enough examples" for name, gain in gains.items()}
    return Verdict(
        "; ".join(f"{name}: {advice[name]} ({100 * gain:+.1f} points)" for name, gain in gains.items()) + ".",
        f"more examples help if going from {fewer:,} to {most:,} correct labels gains more than {100 * CLOSE:.0f} "
        "percentage points",
    )


def better(model: Curve, ngram: Curve) -> Verdict:
    """Compare the two learners for each number of examples."""
    statements = []
    for size in sorted(model):
        gap = model[size] - ngram[size]
        winner = "no difference" if abs(gap) <= CLOSE else LEARNERS["model" if gap > 0 else "ngram"]
        statements.append(f"{size:,} examples: {winner} ({100 * gap:+.1f} points)")
    return Verdict(
        f"Better with correct labels, by number of examples: {'; '.join(statements)}.",
        f"accuracy of the tiny model minus that of the n-gram baseline; up to {100 * CLOSE:.0f} points do not count",
    )


def draw(axes: Any, curves: dict[tuple[str, float], Curve], names: dict[str, str]) -> None:
    lines = {"model": "o-", "ngram": "s--", "pretrained": "^:"}
    shades = {share: f"C{index}" for index, share in enumerate(SHARES)}
    for (learner, share), curve in curves.items():
        label = f"{names[learner]}, {100 * share:.0f}% wrong labels"
        heights = [100 * value for value in curve.values()]
        axes.plot(list(curve), heights, lines[learner], color=shades[share], label=label, markersize=4)
    sizes = sorted(curves["model", 0.0])
    axes.set(xlabel="training examples (logarithmic)", ylabel="accuracy (%)", xscale="log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


ABOUT = "how many labels does one need, and how good must they be?"
LAB = Lab(ABOUT, stages, summarise, models=("pretrained",), quick=True, ngrams=True)
