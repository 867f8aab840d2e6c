"""What is printed: in any code page, to what is closed or full; hints, plurals, and errors of the system."""

import errno
import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import PATIENCE, TINY_TRAIN, Shared, cli_here, ok, refused
from inputs import json_lines
from runs import FLAGS

import tinygpt
from tinygpt import cli as command_line
from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError, fitting
from tinygpt.checkpoint.store import load
from tinygpt.training.log import read_metrics

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
OUTPUTS: dict[str, tuple[str, dict[str, str]]] = {
    "ascii": ("", {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}),
    "all closed": (">&- 2>&- <&-", {}),
    "a reader that stops early, unbuffered": ("| head -n 1", {"PYTHONUNBUFFERED": "1"}),
    "full, unbuffered": ("> /dev/full", {"PYTHONUNBUFFERED": "1"}),
}
needs_a_shell = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and a shell")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_that_has_nothing_to_do_with_standard_output_is_not_blamed_on_it(
    debug: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, or with --debug the traceback."""

    def fail(args: list[str]) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(command_line, "run", fail)
    if debug:
        with pytest.raises(ConnectionResetError):
            command_line.main(["train", *debug])
    else:
        assert command_line.main(["train"]) == 1
        assert capsys.readouterr().err == "error: Connection reset by peer\n"


def test_a_closed_pipe_is_einval_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    for error, system, left in (
        (BrokenPipeError(errno.EPIPE, ""), "posix", True),
        (BrokenPipeError(errno.EPIPE, ""), "nt", True),
        (OSError(errno.EINVAL, ""), "nt", True),
        (OSError(errno.EINVAL, ""), "posix", False),
        (OSError(errno.ENOSPC, ""), "nt", False),
    ):
        assert terminal.reader_has_left(error, system) is left
    for system, status in (("nt", 141), ("posix", 1)):
        monkeypatch.setattr(sys, "stdout", Closed())
        monkeypatch.setattr(terminal, "reader_has_left", functools.partial(terminal.reader_has_left, system=system))
        assert command_line.main(["--version"]) == status


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
        ["report", "--png=out/loss.png"],
        ["report", "-o", "page.html"],
        ["export", "-o", "model.html"],
        ["prepare", "colours", "--input=pairs.jsonl", "--format=pairs", "--show=3"],
        ["finetune", *FLAGS[:-1], "--lora_rank=2", "--out_dir=tuned", "--quiet=False"],
        ["eval", "--ckpt=out", "--adapter=tuned", "--task=colours"],
        ["export", "--format=checkpoint", "--ckpt=out", "--adapter=tuned", "--output=merged"],
        ["exercise", "list"],
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


@pytest.fixture(scope="module")
def greek(shared: Shared) -> Path:
    """A working folder with data/tiny, Greek text."""

    def make(folder: Path) -> None:
        (folder / "greek.txt").write_text(GREEK * 30, encoding="utf-8")
        ok(folder, "prepare", "tiny", "--input=greek.txt")

    return shared("greek", make)


@needs_a_shell
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.startswith("full") else [pytest.mark.slow]) for name in OUTPUTS]
)
def test_output_that_cannot_be_written_does_not_end_a_run(greek: Path, tmp_path: Path, name: str) -> None:
    """The run completes normally; its samples contain characters that few encodings have."""
    redirect, environment = OUTPUTS[name]
    flags = " ".join([*TINY_TRAIN, "--sample_interval=10", f"--out_dir={tmp_path}"])
    done = shell(greek, f"set -o pipefail; tinygpt {flags} {redirect}", **environment)
    assert done.returncode == 0, done
    assert load(tmp_path / "last.pt").step == 20
    assert [e["step"] for e in read_metrics(tmp_path) if e["kind"] == "sample"] == [0, 10, 20]
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


@needs_a_shell
def test_a_full_standard_error_costs_no_dataset(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "{n}", "response": "{n % 2}"}}\n' for n in range(90)]
    (tmp_path / "p.jsonl").write_text("".join([*lines, "not JSON\n"]))
    done = shell(tmp_path, "tinygpt prepare p --input p.jsonl --format pairs --skip_bad 2> /dev/full")
    assert done.returncode == 0 and (tmp_path / "data/p/meta.json").exists(), done


def test_a_quoted_word_of_a_hint_is_not_cut() -> None:
    """A folder may be called "l, or 1"; an apostrophe is no quotation mark."""
    command = suggest.command("finetune", "l, or 1/config.yaml", "--out_dir=l, or 1-new")
    assert fitting(f"{command}, or drop --seed, or the model's file as --ckpt", {"ckpt"}) == (
        f"{command}, or the model's file as --ckpt"
    )


def test_a_traceback_ends_with_the_hint_of_the_command(run_copy: Path) -> None:
    with pytest.raises(TinyGPTError) as caught:
        cli_here("why", "out", "--start=é", "--text=a", "--debug", cwd=run_copy)
    assert caught.value.__notes__ == ["  try: leave it out"]


def test_one_thing_is_named_in_the_singular(run_copy: Path) -> None:
    """What the commands print about one line, iteration, layer, document and so on."""
    (run_copy / "pair.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (run_copy / "six.jsonl").write_text("{}\n" * 6)
    (run_copy / "crlf.txt").write_bytes(b"\xef\xbb\xbf" + (run_copy / "text.txt").read_bytes() + b"\r\n")
    (run_copy / "one.md").write_text("# One\nThe only sentence.\n")
    (run_copy / "damaged").mkdir()
    (run_copy / "damaged/a.docx").write_text("none")
    one = ["--max_iters=31", "--n_head=1", "--batch_size=1", "--gradient_accumulation_steps=1", "--warmup_iters=1"]
    said = ""
    for command in (
        "prepare pair --input=pair.jsonl --format=pairs",
        "prepare six --input=six.jsonl --format=pairs",
        "prepare crlf --input=crlf.txt",
        shlex.join([*TINY_TRAIN, *one, "--log_interval=31", "--out_dir=one"]),
        shlex.join([*TINY_TRAIN, "--max_iters=1", "--eval_interval=1", "--out_dir=new"]),
        "train --init_from=resume --out_dir=new --max_iters=1",
        "doctor new data/crlf",
        "why new --start=The --text=k --leave_out=1 --prove --seeds=1",
        "ask sentence one.md",
        "ask sentence damaged",
    ):
        result = cli_here(*shlex.split(command), cwd=run_copy)
        assert "Traceback" not in result.err
        said += f"{result.out}{result.err}"
    assert "1 head, " in said and "1 more line" in said and "after 1 iteration" in said, said
    assert not re.findall(
        r".*(?<![\d.,:])1 (?:\w+ )?(?:line|mark|iteration|layer|head|token|example|evaluation|pair|seed|"
        r"second|document|file|step|prompt|label|ending|sequence)s\b.*",
        said,
    )


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's error has no file name, like an error of standard output."""
    (tmp_path / "my_gpt.py").write_text("class CharTokenizer:\n    pass\n")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    result = cli_here("exercise", "check", "1", cwd=tmp_path)
    assert result.status == 1 and len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: No usable temporary directory found")


def test_a_lab_looks_for_its_packages_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib raises OSError where it finds no folder for its cache."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/matplotlib.py").write_text("raise OSError('Matplotlib needs a cache')\n")
    (tmp_path / "work").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    result = cli_here("lab", "canary", "--quick", cwd=tmp_path / "work")
    assert result.status == 1 and result.err == "error: Matplotlib needs a cache\n", result
    assert not list((tmp_path / "work").iterdir())


def test_a_path_that_the_system_refuses_is_one_sentence(tuned: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(tuned, tmp_path / "work"))
    long = "x" * 300
    for args in (
        ["train", f"{long}.yaml"],
        [*TINY_TRAIN, f"--out_dir={long}"],
        [*TINY_TRAIN, f"--init_from={long}", "--out_dir=new"],
        ["export", "--format=checkpoint", f"--adapter={long}"],
        *([name, long] for name in ("doctor", "report")),
        ["prepare", "mine", f"--input={long}"],
        ["eval", "--ckpt=out-finetune", f"--output={long}"],
        ["exercise", "start", "1", long],
    ):
        said = refused(work, *args)
        assert "file name too long" in said.lower() or "no such" in said, (args, said)
