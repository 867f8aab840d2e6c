"""`tinygpt lab race`: a competition for a class, in which each config gets the same budget of computing time.

    tinygpt lab race --text text.txt                       # out-lab-race/train.txt, for the students
    tinygpt lab race submissions --text text.txt           # out-lab-race/race.csv, with a line for each config

The budget is a number of iterations of a fixed model, that of PRESET: as long as they take on this machine. How long
that is changes while other programs run, so both are timed in turn (`Clock`). Everything computes with one thread, for
which the speeds of two machines are most alike and a result does not depend on the number of cores.

The entries are stages (experiment/stages.py): each runs once, and a later command adds others to the same table. The
race has no page, and no other lab has entries, so `race` is a function of its own next to the labs of `definition.py`.
"""

import contextlib
import dataclasses
import glob
import hashlib
import math
import signal
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinygpt import api
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig, run_settings
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.configs.parse import find_config, parse, read_config
from tinygpt.base.device import processor
from tinygpt.base.errors import TinyGPTError, diverged
from tinygpt.base.files import folder_lock, read_text, replacing, strict_json, write_table, writing
from tinygpt.base.process import ended_by_sigterm
from tinygpt.base.terminal import duration, print_error, table
from tinygpt.base.threads import mean_seconds
from tinygpt.examine.experiment.stages import Identity, Stage, forget, run, stored

ABOUT = "whose config reaches the lowest loss? A competition for a class"
KEYS = {"name", "entries", "text", "times", "own_rank", "out_dir"}
LEAST = 200_000  # characters of the teacher's text; its test then has 20,000
TIE = 0.02  # nats per character
UNIT_SECONDS = 4.0  # of the unit of the budget, with calibrations, on one core
PRINTED = {"rank": ">4", "": "<3", "entry": "<20", "loss": ">8.4f", "bits_per_character": ">20.4f"}
PRINTED |= {"parameters": ">12,", "iterations": ">12,", "seconds": ">9.1f", "calibration": ">13.2f", "used": ">7.2f"}
COLUMNS = [*filter(None, PRINTED), "ended", "machine", "date"]  # of race.csv
PRESET = "configs/nanogpt.yaml"  # the model of the calibration
UNIT = 100  # its iterations in the unit of the budget
SLICE = 2.0  # seconds of the training
CALIBRATION = 0.3  # seconds of the calibration after each slice
KINDS = (".yaml", ".yml", ".py")  # of config files
LARGEST = 0.05  # share of the budget that an iteration may take
EVAL_ITERS = 20  # batches of an evaluation, at most
# datasets: the students' part of the text, and with the test as its validation split
TRAIN = "train"
TEST = "test"
FIXED = {  # what a config cannot choose: its data, and what depends on the machine
    "dataset": TRAIN, "device": "cpu", "dtype": "auto", "compile": "False", "threads": "1", "fast": "auto",
    "init_from": "scratch", "eval_only": False, "log_interval": 1, "quiet": False, "watch": False, "report_to": "none",
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
    fixed = {
        config.text: hashlib.sha256(text.encode()).hexdigest(),
        "configs/nanogpt.yaml": hashlib.sha256(find_config(PRESET).read_bytes()).hexdigest(),
    }
    identity = Identity("lab", "race", {"text": config.text, "times": config.times}, fixed)
    with folder_lock(folder, "lab"), ended_by_sigterm():
        for name, stage in stored(folder, identity)["stages"].items():
            if name in entries and "failed" in stage["result"]:
                forget(folder, identity, name)
        write_datasets(folder / "data", text[:cut], text[cut:])
        jobs = {name: partial(run_entry, name, entry, folder, config.times) for name, entry in entries.items()}
        stages = [Stage(name, config.times * UNIT_SECONDS, job) for name, job in jobs.items()]
        results = run(folder, identity, stages)
        every = {name: stage["result"] for name, stage in stored(folder, identity)["stages"].items()}
        rows = ranked_rows(every)
        print(f"\nwritten: {write_rows(rows, folder)}")
        if config.own_rank:
            write_own(rows, folder)
            print(f"written: {folder / 'NAME.txt'} for each entry, with its own rank")
        else:
            print(f"\nloss in nats per character on the last {len(text) - cut:,} characters of {config.text};")
            print(f"entries within {TIE} of the best loss of a rank share that rank\n")
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
    """Yield the configs that the command names: files, patterns, and those in folders, but not __MACOSX."""
    for item in items:
        if not (is_folder := Path(item).is_dir()) and "*" not in item:
            yield Path(item)
            continue
        pattern = f"{glob.escape(item)}/**/*" if is_folder else item
        found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if path.endswith(KINDS)]
        if not found:
            problem = f"a folder without any {' or '.join(f'*{kind}' for kind in KINDS)} file"
            hint = "put the students' config files into it"
            raise TinyGPTError(f"{item}: {problem if is_folder else 'no such file'}", hint)
        for path in found:
            inside = path.relative_to(item).parts if is_folder else ()
            if not any(part.startswith("__") for part in inside):
                yield path


