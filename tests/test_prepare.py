"""Text into token files: the same bytes as nanoGPT's few lines make, in constant memory, complete or not at all."""

import codecs
import contextlib
import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, ok
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from inputs import as_nanogpt_does_it, bins

from tinygpt import prepare
from tinygpt.base.configs.core import PrepareConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.data import text_files
from tinygpt.data.corpora import tiny_shakespeare
from tinygpt.data.dataset import Dataset

PATIENT = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def prepared(folder: Path, *inputs: Path, **config: object) -> Dataset:
    """`tinygpt prepare mine` in this process, into folder/mine."""
    prepare.prepare(PrepareConfig("mine", tuple(map(str, inputs)), data_dir=str(folder), **config))  # type: ignore[arg-type]
    return Dataset(str(folder), "mine")


def test_tiny_shakespeare_in_characters(tmp_path: Path) -> None:
    result = ok(tmp_path, "prepare", "shakespeare_char")
    for line in ("characters: 1,115,394", "1,003,854 for training, 111,540 for validation", "-> First Citizen:"):
        assert line in result.out
    assert result.out.endswith("next: tinygpt train configs/shakespeare_char.yaml\n")
    folder = tmp_path / "data/shakespeare_char"
    text = tiny_shakespeare()
    assert (folder / "input.txt").read_bytes() == text.encode()
    *expected, symbols = as_nanogpt_does_it(text)
    assert bins(folder) == tuple(expected)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["tokenizer"] == {"kind": "char", "symbols": symbols}
    assert (meta["tokens"], meta["vocab_size"]) == ({"train": 1_003_854, "val": 111_540}, 65)
    assert meta["sha256"]["source"] == hashlib.sha256(text.encode()).hexdigest()


# letters of 1, 2, 3 and 4 bytes, and what is special to the reader: ends of line, a byte-order mark inside the text
LETTERS = st.sampled_from("ab \r\n\x1c\x85é\u2028\ufeff日🙂") | st.characters(exclude_categories=["Cs"])


