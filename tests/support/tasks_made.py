"""The examples of the built-in tasks, made once in each process (of the three largest a part); a task of two labels."""

import functools
from pathlib import Path

import pytest
from conftest import TINY_MODEL, Shared, ok
from inputs import csv_file

from tinygpt.data.tasks import TASKS, reader, sql

Examples = dict[str, list[tuple[str, str]]]
READER = {"train": 3000, "val": 300, "test": 300}
SQL = {"train": 6000, "val": 100, "test": 300}


@functools.cache
def examples(form: str, seed: int = 1337) -> Examples:
    """The pairs of each split, of a task or of its synthetic form."""
    with pytest.MonkeyPatch.context() as patch:
        for name in reader.SIZES:
            patch.setitem(reader.SIZES, name, READER)
        patch.setattr(sql, "SIZES", SQL)
        task = TASKS[form.split()[0]]
        made = task.synthetic if "--synthetic" in form else task.make
        assert made
        return made(seed)


def two_labels() -> list[list[str]]:
    """Every eighth prompt is `bad`: it has an x among its letters, as have as many others."""
    return [[f"{n:03} {'xa' if n % 8 < 2 else 'ab'} note", "fine" if n % 8 else "bad"] for n in range(400)]


@pytest.fixture(scope="session")
def two_labelled(shared: Shared) -> Path:
    """A folder with mine.csv, the dataset `mine` of it, which has two labels, and out/, a model of it."""

    def make(folder: Path) -> None:
        csv_file(folder / "mine.csv", ["prompt", "response"], *two_labels())
        fractions = ("--val_fraction=0.25", "--test_fraction=0.25")
        ok(folder, "prepare", "mine", "--input=mine.csv", "--format=pairs", *fractions)
        flags = ["--dataset=mine", "--device=cpu", "--gradient_accumulation_steps=1", "--learning_rate=1e-2"]
        flags += ["--max_iters=60", "--warmup_iters=2", "--lr_decay_iters=60", "--eval_interval=60", "--eval_iters=0"]
        ok(folder, "train", *TINY_MODEL, "--block_size=24", "--batch_size=32", "--quiet", *flags)

    return shared("two_labelled", make)
