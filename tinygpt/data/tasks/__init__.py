"""Two classification tasks for fine-tuning, generated from templates and a seed.

generate       labelled examples without near duplicates, the labels in equal shares
merchants      brands and what they sell: a table of real names, and its division into splits
transactions   a line of a card statement -> its spending category
headlines      company news -> positive, neutral or negative

    TASKS["headlines"].make(1337)["train"][0]  # -> (prompt, response)
"""

from collections.abc import Callable
from dataclasses import dataclass

from tinygpt.data.tasks import headlines, reader, transactions
from tinygpt.data.tasks.generate import Pair

Make = Callable[[int], dict[str, list[Pair]]]  # from a seed to the (prompt, response) pairs of each split


@dataclass(frozen=True)
class Task:
    """A task: `make(seed)` returns its pairs; the responses are `labels`. `synthetic` makes the form of the task with
    invented names, if the task has two forms."""

    name: str
    labels: tuple[str, ...]
    make: Make
    synthetic: Make | None = None


TASKS: dict[str, Task] = {
    "transactions": Task("transactions", transactions.CATEGORIES, transactions.with_brands, transactions.invented),
    "headlines": Task("headlines", headlines.SENTIMENTS, headlines.make),
    "reader": Task("reader", (), reader.make),
}
