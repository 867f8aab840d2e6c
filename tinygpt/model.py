"""The GPT: tensors in, tensors out. No files, no optimizer, no printing.

A decoder-only transformer (Vaswani et al. 2017; GPT-2, Radford et al. 2019) with nanoGPT's parameter names, so its
checkpoints load as they are. The defaults are GPT-2's; each option is a named choice with its paper:

    norm        layernorm (Ba et al. 2016)          rmsnorm (Zhang & Sennrich 2019)
    position    learned (GPT-2)                     rope (Su et al. 2021)
    activation  gelu (Hendrycks & Gimpel 2016)      relu2 (So et al. 2021), swiglu (Shazeer 2020)
    qk_norm     off                                 on (Henry et al. 2020)
    zero_init   off                                 on: output projections start at zero (Zhang et al. 2019, "Fixup")
    bigram_table off                                on: pairs of tokens are embedded too (Bengio et al. 2003)
    token_shift off                                 on: half of what a block reads is from the position before (RWKV-LM,
                                                    Peng 2021)

Shapes: B sequences, T positions, C = n_embd, V = vocab_size.

    model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
    logits, loss = model(x, y)      # x, y int64 (B, T); logits (B, T, V); loss a scalar, the mean over all targets
"""

import dataclasses
import functools
import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

QK_EPS = 1e-6  # of the normalisation of queries and keys, as in Qwen3


