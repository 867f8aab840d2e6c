"""The outline of the exercise: number, title and template of each step.

head, steps = template_steps()
steps[3].names                        # ['attention_weights', 'Head']
"""

import re
from pathlib import Path
from typing import NamedTuple

NEEDS = {6: "Block"}  # step: the class of an earlier step that it uses
IMPORTED = (
    "the file can be imported",
    "the code outside functions and classes",
)  # a check, and where to look if it fails


class Step(NamedTuple):
    """A step of the exercise."""

    number: int
    title: str
    source: str  # its part of the template
    names: list[str]  # the classes and functions in it


def template_steps() -> tuple[str, list[Step]]:
    """Read the template. Returns its imports, and its steps."""
    text = Path(__file__).with_name("template.py").read_text(encoding="utf-8")
    head, *parts = re.split(r"^# ==== step (\d+): (.+) ====$", text, flags=re.MULTILINE)
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    steps = [Step(int(number), title, body.strip(), defined(body)) for number, title, body in triples]
    return head.split('"""', 2)[2].strip(), steps


def defined(source: str) -> list[str]:
    """Return the names that lines begin with: `class GPT`, `def split`, `split = `. The text may be invalid Python."""
    return re.findall(r"^(?:class +|def +)?(\w+)", source, re.MULTILINE)
