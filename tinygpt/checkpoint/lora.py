"""LoRA: fine-tune low-rank adapters of frozen matrices (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
Models").

A frozen linear layer W gets two low-rank matrices, A (rank, in) and B (out, rank), and computes
W x + (alpha / rank) B A x. B starts at zero, so the adapter changes nothing at first. After training,
(alpha / rank) B A is added to W, and the model is an ordinary GPT again.

    attach(model, LoRA(rank=8, alpha=16), new_tokens=12)     # trains only A, B and the new tokens' rows
    state = merged(model.state_dict(), alpha=16)              # the weights of an ordinary GPT
"""

import dataclasses
import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.model import GPT


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Settings of the adapters."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str = "c_attn,c_proj,c_fc"  # names of linear layers, in every block


class LoRALinear(nn.Linear):
    """A linear layer with an adapter; it keeps the layer's parameter names."""

    def __init__(self, linear: nn.Linear, lora: LoRA) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight = linear.weight
        self.bias = linear.bias
        self.lora_A = nn.Parameter(torch.empty(lora.rank, linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, lora.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = lora.alpha / lora.rank
        self.dropout = lora.dropout

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        # (..., out) and (..., rank)
        y = super().forward(x)
        low = F.linear(dropped, self.lora_A)
        # y + scale B A x in one kernel
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), self.lora_B.t(), alpha=self.scale).view(y.shape)


class GrownEmbedding(nn.Embedding):
    """An embedding whose last rows are trained while the others are frozen."""

    def __init__(self, embedding: nn.Embedding, new: int) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim)
        self.weight = embedding.weight
        self.new_rows = nn.Parameter(embedding.weight.detach()[-new:].clone())

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, with_new_rows(self))


class GrownHead(nn.Linear):
    """The head of a model with a GrownEmbedding: it shares the new rows if the two are tied, else has its own."""

    def __init__(self, head: nn.Linear, embedding: GrownEmbedding) -> None:
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight = head.weight
        tied = head.weight is embedding.weight
        self.__dict__["rows_of"] = embedding if tied else self  # not a submodule: the embedding is already one
        if not tied:
            self.new_rows = nn.Parameter(head.weight.detach()[-len(embedding.new_rows) :].clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, with_new_rows(self.rows_of))


def with_new_rows(module: Any) -> Tensor:
    """Return the weight of a GrownEmbedding or GrownHead, new rows included: (vocab_size, n_embd)."""
    return torch.cat((module.weight[: -len(module.new_rows)], module.new_rows))


def attach(model: GPT, lora: LoRA, new_tokens: int) -> None:
    """Freeze the model and add an adapter to each target layer; the last `new_tokens` embeddings stay trainable.
    Errors: TinyGPTError for a target that no layer has."""
    model.requires_grad_(False)
    for target in lora.targets.split(","):
        parts = [part for block in model.transformer["h"] for part in (block.attn, block.mlp) if hasattr(part, target)]
        parts = [part for part in parts if isinstance(getattr(part, target), nn.Linear)]
        if not parts:
            raise TinyGPTError(f"lora_targets: no layer is called {target!r}", "--lora_targets=c_attn,c_proj,c_fc")
        for part in parts:
            setattr(part, target, LoRALinear(getattr(part, target), lora))
    if new_tokens:
        model.transformer["wte"] = GrownEmbedding(model.transformer["wte"], new_tokens)
        model.lm_head = GrownHead(model.lm_head, model.transformer["wte"])


def is_adapted(state: dict[str, Tensor]) -> bool:
    return any(name.endswith((".lora_A", ".new_rows")) for name in state)


def adapted_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the trained weights: adapters and new rows."""
    return {name: weight for name, weight in state.items() if name.endswith((".lora_A", ".lora_B", ".new_rows"))}


def merged(state: dict[str, Tensor], alpha: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Merge the adapters into the weights, W + (alpha / rank) B A, converted to `dtype`, and the new rows into their
    tables: return the weights of an ordinary GPT that computes the same function."""
    trained = adapted_only(state)
    plain = {name: weight for name, weight in state.items() if name not in trained}
    for name in trained:
        layer, _, parameter = name.rpartition(".")
        weight = plain[f"{layer}.weight"]
        if parameter == "lora_A":
            a = state[name]
            b = state[f"{layer}.lora_B"]
            plain[f"{layer}.weight"] = (weight + alpha / a.size(0) * (b @ a)).to(dtype)
        elif parameter == "new_rows":
            plain[f"{layer}.weight"] = torch.cat((weight[: -len(state[name])], state[name]))
            if layer == "transformer.wte" and "lm_head.new_rows" not in state:  # one matrix for both
                plain["lm_head.weight"] = plain[f"{layer}.weight"]
    return plain
