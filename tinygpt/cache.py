"""The key-value cache: keys and values of earlier positions, so that decoding a token computes only one position.

cache = KVCache(config, batch_size, like=model.lm_head.weight)      # model.new_cache(batch_size)
logits, _ = model(prompt, cache=cache)                              # int64 (B, T)
logits, _ = model(next_token, cache=cache)                          # int64 (B, 1), and so on
"""

import copy
from typing import Self

import torch
from torch import Tensor

from tinygpt.options import GPTConfig


class KVCache:
    """Keys and values of the last block_size positions of every layer, in a ring buffer that is allocated once.

    Position p is stored in slot p % block_size; attention does not depend on the order of its keys. `length` is the
    number of positions read. Without relative positions it must not exceed block_size.
    """

    def __init__(self, config: GPTConfig, batch_size: int, like: Tensor, length: int = 0) -> None:
        """like: a tensor with the dtype and device of the cache; length: see GPT.new_cache."""
        like = like.detach()
        self.block_size = min(length or config.block_size, config.block_size)
        self.length = 0
        self.keys_values = like.new_zeros(
            config.n_layer, 2, batch_size, config.kv_heads, self.block_size, config.head_dim
        )
        self.last_token = like.new_zeros(batch_size, 1, dtype=torch.long)  # for bigram_table
        self.last_input = like.new_zeros(config.n_layer, 2, batch_size, 1, config.n_embd)  # for token_shift

    def repeated(self, times: int) -> Self:
        """A copy in which each sequence of the batch stands `times` times in a row."""
        other = copy.copy(self)
        other.keys_values = self.keys_values.repeat_interleave(times, dim=2)
        other.last_token = self.last_token.repeat_interleave(times, dim=0)
        other.last_input = self.last_input.repeat_interleave(times, dim=2)
        return other

    def forget(self) -> None:
        """Empty the cache: the next token is at position 0."""
        self.length = 0
        self.last_token = torch.zeros_like(self.last_token)
        self.last_input.zero_()

    def queries(self, T: int) -> Tensor:
        """Positions of the next T tokens: int64 (T,)."""
        return torch.arange(self.length, self.length + T, device=self.last_token.device)

    def positions(self, T: int) -> Tensor:
        """Positions of the keys after T more tokens are read: int64 (S,)."""
        last = self.length + T - 1
        slots = torch.arange(min(last + 1, self.block_size), device=self.last_token.device)
        return last - (last - slots) % self.block_size

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Store keys and values (B, kv_heads, T, head_dim) of new positions; return all, (B, kv_heads, S, head_dim).

        If T > 1, no older position may be overwritten: length + T <= block_size.
        """
        T, slot = k.size(-2), self.length % self.block_size
        self.keys_values[layer, 0, :, :, slot : slot + T] = k
        self.keys_values[layer, 1, :, :, slot : slot + T] = v
        return self.keys_values[layer, :, :, :, : min(self.length + T, self.block_size)].unbind()

    def advance(self, idx: Tensor) -> None:
        """Move on by the T tokens of idx, int64 (B, T), whose keys and values are stored."""
        self.length, self.last_token = self.length + idx.size(1), idx[:, -1:]
