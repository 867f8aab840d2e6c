"""`tinygpt doctor`: check the files of runs and datasets, and print the verdict on runs.

tinygpt doctor out data/shakespeare_char
"""

import contextlib
from pathlib import Path
from typing import Any

from tinygpt.base.configs.examine import DoctorConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_of
from tinygpt.base.terminal import counted
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.examine.doctor.files import check_files
from tinygpt.training.log import machine_of, read_run
from tinygpt.training.verdict import Verdict, is_unfinished, judge

HINT = "tinygpt doctor out, or tinygpt doctor data/NAME"


def doctor(config: DoctorConfig) -> int:
    """Run the command: check files, and print the verdict on each run. Returns 0 if every check passes, else 1."""
    all_intact = True
    for name in config.run or ["out"]:
        folder = folder_of(name)
        has_log = (folder / "metrics.jsonl").exists()
        if not Path(name).exists():
            raise TinyGPTError(f"{name}: no such folder", HINT)
        if not (has_log or (folder / "meta.json").exists() or any(folder.glob("*.pt"))):  # *.pt: an imported model
            raise TinyGPTError(f"{name}: neither a run (metrics.jsonl) nor a dataset (meta.json)", HINT)
        if len(config.run) > 1:
            print(f"{folder}:")
        intact = check_files(folder, config)
        if has_log:
            diagnose(folder, config, intact)
        all_intact &= intact
    return 0 if all_intact else 1


def diagnose(folder: Path, config: DoctorConfig, intact: bool) -> None:
    """Print the verdict on a run, and the command to try unless files are damaged, which it may need."""
    entries, settings = read_run(folder)
    verdict = verdict_on(folder, config, entries, settings)
    lines = verdict.lines()
    if not intact:
        lines.pop()
    print("\n".join(lines))
    print(f"trained:     {machine_of(folder)}")
    if entries and verdict.kind != "stopped early" and is_unfinished(entries, settings):
        done = max(entry["step"] + (entry["kind"] == "train") for entry in entries)
        print(f"unfinished:  {done:,} of {counted(settings['max_iters'], 'iteration')}")


def verdict_on(folder: Path, config: DoctorConfig, entries: list[dict[str, Any]], settings: dict[str, Any]) -> Verdict:
    """Judge a run by what `read_run` returned, its model and its data."""
    parameters = tokens = 0  # not known
    with contextlib.suppress(TinyGPTError):
        parameters = load(folder).build_model().num_params()
    with contextlib.suppress(TinyGPTError):
        tokens = len(Dataset(data_dir(config, settings, folder), str(settings.get("dataset", ""))).splits["train"])
    return judge(entries, settings, str(folder), parameters, tokens)
