"""`tinygpt report --png`: a picture of the loss curves."""

import os
import struct
from pathlib import Path

from conftest import ok

from tinygpt.checkpoint.store import load


def test_the_curves_of_one_run_and_of_several(run_copy: Path) -> None:
    lines = (run_copy / "out/metrics.jsonl").read_text().splitlines()
    (run_copy / "other").mkdir()
    (run_copy / "other/metrics.jsonl").write_text("\n".join([*lines, '{"kind": "eval", "st']))  # a cut line
    pictures = []
    for runs in (["out/"], ["out", "other"]):
        assert ok(run_copy, "report", *runs, "--png=losses.png").out == "written: losses.png\n"
        pictures.append((run_copy / "losses.png").read_bytes())
        width, height = struct.unpack(">II", pictures[-1][16:24])
        assert pictures[-1].startswith(b"\x89PNG\r\n\x1a\n") and width > 800 and height > 500
    assert pictures[0] != pictures[1] and not (run_copy / "out/report.html").exists()


def test_curves_leave_out_losses_that_are_not_finite(run_copy: Path) -> None:
    log = run_copy / "out/metrics.jsonl"
    entry = '{"kind": "eval", "step": 30, "seconds": 1, "train_loss": NaN, "val_loss": null}\n'
    log.write_text(log.read_text() + entry)
    ok(run_copy, "report", "out", "--png=loss.png")


def test_the_list_of_runs(run_copy: Path) -> None:
    """The newest first; a run without a model, one without an evaluation, and one that cannot be read."""
    (run_copy / "damaged/metrics.jsonl").mkdir(parents=True)
    for name, content in (("older", '{"kind": "eval", "step": 0, "val_loss": 2.5}\n'), ("empty", "")):
        (run_copy / name).mkdir()
        (run_copy / name / "metrics.jsonl").write_text(content)
    for number, name in enumerate(("damaged", "older", "empty")):
        os.utime(run_copy / name / "metrics.jsonl", (10**9 + number, 10**9 + number))
    listed = [line.split() for line in ok(run_copy, "report", "--list").out.splitlines()]
    model = load(run_copy / "out")
    assert [line[-1] for line in listed] == ["run", "out", "empty", "older", "damaged"]
    assert listed[1][2:4] == [f"{model.build_model().num_params():,}", f"{model.best_val_loss:.4f}"]
    assert [line[2:4] for line in listed[2:]] == [["none", "none"], ["none", "2.5000"], ["none", "none"]]
    assert listed[3][0] in ("2001-09-08", "2001-09-09")
