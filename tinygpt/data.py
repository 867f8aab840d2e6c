"""Prepared datasets: the only place that knows the token files' format, and where batches come from.

A dataset is a folder of three files. `train.bin` and `val.bin` are raw little-endian uint16 ids, byte-compatible
with nanoGPT's; `meta.json` holds the tokenizer, counts, and the SHA-256 of everything. Nothing is ever pickled.

A batch is a pure function of (seed, step): a Philox generator keyed by the two draws the global batch, and each
process and each micro-step takes its slice of it. So there is no data position to save, resuming is exact,
evaluation cannot disturb training, and the number of processes does not change what is learned.
Source of the counter-based generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import __version__
from tinygpt.config import DATASET_NAME
from tinygpt.errors import TinyGPTError
from tinygpt.tokenizer import Tokenizer, fingerprint, tokenizer_from_dict

META_FORMAT = 1
IN_MEMORY = 1 << 30  # bytes; larger token files are memory-mapped, and their checksum is left to `tinygpt check`
TOKEN = np.dtype("<u2")


class TokenWriter:
    """Writes one token file under a temporary name, with its checksum; `commit` gives it its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.tokens = 0
        self.sha256 = hashlib.sha256()
        self._file = open(self.temporary, "wb", buffering=0)  # noqa: SIM115 (commit or discard closes it)

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
        self._file.close()
        self.temporary.unlink(missing_ok=True)


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
        self.fingerprint = fingerprint(self.tokenizer.to_dict())
        self.splits = {split: self._open(split) for split in ("train", "val")}

    @property
    def prepare_command(self) -> str:
        own_text = "" if self.name in ("shakespeare_char", "shakespeare") else " --input YOUR_TEXT"
        return f"tinygpt prepare {self.name}{own_text}"

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

    def require(self, block_size: int) -> None:
        """Errors: TinyGPTError if a split is too short for one window of block_size and its shifted target."""
        for split, tokens in self.splits.items():
            if len(tokens) < block_size + 1:
                raise TinyGPTError(
                    f"{split} has {len(tokens)} tokens; block_size {block_size} needs {block_size + 1}",
                    f"use --block_size={max(len(tokens) - 1, 1)} or less, or more text",
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


def draw_windows(seed: int, step: int, tokens: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
    """Where the `count` windows of a step's global batch start, int64, shape (count,), from (seed, step) alone.

    `stream` separates the uses: 0 is training, 1 and 2 are the evaluation of the two splits.
    """
    key = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
    generator = np.random.Generator(np.random.Philox(key=[key, np.uint64(step)]))
    return generator.integers(0, tokens - block_size, size=count)


def windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> np.ndarray:
    """Inputs with their targets: int64, shape (len(starts), block_size + 1); x is [:, :-1], y is [:, 1:]."""
    return tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
