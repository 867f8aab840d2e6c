"""Sheets and lines as entries, {column: text}: JSON Lines, CSV with its separator, and Excel (workbook.py).

prompts = converted([Path("pairs.csv")], config, lambda entry: text_of(entry, "prompt"))
"""

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import PrepareConfig
from tinygpt.base.configs.use import LabelConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import byte_order_mark, file_error
from tinygpt.data.text_files import decoding_error, json_lines, text_in
from tinygpt.data.workbook import UNREADABLE, BadCell, read_sheet

PAIR_FILES = (".jsonl", ".csv", ".xlsx")  # endings of the files that are read in a folder
Reading = PrepareConfig | LabelConfig  # a command that reads such files; the second needs no responses
Entry = dict[str, Any] | str  # a line; a string is the error of a bad one
T = TypeVar("T")


def converted(paths: list[Path], config: Reading, convert: Callable[[Entry], T]) -> Iterator[T]:
    """Read the entries of files, and convert each; `convert` raises ValueError for a bad one. Errors: TinyGPTError
    for bad ones, unless --skip_bad."""
    problems = list[str]()
    for path in paths:
        try:
            with open(path, "rb") as raw:
                raw.read(byte_order_mark(raw.peek(3), path, config.encoding))
                for location, entry in entries(path, raw, config):
                    try:
                        yield convert(entry)
                    except ValueError as problem:
                        problems.append(f"{location}: {problem}")
        except UnicodeError as error:
            raise decoding_error(path, config.encoding, error) from None
        except csv.Error as error:
            raise TinyGPTError(f"{path}: not CSV ({error})", "write it with a csv library") from None
        except OSError as error:
            raise file_error(path, error) from None
    shown = problems[:5] + [terminal.counted(len(problems) - 5, "more line")] * (len(problems) > 5)
    if problems and not getattr(config, "skip_bad", False):
        raise TinyGPTError("; ".join(shown), "fix them in the file, or pass --skip_bad=True to leave them out")
    for line in shown:
        terminal.print_error(f"left out: {line}")


def columns(config: Reading) -> dict[str, str]:
    """Return the names of the columns that a command reads, by their flags."""
    names = {f"--{key}": getattr(config, key, "") for key in ("prompt_field", "response_field")}
    return {flag: name for flag, name in names.items() if name}


def entries(path: Path, file: Any, config: Reading) -> Iterator[tuple[str, Entry]]:
    """Read the entries of a binary file, each with its location for messages: `pairs.csv line 5`."""
    ending, where = path.suffix.lower(), str(path)
    if ending in UNREADABLE:
        raise TinyGPTError(f"{path}: tinygpt does not read {ending} files", "save it as .xlsx or .csv")
    if ending in (".gz", ".zst"):
        raise TinyGPTError(f"{path}: is compressed, and only text is read from compressed files", "decompress it first")
    if ending == ".xlsx":
        title, rows, others = read_sheet(path, file, set(columns(config).values()))
        if others:
            print(f"note: {path}: used the sheet {title!r}, not {', '.join(map(repr, others))}")
            where += f" sheet {title!r}"
        for number, entry in table_lines(where, ending, iter(rows), config):
            yield f"{where} row {number}", entry
        return
    with io.TextIOWrapper(file, config.encoding, newline="") as text:
        lines = table_lines(where, ending, csv_rows(text, config), config) if ending == ".csv" else json_lines(text)
        for number, entry in lines:
            yield f"{where} line {number}", entry


def csv_rows(file: Any, config: Reading) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a CSV file."""
    first = file.readline()
    reader = csv.reader(itertools.chain([first], file), delimiter=separator_of(first, config))
    for row in reader:
        yield reader.line_num, row


def separator_of(first: str, config: Reading) -> str:
    """Return the separator of a CSV file, given its first line: that of tab, semicolon and comma which gives the needed
    columns, or else the most columns. A comma, which also occurs in text, is the last choice."""
    needed = set(columns(config).values())
    headers = {d: [name.strip() for name in next(csv.reader([first], delimiter=d), [])] for d in "\t;,"}
    return max(headers, key=lambda d: (needed <= set(headers[d]), len(headers[d])))


def table_lines(
    where: str, ending: str, rows: Iterator[tuple[int, list[str]]], config: Reading
) -> Iterator[tuple[int, Entry]]:
    """Read the rows of a table as entries: the first row names the columns, and empty rows are skipped.

    Of columns with the same name, the second one is `name (2)`.
    In a CSV file, text to the right of the named columns is an error, since its usual cause is an unquoted separator.
    Errors: TinyGPTError for a column that is missing, or is there twice.
    """
    header = [name.strip() for name in next(rows, (1, []))[1]]
    flags = columns(config)
    fields = sorted(set(flags.values()))
    missing = [field for field in fields if field not in header]
    if missing:
        names = list(filter(None, header))
        first = f"is: {', '.join(names)}" if names else "is empty"
        what = f"{where}: no column {' or '.join(missing)}; the first row, which has to name the columns, {first}"
        if len(names) < len(fields) and len(missing) == len(fields):
            raise TinyGPTError(what, "delete what is above the names of the columns")
        by_case = {name.casefold(): name for name in names}
        hint = (f"{flag}={by_case.get(field.casefold(), 'COLUMN')}" for flag, field in flags.items())
        raise TinyGPTError(what, " ".join(map(suggest.quoted, hint)))
    width = max(column for column, name in enumerate(header, start=1) if name)
    for field in fields:
        if header.count(field) > 1:
            raise TinyGPTError(f"{where}: {header.count(field)} columns are named {field!r}", "rename all but one")
    header = distinct(header)
    for number, row in rows:
        beyond = next(filter(None, map(str.strip, row[width:])), "")
        if beyond and ending == ".csv":
            problem = f"{beyond[:40]!r} is to the right of the named columns"
            yield number, f"{problem}: put text with a separator in double quotes, or name the column"
        elif any(map(str.strip, row)):
            yield number, dict(itertools.zip_longest(header[:width], row[:width], fillvalue=""))


def distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct: `a`, `a (2)`, `a (3)`."""
    made: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        made.append(next(candidate for candidate in candidates if candidate not in made))
    return made


def text_of(entry: Entry, key: str) -> str:
    """Return a text of an entry, without blanks around it. Errors: ValueError."""
    text = text_in(entry, key)
    if isinstance(text, BadCell):
        raise ValueError(f"{key} is {text}")
    return text.strip()
