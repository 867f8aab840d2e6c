"""Prepared datasets: the only place that knows the token files' format.

A dataset is a folder of three files. `train.bin` and `val.bin` are raw little-endian uint16 ids, byte-compatible
with nanoGPT's; `meta.json` holds the tokenizer, counts, and the SHA-256 of everything. Nothing is ever pickled. A
dataset of prompts and responses has a `test.bin` too; its examples are PROMPT prompt RESPONSE response END, one behind
the other, so which tokens carry loss can be read off the tokens themselves.
"""

import contextlib
import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import __version__
from tinygpt.config import suggest
from tinygpt.config.schema import DATASET_NAME
from tinygpt.data.rows import PairRows, TextRows
from tinygpt.data.tasks import TASKS
from tinygpt.data.tokenizer import CharTokenizer, Tokenizer, fingerprint, tokenizer_from_dict
from tinygpt.errors import TinyGPTError

META_FORMAT = 1
IN_MEMORY = 1 << 30  # bytes; larger token files are memory-mapped, and their checksum is left to `tinygpt check`
TOKEN = np.dtype("<u2")
READY = ("shakespeare_char", "shakespeare", *TASKS)  # what `prepare` makes from its name alone


class Checksum:
    """SHA-256 of a stream, computed in a thread beside the work that makes the stream (hashlib lets others run)."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._pieces: queue.Queue[bytes | memoryview | None] = queue.Queue(maxsize=2)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._sha256.update(piece)

    def update(self, piece: bytes | memoryview) -> None:
        """The caller must not change `piece` any more."""
        self._pieces.put(piece)

    def hexdigest(self) -> str:
        """Of everything; nothing may follow."""
        if self._thread.is_alive():
            self._pieces.put(None)
            self._thread.join()
        return self._sha256.hexdigest()


class TokenWriter:
    """Writes one token file under a temporary name, with its checksum; `commit` gives it its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.tokens = 0
        self._file = open(self.temporary, "wb", buffering=0)  # noqa: SIM115 (commit or discard closes it)
        self.sha256 = Checksum()

    def write(self, ids: np.ndarray) -> None:
        data = np.ascontiguousarray(ids, dtype=TOKEN).view(np.uint8).data
        self.sha256.update(data)
        self.tokens += len(ids)
        while data:  # an unbuffered write may be short
            data = data[self._file.write(data) :]

    def commit(self) -> None:
        self._file.close()
        os.replace(self.temporary, self.path)

    def discard(self) -> None:
        self.sha256.hexdigest()  # ends its thread
        self._file.close()
        self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def token_writers(folder: Path, splits: Iterable[str]) -> Iterator[dict[str, TokenWriter]]:
    """A writer for each split; what was not committed is discarded. Errors: TinyGPTError when the system refuses."""
    writers: dict[str, TokenWriter] = {}
    try:
        for split in splits:
            writers[split] = TokenWriter(folder / f"{split}.bin")
        yield writers
    except OSError as error:
        raise TinyGPTError(f"{folder}: cannot be written: {error.strerror}", "free some space", status=1) from error
    finally:
        for writer in writers.values():
            writer.discard()


def commit_dataset(folder: Path, writers: list[TokenWriter], meta: dict[str, Any]) -> None:
    """Give the new files their names: complete or absent.

    meta.json goes first and comes back last, so a dataset killed in between counts as not prepared. A run that
    has the old files open keeps them. No fsync: after a power loss the checksums in meta.json tell.
    """
    meta = {"format": META_FORMAT, "tinygpt": __version__, **meta}
    temporary = folder / ".meta.json.tmp"
    try:
        temporary.write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8", errors="surrogatepass")
        (folder / "meta.json").unlink(missing_ok=True)
        for writer in writers:
            writer.commit()
        os.replace(temporary, folder / "meta.json")
    finally:
        temporary.unlink(missing_ok=True)


