"""Tasks of prompts and responses, from templates or tables and a seed: classification, reading, reports and SQL.

TASKS["headlines"].make(1337)["train"][0]  # -> (prompt, response)
"""

import inspect
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tasks import compliance, headlines, reader, reports, sql, transactions
from tinygpt.data.tasks.generate import Pair

Make = Callable[..., dict[str, list[Pair]]]  # from a seed to the (prompt, response) pairs of each split
Scores = Callable[[str, str, str], dict[str, bool]]  # prompt, expected response, response -> check: passed
Library = Callable[[int], tuple[dict[str, str], dict[str, list[dict[str, str]]]]]


@dataclass(frozen=True)
class Task:
    """A task: `make(seed)` returns its pairs."""

    name: str
    labels: tuple[str, ...]  # the responses; empty: free text
    make: Make
    preset: str  # trains a model for the task
    base: str = "out-fast"  # folder of the model that the preset starts from; empty: none
    flags: tuple[str, ...] = ()  # of the training, where the preset is another task's
    scores: Scores | None = None  # judges free text by named checks
    synthetic: Make | None = None  # makes the form of the task with invented names
    library: Library | None = None  # makes documents, and questions of val and test about them
    abstention: Callable[[str, str], str] | None = None  # from a prompt and its response to "there is no answer"
    database: Callable[[], sqlite3.Connection] | None = None  # makes the database that the responses query
    group: Callable[[str], str] | None = None  # names the group of a prompt; each group gets scores of its own


REPORTS = "configs/reports.yaml"
FIRM = "configs/finetune_reports.yaml"
_TASKS = (
    Task(
        "transactions",
        transactions.CATEGORIES,
        transactions.with_brands,
        "configs/finetune_transactions.yaml",
        synthetic=transactions.invented,
        group=transactions.group,
    ),
    Task(
        "headlines",
        headlines.SENTIMENTS,
        headlines.make,
        "configs/finetune_transactions.yaml",
        flags=(
            "--optimizer=muon",
            "--muon_learning_rate=0.01",
            "--max_iters=1500",
            "--eval_interval=150",
            "--patience=0",
        ),
        group=headlines.group,
    ),
    Task("compliance", compliance.LABELS, compliance.make, "configs/compliance.yaml", base=""),
    Task("reader", (), reader.make, "reader", base="", library=reader.library, abstention=reader.abstention),
    Task("reader_long", (), reader.make_long, "finetune_reader_long", "out-reader", abstention=reader.abstention),
    Task("reports", (), partial(reports.make, "plain"), REPORTS, base="", scores=reports.SCORES["plain"]),
    Task("reports_a", (), partial(reports.make, "a"), FIRM, "out-reports", scores=reports.SCORES["a"]),
    Task("reports_b", (), partial(reports.make, "b"), FIRM, "out-reports", scores=reports.SCORES["b"]),
    Task("sql", (), sql.make, "configs/sql.yaml", base="", scores=sql.scores, database=sql.database, group=sql.group),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}


class Examples(NamedTuple):
    """The examples of a task."""

    splits: dict[str, list[Pair]]  # train, val, test: (prompt, response)
    labels: tuple[str, ...]  # those that occur; empty: free text
    scores: Scores  # judges a response by named checks


def exact_match(prompt: str, expected: str, response: str) -> dict[str, bool]:
    return {"exact match": response == expected}


def examples(name: str, seed: int, **options: Any) -> Examples:
    """Make the examples of a task. options: of its function `make`. Errors: TinyGPTError for an unknown task or
    option."""
    if name not in TASKS:
        raise TinyGPTError(f"{name}: no such task", f"one of {', '.join(TASKS)}")
    task = TASKS[name]
    known = list(inspect.signature(task.make).parameters)[1:]
    if unknown := options.keys() - set(known):
        raise TinyGPTError(f"task {name}: {min(unknown)}: no such option", ", ".join(known))
    splits = task.make(seed, **options)
    given = {response for _, response in chain.from_iterable(splits.values())}
    return Examples(splits, tuple(label for label in task.labels if label in given), task.scores or exact_match)
