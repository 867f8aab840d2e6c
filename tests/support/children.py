"""Forked child processes that run commands and may die, a harness to start them in, and comparison of runs.

A child is forked from a process that has already imported PyTorch, so a command takes 0.1 s instead of 2 s.

    harness = Harness(tmp_path)
    child = harness.fork(harness.training(tmp_path / "out"))
    assert child.wait(1, otherwise=signal.SIGKILL) == -signal.SIGKILL, child.output
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from conftest import PATIENCE, TINY_TRAIN, free_port
from tqdm import tqdm

from tinygpt import cli
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import Checkpoint, load

Work = list[str] | Callable[[], Any]  # a command line of tinygpt, or a function that may raise TinyGPTError
LETTERS = "abcdefgh .\n"


def nothing() -> None: ...


def end_threads() -> None:
    """End the threads that have computed in this process. A fork loses them, and libgomp would wait for them in the
    child. Source: OpenMP 5.0, omp_pause_resource_all."""
    for library in Path(torch.__file__).parent.glob("lib/libgomp*"):
        ctypes.CDLL(str(library)).omp_pause_resource_all(2)  # omp_pause_hard


class Child:
    """A forked process that runs `work` in the folder `cwd`, after `before()`; its output is appended to `log`."""

    def __init__(
        self, work: Work, log: Path, cwd: Path, before: Callable[[], None] = nothing, **environment: str
    ) -> None:
        self.log = log
        self.status: int | None = None  # the exit status, or minus the number of the signal that ended the process
        log.touch()  # the child may die before it creates the file
        sys.stdout.flush()
        sys.stderr.flush()
        end_threads()
        self.pid = os.fork()
        if not self.pid:
            self._work(work, cwd, before, environment)

    def _work(self, work: Work, cwd: Path, before: Callable[[], None], environment: dict[str, str]) -> None:
        """Run the work, and exit."""
        status = 70
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            torch.set_num_threads(1)
            tqdm.set_lock(threading.RLock())  # shared otherwise: a child killed while holding it blocks all others
            os.environ.update(environment)
            if "RANK" in environment:  # gloo's shutdown may hang in a forked process
                torch.distributed.destroy_process_group = lambda: None
            os.chdir(cwd)
            before()
            status = (work() or 0) if callable(work) else cli.main(work)
        except TinyGPTError as error:
            print(f"error: {error.message}")
            status = error.status
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(status)

    def wait(self, seconds: float = 180, otherwise: int = 0) -> int | None:
        """Return the exit status. After `seconds` send the signal `otherwise`; without one, return None."""
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
                time.sleep(0.003)
        return self.status

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def answers(self) -> list[Any]:
        """The values that the child passed to `answer`."""
        lines = self.output.splitlines()
        return [json.loads(line.removeprefix("answer: ")) for line in lines if line.startswith("answer: ")]


def answer(value: Any) -> None:
    """Pass a value of JSON from a child to its parent."""
    print(f"answer: {json.dumps(value)}", flush=True)


def ranks(count: int) -> list[dict[str, str]]:
    """The environment of each of `count` processes that train together, as torchrun sets it."""
    if count == 1:
        return [{}]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    return [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def parallel(tasks: list[Any], start: Callable[[Any], Child], jobs: int = os.cpu_count() or 1) -> Iterator[Any]:
    """Start a child for each task, at most `jobs` at a time; yield (task, child) when a child has ended."""
    waiting, running = list(tasks), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running.append((task, start(task)))
            ended = [entry for entry in running if entry[1].wait(0) is not None]
            for entry in ended:
                running.remove(entry)
                yield entry
            time.sleep(0 if ended else 0.01)
    finally:
        for _, child in running:
            child.kill()


class Harness:
    """A folder with the dataset `tiny` in which children run; `figures` counts their actions.

    share: share of the full counts that `rounds` returns; None: the everyday counts. patience: seconds to wait for an
    expected event. before: runs in every child before its work.
    """

    def __init__(
        self,
        folder: Path,
        share: float | None = None,
        before: Callable[[], None] = nothing,
        patience: float = PATIENCE,
    ) -> None:
        self.folder, self.share, self.before, self.patience = folder, share, before, patience
        self.random = random.Random(1)
        self.figures: Counter[str] = Counter()
        self._numbers = itertools.count()
        self.dataset("tiny", self.text())

    def rounds(self, everyday: int, full: int) -> int:
        return everyday if self.share is None else max(1, round(self.share * full))

    def new(self, name: str) -> Path:
        """A path that does not exist yet."""
        return self.folder / f"{name}-{next(self._numbers)}"

    def fork(self, work: Work, before: Callable[[], None] = nothing, **environment: str) -> Child:
        def both() -> None:
            self.before()
            before()

        return Child(work, self.new("log"), self.folder, both, **environment)

    def run(self, work: Work, before: Callable[[], None] = nothing, seconds: float = PATIENCE) -> Child:
        """Run a child to its end."""
        child = self.fork(work, before)
        child.wait(seconds, otherwise=signal.SIGKILL)
        return child

    def succeed(self, work: Work, before: Callable[[], None] = nothing) -> Child:
        """Run a child to its end, and require that it succeeds."""
        child = self.run(work, before)
        assert child.status == 0, f"exit status {child.status}: {child.output[-2000:]}"
        return child

    def text(self, letters: str = LETTERS, length: int = 6000) -> str:
        return letters + "".join(self.random.choices(letters, k=length - len(letters)))

    def dataset(self, name: str, text: str, *flags: str) -> None:
        """Prepare a dataset in data/, without `before`."""
        source = self.new("text")
        source.write_bytes(text.encode())
        child = Child(["prepare", name, f"--input={source}", *flags], self.new("log"), self.folder)
        assert child.wait() == 0, child.output

    def training(self, out: Path, *flags: str) -> list[str]:
        """The command line of a run of 200 iterations that resumes if there is a last.pt."""
        length = ["--max_iters=200", "--lr_decay_iters=200", "--warmup_iters=10", "--eval_interval=20", "--quiet"]
        states = ["--checkpoint_interval=7", "--sample_interval=40", "--init_from=auto", f"--out_dir={out}"]
        return [*TINY_TRAIN, "--batch_size=2", *length, *states, *flags]

    def undisturbed(self, *flags: str, before: Callable[[], None] = nothing) -> Path:
        """Train without interruption; return the run's folder."""
        out = self.new("undisturbed")
        self.succeed(self.training(out, *flags), before)
        return out


