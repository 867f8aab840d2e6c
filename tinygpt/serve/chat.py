"""Conversations as tokens: the text and the special tokens that a model expects around each message.

A model that was fine-tuned on pairs answers a single prompt, so a longer conversation is refused. An imported model has
a chat template. It is run once, with placeholders for the contents, and the texts between the placeholders are kept.
They are encoded separately from the contents, so a user's text cannot contain a special token.

    chat_format = ChatFormat.of(tokenizer)
    chat_format.encode([{"role": "user", "content": "Hello"}])         # ids up to the start of the response
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinygpt.data.prompts import encode_prompt
from tinygpt.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.interop.chat import PROMPT, RESPONSE, render
from tinygpt.serve.protocol import refusing, wrong

SYSTEM, SECOND_PROMPT = "tinygptSYSTEMtinygpt", "tinygptAGAINtinygpt"


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


class ChatFormat(NamedTuple):
    """The chat format of a model: token ids between the contents, or None for what the model does not support."""

    tokenizer: Tokenizer
    skip_unknown: bool
    between: np.ndarray | None = None  # between a response (with its end) and the next prompt
    before_system: np.ndarray | None = None
    after_system: np.ndarray | None = None  # up to the first prompt

    @classmethod
    def of(cls, tokenizer: Tokenizer, skip_unknown: bool = False) -> "ChatFormat":
        """Find the format of a tokenizer. Only a chat template supports several turns and a system message."""
        chat_format = cls(tokenizer, skip_unknown)
        if not isinstance(tokenizer, HuggingFaceTokenizer) or not tokenizer.chat_template:
            return chat_format
        bos, encode = tokenizer.decode(tokenizer.start[:1]), tokenizer.encode_template
        one_turn, two_turns, with_system = rendered(tokenizer.chat_template, bos, tokenizer.eos)
        if PROMPT not in one_turn:  # the template failed: only single prompts, in the checkpoint's prompt format
            return chat_format
        start, middle = one_turn + RESPONSE + tokenizer.stop, one_turn.split(PROMPT)[1]
        if (
            two_turns.startswith(start)
            and two_turns.endswith(SECOND_PROMPT + middle)
            and two_turns.count(SECOND_PROMPT) == 1
        ):
            chat_format = chat_format._replace(between=encode(two_turns[len(start) : -len(SECOND_PROMPT + middle)]))
        if with_system.count(SYSTEM) == 1 and with_system.endswith(PROMPT + middle):
            before, after = with_system.removesuffix(PROMPT + middle).split(SYSTEM)
            chat_format = chat_format._replace(before_system=encode(before), after_system=encode(after))
        return chat_format

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Encode a conversation, up to the start of the next response.

        Errors: ApiError for a conversation that the model cannot read.
        """
        if self.tokenizer.pair is None:
            raise wrong("messages", "this model only continues text; use /v1/completions")
        system, turns = [], list(messages)
        while turns and turns[0]["role"] == "system":
            system.append(turns.pop(0)["content"])
        if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise wrong("messages", "expected the roles user and assistant in turn, the last one user")
        if system and self.before_system is None:
            raise wrong("messages", "this model supports no system message; leave it out")
        if len(turns) > 1 and self.between is None:
            message = "this model answers one prompt and does not see earlier turns; send the last message alone"
            raise wrong("messages", message)
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
