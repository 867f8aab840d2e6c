"""`tinygpt lab confidence`: does a fine-tuned model know that it does not know?

A tiny model is trained on Shakespeare, fine-tuned on the transactions, and reads test lines of the task and prompts
outside it. Confidence, the largest probability of a label, is the standard signal that a prompt is outside (Hendrycks &
Gimpel 2017). An answer below a threshold, chosen on the validation lines alone, becomes an abstention; coverage and
risk follow from it (El-Yaniv & Wiener 2010). The n-gram baseline answers the same prompts.
"""

import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.intervals import lowest_threshold
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Example, Share, Summary, Table, Verdict, gap, percent, pooled, spread
from tinygpt.learn.lab.definition import TEST_LINES, Classifier, Lab, learn, prepared, right, seeds, stage
from tinygpt.learn.lab.methods import SONNET

TASK = "transactions"
SPLITS = ("val", "test")  # thresholds are chosen on the first, figures measured on the second
LONGEST = 48  # characters of a prompt, as of a line of the task
OUTSIDE = 200  # prompts of each kind outside the task, if there are as many
SYSTEMS = {"model": "fine-tuned model", "ngram": "n-gram baseline"}
FEWEST = 20  # answered validation lines; fewer may be correct by chance
# prompts outside the task
LANGUAGES = "other languages"
SENTENCES = Path(__file__).with_name("sentences.txt")
ERRORS = "its wrong answers"
# iterations of the base model, and of the fine-tuning
FULL = (500, 600)
QUICK = (100, 200)


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    base, task = QUICK if config.quick else FULL
    yield prepared(folder / "data", folder, "shakespeare_char")
    for seed in seeds(config):
        yield stage(f"base, seed {seed}", 3 + base / 20, pretrain, folder, base, seed=seed)
        yield stage(f"fine-tuning, seed {seed}", 6 + task / 20, finetune, folder, task, seed=seed)
        for system in SYSTEMS:
            yield stage(f"ask: {system}, seed {seed}", 5, ask, folder, seed=seed, system=system)


def plays(folder: Path) -> api.Dataset:
    return api.Dataset(str(folder / "data"), "shakespeare_char")


def pretrain(folder: Path, iterations: int, seed: int) -> None:
    learn("lab_classifier", folder / f"seed-{seed}/base", plays(folder), seed=seed, max_iters=iterations, eval_iters=20)


def finetune(folder: Path, iterations: int, seed: int) -> dict[str, Any]:
    """Fine-tune all weights on the task; return the losses of the base model's own text before and after."""
    task = api.task(TASK, seed)
    out = folder / f"seed-{seed}"
    dataset = api.write_dataset(folder / f"data/{TASK}-{seed}", task.splits, task.labels)
    settings: dict[str, Any] = {"ckpt": out / "base", "max_iters": iterations, "eval_interval": 200, "eval_iters": 10}
    settings["learning_rate"] = 3e-3  # a narrow model allows a high rate
    run = learn("finetune_transactions", out / "model", dataset, seed=seed, **settings)
    return {**run.cost.base_losses, "characters": plays(folder).tokenizer.vocab_size}


def ask(folder: Path, seed: int, system: str) -> dict[str, Any]:
    model = folder / f"seed-{seed}/model" if system == "model" else None
    return answers(classifier(seed, model), seed, outside(folder, seed))


def classifier(seed: int, model: Path | None) -> Classifier:
    """Load a model; without one, train the n-gram baseline on the lines of a seed."""
    task = api.task(TASK, seed)
    if model is None:
        return api.ngrams(task.splits["train"], task.labels)
    return partial(api.load(model, device="cpu").probabilities, labels=task.labels)


