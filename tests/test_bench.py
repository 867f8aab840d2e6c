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
    names = "step,step_256,sample_stream,busy,pieces"
    rows = [f"--rows={names}", "--dtype=float32", f"--out={out}", f"--picture={tmp_path / 'p.png'}"]
    done = subprocess.run([sys.executable, SCRIPT, "--quick", *rows], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    step, longer, stream, busy, pieces = json.loads(out.read_text())["rows"]
    assert longer["ours"] > step["ours"] > 0 and stream["ours"] > 0
    (beside,) = busy["raw"]["busy"]
    assert beside["busy"] == 2 and busy["value"] == beside["auto"] / min(beside["one"], beside["all"])
    assert "| train, 10 iterations | 2 " in done.stdout
    gains = pieces["raw"]["pieces"]
    assert len({(gain["preset"], gain["piece"]) for gain in gains}) == len(gains) == 15
    assert pieces["value"] == min(gain["ratio"] for gain in gains) > 0
    assert all(f"| {gain['piece']} " in done.stdout for gain in gains)
