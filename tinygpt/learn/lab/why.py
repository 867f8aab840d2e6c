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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinygpt import api
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.memory import write_dataset
from tinygpt.data.tasks import TASKS
from tinygpt.examine.eval.classify import label_scores
from tinygpt.examine.experiment.models import classifier, train
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent, spread
from tinygpt.examine.why.command import random_rows
from tinygpt.examine.why.explained import Explained, load_run, log_probability, output, texts_of
from tinygpt.examine.why.retrain import effects, retrain
from tinygpt.learn.lab.definition import Lab, accuracy, seeds, stage
from tinygpt.learn.lab.labels import mislabelled
from tinygpt.model import GPT
from tinygpt.training.losses import row_losses, tensors

TASK = TASKS["transactions"]
WRONG = 0.1  # share of the training lines whose label is wrong
CLOSE = 5  # percentage points; shares that differ by less count as equal


class Size(NamedTuple):
    lines: int  # in training
    iterations: int
    answers: int  # that are explained, for each seed
    left_out: int  # lines that a proof leaves out
    judges: int  # correct validation lines that measure the harm of a training line


FULL = Size(1000, 200, 4, 30, 200)
QUICK = Size(400, 100, 2, 20, 100)
GROUPS = {"influence": "the most influential", "search": "the nearest by BM25", "random": "random ones"}
RANKINGS = {
    "harm": "harm to correct lines",
    "loss": "highest loss",
    "known": "known wrong labels",
    "none": "trained on all lines",
}


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    seconds = 4 + size.iterations / 25
    for seed in seeds(config):
        own = folder / f"seed-{seed}"
        yield stage(f"train, seed {seed}", seconds, fit, own, size, seed=seed)
        yield stage(f"wrong labels, seed {seed}", 8 * seconds, find_wrong, own, size, seed=seed)
        for number in range(size.answers):
            line = (seed - 1) * size.answers + number  # another one with each seed, for the sign test
            yield stage(f"answer {number + 1}, seed {seed}", 5 * seconds, explain, own, size, seed=seed, line=line)


def fit(folder: Path, size: Size, seed: int) -> None:
    task = TASK.make(1337)
    lines = mislabelled(random.Random(seed).sample(task["train"], size.lines), TASK.labels, WRONG, seed)
    dataset = write_dataset(folder / "data/lines", task | {"train": lines}, TASK.labels, task)
    train("train", "lab_classifier", folder / "run", dataset.folder, seed=seed, max_iters=size.iterations)


def loaded(folder: Path) -> Explained:
    return load_run(WhyConfig(run=str(folder / "run"), data_dir=str(folder / "data")))


def find_wrong(folder: Path, size: Size, seed: int) -> list[dict[str, Any]]:
    """Rank the training lines by suspicion in each of RANKINGS, and train again without as many as are wrong."""
    explained, task = loaded(folder), TASK.make(1337)
    judges = tensors(explained.dataset.sources["val"], explained.config.block_size, np.arange(size.judges))
    harm, model = effects(explained, *judges)
    with torch.no_grad():
        loss = row_losses(model.eval(), *tensors(explained.source, explained.config.block_size, explained.rows)).numpy()
    truth, tokenizer = dict(task["train"]), explained.dataset.tokenizer
    wrong = np.array([truth[line] != label for line, label in explained.source.examples(tokenizer)])

    def measured(ranking: str, model: GPT) -> dict[str, Any]:
        scores, _ = label_scores(model, tokenizer, [line for line, _ in task["test"]], TASK.labels)
        return {"ranking": ranking, "accuracy": accuracy(scores, task["test"], TASK.labels)}

    measurements = []
    for ranking, suspicion in {"harm": harm, "loss": loss, "known": wrong}.items():
        rows = np.argsort(-1.0 * suspicion)
        figures = measured(ranking, retrain(explained, rows[: wrong.sum()], seed))
        measurements.append(figures | {"wrong": wrong[rows].tolist()})
    return [*measurements, measured("none", model)]


