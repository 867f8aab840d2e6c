"""Find quotations in a text: stretches that occur verbatim in the training text, as a model reproduces memorised text.

Short stretches agree by chance. Those of about 20 characters or more are quotations.

    training = TrainingText(text)
    training.look_up(samples)       # all at once, in one pass over the training text
    training.stretches(sample)      # [(start, end), ...]: the longest ones, of 20 characters or more
    training.share(sample)          # fraction of the sample's windows of 20 characters that are in the text
"""

import itertools
from collections.abc import Iterable

import numpy as np

from tinygpt.data.tokenizer import code_points

SHORTEST = 20  # characters
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no character is lost in products modulo 2^64
CHUNK = 1 << 22  # windows that are hashed at a time, in 100 MB


class TrainingText:
    """A training text in which quotations are looked up."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._seen: dict[str, np.ndarray] = {}  # by text: which of its windows are in it, bool (max(len - 19, 0),)

    def look_up(self, texts: Iterable[str]) -> None:
        """Look up the windows of SHORTEST characters of several texts in one pass over the training text.

        The windows of all texts are hashed. Equal hashes are compared by their text, since hashes can collide.
        """
        new = {text: window_hashes(code_points(text)) for text in texts if text not in self._seen}
        wanted = np.unique(np.concatenate([*new.values(), np.zeros(0, dtype=np.uint64)]))
        in_text = np.zeros(len(wanted), dtype=bool)
        for start in range(0, len(self.text) if len(wanted) else 0, CHUNK):
            hashes = window_hashes(code_points(self.text[start : start + CHUNK + SHORTEST - 1]))
            indices = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            in_text[indices[wanted[indices] == hashes]] = True
        for text, hashes in new.items():
            seen = in_text[np.searchsorted(wanted, hashes)]
            for position in np.flatnonzero(seen):
                seen[position] = text[position : position + SHORTEST] in self.text
            self._seen[text] = seen

    def stretches(self, text: str) -> list[tuple[int, int]]:
        """Find the start and end of each longest quotation, of SHORTEST or more characters, in order."""
        self.look_up([text])
        spans: list[tuple[int, int]] = []
        end = 0
        for start in np.flatnonzero(self._seen[text]).tolist():
            end = max(end, start + SHORTEST)
            while end < len(text) and text[start : end + 1] in self.text:
                end += 1
            if not spans or end > spans[-1][1]:
                spans.append((start, end))
        return spans

    def share(self, *texts: str) -> float:
        """Return the fraction of windows of SHORTEST characters that are in the training text; NaN without a window."""
        self.look_up(texts)
        seen = np.concatenate([self._seen[text] for text in texts]) if texts else np.zeros(0)
        return float(seen.mean()) if len(seen) else float("nan")


def window_hashes(codes: np.ndarray) -> np.ndarray:
    """Hash each window by a polynomial modulo 2^64: uint64, (max(len(codes) - 19, 0),)."""
    length = max(len(codes) - SHORTEST + 1, 0)
    hashes = np.zeros(length, dtype=np.uint64)
    for offset in range(SHORTEST):
        hashes *= BASE
        hashes += codes[offset : offset + length]
    return hashes


def marked(text: str, stretches: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Cut the text into pieces, each with whether it is in one of the stretches, which may overlap."""
    inside = np.zeros(len(text) + 1, dtype=bool)
    for start, end in stretches:
        inside[start:end] = True
    cuts = [0, *(np.flatnonzero(inside[1:-1] != inside[:-2]) + 1).tolist(), len(text)] if text else []
    return [(text[a:b], bool(inside[a])) for a, b in itertools.pairwise(cuts)]
