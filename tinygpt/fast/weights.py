"""Mixed precision: float32 weights that are trained, and low-precision copies of them that compute.

    mixed = MixedPrecision(model, torch.bfloat16)
    loss = mixed(x, y)[1]                          # all matrix products in bfloat16
    loss.backward()                                # the gradient arrives in float32, in mixed.flat.grad

All weights lie in one flat float32 parameter; the model's own parameters are views of it. Once a forward pass the flat
parameter is cast, and the model runs on views of the copy. Compared with torch.autocast, which casts each weight and
activation at each operation, this takes a handful of kernels for casting, clipping and the optimizer instead of
hundreds (docs/PERFORMANCE.md), and gradients of several micro-steps still add up in float32. With dtype float32
nothing is copied. Source: Micikevicius et al. 2018, "Mixed precision training".
"""

import torch
from torch import Tensor, nn

from tinygpt.model import GPT, GPTConfig


class MixedPrecision(nn.Module):
    """Calls `model` with weights of another dtype. Its only parameter is `flat`, float32, (number of weights,).

    The order inside `flat`: the blocks' matrices, the other matrices (embeddings, head), the vectors (norms, biases);
    `places` says where each one lies. Weights that do not require a gradient stay outside.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        super().__init__()
        self.model: GPT
        self.__dict__["model"] = model  # not a submodule: its weights are here already, as `flat`
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        weights = dict(sorted(weights.items(), key=lambda item: _kind(*item)))  # the model's order within a kind
        self.dtype = dtype
        self.shapes = {name: weight.shape for name, weight in weights.items()}
        self.kinds = {name: _kind(name, weight) for name, weight in weights.items()}
        self.flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights.values()]).float())
        self.places: dict[str, slice] = {}
        end = 0
        for name, weight in weights.items():
            self.places[name] = slice(end, end := end + weight.numel())
            weight.data = self.flat.detach()[self.places[name]].view(weight.shape)
        self.frozen = {name: w.detach().to(dtype) for name, w in model.named_parameters() if not w.requires_grad}

    def place_of(self, *kinds: int) -> slice | None:
        """The stretch of `flat` with the weights of these kinds, which lie side by side."""
        places = [place for name, place in self.places.items() if self.kinds[name] in kinds]
        return slice(places[0].start, places[-1].stop) if places else None

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    def train(self, mode: bool = True) -> "MixedPrecision":
        self.model.train(mode)
        return super().train(mode)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The model's forward pass, see GPT.forward."""
        low = self.flat.to(self.dtype)
        sizes = [shape.numel() for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), low.split(sizes), strict=True)
        weights = {name: piece.view(shape) for (name, shape), piece in pieces}
        for name in [name for name in weights if name.endswith(".new_rows")]:  # of a table whose other rows are frozen
            table, rows = name.replace(".new_rows", ".weight"), weights[name]
            weights[table] = torch.cat((self.frozen[table][: -len(rows)], rows))
        return torch.func.functional_call(self.model, self.frozen | weights, (idx, targets))


MATRIX, EMBEDDING, VECTOR = 0, 1, 2


def _kind(name: str, weight: Tensor) -> int:
    if weight.dim() < 2:
        return VECTOR
    return MATRIX if ".h." in name else EMBEDDING
