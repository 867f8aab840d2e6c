"""The optimizer of flat weights: AdamW's fused kernel on two slices, and batched Muon.

optimizer = FlatOptimizer(flat_weights, config)     # the interface of training.optimizer.Optimizer
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tinygpt.config.schema import TrainConfig
from tinygpt.fast.muon import Muon
from tinygpt.fast.weights import FlatWeights
from tinygpt.model import EMBEDDING, MATRIX, VECTOR


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) on slices of one flat tensor, with torch's fused kernel.

    torch.optim.AdamW is not used, because the first use of any torch.optim.Optimizer imports PyTorch's compiler, which
    takes 1.4 s and 70 MB: a tenth of the time of a short run.
    """

    def __init__(self, weights: list[Tensor], decays: list[float], betas: tuple[float, float]) -> None:
        self.weights, self.decays, self.betas = weights, decays, betas
        self.exp_avg = [torch.zeros_like(weight) for weight in weights]
        self.exp_avg_sq = [torch.zeros_like(weight) for weight in weights]
        self.steps = [torch.zeros(()) for _ in weights]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], lr: float, divide_by: Tensor | None = None) -> None:
        """Update the weights, with the gradients divided by `divide_by` in the same kernel."""
        beta1, beta2 = self.betas
        for index, decay in enumerate(self.decays):
            w, g, m, v, step = (
                [tensors[index]] for tensors in (self.weights, gradients, self.exp_avg, self.exp_avg_sq, self.steps)
            )
            adamw(
                w, g, m, v, [], step, fused=True, amsgrad=False, maximize=False,
                beta1=beta1, beta2=beta2, lr=lr, weight_decay=decay, eps=1e-8, grad_scale=divide_by,
            )  # fmt: skip


class FlatOptimizer:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest, as in training/optimizer.py.

    The weights of each kind are contiguous in the flat tensor, so AdamW needs one kernel for the weights with weight
    decay and one for those without.
    """

    def __init__(self, flat: FlatWeights, config: TrainConfig) -> None:
        self.flat, self.config, self.rate = flat, config, config.learning_rate
        weights, decay = flat.weights.detach(), config.weight_decay
        self.muon: Muon | None = None
        decayed = [MATRIX, EMBEDDING]
        if config.optimizer == "muon" and (place := flat.place_of(MATRIX)):
            self.muon_place, decayed = place, [EMBEDDING]
            shapes = [shape for name, shape in flat.shapes.items() if flat.kinds[name] == MATRIX]
            self.muon = Muon(weights[place], shapes, decay, flat.dtype)
        kinds = [(flat.place_of(*decayed), decay), (flat.place_of(VECTOR), 0.0)]
        self.places = [place for place, _ in kinds if place]
        decays = [decay for place, decay in kinds if place]
        self.adamw = AdamW([weights[place] for place in self.places], decays, (config.beta1, config.beta2))
        self.scaler = torch.amp.GradScaler("cpu", enabled=flat.dtype is torch.float16)
        self.divide_by: Tensor | None = None  # by which `update` divides the gradient, to clip it
        self.param_groups = [{"params": [flat.weights]}]  # in which the scaler looks for gradients

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
        averages = zip(self.adamw.exp_avg, self.adamw.exp_avg_sq, strict=True)
        states = [{"exp_avg": average, "exp_avg_sq": square} for average, square in averages]
        slices = list(zip(self.places, states, strict=True))
        if self.muon:
            slices.append((self.muon_place, {"momentum": self.muon.momentum}))
        found: dict[str, dict[str, Tensor]] = {}
        for name, place in self.flat.places.items():
            whole, state = next((whole, state) for whole, state in slices if whole.start <= place.start < whole.stop)
            at, shape = slice(place.start - whole.start, place.stop - whole.start), self.flat.shapes[name]
            found[name] = {key: tensor[at].view(shape) for key, tensor in state.items()}
        return found

    @property
    def steps(self) -> int:
        """Number of updates, which AdamW's bias correction needs."""
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
