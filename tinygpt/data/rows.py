"""Rows of tokens for training and evaluation, and the draw of a batch.

A split is plain text (`TextRows`) or prompts with responses (`PairRows`); training can also draw from a mixture
(`MixedRows`). `TextRows` explains their interface; a mixture lacks the methods from `every` on, those for evaluation.

A batch is a pure function of (seed, step): a Philox generator (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3") keyed by the two draws the global batch, and each process and micro-step takes its slice of it. So there is no
data position to save, resuming is exact, and the number of processes does not change what is learned.

    at = source.draw(seed, step, block_size, batch_size)            # source = dataset.sources["train"]
    x, y = source.rows(at, source.width(block_size))                # int64 (batch_size, width)
"""

import copy
import functools
import math
from typing import Any

import numpy as np

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import TinyGPTError

REPLAY = 3  # stream of the replayed rows, see `draw_windows`


class TextRows:
    """Plain text. Each block_size consecutive tokens are a row, whose targets are the same one token later.

    A handle is the position of the row's first token. `at` is an array of n handles, int64 (n,); (n, 2) for a mixture.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def width(self, block_size: int, at: np.ndarray | None = None) -> int:
        """Columns that the rows `at` need, or all rows if there is no `at`; at most block_size."""
        return block_size

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        """Draw the `count` rows of a step's global batch: handles, a pure function of the arguments."""
        return draw_windows(seed, step, len(self.tokens), block_size, count, stream)

    def targets(self, at: np.ndarray, width: int) -> np.ndarray:
        """Number of targets of each row, int64 (n,)."""
        return np.minimum(width, len(self.tokens) - 1 - at)

    def rows(self, at: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int64 (n, width). A target of -1 carries no loss: those past the end of the text."""
        positions = at[:, None] + np.arange(width + 1)  # (n, width + 1)
        block = gather(self.tokens, positions, positions < len(self.tokens), -1)
        return np.maximum(block[:, :-1], 0), block[:, 1:]

    def grouped(self) -> "TextRows":
        """This source with batches of examples of similar length, which need little padding."""
        return self

    def describe(self) -> str:
        return f"{len(self.tokens):,} training tokens"

    def passes(self, rows_per_iteration: float, block_size: int) -> float:
        """Fraction of the source that an iteration reads: passes over the data per iteration."""
        return rows_per_iteration * block_size / len(self.tokens)

    def every(self, block_size: int) -> np.ndarray:
        """Handles of all rows. Together they contain each target of the source once; the last row may be shorter."""
        return np.arange(0, len(self.tokens) - 1, block_size)

    def first(self, count: int) -> "TextRows":
        """The first `count` tokens of this text, or examples."""
        return TextRows(self.tokens[:count])

    def like(self, other: Any) -> "TextRows":
        """The first part of this source, as large as `other`, a source of the same kind."""
        return self.first(len(other.tokens))

    def texts(self, tokenizer: Tokenizer) -> list[tuple[str, str]]:
        """All examples as (prompt, response); none for plain text."""
        return []

    def prompt(self) -> np.ndarray:
        """Token ids to begin a sample with, int64 (n,): token 0, as in nanoGPT, which often is the line end."""
        return np.zeros(1, dtype=np.int64)

    def room(self, block_size: int) -> int:
        """Number of spare tokens for a context of block_size; negative if the rows do not fit."""
        return len(self.tokens) - block_size - 1

    def require(self, block_size: int, where: str) -> None:
        """Check that the rows fit a context of block_size. Errors: TinyGPTError that names `where`."""
        tokens = len(self.tokens)
        if self.room(block_size) < 0:
            smaller = f"use --block_size={tokens - 1} or less, or " if tokens > 1 else ""
            what = f"{where} has {tokens} tokens; block_size {block_size} needs {block_size + 1}"
            raise TinyGPTError(what, f"{smaller}prepare more text")


class PairRows:
    """Prompts and responses. A row is an example, and its handle a number; targets are the response and its end."""

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer) -> None:
        """Errors: ValueError if the tokens are not complete examples."""
        if tokenizer.pair is None:
            raise ValueError("the vocabulary has no special tokens for examples")
        prefix, middle, end = self.format = tokenizer.pair
        self.tokens, self.end_id = tokens, int(end[0])
        self.starts, self.responses = find(tokens, prefix), find(tokens, middle) + len(middle) - 1
        if not len(self.starts) == len(self.responses) > 0:
            raise ValueError("special tokens are missing")
        self.ends = np.append(self.starts[1:], len(tokens))
        in_order = (self.starts + len(prefix) + len(middle) <= self.responses + 1) & (self.responses < self.ends - 1)
        if self.starts[0] or not in_order.all() or (tokens[self.ends - 1] != self.end_id).any():
            raise ValueError("special tokens are not in order")
        self.lengths = self.ends - self.starts
        self.by_length: np.ndarray | None = None  # handles in the order of their lengths, if batches are grouped

    def width(self, block_size: int, at: np.ndarray | None = None) -> int:
        """Columns of the longest example."""
        return min(int(self.lengths[slice(None) if at is None else at].max()) - 1, block_size)

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        if self.by_length is None:
            return draw_windows(seed, step, len(self.starts), 0, count, stream)
        start = draw_windows(seed, step, len(self.starts), 0, 1, stream)
        return self.by_length[(start + np.arange(count)) % len(self.by_length)]

    def every(self, block_size: int) -> np.ndarray:
        return np.arange(len(self.starts))

    def targets(self, at: np.ndarray, width: int) -> np.ndarray:
        last = np.minimum(self.ends[at], self.starts[at] + width + 1)
        return np.maximum(last - self.responses[at] - 1, 0)

    def rows(self, at: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int64 (n, width). Longer examples are cut; shorter ones are padded."""
        positions = self.starts[at][:, None] + np.arange(width + 1)  # (n, width + 1)
        inside = positions < self.ends[at][:, None]
        block = gather(self.tokens, positions, inside, self.end_id)
        is_target = inside & (positions > self.responses[at][:, None])
        return block[:, :-1], np.where(is_target, block, -1)[:, 1:]

    def first(self, count: int) -> "PairRows":
        subset = copy.copy(self)
        for name in ("starts", "responses", "ends", "lengths"):
            setattr(subset, name, getattr(self, name)[:count])
        subset.by_length = None
        return subset

    def grouped(self) -> "PairRows":
        rows = copy.copy(self)
        rows.by_length = np.argsort(self.lengths, kind="stable")
        return rows

    def like(self, other: Any) -> "PairRows":
        return self.first(len(other.starts))

    def texts(self, tokenizer: Tokenizer) -> list[tuple[str, str]]:
        prefix, middle = len(self.format.prefix), len(self.format.middle)
        spans = zip(self.starts + prefix, self.responses + 1 - middle, self.responses + 1, self.ends - 1, strict=True)
        return [
            (tokenizer.decode(self.tokens[a:b].tolist()), tokenizer.decode(self.tokens[c:d].tolist()))
            for a, b, c, d in spans
        ]

    def prompt(self) -> np.ndarray:
        """The first example up to where its response begins."""
        return self.tokens[: self.responses[0] + 1].astype(np.int64)

    def describe(self) -> str:
        return f"{len(self.starts):,} training examples"

    def passes(self, rows_per_iteration: float, block_size: int) -> float:
        return rows_per_iteration / len(self.starts)

    def room(self, block_size: int) -> int:
        return block_size + 1 - int(self.lengths.max())

    def require(self, block_size: int, where: str) -> None:
        if self.room(block_size) < 0:
            long, longest = int((self.lengths > block_size + 1).sum()), self.lengths.max()
            what = f"{long} of {len(self.lengths)} examples in {where} are longer than block_size {block_size}"
            hint = f"use shorter examples, or a model with block_size {longest - 1} or more"
            raise TinyGPTError(f"{what} (the longest has {longest} tokens)", hint)


class MixedRows:
    """Replay: the fraction `share` of the training rows comes from `old`, the base model's data, the rest from `new`.

    The share holds over the run: if it is small, most batches have no row of `old`. Replayed rows are spread evenly
    over their batch, and so over the processes. A handle is (0, handle in `new`) or (1, handle in `old`): int64 (n, 2).
    Source: Rolnick et al. 2019, "Experience Replay for Continual Learning".
    """

    def __init__(self, new: "Batches", old: "Batches", share: float) -> None:
        self.new, self.old, self.share = new, old, share

    def width(self, block_size: int, at: np.ndarray | None = None) -> int:
        """The larger of the two sources' widths, except that replayed text is cut to the width of the new rows."""
        if isinstance(self.old, TextRows):
            return self.new.width(block_size)
        if at is None:
            return max(self.new.width(block_size), self.old.width(block_size))
        return max(source.width(block_size, at[mask, 1]) for source, mask in self._parts(at) if mask.any())

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        replayed = math.floor((step + 1) * self.share * count) - math.floor(step * self.share * count)
        from_old = np.zeros(count, dtype=bool)
        from_old[np.arange(replayed) * count // max(replayed, 1)] = True
        at = np.empty((count, 2), dtype=np.int64)
        at[:, 0] = from_old
        at[~from_old, 1] = self.new.draw(seed, step, block_size, count - replayed, stream)
        at[from_old, 1] = self.old.draw(seed, step, self.width(block_size), replayed, stream + REPLAY)
        return at

    def targets(self, at: np.ndarray, width: int) -> np.ndarray:
        counts = np.empty(len(at), dtype=np.int64)
        for source, mask in self._parts(at):
            counts[mask] = source.targets(at[mask, 1], width)
        return counts

    def rows(self, at: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        block = np.empty((2, len(at), width), dtype=np.int64)
        for source, mask in self._parts(at):
            block[:, mask] = source.rows(at[mask, 1], width)
        return block[0], block[1]

    def _parts(self, at: np.ndarray) -> list[tuple["Batches", np.ndarray]]:
        """Each source, and a mask of its handles, bool (n,)."""
        return [(source, at[:, 0] == index) for index, source in enumerate((self.new, self.old))]

    def grouped(self) -> "MixedRows":
        return MixedRows(self.new.grouped(), self.old.grouped(), self.share)

    def describe(self) -> str:
        return self.new.describe()

    def passes(self, rows_per_iteration: float, block_size: int) -> float:
        return self.new.passes(rows_per_iteration * (1 - self.share), block_size)


Rows = TextRows | PairRows  # a split of a dataset
Batches = Rows | MixedRows  # what training draws its batches from


def draw_windows(seed: int, step: int, tokens: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
    """Draw the starts of the `count` windows of a step's global batch: int64 (count,), from (seed, step) alone.

    `stream` separates the uses: 0 is for training, 1 and 2 for evaluating the two splits, REPLAY for the replayed rows.
    """
    generator = np.random.Generator(np.random.Philox(key=[stream_key(seed, stream), np.uint64(step)]))
    return generator.integers(0, tokens - block_size, size=count)


@functools.cache  # without the cache it takes 0.1 ms of an iteration's 12 ms
def stream_key(seed: int, stream: int) -> np.uint64:
    """The half of Philox's key that stays the same throughout a run."""
    return np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]  # type: ignore[no-any-return]


def find(tokens: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """Positions where the ids `sequence` begin in `tokens`, ascending."""
    positions = np.flatnonzero(tokens[: len(tokens) - len(sequence) + 1] == sequence[0])
    for offset, token in enumerate(sequence[1:].tolist(), start=1):
        positions = positions[tokens[positions + offset] == token]
    return positions


def gather(tokens: np.ndarray, positions: np.ndarray, inside: np.ndarray, fill: int) -> np.ndarray:
    """Tokens at `positions`, int64 in their shape; `fill` where they are not `inside` (bool)."""
    return np.where(inside, tokens[np.minimum(positions, len(tokens) - 1)].astype(np.int64), fill)
