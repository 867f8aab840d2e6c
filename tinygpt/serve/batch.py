"""A key-value cache for sequences that join and leave while others are decoded (continuous batching, Yu et al. 2022).

Row b holds a sequence of lengths[b] tokens, so every row has a position of its own.

    batch = BatchCache(model)
    batch.join(cache, longest=64)                           # a cache of one sequence, which has read its prompt
    logits = model.next_logits(tokens, batch)               # int64 (B, 1): the next token of each row
    batch.leave(0)                                          # the last row takes its place
"""

import torch
from torch import Tensor

from tinygpt.cache import KVCache
from tinygpt.model import GPT


class BatchCache(KVCache):
    """The caches of B sequences. Rows and slots are allocated in powers of two, so `join` rarely copies the others."""

    def __init__(self, model: GPT) -> None:
        self.model, self.lengths = model, list[int]()
        self._reserve(1, 1)

    def __len__(self) -> int:
        return len(self.lengths)

    def join(self, cache: KVCache, longest: int) -> None:
        """Add a row: the sequence of `cache`, which will have at most `longest` tokens."""
        row, length = len(self), cache.length
        slots = min(max(longest, length), self.model.config.block_size)
        if row == self._all.keys_values.size(2) or slots > self.block_size:
            self._reserve(row + 1, slots)
        self._all.keys_values[:, :, row, :, :length] = cache.keys_values[:, :, 0, :, :length]
        self._all.last_input[:, :, row] = cache.last_input[:, :, 0]
        self._all.last_token[row] = cache.last_token[0]
        self.lengths.append(length)
        self._show()

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        last = len(self) - 1
        if row != last:
            self._all.keys_values[:, :, row] = self._all.keys_values[:, :, last]
            self._all.last_input[:, :, row] = self._all.last_input[:, :, last]
            self._all.last_token[row] = self._all.last_token[last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._show()

    def _reserve(self, rows: int, slots: int) -> None:
        """Allocate at least so many rows and slots; the rows in use keep their content."""
        old = getattr(self, "_all", None)
        if old is not None:
            rows, slots = max(rows, old.keys_values.size(2)), max(slots, self.block_size)
        self._all = KVCache(self.model.config, power(rows), self.model.lm_head.weight, power(slots))
        self.block_size = self._all.block_size  # of the ring: a power of two, or the model's own
        if old is not None:
            count, kept = len(self), old.keys_values.size(4)
            self._all.keys_values[:, :, :count, :, :kept] = old.keys_values[:, :, :count]
            self._all.last_input[:, :, :count] = old.last_input[:, :, :count]
            self._all.last_token[:count] = old.last_token[:count]
        self._show()

    def _show(self) -> None:
        """Make keys_values, last_input and last_token views of the rows in use."""
        count = len(self)
        self.keys_values = self._all.keys_values[:, :, :count]
        self.last_input, self.last_token = self._all.last_input[:, :, :count], self._all.last_token[:count]

    # ---- what the model calls, one token at a time ----

    def queries(self, T: int) -> Tensor:
        """Positions of the next tokens, int64 (B, 1, T). T is 1."""
        lengths = torch.tensor(self.lengths, device=self.last_token.device)
        self._places = torch.arange(len(self), device=lengths.device), lengths % self.block_size  # rows and slots
        self._filled = min(max(self.lengths) + 1, self.block_size)
        return lengths[:, None, None]

    def positions(self, T: int) -> Tensor:
        """Positions of the keys, int64 (B, 1, S). An empty slot gets a later position, which the causal mask hides."""
        last = self.queries(T)
        slots = torch.arange(self._filled, device=last.device)
        held = last - (last - slots) % self.block_size
        return held.masked_fill(held < 0, 1 << 40)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> Tensor:
        """Store keys and values (B, kv_heads, 1, head_dim); return all: (2, B, kv_heads, S, head_dim)."""
        rows, slots = self._places
        self.keys_values[layer, 0, rows, :, slots] = k[:, :, 0]
        self.keys_values[layer, 1, rows, :, slots] = v[:, :, 0]
        return self.keys_values[layer, :, :, :, : self._filled]

    def advance(self, idx: Tensor) -> None:
        self.last_token.copy_(idx)
        self.lengths = [length + 1 for length in self.lengths]


def power(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
