"""Models in the form of transformers' classes: the same logits and the same text, out and in, and what is refused."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from models import MODERN, every_option, ids, largest, small
from published import PLAIN, apart, every_row, model, rebuilt, theirs_of, transformers

from tinygpt.adapt.formats.architectures import STOCK, Stock
from tinygpt.adapt.formats.conversion import from_stock, to_stock
from tinygpt.base.errors import TinyGPTError
from tinygpt.model import GPT


def stock_of(gpt: GPT) -> Stock:
    return to_stock(gpt.config, gpt.state_dict())


def in_transformers(stock: Stock) -> Any:
    """Build the model as transformers builds it from config.json, without any code but its own."""
    config = json.loads(json.dumps(stock.config))
    made = transformers.AutoConfig.for_model(**config)
    theirs = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager").eval()
    assert type(theirs).__name__ == config["architectures"][0]
    result = theirs.load_state_dict(stock.weights, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    theirs.tie_weights()
    return theirs


@every_option
@pytest.mark.parametrize("others", [{}, MODERN], ids=["to gpt2", "to modern"])
def test_every_choice_is_exported_exactly_or_refused_by_name(options: dict[str, Any], others: dict[str, Any]) -> None:
    gpt = model(**others | options)
    try:
        stock = stock_of(gpt)
    except TinyGPTError as error:
        assert any(f"{name}={value}" in error.message for name, value in options.items()), error
        return
    assert apart(gpt, in_transformers(stock)) < 1e-5
    assert largest(gpt(ids(2, 100))[0] - rebuilt(stock)(ids(2, 100))[0]) < 1e-5  # and it is read again


@every_row
def test_out_and_in_again(name: str, options: dict[str, Any]) -> None:
    gpt = model(**options)
    back = rebuilt(stock_of(gpt))
    difference = largest(gpt(ids(2, 100))[0] - back(ids(2, 100))[0])
    if gpt.config.norm == "layernorm" and gpt.config.position == "rope":
        assert difference < 1e-5 and back.config.norm == "rmsnorm"
        return
    same = dataclasses.replace(gpt.config, mlp_width=gpt.config.hidden_width)
    assert back.config == same
    if gpt.config.qk_norm:
        assert difference < 1e-5
    else:
        state = back.state_dict()
        assert all(torch.equal(weight, state[name]) for name, weight in gpt.state_dict().items())


def stock_from(theirs: Any) -> Stock:
    config = json.loads(theirs.config.to_json_string())
    weights = dict(theirs.state_dict())
    if theirs.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return Stock(config, weights)


def test_the_files_of_openai_have_other_names() -> None:
    """OpenAI's GPT-2 on the hub has no prefix `transformer.`."""
    theirs = theirs_of("GPT2LMHeadModel")
    stock = stock_from(theirs)
    bare = {name.removeprefix("transformer."): weight for name, weight in stock.weights.items()}
    assert apart(rebuilt(Stock(stock.config, bare)), theirs) < 1e-5


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


HOSTILE: list[Any] = [None, True, -1, 0, 1, 3, 2**31, 10**30, 1e308, float("nan"), float("inf"), "2", "", "\ud800"]
HOSTILE += [[], [1], {}, {"a": {"b": []}}, [["GPT2LMHeadModel"]], {"rope_type": "yarn"}, {"rope_type": []}]
HOSTILE += [-(10**4000)]  # of a longer one, Python refuses to read the digits
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
CHANGES_THE_FUNCTION += [
    (name, {key: value}, key)
    for name in STOCK
    for key, value in {"final_logit_softcapping": 30.0, "new": True, "logit_scale": 0.5, "\n" * 999: 1}.items()
]


@pytest.mark.parametrize(("name", "fields", "named"), CHANGES_THE_FUNCTION)
def test_a_field_that_a_gpt_cannot_express_is_refused_by_name(name: str, fields: dict[str, Any], named: str) -> None:
    stock = stock_from(theirs_of(name, **PLAIN.get(name, {})))
    if not named:
        rebuilt(Stock(stock.config | fields, stock.weights))
        return
    with pytest.raises(TinyGPTError) as caught:
        from_stock(Stock(stock.config | fields, stock.weights))
    assert ascii(named)[1:-1][:50] in caught.value.message and "\n" not in caught.value.message and caught.value.hint
    assert len(caught.value.message) < 250


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


@pytest.mark.parametrize("name", STOCK)
def test_keys_that_change_no_logits_are_accepted(name: str) -> None:
    """Those that transformers writes, the default values, too, and those of published models."""
    theirs = theirs_of(name, **PLAIN.get(name, {}))
    stock = stock_from(theirs)
    stock.config = json.loads(theirs.config.to_json_string(use_diff=False)) | {"architectures": [name]}
    expected, weights = from_stock(stock)
    older = stock.config | TRANSFORMERS_4 | OF_THE_HUB.get(name, {})
    if rope := older.pop("rope_parameters", None):
        older |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"rope_type": "default"}}
    neutral = {f"new_{i}": value for i, value in enumerate((None, False, 0, 0.0, "", "none"))}
    neutral |= {"embedding_multiplier": 1.0, "residual_multiplier": 1, "logits_scaling": None, "is_causal": True}
    for config in (older, stock.config | neutral):
        found, same = from_stock(Stock(config, stock.weights))
        assert found == expected and all(torch.equal(weight, same[key]) for key, weight in weights.items())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "ArceeForCausalLM")) for name in STOCK]
)
def test_hostile_values_never_give_a_traceback(name: str) -> None:
    stock = stock_from(theirs_of(name, **PLAIN.get(name, {})))
    from_stock(stock)
    refused = 0
    for key in stock.config:
        for value in HOSTILE:
            try:
                config, _ = from_stock(Stock(stock.config | {key: value}, stock.weights))
                GPT(config)
            except TinyGPTError as error:
                refused += 1
                assert len(error.message) < 250 and error.message.isascii(), (key, value)
    assert refused > 100


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Qwen3ForCausalLM"])
def test_a_tensor_that_is_missing_extra_or_misshapen_is_named(name: str) -> None:
    stock = stock_from(theirs_of(name))
    for tensor in stock.weights:
        less = {key: weight for key, weight in stock.weights.items() if key != tensor}
        with pytest.raises(TinyGPTError, match="lack"):
            from_stock(Stock(stock.config, less))
        with pytest.raises(TinyGPTError, match=tensor):
            from_stock(Stock(stock.config, stock.weights | {tensor: stock.weights[tensor][:-1]}))
    with pytest.raises(TinyGPTError, match=r"lacks: 'what\.ever'"):
        from_stock(Stock(stock.config, stock.weights | {"what.ever": torch.zeros(1)}))


def test_a_head_that_differs_from_tied_embeddings_is_refused() -> None:
    theirs = theirs_of("GPT2LMHeadModel")
    weights = dict(theirs.state_dict())
    assert apart(rebuilt(Stock(stock_from(theirs).config, weights)), theirs) < 1e-5
    with pytest.raises(TinyGPTError, match="tie_word_embeddings"):
        from_stock(Stock(stock_from(theirs).config, weights | {"lm_head.weight": weights["lm_head.weight"] + 1}))
