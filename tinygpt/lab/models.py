"""Datasets that a lab makes, and the answers of a trained model, measured in the lab's own process.

write_dataset(folder / "data", "notes", {"train": pairs, "val": others, "test": more}, labels=["yes", "no"])
model = Model(folder / "out")
model.probabilities(["is 2 even?"], ["yes", "no"])        # (1, 2)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import Checkpoint, tokenizer_of
from tinygpt.data.pairs import tokenizer_of_pairs, write_pairs
from tinygpt.data.tasks import Pair
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.evaluate import classify, respond
from tinygpt.files import folder_lock
from tinygpt.training import device
from tinygpt.training.build import for_inference


def write_dataset(
    data: Path,
    name: str,
    splits: dict[str, list[Pair]],
    labels: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a dataset of pairs with the given splits (train, val, test), as `tinygpt prepare` writes its own."""
    folder = data / name
    with folder_lock(folder, "dataset"):
        write_pairs(folder, splits, list(labels), tokenizer or tokenizer_of_pairs(splits), {})


class Model:
    """A trained model on the CPU; `ckpt` is a checkpoint, its file or its folder. Characters that it does not know are
    left out of a prompt. Errors: TinyGPTError as in `load_model`."""

    def __init__(self, ckpt: Checkpoint | Path | str, adapter: Path | str = "") -> None:
        checkpoint = ckpt if isinstance(ckpt, Checkpoint) else load_model(str(ckpt), str(adapter))
        self.tokenizer = tokenizer_of(checkpoint, "the model" if checkpoint is ckpt else str(ckpt), "")
        self.model = for_inference(checkpoint, device.choose_for_inference("cpu", "auto", checkpoint.num_params))

    def probabilities(self, prompts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Probabilities of the labels as responses, float64 (n, L); each row sums to 1."""
        total, _ = classify.label_scores(self.model, self.tokenizer, prompts, labels, skip_unknown=True)
        return classify.probabilities(total)

    def responses(self, prompts: Sequence[str], longest: int) -> tuple[list[str], np.ndarray]:
        """Greedy responses of at most `longest` tokens, and their probabilities, float64 (n,)."""
        return respond.responses(self.model, self.tokenizer, prompts, longest, skip_unknown=True)
