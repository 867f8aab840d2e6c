"""The verdict on a run, for `train` and `tinygpt doctor`, with its rule and the next command to try.

Two evaluations also differ by chance, by about the standard error that each one notes. Only a difference larger than
two standard errors counts.

    judge(read_metrics(Path("out")), config, "out").kind         # "still improving", ...: a key of RULES
"""

import dataclasses
import math
from typing import Any

import numpy as np

from tinygpt.base.configs import suggest
from tinygpt.base.terminal import counted
from tinygpt.training.log import is_number, number

IN_A_ROW = 3  # evaluations
LAST = 0.25  # share of a run in which the loss must still fall; IN_A_ROW evaluations if these are more
CROWDED = 10  # parameters per training token; with more of them there is too little data

RULES = {
    "too early": f"a trend needs {IN_A_ROW} evaluations",
    "trend unknown": f"a trend needs {IN_A_ROW} evaluations, each with its standard error",
    "diverged": "the loss is NaN or infinite; or the training loss has lost over half its improvement; or "
    "both losses exceed those of the best step by more than two standard errors in three consecutive evaluations and "
    "in the last one",
    "overfitting": "the validation loss exceeds its minimum by more than two standard errors in three consecutive "
    "evaluations and in the last one",
    "rising": "the last validation loss exceeds the minimum by more than two standard errors, but not three in a row",
    "still improving": "the last validation loss is below all values before the last quarter of the run, and before "
    "the last three evaluations, or below the first of three, by more than two standard errors",
    "stopped early": "the run ended before max_iters: the validation loss had no new minimum in `patience` evaluations",
    "finished": "the last validation loss is neither above the minimum, nor below all values before the last quarter "
    "of the run and the last three evaluations, by more than two standard errors",
}
RULES["too little data"] = f"{RULES['overfitting']}, and there are more than {CROWDED} parameters per training token"
MEANINGS = {  # in plain words
    "too early": "there are too few evaluations to see a trend",
    "trend unknown": "the evaluations do not show whether the loss still falls",
    "diverged": "training became unstable, and the model got worse",
    "overfitting": "the model gets better on its training text, and worse on the text that it does not train on",
    "too little data": "the model gets better on its training text only, which is short for a model of this size",
    "rising": "the loss has begun to rise, so longer training may make it worse",
    "still improving": "the loss still falls, so longer training may help",
    "stopped early": "the loss no longer fell",
    "finished": "the loss hardly changed in the last part of the training",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a run."""

    kind: str
    since: int | None  # the iteration at which this began, for verdicts that have one
    why: str  # the losses that the rule was applied to
    rule: str
    command: str  # to try next

    @property
    def title(self) -> str:
        """Return the kind of verdict, and the step at which it began."""
        kind = "too little data: overfitting" if self.kind == "too little data" else self.kind
        return kind if self.since is None else f"{kind} since step {self.since:,}"

    @property
    def overfitting(self) -> str:
        if self.kind in ("overfitting", "too little data"):
            return f"since step {self.since:,}"
        return "perhaps" if self.kind == "rising" else "not seen"

    def lines(self) -> list[str]:
        """Format for the terminal."""
        lines = {"verdict": f"{self.title} ({self.why})", "rule": self.rule, "overfitting": self.overfitting}
        return [f"{name + ':':<12} {text}" for name, text in (lines | {"try": self.command}).items()]


def judge(
    entries: list[dict[str, Any]], settings: dict[str, Any], out: str, parameters: int = 0, tokens: int = 0
) -> Verdict:
    """Judge a run by the lines of its metrics.jsonl and its configuration; `out` is its folder, for the command.

    If the parameters or the training tokens are not known (0), the verdict is overfitting instead of too little data.
    """
    steps, train, val, error = evaluations(entries)
    unfinished = is_unfinished(entries, settings)

    def verdict(kind: str, since: int | None, why: str) -> Verdict:
        return Verdict(kind, since, why, RULES[kind], remedy(kind, settings, out, unfinished))

    if entries and entries[-1]["kind"] == "diverged":
        return verdict("diverged", entries[-1]["step"], str(entries[-1].get("reason", "the loss is not finite")))
    best = int(np.argmin(val)) if len(val) else 0
    stopped = unfinished and len(val) - 1 - best >= number(settings, "patience", math.inf)
    if len(val) < IN_A_ROW:
        so_many = counted(len(val), "evaluation")
        if not len(val) or (unfinished and not stopped):
            return verdict("too early", None, f"{so_many} so far")
        was = f"was {val[0]:.3f} at step {steps[0]:,} and " if len(val) > 1 else ""
        why = f"{so_many}; the validation loss {was}is {val[-1]:.3f} at step {steps[-1]:,}"
        return verdict("stopped early" if stopped else "trend unknown", None, why)
    if not np.isfinite(error).all():
        return verdict("trend unknown", None, "evaluations have no standard error, so every change may be chance")
    lowest = int(np.argmin(train))
    halfway = train[lowest] + max(0.5 * (train[0] - train[lowest]), 2 * error[-1])
    if train[-1] > halfway:
        since = next(step for step, loss in zip(steps[lowest:], train[lowest:], strict=True) if loss > halfway)
        why = f"the training loss was {train[lowest]:.3f} at step {steps[lowest]:,} and is {train[-1]:.3f}"
        return verdict("diverged", since, why)
    above = val > val[best] + 2 * error
    unstable = train > train[best] + 2 * error
    for first in range(best + 1, len(val) - IN_A_ROW + 1 if above[-1] else 0):
        if above[first : first + IN_A_ROW].all():
            kind = "too little data" if parameters > CROWDED * tokens > 0 else "overfitting"
            if unstable[first : first + IN_A_ROW].all():  # the training loss rises, too: this is not memorisation
                kind = "diverged"
            why = f"the validation loss was best at step {steps[best]:,}, {val[best]:.3f}, and is {val[-1]:.3f}"
            if kind == "too little data":
                why += f"; {parameters:,} parameters, {tokens:,} training tokens"
            return verdict(kind, steps[first], why)
    before_last = sum(step <= (1 - LAST) * steps[-1] for step in steps)
    compared = max(1, min(before_last, len(val) - IN_A_ROW))
    decrease = val[:compared].min() - val[-1]
    why = f"the validation loss decreased by {decrease:.3f} after step {steps[compared - 1]:,}, to {val[-1]:.3f}"
    if decrease <= 0 or above[-1]:
        why = f"the validation loss was best at step {steps[best]:,}, {val[best]:.3f}, and is {val[-1]:.3f}"
    why += f"; changes below {2 * error[-1]:.3f}, two standard errors, may be chance"
    if stopped:
        return verdict("stopped early", None, why)
    if above[-1]:
        return verdict("rising", None, why)
    return verdict("still improving" if decrease > 2 * error[-1] else "finished", None, why)


def evaluations(entries: list[dict[str, Any]]) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, training losses, validation losses and their standard errors, infinite for a single row."""
    rows = [
        (entry["step"], entry["train_loss"], entry["val_loss"], number(entry, "val_loss_se", math.inf))
        for entry in entries
        if entry["kind"] == "eval" and is_number(entry.get("train_loss")) and is_number(entry.get("val_loss"))
    ]
    table = np.array(rows, dtype=float).reshape(-1, 4)
    return [row[0] for row in rows], table[:, 1], table[:, 2], table[:, 3]


def is_unfinished(entries: list[dict[str, Any]], settings: dict[str, Any]) -> bool:
    """Return whether the run has not reached its last iteration, at which every run is evaluated."""
    evaluated = max((entry["step"] for entry in entries if entry["kind"] == "eval"), default=0)
    return evaluated < number(settings, "max_iters", 0)


def remedy(kind: str, settings: dict[str, Any], out: str, unfinished: bool = False) -> str:
    """Return the command to try after a verdict. For an unfinished run that does well, it continues the run."""
    iterations = int(number(settings, "max_iters", 1000))
    interval = int(number(settings, "eval_interval", 10))
    from_scratch = settings.get("init_from", "scratch") == "scratch" and "ckpt" not in settings

    def again(name: str, *changes: str, command: str = "") -> str:
        """Return the command that repeats the run in a new folder, with changed options."""
        command = command or suggest.training_command(settings)
        return suggest.command(command, f"{out}/config.yaml", *changes, f"--out_dir={out}-{name}")

    match kind:
        case "still improving" | "too early" if unfinished:
            return suggest.resume(settings, out)
        case "still improving":
            follow = ["--lr_decay_iters=0"] if settings.get("lr_decay_iters") else []  # the decay ends with the run
            return suggest.resume(settings, out, f"--max_iters={2 * iterations}", *follow)
        case "too early" | "trend unknown":
            return again("more-evals", f"--eval_interval={max(1, min(interval, iterations) // 5)}")
        case "diverged":
            rates = ["learning_rate", "min_lr"] + ["muon_learning_rate"] * (settings.get("optimizer") == "muon")
            lower = [(name, number(settings, name, 1e-3) / 3) for name in rates if settings.get(name) != 0]
            return again("slower", *(f"--{name}={rate:.1g}" for name, rate in lower))
        case "overfitting" | "rising":
            dropout = next((more for more in (0.2, 0.4, 0.6) if number(settings, "dropout", 0.1) < more), 0.8)
            return again("dropout", f"--dropout={dropout}", "--patience=3")
        case "too little data" if not from_scratch:
            base = [] if "ckpt" in settings else [f"--ckpt={settings['init_from']}"]
            rank = max(1, int(number(settings, "lora_rank", 16)) // 2)
            return again("lora", *base, f"--lora_rank={rank}", command="finetune")
        case "too little data" if (layers := int(number(settings, "n_layer", 1))) > 1:
            return again("small", f"--n_layer={layers // 2}")
        case "too little data":
            return "tinygpt prepare mine --input MORE_TEXT"
    return suggest.evaluate(settings, out)
