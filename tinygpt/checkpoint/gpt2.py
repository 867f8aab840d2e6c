"""OpenAI's GPT-2 (Radford et al. 2019) as a base model, from the Hugging Face hub.

nanoGPT's names of the weights, and so tinygpt's, are GPT-2's.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.foreign import hub_folder, read_errors, read_weights, shown, unusable
from tinygpt.checkpoint.store import Checkpoint, empty_model
from tinygpt.options import GPTConfig

GPT2 = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}


def gpt2_checkpoint(name: str) -> Checkpoint:
    """Download OpenAI's GPT-2, or find it in the cache.

    Errors: TinyGPTError for another name, and for files that are damaged or of another model; see `hub_folder`.
    """
    if name not in GPT2:
        raise TinyGPTError(f"--init_from={name}: no such model", f"one of {', '.join(GPT2)}, or a checkpoint's path")
    layers, heads, width = GPT2[name]
    shape = GPTConfig(1024, 50257, layers, heads, width, bias=True, activation="gelu_tanh", mlp_width=4 * width)
    folder = hub_folder(f"openai-community/{name}")
    with read_errors(folder):
        weights = named_as_here(read_weights(folder))
    _require_shapes(weights, shape, folder)
    return Checkpoint(weights, dataclasses.asdict(shape), config={}, tokenizer={"kind": "gpt2"})


def named_as_here(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return GPT-2's weights with their prefix, and the matrices of its blocks, stored as (in, out), as (out, in).

    The head is the embeddings, whether a file has it or not. Errors: TinyGPTError if its head differs from them.
    """
    weights = {}
    for name, weight in stored.items():
        if not name.startswith("lm_head."):
            name = f"transformer.{name.removeprefix('transformer.')}"
        weights[name] = weight.t().contiguous() if ".h." in name and weight.dim() == 2 else weight
    embeddings = weights["transformer.wte.weight"]
    head = weights.get("lm_head.weight")
    if head is not None and not torch.equal(head, embeddings):
        raise unusable("lm_head.weight differs from the embeddings, which GPT-2 uses as its head")
    return weights | {"lm_head.weight": embeddings}


def _require_shapes(weights: dict[str, Tensor], config: GPTConfig, source: Path) -> None:
    """Check that there are the tensors of this GPT and no others. Errors: TinyGPTError names the first that differs."""
    expected = empty_model(config).state_dict()
    for name in expected | weights:
        if name not in weights:
            raise unusable(f"{source}: the weights lack the tensor {name}")
        if name not in expected:
            raise unusable(f"{source}: the weights have a tensor that GPT-2 lacks: {shown(name)}")
        if (shape := tuple(weights[name].shape)) != (required := tuple(expected[name].shape)):
            raise unusable(f"{source}: the shape of the tensor {name} is {shape}, not {required}")
