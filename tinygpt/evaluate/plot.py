"""`tinygpt plot`: draw the loss curves of one or more runs into a PNG, with matplotlib from the extra `plot`."""

from pathlib import Path

import numpy as np

from tinygpt.config.schema import PlotConfig
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.doctor import evaluations
from tinygpt.files import replacing, require_writable
from tinygpt.training.log import read_metrics


def plot(config: PlotConfig) -> None:
    """Draw validation losses as lines with a dot at the best, training losses dashed, and each run in one colour."""
    runs = [(Path(folder), run_curves(Path(folder))) for folder in config.runs]
    path = Path(config.output) if config.output else runs[0][0] / "loss.png"
    require_writable(path, "--output losses.png")
    try:
        import matplotlib
    except ImportError:
        raise TinyGPTError("plotting needs matplotlib", "pip install matplotlib") from None
    matplotlib.use("agg")  # a file, no window
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for index, (folder, (steps, train, val)) in enumerate(runs):
        color = f"C{index}"
        axes.plot(steps, train, "--", color=color, linewidth=1, label=f"{folder.name} training")
        axes.plot(steps, val, color=color, label=f"{folder.name} validation")
        best = int(val.argmin())
        axes.plot(steps[best], val[best], "o", color=color)
        axes.annotate(
            f"{val[best]:.3f}", (steps[best], val[best]), textcoords="offset points", xytext=(0, 7), ha="center"
        )
    axes.set(xlabel="iteration", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    print(f"written: {path}")


def run_curves(folder: Path) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Steps, training losses and validation losses of a run's evaluations, except those with a loss that is not finite.

    Errors: TinyGPTError if there are none.
    """
    entries = read_metrics(folder)
    if not any(entry["kind"] == "eval" for entry in entries):
        raise TinyGPTError(f"{folder} has no evaluation yet", "train until the first evaluation")
    steps, train, val, *_ = evaluations(entries, {})
    if not steps:
        raise TinyGPTError(f"{folder} has no evaluation with a finite loss", "train again with a lower learning_rate")
    return steps, train, val
