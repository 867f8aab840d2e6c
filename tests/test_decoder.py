"""The decoder against the model that it reads with: the same logits, for every option and however the text is cut."""

from typing import Any

import pytest
import torch
from models import every_option, ids, largest, shaken, small

from tinygpt.fast.decoder import Decoder


@every_option
@pytest.mark.parametrize("pieces", [[1] * 16, [16], [5, 1, 1, 1, 8], [1, 15]], ids=str)
@torch.inference_mode()
def test_cached_logits_equal_uncached_ones(options: dict[str, Any], pieces: list[int]) -> None:
    model, idx = shaken(small(**options)), ids(2, 16)
    decoder, whole, end = Decoder(model, 2), model(idx)[0], 0
    for piece in idx.split(pieces, dim=1):
        end += piece.size(1)
        torch.testing.assert_close(decoder(piece), whole[:, end - 1], atol=1e-5 * largest(whole), rtol=0)
    decoder.forget()
    torch.testing.assert_close(decoder(idx[:, :9]), whole[:, 8], atol=1e-5 * largest(whole), rtol=0)
    decoder.length = 3  # negative control: a cache that has lost count
    assert largest(decoder(idx[:, 9:10]) - whole[:, 9]) > 0.01


@torch.inference_mode()
def test_a_long_prompt_after_a_cached_one_sees_the_past_but_not_the_future() -> None:
    """Contexts of more than 512 take another way through the model's attention."""
    model, idx = shaken(small(block_size=600, n_layer=1, n_embd=16)), ids(1, 600)
    decoder, whole = Decoder(model, 1), model(idx)[0]
    for piece, end in zip(idx.split([40, 559, 1], dim=1), (40, 599, 600), strict=True):
        torch.testing.assert_close(decoder(piece), whole[:, end - 1], atol=1e-5 * largest(whole), rtol=0)


@torch.inference_mode()
def test_rope_attention_depends_on_distances_only() -> None:
    """One layer: past its window, keys that were turned at positions long ago give the logits of a fresh window.

    (With more layers, cached keys remember what lay before the window.) The tokens are followed greedily to position
    80, five windows, and compared with windows that start from position 0.
    """
    model = shaken(small(n_layer=1, position="rope"))
    decoder = Decoder(model, 1)
    idx = ids(1, 80)
    for end in range(1, 81):
        rolled = decoder(idx[:, end - 1 : end])
        fresh = model(idx[:, max(0, end - 16) : end])[0][:, -1]
        assert largest(rolled - fresh) < 1e-4 * largest(fresh)
    without_position = shaken(small(n_layer=1, position="rope"))(idx[:, [4, 2, 0, 1, 3, 5]])[0][:, -1]
    assert largest(without_position - model(idx[:, :6])[0][:, -1]) > 0.01  # and the order does matter
