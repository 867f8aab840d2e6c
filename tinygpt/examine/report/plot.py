"""`tinygpt report --png` and `--tensorboard`: draw the loss curves of runs (the extra `plot`), or convert runs."""

from pathlib import Path

from tinygpt.base.configs import suggest
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import drawing, require_writable, writing
from tinygpt.training.log import is_number, read_metrics
from tinygpt.training.tensorboard import TensorBoard, import_summary_writer
from tinygpt.training.verdict import evaluations


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
        steps, train, val, _ = evaluations(read_metrics(folder))
        if not steps:
            raise TinyGPTError(f"{folder} has no evaluation with a finite loss", "train until the first evaluation")
        runs.append((folder.name, steps, train, val))
    path = Path(config.png or folders[0] / "loss.png")
    require_writable(path, "--png losses.png")
    if path.suffix.lower() != ".png":
        raise TinyGPTError(f"{path}: the name of the picture must end in .png", "--png losses.png")
    with drawing(path, "a plot") as (_, axes):
        for index, (name, steps, train, val) in enumerate(runs):
            color, best = f"C{index}", int(val.argmin())
            axes.plot(steps, train, "--", color=color, linewidth=1, label=f"{name} training")
            axes.plot(steps, val, color=color, label=f"{name} validation")
            lowest = steps[best], val[best]
            axes.plot(*lowest, "o", color=color)
            axes.annotate(f"{val[best]:.3f}", lowest, textcoords="offset points", xytext=(0, 7), ha="center")
        axes.set(xlabel="iteration", ylabel="loss (nats per token)")
        axes.legend(frameon=False)
    print(f"written: {path}")
    return path
