"""Influence: estimate how the log-probability of an output changes if a training row is left out (TracIn).

Let L be the loss of the output (minus its log-probability), g_i the gradient of the summed loss of row i, and N the
number of targets of a batch. Iteration t moves the weights by -rate_t P_t (sum of g_i over the batch) / N_t. Without
row i, the first-order change of L at this iteration is rate_t / N_t * <grad L, P_t g_i>, and so

    effect_i = change of the log-probability = - sum over the iterations that draw i of rate_t / N_t <grad L, P_t g_i>

(Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent": the first-order approximation of
its TracInIdeal, the change of L in the iterations that draw i, for batches and with P). The paper goes on to use a few
checkpoints, since the outputs are not known while a model is trained, and a long training is not repeated. Here it is,
bit for bit, and every iteration is measured, with the optimizer's own state. This finds what a few snapshots miss: an
example that is forgotten and learned again between two of them. <grad L, P g_i> for all rows of a batch is one pass in
forward mode: the derivative of their losses along the direction P grad L. No row's gradient is stored.

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
- Dropout: the gradients of the rows are those of the iteration's masks (on a GPU, a compiled model and fused attention
  can draw others), since P is large where a mask has kept the second moment at 0; that of the output has no mask, as
  the model in use. Both are in float32, also where the run computes in bfloat16.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import to_host
from tinygpt.data.rows import PairRows, Rows
from tinygpt.examine.why.explained import Explained
from tinygpt.model import GPT
from tinygpt.train import batch, seed_dropout
from tinygpt.training.losses import target_losses
from tinygpt.training.optimizer import Optimizer, learning_rate
from tinygpt.training.run import Run

Weights = dict[str, Tensor]  # by name, in the parameters' shapes


class Tracer:
    """Stands between the loop and the optimizer of a run, and adds up the effects of the tokens of each batch.

    x, y: the output, int64 (n, T). `effects` float64 (tokens,): the change of its log-probability in nats if the loss
    of a token of the training split is left out.
    """

    def __init__(self, run: Run, source: Rows, x: Tensor, y: Tensor) -> None:
        self.run, self.source, self.optimizer = run, source, run.optimizer
        device = run.compute.device
        self.x, self.y = x.to(device), y.to(device)
        self.model = type(run.model)(run.model.config).to(device)
        self.effects = np.zeros(len(source.tokens))
        self.clipped = 1.0
        self.rates = applied_rates(run.config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def clip(self) -> Tensor:
        norm, limit = self.optimizer.clip(), self.run.config.grad_clip
        self.clipped = min(1.0, limit / max(float(norm), 1e-12)) if limit else 1.0
        return norm

    def update(self) -> None:
        config, step = self.run.config, self.run.progress.step
        weights = {name: weight.detach().clone() for name, weight in self.run.model.named_parameters()}
        self.optimizer.update()
        gradient = gradient_of(self.model.eval(), weights, self.x, self.y)
        direction = preconditioned(gradient, self.optimizer, config, self.rates[step])
        x, y, _ = batch(self.run, step)
        rate = self.clipped / int((y >= 0).sum())
        for micro_step, rows in enumerate(np.split(batch_of(self.source, config, step), len(x))):
            seed_dropout(config.seed, step, micro_step, 0)
            targets = to_host(y[micro_step].view(len(rows), -1)) >= 0  # whole rows, also in a context warm-up
            slope = slopes(self.model.train(), weights, direction, x[micro_step], y[micro_step])
            np.add.at(self.effects, positions_of(self.source, rows, targets.shape[1])[targets], -rate * slope)


def gradient_of(model: GPT, weights: Weights, x: Tensor, y: Tensor) -> Weights:
    """Compute the gradient of the summed loss of rows, of `model` with these weights."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    loss = target_losses(with_weights(model, leaves), x, y).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def with_weights(model: GPT, weights: Weights) -> Any:
    """Return a function that is called as the model is."""
    return lambda *args, **options: functional_call(model, weights, args, options)


