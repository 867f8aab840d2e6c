"""`tinygpt report --png`: draw the loss curves of runs (the extra `plot`)."""

from pathlib import Path

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import require_writable
from tinygpt.examine.report.curves import curves, draw_losses
from tinygpt.examine.report.drawing import drawing, legend


def draw(config: ReportConfig) -> Path:
    """Draw validation losses as lines with a dot at the best, training losses dashed, each run in one colour. Returns
    the path of the PNG: config.png, or loss.png of the first run."""
    folders = [Path(folder) for folder in config.runs]
    runs = []
    for folder in folders:
        runs.append(curves(folder))
        if not runs[-1]["steps"]:
            raise TinyGPTError(f"{folder} has no evaluation with a finite loss", "train until the first evaluation")
    path = Path(config.png or folders[0] / "loss.png")
    require_writable(path, "--png losses.png")
    if path.suffix.lower() != ".png":
        raise TinyGPTError(f"{path}: the name of the picture must end in .png", "--png losses.png")
    with drawing(path, "a plot") as (figure, axes):
        for index, run in enumerate(runs):
            draw_losses(axes, run, f"C{index}", alone=len(runs) == 1)
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        legend(figure, *axes.get_legend_handles_labels())
    print(f"written: {path}")
    return path
