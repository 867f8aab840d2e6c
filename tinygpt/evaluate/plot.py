"""`tinygpt plot`: the loss curves of one or more runs as a PNG (matplotlib, from the extra `plot`)."""

import math
from pathlib import Path

from tinygpt.config.schema import PlotConfig
from tinygpt.errors import TinyGPTError
from tinygpt.files import replacing, require_writable
from tinygpt.training.log import read_metrics

LOSSES = ("train_loss", "val_loss")


def plot(config: PlotConfig) -> None:
    """Validation losses as lines with a mark at the best, training losses dashed, one colour a run."""
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
        best = min(range(len(val)), key=val.__getitem__)
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


def run_curves(folder: Path) -> tuple[list[int], list[float], list[float]]:
    """Steps, training losses and validation losses of a run's evaluations, except those with a loss that is not finite.

    Errors: TinyGPTError if there are none.
    """
    try:
        entries = [entry for entry in read_metrics(folder) if entry.get("kind") == "eval"]
        losses = [[math.nan if entry[key] is None else float(entry[key]) for key in LOSSES] for entry in entries]
        curves = [(e["step"], *pair) for e, pair in zip(entries, losses, strict=True) if all(map(math.isfinite, pair))]
    except OSError:
        raise TinyGPTError(
            f"{folder}/metrics.jsonl: no such file", "give the folder of a run: tinygpt plot out/"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise TinyGPTError(f"{folder}/metrics.jsonl: damaged", "train again") from None
    if not entries:
        raise TinyGPTError(f"{folder} has no evaluation yet", "let it train to its first evaluation")
    if not curves:
        raise TinyGPTError(f"{folder} has no evaluation with a finite loss", "train again with a lower learning_rate")
    steps, train, val = (list(column) for column in zip(*curves, strict=True))
    return steps, train, val
