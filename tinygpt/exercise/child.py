"""Run the checks of a student's file, in a process of its own: `python -m tinygpt.exercise.child FILE SECONDS N ...`

It checks steps N of FILE, with a time limit per check; runner.py starts it. The results are lines of JSON on standard
output, followed by the traceback of a check that exceeds the limit. What the file prints goes to standard error.
"""

import faulthandler
import functools
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from tinygpt.exercise.steps import STEPS, CheckFailed

LONGEST = 1000  # characters of a value or an exception in a report


def main(file: str, limit: float, steps: list[int]) -> None:
    """Check the steps in order, each up to its first failed check; stop if the file cannot be imported.

    A line {"step", "passed", "failed"} is the state of a step: the names of the checks that passed, and the check that
    failed. A check is written as failed before it runs, because it may end the process.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    sys.argv = [file]
    sys.path.append(os.path.dirname(file))  # at the end: a neighbour's profile.py does not replace the library's
    os.chdir(os.path.dirname(file))
    torch.set_num_threads(1)

    def write_state(step: int, passed: list[str], **failed: str) -> None:
        short = {part: text if len(text) <= LONGEST else f"{text[:LONGEST]} ..." for part, text in failed.items()}
        out.write(json.dumps({"step": step, "passed": passed, "failed": short}) + "\n")
        out.flush()
        faulthandler.dump_traceback_later(limit, exit=True, file=out)  # replaces the limit of the previous check

    for step in steps:
        torch.set_grad_enabled(True)  # the previous step may have changed both
        torch.set_default_dtype(torch.float32)
        if not check_step(step, file, functools.partial(write_state, step)):
            return


def check_step(step: int, file: str, write_state: Callable[..., None]) -> list[str]:
    """Import the file, then run the checks of a step up to the first that fails. Returns the names of those passed."""
    passed: list[str] = []
    checks = checks_of(step, file)
    check = next(checks, "")
    while check:
        name, look = map(str.strip, check.split("\n"))
        report = functools.partial(write_state, passed, check=name, look=look)
        report()
        finding: dict[str, str] = {}
        torch.manual_seed(0)
        try:
            check = next(checks, "")
        except CheckFailed as failure:
            finding = failure.args[0]
        except BaseException as error:
            finding = raised(error, file)
        if finding:
            report(**finding)
            return passed
        passed.append(name)
    write_state(passed)
    return passed


def checks_of(step: int, file: str) -> Iterator[str]:
    """Yield the checks of a step: the import of the student's file, as the module my_gpt, then those in steps.py."""
    yield "the file can be imported\nthe code outside functions and classes"
    spec = importlib.util.spec_from_file_location("my_gpt", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_gpt"] = module
    spec.loader.exec_module(module)
    yield from STEPS[step - 1](module)


def raised(error: BaseException, file: str) -> dict[str, str]:
    """Describe an exception, with the line of the student's file in which it was raised."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):  # so a generator passes it on
        error = error.__cause__
    if isinstance(error, SyntaxError) and error.filename == file:
        return {"got": f"line {error.lineno}: {error.msg}", "expected": "valid Python"}
    frames = traceback.extract_tb(error.__traceback__)
    line, message = innermost_line(frames, file), str(error)
    # raised by the template, not by PyTorch
    if type(error) is NotImplementedError and not message and innermost_line(frames[-1:], file):
        return {"got": f"not written yet: {line}", "expected": "your code in place of raise NotImplementedError"}
    if isinstance(error, AttributeError) and error.obj is sys.modules.get("my_gpt"):
        return {"got": f"no {error.name} in the file", "expected": f"{error.name}, as in the template"}
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return {"got": f"{text}\n{line}".strip(), "expected": "no exception"}


def innermost_line(frames: Sequence[traceback.FrameSummary], file: str) -> str:
    """Return the innermost line of the file in a stack; empty if there is none."""
    own = [frame for frame in frames if frame.filename == file]
    return f"line {own[-1].lineno}, in {own[-1].name}: {own[-1].line}" if own else ""


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), float(sys.argv[2]), [int(number) for number in sys.argv[3:]])
    sys.stderr.flush()
    os._exit(0)  # does not wait for threads that the file has started
