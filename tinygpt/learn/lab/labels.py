"""`tinygpt lab labels`: how many labels does a task need, and how accurate must they be?

The tiny model and the n-gram baseline learn the transactions from 50 to 4,000 examples, a share of which has a wrong
label. The labels of validation and test are correct; a second table shows how wrong labels in the test split change a
measured accuracy. A pretrained model adds a column.
"""

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Example, Summary, Table, Verdict, gap, percent, spread
from tinygpt.learn.lab.definition import TEST_LINES, Lab, accuracy, learn, seeds, stage

# labels besides the correct one
TASK = "transactions"
OTHERS = 11
ITERATIONS = {50: 60, 200: 60, 1000: 120, 4000: 300}  # by the number of examples; many passes over few are memorised
FINETUNING = {50: 30, 200: 50, 1000: 100, 4000: 250}  # the same for the pretrained model
SHARES = (0.0, 0.1, 0.2)  # of wrong labels
GRID = [(size, share) for size in ITERATIONS for share in SHARES]
QUICK = [(50, 0.0), (1000, 0.0), (1000, 0.2)]  # of GRID
WORST = max(SHARES)  # also of the test split, for the second table
CLOSE = 0.02  # accuracies that differ by less count as equal
MODEL = "tiny model"
NGRAM = "n-gram baseline"
PRETRAINED = "pretrained model, LoRA"
LEARNERS = {MODEL: "o-", NGRAM: "s--", PRETRAINED: "^:"}  # and their lines in the picture

Pairs = list[tuple[str, str]]  # line and label
Curve = dict[int, float]  # number of examples -> accuracy on correct labels


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    grid = QUICK if config.quick else GRID
    for seed in seeds(config):
        for size, share in grid:
            name = f"{size:,} examples, {100 * share:.0f}% wrong labels, seed {seed}"
            seconds = 4 + ITERATIONS[size] / 25
            yield stage(name, seconds, measure, folder, examples=size, share=share, seed=seed)
        for size in dict(grid) if config.pretrained else ():
            name = f"pretrained, LoRA, {size:,} examples, from {config.pretrained}, seed {seed}"
            seconds = 60 + 2 * FINETUNING[size]
            yield stage(name, seconds, measure_pretrained, folder, config.pretrained, examples=size, seed=seed)


