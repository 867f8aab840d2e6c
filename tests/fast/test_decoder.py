"""Decoding with a cache against a full forward pass, for every option, on both paths, however the text is divided; and
sequences of different lengths in one batch."""

from typing import Any

import pytest
import torch
from models import every_pair, every_path, ids, largest, shaken, small

from tinygpt.model import GPT
from tinygpt.options import POSITIONS
from tinygpt.use.serve.batch import BatchCache


@every_pair
@every_path
@torch.inference_mode()
def test_cached_logits_equal_uncached_ones(kind: type[GPT], options: dict[str, Any]) -> None:
    model, idx = shaken(small(kind=kind, **options)), ids(2, 16)
    whole = model(idx)[0]
    for pieces in ([1] * 16, [16], [5, 1, 1, 1, 8], [1, 15]):
        cache, end = model.new_cache(2), 0
        for piece in idx.split(pieces, dim=1):
            end += piece.size(1)
            torch.testing.assert_close(
                model.next_logits(piece, cache), whole[:, end - 1], atol=1e-5 * largest(whole), rtol=0
            )
    cache.forget()
    torch.testing.assert_close(model.next_logits(idx[:, :9], cache), whole[:, 8], atol=1e-5 * largest(whole), rtol=0)
    cache.length = 3  # negative control: a cache with a wrong length
    assert largest(model.next_logits(idx[:, 9:10], cache) - whole[:, 9]) > 0.01


@every_pair
@every_path
@torch.inference_mode()
def test_a_long_prompt_after_a_cached_one_sees_the_past_but_not_the_future(
    kind: type[GPT], options: dict[str, Any]
) -> None:
    """Contexts of more than 512 tokens use another branch of the fast model's attention."""
    model, idx = shaken(small(kind=kind, block_size=600, n_layer=1, n_embd=16, **options)), ids(1, 600)
    cache, whole = model.new_cache(1), model(idx)[0]
    for piece, end in zip(idx.split([40, 559, 1], dim=1), (40, 599, 600), strict=True):
        torch.testing.assert_close(
            model.next_logits(piece, cache), whole[:, end - 1], atol=1e-5 * largest(whole), rtol=0
        )


@pytest.mark.parametrize("n_head", [2, 3])
@pytest.mark.parametrize("position", [name for name, kind in POSITIONS.items() if kind.relative])
@every_path
@torch.inference_mode()
def test_relative_positions_depend_on_distances_only(kind: type[GPT], position: str, n_head: int) -> None:
    """One layer: beyond the window, keys that were stored long ago give the logits of a new window. (With more layers,
    cached keys remember what lay before the window.)"""
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": n_head, "n_embd": 16 * n_head, "position": position}
    model = shaken(small(kind=kind, **sizes))
    cache, idx = model.new_cache(1), ids(1, 80)
    for end in range(1, 81):
        rolled = model.next_logits(idx[:, end - 1 : end], cache)
        fresh = model(idx[:, max(0, end - 16) : end])[0][:, -1]
        assert largest(rolled - fresh) < 1e-4 * largest(fresh)
    without_order = model(idx[:, [4, 2, 0, 1, 3, 5]])[0][:, -1]
    assert largest(without_order - model(idx[:, :6])[0][:, -1]) > 0.01  # and the order does matter


def joined(model: GPT, idx: torch.Tensor, lengths: tuple[int, ...]) -> BatchCache:
    """The beginnings of the rows of `idx`, of these lengths, in one batch."""
    batch = BatchCache(model)
    for row, length in enumerate(lengths):
        cache = model.new_cache(1, length)
        model.next_logits(idx[row : row + 1, :length], cache)
        batch.join(cache)
    return batch


@pytest.mark.parametrize("window", [1, 5, 16])
@pytest.mark.parametrize("position", [name for name, kind in POSITIONS.items() if kind.relative])
@every_path
@torch.inference_mode()
def test_a_sliding_window_never_needs_what_the_cache_forgets(kind: type[GPT], position: str, window: int) -> None:
    """Every logit is that of a full pass of a model with a longer context, also past block_size, in two layers."""
    model, whole = (shaken(small(kind=kind, position=position, window=window, block_size=size)) for size in (16, 80))
    idx, cache, expected = ids(2, 80), model.new_cache(2), whole(ids(2, 80))[0]
    steps = [(9, model.next_logits(idx[:, :9], cache))]
    steps += [(end, model.next_logits(idx[:, end - 1 : end], cache)) for end in range(10, 81)]
    for end, logits in steps:
        assert largest(logits - expected[:, end - 1]) < 1e-4 * largest(expected)
    lengths = (5, 16)
    batch = joined(model, idx, lengths)
    for step in range(40):
        at = [length + step for length in lengths]
        logits = model.next_logits(torch.stack([idx[0, at[0]], idx[1, at[1]]])[:, None], batch)
        assert largest(logits - torch.stack([expected[0, at[0]], expected[1, at[1]]])) < 1e-4 * largest(expected)


# ---- sequences that join and leave ------------------------------------------------------------------------------


class Batch:
    """Sequences in a BatchCache; each step compares the logits of every row with a full forward pass."""

    def __init__(self, model: GPT, texts: torch.Tensor) -> None:
        self.model, self.texts, self.cache = model, texts, BatchCache(model)
        self.whole, self.rows = model(texts)[0], list[list[int]]()  # of each row: its text, and its length

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


@every_pair
@torch.inference_mode()
def test_rows_of_different_lengths_join_and_leave(options: dict[str, Any]) -> None:
    batch = Batch(shaken(small(**options)), ids(5, 16))
    batch.join(0, 3)
    assert batch.error() < 1e-5
    batch.join(1, 7)
    assert batch.error() < 1e-5 and batch.error() < 1e-5
    batch.join(2, 1)
    assert batch.error() < 1e-5
    batch.leave(0)  # the last row takes its place
    assert batch.error() < 1e-5
    batch.join(3, 12)
    batch.join(4, 2)
    assert batch.error() < 1e-5
    batch.leave(len(batch.rows) - 1)
    assert batch.error() < 1e-5
    batch.cache.lengths[0] -= 1  # negative control: a row with a wrong length
    assert batch.error() > 1e-3


@pytest.mark.parametrize("position", [name for name, kind in POSITIONS.items() if kind.relative])
@torch.inference_mode()
def test_rows_beyond_the_context_forget_their_oldest_position(position: str) -> None:
    model = shaken(small(n_layer=1, position=position))
    idx, lengths = ids(3, 60), (5, 16, 9)
    batch = joined(model, idx, lengths)
    for step in range(40):
        ends = [length + step + 1 for length in lengths]
        logits = model.next_logits(torch.stack([idx[row, end - 1] for row, end in enumerate(ends)])[:, None], batch)
        fresh = torch.cat([model(idx[row : row + 1, max(0, end - 16) : end])[0][:, -1] for row, end in enumerate(ends)])
        assert largest(logits - fresh) < 1e-4 * largest(fresh)


@torch.inference_mode()
def test_a_sequence_with_nan_leaves_nothing_behind() -> None:
    """A mask hides no NaN: 0 times NaN is NaN."""
    batch = Batch(shaken(small()), ids(3, 16))
    batch.join(0, 9)
    batch.join(1, 9)
    batch.cache._all.keys_values[:, :, 1, :, :9] = float("nan")
    batch.leave(1)
    batch.join(2, 4)
    assert batch.error() < 1e-5
