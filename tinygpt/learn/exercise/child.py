"""A plugin for pytest: run the tests of steps/ on the file of `--file`, which they get as the module my_gpt.

A failed check is reported without the code of the test, and the other checks of its step are skipped. With
`--results FILE`, each line of FILE is a state of a check in JSON: {"step", "passed", "failed"}. A check is written as
failed before it runs, because it may end the process.
"""

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Generator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch

from tinygpt.learn.exercise.outline import IMPORTED, LABELS
from tinygpt.learn.exercise.steps.expect import CheckFailed

PROCESS = os.getpid()
LONGEST = 1000  # characters of a value or an exception in a report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--file", type=os.path.abspath, default="my_gpt.py", help="the student's file")
    parser.addoption("--results", default="", help="write the states of the checks to this file")


def pytest_sessionstart(session: pytest.Session) -> None:
    torch.set_num_threads(1)


def pytest_report_teststatus(config: pytest.Config) -> tuple[str, str, str] | None:
    """With --results, pytest itself prints nothing."""
    return ("", "", "") if config.option.results else None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.option.results:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exitstatus)  # does not wait for threads that the file has started


@pytest.fixture(scope="session")
def my(request: pytest.FixtureRequest) -> ModuleType:
    """The student's file, imported as the module my_gpt."""
    file = request.config.option.file
    sys.argv = [file]
    sys.path.append(os.path.dirname(file))  # at the end: a neighbour's profile.py does not replace the library's
    os.chdir(os.path.dirname(file))
    return load(file)


@pytest.fixture(autouse=True)
def defaults() -> None:
    """What the file, or an earlier check, may have changed."""
    torch.manual_seed(0)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


def load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("my_gpt", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_gpt"] = module
    spec.loader.exec_module(module)
    return module


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    if hasattr(item.cls, "failed"):
        pytest.skip("an earlier check of this step failed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: Any) -> None:
    write_state(item, failed=item.function.check)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        item.cls.failed = IMPORTED if call.when == "setup" else item.function.check
        failed = item.cls.failed | describe(call.excinfo.value, item.config.option.file)
        write_state(item, failed=failed)
        lines = [f"{label}: {failed[part]}" for part, label in LABELS.items() if part in failed]
        report.longrepr = "\n".join([failed["check"], *lines])
    elif report.passed and call.when == "call":
        write_state(item, passed=[item.function.check["check"]])
    return report


def write_state(item: Any, passed: Sequence[str] = (), failed: dict[str, str] | None = None) -> None:
    if os.getpid() != PROCESS:
        return  # the file has forked
    step = int(item.cls.__name__.removeprefix("TestStep"))
    state = {"step": step, "passed": passed, "failed": failed or {}}
    with open(item.config.option.results or os.devnull, "a") as file:
        file.write(json.dumps(state) + "\n")


def describe(error: BaseException, file: str) -> dict[str, str]:
    """Describe a failed check, or an exception with the line of the student's file in which it was raised."""
    finding = error.args[0] if isinstance(error, CheckFailed) else raised(error, file)
    return {part: text if len(text) <= LONGEST else f"{text[:LONGEST]} ..." for part, text in finding.items()}


def raised(error: BaseException, file: str) -> dict[str, str]:
    if isinstance(error, SyntaxError) and error.filename == file:
        return {"got": f"line {error.lineno}: {error.msg}", "expected": "valid Python"}
    frames = traceback.extract_tb(error.__traceback__)
    line = innermost_line(frames, file)
    message = str(error)
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
