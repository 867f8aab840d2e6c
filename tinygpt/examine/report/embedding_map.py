"""The map of the tokens' embedding vectors."""

import math
from typing import Any

import numpy as np

from tinygpt.base import device
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.report.loaded_run import LoadedRun

MARGIN = 24  # around the map of the embedding vectors, which is 700 wide


def embedding_map(run: LoadedRun) -> dict[str, Any]:
    """Project the tokens' embedding vectors onto their first two principal components (Pearson 1901)."""
    vocabulary = run.tokenizer.symbols if isinstance(run.tokenizer, CharTokenizer) else []
    if len(vocabulary) < 3 or run.model.config.n_embd < 2:
        return {}
    vectors = device.to_host(run.model.transformer["wte"].weight[: len(vocabulary)])
    left, scale, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    xy = left[:, :2] * scale[:2] * (1, -1)  # y points down in a picture
    xy -= xy.min(0)
    xy *= (700 - 2 * MARGIN) / max(xy[:, 0].max(), xy[:, 1].max() / 0.8, 1e-9)  # one scale for both axes
    xy += MARGIN
    size = [700, math.ceil(xy[:, 1].max() + MARGIN)]
    explained = (scale[:2] ** 2 / max((scale**2).sum(), 1e-300)).tolist()
    token_points = zip(vocabulary, xy.tolist(), strict=True)
    points = [{"text": token, "x": x, "y": y, "kind": kind_of(token)} for token, (x, y) in token_points]
    return {"points": points, "size": size, "explained": explained, "width": vectors.shape[1]}


def kind_of(token: str) -> str:
    if token in SPECIAL:
        return "special"
    if token.isalpha():
        lower = "vowel" if token in "aeiou" else "consonant"
        return lower if token.islower() else "capital"
    return "digit" if token.isdigit() else "other"
