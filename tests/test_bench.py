"""The benchmarks of scripts/ work with the code that they measure. The figures of so short a run mean nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tinygpt.base.device import choose

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench.py"


@pytest.mark.slow
def test_rows_are_measured(tmp_path: Path) -> None:
    """Also one of a GPU, on the processor: all but what only CUDA has."""
    rows = ["sample_stream", "help", "gpu"]
    command = [sys.executable, SCRIPT, "--quick", "--dtype=float32", "--rows", *rows]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(table) == len(rows) and all(float(cells[4].replace(",", "")) > 0 for cells in table)
    assert "one sample, once loaded" in done.stdout and " CPUs\n" in done.stdout
    assert str(tmp_path) not in done.stdout and str(Path.home()) not in done.stdout
    dtype = str(choose("cpu", "auto").dtype).removeprefix("torch.")
    assert f"32 tokens, {dtype}, compiled: False; large products: " in done.stdout
