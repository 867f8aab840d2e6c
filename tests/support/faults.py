"""Faults for child processes: system calls that fail, processes that die, and replaced functions of tinygpt."""

import builtins
import dataclasses
import io
import itertools
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tinygpt import train
from tinygpt.base import files
from tinygpt.model import GPT


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


SAFE_ORDER = ["write", "fsync", "replace", "open folder", "fsync folder"]  # survives a power loss


@dataclasses.dataclass
class Fault:
    """A fault in the system calls of this process: `action` at the call `call`, after `count` of these calls.

    call: one of SAFE_ORDER. after: act after the call instead of before it. sticky: at every later call too, as on a
    full disk.
    """

    call: str = ""
    count: int = 0
    action: Callable[[], None] = die
    after: bool = False
    sticky: bool = False
    calls: list[str] = dataclasses.field(default_factory=list)

    def install(self) -> None:
        """Replace `open`, `os.open`, `os.fsync` and `os.replace` in this process."""
        fsync, rename, open_descriptor = os.fsync, os.replace, os.open

        def open_folder(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if os.path.isdir(path) and flags == os.O_RDONLY:
                return int(self.step("open folder", lambda: open_descriptor(path, flags)))
            return open_descriptor(path, flags, *more, **options)

        def fsync_any(fd: int) -> None:
            self.step("fsync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync", lambda: fsync(fd))

        os.fsync = fsync_any
        os.replace = lambda a, b: self.step("replace", lambda: rename(a, b))
        os.open = open_folder
        builtins.open = io.open = self.open  # type: ignore[assignment]

    def step(self, name: str, call: Callable[[], Any]) -> Any:
        earlier = self.calls.count(name)
        self.calls.append(name)
        due = name == self.call and (earlier == self.count or (self.sticky and earlier > self.count))
        if due and not self.after:
            self.action()
        value = call()
        if due:
            self.action()
        return value

    def open(self, path: Any, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return OPEN(path, mode, buffering, *text, **more)
        raw = FaultyFile(path, mode.replace("b", "").replace("t", ""))
        raw.fault = self
        if buffering == 0:
            return raw
        file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file, *text, **more)


OPEN = open


class FaultyFile(io.FileIO):
    fault: Fault

    def write(self, content: Any) -> int:
        return int(self.fault.step("write", lambda: io.FileIO.write(self, content)))


# ---- changes of tinygpt ----------------------------------------------------------------------------------------------


def replace(owner: Any, name: str, value: Any) -> Any:
    """Replace an attribute and return its old value. Errors: AttributeError if it does not exist."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    return old


def on_training_forward(change: Callable[[int, Any], Any]) -> None:
    """Pass the number of each forward pass of training and its loss to `change`, which returns a loss."""
    numbers = itertools.count()

    def forward(self: GPT, x: Any, y: Any = None, *args: Any, **more: Any) -> Any:
        logits, loss = original(self, x, y, *args, **more)
        return logits, change(next(numbers), loss) if self.training and y is not None else loss

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


def endless_iterations() -> None:
    """The first iteration says that it has begun, and never ends."""

    def wait(number: int, loss: Any) -> None:
        print("in an iteration", flush=True)
        time.sleep(3600)

    on_training_forward(wait)


def diverge(place: str, at: int, micro_steps: int, reached: Callable[[], None]) -> None:
    """Make a loss, the gradient or the weights infinite or NaN in iteration `at` of a run from scratch."""

    def change(number: int, loss: Any) -> Any:
        if place == "gradient" and number >= at * micro_steps:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss * float("inf") if place == "second micro-step" and number == at * micro_steps + 1 else loss

    on_iteration(at, reached)
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


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOWS", True)
