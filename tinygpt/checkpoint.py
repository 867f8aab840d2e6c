"""Checkpoints: `save` and `load` are the only two ways in and out.

A checkpoint is one `torch.save` of tensors and plain types. It is written beside its place, fsynced and renamed, so
it is always the old one or the new one; and it is sealed with the SHA-256 of the whole file, kept in the zip
archive's comment, so a damaged one is refused before a tensor is used. It is read with `weights_only=True`: a
file from a stranger can hold wrong numbers, but it cannot run code.

    save(Path("out/last.pt"), Checkpoint(...))
    checkpoint = load("out/ckpt.pt")           # or a folder, or nanoGPT's ckpt.pt
    model = checkpoint.build_model()
"""

import dataclasses
import hashlib
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from tinygpt import __version__
from tinygpt.errors import TinyGPTError
from tinygpt.files import replacing
from tinygpt.model import GPT, GPTConfig

FORMAT = 1
SEAL = b"tinygpt sha256 "
SEAL_BYTES = len(SEAL) + 64  # followed by the digest in hex


@dataclasses.dataclass
class Checkpoint:
    """A run at the moment before iteration `step`."""

    model: dict[str, torch.Tensor]  # weights under nanoGPT's names
    model_args: dict[str, Any]  # the fields of GPTConfig
    config: dict[str, Any]  # the run's whole configuration
    step: int = 0
    best_val_loss: float = float("inf")
    tokenizer: dict[str, Any] | None = None  # None in nanoGPT's files, whose tokenizer is the dataset's
    data: dict[str, str] = dataclasses.field(default_factory=dict)  # SHA-256 of the token files
    training: dict[str, Any] = dataclasses.field(default_factory=dict)  # what only `resume` needs

    def build_model(self) -> GPT:
        """The model with these weights. Errors: TinyGPTError when sizes and weights contradict each other."""
        args = GPTConfig.from_dict(self.model_args)
        blocks = {int(found[1]) for name in self.model if (found := re.match(r"transformer\.h\.(\d+)\.", name))}
        embedding = self.model.get("transformer.wte.weight")
        sizes_agree = (
            len(blocks) == args.n_layer  # checked before a model of absurd size is built
            and embedding is not None
            and tuple(embedding.shape) == (args.vocab_size, args.n_embd)
            and args.n_embd % max(args.n_head, 1) == 0
        )
        if not sizes_agree:
            raise TinyGPTError("the checkpoint's model_args do not fit its weights", "train again, or use another file")
        model = GPT(args)
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise TinyGPTError(f"the checkpoint's weights do not fit its model_args: {detail}") from None
        return model


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically and sealed. Errors: TinyGPTError for a full disk; the old file stays."""
    state = {"tinygpt_format": FORMAT, "tinygpt": __version__, **vars(checkpoint)}
    with replacing(path) as file:
        torch.save(state, file)
        _seal(file)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or the ckpt.pt of a folder, after checking that it is whole.

    Errors: TinyGPTError, a sentence of its own for each: no file, truncated or changed, foreign, of a newer format,
    holding more than tensors and plain values. A neighbour that is good is named.
    """
    path = Path(path)
    path = path / "ckpt.pt" if path.is_dir() else path
    try:
        with open(path, "rb") as file:
            sealed = verify(file, path)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or "unreadable").lower()
        raise TinyGPTError(f"{path}: {what}", _way_out(path, "train a model first: tinygpt train CONFIG")) from None
    except TinyGPTError:
        raise
    except Exception as error:  # torch.load reports foreign content through many types
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise TinyGPTError(
                f"{path}: holds more than tensors and plain values; refused, since loading it could run code",
                "ask for a file with weights only",
            ) from None
        raise _damaged(path, "it cannot be read") from None
    return _from_state(state, path, sealed)


def verify(file: IO[bytes], path: Path) -> bool:
    """Check the seal, or, for a file without one (nanoGPT's), the zip archive's own checksums; True if sealed.

    Errors: TinyGPTError for a file that is not what was written.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - SEAL_BYTES, 0))
    tail = file.read()
    file.seek(0)
    if tail.startswith(SEAL):
        if _digest(file, size - SEAL_BYTES) != tail[len(SEAL) :].decode("ascii", "replace"):
            raise _damaged(path, "its checksum does not match")
        return True
    if not size:
        raise _damaged(path, "it is empty")
    if file.read(2) != b"PK":
        raise TinyGPTError(f"{path}: not a checkpoint (not a file that torch.save writes)", _way_out(path))
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, struct.error, EOFError):
        raise _damaged(path, "it is cut short or changed") from None
    if bad:
        raise _damaged(path, f"the checksum of its part {bad} does not match")
    return False


def _seal(file: IO[bytes]) -> None:
    """Append the digest of everything before it as the zip archive's comment, which torch.load passes over."""
    file.seek(-2, os.SEEK_END)  # a zip ends with the length of its comment
    file.write(struct.pack("<H", SEAL_BYTES))
    size = file.tell()
    file.write(SEAL + _digest(file, size).encode())


def _digest(file: IO[bytes], size: int) -> str:
    """SHA-256 of the first `size` bytes; leaves the file positioned behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest()


def _from_state(state: Any, path: Path, sealed: bool) -> Checkpoint:
    if not isinstance(state, dict):
        raise TinyGPTError(f"{path}: not a checkpoint (it holds a {type(state).__name__})", _way_out(path))
    version = state.get("tinygpt_format", 0)
    if version and not sealed:
        raise _damaged(path, "its seal is missing")
    if isinstance(version, int) and version > FORMAT:
        raise TinyGPTError(f"{path}: format {version} is newer than this tinygpt's {FORMAT}", "upgrade tinygpt")
    weights: Any = state.get("model")
    args: Any = state.get("model_args")
    config: Any = state.get("config", {})
    whole = isinstance(weights, dict) and isinstance(args, dict) and isinstance(config, dict)
    if not whole or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise TinyGPTError(f"{path}: not a checkpoint of tinygpt or nanoGPT (no model, model_args)", _way_out(path))
    if not version:  # nanoGPT's: compiled models carry a prefix, older ones their masks
        weights = {name.removeprefix("_orig_mod."): weight for name, weight in weights.items()}
        weights = {name: weight for name, weight in weights.items() if not name.endswith(".attn.bias")}
        return Checkpoint(weights, args, config, int(state.get("iter_num", 0)), float(state.get("best_val_loss", 0)))
    return Checkpoint(
        **{field.name: state[field.name] for field in dataclasses.fields(Checkpoint) if field.name in state}
    )


def _damaged(path: Path, how: str) -> TinyGPTError:
    return TinyGPTError(f"{path}: damaged, {how}", _way_out(path))


def _way_out(path: Path, otherwise: str = "copy it again, or train again") -> str:
    """Name a neighbour that can be used, if there is one."""
    for neighbour in sorted(path.parent.glob("*.pt")):
        if neighbour.name != path.name:
            try:
                with open(neighbour, "rb") as file:
                    if verify(file, neighbour):
                        return f"{neighbour} is good"
            except (TinyGPTError, OSError):
                continue
    return otherwise
