"""Tasks of prompts and responses, from templates or tables and a seed: classification, reading, reports and SQL.

TASKS["headlines"].make(1337)["train"][0]  # -> (prompt, response)
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tinygpt.data.tasks import compliance, headlines, reader, reports, sectors, sql, transactions
from tinygpt.data.tasks.generate import Pair

Make = Callable[[int], dict[str, list[Pair]]]  # from a seed to the (prompt, response) pairs of each split
Scores = Callable[[str, str, str], dict[str, bool]]  # prompt, expected response, response -> check: passed
Library = Callable[[int], tuple[dict[str, str], dict[str, list[dict[str, str]]]]]


@dataclass(frozen=True)
class Task:
    """A task: `make(seed)` returns its pairs; the responses are `labels`, or free text if there are none.

    preset: the one that trains a model for the task, starting from the model in the folder `base` unless that is empty.
    positive: of two labels the rare one, which is to be found; `tinygpt eval` then measures precision and recall.
    scores: judges a response by named checks, from the prompt, the expected response and the response; for free text
    with more than one right wording. synthetic: makes the form of the task with invented names, if the task has two
    forms. library: makes documents, and questions of val and test about them. abstention: turns the response to a
    prompt into the one that says that there is no answer. database: makes the database that the responses query. group:
    names the group of a prompt; each group of val and test also gets scores of its own.
    """

    name: str
    labels: tuple[str, ...]
    make: Make
    preset: str
    base: str = "out-fast"
    positive: str = ""
    scores: Scores | None = None
    synthetic: Make | None = None
    library: Library | None = None
    abstention: Callable[[str, str], str] | None = None
    database: Callable[[], sqlite3.Connection] | None = None
    group: Callable[[str], str] | None = None


_TASKS = (
    Task(
        "transactions",
        transactions.CATEGORIES,
        transactions.with_brands,
        "finetune_transactions",
        synthetic=transactions.invented,
    ),
    Task("headlines", headlines.SENTIMENTS, headlines.make, "finetune_headlines", group=headlines.group),
    Task("compliance", compliance.LABELS, compliance.make, "compliance", base="", positive="breach"),
    Task("sectors", sectors.SECTORS, sectors.make, "finetune_sectors"),
    Task("reader", (), reader.make, "reader", base="", library=reader.library, abstention=reader.abstention),
    Task("reader_long", (), reader.make_long, "finetune_reader_long", "out-reader", abstention=reader.abstention),
    Task("reports", (), partial(reports.make, "plain"), "reports", base="", scores=reports.SCORES["plain"]),
    Task("reports_a", (), partial(reports.make, "a"), "finetune_reports", "out-reports", scores=reports.SCORES["a"]),
    Task("reports_b", (), partial(reports.make, "b"), "finetune_reports", "out-reports", scores=reports.SCORES["b"]),
    Task("sql", (), sql.make, "sql", base="", scores=sql.scores, database=sql.database, group=sql.wording),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
