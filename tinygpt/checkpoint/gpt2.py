"""OpenAI's GPT-2 (Radford et al. 2019) as a base model, and the Hugging Face hub, from which it comes.

nanoGPT's names of the weights, and so tinygpt's, are GPT-2's.
"""

import dataclasses
from pathlib import Path

from torch import Tensor

from tinygpt.base.errors import TinyGPTError, library
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.checkpoint.tensors import read_tensors
from tinygpt.model import GPTConfig

GPT2 = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
FILES = ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
FILES += ["*.safetensors", "model.safetensors.index.json"]


def hub_folder(name: str) -> Path:
    """Download a model from the Hugging Face hub, or find it in the cache; returns its folder.

    Errors: TinyGPTError for an invalid name, for a model that does not exist or needs an account, and offline.
    """
    hub = library("huggingface_hub", "the Hugging Face hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # its own errors, httpx's or requests', and the system's
        raise TinyGPTError(
            f"{name}: no such folder, and it cannot be downloaded from the Hugging Face hub ({type(error).__name__})",
            "check the name and the connection, or give a folder that was downloaded elsewhere",
        ) from error


def gpt2_checkpoint(name: str) -> Checkpoint:
    """Download OpenAI's GPT-2, or find it in the cache. Errors: TinyGPTError for another name; see `hub_folder`."""
    if name not in GPT2:
        raise TinyGPTError(f"--init_from={name}: no such model", f"one of {', '.join(GPT2)}, or a checkpoint's path")
    layers, heads, width = GPT2[name]
    shape = GPTConfig(1024, 50257, layers, heads, width, bias=True, activation="gelu_tanh", mlp_width=4 * width)
    weights = named_as_here(read_tensors(hub_folder(f"openai-community/{name}") / "model.safetensors"))
    return Checkpoint(weights, dataclasses.asdict(shape), config={}, tokenizer={"kind": "gpt2"})


def named_as_here(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return GPT-2's weights with their prefix, and the matrices of its blocks, stored as (in, out), as (out, in)."""
    weights = {}
    for name, weight in stored.items():
        name = f"transformer.{name.removeprefix('transformer.')}"
        weights[name] = weight.t().contiguous() if ".h." in name and weight.dim() == 2 else weight
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}
