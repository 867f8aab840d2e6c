"""Find quotations in a text: stretches that occur verbatim in the training text, as a model reproduces memorised text.

Short stretches agree by chance. Those of about 20 characters or more are quotations.

    training = TrainingText(text)
    training.stretches(sample)      # [(start, end), ...]: the longest ones, of 20 characters or more
    training.share(sample)          # fraction of the sample's windows of 20 characters that are in the text
"""

import itertools

import numpy as np

from tinygpt.data.tokenizer import code_points

SHORTEST = 20  # characters
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no character is lost in products modulo 2^64


class TrainingText:
    """A training text in which quotations are looked up, by the hashes of its windows of SHORTEST characters."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.hashes = np.sort(window_hashes(code_points(text)))

    def contains(self, text: str) -> np.ndarray:
        """Return whether each window of a text is in the training text, bool (max(len(text) - 19, 0),)."""
        hashes = window_hashes(code_points(text))
        return np.searchsorted(self.hashes, hashes, "right") > np.searchsorted(self.hashes, hashes, "left")

    def stretches(self, text: str) -> list[tuple[int, int]]:
        """Find the start and end of each longest quotation, of SHORTEST or more characters, in order."""
        spans: list[tuple[int, int]] = []
        end = 0
        for start in np.flatnonzero(self.contains(text)).tolist():
            end = max(end, start + SHORTEST)
            while end < len(text) and text[start : end + 1] in self.text:
                end += 1
            if not spans or end > spans[-1][1]:
                spans.append((start, end))
        return spans

    def share(self, *texts: str) -> float:
        """Return the fraction of windows of SHORTEST characters that are in the training text; NaN without a window."""
        seen = np.concatenate([np.zeros(0, dtype=bool), *map(self.contains, texts)])
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
