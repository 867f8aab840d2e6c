"""How the weights move: the learning-rate schedule, the parameter groups, AdamW and Muon.

optimizer = make_optimizer(model, config)
set_learning_rate(optimizer, learning_rate_factor(step, config))
"""

import math
from typing import Any

import torch
from torch import nn

from tinygpt.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of iteration `step`, counted from 0: linear warm-up, then a cosine down to min_lr (Loshchilov & Hutter
    2017), then constant. A pure function; the same formula as nanoGPT's get_lr."""
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step >= config.lr_decay_iters:
        return config.min_lr
    progress = (step - config.warmup_iters) / (config.lr_decay_iters - config.warmup_iters)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float, config: TrainConfig) -> None:
    """Give every group its rate: Muon's moves in proportion to AdamW's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate / config.learning_rate if config.learning_rate else 0.0


def make_optimizers(model: nn.Module, config: TrainConfig, device_type: str) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) for everything, or Muon (Jordan et al. 2024) for the blocks' matrices and AdamW
    for the embeddings, the head and the vectors.

    Matrices and embeddings are decayed, vectors (biases, norms) are not: Devlin et al. 2019, GPT-3, nanoGPT.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    muon = {name for name, p in parameters.items() if config.optimizer == "muon" and p.dim() == 2 and ".h." in name}
    adamw = [p for name, p in parameters.items() if name not in muon]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in adamw if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in adamw if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    fused = device_type in ("cpu", "cuda", "mps")  # one kernel for all parameters
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=betas, fused=fused)
    ]
    if muon:
        matrices = [parameters[name] for name in muon]
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="original"
            )
        )
    for optimizer, peak in zip(optimizers, (config.learning_rate, config.muon_learning_rate), strict=False):
        for group in optimizer.param_groups:
            group["peak_lr"] = peak
    return optimizers
