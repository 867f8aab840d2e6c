"""The contenders, the simplest first: from the most common response to a linear model with sentence vectors.

Each is trained on the training lines of a fold and tested on its tested lines. Nothing is chosen on tested lines: the
linear models choose their regularisation on a third of the training lines.
"""

import bisect
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.terminal import progress
from tinygpt.examine.eval.classifiers import Classifier, Linear, Majority
from tinygpt.use.advise.split import Split
from tinygpt.use.ask import embeddings
from tinygpt.use.ask.embeddings import Cached, SentenceEncoder, WordLlama

MAJORITY = "majority"
LINEAR = "linear model"
WORDS = "linear model with word vectors"
SENTENCES = "linear model with sentence vectors"
ENCODER_WEIGHT = 2**0.5  # its vectors weigh as much as the words and the pieces of words together
BATCH = 64  # prompts at a time
CHARACTERS = 1_800_000  # of all texts, which are read in minutes; long texts are cut
SHORTEST = 500  # characters to which a text is cut, at least


class Data(NamedTuple):
    """The examples: prompts, the index of each label, int64 (n,), and the labels; the number of each in the file."""

    prompts: list[str]
    truth: np.ndarray
    labels: list[str]
    numbers: Sequence[int] = ()
    unit: str = "line"  # that the numbers count: a line, or a row in Excel

    def pick(self, lines: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [self.prompts[line] for line in lines], self.truth[lines]

    def cut(self, longest: int | None) -> "Data":
        """Cut the prompts at so many characters; None: not at all."""
        return self._replace(prompts=[prompt[:longest] for prompt in self.prompts])

    def __str__(self) -> str:
        return f"{len(self.prompts):,} examples with {len(self.labels):,} labels"


def longest_for(prompts: Sequence[str]) -> int | None:
    """Return how many characters of a prompt are read, for at most CHARACTERS of all texts; None: all."""
    lengths = np.array([len(prompt) for prompt in prompts])
    if lengths.sum() <= CHARACTERS:
        return None
    fitting = bisect.bisect_right(range(lengths.max()), CHARACTERS, key=lambda cut: np.minimum(lengths, cut).sum()) - 1
    return max(SHORTEST, fitting)


class Contender(NamedTuple):
    name: str
    train: Callable[..., Classifier]  # `fit` of its class
    embeddings: Cached | None = None  # that it uses

    def fit(self, prompts: Sequence[str], truth: np.ndarray, n_labels: int) -> Classifier:
        """Train on examples; if all have the same label, `Majority`. truth: indices of labels, int64 (n,)."""
        if len(np.unique(truth)) < 2:
            return Majority.fit(prompts, truth, n_labels)
        options = {"embed": self.embeddings.vectors} if self.embeddings else {}
        return self.train(prompts, truth, n_labels, **options)


def available(encoder: SentenceEncoder | None = None) -> dict[str, Contender]:
    """Return the contenders that can be used here, by name, the simplest first."""
    contenders = [Contender(MAJORITY, Majority.fit), Contender(LINEAR, Linear.fit)]
    if embeddings.installed():
        contenders.append(Contender(WORDS, Linear.fit, Cached(WordLlama())))
    if encoder:
        contenders.append(Contender(SENTENCES, partial(Linear.fit, weight=ENCODER_WEIGHT), Cached(encoder)))
    return {contender.name: contender for contender in contenders}


def measure(contender: Contender, data: Data, split: Split, subset: float = 1.0) -> dict[str, Any]:
    """Train and test a contender on each fold; with `subset`, on this share of the training lines.

    Returns lines: those tested, predicted: labels, confidence: their probabilities; seconds of a training, and per_line
    of a line that comes alone; bytes of the model."""
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
    return {
        "lines": split.tested.tolist(),
        "predicted": predicted,
        "confidence": [float(f"{p:.5g}") for p in confidence],
        "seconds": statistics.mean(seconds),
    }
