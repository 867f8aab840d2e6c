"""Weights in 8 bits: a quarter of the size of float32, for a model that is shipped.

Each row of a matrix is stored as int8 and one float16 scale, the largest absolute value of the row divided by 127
("absmax" quantisation, Dettmers et al. 2022, section 3). Vectors are stored in float16.

    small = to_8_bits(checkpoint.model)     # save it as the `model` of a checkpoint; `load` calls from_8_bits
"""

import torch
from torch import Tensor

SCALE = ".scale"  # suffix of a matrix's name: the name of its scales
SMALLEST = 2.0**-14  # the smallest normal number of float16


def absmax(rows: Tensor, smallest: float = 0.0) -> tuple[Tensor, Tensor]:
    """Divide each row of (rows, columns) by its scale, at least `smallest`: int8 of that shape, -127 to 127, and scales
    float16 (rows, 1). A row whose scale is 0 becomes 0."""
    scales = (rows.abs().amax(1, keepdim=True).float() / 127).clamp(smallest, torch.finfo(torch.float16).max).half()
    divisors = scales.float().where(scales > 0, 1.0)
    return (rows / divisors).round().clamp(-127, 127).to(torch.int8), scales


def to_8_bits(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Quantise weights: a matrix (rows, columns) to int8 of that shape and scales float16 (rows, 1)."""
    matrices = {weight.data_ptr(): weight for weight in weights.values() if weight.dim() > 1}
    quantised = {address: absmax(matrix, SMALLEST) for address, matrix in matrices.items()}  # tied ones stay tied
    small: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.dim() > 1:
            small[name], small[name + SCALE] = quantised[weight.data_ptr()]
        else:
            small[name] = weight.half()
    return small


def from_8_bits(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_8_bits`: dequantise to float32. Weights without an 8-bit matrix are returned unchanged. Errors: KeyError
    or RuntimeError for missing or other scales."""
    matrices = {weight.data_ptr(): name for name, weight in weights.items() if weight.dtype == torch.int8}
    if not matrices:
        return weights
    dequantised = {at: weights[name].float() * weights[name + SCALE].float() for at, name in matrices.items()}
    full: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.dtype == torch.int8:
            full[name] = dequantised[weight.data_ptr()]
        elif not name.endswith(SCALE):
            full[name] = weight.float()
    return full
