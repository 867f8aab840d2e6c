"""`tinygpt exercise`: write a GPT yourself in ten steps, with checks that report what is wrong and where to look.

tinygpt exercise list
tinygpt exercise start 4              # my_gpt.py gets a template to fill in
tinygpt exercise check 4 my_gpt.py
tinygpt exercise check submissions    # a class
"""

import ast
import textwrap
from pathlib import Path

from tinygpt.base.configs import suggest
from tinygpt.base.configs.learn import ExerciseConfig
from tinygpt.base.errors import TinyGPTError, require_installed
from tinygpt.base.files import read_text, replacing, require_writable
from tinygpt.learn.exercise.folder import check_folder
from tinygpt.learn.exercise.outline import NEEDS, Step, defined, template_steps
from tinygpt.learn.exercise.runner import check_file

INDENTED = "\n                  "  # between the lines of a value in a report
DEFAULT = Path(ExerciseConfig.file)


def exercise(config: ExerciseConfig) -> int:
    """Run the command; returns 0, or 1 if a check failed."""
    head, steps = template_steps()
    if config.action == "list" and not config.csv:
        print("A GPT from an empty file, in ten steps:\n")
        for step in steps:
            print(f"  {step.number:>2}  {step.title:<56}{', '.join(step.names)}")
        print("\nbegin:  tinygpt exercise start 1\nthen:   tinygpt exercise check 1")
        return 0
    chosen, path = arguments(config, steps)
    if config.action == "check":
        require_installed("tinygpt exercise check", "pytest", "pytest_timeout")
    if config.action == "check" and path.is_dir():
        return check_folder(path, chosen, Path(config.csv) if config.csv else None)
    if config.csv:
        raise TinyGPTError(
            "csv is only for checking a folder" if path.exists() else f"{path}: no such folder",
            "tinygpt exercise check FOLDER --csv grades.csv",
        )
    if config.action == "check":
        return check(chosen, path, len(steps))
    start(chosen[0], head, path)
    return 0


def arguments(config: ExerciseConfig, steps: list[Step]) -> tuple[list[Step], Path]:
    """Return the steps and the path that the command names: `check PATH` means all steps. Errors: TinyGPTError."""
    text = config.step
    path = Path(config.file)
    for step in steps:
        if text == str(step.number):
            return [step], path
    may_be_path = config.action == "check" and path == DEFAULT and (not text.isdecimal() or Path(text).exists())
    if not may_be_path:
        what = f"step {text}" if text else "which step"
        raise TinyGPTError(f"{what}? There are steps 1 to {len(steps)}", command(config.action, 1, path))
    return steps, Path(text) if text else path


def start(step: Step, head: str, path: Path) -> None:
    """Append the step's template to the file. Errors: TinyGPTError if the file already contains a part of it."""
    require_writable(path, command("start", step.number, Path("FOLDER/my_gpt.py")))
    written, defined_names = read(path) if path.exists() else ("", [])
    repeated = [name for name in step.names if name in defined_names]
    if repeated:
        raise TinyGPTError(
            f"{path} already contains {repeated[0]}, which is not overwritten",
            f"{command('check', step.number, path)}, or for a new file: tinygpt exercise start {step.number} new.py",
        )
    existing = written.rstrip() or f'"""My GPT, step by step."""\n\n{head}'
    with replacing(path) as file:
        file.write(f"{existing}\n\n\n# ==== step {step.number}: {step.title} ====\n\n\n{step.source}\n".encode())
    print(f"step {step.number}: {step.title}\nadded to {path}: {', '.join(step.names)}")
    if (needs := NEEDS.get(step.number)) and needs not in defined_names:
        print(f"It uses {needs} of an earlier step: {command('start', step.number - 1, path)}")
    print(f"Replace each raise NotImplementedError with your code, then: {command('check', step.number, path)}")


def read(path: Path, hint: str = "name the Python file that you write in") -> tuple[str, list[str]]:
    """Read a Python file; returns its text, and the names that it defines.

    Errors: TinyGPTError, with the hint `hint` if it is not a text file, and for invalid Python.
    """
    source = read_text(path, hint)
    try:
        ast.parse(source)
    except SyntaxError as error:
        what = f"{path}, line {error.lineno}: invalid Python ({error.msg})"
        raise TinyGPTError(what, "fix that line first") from None
    return source, defined(source)


def command(action: str, number: int | None, path: Path) -> str:
    """Return the command for a step, or for all steps (None)."""
    return suggest.command("exercise", action, *([str(number)] if number else []), *([] if path == DEFAULT else [path]))


def check(steps: list[Step], path: Path, total: int) -> int:
    """Run the checks of these steps, of `total`, on a file, as far as it contains them, and print the results."""
    number = steps[0].number if len(steps) == 1 else None
    start_it = command("start", steps[0].number, path)
    _, defined_names = read(path, start_it if path.suffix == ".py" else "name a Python file, or a folder of such files")
    contained = [step for step in steps if set(step.names) & set(defined_names)]
    if not contained:
        what = f"step {number} ({', '.join(steps[0].names)})" if number else "the exercise"
        raise TinyGPTError(f"{path} contains no part of {what}", start_it)
    outcomes = check_file(path, [step.number for step in contained], quiet=False)
    for step in contained:
        print(f"step {step.number}: {step.title}")
        for name, report in outcomes[step.number].items():
            print("  FAIL " if report else "  PASS ", name)
            for label, text in report.items():
                lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 90) or [""]]
                print(f"        {label:<10}{INDENTED.join(lines)}")
    if any(report for checks in outcomes.values() for report in checks.values()):
        print(f"\nthen again: {command('check', number, path)}")
        return 1
    last = contained[-1].number
    following = f"Next: {command('start', last + 1, path)}" if last < total else "This is a complete GPT."
    print(f"All checks passed. {following}")
    return 0
