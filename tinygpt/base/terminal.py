"""Standard streams that are closed, full, or lack a character; progress bars; control characters; tables; durations.

for row in terminal.progress(rows, unit="row"): ...
print(*terminal.table({"model": "<20", "loss": ">8.3f"}, [("tiny", 1.88)]), sep="\n")
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def escaped(text: str) -> str:
    """Make text from a file printable on one line: `\\x1b` for an escape character, which could control a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def without_control(line: str) -> str:
    """Escape control characters only: a model of bytes that is hardly trained generates them."""
    return re.sub(r"[\0-\x08\x0a-\x1f\x7f-\x9f]", lambda match: escaped(match[0]), line)


def reader_has_left(error: OSError, system: str = os.name) -> bool:
    """Return whether the error means that the reader of a pipe has closed it; Windows reports that as EINVAL."""
    return isinstance(error, BrokenPipeError) or (system == "nt" and error.errno == errno.EINVAL)


def stdout_is_broken() -> bool:
    """Return whether standard output cannot be written to. If it can be, this writes a line end."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def silence(name: str) -> None:
    """Redirect a broken standard stream to the null device, which discards pending and later output."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


def print_error(text: str) -> None:
    """Print a line on standard error, or nothing if standard error cannot be written to."""
    print_line(text, "stderr")


def print_line(text: str, stream: str = "stdout") -> None:
    """Print a line on a standard stream, or nothing if it cannot be written to."""
    try:
        print(text, file=getattr(sys, stream), flush=True)
    except OSError:
        silence(stream)


def progress(items: Iterable[Any] | None = None, show: bool = True, **options: Any) -> Any:
    """Make a progress bar with tqdm's options, shown on a terminal and in Jupyter, and cleared at its end.

    Jupyter shows each change between standard output and error as a new block, in which an old bar would remain.
    """
    from tqdm import tqdm

    ipython = sys.modules.get("IPython")
    jupyter = ipython and ipython.get_ipython()
    where = {"disable": False, "file": sys.stdout} if jupyter else {"disable": None}
    return tqdm(items, **{"leave": False} | (where if show else {"disable": True}) | options)


def one_line(text: str) -> str:
    """Replace each run of white space with a blank."""
    return " ".join(text.split())


def cut(text: str, width: int) -> str:
    """Cut a text to at most `width` characters, of which the last one is `…`."""
    return text if len(text) <= width else text[: width - 1] + "…"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Format the lines of a table. columns: heading and format, such as `>12,.1f`; a text cell uses only the width."""
    widths = [form.partition(".")[0].rstrip(",") for form in columns.values()]
    lines = ["".join(f"{head:{width}}" for head, width in zip(columns, widths, strict=True))]
    for row in rows:
        cells = zip(row, columns.values(), widths, strict=True)
        lines.append("".join(format(cell, width if isinstance(cell, str) else form) for cell, form, width in cells))
    return lines


def listed(items: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """Join the first items, with three dots for others."""
    shown = list(items[:most])
    if len(items) > most:
        shown.append("...")
    return between.join(shown)


def counted(count: int, noun: str) -> str:
    """Format a number of things: `1 line`, `2,000 lines`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Format a duration in its usual units: `40 s`, `12 min`, `1 h 20 min`, `9 days`."""
    if seconds < 90:
        return f"{max(1, round(seconds)):.0f} s"
    if seconds >= 72 * 3600:
        return f"{seconds / 86400:,.0f} days"
    hours, minutes = divmod(round(seconds / 60), 60)
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0))
