"""Small datasets and the files that they are prepared from."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from conftest import Result, cli_here

from tinygpt.data.dataset import Dataset

COLOURS = ["red", "green", "blue"]


def pairs(count: int = 120) -> list[dict[str, str]]:
    return [{"prompt": f"item {n} is {COLOURS[n % 3]}", "response": COLOURS[n % 3]} for n in range(count)]


def json_lines(folder: Path, entries: list[Any], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return path


def prepared(folder: Path, *flags: str, file: str = "pairs.jsonl") -> Result:
    return cli_here("prepare", "mine", f"--input={file}", "--format=pairs", *flags, cwd=folder)


def mine(folder: Path) -> Dataset:
    return Dataset(str(folder / "data"), "mine")


def workbook(path: Path, *rows: list[Any], title: str = "Sheet", **sheets: list[list[Any]]) -> Path:
    """Write a workbook whose first sheet has these rows; the name of each further sheet is a keyword."""
    book = openpyxl.Workbook()
    book.active.title = title
    for name, content in {title: rows, **sheets}.items():
        sheet = book[name] if name == title else book.create_sheet(name)
        for row in content:
            sheet.append(row)
    book.save(path)
    return path


def csv_file(path: Path, *rows: list[str], delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


FILES = {"train.bin", "val.bin", "meta.json", ".lock"}


def as_nanogpt_does_it(text: str, val_fraction: float = 0.1) -> tuple[bytes, bytes, list[str]]:
    """train.bin, val.bin and the symbols, by nanoGPT's data/shakespeare_char/prepare.py in short."""
    symbols = sorted(set(text))
    numbers = {symbol: index for index, symbol in enumerate(symbols)}
    at = int(len(text) * (1 - val_fraction))
    train, val = (np.array([numbers[c] for c in part], dtype=np.uint16) for part in (text[:at], text[at:]))
    return train.tobytes(), val.tobytes(), symbols


def bins(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "train.bin").read_bytes(), (folder / "val.bin").read_bytes()


ROOT = Path(__file__).parents[2]


PAGES = {path: path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))}
