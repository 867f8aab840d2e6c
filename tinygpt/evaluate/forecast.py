"""The stored plan of a run, OUT_DIR/plan.json, and its comparison with the result of the run.

`tinygpt plan` writes it; `tinygpt doctor` and `tinygpt report` show the predictions next to the results.

    compared(Path("out"), entries, settings, data)      # [("time", "120 s (110 to 130)", "115 s (+4%)"), ...]
"""

import contextlib
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
    """A prediction and its interval: of the loss, one of 80%; of the time, that of fast and of slow blocks of
    iterations; of the memory, 5% to either side."""

    value: float
    low: float
    high: float

    def text(self, form: str, unit: str = "") -> str:
        return f"{self.value:{form}}{unit} ({self.low:{form}} to {self.high:{form}})"


class Forecast(NamedTuple):
    """The predictions of `tinygpt plan` for a run; the names are those of plan.json and `tinygpt plan --json`."""

    predicted_seconds: Interval  # of the command tinygpt train, from its start to its end
    predicted_memory_mb: Interval | None  # peak, in 10^6 bytes; None on Windows
    predicted_loss: Interval | None  # of the last weights on the complete validation split, in nats per token
    loss_at_most: float | None  # upper bound of the best validation loss, where the loss is not predicted
    no_loss: str  # why there is no prediction of the loss; empty if there is one
    start: float  # seconds before the first iteration, which metrics.jsonl does not count
    unsteady: bool  # the time per iteration varied by more than 30% in the pilots

    def as_json(self) -> dict[str, Any]:
        """Return the predictions as in plan.json."""
        values = self._asdict().items()
        return {name: value._asdict() if isinstance(value, Interval) else value for name, value in values}

    def lines(self) -> list[str]:
        """Format for the terminal."""
        lines = ["predictions, with intervals (of the loss: 80%):", f"time:        {time_text(self.predicted_seconds)}"]
        if self.unsteady:
            lines.append("note:        the time per iteration varied by more than 30%, so the interval is wide")
        if self.predicted_memory_mb:
            lines.append(f"memory:      {self.predicted_memory_mb.text(',.0f', ' MB')}")
        if self.predicted_loss:
            lines.append(f"loss:        {self.predicted_loss.text('.3f')} nats per token, on the validation split")
        elif self.loss_at_most is not None:
            bound = f"probably at most {self.loss_at_most:.3f} nats per token"
            lines.append(f"loss:        {bound} at the best evaluation (the loss of the pilot)")
            lines.append(f"note:        the loss is not predicted: {self.no_loss}")
        else:
            lines.append(f"loss:        not predicted: {self.no_loss}")
        return lines


def time_text(seconds: Interval) -> str:
    low, high, value = durations([seconds.low, seconds.high, seconds.value])
    return f"{value} ({low} to {high})"


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Read plan.json, with an `Interval` or None for each prediction. Returns None if it is missing or damaged."""
    with contextlib.suppress(TinyGPTError, ValueError, TypeError, AttributeError, RecursionError):
        plan = json.loads(read_text(folder / FILE, "tinygpt plan"))
        for key in ("predicted_seconds", "predicted_memory_mb", "predicted_loss"):
            plan[key] = Interval(**plan[key]) if plan.get(key) else None
        return plan if isinstance(plan.get("settings"), dict) else None
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
    evaluated = [entry for entry in entries if entry["kind"] == "eval" and is_number(entry.get("val_loss"))]
    ends = [entry for entry in evaluated if entry["step"] == settings.get("max_iters")]
    if not ends or not plan or not plan["predicted_seconds"] or differences(plan, settings, data):
        return []
    end, rows, bound = ends[-1], [], plan["loss_at_most"]
    batches = f", with eval_iters {settings['eval_iters']}" if settings.get("eval_iters") else ""
    for quantity, key, actual, form, unit, note in (
        ("time", "predicted_seconds", end["seconds"] + plan["start"], "", "", ""),
        ("memory", "predicted_memory_mb", end["memory_mb"], ",.0f", " MB", ""),
        ("validation loss", "predicted_loss", end["val_loss"], ".3f", "", batches),
    ):
        predicted = plan[key]
        if predicted and actual:
            error = f"{100 * (predicted.value / actual - 1):+.0f}%"
            if not predicted.low <= actual <= predicted.high:
                error += ", outside the interval"
            prediction = predicted.text(form, unit) if form else time_text(predicted)
            result = f"{actual:{form}}{unit}{note}" if form else durations([actual])[0]
            rows.append((quantity, prediction, f"{result} ({error})"))
    if not plan["predicted_loss"] and bound is not None:
        best = min(evaluated, key=lambda entry: entry["val_loss"])
        lower_bound = best["val_loss"] - 2 * number(best, "val_loss_se", 0.0)  # what is above may be chance
        above = "above it by less than two standard errors" if lower_bound <= bound else "did not hold"
        held = "held" if best["val_loss"] <= bound else above
        rows.append(("best validation loss", f"at most {bound:.3f}", f"{best['val_loss']:.3f}{batches} ({held})"))
    elif not plan["predicted_loss"]:
        rows.append(("validation loss", f"not predicted: {plan['no_loss']}", f"{end['val_loss']:.3f}{batches}"))
    return rows
