"""Write a prepared dataset: token files and meta.json, complete or not at all.

`train.bin` and `val.bin` are raw little-endian uint16 ids, byte-compatible with nanoGPT's; `meta.json` holds the
tokenizer, counts, and the SHA-256 of source and token files. A dataset of prompts and responses also has `test.bin`.
Nothing is ever pickled. `data/dataset.py` reads these files.

    with token_writers(folder, ("train", "val")) as writers:
        writers["train"].write(tokenizer.encode("some text"))
        writers["val"].write(tokenizer.encode("more text"))
        commit_dataset(folder, writers, tokenizer, source_sha256, {"options": {}})
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import __version__
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.files import move, remove, require_closed

META_FORMAT = 1
TOKEN = np.dtype("<u2")


class TokenWriter:
    """Write one token file under a temporary name, with its checksum; `commit` gives the file its name."""

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
        move(self.temporary, self.path)

    def discard(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def token_writers(folder: Path, splits: Iterable[str]) -> Iterator[dict[str, TokenWriter]]:
    """Open a writer for each split; files that are not committed are removed. Errors: TinyGPTError if the system
    refuses a file."""
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


def commit_dataset(
    folder: Path, writers: dict[str, TokenWriter], tokenizer: Tokenizer, source_sha256: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write meta.json with these `facts` and give all files their names. Returns the content of meta.json.

    meta.json goes first and comes back last, so a dataset killed in between counts as not prepared. A run that has
    the old files open keeps them; Windows then refuses to replace them. No fsync: after a power loss the checksums in
    meta.json tell.
    """
    meta = {
        "format": META_FORMAT,
        "tinygpt": __version__,
        "tokenizer": tokenizer.to_dict(),
        "vocab_size": tokenizer.vocab_size,
        **facts,
        "tokens": {split: writer.tokens for split, writer in writers.items()},
        "sha256": {"source": source_sha256} | {w.path.name: w.sha256.hexdigest() for w in writers.values()},
    }
    temporary = folder / ".meta.json.tmp"
    try:
        temporary.write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8", errors="surrogatepass")
        for writer in writers.values():  # on Windows a run may read the old files: found before any is changed
            require_closed(writer.path)
        remove(folder / "meta.json")
        for writer in writers.values():
            writer.commit()
        move(temporary, folder / "meta.json")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return meta
