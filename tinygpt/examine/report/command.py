"""`tinygpt report`: the page of a run, or only its curves.

tinygpt report out                          # out/report.html
tinygpt report out out-mine --png a.png
tinygpt report --list                       # the runs of this folder
"""

import contextlib
import time
from pathlib import Path

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import print_error, table
from tinygpt.checkpoint.store import load
from tinygpt.examine.report.curves import RUN_COLOURS
from tinygpt.examine.report.page import destination, publish, templates
from tinygpt.examine.report.plot import draw
from tinygpt.training.log import is_number, read_metrics


def report(config: ReportConfig) -> None:
    """Run the command. Errors: TinyGPTError if nothing can be shown."""
    folders = [Path(name) for name in config.runs]
    if config.list:
        list_runs(folders if config.runs != ReportConfig.runs else [Path()])
    elif config.png:
        draw(config)
    else:
        from tinygpt.examine.report.gather import gather

        path = page_path(config)
        publish(gather(folders, config), path)


def replace_watched(out_dir: str) -> None:
    """Replace the page of `train --watch` by the full report. An error is a note, since the run has succeeded."""
    try:
        report(ReportConfig(runs=(out_dir,)))
    except TinyGPTError as error:
        print_error(f"note: the page of the run stays as it is: {error.message}")


def list_runs(folders: list[Path]) -> None:
    """Print the runs in these folders and one level below, the newest first. Errors: TinyGPTError if there is none."""
    logs = {path for folder in folders for pattern in ("", "*/") for path in folder.glob(f"{pattern}metrics.jsonl")}
    if not logs:
        raise TinyGPTError(f"no run (metrics.jsonl) in {', '.join(map(str, folders))}", "tinygpt report --list FOLDER")
    rows = []
    for path in sorted(logs, key=lambda path: -path.stat().st_mtime):
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        size = loss = "none"
        with contextlib.suppress(TinyGPTError, ValueError):  # unreadable; no evaluation
            entries = read_metrics(path.parent)
            loss = f"{min(entry['val_loss'] for entry in entries if is_number(entry.get('val_loss'))):.4f}"
        with contextlib.suppress(TinyGPTError):
            size = f"{load(path.parent).build_model().num_params():,}"
        rows.append((date, size, loss, f"  {path.parent}"))
    print(*table({"date": "16", "parameters": ">14", "val loss": ">10", "  run": ""}, rows), sep="\n")


def page_path(config: ReportConfig) -> Path:
    """Choose the file of the page. Errors: TinyGPTError if no page can be written there, or of so many runs."""
    templates()  # refuses early if Jinja2 is missing
    path = destination(config.output, Path(config.runs[0]), "report.html")
    if len(config.runs) > RUN_COLOURS:
        what = f"one figure cannot show the curves of {len(config.runs)} runs"
        raise TinyGPTError(what, f"name at most {RUN_COLOURS} run folders")
    return path
