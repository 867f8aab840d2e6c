"""Read a document as sections: the headings above them, their text, and their position in the document.

A section is the text below a heading of Markdown, HTML or .docx, a page of a PDF, or a row of a CSV file. Any other
file is read as plain text, which is one section; in a folder, only if its name says that it is text (LICENSE, a.rst).

for section in read(Path("report.md")): section.title, section.text, section.position(0)
"""

import contextlib
import csv
import functools
import io
import itertools
import logging
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tinygpt.base.errors import TinyGPTError, library
from tinygpt.base.files import file_error, read_text
from tinygpt.base.terminal import one_line
from tinygpt.data.input_files import starts_as_text

LONGEST_TITLE = 300  # characters of the headings above a section, which are stored with each of its passages
FORMATS = "give text, Markdown, HTML, CSV, PDF or .docx; text must be UTF-8 (in Excel: save as CSV UTF-8)"


@dataclass(frozen=True)
class Section:
    """A part of a document: the text below a heading, a page, or a row."""

    title: str  # headings above it, "Report > Outlook", may be empty
    text: str
    unit: str  # of the position: line, paragraph, page or row
    number: int  # of the section's first line, paragraph, ...; from 1

    def position(self, offset: int) -> str:
        """Return the position of the character at `offset` of the text, such as "line 12"."""
        line_breaks = bisect_left(self._newlines, offset) if self.unit in ("line", "paragraph") else 0
        return f"{self.unit} {self.number + line_breaks}"

    @functools.cached_property
    def _newlines(self) -> list[int]:
        return [match.start() for match in re.finditer("\n", self.text)]


def read(path: Path) -> Iterator[Section]:
    """Yield the sections of a document that contain text.

    Errors: TinyGPTError for a file that is missing, binary, not UTF-8, encrypted, damaged or without text, and for a
    format whose package is not installed. It may be raised after the first sections.
    """
    empty = True
    for raw in READERS.get(path.suffix.lower(), plain)(path):
        section = replace(raw, title=storable(raw.title)[:LONGEST_TITLE], text=storable(raw.text))
        if section.text.strip():
            empty = False
            yield section
    if empty:
        scanned = "; a scanned document needs OCR first" if path.suffix.lower() == ".pdf" else ""
        raise TinyGPTError(f"{path}: contains no text", f"give a document with text in it{scanned}")


def storable(text: str) -> str:
    """Replace lone surrogates and NULs, which a PDF may contain, but a UTF-8 text may not."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ")


def plain(path: Path) -> Iterator[Section]:
    yield Section("", read_text(path, FORMATS), "line", 1)


def markdown(path: Path) -> Iterator[Section]:
    """Yield a section for each heading: `# ...`, or a line of its own that is underlined with `===` or `---`.

    A line inside a fenced code block is never a heading.
    """

    def blocks() -> Iterator[tuple[int, str]]:
        fence = ""
        is_rule = False
        lines = read_text(path, FORMATS).split("\n")
        for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
            if marker := re.match(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})", line):
                if not fence:
                    fence = marker[1]
                elif marker[1].startswith(fence) and not line.strip(" \t`~"):
                    fence = ""
            heading = None if fence else re.match(r" {0,3}(#{1,6})[ \t](.*)", line)
            is_alone = not fence and not marker and not before.strip() and re.match(r" {0,3}[^\s#>|*+-]", line)
            rule = re.fullmatch(r" {0,3}(={2,}|-{2,})[ \t]*", after) if is_alone else None
            if heading:  # `#` may close it: `Title` for `## Title ##`, but `C#` for `## C#`
                yield len(heading[1]), re.sub(r"(^|[ \t])#+$", "", heading[2].strip()).rstrip()
            elif rule:
                yield 1 if "=" in after else 2, line.strip()
            else:
                yield 0, "" if is_rule else line
            is_rule = bool(rule)

    yield from by_headings(blocks(), "line")


def by_headings(blocks: Iterable[tuple[int, str]], unit: str) -> Iterator[Section]:
    """Group blocks (level of a heading, 0 for text; the text) into sections. A block is one line of a section."""
    headings: list[tuple[int, str]] = []  # (level, heading) above the section, outermost first
    lines: list[str] = []
    terminated = itertools.chain(blocks, [(1, "")])  # a heading ends the last section
    for number, (level, text) in enumerate(terminated, start=1):
        if not level:
            lines.append(text)
            continue
        title = " > ".join(heading for _, heading in headings if heading)
        yield Section(title, "\n".join(lines), unit, number - len(lines))
        headings = [outer for outer in headings if outer[0] < level] + [(level, text)]
        lines = []


# ---- HTML ------------------------------------------------------------------------------------------------------------

HIDDEN = {"script", "style", "template", "noscript", "title"}
INLINE = {
    *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "mark"),
    *("q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "u", "var", "wbr"),
}


class Blocks(HTMLParser):
    """An HTML parser that collects the paragraphs of a page as (level of the heading or 0, text)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[int, str]] = []
        self._parts: list[str] = []
        self._level = 0
        self._preformatted = False
        self._hidden = ""  # the element whose content is dropped

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if self._hidden or tag in HIDDEN:
            self._hidden = self._hidden or tag
        elif tag in ("td", "th") or (tag == "br" and self._level):
            self._parts.append(" ")
        elif tag not in INLINE:
            self.end_block()
            self._preformatted = tag == "pre" or self._preformatted
            if re.fullmatch("h[1-6]", tag):
                self._level = int(tag[1])

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._hidden = "" if tag == self._hidden else self._hidden
        elif tag not in INLINE | {"td", "th", "br"}:
            self.end_block()
            self._level = 0
            self._preformatted = self._preformatted and tag != "pre"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(data)

    def end_block(self) -> None:
        text = "".join(self._parts)
        for line in text.split("\n") if self._preformatted else [one_line(text)]:
            if line.strip():
                self.blocks.append((self._level, line.rstrip()))
        self._parts = []


