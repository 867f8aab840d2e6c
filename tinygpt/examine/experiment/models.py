"""Train on the CPU in a child process, and load a model as a classifier.

train("train", "lab_classifier", folder / "out", folder / "data/notes", seed=1).seconds
classifier(folder / "out", ["yes", "no"])(["is 2 even?"])  # (1, 2)
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.examine.eval import classify
from tinygpt.examine.eval.classify import Classifier
from tinygpt.training.child import Cost, train_in_child


def classifier(ckpt: Path, labels: Sequence[str]) -> Classifier:
    """Load a trained model as a classifier."""
    return partial(Model(ckpt).classify, labels=labels)


class Model(Loaded):
    """A trained model on the CPU, from a checkpoint, its file or folder. Errors: TinyGPTError as in `load_model`."""

    def __init__(self, ckpt: Checkpoint | Path | str, adapter: Path | str = "") -> None:
        checkpoint = ckpt if isinstance(ckpt, Checkpoint) else load_model(str(ckpt), str(adapter))
        path = "the model" if checkpoint is ckpt else str(ckpt)
        super().__init__(checkpoint, path, InferenceConfig(device="cpu", threads=""), "")

    def classify(self, prompts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Compute the probabilities of the labels, float64 (n, L)."""
        scores, _ = classify.label_scores(self.model, self.tokenizer, prompts, labels, skip_unknown=True)
        return classify.probabilities(scores)


def train(command: str, preset: str, out: Path, dataset: Path, **settings: Any) -> Cost:
    """Train on the CPU in a child process, with `max_iters` evaluated at the end only, unless the settings say
    otherwise. Errors: as in `train_in_child`."""
    if "max_iters" in settings:
        settings.setdefault("eval_interval", settings["max_iters"])
    return train_in_child(command, f"configs/{preset}.yaml", out, dataset, device="cpu", **settings)
