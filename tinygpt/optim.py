"""How the weights move: the learning-rate schedule, and AdamW or Muon on the flat float32 weights.

optimizer = Optimizer(mixed, config)
optimizer.set_learning_rate(learning_rate(step, config))
loss.backward(); norm = optimizer.step()
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tinygpt.config import TrainConfig
from tinygpt.muon import Muon
from tinygpt.precision import EMBEDDING, MATRIX, VECTOR, MixedPrecision


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of iteration `step`, counted from 0: linear warm-up, then down to min_lr along a cosine (Loshchilov &
    Hutter 2017) or a straight line, then constant. A pure function; the cosine is nanoGPT's get_lr."""
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step >= config.lr_decay_iters:
        return config.min_lr
    progress = (step - config.warmup_iters) / (config.lr_decay_iters - config.warmup_iters)
    left = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + left * (config.learning_rate - config.min_lr)


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) for everything, or Muon (Jordan et al. 2024) for the blocks' matrices and AdamW
    for embeddings, head and vectors.

    Matrices and embeddings are decayed, vectors (biases, norms) are not: Devlin et al. 2019, GPT-3, nanoGPT. Since
    the weights lie in one flat tensor, AdamW is one fused kernel for each of the two groups.
    """

    def __init__(self, mixed: MixedPrecision, config: TrainConfig) -> None:
        self.mixed, self.config = mixed, config
        self.slices: list[tuple[nn.Parameter, slice]] = []  # each optimizer's parameters, and where they lie in `flat`
        muon = [name for name, kind in mixed.kinds.items() if kind == MATRIX and config.optimizer == "muon"]
        decayed = [name for name, kind in mixed.kinds.items() if kind in (MATRIX, EMBEDDING) and name not in muon]
        vectors = [name for name, kind in mixed.kinds.items() if kind == VECTOR]
        groups: list[dict[str, Any]] = [
            {"params": [self._parameter(names)], "weight_decay": decay}
            for names, decay in ((decayed, config.weight_decay), (vectors, 0.0))
            if names
        ]
        betas = (config.beta1, config.beta2)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
        ]
        if muon:
            matrices = [self._parameter([name], mixed.shapes[name]) for name in muon]
            rate, decay = config.muon_learning_rate, config.weight_decay
            self.optimizers.append(Muon(matrices, lr=rate, weight_decay=decay, dtype=mixed.dtype))
        for optimizer, peak in zip(self.optimizers, (config.learning_rate, config.muon_learning_rate), strict=False):
            for group in optimizer.param_groups:
                group["peak_lr"] = peak
        self.scaler = torch.amp.GradScaler(mixed.flat.device.type, enabled=mixed.dtype is torch.float16)

    def _parameter(self, names: list[str], shape: torch.Size | None = None) -> nn.Parameter:
        """A stretch of `flat` as a parameter of its own, which an optimizer moves in place."""
        place = slice(self.mixed.places[names[0]].start, self.mixed.places[names[-1]].stop)
        stretch = self.mixed.flat.detach()[place]
        parameter = nn.Parameter(stretch if shape is None else stretch.view(shape))
        self.slices.append((parameter, place))
        return parameter

    def set_learning_rate(self, rate: float) -> None:
        """AdamW's rate; Muon's moves in proportion."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate / self.config.learning_rate if self.config.learning_rate else 0.0

    def clip(self) -> Tensor:
        """Scale the gradient down to norm grad_clip if it is larger; returns the norm that it had."""
        gradient = self.mixed.flat.grad
        assert gradient is not None
        for parameter, place in self.slices:
            parameter.grad = gradient[place].view(parameter.shape)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_([self.mixed.flat], self.config.grad_clip or math.inf)

    def step(self) -> None:
        """Move the weights, and forget the gradient."""
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.mixed.flat.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the moments; rates, decay and betas stay those of the config, which may have changed since."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            settings = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                group.update(own)
        self.scaler.load_state_dict(state["scaler"])
