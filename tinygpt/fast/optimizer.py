"""Mixed precision with flat weights: float32 weights are trained, and a low-precision copy of them computes.

    flat = FlatWeights(model, torch.bfloat16)
    optimizer = FlatOptimizer(flat, config)        # the interface of training.optimizer.TorchOptimizer
    loss = flat(x, y)[1]                           # all matrix products in bfloat16
    loss.backward()                                # the gradient arrives in float32, in flat.weights.grad

All trainable weights are in one float32 parameter, and the model's own parameters are views of it. Each forward pass
casts it once, and the model runs on views of the copy. Compared with torch.autocast, which casts each weight and
activation at each operation, this takes a handful of kernels for casting, clipping and the optimizer instead of
hundreds (experiments.md), and gradients of several micro-steps still add up in float32. With dtype float32
nothing is copied. Source: Micikevicius et al. 2018, "Mixed precision training".
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tinygpt.base.configs.core import TrainConfig
from tinygpt.fast.muon import Muon
from tinygpt.model import EMBEDDING, GPT, MATRIX, VECTOR, GPTConfig, parameter_class


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
        named = dict(sorted(named.items(), key=lambda item: parameter_class(*item)))  # the model's order within a class
        self.dtype = dtype
        self.shapes = {name: weight.shape for name, weight in named.items()}
        self.classes = {name: parameter_class(name, weight) for name, weight in named.items()}
        self.weights = nn.Parameter(torch.cat([weight.detach().flatten() for weight in named.values()]).float())
        self.places: dict[str, slice] = {}
        end = 0
        for name, weight in named.items():
            self.places[name] = slice(end, end := end + weight.numel())
            weight.data = self.weights.detach()[self.places[name]].view(weight.shape)
        self.frozen = {name: w.detach().to(dtype) for name, w in model.named_parameters() if not w.requires_grad}

    def place_of(self, *classes: int) -> slice | None:
        """Return the slice of `weights` with the parameters of these classes, which are contiguous."""
        places = [place for name, place in self.places.items() if self.classes[name] in classes]
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
        """Call GPT.forward, with targets_only whenever a target is -1: training uses the loss alone.

        For pairs, whose prompts have no targets, and a large vocabulary, the head takes more time than all blocks.
        """
        has_ignored = targets is not None and bool((targets < 0).any())
        low_precision = self.weights.to(self.dtype)
        sizes = [shape.numel() for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), low_precision.split(sizes), strict=True)
        weights = {name: piece.view(shape) for (name, shape), piece in pieces}
        options = {"targets_only": targets_only or has_ignored}
        return torch.func.functional_call(self.model, self.frozen | weights, (idx, targets), options)


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) on slices of one flat tensor, with torch's fused kernel.

    torch.optim.AdamW is not used, because the first use of any torch.optim.Optimizer imports PyTorch's compiler, which
    takes 1.4 s and 70 MB: a tenth of the time of a short run.
    """

    def __init__(self, weights: list[Tensor], decays: list[float], betas: tuple[float, float]) -> None:
        self.weights = weights
        self.decays = decays
        self.betas = betas
        self.exp_avg = [torch.zeros_like(weight) for weight in weights]
        self.exp_avg_sq = [torch.zeros_like(weight) for weight in weights]
        self.steps = [torch.zeros(()) for _ in weights]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], lr: float, divide_by: Tensor | None = None) -> None:
        """Update the weights, with the gradients divided by `divide_by` in the same kernel."""
        beta1, beta2 = self.betas
        state = zip(self.weights, gradients, self.exp_avg, self.exp_avg_sq, self.steps, self.decays, strict=True)
        for w, g, m, v, step, decay in state:
            adamw(
                [w], [g], [m], [v], [], [step], fused=True, amsgrad=False, maximize=False,
                beta1=beta1, beta2=beta2, lr=lr, weight_decay=decay, eps=1e-8, grad_scale=divide_by,
            )  # fmt: skip


