"""The proofs of the reliability contract, at their full counts.

    python scripts/torture.py                      every row, about a quarter of an hour on two quiet cores
    python scripts/torture.py --row 1 4 --scale 0.1

Each row is a function that does the harm (kills, full disks, damaged files) and counts what it broke. It prints one
line with figures; a breach is printed below it and makes the exit status 1.

The harm is done to forked children: PyTorch is imported once, and a child that runs `tinygpt.train.train` is there
in milliseconds. `Bench.sabotage` runs in every child before the work; `tests/test_reliability.py` takes a protection
out with it, and expects the row to fail.
"""

import argparse
import contextlib
import dataclasses
import errno
import functools
import glob
import hashlib
import http.server
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import requests  # noqa: F401 (this and torch._dynamo, which an optimizer imports, before forking: they take a second)
import torch
import torch._dynamo
from tqdm import tqdm

from tinygpt import cli, files, prepare, sample, train
from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config.parse import parse
from tinygpt.config.schema import EvalConfig, PrepareConfig, SampleConfig, TrainConfig
from tinygpt.data import corpora, rows
from tinygpt.data import dataset as data
from tinygpt.data.dataset import Dataset
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.command import evaluate
from tinygpt.model import GPT
from tinygpt.training import log as runlog
from tinygpt.training.processes import Processes

# tqdm's own lock is shared with forked processes: one killed while holding it would stop every later progress bar.
tqdm.set_lock(threading.RLock())

ROOT = Path(__file__).resolve().parent.parent
# fmt: off
TINY: dict[str, Any] = {
    "device": "cpu", "dtype": "float32", "compile": "False", "quiet": True, "seed": 7, "dropout": 0.1,
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 2, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 10, "max_iters": 200, "lr_decay_iters": 200,
    "eval_interval": 20, "eval_iters": 2, "checkpoint_interval": 7, "sample_interval": 40,
}
# fmt: on
NO_MODEL = {"n_layer": 1, "n_head": 1, "n_embd": 1, "block_size": 1, "vocab_size": 1}  # where only the file matters
LETTERS = "abcdefgh .\n"


@dataclasses.dataclass
class Result:
    """What a row counted, and every way in which the promise was broken."""

    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    breaches: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def count(self, figure: str, by: int = 1) -> None:
        self.figures[figure] = self.figures.get(figure, 0) + by

    def breach(self, figure: str, what: str) -> None:
        self.count(figure)
        self.breaches.append(f"{figure}: {what}")

    def check(self, good: bool, figure: str, what: str) -> None:
        """Count a breach unless `good`; the figure is shown in any case."""
        self.count(figure, 0)
        if not good:
            self.breach(figure, what)


# ---- children --------------------------------------------------------------------------------------------------------


class Child:
    """A forked process; its output is in `log`."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self.status: int | None = None  # the exit status, or minus the signal that ended it

    def wait(self, seconds: float = 60, otherwise: int = 0) -> int | None:
        """The exit status. After `seconds` the signal `otherwise` is sent; without one the status is then None."""
        end = time.monotonic() + seconds
        while self.status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(raw)
            elif time.monotonic() >= end:
                if not otherwise:
                    return None
                self.send(otherwise)
                return self.wait()
            else:
                time.sleep(0.001)
        return self.status

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Bench:
    """A temporary folder with datasets, and the means to run things in it that may die."""

    def __init__(self, folder: Path, seed: int = 1, sabotage: Callable[[], None] = lambda: None) -> None:
        self.folder, self.sabotage, self.random = folder, sabotage, random.Random(seed)
        self.patience = 20.0  # seconds until something that should happen counts as not happening
        self._numbers = itertools.count()
        self.dataset("tiny", self.text())

    def new(self, name: str) -> Path:
        """A path that nothing has yet."""
        return self.folder / f"{name}-{next(self._numbers)}"

    def text(self, letters: str = LETTERS, length: int = 6000) -> str:
        return letters + "".join(self.random.choices(letters, k=length - len(letters)))

    def dataset(self, name: str, text: str, **options: Any) -> None:
        """Prepare a dataset in data/."""
        source = self.new("text")
        source.write_bytes(text.encode())
        config = PrepareConfig(name, input=(str(source),), data_dir=str(self.folder / "data"), **options)
        child = self.fork(lambda: prepare.prepare(config), sabotaged=False)
        if child.wait():
            raise RuntimeError(child.said)

    def config(self, out: Path, **changes: Any) -> TrainConfig:
        settings = TINY | {"dataset": "tiny", "data_dir": str(self.folder / "data"), "out_dir": str(out)} | changes
        config = TrainConfig(**settings)
        config.given = {"out_dir", "max_iters"}  # type: ignore[attr-defined]
        return config

    def fork(self, work: Callable[[], Any], sabotaged: bool = True) -> Child:
        """Start `work` in a child, with the command line's own treatment of errors and exit statuses."""
        log = self.new("log")
        log.touch()  # a child may be dead before it gets that far
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            return Child(pid, log)
        status = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(1)  # a pool of threads does not survive a fork; none is started this way
            if sabotaged:
                self.sabotage()
            cli.run = lambda args: work() or 0
            status = cli.main([])
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(status)

    def run(self, work: Callable[[], Any], seconds: float = 120) -> Child:
        """Run `work` in a child to its end."""
        child = self.fork(work)
        child.wait(seconds, otherwise=signal.SIGKILL)
        return child

    def call(self, work: Callable[[], Any], seconds: float = 600) -> Any:
        """What `work` returns (plain values), computed in a child."""
        answer = self.new("answer")
        child = self.run(lambda: answer.write_text(json.dumps(work())) and 0, seconds)
        if child.status or not answer.exists():
            raise RuntimeError(f"exit {child.status}: {child.said[-2000:]}")
        return json.loads(answer.read_text())

    def train(self, out: Path, before: Callable[[], None] = lambda: None, **changes: Any) -> Callable[[], int]:
        """Work for `fork`: a training run that goes on from where the last one was."""

        def work() -> int:
            before()
            return train.train(self.config(out, **{"init_from": "auto"} | changes))

        return work


def digest(path: Path) -> str:
    """SHA-256 of all that a checkpoint holds of the training: weights, optimizer, progress.

    Not the seconds, and not the optimizer's `lr`: that is the last iteration's, set anew before each.
    """
    loaded = checkpoint.load(path)
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                if key not in ("seconds", "lr"):
                    sha.update(str(key).encode())
                    add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            sha.update(repr(value).encode())

    add([loaded.model, loaded.training, loaded.step, loaded.best_val_loss])
    return sha.hexdigest()


