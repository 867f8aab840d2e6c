"""LoRA adapters in PEFT's format, out and in.

Both sides compute W x + (alpha / rank) B A x, but PEFT adapts the layers of a stock class. A fused layer of a GPT
(c_attn, SwiGLU's c_fc) is several of them. Going out, they share A and split the rows of B. Coming in, their A are
stacked and their B become the blocks of a block-diagonal matrix, and all layers are padded with zeros to one rank.
`converted` changes B as it changes the weights.

PEFT's adapters have no rows for new tokens, so the exported base already contains them.

Source: https://huggingface.co/docs/peft, "LoRA" and "Checkpoint format".

    write_adapter(Path("out-peft"), run, tokenizer)       # a base in out-peft, its adapter in out-peft/adapter
    run = read_adapter(Path("out-peft/adapter"), base)    # a checkpoint of a LoRA run: save_adapter writes it
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt.adapt.formats.conversion import centred, converted, split_rows, stock_class
from tinygpt.adapt.formats.huggingface import require_own, write_file, write_folder
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.foreign import number, read_json, read_tensors, shown, size, write_tensors
from tinygpt.checkpoint.lora import LoRA, is_adapted, merged
from tinygpt.checkpoint.store import Checkpoint, empty_model
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.options import GPTConfig

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FOLDER = "adapter"
HARMLESS = {  # keys of an adapter_config.json that do not change what a LoRA adapter computes, or that are used here
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "fan_in_fan_out"),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_type", "peft_version", "task_type"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"),
}
USUAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}  # other ways to start change the base


def write_adapter(out: Path, run: Checkpoint, tokenizer: Tokenizer) -> None:
    """Write the base of a LoRA run as a Hugging Face folder, and its adapter for PEFT in the folder `adapter` there.

    Errors: TinyGPTError as in `write_folder`, and for a checkpoint without an adapter.
    """
    rank = next((len(weight) for name, weight in run.model.items() if name.endswith(".lora_A")), 0)
    if not rank:
        raise TinyGPTError("this checkpoint has no LoRA adapter", "export it with --format hf")
    config = GPTConfig.from_dict(run.model_args)
    row = stock_class(config)
    weights = {}
    for name, a in run.model.items():
        layer, _, parameter = name.rpartition(".")
        if parameter == "lora_A":
            outputs = converted(config, layer, run.model[f"{layer}.lora_B"].float())
            for part, b in split_rows(row, config, layer, outputs).items():
                weights[f"base_model.model.{part}.lora_A.weight"] = a.float().clone()  # safetensors shares no memory
                weights[f"base_model.model.{part}.lora_B.weight"] = b.contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": out.as_posix(),
        "r": rank,
        "lora_alpha": number(run.config, "lora_alpha", 0, 1e6, where="the run's config"),
        "lora_dropout": run.config.get("lora_dropout", 0.0),
        "target_modules": sorted({name.split(".")[-3] for name in weights}),
        "fan_in_fan_out": row.learned,
        "bias": "none",
        "inference_mode": True,
    }
    without_lora = {name: weight for name, weight in run.model.items() if not name.endswith((".lora_A", ".lora_B"))}
    base = dataclasses.replace(run, model=merged(without_lora, alpha=1.0))  # without adapters: only new rows are merged
    adapter = out / FOLDER
    require_own(adapter, {SETTINGS, WEIGHTS})
    use = f'The adapter is added with `PeftModel.from_pretrained(model, "{out.name}/{FOLDER}")`'
    note = f"These are the weights of the base model. {use}; the loss is that of both together."
    write_folder(out, base, tokenizer, note, beside=FOLDER)
    adapter.mkdir(exist_ok=True)
    write_tensors(adapter / WEIGHTS, weights)
    write_file(adapter / SETTINGS, settings)


def read_adapter(folder: Path, base: Checkpoint) -> Checkpoint:
    """Read a LoRA adapter of PEFT for an imported base; returns base and adapter as the checkpoint of a LoRA run.

    Errors: TinyGPTError for a setting that tinygpt's LoRA does not support, and for an adapter of another model.
    """
    settings = read_json(folder / SETTINGS, "give the folder that PEFT's save_pretrained wrote")
    config = GPTConfig.from_dict(base.model_args)
    if is_adapted(base.model) or centred(config):
        raise TinyGPTError(
            "a PEFT adapter fits only an imported model, and this base model is not one",
            "import the adapter's own base first: tinygpt import FOLDER",
        )
    rank, scale = _settings(settings, folder / SETTINGS)
    pickled = WEIGHTS.replace(".safetensors", ".bin")
    tensors = read_tensors(folder / (pickled if (folder / pickled).exists() else WEIGHTS))
    empty = empty_model(config).state_dict()
    shapes = {name.removesuffix(".weight"): like for name, like in empty.items() if ".h." in name}
    layers = {layer: _layer(config, layer, like, rank, tensors) for layer, like in shapes.items() if like.dim() == 2}
    width = max(len(a) for a, _ in layers.values())
    if tensors or not width:
        problem = f"the tensor {shown(next(iter(tensors)))} belongs to no layer" if tensors else "no tensors"
        raise _foreign(folder, problem)
    adapted = {layer.rpartition(".")[2] for layer, (a, _) in layers.items() if len(a)}
    targets = [name for name in LoRA.targets.split(",") if name in adapted]
    weights = {}
    for layer, (a, b) in layers.items():
        if layer.rpartition(".")[2] in targets:
            weights[f"{layer}.lora_A"] = F.pad(a, (0, 0, 0, width - len(a)))
            weights[f"{layer}.lora_B"] = F.pad(b, (0, width - len(a)))
    lora = {"lora_rank": width, "lora_alpha": scale * width, "lora_targets": ",".join(targets), "lora_dropout": 0.0}
    return dataclasses.replace(base, model={**base.model, **weights}, config={**base.config, **lora})


def _settings(settings: dict[str, Any], path: Path) -> tuple[int, float]:
    """Read an adapter's rank and scale. Errors: TinyGPTError for an unsupported setting that changes the function."""
    if settings.get("peft_type") != "LORA":
        raise TinyGPTError(f"{path}: peft_type is {shown(settings.get('peft_type'))}", "import a LoRA adapter")
    for key, value in settings.items():
        if key not in HARMLESS and value and value not in USUAL.get(key, ()):
            raise TinyGPTError(
                f"{path}: {shown(key)} is {shown(value)}, which tinygpt's LoRA does not support", "train without it"
            )
    rank = size(settings, "r", where=path)
    alpha = number(settings, "lora_alpha", 0, 1e6, where=path)
    return rank, alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _layer(
    config: GPTConfig, layer: str, weight: Tensor, rank: int, tensors: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Join A (n, in) and B (out, n) of a layer of a GPT from the layers that it stacks; n is 0 if none is adapted."""
    a_parts = []
    b_parts = []
    for part, rows in split_rows(stock_class(config), config, layer, weight).items():
        a = tensors.pop(f"base_model.model.{part}.lora_A.weight", torch.zeros(0, weight.size(1)))
        b = tensors.pop(f"base_model.model.{part}.lora_B.weight", torch.zeros(len(rows), 0))
        if len(a) not in (0, rank) or a.shape[1:] != weight.shape[1:] or b.shape != (len(rows), len(a)):
            raise _foreign(Path(part), f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not fit r = {rank}")
        a_parts.append(a)
        b_parts.append(b)
    if all(torch.equal(a, a_parts[0]) for a in a_parts):  # as write_adapter writes them
        return a_parts[0], converted(config, layer, torch.cat(b_parts), inverse=True)
    return torch.cat(a_parts), converted(config, layer, torch.block_diag(*b_parts), inverse=True)


def _foreign(where: Path, problem: str) -> TinyGPTError:
    return TinyGPTError(f"{where}: {problem} of this base model", "import the adapter's own base first: tinygpt import")
