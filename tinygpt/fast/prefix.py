"""Training on rows that begin with the same tokens: the shared beginning is computed once for the whole batch.

The chat template of a model puts the same text before every prompt, for SmolLM2 half of a short example. A position
depends on earlier ones only, so the beginning has the same activations in every row. Its keys and values are computed
for one row and used by all, and autograd adds up their gradients.

    shared = SharedPrefix()
    model.residual(idx[:1, :n], shared)         # n = common(idx): the first n tokens are equal in all rows
    x = model.residual(idx[:, n:], shared)      # (B, T - n, C), equal to those of the complete rows
"""

import torch
from torch import Tensor

from tinygpt.options import GPTConfig

SHORTEST = 8  # tokens; a shorter beginning saves less than a second pass through the layers costs


class SharedPrefix:
    """The part of KVCache's interface that attention uses, with gradients: the first pass stores the keys and values of
    one row, and the second pass puts them before those of its own rows."""

    def __init__(self) -> None:
        self.length = 0
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def queries(self, T: int) -> Tensor:
        """Positions of the next T tokens: int64 (T,)."""
        return torch.arange(self.length, self.length + T)

    def positions(self, T: int) -> Tensor:
        """Positions of the keys: int64 (S,)."""
        return torch.arange(self.length + T)

    def advance(self, idx: Tensor) -> None:
        self.length += idx.size(1)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values for the new ones, (B, kv_heads, T, head_dim): (B, kv_heads, S, head_dim) each."""
        if layer not in self.stored:
            self.stored[layer] = k, v
            return k, v
        first = (part.expand(len(k), -1, -1, -1) for part in self.stored[layer])
        return torch.cat((next(first), k), dim=2), torch.cat((next(first), v), dim=2)


def common(idx: Tensor, config: GPTConfig) -> int:
    """Number of tokens at the beginning of the rows of idx (B, T) that are worth computing once; 0 if none are.

    token_shift and bigram_table also read the previous token outside attention.
    """
    if len(idx) == 1 or config.token_shift or config.bigram_table:
        return 0
    equal = (idx == idx[:1]).all(0)
    count = int(equal.long().cumprod(0).sum())
    return count if SHORTEST <= count < idx.size(1) else 0
