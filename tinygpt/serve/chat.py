"""Conversations as tokens: the text and the special tokens that a model expects around each message.

A model that was fine-tuned on pairs answers a single prompt, so a longer conversation is refused. An imported model has
a chat template. It is run once, with placeholders for the contents, and the texts between the placeholders are kept.
They are encoded separately from the contents, so a user's text cannot contain a special token.

    form = ChatFormat.of(tokenizer)
    form.encode([{"role": "user", "content": "Hello"}])         # ids up to where the response begins
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

SYSTEM, AGAIN = "tinygptSYSTEMtinygpt", "tinygptAGAINtinygpt"


@functools.cache  # adapters have the template of their base model
def rendered(template: str, bos: str, eos: str) -> tuple[str, ...]:
    """A chat template with one turn, with two turns, and with a system message; each empty if it cannot be run so."""
    turn = [{"role": "user", "content": PROMPT}]
    second = [*turn, {"role": "assistant", "content": RESPONSE}, {"role": "user", "content": AGAIN}]
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
        """The format of a tokenizer. Only a chat template has several turns and a system message."""
        form = cls(tokenizer, skip_unknown)
        if not isinstance(tokenizer, HuggingFaceTokenizer) or not tokenizer.chat_template:
            return form
        bos, encode = tokenizer.decode(tokenizer.start[:1]), tokenizer.encode_template
        once, several, with_system = rendered(tokenizer.chat_template, bos, tokenizer.eos)
        if PROMPT not in once:  # the template cannot be run here: one turn, as the checkpoint describes it
            return form
        start, middle = once + RESPONSE + tokenizer.stop, once.split(PROMPT)[1]
        if several.startswith(start) and several.endswith(AGAIN + middle) and several.count(AGAIN) == 1:
            form = form._replace(between=encode(several[len(start) : -len(AGAIN + middle)]))
        if with_system.count(SYSTEM) == 1 and with_system.endswith(PROMPT + middle):
            before, after = with_system.removesuffix(PROMPT + middle).split(SYSTEM)
            form = form._replace(before_system=encode(before), after_system=encode(after))
        return form

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation, up to where the next response begins.

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
            what = "this model answers one prompt and does not see earlier turns; send the last message alone"
            raise wrong("messages", what)
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
