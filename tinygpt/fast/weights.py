"""Mixed precision with flat weights: float32 weights are trained, and a low-precision copy of them computes.

    flat = FlatWeights(model, torch.bfloat16)
    loss = flat(x, y)[1]                           # all matrix products in bfloat16
    loss.backward()                                # the gradient arrives in float32, in flat.weights.grad

All trainable weights are in one float32 parameter, and the model's own parameters are views of it. Each forward pass
casts it once, and the model runs on views of the copy. Compared with torch.autocast, which casts each weight and
activation at each operation, this takes a handful of kernels for casting, clipping and the optimizer instead of
hundreds (docs/PERFORMANCE.md), and gradients of several micro-steps still add up in float32. With dtype float32 nothing
is copied. Source: Micikevicius et al. 2018, "Mixed precision training".
"""

import torch
from torch import Tensor, nn

from tinygpt.model import GPT, GPTConfig, kind


class FlatWeights(nn.Module):
    """Call `model` with weights of another dtype. The only parameter is `weights`, float32, (number of weights,).

    Order: the blocks' matrices, the other matrices (embeddings, head), the vectors (norms, biases). `places` has the
    slice of each parameter. Weights that do not require a gradient are not part of it.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        super().__init__()
        self.model: GPT
        self.__dict__["model"] = model  # not a submodule: its weights are here already
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        named = dict(sorted(named.items(), key=lambda item: kind(*item)))  # the model's order within a kind
        self.dtype = dtype
        self.shapes = {name: weight.shape for name, weight in named.items()}
        self.kinds = {name: kind(name, weight) for name, weight in named.items()}
        self.weights = nn.Parameter(torch.cat([weight.detach().flatten() for weight in named.values()]).float())
        self.places: dict[str, slice] = {}
        end = 0
        for name, weight in named.items():
            self.places[name] = slice(end, end := end + weight.numel())
            weight.data = self.weights.detach()[self.places[name]].view(weight.shape)
        self.frozen = {name: w.detach().to(dtype) for name, w in model.named_parameters() if not w.requires_grad}

    def place_of(self, *kinds: int) -> slice | None:
        """The slice of `weights` with the parameters of these kinds, which are contiguous."""
        places = [place for name, place in self.places.items() if self.kinds[name] in kinds]
        return slice(places[0].start, places[-1].stop) if places else None

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    def train(self, mode: bool = True) -> "FlatWeights":
        self.model.train(mode)
        return super().train(mode)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, targets_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """GPT.forward, with targets_only whenever a target is -1: training uses the loss alone.

        For pairs, whose prompts have no targets, and a large vocabulary, the head takes more time than all blocks.
        """
        some = targets is not None and bool((targets < 0).any())
        low = self.weights.to(self.dtype)
        sizes = [shape.numel() for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), low.split(sizes), strict=True)
        weights = {name: piece.view(shape) for (name, shape), piece in pieces}
        options = {"targets_only": targets_only or some}
        return torch.func.functional_call(self.model, self.frozen | weights, (idx, targets), options)
