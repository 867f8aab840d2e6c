"""Muon, with all matrices of one shape in one batch.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the gradient of a matrix, after momentum,
by the nearest matrix whose singular values are all about one, found with a few matrix products (a Newton-Schulz
iteration). The update is that of torch.optim.Muon, which takes the matrices one by one; the matrices of a small GPT
are too small to keep a processor busy that way, and batched the step takes less than half (docs/PERFORMANCE.md).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steepest at zero, so that small singular values grow fast
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look-ahead, orthogonalised, for matrices (rows, columns) only."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype  # of the products; not part of the state, since it is the machine's choice

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
            for parameters in by_shape.values():
                self._move(parameters, group["lr"], group["weight_decay"], group["momentum"])

    def _move(self, parameters: list[Any], lr: float, weight_decay: float, momentum: float) -> None:
        """One update of matrices that have one shape, up to transposition."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        wide = [a if a.size(0) <= a.size(1) else a.T for a in ahead]  # (N, rows, columns), rows <= columns
        directions = orthogonalize(torch.stack(wide).to(self.dtype))
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        for parameter, direction in zip(parameters, directions, strict=True):
            rows, columns = parameter.shape
            parameter.add_(
                direction if rows <= columns else direction.T,
                alpha=-lr * math.sqrt(max(1, rows / columns)),
            )


def orthogonalize(x: Tensor) -> Tensor:
    """(N, rows, columns), rows <= columns, each to about U Vᵀ of its singular value decomposition U S Vᵀ."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # singular values at most one
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
