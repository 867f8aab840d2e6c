"""The size of the package in statements, and what would hide them: a line says one thing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinygpt

PACKAGE = Path(tinygpt.__file__).parent
MOST_STATEMENTS = 20_450
MOST_TUPLES = 40


def is_packed(node: ast.AST) -> bool:
    """Is it an assignment of a tuple to a tuple: `a, b = x, y`?"""
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)


def statements(tree: ast.AST) -> int:
    """Count statements; a tuple that is assigned to a tuple counts once for each element."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return len(found) + sum(len(node.value.elts) - 1 for node in found if is_packed(node))  # type: ignore[attr-defined]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def dense(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of products with a text, and of conditional expressions inside another one."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Mult)
            and (is_text(node.left) or is_text(node.right))
        ):
            yield node.lineno
        if isinstance(node, ast.IfExp) and sum(isinstance(inner, ast.IfExp) for inner in ast.walk(node)) > 1:
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "count", "lines"),
    [
        ("a, b = x, y", 2, 0),
        ("a, b = f()", 1, 0),
        ("def f():\n    return 1", 2, 0),
        ("a = ' (best)' * best", 1, 1),
        ("a = 1 if b else 2 if c else 3", 1, 1),
        ("a = 1 if b else 2", 1, 0),
    ],
)
def test_by_hand(source: str, count: int, lines: int) -> None:
    tree = ast.parse(source)
    assert (statements(tree), len(list(dense(tree)))) == (count, lines)


def test_the_package() -> None:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    assert sum(map(statements, trees.values())) <= MOST_STATEMENTS
    assert sum(is_packed(node) for tree in trees.values() for node in ast.walk(tree)) <= MOST_TUPLES
    assert [f"{path.name}:{line}" for path, tree in trees.items() for line in dense(tree)] == []
