"""Prompts and responses: what is read, how it is split, the targets of the loss, and every mistake."""

import csv
from pathlib import Path
from typing import Any

import pytest
from conftest import cli_here, listing
from inputs import COLOURS, json_lines, mine, pairs, prepared

from tinygpt.data.pairs import normalised, split
from tinygpt.data.tokenizer import END, PROMPT, RESPONSE, SPECIAL, CharTokenizer

# ---- reading -----------------------------------------------------------------------------------------------------


def test_every_pair_comes_back_from_the_token_files(tmp_path: Path) -> None:
    json_lines(tmp_path, pairs())
    result = prepared(tmp_path, "--show=3")
    assert result.status == 0, result.err
    dataset = mine(tmp_path)
    assert isinstance(dataset.tokenizer, CharTokenizer) and dataset.labels == sorted(COLOURS)
    found = [pair for source in dataset.sources.values() for pair in source.examples(dataset.tokenizer)]  # type: ignore[union-attr]
    assert sorted(found) == sorted((entry["prompt"], entry["response"]) for entry in pairs())
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.tokenizer.symbols[-3:] == list(SPECIAL)
    assert result.out.count(PROMPT) == 3 and f"[red{END}]" in result.out


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header_ends", ["", "SEP"], ids=["no third name", "an empty third name"])
def test_text_to_the_right_of_the_named_columns_is_refused(tmp_path: Path, separator: str, header_ends: str) -> None:
    """The most common mistake: text with a comma, not quoted. Blank cells at the end of a row are no text."""
    rows = [f"When is meeting {n}?SEPOn Monday" + ("SEP in room 1" if n == 7 else "SEP SEP") for n in range(60)]
    text = "\n".join([f"promptSEPresponse{header_ends}", *rows]).replace("SEP", separator)
    (tmp_path / "pairs.csv").write_text(text)
    refused = prepared(tmp_path, file="pairs.csv")
    assert refused.status == 2 and set(listing(tmp_path)) == {"pairs.csv"}
    assert "pairs.csv line 9: 'in room 1' is to the right of the named columns" in refused.err
    assert "--skip_bad" in refused.err and "line 8" not in refused.err and "line 10" not in refused.err
    kept = prepared(tmp_path, "--skip_bad", file="pairs.csv")
    assert kept.status == 0 and sum(mine(tmp_path).meta["examples"].values()) == 59


def test_an_index_column_without_a_name_is_not_read(tmp_path: Path) -> None:
    """As pandas writes it."""
    rows = [f"{n},{entry['prompt']},{entry['response']}" for n, entry in enumerate(pairs())]
    (tmp_path / "pairs.csv").write_text("\n".join([",prompt,response", *rows]))
    assert prepared(tmp_path, file="pairs.csv").status == 0
    assert sum(mine(tmp_path).meta["examples"].values()) == 120


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("Prompt;Response", "--prompt_field=Prompt --response_field=Response"),
        ("Prompt,Response", "--prompt_field=Prompt --response_field=Response"),
        ("Question\tAnswer", "--prompt_field=COLUMN --response_field=COLUMN"),  # which is which, only a person knows
        ("Frage, gestellt;response", "--prompt_field=COLUMN --response_field=response"),
        ("prompt", "--prompt_field=prompt --response_field=COLUMN"),
        ("prompt;my answer;date", "--prompt_field=prompt --response_field=COLUMN"),
        ("id,line,kind", "--prompt_field=COLUMN --response_field=COLUMN"),
        ("Our questions", "delete what is above the names of the columns"),
    ],
)
def test_other_names_of_columns(tmp_path: Path, header: str, hint: str) -> None:
    separator = next((sign for sign in "\t;" if sign in header), ",")
    rows = [separator.join((entry["prompt"], entry["response"])) for entry in pairs()]
    (tmp_path / "pairs.csv").write_text("\n".join([header, *rows]))
    refused = prepared(tmp_path, file="pairs.csv")
    assert refused.status == 2 and refused.err.rstrip().endswith(hint), refused.err
    if "COLUMN" not in hint and hint.startswith("--"):
        assert prepared(tmp_path, *hint.split(), file="pairs.csv").status == 0  # the hint can be followed


