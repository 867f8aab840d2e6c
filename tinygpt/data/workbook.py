"""Read a sheet of an Excel workbook (.xlsx) as rows of text, like those of a CSV file.

A cell becomes the text that Excel shows without a number format: 5, 0.3, TRUE, 2024-03-05 (so 50% becomes 0.5). Of a
formula the stored result is read. Of merged cells only the first has text. Rows that a filter hides are read.

    title, rows, others = read_sheet(path, file, {"prompt", "response"})    # rows[0]: (1, ["prompt", "response"])
"""

import warnings
from pathlib import Path
from typing import IO, Any

from tinygpt.base.errors import TinyGPTError, library

UNREADABLE = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")  # formats of sheets other than .xlsx
COMPOUND_FILE = bytes.fromhex("d0cf11e0a1b11ae1")  # start of an encrypted .xlsx file, and of an .xls file


class BadCell(str):
    """What a cell contains in place of text: `the error #N/A`."""


def read_sheet(path: Path, file: IO[bytes], columns: set[str]) -> tuple[str, list[tuple[int, list[str]]], list[str]]:
    """Read the first visible sheet whose first row has all `columns`; if none has, the first visible sheet.

    Returns its title, its rows (each with its number in Excel), and the titles of the other visible sheets.
    Errors: TinyGPTError if openpyxl is missing, or the file is not an intact .xlsx workbook.
    """
    openpyxl = library("openpyxl", f"{path}: an Excel file")
    if file.read(len(COMPOUND_FILE)) == COMPOUND_FILE:
        what = f"{path}: is encrypted, or in the old .xls format"
        raise TinyGPTError(what, "remove the password in Excel, or save it as .xlsx or .csv")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl warns of charts and styles that it does not read
            results, formulas = (openpyxl.load_workbook(file, read_only=True, data_only=flag) for flag in (True, False))
            for sheet in (*results.worksheets, *formulas.worksheets):
                sheet.reset_dimensions()  # the size that a file states may be wrong
            visible = [sheet for sheet in results.worksheets if sheet.sheet_state == "visible"]
            headers = [{text_of(cell.value) for cell in next(sheet.iter_rows(max_row=1), ())} for sheet in visible]
            title = visible[next((i for i, header in enumerate(headers) if columns <= header), 0)].title
            row_pairs = zip(results[title].iter_rows(), formulas[title].iter_rows(), strict=True)
            rows = [(number, list(map(cell_text, *cells))) for number, cells in enumerate(row_pairs, start=1)]
    except MemoryError:
        raise
    except Exception as error:  # for a damaged file, openpyxl lets errors of a dozen kinds through
        what = f"{path}: is not an intact .xlsx workbook ({type(error).__name__})"
        raise TinyGPTError(what, "open it in Excel or LibreOffice, and save it again as .xlsx or .csv") from error
    return title, rows, [sheet.title for sheet in visible if sheet.title != title]


def cell_text(result: Any, formula: Any) -> str:
    """Convert a cell to text, given as openpyxl reads it with and without `data_only`."""
    if result.data_type == "e":
        return BadCell(f"the error {result.value}")
    if formula.data_type == "f" and result.data_type == "n" and result.value is None:
        return BadCell("a formula without a stored result (open the file in Excel or LibreOffice, and save it)")
    return text_of(result.value)


def text_of(value: Any) -> str:
    """Convert a cell's value to text, as Excel shows it without a number format."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}"  # Excel's own precision: 0.1 + 0.2 is 0.3
    if isinstance(value, str):
        from openpyxl.utils.escape import unescape

        return str(unescape(value))  # `_x000D_` stands for a carriage return
    return "" if value is None else str(value).removesuffix(" 00:00:00")  # of a date
