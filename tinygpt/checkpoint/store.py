"""Read and write checkpoints: atomically, with a checksum, and without running code.

A checkpoint is one `torch.save` of tensors and plain types, written as in files.replacing. The SHA-256 of everything
before it is kept in the comment of the zip archive (the seal), so a damaged file is refused before any tensor is used.
It is read with `weights_only=True`: a file from a stranger can contain wrong weights, but it cannot run code.

    save(Path("out/last.pt"), Checkpoint(...))
    checkpoint = load("out/ckpt.pt")           # or a folder, or nanoGPT's ckpt.pt
    model = checkpoint.build_model()
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import struct
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch.overrides import TorchFunctionMode

from tinygpt.base import __version__
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.fields import keys
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import RUN_AGAIN, file_error, folder_of, replacing
from tinygpt.checkpoint import lora
from tinygpt.checkpoint.eight_bits import from_8_bits
from tinygpt.data.tokenizer import Tokenizer, tokenizer_from_dict
from tinygpt.model import GPT
from tinygpt.options import NEUTRAL, GPTConfig

FORMAT = 1
LONGEST_CONTEXT = 1 << 20  # tokens; more in a file is a mistake or an attack
MISMATCH = "the checkpoint's weights do not fit its model_args"
SEAL = b"tinygpt sha256 "
SEAL_BYTES = len(SEAL) + 64  # followed by the digest in hex


@dataclasses.dataclass
class Checkpoint:
    """The state of a run after `step` iterations."""

    model: dict[str, torch.Tensor]  # weights under nanoGPT's names
    model_args: dict[str, Any]  # the fields of GPTConfig
    config: dict[str, Any]  # the run's complete configuration
    step: int = 0
    best_val_loss: float = float("inf")
    tokenizer: dict[str, Any] | None = None  # None in nanoGPT's files, whose tokenizer is the dataset's
    data: dict[str, str] = dataclasses.field(default_factory=dict)  # SHA-256 of the token files
    training: dict[str, Any] = dataclasses.field(default_factory=dict)  # what only `resume` needs

    @property
    def num_params(self) -> int:
        """Count the weights; tied ones count once."""
        return sum({weight.data_ptr(): weight.numel() for weight in self.model.values()}.values())

    def build_model(self, gpt_class: type[GPT] = GPT, dtype: torch.dtype = torch.float32) -> GPT:
        """Build the model with these weights; a LoRA run's adapters are merged into them. Errors: TinyGPTError when
        sizes and weights contradict each other."""
        adapted = lora.is_adapted(self.model)
        weights = lora.merged(self.model, float(self.config["lora_alpha"]), dtype) if adapted else self.model
        return self._build(gpt_class, weights, dtype)

    def for_inference(self, compute: Compute, fast: str = "auto") -> GPT:
        """Build the model for inference, on its device and in its dtype. Errors: as in `build_model`."""
        from tinygpt.fast.model import model_class

        return self.build_model(model_class(fast, compute), compute.dtype).to(compute.device).eval()

    def build_for_resuming(self, gpt_class: type[GPT] = GPT) -> GPT:
        """Build the model as it was trained: a LoRA run's adapters stay separate."""
        if not lora.is_adapted(self.model):
            return self.build_model(gpt_class)
        trained = lora.adapted_only(self.model)
        model = self._build(gpt_class, {name: weight for name, weight in self.model.items() if name not in trained})
        rank = next(len(weight) for name, weight in trained.items() if name.endswith(".lora_A"))
        alpha, dropout, targets = (self.config[f"lora_{name}"] for name in ("alpha", "dropout", "targets"))
        lora.attach(model, lora.LoRA(rank, alpha, dropout, targets), len(trained.get("transformer.wte.new_rows", ())))
        self._fill(model, self.model)
        return model

    def _build(self, gpt_class: type[GPT], weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> GPT:
        args = GPTConfig.from_dict(self.model_args)
        blocks = {match[1] for name in self.model if (match := re.match(r"transformer\.h\.(\d+)\.", name))}
        if len(blocks) != args.n_layer:  # before a billion layers are built
            raise TinyGPTError(f"{MISMATCH}: n_layer={args.n_layer}, number of blocks {len(blocks)}")
        model = empty_model(args, gpt_class)
        self._fill(model, weights, dtype)
        return model

    def _fill(self, model: GPT, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        try:
            model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
        except RuntimeError as error:
            raise TinyGPTError(f"{MISMATCH}: {str(error).splitlines()[-1].strip()}") from None
        model.tie()

    def require_embeddings(self, tokenizer: Tokenizer, where: str) -> None:
        """Check that the model has an embedding for every token of the tokenizer. Errors: TinyGPTError if not."""
        size = GPTConfig.from_dict(self.model_args).vocab_size
        if tokenizer.vocab_size > size:
            problem = f"{where} has a vocabulary of {size} tokens, but its tokenizer has {tokenizer.vocab_size}"
            raise TinyGPTError(problem, "prepare the text that it was trained on, under the same dataset name")


def empty_model(config: GPTConfig, gpt_class: type[GPT] = GPT) -> GPT:
    """Build a model whose weights have shapes, but no memory."""
    with torch.device("meta"), WithoutInit():
        return gpt_class(config)


class WithoutInit(TorchFunctionMode):
    """Skip the functions of torch.nn.init. On the device "meta" the first one would import torch's compiler: 1.3 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def save(path: Path, checkpoint: Checkpoint, retry_hint: str = RUN_AGAIN) -> None:
    """Write a checkpoint, atomically and sealed. Errors: TinyGPTError for a full disk; the old file is unchanged, and
    the hint ends with `retry_hint`."""
    model_args = vars(GPTConfig.from_dict(checkpoint.model_args))
    state = {"tinygpt_format": FORMAT, "tinygpt": __version__, **vars(checkpoint), "model_args": model_args}
    write(path, state, retry_hint)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or the ckpt.pt of a folder. Errors: as in `read`, also for a file that is not a checkpoint."""
    path = file_of(path)
    with _read_errors(path):
        state, sealed = _read(path)
        return _from_state(state, path, sealed)


def file_of(path: str | Path) -> Path:
    """Return the checkpoint that a path names: the file itself, or the ckpt.pt of a folder."""
    path = Path(path)
    return path / "ckpt.pt" if path.is_dir() else path


def refuse_overwriting(out: Path, source: str, use: str) -> None:
    """Check that a command does not overwrite its source, which the message calls `use`. Errors: TinyGPTError if so."""
    folder = folder_of(Path(source).resolve())
    run = folder.parent if folder.name == "snapshots" else folder
    if out.resolve() == run:
        raise TinyGPTError(f"{out} contains {use}, which would be overwritten", f"another folder, such as {out}-new")


def tokenizer_of(checkpoint: Checkpoint, where: str, data_dir: str) -> Tokenizer:
    """Return the tokenizer in the checkpoint; for nanoGPT's files, that of the dataset which its config names. Errors:
    TinyGPTError, whose message begins with `where`, if there is none, or if it does not fit the model."""
    if checkpoint.tokenizer is not None:
        tokenizer = tokenizer_from_dict(checkpoint.tokenizer, where)
    elif name := str(checkpoint.config.get("dataset", "")):
        from tinygpt.data.dataset import Dataset

        tokenizer = Dataset(data_dir, name).tokenizer
    else:
        hint = "tinygpt train --init_from=PATH, which makes one that does"
        raise TinyGPTError(f"{where} has no tokenizer and does not name its dataset", hint)
    checkpoint.require_embeddings(tokenizer, where)
    return tokenizer


def write(path: Path, state: dict[str, Any], retry_hint: str = RUN_AGAIN) -> None:
    """Write tensors and plain values, atomically and sealed."""
    with replacing(path, retry_hint) as file:
        torch.save(state, file)
        _seal(file)


def read(path: Path) -> Any:
    """Read a file that `write` wrote, after checking that it is intact. Errors: TinyGPTError for a file that is
    missing, damaged, not a checkpoint, or holds more than tensors and plain values; the hint names an intact
    checkpoint in the same folder."""
    with _read_errors(path):
        state, sealed = _read(path)
        if not sealed:
            raise _damaged(path, "its seal is missing")
        return state


def _read(path: Path) -> tuple[Any, bool]:
    with open(path, "rb") as file:
        sealed = verify(file, path)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True), sealed


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turn any error of reading into a TinyGPTError, whose hint names an intact checkpoint in the same folder."""
    try:
        yield
    except TinyGPTError as error:
        raise TinyGPTError(error.message, error.hint or _recovery_hint(path)) from None
    except OSError as error:
        ways = "train a model first (tinygpt train CONFIG), or import one (tinygpt import smollm2)"
        raise file_error(path, error, _recovery_hint(path, ways)) from None
    except Exception as error:  # foreign content makes torch.load raise many types
        if "weights_only" in str(error) or "Unsupported" in str(error):
            problem = f"{path}: holds more than tensors and plain values; refused, since loading it could run code"
            raise TinyGPTError(problem, "ask for a file with weights only") from None
        raise TinyGPTError(f"{path}: damaged (it cannot be read)", _recovery_hint(path)) from None


def verify(file: IO[bytes], path: Path) -> bool:
    """Check the seal, or, for a file without one (nanoGPT's), the zip archive's own checksums; True if sealed.

    torch.save does not compress, so a compressed file, which could unpack to a huge one, is refused. Errors:
    TinyGPTError for a file that is not as it was written.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - SEAL_BYTES, 0))
    tail = file.read()
    sealed = tail.startswith(SEAL)
    if sealed and _digest(file, size - SEAL_BYTES) != tail[len(SEAL) :].decode("ascii", "replace"):
        raise _damaged(path, "its checksum does not match")
    file.seek(0)
    if not size:
        raise _damaged(path, "it is empty")
    if file.read(2) != b"PK":
        raise TinyGPTError(f"{path}: not a checkpoint (not a file that torch.save writes)")
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            packed = any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size
            bad = None if sealed or packed else archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, struct.error, EOFError):
        raise _damaged(path, "it is truncated or modified") from None
    if packed:
        raise TinyGPTError(f"{path}: not a checkpoint (its entries are compressed; torch.save's are not)")
    if bad:
        raise _damaged(path, f"the checksum of its entry {bad} does not match")
    return sealed


