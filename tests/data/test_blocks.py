"""The tokenizers of GPT-2 and of imported models encode a text in blocks as they encode it at once."""

import functools
import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinygpt.data.tokenizer import LLAMA3, QWEN2, GPT2Tokenizer, HuggingFaceTokenizer

hf = pytest.importorskip("tokenizers")

LINE = "don't  go, it's a b! a b!  12 it's a\n\n b a <a> b\t é 日 "
STEPS = hf.pre_tokenizers
GPT2_STEP = STEPS.ByteLevel(add_prefix_space=False)
BYTES_ONLY = STEPS.ByteLevel(add_prefix_space=False, use_regex=False)


def after_split(pattern: str) -> Any:
    return STEPS.Sequence([STEPS.Split(hf.Regex(pattern), "isolated"), BYTES_ONLY])


IN_PIECES = {
    "tiktoken": {},
    "GPT-2": {"pre_tokenizer": GPT2_STEP},
    "SmolLM2": {"pre_tokenizer": STEPS.Sequence([STEPS.Digits(individual_digits=True), GPT2_STEP])},
    "Pythia": {"pre_tokenizer": GPT2_STEP, "normalizer": hf.normalizers.NFC()},
    "Qwen2": {"pre_tokenizer": after_split(QWEN2), "normalizer": hf.normalizers.NFC()},
    "Llama 3": {"pre_tokenizer": after_split(LLAMA3)},
    "runs of spaces": {"pre_tokenizer": GPT2_STEP, "added": [hf.AddedToken("  ")]},
}
AT_ONCE = {
    "another pattern": {"pre_tokenizer": after_split(r"\w+ \w+")},
    "bytes before the pattern": {"pre_tokenizer": STEPS.Sequence([BYTES_ONLY, GPT2_STEP])},
    "a prefix": {"pre_tokenizer": GPT2_STEP, "normalizer": hf.normalizers.Prepend("_")},
    "an added token of two words": {"pre_tokenizer": GPT2_STEP, "added": [hf.AddedToken("b a")]},
    "an added token with the space after": {"pre_tokenizer": GPT2_STEP, "added": [hf.AddedToken("<a>", rstrip=True)]},
    "an added token after spaces": {"pre_tokenizer": GPT2_STEP, "added": [hf.AddedToken(" b", single_word=True)]},
}


@functools.cache
def byte_level(name: str) -> GPT2Tokenizer | HuggingFaceTokenizer:
    """A byte-level tokenizer of one of these kinds, trained on a few lines."""
    if name == "tiktoken":
        return GPT2Tokenizer()
    parts: dict[str, Any] = (IN_PIECES | AT_ONCE)[name]
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer, made.decoder = parts["pre_tokenizer"], hf.decoders.ByteLevel()
    alphabet = [*STEPS.ByteLevel.alphabet(), *" \n\t_é日▁"]
    trainer = hf.trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False, max_token_length=6)
    made.train_from_iterator([LINE[at:] for at in range(len(LINE))] * 9, trainer)
    if "normalizer" in parts:
        made.normalizer = parts["normalizer"]
    made.add_tokens(parts.get("added", []))
    return HuggingFaceTokenizer(str(made.to_str()))


@pytest.mark.parametrize("name", [*IN_PIECES, *AT_ONCE])
@given(
    text=st.text(st.sampled_from("ab1'. \n\t\r\x1c\x85\xa0é\u180e\u3000日🙂e\u0301"), max_size=40),
    block=st.integers(1, 12),
)
@example(text=LINE * 9, block=7)
@example(text="ab!\x1c! \x1c", block=1)
def test_tokens_of_blocks_are_those_of_the_whole_text(name: str, text: str, block: int) -> None:
    tokenizer = byte_level(name)
    blocks = (text[at : at + block] for at in range(0, len(text), block))
    pieces = list(tokenizer.encode_blocks(b.encode() if b.isascii() else b for b in blocks))
    assert list(itertools.chain.from_iterable(pieces)) == tokenizer.encode(text).tolist()
    if text == LINE * 9:
        assert (len(pieces) > 30) == (name in IN_PIECES)
