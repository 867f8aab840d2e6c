"""Real brands for the task `transactions`: a table of names, and its division into splits.

data/make/merchants.py makes `merchants.txt` from the name-suggestion-index of OpenStreetMap (BSD-3-Clause, notice in
`merchants.LICENSE`). A line `# brands/shop/clothes` opens a category; each of the lines below it has a name as the
index spells it, a tab, and the countries ("001": worldwide).

A name helps to classify another one of the same chain (`SHELL`, `SHELL EXPRESS`), so all names of a group are in one
split. A hash of the group's first name chooses it, so the splits do not depend on a seed.

    merchants_by_label()["fuel"]["test"][0]  # -> Merchant(name="AMPUP", countries=("001",))
"""

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tinygpt.data.tasks.generate import hashed, word_lists

TABLE = Path(__file__).with_name("merchants.txt")
# The index's categories of each label; fees, income and subscriptions have none.
CATEGORIES = word_lists("merchants: categories of the index")
LABELS = {category: label for label, categories in CATEGORIES.items() for category in categories}
NAME_WIDTH = 22  # of a merchant in a statement
TEMPLATE_WORDS = ("SP", "PIONEER")  # brands of val or test that are also a prefix or an invented name in train
ORDINARY = 5  # a name that is a part of more others than this is an ordinary word (PIZZA, TRANSIT), not a name


class Merchant(NamedTuple):
    """A brand as a statement shows it, and the countries it is in."""

    name: str
    countries: tuple[str, ...]


def rows() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Read the table: name, the index's category, countries."""
    category = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            category = line.removeprefix("# ")
        else:
            name, countries = line.split("\t")
            yield name, category, tuple(countries.split())


def descriptor(name: str) -> str:
    """Write a name as statements do: ASCII capitals, digits, `&`, `-` and `.`, cut to `NAME_WIDTH` characters.

    Empty if the name has letters that are not Latin, or fewer than two letters.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c)).upper()
    if any(c.isalpha() and not c.isascii() for c in plain) or sum(map(str.isalpha, plain)) < 2:
        return ""
    plain = re.sub(r"[^A-Z0-9&.-]+", " ", re.sub("['’]", "", plain)).strip(" &.-")
    return plain[:NAME_WIDTH].rstrip(" &.-")


def name_words(name: str) -> tuple[str, ...]:
    """Return the words that tell one descriptor from another: without punctuation, THE and AND."""
    return tuple(word for word in re.findall("[A-Z0-9]+", name) if word not in ("THE", "AND"))


def word_sequences(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Return each sequence of adjacent words of a name that is shorter than the name."""
    for length in range(1, len(words)):
        for start in range(len(words) - length + 1):
            yield words[start : start + length]


@functools.cache
def merchants_by_label() -> dict[str, dict[str, list[Merchant]]]:
    """Return the merchants of each label and split, sorted by name. Names with two labels are left out."""
    labels: dict[str, set[str]] = defaultdict(set)
    countries: dict[str, set[str]] = defaultdict(set)
    for brand, category, brand_countries in rows():
        name = descriptor(brand)
        labels[name].add(LABELS[category])
        countries[name].update(brand_countries)
    words = {name: name_words(name) for name in labels}
    counts = Counter(part for name in words for part in set(word_sequences(words[name])))
    names = [
        name
        for name in sorted(labels)
        if len(labels[name]) == 1 and words[name] and counts[words[name]] <= ORDINARY and name not in TEMPLATE_WORDS
    ]
    split = {name: split_of(group[0]) for group in groups({name: words[name] for name in names}) for name in group}
    merchants: dict[str, dict[str, list[Merchant]]] = {
        label: {split: [] for split in ("train", "val", "test")} for label in CATEGORIES
    }
    for name in names:  # in sorted order
        merchants[min(labels[name])][split[name]].append(Merchant(name, tuple(sorted(countries[name]))))
    return merchants


def groups(names: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Divide names (with their words) into groups: two names are in one group if they have the same first word, the
    same letters, or if one is a part of the other. Each group is sorted."""
    keys: dict[object, list[str]] = defaultdict(list)  # names with a common key are in one group
    all_words = set(names.values())
    for name, words in names.items():
        for key in (words, words[0], "".join(words), *(part for part in word_sequences(words) if part in all_words)):
            keys[key].append(name)
    group = {name: {name} for name in names}
    for linked in keys.values():
        joined = set[str]().union(*(group[name] for name in linked))
        group |= dict.fromkeys(joined, joined)
    return [list(members) for members in dict.fromkeys(tuple(sorted(group[name])) for name in sorted(names))]


def split_of(name: str) -> str:
    """Choose the split of a group by a hash of its first name: 70 % train, 10 % val, 20 % test."""
    fraction = hashed(name)
    held_out = "val" if fraction < 0.8 else "test"
    return "train" if fraction < 0.7 else held_out
