"""A plugin for pytest: run the tests of steps/ on the file of `--file`, which they get as the module my_gpt.

A failed check is reported without the code of the test, and the other checks of its step are skipped. With
`--results FILE`, each line of FILE is a check in JSON: the number of its step, its name, where to look if it fails, and
what was found, {"given", "got", "expected"}: {} if it passed, null before it runs, because it may end the process.
"""

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Generator
from types import ModuleType
from typing import Any

import pytest
import torch

from tinygpt.learn.exercise.outline import IMPORTED
from tinygpt.learn.exercise.steps.expect import CheckFailed

PROCESS = os.getpid()
LONGEST = 1000  # characters of a value or an exception in a report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--file", type=os.path.abspath, default="my_gpt.py", help="the student's file")
    parser.addoption("--results", default="", help="write the results of the checks to this file")


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
    torch.set_num_threads(1)
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
    if hasattr(item.module, "failed"):
        pytest.skip("an earlier check of this step failed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: Any) -> None:
    write_result(item, item.function.check, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        item.module.failed = True
        check = IMPORTED if call.when == "setup" else item.function.check
        finding = describe(call.excinfo.value, item.config.option.file)
        write_result(item, check, finding)
        name, look = check
        report.longrepr = "\n".join([name, *(f"{part}: {text}" for part, text in finding.items()), f"look at: {look}"])
    elif report.passed and call.when == "call":
        write_result(item, item.function.check, {})
    return report


def write_result(item: Any, check: tuple[str, str], finding: dict[str, str] | None) -> None:
    if os.getpid() != PROCESS:
        return  # the file has forked
    step = int(item.path.stem.removeprefix("test_step"))
    with open(item.config.option.results or os.devnull, "a") as file:
        file.write(json.dumps([step, *check, finding]) + "\n")


def describe(error: BaseException, file: str) -> dict[str, str]:
    """Describe a failed check, or an exception with the line of the student's file in which it was raised."""
    finding = error.args[0] if isinstance(error, CheckFailed) else raised(error, file)
    return {part: text if len(text) <= LONGEST else f"{text[:LONGEST]} ..." for part, text in finding.items()}


def raised(error: BaseException, file: str) -> dict[str, str]:
    if isinstance(error, SyntaxError) and error.filename == file:
        return {"got": f"line {error.lineno}: {error.msg}", "expected": "valid Python"}
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"line {frame.lineno}, in {frame.name}: {frame.line}" for frame in frames if frame.filename == file]
    message = str(error)
    # raised by the template, not by PyTorch
    if type(error) is NotImplementedError and not message and frames[-1].filename == file:
        return {"got": f"not written yet: {lines[-1]}", "expected": "your code in place of raise NotImplementedError"}
    if isinstance(error, AttributeError) and error.obj is sys.modules.get("my_gpt"):
        return {"got": f"no {error.name} in the file", "expected": f"{error.name}, as in the template"}
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return {"got": "\n".join([text, *lines[-1:]]).strip(), "expected": "no exception"}
