"""Options of the architecture: norms, activations, position encodings and others, each with its paper.

To add a choice: define it here, and add its name and help to its key in base/configs/core.py (then run
`python scripts/docs.py`).

norm          layernorm (Ba et al. 2016)         rmsnorm (Zhang & Sennrich 2019)
activation    gelu (Hendrycks & Gimpel 2016)     gelu_tanh, relu2 (So et al. 2021), swiglu (Shazeer 2020)
position      learned (GPT-2)                    rope (Su et al. 2021), alibi (Press et al. 2021)
qk_norm       unit-normalised queries and keys (Henry et al. 2020), with qk_norm_weights as in Qwen3
n_kv_head     grouped-query attention (Ainslie et al. 2023)
window        sliding-window attention (Jiang et al. 2023, "Mistral 7B")
zero_init     output projections start at zero (Zhang et al. 2019, "Fixup")
bigram_table  pairs of neighbouring tokens are embedded too (Bengio et al. 2003)
token_shift   half of the channels of a layer's input come from the previous position (RWKV-LM, Peng 2021)

norm = NORMS[config.norm](config)
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

QK_EPS = 1e-6  # of the normalisation of queries and keys, as in Qwen3
NEUTRAL = (None, False, "", "none")  # values with which an unknown option of another tool changes nothing; False is 0


@dataclasses.dataclass
class GPTConfig:
    """Architecture and size of a model; a checkpoint keeps them as `model_args`."""

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
    n_kv_head: int = 0  # 0: n_head
    mlp_width: int = 0  # 0: 4 n_embd, and with a gate 8/3 n_embd
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    qk_norm_weights: bool = False
    window: int = 0  # 0: none

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Return the number of heads of keys and values, each shared by n_head / kv_heads heads of queries."""
        return self.n_kv_head or self.n_head

    @property
    def gated(self) -> bool:
        """Return whether the activation is of two halves of the MLP's first layer, which is twice as wide."""
        return self.activation in GATED

    @property
    def relative(self) -> bool:
        """Return whether positions are relative: the context may be longer than in training."""
        return POSITIONS[self.position].relative

    @property
    def hidden_width(self) -> int:
        """Return the MLP's hidden width. A gate doubles the first layer; 8/3 instead of 4 keeps the parameters."""
        return self.mlp_width or (int(8 * self.n_embd / 3) if self.gated else 4 * self.n_embd)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """Take the fields from `values`: other keys are ignored, missing fields (in nanoGPT's files) get defaults."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})

    def unsupported_options(self, any_value: Collection[str], values: Mapping[str, Collection[Any]]) -> list[str]:
        """Return the options that an exporter cannot express, as `name=value`.

        values: the allowed values of some fields; they take precedence over `any_value`, the fields that may have any
        value. All other fields, which may be newer than the exporter, must have their default.
        """
        unsupported = []
        defaults = dataclasses.asdict(type(self)())
        for name, value in dataclasses.asdict(self).items():
            allowed = values.get(name, [value] if name in any_value else [defaults[name]])
            if value not in allowed:
                unsupported.append(f"{name}={value}")
        return unsupported


Norm = Callable[[GPTConfig], nn.Module]
NORMS: dict[str, Norm] = {
    "layernorm": lambda config: nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias),
    "rmsnorm": lambda config: nn.RMSNorm(config.n_embd, eps=config.norm_eps),
}


def relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def swiglu(x: Tensor) -> Tensor:
    """Compute SwiGLU, (..., 2 width) to (..., width): the first half gates the second."""
    gate, x = x.chunk(2, dim=-1)
    return F.silu(gate) * x


def gelu_tanh(x: Tensor) -> Tensor:
    """Compute the tanh approximation of GELU, with which OpenAI's GPT-2 was trained."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu2": relu2,
    "swiglu": swiglu,
}
GATED = {"swiglu"}  # activations that halve the width


class Position:
    """Base class of position encodings, without any encoding. Other code in tinygpt does not depend on the encoding of
    a model, nor on its sliding window, which is a part of every encoding's bias.

    An encoding is one of three: a trained vector per position (`embeds`: row p of the table wpe is added to the
    embedding at position p), a rotation of queries and keys, or a bias on attention's scores. In a `relative` encoding
    only the distance between two positions counts, so generation can continue past block_size tokens with a cache that
    drops the oldest position at each step.
    """

    relative = True
    embeds = False

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.n_head = config.n_head
        self.head_dim = config.head_dim

    def frequencies(self, device: torch.device | None = None) -> Tensor | None:
        """Return the radians per position by which `rotation` turns each pair of channels: float32 (head_dim / 2)."""
        return None

    def rotation(self, positions: Tensor) -> Tensor | None:
        """Return cosines and signed sines for `rotate`: float32 (2, ..., T, head_dim), for positions int64 (..., T)."""
        return None

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Return the bias that is added to attention's scores: float32, broadcast to (..., n_head, T, S), on the
        positions' device. This one hides the keys outside the sliding window; a subclass adds its own bias to it.

        queries, keys: positions, int64 (..., T) and (..., S). The causal mask is applied elsewhere. The report's page
        supports a bias that depends on head and distance only.
        """
        if not self.config.window:
            return None
        outside = keys[..., None, :] <= queries[..., None] - self.config.window
        return torch.zeros(outside.shape, device=outside.device).masked_fill(outside, -math.inf)


class Learned(Position):
    """A trained vector per position. Positions from block_size on have none, so the context window cannot slide."""

    relative = False
    embeds = True


class Rotary(Position):
    """RoPE: each pair of channels is rotated by position x frequency; frequencies range from 1 to about 1/10,000."""

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        channels = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32)
        return self.config.rope_base ** (-channels / self.head_dim)

    def rotation(self, positions: Tensor) -> Tensor:
        angles = positions.float()[..., None] * self.frequencies(positions.device)  # (..., T, head_dim / 2)
        cos = angles.cos()
        sin = angles.sin()
        return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + head_dim/2]) of x (..., T, head_dim) by its position's angle: the "half" layout of
    GPT-NeoX and Llama."""
    cos, sin = rotation.to(x.dtype)
    first, second = x.split(x.size(-1) // 2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


class Alibi(Position):
    """ALiBi: attention's scores decrease linearly with the distance, with a different slope in each head."""

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        # slopes 2^(-8 i / n) for i = 1..n; if n is not a power of two, those of the power below, then every other one
        # of the power above, as in the paper's code, BLOOM and MPT
        upper = 1 << self.n_head.bit_length()
        steps = [*range(2, upper + 1, 2), *range(1, upper, 2)][: self.n_head]
        slopes = 2.0 ** (-8 / upper * torch.tensor(steps, device=queries.device, dtype=torch.float32))
        window = super().bias(queries, keys)
        bias = slopes[:, None, None] * (keys[..., None, :] - queries[..., None])
        return bias if window is None else bias + window


POSITIONS: dict[str, type[Position]] = {"learned": Learned, "rope": Rotary, "alibi": Alibi}
