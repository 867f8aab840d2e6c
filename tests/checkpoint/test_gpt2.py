"""OpenAI's GPT-2 as a base model: the logits of transformers' GPT-2, its published sizes, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Lazy, cli, listing
from models import ids, largest, shaken
from torch import Tensor

from tinygpt.adapt.formats.architectures import STOCK
from tinygpt.adapt.formats.conversion import _gpt_config
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import gpt2
from tinygpt.checkpoint.gpt2 import GPT2, gpt2_checkpoint
from tinygpt.options import GPTConfig

transformers: Any = Lazy("transformers")
safetensors: Any = Lazy("safetensors.torch")

LAYERS, HEADS, WIDTH = 2, 3, 12
PUBLISHED = {  # parameters
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def theirs() -> Any:
    """A GPT-2 of transformers with GPT-2's vocabulary and context, whose every parameter affects the logits."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH)
    return shaken(transformers.GPT2LMHeadModel(config).eval(), 0.1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub is said to return, for a gpt2 as small as the one above."""
    path = tmp_path / "hub"
    path.mkdir()
    monkeypatch.setattr(gpt2, "hub_folder", lambda name: path if name == "openai-community/gpt2" else None)
    monkeypatch.setitem(GPT2, "gpt2", (LAYERS, HEADS, WIDTH))
    return path


def stored(model: Any, prefix: str = "", head: bool = False, masks: bool = False) -> dict[str, Tensor]:
    """The tensors of a file of GPT-2, whose names begin with `prefix`."""
    weights = {name: weight.clone() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    weights = {prefix + name.removeprefix("transformer."): weight for name, weight in weights.items()}
    if head:
        weights["lm_head.weight"] = model.lm_head.weight.detach().clone()
    if masks:  # buffers, which older versions of transformers stored; OpenAI's files have the first
        for block in range(LAYERS):
            weights[f"{prefix}h.{block}.attn.bias"] = torch.ones(1, 1, 1024, 1024).tril()
            weights[f"{prefix}h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    return weights


@torch.inference_mode()
@pytest.mark.parametrize(
    ("prefix", "head", "masks"), [("", False, True), ("transformer.", False, False), ("transformer.", True, True)]
)
def test_the_logits_are_those_of_transformers(folder: Path, prefix: str, head: bool, masks: bool) -> None:
    model = theirs()
    safetensors.save_file(stored(model, prefix, head, masks), folder / "model.safetensors")
    checkpoint = gpt2_checkpoint("gpt2")
    idx = ids(2, 100, vocab_size=50257)
    ours = checkpoint.build_model().eval()
    assert largest(ours(idx)[0] - model(idx).logits) < 1e-5
    assert checkpoint.num_params == model.num_parameters()
    assert checkpoint.tokenizer == {"kind": "gpt2"}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_the_sizes_are_the_published_ones(
    name: str, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has the weights of transformers' class and the config that an import makes, all without memory."""
    layers, heads, width = GPT2[name]
    config = transformers.GPT2Config(n_layer=layers, n_head=heads, n_embd=width, architectures=["GPT2LMHeadModel"])
    with torch.device("meta"):
        weights = transformers.GPT2Model(config).state_dict()
    monkeypatch.setattr(gpt2, "hub_folder", lambda _: tmp_path)
    monkeypatch.setattr(gpt2, "read_weights", lambda _: weights)
    checkpoint = gpt2_checkpoint(name)
    imported = _gpt_config(STOCK["GPT2LMHeadModel"], json.loads(config.to_json_string()))
    assert GPTConfig(**checkpoint.model_args) == imported and imported.head_dim == 64
    assert sum(weight.numel() for weight in weights.values()) == parameters


def test_files_of_another_model_are_refused_by_name(folder: Path) -> None:
    weights = stored(theirs())
    one = {name: weight.clone() for name, weight in weights.items() if name.startswith("h.1.")}
    more = {name.replace("h.1.", "h.2."): weight for name, weight in one.items()}
    cases = [
        ({name: weights[name] for name in weights if name not in one}, "lack the tensor transformer.h.1.ln_1.weight"),
        ({name: weights[name] for name in weights if name != "wte.weight"}, "transformer.wte.weight"),
        (weights | more, "a tensor that GPT-2 lacks: 'transformer.h.2."),
        (weights | {"wpe.weight": torch.ones(9, WIDTH)}, "transformer.wpe.weight is (9, 12), not (1024, 12)"),
        (weights | {"ln_f.bias": torch.ones(WIDTH, dtype=torch.int32)}, "is int32"),
        (weights | {"lm_head.weight": weights["wte.weight"] + 1}, "lm_head.weight differs"),
    ]
    for wrong, message in cases:
        safetensors.save_file(wrong, folder / "model.safetensors")
        with pytest.raises(TinyGPTError, match=re.escape(message)) as error:
            gpt2_checkpoint("gpt2")
        assert "again" in error.value.hint or "quantised" in error.value.hint


@pytest.mark.slow
def test_offline_and_without_a_cache_is_refused_in_one_sentence(work: Path, tmp_path_factory: Any) -> None:
    before, home = listing(work), str(tmp_path_factory.mktemp("cache"))
    command = "train", "--dataset=tiny", "--device=cpu", "--init_from=gpt2"
    done = cli(*command, cwd=work, HF_HUB_OFFLINE="1", HF_HOME=home, HF_HUB_CACHE=home)
    problem, hint = done.err.splitlines()
    assert done.status == 2 and not done.out and listing(work) == before
    assert "openai-community/gpt2: no such folder, and it cannot be downloaded from the Hugging Face hub" in problem
    assert "check the name and the connection" in hint