def html(path: Path) -> Iterator[Section]:
    parser = Blocks()
    text = read_text(path, FORMATS)
    with read_errors(path, "HTML"):
        parser.feed(text)
        parser.close()
    parser.end_block()
    yield from by_headings(parser.blocks, "paragraph")


# ---- tables, PDF, Word -----------------------------------------------------------------------------------------------


def table(path: Path) -> Iterator[Section]:
    """Yield a section for each row of a CSV file, "column: value; column: value"; the first row names the columns.

    A line above it without a delimiter, such as a title, is a section, too.
    """
    text = re.sub(r"\Asep=.\n", "", read_text(path, FORMATS))  # Excel's name of the delimiter
    lines = list(filter(str.strip, text[: 1 << 16].split("\n")[:20]))
    delimiter = max(",;\t", key="".join(lines[:1]).count)  # whichever is the most frequent
    if is_titled := bool(lines) and delimiter not in lines[0]:
        delimiter = "," if '"' in text else "\x1f"  # one column: a comma belongs to its text
        for candidate in "\t;":
            start = next((i for i, line in enumerate(lines) if candidate in line), len(lines))
            if start + 1 < len(lines) and all(candidate in line for line in lines[start:]):
                delimiter = candidate
        is_titled = delimiter in "\t;"
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole article; the limit is 128 KiB otherwise
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for number, row in enumerate(rows, start=1):
            if not header and (len(row) > 1 or not is_titled):
                header = [name.strip() for name in row]
                continue
            yield Section("", row_text(header, map(str.strip, row)), "row", number)
    except csv.Error as error:
        raise TinyGPTError(f"{path}: is not a valid CSV file ({error})", "export the table as CSV again") from None


def row_text(header: Iterable[str], row: Iterable[str]) -> str:
    cells = itertools.zip_longest(header, row, fillvalue="")
    return "; ".join(f"{name}: {value}" if name else value for name, value in cells if value)


def pdf(path: Path) -> Iterator[Section]:
    """Yield a section for each page."""
    pypdf = library("pypdf", f"{path}: PDF")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns about each small fault that it can ignore
    with read_errors(path, "PDF"):
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise TinyGPTError(f"{path}: is encrypted with a password", "save a copy without a password")
        pages = [page.extract_text() for page in reader.pages]
    for number, text in enumerate(pages, start=1):
        yield Section("", text, "page", number)


def word(path: Path) -> Iterator[Section]:
    """Yield a section for each heading; a row of a table is a paragraph."""
    docx = library("docx", f"{path}: .docx")
    blocks: list[tuple[int, str]] = []
    with read_errors(path, ".docx"):
        for item in docx.Document(str(path)).iter_inner_content():
            if isinstance(item, docx.table.Table):
                rows = [[one_line(cell.text) for cell in row.cells] for row in item.rows]
                # a first row without a number names the columns; of two columns, the first may name the rows instead
                named = len(rows[0]) > 2 and not re.search(r"\d", "".join(rows[0]))
                texts = (row_text(rows[0], row) if named and i else " | ".join(row) for i, row in enumerate(rows))
                blocks += [(0, row) for row in texts]
            elif text := one_line(item.text):
                style = (item.style.name or "") if item.style else ""
                level = re.fullmatch(r"Heading (\d)", style)
                blocks.append((int(level[1]) if level else int(style == "Title"), text))
    yield from by_headings(blocks, "paragraph")


@contextlib.contextmanager
def read_errors(path: Path, format_name: str) -> Iterator[None]:
    """Raise TinyGPTError for any error of html.parser, pypdf, python-docx and lxml, which have many types of them."""
    try:
        yield
    except TinyGPTError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise file_error(path, error, FORMATS) from None
        message = f"{path}: cannot be read as {format_name}: it is damaged or protected"
        raise TinyGPTError(message, "open it and save it again") from None


READERS = {
    ".txt": plain,
    ".md": markdown,
    ".markdown": markdown,
    ".html": html,
    ".htm": html,
    ".csv": table,
    ".pdf": pdf,
    ".docx": word,
}
PLAIN = {"", ".rst", ".log", ".text", ".adoc", ".org", ".debian"}  # endings of other files that are plain text


def is_plain_text(path: Path) -> bool:
    """Return whether a file of a folder is plain text without one of the endings of READERS: LICENSE, README.Debian."""
    is_candidate = path.suffix.lower() in PLAIN or re.search(r"(^|\.)[A-Z][A-Z-]{2,}(\.|$)", path.name)
    return bool(is_candidate) and path.is_file() and starts_as_text(path)
