"""Tokenizers and chat templates as files that transformers and the package tokenizers read.

A character tokenizer is a byte-pair encoding (BPE) without merges; GPT-2's merges are recovered from the order of its
tokens; an imported tokenizer is written as it was read. Special tokens keep their ids. Unlike tinygpt, the package
encodes the name of a special token in a user's text as that token, unless `split_special_tokens=True` is given.

Source: https://huggingface.co/docs/tokenizers, for the components of a tokenizer.json.

    files = tokenizer_files(tokenizer)       # {"tokenizer.json": "...", "tokenizer_config.json": "...", ...}
"""

import itertools
import json
from typing import Any

from tinygpt.data.corpora import CHARACTERS, GPT2_EOS, gpt2_ranks
from tinygpt.data.tokenizer import END, PROMPT, RESPONSE, SPECIAL, Tokenizer, tokenizers_library


def tokenizer_files(tokenizer: Tokenizer, block_size: int = 0) -> dict[str, str]:
    """Make the contents of tokenizer.json, tokenizer_config.json and, for a model of prompts, chat_template.jinja.

    block_size: the longest input, stored for tools that ask; 0: unknown.
    """
    spec = tokenizer.to_dict()
    pair = None
    match spec["kind"]:
        case "char":
            text = _characters(spec["symbols"])
            eos = ""
            template = ""
            if set(SPECIAL) <= set(spec["symbols"]):
                pair = {"prefix": PROMPT, "middle": RESPONSE, "end": END}
        case "gpt2":
            text = _gpt2()
            eos = GPT2_EOS
            template = ""
        case _:
            text = spec["json"]
            eos = spec["eos"]
            template = spec["chat_template"]
            pair = spec["pair"]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,  # transformers 4 would remove spaces before punctuation
        "model_input_names": ["input_ids", "attention_mask"],  # and would add token_type_ids
    }
    if block_size:
        settings["model_max_length"] = block_size
    if eos := pair["end"] if pair else eos:
        settings |= {"eos_token": eos, "pad_token": eos}
    files = {"tokenizer.json": text}
    if template := template or (chat_template(**pair) if pair else ""):
        files["chat_template.jinja"] = template
    return {**files, "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}


def chat_template(prefix: str, middle: str, end: str) -> str:
    """Write the Jinja template of examples: prefix, prompt, middle, response, end, for each turn."""
    start, answer, stop = (json.dumps(text) for text in (prefix, middle, end))
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{{ " + start + " + message['content'] + " + answer + " }}"
        "{%- elif message['role'] == 'assistant' -%}{{ message['content'] + " + stop + " }}"
        "{%- endif -%}{%- endfor -%}"
    )


def _characters(symbols: list[str]) -> str:
    tokenizers = tokenizers_library()
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens([symbol for symbol in symbols if symbol in SPECIAL])
    return str(tokenizer.to_str())


def _gpt2() -> str:
    tokenizers = tokenizers_library()
    ranks = gpt2_ranks()
    names = {token: "".join(CHARACTERS[byte] for byte in token) for token in ranks}
    merges = [
        tuple(names[part] for part in _merged(token, ranks)) for token in sorted(ranks, key=ranks.__getitem__)[256:]
    ]
    vocabulary = {names[token]: index for token, index in ranks.items()}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({**vocabulary, GPT2_EOS: len(ranks)}, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([GPT2_EOS])
    return str(tokenizer.to_str())


def _merged(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Find the two tokens that were merged into this one: what is left after all earlier merges of its bytes."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        index = min(range(len(pairs)), key=pairs.__getitem__)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts
