"""Run the checks of a student's file: pytest with the tests of steps/, in a process of its own.

outcomes = check_file(Path("my_gpt.py"), [1, 2, 3], quiet=True)
outcomes[2].failed                # {} if step 2 passed, else {"check", "look", "given", "got", "expected"}

A file can hang, crash or exit. This ends its process alone, and the steps after that one get a new process. The steps
of a file otherwise share a process, because importing PyTorch takes longer than all checks together. This is no
sandbox: a file has the user's permissions, and can use all memory.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tinygpt.learn.exercise.outline import IMPORTED

LIMIT = 60  # seconds that one check may take; all checks of a correct file together take a few
STDERR = 2
STEPS = "tinygpt.learn.exercise.steps"  # a package with a module for each step
# the user's own settings and plugins of pytest do not apply; matplotlib opens no windows
SETTINGS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": "", "MPLBACKEND": "Agg"}
OPTIONS = ["-qqs", "--noconftest", "--no-summary", "--pyargs"]
OPTIONS += ["-p", "no:cacheprovider", "-p", "pytest_timeout", "-p", "tinygpt.learn.exercise.child"]


class StepOutcome(NamedTuple):
    """The result of a step: the checks that passed, and the first that failed."""

    passed: list[str]
    failed: dict[str, str]  # check, look, given, got, expected; empty if all checks passed


def check_file(path: Path, steps: list[int], quiet: bool) -> dict[int, StepOutcome]:
    """Check steps of a file; with `quiet` the file's own output is discarded, else it goes to standard error."""
    if not steps:
        return {}
    outcomes, ending = run_pytest(path, steps, quiet)
    if not outcomes:
        outcomes = dict.fromkeys(steps, StepOutcome([], {**IMPORTED}))
    for _, failed in outcomes.values():
        if failed and "got" not in failed:  # the process ended during this check
            failed.update(got=ending, expected=f"a result within {LIMIT} seconds")
    return outcomes | check_file(path, [step for step in steps if step not in outcomes], quiet)


def run_pytest(path: Path, steps: list[int], quiet: bool) -> tuple[dict[int, StepOutcome], str]:
    """Check steps of a file in one process. Returns the outcomes of the steps that it reached, and how it ended."""
    # -B: leaves no __pycache__ behind; -P: no random.py of the current folder in place of the library's
    command = [sys.executable, "-BP", "-m", "pytest", *OPTIONS, f"--timeout={LIMIT}", f"--file={path.absolute()}"]
    output = subprocess.DEVNULL if quiet else STDERR
    ending = f"no result for {2 * LIMIT} seconds"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        settings = Path(folder) / "pytest.ini"
        settings.touch()
        command += ["-c", str(settings), f"--results={results}"]
        command += [f"{STEPS}.test_step{step:02}::TestStep{step}" for step in steps]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | SETTINGS
        )
        try:
            if ends(process, results):
                ending = describe_end(process.returncode)
        finally:
            process.kill()
            process.wait()
        states = [json.loads(line) for line in results.read_text().splitlines()]
    outcomes: dict[int, StepOutcome] = {}
    for state in states:
        before = outcomes.get(state["step"], StepOutcome([], {})).passed
        outcomes[state["step"]] = StepOutcome([*before, *state["passed"]], state["failed"])
    return outcomes, ending


def ends(process: subprocess.Popen[bytes], results: Path) -> bool:
    """Wait until the process ends; return False if it writes no result for two limits.

    pytest's own limit can stop neither a loop that catches every exception nor one in C."""
    size = 0
    while True:
        try:
            process.wait(2 * LIMIT)
            return True
        except subprocess.TimeoutExpired:
            before = size
            size = results.stat().st_size
            if size == before:
                return False


def describe_end(status: int) -> str:
    if status < 0:
        return f"the Python process was killed by signal {-status} ({signal.strsignal(-status)})"
    return f"the Python process ended with exit status {status}"