@dataclasses.dataclass
class GPTConfig:
    """The shape of a model: what a checkpoint keeps as `model_args`."""

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False
    norm: str = "layernorm"
    position: str = "learned"
    activation: str = "gelu"
    qk_norm: bool = False
    tie_weights: bool = True
    zero_init: bool = False
    bigram_table: bool = False
    token_shift: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """The fields among `values`; others are ignored, missing ones take GPT-2's defaults (as in nanoGPT's files)."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})


class Norm(nn.Module):
    """LayerNorm with an optional bias, or RMSNorm, which has no mean and no bias."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias and config.norm == "layernorm" else None
        self.rms = config.norm == "rmsnorm"

    def forward(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    """Each position looks at itself and at those before it, in n_head ways at once."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.dropout, self.qk_norm, self.layer = config.n_head, config.dropout, config.qk_norm, layer

    def forward(self, x: Tensor, rope: Tensor | None) -> Tensor:
        B, T, C = x.size()
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hd)
        dropout = self.dropout if self.training else 0.0
        y = attend(positioned(qkv, rope, self.qk_norm), dropout)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def positioned(qkv: Tensor, rope: Tensor | None, qk_norm: bool) -> Tensor:
    """Queries and keys of length one, and turned by their positions, where the model wants that; values as they are."""
    if rope is None and not qk_norm:
        return qkv
    if rope is not None and qkv.device.type == "cpu":
        return NormRotate.apply(qkv, rope.to(qkv.dtype), qk_norm)  # type: ignore[no-any-return]
    qk = F.rms_norm(qkv[:2], qkv.shape[-1:], eps=QK_EPS) if qk_norm else qkv[:2]
    return torch.cat((qk if rope is None else rotate(qk, rope), qkv[2:]))


def attend(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √head_dim) v, where each position sees itself and those before it.

    qkv (3, B, n_head, T, head_dim); returns (B, n_head, T, head_dim). On GPUs the fused call (FlashAttention, Dao et
    al. 2022) wins always; on a CPU its backward pass is slow, and up to a context of some hundred plain products win.
    """
    T = qkv.size(-2)
    if qkv.device.type == "cpu" and T <= 512 and not dropout:
        return PlainAttention.apply(qkv.reshape(3, -1, T, qkv.size(-1))).view(qkv.shape[1:])  # type: ignore[no-any-return]
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


class PlainAttention(torch.autograd.Function):
    """Causal attention in plain batched products, with its gradient written out: four products, one softmax, and one
    buffer for all three gradients, where automatic differentiation would make a copy at each step."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        """qkv (3, N, T, head_dim) for N = B n_head; returns (N, T, head_dim)."""
        q, k, v = qkv
        p = torch.baddbmm(future_mask(q.size(1), q.dtype), q, k.transpose(1, 2), alpha=q.size(2) ** -0.5)  # (N, T, T)
        torch.softmax(p, -1, out=p)
        ctx.save_for_backward(qkv, p)
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
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
        return d


@functools.lru_cache(maxsize=2)
def future_mask(T: int, dtype: torch.dtype) -> Tensor:
    """Zero on and below the diagonal, minus infinity above: (T, T), added to the scores."""
    return torch.full((T, T), -math.inf, dtype=dtype).triu(1)


def rope_angles(start: int, T: int, head_dim: int, device: torch.device) -> Tensor:
    """Cosines and signed sines for positions start..start+T-1: float32, (2, T, head_dim)."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.arange(start, start + T, device=device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + head_dim/2]) by its position's angle (the "half" layout of GPT-NeoX and Llama)."""
    cos, sin = rope.to(x.dtype)
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin


class NormRotate(torch.autograd.Function):
    """`positioned` with rotary positions in half the kernels, forward and backward, for a processor without a compiler.

    Turning keeps the length, so y = R x s with s = 1 / sqrt(mean(x^2) + eps) can be normalised after it was turned;
    the gradient is dx = R^T s (dy - y mean(dy y)), and R^T is the turn by the opposite angle.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rope: Tensor, qk_norm: bool) -> Tensor:
        """qkv (3, B, n_head, T, head_dim) in any layout, rope (2, T, head_dim); returns it contiguous."""
        out = torch.empty(qkv.shape, dtype=qkv.dtype)
        turn(qkv[:2], rope, out[:2])
        out[2].copy_(qkv[2])
        scale = None
        if qk_norm:
            scale = torch.linalg.vector_norm(out[:2], dim=-1, keepdim=True)
            scale = scale.square_().div_(qkv.size(-1)).add_(QK_EPS).rsqrt_()
            out[:2].mul_(scale)
        ctx.save_for_backward(out, rope, scale)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        out, rope, scale = ctx.saved_tensors
        _, B, n_head, T, head_dim = d_out.shape
        d = torch.empty((B, T, 3, n_head, head_dim), dtype=d_out.dtype).permute(2, 0, 3, 1, 4)  # as c_attn gave it
        dy = d_out[:2]
        if scale is not None:
            dy = torch.addcmul(dy, out[:2], (dy * out[:2]).mean(-1, keepdim=True), value=-1).mul_(scale)
        turn(dy, rope, d[:2], direction=-1)
        d[2].copy_(d_out[2])
        return d, None, None


def turn(x: Tensor, rope: Tensor, out: Tensor, direction: int = 1) -> None:
    """`rotate` into `out`; direction -1 turns back."""
    torch.mul(x, rope[0], out=out)
    out.addcmul_(x.roll(x.size(-1) // 2, dims=-1), rope[1], value=direction)


class MLP(nn.Module):
    """Two linear layers, four times as wide in between, applied at each position by itself."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        # swiglu has a gate beside the up-projection: 8/3 instead of 4 keeps the number of parameters
        width = int(8 * config.n_embd / 3) if config.activation == "swiglu" else 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, width * (2 if config.activation == "swiglu" else 1), bias=config.bias)
        self.c_proj = nn.Linear(width, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(activate(self.c_fc(x), self.activation))
        return F.dropout(x, self.dropout, self.training)


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return F.gelu(x)
    if activation == "relu2":
        return F.relu(x).square()
    gate, x = x.chunk(2, dim=-1)
    return F.silu(gate) * x


class Block(nn.Module):
    """Attention moves information between positions, the MLP works on it; both add to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = Norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = Norm(config)
        self.mlp = MLP(config)
        self.token_shift = config.token_shift

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.read(self.ln_1(x)), rope)
        return x + self.mlp(self.read(self.ln_2(x)))

    def read(self, x: Tensor) -> Tensor:
        return shift(x, torch.zeros_like(x[:, :1])) if self.token_shift else x


def shift(x: Tensor, before: Tensor) -> Tensor:
    """x (B, T, C) with the first half of its channels from one position earlier; before (B, 1, C): what was at -1."""
    half = x.size(-1) // 2
    earlier = torch.cat((before[..., :half], x[:, :-1, :half]), dim=1)
    return torch.cat((earlier, x[..., half:]), dim=-1)


class GPT(nn.Module):
    """Embeddings, n_layer blocks, a last norm, and a linear head over the vocabulary."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.transformer: Any = nn.ModuleDict(
            {
                "wte": wte,
                **({"wpe": nn.Embedding(config.block_size, config.n_embd)} if config.position == "learned" else {}),
                **({"wbe": nn.Embedding(config.vocab_size**2, config.n_embd)} if config.bigram_table else {}),
                "h": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                "ln_f": Norm(config),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = wte.weight
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2: 2 n_layer of these add up in the residual stream
                nn.init.normal_(parameter, std=0.0 if config.zero_init else 0.02 / math.sqrt(2 * config.n_layer))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Logits and, with targets, their mean cross-entropy.

        idx int64 (B, T), T <= block_size; targets int64 (B, T), -1 where no loss is wanted. last_only: logits of the
        last position alone, (B, 1, V).
        """
        config, T = self.config, idx.size(1)
        x: Tensor = self.transformer["wte"](idx)  # (B, T, C)
        if config.bigram_table:  # the pair (token before, token); before the first token stands symbol 0
            before = F.pad(idx[:, :-1], (1, 0))
            x = x + self.transformer["wbe"](before * config.vocab_size + idx)
        rope = None
        if config.position == "learned":
            x = x + self.transformer["wpe"].weight[:T]
        else:
            rope = rope_angles(0, T, config.n_embd // config.n_head, idx.device)
        x = F.dropout(x, config.dropout, self.training)
        for block in self.transformer["h"]:
            x = block(x, rope)
        x = self.transformer["ln_f"](x[:, -1:] if last_only else x)
        logits = self.lm_head(x).float()
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def crop_block_size(self, block_size: int) -> None:
        """Shorten the context: the positions behind `block_size` are forgotten."""
        self.config.block_size = block_size
        if self.config.position == "learned":
            self.transformer["wpe"].weight = nn.Parameter(self.transformer["wpe"].weight[:block_size].detach().clone())

    def grow_vocabulary(self, known: int, total: int) -> None:
        """Room for `total` symbols, of which the first `known` are in use. Old rows stay; a new one starts as their
        mean, so that the model takes an unknown symbol for an average one (Hewitt 2021, "Initializing new word
        embeddings for pretrained language models")."""
        old, size = self.config.vocab_size, max(total, self.config.vocab_size)
        transformer = self.transformer
        if "wbe" in transformer:  # rows of pairs: (before, token)
            pairs = transformer["wbe"].weight.detach().view(old, old, -1)[:known, :known]
            grown = pairs.mean((0, 1)).repeat(size, size, 1)
            grown[:known, :known] = pairs
            transformer["wbe"] = nn.Embedding.from_pretrained(grown.flatten(0, 1), freeze=False)
        for module in {transformer["wte"], self.lm_head}:
            rows = module.weight.detach()[:known]
            grown = torch.cat((rows, rows.mean(0).repeat(size - known, 1)))
            module.weight = nn.Parameter(grown)
        transformer["wte"].num_embeddings = self.lm_head.out_features = size
        if self.config.tie_weights:
            self.lm_head.weight = transformer["wte"].weight
        self.config.vocab_size = size

    def num_params(self) -> int:
        """Parameters, each counted once; without the position embeddings, as nanoGPT counts."""
        count = sum(parameter.numel() for parameter in self.parameters())
        return count - (self.transformer["wpe"].weight.numel() if self.config.position == "learned" else 0)

    def flops_per_token(self) -> float:
        """Multiply-adds times two, forward and backward, of one token (PaLM's appendix B: 6 N + 12 L C T)."""
        config = self.config
        return 6 * self.num_params() + 12 * config.n_layer * config.n_embd * config.block_size
