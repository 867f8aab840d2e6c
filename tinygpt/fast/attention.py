"""Attention for a small model on a CPU, with a handwritten gradient.

Automatic differentiation copies intermediate results and runs one kernel per operation. For matrices of some ten
thousand elements, that takes a good part of the time (docs/PERFORMANCE.md).
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt.model import QK_EPS, CausalSelfAttention, Context, KVCache, attend
from tinygpt.options import GPTConfig, rotate

LONGEST = 512  # up to this context plain products are faster than PyTorch's fused call, whose backward pass is slow


class FastSelfAttention(CausalSelfAttention):
    """The same function of the same parameters as CausalSelfAttention; for decoding it calls that class."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if context.cache is not None and not isinstance(context.cache, SharedPrefix):
            return super().forward(x, context)
        B, T, C = x.size()
        dropout, mask = self.dropout if self.training else 0.0, context.mask
        qkv = self.c_attn(x)
        if context.cache is not None or len(set(self.heads)) > 1 or self.q_norm is not None:
            q, k, v = self.split_heads(qkv, B, T, context.rotation)
            if context.cache is not None:
                k, v = context.cache.extend(self.layer, k, v)
            long = k.size(2) > LONGEST or dropout
            y = attend(q, k, v, mask, dropout) if long else written_out(q, k, v, mask)
        else:
            qkv = qkv.view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, n_head, T, head_dim)
            if self.qk_norm or context.rotation is not None:
                qkv = norm_rotate(qkv, context.rotation, self.qk_norm)
            if T > LONGEST or dropout:
                q, k, v = qkv
                y = attend(q, k, v, mask, dropout)
            else:
                y = UnfusedAttention.apply(qkv.reshape(3, -1, T, qkv.size(-1)), mask).view(qkv.shape[1:])
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attend` as plain products: the queries of a group, which share keys, are rows of one product."""
    B, n_head, T, head_dim = q.shape
    scores = (q * head_dim**-0.5).reshape(B, k.size(1), -1, head_dim) @ k.transpose(2, 3)  # (B, kv_heads, group T, S)
    scores = scores.view(B, n_head, T, -1) + (causal_mask(T, q.dtype) if mask is None else mask.to(q.dtype))
    return (scores.softmax(-1).view(B, k.size(1), -1, k.size(2)) @ v).view(B, n_head, T, head_dim)


class SharedPrefix(KVCache):
    """Keys and values of tokens with which all rows begin, computed for one row; unlike KVCache's, with gradients.

    The first pass stores them, and the second puts them before those of its own rows.
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


class UnfusedAttention(torch.autograd.Function):
    """`attend` as batched matrix products and a softmax, with one buffer for the gradients of q, k and v."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """qkv (3, N, T, head_dim) for N = B n_head, mask (1, 1 or n_head, T, T); returns (N, T, head_dim)."""
        q, k, v = qkv
        T, head_dim = q.shape[1:]
        if mask is None:
            p = torch.baddbmm(causal_mask(T, q.dtype), q, k.transpose(1, 2), alpha=head_dim**-0.5)  # (N, T, T)
        else:
            p = torch.bmm(q * head_dim**-0.5, k.transpose(1, 2))
            p.view(-1, *mask.shape[1:]).add_(mask)  # N is (B, n_head)
        torch.softmax(p, -1, out=p)
        ctx.save_for_backward(qkv, p)
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        """With P = softmax(S): dV = Pᵀ dY, dP = dY Vᵀ, dS = P (dP - rowsum(P dP)), dQ = dS K / √d, dK = dSᵀ Q / √d."""
        qkv, p = ctx.saved_tensors
        q, k, v = qkv
        scale = q.size(2) ** -0.5
        dy = dy.contiguous()
        ds = torch._softmax_backward_data(torch.bmm(dy, v.transpose(1, 2)), p, -1, p.dtype)
        d = torch.empty_like(qkv)
        torch.baddbmm(d[0], ds, k, beta=0, alpha=scale, out=d[0])
        torch.baddbmm(d[1], ds.transpose(1, 2), q, beta=0, alpha=scale, out=d[1])
        torch.bmm(p.transpose(1, 2), dy, out=d[2])
        return d, None


@functools.lru_cache(maxsize=2)
def causal_mask(T: int, dtype: torch.dtype) -> Tensor:
    """Zero on and below the diagonal, minus infinity above: (T, T), added to the scores."""
    return torch.full((T, T), -math.inf, dtype=dtype).triu(1)


def norm_rotate(qkv: Tensor, rotation: Tensor | None, qk_norm: bool) -> Tensor:
    """Normalise and rotate queries and keys as `split_heads`, both in one call: qkv (3, B, n_head, T, head_dim)."""
    qk = F.rms_norm(qkv[:2], qkv.shape[-1:], eps=QK_EPS) if qk_norm else qkv[:2]
    return torch.cat((qk if rotation is None else rotate(qk, rotation), qkv[2:]))
