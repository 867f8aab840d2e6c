"""Text to ids and back, compared with a plain dictionary (as nanoGPT has it) and with tiktoken."""

import json
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import (
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    fingerprint,
    tokenizer_from_dict,
)


@pytest.fixture(scope="session")
def gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer()


@pytest.fixture(params=["char", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return CharTokenizer("\n !eéabc日🙂") if request.param == "char" else request.getfixturevalue("gpt2")


@pytest.mark.parametrize("text", ["", "a b\n\n c", "bébé", "日🙂!"])
def test_there_and_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.dtype("<u2") and ids.ndim == 1
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
    assert b"".join(tokenizer.token_bytes(int(i)) for i in ids) == text.encode()
    assert all(i < tokenizer.vocab_size for i in ids)


def test_through_json_and_back(tokenizer: Tokenizer) -> None:
    spec = json.loads(json.dumps(tokenizer.to_dict()))
    again = tokenizer_from_dict(spec, "here")
    assert type(again) is type(tokenizer)
    assert again.to_dict() == tokenizer.to_dict() == spec
    assert again.encode("bé!").tolist() == tokenizer.encode("bé!").tolist()
    assert fingerprint(spec) == fingerprint(again.to_dict())


@given(corpus=st.text(min_size=1), data=st.data())
@example(corpus="\0\x1c\x85\u2028\uffff\U0010ffff", data=None)
def test_characters_are_what_a_dictionary_makes_of_them(corpus: str, data: st.DataObject | None) -> None:
    """nanoGPT's two lines: stoi = {ch: i for i, ch in enumerate(sorted(set(data)))}, and its inverse."""
    symbols = sorted(set(corpus))
    numbers = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = CharTokenizer(symbols)
    text = data.draw(st.text(symbols)) if data else corpus
    assert tokenizer.encode(text).tolist() == [numbers[character] for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(symbols)


@given(symbols=st.sets(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), text=st.text(max_size=30))
def test_skip_unknown_leaves_out_exactly_what_is_unknown(symbols: set[str], text: str) -> None:
    tokenizer = CharTokenizer(sorted(symbols))
    known = "".join(character for character in text if character in symbols)
    assert tokenizer.decode(tokenizer.encode(text, skip_unknown=True)) == known
    if known == text:
        assert tokenizer.encode(text).tolist() == tokenizer.encode(text, skip_unknown=True).tolist()
    else:
        at = next(index for index, character in enumerate(text) if character not in symbols)
        with pytest.raises(TinyGPTError, match=rf"\(U\+{ord(text[at]):04X}, position {at}\)"):
            tokenizer.encode(text)


NO_TOKENIZERS: list[Any] = [None, {}, {"kind": "runes"}, {"kind": "char"}]
NO_TOKENIZERS += [{"kind": "char", "symbols": symbols} for symbols in ([], "ab", ["ab"], ["a", "a"], ["a", 1])]


@pytest.mark.parametrize("spec", NO_TOKENIZERS)
def test_what_is_no_tokenizer_is_refused_with_its_place(spec: object) -> None:
    with pytest.raises(TinyGPTError, match=r"^meta\.json: ") as caught:
        tokenizer_from_dict(spec, "meta.json")
    assert "tinygpt prepare" in caught.value.hint


def test_gpt2_is_tiktokens_own(gpt2: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from tiktoken's definition of gpt2, with the vocabulary read by tiktoken from the same ranks."""
    import tiktoken_ext.openai_public as definitions

    ranks = gpt2._encoding._mergeable_ranks
    monkeypatch.setattr(definitions, "data_gym_to_mergeable_bpe_ranks", lambda **files: ranks)
    authority = tiktoken.Encoding(**definitions.gpt2())
    assert authority.n_vocab == gpt2.vocab_size == 50257
    for text in ("<|endoftext|>", "It's 3 o'clock.  \n\n\tAnd we'd\xa0go", "naïve 日本 🙂 ½", "a" * 300, "\x1c!\x1c"):
        assert gpt2.encode(text).tolist() == authority.encode_ordinary(text)


def test_ascii_characters_may_have_any_id() -> None:
    """A model of another script gets the letters of its pairs at the end of its vocabulary."""
    tokenizer = CharTokenizer([*map(chr, range(0x4E00, 0x4E00 + 300)), *"abc"])
    blocks = list(tokenizer.encode_blocks([b"cab", "\u4e01b"]))
    assert [block.tolist() for block in blocks] == [[302, 300, 301], [1, 301]]
