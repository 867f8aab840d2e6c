"""The effects of the training rows on an output: an estimate, or derivatives of trainings and how well they predict.

effects, weights = estimate(training, explained, (x, y))
effects, weights = derivative(training, explained, (x, y), memory=2e9)
test = tested(derivatives, log_probabilities)            # of several trainings

An effect is the change of the output's log-probability in nats if the row is left out. A training can be so curved that
its derivative predicts nothing: without a few rows it is another training. So the effects are the median of several
derivatives: of the run's training, and of trainings without random rows, with the same seed. These test it, too: the
changes that they prove are compared with those that the other derivatives predict. All are changes from the same
training, whose chance is in each of them. The estimate (influence.py) needs less time, and was nowhere a better guide
(experiments.md): so it never replaces derivatives, however their test ends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.examine.why.exact import exact_effects
from tinygpt.examine.why.explained import Explained, Output
from tinygpt.examine.why.influence import estimated_effects
from tinygpt.examine.why.rows import sums_of_rows
from tinygpt.examine.why.step import Training, memory_errors
from tinygpt.generate import require_finite

SHARE = 0.05  # of the rows are left out of each training but the first


class Tested(NamedTuple):
    effects: np.ndarray  # float64 (rows,): the median of the derivatives by the trainings that have the row
    predicted: list[float]  # changes of the log-probability without each set of random rows, by the other derivatives
    proved: list[float]  # ... and of the models that are trained without them

    @property
    def error(self) -> float:
        """Return the root of the squared errors of the predictions, relative to what is proved: 0 if they are exact, 1
        if they are as wrong as to predict no change, which is also returned if nothing changes."""
        size = float(np.linalg.norm(self.proved))
        return float(np.linalg.norm(np.subtract(self.predicted, self.proved))) / size if size else 1.0


def estimate(training: Training, explained: Explained, output: Output) -> tuple[np.ndarray, Tensor]:
    """Estimate the effects of all training rows, float64 (rows,), and return the trained weights (n,). An output of
    several rows is explained in their sum. Errors: TinyGPTError for too little memory, and effects that are not
    finite."""
    with memory_errors(training.device):
        tokens, weights = estimated_effects(training, *output)
    require_finite(torch.from_numpy(tokens), "an effect is")
    return sums_of_rows(tokens, explained), weights


def derivative(
    training: Training, explained: Explained, output: Output, memory: float, name: str = "training"
) -> tuple[np.ndarray, Tensor]:
    """Differentiate the training: as `estimate`. memory: bytes for the states. name: for the progress bars."""
    with memory_errors(training.device):
        (tokens,), weights = exact_effects(training, [output], memory, name)
    if not np.isfinite(tokens).all():
        problem = "the derivative of the training is not finite, since the training is too rough"
        raise TinyGPTError(problem, "the same command without --sweeps", 1)
    return sums_of_rows(tokens, explained), weights


def tested(derivatives: Sequence[np.ndarray], log_probabilities: Sequence[float]) -> Tested:
    """Compare what the derivatives (rows,) of trainings without the sets 0, 1, ... predict with what these prove: the
    output's log-probability after each."""
    known = of_present_rows(derivatives)
    predicted = []
    for number in range(1, len(known)):
        others = np.nanmedian(np.delete(known, number, axis=0), axis=0)
        predicted.append(float(others[random_set(len(others), number)].sum()))
    proved = [after - log_probabilities[0] for after in log_probabilities[1:]]
    return Tested(np.nanmedian(known, axis=0), predicted, proved)


def of_present_rows(derivatives: Sequence[np.ndarray]) -> np.ndarray:
    """Return the derivatives (trainings, rows) with NaN for the rows that a training leaves out: a weight that only
    they touch has second moments of 0, at which AdamW's derivative is huge."""
    known = np.array(derivatives)
    for number, of_rows in enumerate(known):
        of_rows[random_set(len(of_rows), number)] = np.nan
    return known


def random_set(rows: int, number: int) -> np.ndarray:
    """Draw the rows that a training leaves out, the same ones for every output; none for number 0."""
    size = max(1, round(SHARE * rows)) if number else 0
    return np.random.default_rng(number).choice(rows, size, replace=False)
