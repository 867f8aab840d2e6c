"""`tinygpt plot`: a picture of the runs, or how to get what draws it."""

import struct
import sys
from pathlib import Path

import pytest
from conftest import cli_here

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_run_becomes_a_png(run_copy: Path) -> None:
    result = cli_here("plot", "out/", cwd=run_copy)
    assert (result.status, result.out) == (0, "written: out/loss.png\n")
    data = (run_copy / "out/loss.png").read_bytes()
    assert data.startswith(PNG)
    width, height = struct.unpack(">II", data[16:24])
    assert width > 800 and height > 500


def test_several_runs_in_one_picture_of_any_name(run_copy: Path) -> None:
    one = cli_here("plot", "out", "--output=one.png", cwd=run_copy)
    lines = (run_copy / "out/metrics.jsonl").read_text().splitlines()
    (run_copy / "other").mkdir()
    (run_copy / "other/metrics.jsonl").write_text(
        "\n".join([*lines, '{"kind": "eval", "st'])
    )  # a cut line is passed over
    two = cli_here("plot", "out", "other", "--output=two.png", cwd=run_copy)
    assert (one.status, two.status) == (0, 0)
    pictures = [(run_copy / name).read_bytes() for name in ("one.png", "two.png")]
    assert all(picture.startswith(PNG) for picture in pictures) and pictures[0] != pictures[1]


def test_mistakes_have_their_sentence(run_copy: Path) -> None:
    (run_copy / "fresh").mkdir()
    (run_copy / "fresh/metrics.jsonl").write_text('{"kind": "train", "step": 0, "loss": 4.1}\n')
    for args, said in (
        (["gone"], "gone/metrics.jsonl: no such file"),
        (["fresh"], "fresh has no evaluation with a finite loss"),
        (["out", "--output=nowhere/loss.png"], "nowhere: no such folder"),
        (["out", "--output=out"], "out: is a folder"),
    ):
        result = cli_here("plot", *args, cwd=run_copy)
        assert result.status == 2 and said in result.err and "try: " in result.err


def test_without_matplotlib_it_says_how_to_get_it(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    result = cli_here("plot", "out", cwd=run_copy)
    assert (result.status, result.out) == (2, "")
    assert "a plot needs the package matplotlib" in result.err and "pip install matplotlib" in result.err
    assert not (run_copy / "out/loss.png").exists()
