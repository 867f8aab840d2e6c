"""Similarity of the training rows to an output: of words (BM25), and of meaning (embeddings). Influence is compared
with them, because a text search needs no training.

    for name, scores in similarities(explained, "SQ *BLUE HERON coffee", texts).items():
        nearest(scores, count=10)
"""

from collections.abc import Sequence

import numpy as np

from tinygpt.retrieve import embeddings
from tinygpt.retrieve.search import word_scores
from tinygpt.why.explained import Explained


def similarities(explained: Explained, query: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the score of each training row, float64 (rows,), by the name of the search.

    BM25 is that of `tinygpt ask`. The embeddings are wordllama's if it is installed, else the model's hidden states.
    """
    table = embeddings.installed()
    loaded = embeddings.WordLlama() if table else embeddings.HiddenStates(str(explained.out / "ckpt.pt"))
    cosines = (loaded.vectors(texts) @ loaded.vectors([query])[0]).astype(np.float64)
    name = f"{'wordllama' if table else 'the model'}'s embeddings"
    return {"BM25": np.array(word_scores(texts, query)), name: cosines}


def nearest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of at most `count` rows with the highest positive scores, best first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return order[scores[order] > 0]
