"""`tinygpt report --png` and `--tensorboard`: draw the loss curves of runs (the extra `plot`), or convert runs."""

from pathlib import Path

from tinygpt.base.configs import suggest
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import require_writable, writing
from tinygpt.examine.report.curves import curves, draw_losses
from tinygpt.examine.report.drawing import drawing, legend
from tinygpt.training.log import is_number, read_metrics
from tinygpt.training.tensorboard import TensorBoard, import_summary_writer


def convert(folders: list[Path]) -> None:
    """Write the event files of runs, and print the command that shows them. The last line of metrics.jsonl gets the
    time of the file's last change, so a run that is converted twice has the same points."""
    import_summary_writer("--tensorboard")
    runs = {folder: read_metrics(folder) for folder in folders}
    for folder, entries in runs.items():
        if not any(entry["kind"] in ("train", "eval") for entry in entries):
            raise TinyGPTError(f"{folder} has no losses yet", "train until the first evaluation")
    for folder, entries in runs.items():
        written = (folder / "metrics.jsonl").stat().st_mtime
        seconds = max((entry["seconds"] for entry in entries if is_number(entry.get("seconds"))), default=0.0)
        with writing(folder / "tensorboard"):
            sink = TensorBoard(folder, entries, written - seconds)
            sink.close()
        print(f"written: {folder}/tensorboard (points: {sink.points:,})")
    for folder in dict.fromkeys(folder.parent for folder in folders) if len(folders) > 1 else folders:
        print(f"next: {suggest.tensorboard(folder)}")


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
