"""`tinygpt quickstart`: it runs the three commands that it shows, explains the loss it got, and replaces nothing."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from children import wait_for_lines
from conftest import cli, listing
from test_suggestions import suggested

SHORT = "--max_iters=30"


def shown(out: str) -> list[str]:
    """The command lines that it says it runs."""
    return re.findall(r"^\$ (tinygpt .*)", out, flags=re.MULTILINE)


def test_quickstart_twice(tmp_path: Path) -> None:
    first = cli("quickstart", SHORT, cwd=tmp_path)
    assert first.status == 0, first.err
    assert shown(first.out) == [
        "tinygpt prepare shakespeare_char",
        f"tinygpt train configs/shakespeare_char.yaml --device=cpu {SHORT}",
        "tinygpt sample --ckpt out/ckpt.pt",
    ]
    read = re.search(r"loss is ([\d.]+) nats per character. e\^[\d.]+ = ([\d.]+)", first.out)
    assert read and abs(float(read[1]) - float(re.findall(r"val loss ([\d.]+)", first.out)[-1])) < 0.0051
    assert abs(math.log(float(read[2])) - float(read[1])) < 0.01
    for command in suggested(first.out[first.out.index("That was your own model") :])[:4]:  # the fifth needs a text
        assert cli(*command, *(["--max_new_tokens=5"] if command[0] == "sample" else []), cwd=tmp_path).status == 0

    before = (tmp_path / "out/ckpt.pt").read_bytes()
    again = cli("quickstart", SHORT, cwd=tmp_path)
    assert again.status == 0, again.err
    assert shown(again.out)[1].endswith("--init_from=auto")
    assert (tmp_path / "out/ckpt.pt").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_a_stopped_training_is_not_explained_as_a_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinygpt", "quickstart", "--max_iters=100000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        wait_for_lines(process, tmp_path / "out", 2)
        process.send_signal(signal.SIGINT)
        out = process.communicate()[0]
    assert process.returncode == 130
    assert "stopped by a signal" in out and "How to read the result" not in out and len(shown(out)) == 2


def test_the_commands_it_shows_do_the_same_by_hand(tmp_path: Path) -> None:
    """Negative control of the display: typed, the shown commands end with the same weights and the same text."""
    quick = cli("quickstart", SHORT, "--out_dir=my out", "--data_dir=my data", cwd=tmp_path)
    assert quick.status == 0, quick.err
    (tmp_path / "my out").rename(tmp_path / "first")
    for line in shown(quick.out):
        typed = cli(*suggested(f"next: {line}")[0], cwd=tmp_path)
        assert typed.status == 0, typed.err
    assert typed.out.strip() in quick.out
    states = [torch.load(tmp_path / out / "ckpt.pt", weights_only=True)["model"] for out in ("first", "my out")]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def test_a_folder_that_holds_another_model_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    """A run of another dataset, and a model without its last state, as one copies it from somewhere."""
    (tmp_path / "copied").mkdir()
    shutil.copy(tiny_run / "out/ckpt.pt", tmp_path / "copied/ckpt.pt")
    shutil.copytree(tiny_run / "out", tmp_path / "other")
    for folder, why in (("copied", "no last.pt"), ("other", "a run that quickstart cannot continue")):
        before = listing(tmp_path / folder)
        refused = cli("quickstart", SHORT, f"--out_dir={folder}", cwd=tmp_path)
        assert refused.status == 2 and why in refused.err, refused.err
        assert "try: tinygpt quickstart --out_dir=out-first" in refused.err
        assert listing(tmp_path / folder) == before
