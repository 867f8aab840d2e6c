"""The table STOCK: the classes of transformers that can express a GPT.

It lists for each class the options of a GPT that it has, the keys of its config.json and the names of its layers.
`conversion.py` reads the table in both directions. An option that no class lists is refused, unless it has its default.

Sources: the modeling_*.py of transformers, whose classes and keys these are.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tinygpt.options import GPTConfig

Options = dict[str, set[Any]]  # field of GPTConfig: values of it
Check = Callable[[Any, GPTConfig], bool]  # whether the GPT can express this value of a key of config.json


@dataclasses.dataclass
class Stock:
    """A model in the form of a class that transformers ships."""

    config: dict[str, Any]  # content of config.json: architectures, model_type, sizes, ...
    weights: dict[str, Tensor]  # float32, under the names and in the layout of that class


@dataclasses.dataclass
class Pretrained:
    """What is read from another tool's files."""

    stock: Stock
    tokenizer_json: str  # the text of tokenizer.json
    eos: str  # the token that ends a text, for example "<|endoftext|>"; empty if there is none
    chat_template: str  # Jinja; empty if there is none


@dataclasses.dataclass(frozen=True)
class StockClass:
    """One row of the table: a class of transformers, and what it has of a GPT's options.

    A class can express a GPT whose options match one of the alternatives in `options`. A field that is only in `keys`
    or EVERYWHERE may have any value; every other field must have its default.
    """

    name: str
    model_type: str
    options: tuple[Options, ...]
    layers: dict[str, str]  # layer of GPT: the layers whose rows it stacks; N is the block's number
    keys: dict[str, str] = dataclasses.field(default_factory=lambda: LLAMA_KEYS)  # field of GPTConfig: config.json's
    checked: dict[str, Check] = dataclasses.field(default_factory=lambda: PLAIN_ROPE)  # keys that change the function
    biases: dict[str, str] = dataclasses.field(default_factory=dict)  # part of a block: key that gives it biases
    missing: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the class takes for a key that is absent

    @property
    def learned(self) -> bool:
        """Return whether positions are learned and norms are LayerNorms: GPT-2. The others have RoPE and RMSNorm."""
        return "transformer.wpe" in self.layers

    def parts(self, layer: str) -> list[str]:
        """Name the class's layers for one of a GPT: `transformer.h.0.attn.c_proj` to [`model.layers.0...o_proj`]."""
        block = re.search(r"\.(\d+)\.", layer)
        number = block[1] if block else ""
        return self.layers[re.sub(r"\.\d+\.", ".N.", layer)].replace(".N.", f".{number}.").split()


EVERYWHERE = {
    *("dropout", "zero_init"),  # of training
    *("tie_weights", "rope_base", "qk_norm_weights"),  # the last two without effect where a class lacks them
}
UNGATED: Options = {"activation": {"gelu", "gelu_tanh", "relu2"}}
SWIGLU: Options = {"activation": {"swiglu"}}
LEARNED: Options = {"position": {"learned"}, "norm": {"layernorm"}, "bias": {False, True}}
ROPE: Options = {"position": {"rope"}, "norm": {"layernorm", "rmsnorm"}, "bias": {False}}
ROPE_BIAS: Options = ROPE | {"norm": {"rmsnorm"}, "bias": {True}}  # the RMSNorm of a centred input has no bias
QK_NORM: Options = {"qk_norm": {True}}
GPT2_KEYS = {
    **{name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
    "block_size": "n_positions",
    "mlp_width": "n_inner",
    "norm_eps": "layer_norm_epsilon",
    "activation": "activation_function",
}
LLAMA_KEYS: dict[str, str] = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "rope_base": "rope_theta",
}
GPT_BLOCK = "transformer.h.N"
STOCK_BLOCK = "model.layers.N"
BLOCK = [f"{GPT_BLOCK}.{part}" for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")]
GPT2_LAYERS = {name: name for name in ("transformer.wte", "transformer.wpe", *BLOCK, "transformer.ln_f", "lm_head")}
ARCEE_LAYERS = {
    "transformer.wte": "model.embed_tokens",
    f"{GPT_BLOCK}.ln_1": f"{STOCK_BLOCK}.input_layernorm",
    f"{GPT_BLOCK}.attn.c_attn": " ".join(f"{STOCK_BLOCK}.self_attn.{part}_proj" for part in "qkv"),
    f"{GPT_BLOCK}.attn.c_proj": f"{STOCK_BLOCK}.self_attn.o_proj",
    f"{GPT_BLOCK}.ln_2": f"{STOCK_BLOCK}.post_attention_layernorm",
    f"{GPT_BLOCK}.mlp.c_fc": f"{STOCK_BLOCK}.mlp.up_proj",
    f"{GPT_BLOCK}.mlp.c_proj": f"{STOCK_BLOCK}.mlp.down_proj",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
}
LLAMA_LAYERS = ARCEE_LAYERS | {f"{GPT_BLOCK}.mlp.c_fc": f"{STOCK_BLOCK}.mlp.gate_proj {STOCK_BLOCK}.mlp.up_proj"}
QK_NORMS = {f"{GPT_BLOCK}.attn.{part}_norm": f"{STOCK_BLOCK}.self_attn.{part}_norm" for part in "qk"}
APERTUS_NORMS = {
    f"{GPT_BLOCK}.ln_1": f"{STOCK_BLOCK}.attention_layernorm",
    f"{GPT_BLOCK}.ln_2": f"{STOCK_BLOCK}.feedforward_layernorm",
}
ATTENTION_BIAS = {"attn": "attention_bias"}
BOTH_BIASES = ATTENTION_BIAS | {"mlp": "mlp_bias"}
LLAMA_MISSING = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}
ROPE_VALUES = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}


