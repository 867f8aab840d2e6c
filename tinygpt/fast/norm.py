"""RMSNorm for a CPU: by its formula, because PyTorch's call has no fused kernel there (experiments.md)."""

import torch
from torch import Tensor, nn


class FastRMSNorm(nn.RMSNorm):
    """The same function of the same parameters as nn.RMSNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps or 0.0)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Divide x (..., C) by the root of its mean square, which is computed in float32 at least, since squares and the
    gradient of the root overflow in float16; then multiply it by weight (C,), if there is one."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    x = x * (norm.square() / x.size(-1) + eps).rsqrt().to(x.dtype)
    return x if weight is None else x * weight
