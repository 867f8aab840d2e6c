"""Adapters in PEFT's format that are refused. test_architectures.py compares the others with PEFT, out and in."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Shared
from models import MODERN
from published import (
    Adapter,
    characters,
    checkpoint_of,
    imported,
    lora_run,
    model,
    peft,
    refuses_mutants,
    saved_by_transformers,
    theirs_of,
)

from tinygpt.adapt.formats.huggingface import write_folder
from tinygpt.adapt.formats.peft import read_adapter
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import Checkpoint

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def llamas(shared: Shared) -> Path:
    """Bases and, in the folder adapter of each, an adapter made by PEFT: narrow has a narrower MLP, short one layer."""

    def make(folder: Path) -> None:
        others = {"narrow": {"intermediate_size": 40}, "short": {"num_hidden_layers": 1}}
        for name, fields in {"usual": {}, **others}.items():
            theirs = saved_by_transformers(folder / name, theirs_of("LlamaForCausalLM", **fields))
            lora = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=ALL)
            peft.get_peft_model(theirs, lora).save_pretrained(folder / name / "adapter")

    return shared("llamas", make)


@pytest.fixture
def folder(llamas: Path, tmp_path: Path) -> Path:
    """A copy of the usual base."""
    return Path(shutil.copytree(llamas / "usual", tmp_path / "usual"))


def refused(folder: Path, base: Checkpoint) -> str:
    with pytest.raises(TinyGPTError) as caught:
        read_adapter(folder, base)
    assert caught.value.hint and "\n" not in caught.value.message and len(caught.value.message) < 400
    return caught.value.message


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"something_new": {"a": 1}}, "something_new"),
        ({"r": 4}, "do not fit r = 4"),
        ({"r": True}, "r is True"),
        ({"r": 10**400}, "r is"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
    ],
)
def test_a_setting_that_tinygpt_lacks_is_refused_by_name(folder: Path, changed: dict[str, Any], named: str) -> None:
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert named in refused(folder / "adapter", imported(folder))


def test_an_adapter_of_another_model_is_refused(llamas: Path, folder: Path, tmp_path: Path) -> None:
    assert "do not fit" in refused(folder / "adapter", imported(llamas / "narrow"))
    assert "belongs to no layer" in refused(folder / "adapter", imported(llamas / "short"))
    assert "no model class of transformers has all" in refused(folder / "adapter", checkpoint_of(model(qk_norm=True)))
    (folder / "adapter/adapter_model.safetensors").unlink()
    assert "no such file" in refused(folder / "adapter", imported(folder))
    assert "adapter_config.json: no such file" in refused(folder, imported(folder))
    # LayerNorm and RoPE are exported with RMSNorm; an adapter may shift the mean there, which LayerNorm would remove
    Adapter().write(tmp_path / "out", lora_run(model(position="rope")))
    assert "fits only an imported model" in refused(tmp_path / "out/adapter", checkpoint_of(model(position="rope")))


def test_an_adapter_does_not_stay_beside_another_base(tmp_path: Path) -> None:
    run = lora_run(model(**MODERN))
    Adapter().write(tmp_path / "out", run)
    Adapter().write(tmp_path / "out", run)
    with pytest.raises(TinyGPTError, match="holds other files"):
        write_folder(tmp_path / "out", run, characters(pairs=True))
    shutil.rmtree(tmp_path / "out/adapter")
    write_folder(tmp_path / "out", run, characters(pairs=True))


@pytest.mark.parametrize(
    "name", [pytest.param("adapter_config.json", marks=pytest.mark.slow), "adapter_model.safetensors"]
)
def test_mutants_never_give_a_traceback(folder: Path, name: str, request: pytest.FixtureRequest) -> None:
    base, count = imported(folder), int(2000 * (request.config.getoption("--full") or 0.1))
    refuses_mutants(folder / "adapter" / name, lambda: read_adapter(folder / "adapter", base), count)