def history(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    return [
        {key: value for key, value in entry.items() if key not in ("seconds", "tokens_per_second")}
        for entry in runlog.read_metrics(out)
    ]


def differences(a: list[Any], b: list[Any]) -> int:
    return sum(left != right for left, right in itertools.zip_longest(a, b))


def snapshot(folder: Path, pattern: str = "*.pt") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def unloadable(out: Path) -> list[str]:
    """Checkpoints of a folder that cannot be loaded."""
    bad = []
    for path in out.glob("*.pt"):
        try:
            checkpoint.load(path)
        except TinyGPTError as error:
            bad.append(error.message)
    return bad


def leftovers(out: Path) -> list[str]:
    return [name for name in os.listdir(out) if name.endswith(".tmp")]


def passes(work: Callable[[], Any]) -> str:
    """Empty when `work` succeeds or raises TinyGPTError, else what it raised instead."""
    try:
        work()
    except TinyGPTError:
        return ""
    except BaseException as error:  # any other way out is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:100]} ({Path(place.filename).name}:{place.lineno})"
    return ""


@dataclasses.dataclass
class Fault:
    """Something that goes wrong in a child's own calls to the system, at a chosen place.

    call: "write" (`count` is in bytes), "fsync", "replace", "open folder" or "fsync folder". action: dies, or raises.
    after: only once the call is done. sticky: at every later call too, as on a full disk.
    """

    call: str = ""
    count: int = 0
    action: Callable[[], None] = lambda: None
    after: bool = False
    sticky: bool = False
    seen: int = 0
    calls: list[str] = dataclasses.field(default_factory=list)

    def install(self, *modules: Any) -> None:
        """Give the modules an `open` and an `os` that pass through here."""
        shim = SimpleNamespace(**vars(os))
        shim.fsync = lambda fd: self.step("fsync folder" if _is_folder(fd) else "fsync", lambda: os.fsync(fd))
        shim.replace = lambda a, b: self.step("replace", lambda: os.replace(a, b))
        shim.open = lambda path, flags, *more: self.step("open folder", lambda: os.open(path, flags, *more))
        for module in modules:
            module.os, module.open = shim, self.open

    def step(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        due = name == self.call and (self.seen == self.count or (self.sticky and self.seen > self.count))
        self.seen += name == self.call
        if due and not self.after:
            self.action()
        value = call()
        if due:
            self.action()
        return value

    def open(self, path: Any, mode: str = "r", buffering: int = -1, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return open(path, mode, buffering, **more)
        raw = _File(self, path, mode.replace("b", ""))
        return raw if buffering == 0 else io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)


class _File(io.FileIO):
    """A file that counts what is written, and fails in the middle of it."""

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


def _is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def times(n: int, scale: float) -> int:
    return max(1, round(n * scale))


# ---- rows 1 to 4: a run and its checkpoints --------------------------------------------------------------------------


def exact_resume(bench: Bench, scale: float) -> Result:
    """Runs that are killed again and again end exactly as one that never was."""
    result = Result({"kills": 0, "inside a save": 0, "runs": 0})
    quiet = bench.new("undisturbed")
    started = time.monotonic()
    child = bench.run(bench.train(quiet))
    whole = time.monotonic() - started
    if child.status:
        raise RuntimeError(child.said)
    size = (quiet / "last.pt").stat().st_size
    for inside, wanted in ((False, times(200, scale)), (True, times(50, scale))):
        kills = 0
        while kills < wanted:
            out = bench.new("killed")
            while True:
                before = random_fault(bench.random, size).install if inside else lambda *modules: None
                child = bench.fork(bench.train(out, functools.partial(before, files)))
                child.wait(
                    bench.patience if inside else bench.random.uniform(0, 0.35 * whole), otherwise=signal.SIGKILL
                )
                for what in unloadable(out):
                    result.breach("unloadable", what)
                if child.status == 0:
                    break
                kills += 1
                result.count("inside a save" if inside else "kills")
                if child.status != -signal.SIGKILL:
                    result.breach("failed restarts", f"exit {child.status}: {child.said[-300:]}")
                    break
            compare_runs(result, out, quiet)
            result.count("runs")
            shutil.rmtree(out, ignore_errors=True)
    result.count("kills", result.figures["inside a save"])
    result.check(True, "unloadable", "")
    return result


def random_fault(draw: random.Random, size: int) -> Fault:
    """Death inside one of the next saves: after some bytes, or before or after one of the calls."""
    call = draw.choice(["write", "write", "fsync", "replace", "open folder", "fsync folder"])
    return Fault(call, draw.randrange(size * 20) if call == "write" else draw.randrange(20), die, draw.random() < 0.5)


def compare_runs(result: Result, out: Path, quiet: Path) -> None:
    """Count what differs between a disturbed run and an undisturbed one."""
    lines = differences(history(out), history(quiet))
    result.check(lines == 0, "losses differing", f"{lines} lines of {out.name}/metrics.jsonl")
    for name in ("last.pt", "ckpt.pt"):
        same = (out / name).exists() and digest(out / name) == digest(quiet / name)
        result.check(same, "weights differing", f"{out.name}/{name}")


def old_or_new(bench: Bench, scale: float) -> Result:
    """A process that saves without end is killed: its file is always one whole state."""
    result = Result({"kills": 0, "inside a save": 0})
    size = 20 * 4 * 4096

    def save_for_ever(path: Path, fault: Fault | None) -> None:
        if fault:
            fault.install(files)
        for state in itertools.count(1):
            weights = {str(part): torch.full((4096,), float(state)) for part in range(20)}
            checkpoint.save(path, Checkpoint(weights, NO_MODEL, {}, step=state))

    kinds = [False] * times(200, scale) + [True] * times(50, scale)
    out = bench.new("saves")
    out.mkdir()
    for index, inside in enumerate(kinds):
        path = out / f"{index % 3}.pt"
        fault = random_fault(bench.random, size) if inside else None
        child = bench.fork(functools.partial(save_for_ever, path, fault))
        child.wait(bench.patience if inside else bench.random.uniform(0.01, 0.06), otherwise=signal.SIGKILL)
        result.count("kills")
        result.count("inside a save", inside)
        result.check(child.status == -signal.SIGKILL, "failures", child.said[-300:])
        result.check(not unloadable(out), "unloadable", f"after kill {index}")
        for file in out.glob("*.pt"):
            with contextlib.suppress(TinyGPTError):
                loaded = checkpoint.load(file)
                values = {float(edge) for w in loaded.model.values() for edge in (w.numpy().min(), w.numpy().max())}
                result.check(values == {float(loaded.step)}, "neither old nor new", f"{file.name} holds {values}")
        for file in out.glob("*.pt"):
            if unloadable(out):
                file.unlink()
    return result


SAFE_ORDER = ["write", "fsync", "replace", "open folder", "fsync folder"]


def power_loss(bench: Bench, scale: float) -> Result:
    """The calls of a save come in the order that survives a power loss; each may fail, and the file is whole."""
    result = Result()

    def state(number: int) -> Checkpoint:
        return Checkpoint({"w": torch.full((9,), float(number))}, NO_MODEL, {}, step=number)

    def attempt(call: str, count: int, after: bool, kind: str) -> list[Any]:
        path = bench.new("save") / "last.pt"
        path.parent.mkdir()
        checkpoint.save(path, state(1))

        def action() -> None:
            if kind == "interrupt":
                raise KeyboardInterrupt
            fail(errno.EIO)

        fault = Fault(call, count, action, after)
        fault.install(files)
        problem = "nothing raised"
        try:
            checkpoint.save(path, state(2))
        except (TinyGPTError, KeyboardInterrupt):
            problem = ""
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        loaded = checkpoint.load(path).step
        replaced = "replace" in fault.calls and not (call == "replace" and not after)
        wrong = loaded != (2 if replaced else 1)
        return [problem, wrong, leftovers(path.parent), [name for name, _ in itertools.groupby(fault.calls)]]

    _, wrong, _, calls = bench.call(lambda: attempt("", 0, False, ""))
    result.figures["order"] = " > ".join(calls)
    result.check(calls == SAFE_ORDER and not wrong, "orders wrong", " > ".join(calls))
    size = 1000
    for call, after, kind in itertools.product(SAFE_ORDER, (False, True), ("EIO", "interrupt")):
        for count in [0, size // 2, size] if call == "write" else [0]:
            what = f"{call} raising {kind} {'after' if after else 'before'} {count}"
            try:
                problem, wrong, left, _ = bench.call(functools.partial(attempt, call, count, after, kind))
            except RuntimeError as error:
                problem, wrong, left = "", str(error), []
            result.count("calls made to raise")
            result.check(not wrong, "files lost", what)
            result.check(not left, "temporary files left", what)
            result.check(not problem, "unexplained", f"{what}: {problem}")
    return result


def disk_full(bench: Bench, scale: float) -> Result:
    """ENOSPC after any number of bytes, and a real file system of one megabyte."""
    result = Result({"offsets": 0})
    quiet = bench.new("undisturbed")
    meter = bench.new("meter")

    def measured() -> int:
        fault = Fault("write", -1)
        fault.install(files, runlog)
        try:
            return bench.train(quiet, max_iters=40)()
        finally:
            meter.write_text(str(fault.seen))

    child = bench.run(measured)
    if child.status:
        raise RuntimeError(child.said)
    total = int(meter.read_text())
    for index in range(times(100, scale)):
        out, before = bench.new("full"), bench.new("before")

        def full(out: Path = out, before: Path = before) -> None:
            if not before.exists():
                before.write_text(json.dumps(snapshot(out)))
            fail(errno.ENOSPC)

        offset = int(total * (index + bench.random.random()) / times(100, scale))
        fault = Fault("write", offset, full, sticky=True)
        child = bench.run(bench.train(out, functools.partial(fault.install, files, runlog), max_iters=40))
        result.count("offsets")
        check_full(result, out, child, f"ENOSPC after {offset} bytes")
        unchanged = before.exists() and snapshot(out) == json.loads(before.read_text())
        result.check(unchanged, "checkpoints changed", f"ENOSPC after {offset} bytes")
        shutil.rmtree(out, ignore_errors=True)
    real_disk_full(bench, result, times(8, scale), quiet)
    return result


def check_full(result: Result, out: Path, child: Child, what: str) -> None:
    result.check(child.status == 1, "exit not 1", f"{what}: exit {child.status}: {child.said[-400:]}")
    named = "no space left" in child.said and "MB free" in child.said and "Traceback" not in child.said
    result.check(named, "space not named", f"{what}: {child.said[-400:]}")
    result.check(not unloadable(out), "unloadable", f"{what}: {unloadable(out)}")
    result.check(not leftovers(out), "temporary files left", f"{what}: {leftovers(out)}")


def real_disk_full(bench: Bench, result: Result, runs: int, quiet: Path) -> None:
    """A tmpfs of 1 MB (needs root), with less room left than the run needs: up to nearly three checkpoints."""
    disk = bench.new("tmpfs")
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        result.notes.append("no tmpfs of 1 MB: mounting needs root on Linux")
        return
    try:
        size = (quiet / "last.pt").stat().st_size
        for index in range(runs):
            out = disk / "out"
            out.mkdir()
            room = int((0.2 + 2.6 * index / max(runs - 1, 1)) * size)
            free = shutil.disk_usage(disk).free
            (disk / "ballast").write_bytes(b"x" * max(free - room, 0))
            child = bench.run(bench.train(out, max_iters=40))
            check_full(result, out, child, f"tmpfs with {room:,} bytes left")
            result.count("full tmpfs")
            shutil.rmtree(out)
            (disk / "ballast").unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=False)


# ---- rows 5 to 7: files from strangers -------------------------------------------------------------------------------


class Reducer:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def pickles(canary: str) -> dict[str, bytes]:
    """Pickles that make the file `canary` when they are loaded without care."""
    touch = f"open({canary!r}, 'w')"
    found = {
        "os.system": pickle.dumps(Reducer(os.system, f"touch {canary}"), 2),
        "exec": pickle.dumps(Reducer(exec, touch), 2),
        "eval": pickle.dumps(Reducer(eval, touch), 4),
        "subprocess": pickle.dumps(Reducer(subprocess.call, ["touch", canary]), 2),
        "open": pickle.dumps(Reducer(open, canary, "w"), 2),
        "nested in a state": pickle.dumps({"model": {}, "model_args": {}, "config": Reducer(exec, touch)}, 2),
        "INST opcode": b"(S'" + touch.encode() + b"'\nibuiltins\neval\n.",
        "OBJ opcode": b"(cbuiltins\neval\nV" + touch.encode() + b"\no.",
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x0eserialization.os\x93.",
        "getattr chain": (
            b"\x80\x04cbuiltins\ngetattr\n(cbuiltins\n__import__\n(V" + b"os\ntRV" + b"system\ntR(V"
            + f"touch {canary}".encode() + b"\ntR."
        ),
        "BUILD opcode": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb"
        + b"X" + struct.pack("<I", len(f"touch {canary}")) + f"touch {canary}".encode() + b"b.",
    }  # fmt: skip
    return found


def zipped(pickled: bytes, sealed: bool, script: bool = False) -> bytes:
    """A torch.save archive around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        if script:
            archive.writestr("archive/constants.pkl", pickled)
            archive.writestr("archive/code/__torch__.py", "import os\n")
    if sealed:
        checkpoint._seal(file)
    return file.getvalue()


def legacy(pickled: bytes) -> bytes:
    """What torch.save wrote before 1.6: pickles one after the other."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + pickled + pickle.dumps([], 2)


def payloads(canary: str) -> list[tuple[str, str, bytes]]:
    """(name, kind of file, content) of files that would run code if they could."""
    touch, command = f"open({canary!r}, 'w')", f"touch {canary}"
    made: list[tuple[str, str, bytes]] = []
    for name, pickled in pickles(canary).items():
        made += [(f"{name}, zip", "checkpoint", zipped(pickled, sealed=False))]
        made += [(f"{name}, sealed zip", "checkpoint", zipped(pickled, sealed=True))]
    for name, pickled in list(pickles(canary).items())[:4]:
        made += [(f"{name}, bare pickle", "checkpoint", pickled), (f"{name}, legacy", "checkpoint", legacy(pickled))]
    system = pickles(canary)["os.system"]
    made += [("TorchScript", "checkpoint", zipped(system, False, script=True)), ("meta.pkl", "meta.pkl", system)]
    for tag in (
        f"x: !!python/object/apply:os.system ['{command}']",
        f'x: !!python/object/apply:builtins.exec ["{touch}"]',
        f"x: !!python/object/new:subprocess.Popen [['touch', '{canary}']]",
        f"!!python/object/apply:os.system ['{command}']: x",
        f'x: &a !!python/object/apply:builtins.eval ["{touch}"]\ny: *a',
        f"x: !!python/object/new:type\n  args: [z, !!python/tuple [], {{extend: !!python/name:exec }}]\n"
        f'  listitems: "{touch}"',
        f"!<tag:yaml.org,2002:python/object/apply:os.system> ['{command}']",
        "x: !!python/module:antigravity",
    ):
        made.append((f"YAML {tag[:40]!r}", "yaml", tag.encode()))
    for line in (
        f"import os\nos.system({command!r})",
        f"from os import system as str\nseed = str({command!r})",
        f"seed = __import__('os').system({command!r})",
        f"seed = [{touch} for _ in (1,)]",
        f"seed = str({touch})",
        f"seed = f'{{{touch}}}'",
        f"seed = (lambda: {touch})()",
        f"class seed: x = {touch}",
        f"def f(x={touch}): pass",
        f"@{touch}.write\ndef f(): pass",
        f"seed = time.time.__self__.__loader__.load_module('os').system({command!r})",
        f"seed = ().__class__.__base__.__subclasses__()[0]({touch})",
        f"seed: {touch} = 1",
        f"assert {touch}",
        f"seed = 1 if {touch} else 2",
        f"seed = (x := {touch})",
        f"exec({touch!r})",
        f"str = exec\nseed = str({touch!r})",
        f"with {touch} as seed: pass",
        f"seed = {{**{touch}}}",
    ):
        made.append((f"Python {line[:40]!r}", "py", line.encode()))
    return made


def no_code(bench: Bench, scale: float) -> Result:
    """No file can run code: none of these makes the canary."""
    result = Result({"payloads": 0})
    folder = bench.new("payloads")
    folder.mkdir()
    canary = folder / "canary"

    def read(kind: str, content: bytes) -> str:
        if kind == "checkpoint":
            (folder / "x.pt").write_bytes(content)
            return passes(lambda: run_sample(bench, folder / "x.pt"))
        if kind == "meta.pkl":
            (folder / "pickled").mkdir()
            (folder / "pickled" / kind).write_bytes(content)
            return passes(lambda: Dataset(str(folder), "pickled"))
        (folder / f"x.{kind}").write_bytes(content)
        return passes(lambda: parse(TrainConfig, [str(folder / f"x.{kind}")]))

    for name, kind, content in payloads(str(canary)):
        problem = bench.call(functools.partial(read, kind, content))
        result.count("payloads")
        result.check(not canary.exists(), "canaries", name)
        result.check(not problem, "unexplained", f"{name}: {problem}")
        canary.unlink(missing_ok=True)
    for path in sorted((ROOT / "tinygpt").glob("*.py")):
        found = dangerous(path.read_text())
        result.check(not found, "dangerous lines in the source", f"{path.name}: {found}")
    return result


def dangerous(source: str) -> list[str]:
    """Calls and imports in a Python source that could run what a file says."""
    import ast

    banned_calls = {"exec", "eval", "compile", "__import__", "execfile"}
    banned_modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}
    banned_attributes = {
        "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "importlib.reload",
        "pickle.load", "pickle.loads", "torch.hub.load", "pandas.read_pickle",
    }  # fmt: skip
    banned_keywords = {("weights_only", False), ("allow_pickle", True), ("shell", True)}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in banned_modules]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            if called in banned_calls | banned_attributes:
                found.append(called)
            if called == "torch.load" and keywords.get("weights_only") is not True:
                found.append("torch.load without weights_only=True")
            found += [f"{key}={value}" for key, value in keywords.items() if (key, value) in banned_keywords]
    return found


