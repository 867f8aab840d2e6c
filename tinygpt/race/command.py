"""`tinygpt race`: make the students' part of a text, or run the entries and rank them.

    tinygpt race --text text.txt                           # out-race/train.txt, for the students
    tinygpt race submissions --text text.txt               # out-race/race.csv, with a line for each config

The entries are stages (experiment/stages.py): each runs once, and a later command adds others to the same table.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinygpt.config import suggest
from tinygpt.config.schema import RaceConfig, TrainConfig
from tinygpt.data.text_files import input_files
from tinygpt.data.tokenizer import CharTokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.classify import write_csv
from tinygpt.evaluate.process import ended_by_sigterm
from tinygpt.experiment.models import write_text
from tinygpt.experiment.stages import Identity, Stage, forget, run, stored
from tinygpt.files import folder_lock, read_text, replacing
from tinygpt.race.entry import TEST, TRAIN, preset_fingerprint, read_entry, run_entry
from tinygpt.terminal import print_error, table

LEAST = 200_000  # characters of the teacher's text; its test then has 20,000
TIE = 0.02  # nats per character
UNIT_SECONDS = 4.0  # of the unit of the budget, with calibrations, on one core
PRINTED = {"rank": ">4", "": "<3", "entry": "<20", "loss": ">8.4f", "bits_per_character": ">20.4f"}
PRINTED |= {"parameters": ">12,", "iterations": ">12,", "seconds": ">9.1f", "calibration": ">13.2f", "used": ">7.2f"}
COLUMNS = [*filter(None, PRINTED), "ended", "machine", "date"]  # of race.csv


def race(config: RaceConfig) -> int:
    """Run the command. Returns 1 if an entry failed. Errors: TinyGPTError for a text that is too short, a config that
    is refused, or a folder of another race."""
    text, folder = read_text(Path(config.text), "--text FILE, with the text of the race"), Path(config.out_dir)
    train = len(text) * 9 // 10
    least = LEAST * 9 // 10 if config.configs else LEAST  # students have the first nine tenths
    if len(text) < least:
        problem = f"{config.text} has {len(text):,} characters, but a race needs {least:,}"
        raise TinyGPTError(f"{problem}, since on a short test a difference of {TIE} is chance", "a longer --text")
    entries, problems = dict[str, TrainConfig](), list[TinyGPTError]()
    for path in config_files(config.configs):
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
    if not entries:
        return hand_out(text[:train], len(text) - train, config)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    settings = {"text": config.text, "times": config.times}
    fixed = {config.text: fingerprint, "configs/nanogpt.yaml": preset_fingerprint()}
    identity = Identity("race", "CONFIG", settings, fixed)
    with folder_lock(folder, "race"), ended_by_sigterm():
        for name, stage in stored(folder, identity)["stages"].items():
            if name in entries and "failed" in stage["result"]:
                forget(folder, identity, name)
        write_datasets(folder / "data", text[:train], text[train:])
        jobs = {name: partial(run_entry, name, entry, folder, config.times) for name, entry in entries.items()}
        stages = [Stage(name, config.times * UNIT_SECONDS, job) for name, job in jobs.items()]
        results = run(folder, identity, stages)
        every = {name: stage["result"] for name, stage in stored(folder, identity)["stages"].items()}
        print(f"\nloss in nats per character on the last {len(text) - train:,} characters of {config.text}\n")
        show(every, folder)
    return int(any("failed" in result for result in results.values()))


def config_files(items: Sequence[str]) -> Iterator[Path]:
    """Yield the configs that the command names: files, patterns, and those in folders, but not __MACOSX."""
    for item in items:
        if not (is_folder := Path(item).is_dir()) and "*" not in item:
            yield Path(item)
            continue
        for path in input_files([item], (".yaml", ".yml", ".py"), hint="put the students' config files into it"):
            inside = path.relative_to(item).parts if is_folder else ()
            if not any(part.startswith("__") for part in inside):
                yield path


def hand_out(train: str, test: int, config: RaceConfig) -> int:
    """Write the students' part of the text. test: number of the other characters."""
    path = Path(config.out_dir, "train.txt")
    if path.resolve() == Path(config.text).resolve():
        raise TinyGPTError(f"{config.text} would be overwritten by its first nine tenths", "another --out_dir")
    with folder_lock(path.parent, "race"), replacing(path) as file:
        file.write(train.encode())
    print(f"written: {path}, {len(train):,} characters for the students; the other {test:,} are the test")
    flags = [f"--{key}={getattr(config, key)}" for key in ("text", "times", "out_dir") if key in config.flags]
    print(f"\nnext: {suggest.command('race', 'configs/shakespeare_char.yaml', *flags)}")
    return 0


def write_datasets(folder: Path, train: str, test: str) -> None:
    """Write the students' part as a dataset, and another one whose validation split is the test. Characters of the test
    that the students' part lacks are left out."""
    known = set(train)
    if unknown := sorted(set(test) - known):
        listed = ", ".join(map(repr, unknown[:5])) + " ..." * (len(unknown) > 5)
        print_error(f"note: these characters occur only in the test, and are skipped there: {listed}")
    test, tokenizer = "".join(character for character in test if character in known), CharTokenizer(sorted(known))
    write_text(folder / TRAIN, train, tokenizer)
    write_text(folder / TEST, train + test, tokenizer, len(train))


def ranks(losses: Mapping[str, float]) -> dict[str, int]:
    """Rank entries by loss. An entry within TIE of the first one of a rank shares this rank; that of the next one is
    its place: 1, 1, 3."""
    ranked, rank, first = dict[str, int](), 0, float("-inf")
    for place, name in enumerate(sorted(losses, key=lambda name: losses[name]), start=1):
        if round(losses[name] - first, 4) > TIE:
            rank, first = place, losses[name]
        ranked[name] = rank
    return ranked


def show(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """Print the table of all entries, and write it to race.csv."""
    ranked = ranks({name: result["loss"] for name, result in results.items() if "loss" in result})
    rows = [{"rank": rank, "": "", "entry": name, **results[name]} for name, rank in ranked.items()]
    failed = {name: f"failed: {result['failed']}" for name, result in results.items() if "failed" in result}
    text, path = io.StringIO(newline=""), folder / "race.csv"
    lines = [*rows, *({"entry": name, "ended": reason} for name, reason in failed.items())]
    cells = [[line.get(column, "") for column in COLUMNS] for line in lines]
    write_csv(
        text, [COLUMNS, *([f"{cell:.6g}" if type(cell) is float else str(cell) for cell in row] for row in cells)]
    )
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8-sig"))  # with a byte-order mark, without which Excel misreads it
    columns = PRINTED | {"entry": f"<{max(map(len, results))}"}
    print("\n".join(table(columns, ([row[column] for column in columns] for row in rows))))
    for name, reason in failed.items():
        print(f"{name} {reason}")
    print(f"\nentries within {TIE} of the best loss of a rank share that rank\nwritten: {path}")
    if ranked:
        first = next(iter(ranked))
        model = folder / first / results[first].get("model", "")
        print(f"\nnext: {suggest.command('sample', f'--ckpt={model}')}")
