"""The training of a run as a pure function: state, batch and the weights of the tokens in the loss -> the next state.

training = Training(explained, seed)
state = training.start()
for number in range(training.steps):
    state = training.step(state, number, training.batch(number))

It is that of the run in float32, by operations that can be differentiated twice: gradients of all micro-steps, the
clipping, AdamW or Muon, weight decay, the schedule, the batches and the dropout of the run's seed. So a token that has
no weight is left out, with everything else equal, and a derivative of the training is autograd's. Of a run in bfloat16
or without the CPU's fast path, it is a similar training: rounded in another way, and with other masks of dropout.
"""

import contextlib
import dataclasses
import io
import math
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import is_out_of_memory, to_device
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import progress
from tinygpt.examine.why.explained import Explained
from tinygpt.examine.why.rows import positions_of, rows_of_batch, without
from tinygpt.fast.attention import FastSelfAttention
from tinygpt.fast.model import FastGPT
from tinygpt.fast.muon import MOMENTUM, directions, scale
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.generate import require_finite
from tinygpt.model import GPT, MATRIX, VECTOR
from tinygpt.train import seed_dropout
from tinygpt.training.optimizer import learning_rate
from tinygpt.training.run import parts_of_rows
from tinygpt.training.start import make_model, resolve, row_length

ADAM_EPS = 1e-8
TINY = 1e-30  # below the square of each gradient that counts; the root of 0 has no derivative


class State(NamedTuple):
    """The state of a training: flat float32 tensors, in the order of FlatWeights."""

    weights: Tensor  # (n,)
    first: Tensor  # (n,): AdamW's first moment, or Muon's momentum
    second: Tensor  # (k,): AdamW's second moment of the k weights that it trains, the last ones


class Batch(NamedTuple):
    """The global batch of an iteration, (micro_steps, rows, T) each."""

    x: Tensor  # int64
    y: Tensor  # int64, -1 where there is no target
    weights: Tensor  # float32, of the targets in the loss: 0 for those of a row that is left out, else 1
    positions: np.ndarray  # of the targets in the tokens of the training split, int64


class ExplicitAttention(FastSelfAttention):
    """Attention that can be differentiated twice, which PyTorch's fused call cannot."""

    def use_fused(self, S: int, cache: Any) -> bool:
        return False


class ExplicitGPT(FastGPT):
    attention = ExplicitAttention
    forward = GPT.forward  # without FastGPT's common beginnings, which are for a CPU


