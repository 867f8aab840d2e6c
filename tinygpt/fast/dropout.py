"""Dropout for a CPU: masks from 16 random bits each, because PyTorch draws 64 for each and takes three times as long
(experiments.md)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VALUES = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set a random share p of the values of x to zero, to 1 / 65,536, and divide the others by 1 - p (Srivastava et al.
    2014). The mask is a function of the state of PyTorch's generator."""
    if not training or p == 0.0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    dropped = min(round(p * VALUES), VALUES - 1)
    seed = int(torch.randint(1 << 62, ()))
    random = np.random.SFC64(seed).random_raw(math.ceil(x.numel() / 4)).view(np.int16)[: x.numel()]
    keep = torch.from_numpy(random).view(x.shape) >= dropped - VALUES // 2
    return x * keep.to(x.dtype).mul_(VALUES / (VALUES - dropped))
