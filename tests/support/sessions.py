"""Transcripts of sessions in a terminal: their form (see ../test_transcripts.py), how they are run and rewritten."""

import ast
import contextlib
import difflib
import io
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import workplaces
from conftest import TINY_TRAIN, foreign_options, listing
from filelock import FileLock

from tinygpt.cli import main

ANYTHING = "..."
STEP = re.compile(r"(\$|>>>) ")
REFUSAL = re.compile(r"error: [^\n]+\n(?: {4}\w+ +[^\n]+\n)*(?:  try: [^\n]+\n)?")  # between them, a list of choices


class Step(NamedTuple):
    """A command, the lines that it should print, and the empty lines before the next command."""

    command: str
    expected: list[str]
    empty: list[str]


def case(path: Path, title: str) -> list[str]:
    """The lines of a case below its title, without the empty ones at its end."""
    body = path.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    return body.rstrip("\n").split("\n")


def replace(path: Path, title: str, lines: list[str]) -> None:
    """Write a case again. Several processes of pytest-xdist may do so at once."""
    with FileLock(path.with_suffix(".lock")):
        old, new = "\n".join(case(path, title)), "\n".join(lines)
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"## {title}\n{old}", f"## {title}\n{new}", 1), encoding="utf-8")


def play(lines: list[str], work: Path, fixture: Callable[[str], Any]) -> list[str]:
    """Run the steps of a case in the folder `work`; return the case as it should be: with what was printed."""
    found = list(itertools.takewhile(lambda line: not STEP.match(line), lines))  # a comment, and the folder
    start = next((line.removeprefix("in: ") for line in found if line.startswith("in: ")), "tiny_run")
    if start == "nothing":
        work.mkdir()
    else:
        shutil.copytree(fixture(start), work, symlinks=True)
        (work / "tiny.yaml").write_text("".join(f"{flag[2:].replace('=', ': ')}\n" for flag in TINY_TRAIN[1:]))
    scope = dict(vars(workplaces))
    with contextlib.chdir(work):
        for step in steps(lines[len(found) :]):
            kind, code = step.command.split(" ", 1)
            printed = evaluate(code, scope) if kind == ">>>" else run(code, work)
            good = matches(step.expected, printed)
            found += [step.command, *(step.expected if good else rewritten(step.expected, printed)), *step.empty]
    return found


def steps(lines: list[str]) -> Iterator[Step]:
    while lines:
        command, *rest = lines
        output = list(itertools.takewhile(lambda line: not STEP.match(line), rest))
        lines = rest[len(output) :]
        empty = list(itertools.takewhile(lambda line: not line, reversed(output)))
        yield Step(command, output[: len(output) - len(empty)], empty)


def evaluate(code: str, scope: dict[str, Any]) -> list[str]:
    """What Python's prompt shows: a value that is not None."""
    if not isinstance(ast.parse(code).body[0], ast.Expr):
        exec(code, scope)
        return []
    value = eval(code, scope)
    return [] if value is None else str(value).rstrip("\n").split("\n")


def run(command: str, work: Path) -> list[str]:
    """What a command prints to standard output, then to standard error, then its exit status if neither 0 nor 2."""
    words = shlex.split(command)
    if words[0] != "tinygpt":
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        said, complaint, status = done.stdout, done.stderr, done.returncode
    else:
        before = listing(work)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words[1:])
        said, complaint = out.getvalue(), err.getvalue()
        if status == 2:
            assert not said and REFUSAL.fullmatch(complaint), (command, said, complaint)
            assert not foreign_options(complaint, words[1]), (command, complaint)
            assert listing(work) == before, f"a refusal changes no file: {command}"
        else:
            assert status or not complaint.startswith("error: "), f"an error has another exit status: {command}"
    lines = (said + complaint).rstrip("\n").splitlines()
    return [line.rstrip() for line in lines] + [f"[{status}]"] * (status not in (0, 2))


def matches(expected: list[str], printed: list[str]) -> bool:
    anything = r"(?:(?!error: |\[\d+\]\n).*\n)*?"  # but no failure
    pattern = "".join(anything if line == ANYTHING else rf"{like(line)}\n" for line in expected)
    return bool(re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)))


def like(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split(ANYTHING))


def rewritten(expected: list[str], printed: list[str]) -> list[str]:
    """What was printed, with the dots of `expected` where they still fit."""
    kept: dict[int, str] = {}  # by place in `printed`: the lines to show
    for line in expected:
        fits = [at for at, text in enumerate(printed) if re.fullmatch(like(line), text)]
        near = difflib.get_close_matches(line, printed, 1)
        if line == ANYTHING:
            continue
        if fits:
            kept[fits[0]] = line
        elif near:
            kept[printed.index(near[0])] = near[0]
    if ANYTHING not in expected or (not kept and expected != [ANYTHING]):
        return [kept.get(at, text) for at, text in enumerate(printed)]
    shown = [kept.get(at, ANYTHING) for at in range(len(printed))]
    return [line for line, before in zip(shown, ["", *shown], strict=False) if (line, before) != (ANYTHING, ANYTHING)]
