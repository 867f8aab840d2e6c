"""What is printed: in any code page, to what is closed or full, and of errors of the system."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from conftest import PATIENCE, TINY_TRAIN, ok
from inputs import json_lines
from runs import FLAGS, column

import tinygpt
from tinygpt import cli as command_line
from tinygpt.base import terminal
from tinygpt.checkpoint.store import load

SESSION = """
import json, sys
from tinygpt.cli import main
for args in json.loads(sys.argv[1]):
    try:
        status = main(args)
    except SystemExit as stop:
        status = stop.code or 0
    print("status", status, "of", *args)
"""
GREEK = "μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος\n"
needs_a_shell = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and a shell")


def test_an_error_that_has_nothing_to_do_with_standard_output_is_not_blamed_on_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, or with --debug the traceback."""
    error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    monkeypatch.setattr(command_line, "run", mock.Mock(side_effect=error))
    assert command_line.main(["train"]) == 1
    assert capsys.readouterr().err == "error: Connection reset by peer\n"
    with pytest.raises(ConnectionResetError):
        command_line.main(["train", "--debug"])


def test_a_closed_pipe_is_einval_on_windows() -> None:
    for error, system, left in (
        (BrokenPipeError(errno.EPIPE, ""), "posix", True),
        (OSError(errno.EINVAL, ""), "nt", True),
        (OSError(errno.EINVAL, ""), "posix", False),
    ):
        assert terminal.reader_has_left(error, system) is left


@pytest.mark.slow
def test_every_command_prints_in_any_code_page(tmp_path: Path) -> None:
    """No traceback, and readable figures, although text and labels have characters that the encoding lacks."""
    (tmp_path / "greek.txt").write_text(GREEK * 90, encoding="utf-8")
    labels = ["rot", "grün", "€"]
    json_lines(tmp_path, [{"prompt": f"{n:03} {labels[n % 3]}", "response": labels[n % 3]} for n in range(120)])
    commands = [
        ["prepare", "tiny", "--input=greek.txt"],
        [*TINY_TRAIN, "--sample_interval=10"],
        ["sample", "--start=μ", "--max_new_tokens=20"],
        ["eval"],
        ["doctor", "out", "data/tiny"],
        ["report"],
        ["prepare", "colours", "--input=pairs.jsonl", "--format=pairs", "--show=3"],
        ["finetune", *FLAGS[:-1], "--lora_rank=2", "--out_dir=tuned", "--quiet=False", "--max_iters=10"],
        ["eval", "--ckpt=out", "--adapter=tuned", "--task=colours"],
        ["export", "--format=checkpoint", "--ckpt=out", "--adapter=tuned", "--output=merged"],
        ["train", "--help"],
    ]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PYTHONWARNDEFAULTENCODING"] = "1"  # warns of a text file that is opened without an encoding
    arguments = [sys.executable, "-c", SESSION, json.dumps(commands)]
    done = subprocess.run(arguments, cwd=tmp_path, env=os.environ | environment, capture_output=True, timeout=PATIENCE)
    out = done.stdout.decode("ascii")
    statuses = re.findall(r"^status (\d+) of", out, re.MULTILINE)
    assert statuses == ["0"] * len(commands), done
    assert b"Traceback" not in done.stderr
    package = f"{Path(tinygpt.__file__).parent}{os.sep}".encode("ascii", "backslashreplace")  # others warn, too
    assert not [line for line in done.stderr.splitlines() if package in line and b"EncodingWarning" in line]
    assert re.search(r"step 20: train loss \d\.\d{4}, val loss \d\.\d{4}", out)
    assert re.search(r"\d+\.\d% \(\d+ to \d+\)", out)  # an accuracy and its interval
    assert "gr?n" in out


def shell(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    tinygpt = f'"{sys.executable}" -m tinygpt'
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | environment
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        ["bash", "-c", command.replace("tinygpt", tinygpt, 1)], cwd=folder, env=environment, capture_output=True
    )


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "ü"), ("ascii", r"\xfc")])
def test_a_character_that_the_code_page_has_is_shown(tmp_path: Path, encoding: str, shown: str) -> None:
    done = shell(tmp_path, "tinygpt grün", PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C.UTF-8")
    assert f"gr{shown}n" in done.stderr.decode(encoding)


@needs_a_shell
@pytest.mark.parametrize(
    "redirect",
    ["> /dev/full", *(pytest.param(each, marks=pytest.mark.slow) for each in (">&- 2>&- <&-", "| head -n 1"))],
)
def test_output_that_cannot_be_written_does_not_end_a_run(tmp_path: Path, redirect: str) -> None:
    """The run completes normally; its samples contain characters that few encodings have."""
    (tmp_path / "greek.txt").write_text(GREEK * 30, encoding="utf-8")
    ok(tmp_path, "prepare", "tiny", "--input=greek.txt")
    flags = " ".join([*TINY_TRAIN, "--sample_interval=10"])
    environment = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = shell(tmp_path, f"set -o pipefail; tinygpt {flags} {redirect}", **environment)
    assert done.returncode == 0, done
    assert load(tmp_path / "out/last.pt").step == 20
    assert column(tmp_path / "out", "sample", "step") == [0, 10, 20]
    assert b"Traceback" not in done.stdout + done.stderr and b"Exception ignored" not in done.stderr


FULL = b"error: cannot write to standard output: No space left on device\n"


@needs_a_shell
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_a_command_that_only_prints_reports_why_it_cannot_print(tmp_path: Path, environment: dict[str, str]) -> None:
    """These commands do not import PyTorch."""
    done = shell(tmp_path, "tinygpt exercise list > /dev/full", **environment)
    assert done.returncode == 1 and done.stderr == FULL, done
    assert shell(tmp_path, "tinygpt exercise list >&-", **environment).returncode == 0
    done = shell(tmp_path, "set -o pipefail; tinygpt train --help | true", **environment)
    assert done.returncode == 141 and not done.stderr, done
