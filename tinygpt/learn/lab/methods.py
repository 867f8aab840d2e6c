"""`tinygpt lab methods`: what methods of fine-tuning gain, forget and cost.

Each training is a stage: a method and a seed. It runs `tinygpt finetune` (or train, from scratch) and `tinygpt eval` on
the transactions, whose test lines name brands that do not occur in train.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.process import run
from tinygpt.base.terminal import duration
from tinygpt.data.dataset import Dataset
from tinygpt.examine.experiment.models import classifier, prepared, train
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent, spread
from tinygpt.examine.report.page import read
from tinygpt.learn.lab.definition import Lab, seeds

FULL, LORA, LARGE = (f"finetune_transactions{kind}" for kind in ("", "_lora", "_pretrained"))
# from scratch: the small model with its own optimizer, and the schedule of FULL
SCRATCH = {"batch_size": 32, "dropout": 0.1, "max_iters": 1000, "lr_schedule": "linear", "min_lr": 0}
SCRATCH |= {"warmup_iters": 50, "eval_interval": 100, "eval_iters": 0, "patience": 5}
CLOSE = 0.02  # accuracies that differ by less count as equal


class Method(NamedTuple):
    """A method to make a model for the task: a command, its settings, and its base model."""

    command: str  # finetune or train; empty: the base model zero-shot
    preset: str
    settings: dict[str, Any]
    base: str = "small"  # small, pretrained, or empty for none
    seconds: float = 100  # about how long it takes, evaluations included


METHODS = {
    "from scratch, no pretraining": Method("train", "shakespeare_char_fast", SCRATCH, ""),
    "all weights": Method("finetune", FULL, {}),
    "all weights, replay 0.001": Method("finetune", FULL, {"replay": 0.001}),
    "LoRA, rank 2": Method("finetune", LORA, {"lora_rank": 2}),
    "LoRA, rank 8": Method("finetune", LORA, {}),
    "pretrained, zero-shot": Method("", "", {}, "pretrained", 150),
    "pretrained, LoRA": Method("finetune", LARGE, {"base_dataset": "shakespeare_char"}, "pretrained", 600),
}
SONNET = read("learn/lab/sonnet.txt")  # prompts outside the task: Shakespeare's sonnet 18


class TrainingJob(NamedTuple):
    name: str  # of the method
    method: Method
    base: str  # path of the base model, may be empty
    seed: int

    def title(self) -> str:
        """Return the name of the stage, with everything that its result depends on."""
        base = f"from {self.base}" if self.base else ""
        return ", ".join(filter(None, (self.name, base, f"seed {self.seed}")))


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    bases = {"small": config.ckpt, "pretrained": config.pretrained, "": ""}
    yield prepared(config.data_dir, folder, "transactions")
    for seed, (name, method) in product(seeds(config), METHODS.items()):
        known = bases[method.base] or not method.base
        if known and (method.command or seed == 1):  # a zero-shot model has no seed, so it is measured once
            job = TrainingJob(name, method, bases[method.base], seed)
            yield Stage(job.title(), method.seconds, partial(measure, job, config, folder))


def measure(job: TrainingJob, config: LabConfig, folder: Path) -> dict[str, Any]:
    """Train once and evaluate; return the figures."""
    path = hashlib.sha256(job.base.encode()).hexdigest()[:8]  # `a/b` and `a-b` are two models
    out = folder / re.sub(r"\W+", "-", f"{job._replace(base='').title()} {path}")
    figures = {"method": job.name, "seed": job.seed, "seconds": 0.0, "memory": 0, "trained": 0, "bytes": 0}
    figures["forgetting"] = None
    if job.method.command:
        settings = {**job.method.settings, "seed": job.seed} | ({"ckpt": job.base} if job.base else {})
        cost = train(job.method.command, job.method.preset, out, Path(config.data_dir, "transactions"), **settings)
        figures |= {"seconds": cost.seconds, "memory": cost.memory, "trained": cost.weights, "bytes": cost.bytes}
        if len(cost.base_losses) == 2:
            figures["forgetting"] = cost.base_losses["after"] - cost.base_losses["before"]
    model, data = out if job.method.command else job.base, f"--data_dir={config.data_dir}"
    eval_command = ["eval", f"--ckpt={model}", "--task=transactions", "--device=cpu", "--json", data]
    report = json.loads(run(folder / "eval.log", *eval_command).output)
    labels = Dataset(config.data_dir, "transactions").labels
    outside = classifier(Path(model), labels)([line.strip() for line in SONNET.splitlines()])  # (lines, labels)
    figures["accuracy"] = report["results"]["model"]["accuracy"]
    figures["ngram"] = report["results"].get("ngram", {}).get("accuracy")
    figures["confidence"] = sum(bin["count"] * (bin["confidence"] or 0) for bin in report["bins"]) / report["n"]
    figures["outside"] = float(outside.max(axis=1).mean())
    return figures


def summarise(results: Results, _: LabConfig) -> Summary:
    """Summarise the methods: a row for each, accuracy against forgetting, and the simplest one that is good enough."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for result in filter(None, results.values()):  # the data have none
        runs.setdefault(result["method"], []).append(result)
    ngram = next(run["ngram"] for method_runs in runs.values() for run in method_runs if run["ngram"] is not None)
    rows = [row(name, method_runs) for name, method_runs in runs.items()]
    rows.append(dict.fromkeys(rows[0], "") | {"method": "n-gram baseline", "accuracy": percent([ngram])})
    note = (
        "Median over the seeds (minimum to maximum). Trained: number of parameters. File: size of the checkpoint or "
        "adapter. Training: time. Memory: peak of the training process. Accuracy: on 1,000 lines with merchants that "
        "do not occur in training. Confidence: mean probability of the chosen category, on these lines and on those "
        "of a sonnet, which have none. Forgetting: increase of the loss on the base model's own validation split, in "
        "nats per token of its vocabulary."
    )

    def draw(axes: Any) -> None:
        for index, (name, method_runs) in enumerate(runs.items()):
            measured = [run for run in method_runs if run["forgetting"] is not None]
            if measured:
                points = [run["forgetting"] for run in measured], [100 * run["accuracy"] for run in measured]
                axes.plot(*points, "o", color=f"C{index}", label=name)
        axes.axhline(100 * ngram, color="gray", linestyle=":", label="n-gram baseline")
        axes.set(xlabel="forgetting (nats per token of the base model)", ylabel="accuracy (%)")
        axes.legend(frameon=False, fontsize=9)

    return Summary(
        "What each method of fine-tuning gains, forgets and costs",
        "Spending categories of card-statement lines, learned from 4,000 examples by several methods.",
        [Table("Methods", rows, note)],
        [simplest(runs, ngram), *least_forgetting(runs)],
        "Accuracy against forgetting; the best is at the top left",
        draw,
    )


