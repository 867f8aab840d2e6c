"""`tinygpt lab race`: a competition for a class, in which each config gets the same time to train.

    tinygpt lab race --text text.txt                       # out-lab-race/train.txt, for the students
    tinygpt lab race submissions --text text.txt           # out-lab-race/race.csv, with a line for each config

Each entry trains with `api.train(budget=...)` on one core: its config decides everything but the number of iterations.
The entries are stages (experiment/stages.py): each runs once, and a later command adds others to the same table. The
race has no page, and no other lab has entries, so `race` is a function of its own next to the labs of `definition.py`.
"""

import contextlib
import dataclasses
import hashlib
import math
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinygpt import api
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.configs.parse import find_config, parse, read_config, to_yaml
from tinygpt.base.configs.shared import seconds_of
from tinygpt.base.errors import TinyGPTError, diverged
from tinygpt.base.files import folder_lock, read_text, replacing, strict_json, write_table
from tinygpt.base.process import ended_by_sigterm
from tinygpt.base.terminal import print_error, table
from tinygpt.examine.experiment.stages import Identity, Stage, forget, run, stored

ABOUT = "whose config reaches the lowest loss? A competition for a class"
KEYS = {"name", "entries", "text", "budget", "out_dir"}
LEAST = 200_000  # characters of the teacher's text; its test then has 20,000
TIE = 0.02  # nats per character
COLUMNS = {"rank": "<6", "entry": "<20", "loss": ">8.4f", "bits_per_character": ">20.4f"}
COLUMNS |= {"parameters": ">12,", "iterations": ">12,", "seconds": ">9.1f"}
PRESET = "configs/nanogpt.yaml"  # the values that a config leaves open
KINDS = (".yaml", ".yml", ".py")  # of config files
# datasets: the students' part of the text, and with the test as its validation split
TRAIN = "train"
TEST = "test"
FIXED = {  # what a config cannot choose: its data, and what depends on the machine
    "dataset": TRAIN, "device": "cpu", "dtype": "auto", "compile": "False", "threads": "1", "fast": "auto",
    "init_from": "auto", "eval_only": False, "quiet": True, "report_to": "none",
}  # fmt: skip


def race(config: LabConfig) -> int:
    """Run the command. Returns 1 if an entry failed. Errors: TinyGPTError for a text that is too short, a config that
    is refused, or a folder of another race."""
    text = read_text(Path(config.text), "--text FILE; students get the teacher's out-lab-race/train.txt")
    folder = Path(config.out_dir or "out-lab-race")
    least = LEAST * 9 // 10 if config.entries else LEAST  # students have the first nine tenths
    if len(text) < least:
        problem = f"{config.text} has {len(text):,} characters, but a race needs {least:,}"
        raise TinyGPTError(f"{problem}, since on a short test a difference of {TIE} is chance", "a longer --text")
    cut = len(text) * 9 // 10
    if not config.entries:
        return hand_out(text[:cut], len(text) - cut, config, folder)
    entries = read_entries(config.entries)
    fixed = {config.text: hashlib.sha256(text.encode()).hexdigest()}
    identity = Identity("lab", "race", {"text": config.text, "budget": config.budget}, fixed)
    with folder_lock(folder, "lab"), ended_by_sigterm():
        for name, stage in stored(folder, identity)["stages"].items():
            if name in entries and "failed" in stage["result"]:
                forget(folder, identity, name)
        write_datasets(folder / "data", text[:cut], text[cut:])
        jobs = {name: partial(run_entry, name, entry, folder, config.budget) for name, entry in entries.items()}
        results = run(folder, identity, [Stage(name, seconds_of(config.budget), job) for name, job in jobs.items()])
        rows = ranked_rows({name: stage["result"] for name, stage in stored(folder, identity)["stages"].items()})
        print(f"\nwritten: {write_rows(rows, folder)}")
        print(f"\nloss in nats per character on the last {len(text) - cut:,} characters of {config.text};")
        print(f"rank: one more than the number of entries whose loss is lower by more than {TIE}\n")
        show(rows, folder)
    return int(any("failed" in result for result in results.values()))


def read_entries(items: Sequence[str]) -> dict[str, TrainConfig]:
    """Read the configs that the command names, by their names in the race. Errors: TinyGPTError with all mistakes."""
    entries = dict[str, TrainConfig]()
    problems = list[TinyGPTError]()
    for path in config_files(items):
        try:
            name, entry = read_entry(str(path))
            if name in entries:
                problem = f"{path}: another entry has the same name and settings"
                raise TinyGPTError(problem, "name configs after the students")
            entries[name] = entry
        except TinyGPTError as error:
            problems.append(error)
    if problems:
        raise TinyGPTError("; ".join(error.message for error in problems), problems[0].hint)
    return entries


def config_files(items: Sequence[str]) -> Iterator[Path]:
    """Yield the configs that the command names: files, and those in folders, but not in __MACOSX."""
    for item in items:
        if not Path(item).is_dir():
            yield Path(item)
            continue
        found = [path for path in sorted(Path(item).rglob("[!.]*")) if path.suffix in KINDS]
        if not found:
            raise TinyGPTError(f"{item}: no config file ({', '.join(KINDS)})", "put the students' config files into it")
        yield from (path for path in found if "__MACOSX" not in path.parts)


