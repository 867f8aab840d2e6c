"""An entry of a race: train a config within the budget, and measure its loss on the test.

The budget is a number of iterations of a fixed model, that of PRESET: as long as they take on this machine. How long
that is changes while other programs run, so both are timed in turn (`Clock`). Everything computes with one thread, for
which the speeds of two machines are most alike and a result does not depend on the number of cores.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import math
import time
import unicodedata
from pathlib import Path
from typing import Any

import torch

from tinygpt import device
from tinygpt.checkpoint.store import WithoutInit, load
from tinygpt.config.parse import find_config, parse, read_config
from tinygpt.config.schema import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.errors import TinyGPTError, diverged
from tinygpt.evaluate.loss import bits_per_character, validation_loss
from tinygpt.files import strict_json, writing
from tinygpt.machine import description
from tinygpt.model import GPT
from tinygpt.terminal import duration, print_error
from tinygpt.threads import mean_seconds
from tinygpt.train import train
from tinygpt.training.start import Start, choose_compute, make_model, step_on_one_batch

PRESET = "configs/nanogpt.yaml"  # the model of the calibration
UNIT = 100  # its iterations in the unit of the budget
SLICE, CALIBRATION = 2.0, 0.3  # seconds of the training, and then of the calibration
LARGEST = 0.05  # share of the budget that an iteration may take
EVAL_ITERS = 20  # batches of an evaluation, at most
TRAIN, TEST = "train", "test"  # datasets: the students' part of the text, and with the test as its validation split
FIXED = {  # what a config cannot choose: its data, and what depends on the machine
    "dataset": TRAIN, "device": "cpu", "dtype": "auto", "compile": "False", "threads": "1", "fast": "auto",
    "init_from": "scratch", "eval_only": False, "log_interval": 1, "quiet": False, "watch": False, "report_to": "none",
}  # fmt: skip


class Clock:
    """The time of a training in units, which stops it when the budget is used up: a callback of `train`."""

    def __init__(self, config: TrainConfig, budget: float) -> None:
        """config: of the calibration."""
        dataset, compute = Dataset(config.data_dir, config.dataset), choose_compute(config, {})
        self.step, self.budget = step_on_one_batch(config, dataset, compute), budget
        self.used = self.seconds = 0.0
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
        return entry["kind"] == "train" and self.used >= self.budget  # never after the last iteration

    def count(self) -> None:
        """Add the time since the last calibration, at the mean speed of this one and the next."""
        seconds, before = time.perf_counter() - self.began, self.unit
        self.unit = self.calibrated(before / UNIT)
        self.used += seconds / ((before + self.unit) / 2)
        self.seconds += seconds
        self.began = time.perf_counter()


def preset_fingerprint() -> str:
    """Return the checksum of PRESET, on which the budget and the defaults of all entries depend."""
    return hashlib.sha256(find_config(PRESET).read_bytes()).hexdigest()


def read_entry(path: str) -> tuple[str, TrainConfig]:
    """Read a config; return its name in the race, which changes with its settings. Other settings are those of PRESET.

    Errors: TinyGPTError for settings that `tinygpt train` would refuse, a start from trained weights, and a teacher.
    """
    try:
        config, given = parse(TrainConfig, [PRESET, path]), read_config(find_config(path)).keys()
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
        fixed, config = changed(parse(TrainConfig, [PRESET]), folder, name), changed(config, folder, name)
        if (ratio := work(config) / work(fixed)) > times * UNIT * LARGEST:
            share = ratio / UNIT / times
            taken = f"about {share:.0%}" if share < 1 else "more than 100%"
            problem = f"an iteration takes {taken} of the budget; the limit is {LARGEST:.0%}"
            raise TinyGPTError(problem, "use a smaller model, batch or context")
        clock = Clock(fixed, times)
        print(f"  the budget is now about {duration(times * clock.unit)}", flush=True)
        with writing(log), open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            status = train(config, clock)
        if status >= 128:
            raise TinyGPTError(f"stopped in {name}", "the same command continues the race with this entry", status)
        clock.count()
        row = judged(folder, name)
    except TinyGPTError as error:
        if error.status >= 128:
            raise
        return {"failed": error.message}
    _, processor = itertools.islice(description(), 2)
    row |= {"seconds": clock.seconds, "calibration": clock.seconds / clock.used, "used": clock.used}
    row |= {"ended": "stopped" if status else "finished", "machine": processor.partition(":")[2].strip()}
    return row | {"date": time.strftime("%Y-%m-%d %H:%M")}


def changed(config: TrainConfig, folder: Path, name: str) -> TrainConfig:
    """Return the config with what the race sets. Long evaluations (0: complete ones) are shortened, since nothing could
    stop them."""
    settings: dict[str, Any] = FIXED | {"data_dir": str(folder / "data"), "out_dir": str(folder / name)}
    return dataclasses.replace(config, **settings, eval_iters=min(config.eval_iters or EVAL_ITERS, EVAL_ITERS))


def work(config: TrainConfig) -> float:
    """Estimate the cost of an iteration: parameters times tokens."""
    vocab_size = Dataset(config.data_dir, config.dataset).tokenizer.vocab_size
    with torch.device("meta"), WithoutInit():  # no memory, since a student's model may be huge
        parameters = make_model(Start(config), GPT, vocab_size)[0].num_params()
    return parameters * config.batch_size * config.gradient_accumulation_steps * config.block_size


def judged(folder: Path, name: str) -> dict[str, Any]:
    """Measure the loss of an entry on the complete test. Of its best and its last weights, those with the lower loss on
    its own validation split count: the test chooses nothing. Errors: TinyGPTError if the loss is not finite."""
    out, compute = folder / name, device.choose("cpu", "float32")
    own, test = (Dataset(str(folder / "data"), dataset) for dataset in (TRAIN, TEST))
    best = min((out / "ckpt.pt", out / "last.pt"), key=lambda path: validation_loss(path, own, compute))
    loss = validation_loss(best, test, compute)
    if not math.isfinite(loss):
        raise diverged(f"{name}: the loss is", loss)
    last = load(out / "last.pt")
    row = {"loss": loss, "bits_per_character": bits_per_character(loss, test), "model": best.name}
    return row | {"parameters": last.build_model().num_params(), "iterations": last.step}