def test_csv_with_columns_named_by_flags(tmp_path: Path) -> None:
    with open(tmp_path / "bank.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "line", "kind"])
        writer.writeheader()
        for n, entry in enumerate(pairs()):
            writer.writerow({"id": n, "line": f'{entry["prompt"]}, "{n}"', "kind": entry["response"]})
    assert prepared(tmp_path, "--prompt_field=line", "--response_field=kind", file="bank.csv").status == 0
    dataset = mine(tmp_path)
    texts = dataset.sources["train"].examples(dataset.tokenizer)  # type: ignore[union-attr, arg-type]
    assert all(prompt.endswith('"') and ", " in prompt for prompt, _ in texts)
    wrong = prepared(tmp_path, file="bank.csv")
    assert (
        wrong.status == 2
        and "no column prompt or response; the first row, which has to name the columns, is: id, line, kind"
        in wrong.err
    )


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_of_another_country_is_the_same_data(separator: str, tmp_path: Path) -> None:
    """Excel separates by semicolons where the comma is the decimal sign. A comma in a quoted cell is text."""
    rows = [{"prompt": f"{entry['prompt']}, 1{separator}50", "response": entry["response"]} for entry in pairs()]
    before: dict[str, bytes] = {}
    for name, delimiter in (("there.csv", separator), ("here.csv", ",")):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, ["response", "prompt"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        assert prepared(tmp_path, file=name).status == 0
        made = {path.name: path.read_bytes() for path in (tmp_path / "data/mine").glob("*.bin")}
        assert name == "there.csv" or made == before
        before = made


def test_a_text_that_looks_like_a_special_token_is_text(tmp_path: Path) -> None:
    entries = [*pairs(), {"prompt": f"say {END} twice", "response": END}]
    json_lines(tmp_path, entries)
    assert prepared(tmp_path).status == 0
    dataset = mine(tmp_path)
    found = [pair for source in dataset.sources.values() for pair in source.examples(dataset.tokenizer)]  # type: ignore
    assert (f"say {END} twice", END) in found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "line 121: not a JSON object"),
        ("[1, 2]", "line 121: not a JSON object"),
        ({"prompt": "x"}, "line 121: no key 'response'"),
        ({"prompt": "x", "response": None}, "line 121: the value of 'response' is not text"),
        ({"prompt": [5], "response": "x"}, "line 121: the value of 'prompt' is not text"),
        ('{"prompt": "x", "response": NaN}', "line 121: the value of 'response' is not text"),
        ({"prompt": "x", "response": " "}, "line 121: response is empty"),
    ],
)
def test_bad_lines_are_named_and_stop_the_run(tmp_path: Path, line: Any, says: str) -> None:
    json_lines(tmp_path, [*pairs(), line])
    before = listing(tmp_path)
    result = prepared(tmp_path)
    assert result.status == 2 and says in result.err and "--skip_bad" in result.err
    assert listing(tmp_path) == before
    result = prepared(tmp_path, "--skip_bad")
    assert result.status == 0 and f"left out: pairs.jsonl {says}" in result.err
    assert sum(mine(tmp_path).meta["examples"].values()) == 120


@pytest.mark.parametrize(
    ("entries", "flags", "says"),
    [
        ([], [], "cannot fill the splits"),
        (pairs(3), [], "cannot fill the splits"),
        (pairs(), ["--test_fraction=0.95"], "leave room for training"),
        (pairs(), ["--tokenizer=gpt2"], "special tokens"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, entries: list[Any], flags: list[str], says: str) -> None:
    json_lines(tmp_path, entries)
    before = listing(tmp_path)
    result = prepared(tmp_path, *flags)
    assert result.status == 2 and says in result.err and len(result.err.splitlines()) <= 2
    assert listing(tmp_path) == before


def test_json_lines_are_not_taken_for_text(tmp_path: Path) -> None:
    json_lines(tmp_path, pairs())
    result = cli_here("prepare", "mine", "--input=pairs.jsonl", cwd=tmp_path)
    assert result.status == 2 and "--format pairs" in result.err


# ---- splitting ---------------------------------------------------------------------------------------------------


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


# ---- vocabularies -----------------------------------------------------------------------------------------------


def test_a_dataset_adopts_a_larger_vocabulary(tmp_path: Path) -> None:
    json_lines(tmp_path, pairs())
    assert prepared(tmp_path).status == 0
    dataset, other = mine(tmp_path), CharTokenizer([*"ZYXzyx", *RESPONSE[:0]])
    assert not dataset.adopt_tokenizer(other)
    texts = {name: source.examples(dataset.tokenizer) for name, source in dataset.sources.items()}  # type: ignore
    grown = other.joined(dataset.tokenizer)
    assert grown.symbols[:6] == list("ZYXzyx") and dataset.adopt_tokenizer(grown) and dataset.tokenizer is grown
    assert {name: source.examples(grown) for name, source in dataset.sources.items()} == texts  # type: ignore[union-attr]
