"""Read prepared datasets: open token files and meta.json, check them, and make their splits sources of rows.

dataset = Dataset("data", "shakespeare_char")
dataset.splits["val"], dataset.sources["val"], dataset.tokenizer
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.configs.fields import DATASET_NAME
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import file_error, folder_of
from tinygpt.data.rows import PairRows, Rows, TextRows
from tinygpt.data.token_files import META_FORMAT, TOKEN
from tinygpt.data.tokenizer import CharTokenizer, Tokenizer, fingerprint, tokenizer_from_dict

ENCODED_AGAIN = 1 << 24  # tokens; a larger dataset is not encoded again for a model with another tokenizer
IN_MEMORY = 1 << 30  # bytes; larger token files are memory-mapped, and their checksum is left to `tinygpt doctor`


class Dataset:
    """A prepared dataset, opened and checked. Errors: TinyGPTError if a file is missing, damaged or in a new format."""

    def __init__(self, data_dir: str, name: str) -> None:
        require_name(name, data_dir)  # it may come from a checkpoint, and that from a stranger
        self.name = name
        self.folder = Path(data_dir) / name
        self.meta = self._read_meta()
        self.tokenizer: Tokenizer = tokenizer_from_dict(self.meta.get("tokenizer"), str(self.folder / "meta.json"))
        self.pairs = self.meta.get("kind") == "pairs"
        names = ("train", "val", "test") if self.pairs else ("train", "val")
        self.splits = {split: self._open(split) for split in names}
        self._set_sources()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(tokens):,} tokens in {split}" for split, tokens in self.splits.items())
        return f"<{self.folder}: {sizes}; vocabulary of {self.tokenizer.vocab_size}>"

    @property
    def prepare_command(self) -> str:
        from tinygpt.data.corpora import CORPORA
        from tinygpt.data.tasks import TASKS

        own_text = "" if self.name in (*CORPORA, *TASKS) else " --input YOUR_TEXT"
        options = getattr(self, "meta", {}).get("options", {})
        return suggest.prepare(self.name, options, self.folder.parent, own_text)

    @property
    def labels(self) -> list[str]:
        """Return the labels of a classification task; none for free responses and for plain text."""
        return list(self.meta.get("labels", [])) if self.pairs else []

    def _set_sources(self) -> None:
        self.sources: dict[str, Rows] = {}
        for split, tokens in self.splits.items():
            try:
                self.sources[split] = PairRows(tokens, self.tokenizer) if self.pairs else TextRows(tokens)
            except ValueError:
                what = f"{self.folder}/{split}.bin: does not hold prompts and responses"
                raise TinyGPTError(what, f"re-run {self.prepare_command}") from None

    def adopt_tokenizer(self, tokenizer: Tokenizer) -> bool:
        """Encode this dataset with another tokenizer. Returns False, and changes nothing, if the tokenizer lacks a
        character or the special tokens of pairs, or if the dataset is too large to be encoded again with subwords."""
        old = self.tokenizer
        new = tokenizer
        if old.to_dict() == new.to_dict():
            return True
        if isinstance(new, CharTokenizer):
            ids = {symbol: index for index, symbol in enumerate(new.symbols)}
            if not isinstance(old, CharTokenizer) or not ids.keys() >= set(old.symbols):
                return False
            table = np.array([ids[symbol] for symbol in old.symbols], dtype=TOKEN)
            self.splits = {split: table[tokens] for split, tokens in self.splits.items()}
        else:
            if sum(map(len, self.splits.values())) > ENCODED_AGAIN or (self.pairs and new.pair is None):
                return False
            for split, tokens in self.splits.items():
                pairs = [new.encode_pair(*pair) for pair in self.sources[split].examples(old)]
                self.splits[split] = np.concatenate(pairs or list(encoded_again(tokens, old, new)))
        self.tokenizer = new
        self._set_sources()
        return True

    def require_tokenizer(self, tokenizer: Tokenizer, where: str, hint: str) -> None:
        """Encode this dataset with the tokenizer of the model `where`. Errors: TinyGPTError names what it lacks."""
        old = self.tokenizer
        if self.adopt_tokenizer(tokenizer):
            return
        unknown = ""
        if isinstance(old, CharTokenizer) and isinstance(tokenizer, CharTokenizer):
            missing = sorted(set(old.symbols) - set(tokenizer.symbols))
            unknown = f": only the dataset has {terminal.listed([repr(symbol) for symbol in missing])}"
        different = f"({fingerprint(old.to_dict())} and {fingerprint(tokenizer.to_dict())}){unknown}"
        raise TinyGPTError(f"dataset {self.name!r} and {where} have different vocabularies {different}", hint)

    def _read_meta(self) -> dict[str, Any]:
        path = self.folder / "meta.json"
        if not path.is_file():
            if (self.folder / "meta.pkl").exists():
                what = f"{self.folder} has only nanoGPT's meta.pkl, which is refused: a pickle can run code"
                raise TinyGPTError(what, f"make the dataset again: {self.prepare_command}")
            raise TinyGPTError(f"dataset {self.name!r} is not prepared ({path}: no such file)", self.prepare_command)
        try:
            meta = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        except (ValueError, RecursionError):
            meta = None
        except OSError as error:
            raise file_error(path, error) from None
        match meta:
            case {"format": int(version)} if version > META_FORMAT:
                what = f"{path}: format {version} is newer than this tinygpt's {META_FORMAT}"
                raise TinyGPTError(what, "upgrade tinygpt")
            case {"format": int()} if _is_dict(meta.get("sha256"), str) and _is_dict(meta.get("characters", {}), int):
                return meta
        raise TinyGPTError(f"{path}: damaged, not what tinygpt prepare writes", f"re-run {self.prepare_command}")

    def _open(self, split: str) -> np.ndarray:
        """Open a split's ids, uint16 (tokens,). A small file is read completely: later changes cannot affect a run."""
        path = self.folder / f"{split}.bin"
        try:
            size = path.stat().st_size
            if size == 0 or size % TOKEN.itemsize:
                what = "empty" if size == 0 else f"has an odd number of bytes ({size:,}), but a token has two"
                raise TinyGPTError(f"{path}: {what}", f"re-run {self.prepare_command}")
            if size > IN_MEMORY:
                return np.memmap(path, dtype=TOKEN, mode="r")
            tokens = np.fromfile(path, dtype=TOKEN)
        except OSError as error:
            raise file_error(path, error, f"re-run {self.prepare_command}") from None
        self.verify(split, tokens)
        return tokens

    def verify(self, split: str, tokens: np.ndarray) -> None:
        """Compare a split with the checksum in meta.json, its tokens with the vocabulary. Errors: TinyGPTError."""
        path = self.folder / f"{split}.bin"
        size = self.tokenizer.vocab_size
        unknown = np.flatnonzero(tokens >= size)
        if len(unknown):
            what = f"token {tokens[unknown[0]]} at position {unknown[0]:,} is outside the vocabulary of {size} tokens"
        elif hashlib.sha256(tokens.view(np.uint8).data).hexdigest() != self.meta["sha256"].get(path.name):
            what = "its content has changed since it was prepared (its checksum is not the one in meta.json)"
        else:
            return
        raise TinyGPTError(f"{path}: {what}", f"re-run {self.prepare_command}")

    def has_checksums(self, data: dict[str, str]) -> bool:
        """Return whether the token files have the checksums in a checkpoint's `data`; the source is not compared."""
        files = [f"{split}.bin" for split in self.splits]
        return all(data.get(file) == self.meta["sha256"].get(file, "") for file in files)

    def require(self, block_size: int) -> None:
        """Check that all splits fit a context of block_size. Errors: TinyGPTError that names the split which needs the
        largest change, so its hint holds for all."""
        split, source = min(self.sources.items(), key=lambda item: item[1].spare_tokens(block_size))
        source.require(block_size, split)


