"""JSON Lines, compressed text, several processes: the same bytes as one, or a sentence, and nothing is left behind."""

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, listing, needs_fork, ok, refused, until
from inputs import FILES, as_nanogpt_does_it, bins

from tinygpt.data import text_files
from tinygpt.data.bpe import train_bpe
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, GPT2Tokenizer, HuggingFaceTokenizer

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    zstd = None
    with contextlib.suppress(ImportError):
        from backports import zstd

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")


def documents(count: int, seed: int = 1, letters: str = "abcdefg é日🙂\n'") -> list[str]:
    """Texts of 0 to 300 characters; some end a line."""
    draw = random.Random(seed)
    return ["".join(draw.choices(letters, k=draw.randrange(300))) for _ in range(count)]


def records(texts: list[str], **options: Any) -> bytes:
    """JSON Lines with other keys, empty lines, and CRLF between the records."""
    lines = (json.dumps({"id": number, "text": text}, **options) for number, text in enumerate(texts))
    return "\r\n\n".join(lines).encode()


def inputs(folder: Path) -> list[list[str]]:
    """Write files of every kind into folder/in; return the documents of each."""
    parts = [documents(40, seed) for seed in range(3 + (zstd is not None))]
    (folder / "in").mkdir()
    (folder / "in/a.jsonl").write_bytes(b"\xef\xbb\xbf" + records(parts[0]) + b"\n")
    (folder / "in/b.ndjson.gz").write_bytes(gzip.compress(records(parts[1], ensure_ascii=False)))
    packed = "".join(parts[2]).encode()
    (folder / "in/c.txt.gz").write_bytes(gzip.compress(packed[:500]) + gzip.compress(packed[500:]))  # two members
    if zstd:
        (folder / "in/d.jsonl.zst").write_bytes(zstd.compress(records(parts[3])))
    (folder / "in/e.txt").write_text("the\nend")
    return [*parts, ["the\nend"]]


def ending_lines(texts: list[str]) -> str:
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts if text)


def test_the_bytes_are_those_of_the_documents_as_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 700)  # blocks end in the middle of lines
    parts = inputs(tmp_path)
    plain = "".join(parts[2])
    files = [ending_lines(parts[0]), ending_lines(parts[1]), ending_lines([plain]), *map(ending_lines, parts[3:-1])]
    expected = "".join([*files, "the\nend"])
    made = ok(tmp_path, "prepare", "mine", "--input=in", "--val_fraction=0.6")
    assert bins(tmp_path / "data/mine") == as_nanogpt_does_it(expected, 0.6)[:2]
    assert f"characters: {len(expected):,}\n" in made.out


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs(tmp_path)
    made = []
    for workers, block in ((1, 1 << 20), (1, 900), (3, 900)):
        monkeypatch.setattr(text_files, "BLOCK", block)
        result = ok(tmp_path, "prepare", "mine", "--input=in", f"--tokenizer={tokenizer}", f"--workers={workers}")
        made.append((result.out, listing(tmp_path / "data")))
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_gpt2s_ids_are_those_of_nanogpts_map(workers: int, tmp_path: Path) -> None:
    """nanoGPT's data/openwebtext/prepare.py: the ids of each document, then that of <|endoftext|>."""
    texts = ["The first", *documents(50, letters="abc  \n."), "", "the end"]
    (tmp_path / "a.jsonl").write_bytes(records(texts))
    result = ok(tmp_path, "prepare", "mine", "--input=a.jsonl", "--tokenizer=gpt2", f"--workers={workers}")
    tokenizer, remaining = GPT2Tokenizer(), int(len("".join(texts)) * 0.9)
    expected: dict[str, list[int]] = {"train": [], "val": []}
    for text in filter(None, texts):
        head, tail = text[: max(0, remaining)], text[max(0, remaining) :]
        expected["train"] += tokenizer.encode(head).tolist()
        expected["val"] += tokenizer.encode(tail).tolist()
        expected["val" if tail else "train"].append(50256)
        remaining -= len(text)
    dataset = Dataset(str(tmp_path / "data"), "mine")
    assert {split: ids.tolist() for split, ids in dataset.splits.items()} == expected
    assert "between two tokens):\n  464 717\n    -> The| first\nwritten:" in result.out


