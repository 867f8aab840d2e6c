"""What a lab is: its entry LAB, with which its module or package tinygpt.learn.lab.NAME ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.base.configs.learn import LabConfig
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.examine.experiment.summary import Summary

HOUR = 0.1  # price of an hour of a machine, for the cost of answers


class Lab(NamedTuple):
    """An experiment with its stages and its summary."""

    about: str
    stages: Callable[[LabConfig, Path], Iterator[Stage]]  # for a configuration and the lab's folder
    summarise: Callable[[Results, LabConfig], Summary]
    settings: tuple[str, ...] = ()  # keys of LabConfig that change the results, besides `quick`
    models: tuple[str, ...] = ()  # keys that name a base model
    others: tuple[str, ...] = ()  # keys that it uses, and that do not change the results of its stages
    live: Callable[[LabConfig, Path, Results], dict[str, Any]] | None = None  # what the page needs to answer
    quick: bool = False  # has a short form for a lesson
    ngrams: bool = False  # compares with the n-gram baseline, which needs scikit-learn

    @property
    def keys(self) -> set[str]:
        """Return the keys that the lab uses; the first four are those of every lab."""
        return {"name", "quick", "seeds", "out_dir", *self.settings, *self.models, *self.others}


def seeds(config: LabConfig) -> range:
    """Return the seeds of the repetitions: 1, 2, ...; a quick lab has one."""
    return range(1, (1 if config.quick else config.seeds) + 1)
