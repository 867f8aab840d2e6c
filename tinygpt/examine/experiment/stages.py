"""The stages of an experiment. Each stage runs once, and the expected time of those that remain is printed.

The results are in lab.json (advise.json) in the experiment's folder, which is replaced after each stage. A stage that
was stopped starts again; it alone writes into the folders of its commands, so these can resume.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import read_text, replacing, strict_json
from tinygpt.base.terminal import duration
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.checkpoint.store import load


class Records(list[dict[str, Any]]):
    """What was measured, each with what was varied: {"method": "replay", "lines": 200, "seed": 1, "accuracy": 0.9}."""

    def where(self, **case: Any) -> "Records":
        """Return the records that have these values."""
        return Records(record for record in self if all(record.get(key) == value for key, value in case.items()))

    def having(self, key: str) -> "Records":
        """Return the records that have a value of this key."""
        return Records(record for record in self if key in record)

    def by(self, *keys: str) -> dict[Any, "Records"]:
        """Group the records by the value of a key, or by the tuple of several, in the order of their first records."""
        groups: dict[Any, Records] = {}
        for record in self:
            group = tuple(record[key] for key in keys)
            groups.setdefault(group if len(keys) > 1 else group[0], Records()).append(record)
        return groups

    def values(self, key: str) -> list[Any]:
        """Return the values of a key: usually one for each seed."""
        return [record[key] for record in self]

    def mean(self, key: str) -> float:
        return statistics.mean(self.values(key))

    def median(self, key: str) -> float:
        return statistics.median(self.values(key))

    def percent(self, key: str) -> float:
        """Return the median of shares, in percent."""
        return 100 * self.median(key)


class Stage(NamedTuple):
    name: str
    seconds: float  # about how long it takes on two cores with bfloat16; only the ratios of stages matter
    compute: Callable[[], Any]  # a value that JSON can store
    case: Mapping[str, Any] = {}  # what is varied: {"method": "replay", "seed": 1}


class Results(dict[str, Any]):
    """The results of stages by their names, and as records."""

    def __init__(self, stages: Sequence[Stage], known: Mapping[str, Mapping[str, Any]]) -> None:
        """known: the stored content of each stage."""
        super().__init__({stage.name: known[stage.name]["result"] for stage in stages})
        self.cases = {stage.name: stage.case for stage in stages}

    @property
    def records(self) -> Records:
        """Return the records of all stages whose result is a dictionary, or a list of these."""
        records = Records()
        for name, result in self.items():
            figures = result if isinstance(result, list) else [result]
            records += [{**self.cases[name], **each} for each in figures if isinstance(each, dict)]
        return records


class Identity(NamedTuple):
    """Everything that the results of an experiment depend on, besides its stages."""

    command: str  # `lab`, for example
    name: str  # of the experiment: `facts`
    settings: dict[str, Any]
    models: dict[str, str]  # path of each base model, or data of the user: its fingerprint

    def file(self, folder: Path) -> Path:
        return folder / f"{self.command}.json"


def fingerprint(ckpt: str) -> str:
    """Return the fingerprint of a base model, for an identity. Errors: TinyGPTError as in `load`."""
    return weights_fingerprint(load(ckpt).model)


def run(folder: Path, identity: Identity, stages: Sequence[Stage], more: bool = False) -> Results:
    """Run the stages that have no result yet, in order, and return all results. more: others may follow these,
    whose seconds are limits, not times of a usual machine.

    Errors: TinyGPTError for a folder of another experiment, settings or model; for a full disk; those of the
    stages.
    """
    content = stored(folder, identity)
    known: dict[str, dict[str, Any]] = content["stages"]
    for number, stage in enumerate(stages, start=1):
        if stage.name in known:
            continue
        pace = 1.0 if more else speed(stages, known)
        rest = sum(later.seconds for later in stages[number - 1 :] if later.name not in known)
        expected = f"about {duration(pace * stage.seconds)}"
        if rest > stage.seconds:
            expected += f"; about {duration(pace * rest)} for all that remain"
        of_all = "" if more else f" of {len(stages)}"
        print(f"stage {number}{of_all}: {stage.name} ({expected})", flush=True)
        began = time.monotonic()
        result = json.loads(strict_json(stage.compute()))  # the same values as after a resumption
        known[stage.name] = {"seconds": time.monotonic() - began, "result": result}
        save(folder, identity, content)
    return Results(stages, known)


def stored(folder: Path, identity: Identity) -> dict[str, Any]:
    """Read lab.json; without such a file, return content without stages. Errors: TinyGPTError as in `run`."""
    path = identity.file(folder)
    command, name = identity[:2]
    expected = {command: name, "settings": identity.settings}
    if not path.exists():
        return {**expected, "models": identity.models, "stages": {}}
    elsewhere = f"delete {folder}"
    if command != "why":  # whose folder is a part of the run's
        elsewhere = f"use another folder (tinygpt {command} {suggest.quoted(name)} --out_dir=NAME), or {elsewhere}"
    try:
        content = json.loads(read_text(path, elsewhere))
        actual = {key: content[key] for key in expected}
        models = content["models"]
        if not all(isinstance(content[key], dict) for key in ("settings", "models", "stages")):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise TinyGPTError(f"{path} is damaged, or was not written by tinygpt {command}", elsewhere) from None
    if actual != expected:
        problem = f"{folder} holds results of {described(actual, expected)}; this is {described(expected, actual)}"
        raise TinyGPTError(problem, elsewhere)
    for model, fingerprint in identity.models.items():
        if models.get(model, fingerprint) != fingerprint:
            raise TinyGPTError(f"{model} is not the one that {folder} was made with", elsewhere)
    return {**content, "models": models | identity.models}


def forget(folder: Path, identity: Identity, name: str) -> None:
    """Remove the result of a stage, if it has one, so that `run` computes it again. Errors: as in `run`."""
    content = stored(folder, identity)
    if content["stages"].pop(name, None):
        save(folder, identity, content)


def save(folder: Path, identity: Identity, content: dict[str, Any]) -> None:
    hint = "free some space and run the command again; finished stages are kept"
    with replacing(identity.file(folder), hint) as file:
        file.write(strict_json(content).encode() + b"\n")


def described(content: dict[str, Any], other: dict[str, Any]) -> str:
    """Describe the identity that a file states, as far as it differs from another: its first key is the command."""
    command, name = next(iter(content.items()))
    settings = content["settings"].items()
    different = [f"{key}={value!r}" for key, value in settings if other["settings"].get(key) != value]
    return f"{command} {name}" + (f" with {', '.join(different)}" if different else "")


def speed(stages: Sequence[Stage], known: dict[str, dict[str, Any]]) -> float:
    """Return the ratio of actual to expected time of the finished stages; 1 before the first."""
    done = [stage for stage in stages if stage.name in known]
    expected = sum(stage.seconds for stage in done)
    return sum(known[stage.name]["seconds"] for stage in done) / expected if expected > 5 else 1.0