def run_sample(bench: Bench, path: Path) -> None:
    """Everything that reading a checkpoint leads to."""
    config = SampleConfig(ckpt=str(path), max_new_tokens=2, device="cpu", data_dir=str(bench.folder / "data"))
    sample.sample(config)


def trained(bench: Bench) -> Path:
    """A checkpoint of a short run."""
    out = bench.new("trained")
    child = bench.run(bench.train(out, max_iters=2))
    if child.status:
        raise RuntimeError(child.said)
    return out / "last.pt"


def corruption(bench: Bench, scale: float) -> Result:
    """Every flipped bit and every missing byte is noticed."""
    result = Result({"bit flips": times(2000, scale), "truncations": times(500, scale)})
    good = trained(bench).read_bytes()
    path = bench.new("damaged") / "x.pt"
    path.parent.mkdir()
    seed = bench.random.random()

    def accepted() -> dict[str, Any]:
        draw, found = random.Random(seed), {"accepted": [], "unexplained": [], "torch.load alone accepts": 0}
        for index in range(result.figures["bit flips"] + result.figures["truncations"]):
            damaged = bytearray(good)
            if index < result.figures["bit flips"]:
                bit = draw.randrange(len(good) * 8)
                damaged[bit // 8] ^= 1 << bit % 8
                what = f"bit {bit}"
            else:
                at = draw.randrange(len(good))
                del damaged[at:]
                what = f"cut at {at}"
            path.write_bytes(damaged)
            try:
                checkpoint.load(path)
                found["accepted"].append(what)
            except TinyGPTError:
                pass
            except Exception as error:
                found["unexplained"].append(f"{what}: {type(error).__name__}")
            with contextlib.suppress(Exception):
                torch.load(path, weights_only=True)
                found["torch.load alone accepts"] += 1
        return found

    found = bench.call(accepted)
    result.figures["torch.load alone accepts"] = found["torch.load alone accepts"]
    for figure in ("accepted", "unexplained"):
        result.check(not found[figure], figure, str(found[figure][:3]))
        result.figures[figure] = len(found[figure])
    return result


# fmt: off
ODD_VALUES: list[Any] = [
    None, -1, 0, 1, 2, 7, 10**9, 2**40, 2**70, 1e308, float("nan"), float("inf"), True, False, "", "x", "rope",
    "\ud800", [], {}, [1], {"kind": "gpt2"}, {"kind": "char", "symbols": []}, {"kind": "char", "symbols": ["a", "b"]},
    ["a"] * 300, (1, 2), torch.zeros(2), torch.zeros(3, 3, dtype=torch.int64), torch.zeros(0),
]
# fmt: on
JSON_VALUES = [value for value in ODD_VALUES if not isinstance(value, (torch.Tensor, tuple))]


def mutate(draw: random.Random, content: bytes, tokens: list[bytes]) -> bytes:
    """One to four flips, deletions, duplications, splices, cuts or insertions of something interesting."""
    mutant = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(mutant) + 1) for _ in range(2))
        end = min(end, at + draw.choice([1, 4, 64, 10**6]))
        match draw.randrange(6):
            case 0 if mutant:
                mutant[min(at, len(mutant) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                del mutant[at:end]
            case 2:
                mutant[end:end] = mutant[at:end] * draw.choice([1, 1, 3])
            case 3:
                to = draw.randrange(len(mutant) + 1)
                mutant[to:to] = mutant[at:end]
                del mutant[at:end]
            case 4 if draw.random() < 0.3:
                del mutant[at:]
            case _:
                mutant[at:at] = draw.choice(tokens)
        del mutant[4 * len(content) + 1000 :]
    return bytes(mutant)


def mutate_value(draw: random.Random, value: Any, odd: list[Any]) -> Any:
    """A nested value with an entry or two replaced, removed or added."""
    for _ in range(draw.randint(1, 2)):
        place = value
        while isinstance(place, dict) and place:
            key = draw.choice(list(place))
            if not isinstance(place[key], dict) or not place[key] or draw.random() < 0.3:
                change = draw.randrange(5)
                if change == 0:
                    del place[key]
                elif change == 1:
                    place[draw.choice(["x", "", 1, None])] = draw.choice(odd)
                else:
                    place[key] = draw.choice(odd)
                break
            place = place[key]
    return value


class Fuzz:
    """The files that row 7 damages: for each kind the mutant of a number, and what reads it."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.checkpoint = trained(bench).read_bytes()
        self.dataset = bench.folder / "data" / "tiny"
        self.meta, self.train_bin = ((self.dataset / name).read_bytes() for name in ("meta.json", "train.bin"))

    def try_checkpoint(self, draw: random.Random, index: int) -> None:
        path = self.folder / f"{os.getpid()}.pt"
        tokens = [
            b"PK\x03\x04",
            b"PK\x05\x06",
            checkpoint.SEAL,
            b"\x80\x02}",
            b"ctorch\n",
            b"q\x00",
            b"\xff" * 8,
            b"0.",
        ]
        if index % 4 == 0:
            path.write_bytes(mutate(draw, self.checkpoint, tokens))
        else:
            state = torch.load(io.BytesIO(self.checkpoint), weights_only=True)
            if index % 2:  # nanoGPT's, without a seal
                keep = {"model", "model_args", "config", "training", "best_val_loss"}
                state = {key: value for key, value in state.items() if key in keep} | {"iter_num": 5}
            if index % 4 == 2 or draw.random() < 0.4:
                state = mutate_value(draw, state, ODD_VALUES)
            file = io.BytesIO()
            torch.save(state, file)
            if index % 4 == 3:
                file = self.rezipped(file, functools.partial(mutate, draw, tokens=tokens))
            if index % 2 == 0:
                checkpoint._seal(file)
            path.write_bytes(file.getvalue())
        run_sample(self.bench, path)

    @staticmethod
    def rezipped(file: io.BytesIO, change: Callable[[bytes], bytes]) -> io.BytesIO:
        """The archive with another data.pkl and right checksums: damage that only the unpickler can meet."""
        made = io.BytesIO()
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, change(content) if name.endswith("data.pkl") else content)
        return made

    def use_dataset(self, meta: bytes, train_bin: bytes) -> None:
        name = f"mutant{os.getpid()}"
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "meta.json").write_bytes(meta)
        (folder / "train.bin").write_bytes(train_bin)
        shutil.copy(self.dataset / "val.bin", folder)
        dataset = Dataset(str(self.folder), name)
        dataset.require(16)
        evaluate(EvalConfig(str(self.folder / "good.pt"), name, str(self.folder), device="cpu", json=True))

    def try_tokens(self, draw: random.Random, index: int) -> None:
        mutant = mutate(draw, self.train_bin[:2000], [b"\xff\xff", b"\0", b"\0\0" * 50, b"\n\0", b"PK\x03\x04"])
        meta = json.loads(self.meta)
        if index % 2:  # as from a stranger, who can make the checksum right
            meta["sha256"]["train.bin"] = hashlib.sha256(mutant).hexdigest()
        self.use_dataset(json.dumps(meta).encode(), mutant)

    def try_meta(self, draw: random.Random, index: int) -> None:
        tokens = [b"null", b"-1", b"1e999", b"NaN", b"[" * 5000, b'{"a":' * 3000, b'""', b"true", b"\\ud800", b"\xff"]
        tokens += [b"9" * 5000, b"\xef\xbb\xbf", b"//", b",", b'"kind":"gpt2",']
        if index % 2:
            self.use_dataset(mutate(draw, self.meta, tokens), self.train_bin)
        else:
            meta = mutate_value(draw, json.loads(self.meta), JSON_VALUES)
            self.use_dataset(json.dumps(meta).encode(), self.train_bin)

    def try_config(self, draw: random.Random, index: int) -> None:
        python = index % 2
        path = self.folder / f"{os.getpid()}.{'py' if python else 'yaml'}"
        hostile = HOSTILE_PYTHON if python else HOSTILE_YAML
        if index // 2 < len(hostile):
            path.write_bytes(hostile[index // 2])
        elif python:
            path.write_bytes(mutate(draw, PYTHON_CONFIG, PYTHON_TOKENS))
        else:
            path.write_bytes(mutate(draw, (ROOT / "configs/shakespeare_char.yaml").read_bytes(), YAML_TOKENS))
        parse(TrainConfig, [str(path)])


PYTHON_CONFIG = b"""# nanoGPT's train_shakespeare_char.py, in short
import time
out_dir = 'out-shakespeare-char'
eval_interval = 250 # keep frequent because we'll overfit
wandb_run_name = 'mini-gpt' + str(time.time())
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1 * 2
batch_size = 64
block_size = 256
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
compile = False
"""
# fmt: off
PYTHON_TOKENS = [
    b"(", b")", b"[", b"1e999", b"0x" + b"f" * 5000, b"9" * 5000, b"\0", b"'", b'"""', b"**", b"//0", b"/0", b"str(",
    b"time.time(", b"\n\t", b"\\", b"\xff", b"# coding: utf-16\n", b"lambda:", b"None", b"-", b"=", b"True",
]
YAML_TOKENS = [
    b"!!int ", b"!!float x", b"!!bool x", b"!!timestamp x", b"!!binary x", b"!!set ", b"&a ", b"*a", b"<<: ", b"? ",
    b"[" * 3000, b"{", b"- ", b"|", b">", b"%YAML 9.9\n", b"---\n", b"\0", b"\xff", b"\xfe\xff", b"1e999", b".nan",
    b"0x" + b"f" * 5000, b"9" * 5000, b"!!python/name:exec ", b"1:1:1", b"2001-99-99", b"\t", b"\xe2\x80\xa8", b"~",
]
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"  # each line ten times the one before
LAUGHS += b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in b"abcdefghi")
NESTED_LAUGHS = b"seed: [" + LAUGHS[3:].strip().replace(b"\n", b",") + b"]"
HOSTILE_YAML = [
    b"seed: !!int", b"seed: !!int ''", b"seed: !!float ''", b"quiet: !!bool x", b"seed: !!timestamp x", b"seed: 0b",
    b"seed: 0x", b"seed: 0x" + b"f" * 5000, b"seed: " + b"9" * 5000, b"? [1, 2]\n: 3", b"? {a: b}\n: 3", b"[" * 20000,
    b"seed: " + b"[" * 900, LAUGHS, NESTED_LAUGHS,
    b"seed: &a\n  b: *a", b"seed: &a [*a]", b"<<: &a {<<: *a}", b"&a seed: *a",
    b"seed: 2001-02-30", b"seed: !!binary 'x'", b"seed: .nan", b"learning_rate: 1e-x", b"dataset: '\\ud800'",
    b'dataset: "\\uD800"', b'out_dir: "\\0"', b"out_dir: " + b"x" * 5000, b"--- 1\n--- 2",
]
HOSTILE_PYTHON = [
    b"seed = " + b"+".join([b"1"] * 5000), b"seed = " + b"-" * 5000 + b"1", b"seed = " + b"(" * 5000,
    b"x = " + b"a." * 5000 + b"b", b"x = 9\n" + b"x = x * x\n" * 60, b"x = 'a'\n" + b"x = x + x\n" * 60,
    b"seed = 0x" + b"f" * 5000, b"seed = " + b"9" * 5000, b"seed = 1e999", b"seed = 1e999 - 1e999", b"seed = 1 // 0",
    b"seed = 1.0 / 0", b"seed = 'a' * 10", b"seed = -'a'", b"seed = 1j", b"seed = b'x'", b"seed = ...", b"seed = None",
    b"seed = str()", b"seed = str(1, 2)", b"seed = time.time(1)", b"seed, x = 1, 2", b"seed = x = 1",
    b"dataset = '\\ud800'", b"out_dir = '\\0'", b"seed = " + b"str(" * 150 + b"1" + b")" * 150, b"\0", b"# coding: x\n",
    b"x = 10 ** 10 ** 10", b"x = 1 << 10 ** 10", b"x = 1e308 * 10", b"x = 9" + b"9" * 300 + b" * 1.5",
    b"seed = " + b"[" * 150 + b"]" * 150, b"seed = " + b"-" * 900 + b"1", b"seed = " + b"+".join([b"1"] * 900),
    b"seed = " + b"+".join([b"1"] * 2500), b"f(" + b"+".join([b"1"] * 2500) + b")",
]
# fmt: on