def measure(folder: Path, examples: int, share: float, seed: int) -> list[dict[str, Any]]:
    """Train both learners on lines, a share of them with wrong labels, and measure their accuracies on correct and on
    wrong labels of the test split."""
    splits, labels, _ = api.task(TASK)
    lines = mislabelled(drawn(examples, seed), labels, share, seed)
    test = splits["test"]
    name = f"{examples}-{100 * share:.0f}-{seed}"
    iterations = ITERATIONS[examples]
    dataset = api.write_dataset(folder / "data" / name, splits | {"train": lines}, labels, splits)
    lengths = {"max_iters": iterations, "eval_interval": iterations // 2}
    run = learn("lab_classifier", folder / name, dataset, seed=seed, **lengths)
    prompts = [line for line, _ in test]
    answers = {
        MODEL: run.load(device="cpu").probabilities(prompts, labels),
        NGRAM: api.ngrams(lines, labels)(prompts),
    }
    wrong = mislabelled(test, labels, WORST, seed)
    return [
        {"learner": learner, "correct": accuracy(own, test, labels), "wrong": accuracy(own, wrong, labels)}
        for learner, own in answers.items()
    ]


def drawn(examples: int, seed: int) -> Pairs:
    """Draw training examples with correct labels."""
    train = api.task(TASK).splits["train"]
    return random.Random(seed).sample(train, len(train))[:examples]


def measure_pretrained(folder: Path, base: str, examples: int, seed: int) -> dict[str, Any]:
    """Fine-tune a pretrained model with LoRA on the first examples, as in docs/explanation/fine-tuning.md."""
    splits, labels, _ = api.task(TASK)
    dataset = api.write_dataset(folder / "data" / TASK, splits, labels)
    out = folder / f"pretrained-{examples}-{seed}-{quote(base, safe='')}"
    settings: dict[str, Any] = {"ckpt": base, "seed": seed, "examples": examples, "max_iters": FINETUNING[examples]}
    run = learn("finetune_transactions_pretrained", out, dataset, **settings)
    answers = run.load(device="cpu").probabilities([line for line, _ in splits["test"]])
    return {"learner": PRETRAINED, "share": 0.0, "correct": accuracy(answers, splits["test"], labels)}


def mislabelled(pairs: Pairs, labels: Sequence[str], share: float, seed: int) -> Pairs:
    """Replace the labels of a share of the pairs (rounded) by other labels of the task, with equal probabilities.

    With the same seed, the wrong labels of a smaller share are among those of a larger one.
    """
    rng = random.Random(seed)
    other_labels = [rng.choice([label for label in labels if label != right]) for _, right in pairs]
    wrong = set(rng.sample(range(len(pairs)), len(pairs))[: round(share * len(pairs))])
    return [(pair[0], other_labels[i]) if i in wrong else pair for i, pair in enumerate(pairs)]


def summarise(records: Records, config: LabConfig) -> Summary:
    learners = records.by("learner")
    clean = {learner: curve(own.where(share=0.0)) for learner, own in learners.items()}
    rows = [
        {"examples": f"{size:,}", "wrong labels": f"{100 * share:.0f}%"}
        | {learner: percent(own.where(learner=learner).values("correct")) for learner in learners}
        for (size, share), own in sorted(records.by("examples", "share").items())
    ]
    note = (
        f"Accuracy on {TEST_LINES}, all with correct labels: median over the seeds (minimum to maximum). Each seed "
        "draws its own examples and its own wrong labels, each of the eleven other labels with the same probability. "
        "The choice of the test lines makes each accuracy uncertain by up to 3 percentage points (95% confidence); all "
        "rows are measured on the same lines. The tiny model's checkpoint is chosen on 500 validation lines with "
        "correct labels, in each row."
    )
    if config.pretrained:
        note += f" The pretrained model ({config.pretrained}) learns the first examples, the same with each seed."
    most = max(records.values("examples"))
    model, ngram = (learners[learner].where(examples=most, share=0.0) for learner in (MODEL, NGRAM))
    on_wrong = [
        {
            "learner": learner,
            "correct labels": percent([right]),
            "wrong labels": percent(wrong),
            "expected": percent([on_wrong_labels(right)]),
        }
        for learner, right, wrong in (
            (MODEL, model.median("correct"), [model.median("wrong")]),
            (NGRAM, ngram.median("correct"), [ngram.median("wrong")]),
            ("perfect model", 1.0, []),
        )
    ]
    return Summary(
        "How many labels does a task need, and how accurate must they be?",
        "Spending categories of card-statement lines, learned from few or many labels, some of them wrong.",
        [
            Table("Accuracy", rows, note),
            Table(
                f"The same models, measured with {100 * WORST:.0f}% wrong labels in the test split",
                on_wrong,
                f"Learners of {most:,} examples with correct labels. Expected: a (1 - w) + "
                f"(1 - a) w / 11 for the accuracy a and the share w = {WORST} of wrong labels, since a wrong answer "
                "agrees with a wrong label in one of eleven cases.",
            ),
        ],
        [
            cost_of_wrong(MODEL, learners[MODEL]),
            cost_of_wrong(NGRAM, learners[NGRAM]),
            more_labels(clean),
            Verdict(
                f"A test split with {100 * WORST:.0f}% wrong labels reports {model.percent('wrong'):.1f}% for a "
                f"model whose accuracy is {model.percent('correct'):.1f}%. Correct the labels of the test split "
                "before those of train.",
                "the tiny model of the second table; the same answers, compared with correct and with wrong labels",
            ),
        ],
        "Accuracy on correct labels against the number of training examples",
        picture(learners),
        first_wrong(drawn(most, seed=1), api.task(TASK).labels, WORST, seed=1),
    )


def first_wrong(pairs: Pairs, labels: Sequence[str], share: float, seed: int) -> Example:
    """Show the first of the pairs whose label `mislabelled` replaces."""
    both = zip(pairs, mislabelled(pairs, labels, share, seed), strict=True)
    (line, right), (_, wrong) = next((old, new) for old, new in both if old != new)
    note = f"The right label is {right}. Of the lines of seed {seed}, {100 * share:.0f}% are mislabelled like this one."
    return Example("A line with a wrong label", f"{line} →", wrong, note)


def curve(records: Records) -> Curve:
    return {size: own.median("correct") for size, own in records.by("examples").items()}


def on_wrong_labels(right: float) -> float:
    """Compute the accuracy measured on a test split with the share `WORST` of wrong labels, from the true accuracy."""
    return right * (1 - WORST) + (1 - right) * WORST / OTHERS


def cost_of_wrong(learner: str, records: Records) -> Verdict:
    """State how many correct labels give a learner the same accuracy."""
    curves = {seed: curve(own) for seed, own in records.where(share=0.0).by("seed").items()}
    most = max(records.values("examples"))
    statements = []
    for share, wrong in sorted(records.where(examples=most).by("share").items())[1:]:
        change = statistics.median(gap(one["correct"], curves[one["seed"]][most]) for one in wrong)
        cost = "are worth as much as correct ones"
        if gap(change, -CLOSE) < 0:
            worths = [worth(curves[one["seed"]], one["correct"]) for one in wrong]
            about = "at most" if statistics.median(worths) == min(records.values("examples")) else "about"
            cost = f"are worth {about} {spread(worths, ',.0f')} correct ones"
        statements.append(f"{most:,} labels, {100 * share:.0f}% wrong, {cost} (accuracy {100 * change:+.1f} points)")
    return Verdict(
        f"For the {learner}, {'; '.join(statements)}.",
        "the number of correct labels with the same accuracy, by interpolation between the rows without wrong "
        "labels (linear in its logarithm), for each seed: median (minimum to maximum); a lower accuracy than in these "
        f"rows counts as that of the fewest labels; a median loss of up to {100 * CLOSE:.0f} percentage points is not "
        "counted. It holds for uniformly drawn errors and checkpoints chosen on correct labels",
    )


def worth(clean: Curve, accuracy: float) -> int:
    """Find how many correct labels give an accuracy, by interpolation over the logarithm of their number."""
    sizes = sorted(clean)
    heights = np.maximum.accumulate([clean[size] for size in sizes])  # interpolation needs a rising curve
    return round(math.exp(np.interp(accuracy, heights, np.log(sizes))))


def more_labels(clean: dict[str, Curve]) -> Verdict:
    """Judge whether more examples would help, by the last step of each learner's curve."""
    fewer, most = sorted(clean[MODEL])[-2:]
    statements = []
    for learner, curve in clean.items():
        gain = gap(curve[most], curve[fewer])
        advice = "collect more examples" if gain > CLOSE else "enough examples"
        statements.append(f"{learner}: {advice} ({100 * gain:+.1f} points)")
    return Verdict(
        f"{'; '.join(statements)}.",
        f"more examples help if going from {fewer:,} to {most:,} correct labels gains more than {100 * CLOSE:.0f} "
        "percentage points",
    )


def picture(learners: dict[str, Records]) -> Plane:
    lines = [
        Line(f"{learner}, {100 * share:.0f}% wrong labels", list(points := curve(own)),
             [100 * height for height in points.values()], LEARNERS[learner], f"C{SHARES.index(share)}")
        for learner, records in learners.items()
        for share, own in records.by("share").items()
    ]  # fmt: skip
    ticks = {size: f"{size:,}" for size in lines[0].x}
    return Plane("training examples (logarithmic)", "accuracy (%)", lines, ticks, log=True)


LAB = Lab(
    "how many labels does a task need, and how accurate must they be?",
    stages,
    summarise,
    models=("pretrained",),
    quick=True,
    ngrams=True,
)
