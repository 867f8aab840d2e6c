"""Token files are what was prepared, or refused; batches are a function of the seed and the step."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinygpt.data import dataset as data
from tinygpt.data.dataset import Dataset, TokenWriter
from tinygpt.data.rows import draw_windows, windows
from tinygpt.errors import TinyGPTError

PATIENT = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the prepared dataset `tiny`, at tmp_path/tiny."""
    return Path(shutil.copytree(tiny_data / "data/tiny", tmp_path / "tiny"))


def complaint(folder: Path, block_size: int = 1) -> str:
    with pytest.raises(TinyGPTError) as caught:
        Dataset(str(folder.parent), folder.name).require(block_size)
    assert caught.value.status == 2
    return f"{caught.value.message} [{caught.value.hint}]"


# ---- batches ----------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**40),
    block_size=st.integers(1, 64),
    spare=st.integers(1, 1000),
    count=st.integers(0, 50),
    stream=st.integers(0, 2),
)
def test_windows_depend_on_their_arguments_alone_and_fit(
    seed: int, step: int, block_size: int, spare: int, count: int, stream: int
) -> None:
    tokens = block_size + spare
    first = draw_windows(seed, step, tokens, block_size, count, stream)
    np.random.seed(0)  # the global generator, and draws in between, have no say
    draw_windows(seed + 1, step, tokens, block_size, 3, stream)
    again = draw_windows(seed, step, tokens, block_size, count, stream)
    assert first.tolist() == again.tolist() and first.shape == (count,)
    assert all(start >= 0 and start + block_size + 1 <= tokens for start in first)


def test_every_window_can_be_drawn() -> None:
    """tokens - block_size starts: the last one ends on the last token."""
    drawn = draw_windows(1, 0, tokens=12, block_size=8, count=500)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    counts = np.bincount(draw_windows(1, 1, tokens=18, block_size=8, count=100_000))
    assert abs(counts - 10_000).max() < 500  # five standard deviations of a fair draw


def test_seeds_steps_and_streams_differ() -> None:
    drawn = {
        tuple(draw_windows(seed, step, 10**6, 8, 4, stream))
        for seed in range(5)
        for step in range(20)
        for stream in range(3)
    }
    assert len(drawn) == 5 * 20 * 3


def test_the_draw_is_the_same_for_ever() -> None:
    """Another numpy or another version of this code must not change what an old run would have gone on with."""
    assert draw_windows(1337, 0, 1_003_854, 64, 3).tolist() == [31770, 389898, 218726]
    assert draw_windows(1337, 1999, 1_003_854, 64, 3, stream=2).tolist() == [225922, 604335, 878926]


@given(tokens=st.lists(st.integers(0, 65_535), min_size=12, max_size=40), block_size=st.integers(1, 8))
def test_windows_are_slices(tokens: list[int], block_size: int) -> None:
    starts = draw_windows(0, 0, len(tokens), block_size, 5)
    made = windows(np.array(tokens, dtype="<u2"), starts, block_size)
    assert made.dtype == np.int64
    assert made.tolist() == [tokens[start : start + block_size + 1] for start in starts]


