"""The contenders, the simplest first: from the most common response to a pretrained model with LoRA adapters.

Each is trained on the training lines of a fold and tested on its tested lines. Nothing is chosen on tested lines: the
linear models choose their regularisation on a third of the training lines, and of a language model the weights with
the lowest loss on a tenth of them are used, which the split sets apart as it does the tested ones. It does not stop
early: with labels that depend on several words at once, the loss rises before it falls.
"""

import bisect
import io
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinygpt.base.terminal import progress
from tinygpt.checkpoint.loaded import ON_CPU, Loaded
from tinygpt.data.memory import write_dataset
from tinygpt.data.pairs import tokenizer_of_pairs
from tinygpt.data.tokenizer import CharTokenizer
from tinygpt.examine.eval.classifiers import Classifier, Linear, Majority, Nearest
from tinygpt.examine.eval.classify import gpt_classifier
from tinygpt.prepare import tokenizer_for_pairs
from tinygpt.training.child import Cost, train_in_child
from tinygpt.training.log import read_metrics
from tinygpt.training.start import MOST_BIGRAM_TOKENS
from tinygpt.use.advise.split import Split
from tinygpt.use.ask import embeddings
from tinygpt.use.ask.embeddings import Cached, SentenceEncoder, WordLlama

MAJORITY = "majority"
NEAREST = "nearest neighbours"
LINEAR = "linear model"
WORDS = "linear model with word vectors"
SENTENCES = "linear model with sentence vectors"
GPT = "tiny GPT"
PRETRAINED = "pretrained, LoRA"
ENCODER_WEIGHT = 2**0.5  # its vectors weigh as much as the words and the pieces of words together
ALONE = 20  # lines that are classified one by one, for the time of a line
BATCH = 64  # prompts at a time
CHARACTERS = 3000  # of all texts that the contenders read for each second of the budget
SHORTEST = 500  # characters to which a text is cut, at least
HELD_OUT = 0.1  # share of the training lines whose loss chooses the weights of a language model
LONGEST = {GPT: 480, PRETRAINED: 1200}  # characters of a prompt; more are cut
SPECIAL_TOKENS = 3  # of a pair
MOST_PASSES = 60  # of a GPT over the training lines
GPT_BATCH = 32
PRETRAINED_BATCH = 16
FOLDERS = {GPT: "gpt", PRETRAINED: "pretrained"}  # of their trainings
# iterations, and tested lines
PILOT = {GPT: 30, PRETRAINED: 4}
PILOT_LINES = 20
MOST_HELD_OUT = {GPT: 1000, PRETRAINED: 64}  # training lines whose loss chooses the weights
EVALUATIONS = 8  # in a training; the weights with the lowest loss are used
START_UP = {GPT: 8.0, PRETRAINED: 60.0}  # seconds of a training besides its iterations
FEWEST = {GPT: 100, PRETRAINED: 40}  # iterations that are worth a try
PRETRAINED_TESTED = 200  # lines, since each takes a large part of a second


