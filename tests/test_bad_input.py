"""Mistakes on the real command line: a message that names the cause, a hint, exit status 2, and nothing written."""

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import TINY_TRAIN, Result, cli_here, listing, ok
from workplaces import colours

from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError, fitting
from tinygpt.base.files import folder_lock
from tinygpt.checkpoint import store as checkpoint


def complaint(result: Result) -> tuple[str, str]:
    """Message and hint of an error. Fails for anything but exactly these two lines, and a list of choices between."""
    print(result)
    assert result.status == 2
    found = re.fullmatch(r"error: ([^\n]+)\n(?: {4}\w+ +[^\n]+\n)*(?:  try: ([^\n]+)\n)?", result.err)
    assert found, result.err
    assert result.out == ""
    return found[1], found[2] or ""


def test_a_quoted_word_of_a_hint_is_not_cut() -> None:
    """A folder may be called "l, or 1"; an apostrophe is no quotation mark."""
    command = suggest.command("finetune", "l, or 1/config.yaml", "--out_dir=l, or 1-new")
    assert fitting(f"{command}, or drop --seed, or the model's file as --ckpt", {"ckpt"}) == (
        f"{command}, or the model's file as --ckpt"
    )


def test_a_hint_on_a_file_names_no_option_of_another_command(run_copy: Path) -> None:
    with contextlib.chdir(run_copy):
        colours()
    shutil.copy(run_copy / "lora/adapter.pt", run_copy / "out/copy.pt")
    said = cli_here("doctor", "out", cwd=run_copy).out
    hint = re.search(r"FAIL +out/copy.pt: an adapter.*\n +try: (.*)", said)
    assert hint and hint[1].startswith("tinygpt export --format=checkpoint --ckpt BASE/ckpt.pt"), said


def test_a_traceback_ends_with_the_hint_of_the_command(run_copy: Path) -> None:
    with pytest.raises(TinyGPTError) as caught:
        cli_here("why", "out", "--start=é", "--text=a", "--debug", cwd=run_copy)
    assert caught.value.__notes__ == ["  try: leave it out"]


def test_a_folder_in_use_names_the_process_that_has_it(run_copy: Path) -> None:
    with folder_lock(run_copy / "out", "run"), folder_lock(run_copy / "data/tiny", "dataset"):
        before = listing(run_copy)
        for folder, args in (("out", TINY_TRAIN), ("data/tiny", ["prepare", "tiny", "--input=text.txt"])):
            sentence, hint = complaint(cli_here(*args, cwd=run_copy))
            assert re.search(rf"{folder} is in use by process {os.getpid()}", sentence)
            assert "another folder" in hint
        assert listing(run_copy) == before


def test_a_folder_that_cannot_be_written(run_copy: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (run_copy / "out").chmod(0o500)
    sentence, hint = complaint(cli_here(*TINY_TRAIN, cwd=run_copy))
    assert "out: cannot be written: permission denied" in sentence and "another folder" in hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run_copy: Path) -> None:
    before = listing(run_copy)
    sentence, hint = complaint(cli_here(*TINY_TRAIN, "--device=cuda", cwd=run_copy))
    assert "--device=cuda: PyTorch sees no GPU here" in sentence and hint == "--device=cpu"
    assert listing(run_copy) == before


def test_a_loss_that_is_not_finite(run_copy: Path) -> None:
    """A failure while running, not a mistake: status 1; what was saved before is intact."""
    result = cli_here(*TINY_TRAIN, "--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0", cwd=run_copy)
    assert result.status == 1
    assert re.match(
        r"error: iteration \d+: the loss is NaN or infinite; training has stopped\n  try: out/last.pt was", result.err
    )
    assert "lower learning_rate" in result.err and "Traceback" not in result.err
    weights = checkpoint.load(run_copy / "out/last.pt").model
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("size", ["--batch_size=100000000000000", "--n_embd=20000000000"])
def test_more_memory_than_any_machine_has(size: str, run_copy: Path) -> None:
    result = cli_here(*TINY_TRAIN, size, cwd=run_copy)
    assert result.status == 1
    assert re.fullmatch(r"error: out of memory on cpu with [^\n]*\n  try: [^\n]*--batch_size=[^\n]*\n", result.err)


def test_a_prompt_may_be_freed_of_unknown_characters(run_copy: Path) -> None:
    assert ok(run_copy, "sample", "--max_new_tokens=5", "--start=thé ", "--skip_unknown").out.startswith("th ")


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
