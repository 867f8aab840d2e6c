"""Train on the CPU in a child process: train("train", "lab_scale", folder / "out", folder / "data/notes", seed=1)."""

from pathlib import Path
from typing import Any

from tinygpt.training.child import Cost, train_in_child


def train(command: str, preset: str, out: Path, dataset: Path, **settings: Any) -> Cost:
    """Train on the CPU in a child process, with `max_iters` evaluated at the end only, unless the settings say
    otherwise. Errors: as in `train_in_child`."""
    if "max_iters" in settings:
        settings.setdefault("eval_interval", settings["max_iters"])
    return train_in_child(command, f"configs/{preset}.yaml", out, dataset, device="cpu", **settings)
