"""Run the stages of a lab, each once, keep their results, and say how long the rest will take.

The results are in lab.json in the lab's folder, which is replaced after each stage. A stage that was stopped starts
again; the folders that its commands wrote are its own, so the commands can resume.

    stages = [Stage("index", 2, lambda results: seconds_of_index()), Stage("ask", 60, lambda results: answers())]
    results = run(Path("out-lab"), "facts", {"quick": True}, stages)       # {"index": 1.7, "ask": [...]}
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.errors import TinyGPTError
from tinygpt.files import read_text, replacing, strict_json

VERSION = 1  # of lab.json
FILE = "lab.json"
Results = dict[str, Any]  # by stage, plain values


class Stage(NamedTuple):
    """One step of a lab."""

    name: str
    seconds: float  # about how long it takes on two cores with bfloat16; only the ratios of stages matter
    compute: Callable[[Results], Any]  # from the results of the stages before it, a value that JSON can store


def run(folder: Path, lab: str, settings: dict[str, Any], stages: Sequence[Stage]) -> Results:
    """Run the stages that have no result yet, in order, and return all results.

    settings: what the results depend on. Errors: TinyGPTError for a folder of another lab, version or settings; those
    of the stages.
    """
    content = stored(folder, lab, settings)
    known: dict[str, dict[str, Any]] = content["stages"]
    for number, stage in enumerate(stages, start=1):
        if stage.name in known:
            continue
        pace = speed(stages, known)
        rest = sum(later.seconds for later in stages[number - 1 :] if later.name not in known)
        expected = f"about {duration(pace * stage.seconds)}"
        if rest > stage.seconds:
            expected += f"; {duration(pace * rest)} to the end"
        print(f"stage {number} of {len(stages)}: {stage.name} ({expected})", flush=True)
        began = time.monotonic()
        result = stage.compute({name: entry["result"] for name, entry in known.items()})
        known[stage.name] = {"seconds": time.monotonic() - began, "result": result}
        store(folder, content)
    return {stage.name: known[stage.name]["result"] for stage in stages}


def stored(folder: Path, lab: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The content of lab.json, without stages if there is no such file. Errors: TinyGPTError as in `run`."""
    path = folder / FILE
    wanted = {"lab": lab, "version": VERSION, "settings": settings}
    if not path.exists():
        return {**wanted, "stages": {}}
    elsewhere = f"tinygpt lab {lab} --out_dir=NAME for another folder, or delete {folder}"
    try:
        content = json.loads(read_text(path, elsewhere))
        found = {key: content[key] for key in wanted}
        if not isinstance(content["stages"], dict):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise TinyGPTError(f"{path}: is damaged, or not written by tinygpt lab", elsewhere) from None
    for key, value in wanted.items():
        if found[key] != value:
            what = f"lab {found['lab']}, version {found['version']}, with {described(found['settings'])}"
            raise TinyGPTError(f"{folder} contains {what}; this is {described(settings)}", elsewhere)
    return dict(content)


def described(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def store(folder: Path, content: dict[str, Any]) -> None:
    """Replace lab.json. Errors: TinyGPTError as in `replacing`."""
    with replacing(folder / FILE, "free some space and run the command again; finished stages are kept") as file:
        file.write(strict_json(content).encode() + b"\n")


def speed(stages: Sequence[Stage], known: dict[str, dict[str, Any]]) -> float:
    """How many times as long as expected the finished stages have taken on this machine; 1 before the first."""
    done = [stage for stage in stages if stage.name in known]
    expected = sum(stage.seconds for stage in done)
    return sum(known[stage.name]["seconds"] for stage in done) / expected if expected > 5 else 1.0


def duration(seconds: float) -> str:
    """As a person would say it: `40 s`, `12 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds)):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