def explain(folder: Path, size: Size, seed: int, line: int) -> list[dict[str, Any]]:
    """Explain the model's answer to a validation line; return the changes of its log-probability in nats if the model
    is trained again without each group of lines in GROUPS."""
    explained = loaded(folder)
    prompts = [prompt for prompt, _ in TASK.make(1337)["val"]]
    prompt = prompts[-1 - line % (len(prompts) - size.judges)]  # no judge
    answer = TASK.labels[int(classifier(folder / "run", TASK.labels)([prompt]).argmax())]
    encoded = output(explained, prompt, answer)
    estimate, model = effects(explained, *encoded)
    influential = np.argsort(estimate, kind="stable")[: size.left_out]
    passages = api.Documents(texts=texts_of(explained)).search(f"{prompt} {answer}", size.left_out)
    near = np.array([passage.id - 1 for passage in passages])  # that share a word
    groups = {"influence": influential, "search": near, "random": random_rows(explained, influential, seed)}
    before = log_probability(model, *encoded)
    return [
        {"left out": group, "change": log_probability(retrain(explained, rows, seed), *encoded) - before}
        for group, rows in groups.items()
    ]


def summarise(records: Records, config: LabConfig) -> Summary:
    size = QUICK if config.quick else FULL
    planted = round(WRONG * size.lines)
    for record in records.having("wrong"):
        record["found"] = statistics.mean(record["wrong"][:planted])
    changes = {group: own.values("change") for group, own in records.having("left out").by("left out").items()}
    rankings = records.having("ranking").by("ranking")
    return Summary(
        "Can we explain why the model decided so?",
        f"The tiny model learns {size.lines:,} transactions, {100 * WRONG:.0f}% of them with a wrong label. Which "
        "lines caused an answer, and which ones harm others?",
        [
            Table(
                f"Log-probability of an answer without {size.left_out} lines",
                [{"left out": GROUPS[group], "change in nats": spread(changes[group], "+.2f")} for group in GROUPS],
                f"Median over {len(changes['random'])} answers of the model to validation lines (minimum to maximum). "
                "The model is trained again from the start, with everything else equal.",
            ),
            Table(
                "Wrong labels",
                [
                    {
                        "ranked by": RANKINGS[ranking],
                        f"wrong among the first {planted}": percent(own.having("found").values("found")),
                        "accuracy without these": percent(own.values("accuracy")),
                    }
                    for ranking, own in rankings.items()
                ],
                f"{planted} labels are wrong. Harm: estimated rise of the log-probability of {size.judges} correct "
                "validation lines if the line is left out. Accuracy on 1,000 test lines. Median over the seeds.",
            ),
        ],
        [proves(changes, "random"), proves(changes, "search"), detects(rankings)],
        "Wrong labels found, by the share of the training lines that a person inspects in the order of a ranking",
        picture(rankings, planted),
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


def detects(rankings: dict[str, Records]) -> Verdict:
    """Judge which ranking finds more of the wrong labels."""
    harm, loss = (rankings[ranking].percent("found") for ranking in ("harm", "loss"))
    without, none = (rankings[ranking].percent("accuracy") for ranking in ("harm", "none"))
    finds = "about as many as" if abs(harm - loss) < CLOSE else "more than" if harm > loss else "fewer than"
    return Verdict(
        f"The harm to correct lines finds {harm:.0f}% of the wrong labels, {finds} the highest loss ({loss:.0f}%); "
        f"chance finds {100 * WRONG:.0f}%. Without the lines that it names, the accuracy changes from {none:.1f} to "
        f"{without:.1f}%.",
        f"about as many: less than {CLOSE} percentage points apart; medians over the seeds",
    )


def picture(rankings: dict[str, Records], planted: int) -> Plane:
    lines = []
    for color, ranking in (("C0", "harm"), ("C1", "loss")):
        found = 100 * np.mean(rankings[ranking].values("wrong"), axis=0).cumsum() / planted
        inspected = 100 * np.arange(1, len(found) + 1) / len(found)
        lines.append(Line(RANKINGS[ranking], inspected, found, "-", color))
    lines.append(Line("at random", inspected, inspected, ":"))
    return Plane("training lines inspected (%)", "wrong labels found (%)", lines)


ABOUT = "which training lines caused an answer, and which labels are wrong"
LAB = Lab(ABOUT, stages, summarise, quick=True, records=True)
