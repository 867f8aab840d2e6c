"""Run a query that a model wrote: one SELECT on a copy of a SQLite database, within limits.

A response of a language model is untrusted input. A single SELECT cannot write, and it runs on a copy of the database
in memory that is read-only; SQLite opens no other file for it. A query is short, since SQLite would expand long nested
ones to gigabytes before their first step. It ends after a number of steps of SQLite's virtual machine, which bound its
time and, with the length of a value, its memory; they do not depend on the speed of the machine, so neither does a
score. The query may read every row of the database, and nothing here protects from a bug in SQLite itself.

    run_query(database, "select count(*) from clients")     # [(300,)]
    run_query(database, "drop table clients")               # None
"""

import contextlib
import re
import sqlite3
from collections import Counter
from typing import Any

MAX_CHARACTERS = 200  # of a query; the task has at most 150
MAX_ROWS = 1000  # of a result
MAX_BYTES = 200  # of a text, a blob or a row; those of the bank have fewer than 40
MAX_STEPS = 500_000  # of SQLite's virtual machine; a join of some thousand rows takes 50,000

Rows = list[tuple[Any, ...]]


def run_query(database: sqlite3.Connection, text: str) -> Rows | None:
    """Run one SELECT on a copy of the database; return its rows, or None if it is refused, fails or is stopped."""
    if len(text) > MAX_CHARACTERS or not re.match(r"\s*select\b", text, re.IGNORECASE):
        return None
    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        database.backup(copy)
        copy.execute("pragma query_only = on")
        copy.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
        copy.set_progress_handler(lambda: True, MAX_STEPS)  # called after so many steps; True stops the query
        try:
            rows = copy.execute(text).fetchmany(MAX_ROWS + 1)
        # Warning: several statements, in some versions of Python; ValueError: a NUL or half of a character
        except (sqlite3.Error, sqlite3.Warning, ValueError):
            return None
    return rows if len(rows) <= MAX_ROWS else None


def same_rows(expected: Rows, rows: Rows, ordered: bool) -> bool:
    """Compare two results; unless `ordered`, as multisets of rows. Numbers are equal up to the sixth decimal."""
    first, second = ([tuple(map(_rounded, row)) for row in result] for result in (expected, rows))
    return first == second if ordered else Counter(first) == Counter(second)


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
