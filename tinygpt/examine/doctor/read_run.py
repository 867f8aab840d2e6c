"""What a run's folder says: its metrics and settings, and the verdict on it."""

import contextlib
from pathlib import Path
from typing import Any

from tinygpt.base.configs.examine import DoctorConfig
from tinygpt.base.configs.parse import read_config
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.training.log import read_metrics
from tinygpt.training.verdict import Verdict, judge


def examine(folder: Path, config: DoctorConfig, entries: list[dict[str, Any]], settings: dict[str, Any]) -> Verdict:
    """Judge a run by what `read_run` returned, its model and its data."""
    from tinygpt.checkpoint.store import load  # here, because `report --png` uses this module without PyTorch

    parameters = tokens = 0  # not known
    with contextlib.suppress(TinyGPTError):
        parameters = load(folder).build_model().num_params()
    with contextlib.suppress(TinyGPTError):
        dataset = Dataset(data_dir(config, settings, folder), str(settings.get("dataset", "")))
        tokens = len(dataset.splits["train"])
    return judge(entries, settings, str(folder), parameters, tokens)


def read_run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read metrics.jsonl, and the values of config.yaml, none if that is unreadable. Errors: TinyGPTError."""
    entries = read_metrics(folder)
    try:
        return entries, read_config(folder / "config.yaml")
    except (OSError, TinyGPTError):
        return entries, {}
