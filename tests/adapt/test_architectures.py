"""One round trip for every format of `tinygpt export`: out, opened by another program with the same logits, in again.

transformers and PEFT are the authorities; test_llama.py opens the same GGUF files in llama.cpp. The other way round,
what transformers and PEFT write is imported. An option that a format lacks is refused by name.
"""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from models import MODERN, every_option, every_path, ids, largest, shaken, small
from published import (
    EXPORTED,
    GGUF,
    PLAIN,
    PUBLISHED,
    ROWS,
    STRANGE,
    Adapter,
    Folder,
    apart,
    changed_by_lora,
    checkpoint_of,
    imported,
    logits,
    lora_run,
    model,
    peft,
    rebuilt,
    saved_by_transformers,
    theirs_of,
    transformers,
)

from tinygpt.adapt.formats.architectures import STOCK, Stock
from tinygpt.adapt.formats.conversion import from_stock
from tinygpt.adapt.formats.gguf_file import QUANTISATIONS
from tinygpt.adapt.formats.huggingface import read_folder
from tinygpt.adapt.formats.peft import read_adapter
from tinygpt.adapt.formats.tokenizers import tokenizer_files
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.adapter import applied, save_adapter, weights_fingerprint
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.tokenizer import END, SPECIAL, CharTokenizer
from tinygpt.model import GPT

FORMATS: dict[str, Folder] = {"hf": Folder(), "peft": Adapter(), **{name: GGUF(name) for name in QUANTISATIONS}}
CASES = [("hf", name, options) for name, options in EXPORTED]
CASES += [("peft", name, options) for name, options in EXPORTED[::2]]  # one of each class
CASES += [("f16", name, ROWS[name]) for name in ROWS]
CASES += [(format, name, ROWS[name]) for format in ("q8_0", "q5_1", "q4_0") for name in ("gpt2-bias", "llama-grouped")]
IN_32_BITS = ("blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "output_norm.weight")
IN_32_BITS += ("position_embd.weight", "blk.0.attn_qkv.bias")


def short(value: Any) -> str:
    return value if isinstance(value, str) else ""


# ---- out, and in again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "name", "options"), CASES, ids=short)
def test_out_opened_and_in_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)  # adapter_config.json names its base by the path that export was given
    gpt, how, out = model(**options), FORMATS[format], Path("out")
    run = lora_run(gpt) if format == "peft" else checkpoint_of(gpt)
    how.write(out, run)
    back, expected = how.read(out), logits(run)
    difference = largest(logits(back) - expected)
    assert difference < how.lost
    config = dataclasses.replace(gpt.config, mlp_width=gpt.config.hidden_width)
    if config.norm == "layernorm" and config.position == "rope":
        config = dataclasses.replace(config, norm="rmsnorm", tie_weights=False)
    assert back.model_args == dataclasses.asdict(config)
    if name != "arcee":  # which transformers' reader of GGUF lacks
        theirs = how.theirs(out)
        assert largest(logits(theirs) - logits(back)) < (1e-4 if format in QUANTISATIONS else 3e-5)
    if format == "hf":
        assert type(theirs).__name__ == name
        exact = gpt.config.norm == config.norm and not config.qk_norm  # the others have scaled weights
        assert not exact or all(torch.equal(weight, back.model[key]) for key, weight in run.model.items())
    if format == "peft":
        settings = json.loads((out / "adapter/adapter_config.json").read_text())
        assert settings["fan_in_fan_out"] == (name == "GPT2LMHeadModel")  # PEFT would correct it, with a warning
        assert largest(logits(FORMATS["hf"].theirs(out)) - expected) > 0.1  # the adapter does something
        assert {len(weight) for key, weight in back.model.items() if key.endswith("lora_A")} == {4}  # A stays shared
    if format in QUANTISATIONS:
        assert difference > how.lost / 1000  # negative control
        types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
        assert types["token_embd.weight"] == ("F16" if format == "f16" else "Q8_0")
        assert types["blk.1.ffn_down.weight"] == format.upper()
        assert {types[key] for key in IN_32_BITS if key in types} == {"F32"}