def garbage(bench: Bench, scale: float) -> Result:
    """Ten thousand mutants of each kind of file: success or a TinyGPTError, within 5 s and 2 GB."""
    result = Result()
    folder = bench.new("fuzz")
    folder.mkdir()
    fuzz = Fuzz(bench, folder)
    (folder / "good.pt").write_bytes(fuzz.checkpoint)
    seed = bench.random.randrange(10**6)
    for kind in ("checkpoint", "tokens", "meta", "config"):
        result.figures[kind] = times(10_000, scale)
        attempt = getattr(fuzz, f"try_{kind}")
        lanes = min(2, os.cpu_count() or 1)
        share = math.ceil(result.figures[kind] / lanes)
        spans = [(lane * share, min((lane + 1) * share, result.figures[kind])) for lane in range(lanes)]
        workers = [(bench.new("found"), start, stop) for start, stop in spans]
        children: list[Child | None] = [bench.fork(functools.partial(fuzz_span, attempt, seed, *w)) for w in workers]
        while any(children):
            for lane, child in enumerate(children):
                if child and child.wait(0.2) is not None:
                    found, start, stop = workers[lane]
                    entries = [json.loads(line) for line in found.read_text().splitlines()]
                    at = max((entry[0] for entry in entries), default=start)
                    for index, problem in entries:
                        if problem:
                            result.breach("other exceptions", f"{kind} {index}: {problem}")
                    children[lane] = None
                    if child.status:
                        why = "over 5 s" if child.status == -signal.SIGALRM else f"exit {child.status}"
                        result.breach(
                            "over 5 s" if "5 s" in why else "deaths", f"{kind} {at}: {why} {child.said[-200:]}"
                        )
                        workers[lane] = bench.new("found"), at + 1, stop
                        children[lane] = bench.fork(functools.partial(fuzz_span, attempt, seed, *workers[lane]))
    for figure in ("other exceptions", "over 5 s", "deaths"):
        result.count(figure, 0)
    return result


