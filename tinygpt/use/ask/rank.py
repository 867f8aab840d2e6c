"""Rank the units of the best passages by how well each answers a question, and decide whether the best one does.

Each unit gets three features between 0 and 1, of which the score is a weighted sum. Two are shares of the question's
inverse document frequencies (idf), so that a rare word counts more than a frequent one:

- own: words of the unit that match words of the question: the same, another form (`kündigen`, `Kündigung`) or a part of
  a compound (`Frist` in `Kündigungsfrist`), which replaces a stemmer for each language;
- around: further ones in the headings, the names of a table's columns, the file's name and the neighbouring units;
- kind: whether the unit contains what the question asks for, a date, an amount, a name or a place.

The probability that the best unit answers at all is a logistic function of how much of the question it and its
surroundings explain, and how far it is ahead of the next one, both relative to this index.
The weights were fitted on the tuning half of the questions (experiments.md), those of the score by conditional logistic
regression (McFadden 1974).

    ranking = rank(index, "How long is the notice period?")
    ranking.found[0], ranking.probability
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinygpt.use.ask.questions import answer_in, asked, is_empty, kind_of, words_of
from tinygpt.use.ask.search import search, terms
from tinygpt.use.ask.sentences import Unit, units
from tinygpt.use.ask.store import Index, Passage

PASSAGES = 15  # whose units are ranked; 40 contain another tenth of the answers, but none of them comes first
MATCHES = 20_000  # passages that the words of a query match, more or less, so that BM25 takes 50 ms
# of a match with another form of a word, with a part of a compound
FORM = 0.8
COMPOUND = 0.6
FEATURES = ("own", "around", "kind")
WEIGHTS = np.array([7.7, 2.7, 2.4])
SIGN_WEIGHTS = np.array([4.5, 0.9])
BIAS = -4.2
Candidate = tuple[Unit, Passage]


class Ranking(NamedTuple):
    """The units of the best passages, best first, and whether the first one answers the question."""

    found: list[Candidate]
    features: np.ndarray  # (n, features)
    kind: str = ""  # of the answer, one of KINDS; empty: not clear
    is_empty: bool = False  # a question of stop words only, which any sentence has

    @property
    def scores(self) -> np.ndarray:
        """Return the score of each unit, (n,)."""
        return self.features @ WEIGHTS

    @property
    def signs(self) -> np.ndarray:
        """Return what tells whether the first unit answers: the share of the idf that it explains, and its lead."""
        scores = np.append(self.scores, [0.0, 0.0])
        return np.array([self.features[:1, :2].sum(), scores[0] - scores[1]])

    @property
    def probability(self) -> float:
        """Estimate the probability that the first unit answers the question."""
        return 0.0 if self.is_empty else float(1 / (1 + np.exp(-self.signs @ SIGN_WEIGHTS - BIAS)))

    def ordered(self) -> "Ranking":
        order = np.argsort(-self.scores, kind="stable")
        return self._replace(found=[self.found[i] for i in order], features=self.features[order])


def rank(index: Index, question: str) -> Ranking:
    """Rank the units of the best passages. Errors: TinyGPTError as in `search`."""
    kind = kind_of(question)
    counts = {word: index.frequency(f'"{word}"') for word in asked(question)}
    found = candidates(index, search(index, question, PASSAGES, query_of(counts)))
    features = features_of(question, found, kind, idf(counts, len(index)))
    return Ranking(found, features, kind, is_empty(question)).ordered()


def query_of(counts: dict[str, int]) -> str:
    """Return the query for the words that a question is about, and for the beginnings of the long ones.

    counts: in how many passages each word occurs. In a large index, frequent words are left out next to rare ones.
    """
    words = []
    matches = 0
    for word in sorted(counts, key=lambda word: counts[word]):
        matches += counts[word]
        if matches <= MATCHES or matches == counts[word]:  # the rarest word that the index has is never left out
            words.append(word)
    return " OR ".join([*terms(" ".join(words)), *(f'"{word[:-2]}" *' for word in words if len(word) > 6)])


def candidates(index: Index, passages: Sequence[Passage]) -> list[Candidate]:
    """Return the units of the passages; text that passages share occurs once."""
    found: dict[tuple[str, str, str], Candidate] = {}
    for passage in passages:
        # the header of a table may stand in the passages in front of this one
        above = index.passages(range(max(1, passage.id - 20), passage.id)) if passage.text.startswith("|") else []
        table = "\n".join(one.text for one in above if (one.source, one.title) == (passage.source, passage.title))
        for unit in units(passage, table):
            if not re.search(r"\w\w", unit.text):  # the number of an item
                continue
            key = (passage.source, passage.title if unit.is_heading else unit.position, unit.text)
            found.setdefault(key, (unit, passage))
    return list(found.values())


def idf(counts: dict[str, int], n: int) -> dict[str, float]:
    """Return each word's inverse document frequency in n passages as a share of their sum."""
    weights = {word: math.log(1 + (n - count + 0.5) / (count + 0.5)) for word, count in counts.items()}
    total = max(sum(weights.values()), 1e-9)
    return {word: weight / total for word, weight in weights.items()}


def match(one: str, other: str) -> float:
    """Compare two words: 1 if they are the same, less if they are forms of one word or one is a part of the other."""
    short, long = sorted((one, other), key=len)
    if one == other or len(short) < 4 or short.isdigit():
        return float(one == other)
    if short[:4] == long[:4]:
        same = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
        if same >= max(4, 0.6 * len(short), len(short) - 3, len(long) - 4):
            return FORM
    return COMPOUND if len(short) >= 5 and short in long else 0.0


def features_of(question: str, found: Sequence[Candidate], kind: str, shares: dict[str, float]) -> np.ndarray:
    """Return the features of each candidate, (n, features). shares: of each word of the question in the idf."""
    words = list(shares)
    weights = np.array(list(shares.values()))
    texts = [words_of(unit.text) for unit, _ in found]
    titles = [words_of(f"{passage.title} {unit.header} {Path(passage.source).stem}") for unit, passage in found]
    vocabulary = {word for text in [*texts, *titles] for word in text}
    lexical = {other: np.array([match(word, other) for word in words]) for other in vocabulary}

    def best(rows: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the best match of each question word in each row, (rows, words)."""
        return np.array([np.max([lexical[word] for word in row] or [np.zeros(len(words))], axis=0) for row in rows])

    if not found:
        return np.zeros((0, len(FEATURES)))
    own = best(texts)
    around = np.maximum(own, best(titles))
    for i in range(len(found) - 1):
        if found[i][1] is found[i + 1][1]:
            around[i] = np.maximum(around[i], own[i + 1])
            around[i + 1] = np.maximum(around[i + 1], own[i])
    kinds = [bool(kind and answer_in(unit.text, question, kind)) for unit, _ in found]
    return np.stack([own @ weights, (around - own) @ weights, kinds], axis=1)
