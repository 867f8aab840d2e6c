"""Run a query that a model wrote: one SELECT on a copy of a SQLite database, within limits, and never a write.

A response of a language model is untrusted input. Several barriers protect from it. The query runs on a copy of the
database in memory, and no file is opened. An authorizer (sqlite.org/c3ref/set_authorizer.html) permits reading the
tables and calling the functions of a short list, and nothing else: no writes, ATTACH, PRAGMA or virtual tables. WITH is
refused: it allows recursion, and SQLite takes time and memory that double with each of its tables before the first step
of the query. So do subqueries within subqueries, whose expressions SQLite inserts into those around them (24 GB for a
query of 450 characters): a query has at most three SELECTs. A progress handler ends the query after a number of steps
of SQLite's virtual machine. Steps do not depend on the speed of the machine, so neither does a score; the time limit is
for slow single steps. Limits of lengths (sqlite.org/limits.html), together with the limit of steps, bound the memory to
some 120 MB.

Nothing here protects from a bug in SQLite itself, and the query may read every row of these tables.

    result = run_query(database, "select count(*) from clients")
    result.rows, result.error               # [(400,)], "" - or [], "stopped after 0.5 million steps"
"""

import re
import sqlite3
import time
from collections import Counter
from typing import Any, NamedTuple

MAX_CHARACTERS = 350  # of a query, in UTF-8; the task has at most 150
MAX_SELECTS = 3  # in a query; each that is inside another multiplies the time and the memory before the first step
MAX_ERROR = 150  # characters of an error, which may quote the query
MAX_ROWS = 1000  # of a result
MAX_STEPS = 500_000  # of SQLite's virtual machine; a join of some thousand rows takes 50,000
MAX_SECONDS = 1.0
STEPS_PER_CALL = 1000  # of the progress handler
MAX_AUTHORISATIONS = 1000  # of a query: the functions, columns and subqueries in it
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1000,  # bytes of a text, a blob or a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: MAX_CHARACTERS,
    sqlite3.SQLITE_LIMIT_COLUMN: 20,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 10_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
FUNCTIONS = {  # deterministic, and their results are no longer than their arguments
    "abs", "avg", "coalesce", "count", "ifnull", "iif", "length", "like", "lower", "max", "min", "nullif", "round",
    "substr", "substring", "sum", "total", "trim", "upper",
}  # fmt: skip


class Result(NamedTuple):
    """The rows of a query, or on one line why there are none; `error` is empty if it ran."""

    rows: list[tuple[Any, ...]]
    error: str


def run_query(database: sqlite3.Connection, text: str) -> Result:
    """Run one SELECT on a copy of the database. Whatever the text is, this returns within about a second."""
    if len(text) > MAX_CHARACTERS:
        return Result([], f"longer than {MAX_CHARACTERS:,} characters")
    if not re.match(r"\s*select\b", text, re.IGNORECASE):
        return Result([], "not a SELECT")
    if re.search(r"\bwith\b", text, re.IGNORECASE | re.ASCII):  # also in quotes: WITH must not be hidden in them
        return Result([], "WITH is not allowed")
    if len(re.findall("select", text, re.IGNORECASE)) > MAX_SELECTS:  # also in quotes, likewise
        return Result([], f"more than {MAX_SELECTS} SELECTs")
    copy = sqlite3.connect(":memory:", isolation_level=None)  # None: Python adds no BEGIN
    try:
        database.backup(copy)
        guard = Guard(copy)
        try:
            rows = copy.execute(text).fetchmany(MAX_ROWS + 1)
        except MemoryError:  # also for more operations than LIMITS allows
            return Result([], "too large")
        # Warning: several statements, in some versions of Python; ValueError: a NUL or half of a character
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            if not guard.reason and re.match("interrupted|not authorized|access to .* is prohibited", str(error)):
                raise KeyboardInterrupt from None  # Ctrl-C in a method of Guard, which sqlite3 takes for a refusal
            return Result([], guard.reason or " ".join(str(error).split())[:MAX_ERROR] or "not a query")
    finally:
        copy.close()
    return Result([], f"more than {MAX_ROWS:,} rows") if len(rows) > MAX_ROWS else Result(rows, "")


class Guard:
    """Restrict a connection: what its queries may do, how long they may take, and how large values may be.

    reason: why a query was refused or stopped; empty if SQLite itself refused it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("select name from sqlite_master where type = 'table' and name not like 'sqlite%'")
        self.tables = {name for (name,) in found}
        self.reason, self.authorisations, self.steps = "", 0, 0
        self.deadline = time.monotonic() + MAX_SECONDS
        connection.execute("pragma query_only = on")
        connection.execute("pragma temp_store = memory")  # sorts would spill into files
        for category, most in LIMITS.items():
            connection.setlimit(category, most)
        connection.set_authorizer(self.authorise)
        connection.set_progress_handler(self.progress, STEPS_PER_CALL)

    def authorise(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Permit an action of a query. The arguments are SQLite's: for READ a table, for FUNCTION the second a name."""
        self.authorisations += 1
        if self.authorisations > MAX_AUTHORISATIONS:
            self.reason = "too many parts"
        elif action == sqlite3.SQLITE_READ and first not in self.tables:
            self.reason = f"not allowed to read {first}"
        elif action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in FUNCTIONS:
            self.reason = f"not allowed to call {second}"
        elif action not in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION):
            self.reason = "only reading is allowed"
        else:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def progress(self) -> bool:
        """Return whether to stop the query."""
        self.steps += STEPS_PER_CALL
        if self.steps > MAX_STEPS:
            self.reason = f"stopped after {MAX_STEPS / 1e6} million steps"
        elif time.monotonic() > self.deadline:
            self.reason = f"stopped after {MAX_SECONDS} s"
        return bool(self.reason)


def same_rows(expected: list[tuple[Any, ...]], rows: list[tuple[Any, ...]], ordered: bool) -> bool:
    """Compare two results; unless `ordered`, as multisets of rows. Numbers are equal up to the sixth decimal."""
    first, second = ([tuple(map(_rounded, row)) for row in each] for each in (expected, rows))
    return first == second if ordered else Counter(first) == Counter(second)


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
