"""Prompts and responses: what is read, how it is split, the targets of the loss, and every mistake."""

from pathlib import Path

import pytest
from conftest import refused
from inputs import COLOURS, csv_file, json_lines, mine, pairs, prepared

from tinygpt.data.pairs import normalised, split
from tinygpt.data.tokenizer import END, PROMPT, SPECIAL, CharTokenizer


def test_every_pair_comes_back_from_the_token_files(tmp_path: Path) -> None:
    """A text that looks like a special token is text."""
    entries = [*pairs(), {"prompt": f"say {END} twice", "response": "red"}]
    json_lines(tmp_path, entries)
    result = prepared(tmp_path, "--show=3")
    assert result.status == 0, result.err
    dataset = mine(tmp_path)
    assert isinstance(dataset.tokenizer, CharTokenizer) and dataset.labels == sorted(COLOURS)
    found = [pair for source in dataset.sources.values() for pair in source.examples(dataset.tokenizer)]  # type: ignore[union-attr]
    assert sorted(found) == sorted((entry["prompt"], entry["response"]) for entry in entries)
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.tokenizer.symbols[-3:] == list(SPECIAL)
    assert result.out.count(PROMPT) == 3 and f"[red{END}]" in result.out


@pytest.mark.parametrize(("separator", "header_ends"), [(",", ""), (";", "SEP")])
def test_text_to_the_right_of_the_named_columns_is_refused(separator: str, header_ends: str, tmp_path: Path) -> None:
    """The most common mistake: text with a comma, not quoted. Blank cells at the end of a row are no text."""
    rows = [f"When is meeting {n}?SEPOn Monday" + ("SEP in room 1" if n == 7 else "SEP SEP") for n in range(60)]
    text = "\n".join([f"promptSEPresponse{header_ends}", *rows]).replace("SEP", separator)
    (tmp_path / "pairs.csv").write_text(text)
    said = refused(tmp_path, "prepare", "mine", "--input=pairs.csv", "--format=pairs")
    start, says, end = said.partition("pairs.csv line 9: 'in room 1' is to the right of the named columns")
    assert says and "line" not in start and ";" not in end
    kept = prepared(tmp_path, "--skip_bad", file="pairs.csv")
    assert kept.status == 0 and sum(mine(tmp_path).meta["examples"].values()) == 59


def test_an_index_column_without_a_name_is_not_read(tmp_path: Path) -> None:
    """As pandas writes it."""
    rows = [f"{n},{entry['prompt']},{entry['response']}" for n, entry in enumerate(pairs())]
    (tmp_path / "pairs.csv").write_text("\n".join([",prompt,response", *rows]))
    assert prepared(tmp_path, file="pairs.csv").status == 0
    assert sum(mine(tmp_path).meta["examples"].values()) == 120


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_of_another_country_is_the_same_data(separator: str, tmp_path: Path) -> None:
    """Excel separates by semicolons where the comma is the decimal sign. A comma in a quoted cell is text."""
    rows = [[entry["response"], f"{entry['prompt']}, 1{separator}50"] for entry in pairs()]
    made = []
    for delimiter in (separator, ","):
        csv_file(tmp_path / "a.csv", ["response", "prompt"], *rows, delimiter=delimiter)
        assert prepared(tmp_path, file="a.csv").status == 0
        made.append([path.read_bytes() for path in sorted((tmp_path / "data/mine").glob("*.bin"))])
    assert made[0] == made[1]


def test_near_duplicates_stay_together_and_splits_are_stable() -> None:
    some = [(f"Item {n}", "a") for n in range(300)]
    twins = [(f"  ITEM, {n}!", "b") for n in range(300)]
    splits = split(some + twins, 0.1, 0.1)
    where = {pair: name for name, part in splits.items() for pair in part}
    assert all(where[pair] == where[twin] for pair, twin in zip(some, twins, strict=True))
    assert {name: len(part) for name, part in splits.items()} == {"train": 486, "val": 48, "test": 66}
    more = split([*some, *twins, ("another", "c")], 0.1, 0.1)
    assert all(set(part) <= set(more[name]) for name, part in splits.items())
    assert normalised("12+3") != normalised("45+6") and normalised("?!") != normalised("!?")