class FlatOptimizer:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest, as in training/optimizer.py.

    The weights of each class are contiguous in the flat tensor, so AdamW needs one kernel for the weights with weight
    decay and one for those without.
    """

    def __init__(self, flat: FlatWeights, config: TrainConfig) -> None:
        self.flat = flat
        self.config = config
        self.rate = config.learning_rate
        weights = flat.weights.detach()
        decay = config.weight_decay
        self.muon: Muon | None = None
        decayed = [MATRIX, EMBEDDING]
        if config.optimizer == "muon" and (place := flat.place_of(MATRIX)):
            self.muon_place = place
            decayed = [EMBEDDING]
            shapes = [shape for name, shape in flat.shapes.items() if flat.classes[name] == MATRIX]
            self.muon = Muon(weights[place], shapes, decay, flat.dtype)
        groups = [(flat.place_of(*decayed), decay), (flat.place_of(VECTOR), 0.0)]
        self.places = [place for place, _ in groups if place]
        decays = [decay for place, decay in groups if place]
        self.adamw = AdamW([weights[place] for place in self.places], decays, (config.beta1, config.beta2))
        self.scaler = torch.amp.GradScaler("cpu", enabled=flat.dtype is torch.float16)
        self.divide_by: Tensor | None = None  # by which `update` divides the gradient, to clip it
        self.param_groups = [{"params": [flat.weights]}]  # whose gradients GradScaler checks for an overflow

    def set_learning_rate(self, rate: float) -> None:
        """Set AdamW's learning rate; Muon's changes in proportion."""
        self.rate = rate

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-step's loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(self) -> Tensor:
        """Return the gradient's norm; if it is larger than grad_clip, `update` scales the gradient to grad_clip."""
        self.scaler.unscale_(self)  # type: ignore[arg-type]
        assert self.flat.weights.grad is not None
        norm = torch.linalg.vector_norm(self.flat.weights.grad)
        self.divide_by = (norm / self.config.grad_clip).clamp(min=1.0) if self.config.grad_clip else None
        return norm

    def update(self) -> None:
        """Update the weights, unless a float16 gradient overflowed, and clear the gradient."""
        self.scaler.step(self)  # type: ignore[arg-type]
        self.scaler.update()
        self.flat.weights.grad = None

    def step(self) -> None:
        """Update the weights; called by the scaler."""
        gradient = self.flat.weights.grad
        assert gradient is not None
        self.adamw.step([gradient[place] for place in self.places], self.rate, self.divide_by)
        if self.muon:
            share = self.rate / self.config.learning_rate if self.config.learning_rate else 0.0
            part = gradient[self.muon_place]
            part = part if self.divide_by is None else part / self.divide_by
            self.muon.step(part, self.config.muon_learning_rate * share)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return the moments of each parameter by name, as views of the flat tensors."""
        slices: list[tuple[slice, dict[str, Tensor]]] = []
        for place, average, square in zip(self.places, self.adamw.exp_avg, self.adamw.exp_avg_sq, strict=True):
            slices.append((place, {"exp_avg": average, "exp_avg_sq": square}))
        if self.muon:
            slices.append((self.muon_place, {"momentum": self.muon.momentum}))
        moments: dict[str, dict[str, Tensor]] = {}
        for name, place in self.flat.places.items():
            group, state = next((group, state) for group, state in slices if group.start <= place.start < group.stop)
            local = slice(place.start - group.start, place.stop - group.start)
            shape = self.flat.shapes[name]
            moments[name] = {key: tensor[local].view(shape) for key, tensor in state.items()}
        return moments

    @property
    def steps(self) -> int:
        """Return the number of updates, which AdamW's bias correction needs."""
        return int(self.adamw.steps[0]) if self.adamw.steps else 0

    def load(self, moments: dict[str, dict[str, Tensor]], steps: int, scaler: dict[str, Any]) -> None:
        """Restore a state whose names and shapes are those of `moments`."""
        for name, own in self.moments().items():
            for part, tensor in own.items():
                tensor.copy_(moments[name][part])
        for step in self.adamw.steps:
            step.fill_(steps)
        if scaler:  # empty if the run was not in float16 before
            self.scaler.load_state_dict(scaler)