def median(runs: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def row(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    forgetting = [run["forgetting"] for run in runs if run["forgetting"] is not None]
    return {
        "method": name,
        "trained": f"{runs[0]['trained']:,}",
        "file": f"{runs[0]['bytes'] / 1e6:.1f} MB" if runs[0]["bytes"] else "",
        "training": duration(median(runs, "seconds")) if runs[0]["trained"] else "",
        "memory": f"{median(runs, 'memory') / 1e9:.1f} GB" if runs[0]["memory"] else "",
        "accuracy": percent([run["accuracy"] for run in runs]),
        "confidence: task, sonnet": ", ".join(f"{100 * median(runs, key):.0f}%" for key in ("confidence", "outside")),
        "forgetting": spread(forgetting, "+.2f") if forgetting else "",
    }


def simplest(runs: dict[str, list[dict[str, Any]]], ngram: float) -> Verdict:
    """Choose the simplest method, the n-gram baseline or the first in the table, with an accuracy close to the best."""
    medians = {name: median(method_runs, "accuracy") for name, method_runs in runs.items()}
    accuracy = {"the n-gram baseline": ngram, **medians}
    best = max(accuracy.values())
    name = next(name for name, value in accuracy.items() if value >= best - CLOSE)
    return Verdict(
        f"Start with {name}: accuracy {100 * accuracy[name]:.1f}%; that of the best method is {100 * best:.1f}%.",
        f"the n-gram baseline, or else the first method in the table, within {100 * CLOSE:.0f} percentage points of "
        "the best accuracy",
    )


def least_forgetting(runs: dict[str, list[dict[str, Any]]]) -> list[Verdict]:
    """Choose the method that forgets least, among those from the small base model close to their best accuracy."""
    small = {name: method_runs for name, method_runs in runs.items() if METHODS[name].base == "small"}
    if any(run["forgetting"] is None for method_runs in small.values() for run in method_runs):
        return []  # the dataset of the base model is missing
    best = max(median(method_runs, "accuracy") for method_runs in small.values())
    good = [name for name, method_runs in small.items() if median(method_runs, "accuracy") >= best - CLOSE]
    name = min(good, key=lambda name: median(small[name], "forgetting"))
    accuracy, forgetting = (median(small[name], key) for key in ("accuracy", "forgetting"))
    verdict = Verdict(
        f"To limit forgetting in the small base model, use {name}: its loss on the base model's text rises by "
        f"{forgetting:.2f}, with an accuracy of {100 * accuracy:.1f}%.",
        f"the least forgetting among the methods from the small base model within {100 * CLOSE:.0f} percentage points "
        "of their best accuracy",
    )
    return [verdict]


ABOUT = "what each method of fine-tuning gains, forgets and costs"
LAB = Lab(ABOUT, stages, summarise, settings=("data_dir",), models=("ckpt", "pretrained"), ngrams=True)
