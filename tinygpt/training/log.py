"""The log of a run: `metrics.jsonl` for programs, printed lines and a progress bar for people.

metrics.jsonl: one object per line, `kind` (train, eval, sample, diverged; finetune adds before and after), `step`,
`seconds`, and by kind `loss`, `lr`, `grad_norm`, `tokens_per_second`, or `train_loss`, `val_loss`, its standard error
`val_loss_se` and the process's peak memory so far `memory_mb` (10^6 bytes; 0 on Windows), or `text` and `prompt`, or
`reason`.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from tqdm import tqdm

from tinygpt.base import terminal
from tinygpt.base.configs.parse import read_config
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import RUN_AGAIN, file_error, remove, replacing, strict_json, writing


class RunLog:
    """The log of a run. On processes other than rank 0 (`active` is False) its methods do nothing."""

    def __init__(self, folder: Path, active: bool, quiet: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.active = active
        self.quiet = quiet
        self._file: Any = None
        self._bar: Any = None
        self._shown: dict[str, str] = {}
        self.sinks: list[Any] = []  # TensorBoard, the page of --watch: they get every line of metrics.jsonl, too
        self.ended = "failed"  # how the run ended, for the sinks
        self.callback: Callable[[dict[str, Any]], object] | None = None  # of tinygpt.api; it gets them, too
        self.retry_hint = RUN_AGAIN  # the end of the hint of an error while writing: how to continue

    def open(self, step: int, evaluated_at: int) -> None:
        """Start the file. When resuming, keep only the lines that precede the state before iteration `step`: those of
        later iterations, which a killed run may have logged after its last checkpoint, are computed again."""
        if not self.active:
            return
        if step == 0 and evaluated_at < 0:
            remove(self.path)
        elif self.path.exists():
            with replacing(self.path, self.retry_hint) as file:
                for line in self.path.read_bytes().splitlines():
                    entry = intact_entry(line)
                    if entry and entry["step"] < (step if entry["kind"] == "train" else evaluated_at + 1):
                        file.write(line + b"\n")
        with writing(self.path, self.retry_hint):
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (close() closes it)

    def add_sink(self, name: str, start: Callable[[], Any]) -> None:
        """Start a sink. The run continues without it if it fails now or later."""
        with self._continuing(name):
            self.sinks.append(start())

    @contextlib.contextmanager
    def _continuing(self, name: str, sink: Any = None) -> Iterator[None]:
        """Turn any error of a sink into a printed note, after which the sink is not used again."""
        try:
            yield
        except Exception as error:
            self.sinks = [other for other in self.sinks if other is not sink]
            reason = error.message if isinstance(error, TinyGPTError) else f"{type(error).__name__}: {error}"
            self.print_line(f"note: the run continues without {name} ({terminal.escaped(reason)})", always=True)

    def start_bar(self, first: int, total: int) -> None:
        shown = self.active and not self.quiet
        self._bar = terminal.progress(show=shown, total=total, initial=first, dynamic_ncols=True)

    def advance(self) -> None:
        """Move the progress bar by an iteration."""
        self._bar.update()

    def show(self, **values: str) -> None:
        """Show values next to the progress bar, together with those of earlier calls."""
        self._shown |= values
        if not self._bar.disable:
            self._bar.set_postfix(self._shown, refresh=False)

    @contextlib.contextmanager
    def show_activity(self, activity: str) -> Iterator[None]:
        """Show the current activity between two iterations next to the progress bar."""
        self._bar.set_description(activity)
        yield
        self._bar.set_description()

    def print_line(self, text: str, always: bool = False) -> None:
        """Print a line above the progress bar; with --quiet, only if `always`."""
        if self.active and (always or not self.quiet):
            try:
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
            except OSError as error:
                terminal.silence("stdout")
                terminal.print_error(f"note: cannot write to standard output: {error.strerror}; the run continues")

    def metric(self, kind: str, step: int, seconds: float, **values: Any) -> None:
        """Append a line to metrics.jsonl in one unbuffered write, so that a killed run leaves complete lines."""
        if self._file is None:
            return
        entry = {"kind": kind, "step": step, "seconds": round(seconds, 3), **values}
        line = (strict_json(entry) + "\n").encode()
        with writing(self.path, self.retry_hint):
            while line:  # on a full disk a write is short, and the next one raises
                line = line[self._file.write(line) :]
        for sink in list(self.sinks):
            with self._continuing(sink.name, sink):
                sink.write(entry)
        if self.callback:
            self.callback(entry)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()
        for sink in list(self.sinks):
            with self._continuing(sink.name, sink):
                sink.close(self.ended)


class Pace:
    """Training speed between two log lines, and a prediction of the remaining time; without evaluations and saves."""

    # iterations: the first ones are slower; the next ones predict the time of the run
    SKIPPED = 5
    TIMED = 20

    def __init__(self) -> None:
        # since the last `read`
        self.tokens = 0
        self.seconds = 0.0
        self.total = self.skipped = 0.0  # seconds: of all iterations, of the first ones

    def add(self, tokens: int, seconds: float) -> None:
        """Add an iteration."""
        self.tokens += tokens
        self.seconds += seconds
        self.total += seconds

    def read(self) -> float:
        """Return the tokens per second since the last call."""
        speed = self.tokens / max(self.seconds, 1e-9)
        self.tokens = 0
        self.seconds = 0.0
        return speed

    def expected(self, done: int, remaining: int) -> str:
        """Return a line that predicts the time of the `remaining` iterations, after SKIPPED + TIMED iterations of this
        session are `done`; otherwise an empty string."""
        if done == self.SKIPPED:
            self.skipped = self.total
        if done != self.SKIPPED + self.TIMED:
            return ""
        mean = (self.total - self.skipped) / self.TIMED
        iterations = terminal.counted(remaining, "more iteration")
        return f"expected:    {terminal.duration(mean * remaining)} for {iterations} ({mean * 1000:.1f} ms each)"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the intact lines of a run's metrics.jsonl (see `intact_entry`). Errors: TinyGPTError without the file."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise file_error(path, error, "give the folder of a run, which contains metrics.jsonl") from None
    return [entry for line in lines if (entry := intact_entry(line))]


def read_run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read metrics.jsonl, and the values of config.yaml, none if that is unreadable. Errors: TinyGPTError."""
    entries = read_metrics(folder)
    try:
        return entries, read_config(folder / "config.yaml")
    except (OSError, TinyGPTError):
        return entries, {}


def machine_of(folder: Path) -> str:
    """Read the first line of config.yaml, a comment in which `train` records versions, device and dtype."""
    path = folder / "config.yaml"
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if path.is_file() else ""
    return first.removeprefix("# ") if first.startswith("# tinygpt") else "not recorded"


def intact_entry(line: str | bytes) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl: an object with a `kind` and a `step`; None for any other line."""
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str) and isinstance(entry.get("step"), int):
            return entry if 0 <= entry["step"] < 1 << 53 else None
    return None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value read from a file is a number that a run could have written."""
    return isinstance(value, (int, float)) and abs(value) < 1e100


def number(values: dict[str, Any], key: str, default: float) -> float:
    """Read a positive number from a file that may have been edited; `default` for any other value."""
    value = values.get(key)
    return value if is_number(value) and value > 0 else default
