"""OpenAI's GPT-2 as a base model: the logits of transformers' GPT-2, its published sizes, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Lazy
from models import ids, largest, shaken
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import gpt2
from tinygpt.checkpoint.gpt2 import GPT2, gpt2_checkpoint

transformers: Any = Lazy("transformers")
safetensors: Any = Lazy("safetensors.torch")

LAYERS, HEADS, WIDTH = 2, 3, 12


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


def stored(model: Any) -> dict[str, Tensor]:
    """The tensors of OpenAI's file: no prefix, no head, and the masks."""
    weights = {
        name.removeprefix("transformer."): weight.clone()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    return weights | {f"h.{block}.attn.bias": torch.ones(1, 1, 1024, 1024).tril() for block in range(LAYERS)}


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_logits_are_those_of_transformers(folder: Path, prefix: str) -> None:
    """The file of OpenAI, and one that an older version of transformers has saved, with the head and more buffers."""
    model = theirs()
    weights = {prefix + name: weight for name, weight in stored(model).items()}
    if prefix:
        weights |= {"lm_head.weight": model.lm_head.weight.clone(), f"{prefix}h.0.attn.masked_bias": torch.tensor(-1e4)}
    safetensors.save_file(weights, folder / "model.safetensors")
    checkpoint = gpt2_checkpoint("gpt2")
    idx = ids(2, 100, vocab_size=50257)
    ours = checkpoint.build_model().eval()
    assert largest(ours(idx)[0] - model(idx).logits) < 1e-5
    assert checkpoint.num_params == model.num_parameters()
    assert checkpoint.tokenizer == {"kind": "gpt2"}


def test_files_of_another_model_are_refused_by_name(folder: Path) -> None:
    weights = stored(theirs())
    more = {name.replace("h.1.", "h.2."): weight.clone() for name, weight in weights.items() if name.startswith("h.1.")}
    cases = [
        ({name: weights[name] for name in weights if name != "ln_f.bias"}, "lack the tensor transformer.ln_f.bias"),
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
