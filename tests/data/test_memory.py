"""Datasets from memory are those that `tinygpt prepare` writes, with a tokenizer of one's choice."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ok

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.dataset import Dataset
from tinygpt.data.memory import write_dataset
from tinygpt.data.tokenizer import SPECIAL

PAIRS = {"train": [("red", "rot"), ("blue", "blau")], "val": [("green", "gruen")], "test": [("grey", "grau")]}
TEXT = "".join(f"{number} kings sing\n" for number in range(40))


def test_a_text_is_written_as_prepare_writes_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    ok(tmp_path, "prepare", "file", "--input=text.txt")
    cut = len(TEXT) * 9 // 10
    for name, content in (("whole", TEXT), ("parts", {"train": TEXT[:cut], "val": TEXT[cut:]})):
        ours, theirs = write_dataset(tmp_path / "data" / name, content), Dataset(str(tmp_path / "data"), "file")
        assert {**ours.meta, "options": {}} == {**theirs.meta, "options": {}} and not ours.labels
        assert all(np.array_equal(ours.splits[split], theirs.splits[split]) for split in ("train", "val"))


def test_pairs_are_written_as_prepare_writes_them(tmp_path: Path) -> None:
    lines = ({"prompt": f"{number} red", "response": ("odd", "even")[number % 2]} for number in range(40))
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ok(tmp_path, "prepare", "file", "--input=pairs.jsonl", "--format=pairs")
    theirs = Dataset(str(tmp_path / "data"), "file")
    splits = {split: source.examples(theirs.tokenizer) for split, source in theirs.sources.items()}
    ours = write_dataset(tmp_path / "data/memory", splits, theirs.labels)
    assert {**ours.meta, "options": {}} == {**theirs.meta, "options": {}} and ours.pairs


def test_a_tokenizer_is_another_dataset_s_or_that_of_texts(tmp_path: Path) -> None:
    joined = write_dataset(tmp_path / "pairs", PAIRS, ["rot", "blau"], [PAIRS, TEXT])
    assert joined.tokenizer.to_dict()["symbols"][-3:] == [*SPECIAL] and joined.labels == ["rot", "blau"]
    text = write_dataset(tmp_path / "text", TEXT, tokenizer=joined.tokenizer)
    assert text.tokenizer.to_dict() == joined.tokenizer.to_dict()
    assert text.tokenizer.decode(text.splits["val"].tolist()) == TEXT[len(TEXT) * 9 // 10 :]
    assert write_dataset(tmp_path / "wide", "abcabc" * 9, tokenizer=("xyz", "abc")).tokenizer.vocab_size == 6


def test_what_cannot_be_written_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    text = write_dataset(tmp_path / "text", TEXT)
    for content, tokenizer, message in (
        (PAIRS | {"test": []}, None, "the split test is empty"),
        ({"train": TEXT}, None, "the split val is empty"),
        ("a queen", text.tokenizer, "is not in this model's"),
        (PAIRS, text.tokenizer, "no special tokens for pairs"),
        ({"train": TEXT, "val": TEXT, "test": TEXT}, None, "unknown split test"),
        (PAIRS | {"test": TEXT}, None, "texts and pairs"),
    ):
        with pytest.raises(TinyGPTError, match=message):
            write_dataset(tmp_path / "other", content, (), tokenizer)
        assert not (tmp_path / "other/meta.json").exists()
    with pytest.raises(TinyGPTError, match="labels, where each split is a text"):
        write_dataset(tmp_path / "other", TEXT, ["yes"])
