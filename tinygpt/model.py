"""The GPT model: tensors in, tensors out. No files, no optimizer, no printing.

A decoder-only transformer (Vaswani et al. 2017; GPT-2, Radford et al. 2019) with nanoGPT's parameter names, so that its
checkpoints load as they are. The defaults are GPT-2's architecture without biases; options.py has the alternatives.

Shapes: B sequences, T positions, C = n_embd, V = vocab_size, S keys (earlier positions included).

    model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
    logits, loss = model(x, y)              # x, y int64 (B, T); logits (B, T, V); loss the mean over all targets
    cache = model.new_cache(batch_size)     # decoding: the same forward pass, one token or several at a time
    logits, _ = model(prompt, cache=cache)
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from tinygpt.options import ACTIVATIONS, NORMS, POSITIONS, QK_EPS, GPTConfig, Norm, rotate

Function = Callable[[Tensor], Tensor]


@dataclasses.dataclass
class Context:
    """Inputs of a forward pass that all blocks share."""

    rotation: Tensor | None  # (2, T, head_dim), or (2, B, 1, T, head_dim): rotation of queries and keys
    mask: Tensor | None  # (1 or B, 1 or n_head, T, S), added to attention's scores; None: causal, as in `attend`
    cache: Any = None  # a KVCache, or use/serve/batch.py's BatchCache


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each position to itself and to earlier positions.

    With fewer heads of keys and values than of queries, it is grouped-query attention (Ainslie et al. 2023).
    """

    drop: Callable[[Tensor, float, bool], Tensor] = staticmethod(F.dropout)

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.heads = config.n_head, config.kv_heads, config.kv_heads  # of queries, keys and values
        # q, k and v in one product
        self.c_attn = nn.Linear(config.n_embd, sum(self.heads) * config.head_dim, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm: nn.RMSNorm | None = None
        self.k_norm: nn.RMSNorm | None = None
        if config.qk_norm and config.qk_norm_weights:
            self.q_norm, self.k_norm = (nn.RMSNorm(config.head_dim, eps=QK_EPS) for _ in range(2))
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qk_norm = config.qk_norm
        self.layer = layer

    def forward(self, x: Tensor, context: Context) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.split_heads(self.c_attn(x), B, T, context.rotation)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        mask = None if context.mask is None else context.mask.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, mask, dropout, self.use_fused(k.size(2), context.cache))
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.drop(self.c_proj(y), self.dropout, self.training)

    def split_heads(self, qkv: Tensor, B: int, T: int, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Split the output of c_attn; normalise and rotate queries and keys. Returns q (B, n_head, T, head_dim), and
        k and v (B, kv_heads, T, head_dim)."""
        q, k, v = qkv.view(B, T, sum(self.heads), -1).transpose(1, 2).split(self.heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q).to(v.dtype)
            k = self.k_norm(k).to(v.dtype)
        elif self.qk_norm:
            q, k = (F.rms_norm(part, part.shape[-1:], eps=QK_EPS).to(v.dtype) for part in (q, k))
        if rotation is not None:
            q = rotate(q, rotation)
            k = rotate(k, rotation)
        return q, k, v

    def use_fused(self, S: int, cache: Any) -> bool:
        """Return whether `forward` lets PyTorch's fused kernels compute the attention to S keys."""
        return True

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, fused: bool = True
    ) -> Tensor:
        """Compute softmax(q kᵀ / √head_dim + mask) v: the attention of every path, in training and in decoding.

        q (B, n_head, T, head_dim), k and v (B, kv_heads, S, head_dim); returns the shape of q. mask: (1 or B,
        1 or n_head, T, S), in the dtype of q; None: causal. The queries belong to the last T of the S positions, so
        a single query attends to every key. fused: compute the same by PyTorch's kernels, which do not store the
        scores. They know no other scores or weights than these, and a mask of None only for T = 1 and T = S.
        """
        if fused:
            return fused_attention(q, k, v, mask, dropout)
        B, n_head, T, head_dim = q.shape
        kv_heads = k.size(1)
        S = k.size(2)
        mask = causal_mask(T, S, q.dtype, q.device) if mask is None else mask
        # the queries of a group, which share keys, are rows of one product
        scores = (q * head_dim**-0.5).reshape(B, kv_heads, -1, head_dim) @ k.transpose(2, 3)
        scores = scores.view(B, n_head, T, S) + mask
        weights = self.drop(scores.softmax(-1), dropout, True)
        return (weights.view(B, kv_heads, -1, S) @ v).view(B, n_head, T, head_dim)


