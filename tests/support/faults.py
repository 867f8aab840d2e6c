"""Faults for child processes: system calls that fail, processes that die, and tinygpt without one of its protections.

This file names every function of tinygpt that a proof replaces. `replace` raises AttributeError if a name no longer
exists.
"""

import builtins
import contextlib
import dataclasses
import io
import itertools
import os
import random
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
import torch

from tinygpt import prepare, train
from tinygpt.base import files, threads
from tinygpt.checkpoint import store
from tinygpt.data import dataset, rows
from tinygpt.examine.doctor import machine
from tinygpt.fast.attention import FastSelfAttention
from tinygpt.fast.decoder import Decoder
from tinygpt.model import GPT
from tinygpt.training import run
from tinygpt.training.processes import StopSignal


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


SAFE_ORDER = ["write", "fsync", "replace", "open folder", "fsync folder"]  # survives a power loss


@dataclasses.dataclass
class Fault:
    """A fault in the system calls of this process, at a chosen call.

    call: one of SAFE_ORDER. count: number of these calls (for "write", of bytes) that succeed before the fault.
    action: dies or raises. after: act after the call instead of before it. sticky: fail at every later call too, as on
    a full disk.
    """

    call: str = ""
    count: int = 0
    action: Callable[[], None] = die
    after: bool = False
    sticky: bool = False
    seen: int = 0
    calls: list[str] = dataclasses.field(default_factory=list)

    def install(self) -> None:
        """Replace `open`, `os.open`, `os.fsync` and `os.replace` in this process."""
        fsync, rename, open_descriptor = os.fsync, os.replace, os.open

        def open_folder(path: Any, flags: int, *more: Any, **options: Any) -> int:
            name = "open folder" if os.path.isdir(path) and flags == os.O_RDONLY else ""  # else a file without a name
            return int(self.step(name, lambda: open_descriptor(path, flags, *more, **options)))

        def fsync_any(fd: int) -> None:
            self.step("fsync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync", lambda: fsync(fd))

        os.fsync = fsync_any
        os.replace = lambda a, b: self.step("replace", lambda: rename(a, b))
        os.open = open_folder
        builtins.open = io.open = self.open  # type: ignore[assignment]

    def step(self, name: str, call: Callable[[], Any]) -> Any:
        if not name:
            return call()
        self.calls.append(name)
        due = name == self.call and (self.seen == self.count or (self.sticky and self.seen > self.count))
        self.seen += name == self.call
        if due and not self.after:
            self.action()
        value = call()
        if due:
            self.action()
        return value

    def open(self, path: Any, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return OPEN(path, mode, buffering, *text, **more)
        raw = FaultyFile(self, path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file, *text, **more)


OPEN = open


class FaultyFile(io.FileIO):
    """A file that counts the bytes written, and fails in the middle of a write."""

    def __init__(self, fault: Fault, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self.fault = fault

    def write(self, content: Any) -> int:
        view, fault = memoryview(content).cast("B"), self.fault
        fault.calls.append("write")
        if fault.call == "write":
            room = fault.count - fault.seen
            fault.seen += len(view)
            if 0 <= room < len(view) or (room < 0 and fault.sticky):
                super().write(view[: max(room, 0)])
                fault.action()
        super().write(view)
        return len(view)


def death_in_a_save(draw: random.Random, size: int) -> Fault:
    """Death in one of the next saves of `size` bytes: after some bytes, or before or after a call."""
    call = draw.choice(["write", *SAFE_ORDER])
    return Fault(call, draw.randrange(size * 20) if call == "write" else draw.randrange(20), die, draw.random() < 0.5)


# ---- changes of tinygpt ----------------------------------------------------------------------------------------------


def replace(owner: Any, name: str, value: Any) -> Any:
    """Replace an attribute and return its old value. Errors: AttributeError if it does not exist."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    return old


def map_token_files() -> None:
    """Map token files of any size into memory, instead of reading them."""
    replace(dataset, "IN_MEMORY", 0)


def on_training_forward(change: Callable[[int, Any, Any], Any]) -> None:
    """Pass the number of each forward pass of training, its inputs and its loss to `change`, which returns a loss."""
    numbers = itertools.count()

    def forward(self: GPT, x: Any, y: Any = None, *args: Any, **more: Any) -> Any:
        logits, loss = original(self, x, y, *args, **more)
        return logits, change(next(numbers), (x, y), loss) if self.training and y is not None else loss

    original = replace(GPT, "forward", forward)


def on_iteration(step: int, action: Callable[[], None]) -> None:
    """Call `action` before the training iteration `step`."""

    def forward_backward(run: Any, *data: Any) -> Any:
        if run.progress.step == step:
            action()
        return original(run, *data)

    original = replace(train, "forward_backward", forward_backward)


def die_before_saving() -> None:
    replace(train, "evaluate", lambda state: die())


def two_threads() -> None:
    """A machine with two free cores on which the user has not chosen a number of threads; no step is timed."""
    os.environ.pop("OMP_NUM_THREADS", None)
    torch.set_num_threads(2)
    replace(threads, "_cores", 2)
    replace(threads, "_free", 2)
    replace(threads.ThreadTuner, "tune", lambda *args: {})
    replace(threads.ThreadTuner, "due", lambda *args: False)


def two_threads_then_one(last: int = 0) -> None:
    """The same machine becomes busy: after 20 iterations one thread is faster. The process dies after `last`."""
    two_threads()
    iterations = itertools.count(1)

    def due(*args: object) -> bool:
        done = next(iterations)
        if done == last:
            die()
        return done == 20

    def tune(self: threads.ThreadTuner, most: int = 0) -> dict[int, float]:
        if not most:  # at the start of a run it is given
            torch.set_num_threads(1)
        return {1: 0.01, 2: 0.02}

    replace(threads.ThreadTuner, "due", due)
    replace(threads.ThreadTuner, "tune", tune)


def endless_iterations() -> None:
    """The first iteration never ends; it says that it has begun, and each signal that reaches the run."""

    def handle(self: StopSignal, *signal_and_frame: Any) -> None:
        print("signal seen", flush=True)
        original(self, *signal_and_frame)

    original = replace(StopSignal, "_on_signal", handle)

    def wait(number: int, batch: Any, loss: Any) -> Any:
        print("in an iteration", flush=True)
        time.sleep(3600)
        return loss

    on_training_forward(wait)


def record_batches(file: Path) -> None:
    """Append every batch that is trained on to `file`: inputs and last target of each row, int64."""

    def record(number: int, batch: Any, loss: Any) -> Any:
        with OPEN(file, "ab") as out:
            out.write(torch.cat([batch[0], batch[1][:, -1:]], dim=1).numpy().tobytes())
        return loss

    on_training_forward(record)


def diverge(place: str, at: int, micro_steps: int, reached: Callable[[], None]) -> None:
    """Make the loss, the gradient or the weights infinite or NaN in iteration `at` of a run from scratch."""

    def change(number: int, batch: Any, loss: Any) -> Any:
        step, micro_step = divmod(number, micro_steps)
        if step == at and micro_step == 0:
            reached()
        if step >= at and (place == "loss" or (place == "second micro-step" and (step, micro_step) == (at, 1))):
            return loss * float("inf")
        if step >= at and place == "gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    on_training_forward(change)
    if place.startswith("overflow"):  # an update that overshoots; an evaluation follows, or only a save
        rate = replace(train, "learning_rate", lambda step, config: 1e38 if step == at else rate(step, config))
        return

    def finite(run: Any, *values: Any) -> Any:
        try:
            return original(run, *values)
        finally:
            if not all(weight.isfinite().all() for weight in run.model.parameters()):
                print("updated before the check")

    original = replace(train, "require_finite_loss", finite)


def forbid_sockets() -> None:
    """End this process when it creates a socket or looks up a host name."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith("socket."):
            print(f"{event} {args}", flush=True)
            os._exit(99)

    sys.addaudithook(hook)


# ---- a faulty machine: one function each, for `tinygpt doctor --machine` ---------------------------------------------


def no_gpu() -> None:
    for backend in (torch.cuda, torch.backends.mps):
        replace(backend, "is_available", lambda: False)


def wrong_kernel() -> None:
    """The fast path's attention forgets the mask."""

    def attend(self: Any, q: Any, k: Any, v: Any, mask: Any, dropout: float = 0.0, fused: bool = True) -> Any:
        return right(self, q, k, v, mask if fused else torch.zeros(()), dropout, fused)

    right = replace(FastSelfAttention, "attend", attend)


def wrong_decoding() -> None:
    """A decoded token's logits are those of another token."""
    logits = replace(Decoder, "__call__", lambda self, idx: logits(self, idx).roll(1))


def nothing_is_learned() -> None:
    replace(train, "learning_rate", lambda step, config: 0.0)


def lossy_files() -> None:
    """Every weight changes a little when it is written."""

    def save_less(state: Any, file: Any) -> None:
        save(state | {"model": {name: weight * 1.0001 for name, weight in state["model"].items()}}, file)

    save = replace(torch, "save", save_less)


def private_errors() -> None:
    """Errors whose messages contain folders of the user."""

    def no_space(config: Any) -> None:
        raise OSError(28, "No space left on device", str(Path.home() / "secret.bin"))

    def not_loaded(*args: Any) -> None:
        raise RuntimeError(f"cannot load {Path.home()}/kernels.so")

    replace(machine, "prepare", no_space)
    replace(machine, "require_equal", not_loaded)
    replace(machine, "seconds_per_batch", not_loaded)
    replace(machine, "Dataset", not_loaded)


# ---- without a protection: each function removes one line of tinygpt -----------------------------------------------


def dropout_from_one_generator() -> None:
    """train.forward_backward without `seed_dropout(...)`."""
    replace(train, "seed_dropout", lambda *args: None)


def dropout_from_the_clock() -> None:
    """train.seed_dropout with the time in place of the iteration."""
    replace(train, "seed_dropout", lambda *args: torch.manual_seed(time.time_ns()))


def threads_not_stored() -> None:
    """training.run.Run.numeric_settings without the number of threads."""
    complete = run.Run.numeric_settings

    def without(self: run.Run) -> dict[str, str | int]:
        return {key: value for key, value in complete(self).items() if key != "threads"}

    replace(run.Run, "numeric_settings", without)


def save_in_place() -> None:
    """files.replacing without its temporary file: a checkpoint is written directly to its path."""

    @contextlib.contextmanager
    def written_in_place(path: Path, *hint: str) -> Iterator[IO[bytes]]:
        with files.writing(path, *hint), open(path, "w+b") as file:
            yield file

    replace(store, "replacing", written_in_place)


def folder_not_synced() -> None:
    """files.replacing without `sync_folder(path.parent)`."""
    replace(files, "sync_folder", lambda folder: None)


def any_pickle() -> None:
    """store.load without `weights_only=True`."""
    load = replace(torch, "load", lambda *args, **more: load(*args, **more | {"weights_only": False}))


def unverified() -> None:
    """store.load without `verify(file, path)`."""
    replace(store, "verify", lambda file, path: True)


def unchecked_meta() -> None:
    """dataset.Dataset without the check of what meta.json holds."""
    replace(dataset, "_is_dict", lambda value, kind: True)


def any_data() -> None:
    """Resuming without the comparison of the checkpoint's `data` with the dataset's checksums."""
    replace(dataset.Dataset, "has_checksums", lambda self, data: True)


def batches_from_one_generator() -> None:
    """rows.draw_windows without its key of (seed, step)."""

    def draw(seed: int, step: int, tokens: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        return np.random.default_rng().integers(0, tokens - block_size, size=count)

    replace(rows, "draw_windows", draw)


def no_lock() -> None:
    """run.set_up without `folder_lock(...)`."""
    replace(run, "folder_lock", lambda folder, use: contextlib.nullcontext(folder.mkdir(exist_ok=True)))


def no_signal_handlers() -> None:
    """processes.StopSignal.__enter__ without `signal.signal(...)`."""
    replace(StopSignal, "__enter__", lambda self: self)


def everything_is_finite() -> None:
    """train.require_finite_loss without `raise diverged(...)`."""
    replace(train, "math", SimpleNamespace(**{**vars(train.math), "isfinite": lambda number: True}))


def meta_stays() -> None:
    """token_files.write_token_files without `remove(folder / "meta.json")`: the old one describes the new files."""

    def write_beside_the_old(*args: Any) -> Any:
        unlink = replace(Path, "unlink", lambda self, missing_ok=False: None)
        meta = write(*args)
        Path.unlink = unlink  # type: ignore[method-assign]
        return meta

    write = replace(prepare, "write_token_files", write_beside_the_old)


def next_format_only() -> None:
    """A release whose store.load no longer reads format 1."""
    replace(store, "FORMAT", 0)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOWS", True)