def answers(classify: Classifier, seed: int, others: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Measure the confidence by group of prompts, and which lines of SPLITS are answered correctly."""
    task = api.task(TASK, seed)
    groups = {split: [prompt for prompt, _ in task.splits[split]] for split in SPLITS} | {**others}
    probabilities = {group: classify(prompts) for group, prompts in groups.items()}
    return {
        "confidence": {group: probs.max(axis=1).tolist() for group, probs in probabilities.items()},
        "right": {split: right(probabilities[split], task.splits[split], task.labels).tolist() for split in SPLITS},
    }


def outside(folder: Path, seed: int) -> dict[str, list[str]]:
    """Collect prompts outside the task, by kind, none longer than a line of the task."""
    task = api.task(TASK, seed).splits
    rng = random.Random(seed)
    text = plays(folder).tokenizer.decode(plays(folder).splits["val"])
    verse = {line for line in map(str.strip, text.split("\n")) if 15 <= len(line) <= LONGEST and line[-1] != ":"}
    sonnet = [line for line in SONNET.splitlines() if len(line) <= LONGEST]
    headlines = [prompt for prompt, _ in api.task("headlines", seed).splits["test"] if len(prompt) <= LONGEST]
    lengths = [len(prompt) for prompt, _ in task["test"]]
    characters = sorted({character for prompt, _ in task["train"] for character in prompt})
    return {
        "Shakespeare": sonnet + rng.sample(sorted(verse), OUTSIDE - len(sonnet)),
        LANGUAGES: SENTENCES.read_text(encoding="utf-8").splitlines(),
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


def threshold(confidence: np.ndarray, correct: np.ndarray, target: float, fewest: int = FEWEST) -> float:
    """Find the lowest confidence at or above which there are at least `fewest` answers, and a share `target` of them is
    correct; infinity for none."""
    level = lowest_threshold(confidence, lambda sure: sure.sum() >= fewest and correct[sure].mean() >= target)
    return math.inf if level is None else level


def figures(record: dict[str, Any], target: float) -> dict[str, Any]:
    """Choose a system's threshold, and measure which prompts of each group it answers and how well its confidence
    detects the kinds of prompts outside the task, and its wrong answers to test lines."""
    confidence = {group: np.array(values) for group, values in record["confidence"].items()}
    correct = {split: np.array(record["right"][split]) for split in SPLITS}
    limit = threshold(confidence["val"], correct["val"], target)
    test = confidence["test"]
    kinds = [group for group in confidence if group not in SPLITS]
    answered = correct["test"][test >= limit]
    shares = {f"answered: {group}": float((values >= limit).mean()) for group, values in confidence.items()}
    aurocs = {f"AUROC: {kind}": auroc(test, confidence[kind]) for kind in kinds}
    return {
        "kinds": kinds,
        "accuracy": float(correct["test"].mean()),
        "threshold": limit,
        "correct": Share(int(answered.sum()), len(answered)),
        **shares,
        **aurocs,
        "answered outside": statistics.mean(shares[f"answered: {kind}"] for kind in kinds),
        f"AUROC: {ERRORS}": auroc(test[correct["test"]], test[~correct["test"]]),
    }


def summarise(records: Records, config: LabConfig) -> Summary:
    losses = records.having("before")
    asked = Records(record | figures(record, config.target) for record in records.having("confidence"))
    systems: dict[str, Records] = asked.by("system")
    model = systems["model"]
    limit = math.log(losses[0]["characters"])
    rows = [
        {
            "system": SYSTEMS[key],
            "accuracy": percent(own.values("accuracy")),
            "threshold": spread(own.values("threshold"), ".2f"),
            "coverage": percent(own.values("answered: test"), ".0f"),
            "accuracy, answered": percent([share.value() for share in own.values("correct") if share.total]),
            "outside, answered": percent(own.values("answered outside"), ".0f"),
        }
        for key, own in systems.items()
    ]
    rows_note = (
        f"On {TEST_LINES}; median over the seeds (minimum to maximum). "
        f"Threshold: the lowest confidence at which {100 * config.target:g}% of the answered validation lines are "
        f"correct (--target), if there are at least {FEWEST} of them. Coverage: share of test lines answered. Outside, "
        "answered: share of prompts outside the task answered anyway, mean over the kinds; no answer can be correct."
    )
    kinds = []
    for kind in [*model[0]["kinds"], ERRORS]:
        is_kind = kind != ERRORS
        row = {"prompts": kind, "number": f"{len(model[0]['confidence'][kind])}" if is_kind else ""}
        for name, own in zip(("model", "n-gram baseline"), systems.values(), strict=True):
            row[f"{name}: answered"] = percent(own.values(f"answered: {kind}")) if is_kind else ""
            row[f"{name}: AUROC"] = spread(own.values(f"AUROC: {kind}"), ".2f")
        kinds.append(row)
    kinds_note = (
        "AUROC: probability that a test line has a higher confidence than a prompt of this kind (0.5: the confidence "
        "shows nothing; 1: it separates the two completely). Last row: the same for correct and wrong answers to test "
        "lines (none: one of the two does not occur). A share of 40 prompts is uncertain by up to 15 percentage "
        "points, of 200 by up to 7 (95%)."
    )
    forgetting = [
        {"model": "base model", "loss": spread(losses.values("before"), ".2f")},
        {"model": "after fine-tuning", "loss": spread(losses.values("after"), ".2f")},
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
        [knows(model, config.target), holds(systems, config.target), forgotten(losses, limit)],
        "Prompts that are answered, by threshold; vertical lines: the chosen thresholds",
        picture(systems),
        error(model[0]),
    )


def error(record: Mapping[str, Any]) -> Example | None:
    """Show the sentence in another language that is answered with the highest confidence."""
    levels = record["confidence"].get(LANGUAGES, [-1.0])
    if max(levels) < record["threshold"]:
        return None
    text = SENTENCES.read_text(encoding="utf-8").splitlines()[levels.index(max(levels))]
    note = f"No category of spending is right, but the confidence is above the threshold, {record['threshold']:.2f}."
    return Example("Answered, but not in the task", f"{text} →", f"a category, confidence {max(levels):.2f}", note)


def knows(model: Records, target: float) -> Verdict:
    """Judge whether the model abstains outside the task."""
    shares = {kind: model.percent(f"answered: {kind}") for kind in model[0]["kinds"]}
    worst = max(shares, key=lambda kind: shares[kind])
    allowed = gap(100, 100 * target)
    rule = (
        f"it knows if it answers at most {allowed:g}% of every kind of prompts outside the task, and some lines of the "
        "task"
    )
    abstains = gap(shares[worst], allowed) <= 0
    if abstains and not model.median("answered: test"):
        return Verdict("The fine-tuned model answers no line of its task, so its abstaining shows nothing.", rule)
    verb = "knows" if abstains else "does not know"
    return Verdict(
        f"The fine-tuned model {verb} that it does not know: it answers {shares[worst]:.0f}% of one kind of prompts "
        f"outside its task ({worst}).",
        rule,
    )


def holds(systems: Mapping[str, Records], target: float) -> Verdict:
    """Judge whether the answered test lines have the target accuracy."""
    statements = []
    for key, own in systems.items():
        share = pooled(own.values("correct"))
        if not share.total:
            statements.append(f"with the threshold of the {SYSTEMS[key]} nothing is answered")
            continue
        low, high = share.interval()
        verb = share.compared(target, "misses", "keeps", "exceeds")
        statements.append(
            f"the threshold of the {SYSTEMS[key]} {verb} it ({100 * share.value():.1f}%, 95% interval "
            f"{100 * low:.1f} to {100 * high:.1f}%)"
        )
    return Verdict(
        f"The target is {100 * target:g}% correct answers inside the task: {' and '.join(statements)}.",
        "a threshold keeps the target if the interval contains it: accuracy on the answered test lines, all seeds",
    )


def forgotten(losses: Records, limit: float) -> Verdict:
    """Compare the loss on the base model's own text before and after fine-tuning."""
    before = losses.median("before")
    after = losses.median("after")
    moves = "falls" if after < before else "rises"
    still, than = ("", "worse") if after > limit else ("still ", "better")
    return Verdict(
        f"The model {still}predicts the text of its pretraining {than} than uniform guessing: its loss {moves} from "
        f"{before:.2f} to {after:.2f} nats per character; uniform guessing has {limit:.2f}.",
        "the median of the losses after fine-tuning, compared with the logarithm of the number of characters",
    )


def picture(systems: Mapping[str, Records]) -> Plane:
    """Draw the share of prompts at or above each threshold; the kinds outside the task have equal weights."""
    lines = []
    limits = np.linspace(0, 1, 101)
    for style, (key, own) in zip(("-", "--"), systems.items(), strict=True):
        for color, label, kinds in (("C0", "in the task", ["test"]), ("C1", "outside", own[0]["kinds"])):
            groups = [np.array(record["confidence"][kind]) for record in own for kind in kinds]
            answered = [100 * np.mean([(group >= limit).mean() for group in groups]) for limit in limits]
            lines.append(Line(f"{SYSTEMS[key]}, {label}", limits, answered, style, color))
        if (limit := own.median("threshold")) < math.inf:
            lines.append(Line("", [limit] * 2, [0, 100], style, "gray"))
    return Plane("threshold (confidence)", "prompts answered (%)", lines)


LAB = Lab(
    "does a fine-tuned model know that it does not know?",
    stages,
    summarise,
    others=("target",),
    quick=True,
    ngrams=True,
)