@functools.lru_cache(maxsize=2)
def causal_mask(T: int, S: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the mask (T, S) of the last T of S positions: zero for a key that is not later, else minus infinity."""
    return torch.full((T, S), -math.inf, dtype=dtype, device=device).triu(S - T + 1)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Compute CausalSelfAttention.attend by PyTorch's fused kernels (FlashAttention, Dao et al. 2022)."""
    T = q.size(2)
    S = k.size(2)
    grouped = q.size(1) != k.size(1)
    if grouped and T < S and mask is None:  # T = 1: the queries of a group as rows, without copies of shared keys
        rows = q.reshape(q.size(0), k.size(1), -1, q.size(3))
        return F.scaled_dot_product_attention(rows, k, v, dropout_p=dropout).reshape(q.shape)
    causal = mask is None and T == S
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped)


class MLP(nn.Module):
    """Two linear layers, applied to each position independently."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        width = config.hidden_width
        parts = 2 if config.gated else 1
        self.c_fc = nn.Linear(config.n_embd, width * parts, bias=config.bias)
        self.c_proj = nn.Linear(width, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(self.activate(self.c_fc(x)))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Attention moves information between positions, and the MLP transforms it; both add to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int, attention: type[CausalSelfAttention], norm: Norm) -> None:
        super().__init__()
        self.ln_1 = norm(config)
        self.attn = attention(config, layer)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)
        self.token_shift = config.token_shift
        self.layer = layer

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attn(self.shifted(self.ln_1(x), context, 0), context)
        return x + self.mlp(self.shifted(self.ln_2(x), context, 1))

    def shifted(self, x: Tensor, context: Context, part: int) -> Tensor:
        """Return the input of attention (part 0) or the MLP (part 1): x, or with token_shift `shift` of x."""
        if not self.token_shift:
            return x
        if context.cache is None:
            return shift(x, torch.zeros_like(x[:, :1]))
        last_input = context.cache.last_input[self.layer, part]  # (B, 1, C)
        shifted = shift(x, last_input)
        last_input.copy_(x[:, -1:])
        return shifted


def shift(x: Tensor, last_input: Tensor) -> Tensor:
    """Replace the first half of the channels of x (B, T, C) by those of the previous position.

    last_input (B, 1, C): the input at the position before the first.
    """
    half = x.size(-1) // 2
    previous = torch.cat((last_input[..., :half], x[:, :-1, :half]), dim=1)
    return torch.cat((previous, x[..., half:]), dim=-1)


class GPT(nn.Module):
    """Embeddings, n_layer blocks, a final norm, and a linear head over the vocabulary."""

    attention: type[CausalSelfAttention] = CausalSelfAttention
    norms: Mapping[str, Norm] = NORMS

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.position = POSITIONS[config.position](config)
        tables = {"wte": nn.Embedding(config.vocab_size, config.n_embd)}
        if self.position.embeds:
            tables["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        if config.bigram_table:
            tables["wbe"] = nn.Embedding(config.vocab_size**2, config.n_embd)
        norm = self.norms[config.norm]
        blocks = nn.ModuleList(Block(config, layer, self.attention, norm) for layer in range(config.n_layer))
        self.transformer: Any = nn.ModuleDict({**tables, "h": blocks, "ln_f": norm(config)})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2: 2 n_layer of these add up in the residual stream
                nn.init.normal_(parameter, std=0.0 if config.zero_init else 0.02 / math.sqrt(2 * config.n_layer))

    def tie(self) -> None:
        """Make the head share the weights of the token embedding, if configured (Press & Wolf 2017)."""
        if self.config.tie_weights:
            self.lm_head.weight = self.transformer["wte"].weight

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        cache: Any = None,
        last_only: bool = False,
        targets_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the logits, (B, T, V), and, given targets, the mean cross-entropy.

        idx int64 (B, T), T <= block_size; targets int64 (B, T), -1 for none. With a cache, idx continues the tokens
        that the cache has read. last_only: only the logits of the last position, (B, 1, V). targets_only:
        only the logits of the N positions that have a target, (N, V).
        """
        x = self.residual(idx, cache)
        if targets_only and targets is not None:
            x = x[targets >= 0]  # (N, C)
            targets = targets[targets >= 0]  # (N,)
        logits = self.logits(x[:, -1:] if last_only else x, self.transformer["ln_f"], self.lm_head)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)

    def residual(self, idx: Tensor, cache: Any = None) -> Tensor:
        """Compute the residual stream before the final norm, (B, T, C). Arguments: as in `forward`."""
        T = idx.size(1)
        positions = torch.arange(T, device=idx.device) if cache is None else cache.query_positions(T)
        x: Tensor = self.transformer["wte"](idx)
        if self.config.bigram_table:  # pairs (previous token, token); the token before the first is taken to be 0
            first = torch.zeros_like(idx[:, :1]) if cache is None else cache.last_token
            previous = torch.cat((first, idx[:, :-1]), dim=1)
            x = x + self.transformer["wbe"](previous * self.config.vocab_size + idx)
        if self.position.embeds:
            x = x + self.transformer["wpe"](positions).view(-1, T, x.size(-1))
        x = F.dropout(x, self.config.dropout, self.training)
        context = self.context(positions, cache)
        for block in self.transformer["h"]:
            x = block(x, context)
        if cache is not None:
            cache.advance(idx)
        return x

    def logits(self, x: Tensor, norm: Function, linear: Function) -> Tensor:
        """Compute the logits, float32 (..., V), from the residual stream x (..., C): the head of every path, with the
        functions by which the path computes the final norm and the product with the head's weights."""
        return linear(norm(x)).float()

    def context(self, queries: Tensor, cache: Any = None) -> Context:
        """Build the context of a forward pass over the tokens at the positions `queries`, int64 (T,).

        If the sequences of a cache have different lengths, positions have the shape (B, 1, T).
        """
        keys = queries if cache is None else cache.key_positions(queries.size(-1))
        mask = self.position.bias(queries, keys)
        if cache is not None or mask is not None:
            future = keys[..., None, :] > queries[..., None]
            mask = torch.zeros(future.shape, device=future.device) if mask is None else mask
            mask = mask.masked_fill(future, -math.inf)
            mask = mask[(None,) * (4 - mask.dim())]
        return Context(self.position.rotation(queries), mask, cache)

    def new_cache(self, batch_size: int, length: int = 0) -> "KVCache":
        """Make an empty cache for decoding `batch_size` sequences of at most `length` tokens; 0: of any length."""
        return KVCache(self.config, batch_size, like=self.lm_head.weight, length=length)

    def next_logits(self, idx: Tensor, cache: Any = None) -> Tensor:
        """Compute the logits (B, V) of the token after idx int64 (B, T), which continues the tokens in the cache."""
        return self(idx, cache=cache, last_only=True)[0][:, -1]

    def num_params(self) -> int:
        """Count the parameters, without the position embeddings, as in nanoGPT; tied weights count once."""
        count = sum(parameter.numel() for parameter in self.parameters())
        return count - (self.transformer["wpe"].weight.numel() if self.position.embeds else 0)


