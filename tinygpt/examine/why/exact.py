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
from tinygpt.examine.why.explained import Output
from tinygpt.examine.why.step import State, Training
from tinygpt.generate import require_finite


def exact_effects(
    training: Training, outputs: Sequence[Output], memory: float, name: str = "training"
) -> tuple[np.ndarray, Tensor]:
    """Return the effects of the tokens of the training split on the log-probability of each output if the loss of a
    token is left out, to first order: float64 (outputs, tokens), in nats; and the trained weights (n,).

    memory: bytes for the states. name: for the progress bars. Errors: TinyGPTError if the memory is too small.
    """
    every = interval(training, memory)
    kept = []
    state = training.start()
    for number in progress(range(training.steps), desc=f"{name}, forwards"):
        if number % every == 0:
            kept.append(state)
        state = training.step(state, number, training.batch(number))
    require_finite(state.weights, "a weight is")
    effects = np.zeros((len(outputs), len(training.source.tokens)))
    last = state.weights.detach().requires_grad_()
    gradients = [torch.autograd.grad(training.log_probability(last, *output), last)[0] for output in outputs]
    adjoints = [[gradient, *map(torch.zeros_like, state[1:])] for gradient in gradients]  # by the last state
    states = backwards(training, kept, every)
    for number, before in progress(states, desc=f"{name}, backwards", total=training.steps):
        batch = training.batch(number)
        leaves = [tensor.requires_grad_() for tensor in (*before, batch.weights)]
        after = training.step(before, number, batch)
        for index, adjoint in enumerate(adjoints):
            more = index < len(adjoints) - 1
            *adjoint, slopes = torch.autograd.grad(after, leaves, adjoint, retain_graph=more)
            adjoints[index] = adjoint
            np.subtract.at(effects[index], batch.positions, to_host(slopes))
    return effects, state.weights


def interval(training: Training, memory: float) -> int:
    """Return the smallest interval at which states can be kept in `memory` bytes, together with those of one interval.

    Errors: TinyGPTError if every interval needs more.
    """
    size = 4 * sum(tensor.numel() for tensor in training.start())
    steps = training.steps
    every = np.arange(1, steps + 1)
    needed = size * (-(-steps // every) + every - 1)  # kept ones, and those of the interval that is swept
    if needed.min() <= memory:
        return int(every[needed <= memory][0])
    least = math.ceil(needed.min() / 1e6)
    problem = f"the states of {steps:,} iterations need at least {least:,} MB, and may have {memory / 1e6:,.0f}"
    raise TinyGPTError(problem, f"--memory={least}")


def backwards(training: Training, kept: list[State], every: int) -> Iterator[tuple[int, State]]:
    """Yield the iterations from the last to the first, each with the state before it. `kept` is emptied."""
    while kept:
        first = (len(kept) - 1) * every
        states = [kept.pop()]
        for number in range(first, min(first + every, training.steps) - 1):
            states.append(training.step(states[-1], number, training.batch(number)))
        while states:
            yield first + len(states) - 1, states.pop()
