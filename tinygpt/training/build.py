"""Choose what computes a run: the device, and plain PyTorch or the fast path.

    compute = choose_compute(config, start.saved)
    model = model_class(config.fast, compute)(GPTConfig(...))
    computing, optimizer = build(model, config, compute)    # for training

Both paths compute the same function of the same parameters. The fast path (tinygpt/fast) is for small models on a CPU;
on GPUs plain PyTorch, compiled, is faster.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tinygpt import device
from tinygpt.config.schema import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.device import Compute
from tinygpt.fast import model_class
from tinygpt.fast.model import FastGPT
from tinygpt.fast.optimizer import FlatOptimizer
from tinygpt.fast.weights import FlatWeights
from tinygpt.model import GPT, GPTConfig
from tinygpt.training import processes
from tinygpt.training.optimizer import OPTIMIZERS, Optimizer, TorchOptimizer
from tinygpt.training.start import Start, make_model


def choose_compute(config: TrainConfig, saved: dict[str, Any]) -> Compute:
    """Resolve the keys `device` and `dtype` of a run. On a Mac, `auto` is the faster of CPU and MPS for this model.

    saved: the training state of a resumed run, which keeps its device; empty for a new run.
    """
    name = processes.device_name(config.device)
    compute = device.choose(name, config.dtype)
    if name != "auto" or compute.device.type != "cpu" or not torch.backends.mps.is_available():
        return compute
    mps = device.choose("mps", config.dtype)
    if saved:
        return mps if saved.get("device") == "mps" else compute
    if config.eval_only:
        return compute
    dataset = Dataset(config.data_dir, config.dataset)
    return device.faster(compute, mps, lambda candidate: seconds_per_batch(config, dataset, candidate))


def seconds_per_batch(config: TrainConfig, dataset: Dataset, compute: Compute) -> float:
    """Measure the time of a training step on one batch, with a new model of this configuration.

    Nothing that the run computes depends on it: the model is discarded, and the random generator is restored.
    """
    width = dataset.sources["train"].width(config.block_size)
    idx = torch.zeros((config.batch_size, width), dtype=torch.long, device=compute.device)
    with torch.random.fork_rng(devices=[]):
        model, _ = make_model(config, dataset, Start(), model_class(config.fast, compute))
        computing, optimizer = build(model.to(compute.device), config, compute)
        computing.train()

        def step() -> None:
            loss: Any = computing(idx, idx)[1]
            optimizer.backward(loss)
            optimizer.clip()
            optimizer.update()
            loss.item()  # waits for the device

        return device.shortest(step)


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
    """Run a model under torch.autocast: matrix products in compute.dtype, other operations as PyTorch decides."""

    def __init__(self, model: GPT, compute: Compute) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, targets_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        dtype = self.compute.dtype
        with torch.autocast(self.compute.device.type, dtype, enabled=dtype is not torch.float32):
            return self.model(idx, targets, targets_only=targets_only)  # type: ignore[no-any-return]


Computing = GPT | FlatWeights | Autocast  # model(idx, targets) -> logits, loss
