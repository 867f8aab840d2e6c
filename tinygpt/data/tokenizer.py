"""Tokenizers: text to ids and back.

Three tokenizers with one interface: characters, GPT-2's byte-pair encoding, and one of the package tokenizers, which an
imported model has or data/bpe.py has trained. All are plain JSON in and out (`to_dict`, `tokenizer_from_dict`), which
`meta.json` and every checkpoint contain.

    tokenizer = CharTokenizer("abc")
    tokenizer.encode("cab").tolist() == [2, 0, 1];  tokenizer.decode([2, 0, 1]) == "cab"
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.errors import TinyGPTError, library
from tinygpt.base.terminal import one_line

Block = bytes | str  # a piece of a text; bytes: plain ASCII
OWN_TOKENIZERS = ("auto", "char", "gpt2", "bpe")  # of `tinygpt prepare --tokenizer`; others are those of a model
MAX_SYMBOLS = 65_536  # ids are stored as uint16
CODE_POINTS = 0x110000
LONGEST_WORD = 4 << 20  # after so many characters without a blank, GPT2Tokenizer cuts a text
QWEN2 = (  # the pattern by which Qwen2's tokenizer splits a text before the merges; Llama 3 joins up to three digits
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
PROMPT, RESPONSE, END = SPECIAL = "<|prompt|>", "<|response|>", "<|end|>"  # special tokens of an example


def code_points(text: str) -> np.ndarray:
    """Return the text's Unicode code points, uint32 (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def lone_surrogate(text: str) -> str:
    """Return the first lone surrogate, a code point that UTF-8 cannot encode, as `U+D83D`; an empty string if none."""
    try:
        text.encode()  # much faster than a search
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return ""


class PairFormat(NamedTuple):
    """Tokens of an example around its prompt and response, uint16: prefix, prompt, middle, response, end.

    Prefix and middle contain a special token, so that no text contains them; end is a single special token.
    """

    prefix: np.ndarray
    middle: np.ndarray
    end: np.ndarray


