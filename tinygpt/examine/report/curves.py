"""Read the curves of runs, and draw them as inline SVG (drawing.py)."""

from pathlib import Path
from typing import Any

from tinygpt.base.errors import library
from tinygpt.examine.report.drawing import RUN_COLOURS, as_svg, legend, styled
from tinygpt.training.log import is_number, read_metrics
from tinygpt.training.verdict import evaluations

MOST_SHOWN = 4  # most evaluations with which the axis includes the first one, of the untrained model
MOST_POINTS = 400  # about as many learning rates and gradient norms are drawn: of a longer run, every n-th


def curves(folder: Path) -> dict[str, Any]:
    """Read the losses, learning rates and gradient norms of a run. Errors: TinyGPTError without metrics.jsonl."""
    entries = read_metrics(folder)
    steps, train, val, error = evaluations(entries)
    lines = [
        (entry["step"], entry["lr"], entry["grad_norm"])
        for entry in entries
        if entry["kind"] == "train" and is_number(entry.get("lr")) and is_number(entry.get("grad_norm"))
    ]
    return {
        "name": folder.name or folder.resolve().name,
        "steps": steps,
        "lines": lines,
        "train": train.tolist(),
        "val": val.tolist(),
        "error": error.tolist(),
    }


def draw_curves(runs: list[dict[str, Any]], width: int, unit: str) -> str:
    """Draw an SVG, `width` pixels wide: both losses and the gap between them, the learning rate, the gradient norm.

    runs: {"name", "steps", "train", "val" (lists, one entry per evaluation), "lines": [(step, lr, grad_norm), ...]}.
    Empty if no run was evaluated. Errors: TinyGPTError if matplotlib is missing.
    """
    if not any(run["steps"] for run in runs):
        return ""
    columns = 3 if width > 500 or len(runs) == 1 else 1
    with styled("a report", (width, 560 if width > 500 else 620)) as figure:
        ticker = library("matplotlib.ticker", "a report")
        axes = figure.subplots(3, 1, sharex=True, height_ratios=(3.4, 1, 1))
        for run, colour in zip(runs, [f"C{index}" for index in range(RUN_COLOURS)], strict=False):
            draw_losses(axes[0], run, colour, alone=len(runs) == 1)
            every = max(1, len(run["lines"]) // MOST_POINTS)
            steps, rates, norms = zip(*run["lines"][::every], strict=True) if run["lines"] else ((), (), ())
            axes[1].plot(steps, rates, color=colour, linewidth=1.2)
            axes[2].plot(steps, norms, color=colour, linewidth=0.9)
        for axis, title in zip(axes, (f"loss (nats per {unit})", "learning rate", "gradient norm"), strict=True):
            axis.set_title(title)
        if any(norm > 0 for run in runs for _, _, norm in run["lines"]):
            axes[2].set_yscale("log")
            axes[2].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
            axes[2].yaxis.set_major_formatter("{x:g}")
            axes[2].yaxis.set_minor_locator(ticker.NullLocator())
        if all(len(run["val"]) > MOST_SHOWN for run in runs):
            later = [loss for run in runs for loss in (*run["train"][1:], *run["val"][1:])]
            margin = 0.06 * (max(later) - min(later)) or 0.01
            # without the loss of the untrained model, which would compress the rest of the curve
            top = max(later) + margin
            axes[0].set_ylim(min(later) - margin, top)
            first = max(run["val"][0] for run in runs)
            if first > top:
                axes[0].set_title(f"loss (nats per {unit}); above the axis: {first:.2f} at step {runs[0]['steps'][0]}")
        elif all(len(run["val"]) == 1 for run in runs):
            axes[0].set_ylim(0, 1.1 * axes[0].get_ylim()[1])  # a single loss has no scale of its own
        axes[2].set_xlabel("step")
        # a legend fills columns first; for one row per run, it needs all validations, all trainings, all bests
        entries = [
            [column[i] for offset in range(columns) for i in range(offset, len(column), columns)]
            for column in axes[0].get_legend_handles_labels()
        ]
        legend(figure, entries[0], entries[1], columns)
        axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return as_svg(figure)


def draw_losses(axes: Any, run: dict[str, Any], colour: str, alone: bool) -> None:
    steps = run["steps"]
    train = run["train"]
    val = run["val"]
    if not steps:
        return
    name = "" if alone else f" ({run['name']})"  # not first: matplotlib leaves out labels that begin with "_"
    axes.fill_between(steps, train, val, color=colour, alpha=0.13, linewidth=0)
    axes.plot(steps, val, color=colour, linewidth=2, label=f"validation{name}")
    axes.plot(steps, train, color=colour, linewidth=1.4, dashes=(4, 2.5), label=f"training{name}")
    best, step = min(zip(val, steps, strict=True))
    axes.plot(step, best, "o", color=colour, markersize=7, label=f"best, step {step:,}{name}")
    style: Any = {"textcoords": "offset points", "xytext": (0, 9), "ha": "center"}
    axes.annotate(f"{best:.3f}", (step, best), **style)
