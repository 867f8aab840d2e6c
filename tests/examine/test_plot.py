"""`tinygpt report --png`: a picture of the loss curves."""

import os
import struct
import sys
from pathlib import Path

import pytest
from conftest import cli_here, ok, refused

from tinygpt.checkpoint.store import load

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_curves_of_one_run_and_of_several(run_copy: Path) -> None:
    lines = (run_copy / "out/metrics.jsonl").read_text().splitlines()
    (run_copy / "other").mkdir()
    (run_copy / "other/metrics.jsonl").write_text("\n".join([*lines, '{"kind": "eval", "st']))  # a cut line
    pictures = []
    for runs in (["out/"], ["out", "other"]):
        result = cli_here("report", *runs, "--png=losses.png", cwd=run_copy)
        assert (result.status, result.out) == (0, "written: losses.png\n"), result.err
        pictures.append((run_copy / "losses.png").read_bytes())
        width, height = struct.unpack(">II", pictures[-1][16:24])
        assert pictures[-1].startswith(PNG) and width > 800 and height > 500
    assert pictures[0] != pictures[1] and not (run_copy / "out/report.html").exists()


@pytest.mark.parametrize("loss", ["NaN", "null", "Infinity"])
def test_curves_leave_out_losses_that_are_not_finite(run_copy: Path, loss: str) -> None:
    log = run_copy / "out/metrics.jsonl"
    entry = f'{{"kind": "eval", "step": 30, "seconds": 1, "train_loss": {loss}, "val_loss": {loss}}}\n'
    log.write_text(log.read_text() + entry)
    ok(run_copy, "report", "out", "--png=loss.png")
    log.write_text(entry)
    assert "no evaluation with a finite loss" in refused(run_copy, "report", "out", "--png=loss.png")


def test_the_list_of_runs(run_copy: Path) -> None:
    """The newest first; a run without a model, one without an evaluation, and one that cannot be read."""
    (run_copy / "damaged/metrics.jsonl").mkdir(parents=True)
    os.utime(run_copy / "damaged/metrics.jsonl", (10**9 - 1, 10**9 - 1))
    for number, name in enumerate(("older", "empty")):
        (run_copy / name).mkdir()
        log = run_copy / name / "metrics.jsonl"
        log.write_text('{"kind": "eval", "step": 0, "val_loss": 2.5}\n' if name == "older" else "")
        os.utime(log, (10**9 + number, 10**9 + number))
    listed = [line.split() for line in cli_here("report", "--list", cwd=run_copy).out.splitlines()]
    model = load(run_copy / "out")
    assert [line[-1] for line in listed] == ["run", "out", "empty", "older", "damaged"]
    assert listed[1][2:4] == [f"{model.build_model().num_params():,}", f"{model.best_val_loss:.4f}"]
    assert [line[2:4] for line in listed[2:]] == [["none", "none"], ["none", "2.5000"], ["none", "none"]]
    assert listed[3][0] in ("2001-09-08", "2001-09-09")
    assert cli_here("report", "--list", "older", cwd=run_copy).out.count("\n") == 2
    assert "no run (metrics.jsonl) in data" in refused(run_copy, "report", "--list", "data")
    assert "list cannot be used with live" in refused(run_copy, "report", "--list", "--live")


def test_without_matplotlib_it_says_how_to_get_it(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    said = refused(run_copy, "report", "out", "--png=loss.png")
    assert "a plot needs the package matplotlib" in said and "pip install matplotlib" in said