def fuzz_span(attempt: Callable[..., None], seed: int, found: Path, start: int, stop: int) -> None:
    """Try the mutants start..stop-1 in this process; `found` gets a line for each that went wrong, and for the last."""
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else io.StringIO("0") as statm:
        limit = int(statm.read().split()[0]) * resource.getpagesize() + 2 * 10**9
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.stdout = sys.stderr = open(os.devnull, "w", errors="replace")  # noqa: SIM115
    with open(found, "w") as file:
        for index in range(start, stop):
            file.write(json.dumps([index, ""]) + "\n")
            file.flush()
            signal.setitimer(signal.ITIMER_REAL, 5)
            if problem := passes(lambda index=index: attempt(random.Random(f"{seed} {index}"), index)):
                file.write(json.dumps([index, problem]) + "\n")
        signal.setitimer(signal.ITIMER_REAL, 0)


# ---- rows 8 and 9: data and processes --------------------------------------------------------------------------------


def other_data(bench: Bench, scale: float) -> Result:
    """A dataset that is not the checkpoint's any more: resuming is refused, sampling does not look at it."""
    result = Result({"variants": 0})
    text = bench.text()
    reordered = "".join(sorted(set(text), reverse=True)) + text
    variants: dict[str, Callable[[], None]] = {
        "other text": lambda: bench.dataset("moving", bench.text()),
        "other alphabet": lambda: bench.dataset("moving", text.replace("a", "z")),
        "other split": lambda: bench.dataset("moving", text, val_fraction=0.2),
        "truncated": lambda: os.truncate(bench.folder / "data/moving/train.bin", 4000),
        "reordered": lambda: bench.dataset("moving", reordered),
        "other tokenizer": lambda: bench.dataset("moving", text, tokenizer="gpt2"),
    }
    for name, change in variants.items():
        bench.dataset("moving", text)
        out = bench.new("run")
        child = bench.run(bench.train(out, dataset="moving", max_iters=20))
        result.check(child.status == 0, "failures", child.said[-300:])
        first = bench.run(lambda out=out: run_sample(bench, out / "ckpt.pt"))
        try:
            change()
        except RuntimeError as error:
            result.notes.append(f"{name}: {str(error).strip().splitlines()[0][:100]}")
            continue
        before = snapshot(out, "*")
        child = bench.run(bench.train(out, dataset="moving", max_iters=40))
        result.count("variants")
        result.check(child.status == 2, "not refused", f"{name}: exit {child.status}: {child.said[-300:]}")
        result.check("error: " in child.said and "try: " in child.said, "unexplained", f"{name}: {child.said[-300:]}")
        result.check(snapshot(out, "*") == before, "files changed", name)
        again = bench.run(lambda out=out: run_sample(bench, out / "ckpt.pt"))
        result.check(again.status == 0 and again.said == first.said, "samples changed", f"{name}: {again.said[-300:]}")
    return result


