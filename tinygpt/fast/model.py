"""FastGPT: the GPT with faster attention and decoding on a CPU. Parameters, their names and results are GPT's.

model = FastGPT(config)
"""

from typing import Any

from torch import Tensor, nn

from tinygpt.fast.attention import FastSelfAttention
from tinygpt.fast.decoder import Decoder
from tinygpt.fast.prefix import SharedPrefix, common
from tinygpt.model import GPT, KVCache


class FastGPT(GPT):
    """The same function as GPT, faster for small models on a CPU."""

    attention = FastSelfAttention

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        cache: Any = None,
        last_only: bool = False,
        targets_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """GPT.forward. With targets_only, rows that begin with the same tokens share the computation of these."""
        if targets_only and targets is not None and cache is None and not self.drops():
            prefix = common(idx, self.config)
            if prefix and (targets[:, :prefix] < 0).all():
                cache = SharedPrefix()
                self.residual(idx[:1, :prefix], cache)
                idx, targets = idx[:, prefix:], targets[:, prefix:]
        return super().forward(idx, targets, cache, last_only, targets_only)

    def drops(self) -> bool:
        """Return whether dropout is on, of the model or of its adapters: its masks differ from row to row."""
        return self.training and any(getattr(module, "dropout", 0.0) for module in self.modules())

    def next_logits(self, idx: Tensor, cache: Any = None) -> Tensor:
        return cache(idx) if isinstance(cache, Decoder) else super().next_logits(idx, cache)

    def new_cache(self, batch_size: int, length: int = 0) -> KVCache:
        """Make a Decoder, or a plain cache for a model with adapters, whose layers the Decoder does not know."""
        layers = [module for module in self.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
        ordinary = all(type(layer) in (nn.Linear, nn.Embedding) for layer in layers)
        return Decoder(self, batch_size, length) if ordinary else super().new_cache(batch_size, length)