def _seal(file: IO[bytes]) -> None:
    """Append the digest of the file as the zip archive's comment, which torch.load ignores."""
    file.seek(-2, os.SEEK_END)  # a zip ends with the length of its comment
    file.write(struct.pack("<H", SEAL_BYTES))
    file.write(SEAL + _digest(file, file.tell()).encode())


def _digest(file: IO[bytes], size: int) -> str:
    """Return the SHA-256 of the first `size` bytes, and leave the file position after them."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest()


def _from_state(state: Any, path: Path, sealed: bool) -> Checkpoint:
    if not isinstance(state, dict):
        raise TinyGPTError(f"{path}: not a checkpoint (it holds a {type(state).__name__})")
    if "tinygpt_adapter" in state:
        both: list[str | Path] = ["--ckpt", "BASE/ckpt.pt", "--adapter", path]
        hint = f"{suggest.command('sample', *both)}, or {suggest.command('export', '--format=checkpoint', *both)}"
        raise TinyGPTError(f"{path}: an adapter, which needs its base model", hint)
    version = state.get("tinygpt_format", 0)
    if version and not sealed:
        raise _damaged(path, "its seal is missing")
    if isinstance(version, int) and version > FORMAT:
        raise TinyGPTError(f"{path}: format {version} is newer than this tinygpt's {FORMAT}", "upgrade tinygpt")
    weights: Any = state.get("model")
    args: Any = state.get("model_args")
    config: Any = state.get("config", {})
    complete = isinstance(weights, dict) and isinstance(args, dict) and isinstance(config, dict)
    if not complete or not all(isinstance(n, str) and isinstance(w, torch.Tensor) for n, w in weights.items()):
        raise TinyGPTError(f"{path}: not a checkpoint of tinygpt or nanoGPT (no model, model_args)")
    _check_model_args(args, path, bool(version))
    if not version:  # nanoGPT's: compiled models carry a prefix, older ones their masks
        weights = {name.removeprefix("_orig_mod."): weight for name, weight in weights.items()}
        weights = {name: weight for name, weight in weights.items() if not name.endswith(".attn.bias")}
        progress = {"step": int(state.get("iter_num", 0)), "best_val_loss": float(state.get("best_val_loss", math.inf))}
        state = {"model": weights, "model_args": args, "config": config} | progress
    state = state | {"model": from_8_bits(state["model"]), "model_args": vars(GPTConfig.from_dict(args))}
    names = [field.name for field in dataclasses.fields(Checkpoint)]
    checkpoint = Checkpoint(**{name: state[name] for name in names if name in state})
    types: dict[str, Any] = {"step": int, "best_val_loss": (int, float), "data": dict, "training": dict}
    for name, expected in (types | {"tokenizer": (dict, type(None))}).items():
        if not isinstance(getattr(checkpoint, name), expected):
            raise TinyGPTError(f"{path}: not a checkpoint of tinygpt (its {name} is of another type)")
    return checkpoint


def _check_model_args(args: dict[str, Any], path: Path, own: bool) -> None:
    """Check a model's sizes and options. own: the file is tinygpt's, not nanoGPT's."""
    shape = GPTConfig.from_dict(args)
    config_keys = keys(TrainConfig)
    unknown = {name: value for name, value in args.items() if name not in vars(shape)}
    newer = [str(name)[:40] for name, value in unknown.items() if own or value not in NEUTRAL]
    for name, default in vars(GPTConfig()).items():
        value = getattr(shape, name)
        if type(value) not in ((int, float) if type(default) is float else (type(default),)):
            raise TinyGPTError(f"{path}: not a checkpoint ({name} is {str(value)[:40]!r})")
        if type(value) is str and value not in typing.get_args(config_keys[name].type):
            newer.append(f"{name}={value[:40]}")
    if newer:
        problem = f"{path}: its model uses {', '.join(newer)}, which tinygpt {__version__} does not support"
        raise TinyGPTError(problem, "upgrade tinygpt, or use the program that wrote it")
    run = TrainConfig(**{name: value for name, value in vars(shape).items() if name in config_keys})
    if shape.vocab_size < 1 or shape.block_size > LONGEST_CONTEXT or any(run.problems()):
        raise TinyGPTError(f"{path}: not a checkpoint (its model_args are impossible)")


def _damaged(path: Path, how: str) -> TinyGPTError:
    return TinyGPTError(f"{path}: damaged ({how})")


def _recovery_hint(path: Path, otherwise: str = "copy it again, or train again") -> str:
    """Name the other checkpoint of the same run, if it is intact; else return `otherwise`."""
    for neighbour in (path.with_name("ckpt.pt"), path.with_name("last.pt")):
        if path.suffix == ".pt" and path.name != "adapter.pt" and neighbour != path:
            with contextlib.suppress(TinyGPTError, OSError), open(neighbour, "rb") as file:
                if verify(file, neighbour):
                    return f"{neighbour} is intact"
    return otherwise
