"""scripts/bench.py works with the code that it measures. The figures of so short a run mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench.py"


@pytest.mark.slow
def test_pieces_of_the_fast_path_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    rows = ["--rows=step,sample_stream,pieces", "--dtype=float32", f"--out={out}", f"--picture={tmp_path / 'p.png'}"]
    done = subprocess.run([sys.executable, SCRIPT, "--quick", *rows], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    step, stream, pieces = json.loads(out.read_text())["rows"]
    assert step["ours"] > 0 and stream["ours"] > 0
    gains = pieces["raw"]["pieces"]
    assert len({(gain["preset"], gain["piece"]) for gain in gains}) == len(gains) == 18
    assert pieces["value"] == min(gain["ratio"] for gain in gains) > 0
    assert all(f"| {gain['piece']} " in done.stdout for gain in gains)
