"""The outline of the exercise: number, title and template of each step.

head, steps = template_steps()
steps[3].names                        # ['attention_weights', 'Head']
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

TEMPLATE = Path(__file__).parent / "template.py"
NEEDS = {6: "Block"}  # step: the class of an earlier step that it uses


class Step(NamedTuple):
    """A step of the exercise."""

    number: int
    title: str
    source: str  # its part of the template

    @property
    def names(self) -> list[str]:
        return defined(ast.parse(self.source))


def template_steps() -> tuple[str, list[Step]]:
    """Read the template. Returns its imports, and its steps."""
    text = TEMPLATE.read_text(encoding="utf-8")
    head, *parts = re.split(r"^# ==== step (\d+): (.+) ====$", text, flags=re.MULTILINE)
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return head.split('"""', 2)[2].strip(), [Step(int(number), title, body.strip()) for number, title, body in triples]


def defined(tree: ast.Module) -> list[str]:
    """Return the names of the top-level classes and functions."""
    return [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
