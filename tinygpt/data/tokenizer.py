"""Tokenizers: text to ids and back.

Two tokenizers with one interface: `CharTokenizer`, where every character of the corpus is one token, and
`GPT2Tokenizer`, GPT-2's byte-pair encoding through tiktoken. Both are plain JSON in and out (`to_dict`,
`tokenizer_from_dict`), so a tokenizer travels inside `meta.json` and inside every checkpoint, never as a pickle.

    tokenizer = CharTokenizer("abc")
    tokenizer.encode("cab").tolist() == [2, 0, 1];  tokenizer.decode([2, 0, 1]) == "cab"
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tinygpt.errors import TinyGPTError

Block = bytes | str  # a piece of a text; bytes: plain ASCII
MAX_SYMBOLS = 65_536  # ids are stored as uint16
CODE_POINTS = 0x110000
LONGEST_WORD = 4 << 20  # after so many characters without a blank, GPT2Tokenizer cuts a text
PROMPT, RESPONSE, END = SPECIAL = "<|prompt|>", "<|response|>", "<|end|>"  # special tokens of an example


def code_points(text: str) -> np.ndarray:
    """The text's Unicode code points, uint32, shape (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def lone_surrogate(text: str) -> str:
    """Find the first lone surrogate, half of a surrogate pair; return it as `U+D83D`, or an empty string.

    A surrogate is a code point but not a character: text that contains one cannot be encoded as UTF-8.
    """
    found = re.search("[\ud800-\udfff]", text)
    return f"U+{ord(found[0]):04X}" if found else ""


class CharTokenizer:
    """One token per character. `symbols` are the tokens in the order of their ids; `prepare` sorts them by code point.

    Those in SPECIAL are special tokens: text is never encoded as one, even if it reads the same.
    """

    kind = "char"

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        if len(self.symbols) > MAX_SYMBOLS:
            raise TinyGPTError(
                f"{len(self.symbols):,} different characters exceed the {MAX_SYMBOLS:,} ids of uint16",
                "use --tokenizer gpt2, which encodes any text with 50,257 tokens",
            )
        self.vocab_size = len(self.symbols)
        self.special = {symbol: index for index, symbol in enumerate(self.symbols) if symbol in SPECIAL}
        ids = [index for index, symbol in enumerate(self.symbols) if symbol not in SPECIAL]
        codes = code_points("".join(self.symbols[index] for index in ids))
        self._known = np.zeros(CODE_POINTS, dtype=bool)  # by code point; lookup instead of a loop over characters
        self._known[codes] = True
        self._ids = np.zeros(CODE_POINTS, dtype="<u2")
        self._ids[codes] = ids

    def encode(self, text: str, skip_unknown: bool = False) -> np.ndarray:
        """Ids of `text`, uint16, shape (n,). Errors: TinyGPTError names the first character without an id."""
        codes = code_points(text)
        known = self._known[codes]
        if not known.all():
            if not skip_unknown:
                at = int(np.argmin(known))
                raise TinyGPTError(
                    f"{describe(text[at])}, position {at}) is not in this model's "
                    f"{self.vocab_size}-character vocabulary",
                    "leave it out, or pass --skip_unknown",
                )
            codes = codes[known]
        return self._ids[codes]

    def encode_blocks(self, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
        """Ids of each block of a text, uint16 (n,): one table lookup per character.

        ASCII characters must have ids below 256, as they do when `prepare` sorts the vocabulary.
        """
        table = bytearray(256)
        for index, symbol in enumerate(self.symbols):
            if len(symbol) == 1 and ord(symbol) < 128:
                table[ord(symbol)] = index
        for block in blocks:
            if isinstance(block, bytes):
                yield np.frombuffer(block.translate(table), dtype=np.uint8).astype("<u2")
            else:
                yield self.encode(block)

    def encode_pair(self, prompt: str, response: str | None = None, skip_unknown: bool = False) -> np.ndarray:
        """Ids of an example, PROMPT prompt RESPONSE response END; without a response, those up to RESPONSE."""
        special = np.array([self.special[name] for name in SPECIAL], dtype="<u2")
        asked = (special[:1], self.encode(prompt, skip_unknown), special[1:2])
        answer = () if response is None else (self.encode(response, skip_unknown), special[2:])
        return np.concatenate((*asked, *answer))

    def grown(self, symbols: Iterable[str]) -> "CharTokenizer":
        """Return this tokenizer with the missing ones of `symbols` appended; the ids of its own tokens stay."""
        return CharTokenizer(dict.fromkeys([*self.symbols, *symbols]))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of these ids; a special token becomes its name."""
        return "".join(self.symbols[i] for i in ids)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one token, for streaming."""
        return self.symbols[token].encode("utf-8", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "symbols": self.symbols}


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding (Radford et al. 2019), 50,257 tokens, through tiktoken."""

    kind = "gpt2"
    vocab_size = 50257

    def __init__(self) -> None:
        from tinygpt.data.corpora import gpt2_encoding

        self._encoding = gpt2_encoding()

    def encode(self, text: str, skip_unknown: bool = False) -> np.ndarray:
        """Ids of `text`, uint16, shape (n,). `skip_unknown` changes nothing: BPE on bytes encodes any text."""
        return np.array(self._encoding.encode_ordinary(text), dtype="<u2")

    def encode_blocks(self, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
        """Ids of a text in blocks, uint16 (n,), equal to those of the whole text at once.

        GPT-2's pattern never lets a token span from a non-space to white space that follows it, so just before a blank
        or a line end the text can be cut. (LONGEST_WORD characters without either are cut, which can change a token.)
        """
        pending = ""
        for block in blocks:
            pending += block.decode("ascii") if isinstance(block, bytes) else block
            if at := _safe_cut(pending):
                yield self.encode(pending[:at])
                pending = pending[at:]
        if pending:
            yield self.encode(pending)

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode([int(i) for i in ids])

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, for streaming: a character may be spread over several tokens."""
        return self._encoding.decode_single_token_bytes(token)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


Tokenizer = CharTokenizer | GPT2Tokenizer


def _safe_cut(text: str) -> int:
    """The last place where a blank or line end follows a non-space, 0 if there is none yet.

    Not any `isspace()`: Python includes control characters like U+001C, which GPT-2's pattern does not.
    """
    for at in range(len(text) - 1, 0, -1):
        if text[at] in " \n" and not text[at - 1].isspace():
            return at
    return len(text) if len(text) > LONGEST_WORD else 0


def describe(character: str) -> str:
    """A character and its code point for a message, `'é' (U+00E9`; the caller closes the bracket."""
    shown = character if unicodedata.category(character)[0] not in "CZ" else character.encode("unicode_escape").decode()
    return f"'{shown}' (U+{ord(character):04X}"


def tokenizer_from_dict(spec: Any, where: str) -> Tokenizer:
    """Make the tokenizer that `to_dict` described. Errors: TinyGPTError that names `where` the description is from."""
    match spec:
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "char", "symbols": [*symbols]} if symbols and all(
            isinstance(symbol, str) and (len(symbol) == 1 or symbol in SPECIAL) for symbol in symbols
        ):
            if len(set(symbols)) == len(symbols):
                return CharTokenizer(symbols)
    raise TinyGPTError(f"{where}: contains a tokenizer that tinygpt does not know", "re-run tinygpt prepare")


def fingerprint(spec: dict[str, Any]) -> str:
    """Short hash of a vocabulary, equal exactly if each id is the same token."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
