"""Refuse a model that diverged, before its outputs are taken for results.

refuse_diverged(model, "out/ckpt.pt")
"""

import torch
from torch import Tensor

from tinygpt.errors import diverged
from tinygpt.model import GPT


@torch.inference_mode()
def refuse_diverged(model: GPT, where: str, probe: int = 64) -> None:
    """Check that a model's weights, and its logits for up to `probe` tokens, are finite.

    Errors: TinyGPTError, whose message begins with `where`, the name of the model.
    """
    for weight in model.parameters():
        require_finite(weight, f"{where}: the weights are")
    count = min(model.config.vocab_size, model.config.block_size, probe)
    idx = torch.arange(count, device=model.lm_head.weight.device)[None]
    require_finite(model.eval()(idx)[0], f"{where}: the logits are")


def require_finite(values: Tensor, what: str = "the logits are") -> None:
    """Check that no value is NaN or infinite. Errors: TinyGPTError, whose message begins with `what`."""
    if not values.isfinite().all():
        raise diverged(what, values[~values.isfinite()][0].item())