def read_entry(path: str) -> tuple[str, TrainConfig]:
    """Read a config; return its name in the race, which changes with its settings. Other settings are those of PRESET.

    Errors: TinyGPTError for settings that `tinygpt train` would refuse, a start from trained weights, and a teacher.
    """
    try:
        config = parse(TrainConfig, [PRESET, path])
        given = read_config(find_config(path)).keys()
    except TinyGPTError as error:
        raise TinyGPTError(f"{path}: {error.message.removeprefix(f'{path}: ')}", error.hint) from None
    if config.teacher or config.init_from not in ("scratch", "auto"):
        raise TinyGPTError(f"{path}: all entries of a race start from new weights", "remove init_from and teacher")
    ignored = sorted({"data_dir", "out_dir", "max_iters", *FIXED} & given)
    if ignored:
        print_error(f"note: {path}: ignored, because the race sets it: {', '.join(ignored)}")
    own = {key: value for key, value in vars(config).items() if key in given and key not in ignored}
    digest = hashlib.sha256(strict_json(own).encode()).hexdigest()
    stem = unicodedata.normalize("NFC", Path(path).stem)
    name = "".join(letter if letter.isalnum() else "_" for letter in stem)
    return f"{name}-{digest[:4]}", config


def hand_out(part: str, test: int, config: LabConfig, folder: Path) -> int:
    """Write the students' part of the text. test: number of the other characters."""
    path = folder / "train.txt"
    if path.resolve() == Path(config.text).resolve():
        raise TinyGPTError(f"{config.text} would be overwritten by its first nine tenths", "another --out_dir")
    with folder_lock(folder, "lab"), replacing(path) as file:
        file.write(part.encode())
    print(f"written: {path}, {len(part):,} characters for the students; the other {test:,} are the test")
    flags = [f"--{key}={getattr(config, key)}" for key in ("text", "budget", "out_dir") if key in config.flags]
    print(f"\nnext: give it to the students, then {suggest.command('lab', 'race', 'FOLDER', *flags)}")
    return 0


def write_datasets(folder: Path, train: str, test: str) -> None:
    """Write the students' part as a dataset, and another one whose validation split is the test. Characters of the test
    that the students' part lacks are left out."""
    known = set(train)
    if unknown := sorted(set(test) - known):
        listed = ", ".join(map(repr, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
        print_error(f"note: these characters occur only in the test, and are skipped there: {listed}")
    test = "".join(character for character in test if character in known)
    students = api.write_dataset(folder / TRAIN, train)
    api.write_dataset(folder / TEST, {"train": train, "val": test}, tokenizer=students.tokenizer)


def run_entry(name: str, config: TrainConfig, folder: Path, budget: str) -> dict[str, Any]:
    """Train an entry, or continue it, and return its row of the table, or why it failed."""
    settings: dict[str, Any] = FIXED | {"data_dir": str(folder / "data"), "out_dir": str(folder / name)}
    path = folder / f"{name}.yaml"
    with replacing(path) as file:
        file.write(to_yaml(dataclasses.replace(config, **settings)).encode())
    try:
        with open(folder / f"{name}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            trained = api.train(path, budget=budget)
        row = judged(folder, name)
    except TinyGPTError as error:
        return {"failed": error.message}
    iterations = trained.entries("eval")[-1]["step"]
    return row | {"iterations": iterations, "seconds": trained.cost.seconds, "date": time.strftime("%Y-%m-%d %H:%M")}


def judged(folder: Path, name: str) -> dict[str, Any]:
    """Measure the loss of an entry on the complete test. Of its best and its last weights, those with the lower loss on
    its own validation split count: the test chooses nothing. Errors: TinyGPTError if the loss is not finite."""
    out = folder / name
    own, test = (api.Dataset(str(folder / "data"), dataset) for dataset in (TRAIN, TEST))
    models = [api.load(out / name, device="cpu", dtype="float32") for name in ("ckpt.pt", "last.pt")]
    best = min(models, key=lambda model: model.loss(own))
    loss = best.loss(test)
    if not math.isfinite(loss):
        raise diverged(f"{name}: the loss is", loss)
    row = {"loss": loss, "bits_per_character": loss / math.log(2), "model": best.path.name}  # a character is a token
    return row | {"parameters": best.model.num_params()}


def ranked_rows(results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Make a row for each entry, the lowest loss first; those of entries that failed are last, and have no loss. A rank
    is 1 and the number of entries that are better by more than TIE."""
    losses = {name: result["loss"] for name, result in results.items() if "loss" in result}
    ranks = {name: 1 + sum(round(loss - other, 4) > TIE for other in losses.values()) for name, loss in losses.items()}
    rows = [{"rank": ranks[name], "entry": name, **results[name]} for name in sorted(losses, key=losses.__getitem__)]
    return rows + [{"entry": name, **result} for name, result in results.items() if "failed" in result]


def write_rows(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write race.csv, and return its path."""
    path = folder / "race.csv"
    heads = [*COLUMNS, "failed", "date"]
    write_table(path, [heads, *([str(row.get(column, "")) for column in heads] for row in rows)])
    return path


def show(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print the table of all entries."""
    ranked = [row for row in rows if "rank" in row]
    columns = COLUMNS | {"entry": f"<{max(len(row['entry']) for row in rows)}"}
    print("\n".join(table(columns, ([row[column] for column in columns] for row in ranked))))
    for row in rows[len(ranked) :]:
        print(f"{row['entry']} failed: {row['failed']}")
    if ranked:
        print(f"\nnext: {suggest.command('sample', folder / ranked[0]['entry'] / ranked[0]['model'])}")
