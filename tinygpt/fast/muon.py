"""Muon, which batches all matrices of one shape.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the gradient of a matrix, after momentum,
by the nearest matrix whose singular values are all about one, found with a few matrix products (a Newton-Schulz
iteration). The update is that of torch.optim.Muon, which takes the matrices one by one, but those of a small GPT are
too small to keep a processor busy. In batches the matrix products take less than half the time
(experiments.md).
"""

import math

import torch
from torch import Tensor

# the defaults of torch.optim.Muon
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steepest at zero, so that small singular values grow fast
STEPS = 5
MOMENTUM = 0.95


class Muon:
    """Nesterov momentum, orthogonalised, for matrices (rows, columns) that are stored in one flat tensor."""

    def __init__(self, weights: Tensor, shapes: list[torch.Size], weight_decay: float, dtype: torch.dtype) -> None:
        """weights (n,): the matrices of `shapes`, concatenated. dtype: that of the matrix products."""
        self.weights = weights
        self.shapes = shapes
        self.weight_decay = weight_decay
        self.dtype = dtype
        self.momentum = torch.zeros_like(weights)

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: float) -> None:
        """Update the weights with the gradient (n,) and this learning rate."""
        self.momentum.lerp_(gradient, 1 - MOMENTUM)
        ahead = self._matrices(gradient.lerp(self.momentum, MOMENTUM))
        self.weights.mul_(1 - lr * self.weight_decay)
        weights = self._matrices(self.weights)
        for weight, direction in zip(weights, directions(ahead, self.dtype), strict=True):
            weight.add_(direction, alpha=-lr * scale(weight))

    def _matrices(self, flat: Tensor) -> list[Tensor]:
        sizes = [shape.numel() for shape in self.shapes]
        return [piece.view(shape) for piece, shape in zip(flat.split(sizes), self.shapes, strict=True)]


def directions(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the directions of an update, in the matrices' shapes: orthogonalised, those of one shape together, up to
    transposition; dtype: that of the products."""
    shapes = [tuple(sorted(matrix.shape)) for matrix in matrices]
    result = [Tensor()] * len(matrices)
    for shape in dict.fromkeys(shapes):
        indices = [index for index, other in enumerate(shapes) if other == shape]
        together = orthogonalize(torch.stack([wide(matrices[index]) for index in indices]).to(dtype))
        for index, direction in zip(indices, together, strict=True):
            result[index] = direction if matrices[index].shape == direction.shape else direction.T
    return result


def scale(matrix: Tensor) -> float:
    """Return the factor of an update: above 1 for a matrix with more rows than columns."""
    return math.sqrt(max(1, matrix.size(0) / matrix.size(1)))


def wide(matrix: Tensor) -> Tensor:
    """Transpose a matrix that has more rows than columns."""
    return matrix if matrix.size(0) <= matrix.size(1) else matrix.T


def orthogonalize(x: Tensor) -> Tensor:
    """Replace each matrix U S Vᵀ (its singular value decomposition) of x by about U Vᵀ.

    x: (N, rows, columns), rows <= columns.
    """
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # singular values at most one
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
