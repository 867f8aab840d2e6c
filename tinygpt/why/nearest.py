"""Similarity of the training rows to an output: of words (BM25), and of meaning (embeddings). Influence is compared
with them, because a text search needs no training.

    for name, scores in similarities(explained, "SQ *BLUE HERON coffee", texts).items():
        nearest(scores, count=10)
"""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinygpt.retrieve import embeddings
from tinygpt.retrieve.search import terms
from tinygpt.retrieve.store import Fingerprint, Index, create
from tinygpt.why.explained import Explained


def similarities(explained: Explained, query: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the score of each training row, float64 (rows,), by the name of the search.

    BM25 is that of `tinygpt ask`. The embeddings are wordllama's if it is installed, else the model's hidden states.
    """
    words = np.zeros(len(texts))
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        create(connection, {})
        index = Index(connection, Path("memory"))
        index.add_passages(index.add_source("train", Fingerprint(0, 0, "")), [("", "", text) for text in texts], None)
        for number, score in index.words(" OR ".join(terms(query)), len(texts)) if terms(query) else []:
            words[number - 1] = score
    table = embeddings.installed()
    loaded = embeddings.load(embeddings.WORDLLAMA if table else str(explained.out / "ckpt.pt"))
    assert loaded is not None
    cosines = loaded.vectors(texts) @ loaded.vectors([query])[0]
    return {"BM25": words, f"{'wordllama' if table else 'the model'}'s embeddings": cosines.astype(np.float64)}


def nearest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of at most `count` rows with the highest positive scores, best first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return order[scores[order] > 0]