def require_name(name: str, data_dir: str) -> None:
    """Check that a name is that of a folder inside data_dir. Errors: TinyGPTError if not."""
    if not re.fullmatch(DATASET_NAME, name):
        raise TinyGPTError(f"dataset name {name[:40]!r} is not a folder name in {data_dir}", "--dataset=NAME")


def encoded_again(tokens: np.ndarray, old: Tokenizer, new: Tokenizer) -> Iterator[np.ndarray]:
    """Encode text with another tokenizer, which also replaces the token at the end of each document."""
    for document in np.split(tokens, np.flatnonzero(np.isin(tokens, old.end_of_text)) + 1):
        ended = int(np.isin(document[-1:], old.end_of_text).sum())
        yield from new.encode_blocks([old.decode(document[: len(document) - ended].tolist())])
        if ended:
            yield new.end_of_text if len(new.end_of_text) else new.encode("\n")


def data_dir(config: Any, recorded: dict[str, Any], path: str | Path) -> str:
    """Return the folder of the datasets: --data_dir if given, else that of the run's configuration.

    A relative path counts from where the run was started, which is derived from the run's own path if this command runs
    elsewhere. If it does not exist, as for a configuration from another machine, the default is used.
    path: the run's folder, or a checkpoint in it.
    """
    if "data_dir" in config.given or config.data_dir != type(config).data_dir:  # the second: made in Python
        return str(config.data_dir)
    folder, name = (str(recorded.get(key) or "") for key in ("data_dir", "dataset"))
    for start in started_elsewhere(recorded, path):
        if folder and name and (start / folder / name).is_dir():
            return str(start / folder)
    return folder if folder and Path(folder).is_dir() else str(config.data_dir)


def started_elsewhere(recorded: dict[str, Any], path: str | Path) -> Iterator[Path]:
    """Yield the folder in which a run was started, derived from its own path, unless it is the present one."""
    parts = Path(str(recorded.get("out_dir") or "")).parts
    run = folder_of(path)
    for absolute in (Path(os.path.abspath(run)), run.resolve()):  # the first: the run's folder may be a link
        if parts and absolute.parts[-len(parts) :] == parts:
            start = Path(*absolute.parts[: -len(parts)])
            if start != Path.cwd():
                yield start


def _is_dict(value: Any, value_type: type) -> bool:
    """Return whether a value of meta.json is a dictionary whose values are of this type."""
    return isinstance(value, dict) and all(isinstance(item, value_type) for item in value.values())
