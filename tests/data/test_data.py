"""Token files are what was prepared, or refused."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cli_here, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinygpt.base import files
from tinygpt.base.configs.core import PrepareConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.data import dataset as data
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import TextRows
from tinygpt.data.token_files import write_token_files
from tinygpt.data.tokenizer import CharTokenizer, GPT2Tokenizer
from tinygpt.prepare import prepare


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the prepared dataset `tiny`, at tmp_path/tiny."""
    return Path(shutil.copytree(tiny_data / "data/tiny", tmp_path / "tiny"))


def complaint(folder: Path, block_size: int = 1) -> str:
    with pytest.raises(TinyGPTError) as caught:
        Dataset(str(folder.parent), folder.name).require(block_size)
    assert caught.value.status == 2
    return f"{caught.value.message} [{caught.value.hint}]"


# ---- token files ------------------------------------------------------------------------------------------------


def test_a_large_file_is_mapped_and_reads_the_same(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset(str(tiny_data / "data"), "tiny").splits["train"]
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    mapped = Dataset(str(tiny_data / "data"), "tiny").splits["train"]
    assert isinstance(mapped, np.memmap) and not isinstance(whole, np.memmap)
    assert mapped.tolist() == whole.tolist()
    rows = [TextRows(tokens).rows(np.array([0, 5]), 8) for tokens in (mapped, whole)]
    assert np.array_equal(*rows)


def test_a_writer_survives_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take fewer bytes than it is given."""

    class Short(io.FileIO):
        def write(self, part: Any) -> int:
            assert not (tmp_path / "train.bin").exists()
            return super().write(memoryview(part)[:7])

    monkeypatch.setattr(files, "open", lambda path, mode: io.BufferedRandom(Short(path, mode)), raising=False)
    ids, tokenizer = np.arange(9000, dtype="<u2"), CharTokenizer("ab")
    pieces = [("train", ids[:6000]), ("train", ids[6000:])]
    meta = write_token_files(tmp_path, ("train",), pieces, tokenizer, "", {})
    assert (tmp_path / "train.bin").read_bytes() == ids.tobytes()
    assert meta["sha256"]["train.bin"] == hashlib.sha256(ids.tobytes()).hexdigest()
    assert meta["tokens"] == {"train": 9000}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "train.bin"]


@given(split=st.sampled_from(["train", "val"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(-1, 7))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_bit_and_any_cut_is_found(
    split: str, place: float, bit: int, tiny_data: Path, tmp_path: Path
) -> None:
    """bit: -1 for a cut."""
    folder = Path(shutil.copytree(tiny_data / "data/tiny", tmp_path / "tiny", dirs_exist_ok=True))
    path = folder / f"{split}.bin"
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if bit < 0:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    path.write_bytes(content)
    said = complaint(folder)
    assert f"{split}.bin: " in said and "re-run tinygpt prepare tiny" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta: meta.pop("format"), "damaged"),
        (lambda meta: meta.update(sha256=[]), "damaged"),
        (lambda meta: meta["sha256"].pop("train.bin"), "has changed"),
        (lambda meta: meta.update(format=2), "newer"),
        (lambda meta: meta.pop("tokenizer"), "tokenizer"),
        (lambda meta: meta["tokenizer"]["symbols"].pop(), "outside the"),
    ],
)
def test_a_changed_meta_json_is_refused(change: Callable[[dict], object], says: str, folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    assert says in complaint(folder)


def test_the_prepare_command_for_what_is_missing(tmp_path: Path) -> None:
    assert "[tinygpt prepare shakespeare_char --data_dir=" in complaint(tmp_path / "shakespeare_char")
    assert complaint(tmp_path / "mine").endswith(" --input YOUR_TEXT]")


@pytest.mark.parametrize("name", ["../tiny", "/etc", "a" * 300, "", "."])
def test_a_dataset_name_from_a_file_stays_inside_the_folder(name: str, tiny_data: Path) -> None:
    """A checkpoint's config names its dataset, and the checkpoint may be a stranger's."""
    with pytest.raises(TinyGPTError, match="is not a folder name in"):
        Dataset(str(tiny_data / "data"), name)


# ---- vocabularies -----------------------------------------------------------------------------------------------


def test_a_tokenizer_that_knows_all_characters_is_adopted(tiny_data: Path) -> None:
    dataset = Dataset(str(tiny_data / "data"), "tiny")
    own = dataset.tokenizer
    assert isinstance(own, CharTokenizer)
    text = own.decode(dataset.splits["val"])
    larger = CharTokenizer(["§", *reversed(own.symbols), "°"])
    dataset.require_tokenizer(larger, "out/ckpt.pt", "a hint")
    assert dataset.tokenizer is larger and larger.decode(dataset.splits["val"]) == text
    assert dataset.sources["val"].tokens is dataset.splits["val"]


@pytest.mark.parametrize(("lacks", "says"), [(1, "A"), (5, "A, B, C, D, E"), (7, "A, B, C, D, E ...")])
def test_a_tokenizer_that_lacks_characters_is_refused_with_their_names(tmp_path: Path, lacks: int, says: str) -> None:
    (tmp_path / "a.txt").write_text("GFEDCBA_" * 50)
    prepare(PrepareConfig("mine", (str(tmp_path / "a.txt"),), data_dir=str(tmp_path)))
    dataset = Dataset(str(tmp_path), "mine")
    before = dataset.tokenizer
    with pytest.raises(TinyGPTError) as caught:
        dataset.require_tokenizer(CharTokenizer("ABCDEFG_"[lacks:] + "§"), "out/ckpt.pt", "a hint")
    start = r"dataset 'mine' and out/ckpt.pt have different vocabularies \([0-9a-f]{12} and [0-9a-f]{12}\): only the "
    assert re.fullmatch(start + r"dataset has (.*)", caught.value.message)[1].replace("'", "") == says  # type: ignore
    assert caught.value.hint == "a hint" and dataset.tokenizer is before


def test_a_tokenizer_of_another_kind_is_refused_for_a_large_dataset(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinygpt.data.dataset.ENCODED_AGAIN", 10)
    bytes_pairs = GPT2Tokenizer.__new__(GPT2Tokenizer)  # whose vocabulary may not be on this machine
    with pytest.raises(TinyGPTError, match=r"(?m)have different vocabularies \([0-9a-f]{12} and [0-9a-f]{12}\)$"):
        Dataset(str(tiny_data / "data"), "tiny").require_tokenizer(bytes_pairs, "out/ckpt.pt", "a hint")


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_hint_for_block_size_holds_for_both_splits(work: Path, command: str) -> None:
    flags = ["--dataset=tiny", "--n_layer=1", "--n_head=1", "--n_embd=8", "--max_iters=1", "--device=cpu"]
    hint = re.search(r"use (--block_size=\d+) or less", refused(work, command, *flags, "--block_size=30000"))
    assert hint
    splits = Dataset(str(work / "data"), "tiny").splits
    assert hint[1] == f"--block_size={min(len(splits['train']), len(splits['val'])) - 1}"
    if command == "train":
        followed = ["--batch_size=1", "--gradient_accumulation_steps=1", "--eval_iters=1"]
        assert cli_here("train", *flags, *followed, hint[1], cwd=work).status == 0


def test_a_hint_for_long_pairs_holds_for_all_splits(tmp_path: Path) -> None:
    lines = [{"prompt": f"{number} {'x' * number}", "response": "y"} for number in range(90)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli_here("prepare", "mine", "--input=pairs.jsonl", "--format=pairs", cwd=tmp_path).status == 0
    dataset = Dataset(str(tmp_path / "data"), "mine")
    longest = max(source.lengths.max() for source in dataset.sources.values())
    with pytest.raises(TinyGPTError) as caught:
        dataset.require(10)
    assert caught.value.hint.endswith(f"block_size {longest - 1} or more")
    dataset.require(longest - 1)
