"""Refuse a model that diverged, before its outputs are taken for results.

refuse_diverged(model, "out/ckpt.pt")
"""

import torch

from tinygpt.generate import require_finite
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
