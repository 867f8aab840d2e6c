"""`tinygpt lab why`: can we explain why the model decided so?

The tiny model learns transactions, a share of which has a wrong label. Two questions to the estimates of `tinygpt why`:
does an answer depend on the lines that they name (the model is trained again without these), and do they find the wrong
labels, by the harm that a line does to correct validation lines? They are compared with a text search, and with the
loss of a line. Koh & Liang 2017, "Understanding black-box predictions via influence functions", section 5.4, ask the
second question, too, of the influence of a line on its own loss, which needs no correct lines, and is not measured
here.
"""

import math
import random
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.memory import write_dataset
from tinygpt.examine.eval.classify import label_scores
from tinygpt.examine.experiment.models import classifier, right, train
from tinygpt.examine.experiment.stages import Results, Stage, every_seed
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent, spread
from tinygpt.examine.why.command import random_rows
from tinygpt.examine.why.explained import Explained, load_run, log_probability, output, texts_of
from tinygpt.examine.why.retrain import effects, retrain
from tinygpt.learn.lab.definition import Lab, seeds
from tinygpt.learn.lab.labels import TASK, mislabelled
from tinygpt.model import GPT
from tinygpt.training.losses import row_losses, tensors
from tinygpt.use.ask.search import word_scores

WRONG = 0.1  # share of the training lines whose label is wrong
CLOSE = 5  # percentage points; shares that differ by less count as equal


class Size(NamedTuple):
    lines: int  # in training
    iterations: int
    answers: int  # that are explained, for each seed
    left_out: int  # lines that a proof leaves out
    judges: int  # correct validation lines that measure the harm of a training line


FULL, QUICK = Size(1000, 200, 4, 30, 200), Size(400, 100, 2, 20, 100)
GROUPS = {"influence": "the most influential", "search": "the nearest by BM25", "random": "random ones"}
RANKINGS = {"harm": "harm to correct lines", "loss": "highest loss", "known": "known wrong labels"}


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    seconds = 4 + size.iterations / 25
    for seed in seeds(config):
        own = folder / f"seed-{seed}"
        yield Stage(f"train, seed {seed}", seconds, partial(fit, own, size, seed))
        yield Stage(f"wrong labels, seed {seed}", 8 * seconds, partial(find_wrong, own, size, seed))
        for number in range(size.answers):
            line = (seed - 1) * size.answers + number  # another one with each seed, for the sign test
            yield Stage(f"answer {number + 1}, seed {seed}", 5 * seconds, partial(explain, own, size, seed, line))


def fit(folder: Path, size: Size, seed: int) -> None:
    task = TASK.make(1337)
    lines = mislabelled(random.Random(seed).sample(task["train"], size.lines), WRONG, seed)
    dataset = write_dataset(folder / "data/lines", task | {"train": lines}, TASK.labels, task)
    train("train", "lab_classifier", folder / "run", dataset.folder, seed=seed, max_iters=size.iterations)


def loaded(folder: Path) -> Explained:
    return load_run(WhyConfig(run=str(folder / "run"), data_dir=str(folder / "data")))


def find_wrong(folder: Path, size: Size, seed: int) -> dict[str, Any]:
    """Rank the training lines by suspicion in each of RANKINGS, and train again without as many as are wrong."""
    explained = loaded(folder)
    judges = tensors(explained.dataset.sources["val"], explained.config.block_size, np.arange(size.judges))
    harm, model = effects(explained, *judges)
    with torch.no_grad():
        loss = row_losses(model.eval(), *tensors(explained.source, explained.config.block_size, explained.rows)).numpy()
    truth = dict(TASK.make(1337)["train"])
    examples = explained.source.examples(explained.dataset.tokenizer)
    wrong = np.array([truth[prompt] != label for prompt, label in examples])
    rankings = {name: np.argsort(-1.0 * each) for name, each in zip(RANKINGS, (harm, loss, wrong), strict=True)}
    models = {name: retrain(explained, rows[: wrong.sum()], seed) for name, rows in rankings.items()} | {"none": model}
    accuracies = {name: accuracy(explained, each) for name, each in models.items()}
    return {"accuracy": accuracies, "wrong": {name: wrong[rows].tolist() for name, rows in rankings.items()}}


def accuracy(explained: Explained, model: GPT) -> float:
    """Measure the accuracy on the test lines, whose labels are correct."""
    tokenizer = explained.dataset.tokenizer
    test = explained.dataset.sources["test"].examples(tokenizer)
    scores, _ = label_scores(model, tokenizer, [line for line, _ in test], TASK.labels)
    return float(right(scores, test, TASK.labels).mean())


