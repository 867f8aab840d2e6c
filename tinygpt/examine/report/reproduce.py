"""What reproduces a run: its configuration, checksums, versions and commands."""

import copy
import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tinygpt.base import __version__
from tinygpt.base.configs import suggest
from tinygpt.base.files import without_folders
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.examine.report.summary import machine


def reproduce(run: LoadedRun, settings: dict[str, Any]) -> dict[str, Any]:
    """Collect configuration, checksums, versions and commands that reproduce the run, without absolute paths."""
    path = run.folder / "ckpt.pt"
    sums = {}
    if path.is_file():
        with open(path, "rb") as file:
            sums[f"{run.folder.name}/ckpt.pt"] = hashlib.file_digest(file, "sha256").hexdigest()
    name = str(run.checkpoint.config.get("dataset", ""))
    sums |= {f"{name} {file}": str(value) for file, value in sorted(run.checkpoint.data.items())}
    prepare, data_folder = suggest.command("prepare", name), "data"
    if run.dataset:
        dataset = copy.copy(run.dataset)
        dataset.meta = dataset.meta | {"options": without_folders(dataset.meta.get("options"))}
        dataset.folder = Path(data_folder := without_folders(str(dataset.folder.parent))) / dataset.name
        prepare = dataset.prepare_command
    train_command = suggest.command(suggest.training_command(settings), "config.yaml")
    folder = without_folders(str(run.folder))
    versions = f"tinygpt {__version__}, torch {torch.__version__}, numpy {np.__version__}"
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return {
        "commands": [
            prepare,
            train_command,
            suggest.command("report", Path(folder), *suggest.data_dir_flag(data_folder)),
        ],
        "config": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "sums": sums,
        "trained": machine(run.folder),
        "here": f"{versions}, {system}, threads: {torch.get_num_threads()}",
    }
