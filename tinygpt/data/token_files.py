"""Write a prepared dataset: token files and meta.json, complete or not at all.

`train.bin` and `val.bin` are raw little-endian uint16 ids, byte-compatible with nanoGPT's; `meta.json` holds the
tokenizer, counts, and the SHA-256 of source and token files. A dataset of prompts and responses also has `test.bin`.

    pieces = [("train", tokenizer.encode("some text")), ("val", tokenizer.encode("more text"))]
    write_token_files(folder, ("train", "val"), pieces, tokenizer, source_sha256, {"options": {}})
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base import __version__
from tinygpt.base.files import remove, replacing, require_closed
from tinygpt.data.tokenizer import Tokenizer

META_FORMAT = 1
TOKEN = np.dtype("<u2")


def write_token_files(
    folder: Path,
    splits: Iterable[str],
    pieces: Iterable[tuple[str, np.ndarray]],
    tokenizer: Tokenizer,
    source_sha256: str,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write the pieces, each a split and some of its ids, and meta.json with these `facts`. Returns its content.

    The old meta.json is removed before any other file is replaced, and the new one is put in place last, so a dataset
    that is interrupted in between counts as not prepared. A run that has the old files open keeps them; Windows then
    refuses to replace them. Errors: TinyGPTError as in `replacing`.
    """
    with contextlib.ExitStack() as stack:  # closes, and so renames, in reverse order
        meta_file = stack.enter_context(replacing(folder / "meta.json"))
        paths = {split: folder / f"{split}.bin" for split in splits}
        files = {split: stack.enter_context(replacing(path)) for split, path in paths.items()}
        tokens = dict.fromkeys(paths, 0)
        hashes = {split: hashlib.sha256() for split in paths}
        for split, ids in pieces:
            data = np.ascontiguousarray(ids, dtype=TOKEN).view(np.uint8).data
            files[split].write(data)
            hashes[split].update(data)
            tokens[split] += len(ids)
        meta = {
            "format": META_FORMAT,
            "tinygpt": __version__,
            "tokenizer": tokenizer.to_dict(),
            "vocab_size": tokenizer.vocab_size,
            **facts,
            "tokens": tokens,
            "sha256": {"source": source_sha256} | {paths[split].name: hashes[split].hexdigest() for split in paths},
        }
        meta_file.write(json.dumps(meta, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))
        for file in (meta_file, *files.values()):  # a full disk fails here, before any file is changed
            file.flush()
        for path in paths.values():  # on Windows, so does a run that has the old files open
            require_closed(path)
        remove(folder / "meta.json")
    return meta
