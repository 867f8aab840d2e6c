"""Influence: estimate how the log-probability of an output changes if a training row is left out (TracIn).

Let L be the loss of the output, g_i the gradient of the summed loss of row i, and N_t the targets of iteration t's
batch. The iteration moves the weights by -rate_t P_t (sum of g_i over the batch) / N_t, so to first order

    effect_i = change of the log-probability = - sum over the iterations that draw i of rate_t / N_t <grad L, P_t g_i>

(Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent", TracInIdeal with batches and P;
the paper approximates it by a few checkpoints, which miss an example that is forgotten and learned again.) For all rows
of a batch <P grad L, g_i> is the derivative of <P grad L, sum of g_i> by the weights of their losses.

What is approximated:

- A change is taken to last: what later iterations make of it is ignored. So the effects are a ranking, not sizes.
- AdamW: a change d of one gradient changes the later updates by P d = (1 - m^2 / v) d / sqrt(v) in all, where m and v
  are the bias-corrected moments, and the gradient is taken to be its mean m (without the factor: LESS, Xia et al. 2024;
  worse, experiments.md). Momentum spreads it over many iterations: rate_t is the sum of their learning rates,
  weighted in the same way (`applied_rates`).
- Muon's matrices are left out, P = 0: the derivative of the orthogonalisation is large where the momentum is small.
- The clipping is taken not to depend on row i. The rows' gradients have the iteration's dropout masks, the output none.
"""

import numpy as np
import torch
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import to_host
from tinygpt.base.terminal import progress
from tinygpt.examine.why.step import ADAM_EPS, State, Training
from tinygpt.training.optimizer import learning_rate


def estimated_effects(training: Training, x: Tensor, y: Tensor) -> tuple[np.ndarray, Tensor]:
    """Estimate the change of an output's log-probability in nats if the loss of a token of the training split is left
    out: float64 (tokens,); and return the trained weights (n,). x, y: int64 (n, T), see explained.output."""
    effects = np.zeros(len(training.source.tokens))
    rates = applied_rates(training.config)
    state = training.start()
    for number in progress(range(training.steps), desc="estimate the effects"):
        batch = training.batch(number)
        weights = state.weights.requires_grad_()
        batch.weights.requires_grad_()
        gradient = training.gradient(weights, number, batch)
        after = training.update(State(weights.detach(), *state[1:]), number, gradient.detach())
        output = torch.autograd.grad(training.log_probability(weights, x, y), weights)[0]
        rate = rates[number] / training.clipping(gradient.detach())
        direction = rate * preconditioned(training, after, number, output)
        slopes = torch.autograd.grad(gradient, batch.weights, direction)[0]
        np.add.at(effects, batch.positions, to_host(slopes))
        state = after
    return effects, state.weights.detach()


def preconditioned(training: Training, state: State, number: int, gradient: Tensor) -> Tensor:
    """Return P times a gradient (n,), from the optimizer's state after the iteration; see the top of this module."""
    config = training.config
    part = training.adam
    first = state.first[part] / (1 - config.beta1 ** (number + 1))
    second = state.second / (1 - config.beta2 ** (number + 1))
    result = torch.zeros_like(gradient)
    result[part] = share_of_change(first, second) * gradient[part] / (second.sqrt() + ADAM_EPS)
    return result


def share_of_change(first: Tensor, second: Tensor) -> Tensor:
    """Return the share of the change of AdamW's update that remains since the second moment changes, too: 0 to 1."""
    return 1 - (first.square() / (second + 1e-16)).clamp(max=1)


def applied_rates(config: TrainConfig) -> np.ndarray:
    """Return the learning rate by which the gradient of each iteration is applied in all: float64 (max_iters,).

    Iteration s applies the share (1 - beta1) * beta1^(s - t) / (1 - beta1^(s + 1)) of the gradient of t.
    """
    applied = np.zeros(config.max_iters)
    later = 0.0
    momentum = config.beta1
    for step in reversed(range(config.max_iters)):
        later = learning_rate(step, config) / (1 - momentum ** (step + 1)) + momentum * later
        applied[step] = (1 - momentum) * later
    return applied
