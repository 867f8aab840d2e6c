"""The task of `tinygpt lab domain`: a business activity -> its sector of the economy.

The activities are titles and illustrative examples of the descriptions of industries that ship with tinygpt (`naics`):
`Creamery Butter Manufacturing`, `Dollar stores`. All activities of an industry (the first five digits of its code) are
in one split, which a hash of the code chooses; the seed only shuffles the examples. Entries with fewer digits describe
the industries of several splits, and are left out.

`corpus` is a text for pretraining: the training industries alone, without the codes, which give the sector. A model
that was pretrained on `naics` has read the test prompts.

    examples()["train"][0]  # -> (prompt, response)
"""

import functools
import hashlib
import itertools
import random
import re
from collections import defaultdict
from typing import NamedTuple

from tinygpt import api

NUMBERS = {
    "agriculture": "11", "mining": "21", "utilities": "22", "construction": "23", "manufacturing": "31 32 33",
    "wholesale": "42", "retail": "44 45", "transport": "48 49", "information": "51", "finance": "52",
    "real estate": "53", "professional": "54", "management": "55", "support": "56", "education": "61", "health": "62",
    "arts": "71", "hospitality": "72", "other services": "81", "government": "92",
}  # fmt: skip
SECTORS = tuple(NUMBERS)
_SECTOR_OF = {number: sector for sector, numbers in NUMBERS.items() for number in numbers.split()}
LONGEST = 61 - max(map(len, SECTORS))  # of a prompt, in characters: with three special tokens it fits a context of 64
SEED = 1337  # of the order
HELD_OUT = (0.2, 0.1)  # shares of each sector's industries that are in test and in val


class Industry(NamedTuple):
    """An entry of the descriptions with a code of five or six digits."""

    code: str
    title: str
    text: str  # description and illustrative examples; empty if there are none

    @property
    def sector(self) -> str:
        return _SECTOR_OF[self.code[:2]]

    @property
    def group(self) -> str:
        """Return the start of the code. Industries of a group are in one split; in management each code is a group."""
        return self.code[: 6 if self.sector == "management" else 5]

    def activities(self) -> list[str]:
        """Return the prompts of the industry, at most LONGEST characters each."""
        _, _, examples = self.text.partition("Illustrative Examples:")
        return [text for line in (self.title, *examples.split("\n")) if 0 < len(text := activity(line)) <= LONGEST]


def activity(line: str) -> str:
    """Make a title or an example a prompt: without a final `manufacturing`, which would name the sector."""
    text = re.sub(r"\([^()]*(\([^()]*\)[^()]*)*\)", "", line.lower())
    text = re.sub(r"\s+(?=[ ,])", "", text).strip(" ,.")
    return re.sub(r",? manufacturing$", "", text)


@functools.cache
def industries() -> tuple[Industry, ...]:
    """Read the described industries, in the order of the file."""
    entries = re.split(r"\n\n(?=\d\d[-\d]* )", api.corpus("naics").rstrip("\n"))
    parts = (re.fullmatch(r"(\d{5,6}) (.*?)\n(.*)", entry, re.DOTALL) for entry in entries)
    return tuple(Industry(part[1], part[2], "" if part[3] == "NULL" else part[3]) for part in parts if part)


@functools.cache
def splits() -> dict[str, str]:
    """Assign each group to a split: in each sector, a share of the groups goes to test, one to val, others to train."""
    groups: dict[str, set[str]] = {sector: set() for sector in SECTORS}
    for industry in industries():
        groups[industry.sector].add(industry.group)
    split_by_group: dict[str, str] = {}
    for sector_groups in groups.values():
        shuffled = sorted(sector_groups, key=lambda group: hashlib.sha256(group.encode()).digest())
        test, val = (max(1, round(share * len(sector_groups))) for share in HELD_OUT)
        held_out = ["test"] * test + ["val"] * val
        split_by_group |= itertools.zip_longest(shuffled, held_out, fillvalue="train")
    return split_by_group


@functools.cache
def examples() -> dict[str, list[tuple[str, str]]]:
    """Make the examples in a random order. Activities of two sectors or splits are left out."""
    by_letters: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)  # by letters: sector and split, and a prompt
    for industry in industries():
        for text in industry.activities():
            letters = "".join(filter(str.isalpha, text))
            by_letters[letters].setdefault((industry.sector, splits()[industry.group]), text)
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in ("train", "val", "test")}
    for prompts in by_letters.values():
        if len(prompts) == 1:
            [((sector, split), text)] = prompts.items()
            pairs[split].append((text, sector))
    rng = random.Random(SEED)
    for split_pairs in pairs.values():
        rng.shuffle(split_pairs)
    return pairs


def corpus() -> str:
    """Join titles and descriptions of the training industries, without codes, those of a group one after the other."""
    training = [industry for industry in industries() if splits()[industry.group] == "train"]
    training.sort(key=lambda industry: hashlib.sha256(industry.group.encode()).digest())
    return "\n\n".join(f"{industry.title}\n{industry.text}".strip() for industry in training) + "\n"