class Dataset:
    """A prepared dataset, opened and checked. Errors: TinyGPTError for whatever is missing, damaged or foreign."""

    def __init__(self, data_dir: str, name: str) -> None:
        if not re.fullmatch(DATASET_NAME, name):  # it may come from a checkpoint, and that from a stranger
            raise TinyGPTError(f"dataset name {name[:40]!r} is not a folder's name inside {data_dir}", "--dataset=NAME")
        self.name = name
        self.folder = Path(data_dir) / name
        self.meta = self._read_meta()
        self.tokenizer: Tokenizer = tokenizer_from_dict(self.meta.get("tokenizer"), str(self.folder / "meta.json"))
        self.pairs = self.meta.get("kind") == "pairs"
        names = ("train", "val", "test") if self.pairs else ("train", "val")
        self.splits = {split: self._open(split) for split in names}
        self._set_sources()

    @property
    def prepare_command(self) -> str:
        own_text = "" if self.name in READY else " --input YOUR_TEXT"
        options = getattr(self, "meta", {}).get("options", {})
        return suggest.prepare(self.name, options, self.folder.parent, own_text)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokenizer.to_dict())

    @property
    def labels(self) -> list[str]:
        """The responses of a labelled task; empty for free responses and for plain text."""
        labels = self.meta.get("labels", []) if self.pairs else []
        return labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else []

    def _set_sources(self) -> None:
        self.sources: dict[str, TextRows | PairRows] = {}
        for split, tokens in self.splits.items():
            try:
                self.sources[split] = PairRows(tokens, self.tokenizer) if self.pairs else TextRows(tokens)
            except (AttributeError, KeyError, ValueError):
                what = f"{self.folder}/{split}.bin: does not hold prompts and responses"
                raise TinyGPTError(what, f"re-run {self.prepare_command}") from None

    def adopt_tokenizer(self, tokenizer: Tokenizer) -> bool:
        """Take over a tokenizer that has all symbols of this one, under ids of its own; False if it has not."""
        mine, theirs = self.tokenizer, tokenizer
        if fingerprint(mine.to_dict()) == fingerprint(theirs.to_dict()):
            return True
        if not isinstance(mine, CharTokenizer) or not isinstance(theirs, CharTokenizer):
            return False
        ids = {symbol: index for index, symbol in enumerate(theirs.symbols)}
        if not ids.keys() >= set(mine.symbols):
            return False
        table = np.array([ids[symbol] for symbol in mine.symbols], dtype=TOKEN)
        self.splits = {split: table[tokens] for split, tokens in self.splits.items()}
        self.tokenizer = theirs
        self._set_sources()
        return True

    def _read_meta(self) -> dict[str, Any]:
        path = self.folder / "meta.json"
        if not path.is_file():
            if (self.folder / "meta.pkl").exists():
                raise TinyGPTError(
                    f"{self.folder} has only nanoGPT's meta.pkl, which is refused: a pickle can run code",
                    f"make the dataset again: {self.prepare_command}",
                )
            raise TinyGPTError(f"dataset {self.name!r} is not prepared ({path}: no such file)", self.prepare_command)
        try:
            meta = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        except (ValueError, RecursionError):
            meta = None
        except OSError as error:
            raise TinyGPTError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
        version = meta.get("format") if isinstance(meta, dict) else None
        known = isinstance(version, int) and version <= META_FORMAT
        if not isinstance(version, int) or (known and not _is_meta(meta)):
            raise TinyGPTError(f"{path}: damaged, not what tinygpt prepare writes", f"re-run {self.prepare_command}")
        if not known:
            raise TinyGPTError(
                f"{path}: format {meta['format']} is newer than this tinygpt's {META_FORMAT}", "upgrade tinygpt"
            )
        return meta

    def _open(self, split: str) -> np.ndarray:
        """The split's ids, uint16, shape (tokens,). A small file is read whole: nothing can pull it away then."""
        path = self.folder / f"{split}.bin"
        try:
            size = path.stat().st_size
        except OSError:
            raise TinyGPTError(f"{path}: no such file", f"re-run {self.prepare_command}") from None
        if size == 0 or size % TOKEN.itemsize:
            what = "empty" if size == 0 else f"has {size:,} bytes, which is not a whole number of uint16 tokens"
            raise TinyGPTError(f"{path}: {what}", f"re-run {self.prepare_command}")
        if size > IN_MEMORY:
            return np.memmap(path, dtype=TOKEN, mode="r")
        try:
            tokens = np.fromfile(path, dtype=TOKEN)
        except OSError as error:
            raise TinyGPTError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
        self.verify(split, tokens)
        return tokens

    def verify(self, split: str, tokens: np.ndarray) -> None:
        """Compare a split with the checksum in meta.json; name the first impossible token if there is one."""
        path = self.folder / f"{split}.bin"
        bad = np.flatnonzero(tokens >= self.tokenizer.vocab_size)
        if len(bad):
            what = f"token {tokens[bad[0]]} at position {bad[0]:,} is outside the {self.tokenizer.vocab_size} symbols"
        elif hashlib.sha256(tokens.view(np.uint8).data).hexdigest() != self.meta["sha256"].get(path.name):
            what = "its content has changed since it was prepared (its checksum is not the one in meta.json)"
        else:
            return
        raise TinyGPTError(f"{path}: {what}", f"re-run {self.prepare_command}")

    def is_of(self, data: dict[str, str]) -> bool:
        """Whether a checkpoint's `data` names these token files. Their source may differ, in line ends for example."""
        files = [f"{split}.bin" for split in self.splits]
        return all(data.get(file) == self.meta["sha256"].get(file, "") for file in files)

    def require(self, block_size: int) -> None:
        """Errors: TinyGPTError if a split has nothing that fits a context of block_size."""
        for split, source in self.sources.items():
            if isinstance(source, PairRows):
                long = int((source.lengths > block_size + 1).sum())
                if long:
                    raise TinyGPTError(
                        f"{long} of {len(source.lengths)} examples in {split} are longer than block_size {block_size} "
                        f"(the longest has {source.lengths.max()} tokens)",
                        "shorter examples, or a base model with a longer context",
                    )
            elif len(source.tokens) < block_size + 1:
                tokens = len(source.tokens)
                raise TinyGPTError(
                    f"{split} has {tokens} tokens; block_size {block_size} needs {block_size + 1}",
                    f"use --block_size={tokens - 1} or less, or prepare more text"
                    if tokens > 1
                    else "prepare more text",
                )


def _is_meta(meta: dict[str, Any]) -> bool:
    """Whether what is read from meta.json has the types that `tinygpt prepare` writes."""
    sums, counts = meta.get("sha256"), meta.get("characters", {})
    return (
        isinstance(sums, dict)
        and isinstance(counts, dict)
        and all(isinstance(value, str) for value in sums.values())
        and all(isinstance(value, int) for value in counts.values())
    )
