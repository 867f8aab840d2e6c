"""Adapters in PEFT's format that are refused. test_architectures.py compares the others with PEFT, out and in."""

import json
from pathlib import Path
from typing import Any

import pytest
from published import (
    Adapter,
    checkpoint_of,
    imported,
    lora_run,
    model,
    peft,
    refuses_mutants,
    saved_by_transformers,
    theirs_of,
)

from tinygpt.adapt.formats.peft import read_adapter
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import Checkpoint

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base and, in the folder adapter, an adapter made by PEFT."""
    theirs = saved_by_transformers(tmp_path / "usual", theirs_of("LlamaForCausalLM"))
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=ALL)
    peft.get_peft_model(theirs, lora).save_pretrained(tmp_path / "usual/adapter")
    return tmp_path / "usual"


def refused(folder: Path, base: Checkpoint) -> str:
    with pytest.raises(TinyGPTError) as caught:
        read_adapter(folder, base)
    assert caught.value.hint and "\n" not in caught.value.message and len(caught.value.message) < 400
    return caught.value.message


def test_a_setting_that_tinygpt_lacks_is_refused_by_name(folder: Path) -> None:
    path, base = folder / "adapter/adapter_config.json", imported(folder)
    settings = json.loads(path.read_text())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"r": 4}, "do not fit r = 4"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
    ]
    for changed, named in cases:
        path.write_text(json.dumps(settings | changed))
        assert named in refused(folder / "adapter", base)


def test_an_adapter_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for changed, named in ({"intermediate_size": 40}, "do not fit"), ({"num_hidden_layers": 1}, "belongs to no layer"):
        saved_by_transformers(tmp_path / named, theirs_of("LlamaForCausalLM", **changed))
        assert named in refused(folder / "adapter", imported(tmp_path / named))
    assert "no model class of transformers has all" in refused(folder / "adapter", checkpoint_of(model(qk_norm=True)))
    (folder / "adapter/adapter_model.safetensors").unlink()
    assert "no such file" in refused(folder / "adapter", imported(folder))
    assert "adapter_config.json: no such file" in refused(folder, imported(folder))
    # LayerNorm and RoPE are exported with RMSNorm; an adapter may shift the mean there, which LayerNorm would remove
    Adapter().write(tmp_path / "out", lora_run(model(position="rope")))
    assert "fits only an imported model" in refused(tmp_path / "out/adapter", checkpoint_of(model(position="rope")))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_mutants_never_give_a_traceback(folder: Path, name: str, request: pytest.FixtureRequest) -> None:
    base, count = imported(folder), int(2000 * (request.config.getoption("--full") or 0.05))
    refuses_mutants(folder / "adapter" / name, lambda: read_adapter(folder / "adapter", base), count)