MATRIX, EMBEDDING, VECTOR = range(3)


def parameter_class(name: str, weight: Tensor) -> int:
    """Return the parameter's class for the optimizer: MATRIX of a block, EMBEDDING (tables and head), or VECTOR."""
    if weight.dim() < 2:
        return VECTOR
    return MATRIX if ".h." in name else EMBEDDING


# ---- decoding ---------------------------------------------------------------------------------------------------


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
        """Copy the cache for a larger batch, in which each sequence is repeated `times` times, in adjacent rows."""
        cache = copy.copy(self)
        cache.keys_values = self.keys_values.repeat_interleave(times, dim=2)
        cache.last_token = self.last_token.repeat_interleave(times, dim=0)
        cache.last_input = self.last_input.repeat_interleave(times, dim=2)
        return cache

    def forget(self) -> None:
        """Empty the cache: the next token is at position 0."""
        self.length = 0
        self.last_token = torch.zeros_like(self.last_token)
        self.last_input.zero_()

    def query_positions(self, T: int) -> Tensor:
        """Return the positions of the next T tokens: int64 (T,)."""
        return torch.arange(self.length, self.length + T, device=self.last_token.device)

    def key_positions(self, T: int) -> Tensor:
        """Return the positions of the keys after T more tokens are read: int64 (S,)."""
        last = self.length + T - 1
        slots = torch.arange(min(last + 1, self.block_size), device=self.last_token.device)
        return last - (last - slots) % self.block_size

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Store keys and values (B, kv_heads, T, head_dim) of new positions; return all, (B, kv_heads, S, head_dim).

        If T > 1, no older position may be overwritten: length + T <= block_size.
        """
        T = k.size(-2)
        slot = self.length % self.block_size
        self.keys_values[layer, 0, :, :, slot : slot + T] = k
        self.keys_values[layer, 1, :, :, slot : slot + T] = v
        return self.keys_values[layer, :, :, :, : min(self.length + T, self.block_size)].unbind()

    def advance(self, idx: Tensor) -> None:
        """Count the T tokens of idx, int64 (B, T), as read, after `extend` has stored their keys and values."""
        self.length = self.length + idx.size(1)
        self.last_token = idx[:, -1:]
