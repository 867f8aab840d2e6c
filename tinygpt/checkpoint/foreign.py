"""Files of other tools, which may come from a stranger: download them, read their tensors and JSON, check values.

Pickled weights are read only with torch.load's `weights_only=True`. Whatever is wrong becomes a TinyGPTError that names
the file and the value.

    with read_errors(path):
        width = size(read_json(path / "config.json"), "hidden_size")
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinygpt.base.errors import TinyGPTError, library
from tinygpt.base.files import read_text, replacing

FILES = [
    *("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"),
    *("*.safetensors", "model.safetensors.index.json"),
]
WEIGHTS = "model.safetensors", "pytorch_model.bin"  # in the order in which they are looked for
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # stored by older files, computed by the model
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
SAFETENSORS = "safetensors.torch", "a file of tensors"  # a module, and what needs it
AGAIN = "download the folder again"
LARGEST = 1 << 20  # of any size in a config.json, so that no size overflows; contexts of a million tokens exist


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


@contextlib.contextmanager
def read_errors(source: object) -> Iterator[None]:
    """Turn what Python and libraries raise for a damaged or forged file into TinyGPTError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        problem = f"{source}: damaged, or of an unknown form ({type(error).__name__}: {shown(str(error))})"
        raise unusable(problem) from error


def number(
    values: dict[str, Any], key: str, low: float, high: float, where: object = "config.json", whole: bool = False
) -> float:
    """Take a number from the content of the file `where`. Errors: TinyGPTError unless it is from `low` to `high`."""
    value: Any = values.get(key)
    if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
        limits = f"a whole number from {low:,} to {high:,}" if whole else f"a number from {low:g} to {high:g}"
        raise unusable(f"{where}: {key} is {shown(value)}, not {limits}")
    return value if whole else float(value)


def size(values: dict[str, Any], key: str, default: int | None = None, where: object = "config.json") -> int:
    """Take a size, a whole number from 1 to LARGEST. Errors: as in `number`."""
    value = default if values.get(key) is None else values[key]
    return int(number({key: value}, key, 1, LARGEST, where, whole=True))


def shown(value: Any) -> str:
    """Format a value of unknown origin for a message: ASCII, and not long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def unusable(problem: str) -> TinyGPTError:
    return TinyGPTError(problem, "choose another model, or download its files again")
