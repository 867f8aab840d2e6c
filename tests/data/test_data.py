"""Token files are what was prepared, or refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_TRAIN, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinygpt.base.errors import TinyGPTError
from tinygpt.data import dataset as data
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import TextRows
from tinygpt.data.tokenizer import CharTokenizer


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the prepared dataset `tiny`, at tmp_path/tiny."""
    return Path(shutil.copytree(tiny_data / "data/tiny", tmp_path / "tiny"))


def complaint(folder: Path, block_size: int = 1) -> str:
    with pytest.raises(TinyGPTError) as caught:
        Dataset(str(folder.parent), folder.name).require(block_size)
    assert caught.value.status == 2
    return f"{caught.value.message} [{caught.value.hint}]"


def test_a_large_file_is_mapped_and_reads_the_same(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset(str(tiny_data / "data"), "tiny").splits["train"]
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    mapped = Dataset(str(tiny_data / "data"), "tiny").splits["train"]
    assert isinstance(mapped, np.memmap) and not isinstance(whole, np.memmap)
    assert mapped.tolist() == whole.tolist()
    rows = [TextRows(tokens).rows(np.array([0, 5]), 8) for tokens in (mapped, whole)]
    assert np.array_equal(*rows)


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


@pytest.mark.parametrize("name", ["../tiny", "/etc", ""])
def test_a_dataset_name_from_a_file_stays_inside_the_folder(name: str, tiny_data: Path) -> None:
    """A checkpoint's config names its dataset, and the checkpoint may be a stranger's."""
    with pytest.raises(TinyGPTError, match="is not a folder name in"):
        Dataset(str(tiny_data / "data"), name)


def test_a_tokenizer_that_knows_all_characters_is_adopted(tiny_data: Path) -> None:
    dataset = Dataset(str(tiny_data / "data"), "tiny")
    own = dataset.tokenizer
    assert isinstance(own, CharTokenizer)
    text = own.decode(dataset.splits["val"])
    larger = CharTokenizer(["§", *reversed(own.symbols), "°"])
    dataset.require_tokenizer(larger, "out/ckpt.pt", "a hint")
    assert dataset.tokenizer is larger and larger.decode(dataset.splits["val"]) == text
    assert dataset.sources["val"].tokens is dataset.splits["val"]


def test_a_hint_for_block_size_holds_for_both_splits(work: Path) -> None:
    splits = Dataset(str(work / "data"), "tiny").splits
    largest = min(len(splits["train"]), len(splits["val"])) - 1
    assert f"use --block_size={largest} or less" in refused(work, *TINY_TRAIN, "--block_size=30000")
    Dataset(str(work / "data"), "tiny").require(largest)
