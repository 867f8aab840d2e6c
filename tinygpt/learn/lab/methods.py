"""`tinygpt lab methods`: what methods of fine-tuning gain, forget and cost.

The task is transactions, whose test lines name brands that do not occur in train. A record is a method and a seed, or
the n-gram baseline: its accuracy, the cost of its training, its confidence on the test lines and on lines outside the
task, and what the base model forgets.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import duration
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, gap, percent, spread
from tinygpt.learn.lab.definition import Lab, learn, prepared, right, seeds, stage

FULL, LORA, LARGE = (f"finetune_transactions{kind}" for kind in ("", "_lora", "_pretrained"))
# from scratch: the small model with its own optimizer, and the schedule of FULL
SCRATCH = {"batch_size": 32, "dropout": 0.1, "max_iters": 1000, "lr_schedule": "linear", "min_lr": 0}
SCRATCH |= {"warmup_iters": 50, "eval_interval": 100, "eval_iters": 0, "patience": 5}
CLOSE = 0.02  # accuracies that differ by less count as equal


class Method(NamedTuple):
    """A method to make a model for the task."""

    preset: str  # of a fine-tuning, or of a training without a base model; empty: the base model zero-shot
    settings: dict[str, Any]
    base: str = "small"  # small, pretrained, or empty for none
    seconds: float = 100  # about how long it takes, evaluations included


METHODS = {
    "from scratch, no pretraining": Method("shakespeare_char_fast", SCRATCH, ""),
    "all weights": Method(FULL, {}),
    "all weights, replay 0.001": Method(FULL, {"replay": 0.001}),
    "LoRA, rank 2": Method(LORA, {"lora_rank": 2}),
    "LoRA, rank 8": Method(LORA, {}),
    "pretrained, zero-shot": Method("", {}, "pretrained", 150),
    "pretrained, LoRA": Method(LARGE, {"base_dataset": "shakespeare_char"}, "pretrained", 600),
}
NGRAM = "n-gram baseline"
# columns
ACCURACY = "accuracy"
NINE = "nine labels"
TEMPLATES = ("fees", "income", "subscriptions")  # labels whose lines name no brand
SONNET = Path(__file__).with_name("sonnet.txt").read_text(encoding="utf-8")  # outside the task: Shakespeare's sonnet 18


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    bases = {"small": config.ckpt, "pretrained": config.pretrained, "": ""}
    yield prepared(config.data_dir, folder, "transactions")
    yield stage(NGRAM, 5, measure_ngrams, config.data_dir, method=NGRAM)
    for seed, (name, method) in product(seeds(config), METHODS.items()):
        base = bases[method.base]
        if (base or not method.base) and (method.preset or seed == 1):  # a zero-shot model has no seed
            title = ", ".join(filter(None, (name, f"from {base}" if base else "", f"seed {seed}")))
            yield stage(title, method.seconds, measure, config.data_dir, folder, base, method=name, seed=seed)


def pairs_of(dataset: api.Dataset, split: str) -> list[tuple[str, str]]:
    return dataset.sources[split].examples(dataset.tokenizer)


def measure_ngrams(data_dir: str, method: str) -> dict[str, float]:
    dataset = api.Dataset(data_dir, "transactions")
    test = pairs_of(dataset, "test")
    labels = dataset.labels
    answers = api.ngrams(pairs_of(dataset, "train"), labels)([line for line, _ in test])
    return accuracies(answers, test, labels)


def accuracies(answers: np.ndarray, test: Sequence[tuple[str, str]], labels: Sequence[str]) -> dict[str, float]:
    """Return the accuracy on all lines, and on those of the nine labels with brands. answers: float64 (n, L)."""
    is_right = right(answers, test, labels)
    named = np.array([label not in TEMPLATES for _, label in test])
    return {"accuracy": float(is_right.mean()), "nine": float(is_right[named].mean())}


def measure(data_dir: str, folder: Path, base: str, method: str, seed: int) -> dict[str, Any]:
    """Train once and evaluate; return the figures."""
    dataset = api.Dataset(data_dir, "transactions")
    test = pairs_of(dataset, "test")
    labels = dataset.labels
    preset, settings = METHODS[method][:2]
    figures: dict[str, Any] = dict.fromkeys(("seconds", "memory", "bytes", "weights"), 0)
    model = Path(base)
    if preset:
        path = hashlib.sha256(base.encode()).hexdigest()[:8]  # `a/b` and `a-b` are two models
        model = folder / re.sub(r"\W+", "-", f"{method}, seed {seed} {path}")
        cost = learn(preset, model, dataset, **settings, **({"ckpt": base} if base else {}), seed=seed).cost
        figures = {key: getattr(cost, key) for key in figures}
        if len(cost.base_losses) == 2:
            figures["forgetting"] = cost.base_losses["after"] - cost.base_losses["before"]
    loaded = api.load(model, device="cpu")
    answers = loaded.probabilities([line for line, _ in test], labels)
    outside = loaded.probabilities(SONNET.splitlines(), labels)
    return figures | {
        **accuracies(answers, test, labels),
        "confidence": float(answers.max(axis=1).mean()),
        "outside": float(outside.max(axis=1).mean()),
    }


def summarise(records: Records, _: LabConfig) -> Summary:
    """Summarise the methods: a row for each, accuracy against forgetting, and the simplest one that is good enough."""
    methods = records.having("seed").by("method")
    ngram = records.where(method=NGRAM)
    rows = [row(name, own) for name, own in methods.items()]
    baseline = {ACCURACY: percent(ngram.values("accuracy")), NINE: percent(ngram.values("nine"))}
    rows.append(dict.fromkeys(rows[0], "") | {"method": NGRAM, **baseline})
    note = (
        "Median over the seeds (minimum to maximum). Trained: number of parameters. File: size of the checkpoint or "
        "adapter. Training: time. Memory: peak of the training process. Accuracy: on 1,000 lines whose merchants do "
        "not occur in training. Nine labels: without fees, income and subscriptions, whose templates are easy. "
        "Confidence: mean probability of the chosen category, on these lines and on those of a sonnet, which have "
        "none. Forgetting: increase of the loss on the base model's own validation split, in nats per token of its "
        "vocabulary."
    )
    lines = [
        Line(name, own.values("forgetting"), [100 * share for share in own.values("accuracy")], "o", f"C{index}")
        for index, (name, own) in enumerate(methods.items())
        if own.having("forgetting")
    ]
    axes = "forgetting (nats per token of the base model)", "accuracy (%)"
    return Summary(
        "What each method of fine-tuning gains, forgets and costs",
        "Spending categories of card-statement lines, learned from 4,000 examples by several methods.",
        [Table("Methods", rows, note)],
        [simplest({"the n-gram baseline": ngram, **methods}), *least_forgetting(methods)],
        "Accuracy against forgetting; the best is at the top left",
        Plane(*axes, lines, levels={NGRAM: (ngram.percent("accuracy"), ":")}),
    )


def row(name: str, own: Records) -> dict[str, str]:
    forgetting = own.having("forgetting").values("forgetting")
    trained = own[0]["weights"]
    return {
        "method": name,
        "trained": f"{trained:,}",
        "file": f"{own[0]['bytes'] / 1e6:.1f} MB" if trained else "",
        "training": duration(own.median("seconds")) if trained else "",
        "memory": f"{own.median('memory') / 1e9:.1f} GB" if trained else "",
        ACCURACY: percent(own.values("accuracy")),
        NINE: percent(own.values("nine")),
        "confidence: task, sonnet": f"{own.percent('confidence'):.0f}%, {own.percent('outside'):.0f}%",
        "forgetting": spread(forgetting, "+.2f") if forgetting else "",
    }


def near_best(methods: dict[str, Records]) -> list[str]:
    """Return the methods with an accuracy close to the best."""
    best = max(own.median("accuracy") for own in methods.values())
    return [name for name, own in methods.items() if gap(best, own.median("accuracy")) <= CLOSE]


def simplest(methods: dict[str, Records]) -> Verdict:
    """Choose the simplest method, the n-gram baseline or the first in the table, with an accuracy close to the best."""
    name = near_best(methods)[0]
    best = max(methods, key=lambda name: methods[name].median("accuracy"))
    others = "no method has more" if best == name else f"the best, {best}, has {methods[best].percent('accuracy'):.1f}%"
    return Verdict(
        f"Start with {name}: it has an accuracy of {methods[name].percent('accuracy'):.1f}%; {others}.",
        f"the n-gram baseline, or else the first method in the table, within {100 * CLOSE:.0f} percentage points of "
        "the best accuracy",
    )


def least_forgetting(methods: dict[str, Records]) -> list[Verdict]:
    """Choose the method that forgets least, among those from the small base model close to their best accuracy."""
    small = {name: own for name, own in methods.items() if METHODS[name].base == "small"}
    if any("forgetting" not in run for own in small.values() for run in own):
        return []  # the dataset of the base model is missing
    name = min(near_best(small), key=lambda name: small[name].median("forgetting"))
    verdict = Verdict(
        f"To limit forgetting in the small base model, use {name}: its loss on the base model's text changes by "
        f"{small[name].median('forgetting'):+.2f}, with an accuracy of {small[name].percent('accuracy'):.1f}%.",
        f"the least forgetting among the methods from the small base model within {100 * CLOSE:.0f} percentage points "
        "of their best accuracy",
    )
    return [verdict]


LAB = Lab(
    "what does each method of fine-tuning gain, forget and cost?",
    stages,
    summarise,
    settings=("data_dir",),
    models=("ckpt", "pretrained"),
    ngrams=True,
)
