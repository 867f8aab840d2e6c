"""A key-value cache for sequences that join and leave while others are decoded (continuous batching, Yu et al. 2022).

Row b contains a sequence of lengths[b] tokens, so each row is at its own position.

    batch = BatchCache(model)
    batch.join(cache)                                       # the cache of one sequence, filled by its prompt
    logits = model.next_logits(tokens, batch)               # int64 (B, 1): the next token of each row
    batch.leave(0)                                          # removes row 0; the last row becomes row 0
"""

import torch
from torch import Tensor

from tinygpt.model import GPT, KVCache


class BatchCache:
    """The caches of B sequences, with KVCache's methods that the model calls for one new token of each row.

    Position p of a row is stored in slot p % slots. Rows and slots are allocated in powers of two, as many as the
    sequences need; slots are at most block_size.
    """

    def __init__(self, model: GPT) -> None:
        self.config = model.config
        self._like = model.lm_head.weight
        self.lengths: list[int] = []
        self._all = KVCache(self.config, 1, self._like, 1)  # all rows, of which the first B are in use

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def slots(self) -> int:
        return self._all.block_size

    @property
    def last_token(self) -> Tensor:
        return self._all.last_token[: len(self)]

    @property
    def last_input(self) -> Tensor:
        return self._all.last_input[:, :, : len(self)]

    def join(self, cache: KVCache) -> None:
        """Add a row: the sequence of `cache`, which has read at most block_size tokens."""
        row = len(self)
        length = cache.length
        self._reserve(row + 1, length)
        self._all.keys_values[:, :, row, :, :length] = cache.keys_values[:, :, 0, :, :length]
        self._all.last_input[:, :, row] = cache.last_input[:, :, 0]
        self._all.last_token[row] = cache.last_token[0]
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its index."""
        last = len(self) - 1
        filled = self._all.keys_values[..., : min(max(self.lengths[row], self.lengths[last]), self.slots), :]
        filled[:, :, row] = filled[:, :, last]
        filled[:, :, last] = 0  # a NaN would affect the next sequence in this row, even if it is masked
        self._all.last_input[:, :, row] = self._all.last_input[:, :, last]
        self._all.last_token[row] = self._all.last_token[last]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _reserve(self, rows: int, slots: int) -> None:
        """Allocate at least `rows` rows and `slots` slots; the rows in use keep their content."""
        old = self._all
        count = len(self)
        slots = min(slots, self.config.block_size)
        if rows <= len(old.last_token) and slots <= self.slots:
            return
        needed = max(rows, len(old.last_token)), max(slots, self.slots)
        rows, slots = (1 << (number - 1).bit_length() for number in needed)
        self._all = KVCache(self.config, rows, self._like, slots)
        self._all.keys_values[:, :, :count, :, : old.block_size] = old.keys_values[:, :, :count]
        self._all.last_input[:, :, :count] = old.last_input[:, :, :count]
        self._all.last_token[:count] = old.last_token[:count]

    # ---- what the model calls, one token at a time ----

    def query_positions(self, T: int) -> Tensor:
        """Return the positions of the next tokens, int64 (B, 1, T). T is 1."""
        self._reserve(len(self), max(self.lengths) + 1)
        lengths = torch.tensor(self.lengths, device=self._like.device)
        self._rows = torch.arange(len(self), device=lengths.device)
        self._slots = lengths % self.slots
        self._filled = min(max(self.lengths) + 1, self.slots)
        self._queries = lengths[:, None, None]
        return self._queries

    def key_positions(self, T: int) -> Tensor:
        """Return the positions of the keys, int64 (B, 1, S); an empty slot has a future one, which is masked."""
        slots = torch.arange(self._filled, device=self._like.device)
        positions = self._queries - (self._queries - slots) % self.slots
        return positions.masked_fill(positions < 0, 1 << 40)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Store keys and values (B, kv_heads, 1, head_dim); return all, (B, kv_heads, S, head_dim)."""
        keys_values = self._all.keys_values[layer]
        keys_values[0, self._rows, :, self._slots] = k[:, :, 0]
        keys_values[1, self._rows, :, self._slots] = v[:, :, 0]
        return keys_values[:, : len(self), :, : self._filled].unbind()

    def advance(self, idx: Tensor) -> None:
        """Move each row one position ahead, after the tokens `idx`, int64 (B, 1)."""
        self.last_token.copy_(idx)
        self.lengths = [length + 1 for length in self.lengths]