def explain(folder: Path, size: Size, seed: int, number: int) -> dict[str, float]:
    """Explain the model's answer to a validation line; return the changes of its log-probability in nats if the model
    is trained again without each group of lines in GROUPS."""
    explained = loaded(folder)
    lines = explained.dataset.sources["val"].examples(explained.dataset.tokenizer)
    line = lines[-1 - number % (len(lines) - size.judges)][0]  # no judge
    answer = TASK.labels[int(classifier(folder / "run", TASK.labels)([line]).argmax())]
    encoded = output(explained, line, answer)
    estimate, model = effects(explained, *encoded)
    influential = np.argsort(estimate, kind="stable")[: size.left_out]
    scores = np.array(word_scores(texts_of(explained), f"{line} {answer}"))
    best = np.argsort(-scores, kind="stable")[: size.left_out]
    near = best[scores[best] > 0]  # that share a word
    groups = zip(GROUPS, (influential, near, random_rows(explained, influential, seed)), strict=True)
    after = {name: log_probability(retrain(explained, rows, seed), *encoded) for name, rows in groups}
    return {name: value - log_probability(model, *encoded) for name, value in after.items()}


def summarise(results: Results, config: LabConfig) -> Summary:
    size = QUICK if config.quick else FULL
    each_seed, planted = every_seed(results, "wrong labels"), round(WRONG * size.lines)
    answers = [result for stage, result in results.items() if stage.startswith("answer ")]
    changes = {name: [answer[name] for answer in answers] for name in GROUPS}
    shares = {name: [statistics.mean(each["wrong"][name][:planted]) for each in each_seed] for name in RANKINGS}
    accuracies = {name: [each["accuracy"][name] for each in each_seed] for name in (*RANKINGS, "none")}
    rows = [
        {
            "ranked by": RANKINGS.get(name, "trained on all lines"),
            f"wrong among the first {planted}": percent(shares[name]) if name in shares else "",
            "accuracy without these": percent(accuracies[name]),
        }
        for name in accuracies
    ]

    def draw(axes: Any) -> None:
        inspected = 100 * np.arange(1, size.lines + 1) / size.lines
        for name in ("harm", "loss"):
            curve = np.mean([np.cumsum(each["wrong"][name]) / planted for each in each_seed], axis=0)
            axes.plot(inspected, 100 * curve, label=RANKINGS[name])
        axes.plot(inspected, inspected, ":", color="gray", label="at random")
        axes.set(xlabel="training lines inspected (%)", ylabel="wrong labels found (%)")
        axes.legend(frameon=False)

    return Summary(
        "Can we explain why the model decided so?",
        f"The tiny model learns {size.lines:,} transactions, {100 * WRONG:.0f}% of them with a wrong label. Which "
        "lines caused an answer, and which ones harm others?",
        [
            Table(
                f"Log-probability of an answer without {size.left_out} lines",
                [{"left out": GROUPS[name], "change in nats": spread(changes[name], "+.2f")} for name in GROUPS],
                f"Median over {len(answers)} answers of the model to validation lines (minimum to maximum). The model "
                "is trained again from the start, with everything else equal.",
            ),
            Table(
                "Wrong labels",
                rows,
                f"{planted} labels are wrong. Harm: estimated rise of the log-probability of {size.judges} correct "
                "validation lines if the line is left out. Accuracy on 1,000 test lines. Median over the seeds.",
            ),
        ],
        [proves(changes, "random"), proves(changes, "search"), detects(shares, accuracies)],
        "Wrong labels found, by the share of the training lines that a person inspects in the order of a ranking",
        draw,
    )


def proves(changes: dict[str, list[float]], other: str) -> Verdict:
    """Judge whether the influential lines mattered more than others, by a sign test over the answers."""
    pairs = list(zip(changes["influence"], changes[other], strict=True))
    count, wins = len(pairs), sum(ours < min(theirs, 0) for ours, theirs in pairs)
    chance = sum(math.comb(count, k) for k in range(wins, count + 1)) / 2**count
    return Verdict(
        f"The most influential lines mattered {'more' if chance < 0.05 else 'not clearly more'} than {GROUPS[other]}: "
        f"{wins} of {count} answers fell further without them.",
        f"more: chance gives so many with a probability below 0.05, here {chance:.3f} (sign test, as if the answers of "
        "one model were independent)",
    )


def detects(shares: dict[str, list[float]], accuracies: dict[str, list[float]]) -> Verdict:
    """Judge which ranking finds more of the wrong labels."""
    harm, loss = (100 * statistics.median(shares[name]) for name in ("harm", "loss"))
    without, none = (100 * statistics.median(accuracies[name]) for name in ("harm", "none"))
    finds = "about as many as" if abs(harm - loss) < CLOSE else "more than" if harm > loss else "fewer than"
    return Verdict(
        f"The harm to correct lines finds {harm:.0f}% of the wrong labels, {finds} the highest loss ({loss:.0f}%); "
        f"chance finds {100 * WRONG:.0f}%. Without the lines that it names, the accuracy changes from {none:.1f} to "
        f"{without:.1f}%.",
        f"about as many: less than {CLOSE} percentage points apart; medians over the seeds",
    )


LAB = Lab("which training lines caused an answer, and which labels are wrong", stages, summarise, quick=True)
