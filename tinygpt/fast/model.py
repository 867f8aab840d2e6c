"""FastGPT: the GPT with attention and decoding for a CPU. Parameters, their names and results are those of GPT.

model = FastGPT(config)
"""

from torch import Tensor, nn

from tinygpt.fast.attention import FastSelfAttention
from tinygpt.fast.decoder import Decoder
from tinygpt.model import GPT, KVCache


class FastGPT(GPT):
    """The same function as GPT, faster for small models on a CPU."""

    attention = FastSelfAttention

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None, last_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As GPT.forward; with a Decoder as the cache, logits of the last position alone."""
        if isinstance(cache, Decoder):
            return cache(idx)[:, None], None
        return super().forward(idx, targets, cache, last_only)

    def new_cache(self, batch_size: int) -> KVCache:
        """A Decoder, or for a model with adapters (whose layers are not ordinary ones) the plain cache."""
        layers = [module for module in self.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
        ordinary = all(type(layer) in (nn.Linear, nn.Embedding) for layer in layers)
        return Decoder(self, batch_size) if ordinary else super().new_cache(batch_size)
