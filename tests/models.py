"""Small models with every option, for the tests of the model and of its decoder."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tinygpt.model import GPT, GPTConfig

SMALL = GPTConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"tie_weights": False},
    {"norm": "rmsnorm"},
    {"position": "rope"},
    {"activation": "relu2"},
    {"activation": "swiglu"},
    {"qk_norm": True},
    {"bigram_table": True},
    {"token_shift": True},
    {"token_shift": True, "position": "rope", "norm": "rmsnorm"},
    {"zero_init": True, "bias": True},
    {"norm": "rmsnorm", "position": "rope", "activation": "relu2", "qk_norm": True, "tie_weights": False, "bias": True},
    {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qk_norm": True},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{v}" for v in o.values()) or "gpt2")


def small(seed: int = 0, **options: Any) -> GPT:
    torch.manual_seed(seed)
    return GPT(dataclasses.replace(SMALL, **options)).eval()


def shaken(model: GPT, std: float = 0.3) -> GPT:
    """Weights so large that every part of the model shows in its logits (fresh ones hardly move the residual)."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return model


def ids(*shape: int, seed: int = 0, vocab_size: int = 65) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()
