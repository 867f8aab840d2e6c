"""Sheets: files of rows with named columns, as JSON Lines, CSV with its separator, or Excel (workbook.py).

sheet = Sheet([Path("pairs.csv")], {"--prompt_field": "prompt"})
for row, prompt in sheet.rows(lambda row: row.text("prompt")):
    print(f"{row.location}: {prompt}")  # pairs.csv line 2: where is my card?
"""

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import byte_order_mark, file_error
from tinygpt.data.text_files import decoding_error, json_lines, require_encoding, text_in
from tinygpt.data.workbook import UNREADABLE, BadCell, read_sheet, text_of

PAIR_FILES = (".jsonl", ".csv", ".xlsx")  # endings of the files that are read in a folder
Entry = dict[str, Any] | str  # the cells of a row; a string is the error of a bad one
T = TypeVar("T")


class Row(NamedTuple):
    """A row of a sheet.

    Its number is that of the line in an editor, or of the row in Excel, and the first line has number 1: empty and bad
    ones count, and so does a line break in a quoted cell. A row of several lines has the number of its first line.
    """

    number: int
    location: str  # for messages: `pairs.csv line 5`, `x.xlsx sheet 'a' row 5`
    cells: dict[str, Any]  # by column; all are text, but for JSON Lines

    def text(self, column: str, empty: bool = False) -> str:
        """Return the text of a cell, without blanks around it; a number or a boolean of JSON Lines as Excel shows it.
        Errors: ValueError if it is none of these, or is empty and may not be."""
        value = self.cells.get(column)
        is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        text = text_of(value) if is_number else text_in(self.cells, column)
        if isinstance(text, BadCell):
            raise ValueError(f"{column} is {text}")
        if not empty and not text.strip():
            raise ValueError(f"{column} is empty")
        return text.strip()


def unit(path: Path) -> str:
    """Return what the rows of a file are called: `row` in Excel, else `line`."""
    return "row" if path.suffix.lower() == ".xlsx" else "line"


