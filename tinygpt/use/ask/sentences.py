"""Split a passage into the units that `tinygpt ask` quotes: sentences, rows of a table, items of a list, lines.

The boundaries are those of passages.py. In addition, a line break is one if the next word would have fitted on the
line, as in an address or in opening hours; where text was wrapped, it would not have fitted. A text of which no line is
longer than WIDTH may be a note, of which each line that begins with a capital is a unit; it is taken for wrapped if the
lines end as a sentence and none of them has room for the next word. A row of a table is one unit, and so is a paragraph
of HTML and .docx. The marks of a quoted e-mail (`> `) are left out. The heading above a passage is a unit, too: it may
be the answer, such as a version with its date.

    [unit.text for unit in units(Passage(text="We open at 9 a.m. on weekdays. Dr. Meier is in."))]
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tinygpt.base.terminal import one_line
from tinygpt.use.ask.passages import ABBREVIATION, ITEM, sentences
from tinygpt.use.ask.store import Passage

# characters of a line: up to the first, a text may be a note; none was wrapped at less
WIDTH = 60
NARROWEST = 50
SLACK = 10  # characters: a word fits if that much is left after it
SENTENCE_END = re.compile(r"[.!?…:。！？][\"'”’»)\]*_]*\s*\Z")
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
    lines = passage.text.split("\n")
    start = 0
    for block in lines if passage.position.startswith("paragraph ") else blocks(lines):  # there, a line is a paragraph
        if is_row(block):
            yield start + len(block) - len(block.lstrip()), start + len(block.rstrip())
        else:
            yield from ((start + first, start + last) for first, last in sentences(block, max(1, len(block))))
        start += len(block) + 1


def blocks(lines: Sequence[str]) -> Iterator[str]:
    """Join the lines of each paragraph that was wrapped; yield these and the other lines."""
    longest = max(map(len, lines))
    limit = max(NARROWEST, longest) - SLACK
    full = [bool(after.strip()) and width(line, after) > limit for line, after in itertools.pairwise(lines)]
    if full:  # a passage may begin within a line, so that its first line is short
        full[0] = any(full[:2]) or continues(lines[1])
    run = list[str]()
    for line, after, is_full in zip(lines, [*lines[1:], ""], [*full, False], strict=True):
        run.append(line)
        if not is_full or is_row(line) or is_row(after) or re.match(ITEM, after):
            is_paragraph = longest > WIDTH or is_wrapped(run, longest)
            starts = [i for i, each in enumerate(run) if i and not (is_paragraph or continues(each))]
            yield from ("\n".join(run[i:j]) for i, j in itertools.pairwise([0, *starts, len(run)]))
            run = []


def is_wrapped(run: Sequence[str], longest: int) -> bool:
    """Return whether lines are a wrapped paragraph: they end as a sentence, and none has room for the next word."""
    is_sentence = SENTENCE_END.search(run[-1]) and not ABBREVIATION.search(run[-1])
    complete = run[1:] if len(run) > 2 else run  # a passage may begin within a line, so that its first line is short
    widths = [width(line, after) for line, after in itertools.pairwise(complete)]
    return bool(is_sentence) and min(widths, default=0) > longest


def width(line: str, after: str) -> int:
    """Return the width of a line if the first word of the line after it had been put on it."""
    return len(line.rstrip()) + 1 + len(next(iter(QUOTED.sub("", after).split()), ""))


def continues(line: str) -> bool:
    """Return whether a line begins with a lower-case letter, so that it continues a sentence."""
    return QUOTED.sub("", line).lstrip()[:1].islower()


def is_row(line: str) -> bool:
    return line.lstrip().startswith("|") and line.count("|") > 1


def moved(passage: Passage, offset: int) -> str:
    """Return the position in the document of the character at `offset` of the passage's text."""
    match = POSITION.fullmatch(passage.position)
    return f"{match[1]} {int(match[2]) + passage.text.count(chr(10), 0, offset)}" if match else passage.position