def test_the_global_batch_does_not_depend_on_the_number_of_processes(tiny_data: Path) -> None:
    """1, 2 and 4 processes: their shares, put together, are the same rows in the same order, at 100 steps."""
    import torch

    from tinygpt.config.schema import TrainConfig
    from tinygpt.train import batch
    from tinygpt.training.processes import Processes

    config = TrainConfig(batch_size=4, gradient_accumulation_steps=4, block_size=8, seed=5)
    dataset = Dataset(str(tiny_data / "data"), "tiny")

    def shares(step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        made = []
        for rank in range(count):
            run: Any = SimpleNamespace(config=config, dataset=dataset, ranks=Processes(rank, rank, count))
            run.compute = SimpleNamespace(device=torch.device("cpu"))
            run.width, run.base_data = config.block_size, None
            made.append([part.reshape(-1, 8) for part in batch(run, step)[:2]])
        return torch.cat([x for x, _ in made]), torch.cat([y for _, y in made])

    for step in range(100):
        x, y = shares(step, 1)
        starts = draw_windows(5, step, len(dataset.splits["train"]), 8, 16)
        assert x.tolist() == [dataset.splits["train"][start : start + 8].tolist() for start in starts]
        assert torch.equal(x[:, 1:], y[:, :-1])
        for count in (2, 4):
            for part, whole in zip(shares(step, count), (x, y), strict=True):
                assert torch.equal(part, whole)


# ---- token files ------------------------------------------------------------------------------------------------


def test_a_dataset_is_what_was_prepared(tiny_data: Path) -> None:
    dataset = Dataset(str(tiny_data / "data"), "tiny")
    text = (tiny_data / "text.txt").read_text()
    joined = np.concatenate([dataset.splits["train"], dataset.splits["val"]])
    assert dataset.tokenizer.decode(joined) == text
    as_nanogpt_reads_it = np.memmap(tiny_data / "data/tiny/train.bin", dtype=np.uint16, mode="r")
    assert as_nanogpt_reads_it.tolist() == dataset.splits["train"].tolist()
    assert dataset.meta["sha256"]["source"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_large_file_is_mapped_and_reads_the_same(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset(str(tiny_data / "data"), "tiny").splits["train"]
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    mapped = Dataset(str(tiny_data / "data"), "tiny").splits["train"]
    assert isinstance(mapped, np.memmap) and not isinstance(whole, np.memmap)
    assert mapped.tolist() == whole.tolist()
    assert windows(mapped, np.array([0, 5]), 8).tolist() == windows(whole, np.array([0, 5]), 8).tolist()


def test_a_writer_survives_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take fewer bytes than it is given."""
    ids = np.arange(1000, dtype="<u2")
    writer = TokenWriter(tmp_path / "train.bin")
    file = writer._file
    writer._file = SimpleNamespace(write=lambda part: file.write(part[:7]), close=file.close)  # type: ignore[assignment]
    writer.write(ids[:600])
    writer.write(ids[600:])
    assert not (tmp_path / "train.bin").exists()
    writer.commit()
    assert (tmp_path / "train.bin").read_bytes() == ids.tobytes()
    assert writer.sha256.hexdigest() == hashlib.sha256(ids.tobytes()).hexdigest() and writer.tokens == 1000
    assert [path.name for path in tmp_path.iterdir()] == ["train.bin"]


@given(split=st.sampled_from(["train", "val"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@PATIENT
def test_any_changed_bit_is_found(split: str, place: float, bit: int, tiny_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_data / "data/tiny", tmp_path / "tiny", dirs_exist_ok=True))
    path = folder / f"{split}.bin"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    said = complaint(folder)
    assert f"{split}.bin: " in said and ("outside the" in said or "has changed" in said)
    assert "re-run tinygpt prepare tiny" in said


@given(split=st.sampled_from(["train", "val"]), place=st.floats(0, 1, exclude_max=True))
@PATIENT
def test_any_cut_is_found(split: str, place: float, tiny_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_data / "data/tiny", tmp_path / "tiny", dirs_exist_ok=True))
    path = folder / f"{split}.bin"
    path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])
    assert f"{split}.bin: " in complaint(folder)


def test_splits_that_changed_places_are_found(folder: Path) -> None:
    (folder / "train.bin").rename(folder / "other.bin")
    (folder / "val.bin").rename(folder / "train.bin")
    (folder / "other.bin").rename(folder / "val.bin")
    assert "has changed" in complaint(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta: meta.pop("sha256"), "damaged"),
        (lambda meta: meta.pop("format"), "damaged"),
        (lambda meta: meta.update(format="1"), "damaged"),
        (lambda meta: meta.update(sha256=[]), "damaged"),
        (lambda meta: meta["sha256"].pop("train.bin"), "has changed"),
        (lambda meta: meta["sha256"].update({"val.bin": "0" * 64}), "has changed"),
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


@given(content=st.data())
@PATIENT
def test_any_meta_json_is_read_or_refused(content: st.DataObject, tiny_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_data / "data/tiny", tmp_path / "tiny", dirs_exist_ok=True))
    whole = (folder / "meta.json").read_bytes()
    at = content.draw(st.integers(0, len(whole)))
    (folder / "meta.json").write_bytes(whole[:at] + content.draw(st.binary(max_size=3)) + whole[at + 1 :])
    with contextlib.suppress(TinyGPTError):
        Dataset(str(tmp_path), "tiny")


def test_too_short_for_a_block_says_what_would_fit(folder: Path) -> None:
    tokens = Dataset(str(folder.parent), "tiny").splits["val"]
    assert f"val has {len(tokens)} tokens; block_size {len(tokens)} needs {len(tokens) + 1}" in complaint(
        folder, block_size=len(tokens)
    )
    assert f"--block_size={len(tokens) - 1} or less" in complaint(folder, block_size=len(tokens))
    Dataset(str(folder.parent), "tiny").require(len(tokens) - 1)


def test_the_prepare_command_for_what_is_missing(tmp_path: Path) -> None:
    assert "[tinygpt prepare shakespeare_char --data_dir=" in complaint(tmp_path / "shakespeare_char")
    assert complaint(tmp_path / "mine").endswith(" --input YOUR_TEXT]")


@pytest.mark.parametrize("name", ["../tiny", "/etc", "a" * 300, "", "."])
def test_a_dataset_name_from_a_file_stays_inside_the_folder(name: str, tiny_data: Path) -> None:
    """A checkpoint's config names its dataset, and the checkpoint may be a stranger's."""
    with pytest.raises(TinyGPTError, match="is not a folder's name inside"):
        Dataset(str(tiny_data / "data"), name)
