"""`tinygpt exercise`: write a GPT yourself, in ten steps, each with checks that say what is wrong and where to look.

tinygpt exercise list
tinygpt exercise start 4              # my_gpt.py gets a template to fill in
tinygpt exercise check 4 my_gpt.py
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.config import suggest
from tinygpt.config.schema import ExerciseConfig
from tinygpt.errors import TinyGPTError
from tinygpt.files import read_text, replacing, require_writable

LIMIT = 60  # seconds that the checks of a step may take; a right solution needs three
TEMPLATE = Path(__file__).parent / "template.py"
LABELS = {"given": "given", "got": "got", "expected": "expected", "look": "look at"}


class Step(NamedTuple):
    """A step, as the template has it."""

    number: int
    title: str
    needs: str  # what of an earlier step it builds on
    source: str

    @property
    def names(self) -> list[str]:
        return defined(ast.parse(self.source))


TITLES = {  # name in the template: what it is, what it needs
    "tokenizer": ("characters to numbers and back", ""),
    "batches": ("a split, and windows with their targets", ""),
    "bigram": ("the first model, and what counting reaches", ""),
    "head": ("one head of attention: scaled, masked", ""),
    "block": ("many heads, the MLP, residuals and norms", ""),
    "gpt": ("the whole model", "Block"),
    "training": ("warm-up and cosine; one update, clipped", ""),
    "sampler": ("temperature, top-k, top-p; the loop", ""),
    "fine-tuning": ("prompt and response, and a loss on the response alone", ""),
    "lora": ("thin matrices beside a frozen one, and merging them", ""),
}


def template_steps() -> tuple[str, list[Step]]:
    """The head of the template (its imports), and its steps."""
    head, *parts = re.split(r"^# ==== step \d+: (.+) ====$", TEMPLATE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    bodies = zip(parts[::2], parts[1::2], strict=True)
    found = [Step(i, *TITLES[name], body.strip()) for i, (name, body) in enumerate(bodies, 1)]
    return head.split('"""', 2)[2].strip(), found


def defined(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]


def exercise(config: ExerciseConfig) -> int:
    """Run the command; returns 0, or 1 if a check found something."""
    if config.action == "list":
        return show_list()
    head, steps = template_steps()
    if not 1 <= config.step <= len(steps):
        which = f"step {config.step}" if config.step else "which step"
        raise TinyGPTError(f"{which}? There are steps 1 to {len(steps)}", f"tinygpt exercise {config.action} 1")
    step, path = steps[config.step - 1], Path(config.file)
    if path.is_dir():
        raise TinyGPTError(f"{path}: is a folder", command(config.action, config.step, Path("my_gpt.py")))
    if config.action == "start":
        start(step, head, path)
        return 0
    return check_step(step, path)


def show_list() -> int:
    print("A GPT from an empty file, in ten steps:\n")
    for step in template_steps()[1]:
        print(f"  {step.number:>2}  {step.title:<56}{', '.join(step.names)}")
    print("\nbegin:  tinygpt exercise start 1\nthen:   tinygpt exercise check 1")
    return 0


# ---- start ------------------------------------------------------------------------------------------------------


def start(step: Step, head: str, path: Path) -> None:
    """Put the step's template into the file, behind what is there. Errors: TinyGPTError if the file has it already."""
    require_writable(path, command("start", step.number, Path("my_gpt.py")))
    written, there = "", []
    if path.exists():
        written = read(path)
        there = names_in(written, path)
    again = [name for name in step.names if name in there]
    if again:
        raise TinyGPTError(
            f"{path} has {again[0]} already, and what you wrote is not overwritten",
            f"{command('check', step.number, path)}, or for a new file: tinygpt exercise start {step.number} new.py",
        )
    before = written.rstrip() if written.strip() else f'"""My GPT, step by step."""\n\n{head}'
    with replacing(path) as file:
        file.write(f"{before}\n\n\n# ==== step {step.number}: {step.title} ====\n\n\n{step.source}\n".encode())
    print(f"step {step.number}: {step.title}\n{path} has a template of {', '.join(step.names)} now.")
    if step.needs and step.needs not in there:
        print(f"It builds on {step.needs}, which comes from an earlier step: tinygpt exercise start {step.number - 1}")
    print(f"Fill in what raises NotImplementedError, then: {command('check', step.number, path)}")


def read(path: Path) -> str:
    return read_text(path, "give the Python file that you write in")


def names_in(source: str, path: Path) -> list[str]:
    try:
        return defined(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        why = error.args[0] if error.args else "too deeply nested"
        raise TinyGPTError(f"{path}{line}: not Python ({why})", "fix that line first") from None


def command(action: str, number: int, path: Path) -> str:
    return f"tinygpt exercise {action} {number}{'' if path == Path('my_gpt.py') else f' {suggest.quoted(str(path))}'}"


# ---- check ------------------------------------------------------------------------------------------------------


def check_step(step: Step, path: Path) -> int:
    """Run the step's checks on the file in a process of its own, and show how they went."""
    there = names_in(read(path), path) if path.exists() else None
    if there is None or not set(step.names) & set(there):
        what = "no such file" if there is None else f"nothing of step {step.number} ({', '.join(step.names)}) in it"
        raise TinyGPTError(f"{path}: {what}", command("start", step.number, path))
    print(f"step {step.number}: {step.title}")
    messages, ending = run_checks(step.number, path)
    for begun, result in messages:
        print(f"  {'PASS' if 'passed' in result else 'FAIL'}  {begun['begin']}")
        if "failed" in result:
            show(result["failed"] | {"look": begun["look"]})
            print(f"\nthen again: {command('check', step.number, path)}")
            return 1
    if ending:
        raise TinyGPTError(ending, "see what came before this line", status=1)
    last = step.number == len(TITLES)
    print(
        "All checks passed. " + ("That is a whole GPT." if last else f"Next: {command('start', step.number + 1, path)}")
    )
    return 0


def run_checks(step: int, path: Path) -> tuple[list[tuple[dict[str, str], dict[str, Any]]], str]:
    """(what was checked, how it went) up to the first failure, and a sentence if the process itself failed.

    The reader's code runs in a child, so that an endless loop, sys.exit or a crash ends the child alone.
    """
    arguments = [sys.executable, "-m", "tinygpt.exercise.steps", str(step), str(path)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:
        try:
            ended = subprocess.run(arguments, stdout=lines, timeout=LIMIT).returncode
            got = f"Python ended with status {ended}"
        except subprocess.TimeoutExpired:
            ended, got = 1, f"no end after {LIMIT} seconds"
        lines.seek(0)
        told = [json.loads(line) for line in lines.read().splitlines()]
    messages = list(zip(told[::2], told[1::2], strict=False))
    if len(told) % 2:  # begun and not ended
        messages.append((told[-1], {"failed": {"got": got, "expected": "an end within a second or two"}}))
    return messages, got if ended and not told else ""


def show(finding: dict[str, str]) -> None:
    for key, label in LABELS.items():
        if key in finding:
            lines = [part for line in finding[key].splitlines() for part in textwrap.wrap(line, 90) or [""]]
            print(f"        {label:<10}{(chr(10) + ' ' * 18).join(lines)}")