class BaseTokenizer:
    """What all tokenizers share."""

    kind: str
    vocab_size: int
    pair: PairFormat | None = None  # None: the vocabulary has no special tokens for prompts and responses
    start = np.zeros(0, dtype="<u2")  # ids at the start of every text
    end_of_text = np.zeros(0, dtype="<u2")  # ids at the end of each document of a dataset
    stop = ""  # special token that ends a generated text; empty: none
    cut_before = ""  # where a text may be cut, see `cut_safely`

    def encode(self, text: str, skip_unknown: bool = False) -> np.ndarray:
        """Encode a text to ids, uint16 (n,). Only characters can be unknown: subwords encode any text."""
        raise NotImplementedError

    def encode_blocks(self, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
        """Encode a text in blocks to ids, uint16 (n,), those of the whole text unless a word is LONGEST_WORD long."""
        return map(self.encode, cut_safely(blocks, self.cut_before))

    def joined(self, other: "Tokenizer") -> "Tokenizer":
        """Add the tokens of `other` that this tokenizer lacks, if its vocabulary can grow; its own ids stay."""
        return self  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def __reduce__(self) -> tuple[Any, ...]:  # as JSON to a worker process: the libraries' own state is incomplete
        return tokenizer_from_dict, (self.to_dict(), "")

    def encode_prompt(self, prompt: str, skip_unknown: bool = False) -> np.ndarray:
        """Encode an example up to where its response begins."""
        assert self.pair is not None
        return np.concatenate((self.pair.prefix, self.encode(prompt, skip_unknown), self.pair.middle))

    def encode_response(self, response: str) -> np.ndarray:
        """Encode a response and the end of the example."""
        assert self.pair is not None
        return np.concatenate((self.encode(response), self.pair.end))

    def encode_pair(self, prompt: str, response: str) -> np.ndarray:
        """Encode an example to ids, uint16 (n,)."""
        return np.concatenate((self.encode_prompt(prompt), self.encode_response(response)))


class CharTokenizer(BaseTokenizer):
    """One token per character. `symbols` are the tokens in the order of their ids; `prepare` sorts them by code point.

    Those in SPECIAL are special tokens: text is never encoded as one, even if it reads the same.
    """

    kind = "char"

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self.vocab_size = len(self.symbols)
        if self.vocab_size > MAX_SYMBOLS:
            what = f"{self.vocab_size:,} different characters exceed the {MAX_SYMBOLS:,} ids of uint16"
            raise TinyGPTError(what, "use --tokenizer=gpt2, which encodes any text with 50,257 tokens")
        self.special = {symbol: index for index, symbol in enumerate(self.symbols) if symbol in SPECIAL}
        if len(self.special) == len(SPECIAL):
            self.pair = PairFormat(*(np.array([self.special[name]], dtype="<u2") for name in SPECIAL))
            self.stop = END
        ids = {symbol: index for index, symbol in enumerate(self.symbols) if symbol not in SPECIAL}
        self._ids = np.full(CODE_POINTS, -1, dtype=np.int32)  # by code point; -1: unknown
        self._ids[code_points("".join(ids))] = list(ids.values())

    def encode(self, text: str, skip_unknown: bool = False) -> np.ndarray:
        """Encode a text to ids, uint16 (n,). Errors: TinyGPTError that names the first character without an id."""
        ids = self._ids[code_points(text)]
        known = ids >= 0
        if not skip_unknown and not known.all():
            index = int(np.argmin(known))
            character = f"{describe(text[index])}, position {index})"
            what = f"{character} is not in this model's {self.vocab_size}-character vocabulary"
            raise TinyGPTError(what, "leave it out (tinygpt sample and serve: --skip_unknown)")
        return (ids if known.all() else ids[known]).astype("<u2")

    def unknown(self, seen: np.ndarray) -> str:
        """Return the characters without an id among those whose code points are set in `seen`, bool (0x110000,)."""
        return "".join(map(chr, np.flatnonzero(seen & (self._ids < 0))))

    def encode_blocks(self, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
        """Encode each block of a text: one table lookup per character. Errors: as in `encode`."""
        known = bytes(np.flatnonzero(self._ids[:128] >= 0).tolist())
        ids = self._ids[list(known)]
        fits = bool((ids < 256).all())  # always, if `prepare` has sorted the vocabulary
        table = bytes.maketrans(known, ids.astype(np.uint8).tobytes())
        for block in blocks:
            if isinstance(block, bytes) and fits and not block.translate(None, known):
                yield np.frombuffer(block.translate(table), dtype=np.uint8).astype("<u2")
            else:
                yield self.encode(block if isinstance(block, str) else block.decode("ascii"))

    def joined(self, other: "Tokenizer") -> "Tokenizer":
        if not isinstance(other, CharTokenizer):
            return self
        return CharTokenizer(dict.fromkeys([*self.symbols, *other.symbols]))

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text; a special token becomes its name."""
        return "".join(self.symbols[i] for i in ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 of one token, for streaming."""
        return self.symbols[token].encode("utf-8", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"symbols": self.symbols}


class GPT2Tokenizer(BaseTokenizer):
    """GPT-2's byte-pair encoding (Radford et al. 2019), 50,257 tokens, through tiktoken."""

    kind = "gpt2"
    vocab_size = 50257
    cut_before = " \n"  # GPT-2's pattern never lets a token span from a non-space to white space that follows it

    def __init__(self) -> None:
        from tinygpt.data.corpora import GPT2_END_OF_TEXT, gpt2_encoding

        self._encoding = gpt2_encoding()
        self.end_of_text = np.array([GPT2_END_OF_TEXT], dtype="<u2")

    def encode(self, text: str, skip_unknown: bool = False) -> np.ndarray:
        return np.array(self._encoding.encode_ordinary(text), dtype="<u2")

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode([int(i) for i in ids])

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, for streaming: a character may be spread over several tokens."""
        return self._encoding.decode_single_token_bytes(token)


class HuggingFaceTokenizer(BaseTokenizer):
    """A tokenizer of the package tokenizers. Text is never encoded as a special token."""

    kind = "huggingface"

    def __init__(self, text: str, eos: str = "", chat_template: str = "", pair: dict[str, str] | None = None) -> None:
        """Make a tokenizer from the text of a tokenizer.json.

        eos: the token that ends a text, chat_template: the model's own (Jinja), both empty if it has none. pair: the
        text around prompt and response, {"prefix", "middle", "end"}, which `tinygpt import` takes from the template.
        Errors: TinyGPTError without the package tokenizers; ValueError for something that is not a tokenizer.
        """
        from tinygpt.data.corpora import BYTES

        self._encoding = from_json(text)
        self._encoding.no_padding()
        self._encoding.no_truncation()
        self._json = text
        self.eos = eos
        self.chat_template = chat_template
        self._pair = pair
        self._tokens = {id: token for token, id in self._encoding.get_vocab(with_added_tokens=True).items()}
        self.vocab_size = max(self._tokens, default=-1) + 1
        if not 0 < self.vocab_size <= MAX_SYMBOLS:
            raise ValueError(f"{self.vocab_size:,} tokens, but tinygpt supports 1 to {MAX_SYMBOLS:,} (uint16)")
        added = self._encoding.get_added_tokens_decoder()
        self._added = {token.content for token in added.values()}
        self.special = {token.content: id for id, token in added.items() if token.special}
        self.start = np.array(self._encoding.encode("").ids, dtype="<u2")
        eos_id = self._encoding.token_to_id(eos)
        self.end_of_text = np.array([] if eos_id is None else [eos_id], dtype="<u2")
        self.stop = eos
        if pair:
            self.pair = PairFormat(*(self.encode_template(pair[name]) for name in PairFormat._fields))
            if not (len(self.pair.prefix) and len(self.pair.middle)) or len(self.pair.end) != 1:
                raise ValueError("no special tokens around prompt and response")
            self.stop = pair["end"]
        self._encoding.encode_special_tokens = True
        spec = json.loads(text)
        self.bytes = BYTES if (spec.get("decoder") or {}).get("type") == "ByteLevel" else {}
        self.cut_before = " " if splits_at_spaces(spec, added.values()) else ""

    def encode(self, text: str, skip_unknown: bool = False) -> np.ndarray:
        """Encode a text to ids, uint16 (n,). Errors: TinyGPTError for a surrogate."""
        try:
            return np.array(self._encoding.encode(text, add_special_tokens=False).ids, dtype="<u2")
        except TypeError:  # the package takes only what can be UTF-8
            what = f"the text contains {lone_surrogate(text)}, half of a surrogate pair"
            raise TinyGPTError(what, "remove it, or use UTF-8 text") from None

    def encode_template(self, text: str) -> np.ndarray:
        """Encode a text of the chat template, uint16 (n,): the name of a special token is encoded as that token."""
        self._encoding.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self._encoding.encode_special_tokens = True

    def joined(self, other: "Tokenizer") -> "Tokenizer":
        if self.pair or not other.pair:
            return self
        if self.vocab_size + len(SPECIAL) > MAX_SYMBOLS:
            room = f"{self.vocab_size:,} tokens leave no ids for them below {MAX_SYMBOLS:,} (uint16)"
            raise TinyGPTError(f"pairs need {len(SPECIAL)} special tokens, and {room}")
        grown = from_json(self._json)
        grown.add_special_tokens(list(SPECIAL))
        return HuggingFaceTokenizer(grown.to_str(), self.eos, pair=dict(zip(PairFormat._fields, SPECIAL, strict=True)))

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        if self.bytes:
            return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return str(self._encoding.decode(ids, skip_special_tokens=False))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, for streaming; a padded row of the embedding has none."""
        text = self._tokens.get(token, "")
        if text not in self._added and self.bytes.keys() >= set(text):
            return bytes(self.bytes[character] for character in text)
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", text):
            return bytes.fromhex(byte[1])
        return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def to_dict(self) -> dict[str, Any]:
        spec = {"json": self._json, "eos": self.eos, "chat_template": self.chat_template, "pair": self._pair}
        return super().to_dict() | spec


Tokenizer = CharTokenizer | GPT2Tokenizer | HuggingFaceTokenizer


def tokenizers_library() -> Any:
    """Import the package tokenizers. Errors: TinyGPTError if it is not installed."""
    return library("tokenizers", "this tokenizer")


def from_json(text: str) -> Any:
    """Make a `tokenizers.Tokenizer` from the text of a tokenizer.json. Errors: ValueError if it is none."""
    library = tokenizers_library()
    try:
        return library.Tokenizer.from_str(text)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library raises plain Exception, and Rust's panics are BaseException
        raise ValueError(one_line(ascii(str(error)))[:120]) from None


def splits_at_spaces(spec: dict[str, Any], added: Iterable[Any]) -> bool:
    """Return whether a text can be cut between a non-space and a space without a change of its ids.

    This is known of byte-level tokenizers with the patterns of GPT-2 (the default of `ByteLevel`, also after `Digits`,
    as in SmolLM2), Qwen2 and Llama 3, unless a normalizer changes the start of each part or an added token spans a cut.
    """
    pre = spec.get("pre_tokenizer") or {}
    *before, last = pre.get("pretokenizers") or [pre]
    if last.get("use_regex", True):
        known = all(step.get("type") == "Digits" for step in before)
    else:
        known = before in ([split_by(QWEN2)], [split_by(LLAMA3)])
    return (
        known
        and last.get("type") == "ByteLevel"
        and (spec.get("normalizer") or {"type": "NFC"}).get("type") == "NFC"
        and not any(token.rstrip or token.single_word or re.search(r"\S ", token.content) for token in added)
    )


def split_by(pattern: str) -> dict[str, Any]:
    """Make the step of a tokenizer.json that turns each match of a pattern into a piece of its own."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def cut_safely(blocks: Iterable[Block], before: str, longest: int = 0) -> Iterator[str]:
    """Cut a text before characters of `before` that follow a non-space; without `before`, the text is one piece.

    longest: the most characters without such a place; 0: LONGEST_WORD.
    """
    pending = ""
    for block in blocks:
        pending += block if isinstance(block, str) else block.decode("ascii")
        if before and (end := _safe_cut(pending, before, longest or LONGEST_WORD)):
            yield pending[:end]
            pending = pending[end:]
    if pending:
        yield pending


def _safe_cut(text: str, before: str, longest: int) -> int:
    """Find the last position where one of the characters `before` follows a non-space; 0 if there is none yet."""
    # not before any `isspace()`: Python includes control characters like U+001C, which GPT-2's pattern does not
    for cut in range(len(text) - 1, 0, -1):
        if text[cut] in before and not text[cut - 1].isspace():
            return cut
    return len(text) if len(text) > longest else 0


def describe(character: str) -> str:
    """Format a character and its code point for a message, `'é' (U+00E9`; the caller closes the bracket."""
    shown = character if unicodedata.category(character)[0] not in "CZ" else character.encode("unicode_escape").decode()
    return f"'{shown}' (U+{ord(character):04X}"


def tokenizer_from_dict(spec: Any, where: str) -> Tokenizer:
    """Make a tokenizer from the result of `to_dict`. where: its file, for messages. Errors: TinyGPTError."""
    match spec:
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "char", "symbols": [*symbols]} if symbols and all(
            isinstance(symbol, str) and (len(symbol) == 1 or symbol in SPECIAL) for symbol in symbols
        ):
            if len(set(symbols)) == len(symbols):
                return CharTokenizer(symbols)
        case {
            "kind": "huggingface",
            "json": str(text),
            "eos": str(eos),
            "chat_template": str(template),
            "pair": (None | {"prefix": str(), "middle": str(), "end": str()}) as pair,
        }:
            try:
                return HuggingFaceTokenizer(text, eos, template, pair)
            except ValueError as error:
                raise TinyGPTError(f"{where}: contains a tokenizer that cannot be used ({error})") from None
    raise TinyGPTError(f"{where}: contains a tokenizer that tinygpt does not know", "re-run tinygpt prepare")


def fingerprint(spec: dict[str, Any]) -> str:
    """Compute a short hash of a vocabulary, equal exactly if each id is the same token."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
