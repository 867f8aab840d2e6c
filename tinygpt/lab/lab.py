"""What a lab is: a table entry for each, and what they all share.

A lab that is called NAME is in the module or package tinygpt.lab.NAME, which ends with its entry:

    LAB = Lab("how accuracy falls when the world changes", stages, summarise, quick=True)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.config.schema import LabConfig
from tinygpt.lab.stages import Results, Stage
from tinygpt.lab.summary import Summary


class Lab(NamedTuple):
    """An experiment."""

    about: str
    stages: Callable[[LabConfig, Path], list[Stage]]  # for a configuration and the lab's folder
    summarise: Callable[[Results, LabConfig], Summary]
    settings: tuple[str, ...] = ()  # keys of LabConfig that change the results, besides `quick`
    models: tuple[str, ...] = ()  # keys that name a base model
    others: tuple[str, ...] = ()  # keys that it uses, and that do not change the results of its stages
    live: Callable[[LabConfig, Path, Results], dict[str, Any]] | None = None  # what the page needs to answer
    quick: bool = False  # has a short form for a lesson
    more: Callable[[Results, LabConfig, Path], Path] | None = None  # writes one more file into the folder

    @property
    def keys(self) -> set[str]:
        """The keys that it uses."""
        return {*ALL_LABS, *self.settings, *self.models, *self.others}


ALL_LABS = ("name", "quick", "seeds", "out_dir")  # keys of every lab


def seeds(config: LabConfig) -> range:
    """The seeds of the repetitions: 1, 2, ...; a quick lab has one."""
    return range(1, (1 if config.quick else config.seeds) + 1)
