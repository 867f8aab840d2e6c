"""The learning-rate schedule, and the optimizers: AdamW, or Muon for the blocks' matrices, from torch.optim.

Weight decay applies to matrices and embeddings, not to vectors (biases, norms): Devlin et al. 2019, GPT-3, nanoGPT. The
state is stored by parameter name, so it does not depend on the implementation (fast/optimizer.py is the other one).
"""

import math
from typing import Any

import torch
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import Autocast, Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted
from tinygpt.fast.model import FastGPT
from tinygpt.fast.optimizer import FlatOptimizer, FlatWeights
from tinygpt.model import GPT, MATRIX, VECTOR, parameter_class
from tinygpt.training.sharding import checkpoint_activations, divided_like, full, shard

AmpModel = GPT | FlatWeights | Autocast  # model(idx, targets) -> logits, loss


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of iteration `step`, counted from 0.

    The rate rises linearly for `warmup_iters` iterations, then falls to `min_lr` along a cosine (Loshchilov & Hutter
    2017, "SGDR"; nanoGPT's get_lr) or a straight line, and stays there. The decay ends at `lr_decay_iters`, or at
    `max_iters` if that is 0.
    """
    if is_constant(config):
        return config.learning_rate
    end = config.lr_decay_iters or config.max_iters
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step >= end:
        return config.min_lr
    progress = (step - config.warmup_iters) / (end - config.warmup_iters)
    remaining = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + remaining * (config.learning_rate - config.min_lr)


def is_constant(config: TrainConfig) -> bool:
    return config.lr_schedule == "constant" or not config.decay_lr  # the second is nanoGPT's spelling


def schedule_note(config: TrainConfig) -> str:
    """Return a warning if the warm-up does not end before the run or its decay, else an empty string."""
    last = min(config.max_iters, config.lr_decay_iters or config.max_iters)
    if is_constant(config) or config.warmup_iters < max(last, 1):
        return ""
    problem = f"the warm-up of {counted(config.warmup_iters, 'iteration')} does not end before iteration {last:,}"
    return f"note: {problem}, so the learning rate never reaches its peak; use --warmup_iters={last // 10}"


def build(model: GPT, config: TrainConfig, compute: Compute) -> tuple[AmpModel, "Optimizer"]:
    """Move `model` to its device, make it compute in compute.dtype, and make the optimizer of its float32 weights."""
    if config.checkpoint_activations:
        checkpoint_activations(model)
    if config.shard:  # before it is moved: block by block, since all of it may not fit on the device
        shard(model, compute)
    model = model.to(compute.device)
    if config.shard:
        return model, TorchOptimizer(model, config, compute)
    if isinstance(model, FastGPT):
        flat = FlatWeights(model, compute.dtype)
        return flat, FlatOptimizer(flat, config)
    return Autocast(model, compute), TorchOptimizer(model, config, compute)


class TorchOptimizer:
    """torch.optim.AdamW, fused, and torch.optim.Muon (Jordan et al. 2024)."""

    def __init__(self, model: GPT, config: TrainConfig, compute: Compute) -> None:
        self.config = config
        self.named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        groups: dict[int, list[Tensor]] = {}
        for name, weight in self.named.items():
            groups.setdefault(parameter_class(name, weight), []).append(weight)
        self.optimizers: list[torch.optim.Optimizer] = []
        if config.optimizer == "muon" and MATRIX in groups:
            rate = config.muon_learning_rate
            muon = torch.optim.Muon(groups.pop(MATRIX), rate, config.weight_decay, adjust_lr_fn="original")
            self.optimizers.append(muon)
        decays = {weight_class: 0.0 if weight_class == VECTOR else config.weight_decay for weight_class in groups}
        if parts := [{"params": part, "weight_decay": decays[weight_class]} for weight_class, part in groups.items()]:
            betas = config.beta1, config.beta2
            self.optimizers.append(torch.optim.AdamW(parts, config.learning_rate, betas, fused=True))
        self.owner: dict[Tensor, torch.optim.Optimizer] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                self.owner |= dict.fromkeys(group["params"], optimizer)
        self.peaks = [(group, group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.dtype is torch.float16)
        # GradScaler looks for an overflow in these gradients, and then skips the updates of both optimizers
        self.param_groups = [{"params": list(self.named.values())}]

    def set_learning_rate(self, rate: float) -> None:
        """Set AdamW's learning rate; Muon's changes in proportion."""
        share = rate / self.config.learning_rate if self.config.learning_rate else 0.0
        for group, peak in self.peaks:
            group["lr"] = peak * share

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-step's loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(self) -> Tensor:
        """Clip the norm of the gradient to grad_clip. Return the norm before clipping."""
        self.scaler.unscale_(self)  # type: ignore[arg-type]
        return full(torch.nn.utils.clip_grad_norm_(self.named.values(), self.config.grad_clip or float("inf")))

    def update(self) -> None:
        """Update the weights, unless a float16 gradient overflowed, and clear the gradient."""
        self.scaler.step(self)  # type: ignore[arg-type]
        self.scaler.update()
        for weight in self.named.values():
            weight.grad = None

    def step(self) -> None:
        """Update the weights; GradScaler.step calls it unless a gradient overflowed."""
        for optimizer in self.optimizers:
            optimizer.step()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return for each parameter name exp_avg and exp_avg_sq, or momentum: float32 in the parameter's shape."""
        moments = {}
        for name, weight in self.named.items():
            muon = isinstance(self.owner[weight], torch.optim.Muon)
            parts = {"momentum": "momentum_buffer"} if muon else {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
            state = self.owner[weight].state.get(weight)  # none before the first update
            moments[name] = {
                part: state[key].detach() if state else torch.zeros_like(weight) for part, key in parts.items()
            }
        return moments

    @property
    def steps(self) -> int:
        """Return the number of updates, which AdamW's bias correction needs."""
        states = (state for optimizer in self.optimizers for state in optimizer.state.values() if "step" in state)
        return int(next(states, {"step": 0})["step"])

    def load(self, moments: dict[str, dict[str, Tensor]], steps: int, scaler: dict[str, Any]) -> None:
        """Restore a state whose names and shapes are those of `moments`."""
        for name, weight in self.named.items():
            state = {part: divided_like(value, weight) for part, value in moments[name].items()}
            if "momentum" in state:
                state = {"momentum_buffer": state["momentum"]}
            else:
                state["step"] = torch.tensor(float(steps), device=weight.device)
            self.owner[weight].state[weight] = state
        if scaler:  # empty if the run was not in float16 before
            self.scaler.load_state_dict(scaler)


Optimizer = TorchOptimizer | FlatOptimizer


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    """State of an optimizer for a checkpoint. Learning rates, weight decay and betas are in the configuration."""
    return {"moments": optimizer.moments(), "steps": optimizer.steps, "scaler": optimizer.scaler.state_dict()}


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer's state from a checkpoint. Errors: TinyGPTError if it is another model's or optimizer's."""
    try:
        moments = state["moments"]
        steps = int(state["steps"])
        scaler = dict(state["scaler"])
        fits = _shapes(moments) == _shapes(optimizer.moments())
    except (KeyError, TypeError, AttributeError, ValueError):
        fits = False
    if not fits:
        raise TinyGPTError("the checkpoint's optimizer state does not fit this model")
    optimizer.load(moments, steps, scaler)


def _shapes(moments: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, torch.Size]]:
    return {name: {part: tensor.shape for part, tensor in parts.items()} for name, parts in moments.items()}