def _plain_rope(rope: dict[str, Any], _: GPTConfig) -> bool:
    return all(key == "rope_theta" or value == ROPE_VALUES.get(key) for key, value in rope.items())


PLAIN_ROPE: dict[str, Check] = {
    "rope_parameters": _plain_rope,
    "rope_scaling": _plain_rope,
    "head_dim": lambda value, config: not value or value == config.head_dim,
    "layer_types": lambda value, config: not value or value == ["full_attention"] * config.n_layer,
}

ROWS = (
    StockClass(
        name="GPT2LMHeadModel",
        model_type="gpt2",
        options=(LEARNED | UNGATED,),
        keys=GPT2_KEYS,
        layers=GPT2_LAYERS,
        checked={},
        missing={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
    ),
    StockClass(
        name="LlamaForCausalLM",
        model_type="llama",
        options=(ROPE | SWIGLU, ROPE_BIAS | SWIGLU),
        layers=LLAMA_LAYERS,
        biases=BOTH_BIASES,
        missing=LLAMA_MISSING,
    ),
    StockClass(
        name="Qwen3ForCausalLM",
        model_type="qwen3",
        options=(ROPE | SWIGLU | QK_NORM,),
        layers=LLAMA_LAYERS | QK_NORMS,
        biases=ATTENTION_BIAS,
        missing={**LLAMA_MISSING, "head_dim": 128},
    ),
    StockClass(
        name="ArceeForCausalLM",
        model_type="arcee",
        options=(ROPE | UNGATED, ROPE_BIAS | UNGATED),
        layers=ARCEE_LAYERS,
        biases=BOTH_BIASES,
        missing={"rms_norm_eps": 1e-5, "hidden_act": "relu2"},
    ),
    StockClass(
        name="ApertusForCausalLM",
        model_type="apertus",
        options=(ROPE | UNGATED | QK_NORM,),
        layers=ARCEE_LAYERS | APERTUS_NORMS | QK_NORMS,
        biases=ATTENTION_BIAS,
        missing={"rms_norm_eps": 1e-5, "hidden_act": "xielu", "rope_parameters": {"rope_type": "llama3"}},
    ),
    StockClass(  # exported if there is a window: else stock_class finds Llama's class first
        name="MistralForCausalLM",
        model_type="mistral",
        options=(ROPE | SWIGLU,),
        keys=LLAMA_KEYS | {"window": "sliding_window"},
        layers=LLAMA_LAYERS,
        missing={**LLAMA_MISSING, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
)
STOCK = {row.name: row for row in ROWS}
ACTIVATION = {  # of transformers: of tinygpt; the first of two names is written
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
    "silu": "swiglu",
}