def test_documents_end_with_the_token_of_the_tokenizer_that_a_dataset_adopts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(records(["one text", "another", "the last one"]))
    ok(tmp_path, "prepare", "mine", "--input=a.jsonl", "--tokenizer=gpt2")
    trained = train_bpe(documents(50), 300)
    with_end = HuggingFaceTokenizer(trained.joined(CharTokenizer(SPECIAL)).to_dict()["json"], eos="<|end|>")
    for tokenizer, end in ((with_end, "<|end|>"), (trained, "\n")):
        dataset = Dataset(str(tmp_path / "data"), "mine")
        assert dataset.adopt_tokenizer(tokenizer)
        assert tokenizer.decode(dataset.splits["train"]) == f"one text{end}another{end}the last "
        assert tokenizer.decode(dataset.splits["val"]) == f"one{end}"


def test_another_key(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": f"page {n} ", "text": 5}) + "\n" for n in range(9)))
    ok(tmp_path, "prepare", "mine", "--input=a.jsonl", "--text_field=body")
    dataset = Dataset(str(tmp_path / "data"), "mine")
    assert dataset.tokenizer.decode(dataset.splits["train"]).startswith("page 0 \npage 1 \n")
    assert dataset.prepare_command.startswith("tinygpt prepare mine --input a.jsonl --text_field=body")


GOOD = b'{"text": "a good line"}\n'


def test_a_line_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the blocks end. Other mistakes: ../transcripts/data_text.txt."""
    monkeypatch.setattr(text_files, "BLOCK", 50)
    monkeypatch.setattr(text_files, "LONGEST_LINE", 2000)
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + GOOD + b'{"text": "' + b"x" * 5000 + b"\n" + GOOD)
    assert "a.jsonl line 4: longer than 0 MB" in refused(tmp_path, "prepare", "mine", "--input=a.jsonl")


@pytest.mark.parametrize("ending", ["gz", pytest.param("zst", marks=pytest.mark.skipif(not zstd, reason="no zstd"))])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_damaged_file_is_refused(kind: str, ending: str, tmp_path: Path) -> None:
    content = GOOD * 2000 + os.urandom(999).hex().encode()
    packed = gzip.compress(content) if ending == "gz" else zstd.compress(content, options={201: 1})  # with a checksum
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    for bad in (packed[:-20], bytes(flipped), b"hello, this is not compressed"):
        (tmp_path / f"a.{kind}.{ending}").write_bytes(bad)
        message = refused(tmp_path, "prepare", "mine", f"--input=a.{kind}.{ending}")
        assert f"a.{kind}.{ending}: is damaged or cut short" in message and "download it again" in message


def children(pid: int) -> list[int]:
    """The worker processes of a command, and not the process with which Python tracks semaphores."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    return []


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@needs_fork
@needs_proc
@pytest.mark.parametrize("ended_by", ["kill -9", "Ctrl-C", pytest.param("the end of a worker", marks=pytest.mark.slow)])
def test_nothing_is_left_when_it_ends_early(ended_by: str, tmp_path: Path) -> None:
    """The old dataset is intact, and no process and no file remains."""
    (tmp_path / "a.txt").write_text("abcd" * 500)
    ok(tmp_path, "prepare", "mine", "--input=a.txt")
    before = listing(tmp_path / "data")
    line = json.dumps({"text": "".join(random.Random(1).choices("abcdefgh \n", k=9000))})
    (tmp_path / "b.jsonl").write_text(f"{line}\n" * 6_000)
    command = [sys.executable, "-m", "tinygpt", "prepare", "mine", "--input=b.jsonl", "--workers=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        until(lambda: any(path.stat().st_size for path in (tmp_path / "data/mine").glob(".train.bin*.tmp")))
        workers = children(process.pid)
        assert len(workers) == 2
        if ended_by == "the end of a worker":
            os.kill(workers[0], signal.SIGKILL)
        elif ended_by == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.kill()
        errors = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
    until(lambda: not any(map(alive, workers)))
    after = listing(tmp_path / "data")
    after = {name: after[name] for name in after if not name.endswith((".tmp", ".tmp.lock"))}
    assert after.keys() == before.keys() and {**after, "mine/.lock": b""} == {**before, "mine/.lock": b""}
    if ended_by == "kill -9":
        assert process.returncode == -signal.SIGKILL
        ok(tmp_path, "prepare", "mine", "--input=a.txt")  # removes what is left
    elif ended_by == "Ctrl-C":
        assert process.returncode == 130 and errors == ""
    else:
        assert process.returncode == 1 and errors.startswith("error: a worker process was ended")
    assert set(os.listdir(tmp_path / "data/mine")) == FILES
