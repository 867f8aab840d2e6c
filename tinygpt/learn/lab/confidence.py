"""`tinygpt lab confidence`: does a fine-tuned model know that it does not know?

A tiny model is trained on Shakespeare, fine-tuned on the transactions, and reads test lines of the task and prompts
outside it. Confidence, the largest probability of a label, is the standard signal that a prompt is outside (Hendrycks &
Gimpel 2017). An answer below a threshold, chosen on the validation lines alone, becomes an abstention; coverage and
risk follow from it (El-Yaniv & Wiener 2010). The n-gram baseline answers the same prompts.
"""

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.memory import write_dataset
from tinygpt.data.tasks import TASKS, Pair
from tinygpt.data.tasks.transactions import LINE_WIDTH
from tinygpt.examine.eval.classify import ngrams
from tinygpt.examine.eval.threshold import lowest_threshold
from tinygpt.examine.experiment.models import classifier, prepared, right, train
from tinygpt.examine.experiment.stages import Results, Stage, every_seed
from tinygpt.examine.experiment.summary import Share, Summary, Table, Verdict, percent, pooled, spread
from tinygpt.examine.report.page import read
from tinygpt.learn.lab.definition import Lab, seeds
from tinygpt.learn.lab.methods import SONNET

TASK = TASKS["transactions"]
OUTSIDE = 200  # prompts of each kind outside the task, if there are as many
SYSTEMS = {"model": "fine-tuned model", "ngram": "n-gram baseline"}
FEWEST = 20  # answered validation lines; fewer may be correct by chance
CLOSE = 0.02  # AUROCs that differ by less count as equal
FULL, QUICK = (500, 600), (100, 200)  # iterations of the base model, and of the fine-tuning


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    """List the stages of each seed: train the base model, fine-tune it, ask both systems."""
    data, (base, task) = folder / "data", QUICK if config.quick else FULL
    yield prepared(data, folder, "shakespeare_char")
    for seed in seeds(config):
        out = folder / f"seed-{seed}"
        train_base = partial(train, "train", "lab_classifier", out / "base", data / "shakespeare_char")
        settings = {"seed": seed, "max_iters": base, "eval_iters": 20}
        yield Stage(f"base, seed {seed}", 3 + base / 20, partial(train_base, **settings))
        yield Stage(f"fine-tuning, seed {seed}", 6 + task / 20, partial(fine_tune, out, data, seed, task))
        for system in SYSTEMS:
            yield Stage(f"ask: {system}, seed {seed}", 5, partial(ask, system, out, data, seed))


def fine_tune(out: Path, data: Path, seed: int, iterations: int) -> dict[str, float]:
    """Fine-tune all weights on the task; return the losses of the base model's own text before and after."""
    dataset = write_dataset(data / f"transactions-{seed}", TASK.make(seed), TASK.labels)
    settings: dict[str, Any] = {"seed": seed, "ckpt": out / "base", "max_iters": iterations}
    settings |= {"eval_interval": 200, "eval_iters": 10}
    settings["learning_rate"] = 3e-3  # a narrow model allows a high rate
    cost = train("finetune", "finetune_transactions", out / "model", dataset.folder, **settings)
    return {**cost.base_losses, "characters": Dataset(str(data), "shakespeare_char").tokenizer.vocab_size}


def ask(system: str, out: Path, data: Path, seed: int) -> dict[str, Any]:
    """Measure a system's confidence by group of prompts, and which lines of val and test it answers correctly."""
    pairs = TASK.make(seed)
    groups = {split: [prompt for prompt, _ in pairs[split]] for split in ("val", "test")} | outside(data, pairs, seed)
    classify = classifier(out / "model", TASK.labels) if system == "model" else ngrams(pairs["train"], TASK.labels)
    by_group = {name: classify(prompts) for name, prompts in groups.items()}
    return {
        "confidence": {name: probs.max(axis=1).tolist() for name, probs in by_group.items()},
        "right": {split: right(by_group[split], pairs[split], TASK.labels).tolist() for split in ("val", "test")},
    }