@every_option
@pytest.mark.parametrize("others", [{}, MODERN], ids=["to gpt2", "to modern"])
def test_every_choice_is_exported_exactly_or_refused_by_name(
    tmp_path: Path, options: dict[str, Any], others: dict[str, Any]
) -> None:
    gpt = model(**others | options)
    for format in ("hf", "f16"):
        out, how = tmp_path / format, FORMATS[format]
        try:
            how.write(out, checkpoint_of(gpt))
        except TinyGPTError as error:
            of_gguf = "has the activation", "Apertus"
            named = any(f"{name}={value}" in error.message for name, value in options.items())
            assert named or (format == "f16" and any(reason in error.message for reason in of_gguf)), error
            continue
        assert largest(logits(how.read(out)) - logits(gpt)) < how.lost
        if format == "hf":
            assert apart(gpt, how.theirs(out)) < 1e-5


# ---- in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fields"), PUBLISHED, ids=short)
def test_a_folder_of_transformers_is_read(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    theirs = saved_by_transformers(tmp_path, theirs_of(name, **fields))
    found = read_folder(tmp_path)
    assert apart(rebuilt(found.stock), theirs) < 1e-5 and found.eos == found.chat_template == ""
    with torch.inference_mode():
        next(theirs.parameters())[:, 5] += 0.1
    assert apart(rebuilt(found.stock), theirs) > 1e-4  # negative control: one column of the embeddings


def test_several_files_half_precision_and_pickled_tensors_are_read(tmp_path: Path) -> None:
    theirs = theirs_of("LlamaForCausalLM").to(torch.bfloat16)
    saved_by_transformers(tmp_path, theirs, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    found = [read_folder(tmp_path).stock.weights]
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    found.append(read_folder(tmp_path).stock.weights)
    for weights in found:
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert weights.keys() == theirs.state_dict().keys()
        assert all(torch.equal(weight.float(), weights[key]) for key, weight in theirs.state_dict().items())


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("LlamaForCausalLM", {}, {"r": 4, "lora_alpha": 6, "target_modules": ["v_proj", "up_proj"], "use_rslora": True}),
    ("LlamaForCausalLM", {}, {"r": 4, "target_modules": ["k_proj", "down_proj"], "layers_to_transform": [1]}),
    ("Qwen3ForCausalLM", {"rms_norm_eps": 1e-3}, {"r": 3, "target_modules": ALL}),
    ("GPT2LMHeadModel", {}, {"r": 3, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
]


@pytest.mark.parametrize(("name", "fields", "lora"), ADAPTERS, ids=short)
def test_an_adapter_of_peft_is_read(tmp_path: Path, name: str, fields: dict[str, Any], lora: dict[str, Any]) -> None:
    theirs = saved_by_transformers(tmp_path, theirs_of(name, **fields))
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    changed_by_lora(wrapped, seed=3).save_pretrained(tmp_path / "adapter")
    base, expected = imported(tmp_path), logits(wrapped)
    run = read_adapter(tmp_path / "adapter", base)
    assert largest(expected - logits(run)) < 3e-5
    assert largest(expected - logits(base)) > 0.01
    assert largest(expected - logits(run.build_for_resuming())) < 3e-5  # the adapters stay separate
    save_adapter(tmp_path / "adapter.pt", run, weights_fingerprint(base.model))
    assert torch.equal(logits(applied(base, "base", str(tmp_path / "adapter.pt"))), logits(run))


@pytest.mark.parametrize(("n_head", "T"), [(1, 40), (12, 40), (3, 600)])
@every_path
def test_alibi_is_that_of_mpt(kind: type[GPT], n_head: int, T: int) -> None:
    """Also with numbers of heads that are no powers of two, for which the paper's code has a rule."""
    ours = shaken(small(kind=kind, position="alibi", block_size=T, n_head=n_head, n_embd=4 * n_head))
    sizes = {"d_model": 4 * n_head, "n_heads": n_head, "n_layers": 2, "vocab_size": 65, "max_seq_len": T}
    theirs = transformers.MptForCausalLM(transformers.MptConfig(**sizes)).eval()
    names = {"ln_1": "norm_1", "ln_2": "norm_2", "attn.c_attn": "attn.Wqkv", "attn.c_proj": "attn.out_proj"}
    names |= {"mlp.c_fc": "ffn.up_proj", "mlp.c_proj": "ffn.down_proj", ".h.": ".blocks.", "ln_f": "norm_f"}
    weights = {}
    for name, weight in ours.state_dict().items():
        for one, other in names.items():
            name = name.replace(one, other)
        weights[name] = weight
    theirs.load_state_dict(weights)
    expected = logits(theirs, ids(2, T))
    assert largest(expected) > 1 and largest(logits(ours, ids(2, T)) - expected) < 1e-5 * largest(expected)


# ---- tokenizers ---------------------------------------------------------------------------------------------------


def test_characters_have_the_same_ids(tmp_path: Path) -> None:
    for mine in (CharTokenizer(sorted({*STRANGE})), CharTokenizer([*sorted({*STRANGE}), *SPECIAL])):
        for name, text in tokenizer_files(mine).items():
            (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        found = theirs(STRANGE).input_ids
        assert found == mine.encode(STRANGE).tolist() and theirs.decode(found) == STRANGE
        names = "".join(SPECIAL)
        assert theirs(names, split_special_tokens=True).input_ids == mine.encode(names, skip_unknown=True).tolist()
        assert theirs.eos_token == (END if END in mine.symbols else None)


# ---- what is refused ----------------------------------------------------------------------------------------------


def stock_from(theirs: Any) -> Stock:
    weights = dict(theirs.state_dict())
    if theirs.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return Stock(json.loads(theirs.config.to_json_string()), weights)


@pytest.fixture(scope="module", params=STOCK)
def stock(request: pytest.FixtureRequest) -> Stock:
    """A model of each class, as transformers makes it."""
    return stock_from(theirs_of(request.param, **PLAIN.get(request.param, {})))


def refusal(stock: Stock, config: dict[str, Any] | None = None, weights: dict[str, Any] | None = None) -> str:
    """What is said of a model with these changes, in one short sentence and a hint; nothing of one that is read."""
    try:
        changed = {key: value for key, value in {**stock.weights, **(weights or {})}.items() if value is not None}
        GPT(from_stock(Stock({**stock.config, **(config or {})}, changed))[0])
    except TinyGPTError as error:
        assert len(error.message) < 250 and error.message.isascii() and error.message.isprintable() and error.hint
        return error.message
    return ""


CHANGES_THE_FUNCTION: list[tuple[str, dict[str, Any], str]] = [
    ("Llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
    ("Llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters"),
    ("Llama", {"head_dim": 16}, "head_dim"),
    ("Llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("Llama", {"vocab_size": 65537}, "uint16"),
    ("Llama", {"num_key_value_heads": 3}, "k_proj"),
    ("Llama", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ("Llama", {"attention_multiplier": 1.0}, "attention_multiplier"),  # instead of 1/√head_dim
    ("Mistral", {"attention_bias": True}, "attention_bias"),
    ("Qwen3", {"use_sliding_window": True}, "use_sliding_window"),
    ("Qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("Qwen3", {"head_dim": None}, ""),
    ("Apertus", {"hidden_act": "relu2", "rope_parameters": None}, "rope_parameters"),
    ("GPT2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("GPT2", {"n_positions": 129}, "transformer.wpe.weight"),
    *(("", {key: value}, key) for key, value in {"is_causal": False, "new": True, "\n" * 999: 1}.items()),
]


def test_a_field_that_a_gpt_cannot_express_is_refused_by_name(stock: Stock) -> None:
    for name, fields, named in CHANGES_THE_FUNCTION:
        if stock.config["architectures"][0].startswith(name):
            said = refusal(stock, fields)
            assert ascii(named)[1:-1][:50] in said and bool(said) == bool(named), fields


TRANSFORMERS_4 = {  # further keys of `to_json_string(use_diff=False)` in transformers 4.46, and not "" or false there
    **dict.fromkeys(("length_penalty", "repetition_penalty", "temperature", "top_p", "typical_p"), 1.0),
    **dict.fromkeys(("num_beam_groups", "num_beams", "num_return_sequences"), 1),
    **{"_attn_implementation_autoset": True, "max_length": 20, "top_k": 50, "pruned_heads": {}},
    **{"torch_dtype": "float32", "transformers_version": "4.46.0"},
}
OF_THE_HUB: dict[str, dict[str, Any]] = {  # of gpt2-medium, SmolLM2-135M-Instruct, and Qwen3 in transformers 4.51
    "GPT2LMHeadModel": {"n_ctx": 1024, "n_special": 0, "predict_special_tokens": True, "task_specific_params": {"": 1}},
    "LlamaForCausalLM": {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"a": 1}},
    "Qwen3ForCausalLM": {"sliding_window": 64, "max_window_layers": 28, "use_sliding_window": False},
}


def test_keys_that_change_no_logits_are_accepted(stock: Stock) -> None:
    """Those that transformers writes, the default values, too, and those of published models."""
    (name,) = stock.config["architectures"]
    known = transformers.AutoConfig.for_model(**stock.config)
    complete = json.loads(known.to_json_string(use_diff=False)) | {"architectures": [name]}
    expected, weights = from_stock(stock)
    older = complete | TRANSFORMERS_4 | OF_THE_HUB.get(name, {})
    if rope := older.pop("rope_parameters", None):
        older |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"rope_type": "default"}}
    neutral = {f"new_{i}": value for i, value in enumerate((None, False, 0, 0.0, "", "none"))}
    neutral |= {"embedding_multiplier": 1.0, "residual_multiplier": 1, "logits_scaling": None, "is_causal": True}
    for config in (older, complete | neutral):
        found, same = from_stock(Stock(config, stock.weights))
        assert found == expected and all(torch.equal(weight, same[key]) for key, weight in weights.items())


HOSTILE: list[Any] = [None, True, -1, 0, 3, 10**30, float("nan"), float("inf"), "2", "", "\ud800"]
HOSTILE += [[], [1], {"a": {"b": []}}, [["GPT2LMHeadModel"]], {"rope_type": []}]
HOSTILE += [-(10**4000)]  # of a longer one, Python refuses to read the digits


def test_hostile_values_never_give_a_traceback(stock: Stock, request: pytest.FixtureRequest) -> None:
    """A sixth of the values for each key; all of them with --full."""
    values = [(key, value) for key in stock.config for value in HOSTILE]
    values = values if request.config.getoption("--full") else random.Random(1).sample(values, len(values) // 6)
    assert sum(bool(refusal(stock, {key: value})) for key, value in values) > 20


def test_a_tensor_that_is_missing_extra_or_misshapen_is_named(stock: Stock) -> None:
    for tensor, weight in stock.weights.items():
        assert "lack" in refusal(stock, weights={tensor: None})
        assert tensor in refusal(stock, weights={tensor: weight[:-1]})
    assert "lacks: 'what.ever'" in refusal(stock, weights={"what.ever": torch.zeros(1)})


def test_gpt2s_file_has_other_names_and_may_repeat_the_head() -> None:
    """OpenAI's GPT-2 on the hub has no prefix `transformer.`; a head must be the tied embeddings."""
    theirs = theirs_of("GPT2LMHeadModel")
    stock, head = stock_from(theirs), theirs.state_dict()["lm_head.weight"]
    bare = {name.removeprefix("transformer."): weight for name, weight in stock.weights.items()}
    for weights in (bare, stock.weights | {"lm_head.weight": head}):
        assert apart(rebuilt(Stock(stock.config, weights)), theirs) < 1e-5
    assert "tie_word_embeddings" in refusal(stock, weights={"lm_head.weight": head + 1})


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
