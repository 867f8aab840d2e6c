"""Conversations as tokens: the text and the special tokens that a model expects around each message.

A model that was fine-tuned on pairs answers a single prompt. The chat template of an imported model is run once, with
placeholders for the contents, and the texts between the placeholders are encoded separately from the contents. So a
user's text cannot contain a special token.

    chat_format = ChatFormat(tokenizer, skip_unknown=False)
    chat_format.encode([{"role": "user", "content": "Hello"}])         # ids up to the start of the response
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygpt.adapt.formats.chat import PROMPT, RESPONSE, render
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.prompts import encode_prompt
from tinygpt.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from tinygpt.use.serve.protocol import invalid_field, refusing

SYSTEM = "tinygptSYSTEMtinygpt"
SECOND_PROMPT = "tinygptAGAINtinygpt"


@functools.cache  # adapters have the template of their base model
def rendered(template: str, bos: str, eos: str) -> tuple[str, ...]:
    """Render a chat template with one turn, two turns, and a system message; a text is empty if that fails."""
    turn = [{"role": "user", "content": PROMPT}]
    second = [*turn, {"role": "assistant", "content": RESPONSE}, {"role": "user", "content": SECOND_PROMPT}]
    system = [{"role": "system", "content": SYSTEM}, *turn]
    texts = []
    for messages in (turn, second, system):
        try:
            texts += render(template, bos, eos, [messages])
        except TinyGPTError:
            texts.append("")
    return tuple(texts)


class ChatFormat:
    """The chat format of a model: token ids between the contents, or None for what the model does not support."""

    def __init__(self, tokenizer: Tokenizer, skip_unknown: bool) -> None:
        """Find the format of a tokenizer. Only a chat template supports several turns and a system message."""
        self.tokenizer = tokenizer
        self.skip_unknown = skip_unknown
        self.between: np.ndarray | None = None  # between a response (with its end) and the next prompt
        self.before_system: np.ndarray | None = None
        self.after_system: np.ndarray | None = None  # up to the first prompt
        if not isinstance(tokenizer, HuggingFaceTokenizer) or not tokenizer.chat_template:
            return
        bos = tokenizer.decode(tokenizer.start[:1])
        encode = tokenizer.encode_template
        one_turn, two_turns, with_system = rendered(tokenizer.chat_template, bos, tokenizer.eos)
        if PROMPT not in one_turn:  # the template failed: only single prompts, in the checkpoint's prompt format
            return
        start = one_turn + RESPONSE + tokenizer.stop
        middle = one_turn.split(PROMPT)[1]
        end = SECOND_PROMPT + middle
        if two_turns.startswith(start) and two_turns.endswith(end) and two_turns.count(SECOND_PROMPT) == 1:
            self.between = encode(two_turns[len(start) : -len(end)])
        if with_system.count(SYSTEM) == 1 and with_system.endswith(PROMPT + middle):
            before, after = with_system.removesuffix(PROMPT + middle).split(SYSTEM)
            self.before_system = encode(before)
            self.after_system = encode(after)

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Encode a conversation, up to the start of the next response.

        Errors: ApiError for a conversation that the model cannot read.
        """
        if self.tokenizer.pair is None:
            raise invalid_field("messages", "this model only continues text; use /v1/completions")
        system = []
        turns = list(messages)
        while turns and turns[0]["role"] == "system":
            system.append(turns.pop(0)["content"])
        if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise invalid_field("messages", "expected the roles user and assistant in turn, the last one user")
        if system and self.before_system is None:
            raise invalid_field("messages", "this model supports no system message; leave it out")
        if len(turns) > 1 and self.between is None:
            message = "this model answers one prompt and does not see earlier turns; send the last message alone"
            raise invalid_field("messages", message)
        pair = self.tokenizer.pair
        with refusing("messages"):
            first = encode_prompt(turns[0]["content"], self.tokenizer, self.skip_unknown)
            if not system and len(turns) == 1:
                return first
            parts: list[Any] = [pair.prefix]
            if system:
                parts = [self.before_system, self.tokenizer.encode("\n".join(system)), self.after_system]
            for turn in turns:
                content = self.tokenizer.encode(turn["content"])
                parts += [content, pair.middle] if turn["role"] == "user" else [content, pair.end, self.between]
        return np.concatenate(parts).tolist()
