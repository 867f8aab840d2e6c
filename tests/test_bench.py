"""The benchmarks of scripts/ work with the code that they measure. The figures of so short a run mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tinygpt.checkpoint.store import load
from tinygpt.device import choose

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


@pytest.mark.slow
def test_a_student_has_the_teacher_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from bench import Bench

    bench = Bench(tmp_path, None, quick=True, nanogpt_runs=1, seeds=range(1337, 1339))
    for row, sampling in ((bench.same_time, "independent"), (bench.thirty_times, "epochs")):
        assert len(row("float32").raw["runs"]) == 2
        for index, number in enumerate(("", "-2")):
            made = load(tmp_path / f"out-{row.__name__}{number}-float32/last.pt").config
            assert (int(made["seed"]), made["sampling"]) == (1337 + index, sampling)
            teacher = f"out-six_times{number}-float32/last.pt" if sampling == "epochs" else ""
            assert made["teacher"] == teacher and (not teacher or (tmp_path / teacher).exists())


def test_headings_are_removed_for_the_count_of_quotations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from samples import without_headings

    play = "First Citizen:\nWe are:\nall.\n\nKING RICHARD III:\nNo: go.\n\nAnd\nthen:\n"
    assert without_headings(play) == "We are:\nall.\n\nNo: go.\n\nAnd\nthen:\n"


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_prints_a_text_to_send_in(tmp_path: Path) -> None:
    """On the processor, without compilation: all of tinygpt's part but what only CUDA has."""
    command = [sys.executable, SCRIPT.with_name("bench_gpu.py"), "--device=cpu", "--quick", "--compile=False"]
    command += ["--cases", "shakespeare_char_gpu", "--batch_size=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "bench_gpu.json").read_text())["cases"]
    assert len(case["rounds"]["tinygpt"]) == 2 and case["tokens"] == 3 * 16
    assert "system: " in done.stdout and "| shakespeare_char_gpu       | tinygpt |" in done.stdout
    dtype = str(choose("cpu", "auto").dtype).removeprefix("torch.")
    assert f"0.0 M parameters, 48 tokens per step, {dtype}; large products: " in done.stdout
    assert str(tmp_path) not in done.stdout and str(Path.home()) not in done.stdout


@pytest.mark.slow
def test_bench_passes_a_gpu_on(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--device=cuda:99", "--cases", "shakespeare_char_gpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "--device=cuda:99: PyTorch sees no GPU here" in done.stdout
