"""Influence: estimate how the log-probability of an output changes if a training row is left out (TracIn).

Let L be the loss of the output (minus its log-probability), g_i the gradient of the summed loss of row i, and N the
number of targets of a batch. Iteration t moves the weights by -rate_t P_t (sum of g_i over the batch) / N_t. Without
row i, the first-order change of L at this iteration is rate_t / N_t * <grad L, P_t g_i>, and so

    effect_i = change of the log-probability = - sum over the iterations that draw i of rate_t / N_t <grad L, P_t g_i>

(Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent": the first-order approximation of
its TracInIdeal, the change of L in the iterations that draw i, for batches and with P). The paper goes on to use a few
checkpoints, since the outputs are not known while a model is trained, and a long training is not repeated. Here it is,
and every iteration is measured, with the optimizer's own state. This finds what a few snapshots miss: an example that
is forgotten and learned again between two of them. <P grad L, g_i> for all rows of a batch is the derivative of
<P grad L, sum of g_i> by the weights of their losses. No row's gradient is stored.

What is approximated:

- A change is taken to last: what later iterations make of it is ignored, so sizes are rough, and often too large. Read
  the effects as a ranking, and prove it.
- AdamW's update is m / sqrt(v), with the moments m and v after the update and their bias correction. A small change d
  of the gradient g of iteration t changes m in this and later iterations by d in all, and v by 2 g d. With g taken to
  be m, its mean, the updates change by P d = (1 - m^2 / v) d / sqrt(v) in all. So where the gradient is the same in
  every iteration, no row has an effect, since AdamW would move as far without it; where its sign alternates, P is
  nearly 1 / sqrt(v) as in LESS (Xia et al. 2024; there after an update with row i alone, at a few checkpoints, and
  normalised). Without the factor, effects are worse (docs/EXPERIMENTS.md). The clipping is taken not to depend on
  row i, and weight decay does not.
- Momentum applies a gradient over many iterations. rate_t is the sum of their learning rates, weighted as momentum
  weights the gradient (`applied_rates`); the rest is taken from iteration t. The change of v lasts longer, but the same
  rate is used for it, so P is too small near the end of a run.
- Muon's matrices are left out: P is 0 there, and only embeddings, head and vectors count, which AdamW trains. The
  derivative of the orthogonalisation is large where the momentum is small, and made the effects less accurate.
- Dropout: the gradients of the rows are those of the iteration's masks, since P is large where a mask has kept the
  second moment at 0; that of the output has no mask, as the model in use.
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
    effects, rates, state = np.zeros(len(training.source.tokens)), applied_rates(training.config), training.start()
    for number in progress(range(training.steps), desc="estimate the effects"):
        batch, weights = training.batch(number), state.weights.requires_grad_()
        of_tokens = torch.ones(batch.y.shape, device=training.device, requires_grad=True)
        gradient = training.gradient(weights, number, batch, of_tokens)
        after = training.update(State(weights.detach(), *state[1:]), number, gradient.detach())
        output = torch.autograd.grad(training.log_probability(weights, x, y), weights)[0]
        clipped = float(training.clipped(gradient.detach()).norm() / gradient.detach().norm().clamp(min=ADAM_EPS))
        direction = rates[number] * clipped * preconditioned(training, after, number, output)
        slopes = torch.autograd.grad(gradient, of_tokens, direction)[0]
        np.add.at(effects, batch.positions, to_host(slopes))
        state = after
    return effects, state.weights.detach()


def preconditioned(training: Training, state: State, number: int, gradient: Tensor) -> Tensor:
    """Return P times a gradient (n,), from the optimizer's state after the iteration; see the top of this module."""
    config, part = training.config, training.adam
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
    applied, later, momentum = np.zeros(config.max_iters), 0.0, config.beta1
    for step in reversed(range(config.max_iters)):
        later = learning_rate(step, config) / (1 - momentum ** (step + 1)) + momentum * later
        applied[step] = (1 - momentum) * later
    return applied
