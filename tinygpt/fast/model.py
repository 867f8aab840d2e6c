"""FastGPT: the GPT with faster attention and decoding on a CPU. Parameters, their names and results are GPT's.

The chat template of a model puts the same text before every prompt, for SmolLM2 half of a short example. A position
depends on earlier ones only, so this beginning has the same activations in every row of a batch. Its keys and values
are computed for one row and used by all, and autograd adds up their gradients.
"""

from typing import Any

from torch import Tensor, nn

from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.fast.attention import FastSelfAttention, SharedPrefix
from tinygpt.fast.decoder import Decoder
from tinygpt.fast.norm import FastRMSNorm
from tinygpt.model import GPT, KVCache
from tinygpt.options import NORMS, GPTConfig

SHORTEST = 8  # tokens; a shorter common beginning saves less than a second pass through the layers costs


class FastGPT(GPT):
    """The same function as GPT, faster for small models on a CPU."""

    attention = FastSelfAttention
    norms = NORMS | {"rmsnorm": lambda config: FastRMSNorm(config.n_embd, eps=config.norm_eps)}

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        cache: Any = None,
        last_only: bool = False,
        targets_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute GPT.forward. With targets_only, the tokens with which all rows begin are computed once."""
        if targets_only and targets is not None and cache is None and not self.uses_dropout():
            prefix = shared_prefix_length(idx, self.config)
            if prefix and (targets[:, :prefix] < 0).all():
                cache = SharedPrefix(self.config)
                self.residual(idx[:1, :prefix], cache)
                idx = idx[:, prefix:]
                targets = targets[:, prefix:]
        return super().forward(idx, targets, cache, last_only, targets_only)

    def uses_dropout(self) -> bool:
        """Return whether the model or its adapters use dropout now: its masks differ from row to row."""
        return self.training and any(getattr(module, "dropout", 0.0) for module in self.modules())

    def next_logits(self, idx: Tensor, cache: Any = None) -> Tensor:
        return cache(idx) if isinstance(cache, Decoder) else super().next_logits(idx, cache)

    def new_cache(self, batch_size: int, length: int = 0) -> KVCache:
        """Make a Decoder, or a plain cache for a model with adapters, whose layers the Decoder does not know."""
        layers = [module for module in self.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
        ordinary = all(type(layer) in (nn.Linear, nn.Embedding) for layer in layers)
        return Decoder(self, batch_size, length) if ordinary else super().new_cache(batch_size, length)


def model_class(fast: str, compute: Compute) -> type[GPT]:
    """Choose GPT or FastGPT for a value of the key `fast`. Errors: TinyGPTError for the fast path on a GPU."""
    on_cpu = compute.device.type == "cpu"
    if fast == "True" and not on_cpu:
        raise TinyGPTError(f"fast=True is for a CPU, not for {compute.device}", "--fast=auto")
    if not on_cpu or fast == "False":
        return GPT
    return FastGPT


def shared_prefix_length(idx: Tensor, config: GPTConfig) -> int:
    """Count the tokens that all rows of idx (B, T) begin with; 0 if computing them once does not pay.

    token_shift and bigram_table also read the previous token outside attention.
    """
    if len(idx) == 1 or config.token_shift or config.bigram_table:
        return 0
    count = int((idx == idx[:1]).all(0).long().cumprod(0).sum())
    return count if SHORTEST <= count < idx.size(1) else 0
