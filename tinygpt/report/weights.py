"""A model and its symbols as one JSON object, for the plain-JavaScript model of `model.js`, which explains the format.

Half precision halves the page. On 3,200 characters of Tiny Shakespeare it moves the logits of the shakespeare_char
model by 0.008 at most and a chance by 0.002; those of a fine-tuned one, which is surer of itself, by 0.07 and 0.012.

    packed = pack(checkpoint.build_model(), tokenizer)
    json.dumps(packed)                                # 2.2 MB for 0.8 M parameters
"""

import base64
import dataclasses
from typing import Any

import torch

from tinygpt.data.tokenizer import CharTokenizer, Tokenizer
from tinygpt.errors import TinyGPTError, diverged
from tinygpt.finetune import lora
from tinygpt.model import GPT

PACKED_FORMAT = 1


def pack(model: GPT, tokenizer: Tokenizer, half: bool = True) -> dict[str, Any]:
    """Plain types only. `half`: float16, unless a weight is too large for it; otherwise float32.

    Rows that belong to no symbol (a padded vocabulary) are left out, so no such id can be drawn.

    Errors: TinyGPTError for a model of GPT-2's tokens, for one with adapters beside its weights, for one with fewer
    symbols than its tokenizer, and for weights that are not finite.
    """
    if not isinstance(tokenizer, CharTokenizer):
        raise TinyGPTError(
            "the model in the page reads characters, and this one GPT-2's tokens",
            "prepare the text with --tokenizer=char, and train on that",
        )
    weights = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
    if lora.is_adapted(weights):
        raise TinyGPTError("the model has adapters beside its weights", "tinygpt merge makes one of both")
    padded, symbols = model.config.vocab_size, tokenizer.vocab_size
    if symbols > padded:
        raise TinyGPTError(f"the model has {padded} symbols, its tokenizer {symbols}", "use the tokenizer of its run")
    if model.config.tie_weights:
        del weights["lm_head.weight"]  # the same numbers as transformer.wte.weight
    for name in {"transformer.wte.weight", "lm_head.weight"} & weights.keys():
        weights[name] = weights[name][:symbols]
    if model.config.bigram_table:  # rows of pairs: (before, token)
        pairs = weights["transformer.wbe.weight"].view(padded, padded, -1)
        weights["transformer.wbe.weight"] = pairs[:symbols, :symbols].flatten(0, 1)

    numbers = torch.cat([weight.flatten() for weight in weights.values()])
    if not numbers.isfinite().all():
        raise diverged("the model's weights are", numbers[~numbers.isfinite()][0].item())
    if half and numbers.half().isfinite().all():  # beyond 65,504 it would be infinite: then rather a larger page
        numbers = numbers.half()
    tensors, offset = {}, 0
    for name, weight in weights.items():
        tensors[name] = {"shape": list(weight.shape), "offset": offset}
        offset += weight.numel()
    little_endian = numbers.numpy().astype(numbers.numpy().dtype.newbyteorder("<"))
    return {
        "format": PACKED_FORMAT,
        "dtype": str(numbers.dtype).removeprefix("torch."),
        "config": dataclasses.asdict(model.config) | {"vocab_size": symbols},
        "symbols": tokenizer.symbols,
        "special": tokenizer.special,
        "tensors": tensors,
        "data": base64.b64encode(little_endian.tobytes()).decode(),
    }
