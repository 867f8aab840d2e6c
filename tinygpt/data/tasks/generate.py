"""Generate labelled examples from templates and a seed: fixed shares of the labels, and no near duplicates.

The longer tables of wordings and words are text files next to the tasks, which `read_wordings` and `word_lists` read.

generate(1337, ("yes", "no"), draw)["train"]  # -> [(prompt, response), ...]
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

SIZES = {"train": 4000, "val": 500, "test": 1000}
MAX_CHARS = 61  # a prompt with the longest label of the task; with three special tokens they fill a context of 64

Pair = tuple[str, str]  # (prompt, response)


def generate(
    seed: int,
    labels: tuple[str, ...],
    draw: Callable[[random.Random, str, str, int], str],
    sizes: dict[str, int] = SIZES,
    max_chars: int = MAX_CHARS,
) -> dict[str, list[Pair]]:
    """Generate examples without near duplicates: `sizes` of each split, the labels in equal shares.

    A label that occurs n times in `labels` gets n shares. `draw(rng, split, label, number)` returns a prompt; the
    rounds through the labels are numbered from 0. `max_chars`: of a prompt with the longest label.
    """
    rng = random.Random(seed)
    room = max_chars - max(map(len, labels))
    seen: set[str] = set()
    splits: dict[str, list[Pair]] = {}
    for split, size in sizes.items():
        examples: list[Pair] = []
        while len(examples) < size:
            number = len(examples) // len(labels)
            label = labels[len(examples) % len(labels)]
            prompt = draw(rng, split, label, number)
            if len(prompt) <= room and letters(prompt) not in seen:
                seen.add(letters(prompt))
                examples.append((prompt, label))
        rng.shuffle(examples)
        splits[split] = examples
    return splits


def letters(prompt: str) -> str:
    """Reduce a prompt to its letters, without case: equal for near duplicates."""
    return "".join(character for character in prompt.lower() if character.isalpha())


def digits(rng: random.Random, pattern: str) -> str:
    """Replace each 9 of the pattern by a random digit."""
    return "".join(str(rng.randrange(10)) if character == "9" else character for character in pattern)


def words(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


def read_wordings(file: str) -> dict[str, tuple[str, dict[str, list[str]]]]:
    """Read a file next to this module: each section `[TITLE] REST` with its lines `MARK WORDING` by mark."""
    sections: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for line in Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            title, _, rest = line[1:].partition("]")
            wordings: dict[str, list[str]] = defaultdict(list)
            sections[title] = rest.strip(), wordings
        elif line and not line.startswith("#"):
            mark, _, wording = line.partition(" ")
            wordings[mark].append(wording)
    return sections


def word_lists(title: str) -> dict[str, tuple[str, ...]]:
    """Read the lists in a section of words.txt, by their names."""
    return {name: words(" ".join(lines)) for name, lines in read_wordings("words.txt")[title][1].items()}


def hashed(text: str) -> float:
    """Hash a text to a number from 0 to 1. A split chosen by it does not change when other texts are added."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
