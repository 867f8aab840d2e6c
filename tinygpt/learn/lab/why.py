"""`tinygpt lab why`: can we explain a model's decision?

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

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, gap, percent, spread
from tinygpt.learn.lab.definition import Lab, accuracy, learn, seeds, stage
from tinygpt.learn.lab.labels import Pairs, first_wrong, mislabelled

TASK = "transactions"
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
    splits, labels, _ = api.task(TASK)
    lines = mislabelled(drawn(size, seed), labels, WRONG, seed)
    dataset = api.write_dataset(folder / "data/lines", splits | {"train": lines}, labels, splits)
    learn("lab_classifier", folder / "run", dataset, seed=seed, max_iters=size.iterations)


def drawn(size: Size, seed: int) -> Pairs:
    """Draw training lines with correct labels."""
    return random.Random(seed).sample(api.task(TASK).splits["train"], size.lines)


def learned(folder: Path) -> tuple[api.Run, Pairs]:
    """Return the run and its training lines."""
    dataset = api.Dataset(str(folder / "data"), "lines")
    return api.Run(folder / "run", data_dir=folder / "data"), dataset.sources["train"].examples(dataset.tokenizer)


def find_wrong(folder: Path, size: Size, seed: int) -> list[dict[str, Any]]:
    """Rank the training lines by suspicion in each of RANKINGS, and train again without as many as are wrong."""
    run, lines = learned(folder)
    splits, labels, _ = api.task(TASK)
    harm, model, *_ = run.influence(splits["val"][: size.judges])
    loss = np.array([-model.log_probabilities(line, [label])[0] for line, label in lines])
    truth = dict(splits["train"])
    wrong = np.array([truth[line] != label for line, label in lines])

    def measured(ranking: str, model: api.LoadedModel) -> dict[str, Any]:
        probabilities = model.probabilities([line for line, _ in splits["test"]], labels)
        return {"ranking": ranking, "accuracy": accuracy(probabilities, splits["test"], labels)}

    measurements = []
    for ranking, suspicion in {"harm": harm, "loss": loss, "known": wrong}.items():
        rows = np.argsort(-1.0 * suspicion)
        figures = measured(ranking, run.retrain(rows[: wrong.sum()], seed))
        measurements.append(figures | {"wrong": wrong[rows].tolist()})
    return [*measurements, measured("none", model)]


def explain(folder: Path, size: Size, seed: int, line: int) -> list[dict[str, Any]]:
    """Explain the model's answer to a validation line; return the changes of its log-probability in nats if the model
    is trained again without each group of lines in GROUPS."""
    run, lines = learned(folder)
    prompts = [prompt for prompt, _ in api.task(TASK).splits["val"]]
    prompt = prompts[-1 - line % (len(prompts) - size.judges)]  # no judge
    answer = next(iter(run.load(device="cpu").classify(prompt)))
    effects, model, similar, _ = run.influence([(prompt, answer)])
    influential = np.argsort(effects, kind="stable")[: size.left_out]
    documents = api.Documents(texts=[f"{line} -> {label}" for line, label in lines])
    near = np.array([passage.id - 1 for passage in documents.search(f"{prompt} {answer}", size.left_out)])
    before = model.log_probabilities(prompt, [answer])[0]
    measurements = []
    for group, rows in {"influence": influential, "search": near, "random": similar(influential)}.items():
        after = run.retrain(rows, seed).log_probabilities(prompt, [answer])[0]
        measurements.append({"left out": group, "change": after - before})
    return measurements


def summarise(records: Records, config: LabConfig) -> Summary:
    size = QUICK if config.quick else FULL
    planted = round(WRONG * size.lines)
    for record in records.having("wrong"):
        record["found"] = statistics.mean(record["wrong"][:planted])
    changes = {group: own.values("change") for group, own in records.having("left out").by("left out").items()}
    rankings = records.having("ranking").by("ranking")
    return Summary(
        "Can we explain a model's decision?",
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
        [detects(rankings), proves(changes, "random"), proves(changes, "search")],
        "Wrong labels found, by the share of the training lines that a person inspects in the order of a ranking",
        picture(rankings, planted),
        first_wrong(drawn(size, seed=1), api.task(TASK).labels, WRONG, seed=1),
    )


def proves(changes: dict[str, list[float]], other: str) -> Verdict:
    """Judge whether the influential lines mattered more than others, by a sign test over the answers."""
    pairs = list(zip(changes["influence"], changes[other], strict=True))
    count = len(pairs)
    wins = sum(ours < min(theirs, 0) for ours, theirs in pairs)
    chance = sum(math.comb(count, k) for k in range(wins, count + 1)) / 2**count
    more = "more" if chance < 0.05 else "not clearly more"
    return Verdict(
        f"The most influential lines mattered {more} than {GROUPS[other]}: "
        f"{wins} of {count} answers fell further without them.",
        f"more: chance gives so many with a probability below 0.05, here {chance:.3f} (sign test, as if the answers of "
        "one model were independent)",
    )


def detects(rankings: dict[str, Records]) -> Verdict:
    """Judge which ranking finds more of the wrong labels."""
    harm, loss = (rankings[ranking].percent("found") for ranking in ("harm", "loss"))
    finds = "more than" if harm > loss else "fewer than"
    if abs(gap(harm, loss)) < CLOSE:
        finds = "about as many as"
    return Verdict(
        f"Ranking lines by their harm to correct ones finds {harm:.0f}% of the wrong labels, {finds} by their loss "
        f"({loss:.0f}%); chance finds {100 * WRONG:.0f}%.",
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


LAB = Lab("which training lines caused an answer?", stages, summarise, quick=True)
