"""A GPT as a model of one of transformers' classes, and back.

Both directions read the table STOCK. An option that no class lists is refused, unless it has its default; so is a field
of a config.json that a GPT lacks. Three differences are bridged exactly:

LayerNorm     Without bias it is RMSNorm of a centred input. So the token embeddings and the outputs of both c_proj are
              centred, and the head keeps the embeddings as they were.
QK norm       Each class has one epsilon for all norms, tinygpt has QK_EPS for queries and keys. RMSNorm with epsilon e
              of s x is RMSNorm with epsilon e / s² of x, so queries and keys are scaled by s.
Fused layers  c_attn stacks the rows of q, k and v; SwiGLU's c_fc those of the gate and the up projection.

    stock = to_stock(GPTConfig(**checkpoint.model_args), checkpoint.model)
    config, weights = from_stock(stock)
"""

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from tinygpt.adapt.formats.architectures import ACTIVATION, EVERYWHERE, STOCK, Stock, StockClass
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.foreign import number, read_errors, shown, size, unusable
from tinygpt.checkpoint.store import empty_model
from tinygpt.data.tokenizer import MAX_SYMBOLS
from tinygpt.options import NEUTRAL, QK_EPS, GPTConfig

HARMLESS = {  # keys of a config.json that are read elsewhere, or change no logits
    *("architectures", "model_type", "auto_map", "trust_remote_code", "tie_word_embeddings", "tinygpt"),
    *("transformers_version", "dtype", "torch_dtype", "_name_or_path", "_attn_implementation_autoset"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "tokenizer_class", "prefix"),
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout", "initializer_range"),
    *("use_cache", "gradient_checkpointing", "reorder_and_upcast_attn", "pretraining_tp", "torchscript"),
    *("return_dict", "output_attentions", "output_hidden_states", "output_past", "chunk_size_feed_forward"),
    *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams"),
    *("num_beam_groups", "num_return_sequences", "repetition_penalty", "length_penalty", "task_specific_params"),
    *("id2label", "label2id", "_num_labels", "problem_type", "finetuning_task"),
    *("summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    *("n_ctx", "n_special", "predict_special_tokens", "max_sequence_length", "max_window_layers", "is_llama_config"),
    *("transformers.js_config", "unsloth_fixed", "unsloth_version"),
    "sliding_window",  # only Mistral's class reads it, and Qwen3's if use_sliding_window is true
}
USUAL: dict[str, tuple[Any, ...]] = {  # values of other keys that change nothing, if not NEUTRAL
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"), (None, 1)),
    "partial_rotary_factor": (None, 1),
    "is_causal": (True,),
    "scale_attn_weights": (True,),
    "pruned_heads": (None, {}),
}


# ---- out --------------------------------------------------------------------------------------------------------


def stock_class(config: GPTConfig) -> StockClass:
    """Find the class that computes the same function as a GPT.

    Errors: TinyGPTError names what the nearest classes lack.
    """
    config = dataclasses.replace(config, n_kv_head=config.n_kv_head % config.n_head)  # 0 and n_head mean the same
    lacking = [
        (config.unsupported_options(row.keys.keys() | EVERYWHERE, options), row)
        for row in STOCK.values()
        for options in row.options
    ]
    fewest = min(len(options) for options, _ in lacking)
    nearest = [(options, row) for options, row in lacking if len(options) == fewest]
    if not fewest:
        return nearest[0][1]
    named = [f"{row.name} lacks {' and '.join(options)}" for options, row in nearest]
    raise TinyGPTError(
        f"no model class of transformers has all options of this model; the nearest: {'; '.join(dict.fromkeys(named))}",
        "train with configs/shakespeare_char.yaml, which can be exported in every format",
    )


def to_stock(config: GPTConfig, weights: dict[str, Tensor]) -> Stock:
    """Convert a model to the stock class that computes the same function.

    weights: of an ordinary GPT, without LoRA adapters. Errors: TinyGPTError for an option that no class has.
    """
    row = stock_class(config)
    tied = config.tie_weights and not centred(config)
    result: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer, _, parameter = name.rpartition(".")
        weight = weight.float()
        if layer == "lm_head" and tied:
            continue
        if layer == "transformer.wte" and centred(config):
            weight = weight - weight.mean(1, keepdim=True)
        parts = split_rows(row, config, layer, converted(config, layer, weight))
        result |= {f"{part}.{parameter}": _transposed(row, layer, rows) for part, rows in parts.items()}
        if row.learned and not config.bias and _has_bias(row, layer, {}):
            result[f"{layer}.bias"] = torch.zeros(len(weight))
    if config.qk_norm and not config.qk_norm_weights:
        for block in range(config.n_layer):
            result |= {f"model.layers.{block}.self_attn.{x}_norm.weight": torch.ones(config.head_dim) for x in "qk"}
    return Stock(_stock_config(row, config, tied), result)


def _stock_config(row: StockClass, config: GPTConfig, tied: bool) -> dict[str, Any]:
    values = {**dataclasses.asdict(config), "n_kv_head": config.kv_heads, "mlp_width": config.hidden_width}
    values["activation"] = next(stock for stock, activation in ACTIVATION.items() if activation == config.activation)
    if row.learned:
        own: dict[str, Any] = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    else:  # rope_theta is read by transformers 4, rope_parameters by 5
        rope = {"rope_type": "default", "rope_theta": config.rope_base}
        own = {"head_dim": config.head_dim, "rope_scaling": None, "rope_parameters": rope}
    return {
        "architectures": [row.name],
        "model_type": row.model_type,
        **{key: values[field] for field, key in row.keys.items()},
        **dict.fromkeys(row.biases.values(), config.bias),
        **own,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


# ---- what both directions, and adapters, share ------------------------------------------------------------------


def centred(config: GPTConfig) -> bool:
    """Return whether a GPT's LayerNorms become RMSNorms of a centred input."""
    return config.norm == "layernorm" and config.position != "learned"


def converted(config: GPTConfig, layer: str, outputs: Tensor, inverse: bool = False) -> Tensor:
    """Change the outputs of a layer of a GPT as the stock class needs them; `inverse`: undo it, except for centring.

    outputs: (out, ...), a weight, a bias, or the B of an adapter.
    """
    if centred(config) and layer.endswith(".c_proj"):
        return outputs - outputs.mean(0)
    if not (config.qk_norm and layer.endswith(".c_attn")):
        return outputs
    scale = (QK_EPS / config.norm_eps if inverse else config.norm_eps / QK_EPS) ** 0.5
    normalised = (config.n_head + config.kv_heads) * config.head_dim
    return torch.cat((outputs[:normalised] * scale, outputs[normalised:]))


def split_rows(row: StockClass, config: GPTConfig, layer: str, outputs: Tensor) -> dict[str, Tensor]:
    """Split the outputs (out, ...) of a layer of a GPT among the layers of the stock class; returns them by name."""
    parts = row.parts(layer)
    sizes = [len(outputs) // len(parts)] * len(parts)
    if len(parts) == 3:
        sizes = [heads * config.head_dim for heads in (config.n_head, config.kv_heads, config.kv_heads)]
    return dict(zip(parts, outputs.split(sizes), strict=True))


def _transposed(row: StockClass, layer: str, weight: Tensor) -> Tensor:
    """Transpose the matrices of GPT-2's blocks, which its class stores as (in, out); return others as they are."""
    return weight.t().contiguous() if row.learned and ".h." in layer and weight.dim() == 2 else weight.contiguous()


def _has_bias(row: StockClass, layer: str, config: dict[str, Any]) -> bool:
    """Return whether the class has a bias in this layer, given its config.json."""
    if row.learned:
        return layer not in ("transformer.wte", "transformer.wpe", "lm_head")
    part = layer.split(".")[-2]
    return bool(part in row.biases and config.get(row.biases[part], False))


# ---- in ---------------------------------------------------------------------------------------------------------


@read_errors("config.json")
def from_stock(stock: Stock) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Convert a model of a stock class to a GPT.

    Nothing is allocated before a tensor's shape is known to agree with config.json. Errors: TinyGPTError for a
    config.json that a GPT cannot express, and for a tensor that is missing, superfluous or of another shape.
    """
    row = _row(stock.config)
    config = _gpt_config(row, stock.config)
    tensors = _plain_names(row, stock.weights)
    blocks = {name.split(".")[2] for name in tensors if re.match(r"\w+\.\w+\.\d+\.", name)}
    if len(blocks) != config.n_layer:  # before the shapes of a model of absurd depth are computed
        raise unusable(f"{row.keys['n_layer']} is {config.n_layer}, but in the weights it is {len(blocks)}")
    embeddings = f"{row.parts('transformer.wte')[0]}.weight"
    head = tensors.pop("lm_head.weight", None) if config.tie_weights else None
    if head is not None and not torch.equal(head, tensors[embeddings]):
        raise unusable("tie_word_embeddings is true, but lm_head.weight differs from the embeddings")
    shapes = empty_model(config).state_dict()
    weights = dict[str, Tensor]()
    for name, like in shapes.items():
        layer, _, parameter = name.rpartition(".")
        is_tied = layer == "lm_head" and config.tie_weights
        if is_tied or (parameter == "bias" and not _has_bias(row, layer, stock.config)):
            continue
        parts = []
        for part, rows in split_rows(row, config, layer, like).items():
            stock_name = f"{part}.{parameter}"
            expected = tuple(_transposed(row, layer, rows).shape)
            if stock_name not in tensors:
                raise unusable(f"the weights lack the tensor {stock_name}")
            if (shape := tuple(tensors[stock_name].shape)) != expected:
                raise unusable(f"the shape of the tensor {stock_name} is {shape}, but config.json requires {expected}")
            parts.append(_transposed(row, layer, tensors.pop(stock_name)))
        weights[name] = converted(config, layer, torch.cat(parts), inverse=True)
    if tensors:
        raise unusable(f"the weights have a tensor that {row.name} lacks: {shown(next(iter(tensors)))}")
    return _simplified(config, shapes, weights)


def _simplified(
    config: GPTConfig, shapes: dict[str, Tensor], weights: dict[str, Tensor]
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Leave out biases that are all zero and weights of QK norms that are all one, which some classes cannot omit.

    If only some layers have biases, the others get zeros, since a GPT has biases everywhere or nowhere.
    """
    biases = [name for name in shapes if name.endswith(".bias")]
    norms = [name for name in shapes if name.endswith(("q_norm.weight", "k_norm.weight"))]
    has_bias = any(weights[name].any() for name in biases if name in weights)
    has_norms = not all(weights[name].eq(1).all() for name in norms)
    for name in biases:
        weights.setdefault(name, torch.zeros(shapes[name].shape))
    if config.tie_weights:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    dropped = {*([] if has_bias else biases), *([] if has_norms else norms)}
    config = dataclasses.replace(config, bias=has_bias, qk_norm_weights=has_norms)
    return config, {name: weight for name, weight in weights.items() if name not in dropped}


def _plain_names(row: StockClass, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the prefix that some files omit; returns a copy."""
    prefix, _, table = row.parts("transformer.wte")[0].rpartition(".")
    if f"{table}.weight" not in weights:
        return dict(weights)
    return {name if name.startswith("lm_head.") else f"{prefix}.{name}": weight for name, weight in weights.items()}


def _row(config: dict[str, Any]) -> StockClass:
    """Find the class of a config.json in the table."""
    if config.get("auto_map") or config.get("trust_remote_code"):
        raise unusable("auto_map asks for code that comes with the model; tinygpt never runs remote code")
    names = config.get("architectures") or [None]
    row = STOCK.get(names[0])
    if row is None:
        what = f"config.json: architectures is {shown(names)}, a class that tinygpt cannot read"
        raise TinyGPTError(what, f"choose a model whose class is {', '.join(STOCK)}")
    if config.get("model_type") != row.model_type:
        raise unusable(f"config.json: model_type is {shown(config.get('model_type'))}, which contradicts {row.name}")
    return row


def _gpt_config(row: StockClass, config: dict[str, Any]) -> GPTConfig:
    """Translate a config.json. Errors: TinyGPTError for any field that may change the function and that a GPT lacks."""
    ropes = {key: config.get(key) or {} for key in ("rope_parameters", "rope_scaling")}  # of transformers 5 and 4
    if not any(ropes.values()):
        ropes["rope_parameters"] = row.missing.get("rope_parameters", {})
    values = {**row.missing, **config, **ropes}
    keys = row.keys
    rope = ropes["rope_parameters"] | ropes["rope_scaling"]
    rope.setdefault("rope_theta", values.get("rope_theta") or 10000.0)
    fields = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
    sizes: dict[str, Any] = {field: size(values, keys[field]) for field in fields}
    vocabulary, context, _, heads, width = sizes.values()
    if vocabulary > MAX_SYMBOLS:
        raise TinyGPTError(
            f"config.json: vocab_size is {vocabulary:,}, above the {MAX_SYMBOLS:,} that fit: "
            "tinygpt stores token ids as uint16",
            "choose a model with a smaller vocabulary, for example GPT-2 or SmolLM2",
        )
    kv_heads = size(values, keys["n_kv_head"], heads) if "n_kv_head" in keys else heads
    window = size(values, keys["window"], context) if "window" in keys else context
    activation = ACTIVATION.get(str(values.get(keys["activation"])), "")
    result = GPTConfig(
        **sizes,
        n_kv_head=kv_heads if kv_heads != heads else 0,
        mlp_width=size(values, keys["mlp_width"], 4 * width if row.learned else None),
        bias=row.learned or any(values.get(key) for key in row.biases.values()),
        norm="layernorm" if row.learned else "rmsnorm",
        position="learned" if row.learned else "rope",
        activation=activation,
        qk_norm="qk_norm" in row.options[0],
        qk_norm_weights="qk_norm" in row.options[0],
        tie_weights=bool(values.get("tie_word_embeddings")),
        norm_eps=number(values, keys["norm_eps"], 1e-12, 1.0),
        rope_base=number(rope, "rope_theta", 1.0, 1e12),
        window=window if window < context else 0,
    )
    refused = [] if activation in row.options[0]["activation"] else [keys["activation"]]
    refused += [key for key, fits in row.checked.items() if key in values and not fits(values[key], result)]
    known = {*HARMLESS, *keys.values(), *row.biases.values(), *row.checked}
    refused += [key for key, value in config.items() if key not in known and value not in USUAL.get(key, NEUTRAL)]
    for key in refused:
        what = f"config.json: {shown(key)} is {shown(values[key])}, which a GPT of tinygpt cannot express"
        other = "" if key in known else ", or delete this key from config.json if it changes no logits"
        raise TinyGPTError(what, f"choose another model{other}")
    return result
