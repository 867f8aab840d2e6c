"""Pack a model and its vocabulary into one JSON object for `model.js`, which explains the format.

Half precision halves the page. On 3,200 characters of Tiny Shakespeare it changes the logits of a model of
configs/nanogpt.yaml by at most 0.008 and a probability by 0.002; those of a fine-tuned model, which is more confident,
by 0.07 and 0.012.

A snapshot is stored as its difference from the next one towards the model itself, in 8 bits ("absmax" quantisation, as
in checkpoint/eight_bits.py, but by blocks). The difference is taken from what the page has of the other one, so errors
do not add up. A model of 0.8 M parameters takes 2.2 MB, and each snapshot 1.1 MB.
"""

import base64
import dataclasses
import json
from typing import Any

import numpy as np
import torch

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.eight_bits import absmax
from tinygpt.data.corpora import BYTES
from tinygpt.data.tokenizer import CharTokenizer, HuggingFaceTokenizer, Tokenizer
from tinygpt.generate import require_finite
from tinygpt.model import GPT

# What model.js implements: every value of the first fields of GPTConfig, these values of the next, else the default.
EVERY_VALUE = {
    *("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "position"),
    *("bias", "qk_norm", "qk_norm_weights", "tie_weights", "zero_init", "bigram_table", "token_shift"),
    *("n_kv_head", "mlp_width", "rope_base", "norm_eps", "window"),
}
BLOCK = 128  # weights that share the scale of a difference, as in model.js
MOST_TOKENS = 8192  # of byte-level BPE, in 0.2 MB
GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
VALUES = {"norm": {"layernorm", "rmsnorm"}, "activation": {"gelu", "gelu_tanh", "relu2", "swiglu"}}


def pack(model: GPT, tokenizer: Tokenizer, half: bool = True) -> dict[str, Any]:
    """Pack the weights as plain types. `half`: float16, unless a weight is too large for it; otherwise float32.

    The rows of a padded vocabulary that belong to no token are left out, so that no such id can be sampled. Errors:
    TinyGPTError for a tokenizer or an option that model.js does not implement, and weights that are not finite.
    """
    vocabulary = packed_vocabulary(tokenizer)
    weights = page_weights(model, tokenizer)
    numbers = torch.cat([weight.flatten() for weight in weights.values()])
    if half and numbers.half().isfinite().all():  # float16 ends at 65,504
        numbers = numbers.half()
    tensors = {}
    offset = 0
    for name, weight in weights.items():
        tensors[name] = {"shape": list(weight.shape), "offset": offset}
        offset += weight.numel()
    turns = model.position.frequencies()
    distances = torch.arange(model.config.block_size)
    bias = model.position.bias(distances[-1:], distances.flip(0))  # (n_head, 1, block_size) or (1, block_size)
    if bias is not None:  # JSON has no infinity
        bias = bias.expand(model.config.n_head, 1, -1)[:, 0].clamp(min=-1e9)
    return {
        "config": dataclasses.asdict(model.config) | {"vocab_size": tokenizer.vocab_size},
        "position": {  # what model.position computes
            "relative": model.position.relative,
            "frequencies": None if turns is None else torch.cat((-turns, turns)).tolist(),  # as in `rotate`
            "bias": None if bias is None else bias.tolist(),
        },
        **vocabulary,
        "dtype": str(numbers.dtype).removeprefix("torch."),
        "tensors": tensors,
        "data": encoded(numbers.numpy()),
    }


def packed_vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Pack a vocabulary: of characters, or of byte-level BPE with GPT-2's pattern. Errors: see `pack`."""
    merges = byte_level_merges(tokenizer) if isinstance(tokenizer, HuggingFaceTokenizer) else None
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = tokenizer.symbols
    elif isinstance(tokenizer, HuggingFaceTokenizer) and merges is not None:
        names = {id: name for name, id in tokenizer.special.items()}
        vocabulary = [names.get(id) or tokenizer.token_bytes(id).hex() for id in range(tokenizer.vocab_size)]
    else:
        raise TinyGPTError(
            f"the model has a subword tokenizer, and a page can hold only byte-level BPE with GPT-2's pattern and at "
            f"most {MOST_TOKENS:,} tokens",
            "tinygpt export --format=gguf or --format=hf, or tinygpt prepare with --tokenizer=char or --tokenizer=bpe",
        )
    special = tokenizer.special
    return {"vocabulary": vocabulary, "special": special, "end": special.get(tokenizer.stop), "merges": merges}


def byte_level_merges(tokenizer: HuggingFaceTokenizer) -> list[str] | None:
    """Return the merges of a tokenizer as model.js reads them, or None if it has a setting that model.js does not."""
    spec = json.loads(tokenizer.to_dict()["json"])
    model = spec["model"]
    pre = spec.get("pre_tokenizer") or {}
    steps = [{"use_regex": True} | step for step in pre.get("pretokenizers", [pre])]
    if (
        model.get("type") != "BPE"
        or any(value for key, value in model.items() if key not in ("type", "vocab", "merges"))
        or not BYTES.keys() <= model["vocab"].keys()
        or [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps] != [GPT2_SPLIT]
        or spec.get("normalizer")
        or not all(token["special"] for token in spec["added_tokens"])
        or len(tokenizer.start)
        or tokenizer.vocab_size > MOST_TOKENS
    ):
        return None
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [" ".join(bytes(BYTES[character] for character in part).hex() for part in pair) for pair in pairs]


def page_weights(model: GPT, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Return the weights that a page needs, in float32, without rows that belong to no token. Errors: see `pack`."""
    if lacking := model.config.unsupported_options(EVERY_VALUE, VALUES):
        what = f"the page's JavaScript does not implement {' and '.join(lacking)}"
        raise TinyGPTError(what, "use tinygpt sample, or train a model without this option")
    weights = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
    padded = model.config.vocab_size
    size = tokenizer.vocab_size
    if model.config.tie_weights:
        del weights["lm_head.weight"]  # the same tensor as transformer.wte.weight
    for name in {"transformer.wte.weight", "lm_head.weight"} & weights.keys():
        weights[name] = weights[name][:size]
    if model.config.bigram_table:  # rows of pairs: (token before, token)
        pairs = weights["transformer.wbe.weight"].view(padded, padded, -1)
        weights["transformer.wbe.weight"] = pairs[:size, :size].flatten(0, 1)
    for weight in weights.values():
        require_finite(weight, "the model's weights are")
    return weights


def differences(
    packed: dict[str, Any], step: int, models: dict[int, GPT], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Pack the models of other steps, by step, as differences, in ascending order of their steps. packed: the model of
    `step`, from `pack`. Errors: see `pack`."""
    dtype = np.dtype(packed["dtype"]).newbyteorder("<")
    base_weights = np.frombuffer(base64.b64decode(packed["data"]), dtype).astype(np.float32)
    order = sorted(models)
    by_step: dict[int, dict[str, Any]] = {}
    for direction in (reversed([other for other in order if other < step]), [other for other in order if other > step]):
        before = None
        decoded = base_weights
        for other in direction:
            weights = page_weights(models[other], tokenizer)
            target = torch.cat([weight.flatten() for weight in weights.values()]).numpy()
            blocks = np.pad(target - decoded, (0, -len(target) % BLOCK)).reshape(-1, BLOCK)
            change, scales = (part.flatten().numpy() for part in absmax(torch.from_numpy(blocks)))
            change = change[: len(target)]
            decoded = decoded + np.repeat(scales.astype(np.float32), BLOCK)[: len(change)] * change
            by_step[other] = {"step": other, "from": before, "scales": encoded(scales), "data": encoded(change)}
            before = order.index(other)
    return [by_step[other] for other in order]


def encoded(numbers: np.ndarray) -> str:
    """Encode numbers as base64, little-endian."""
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()
