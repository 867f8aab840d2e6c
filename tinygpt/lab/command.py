"""`tinygpt lab`: list the labs, or run one, from its first stage to its page.

tinygpt lab methods --seeds=1
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.config import suggest
from tinygpt.config.schema import LabConfig
from tinygpt.errors import TinyGPTError
from tinygpt.files import folder_lock
from tinygpt.lab import methods, summary
from tinygpt.lab.facts import experiment
from tinygpt.lab.facts import summary as facts_summary
from tinygpt.lab.stages import Results, Stage, run


class Lab(NamedTuple):
    """An experiment."""

    about: str
    stages: Callable[[LabConfig, Path], list[Stage]]
    summarise: Callable[[Results, LabConfig], summary.Summary]
    live: Callable[[LabConfig, Path, Results], dict[str, Any]] | None = None  # what the page needs to answer


LABS = {
    "facts": Lab(
        "retrieve, fine-tune or train: what each knows, and what a change of facts costs",
        experiment.stages,
        facts_summary.summarise,
        experiment.live,
    ),
    "methods": Lab(
        "what each method of fine-tuning gains, forgets and costs",
        methods.all_methods,
        methods.compared,
    ),
    "examples": Lab(
        "how accuracy grows with the number of training examples",
        methods.learning_curve,
        methods.curve,
    ),
}


def lab(config: LabConfig) -> None:
    """List the labs, or run one. Errors: TinyGPTError for an unknown lab, and those of its stages."""
    if not config.name:
        print(listing())
        return
    if config.name not in LABS:
        raise TinyGPTError(f"{config.name}: no such lab", f"one of {', '.join(LABS)}")
    chosen, folder = LABS[config.name], Path(config.out_dir or f"out-lab-{config.name}")
    summary.require_packages()
    stages = chosen.stages(config, folder)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the command it runs ends, too
    settings = {"data_dir": config.data_dir, "quick": config.quick}
    with folder_lock(folder, "lab"):
        results = run(folder, config.name, settings, stages)
        found = chosen.summarise(results, config)
        print(f"\n{found.as_text()}\n")
        live = chosen.live(config, folder, results) if chosen.live else None
        for path in summary.write(found, folder, config.name, live):
            print(f"written: {path}")


def listing() -> str:
    """The labs, with the command of each."""
    width = max(map(len, LABS))
    return "\n".join(
        [
            "A lab measures a claim on this machine:",
            "",
            *(f"  {name:<{width}}  {each.about}" for name, each in LABS.items()),
            "",
            f"next: {suggest.command('lab', next(iter(LABS)))}",
        ]
    )
