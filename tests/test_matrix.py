"""scripts/matrix.py on a few feature combinations that together contain every pair of choices."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "matrix.py"


def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("matrix", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the cells are forked processes")
def test_features_combine() -> None:
    """Resuming, processes and micro-steps do not change a result, and every command works on every result."""
    done = subprocess.run([sys.executable, SCRIPT, "--pairwise"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("OK  ") == len(matrix().pairwise_cells())


def test_the_pairwise_cells_contain_every_pair_of_choices() -> None:
    cells = matrix().pairwise_cells()
    choices = list(matrix().CHOICES.values())
    assert len(matrix().all_cells()) == 192 and len(cells) < 20
    for (i, first), (j, second) in itertools.combinations(enumerate(choices), 2):
        seen = {(cell[i], cell[j]) for cell in cells}
        assert seen == set(itertools.product(first, second)), (i, j)
