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
    characters,
    checkpoint_of,
    imported,
    logits,
    lora_run,
    model,
    peft,
    rebuilt,
    saved_by_transformers,
    stock_of,
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
CASES = [(format, name, options) for format in ("hf", "peft") for name, options in EXPORTED]
CASES += [(format, name, options) for format in QUANTISATIONS for name, options in ROWS.items()]


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
        embeddings = "F16" if format == "f16" else "Q8_0"
        expected_types = {"token_embd.weight": embeddings, "blk.1.ffn_down.weight": format.upper(), **F32}
        assert {key: types[key] for key in expected_types if key in types} == {
            key: kind for key, kind in expected_types.items() if key in types
        }


F32 = dict.fromkeys(("blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "output_norm.weight"), "F32")
F32 |= dict.fromkeys(("position_embd.weight", "blk.0.attn_qkv.bias"), "F32")


@every_option
@pytest.mark.parametrize("others", [{}, MODERN], ids=["to gpt2", "to modern"])
@pytest.mark.parametrize("format", ["hf", "f16"])
def test_every_choice_is_exported_exactly_or_refused_by_name(
    tmp_path: Path, format: str, options: dict[str, Any], others: dict[str, Any]
) -> None:
    gpt, how = model(**others | options), FORMATS[format]
    try:
        how.write(tmp_path / "out", checkpoint_of(gpt))
    except TinyGPTError as error:
        of_gguf = "has the activation", "Apertus"
        named = any(f"{name}={value}" in error.message for name, value in options.items())
        assert named or (format == "f16" and any(reason in error.message for reason in of_gguf)), error
        return
    assert largest(logits(how.read(tmp_path / "out")) - logits(gpt)) < how.lost
    if format == "hf":
        assert apart(gpt, how.theirs(tmp_path / "out")) < 1e-5


@pytest.mark.parametrize("targets", ["c_attn", "c_proj,c_fc"])
def test_only_the_adapted_layers_are_exported(tmp_path: Path, targets: str) -> None:
    run = lora_run(model(**MODERN), targets)
    FORMATS["peft"].write(tmp_path / "out", run)
    settings = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    names = {"c_attn": ["k_proj", "q_proj", "v_proj"], "c_proj,c_fc": ["down_proj", "gate_proj", "o_proj", "up_proj"]}
    assert settings["target_modules"] == names[targets]
    assert apart(run, FORMATS["peft"].read(tmp_path / "out")) < 3e-5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"token_shift": True}, "token_shift"),
        ({"bigram_table": True}, "bigram_table"),
        ({"position": "alibi"}, "position=alibi"),
        ({"norm": "rmsnorm"}, "GPT2LMHeadModel lacks norm=rmsnorm; ArceeForCausalLM lacks position=learned"),
        ({"window": 4}, "GPT2LMHeadModel lacks window=4"),
        (MODERN | {"window": 4}, "Qwen3ForCausalLM lacks window=4; MistralForCausalLM lacks qk_norm=True"),
        ({"position": "rope", "bias": True}, "ArceeForCausalLM lacks bias=True; ArceeForCausalLM lacks norm=layernorm"),
        (MODERN | {"bias": True}, "LlamaForCausalLM lacks qk_norm=True; Qwen3ForCausalLM lacks bias=True"),
        (MODERN | {"token_shift": True, "bigram_table": True}, "Qwen3ForCausalLM lacks bigram_table=True and token"),
    ],
)
def test_an_option_without_a_class_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(TinyGPTError) as caught:
        stock_of(small(**options))
    assert named in caught.value.message and "configs/shakespeare_char.yaml" in caught.value.hint
    assert caught.value.message.count("no model class of transformers has all options of this model") == 1


