"""Decoding with a cache against a full forward pass, for every option, on both paths, however the text is divided."""

from typing import Any

import pytest
import torch
from models import every_option, every_path, ids, largest, shaken, small

from tinygpt.model import GPT
from tinygpt.options import POSITIONS


@every_option
@every_path
@pytest.mark.parametrize("pieces", [[1] * 16, [16], [5, 1, 1, 1, 8], [1, 15]], ids=str)
@torch.inference_mode()
def test_cached_logits_equal_uncached_ones(kind: type[GPT], options: dict[str, Any], pieces: list[int]) -> None:
    model, idx = shaken(small(kind=kind, **options)), ids(2, 16)
    cache, whole, end = model.new_cache(2), model(idx)[0], 0
    for piece in idx.split(pieces, dim=1):
        end += piece.size(1)
        torch.testing.assert_close(
            model.next_logits(piece, cache), whole[:, end - 1], atol=1e-5 * largest(whole), rtol=0
        )
    cache.forget()
    torch.testing.assert_close(model.next_logits(idx[:, :9], cache), whole[:, 8], atol=1e-5 * largest(whole), rtol=0)
    cache.length = 3  # negative control: a cache with a wrong length
    assert largest(model.next_logits(idx[:, 9:10], cache) - whole[:, 9]) > 0.01


@every_option
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
    """One layer: beyond the window, keys that were stored long ago give the logits of a new window.

    (With more layers, cached keys remember what lay before the window.) The tokens are followed greedily to position
    80, five windows, and compared with windows that start from position 0.
    """
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": n_head, "n_embd": 16 * n_head, "position": position}
    model = shaken(small(kind=kind, **sizes))
    cache, idx = model.new_cache(1), ids(1, 80)
    for end in range(1, 81):
        rolled = model.next_logits(idx[:, end - 1 : end], cache)
        fresh = model(idx[:, max(0, end - 16) : end])[0][:, -1]
        assert largest(rolled - fresh) < 1e-4 * largest(fresh)
    without_order = model(idx[:, [4, 2, 0, 1, 3, 5]])[0][:, -1]
    assert largest(without_order - model(idx[:, :6])[0][:, -1]) > 0.01  # and the order does matter