class Data(NamedTuple):
    """The examples: prompts, the index of each label, int64 (n,), and the labels; the number of each in the file."""

    prompts: list[str]
    truth: np.ndarray
    labels: list[str]
    numbers: Sequence[int] = ()
    unit: str = "line"  # that the numbers count: a line, or a row in Excel

    def pick(self, lines: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [self.prompts[line] for line in lines], self.truth[lines]

    def pairs(self, lines: np.ndarray, training: "Training") -> list[tuple[str, str]]:
        """Return (prompt, response) of some lines, cut as a training needs them."""
        return [(self.prompts[line][: training.longest], self.labels[self.truth[line]]) for line in lines]

    def cut(self, longest: int | None) -> "Data":
        """Cut the prompts at so many characters; None: not at all."""
        return self._replace(prompts=[prompt[:longest] for prompt in self.prompts])

    def __str__(self) -> str:
        return f"{len(self.prompts):,} examples with {len(self.labels):,} labels"


def longest_for(prompts: Sequence[str], budget: float) -> int | None:
    """Return how many characters of a prompt can be read in a budget of so many seconds; None: all."""
    lengths = np.array([len(prompt) for prompt in prompts])
    most = budget * CHARACTERS
    fitting = bisect.bisect_right(range(lengths.max() + 1), most, key=lambda cut: np.minimum(lengths, cut).sum()) - 1
    longest = max(SHORTEST, fitting)
    return longest if longest < lengths.max() else None


class Cheap(NamedTuple):
    """A contender that trains in seconds."""

    name: str
    train: Callable[..., Classifier]  # `fit` of its class
    embeddings: Cached | None = None  # that it uses

    def fit(self, prompts: Sequence[str], truth: np.ndarray, n_labels: int) -> Classifier:
        """Train on examples; if all have the same label, `Majority`. truth: indices of labels, int64 (n,)."""
        if len(np.unique(truth)) < 2:
            return Majority.fit(prompts, truth, n_labels)
        options = {"embed": self.embeddings.vectors} if self.embeddings else {}
        return self.train(prompts, truth, n_labels, **options)


def cheap(encoder: SentenceEncoder | None = None) -> dict[str, Cheap]:
    """Return the cheap contenders that can be used here, by name, the simplest first."""
    contenders = [Cheap(MAJORITY, Majority.fit), Cheap(NEAREST, Nearest.fit), Cheap(LINEAR, Linear.fit)]
    if embeddings.installed():
        contenders.append(Cheap(WORDS, Linear.fit, Cached(WordLlama())))
    if encoder:
        contenders.append(Cheap(SENTENCES, partial(Linear.fit, weight=ENCODER_WEIGHT), Cached(encoder)))
    return {contender.name: contender for contender in contenders}


def measure_cheap(contender: Cheap, data: Data, split: Split, subset: float = 1.0) -> dict[str, Any]:
    """Train and test a cheap contender on each fold; with `subset`, on this share of the training lines."""
    predicted = list[int]()
    confidence = list[float]()
    seconds = []
    for train_lines, test_lines in progress(split.folds, desc=contender.name):
        if subset < 1:
            train_lines = train_lines[split.part(train_lines, subset, seed=1)]
        began = time.monotonic()
        fitted = contender.fit(*data.pick(train_lines), len(data.labels))
        seconds.append(time.monotonic() - began)
        prompts = data.pick(test_lines)[0]
        for start in range(0, len(prompts), BATCH):
            probabilities = fitted(prompts[start : start + BATCH])  # (BATCH, L)
            predicted += probabilities.argmax(axis=1).tolist()
            confidence += probabilities.max(axis=1).tolist()
    source = contender.embeddings.source if contender.embeddings else None
    if source and isinstance(fitted, Linear):
        fitted.embed = source.vectors  # not cached, as in use
    alone = one_by_one(fitted, data.prompts)
    results = outcome(split.tested, np.array(predicted), np.array(confidence), statistics.mean(seconds), alone)
    stored = io.BytesIO()
    torch.save(fitted.state(), stored)
    return results | {"bytes": len(stored.getvalue()) + (source.bytes if source else 0)}


def outcome(
    lines: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, seconds: float, per_line: float
) -> dict[str, Any]:
    """Make the result of a stage: seconds of a training, and of one line that comes alone."""
    answers = {"predicted": predicted.tolist(), "confidence": [float(f"{p:.5g}") for p in confidence]}
    return {"lines": lines.tolist(), **answers, "seconds": seconds, "per_line": per_line}


def one_by_one(answer: Callable[[Sequence[str]], Any], prompts: Sequence[str]) -> float:
    """Return the median of the seconds in which one prompt is answered."""
    seconds = []
    for prompt in prompts[:ALONE]:
        began = time.monotonic()
        answer([prompt])
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


# ---- language models ----------------------------------------------------------------------------------------------


class Training(NamedTuple):
    """How a language model is trained on these data."""

    name: str  # GPT or PRETRAINED
    iterations: int
    context: int  # tokens
    longest: int  # characters of a prompt; longer ones are cut
    base: str = ""  # the checkpoint of a pretrained model

    def tested(self, count: int) -> np.ndarray:
        """Choose which of `count` lines are tested, int64: all, or of a pretrained model some."""
        most = PRETRAINED_TESTED if self.name == PRETRAINED else count
        return np.sort(np.random.default_rng(1).permutation(count)[:most])

    def settings(self) -> tuple[str, str, dict[str, Any]]:
        """Return the command, its preset and its settings."""
        settings: dict[str, Any] = {"max_iters": self.iterations, "block_size": self.context, "group_by_length": True}
        evaluations, batches = (EVALUATIONS, 4) if self.iterations >= FEWEST[self.name] else (1, 1)  # of a pilot
        settings |= {"eval_interval": self.iterations // evaluations, "warmup_iters": max(1, self.iterations // 20)}
        settings |= {"log_interval": max(1, self.iterations // 20)}
        if self.name == GPT:
            return "train", "lab_classifier", settings
        return "finetune", "finetune_transactions_pretrained", settings | {"ckpt": self.base, "eval_iters": batches}


def planned(name: str, data: Data, base: str = "") -> Training:
    """Choose the context of a language model, so that 19 of 20 prompts fit completely; the others are cut."""
    longest = min(LONGEST[name], int(np.quantile([len(prompt) for prompt in data.prompts], 0.95)))
    if name == GPT:
        return Training(name, PILOT[name], longest + max(map(len, data.labels)) + SPECIAL_TOKENS, longest)
    training = Training(name, PILOT[name], 0, longest, base)
    tokenizer = tokenizer_for_pairs(base).joined(characters(data, training))  # a base model of characters gets new ones
    context = max(len(tokenizer.encode_prompt(prompt[:longest])) for prompt in data.prompts)
    context += max(len(tokenizer.encode_response(label)) for label in data.labels)
    return training._replace(context=context)


def characters(data: Data, training: Training) -> CharTokenizer:
    """Make a tokenizer of the characters of all lines: a tested response can have others than the training lines."""
    return tokenizer_of_pairs({"all": data.pairs(np.arange(len(data.truth)), training)})


def fit_language_model(
    training: Training, data: Data, split: Split, lines: np.ndarray, folder: Path, limit: float = math.inf
) -> Cost:
    """Train on some lines, into folder/model, for at most `limit` seconds."""
    held_out = split.part(lines, min(HELD_OUT, MOST_HELD_OUT[training.name] / len(lines)), seed=2)
    val = lines[held_out] if held_out.any() and not held_out.all() else lines
    parts = {"train": lines[~held_out] if val is not lines else lines, "val": val, "test": val[:1]}
    splits = {part: data.pairs(some, training) for part, some in parts.items()}
    known = characters(data, training)
    dataset = write_dataset(folder / "data", splits, data.labels)
    command, preset, settings = training.settings()
    if training.name == GPT and known.vocab_size > MOST_BIGRAM_TOKENS:
        settings["bigram_table"] = False
    settings |= {"seed": 1, "device": "cpu"}
    return train_in_child(command, f"configs/{preset}.yaml", folder / "model", dataset.folder, limit, **settings)


def measure_language_model(
    training: Training, data: Data, split: Split, fold: int, folder: Path, limit: float
) -> dict[str, Any]:
    """Train on a fold, and test some or all of its tested lines."""
    train_lines, test_lines = split.folds[fold]
    trained = fit_language_model(training, data, split, train_lines, folder, limit)
    results, _ = answered(training, data, test_lines[training.tested(len(test_lines))], folder / "model")
    return results | {"seconds": trained.seconds, "bytes": trained.bytes, "iterations": training.iterations}


def answered(training: Training, data: Data, lines: np.ndarray, ckpt: Path) -> tuple[dict[str, Any], float]:
    """Test a language model on some lines: the result, without the costs of training, and the seconds that it took."""
    prompts = [prompt for prompt, _ in data.pairs(lines, training)]
    loaded = Loaded.load(str(ckpt), "", ON_CPU, "")
    classify = gpt_classifier(loaded.model, loaded.tokenizer, data.labels)
    began = time.monotonic()
    probabilities = classify(prompts)
    seconds = time.monotonic() - began
    alone = one_by_one(classify, prompts)
    return outcome(lines, probabilities.argmax(axis=1), probabilities.max(axis=1), 0.0, alone), seconds


def pilot(training: Training, data: Data, split: Split, folder: Path, seconds: float) -> tuple[float, float]:
    """Measure the seconds of an iteration in a short training, and of the test of a fold; infinity without time."""
    if seconds < 3 * START_UP[training.name]:
        return math.inf, 0.0
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier pilot, which would be continued, with its times
    lines = split.folds[0][0]
    fit_language_model(training, data, split, lines[: 20 * PILOT[training.name]], folder)
    results, tested_in = answered(training, data, lines[:PILOT_LINES], folder / "model")
    tested = len(training.tested(len(split.folds[0][1])))
    testing = tested_in / len(results["lines"]) * tested + results["per_line"] * ALONE
    return seconds_per_iteration(folder / "model"), testing


def seconds_per_iteration(out: Path) -> float:
    """Measure the seconds of an iteration in the second half of a training's log."""
    entries = [entry for entry in read_metrics(out) if entry["kind"] == "train"]
    first = entries[len(entries) // 2]
    last = entries[-1]
    return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


def iterations_for(training: Training, lines: int, seconds: float, each: float) -> int:
    """Return how many iterations of `each` seconds fit into a training of so many seconds; 0 if too few."""
    batch = GPT_BATCH if training.name == GPT else PRETRAINED_BATCH
    fitting = int((seconds - START_UP[training.name]) / each)
    return min(fitting, MOST_PASSES * lines // batch + 1) if fitting >= FEWEST[training.name] else 0


def language_model_of_all(training: Training, data: Data, split: Split, folder: Path, limit: float) -> str:
    """Train a language model on all lines, to be used, for at most `limit` seconds; return its checkpoint's path in the
    folder."""
    fit_language_model(training, data, split, np.arange(len(data.truth)), folder / FOLDERS[training.name], limit)
    return f"{FOLDERS[training.name]}/model/ckpt.pt"
