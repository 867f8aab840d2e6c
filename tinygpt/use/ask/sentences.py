"""Split a passage into the units that `tinygpt ask` quotes: sentences, rows of a table, items of a list, lines.

The boundaries are those of passages.py. In addition, a line break is one if the next word would have fitted on the
line, as in an address or in opening hours; where text was wrapped, it would not have fitted. Where no line is longer
than WIDTH, as in a note, a break is also one unless a lower-case letter follows. A row of a table is one unit, and so
is a paragraph of HTML and .docx. The marks of a quoted e-mail (`> `) are left out. The heading above a passage is a
unit, too: it may be the answer, such as a version with its date.

    [unit.text for unit in units(Passage(text="We open at 9 a.m. on weekdays. Dr. Meier is in."))]
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from tinygpt.base.terminal import one_line
from tinygpt.use.ask.passages import sentences
from tinygpt.use.ask.store import Passage

WIDTH, SLACK = 60, 10  # characters: a line is taken to be at least that wide; a word fits if that much is left after it
TABLE_RULE = re.compile(r"[|+\-=:\s]*[-=]{2,}[|+\-=:\s]*")  # the line between the header of a table and its rows
QUOTED = re.compile(r"^[ \t]*>[> \t]*", re.MULTILINE)
POSITION = re.compile(r"(line|paragraph) (\d+)")


class Unit(NamedTuple):
    """A part of a passage that can be quoted."""

    text: str  # on one line
    position: str  # in the document: "line 12"
    is_heading: bool = False
    header: str = ""  # of a row: the names of the table's columns


def units(passage: Passage, table: str = "") -> list[Unit]:
    """Split a passage into units, in their order, the heading first.

    table: the text in front of the passage, in which the header of a table may stand that began there.
    """
    found = [Unit(passage.title.rpartition(" > ")[2], passage.position, is_heading=True)] if passage.title else []
    lines = table.split("\n")
    headers = [line for line, rule in itertools.pairwise(lines) if is_row(line) and TABLE_RULE.fullmatch(rule)]
    header = headers[-1] if headers else ""
    for start, end in [(0, len(passage.text))] if passage.position.startswith("row ") else spans(passage):
        text = passage.text[start:end]
        if TABLE_RULE.fullmatch(text):
            header = found.pop().text if found and is_row(found[-1].text) else header
            continue
        names = header if is_row(text) else ""
        found.append(Unit(unquoted(text), moved(passage, start), header=names))
    return found


def unquoted(text: str) -> str:
    """Join the lines of a text on one line, without the marks of a quoted e-mail."""
    return one_line(QUOTED.sub("", text))


def spans(passage: Passage) -> Iterator[tuple[int, int]]:
    """Yield start and end of the passage's rows, lines and sentences."""
    text, start = passage.text, 0
    lines = text.split("\n")
    longest = max(map(len, lines))
    ends_all = passage.position.startswith("paragraph ")  # a line is a paragraph
    at = 0
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        at += len(line) + 1
        word = next(iter(QUOTED.sub("", following).split()), "")
        fits = len(line.rstrip()) + 1 + len(word) <= max(WIDTH, longest) - SLACK
        # a passage may begin within a line, so that its first line is short
        ends = fits and number > 0 if word[:1].islower() else fits or longest <= WIDTH
        if ends_all or ends or not word or is_row(line) or is_row(following):
            block = text[start : at - 1]
            if is_row(block):
                yield start + len(block) - len(block.lstrip()), start + len(block.rstrip())
            else:
                yield from ((start + first, start + last) for first, last in sentences(block, max(1, len(block))))
            start = at


def is_row(line: str) -> bool:
    return line.lstrip().startswith("|") and line.count("|") > 1


def moved(passage: Passage, offset: int) -> str:
    """Return the position in the document of the character at `offset` of the passage's text."""
    match = POSITION.fullmatch(passage.position)
    return f"{match[1]} {int(match[2]) + passage.text.count(chr(10), 0, offset)}" if match else passage.position
