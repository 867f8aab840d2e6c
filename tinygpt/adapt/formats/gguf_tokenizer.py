"""The tokenizer in the header of a GGUF file: read and write byte-level BPE.

llama.cpp encodes with tokens, merges and the name of a pre-tokenizer, each a key of the header. PRE lists the
pre-tokenizers that tinygpt knows. A character tokenizer is written as merges that join the bytes of each character.

Source: llama.cpp's llama-vocab.cpp.
"""

import json
from pathlib import Path
from typing import Any

from tinygpt.adapt.formats.tokenizers import tokenizer_files
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.corpora import BYTES, CHARACTERS
from tinygpt.data.tokenizer import LLAMA3, MAX_SYMBOLS, QWEN2, SPECIAL, CharTokenizer, Tokenizer, from_json, split_by

FOLDER = "import the Hugging Face folder of this model"
BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2_SPLIT = {**BYTE_LEVEL, "use_regex": True}
DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
PRE: dict[str, list[dict[str, Any]]] = {  # tokenizer.ggml.pre: how llama.cpp cuts a text before the merges
    "gpt-2": [GPT2_SPLIT],
    "smollm": [{"type": "Digits", "individual_digits": True}, GPT2_SPLIT],
    "qwen2": [split_by(QWEN2), BYTE_LEVEL],
    "llama-bpe": [split_by(LLAMA3), BYTE_LEVEL],
    "default": [*map(split_by, DEFAULT), BYTE_LEVEL],
}
# tokenizer.ggml.token_type
NORMAL = 1
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
NO_MERGE = "\uffff \uffff"  # gguf leaves an empty array out, and llama.cpp wants one


def read_tokenizer(path: Path, header: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """Return the text of tokenizer.json, and the ids of the tokens that end and start a text. Errors: TinyGPTError."""
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in header.items()}
    if values["model"] != "gpt2":
        what = f"has a tokenizer of the kind {values['model']!r}, and tinygpt reads only 'gpt2' (byte-level BPE)"
        raise TinyGPTError(f"{path}: {what}", FOLDER)
    tokens = values["tokens"]
    if len(tokens) > MAX_SYMBOLS:
        what = f"its vocabulary has {len(tokens):,} tokens, more than the {MAX_SYMBOLS:,} that tinygpt supports"
        raise TinyGPTError(f"{path}: {what}", "import a model with a smaller vocabulary")
    types = values.get("token_type", [NORMAL] * len(tokens))

    def special(key: str) -> int | None:
        token = values.get(key, len(tokens))  # llama.cpp wants one; NORMAL: there is none
        return token if token < len(tokens) and types[token] not in (NORMAL, UNUSED) else None

    eos = special("eos_token_id")
    bos = special("bos_token_id")
    if symbols := _characters(tokens, types):
        return tokenizer_files(CharTokenizer(symbols))["tokenizer.json"], eos, bos
    pre = values.get("pre", "default")
    if pre not in PRE:
        what = f"has the pre-tokenizer {pre!r}, and tinygpt knows only {', '.join(PRE)}"
        raise TinyGPTError(f"{path}: {what}", FOLDER)
    ids = {token: id for id, token in enumerate(tokens)}
    merges = [merge.partition(" ")[::2] for merge in values["merges"]]
    added = [
        {"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": types[id] != USER_DEFINED}
        for token, id in ids.items()
        if types[id] not in (NORMAL, UNUSED)
    ]
    before = [bos] if values.get("add_bos_token", pre == "llama-bpe") and bos is not None else []
    after = [eos] if values.get("add_eos_token") and eos is not None else []
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]},
        "post_processor": _template(tokens, before, after) if before or after else None,
        "decoder": GPT2_SPLIT,
        "model": {"type": "BPE", "ignore_merges": pre == "llama-bpe", "vocab": ids, "merges": merges},
    }
    return json.dumps(spec, ensure_ascii=False), eos, bos


def _characters(tokens: list[str], types: list[int]) -> list[str]:
    """Return the symbols of a CharTokenizer if every token is a character or one of SPECIAL, else none.

    Its merges only join the bytes of a character, and pass through strings that are not tokens.
    """
    used = [(token, type_) for token, type_ in zip(tokens, types, strict=True) if type_ != UNUSED]
    symbols = []
    for token, type_ in used:
        if type_ == NORMAL and BYTES.keys() >= set(token):
            token = bytes(BYTES[character] for character in token).decode("utf-8", "replace")
        if len(token) != 1 and (type_ == NORMAL or token not in SPECIAL):
            return []
        symbols.append(token)
    return symbols if UNUSED not in types[: len(used)] and len(set(symbols)) == len(symbols) else []


def _template(tokens: list[str], before: list[int], after: list[int]) -> dict[str, Any]:
    """Make a post-processor that puts special tokens around a text."""

    def around(text: str, type_id: int) -> list[dict[str, Any]]:
        start, end = (
            [{"SpecialToken": {"id": tokens[id], "type_id": type_id}} for id in ids] for ids in (before, after)
        )
        return [*start, {"Sequence": {"id": text, "type_id": type_id}}, *end]

    special = {tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]} for id in before + after}
    pair = around("A", 0) + around("B", 1)
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special}


