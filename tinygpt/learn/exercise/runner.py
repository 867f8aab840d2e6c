"""Run the checks of a student's file: pytest with the tests of steps/, in a process of its own.

outcomes = check_file(Path("my_gpt.py"), [1, 2, 3], quiet=True)
outcomes[2]["windows are random"]     # {} if this check of step 2 passed, else {"given", "got", "expected", "look at"}

A file can hang, crash or exit. This ends its process alone, and the steps after that one get a new process. The steps
of a file otherwise share a process, because importing PyTorch takes longer than all checks together. This is no
sandbox: a file has the user's permissions, and can use all memory.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tinygpt.learn.exercise.outline import IMPORTED

LIMIT = 60  # seconds that one check may take; all checks of a correct file together take a few
STEPS = "tinygpt.learn.exercise.steps"  # a package with a module for each step
# the user's own settings and plugins of pytest do not apply; matplotlib opens no windows
SETTINGS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": "", "MPLBACKEND": "Agg"}
OPTIONS = [
    *("-qqs", "--noconftest", "--no-summary", "--pyargs"),
    *("-p", "no:cacheprovider", "-p", "pytest_timeout", "-p", "tinygpt.learn.exercise.child"),
]
Outcomes = dict[int, dict[str, dict[str, str]]]  # by step: the report of each check that ran; only the last can fail


def check_file(path: Path, steps: list[int], quiet: bool) -> Outcomes:
    """Check steps of a file; with `quiet` the file's own output is discarded, else it goes to standard error."""
    if not steps:
        return {}
    results, ending = run_pytest(path, steps, quiet)
    outcomes: Outcomes = {}
    for step, check, look, finding in results or [(step, *IMPORTED, None) for step in steps]:
        if finding is None:  # the process ended during this check
            finding = {"got": ending, "expected": f"a result within {LIMIT} seconds"}
        outcomes.setdefault(step, {})[check] = finding and {**finding, "look at": look}
    return outcomes | check_file(path, [step for step in steps if step not in outcomes], quiet)


def run_pytest(path: Path, steps: list[int], quiet: bool) -> tuple[list[Any], str]:
    """Check steps of a file in one process. Returns the results that child.py wrote, and how the process ended."""
    output = subprocess.DEVNULL if quiet else 2  # standard error
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        settings = Path(folder) / "pytest.ini"
        settings.touch()
        command = [
            # -B: leaves no __pycache__ behind; -P: no random.py of the current folder in place of the library's
            *(sys.executable, "-BP", "-m", "pytest", *OPTIONS),
            f"--config-file={settings}",
            f"--timeout={LIMIT}",
            f"--file={path.absolute()}",
            f"--results={results}",
            *(f"{STEPS}.test_step{step:02}" for step in steps),
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | SETTINGS
        ) as process:
            try:
                ending = wait(process, results)
            finally:
                process.kill()
        return [json.loads(line) for line in results.read_text().splitlines()], ending


def wait(process: subprocess.Popen[bytes], results: Path) -> str:
    """Wait until the process ends, or writes no result for two limits; return which.

    pytest's own limit can stop neither a loop that catches every exception nor one in C."""
    size = -1
    while size != results.stat().st_size:
        size = results.stat().st_size
        with contextlib.suppress(subprocess.TimeoutExpired):
            return describe_end(process.wait(2 * LIMIT))
    return f"no result for {2 * LIMIT} seconds"


def describe_end(status: int) -> str:
    if status < 0:
        return f"the Python process was killed by signal {-status} ({signal.strsignal(-status)})"
    return f"the Python process ended with exit status {status}"
