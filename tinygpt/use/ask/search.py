"""Search an index: by words (BM25), by meaning (cosine of vectors), and by both (reciprocal rank fusion).

The scores of the two rankings cannot be compared, but the ranks can. The fused score of a passage is the sum of
1 / (10 + rank) over the rankings that contain it (Cormack, Clarke & Buettcher 2009, "Reciprocal rank fusion"). With 60,
the paper's constant, recall@5 was one to three percentage points lower on NAICS and on generated documents.

with open_index(Path("index.db")) as index:
    for passage in search(index, "How long is the warranty?", count=5): print(passage.source, passage.text)
"""

import contextlib
import math
import re
import sqlite3
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinygpt.use.ask import embeddings
from tinygpt.use.ask.store import Fingerprint, Index, Passage, create

CANDIDATES = 100  # passages that each ranking contributes
RANK_CONSTANT = 10
K1 = 1.2  # of SQLite's BM25


def search(index: Index, question: str, count: int, query: str = "") -> list[Passage]:
    """Return the `count` passages with the highest scores, best first; fewer if fewer are found.

    query: in FTS5's syntax, for the question's words. Errors: TinyGPTError if the embeddings cannot be loaded.
    """
    depth = max(CANDIDATES, count)
    query = query or " OR ".join(terms(question))
    bm25_scores = dict(index.words(query, depth)) if query else {}
    ids = fused([list(bm25_scores), index.nearest(question, depth)])[:count]
    return [passage._replace(bm25=bm25_scores.get(passage.id, 0.0)) for passage in index.passages(ids)]


def with_relevance(index: Index, question: str, passages: Sequence[Passage]) -> list[Passage]:
    """Add the relevance of passages that `search` has found, from 0 to 1: BM25 as a share of an upper bound.

    BM25 is a sum over the question's words, to which each adds less than its inverse document frequency times k1 + 1.
    So the BM25 of different questions cannot be compared, but these shares can. The bound adds 1 inside the logarithm,
    as usual; SQLite does not, and counts a word that half of the passages contain as almost nothing.
    """
    n = len(index)
    frequencies = [index.frequency(term) for term in terms(question)]
    bound = (K1 + 1) * sum(math.log(1 + (n - df + 0.5) / (df + 0.5)) for df in frequencies)
    return [passage._replace(relevance=passage.bm25 / bound if bound else 0.0) for passage in passages]


@contextlib.contextmanager
def memory_index(texts: Sequence[str]) -> Iterator[Index]:
    """Make an index of texts in memory; their passages are numbered from 1."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        create(connection, {"embeddings": embeddings.NONE})
        index = Index(connection, Path("memory"))
        index.add_passages(index.add_source("texts", Fingerprint(0, 0, "")), [("", "", text) for text in texts], None)
        yield index


def terms(question: str) -> list[str]:
    """Return the question's distinct words as FTS5 terms: quoted, so that none is an operator.

    Accents are composed with their letters, since FTS5 does not end a word at a combining accent.
    """
    words = re.findall(r"\w+", unicodedata.normalize("NFC", question))
    return [f'"{word}"' for word in {word.casefold(): word for word in words}.values()]


def fused(rankings: list[list[int]]) -> list[int]:
    """Fuse rankings of passage ids by reciprocal rank, best first."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, passage in enumerate(ranking, start=1):
            scores[passage] += 1 / (RANK_CONSTANT + rank)
    return sorted(scores, key=lambda passage: (-scores[passage], passage))