def same_batches(bench: Bench, scale: float) -> Result:
    """The slices of 1, 2 and 4 processes are the global batch in order; torchrun, and torchrun with a killed rank."""
    result = Result({"steps": times(1000, scale)})
    tokens = Dataset(str(bench.folder / "data"), "tiny").splits["train"]

    def slices_differ() -> int:
        differ = 0
        for count in (1, 2, 4):
            config = bench.config(Path("x"), batch_size=4, gradient_accumulation_steps=4)
            for step in range(result.figures["steps"]):
                starts = rows.draw_windows(config.seed, step, len(tokens), config.block_size, 16)
                whole = rows.windows(tokens, starts, config.block_size)
                parts = []
                for rank in range(count):
                    run = SimpleNamespace(
                        config=config, dataset=SimpleNamespace(sources={"train": rows.TextRows(tokens)}),
                        ranks=Processes(rank, rank, count), compute=SimpleNamespace(device=torch.device("cpu")),
                        width=config.block_size, base_data=None,
                    )  # fmt: skip
                    x, y, _ = train.batch(run, step)  # type: ignore[arg-type]
                    parts.append(torch.cat([x, y[..., -1:]], dim=-1).flatten(0, 1).numpy())
                differ += not np.array_equal(np.concatenate(parts), whole)
        return differ

    differ = bench.call(slices_differ)
    result.check(differ == 0, "batches differing", f"{differ} of {3 * result.figures['steps']}")
    result.figures["batches differing"] = differ
    if scale > 0:
        torchrun_rows(bench, result, kills=round(4 * scale))
    return result


def torchrun_rows(bench: Bench, result: Result, kills: int) -> None:
    """Two real processes: the same first loss as one; and, with a rank killed and restarted, the same end."""
    options = [f"--{key}={value}" for key, value in TINY.items()]
    options += ["--dataset=tiny", f"--data_dir={bench.folder / 'data'}", "--init_from=auto"]

    def torchrun(out: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--max-restarts=3",
        ]
        command += ["-m", "tinygpt", "train", *options, f"--out_dir={out}", *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(log, "wb") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=bench.folder)

    def ended(process: subprocess.Popen[bytes]) -> bool:
        """Whether torchrun ends well; one that hangs is stopped, with its workers."""
        try:
            return process.wait(120) == 0
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            return False

    def tail() -> str:
        return log.read_text(errors="replace")[-800:]

    one, two = bench.new("one"), bench.new("two")
    log = bench.new("log")
    child = bench.run(bench.train(one, dropout=0.0, max_iters=3))
    good = child.status == 0 and ended(torchrun(two, "--dropout=0.0", "--max_iters=3"))
    result.check(good, "failures", tail())
    if good:
        losses = [next(entry["loss"] for entry in history(out) if entry["kind"] == "train") for out in (one, two)]
        result.figures["first losses apart"] = f"{abs(losses[0] - losses[1]):.1e}"
        result.check(abs(losses[0] - losses[1]) < 1e-5, "first loss differing", str(losses))
    if not kills:
        return
    quiet = bench.new("two-undisturbed")
    result.check(ended(torchrun(quiet)), "failures", tail())
    result.count("ranks killed", 0)
    for index in range(kills):
        out = bench.new("two-killed")
        process = torchrun(out)
        wanted = bench.random.randrange(30, 150)
        while process.poll() is None and lines_of(out) < wanted:
            time.sleep(0.005)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        writer = (out / ".lock").read_text()  # rank 0's number
        victims = [pid for pid in workers if (pid == writer) == (index % 2 == 1)]
        if process.poll() is None and victims:
            os.kill(int(victims[0]), signal.SIGKILL)
            result.count("ranks killed")
        result.check(ended(process), "failed restarts", tail())
        compare_runs(result, out, quiet)


