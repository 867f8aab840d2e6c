"""Attention for a small model on a CPU: plain matrix products and a softmax instead of PyTorch's fused call, whose
backward pass is slow for contexts of up to some hundred tokens (experiments.md)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinygpt.fast.dropout import dropout
from tinygpt.fast.norm import rms_norm
from tinygpt.model import CausalSelfAttention, KVCache
from tinygpt.options import QK_EPS, GPTConfig, rotate

LONGEST = 512  # up to this context plain products are faster than the fused call


class FastSelfAttention(CausalSelfAttention):
    """The same function of the same parameters as CausalSelfAttention, by other kernels in training."""

    drop: Callable[[Tensor, float, bool], Tensor] = staticmethod(dropout)

    def use_fused(self, S: int, cache: Any) -> bool:
        decoding = cache is not None and not isinstance(cache, SharedPrefix)
        return decoding or S > LONGEST

    def split_heads(self, qkv: Tensor, B: int, T: int, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute CausalSelfAttention.split_heads, for queries and keys together."""
        n_head, kv_heads, _ = self.heads
        qk, v = qkv.view(B, T, sum(self.heads), -1).split((n_head + kv_heads, kv_heads), dim=2)
        if self.qk_norm:
            qk = rms_norm(qk, self.qk_weights(), QK_EPS)
        qk = qk.transpose(1, 2)
        q, k = (qk if rotation is None else rotate(qk, rotation)).split((n_head, kv_heads), dim=1)
        return q, k, v.transpose(1, 2)

    def qk_weights(self) -> Tensor | None:
        """Return the weights of the norms of queries and keys: (heads, head_dim), or None if they have none."""
        if self.q_norm is None or self.k_norm is None:
            return None
        norms = (self.q_norm, self.k_norm)
        return torch.cat([norm.weight.expand(heads, -1) for norm, heads in zip(norms, self.heads, strict=False)])


class SharedPrefix(KVCache):
    """Keys and values of tokens with which all rows begin, computed for one row; unlike KVCache's, with gradients.

    The first pass stores them; the second prepends them to those of its own rows.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, 0, like=torch.empty(0))  # nothing is allocated
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if layer not in self.stored:
            self.stored[layer] = k, v
            return k, v
        first = self.stored[layer]
        return tuple(
            torch.cat((old.expand(len(k), -1, -1, -1), new), dim=2) for old, new in zip(first, (k, v), strict=True)
        )
