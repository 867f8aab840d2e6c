"""The effects of the training rows on an output: an estimate, or derivatives of trainings and how well they predict.

found = measure(explained, x, y, sweeps=4, memory=2e9)
found.effects                   # float64 (rows,): the change of the log-probability in nats if a row is left out

A training can be so curved that its derivative is exact and predicts nothing: without a few rows it is another one. So
the effects are the median of several derivatives: of the run's training, and of trainings without random rows, with the
same seed. The derivative over nearby points is the best straight line through them, not the tangent at one. These
trainings test it, too: the changes that they prove are compared with those that the other derivatives predict.
docs/EXPERIMENTS.md has what this gains. The estimate (influence.py) needs less time.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tinygpt.base.device import is_out_of_memory
from tinygpt.base.errors import TinyGPTError, diverged
from tinygpt.examine.why.exact import exact_effects
from tinygpt.examine.why.explained import Explained
from tinygpt.examine.why.influence import estimated_effects
from tinygpt.examine.why.rows import sums_of_rows, without
from tinygpt.examine.why.step import Training

SHARE = 0.05  # of the rows are left out of each training but the first


class Effects(NamedTuple):
    effects: np.ndarray  # float64 (rows,)
    weights: Tensor  # of the training that was repeated, float32 (n,)
    predicted: list[float]  # changes of the log-probability without each set of random rows, by the other derivatives
    proved: list[float]  # ... and of the models that are trained without them


def measure(explained: Explained, x: Tensor, y: Tensor, sweeps: int, memory: float) -> Effects:
    """Measure the effects of all training rows on an output (explained.output), whose rows add up.

    sweeps: trainings that are differentiated; 0: the effects are estimated. memory: bytes for the states of each.
    Errors: TinyGPTError if they are too few, if the device's memory is, or for effects that are not finite.
    """
    with memory_errors(explained):
        training = Training(explained, explained.config.seed)
        if not sweeps:
            tokens, weights = estimated_effects(training, x, y)
            return Effects(finite(sums_of_rows(tokens, explained)), weights, [], [])
        sets, derivatives, trained = random_sets(len(explained.rows), sweeps), [], []
        for number, rows in enumerate(sets, start=1):
            name = f"training {number} of {sweeps}"
            tokens, weights = exact_effects(training, [(x, y)], memory, without(explained, rows), name)
            derivatives.append(finite(sums_of_rows(tokens[0], explained)))
            trained.append(weights)
        others = [np.median(np.delete(derivatives, number, axis=0), axis=0) for number in range(sweeps)]
        predicted = [float(other[rows].sum()) for other, rows in zip(others, sets, strict=True)]
        before, *after = (float(training.log_probability(weights, x, y)) for weights in trained)
        return Effects(np.median(derivatives, axis=0), trained[0], predicted[1:], [each - before for each in after])


def error_of(predicted: list[float], proved: list[float]) -> float:
    """Return the root of the squared errors of predictions, relative to what is proved: 0 if they are exact, 1 if they
    are as wrong as to predict no change."""
    difference = float(np.linalg.norm(np.array(predicted) - np.array(proved)))
    return difference / max(float(np.linalg.norm(proved)), 1e-12)


def random_sets(rows: int, count: int) -> list[np.ndarray]:
    """Draw the rows that each training leaves out, none for the first one: the same ones for every output."""
    generator, size = np.random.default_rng(0), max(1, round(SHARE * rows))
    drawn = [generator.choice(rows, size, replace=False) for _ in range(count - 1)]
    return [np.zeros(0, dtype=np.int64), *drawn]


def finite(effects: np.ndarray) -> np.ndarray:
    """Check that effects are finite, and return them. Errors: TinyGPTError."""
    if not np.isfinite(effects).all():
        raise diverged("an effect is", float(effects[~np.isfinite(effects)][0]))
    return effects


@contextlib.contextmanager
def memory_errors(explained: Explained) -> Iterator[None]:
    """Name a lack of the device's memory. Errors: TinyGPTError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = f"out of memory on {explained.compute.device}: why needs more memory than the training"
        raise TinyGPTError(problem, "--device=cpu, or a smaller --memory", 1) from None
