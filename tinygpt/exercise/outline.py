"""The outline of the exercise: number, title and template of each step.

head, steps = template_steps()
steps[3].names                        # ['attention_weights', 'Head']
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

TEMPLATE = Path(__file__).parent / "template.py"
TITLES = {  # name in the template: title, and the class of an earlier step that this one uses
    "tokenizer": ("text to token ids and back", ""),
    "batches": ("train and validation split, windows and targets", ""),
    "bigram": ("the bigram model, and the lowest loss it can reach", ""),
    "head": ("one attention head: scaled scores, causal mask", ""),
    "block": ("multi-head attention, MLP, residuals, LayerNorm", ""),
    "gpt": ("the complete model", "Block"),
    "training": ("learning rate schedule; one step, gradient clipping", ""),
    "sampler": ("temperature, top-k, top-p; the generation loop", ""),
    "fine-tuning": ("prompt and response; loss on the response only", ""),
    "lora": ("a frozen layer with a low-rank update; merging", ""),
}


class Step(NamedTuple):
    """A step of the exercise."""

    number: int
    title: str
    needs: str  # a class of an earlier step, or empty
    source: str  # its part of the template

    @property
    def names(self) -> list[str]:
        return defined(ast.parse(self.source))


def template_steps() -> tuple[str, list[Step]]:
    """Read the template. Returns its imports, and its steps."""
    head, *parts = re.split(r"^# ==== step \d+: (.+) ====$", TEMPLATE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    bodies = zip(parts[::2], parts[1::2], strict=True)
    found = [Step(i, *TITLES[name], body.strip()) for i, (name, body) in enumerate(bodies, 1)]
    return head.split('"""', 2)[2].strip(), found


def defined(tree: ast.Module) -> list[str]:
    """Return the names of the top-level classes and functions."""
    return [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