@dataclass(frozen=True)
class Sheet:
    """One file with rows, or several with the same columns, and how to read them."""

    paths: Sequence[Path]
    columns: dict[str, str]  # names of those that are needed, by the flag that gives each
    encoding: str = "utf-8"
    skip_bad: bool | None = None  # leave out bad rows, and say so; None: the command needs each row
    quiet: bool = False  # leave out bad rows, and print nothing at all
    keep_empty: bool = False  # also give the empty rows of a table that are above others

    def rows(self, convert: Callable[[Row], T]) -> Iterator[tuple[Row, T]]:
        """Read the rows, each with its conversion; `convert` raises ValueError for a bad one. Errors: TinyGPTError for
        bad ones, unless they are left out."""
        require_encoding(self.encoding)
        problems = list[str]()
        for path in self.paths:
            try:
                with open(path, "rb") as raw:
                    raw.read(byte_order_mark(raw.peek(3), path, self.encoding))
                    for number, location, cells in self._entries(path, raw):
                        try:
                            if isinstance(cells, str):
                                raise ValueError(cells)
                            row = Row(number, location, cells)
                            yield row, convert(row)
                        except ValueError as problem:
                            problems.append(f"{location}: {problem}")
            except UnicodeError as error:
                raise decoding_error(path, self.encoding, error) from None
            except csv.Error as error:
                raise TinyGPTError(f"{path}: not CSV ({error})", "write it with a csv library") from None
            except OSError as error:
                raise file_error(path, error) from None
        if not problems or self.quiet:
            return
        shown = problems[:5] + [terminal.counted(len(problems) - 5, "more line")] * (len(problems) > 5)
        if not self.skip_bad:
            hint = "fix them in the file"
            if self.skip_bad is not None:
                hint += ", or leave them out with --skip_bad"
            raise TinyGPTError("; ".join(shown), hint)
        for line in shown:
            terminal.print_error(f"left out: {line}")

    def _entries(self, path: Path, file: Any) -> Iterator[tuple[int, str, Entry]]:
        """Read the rows of a binary file, each with its number and its location."""
        ending = path.suffix.lower()
        where = str(path)
        if ending in UNREADABLE:
            raise TinyGPTError(f"{path}: tinygpt does not read {ending} files", "save it as .xlsx or .csv")
        if ending in (".gz", ".zst"):
            problem = f"{path}: is compressed, and only text is read from compressed files"
            raise TinyGPTError(problem, "decompress it first")
        with file if ending == ".xlsx" else io.TextIOWrapper(file, self.encoding, newline="") as content:
            if ending == ".xlsx":
                title, rows, others = read_sheet(path, file, set(self.columns.values()))
                if others:
                    where += f" sheet {title!r}"
                if others and not self.quiet:
                    print(f"note: {path}: used the sheet {title!r}, not {', '.join(map(repr, others))}")
                numbered = self._table(where, ending, iter(rows))
            elif ending == ".csv":
                numbered = self._table(where, ending, self._csv_rows(content))
            else:
                numbered = json_lines(content)
            for number, entry in numbered:
                yield number, f"{where} {unit(path)} {number}", entry

    def _csv_rows(self, file: Any) -> Iterator[tuple[int, list[str]]]:
        """Read the rows of a CSV file, each with the number of its first line."""
        first = file.readline()
        reader = csv.reader(itertools.chain([first], file), delimiter=self.separator(first))
        number = 1
        for row in reader:
            yield number, row
            number = reader.line_num + 1

    def separator(self, first: str) -> str:
        """Return the separator of a CSV file, given its first line: that of tab, semicolon and comma which gives the
        needed columns, or else the most columns. A comma, which also occurs in text, is the last choice."""
        needed = set(self.columns.values())
        headers = {d: [name.strip() for name in next(csv.reader([first], delimiter=d), [])] for d in "\t;,"}
        return max(headers, key=lambda d: (needed <= set(headers[d]), len(headers[d])))

    def _table(self, where: str, ending: str, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Entry]]:
        """Read the rows of a table: the first one names the columns, and empty ones are left out unless `keep_empty`.

        Of columns with the same name, the second one is `name (2)`.
        In a CSV file, text to the right of the named columns is an error, since its usual cause is an unquoted
        separator. Errors: TinyGPTError for a column that is missing, or is there twice.
        """
        header = [name.strip() for name in next(rows, (1, []))[1]]
        fields = sorted(set(self.columns.values()))
        if missing := [field for field in fields if field not in header]:
            names = list(filter(None, header))
            first = f"is: {', '.join(names)}" if names else "is empty"
            what = f"{where}: no column {' or '.join(missing)}; the first row, which has to name the columns, {first}"
            if len(names) < len(fields) and len(missing) == len(fields):
                raise TinyGPTError(what, "delete what is above the names of the columns")
            by_case = {name.casefold(): name for name in names}
            hint = (f"{flag}={by_case.get(field.casefold(), 'COLUMN')}" for flag, field in self.columns.items())
            raise TinyGPTError(what, " ".join(map(suggest.quoted, hint)))
        width = max(column for column, name in enumerate(header, start=1) if name)
        if repeated := [field for field in fields if header.count(field) > 1]:
            problem = f"{where}: {header.count(repeated[0])} columns are named {repeated[0]!r}"
            raise TinyGPTError(problem, "rename all but one")
        header = distinct(header)[:width]
        empty = list[int]()  # numbers of the empty rows since the last other one
        for number, row in rows:
            if not any(map(str.strip, row)):
                empty.append(number)
                continue
            if self.keep_empty:
                yield from ((number, dict.fromkeys(header, "")) for number in empty)
            empty.clear()
            beyond = next(filter(None, map(str.strip, row[width:])), "")
            if beyond and ending == ".csv":
                problem = f"{beyond[:40]!r} is to the right of the named columns"
                yield number, f"{problem}: put text with a separator in double quotes, or name the column"
            else:
                yield number, dict(itertools.zip_longest(header, row[:width], fillvalue=""))


def distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct: `a`, `a (2)`, `a (3)`."""
    made: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        made.append(next(candidate for candidate in candidates if candidate not in made))
    return made
