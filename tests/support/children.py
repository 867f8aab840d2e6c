"""Forked child processes that run commands and may die, a harness to start them in, and comparison of runs.

A child is forked from a process that has already imported PyTorch, so a command takes 0.1 s instead of 2 s.
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import random
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

Action = Callable[[], Any]
Work = list[str] | Action  # a command line of tinygpt, or a function that may raise TinyGPTError


def nothing() -> None: ...


class Child:
    """A forked process that runs `work` in the folder `cwd`, after `before()`; its output is appended to `log`."""

    def __init__(self, work: Work, log: Path, cwd: Path, before: Action = nothing, **environment: str) -> None:
        self.log = log
        self.status: int | None = None  # the exit status, or minus the number of the signal that ended the process
        log.touch()  # the child may die before it creates the file
        sys.stdout.flush()
        sys.stderr.flush()
        # A fork loses the threads that have computed here, and libgomp would wait for them in the child: end them.
        for library in Path(torch.__file__).parent.glob("lib/libgomp*"):
            ctypes.CDLL(str(library)).omp_pause_resource_all(2)  # omp_pause_hard, see OpenMP 5.0
        self.pid = os.fork()
        if not self.pid:
            self._work(work, cwd, before, environment)

    def _work(self, work: Work, cwd: Path, before: Action, environment: dict[str, str]) -> None:
        """Run the work, and exit."""
        status = 70
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
            elif time.monotonic() < end:
                time.sleep(0.003)
            elif otherwise:
                self.send(otherwise)
                return self.wait()
            else:
                break
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
    """Pass a value from a child to its parent."""
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
            yield from [entry for entry in running if entry[1].wait(0) is not None]
            running = [entry for entry in running if entry[1].status is None]
            time.sleep(0.01)
    finally:
        for _, child in running:
            child.kill()


class Harness:
    """A folder with the dataset `tiny` in which children run; `figures` counts their actions.

    share: share of the full counts that `rounds` returns; None: the everyday counts. before: runs in every child before
    its work.
    """

    def __init__(self, folder: Path, share: float | None = None, before: Action = nothing) -> None:
        self.folder, self.share, self.before = folder, share, before
        self.random = random.Random(1)
        self.figures: Counter[str] = Counter()
        self._numbers = itertools.count()
        self.dataset("tiny", self.text())

    def rounds(self, everyday: int, full: int) -> int:
        return everyday if self.share is None else max(1, round(self.share * full))

    def new(self, name: str) -> Path:
        return self.folder / f"{name}-{next(self._numbers)}"

    def fork(self, work: Work, before: Action = nothing, **environment: str) -> Child:
        return Child(work, self.new("log"), self.folder, lambda: (self.before(), before()), **environment)

    def run(self, work: Work, before: Action = nothing) -> Child:
        child = self.fork(work, before)
        child.wait(PATIENCE, otherwise=signal.SIGKILL)
        return child

    def succeed(self, work: Work, before: Action = nothing) -> Child:
        child = self.run(work, before)
        assert child.status == 0, f"exit status {child.status}: {child.output[-2000:]}"
        return child

    def text(self, letters: str = "abcdefgh .\n") -> str:
        return letters + "".join(self.random.choices(letters, k=6000 - len(letters)))

    def dataset(self, name: str, text: str) -> None:
        """Prepare a dataset in data/, without `before`."""
        source = self.new("text")
        source.write_bytes(text.encode())
        child = Child(["prepare", name, f"--input={source}"], self.new("log"), self.folder)
        assert child.wait() == 0, child.output

    def training(self, out: Path, *flags: str) -> list[str]:
        """The command line of a run of 40 iterations that resumes if there is a last.pt."""
        length = ["--max_iters=40", "--lr_decay_iters=40", "--warmup_iters=10", "--eval_interval=20", "--quiet"]
        states = ["--checkpoint_interval=7", "--sample_interval=40", "--init_from=auto", f"--out_dir={out}"]
        return [*TINY_TRAIN, "--batch_size=2", *length, *states, *flags]

    def undisturbed(self, *flags: str) -> Path:
        out = self.new("undisturbed")
        self.succeed(self.training(out, *flags))
        return out


# ---- runs ------------------------------------------------------------------------------------------------------------


def loaded(path: Path) -> Checkpoint:
    """Load a checkpoint. Errors: AssertionError if it cannot be loaded."""
    try:
        return load(path)
    except TinyGPTError as error:
        raise AssertionError(f"cannot be loaded: {error.message}") from None


def assert_intact(out: Path) -> None:
    for path in out.glob("*.pt"):
        loaded(path)


def snapshot(folder: Path, pattern: str = "*.pt") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def lines_of(out: Path) -> int:
    """Of metrics.jsonl."""
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


def plain(value: Any) -> Any:
    """A value without the seconds, and without the optimizer's `lr`, which is set before each iteration; a tensor is
    its bits."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ("seconds", "lr")}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def assert_same_run(out: Path, undisturbed: Path) -> None:
    """Require that two runs have the same weights, optimizer states, progress and losses, bit for bit."""
    for name in ("last.pt", "ckpt.pt"):
        one, other = loaded(out / name), loaded(undisturbed / name)
        for part in ("model", "training", "step", "best_val_loss"):
            same = plain(vars(one)[part]) == plain(vars(other)[part])
            assert same, f"{part} differs in {out}/{name}"
    assert history(out) == history(undisturbed), f"losses differ in {out}/metrics.jsonl"
