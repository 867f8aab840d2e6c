"""Plain PyTorch or the fast path: the one place that chooses.

    model = model_class(config.fast, compute)(GPTConfig(...))
    computing, optimizer = build(model, config, compute)    # for training
    model = for_inference(checkpoint, compute, config.fast)

Both compute the same function of the same parameters. The fast path (tinygpt/fast) is for small models on a CPU; on
GPUs plain PyTorch, compiled, is faster.
"""

import torch
from torch import Tensor, nn

from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config.schema import TrainConfig
from tinygpt.errors import TinyGPTError
from tinygpt.fast.model import FastGPT
from tinygpt.fast.optimizer import FlatOptimizer
from tinygpt.fast.weights import FlatWeights
from tinygpt.model import GPT, GPTConfig
from tinygpt.training.device import Compute
from tinygpt.training.optimizer import OPTIMIZERS, Optimizer, TorchOptimizer


def model_class(fast: str, compute: Compute) -> type[GPT]:
    """GPT or FastGPT for a value of the key `fast`. Errors: TinyGPTError for the fast path on a GPU."""
    on_cpu = compute.device.type == "cpu"
    if fast == "True" and not on_cpu:
        raise TinyGPTError(f"fast=True is for a CPU, not for {compute.device}", "--fast=auto")
    return FastGPT if on_cpu and fast != "False" else GPT


def for_inference(checkpoint: Checkpoint, compute: Compute, fast: str = "auto") -> GPT:
    """A checkpoint's model on its device, in its dtype, ready to predict."""
    return checkpoint.build_model(model_class(fast, compute)).to(compute.device, compute.dtype).eval()


def build(model: GPT, config: TrainConfig, compute: Compute) -> tuple["Computing", Optimizer]:
    """Wrap `model` so that it computes in compute.dtype, and make the optimizer of its float32 weights.

    Errors: ValueError for an optimizer that neither path has.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={config.optimizer!r}: the choices are {', '.join(OPTIMIZERS)}")
    if isinstance(model, FastGPT):
        flat = FlatWeights(model, compute.dtype)
        return flat, FlatOptimizer(flat, config)
    return Autocast(model, compute), TorchOptimizer(model, config, compute)


class Autocast(nn.Module):
    """Runs a model under torch.autocast: matrix products in compute.dtype, the rest as PyTorch sees fit."""

    def __init__(self, model: GPT, compute: Compute) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        dtype = self.compute.dtype
        with torch.autocast(self.compute.device.type, dtype, enabled=dtype is not torch.float32):
            return self.model(idx, targets)  # type: ignore[no-any-return]


Computing = GPT | FlatWeights | Autocast  # model(idx, targets) -> logits, loss
