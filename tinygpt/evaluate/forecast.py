"""The stored plan of a run, OUT_DIR/plan.json, and its comparison with the result of the run.

`tinygpt plan` writes it; `tinygpt doctor` and `tinygpt report` show the predictions next to the results.

    compared(Path("out"), entries, settings, data)      # [("time", "120 s (110 to 130)", "115 s (+4 %)"), ...]
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.config.schema import SESSION
from tinygpt.errors import TinyGPTError
from tinygpt.files import read_text
from tinygpt.terminal import durations
from tinygpt.training.log import is_number, number

FILE = "plan.json"
# keys of TrainConfig that affect none of the predictions
IRRELEVANT = {*SESSION, "config", "out_dir", "quiet", "report_to", "wandb_log", "wandb_project", "wandb_run_name"}


class Interval(NamedTuple):
    """A prediction and its 80 % interval, which should contain the results of four in five runs."""

    value: float
    low: float
    high: float

    def contains(self, result: float) -> bool:
        return self.low <= result <= self.high

    def text(self, form: str, unit: str = "") -> str:
        return f"{self.value:{form}}{unit} ({self.low:{form}} to {self.high:{form}})"


class Forecast(NamedTuple):
    """The predictions of `tinygpt plan` for a run."""

    seconds: Interval  # of the command tinygpt train, from its start to its end
    memory_mb: Interval | None  # peak, in 10^6 bytes; None on Windows
    loss: Interval | None  # of the last weights on the complete validation split, in nats per token
    at_most: float | None  # upper bound of the best validation loss, where the loss is not predicted
    no_loss: str  # why there is no prediction of the loss; empty if there is one
    start: float  # seconds before the first iteration, which metrics.jsonl does not count
    unsteady: bool  # the time per iteration varied by more than 30 % in the pilots

    def as_json(self) -> dict[str, Any]:
        """Return the predictions as in plan.json and `tinygpt plan --json`."""
        return {
            "predicted_seconds": self.seconds._asdict(),
            "predicted_memory_mb": self.memory_mb and self.memory_mb._asdict(),
            "predicted_loss": self.loss and self.loss._asdict(),
            "loss_at_most": self.at_most,
            "no_loss": self.no_loss,
            "start": self.start,
            "unsteady": self.unsteady,
        }

    def lines(self) -> list[str]:
        """Format for the terminal."""
        lines = ["predictions, with 80 % intervals:", f"time:        {time_text(self.seconds)}"]
        if self.unsteady:
            lines.append("note:        the time per iteration varied by more than 30 %, so the interval is wide")
        if self.memory_mb:
            lines.append(f"memory:      {self.memory_mb.text(',.0f', ' MB')}")
        if self.loss:
            lines.append(f"loss:        {self.loss.text('.3f')} nats per token, on the validation split")
        elif self.at_most is not None:
            bound = f"probably at most {self.at_most:.3f} nats per token"
            lines.append(f"loss:        {bound} at the best evaluation (the loss of the pilot)")
            lines.append(f"note:        the loss is not predicted: {self.no_loss}")
        else:
            lines.append(f"loss:        not predicted: {self.no_loss}")
        return lines


def time_text(seconds: Interval) -> str:
    low, high, value = durations([seconds.low, seconds.high, seconds.value])
    return f"{value} ({low} to {high})"


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Read plan.json. None if it is missing or damaged."""
    try:
        content = json.loads(read_text(folder / FILE, "tinygpt plan"))
        return content if isinstance(content, dict) and isinstance(content.get("settings"), dict) else None
    except (TinyGPTError, ValueError, RecursionError):
        return None


def differences(plan: dict[str, Any], settings: dict[str, Any], data: dict[str, str]) -> list[str]:
    """List the settings in which a run differs from its plan, and "data" if the token files differ."""
    planned = plan["settings"]
    keys = sorted((planned.keys() | settings.keys()) - IRRELEVANT)
    different = [key for key in keys if planned.get(key) != settings.get(key)]
    return different + ["data"] * (plan.get("data") != data)


def compared(
    folder: Path, entries: list[dict[str, Any]], settings: dict[str, Any], data: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Compare the plan in a run's folder with the run: rows of the quantity, its prediction, and its measured value.

    Empty before the end of the run, and without a plan of these settings and this data (SHA-256 of the token files)."""
    plan = read_plan(folder)
    if plan is None or differences(plan, settings, data):
        return []
    ends = [e for e in entries if e["kind"] == "eval" and e["step"] == settings.get("max_iters")]
    if not ends or not is_number(ends[-1].get("seconds")):
        return []
    end, rows, bound = ends[-1], [], plan.get("loss_at_most")
    evaluated = [entry for entry in entries if entry["kind"] == "eval" and is_number(entry.get("val_loss"))]
    best = min(evaluated, key=lambda entry: entry["val_loss"], default={})
    batches = f", on {settings['eval_iters']} batches" if settings.get("eval_iters") else ""
    for quantity, key, actual, form, unit, note in (
        ("time", "predicted_seconds", end["seconds"] + number(plan, "start", 0.0), "", "", ""),
        ("memory", "predicted_memory_mb", end.get("memory_mb"), ",.0f", " MB", ""),
        ("validation loss", "predicted_loss", end.get("val_loss"), ".3f", "", batches),
    ):
        values = plan.get(key)
        bounds: list[Any] = [values.get(name) for name in Interval._fields] if isinstance(values, dict) else []
        if not (is_number(actual) and actual):
            continue
        result = f"{actual:{form}}{unit}{note}" if form else durations([actual])[0]
        if len(bounds) == 3 and all(map(is_number, bounds)):
            predicted = Interval(*bounds)
            error = f"{100 * (predicted.value / actual - 1):+.0f} %"
            if not predicted.contains(actual):
                error += ", outside the interval"
            prediction = predicted.text(form, unit) if form else time_text(predicted)
            rows.append((quantity, prediction, f"{result} ({error})"))
        elif key == "predicted_loss" and is_number(bound):
            lower_bound = best["val_loss"] - 2 * number(best, "val_loss_se", 0.0)  # what is above may be chance
            above = "above it by less than two standard errors" if lower_bound <= bound else "did not hold"
            held = "held" if best["val_loss"] <= bound else above
            rows.append((f"best {quantity}", f"at most {bound:.3f}", f"{best['val_loss']:.3f}{batches} ({held})"))
        elif key == "predicted_loss" and plan.get("no_loss"):
            rows.append((quantity, f"not predicted: {plan['no_loss']}", result))
    return rows
