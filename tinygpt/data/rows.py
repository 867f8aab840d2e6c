"""The rows that a model is trained and measured on, and the draw of a batch.

A batch is a pure function of (seed, step): a Philox generator keyed by the two draws the global batch, and each
process and each micro-step takes its slice of it. So there is no data position to save, resuming is exact,
evaluation cannot disturb training, and the number of processes does not change what is learned.
Source of the counter-based generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    starts = source.draw(seed, step, block_size, batch_size)        # source = dataset.sources["train"]
    x, y = source.rows(starts, source.width(block_size))            # int64 (batch_size, width)
"""

import copy
import functools
from typing import Any

import numpy as np

from tinygpt.data.tokenizer import END, PROMPT, RESPONSE, SPECIAL, Tokenizer


class TextRows:
    """Plain text: every stretch of block_size tokens is a row, its targets the stretch one token further."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def width(self, block_size: int) -> int:
        """Columns of a row."""
        return block_size

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        """Where the rows of a step's global batch start, see `draw_windows`."""
        return draw_windows(seed, step, len(self.tokens), block_size, count, stream)

    def every(self, block_size: int) -> np.ndarray:
        """Starts of the windows that cover the targets tokens[1:], each once; the last may be shorter."""
        return np.arange(0, len(self.tokens) - 1, block_size)

    def targets(self, starts: np.ndarray, width: int) -> np.ndarray:
        """How many targets the rows have that begin at `starts`."""
        return np.minimum(width, len(self.tokens) - 1 - starts)

    def like(self, other: "TextRows | PairRows") -> "TextRows":
        """As many tokens as the other has, from the start."""
        return TextRows(self.tokens[: len(other.tokens)])

    def rows(self, starts: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int64 (n, width). Targets past the end of the text are -1, which carries no loss."""
        if not len(starts) or starts.max() + width < len(self.tokens):
            block = windows(self.tokens, starts, width)
        else:
            places = starts[:, None] + np.arange(width + 1)
            inside = places < len(self.tokens)
            block = np.where(inside, self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64), -1)
        return np.maximum(block[:, :-1], 0), block[:, 1:]


class PairRows:
    """Prompts and responses: a row is an example, its targets the response and END alone; the rest is -1: no loss."""

    def __init__(self, tokens: np.ndarray, tokenizer: Any) -> None:
        """Errors: KeyError, ValueError if the tokens are not whole examples."""
        marks = {name: np.flatnonzero(tokens == tokenizer.special[name]) for name in SPECIAL}
        self.tokens, self.starts, self.ends = tokens, marks[PROMPT], marks[END] + 1
        self.responses, self.end_id = marks[RESPONSE], tokenizer.special[END]
        if not len(self.starts) == len(self.responses) == len(self.ends) > 0:
            raise ValueError("marks are missing")
        bounds = np.append(self.starts, len(tokens))
        in_order = (self.starts < self.responses) & (self.responses < self.ends - 1) & (self.ends == bounds[1:])
        if self.starts[0] or not in_order.all():
            raise ValueError("marks are not in order")
        self.lengths = self.ends - self.starts

    def width(self, block_size: int) -> int:
        """Columns of a row: those of the longest example."""
        return min(int(self.lengths.max()) - 1, block_size)

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        """Which examples make up a step's global batch."""
        return draw_windows(seed, step, len(self.starts), 0, count, stream)

    def every(self, block_size: int) -> np.ndarray:
        return np.arange(len(self.starts))

    def targets(self, at: np.ndarray, width: int) -> np.ndarray:
        """How many targets the examples `at` have in rows of `width`: those of the response and END that fit."""
        return np.minimum(self.ends, self.starts + width + 1)[at] - self.responses[at] - 1

    def like(self, other: "TextRows | PairRows") -> "PairRows":
        """As many examples as the other has, from the start."""
        assert isinstance(other, PairRows)
        few = copy.copy(self)
        few.starts = self.starts[: len(other.starts)]
        return few

    def rows(self, at: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the examples `at`, int64 (n, width). Longer examples are cut; targets other than the
        response and its END are -1, which carries no loss."""
        places = self.starts[at][:, None] + np.arange(width + 1)
        inside = places < self.ends[at][:, None]
        block = np.where(inside, self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64), self.end_id)
        answer = inside & (places > self.responses[at][:, None])
        return block[:, :-1], np.where(answer, block, -1)[:, 1:]

    def texts(self, tokenizer: Tokenizer) -> list[tuple[str, str]]:
        """Every example as (prompt, response)."""
        return [
            (tokenizer.decode(self.tokens[a + 1 : b].tolist()), tokenizer.decode(self.tokens[b + 1 : c - 1].tolist()))
            for a, b, c in zip(self.starts, self.responses, self.ends, strict=True)
        ]


def draw_windows(seed: int, step: int, tokens: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
    """Where the `count` windows of a step's global batch start, int64, shape (count,), from (seed, step) alone.

    `stream` separates the uses: 0 is training, 1 and 2 are the evaluation of the two splits.
    """
    generator = np.random.Generator(np.random.Philox(key=[stream_key(seed, stream), np.uint64(step)]))
    return generator.integers(0, tokens - block_size, size=count)


@functools.cache  # an iteration finds the processor's caches full of other things: 0.1 ms of 12
def stream_key(seed: int, stream: int) -> np.uint64:
    """The half of Philox's key that stays the same throughout a run."""
    return np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]  # type: ignore[no-any-return]


def windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> np.ndarray:
    """Inputs with their targets: int64, shape (len(starts), block_size + 1); x is [:, :-1], y is [:, 1:]."""
    return tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