def outside(data: Path, pairs: dict[str, list[Pair]], seed: int) -> dict[str, list[str]]:
    """Collect prompts outside the task, by kind, none longer than a line of the task."""
    rng, plays = random.Random(seed), Dataset(str(data), "shakespeare_char")
    verse = [line.strip() for line in plays.tokenizer.decode(plays.splits["val"].tolist()).split("\n")]
    verse = sorted({line for line in verse if 15 <= len(line) <= LINE_WIDTH and not line.endswith(":")})
    headlines = [prompt for prompt, _ in TASKS["headlines"].make(seed)["test"] if len(prompt) <= LINE_WIDTH]
    lengths = [len(prompt) for prompt, _ in pairs["test"]]
    characters = sorted({character for prompt, _ in pairs["train"] for character in prompt})
    sonnet = [line for line in SONNET.splitlines() if len(line) <= LINE_WIDTH]
    return {
        "Shakespeare": sonnet + rng.sample(verse, OUTSIDE - len(sonnet)),
        "other languages": read("learn/lab/sentences.txt").splitlines(),
        "headlines": headlines[:OUTSIDE],
        "random characters": ["".join(rng.choices(characters, k=length)) for length in lengths[:OUTSIDE]],
    }


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Compute the area under the ROC curve: P(inside > outside), where a tie counts a half; NaN without values."""
    if not len(inside) or not len(outside):
        return math.nan
    ordered = np.sort(outside)
    smaller, not_larger = (np.searchsorted(ordered, inside, side) for side in ("left", "right"))
    return float((smaller + not_larger).mean() / 2 / len(ordered))


def threshold(confidence: Sequence[float], right: Sequence[bool], target: float, fewest: int = FEWEST) -> float:
    """Find the lowest confidence at or above which there are at least `fewest` answers, and a share `target` of them is
    correct; infinity for none."""
    levels = np.asarray(confidence)
    correct = np.asarray(right)
    lowest = lowest_threshold(levels, levels, lambda sure: sure.sum() >= fewest and correct[sure].mean() >= target)
    return math.inf if lowest is None else lowest


class SystemResults:
    """The results of one system, as lists with a value for each seed."""

    def __init__(self, results: Results, system: str, target: float) -> None:
        runs = every_seed(results, f"ask: {system}")
        self.confidence = [{group: np.array(values) for group, values in run["confidence"].items()} for run in runs]
        self.right = [np.array(run["right"]["test"]) for run in runs]
        self.thresholds = [threshold(run["confidence"]["val"], run["right"]["val"], target) for run in runs]
        self.kinds = [group for group in self.confidence[0] if group not in ("val", "test")]

    def masks(self, group: str) -> list[np.ndarray]:
        """Return which prompts of a group are answered."""
        return [run[group] >= limit for run, limit in zip(self.confidence, self.thresholds, strict=True)]

    def answered(self, group: str) -> list[float]:
        """Return the share of the prompts of a group that are answered."""
        return [float(mask.mean()) for mask in self.masks(group)]

    def auroc(self, kind: str) -> list[float]:
        return [auroc(confidence["test"], confidence[kind]) for confidence in self.confidence]

    def mean(self, measure: Any) -> list[float]:
        """Average a measure over the kinds of prompts outside the task."""
        return [statistics.mean(values) for values in zip(*map(measure, self.kinds), strict=True)]

    def shares(self) -> list[Share]:
        """Count the correct answers among the answered test lines."""
        masks = zip(self.right, self.masks("test"), strict=True)
        return [Share(int(right[mask].sum()), int(mask.sum())) for right, mask in masks]

    def accuracy(self) -> list[float]:
        """Return the accuracy on the answered test lines, of the seeds that answer any."""
        return [share.value() for share in self.shares() if share.total]

    def own_errors(self) -> list[float]:
        """Compute the AUROC of the confidence as a detector of wrong answers to test lines."""
        runs = zip(self.confidence, self.right, strict=True)
        return [auroc(confidence["test"][right], confidence["test"][~right]) for confidence, right in runs]


def summarise(results: Results, config: LabConfig) -> Summary:
    """Summarise the answers inside and outside the task, and the forgetting of the base model."""
    by_system = {key: SystemResults(results, key, config.target) for key in SYSTEMS}
    model = by_system["model"]
    losses = every_seed(results, "fine-tuning")
    limit = math.log(losses[0]["characters"])
    rows = [
        {
            "system": SYSTEMS[key],
            "accuracy": percent([float(right.mean()) for right in system.right]),
            "threshold": spread(system.thresholds, ".2f"),
            "coverage": percent(system.answered("test"), ".0f"),
            "accuracy, answered": percent(system.accuracy()) if system.accuracy() else "",
            "outside, answered": percent(system.mean(system.answered), ".0f"),
        }
        for key, system in by_system.items()
    ]
    rows_note = (
        "On 1,000 test lines with brands that do not occur in training; median over the seeds (minimum to maximum). "
        f"Threshold: the lowest confidence at which {100 * config.target:g}% of the answered validation lines are "
        f"correct (--target), if there are at least {FEWEST} of them. Coverage: share of test lines answered. Outside, "
        "answered: share of prompts outside the task answered anyway, mean over the kinds; no answer can be correct."
    )
    kinds = []
    for kind in [*model.kinds, ""]:
        row = {"prompts": kind or "its wrong answers", "number": f"{len(model.confidence[0][kind])}" if kind else ""}
        for name, system in zip(("model", "n-gram baseline"), by_system.values(), strict=True):
            row[f"{name}: answered"] = percent(system.answered(kind)) if kind else ""
            row[f"{name}: AUROC"] = spread(system.auroc(kind) if kind else system.own_errors(), ".2f")
        kinds.append(row)
    kinds_note = (
        "AUROC: probability that a test line has a higher confidence than a prompt of this kind (0.5: the confidence "
        "shows nothing; 1: it separates the two completely). Last row: the same for correct and wrong answers to test "
        "lines. A share of 40 prompts is uncertain by up to 15 percentage points, of 200 by up to 7 (95%)."
    )
    forgetting = [
        {"model": "base model", "loss": spread([loss["before"] for loss in losses], ".2f")},
        {"model": "after fine-tuning", "loss": spread([loss["after"] for loss in losses], ".2f")},
        {"model": "uniform guessing", "loss": f"{limit:.2f}"},
    ]
    unit = (
        "Loss on the validation split of Shakespeare's plays, on which the base model was trained, in nats per "
        f"character. Uniform guessing gives each of the {losses[0]['characters']} characters the same probability."
    )
    return Summary(
        "Does a fine-tuned model know that it does not know?",
        "A classifier of card-statement lines reads poems, other languages, headlines and random characters.",
        [
            Table("Answers at a threshold chosen on validation lines", rows, rows_note),
            Table("Prompts outside the task", kinds, kinds_note),
            Table("Loss on the base model's own text", forgetting, unit),
        ],
        [knows(model, config.target), holds(by_system, config.target), better(by_system), forgotten(losses, limit)],
        "Confidence inside and outside the task; above the threshold the system answers",
        partial(draw, by_system),
    )


def knows(model: SystemResults, target: float) -> Verdict:
    """Judge whether the model abstains outside the task."""
    shares = {kind: statistics.median(model.answered(kind)) for kind in model.kinds}
    worst = max(shares, key=lambda kind: shares[kind])
    verb = "knows" if shares[worst] <= 1 - target else "does not know"
    return Verdict(
        f"The fine-tuned model {verb} that it does not know: it answers {100 * shares[worst]:.0f}% of "
        f"one kind of prompts outside its task ({worst}).",
        f"it knows if it answers at most {100 * (1 - target):.0f}% of every kind of prompts outside the task",
    )


def holds(by_system: dict[str, SystemResults], target: float) -> Verdict:
    """Judge whether the answered test lines have the target accuracy."""
    statements = []
    for key, system in by_system.items():
        share = pooled(system.shares())
        if not share.total:
            statements.append(f"with the threshold of the {SYSTEMS[key]} nothing is answered")
            continue
        low, high = share.interval()
        verb = "keeps" if low <= target <= high else "exceeds" if low > target else "misses"
        statements.append(
            f"the threshold of the {SYSTEMS[key]} {verb} it ({100 * share.value():.1f}%, 95% interval "
            f"{100 * low:.1f} to {100 * high:.1f}%)"
        )
    return Verdict(
        f"The target is {100 * target:g}% correct answers inside the task: {' and '.join(statements)}.",
        "a threshold keeps the target if the interval contains it: accuracy on the answered test lines, all seeds",
    )


def better(by_system: dict[str, SystemResults]) -> Verdict:
    """Judge which system detects prompts outside the task better."""
    aurocs = {SYSTEMS[key]: statistics.median(system.mean(system.auroc)) for key, system in by_system.items()}
    best, other = sorted(aurocs, key=lambda name: -aurocs[name])
    statement = f"The {best} detects prompts outside the task better than the {other}"
    if aurocs[best] - aurocs[other] < CLOSE:
        statement = f"The {best} and the {other} detect prompts outside the task equally well"
    return Verdict(
        f"{statement}: mean AUROC {aurocs[best]:.2f} and {aurocs[other]:.2f}.",
        f"the higher mean of the kinds' AUROCs, median over the seeds; less than {CLOSE} apart counts as equal",
    )


def forgotten(losses: Sequence[dict[str, float]], limit: float) -> Verdict:
    """Compare the loss on the base model's own text before and after fine-tuning."""
    before, after = (statistics.median(loss[when] for loss in losses) for when in ("before", "after"))
    still, than = ("", "worse") if after > limit else ("still ", "better")
    return Verdict(
        f"The model {still}predicts the text of its pretraining {than} than uniform guessing: its loss rises from "
        f"{before:.2f} to {after:.2f} nats per character; uniform guessing has {limit:.2f}.",
        "the median of the losses after fine-tuning, compared with the logarithm of the number of characters",
    )


def draw(by_system: dict[str, SystemResults], axes: Any) -> None:
    """Draw a histogram of the confidence for each system; the kinds of prompts outside the task have equal weights."""
    figure, edges = axes.figure, np.linspace(0, 1, 21)
    axes.remove()
    for axes, (key, system) in zip(figure.subplots(2, 1, sharex=True), by_system.items(), strict=True):
        for name, groups, color in (("inside the task", ["test"], "C0"), ("outside", system.kinds, "C1")):
            values = [confidence[group] for confidence in system.confidence for group in groups]
            weights = np.concatenate([np.full(len(prompts), 100 / len(prompts) / len(values)) for prompts in values])
            axes.hist(np.concatenate(values), edges, weights=weights, color=color, alpha=0.5, label=name)
        line = statistics.median(system.thresholds)
        if math.isfinite(line):
            axes.axvline(line, color="black", label="threshold")
        axes.set_title(SYSTEMS[key], fontsize=10)
        axes.set(ylabel="prompts (%)", xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.set_xlabel("confidence (largest probability of a label)")


ABOUT = "does a fine-tuned model know that it does not know?"
LAB = Lab(ABOUT, stages, summarise, others=("target",), quick=True, ngrams=True)
