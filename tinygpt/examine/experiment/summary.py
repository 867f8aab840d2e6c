"""The summary of an experiment: tables, a picture, and verdicts with their rules; as text, and as a page.

The page needs no other file and makes no request, like that of `tinygpt report`, whose style it has.
"""

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.base.files import replacing
from tinygpt.base.intervals import wilson
from tinygpt.checkpoint.store import load, tokenizer_of
from tinygpt.examine.report.drawing import as_svg, drawing, styled
from tinygpt.examine.report.page import STYLES, render
from tinygpt.examine.report.weights import pack

COLUMNS = 100  # of the terminal, for sentences; a table is as wide as it needs
LONG = 30  # characters of a cell
NAME = 14  # characters of a name, which wraps
PHONE = 48  # characters of a row that fit the screen of a telephone
SIZES = {"wide": (860, 430), "narrow": (360, 340)}  # of the picture in the page, in pixels
RANGE = re.compile(r"( \([-+\d.,]+(?: to |-)(?:[-+\d.,]+|none)\)|, 95% interval [\d.]+ to [\d.]+%)")  # is folded away


class Table(NamedTuple):
    """A table; the first cell of each row is its name."""

    caption: str
    rows: Sequence[Mapping[str, str]]  # cells by column
    how: str  # how to read it

    @property
    def explained(self) -> str:
        """Return how to read it, without what a range is if there is none: with one seed."""
        ranges = any(RANGE.search(cell) for row in self.rows for cell in row.values())
        return self.how if ranges else self.how.replace(" (minimum to maximum)", "")

    @property
    def sentences(self) -> set[str]:
        """Return the columns with text, which a page aligns at the left and wraps."""
        return {column for row in self.rows for column, cell in row.items() if len(cell) > LONG or cell.isalpha()}

    @property
    def stacked(self) -> bool:
        """Return whether the table is too wide for a telephone, where its rows become blocks."""
        cells = {column: [*column.split(), *(row[column] for row in self.rows)] for column in self.rows[0]}
        first, *others = (max(len(RANGE.sub("", cell)) for cell in own) for own in cells.values())
        return min(first, NAME) + sum(others) + 2 * len(others) > PHONE

    def as_text(self) -> str:
        """Format as Markdown with aligned columns."""
        if not self.rows:
            return f"{self.caption}: none"
        rows = [*map(list, self.rows[:1]), *(list(row.values()) for row in self.rows)]  # the first are the columns
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        lines = [f"| {' | '.join(row)} |" for row in padded]
        lines.insert(1, "|" + "|".join("".ljust(width + 2, "-") for width in widths) + "|")
        return "\n".join([f"{self.caption}:", "", *lines, "", wrapped(self.explained)])


class Share(NamedTuple):
    """A share of `total` cases, with its 95% confidence interval."""

    hits: int
    total: int

    def value(self) -> float:
        return self.hits / max(self.total, 1)

    def interval(self) -> tuple[float, float]:
        return wilson(self.value(), self.total)

    def compared(self, target: float, below: str, around: str, above: str) -> str:
        """Choose the word for where the interval lies."""
        low, high = self.interval()
        if low > target:
            return above
        return below if high < target else around

    def __str__(self) -> str:
        if not self.total:
            return ""
        low, high = self.interval()
        return f"{100 * self.hits / self.total:.0f}% ({100 * low:.0f}-{100 * high:.0f})"


def pooled(shares: Sequence[Share]) -> Share:
    """Pool shares of disjoint sets of cases."""
    return Share(sum(share.hits for share in shares), sum(share.total for share in shares))


class Verdict(NamedTuple):
    """A conclusion from the results, and the rule that it follows from."""

    text: str
    rule: str


class Example(NamedTuple):
    """An answer, with what is wrong in it."""

    caption: str
    prompt: str
    marked: str  # the error
    note: str  # why it is one


class Summary(NamedTuple):
    """The summary of an experiment's results."""

    title: str  # the question that it answers
    question: str  # in more words
    tables: Sequence[Table]
    verdicts: Sequence[Verdict]  # the first is the result, in one sentence with numbers
    picture: str  # caption
    draw: Callable[[Any], None]  # into the axes of a figure
    example: Example | None = None  # the most vivid one
    # what the page contains, of the user's data above all; the default is that of a lab
    contents: str = "figures and examples from data that tinygpt generates or ships with, no text of your own"

    def as_text(self) -> str:
        blocks = [[f"verdict: {verdict.text}", f"rule:    {verdict.rule}"] for verdict in self.verdicts]
        verdicts = ["\n".join(wrapped(line) for line in lines) for lines in blocks]
        return "\n\n".join([*(table.as_text() for table in self.tables), *verdicts])


def wrapped(text: str) -> str:
    return textwrap.fill(text, COLUMNS, break_long_words=False, break_on_hyphens=False)


def percent(shares: Sequence[float], form: str = ".1f") -> str:
    """Format shares in percent as `spread` does; none: an empty cell."""
    return spread([100 * share for share in shares], form) + "%" if shares else ""


def spread(values: Sequence[float], form: str) -> str:
    """Format the median, and for several values minimum and maximum; infinity is `none`, NaN is left out."""
    known = [value for value in values if not math.isnan(value)] or [math.inf]
    figures = min(known), statistics.median(known), max(known)
    low, middle, high = ("none" if figure == math.inf else f"{figure:{form}}" for figure in figures)
    return middle if len(known) == 1 or figures[0] == math.inf else f"{middle} ({low} to {high})"


def gap(value: float, other: float) -> float:
    """Return value - other without rounding errors, so that 0.9 - 0.88 equals a limit of 0.02; zero has no sign."""
    return round(value - other, 9) + 0.0


def side(change: float, margin: float, words: tuple[str, str, str]) -> str:
    """Choose the word for a change: below -margin, within it, above margin."""
    below, within, above = words
    if change > margin:
        return above
    return below if change < -margin else within


def write(
    summary: Summary, folder: Path, name: str, live: dict[str, Any] | None = None, command: str = "lab"
) -> list[Path]:
    """Write the picture NAME.png and the page NAME.html into the folder; return their paths.

    live: of a page that answers, the data of NAME/page.js, and under "models" the paths of its models by name.
    """
    picture = folder / f"{name}.png"
    page = folder / f"{name}.html"
    with drawing(picture, "the picture") as (_, axes):
        summary.draw(axes)
    values: dict[str, Any] = {"kind": command, "title": summary.title, "summary": summary, "name": name, "live": live}
    values |= {"split": RANGE.split, "drawings": {}}
    for width, size in SIZES.items():
        with styled("the picture", size) as figure:
            summary.draw(figure.subplots())
            values["drawings"][width] = as_svg(figure)
    if live:
        models = {key: load(path) for key, path in live.pop("models").items()}
        packed = {key: pack(model.build_model(), tokenizer_of(model, key, "data")) for key, model in models.items()}
        values["data"] = live | packed
        live["parameters"] = {key: model.num_params for key, model in models.items()}
    scripts = ["examine/report/model.js", f"learn/lab/{name}/search.js", f"learn/lab/{name}/page.js"] if live else []
    html = render(values, "examine/experiment/page.html.j2", scripts, [*STYLES, "examine/experiment/page.css"])
    with replacing(page) as file:
        file.write(html)
    return [picture, page]
