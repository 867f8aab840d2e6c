"""Pairs in Excel workbooks: the same dataset as from CSV, (what cannot be read: ../transcripts/data_pairs.txt).

The workbooks are written by openpyxl. The authority is the CSV file with the same content.
"""

import datetime
import itertools
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from conftest import refused
from inputs import COLOURS, csv_file, json_lines, mine, pairs, prepared, workbook

pytestmark = [pytest.mark.filterwarnings(f"error::{kind}") for kind in ("ResourceWarning", "pytest.PytestWarning")]
HEADER = ["prompt", "response"]
ROWS = [[entry["prompt"], entry["response"]] for entry in pairs()]


def made(folder: Path, file: str) -> Path:
    """Prepare a file, without a complaint."""
    result = prepared(folder, file=file)
    assert (result.status, result.err) == (0, "")
    return folder


def count(folder: Path) -> int:
    return sum(mine(folder).meta["examples"].values())


def dataset_files(folder: Path) -> dict[str, Any]:
    """The content of a dataset, without the name of the input."""
    meta = json.loads((folder / "data/mine/meta.json").read_text())
    meta["options"].pop("input")
    return {"meta": meta} | {path.name: path.read_bytes() for path in sorted((folder / "data/mine").glob("*.bin"))}


CELLS: list[tuple[Any, str]] = [  # a cell's value, and its text in the CSV file
    ('He said "yes, no";\tand é 日 🙂', 'He said "yes, no";\tand é 日 🙂'),
    ("two\nlines", "two\nlines"),
    ("_x0041_ and _x005F_x0042_", "A and _x0042_"),  # the escapes of the file format
    (5.0, "5"),
    (0.1 + 0.2, "0.3"),
    (1 / 3, "0.333333333333333"),
    (True, "TRUE"),
    (datetime.datetime(2024, 3, 5), "2024-03-05"),
    (datetime.datetime(2024, 3, 5, 14, 30), "2024-03-05 14:30:00"),
    (datetime.time(9, 5), "09:05:00"),
]


def test_a_workbook_gives_the_dataset_of_the_csv_file_byte_for_byte(tmp_path: Path) -> None:
    cells, texts = list[list[Any]](), list[list[str]]()
    for n, (value, text) in enumerate(CELLS):
        number = f" {n}" if isinstance(value, str) else ""
        cells += [[value + number if number else value, COLOURS[n % 3]], [f"swapped {n}", value]]
        texts += [[text + number, COLOURS[n % 3]], [f"swapped {n}", text]]
    workbook(tmp_path / "pairs.xlsx", HEADER, *ROWS, *cells, [], [None, " "])
    csv_file(tmp_path / "pairs.csv", HEADER, *ROWS, *texts)
    found = [dataset_files(made(tmp_path, name)) for name in ("pairs.csv", "pairs.xlsx")]
    assert found[0] == found[1]
    assert sum(found[0]["meta"]["examples"].values()) == 120 + 2 * len(CELLS)


def test_numbers_and_booleans_of_json_lines_are_read_as_in_excel(tmp_path: Path) -> None:
    values: list[Any] = [value for value, _ in CELLS if isinstance(value, int | float)] + [1.0, -3, 1e20, False]
    rows = [[value, value] for value in values]
    workbook(tmp_path / "pairs.xlsx", HEADER, *ROWS, *rows)
    json_lines(tmp_path, [dict(zip(HEADER, row, strict=True)) for row in [*ROWS, *rows]])
    found = [dataset_files(made(tmp_path, name)) for name in ("pairs.jsonl", "pairs.xlsx")]
    assert found[0] == found[1]


def test_the_sheet_is_the_first_visible_one_with_the_columns(tmp_path: Path) -> None:
    sheets = {"Old": [HEADER, ["x", "y"]], "Data": [HEADER, *ROWS], "More": [HEADER]}
    path = workbook(tmp_path / "pairs.xlsx", ["How to use"], title="Read me", **sheets)
    book = openpyxl.load_workbook(path)
    book["Old"].sheet_state = "hidden"
    book.save(path)
    result = prepared(tmp_path, file="pairs.xlsx")
    assert "note: pairs.xlsx: used the sheet 'Data', not 'Read me', 'More'\n" in result.out and count(tmp_path) == 120
    workbook(tmp_path / "bad.xlsx", HEADER, ["a", " "], Other=[["x"]])
    assert "bad.xlsx sheet 'Sheet' row 2: response is empty" in prepared(tmp_path, file="bad.xlsx").err


def with_xml(path: Path, change: Callable[[str], str]) -> None:
    """Change the XML of a workbook's first sheet."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name).decode() for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, change(text) if name == "xl/worksheets/sheet1.xml" else text)


def test_a_wrong_size_in_the_file_hides_no_cells(tmp_path: Path) -> None:
    """As other programs write it: the size of the sheet is stated as one cell."""
    path = workbook(tmp_path / "pairs.xlsx", HEADER, *ROWS, Other=[["prompt"]])
    with_xml(path, lambda text: text.replace('<dimension ref="A1:B121"', '<dimension ref="A1:A1"'))
    assert count(made(tmp_path, "pairs.xlsx")) == 120


def test_formulas_are_read_as_their_stored_results(tmp_path: Path) -> None:
    path = workbook(tmp_path / "pairs.xlsx", HEADER, *ROWS, ['=A2&"!"', "=B2"], ["=A900", "=B900"])
    unsaved = prepared(tmp_path, file="pairs.xlsx")
    stored = "is a formula without a stored result (open the file in Excel or LibreOffice, and save it)"
    assert unsaved.status == 2
    assert f"row 122: prompt {stored}; pairs.xlsx row 123: prompt {stored}" in unsaved.err
    results = iter(["item 0 is red!", "red", "", ""])  # as Excel stores them; the last row looks empty there
    formula = re.compile(r'<c r="(\w+)"><f>(.*?)</f><v ?/?>(?:</v>)?</c>')
    cell = '<c r="{}" t="str"><f>{}</f><v>{}</v></c>'
    with_xml(path, lambda text: formula.sub(lambda found: cell.format(found[1], found[2], next(results)), text))
    assert prepared(tmp_path, file="pairs.xlsx").status == 0
    dataset = mine(tmp_path)
    found = list(itertools.chain(*(source.examples(dataset.tokenizer) for source in dataset.sources.values())))
    assert ("item 0 is red!", "red") in found and len(found) == 121


def test_without_openpyxl_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workbook(tmp_path / "pairs.xlsx", HEADER, *ROWS)
    monkeypatch.setitem(sys.modules, "openpyxl", None)  # as if it were not installed
    said = refused(tmp_path, "prepare", "mine", "--input=pairs.xlsx", "--format=pairs")
    assert "pairs.xlsx: an Excel file needs the package openpyxl" in said and "pip install openpyxl" in said
