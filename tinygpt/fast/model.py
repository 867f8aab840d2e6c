"""FastGPT: the GPT with faster attention and decoding on a CPU. Parameters, their names and results are GPT's.

model = FastGPT(config)
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt.fast.attention import FastSelfAttention
from tinygpt.fast.decoder import Decoder
from tinygpt.fast.prefix import SharedPrefix, common
from tinygpt.model import GPT, KVCache


class FastGPT(GPT):
    """The same function as GPT, faster for small models on a CPU."""

    attention = FastSelfAttention

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: Any = None, last_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """GPT.forward, except that the logits of positions without a target are not computed.

        If some targets are -1, the logits are those of the other positions: (number of targets, V). For pairs, whose
        prompts carry no loss, and a large vocabulary, the head takes more time than all blocks.
        """
        if targets is None or not (targets < 0).any():
            return super().forward(idx, targets, cache, last_only)
        before: Any = cache
        prefix = 0 if cache or self.drops() else common(idx, self.config)
        if prefix and (targets[:, :prefix] < 0).all():
            before = SharedPrefix()
            self.residual(idx[:1, :prefix], before)
            idx, targets = idx[:, prefix:], targets[:, prefix:]
        places = (targets >= 0).flatten()
        x = self.residual(idx, before).flatten(0, 1)[places]
        logits = self.lm_head(self.transformer["ln_f"](x)).float()
        return logits, F.cross_entropy(logits, targets.flatten()[places])

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