def applied_rates(config: TrainConfig) -> np.ndarray:
    """Return the learning rate by which the gradient of each iteration is applied in all: float64 (max_iters,).

    Iteration s applies the share (1 - beta1) * beta1^(s - t) / (1 - beta1^(s + 1)) of the gradient of t.
    """
    applied, later, momentum = np.zeros(config.max_iters), 0.0, config.beta1
    for step in reversed(range(config.max_iters)):
        later = learning_rate(step, config) / (1 - momentum ** (step + 1)) + momentum * later
        applied[step] = (1 - momentum) * later
    return applied


def preconditioned(gradient: Weights, optimizer: Optimizer, config: TrainConfig, rate: float) -> Weights:
    """Return rate times P times a gradient, from the optimizer's state; see the top of this module. Without the weights
    where P is 0."""
    steps, direction = max(1, optimizer.steps), {}
    for name, moments in optimizer.moments().items():
        if "exp_avg" in moments:
            first = moments["exp_avg"] / (1 - config.beta1**steps)
            second = moments["exp_avg_sq"] / (1 - config.beta2**steps)
            direction[name] = rate / (second.sqrt() + 1e-8) * share_of_change(first, second) * gradient[name]
    return direction


def share_of_change(first: Tensor, second: Tensor) -> Tensor:
    """Return the share of the change of AdamW's update that remains since the second moment changes, too: 0 to 1."""
    return 1 - (first.square() / (second + 1e-16)).clamp(max=1)


def slopes(model: GPT, weights: Weights, direction: Weights, x: Tensor, y: Tensor) -> np.ndarray:
    """Compute the derivative of the loss of each target along a direction of some weights: float64 (targets,).

    Forward-mode differentiation (`torch.func.jvp`) of a batch; PyTorch's fused attention does not have it.
    """

    def losses(moved: Weights) -> Tensor:
        return target_losses(with_weights(model, weights | moved), x, y)

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return to_host(jvp(losses, ({name: weights[name] for name in direction},), (direction,))[1])


def batch_of(source: Rows, config: TrainConfig, step: int) -> np.ndarray:
    """Return the indices of the rows of an iteration's batch, which train.batch draws, too."""
    return source.draw(config.seed, step, config.block_size, config.batch_size * config.gradient_accumulation_steps)


def exposures_of(explained: Explained, seed: int) -> np.ndarray:
    """Count the targets of each training row in all iterations of a run with this seed: int64 (rows,)."""
    source, config = explained.source, dataclasses.replace(explained.config, seed=seed)
    counts = np.zeros(len(source.tokens), dtype=np.int64)
    for step in range(explained.checkpoint.step):
        rows = batch_of(source, config, step)
        width = source.width(config.block_size, rows)
        np.add.at(counts, positions_of(source, rows, width)[source.rows(rows, width)[1] >= 0], 1)
    return sums_of_rows(counts, explained)


def sums_of_rows(values: np.ndarray, explained: Explained) -> np.ndarray:
    """Add up a value per token of the split, (tokens,), over the targets of each training row: (rows,)."""
    sums = np.append(0, np.cumsum(values))
    spans = spans_of(explained.source, explained.rows, explained.config)
    return np.array([sums[end] - sums[start] for start, end in spans])


def positions_of(source: Rows, rows: np.ndarray, width: int) -> np.ndarray:
    """Return the position in the split's tokens of each target of rows, int64 (rows, width); at most the last one."""
    first = source.starts[rows] if isinstance(source, PairRows) else rows
    return np.minimum(first[:, None] + 1 + np.arange(width), len(source.tokens) - 1)


def spans_of(source: Rows, rows: np.ndarray, config: TrainConfig) -> list[tuple[int, int]]:
    """Return where the targets of each row begin and end in the split's tokens."""
    if isinstance(source, PairRows):
        return list(zip(source.starts[rows].tolist(), source.ends[rows].tolist(), strict=True))
    return [(row + 1, min(row + 1 + config.block_size, len(source.tokens))) for row in rows.tolist()]
