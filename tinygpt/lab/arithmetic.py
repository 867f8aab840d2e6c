"""`tinygpt lab arithmetic`."""

import random
from pathlib import Path
from typing import NamedTuple

from tinygpt.data.tasks import Pair
from tinygpt.lab.models import Model, write_dataset
from tinygpt.lab.processes import train

LEARNED, TESTED = 3, 5  # most digits of a number in training, and in the test


class Size(NamedTuple):
    examples: int
    test: int
    iterations: int


FULL, QUICK = Size(10_000, 300, 1500), Size(4_000, 100, 300)


def drawn(rng: random.Random, first: int, second: int) -> str:
    """A prompt with numbers of so many digits."""
    low = [0 if digits == 1 else 10 ** (digits - 1) for digits in (first, second)]
    a, b = (rng.randrange(least, 10**digits) for least, digits in zip(low, (first, second), strict=True))
    return f"{a}+{b}"


def prompts(size: Size, seed: int):
    rng = random.Random(f"sums {seed}")
    test: dict[str, list[str]] = {}
    kinds = {str(digits): (digits, digits) for digits in range(1, TESTED + 1)} | {"mixed": (3, 1)}
    for name, (first, second) in kinds.items():
        many = 20 if name == "1" else size.test
        found: dict[str, None] = {}
        while len(found) < many:
            found[drawn(rng, first, second)] = None
        test[name] = list(found)
    seen = {one for some in test.values() for one in some}
    known: dict[str, None] = {}
    while len(known) < size.examples + 300:
        prompt = drawn(rng, *rng.choices(range(1, LEARNED + 1), (1, 2, 4), k=2))
        if prompt not in seen:
            known[prompt] = None
    return list(known), test


def answer(prompt: str, form: str) -> str:
    text = str(sum(map(int, prompt.split("+"))))
    return text[::-1] if form == "reversed" else text
