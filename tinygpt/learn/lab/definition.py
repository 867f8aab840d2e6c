"""What a lab is: its entry LAB, with which its module or package tinygpt.learn.lab.NAME ends; and what labs share.

A lab states its cases, which it measures one by one (`stage`), and makes tables, a picture and verdicts of the records:

    def stages(config, folder):
        for seed in seeds(config):
            yield stage(f"seed {seed}", 10, measure, folder, seed=seed)     # measure(folder, seed=1) returns figures

    def summarise(records, config):                                         # [{"seed": 1, "loss": 1.5}, ...]
        return Summary("Title", "What is asked?", [Table(...)], [Verdict("What follows.", "by which rule")], ...)

    LAB = Lab("what it shows", stages, summarise)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.process import run
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary

Classifier = Callable[[Sequence[str]], np.ndarray]  # from n prompts to probabilities of labels (n, L)
HOUR = 0.1  # price of an hour of a machine, for the cost of answers
TEST_LINES = "1,000 test lines, three quarters of them with brands that do not occur in training"
# characters of a copied passage; one that is in more lines is a stock phrase
COPY = 50
STOCK = 20


class Lab(NamedTuple):
    """An experiment with its stages and its summary."""

    about: str
    stages: Callable[[LabConfig, Path], Iterator[Stage]]  # for a configuration and the lab's folder
    summarise: Callable[[Records, LabConfig], Summary]
    settings: tuple[str, ...] = ()  # keys of LabConfig that change the results, besides `quick`
    models: tuple[str, ...] = ()  # keys that name a base model
    others: tuple[str, ...] = ()  # keys that it uses, and that do not change the results of its stages
    live: Callable[[LabConfig, Path, Records], dict[str, Any]] | None = None  # what the page needs to answer
    quick: bool = False  # has a short form for a lesson
    ngrams: bool = False  # compares with the n-gram baseline, which needs scikit-learn

    @property
    def keys(self) -> set[str]:
        """Return the keys that the lab uses; the first four are those of every lab."""
        return {"name", "quick", "seeds", "out_dir", *self.settings, *self.models, *self.others}


def seeds(config: LabConfig) -> range:
    """Return the seeds of the repetitions: 1, 2, ...; a quick lab has one."""
    return range(1, (1 if config.quick else config.seeds) + 1)


def stage(name: str, seconds: float, measure: Callable[..., Any], *fixed: Any, **case: Any) -> Stage:
    """Make the stage that measures a case: measure(*fixed, **case) returns a dictionary of figures, or several, which
    become records with the case."""
    return Stage(name, seconds, partial(measure, *fixed, **case), case)


def learn(preset: str, out: Path, dataset: api.Dataset, **settings: Any) -> api.Run:
    """Train a model on the CPU in a process of its own, or continue its training; with `ckpt`, fine-tune that one.

    With max_iters, the model is evaluated at the end only, unless the settings say otherwise.
    """
    if "max_iters" in settings:
        settings = {"eval_interval": settings["max_iters"], **settings}
    train = api.finetune if "ckpt" in settings else api.train
    return train(f"configs/{preset}.yaml", dataset=dataset, out_dir=out, device="cpu", child=True, **settings)


def prepared(data_dir: str | Path, folder: Path, dataset: str) -> Stage:
    """Make the stage that prepares a dataset, unless it exists."""

    def prepare() -> None:
        if not (Path(data_dir) / dataset / "meta.json").exists():
            run(folder / "prepare.log", "prepare", dataset, f"--data_dir={data_dir}")

    return Stage(f"prepare {dataset}", 5, prepare)


def without_copies(text: str, end: str) -> str:
    """Leave out the lines that share a passage with a text's end, except stock phrases ("This industry comprises")."""
    lines = text.splitlines(keepends=True)
    ours, *found = [{own[at : at + COPY] for at in range(len(own) - COPY + 1)} for own in (end, *lines)]
    counts = Counter(passage for own in found for passage in own & ours)
    copied = {passage for passage, count in counts.items() if count <= STOCK}
    return "".join(line for line, own in zip(lines, found, strict=True) if not own & copied)


def right(probabilities: np.ndarray, pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> np.ndarray:
    """Compare the most probable label of each prompt with the true one: bool (n,). probabilities: float64 (n, L)."""
    answers = [labels[index] for index in probabilities.argmax(axis=1)]
    return np.array([answer == label for answer, (_, label) in zip(answers, pairs, strict=True)])


def accuracy(probabilities: np.ndarray, pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> float:
    """Return the share of the prompts whose most probable label is the true one. probabilities: float64 (n, L)."""
    return float(right(probabilities, pairs, labels).mean())