def test_as_many_heads_of_keys_as_of_queries_are_no_option() -> None:
    assert stock_of(model(n_kv_head=2)).config == stock_of(model()).config


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
    theirs = theirs_of("LlamaForCausalLM")
    for name, options in (("shards", {"max_shard_size": "20KB"}), ("half", {})):
        theirs = theirs.to(torch.bfloat16) if name == "half" else theirs
        saved_by_transformers(tmp_path / name, theirs, **options)
        found = read_folder(tmp_path / name).stock.weights
        assert {weight.dtype for weight in found.values()} == {torch.float32}
        assert found.keys() == theirs.state_dict().keys()
        assert all(torch.equal(weight.float(), found[key]) for key, weight in theirs.state_dict().items())
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 1
    (tmp_path / "half/model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "half/pytorch_model.bin")
    again = read_folder(tmp_path / "half").stock.weights
    assert again.keys() == found.keys() and all(torch.equal(weight, found[key]) for key, weight in again.items())


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("LlamaForCausalLM", {}, {"r": 3, "lora_alpha": 5, "target_modules": ALL}),
    ("LlamaForCausalLM", {}, {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}),
    ("LlamaForCausalLM", {}, {"r": 4, "lora_alpha": 6, "target_modules": ["up_proj"], "use_rslora": True}),
    ("LlamaForCausalLM", {}, {"r": 4, "target_modules": ["k_proj", "down_proj"], "layers_to_transform": [1]}),
    ("Qwen3ForCausalLM", {"rms_norm_eps": 1e-3}, {"r": 3, "target_modules": ALL}),
    ("ApertusForCausalLM", PLAIN["ApertusForCausalLM"], {"r": 2, "target_modules": ["q_proj", "o_proj", "up_proj"]}),
    ("GPT2LMHeadModel", {}, {"r": 3, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ("MistralForCausalLM", {"sliding_window": None}, {"r": 3, "target_modules": "all-linear"}),
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


# ---- the model itself ---------------------------------------------------------------------------------------------


def stock_from(theirs: Any) -> Stock:
    config = json.loads(theirs.config.to_json_string())
    weights = dict(theirs.state_dict())
    if theirs.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return Stock(config, weights)


def mpt(ours: GPT) -> Any:
    """MPT of transformers with our weights: ALiBi, no biases, tied embeddings."""
    config = ours.config
    sizes = {"d_model": config.n_embd, "n_heads": config.n_head, "n_layers": config.n_layer}
    sizes |= {"vocab_size": config.vocab_size, "max_seq_len": config.block_size}
    theirs = transformers.MptForCausalLM(transformers.MptConfig(**sizes)).eval()
    names = {"ln_1": "norm_1", "ln_2": "norm_2", "attn.c_attn": "attn.Wqkv", "attn.c_proj": "attn.out_proj"}
    names |= {"mlp.c_fc": "ffn.up_proj", "mlp.c_proj": "ffn.down_proj", ".h.": ".blocks.", "ln_f": "norm_f"}
    weights = {}
    for name, weight in ours.state_dict().items():
        for one, other in names.items():
            name = name.replace(one, other)
        weights[name] = weight
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize(
    ("position", "n_head", "T"),
    [*(("alibi", heads, 40) for heads in (1, 2, 3, 6, 12)), ("alibi", 3, 600), ("learned", 4, 16), ("learned", 4, 600)],
)
@every_path
def test_logits_and_gradients_are_those_of_mpt_and_gpt2(kind: type[GPT], position: str, n_head: int, T: int) -> None:
    """ALiBi also with numbers of heads that are no powers of two, for which the paper's code has a rule."""
    if position == "alibi":
        ours = shaken(small(kind=kind, position="alibi", block_size=T, n_head=n_head, n_embd=4 * n_head))
        theirs = mpt(ours)
    else:
        theirs = theirs_of("GPT2LMHeadModel", max_position_embeddings=T)
        config, weights = from_stock(stock_from(theirs))
        ours = Checkpoint(weights, dataclasses.asdict(config), {}).build_model(kind)
    x, y = ids(2, 2, T)
    (found, loss), expected = ours(x, y), theirs(x).logits
    assert largest(expected) > 1 and largest(found - expected) < 1e-5 * largest(expected)
    loss.backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), y.flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    if position == "alibi":
        gradients = dict(zip(dict(ours.named_parameters()), gradients.values(), strict=True))
    else:
        gradients = from_stock(Stock(stock_from(theirs).config, gradients))[1]
    for name, parameter in ours.named_parameters():
        assert largest(parameter.grad - gradients[name]) < 1e-4 * max(1.0, largest(gradients[name])), name


# ---- tokenizers ---------------------------------------------------------------------------------------------------


def test_characters_have_the_same_ids(tmp_path: Path) -> None:
    for mine in (CharTokenizer(sorted({*STRANGE})), CharTokenizer([*sorted({*STRANGE}), *SPECIAL])):
        for name, text in tokenizer_files(mine).items():
            (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        found = theirs(STRANGE).input_ids
        assert found == mine.encode(STRANGE).tolist()
        assert theirs.decode(found) == STRANGE
        names = "".join(SPECIAL)
        assert theirs(names, split_special_tokens=True).input_ids == mine.encode(names, skip_unknown=True).tolist()
        assert theirs.eos_token == (END if END in mine.symbols else None)


def test_the_chat_template_asks_as_tinygpt_does(tmp_path: Path) -> None:
    mine = characters(pairs=True)
    FORMATS["hf"].write(tmp_path / "out", checkpoint_of(model(**MODERN), mine))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt, response, end = (mine.special[name] for name in SPECIAL)
    asked = [prompt, *mine.encode("HI  THERE"), response]
    example = [*asked, *mine.encode("HM"), end]
    question = [{"role": "user", "content": "HI  THERE"}]
    answered = [*question, {"role": "assistant", "content": "HM"}]

    def encoded(messages: list[dict[str, str]], **options: Any) -> list[int]:
        return [int(i) for i in theirs.apply_chat_template(messages, return_dict=True, **options)["input_ids"]]

    assert encoded(question) == encoded(question, add_generation_prompt=True) == asked
    assert encoded(answered) == example and encoded([*answered, *question]) == [*example, *asked]
    for name in ("generation_config.json", "config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == end


# ---- what is refused ----------------------------------------------------------------------------------------------


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


CHANGES_THE_FUNCTION = [
    ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters"),
    ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("LlamaForCausalLM", {"head_dim": 16}, "head_dim"),
    ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
    ("LlamaForCausalLM", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("LlamaForCausalLM", {"auto_map": {"AutoModel": "modeling.My"}}, "remote code"),
    ("LlamaForCausalLM", {"architectures": ["MyModel"]}, "architectures"),
    ("LlamaForCausalLM", {"model_type": "qwen3"}, "model_type"),
    ("LlamaForCausalLM", {"vocab_size": 65537}, "uint16"),
    ("LlamaForCausalLM", {"num_key_value_heads": 3}, "k_proj"),
    ("LlamaForCausalLM", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ("LlamaForCausalLM", {"intermediate_size": 2**20}, "mlp.gate_proj.weight"),
    ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window"),
    ("MistralForCausalLM", {"sliding_window": None, "vocab_size": 66}, "embed_tokens"),
    ("Qwen3ForCausalLM", {"use_sliding_window": True}, "use_sliding_window"),
    ("Qwen3ForCausalLM", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("Qwen3ForCausalLM", {"head_dim": None}, ""),
    ("ApertusForCausalLM", {"hidden_act": "xielu"}, "hidden_act"),
    ("ApertusForCausalLM", {"hidden_act": "relu2", "rope_parameters": None}, "rope_parameters"),
    ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("GPT2LMHeadModel", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("GPT2LMHeadModel", {"n_positions": 129}, "transformer.wpe.weight"),
    ("GPT2LMHeadModel", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("LlamaForCausalLM", {"is_causal": False}, "is_causal"),
    ("LlamaForCausalLM", {"attention_multiplier": 1.0}, "attention_multiplier"),  # instead of 1/√head_dim
    ("LlamaForCausalLM", {"embedding_multiplier": 0.0}, "embedding_multiplier"),
    ("MistralForCausalLM", {"attention_bias": True}, "attention_bias"),
]
IN_EVERY_CLASS = {"final_logit_softcapping": 30.0, "new": True, "logit_scale": 0.5, "\n" * 999: 1}


def test_a_field_that_a_gpt_cannot_express_is_refused_by_name(stock: Stock) -> None:
    (name,) = stock.config["architectures"]
    cases = [(fields, named) for other, fields, named in CHANGES_THE_FUNCTION if other == name]
    for fields, named in [*cases, *(({key: value}, key) for key, value in IN_EVERY_CLASS.items())]:
        said = refusal(stock, fields)
        assert ascii(named)[1:-1][:50] in said and bool(said) == bool(named), fields


TRANSFORMERS_4 = {  # further keys of each class's `to_json_string(use_diff=False)` in transformers 4.46
    **{"rope_scaling": None, "_attn_implementation_autoset": True, "add_cross_attention": False, "bad_words_ids": None},
    **{"begin_suppress_tokens": None, "cross_attention_hidden_size": None, "decoder_start_token_id": None},
    **{"diversity_penalty": 0.0, "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0},
    **{"exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None},
    **{"forced_eos_token_id": None, "is_decoder": False, "length_penalty": 1.0, "max_length": 20, "min_length": 0},
    **{"no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "prefix": None},
    **{"output_scores": False, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0},
    **{"return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None},
    **{"temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tokenizer_class": None},
    **{"top_k": 50, "top_p": 1.0, "torch_dtype": "float32", "torchscript": False, "typical_p": 1.0},
    **{"use_bfloat16": False, "transformers_version": "4.46.0"},
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


HOSTILE: list[Any] = [None, True, -1, 0, 1, 3, 2**31, 10**30, 1e308, float("nan"), float("inf"), "2", "", "\ud800"]
HOSTILE += [[], [1], {}, {"a": {"b": []}}, [["GPT2LMHeadModel"]], {"rope_type": "yarn"}, {"rope_type": []}]
HOSTILE += [-(10**4000)]  # of a longer one, Python refuses to read the digits


def test_hostile_values_never_give_a_traceback(stock: Stock, request: pytest.FixtureRequest) -> None:
    """A third of the values for each key; all of them with --full."""
    values = [(key, value) for key in stock.config for value in HOSTILE]
    values = values if request.config.getoption("--full") else random.Random(1).sample(values, len(values) // 4)
    assert sum(bool(refusal(stock, {key: value})) for key, value in values) > 50


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