def lines_of(out: Path) -> int:
    with contextlib.suppress(OSError):
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


# ---- rows 10 to 14 ---------------------------------------------------------------------------------------------------


def one_writer(bench: Bench, scale: float) -> Result:
    """Two processes begin at the same moment in one folder: one works, one is told so; death frees the folder."""
    result = Result({"races": 0, "winners": 0, "freed": 0})
    out = bench.new("contested")
    for _ in range(times(50, scale)):
        gate, opener = os.pipe()

        def race(gate: int = gate, opener: int = opener) -> int:
            os.close(opener)
            os.read(gate, 1)  # returns when the parent lets go of the other end
            return bench.train(out, init_from="scratch", max_iters=100_000, eval_interval=100_000)()

        racers = [bench.fork(race), bench.fork(race)]
        os.close(gate)
        os.close(opener)
        end = time.monotonic() + bench.patience
        while time.monotonic() < end and all(racer.wait(0) is None for racer in racers):
            time.sleep(0.005)
        lost = [racer for racer in racers if racer.wait(0) is not None]
        won = [racer for racer in racers if racer not in lost]
        while won and time.monotonic() < end and not lines_of(out):
            time.sleep(0.002)
        result.count("races")
        result.count("winners", len(won))
        told = len(lost) == 1 and lost[0].status == 2 and f"in use by process {won[0].pid}" in lost[0].said
        result.check(told, "races undecided", f"{len(won)} at work; {[(r.status, r.said[-200:]) for r in lost]}")
        for racer in won:
            racer.send(signal.SIGKILL)
            racer.wait()
        child = bench.run(bench.train(out, init_from="scratch", max_iters=1))
        result.count("freed", child.status == 0)
        result.check(child.status == 0, "still locked", child.said[-300:])
        shutil.rmtree(out, ignore_errors=True)
    return result


def signals(bench: Bench, scale: float) -> Result:
    """SIGINT and SIGTERM at any iteration: saved, told, and resumed to the same end; a second one leaves at once."""
    result = Result({"SIGINT": 0, "SIGTERM": 0, "second signals": 0})
    quiet = bench.new("undisturbed")
    started = time.monotonic()
    child = bench.run(bench.train(quiet))
    whole = time.monotonic() - started
    if child.status:
        raise RuntimeError(child.said)
    for number in (signal.SIGINT, signal.SIGTERM):
        name, wanted = number.name, times(50, scale)
        while result.figures[name] < wanted:
            out = bench.new("stopped")
            while True:
                before = lines_of(out)
                child = bench.fork(bench.train(out))
                while child.wait(0) is None and lines_of(out) <= before:
                    time.sleep(0.001)
                if child.wait(bench.random.uniform(0, 0.25 * whole)) is None:
                    child.send(number)
                if child.wait(60, otherwise=signal.SIGKILL) == 0:
                    break  # finished before the signal came
                result.count(name)
                state = checkpoint.load(out / "last.pt") if (out / "last.pt").exists() else None
                steps = sum(entry["kind"] == "train" for entry in history(out))
                result.check(child.status == 128 + number, "exit wrong", f"{name}: {child.status}: {child.said[-300:]}")
                saved = state is not None and state.step == steps
                result.check(saved, "steps lost", f"{name}: {steps} done, {state and state.step} saved")
                if child.status != 128 + number:
                    break
            compare_runs(result, out, quiet)
    for index in range(times(20, scale)):
        number = (signal.SIGINT, signal.SIGTERM)[index % 2]
        out = bench.new("impatient")

        def slow() -> None:
            step = train.training_step

            def slow_step(run: Any) -> Any:
                print("in a step", flush=True)
                time.sleep(30)
                return step(run)

            train.training_step = slow_step

        child = bench.fork(bench.train(out, slow))
        while child.wait(0) is None and "in a step" not in child.said:
            time.sleep(0.002)
        child.send(number)
        polite = child.wait(0.2) is None
        child.send(number)
        started = time.monotonic()
        status = child.wait(20, otherwise=signal.SIGKILL)
        result.count("second signals")
        quick = polite and status == 128 + number and time.monotonic() - started < 2
        result.check(quick, "not at once", f"{number.name}: exit {status} after {time.monotonic() - started:.1f} s")
        result.check(not unloadable(out), "unloadable", f"{unloadable(out)}")
    return result


def not_finite(bench: Bench, scale: float) -> Result:
    """What is not finite stops the run before the update and before a save, wherever it arises."""
    result = Result({"places": 0})

    def inject(place: str, at: int, out: Path, before: Path) -> None:
        """In iteration `at` something goes wrong; the checkpoints at that moment go into `before`."""
        draw, forward, rate = train.batch, GPT.forward, train.learning_rate
        calls = itertools.count(1)

        def batch(run: Any, step: int) -> Any:
            if step == at:
                before.write_text(json.dumps(snapshot(out)))
                GPT.forward = wrong  # type: ignore[method-assign]
            return draw(run, step)

        def wrong(self: GPT, *args: Any, **more: Any) -> Any:
            logits, loss = forward(self, *args, **more)
            call = next(calls)
            if place == "loss" or (place == "second micro-step" and call == 2):
                loss = loss * float("inf")
            if place == "gradient":
                loss.register_hook(lambda gradient: gradient * float("nan"))
            return logits, loss

        train.batch = batch
        if place.startswith("overflow"):  # an update that overshoots; what follows is an evaluation, or a save alone
            train.learning_rate = lambda step, config: 1e38 if step == at else rate(step, config)

    places = {"loss": 45, "gradient": 46, "second micro-step": 47}
    for place, at in (places | {"overflow before an evaluation": 59, "overflow before a save": 48}).items():
        out, before = bench.new("diverging"), bench.new("before")
        child = bench.run(bench.train(out, functools.partial(inject, place, at, out, before), max_iters=80))
        result.count("places")
        result.check(child.status == 1, "not stopped", f"{place}: exit {child.status}: {child.said[-300:]}")
        told = "error: iteration" in child.said and "Traceback" not in child.said
        result.check(told, "unexplained", f"{place}: {child.said[-300:]}")
        same = before.exists() and snapshot(out) == json.loads(before.read_text())
        saved_late = place == "overflow before a save"  # last.pt is of the overshot state, and must not be called good
        result.check((same or saved_late) and not unloadable(out), "checkpoints changed", place)
        if advised := re.search(r"(\S+\.pt) is from before and good", child.said):
            step = checkpoint.load(advised[1]).step
            result.check(step <= at, "bad advice", f"{place}: {advised[1]} is the state that diverged in {at}")
        result.check(not leftovers(out), "temporary files left", place)
        after = [entry for entry in history(out) if entry["kind"] == "train" and entry["step"] > at]
        result.check(not after, "went on", f"{place}: {len(after)} more iterations")
    return result


