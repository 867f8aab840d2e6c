"""The numbers of rows in the file: what each command that reads a sheet shows for a row, with the numbers by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cli_here, ok, refused
from inputs import csv_file, mine, prepared, workbook

from tinygpt.examine.eval.classifiers import Majority
from tinygpt.examine.why.explained import lines_of_pairs
from tinygpt.use.advise import command
from tinygpt.use.advise.labeller import save

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
FORMATS = list(NUMBERS)


def sheet(folder: Path, kind: str, count: int = 60) -> str:
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
    for number in range(numbers["mail"] + 1, numbers["mail"] + 1 + count):
        label = "card" if number % 2 else "loan"
        word = {"card": "loan", "loan": "card"}[label] if number % 20 == 0 else label  # a doubtful label
        prompt = f"{word} {word} {'abcdefgh'[number % 8]} {number}"
        if number in (30, 31):
            prompt = f"please send a new credit card to my address {number}"
        rows.append([prompt, label, f"at {number}"])
    name = f"pairs.{kind}"
    if kind == "csv":
        csv_file(folder / name, HEADER, *rows)
    elif kind == "xlsx":
        workbook(folder / name, HEADER, *rows)
    else:
        lines = (json.dumps(dict(zip(HEADER, row, strict=True))) if row else "" for row in rows)
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return name


@pytest.mark.parametrize("kind", FORMATS)
def test_prepare_and_why_name_a_row_by_its_number(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, numbers = sheet(tmp_path, kind), NUMBERS[kind]
    bad = f"{name} {UNIT[kind]} {numbers['bad']}: response is empty"
    message = prepared(tmp_path, file=name).err
    assert bad in message and message.count(UNIT[kind] + " ") == 1 and "--skip_bad" in message
    result = prepared(tmp_path, "--skip_bad", file=name)
    assert result.status == 0 and f"left out: {bad}" in result.err
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    places = lines_of_pairs(mine(tmp_path))
    assert places["a card with\na line break", "card"] == [f"{name} {UNIT[kind]} {numbers['first']}"]
    assert places["hello", "loan"] == [f"{name} {UNIT[kind]} {numbers['hello loan']}"]
    others = [(prompt, found) for (prompt, _), found in places.items() if re.search(r"\d", prompt)]
    assert len(others) == 60
    assert all(found == [f"{name} {UNIT[kind]} {prompt.rpartition(' ')[2]}"] for prompt, found in others)
    assert capsys.readouterr() == ("", "")  # a row that prepare has left out is no news


@pytest.mark.parametrize("kind", FORMATS)
def test_label_names_a_row_by_its_number(tmp_path: Path, kind: str) -> None:
    name = sheet(tmp_path, kind)
    (tmp_path / "model").mkdir()
    save(tmp_path / "model", Majority.fit(["a", "b"], np.array([0, 1]), 2), ["a", "b"], None)
    assert "65 lines labelled" in ok(tmp_path, "label", name, "--model=model").err  # an empty row is no bad row
    for kind_of_bad, change in {
        "csv": lambda text: text.replace("\nhello,loan,", "\nhello, you,loan,"),
        "jsonl": lambda text: text.replace('"prompt": "hello", "response": "loan"', '"prompt": null'),
    }.items():
        if kind == kind_of_bad:
            (tmp_path / name).write_text(change((tmp_path / name).read_text()))
            message = refused(tmp_path, "label", name, "--model=model")
            assert f"{name} line {NUMBERS[kind]['hello loan']}: " in message
            assert "fix them in the file" in message and "skip_bad" not in message


@pytest.mark.parametrize("kind", FORMATS)
def test_advise_names_a_row_by_its_number(tmp_path: Path, kind: str) -> None:
    name, numbers, unit = sheet(tmp_path, kind), NUMBERS[kind], UNIT[kind]
    bad = f"{name} {unit} {numbers['bad']}: response is empty"
    assert bad in refused(tmp_path, "advise", name)
    message = cli_here("advise", name, "--skip_bad", "--time=day", cwd=tmp_path).err
    assert f"left out: {bad}" in message
    assert f"{name} {unit} {numbers['first']}: day 'at {numbers['first']}' is not a date" in message
    message = refused(tmp_path, "advise", name, "--by=response", "--response_field=day")
    assert bad in message  # the column of --by is needed, too


@pytest.mark.parametrize("kind", FORMATS)
def test_a_random_sample_keeps_the_numbers(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MOST", 25)
    message = cli_here("advise", sheet(tmp_path, kind), "--skip_bad", "--time=day", cwd=tmp_path).err
    found = re.search(rf"pairs.{kind} {UNIT[kind]} (\d+): day 'at (\d+)'", message)
    assert "a random sample of 25 is used" in message and found and found[1] == found[2]
    assert int(found[1]) > NUMBERS[kind]["first"]  # the sample lacks the first rows


@pytest.mark.parametrize("kind", ["csv", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("xlsx", "jsonl"))])
def test_the_tables_of_advise(tmp_path: Path, kind: str) -> None:
    name, numbers, unit = sheet(tmp_path, kind), NUMBERS[kind], UNIT[kind]
    result = ok(tmp_path, "advise", name, "--skip_bad", "--budget=20s", "--json")
    text = " ".join(result.err.split())
    both = f"{unit} {numbers['hello card']}, {unit} {numbers['hello loan']}"
    assert f"e.g. {both}: hello → card | loan" in text
    assert f"e.g. {unit} {numbers['mail']}: " in text and "…@example.org" in text
    values: dict[str, Any] = json.loads(result.out)
    doubtful = [row for row in values["mistakes"] if row["prompt"] != "hello"]
    assert len(doubtful) >= 3 and all(row["prompt"].endswith(f" {row[unit]}") for row in doubtful)
    assert {20, 40, 60} <= {row[unit] for row in doubtful}
    hello = [row for row in values["mistakes"] if row["prompt"] == "hello"]
    assert all(row[unit] == numbers[f"hello {row['label']}"] for row in hello)
    examples = {finding["name"]: finding["examples"] for finding in values["findings"]}
    assert examples["different labels"] == [f"{both}: hello → card | loan"]
    near = [f"{unit} {number}: please send a new credit card to my address {number}" for number in (30, 31)]
    assert examples["near duplicates"] == [f"{near[0]} → loan", f"{near[1]} → card"]
    assert examples["near duplicates across the split"] in ([*near], [*near[::-1]])
    page = (tmp_path / "out-advise/advise.html").read_text()
    assert f"{both}: hello → card | loan" in page and f">{unit}</th>" in page
    stored = json.loads((tmp_path / "out-advise/advise.json").read_text())["stages"]
    assert f"{both}: hello → card | loan" in str(stored["look at the data"]["result"])
