"""`tinygpt lab`: list the labs, or run one, from its first stage to its page.

tinygpt lab methods --seeds=1
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.checkpoint.store import load
from tinygpt.config import suggest
from tinygpt.config.schema import LabConfig
from tinygpt.errors import TinyGPTError
from tinygpt.files import folder_lock
from tinygpt.lab import methods, summary
from tinygpt.lab.facts import experiment
from tinygpt.lab.facts import summary as facts_summary
from tinygpt.lab.stages import Identity, Results, Stage, run


class Lab(NamedTuple):
    """An experiment."""

    about: str
    settings: tuple[str, ...]  # keys that change the results
    models: tuple[str, ...]  # keys that name a base model
    stages: Callable[[LabConfig, Path], list[Stage]]
    summarise: Callable[[Results, LabConfig], summary.Summary]
    live: Callable[[LabConfig, Path, Results], dict[str, Any]] | None = None  # what the page needs to answer


LABS = {
    "facts": Lab(
        "retrieve, fine-tune or train: what each knows, and what a change of facts costs",
        ("quick",),
        ("pretrained",),
        experiment.stages,
        facts_summary.summarise,
        experiment.live,
    ),
    "methods": Lab(
        "what each method of fine-tuning gains, forgets and costs",
        ("data_dir",),
        ("ckpt", "pretrained"),
        methods.all_methods,
        methods.compared,
    ),
    "examples": Lab(
        "how accuracy grows with the number of training examples",
        ("data_dir",),
        ("ckpt", "pretrained"),
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
        raise TinyGPTError(f"{config.name}: no such lab", f"choose one of {', '.join(LABS)}")
    chosen, folder = LABS[config.name], Path(config.out_dir or f"out-lab-{config.name}{'-quick' * config.quick}")
    summary.require_packages()
    if config.quick and "quick" not in chosen.settings:
        raise TinyGPTError(f"lab {config.name} has no quick form", f"tinygpt lab {config.name} --seeds=1")
    stages = chosen.stages(config, folder)
    settings = {key: getattr(config, key) for key in chosen.settings}
    models = {path: weights_fingerprint(load(path).model) for key in chosen.models if (path := getattr(config, key))}
    identity = Identity(config.name, settings, models)
    with folder_lock(folder, "lab"), ended_by_sigterm():
        results = run(folder, identity, stages)
        found = chosen.summarise(results, config)
        print(f"\n{found.as_text()}\n")
        live = chosen.live(config, folder, results) if chosen.live else None
        for path in summary.write(found, folder, config.name, live):
            print(f"written: {path}")
        print(f"\nnext: open {folder / config.name}.html in a browser")


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the command that a lab runs ends, too."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listing() -> str:
    """The labs, with the command of each."""
    width = max(map(len, LABS))
    return "\n".join(
        [
            "Labs, experiments on this machine:",
            "",
            *(f"  {name:<{width}}  {each.about}" for name, each in LABS.items()),
            "",
            f"next: {suggest.command('lab', 'facts', '--quick')}",
        ]
    )