RARE = "~^|\\`{}@#_%$*=+<>&"  # characters, the rarest first


def write_tokenizer(writer: Any, tokenizer: Tokenizer, size: int) -> None:
    """Add the tokenizer's keys to the header; rows of the embedding without a token become UNUSED ones.

    llama.cpp takes token 11 as the end of a text where a file names none. A model of plain text has no such token:
    the file names an unused row, or else a character that texts rarely use, and generation stops there.
    Errors: TinyGPTError for a tokenizer that llama.cpp lacks.
    """
    files = tokenizer_files(tokenizer)
    spec = json.loads(files["tokenizer.json"])
    around: tuple[list[int], list[int]] = ([], [])
    if symbols := _characters_of(spec):
        # digits alone, and clean_spaces is off
        pre = "smollm"
        ids, merges = _char_tokens(symbols)
    else:
        pre = _pre_tokenizer(spec)
        around = _surrounding_ids(files["tokenizer.json"])
        ids = {id: (token, NORMAL) for token, id in spec["model"]["vocab"].items()}
        for token in spec.get("added_tokens", []):
            ids[token["id"]] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    rows = [ids.get(id, (f"[PAD{id}]", UNUSED)) for id in range(size)]
    tokens = [token for token, _ in rows]
    name = json.loads(files["tokenizer_config.json"]).get("eos_token")
    eos = next((id for id, row in ids.items() if row == (name, CONTROL)), None)
    rare = next((tokens.index(character) for character in RARE if character in tokens), size - 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([type_ for _, type_ in rows])
    writer.add_token_merges(merges or [NO_MERGE])
    end = max(ids) + 1
    unused = end if end < size else rare
    writer.add_eos_token_id(unused if eos is None else eos)
    writer.add_add_bos_token(bool(around[0]))
    writer.add_add_eos_token(bool(around[1]))
    for id in around[0]:
        writer.add_bos_token_id(id)
    if template := files.get("chat_template.jinja"):
        writer.add_chat_template(template)


def _characters_of(spec: dict[str, Any]) -> list[str]:
    """Return the symbols of the CharTokenizer that a tokenizer.json describes; none if it is of another kind."""
    vocabulary = spec["model"].get("vocab", {})
    plain = not spec.get("pre_tokenizer") and not spec["model"].get("merges", True)
    if not plain or sorted(vocabulary.values()) != [*range(len(vocabulary))]:
        return []
    symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    return symbols if all(len(symbol) == 1 or symbol in SPECIAL for symbol in symbols) else []


def _char_tokens(symbols: list[str]) -> tuple[dict[int, tuple[str, int]], list[str]]:
    """Convert characters to byte-level BPE: token and type by id, and merges that join a character's bytes."""
    ids = {}
    merges = dict[str, None]()
    for id, symbol in enumerate(symbols):
        token = "".join(CHARACTERS[byte] for byte in symbol.encode("utf-8", "surrogatepass"))
        ids[id] = (symbol, CONTROL) if symbol in SPECIAL else (token, NORMAL)
        if symbol not in SPECIAL:
            merges |= dict.fromkeys(f"{token[:index]} {token[index]}" for index in range(1, len(token)))
    return ids, list(merges)


def _pre_tokenizer(spec: dict[str, Any]) -> str:
    """Find llama.cpp's name of the pre-tokenizer of a tokenizer.json. Errors: TinyGPTError that names what has none."""
    model = spec["model"]
    pre = spec.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    name = next((name for name, known in PRE.items() if [*map(_essential, known)] == [*map(_essential, steps)]), "")
    problem = ""
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        problem = f"a {model.get('type')} model that is not byte-level"
    elif not name:
        problem = f"a pre-tokenizer ({', '.join(step.get('type', 'none') for step in steps)})"
    elif spec.get("normalizer") and (name != "qwen2" or spec["normalizer"] != {"type": "NFC"}):
        problem = f"a normalizer ({spec['normalizer'].get('type')})"
    elif model.get("ignore_merges") and name != "llama-bpe":
        problem = "ignore_merges"
    if problem:
        raise TinyGPTError(f"the tokenizer has {problem}, which llama.cpp does not support", "export with --format hf")
    return name


def _essential(step: dict[str, Any]) -> dict[str, Any]:
    """Remove the settings that change no id from a pre-tokenizer's step."""
    defaults = {"use_regex": True} if step.get("type") == "ByteLevel" else {}
    return defaults | {key: value for key, value in step.items() if key != "trim_offsets"}


def _surrounding_ids(text: str) -> tuple[list[int], list[int]]:
    """Find the ids that a tokenizer.json puts before and after a text, at most one each. Errors: TinyGPTError."""
    tokenizer = from_json(text)
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for before in (0, 1):
        after = len(full) - len(bare) - before
        if after in (0, 1) and full[before : before + len(bare)] == bare:
            return full[:before], full[len(full) - after :]
    raise TinyGPTError("the tokenizer puts several special tokens before or after a text", "export with --format hf")
