"""LoRA adapters in PEFT's format: PEFT computes the same as tinygpt, with adapters of either."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Lazy
from models import MODERN, largest
from published import ROPE, auto, characters, every_row, model, refuses_mutants, theirs_of
from test_architectures import ids

from tinygpt.adapt.formats.conversion import from_stock
from tinygpt.adapt.formats.huggingface import read_folder, write_folder
from tinygpt.adapt.formats.peft import read_adapter, write_adapter
from tinygpt.adapt.formats.tokenizers import tokenizer_files
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.adapter import applied, save_adapter, weights_fingerprint
from tinygpt.checkpoint.lora import LoRA, attach
from tinygpt.checkpoint.store import Checkpoint

peft: Any = Lazy("peft")


def lora_run(
    rank: int = 4, alpha: float = 7.0, new_tokens: int = 3, targets: str = LoRA.targets, **options: Any
) -> Any:
    """The checkpoint of a LoRA run, with adapters and new rows that change the logits."""
    gpt = model(**options)
    attach(gpt, LoRA(rank, alpha, targets=targets), new_tokens)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in gpt.named_parameters():
        if "lora_" in name or "new_rows" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    config = {"lora_rank": rank, "lora_alpha": alpha, "lora_dropout": 0.1, "lora_targets": targets, "dataset": "tiny"}
    spec = characters(pairs=True).to_dict()
    return Checkpoint(gpt.state_dict(), vars(gpt.config).copy(), config, 20, 2.5, spec)


def imported(folder: Path) -> Checkpoint:
    """What `tinygpt import` makes of a folder."""
    config, weights = from_stock(read_folder(folder).stock)
    return Checkpoint(weights, vars(config).copy(), {"dataset": "tiny"}, tokenizer=characters().to_dict())


@torch.inference_mode()
def logits(checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.build_model().eval()(ids(2, 60))[0]


@torch.inference_mode()
def peft_logits(base: Path, adapter: Path) -> torch.Tensor:
    return peft.PeftModel.from_pretrained(auto(base), adapter).eval()(ids(2, 60)).logits


@every_row
def test_peft_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = lora_run(**options)
    write_adapter(Path("out"), run, characters(pairs=True))
    settings = json.loads(Path("out/adapter/adapter_config.json").read_text())
    assert settings["fan_in_fan_out"] == (name == "GPT2LMHeadModel")  # PEFT would correct it, with a warning
    expected = logits(run)
    assert largest(expected - peft_logits(Path("out"), Path("out/adapter"))) < 3e-5
    with torch.inference_mode():
        found = peft.AutoPeftModelForCausalLM.from_pretrained("out/adapter").eval()(ids(2, 60)).logits
        base = auto(Path("out"))(ids(2, 60)).logits
    assert largest(expected - found) < 3e-5
    assert largest(expected - base) > 0.1  # the adapter does something


@pytest.mark.parametrize("targets", ["c_attn", "c_proj,c_fc"])
def test_only_the_adapted_layers_are_exported(tmp_path: Path, targets: str) -> None:
    run = lora_run(targets=targets, **MODERN)
    write_adapter(tmp_path / "out", run, characters(pairs=True))
    settings = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    names = {"c_attn": ["k_proj", "q_proj", "v_proj"], "c_proj,c_fc": ["down_proj", "gate_proj", "o_proj", "up_proj"]}
    assert settings["target_modules"] == names[targets]
    assert largest(logits(run) - peft_logits(tmp_path / "out", tmp_path / "out/adapter")) < 3e-5


@every_row
def test_out_and_in_again(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    run = lora_run(**options)
    out = tmp_path / "out"
    write_adapter(out, run, characters(pairs=True))
    back = read_adapter(out / "adapter", imported(out))
    assert largest(logits(run) - logits(back)) < 3e-5
    assert {len(weight) for key, weight in back.model.items() if key.endswith("lora_A")} == {4}  # A stays shared


def trained_by_peft(folder: Path, class_name: str, fields: dict[str, Any], **lora: Any) -> torch.Tensor:
    """A base in `folder`, and in folder/adapter an adapter that PEFT made; returns the logits of both together."""
    theirs = theirs_of(class_name, **fields)
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_files(characters())["tokenizer.json"], encoding="utf-8")
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **lora)).eval()
    generator = torch.Generator().manual_seed(3)
    for key, parameter in wrapped.named_parameters():
        if "lora_" in key:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder / "adapter")
    with torch.inference_mode():
        return wrapped(ids(2, 60)).logits


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RELU = {"hidden_act": "relu2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
ADAPTERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("LlamaForCausalLM", {}, {"r": 3, "lora_alpha": 5, "target_modules": ALL}),
    ("LlamaForCausalLM", {}, {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}),
    ("LlamaForCausalLM", {}, {"r": 4, "lora_alpha": 6, "target_modules": ["up_proj"], "use_rslora": True}),
    ("LlamaForCausalLM", {}, {"r": 4, "target_modules": ["k_proj", "down_proj"], "layers_to_transform": [1]}),
    ("Qwen3ForCausalLM", {"rms_norm_eps": 1e-3}, {"r": 3, "target_modules": ALL}),
    ("ApertusForCausalLM", RELU, {"r": 2, "target_modules": ["q_proj", "o_proj", "up_proj"]}),
    ("GPT2LMHeadModel", {}, {"r": 3, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ("MistralForCausalLM", {"sliding_window": None}, {"r": 3, "target_modules": "all-linear"}),
]


@pytest.mark.parametrize(("name", "fields", "lora"), ADAPTERS, ids=lambda v: v if isinstance(v, str) else "")
def test_an_adapter_made_by_peft(tmp_path: Path, name: str, fields: dict[str, Any], lora: dict[str, Any]) -> None:
    expected = trained_by_peft(tmp_path, name, fields, **lora)
    base = imported(tmp_path)
    run = read_adapter(tmp_path / "adapter", base)
    assert largest(expected - logits(run)) < 3e-5
    assert largest(expected - logits(base)) > 0.01

    resumed = run.build_for_resuming().eval()  # the adapters stay separate
    assert largest(expected - resumed(ids(2, 60))[0]) < 3e-5
    save_adapter(tmp_path / "adapter.pt", run, weights_fingerprint(base.model))
    assert torch.equal(logits(applied(base, "base", str(tmp_path / "adapter.pt"))), logits(run))


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
def test_a_setting_that_tinygpt_lacks_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    trained_by_peft(tmp_path, "LlamaForCausalLM", {}, r=3, target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert named in refused(tmp_path / "adapter", imported(tmp_path))


def refused(folder: Path, base: Checkpoint) -> str:
    with pytest.raises(TinyGPTError) as caught:
        read_adapter(folder, base)
    assert caught.value.hint and "\n" not in caught.value.message and len(caught.value.message) < 400
    return caught.value.message


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    trained_by_peft(tmp_path / "a", "LlamaForCausalLM", {}, r=3, target_modules=ALL)
    trained_by_peft(tmp_path / "b", "LlamaForCausalLM", {"intermediate_size": 40}, r=3, target_modules=ALL)
    trained_by_peft(tmp_path / "c", "LlamaForCausalLM", {"num_hidden_layers": 1}, r=3, target_modules=ALL)
    assert "do not fit" in refused(tmp_path / "a/adapter", imported(tmp_path / "b"))
    assert "belongs to no layer" in refused(tmp_path / "a/adapter", imported(tmp_path / "c"))
    os.remove(tmp_path / "a/adapter/adapter_model.safetensors")
    assert "no such file" in refused(tmp_path / "a/adapter", imported(tmp_path / "a"))
    assert "adapter_config.json: no such file" in refused(tmp_path / "a", imported(tmp_path / "a"))


def test_a_model_with_layernorm_and_rope_takes_no_adapter_of_its_exported_form(tmp_path: Path) -> None:
    """The exported form has RMSNorm; an adapter may shift the mean there, which LayerNorm would remove."""
    options = ROPE | {"norm": "layernorm"}
    write_adapter(tmp_path / "out", lora_run(**options), characters(pairs=True))
    gpt = model(**options)
    base = Checkpoint(gpt.state_dict(), vars(gpt.config).copy(), {}, tokenizer=characters().to_dict())
    assert "fits only an imported model" in refused(tmp_path / "out/adapter", base)


def test_a_base_with_an_option_that_no_class_has_takes_no_adapter(tmp_path: Path) -> None:
    trained_by_peft(tmp_path / "a", "LlamaForCausalLM", {}, r=3, target_modules=ALL)
    gpt = model(qk_norm=True)
    base = Checkpoint(gpt.state_dict(), vars(gpt.config).copy(), {}, tokenizer=characters().to_dict())
    assert "no model class of transformers has all options" in refused(tmp_path / "a/adapter", base)


def test_an_adapter_does_not_stay_beside_another_base(tmp_path: Path) -> None:
    run = lora_run(**MODERN)
    write_adapter(tmp_path / "out", run, characters(pairs=True))
    write_adapter(tmp_path / "out", run, characters(pairs=True))
    with pytest.raises(TinyGPTError, match="holds other files"):
        write_folder(tmp_path / "out", run, characters(pairs=True))
    shutil.rmtree(tmp_path / "out/adapter")
    write_folder(tmp_path / "out", run, characters(pairs=True))


@pytest.mark.parametrize(
    "name", [pytest.param("adapter_config.json", marks=pytest.mark.slow), "adapter_model.safetensors"]
)
def test_mutants_never_give_a_traceback(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    trained_by_peft(tmp_path, "LlamaForCausalLM", {}, r=3, target_modules=ALL)
    base, count = imported(tmp_path), int(2000 * (request.config.getoption("--full") or 0.2))
    refuses_mutants(tmp_path / "adapter" / name, lambda: read_adapter(tmp_path / "adapter", base), count)
