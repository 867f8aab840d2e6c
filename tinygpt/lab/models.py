"""Datasets that a lab makes, and the answers of a trained model, measured in the lab's own process.

write_dataset(folder / "data", "notes", {"train": pairs, "val": others, "test": more}, labels=["yes", "no"])
write_text(folder / "data", "verses", text, tokenizer)
model = Model(folder / "out")
model.probabilities(["is 2 even?"], ["yes", "no"])        # (1, 2)
model.continuation("\nThe account of ", 20)               # of a model of plain text
ngrams(pairs, ["yes", "no"])(["is 2 even?"])              # (1, 2), the n-gram baseline
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tinygpt import device
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import Checkpoint, tokenizer_of
from tinygpt.data.dataset import Dataset
from tinygpt.data.pairs import tokenizer_of_pairs, write_pairs
from tinygpt.data.tasks import Pair
from tinygpt.data.token_files import write_token_files
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate import classify, respond
from tinygpt.evaluate.loss import bits_per_character, mean_loss
from tinygpt.files import folder_lock
from tinygpt.generate import Choice, generate


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


def write_text(data: Path, name: str, text: str, tokenizer: Tokenizer) -> None:
    """Write a dataset of plain text; its last tenth is the validation split."""
    folder, train = data / name, len(text) * 9 // 10
    splits = {"train": text[:train], "val": text[train:]}
    pieces = ((split, tokenizer.encode(part)) for split, part in splits.items())
    facts = {"options": {}, "characters": {split: len(part) for split, part in splits.items()}}
    with folder_lock(folder, "dataset"):
        write_token_files(folder, splits, pieces, tokenizer, hashlib.sha256(text.encode()).hexdigest(), facts)


def ngrams(examples: Sequence[Pair], labels: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """The n-gram baseline, trained on the examples: prompts to probabilities of the labels, float64 (n, L).

    Errors: TinyGPTError if it cannot be trained.
    """
    truth = classify.label_indices("train", examples, labels)
    trained, problem = classify.ngram_classifier([prompt for prompt, _ in examples], truth, len(labels))
    if trained is None:
        raise TinyGPTError(problem)
    return trained


def most_probable(probabilities: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The most probable label for each row."""
    return [labels[index] for index in probabilities.argmax(axis=1)]


class Model:
    """A trained model on the CPU; `ckpt` is a checkpoint, its file or its folder. Characters that it does not know are
    left out of a prompt. Errors: TinyGPTError as in `load_model`."""

    def __init__(self, ckpt: Checkpoint | Path | str, adapter: Path | str = "") -> None:
        checkpoint = ckpt if isinstance(ckpt, Checkpoint) else load_model(str(ckpt), str(adapter))
        self.tokenizer = tokenizer_of(checkpoint, "the model" if checkpoint is ckpt else str(ckpt), "")
        self.compute = device.choose_for_inference("cpu", "auto", checkpoint.num_params)
        self.model = checkpoint.for_inference(self.compute)

    def probabilities(self, prompts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Probabilities of the labels as responses, float64 (n, L); each row sums to 1."""
        total, _ = classify.label_scores(self.model, self.tokenizer, prompts, labels, skip_unknown=True)
        return classify.probabilities(total)

    def responses(self, prompts: Sequence[str], longest: int) -> tuple[list[str], np.ndarray]:
        """Greedy responses of at most `longest` tokens, and their probabilities, float64 (n,)."""
        return respond.responses(self.model, self.tokenizer, prompts, longest, skip_unknown=True)

    # ---- of plain text ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def log_probabilities(self, prefix: str, continuations: Sequence[str]) -> np.ndarray:
        """Log-probabilities of the continuations of a text, in nats, float64 (n,)."""
        asked = torch.from_numpy(self.tokenizer.encode(prefix).astype(np.int64))[None]
        answers = [self.tokenizer.encode(text).astype(np.int64) for text in continuations]
        longest = max(map(len, answers))
        many, parts = max(1, classify.BATCH_TOKENS // longest), []
        for at in range(0, len(answers), many):
            cache = self.model.new_cache(1, asked.size(1) + longest)
            parts.append(classify.answer_scores(self.model, cache, asked, answers[at : at + many])[0])
        return np.concatenate(parts)

    def continuation(self, prefix: str, tokens: int) -> str:
        """The greedy continuation of a text."""
        asked = torch.from_numpy(self.tokenizer.encode(prefix).astype(np.int64))[None]
        return self.tokenizer.decode([int(token) for token in generate(self.model, asked, tokens, Choice(0))])

    def bits_per_character(self, data: Path, name: str) -> float:
        """The loss on the complete validation split of a dataset of plain text with the model's tokenizer."""
        dataset = Dataset(str(data), name)
        dataset.require_tokenizer(self.tokenizer, "the model", "write the dataset with the model's tokenizer")
        source = dataset.sources["val"]
        loss = mean_loss(self.model, source, source.every(self.model.config.block_size), self.compute)
        return bits_per_character(loss, dataset)
