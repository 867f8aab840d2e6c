"""The derivative of a whole training: how outputs change with the weight of each training token, in one sweep.

The loss of each token of an iteration is multiplied by a weight, which is 1. Every iteration is a function of the state
before it and of these weights (step.py), so reverse-mode differentiation from the last iteration back to the first
gives the derivative of an output by all of them: that of the gradients, the clipping, the optimizer's moments, Muon's
orthogonalisation, everything. Source: Maclaurin et al. 2015, "Gradient-based hyperparameter optimization through
reversible learning"; for the weights of examples Engstrom et al. 2025, "Optimizing ML training with metagradient
descent", and Ilyas and Engstrom 2025, "MAGIC" (arXiv 2504.16430).

effect of leaving a row out = - sum over its tokens of d(log-probability) / d(weight), to first order

The sweep needs the state before every iteration. They are kept at the smallest interval for which the memory is enough,
and those between are computed again. Where a training is curved, its derivative is no guide: see effects.py.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tinygpt.base.device import to_host
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import progress
from tinygpt.examine.why.step import State, Training, finite

Output = tuple[Tensor, Tensor]  # x and y, int64 (n, T) each: see explained.output


def exact_effects(
    training: Training,
    outputs: Sequence[Output],
    memory: float,
    token_weights: np.ndarray | None = None,
    name: str = "training",
) -> tuple[np.ndarray, Tensor]:
    """Return the effects of the tokens of the training split on the log-probability of each output if the loss of a
    token is left out, to first order: float64 (outputs, tokens), in nats; and the trained weights (n,).

    memory: bytes for the states. token_weights: float32 (tokens,), if they are not 1 in this training. name: for the
    progress bars. Errors: TinyGPTError if the memory is too small.
    """
    every = interval(training, memory)
    kept, state = [], training.start()
    for number in progress(range(training.steps), desc=f"{name}, forwards"):
        if number % every == 0:
            kept.append(state)
        state = training.next(state, number, token_weights)
    finite(state.weights)
    effects = np.zeros((len(outputs), len(training.source.tokens)))
    adjoints = [last_adjoint(training, state, output) for output in outputs]
    states = backwards(training, kept, every, token_weights)
    for number, before in progress(states, desc=f"{name}, backwards", total=training.steps):
        batch = training.batch(number)
        leaves = [tensor.requires_grad_() for tensor in before]
        weights = training.weights_of(batch, token_weights).requires_grad_()
        after = training.step(State(*leaves), number, batch, weights)
        for index, adjoint in enumerate(adjoints):
            more = index < len(adjoints) - 1
            *adjoint, slopes = torch.autograd.grad(after, [*leaves, weights], adjoint, retain_graph=more)
            adjoints[index] = adjoint
            np.subtract.at(effects[index], batch.positions, to_host(slopes))
    return effects, state.weights


def interval(training: Training, memory: float) -> int:
    """Return the smallest interval at which states can be kept in `memory` bytes, together with those of one interval.

    Errors: TinyGPTError if every interval needs more.
    """
    size, steps = 4 * sum(tensor.numel() for tensor in training.start()), training.steps
    needed = {every: size * states_of(steps, every) for every in range(1, steps + 1)}
    for every, count in needed.items():
        if count <= memory:
            return every
    least = math.ceil(min(needed.values()) / 1e6)
    problem = f"the states of {steps:,} iterations need at least {least:,} MB, and may have {memory / 1e6:,.0f}"
    raise TinyGPTError(problem, f"--memory={least}")


def states_of(steps: int, every: int) -> int:
    """Return how many states are in memory at a time, if every so many are kept."""
    return math.ceil(steps / every) + every - 1


def last_adjoint(training: Training, state: State, output: Output) -> list[Tensor]:
    """Return the derivative of an output's log-probability by the last state."""
    leaf = state.weights.detach().requires_grad_()
    gradient = torch.autograd.grad(training.log_probability(leaf, *output), leaf)[0]
    return [gradient, torch.zeros_like(state.first), torch.zeros_like(state.second)]


def backwards(
    training: Training, kept: list[State], every: int, token_weights: np.ndarray | None
) -> Iterator[tuple[int, State]]:
    """Yield the iterations from the last to the first, each with the state before it. `kept` is emptied."""
    while kept:
        first = (len(kept) - 1) * every
        states = [kept.pop()]
        for number in range(first, min(first + every, training.steps) - 1):
            states.append(training.next(states[-1], number, token_weights))
        while states:
            yield first + len(states) - 1, states.pop()
