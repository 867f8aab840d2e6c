"""A scaling law: the loss of a model as a function of its size and of the length of its training.

    L(N, D) = E + A / N^alpha + B / D^beta                                     (Hoffmann et al. 2022, approach 3)

N is the number of parameters, D the number of training tokens, E the irreducible loss. A and alpha say what the limited
size adds to the loss, B and beta what the limited training adds.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

UNKNOWN = 10  # a figure whose interval is wider than this factor is not determined
LARGEST = 300.0  # upper limit of the logarithm of a number of tokens, so that none overflows


class Law(NamedTuple):
    """L(N, D) = E + A N^-alpha + B D^-beta, in nats per token. alpha, beta > 0; E, A, B >= 0."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Predict the loss, for numbers or arrays."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    @property
    def growth(self) -> float:
        """The exponent g of the best size, which grows with the compute C as C ** g."""
        return self.beta / (self.alpha + self.beta)

    def best_tokens(self, parameters: float) -> float:
        """Return the compute-optimal length for a size: with the same compute, 6 N D, no other size has a lower loss.

        There, the derivatives of the loss with respect to log N and log D are equal."""
        if not self.A:
            return math.inf
        if not self.B:
            return 1.0
        ratio = self.beta * self.B / (self.alpha * self.A)
        logarithm = (math.log(ratio) + self.alpha * math.log(parameters)) / self.beta
        return math.exp(min(max(logarithm, 0.0), LARGEST))

    def best_parameters(self, compute: float) -> float:
        """Return the compute-optimal size for a compute in FLOP (Hoffmann et al. 2022, equation 4)."""
        if not self.B:
            return math.inf
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return float(g * (compute / 6) ** self.growth)

    def best_loss(self, compute: float) -> float:
        """Compute the loss of the best size for a compute in FLOP."""
        if not (self.A and self.B):  # size, or length, costs nothing: the best size is 0, or infinite
            return self.E
        best = self.best_parameters(compute)
        return float(self.loss(best, compute / 6 / best))


class Fitted(NamedTuple):
    """A law, and laws that are fitted to bootstrap samples of its runs, for intervals."""

    law: Law
    samples: Sequence[Law]

    def interval(self, figure: Callable[[Law], float]) -> tuple[float, float]:
        """Return the 10% and the 90% quantile of a figure: an 80% interval."""
        low, high = np.quantile([figure(law) for law in self.samples], [0.1, 0.9])
        return float(low), float(high)

    def as_text(self, figure: Callable[[Law], float], form: str) -> str:
        """Format a figure of the law and its interval, if the runs determine it."""
        low, high = self.interval(figure)
        if not 0 < high < UNKNOWN * low:
            return "not determined"
        return f"{figure(self.law):{form}} ({low:{form}} to {high:{form}})"


def fit(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Law:
    """Fit the law by least squares of the relative errors, with variable projection (Golub & Pereyra 1973).

    For given exponents, E, A and B solve a linear least-squares problem, so only alpha and beta are searched, on a grid
    that is refined twice. All arrays are float64 (runs,), with at least two sizes and two lengths.
    """
    units = np.exp(np.log(parameters).mean()), np.exp(np.log(tokens).mean())  # so that all columns are near 1
    n = np.log(parameters / units[0])
    d = np.log(tokens / units[1])
    low = np.array([0.02, 0.02])
    high = np.array([2.0, 2.0])
    for _ in range(3):
        alphas, betas = (np.geomspace(*ends, 25) for ends in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(alphas, betas, indexing="ij"), -1).reshape(-1, 2)
        columns = np.stack([np.ones((len(grid), len(n))), np.exp(-grid[:, :1] * n), np.exp(-grid[:, 1:] * d)], -1)
        weights, errors = nonnegative(columns / losses[:, None], np.ones(len(losses)))
        best = int(errors.argmin())
        step = (high / low) ** (1 / 24)
        low = grid[best] / step
        high = grid[best] * step
    alpha, beta = map(float, grid[best])
    E, A, B = map(float, weights[best])
    return Law(E, float(A * units[0] ** alpha), float(B * units[1] ** beta), alpha, beta)


def nonnegative(columns: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve P least-squares problems with three non-negative weights each: return weights (P, 3), squared errors (P,).

    columns: (P, runs, 3), target: (runs,). For each set of active weights, the others being 0, the problem is solved
    without a constraint. Of the solutions without negative weights, the one with the smallest error is taken.
    """
    # all weights at 0
    best = np.zeros((len(columns), 3))
    errors = np.full(len(columns), target @ target)
    for active in ([0, 1, 2], [1, 2], [0, 1], [0, 2], [0], [1], [2]):
        active_columns = columns[:, :, active]
        square = np.swapaxes(active_columns, 1, 2) @ active_columns + 1e-12 * np.eye(len(active))
        solutions = np.linalg.solve(square, np.swapaxes(active_columns, 1, 2) @ target[:, None])[:, :, 0]
        error = np.square((active_columns @ solutions[:, :, None])[:, :, 0] - target).sum(1)
        better = (solutions >= 0).all(1) & (error < errors)
        best[better] = 0
        best[np.ix_(better, active)] = solutions[better]
        errors[better] = error[better]
    return best, errors


def fit_with_samples(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, count: int = 200) -> Fitted:
    """Fit the law to losses, and to `count` samples of these with resampled residuals: the residual bootstrap (Efron
    1979)."""
    law = fit(parameters, tokens, losses)
    rng = np.random.default_rng(1)
    expected = law.loss(parameters, tokens)
    residuals = (losses / expected - 1) * np.sqrt(len(losses) / max(1, len(losses) - len(law)))
    samples = [expected * (1 + rng.choice(residuals, len(losses))) for _ in range(count)]
    return Fitted(law, [fit(parameters, tokens, sample) for sample in samples])
