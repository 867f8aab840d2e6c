"""Rows of tokens for training and evaluation, and the draw of a batch.

A split is plain text (`TextRows`) or prompts with responses (`PairRows`); training can also draw from a mixture
(`MixedRows`). `TextRows` explains their interface; a mixture lacks those from `all_rows` on, for evaluation.

A batch is a pure function of (seed, step): a Philox generator (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3") keyed by the two draws the global batch, and each process and micro-step takes its slice of it. So there is no
data position to save, resuming is exact, and the number of processes does not change what is learned. Rows are drawn
independently, as in nanoGPT, or in epochs: each once per pass over the data, in a new order.

    row_indices = source.draw(seed, step, block_size, batch_size)   # source = dataset.sources["train"]
    x, y = source.rows(row_indices, source.width(block_size))       # int64 (batch_size, width)
"""

import copy
import functools
import math
from typing import Any

import numpy as np

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted
from tinygpt.data.tokenizer import Tokenizer

# streams of the replayed rows (`draw_windows`) and of the epochs (`pass_order`)
REPLAY = 3
EPOCHS = 4


class TextRows:
    """Plain text. Each block_size consecutive tokens are a row, whose targets are the same one token later.

    The index of a row is the position of its first token. `row_indices` is int64 (n,); (n, 2) for a mixture.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.epochs = False

    def width(self, block_size: int, row_indices: np.ndarray | None = None) -> int:
        """Return the columns that these rows need, or without `row_indices` all rows; at most block_size."""
        return block_size

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        """Draw the row indices of a step's global batch, `count` of them: a pure function of the arguments."""
        if self.epochs:
            return draw_in_epochs(seed, step, len(self.tokens) - block_size, block_size, count)
        return draw_windows(seed, step, len(self.tokens), block_size, count, stream)

    def targets(self, row_indices: np.ndarray, width: int) -> np.ndarray:
        """Count the targets of each row, int64 (n,)."""
        return np.minimum(width, len(self.tokens) - 1 - row_indices)

    def rows(self, row_indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets, int64 (n, width). Past the end of the text a target is -1: no loss."""
        positions = row_indices[:, None] + np.arange(width + 1)  # (n, width + 1)
        block = gather(self.tokens, positions, positions < len(self.tokens), -1)
        return np.maximum(block[:, :-1], 0), block[:, 1:]

    def arranged(self, by_length: bool, epochs: bool) -> "TextRows":
        """Return this source in the order of a run. by_length: batches of examples of similar length, which need little
        padding. epochs: each row once per pass; of plain text, windows that follow one another from a random start."""
        rows = copy.copy(self)
        rows.epochs = epochs
        return rows

    def describe(self) -> str:
        return f"{len(self.tokens):,} training tokens"

    def passes(self, rows_per_iteration: float, block_size: int) -> float:
        """Return the fraction of the source that an iteration reads: passes over the data per iteration."""
        return rows_per_iteration * block_size / len(self.tokens)

    def all_rows(self, block_size: int) -> np.ndarray:
        """Return the indices of all rows, which contain each target of the source once. The last row may be shorter."""
        return np.arange(0, len(self.tokens) - 1, block_size)

    def first(self, count: int) -> "TextRows":
        """Return a source of the first `count` tokens of this text, or of the first examples."""
        return TextRows(self.tokens[:count])

    def as_large_as(self, other: Any) -> "TextRows":
        """Return the first part of this source, as large as `other`, a source of the same kind."""
        return self.first(len(other.tokens))

    def examples(self, tokenizer: Tokenizer) -> list[tuple[str, str]]:
        """Return all examples as (prompt, response); none for plain text."""
        return []

    def prompt(self) -> np.ndarray:
        """Return token ids to begin a sample with, int64 (n,): token 0, as in nanoGPT, which often is the line end."""
        return np.zeros(1, dtype=np.int64)

    def spare_tokens(self, block_size: int) -> int:
        """Return the number of spare tokens for a context of block_size; negative if the rows do not fit."""
        return len(self.tokens) - block_size - 1

    def require(self, block_size: int, where: str) -> None:
        """Check that the rows fit a context of block_size. Errors: TinyGPTError that names `where`."""
        tokens = len(self.tokens)
        if self.spare_tokens(block_size) < 0:
            smaller = f"use --block_size={tokens - 1} or less, or " if tokens > 1 else ""
            what = f"{where} has {counted(tokens, 'token')}; block_size {block_size} needs {block_size + 1}"
            raise TinyGPTError(what, f"{smaller}prepare more text")


class PairRows:
    """Prompts and responses. A row is an example, which a number indexes; targets are the response and its end."""

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer) -> None:
        """Errors: ValueError if the tokens are not complete examples."""
        if tokenizer.pair is None:
            raise ValueError("the vocabulary has no special tokens for examples")
        prefix, middle, end = self.format = tokenizer.pair
        self.tokens = tokens
        self.end_id = int(end[0])
        self.starts = find(tokens, prefix)
        self.responses = find(tokens, middle) + len(middle) - 1
        if not len(self.starts) == len(self.responses) > 0:
            raise ValueError("special tokens are missing")
        self.ends = np.append(self.starts[1:], len(tokens))
        in_order = (self.starts + len(prefix) + len(middle) <= self.responses + 1) & (self.responses < self.ends - 1)
        if self.starts[0] or not in_order.all() or (tokens[self.ends - 1] != self.end_id).any():
            raise ValueError("special tokens are not in order")
        self.lengths = self.ends - self.starts
        self.by_length: np.ndarray | None = None  # row indices in the order of their lengths, if batches are grouped
        self.epochs = False

    def width(self, block_size: int, row_indices: np.ndarray | None = None) -> int:
        """Return the columns of the longest example; at most block_size."""
        return min(int(self.lengths[slice(None) if row_indices is None else row_indices].max()) - 1, block_size)

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        rows = len(self.starts)
        grouped = self.by_length is not None
        draws = 1 if grouped else count  # of a grouped batch, the first row
        if self.epochs:
            drawn = draw_in_epochs(seed, step, rows, count if grouped else 1, draws)
        else:
            drawn = draw_windows(seed, step, rows, 0, draws, stream)
        return drawn if self.by_length is None else self.by_length[(drawn + np.arange(count)) % rows]

    def all_rows(self, block_size: int) -> np.ndarray:
        return np.arange(len(self.starts))

    def targets(self, row_indices: np.ndarray, width: int) -> np.ndarray:
        last = np.minimum(self.ends[row_indices], self.starts[row_indices] + width + 1)
        return np.maximum(last - self.responses[row_indices] - 1, 0)

    def rows(self, row_indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets, int64 (n, width). Longer examples are cut; shorter ones are padded."""
        positions = self.starts[row_indices][:, None] + np.arange(width + 1)  # (n, width + 1)
        inside = positions < self.ends[row_indices][:, None]
        block = gather(self.tokens, positions, inside, self.end_id)
        is_target = inside & (positions > self.responses[row_indices][:, None])
        return block[:, :-1], np.where(is_target, block, -1)[:, 1:]

    def first(self, count: int) -> "PairRows":
        subset = copy.copy(self)
        for name in ("starts", "responses", "ends", "lengths"):
            setattr(subset, name, getattr(self, name)[:count])
        subset.by_length = None
        return subset

    def arranged(self, by_length: bool, epochs: bool) -> "PairRows":
        rows = copy.copy(self)
        rows.by_length = np.argsort(self.lengths, kind="stable") if by_length else None
        rows.epochs = epochs
        return rows

    def as_large_as(self, other: Any) -> "PairRows":
        return self.first(len(other.starts))

    def examples(self, tokenizer: Tokenizer) -> list[tuple[str, str]]:
        prefix = len(self.format.prefix)
        middle = len(self.format.middle)
        spans = zip(self.starts + prefix, self.responses + 1 - middle, self.responses + 1, self.ends - 1, strict=True)
        return [
            (tokenizer.decode(self.tokens[a:b].tolist()), tokenizer.decode(self.tokens[c:d].tolist()))
            for a, b, c, d in spans
        ]

    def prompt(self) -> np.ndarray:
        """Return the first example up to where its response begins."""
        return self.tokens[: self.responses[0] + 1].astype(np.int64)

    def describe(self) -> str:
        return counted(len(self.starts), "training example")

    def passes(self, rows_per_iteration: float, block_size: int) -> float:
        return rows_per_iteration / len(self.starts)

    def spare_tokens(self, block_size: int) -> int:
        return block_size + 1 - int(self.lengths.max())

    def require(self, block_size: int, where: str) -> None:
        if self.spare_tokens(block_size) < 0:
            long = int((self.lengths > block_size + 1).sum())
            longest = self.lengths.max()
            what = (
                f"too long for block_size {block_size}: {long:,} of {counted(len(self.lengths), 'example')} in {where}"
            )
            hint = f"use shorter examples, or a model with block_size {longest - 1} or more"
            raise TinyGPTError(f"{what} (the longest has {longest} tokens)", hint)


class MixedRows:
    """Replay: the fraction `share` of the training rows comes from `old`, the base model's data, the rest from `new`.

    The share holds over the run: if it is small, most batches have no row of `old`. Replayed rows are spread evenly
    over their batch, and so over the processes. A row's index is (0, index in `new`) or (1, index in `old`).
    Source: Rolnick et al. 2019, "Experience Replay for Continual Learning".
    """

    def __init__(self, new: "Batches", old: "Batches", share: float) -> None:
        self.new = new
        self.old = old
        self.share = share

    def width(self, block_size: int, row_indices: np.ndarray | None = None) -> int:
        """Return the larger width of the two sources; but replayed text is cut to the width of the new rows."""
        if isinstance(self.old, TextRows):
            return self.new.width(block_size)
        if row_indices is None:
            return max(self.new.width(block_size), self.old.width(block_size))
        parts = [(source, row_indices[mask, 1]) for source, mask in self._parts(row_indices) if mask.any()]
        return max(source.width(block_size, indices) for source, indices in parts)

    def draw(self, seed: int, step: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        replayed = math.floor((step + 1) * self.share * count) - math.floor(step * self.share * count)
        from_old = np.zeros(count, dtype=bool)
        from_old[np.arange(replayed) * count // max(replayed, 1)] = True
        row_indices = np.empty((count, 2), dtype=np.int64)
        row_indices[:, 0] = from_old
        row_indices[~from_old, 1] = self.new.draw(seed, step, block_size, count - replayed, stream)
        row_indices[from_old, 1] = self.old.draw(seed, step, self.width(block_size), replayed, stream + REPLAY)
        return row_indices

    def targets(self, row_indices: np.ndarray, width: int) -> np.ndarray:
        counts = np.empty(len(row_indices), dtype=np.int64)
        for source, mask in self._parts(row_indices):
            counts[mask] = source.targets(row_indices[mask, 1], width)
        return counts

    def rows(self, row_indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        block = np.empty((2, len(row_indices), width), dtype=np.int64)
        for source, mask in self._parts(row_indices):
            block[:, mask] = source.rows(row_indices[mask, 1], width)
        return block[0], block[1]

    def _parts(self, row_indices: np.ndarray) -> list[tuple["Batches", np.ndarray]]:
        """Return each source, and a mask of its rows, bool (n,)."""
        return [(source, row_indices[:, 0] == index) for index, source in enumerate((self.new, self.old))]

    def arranged(self, by_length: bool, epochs: bool) -> "MixedRows":
        """Return the mixture with grouped batches. Its number of new rows per batch varies, so it has no epochs."""
        return MixedRows(self.new.arranged(by_length, False), self.old.arranged(by_length, False), self.share)

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


def draw_in_epochs(seed: int, step: int, starts: int, stride: int, count: int) -> np.ndarray:
    """Return the starts of a step's batch: int64 (count,), the next ones of the passes that `pass_order` describes."""
    passes, places = np.divmod(step * count + np.arange(count), max(1, starts // stride))
    pairs = zip(passes.tolist(), places.tolist(), strict=True)
    return np.array([pass_order(seed, number, starts, stride)[place] for number, place in pairs], dtype=np.int64)


@functools.lru_cache(maxsize=2)
def pass_order(seed: int, number: int, starts: int, stride: int) -> np.ndarray:
    """Return every stride-th of the positions below `starts`, from a random one below `stride` on, in random order. The
    last `starts % stride` tokens of the text are in none."""
    generator = np.random.Generator(np.random.Philox(key=[stream_key(seed, EPOCHS), np.uint64(number)]))
    first = generator.integers(min(stride, starts))
    return generator.permutation(max(1, starts // stride)) * stride + first


@functools.cache  # without the cache it takes 0.1 ms of an iteration's 12 ms
def stream_key(seed: int, stream: int) -> np.uint64:
    """Return the half of Philox's key that stays the same throughout a run."""
    return np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]  # type: ignore[no-any-return]


def find(tokens: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """Find the positions where the ids `sequence` begin in `tokens`, ascending."""
    positions = np.flatnonzero(tokens[: len(tokens) - len(sequence) + 1] == sequence[0])
    for offset, token in enumerate(sequence[1:].tolist(), start=1):
        positions = positions[tokens[positions + offset] == token]
    return positions


def gather(tokens: np.ndarray, positions: np.ndarray, inside: np.ndarray, fill: int) -> np.ndarray:
    """Return the tokens at `positions`, int64 in their shape; `fill` where they are not `inside` (bool)."""
    return np.where(inside, tokens[np.minimum(positions, len(tokens) - 1)].astype(np.int64), fill)