def hand_out(part: str, test: int, config: LabConfig, folder: Path) -> int:
    """Write the students' part of the text. test: number of the other characters."""
    path = folder / "train.txt"
    if path.resolve() == Path(config.text).resolve():
        raise TinyGPTError(f"{config.text} would be overwritten by its first nine tenths", "another --out_dir")
    with folder_lock(folder, "lab"), replacing(path) as file:
        file.write(part.encode())
    print(f"written: {path}, {len(part):,} characters for the students; the other {test:,} are the test")
    flags = [f"--{key}={getattr(config, key)}" for key in ("text", "times", "out_dir") if key in config.flags]
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


def ranks(losses: Mapping[str, float]) -> dict[str, int]:
    """Rank entries by loss. An entry within TIE of the first one of a rank shares this rank; that of the next one is
    its place: 1, 1, 3."""
    ranked = dict[str, int]()
    rank = 0
    first = float("-inf")
    for place, name in enumerate(sorted(losses, key=lambda name: losses[name]), start=1):
        if round(losses[name] - first, 4) > TIE:
            rank = place
            first = losses[name]
        ranked[name] = rank
    return ranked


def ranked_rows(results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Make a row for each entry, by rank; those of entries that failed are last, and have no loss."""
    losses = {name: result["loss"] for name, result in results.items() if "loss" in result}
    rows = [{"rank": rank, "entry": name, **results[name]} for name, rank in ranks(losses).items()]
    failed = {name: result["failed"] for name, result in results.items() if "failed" in result}
    return rows + [{"entry": name, "ended": f"failed: {reason}"} for name, reason in failed.items()]


def write_rows(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write race.csv, and return its path."""
    path = folder / "race.csv"
    cells = [[row.get(column, "") for column in COLUMNS] for row in rows]
    texts = [[f"{cell:.6g}" if type(cell) is float else str(cell) for cell in row] for row in cells]
    write_table(path, [COLUMNS, *texts])
    return path


def write_own(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write a file for each entry, NAME.txt, that tells its student no other's result."""
    ranked = sum("rank" in row for row in rows)
    for row in rows:
        line = row["ended"]
        if "rank" in row:
            line = f"rank {row['rank']} of {ranked}, loss {row['loss']:.4f}"
        with replacing(folder / f"{row['entry']}.txt") as file:
            file.write(f"{row['entry']}: {line}\n".encode())


def show(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print the table of all entries."""
    columns = PRINTED | {"entry": f"<{max(len(row['entry']) for row in rows)}"}
    ranked = [row for row in rows if "rank" in row]
    print("\n".join(table(columns, ([row.get(column, "") for column in columns] for row in ranked))))
    for row in rows[len(ranked) :]:
        print(f"{row['entry']} {row['ended']}")
    if ranked:
        model = folder / ranked[0]["entry"] / ranked[0]["model"]
        print(f"\nnext: {suggest.command('sample', model)}")


class Clock:
    """The time of a training in units, which stops it when the budget is used up: a callback of `train`."""

    def __init__(self, config: TrainConfig, budget: float) -> None:
        """config: of the calibration."""
        self.step = api.step(values_of(config))
        self.budget = budget
        self.iterations = 0  # of the training
        self.used = self.seconds = 0.0
        self.ended = False  # the budget has ended the training
        mean_seconds(self.step, 3)  # the first calls allocate memory
        self.unit = self.calibrated()
        self.began = time.perf_counter()

    def calibrated(self, iteration: float = 0.0) -> float:
        """Return the seconds of a unit; iteration: about how many an iteration takes."""
        count = math.ceil(CALIBRATION / (iteration or mean_seconds(self.step, 1)))
        return UNIT * mean_seconds(self.step, count)

    def __call__(self, entry: dict[str, Any]) -> bool:
        seconds = time.perf_counter() - self.began
        if seconds >= SLICE or self.used + seconds / self.unit >= self.budget:
            self.count()
        self.iterations += entry["kind"] == "train"
        self.ended = entry["kind"] == "train" and self.used >= self.budget  # never after the last iteration
        return self.ended

    def count(self) -> None:
        """Add the time since the last calibration, at the mean speed of this one and the next."""
        seconds = time.perf_counter() - self.began
        before = self.unit
        self.unit = self.calibrated(before / UNIT)
        self.used += seconds / ((before + self.unit) / 2)
        self.seconds += seconds
        self.began = time.perf_counter()


def read_entry(path: str) -> tuple[str, TrainConfig]:
    """Read a config; return its name in the race, which changes with its settings. Other settings are those of PRESET.

    Errors: TinyGPTError for settings that `tinygpt train` would refuse, a start from trained weights, and a teacher.
    """
    try:
        config = parse(TrainConfig, [PRESET, path])
        given = read_config(find_config(path)).keys()
    except TinyGPTError as error:
        where = "" if path in error.message else f"{path}: "
        raise TinyGPTError(where + error.message, error.hint) from None
    if config.init_from not in ("scratch", "auto"):
        problem = f"{path}: init_from is {config.init_from}, but all entries of a race start from new weights"
        raise TinyGPTError(problem, "remove the key init_from")
    if config.teacher:
        problem = f"{path}: teacher: an entry of a race must not learn from a trained model"
        raise TinyGPTError(problem, "remove the key teacher")
    ignored = sorted({"data_dir", "out_dir", *FIXED} & given)
    if ignored:
        print_error(f"note: {path}: ignored, because the race sets it: {', '.join(ignored)}")
    own = {key: value for key, value in vars(config).items() if key in given and key not in ignored}
    digest = hashlib.sha256(strict_json(own).encode()).hexdigest()
    stem = unicodedata.normalize("NFC", Path(path).stem)
    name = "".join(letter if letter.isalnum() else "_" for letter in stem)
    return f"{name}-{digest[:4]}", config


def run_entry(name: str, config: TrainConfig, folder: Path, times: int) -> dict[str, Any]:
    """Run an entry, and return its row of the table, or why it failed. Errors: TinyGPTError if a signal stops it."""
    log = folder / f"{name}.log"
    try:
        fixed = changed(parse(TrainConfig, [PRESET]), folder, name)
        config = changed(config, folder, name)
        if (ratio := work(config) / work(fixed)) > times * UNIT * LARGEST:
            share = ratio / UNIT / times
            taken = f"about {share:.0%}" if share < 1 else "more than 100%"
            problem = f"an iteration takes {taken} of the budget; the limit is {LARGEST:.0%}"
            raise TinyGPTError(problem, "use a smaller model, batch or context")
        clock = Clock(fixed, times)
        print(f"  the budget is now about {duration(times * clock.unit)}", flush=True)
        with writing(log), open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            api.train(values_of(config), callback=clock)
        clock.count()
        row = judged(folder, name)
    except (KeyboardInterrupt, SystemExit) as stop:
        status = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        hint = "the same command continues the race with this entry"
        raise TinyGPTError(f"stopped in {name}", hint, int(status or 0)) from None
    except TinyGPTError as error:
        if error.status >= 128:
            raise
        return {"failed": error.message}
    row |= {"seconds": clock.seconds, "calibration": clock.seconds / clock.used, "used": clock.used}
    row |= {"iterations": clock.iterations, "ended": "stopped" if clock.ended else "finished"}
    return row | {"machine": processor(), "date": time.strftime("%Y-%m-%d %H:%M")}


def changed(config: TrainConfig, folder: Path, name: str) -> TrainConfig:
    """Return the config with what the race sets. Long evaluations (0: complete ones) are shortened, since nothing could
    stop them."""
    settings: dict[str, Any] = FIXED | {"data_dir": str(folder / "data"), "out_dir": str(folder / name)}
    return dataclasses.replace(config, **settings, eval_iters=min(config.eval_iters or EVAL_ITERS, EVAL_ITERS))


def values_of(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in run_settings(config).items() if key != "config"}


def work(config: TrainConfig) -> float:
    """Estimate the cost of an iteration: parameters times tokens. The model is not made, since it may be huge."""
    vocab_size = api.Dataset(config.data_dir, config.dataset).tokenizer.vocab_size
    width = config.n_embd
    parameters = config.n_layer * width * (4 * width + 2 * (config.mlp_width or 4 * width)) + vocab_size * width
    parameters += config.bigram_table * vocab_size**2 * width
    return parameters * config.batch_size * config.gradient_accumulation_steps * config.block_size


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