def whole_datasets(bench: Bench, scale: float) -> Result:
    """`prepare` is killed anywhere, also in a download: what is there is complete; a running train never notices."""
    result = Result({"kills": 0, "in a download": 0})
    letters = LETTERS + "äöü"
    texts = [bench.text(letters, 400_000), bench.text(letters + "é", 400_000)]
    sources = [bench.new("source") for _ in texts]
    for source, text in zip(sources, texts, strict=True):
        source.write_bytes(text.encode())
    known = {hashlib.sha256(source.read_bytes()).hexdigest() for source in sources}
    folder = bench.folder / "killed"

    def state() -> str:
        """complete, absent or what else is wrong with it."""
        try:
            dataset = Dataset(str(folder), "mine")
        except TinyGPTError as error:
            return "absent" if "is not prepared" in error.message else error.message
        tokens = sum(len(tokens) for tokens in dataset.splits.values())
        whole = dataset.meta["sha256"]["source"] in known and tokens == 400_000
        return "complete" if whole else f"{tokens} tokens"

    def work(source: Path, fault: Fault | None) -> None:
        if fault:
            fault.install(data)
        prepare.prepare(PrepareConfig("mine", input=(str(source),), data_dir=str(folder)))

    started = time.monotonic()
    child = bench.run(functools.partial(work, sources[0], None))
    whole = time.monotonic() - started
    while result.figures["kills"] < times(60, scale):
        fault = None
        if bench.random.random() < 0.7:
            call = bench.random.choice(["write", "replace", "replace"])
            count = bench.random.randrange(800_000 if call == "write" else 3)
            fault = Fault(call, count, die, after=bench.random.random() < 0.5)
        sources.reverse()  # always another text than the last time
        child = bench.fork(functools.partial(work, sources[0], fault))
        child.wait(bench.patience if fault else bench.random.uniform(0, whole), otherwise=signal.SIGKILL)
        result.count("kills", child.status == -signal.SIGKILL)
        result.check(child.status in (0, -signal.SIGKILL), "failures", child.said[-300:])
        result.check(state() in ("complete", "absent"), "neither complete nor absent", state())
    if not result.breaches:
        killed_downloads(bench, result, times(40, scale), texts[0].encode())
        prepare_under_train(bench, result)
    return result


def killed_downloads(bench: Bench, result: Result, wanted: int, content: bytes) -> None:
    """A server on this machine that takes its time, and a prepare that does not live to see the end."""

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for at in range(0, len(content), 20_000):
                    self.wfile.write(content[at : at + 20_000])
                    time.sleep(0.005)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    serving = bench.fork(server.serve_forever)
    folder = bench.folder / "downloaded"
    text = folder / "shakespeare_char" / "input.txt"

    def work() -> None:
        os.environ["NO_PROXY"] = "*"
        corpora.SHAKESPEARE_SHA256 = hashlib.sha256(content).hexdigest()
        source = f"http://127.0.0.1:{server.server_port}/input.txt"
        prepare.prepare(PrepareConfig("shakespeare_char", source=source, data_dir=str(folder)))

    try:
        while result.figures["in a download"] < wanted:
            child = bench.fork(work)
            child.wait(bench.random.uniform(0.02, 0.25), otherwise=signal.SIGKILL)
            result.count("kills", child.status == -signal.SIGKILL)
            result.count("in a download", child.status == -signal.SIGKILL)
            result.check(child.status in (0, -signal.SIGKILL), "failures", child.said[-300:])
            whole = not text.exists() or text.read_bytes() == content
            result.check(whole, "neither complete nor absent", "input.txt")
            absent = not (text.parent / "meta.json").exists()
            if not absent:
                problem = passes(lambda: Dataset(str(folder), "shakespeare_char"))
                result.check(not problem, "neither complete nor absent", problem)
            shutil.rmtree(folder, ignore_errors=True)
        child = bench.run(work)
        result.check(child.status == 0, "failures", child.said[-300:])
    finally:
        serving.send(signal.SIGKILL)
        serving.wait()
        server.server_close()


def prepare_under_train(bench: Bench, result: Result) -> None:
    """Another text is prepared under a running train, which reads its files from memory or, mapped, from disk."""
    text = bench.text()
    for mapped in (False, True):

        def map_files(mapped: bool = mapped) -> None:
            if mapped:
                data.IN_MEMORY = 0

        bench.dataset("moving", text)
        quiet, out = bench.new("undisturbed"), bench.new("moved")
        child = bench.run(bench.train(quiet, map_files, dataset="moving", max_iters=100))
        result.check(child.status == 0, "failures", child.said[-300:])
        child = bench.fork(bench.train(out, map_files, dataset="moving", max_iters=100))
        while child.wait(0) is None and lines_of(out) < 20:
            time.sleep(0.002)
        running = child.status is None
        source = bench.new("text")
        source.write_text(bench.text())
        config = PrepareConfig("moving", input=(str(source),), data_dir=str(bench.folder / "data"))
        prepared = bench.run(lambda config=config: prepare.prepare(config))
        result.check(running and prepared.status == 0, "failures", prepared.said[-300:])
        result.check(child.wait(60, otherwise=signal.SIGKILL) == 0, "train disturbed", child.said[-300:])
        compare_runs(result, out, quiet)
        result.count("prepared under a run")


def old_formats(bench: Bench, scale: float) -> Result:
    """Every released format still loads: one small file of each is kept with the tests."""
    result = Result({"fixtures": 0})
    fixtures = sorted(glob.glob(str(ROOT / "tests/fixtures/*.pt")))
    for path in fixtures:
        child = bench.run(functools.partial(run_sample, bench, Path(path)))
        result.count("fixtures")
        result.check(child.status == 0, "refused", f"{Path(path).name}: {child.said[-300:]}")
    result.check(bool(fixtures), "formats without a fixture", "tests/fixtures/*.pt")
    return result


ROWS: dict[int, tuple[str, Callable[[Bench, float], Result]]] = {
    1: ("exact resume after kill -9", exact_resume),
    2: ("old or new, never neither", old_or_new),
    3: ("order of calls, power loss", power_loss),
    4: ("disk full", disk_full),
    5: ("no file runs code", no_code),
    6: ("corruption is detected", corruption),
    7: ("garbage in, one sentence out", garbage),
    8: ("other data is refused", other_data),
    9: ("same batches, any processes", same_batches),
    10: ("one writer a folder", one_writer),
    11: ("SIGINT and SIGTERM", signals),
    12: ("not finite", not_finite),
    13: ("prepare: complete or absent", whole_datasets),
    14: ("old formats load", old_formats),
}


@contextlib.contextmanager
def bench_in_temporary_folder(**options: Any) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        yield Bench(Path(folder), **options)


def main() -> int:
    parser = argparse.ArgumentParser(description="Prove the rows of the reliability contract.")
    parser.add_argument("--row", type=int, nargs="+", default=list(ROWS), choices=list(ROWS), help="only these rows")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts, for example 0.05")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and places of the harm")
    args = parser.parse_args()
    torch.set_num_threads(1)
    broken = 0
    for number in args.row:
        title, row = ROWS[number]
        started = time.monotonic()
        try:
            with bench_in_temporary_folder(seed=args.seed) as bench:
                result = row(bench, args.scale)
        except Exception:  # a row that cannot be run is a breach, and the others are still of interest
            result = Result(breaches=[traceback.format_exc()])
        broken += bool(result.breaches)
        figures = ", ".join(f"{name} {value}" for name, value in result.figures.items())
        verdict = "BROKEN" if result.breaches else "ok"
        print(f"row {number:>2}  {title:<30}  {figures}   {verdict}   {time.monotonic() - started:.0f} s", flush=True)
        for line in [*result.notes, *result.breaches[:8]]:
            print(f"        {line.strip()}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
