"""OpenAI's GPT-2 weights as a starting point: `--init_from=gpt2`, through the package transformers.

transformers downloads them once (or takes them from its cache). It stores the linear layers' weights transposed.
"""

from typing import Any

import torch

from tinygpt.checkpoint.store import Checkpoint
from tinygpt.errors import TinyGPTError

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def gpt2_checkpoint(name: str) -> Checkpoint:
    """Load the weights of `name` as a checkpoint. Errors: TinyGPTError without transformers, or without network and
    cache."""
    if name not in NAMES:
        raise TinyGPTError(f"--init_from={name}: no such model", f"one of {', '.join(NAMES)}, or a checkpoint's path")
    try:
        from transformers import GPT2LMHeadModel
    except ImportError:
        raise TinyGPTError(f"--init_from={name} needs the package transformers", "pip install transformers") from None
    try:
        return from_huggingface(GPT2LMHeadModel.from_pretrained(name))
    except OSError:
        raise TinyGPTError(
            f"{name}'s weights are not on this machine and cannot be downloaded",
            "connect to the internet once; later runs use the cached file",
        ) from None


def from_huggingface(model: Any) -> Checkpoint:
    """Convert a Hugging Face GPT2LMHeadModel to a checkpoint with nanoGPT's parameter names."""
    args = model.config
    weights = {
        name: weight.t().contiguous() if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else weight
        for name, weight in model.state_dict().items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    return Checkpoint(
        model={name: weight.detach().to(torch.float32) for name, weight in weights.items()},
        model_args={
            "n_layer": args.n_layer,
            "n_head": args.n_head,
            "n_embd": args.n_embd,
            "block_size": args.n_positions,
            "vocab_size": args.vocab_size,
            "bias": True,
            "activation": {"gelu_new": "gelu_tanh"}.get(args.activation_function, args.activation_function),
        },
        config={},
        tokenizer={"kind": "gpt2"},
    )