class Training:
    """The training of a run up to the step of ckpt.pt, with a seed, and without some rows."""

    def __init__(self, explained: Explained, seed: int, left_out: np.ndarray = np.arange(0)) -> None:
        """left_out: numbers of training rows, int64 (n,). Errors: TinyGPTError as in `train`."""
        self.steps = explained.checkpoint.step
        self.source = explained.source
        self.token_weights = without(explained, left_out)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            start = resolve(stack, settings(explained, seed, folder))
            self.config = start.config
            self.device = start.compute.device
            made = make_model(start)
        if any(explained.checkpoint.model[name].shape != weight.shape for name, weight in made.state_dict().items()):
            problem = "the run cannot be repeated: the model that it starts from has been replaced by another one"
            raise TinyGPTError(problem, "train again")
        self.model = ExplicitGPT(made.config)
        self.model.load_state_dict(made.state_dict())
        self.flat = FlatWeights(self.model.to(self.device), torch.float32)
        matrices = self.flat.place_of(MATRIX) if self.config.optimizer == "muon" else None
        self.adam = slice(matrices.stop if matrices else 0, None)
        self.decays = torch.full_like(self.flat.weights.detach(), self.config.weight_decay)
        if vectors := self.flat.place_of(VECTOR):
            self.decays[vectors] = 0.0

    def start(self) -> State:
        weights = self.flat.weights.detach().clone()
        return State(weights, torch.zeros_like(weights), torch.zeros_like(weights[self.adam]))

    def batch(self, number: int) -> Batch:
        """Draw the global batch of an iteration, which `train.batch` draws, too."""
        config = self.config
        source = self.source
        rows = rows_of_batch(source, config, number)
        width = row_length(source, source.width(config.block_size), rows)
        shape = (3, config.gradient_accumulation_steps, -1, width // parts_of_rows(number, config.context_warmup))
        block = np.stack((*source.rows(rows, width), positions_of(source, rows, width))).reshape(shape)
        x, y = to_device(torch.from_numpy(block[:2]), self.device)
        return Batch(x, y, torch.from_numpy(self.token_weights[block[2]]).to(self.device), block[2])

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """Return flat weights, or the first of them, by the names of the parameters, in their shapes."""
        places = [(name, place) for name, place in self.flat.places.items() if place.stop <= len(weights)]
        pieces = weights.split([place.stop - place.start for _, place in places])
        return {name: piece.view(self.flat.shapes[name]) for (name, _), piece in zip(places, pieces, strict=True)}

    def losses(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Compute the cross-entropy of each target in row order, float32 (targets,), in the model's mode."""
        logits = functional_call(self.model, self.named(weights), (x, y), {"targets_only": True})[0]
        return F.cross_entropy(logits, y[y >= 0], reduction="none")

    def log_probability(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Compute the log-probability of an output in nats, the sum over its targets: a scalar with a gradient."""
        self.model.eval()
        return -self.losses(weights, x.to(self.device), y.to(self.device)).sum()

    def gradient(self, weights: Tensor, number: int, batch: Batch) -> Tensor:
        """Compute the gradient of the loss of an iteration, (n,): the sum of the targets' losses, each times its weight
        in the batch, divided by the number of all targets. It has a gradient itself if `weights` has one."""
        self.model.train()
        total = torch.zeros_like(weights)
        differentiable = weights.requires_grad
        leaf = weights if differentiable else weights.detach().requires_grad_()
        count = int((batch.y >= 0).sum())
        for micro_step, (x, y, of_tokens) in enumerate(zip(batch.x, batch.y, batch.weights, strict=True)):
            if self.model.config.dropout:
                seed_dropout(self.config.seed, number, micro_step, 0)
            if (y >= 0).any():
                loss = self.losses(leaf, x, y) @ of_tokens[y >= 0] / count
                total = total + torch.autograd.grad(loss, leaf, create_graph=differentiable)[0]
        return total

    def step(self, state: State, number: int, batch: Batch) -> State:
        """Return the state after an iteration."""
        return self.update(state, number, self.gradient(state.weights, number, batch))

    def update(self, state: State, number: int, gradient: Tensor) -> State:
        """Clip the gradient (n,) of an iteration, and update the weights by AdamW, or by Muon and AdamW."""
        config = self.config
        rate = learning_rate(number, self.config)
        gradient = gradient / self.clipping(gradient)
        parts = [self.adamw(state, number, gradient, rate)]
        if self.adam.start:
            share = rate / config.learning_rate if config.learning_rate else 0.0
            parts.insert(0, self.muon(state, gradient, config.muon_learning_rate * share))
        return State(*map(torch.cat, zip(*parts, strict=True)))

    def clipping(self, gradient: Tensor) -> Tensor | float:
        """Return by what the gradient (n,) is divided to clip it: 1 or more."""
        limit = self.config.grad_clip
        return (torch.linalg.vector_norm(gradient) / limit).clamp(min=1.0) if limit else 1.0

    def adamw(self, state: State, number: int, gradient: Tensor, rate: float) -> State:
        """AdamW (Loshchilov & Hutter 2019) on its part of the state, as torch.optim.AdamW computes it."""
        beta1 = self.config.beta1
        beta2 = self.config.beta2
        g = gradient[self.adam]
        first = beta1 * state.first[self.adam] + (1 - beta1) * g
        second = beta2 * state.second + (1 - beta2) * g.square()
        root = second.clamp(min=TINY).sqrt() / math.sqrt(1 - beta2 ** (number + 1))
        weights = state.weights[self.adam] * (1 - rate * self.decays[self.adam])
        return State(weights - rate / (1 - beta1 ** (number + 1)) * first / (root + ADAM_EPS), first, second)

    def muon(self, state: State, gradient: Tensor, rate: float) -> State:
        """Muon on its part of the state, as fast/muon.py computes it."""
        part = slice(0, self.adam.start)
        first = state.first[part].lerp(gradient[part], 1 - MOMENTUM)
        ahead = self.named(gradient[part].lerp(first, MOMENTUM))
        found = directions(list(ahead.values()), torch.float32)
        update = torch.cat([scale(direction) * direction.flatten() for direction in found])
        weights = state.weights[part] * (1 - rate * self.decays[part]) - rate * update
        return State(weights, first, state.second[:0])

    def run(self) -> Tensor:
        """Train, and return the weights (n,). Errors: TinyGPTError for weights that are not finite."""
        state = self.start()
        with memory_errors(self.device):
            for number in progress(range(self.steps), desc="train again"):
                state = self.step(state, number, self.batch(number))
        require_finite(state.weights, "a weight is")
        return state.weights

    def trained(self, weights: Tensor) -> GPT:
        """Return the model with these weights."""
        self.flat.weights.data.copy_(weights)  # of which the model's parameters are views
        return self.model.eval()


def settings(explained: Explained, seed: int, out: str) -> TrainConfig:
    """Return the configuration of the run with another seed, in float32, up to the step of ckpt.pt."""
    config = explained.config
    step = explained.checkpoint.step
    threads = explained.checkpoint.training.get("threads")
    return dataclasses.replace(
        config, out_dir=out, seed=seed, max_iters=step, dtype="float32", fast="auto", compile="False", shard=False,
        lr_decay_iters=config.lr_decay_iters or config.max_iters,  # the schedule stays that of the whole run
        eval_only=False, device=str(explained.compute.device),
        threads=str(threads) if type(threads) is int and threads > 0 else config.threads,  # for the same bits
    )  # fmt: skip


@contextlib.contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Name a lack of the device's memory. Errors: TinyGPTError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = f"out of memory on {device}: why needs more memory than the training"
        hint = "a machine with more memory" if device.type == "cpu" else "--device=cpu"
        raise TinyGPTError(problem, hint, 1) from None
