"""The outline of the exercise: number, title and template of each step.

head, steps = template_steps()
steps[3].names                        # ['attention_weights', 'Head']
"""

import re
from pathlib import Path
from typing import NamedTuple

TEMPLATE = Path(__file__).parent / "template.py"
NEEDS = {6: "Block"}  # step: the class of an earlier step that it uses
LABELS = {"given": "given", "got": "got", "expected": "expected", "look": "look at"}  # parts of a failed check
IMPORTED = {"check": "the file can be imported", "look": "the code outside functions and classes"}


class Step(NamedTuple):
    """A step of the exercise."""

    number: int
    title: str
    source: str  # its part of the template

    @property
    def names(self) -> list[str]:
        return defined(self.source)


def template_steps() -> tuple[str, list[Step]]:
    """Read the template. Returns its imports, and its steps."""
    text = TEMPLATE.read_text(encoding="utf-8")
    head, *parts = re.split(r"^# ==== step (\d+): (.+) ====$", text, flags=re.MULTILINE)
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return head.split('"""', 2)[2].strip(), [Step(int(number), title, body.strip()) for number, title, body in triples]


def defined(source: str) -> list[str]:
    """Return the names that lines begin with: `class GPT`, `def split`, `split = `. The text may be invalid Python."""
    return re.findall(r"^(?:class +|def +)?(\w+)", source, re.MULTILINE)
