"""The numbers of rows in the file: what each command that reads a sheet shows for a row, with the numbers by hand."""

import json
import re
from pathlib import Path

import pytest
from conftest import cli_here, ok, refused
from inputs import csv_file, json_lines, mine, prepared, workbook

from tinygpt.examine.why.explained import lines_of_pairs

pytest.importorskip("sklearn")

HEADER = ["prompt", "response", "day"]
# The first rows, and for each kind of file the number of each by hand. In CSV, `first` is on lines 2 and 3.
NAMES = ("first", "empty", "bad", "hello card", "hello loan", "mail")
NUMBERS = {
    "csv": dict(zip(NAMES, (2, 4, 5, 6, 7, 8), strict=True)),
    "xlsx": dict(zip(NAMES, (2, 3, 4, 5, 6, 7), strict=True)),
    "jsonl": dict(zip(NAMES, (1, 2, 3, 4, 5, 6), strict=True)),
}
UNIT = {"csv": "line", "xlsx": "row", "jsonl": "line"}


def sheet(folder: Path, kind: str) -> str:
    """Write a sheet, and return its name. After the first rows, each prompt and each day ends with its number."""
    numbers = NUMBERS[kind]
    rows: list[list[str]] = [
        ["a card with\na line break", "card", f"at {numbers['first']}"],
        [],
        ["no label", "", "at no time"],
        ["hello", "card", f"at {numbers['hello card']}"],
        ["hello", "loan", f"at {numbers['hello loan']}"],
        ["my card, mia.muster@example.org", "card", f"at {numbers['mail']}"],
    ]
    for number in range(numbers["mail"] + 1, numbers["mail"] + 61):
        label = "card" if number % 2 else "loan"
        word = {"card": "loan", "loan": "card"}[label] if number % 20 == 0 else label  # a doubtful label
        prompt = f"{word} {word} {'abcdefgh'[number % 8]} {number}"
        if number in (30, 31):
            prompt = f"please send a new credit card to my address {number}"
        rows.append([prompt, label, f"at {number}"])
    path = folder / f"pairs.{kind}"
    if kind == "csv":
        csv_file(path, HEADER, *rows)
    elif kind == "xlsx":
        workbook(path, HEADER, *rows)
    else:
        json_lines(folder, [dict(zip(HEADER, row, strict=True)) if row else "" for row in rows])
    return path.name


@pytest.mark.parametrize("kind", NUMBERS)
def test_prepare_why_and_advise_name_a_row_by_its_number(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, numbers, unit = sheet(tmp_path, kind), NUMBERS[kind], UNIT[kind]
    bad = f"{name} {unit} {numbers['bad']}: response is empty"
    message = prepared(tmp_path, file=name).err
    assert bad in message and message.count(f"{unit} ") == 1 and "--skip_bad" in message
    assert f"left out: {bad}" in prepared(tmp_path, "--skip_bad", file=name).err
    assert bad in refused(tmp_path, "advise", name)
    message = cli_here("advise", name, "--skip_bad", "--time=day", cwd=tmp_path).err
    assert f"left out: {bad}" in message
    assert f"{name} {unit} {numbers['first']}: day 'at {numbers['first']}' is not a date" in message
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    places = lines_of_pairs(mine(tmp_path))
    assert places["a card with\na line break", "card"] == [f"{name} {unit} {numbers['first']}"]
    assert places["hello", "loan"] == [f"{name} {unit} {numbers['hello loan']}"]
    others = [(prompt, found) for (prompt, _), found in places.items() if re.search(r"\d", prompt)]
    assert len(others) == 60
    assert all(found == [f"{name} {unit} {prompt.rpartition(' ')[2]}"] for prompt, found in others)
    assert capsys.readouterr() == ("", "")  # a row that prepare has left out is no news


def test_the_tables_of_advise(tmp_path: Path) -> None:
    numbers = NUMBERS["csv"]
    result = ok(tmp_path, "advise", sheet(tmp_path, "csv"), "--skip_bad", "--json")
    text, values = " ".join(result.err.split()), json.loads(result.out)
    both = f"line {numbers['hello card']}, line {numbers['hello loan']}: hello → card | loan"
    assert f"e.g. {both}" in text
    assert f"e.g. line {numbers['mail']}: " in text and "…@example.org" in text
    doubtful = {row["line"]: row["prompt"] for row in values["mistakes"] if row["prompt"] != "hello"}
    assert doubtful.keys() >= {20, 40, 60} and all(prompt.endswith(f" {line}") for line, prompt in doubtful.items())
    hello = [row for row in values["mistakes"] if row["prompt"] == "hello"]
    assert all(row["line"] == numbers[f"hello {row['label']}"] for row in hello)
    examples = {finding["name"]: finding["examples"] for finding in values["findings"]}
    near = [f"line {number}: please send a new credit card to my address {number}" for number in (30, 31)]
    assert examples["different labels"] == [both]
    assert examples["near duplicates"] == [f"{near[0]} → loan", f"{near[1]} → card"]
    page = (tmp_path / "out-advise/advise.html").read_text()
    assert both in page and ">line</th>" in page
