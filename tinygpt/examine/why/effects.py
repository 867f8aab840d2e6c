"""The effects of the training rows on an output: an estimate, or derivatives of trainings and how well they predict.

found = measure(explained, x, y, sweeps=4, memory=2e9)
found.effects                   # float64 (rows,): the change of the log-probability in nats if a row is left out

A training can be so curved that its derivative predicts nothing: without a few rows it is another training. So the
effects are the median of several derivatives: of the run's training, and of trainings without random rows, with the
same seed. These test it, too: the changes that they prove are compared with those that the other derivatives predict.
docs/EXPERIMENTS.md has what this gains. The estimate (influence.py) needs less time.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinygpt.examine.why.exact import exact_effects
from tinygpt.examine.why.explained import Explained
from tinygpt.examine.why.influence import estimated_effects
from tinygpt.examine.why.rows import sums_of_rows, without
from tinygpt.examine.why.step import Training, finite, memory_errors

SHARE = 0.05  # of the rows are left out of each training but the first


class Effects(NamedTuple):
    effects: np.ndarray  # float64 (rows,)
    weights: Tensor  # of the training that was repeated, float32 (n,)
    log_probability: float  # of the output after this training
    predicted: list[float]  # changes of the log-probability without each set of random rows, by the other derivatives
    proved: list[float]  # ... and of the models that are trained without them


def measure(explained: Explained, x: Tensor, y: Tensor, sweeps: int, memory: float) -> Effects:
    """Measure the effects of all training rows on an output (explained.output), whose rows add up.

    sweeps: trainings that are differentiated; 0: the effects are estimated. memory: bytes for the states of each.
    Errors: TinyGPTError if they are too few, if the device's memory is, or for effects that are not finite.
    """
    training = Training(explained, explained.config.seed)
    sets = random_sets(len(explained.rows), max(1, sweeps))
    derivatives, trained = [], []
    for number, rows in enumerate(sets, start=1):
        with memory_errors(training.device):
            if sweeps:
                name, left = f"training {number} of {sweeps}", without(explained, rows)
                (tokens,), weights = exact_effects(training, [(x, y)], memory, left, name)
            else:
                tokens, weights = estimated_effects(training, x, y)
        finite(torch.from_numpy(tokens))
        derivatives.append(sums_of_rows(tokens, explained))
        trained.append(weights)
    before, *after = (float(training.log_probability(weights, x, y)) for weights in trained)
    predicted = []
    for number, rows in enumerate(sets[1:], start=1):
        others = np.delete(derivatives, number, axis=0)
        predicted.append(float(np.median(others, axis=0)[rows].sum()))
    proved = [value - before for value in after]
    return Effects(np.median(derivatives, axis=0), trained[0], before, predicted, proved)


def error_of(predicted: list[float], proved: list[float]) -> float:
    """Return the root of the squared errors of predictions, relative to what is proved: 0 if they are exact, 1 if they
    are as wrong as to predict no change, which is also returned if nothing changes."""
    size = float(np.linalg.norm(proved))
    return float(np.linalg.norm(np.array(predicted) - np.array(proved))) / size if size else 1.0


def random_sets(rows: int, count: int) -> list[np.ndarray]:
    """Draw the rows that each training leaves out, none for the first one: the same ones for every output."""
    generator, size = np.random.default_rng(0), max(1, round(SHARE * rows))
    drawn = [generator.choice(rows, size, replace=False) for _ in range(count - 1)]
    return [np.zeros(0, dtype=np.int64), *drawn]
