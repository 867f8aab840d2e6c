"""Decoding with a cache against a full forward pass, for every option, on both paths, however the text is divided; and
sequences of different lengths in one batch."""

from typing import Any

import pytest
import torch
from models import every_pair, every_path, ids, largest, shaken, small

from tinygpt.model import GPT
from tinygpt.options import POSITIONS
from tinygpt.use.serve.batch import BatchCache

RELATIVE = [name for name, kind in POSITIONS.items() if kind.relative]


@every_pair
@pytest.mark.parametrize(
    ("size", "pieces"), [({}, [1] * 16), ({}, [5, 1, 1, 9]), ({"block_size": 600, "n_layer": 1}, [40, 559, 1])]
)
@every_path
@torch.inference_mode()
def test_cached_logits_equal_uncached_ones(
    kind: type[GPT], size: dict[str, int], pieces: list[int], options: dict[str, Any]
) -> None:
    """Contexts of more than 512 tokens use another branch of the fast model's attention."""
    model, idx = shaken(small(kind=kind, **size, **options)), ids(2, sum(pieces))
    whole, cache, end = model(idx)[0], model.new_cache(2), 0
    for piece in idx.split(pieces, dim=1):
        end += piece.size(1)
        assert largest(model.next_logits(piece, cache) - whole[:, end - 1]) < 1e-5 * largest(whole)
    cache.forget()
    assert largest(model.next_logits(idx[:, :9], cache) - whole[:, 8]) < 1e-5 * largest(whole)
    cache.length = 3  # negative control: a cache with a wrong length
    assert largest(model.next_logits(idx[:, 9:10], cache) - whole[:, 9]) > 0.01


class Batch:
    """Sequences in a BatchCache; each step compares the logits of every row with a full forward pass."""

    def __init__(self, model: GPT, texts: torch.Tensor, whole: torch.Tensor | None = None) -> None:
        self.model, self.texts, self.cache = model, texts, BatchCache(model)
        self.whole = model(texts)[0] if whole is None else whole
        self.rows = list[list[int]]()  # of each row: its text, and its length

    def join(self, text: int, length: int) -> None:
        cache = self.model.new_cache(1, length)
        self.model.next_logits(self.texts[text : text + 1, :length], cache)
        self.cache.join(cache)
        self.rows.append([text, length])

    def leave(self, row: int) -> None:
        self.cache.leave(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def error(self) -> float:
        """Read the next token of each row; the largest difference of a logit, as a share of the largest logit."""
        idx = torch.stack([self.texts[text, length] for text, length in self.rows])[:, None]
        logits = self.model.next_logits(idx, self.cache)
        expected = torch.stack([self.whole[text, length] for text, length in self.rows])
        for row in self.rows:
            row[1] += 1
        return largest(logits - expected) / largest(expected)


@pytest.mark.parametrize("position", RELATIVE)
@every_path
@torch.inference_mode()
def test_beyond_the_context_the_oldest_position_is_forgotten(kind: type[GPT], position: str) -> None:
    """One layer: beyond the window, keys that were stored long ago give the logits of a new window. (With more layers,
    cached keys remember what lay before the window.)"""
    model, idx = shaken(small(kind=kind, n_layer=1, n_head=3, n_embd=48, position=position)), ids(2, 60)
    windows = [model(idx[:, max(0, end - 16) : end])[0][:, -1] for end in range(1, 61)]
    whole, cache = torch.stack(windows, dim=1), model.new_cache(2)
    for at in range(60):
        rolled = model.next_logits(idx[:, at : at + 1], cache)
        assert largest(rolled - whole[:, at]) < 1e-4 * largest(whole)
    batch = Batch(model, idx, whole)
    batch.join(0, 5)
    batch.join(1, 16)
    assert max(batch.error() for _ in range(40)) < 1e-4
    without_order = model(idx[:, [4, 2, 0, 1, 3, 5]])[0][:, -1]
    assert largest(without_order - whole[:, 5]) > 0.01  # and the order does matter


@pytest.mark.parametrize("window", [1, 5, 16])
@pytest.mark.parametrize("position", RELATIVE)
@every_path
@torch.inference_mode()
def test_a_sliding_window_never_needs_what_the_cache_forgets(kind: type[GPT], position: str, window: int) -> None:
    """Every logit is that of a full pass of a model with a longer context, also past block_size, in two layers."""
    model, longer = (shaken(small(kind=kind, position=position, window=window, block_size=size)) for size in (16, 80))
    idx, cache = ids(2, 80), model.new_cache(2)
    expected = longer(idx)[0]
    for piece, end in zip(idx.split([9, *[1] * 71], dim=1), range(9, 81), strict=True):
        assert largest(model.next_logits(piece, cache) - expected[:, end - 1]) < 1e-4 * largest(expected)
    batch = Batch(model, idx, expected)
    batch.join(0, 5)
    batch.join(1, 16)
    assert max(batch.error() for _ in range(40)) < 1e-4


@every_pair
@torch.inference_mode()
def test_rows_of_different_lengths_join_and_leave(options: dict[str, Any]) -> None:
    batch = Batch(shaken(small(**options)), ids(5, 16))
    batch.join(0, 3)
    assert batch.error() < 1e-5
    batch.join(1, 7)
    assert batch.error() < 1e-5
    batch.join(2, 1)
    batch.leave(0)  # the last row takes its place
    assert batch.error() < 1e-5
    batch.join(3, 12)
    batch.join(4, 2)
    assert batch.error() < 1e-5
    batch.leave(len(batch.rows) - 1)
    assert batch.error() < 1e-5
    batch.cache.lengths[0] -= 1  # negative control: a row with a wrong length
    assert batch.error() > 1e-3
