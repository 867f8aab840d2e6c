"""A power law through the losses of the pilots, extended to the length of the run.

    L(D) = E + A / D^alpha                                                (Hestness et al. 2017; Hoffmann et al. 2022)

D is the number of iterations, E the irreducible loss. Three noisy pilots determine E, A and alpha only poorly. So all
pairs of E and alpha on a grid are weighted by how well they fit the pilots, and by a prior on alpha; the prediction is
the weighted mean. The prior and the noise were chosen on the development runs of docs/EXPERIMENTS.md, not on the twelve
runs that test the predictions.

A longer run with a schedule of the same shape usually reaches a lower loss, even where the power law does not hold. So
the loss of the longest pilot serves as an upper bound, if the losses of the pilots fall.

    predict([62, 125, 250], [2.06, 1.94, 1.84], 2000)       # Interval(value=1.63, low=1.56, high=1.71)
"""

from collections.abc import Sequence

import numpy as np

from tinygpt.evaluate.forecast import Interval

ALPHA, ALPHA_SPREAD = 0.7, 0.8  # prior on alpha: log-normal, its median and the standard deviation of its logarithm
ALPHAS = np.geomspace(0.03, 2, 80)
IRREDUCIBLE = np.linspace(0, 0.95, 60)  # E, as a share of the lowest loss
NOISE = 0.01  # relative standard deviation of a pilot's loss: the seed, and the distance from the law
BEND = 1.5  # a fall that grows by more than this factor from one doubling to the next is not that of a power law


def no_bound_reason(losses: Sequence[float]) -> str:
    """Return why the longest pilot's loss is not even an upper bound; empty if it is. losses: ordered by length."""
    if losses[-1] > min(losses) or (len(losses) > 1 and losses[-1] >= losses[0]):
        return f"the loss does not fall with longer pilots: {', then '.join(f'{loss:.3f}' for loss in losses)}"
    return ""


def refusal(losses: Sequence[float], baseline: float) -> str:
    """Return why the law does not hold for these pilots; empty if it may. baseline: the lowest n-gram loss, in nats."""
    if losses[-1] > baseline:
        problem = f"the longest pilot ({losses[-1]:.3f}) has not beaten the n-gram baseline ({baseline:.3f})"
        return f"{problem}, so most of the fall is still to come, and a power law does not hold yet"
    first, second = -np.diff(np.log(losses))
    if second > BEND * first:
        falls = f"({100 * first:.0f}%, then {100 * second:.0f}%)"
        return f"the loss falls faster with each doubling of the length {falls}, unlike a power law"
    return ""


def predict(lengths: Sequence[int], losses: Sequence[float], length: int) -> Interval:
    """Predict the loss at a length, with its 80% interval."""
    d, loss = np.array(lengths) / max(lengths), np.array(losses)
    alpha, E = np.meshgrid(ALPHAS, IRREDUCIBLE * loss.min(), indexing="ij")
    falls = d ** -alpha[..., None]  # (alphas, Es, pilots)
    above = loss - E[..., None]
    A = (falls * above / loss**2).sum(-1) / (falls**2 / loss**2).sum(-1)  # least squares of the relative errors
    errors = (above - A[..., None] * falls) / loss
    prior = np.log(alpha / ALPHA) / ALPHA_SPREAD
    fit = -0.5 * (errors**2).sum(-1) / NOISE**2 - 0.5 * prior**2
    weights = np.exp(fit - fit.max())
    weights = (weights / weights.sum()).ravel()
    values = (E + A * (length / max(lengths)) ** -alpha).ravel()
    order = np.argsort(values)
    low, high = np.interp([0.1, 0.9], np.cumsum(weights[order]), values[order])
    return Interval(float(weights @ values), float(low), float(high))