@given(text=st.text(LETTERS.filter("\0".__ne__), min_size=4), block=st.integers(4, 9), mark=st.booleans())
@example(text="a\r\nb\r\r\n\rc\n\r", block=4, mark=True)
@example(text="aaaé\r\n" * 3, block=5, mark=False)
@PATIENT
def test_the_bytes_are_those_of_nanogpts_lines(
    text: str, block: int, mark: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the blocks end: inside a character, between CR and LF, at the split."""
    monkeypatch.setattr(text_files, "BLOCK", block)
    text = text.lstrip("\ufeff")
    expected = text.replace("\r\n", "\n")
    assume(len(set(expected)) > 1)
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 * mark + text.encode())
    made = prepared(tmp_path, tmp_path / "a.txt")
    *splits, symbols = as_nanogpt_does_it(expected)
    assert bins(tmp_path / "mine") == tuple(splits)
    assert made.meta["tokenizer"]["symbols"] == symbols
    assert sum(made.meta["characters"].values()) == len(expected)
    assert made.meta["sha256"]["source"] == hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()


@given(parts=st.lists(st.text("ab\r\né", max_size=6), min_size=1, max_size=4), block=st.integers(4, 6))
@PATIENT
def test_files_are_read_one_after_the_other(
    parts: list[str], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins on a new line. A CR at the end of one file and an LF at the start of the next stay two characters."""
    monkeypatch.setattr(text_files, "BLOCK", block)
    expected = ""
    for part in parts:
        line_end = "\n" if part and expected and expected[-1] not in "\r\n" else ""
        expected += line_end + part.replace("\r\n", "\n")
    assume(len(set(expected)) > 1)
    for index, part in enumerate(parts):
        (tmp_path / f"{index}.txt").write_bytes(part.encode())
    prepared(tmp_path, *(tmp_path / f"{index}.txt" for index in range(len(parts))))
    assert bins(tmp_path / "mine") == as_nanogpt_does_it(expected)[:2]


def test_all_65536_symbols(tmp_path: Path) -> None:
    """The last id that fits: none is wrapped around."""
    (tmp_path / "a.txt").write_text("".join(map(chr, range(0x10000, 0x10000 + 65_536))) * 2, encoding="utf-8")
    made = prepared(tmp_path, tmp_path / "a.txt", val_fraction=0.5)
    assert made.splits["train"].tolist() == list(range(65_536))


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    visible = ("b.txt", "a.txt", "sub/deep/d.txt", "sub/c.txt", "sub/e.md", "f.md", ".notes/g.txt", ".notes/sub/h.txt")
    hidden = ("sub/._c.txt", "sub/.ipynb_checkpoints/i.txt", ".notes/sub/._h.txt", ".notes/~$g.txt")
    for name in visible + hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(Path(name).stem * 3)

    def letters(*inputs: str) -> str:
        ok(tmp_path, "prepare", "mine", "--input", *inputs, "--val_fraction=0.2")
        made = Dataset(str(tmp_path / "data"), "mine")
        text = made.tokenizer.decode(np.concatenate(list(made.splits.values())))
        return re.sub(r"(.)\1\1\n?", r"\1", text)

    assert letters("b.txt", "a.txt") == "ba"  # as given
    assert letters("sub") == "cd"  # below it, sorted, *.txt only
    assert letters("*.txt") == letters("./*.txt", "a.txt") == "ab"  # once each
    assert letters("**/*.md") == "fe"
    assert letters("f.md", "sub", "*.txt") == "fcdab"
    assert letters(".notes") == "gh"  # a hidden folder itself, without what is hidden in it


def test_a_folder_without_text_files_is_read_if_its_files_have_one_ending(tmp_path: Path) -> None:
    for name in ("b.py", "sub/deep/c.PY", "sub/a.py", ".git/d.md", "sub/.e.txt", "c.png", "__pycache__/d.png"):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text("\x89PNG\0" if name.endswith("png") else f"{Path(name).stem} = 1")
    out = ok(tmp_path, "prepare", "mine", "--input=code/", "--val_fraction=0.3").out
    assert "note: code has no *.txt" in out and "its text files: 3 *.py\n" in out
    assert "left out 2 other files (.png)" in out
    assert sum(map(len, Dataset(str(tmp_path / "data"), "mine").splits.values())) == len("b = 1\na = 1\nc = 1")


ENCODINGS = "cp1252 utf-16 utf-16-be utf-32 utf-8-sig utf-7 gb18030 hz iso2022_kr iso2022_jp cp037"


@pytest.mark.parametrize("encoding", ENCODINGS.split())
def test_encodings(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those whose bytes look like ASCII and are none, and those with a state."""
    text = "plain ~ + \\ text\r\nand more "
    for extra in ("é‘’—ß\r\n", "é", "日本 ", "한국 ", "+~{"):
        with contextlib.suppress(UnicodeError):
            (text + extra).encode(encoding)
            text += extra
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    expected = as_nanogpt_does_it(text.encode(encoding).decode(encoding).replace("\r\n", "\n"))[:2]
    for block in (4, 7, 1000):
        monkeypatch.setattr(text_files, "BLOCK", block)
        prepared(tmp_path, tmp_path / "a.txt", encoding=encoding)
        assert bins(tmp_path / "mine") == expected


@given(before=st.text(st.sampled_from("aé日🙂\r\n"), max_size=30), mark=st.booleans(), block=st.integers(4, 9))
@PATIENT
def test_the_offset_of_a_wrong_byte(
    before: str, mark: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact to the byte of the file, whatever stands before it and wherever the blocks end."""
    monkeypatch.setattr(text_files, "BLOCK", block)
    start = codecs.BOM_UTF8 * mark + before.encode()
    for bad, says in ((b"\x92", "byte 0x92 at offset {} is not UTF-8"), (b"\0", "a NUL at offset {})")):
        (tmp_path / "a.txt").write_bytes(start + bad + b" and more")
        with pytest.raises(TinyGPTError, match=re.escape(says.format(len(start)))):
            prepared(tmp_path, tmp_path / "a.txt")


def test_input_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("abc" * 100)
    tokenizer = prepare.make_tokenizer

    def then_grow(*args: object) -> object:
        made = tokenizer(*args)  # type: ignore[arg-type]
        (tmp_path / "a.txt").write_text("abc" * 101)
        return made

    monkeypatch.setattr(prepare, "make_tokenizer", then_grow)
    with pytest.raises(TinyGPTError, match="changed while it was being read"):
        prepared(tmp_path, tmp_path / "a.txt")
    assert not (tmp_path / "mine/meta.json").exists()


# The peak of this process alone: getrusage's begins with that of the process that started it.
MEASURE = """
import re, sys
from pathlib import Path
from tinygpt.cli import main
status = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print("PEAK", int(peak) // 1024, "torch" in sys.modules)
sys.exit(status)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """40 MB of text, and PyTorch, which would cost more than all of it, stays away."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdeéß日🙂", k=draw.randint(1, 9))) for _ in range(999)]
    page = " ".join(draw.choices(words, k=200_000)).encode() + b"\r\n"
    pages = (40 << 20) // len(page) + 1
    (tmp_path / "large.txt").write_bytes(page * pages)
    command = [sys.executable, "-c", MEASURE, "prepare", "mine", "--input=large.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    megabytes, with_torch = done.stdout.splitlines()[-1].split()[1:]
    assert int(megabytes) < 150 and with_torch == "False"
    characters = Dataset(str(tmp_path / "data"), "mine").meta["characters"]
    assert sum(characters.values()) == pages * (len(page.decode()) - 1)  # CR LF is one
