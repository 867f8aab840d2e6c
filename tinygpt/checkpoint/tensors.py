"""Read and write other tools' files of tensors and settings: safetensors, pickled weights, JSON.

Everything that is read may come from a stranger. Pickled weights are read only with torch.load's `weights_only=True`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinygpt.base.errors import TinyGPTError, library
from tinygpt.base.files import read_text, replacing

WEIGHTS = "model.safetensors", "pytorch_model.bin"  # in the order in which they are looked for
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # stored by older files, computed by the model
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
SAFETENSORS = "safetensors.torch", "a file of tensors"  # a module, and what needs it
AGAIN = "download the folder again"


def read_json(path: Path, hint: str = AGAIN) -> dict[str, Any]:
    """Read a JSON object from a file. Errors: TinyGPTError if it is missing, or contains anything else."""
    try:
        content = json.loads(read_text(path, hint))
    except (ValueError, RecursionError):
        raise TinyGPTError(f"{path}: not valid JSON", hint) from None
    if not isinstance(content, dict):
        raise TinyGPTError(f"{path}: not a JSON object", hint)
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors, safetensors or pickled, as float32. Errors: TinyGPTError if it contains anything else."""
    pickled = path.suffix != ".safetensors"
    if not path.is_file():
        raise TinyGPTError(f"{path}: no such file", AGAIN)
    load_file = library(*SAFETENSORS).load_file
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
    except Exception as error:  # of zipfile, pickle, torch or safetensors
        reason = "tinygpt reads pickled files only if they hold nothing but tensors" if pickled else "it is damaged"
        raise TinyGPTError(f"{path}: cannot be read: {reason} ({type(error).__name__})", AGAIN) from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise TinyGPTError(f"{path}: holds something other than tensors", AGAIN)
    weights: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if str(name).endswith(BUFFERS):
            continue
        if weight.dtype not in FLOATS or weight.layout != torch.strided:
            what = f"the tensor {ascii(str(name))[:80]} is {str(weight.dtype).removeprefix('torch.')}"
            raise TinyGPTError(f"{path}: {what}", "choose a model that is not quantised")
        weights[str(name)] = weight.to(torch.float32)
    return weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder, from one file or from those that an index names. Errors: as in `read_tensors`."""
    for name in WEIGHTS:
        if (path / name).exists():
            return read_tensors(path / name)
        if (index := path / f"{name}.index.json").exists():
            files = dict.fromkeys(Path(file).name for file in read_json(index)["weight_map"].values())
            return {name: weight for file in files for name, weight in read_tensors(path / file).items()}
    raise TinyGPTError(f"{path}: no {' or '.join(WEIGHTS)}", "give a folder with config.json and weights")


def write_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors as safetensors; the file appears in one step."""
    with replacing(path) as file:
        file.write(library(*SAFETENSORS).save(weights, metadata={"format": "pt"}))
