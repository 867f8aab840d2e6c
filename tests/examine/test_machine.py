"""`tinygpt doctor --machine`: a sound machine passes, and each fault fails the check that is meant for it."""

import math
import re
import socket
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
import torch
from children import Child
from conftest import cli, needs_fork

from tinygpt.base.device import choose

CHECKS = ["prepare, train, sample", "interrupted and resumed", "logits on cpu in float32", "training step"]
if choose("cpu", "auto").dtype != torch.float32:
    CHECKS.insert(3, "logits on cpu in bfloat16")


def findings(output: str, word: str) -> list[str]:
    """The checks that this word, OK or FAIL, stands before, in order."""
    lines = re.findall(rf"^{word} +(.*?): ", output, re.MULTILINE)
    return [next(check for check in CHECKS if line.startswith(check)) for line in lines]


def run(folder: Path, fault: Callable[[], None]) -> tuple[int | None, str]:
    """Exit status and output of the command on a machine without a GPU and with this fault."""
    child = Child(["doctor", "--machine"], folder / "log", folder, lambda: (faults.no_gpu(), fault())[0])
    return child.wait(), child.output


@pytest.mark.slow
def test_this_machine_passes_and_nobody_is_named(tmp_path: Path) -> None:
    """GPUs apart: a hosted Mac has an MPS device that fails."""
    home, temporary = tmp_path / "ada.lovelace", tmp_path / "of-ada"
    home.mkdir()
    temporary.mkdir()
    places = {"HOME": str(home), "USERPROFILE": str(home), "TMPDIR": str(temporary), "TEMP": str(temporary)}
    done = cli("doctor", "--machine", cwd=home, CUDA_VISIBLE_DEVICES="", **places)
    out = "".join(line for line in done.out.splitlines(keepends=True) if " on mps" not in line)
    assert findings(out, "OK") == CHECKS and "FAIL" not in out and done.status == ("FAIL" in done.out), done
    first, last = map(float, re.findall(r"validation loss ([\d.]+), then ([\d.]+)", out)[0])
    assert abs(first - math.log(65)) < 0.05 and last < first - 0.5
    differences = [float(text) for text in re.findall(r"difference ([\d.e-]+) from plain PyTorch", out)]
    assert differences[0] < 1e-5 and differences == sorted(differences)  # rounding, more of it in bfloat16
    for private in ("ada", str(tmp_path), rf"\b{re.escape(socket.gethostname())}\b"):
        assert not re.search(private, done.out), private
    assert not [*home.iterdir(), *temporary.glob("tmp*")]


@needs_fork
def test_errors_are_findings_without_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    status, output = run(tmp_path, faults.private_errors)
    assert status == 1 and findings(output, "FAIL") == CHECKS and not findings(output, "OK")
    assert "OSError: No space left on device" in output and "RuntimeError: cannot load ~/kernels.so" in output
    assert "Traceback" not in output and str(tmp_path) not in output


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize(
    ("fault", "failed"),
    [
        (faults.wrong_kernel, "logits"),
        (faults.nothing_is_learned, "prepare"),
        (faults.dropout_from_the_clock, "interrupted"),
    ],
    ids=["logits", "prepare", "interrupted"],
)
def test_each_fault_is_found(fault: Callable[[], None], failed: str, tmp_path: Path) -> None:
    status, output = run(tmp_path, fault)
    assert status == 1 and findings(output, "FAIL") == [check for check in CHECKS if check.startswith(failed)], output