# ---- runs ------------------------------------------------------------------------------------------------------------


def loaded(path: Path) -> Checkpoint:
    """Load a checkpoint. Errors: AssertionError if it cannot be loaded."""
    try:
        return load(path)
    except TinyGPTError as error:
        raise AssertionError(f"cannot be loaded: {error.message}") from None


def assert_intact(out: Path) -> None:
    """Require that every checkpoint of a folder can be loaded."""
    for path in out.glob("*.pt"):
        loaded(path)


def snapshot(folder: Path, pattern: str = "*.pt") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.glob(".*.tmp*")]


def lines_of(out: Path) -> int:
    """The number of lines of metrics.jsonl."""
    with contextlib.suppress(OSError):
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def wait_for_lines(child: Any, out: Path, more_than: int) -> None:
    """Wait until metrics.jsonl has more lines than `more_than`, or the process has ended."""
    ended = child.poll if hasattr(child, "poll") else lambda: child.wait(0)
    while ended() is None and lines_of(out) <= more_than:
        time.sleep(0.003)


def history(out: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl without times, speeds and memory."""
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    measured = ("seconds", "tokens_per_second", "memory_mb")
    return [{k: v for k, v in entry.items() if k not in measured} for entry in entries]


def digest(path: Path) -> str:
    """SHA-256 of a checkpoint's weights, optimizer state and progress.

    Excludes the seconds, and the optimizer's `lr`, which is set before each iteration.
    """
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            plain = value.contiguous().flatten().view(torch.uint8).numpy()
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode() + plain.tobytes())
        elif isinstance(value, dict):
            for key in sorted(value.keys() - {"seconds", "lr"}, key=str):
                sha.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            sha.update(repr(value).encode())

    state = loaded(path)
    add([state.model, state.training, state.step, state.best_val_loss])
    return sha.hexdigest()


def assert_same_run(out: Path, undisturbed: Path) -> None:
    """Require that two runs have the same weights, optimizer states, progress and losses, bit for bit."""
    for name in ("last.pt", "ckpt.pt"):
        assert digest(out / name) == digest(undisturbed / name), f"weights differ in {out}/{name}"
    assert history(out) == history(undisturbed), f"losses differ in {out}/metrics.jsonl"


def remove(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
