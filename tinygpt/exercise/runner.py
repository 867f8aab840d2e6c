"""Run the checks of student files in child processes, several at a time.

for index, outcomes in side_by_side([check_file(path, [1, 2, 3], quiet=True) for path in paths]):
    outcomes[2].failed                # {} if step 2 passed, else {"check", "look", "given", "got", "expected"}

A file can hang, crash or exit. This ends its child process alone, and the steps after that one get a new process. The
steps of a file otherwise share a process, because importing PyTorch takes longer than all checks together. This is no
sandbox: a file has the user's permissions, and can use all memory (RLIMIT_AS counts address space, of which PyTorch
with CUDA reserves far more than it uses).
"""

import contextlib
import json
import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

LIMIT = 60  # seconds that one check may take; all checks of a correct file together take a few
JOBS = min(4, os.cpu_count() or 1)  # processes at a time; each computes with one thread

LABELS = {"given": "given", "got": "got", "expected": "expected", "look": "look at"}  # parts of StepOutcome.failed


class StepOutcome(NamedTuple):
    """The result of a step: the checks that passed, and the first that failed."""

    passed: list[str]
    failed: dict[str, str]  # check, look, given, got, expected; empty if all checks passed


Checking = Generator[None, None, dict[int, StepOutcome]]  # yields while a process runs; returns the outcomes by step


def side_by_side(checkings: list[Checking]) -> Iterator[tuple[int, dict[int, StepOutcome]]]:
    """Run at most JOBS checkings at a time. Yields the index and the outcomes of each as soon as it has ended."""
    waiting = list(enumerate(checkings))
    running: list[tuple[int, Checking]] = []
    try:
        while waiting or running:
            while waiting and len(running) < JOBS:
                running.append(waiting.pop(0))
            for entry in list(running):
                try:
                    next(entry[1])
                except StopIteration as ended:
                    running.remove(entry)
                    yield entry[0], ended.value
            time.sleep(0.02)
    finally:
        for _, checking in running:
            checking.close()  # kills its process


def check_file(path: Path, steps: list[int], quiet: bool) -> Checking:
    """Check steps of a file; with `quiet` the file's own output is discarded, else it goes to standard error."""
    outcomes: dict[int, StepOutcome] = {}
    while remaining := [step for step in steps if step not in outcomes]:
        results, ending = yield from run_process(path, remaining, quiet)
        unknown = {"check": "the checks can be started", "look": f"{sys.executable} -m tinygpt.exercise.child"}
        for step, outcome in (results or {remaining[0]: StepOutcome([], unknown)}).items():
            if outcome.failed and "got" not in outcome.failed:  # the process ended during this check
                outcome.failed.update(got=ending, expected="a result within seconds")
            outcomes[step] = outcome
            if not outcome.passed:  # the import failed, and would fail again
                outcomes = dict.fromkeys(remaining, outcome) | outcomes
    return outcomes


def run_process(path: Path, steps: list[int], quiet: bool) -> Generator[None, None, tuple[dict[int, StepOutcome], str]]:
    """Check steps of a file in one process. Returns the outcomes of the steps it reached, and how it ended."""
    arguments = [str(path), str(LIMIT), *map(str, steps)]
    with tempfile.TemporaryFile() as results:
        process = subprocess.Popen(
            # -B: leaves no __pycache__ behind; -P: no random.py of the current folder in place of the library's
            [sys.executable, "-BP", "-m", "tinygpt.exercise.child", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=results,
            stderr=subprocess.DEVNULL if quiet else None,
            start_new_session=True,
            env=os.environ | {"MPLBACKEND": "Agg"},  # matplotlib opens no windows
        )
        try:
            while process.poll() is None:
                yield
        finally:
            kill(process)
        results.seek(0)
        output = results.read().decode(errors="replace")
    # a library may print when it is imported
    states = [json.loads(line) for line in output.split("\n")[:-1] if line.startswith("{")]
    outcomes = {state["step"]: StepOutcome(state["passed"], state["failed"]) for state in states}
    return outcomes, describe_end(process.returncode, output, path)


def describe_end(status: int, output: str, path: Path) -> str:
    """Describe how a process ended; after the time limit, with the line of the file that was running."""
    if "Timeout (" in output:
        name = str(path.resolve()).encode("ascii", "backslashreplace").decode()  # as faulthandler writes it
        main_thread = output.rpartition("(most recent call first)")[2]
        line = re.search(rf'File "{re.escape(name)}", line (\d+) in (.+)', main_thread)
        where = f"\nline {line[1]}, in {line[2]}: {linecache.getline(str(path), int(line[1])).strip()}" if line else ""
        return f"still running after {LIMIT} seconds{where}"
    if status < 0:
        return f"the Python process was killed by signal {-status} ({signal.strsignal(-status)})"
    return f"the Python process ended with exit status {status}"


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, and on POSIX every process of its group: also those that the student's file has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
