"""What experiments share: write datasets, train models in child processes, load trained models and baselines.

notes = write_dataset(folder / "data/notes", {"train": pairs, "val": others, "test": more}, labels=["yes", "no"])
train("train", "lab_classifier", folder / "out", notes, seed=1).seconds
classifier(folder / "out", ["yes", "no"])(["is 2 even?"])  # (1, 2)
"""

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock
from tinygpt.base.process import run
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.checkpoint.lora import adapted_only
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.pairs import tokenizer_of_pairs, write_pairs
from tinygpt.data.tasks import Pair
from tinygpt.data.token_files import write_token_files
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.examine.eval import classify, respond
from tinygpt.examine.eval.classify import Classifier
from tinygpt.examine.experiment.stages import Stage
from tinygpt.generate import Sampling, generate
from tinygpt.training.log import read_metrics


def write_dataset(
    folder: Path, splits: dict[str, list[Pair]], labels: Sequence[str] = (), tokenizer: Tokenizer | None = None
) -> Path:
    """Write a dataset of pairs with the given splits (train, val, test), and return its folder."""
    with folder_lock(folder, "dataset"):
        write_pairs(folder, splits, list(labels), tokenizer or tokenizer_of_pairs(splits), {})
    return folder


def write_text(folder: Path, text: str, tokenizer: Tokenizer, train: int = 0) -> None:
    """Write a dataset of plain text. train: characters of the training split; 0: nine tenths."""
    train = train or len(text) * 9 // 10
    splits = {"train": text[:train], "val": text[train:]}
    pieces = ((split, tokenizer.encode(part)) for split, part in splits.items())
    facts = {"options": {}, "characters": {split: len(part) for split, part in splits.items()}}
    with folder_lock(folder, "dataset"):
        write_token_files(folder, splits, pieces, tokenizer, hashlib.sha256(text.encode()).hexdigest(), facts)


def ngrams(examples: Sequence[Pair], labels: Sequence[str]) -> Classifier:
    """Train the n-gram baseline on examples. Errors: TinyGPTError if it cannot be trained."""
    truth = classify.label_indices(examples, labels)
    trained, problem = classify.ngram_classifier([prompt for prompt, _ in examples], truth, len(labels))
    if trained is None:
        raise TinyGPTError(problem)
    return trained


def classifier(ckpt: Path, labels: Sequence[str]) -> Classifier:
    """Load a trained model as a classifier."""
    return partial(Model(ckpt).classify, labels=labels)


def right(probs: np.ndarray, pairs: Sequence[Pair], labels: Sequence[str]) -> np.ndarray:
    """Compare the most probable label of each prompt with the true one: bool (n,)."""
    return probs.argmax(axis=1) == classify.label_indices(pairs, labels)


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

    def responses(self, prompts: Sequence[str], longest: int) -> tuple[list[str], np.ndarray]:
        """Decode greedy responses of at most `longest` tokens, and their probabilities, float64 (n,)."""
        return respond.responses(self.model, self.tokenizer, prompts, longest, skip_unknown=True)

    @torch.inference_mode()
    def log_probabilities(self, prefix: str, continuations: Sequence[str]) -> np.ndarray:
        """Compute the log-probabilities of continuations of a text, in nats, float64 (n,)."""
        prefix_ids = torch.from_numpy(self.tokenizer.encode(prefix).astype(np.int64))[None]
        continuation_ids = [self.tokenizer.encode(text).astype(np.int64) for text in continuations]
        longest = max(map(len, continuation_ids))
        batch_size, scores = max(1, classify.BATCH_TOKENS // longest), []
        for start in range(0, len(continuation_ids), batch_size):
            cache, batch = self.model.new_cache(1, prefix_ids.size(1) + longest), continuation_ids[start:][:batch_size]
            scores.append(classify.answer_scores(self.model, cache, prefix_ids, batch)[0])
        return np.concatenate(scores)

    def continuation(self, prefix: str, tokens: int) -> str:
        """Continue a text by greedy decoding."""
        prefix_ids = torch.from_numpy(self.tokenizer.encode(prefix).astype(np.int64))[None]
        return self.tokenizer.decode([int(token) for token in generate(self.model, prefix_ids, tokens, Sampling(0))])


class Trained(NamedTuple):
    """The cost of a training, and the losses that show its forgetting."""

    seconds: float  # evaluations included, over all sessions if it was stopped
    weights: int  # number of those that were trained
    bytes: int  # of the adapter, or of the checkpoint
    memory: int  # peak of the process, in bytes
    base_losses: dict[str, float]  # on the base model's own data, "before" and "after" a fine-tuning, if measured


def train(command: str, preset: str, out: Path, dataset: Path, limit: float = math.inf, **settings: Any) -> Trained:
    """Run `tinygpt train` or `finetune` with a preset on a dataset, or continue a training that was stopped.

    With max_iters, the model is evaluated at the end only, unless the settings say otherwise. It is stopped after
    `limit` seconds.
    Errors: TinyGPTError as in base/process.py.
    """
    if "max_iters" in settings:
        settings.setdefault("eval_interval", settings["max_iters"])
    settings |= {"dataset": dataset.name, "data_dir": dataset.parent}
    settings |= {"out_dir": out, "init_from": "auto", "device": "cpu"}
    flags = [f"--{key}={value}" for key, value in settings.items()]
    memory = run(out.parent / "train.log", command, f"configs/{preset}.yaml", "--quiet", *flags, limit=limit).memory
    saved, metrics = load_model(str(out / "ckpt.pt")), read_metrics(out)
    number = sum(weight.numel() for weight in adapted_only(saved.model).values()) or saved.num_params
    file = next(path for name in ("adapter.pt", "ckpt.pt") if (path := out / name).exists())
    losses = {entry["kind"]: entry["base_loss"] for entry in metrics if "base_loss" in entry}
    return Trained(max(entry["seconds"] for entry in metrics), number, file.stat().st_size, memory, losses)


def seconds_per_iteration(out: Path) -> float:
    """Measure the seconds of an iteration in the second half of a training's log."""
    entries = [entry for entry in read_metrics(out) if entry["kind"] == "train"]
    first, last = entries[len(entries) // 2], entries[-1]
    return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


def prepared(data: str | Path, folder: Path, dataset: str) -> Stage:
    """Make the stage that prepares a dataset, unless it exists."""

    def prepare() -> None:
        if not (Path(data) / dataset / "meta.json").exists():
            run(folder / "prepare.log", "prepare", dataset, f"--data_dir={data}")

    return Stage(f"prepare {dataset}", 5, prepare)
