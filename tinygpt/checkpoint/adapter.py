"""adapter.pt: the weights that a LoRA run has trained, without the base model.

An adapter names its base model by a fingerprint, and is refused with any other, where it would be meaningless.

    checkpoint = load_model("out/ckpt.pt", "adapter.pt")   # base and adapter as one ordinary checkpoint

    adapters = Adapters("out", {"a": "out-a", "b": "out-b/adapter.pt"})    # loads the base model once
    model = adapters.checkpoint("a").build_model()         # adapters.checkpoint() is the base model
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinygpt.base import __version__
from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import RUN_AGAIN
from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.lora import adapted_only
from tinygpt.checkpoint.resize import grow_vocabulary, set_block_size
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.tokenizer import tokenizer_from_dict

ADAPTER_FORMAT = 1


def weights_fingerprint(weights: dict[str, Tensor]) -> str:
    """Return the fingerprint of a model's weights: equal if and only if all their bits are."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach().cpu().contiguous()
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + weight.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def save_adapter(path: Path, run: Checkpoint, base: str, retry_hint: str = RUN_AGAIN) -> None:
    """Write the adapter of a LoRA run. `base`: the fingerprint of the weights that it adapts."""
    state = {
        "tinygpt_adapter": ADAPTER_FORMAT,
        "tinygpt": __version__,
        "base": base,
        "weights": adapted_only(run.model),
        "vocab_size": run.model_args["vocab_size"],
        "tokenizer": run.tokenizer,
        "config": run.config,
        "step": run.step,
        "best_val_loss": run.best_val_loss,
    }
    checkpoint.write(path, state, retry_hint)


def load_model(ckpt: str, adapter: str = "") -> Checkpoint:
    """Load a checkpoint, and apply an adapter if one is given. Errors: TinyGPTError, also for the wrong base model."""
    base = checkpoint.load(ckpt)
    return applied(base, ckpt, adapter) if adapter else base


def applied(base: Checkpoint, ckpt: str, adapter: str) -> Checkpoint:
    """Combine base and adapter into a checkpoint of a LoRA run. Errors: TinyGPTError if they do not belong together."""
    return _combined(base, ckpt, _read_adapter(adapter, ckpt, weights_fingerprint(base.model)))


class Adapters:
    """A base model that stays in memory, and its adapters by name, which are swapped without loading the base again.

    All checkpoints share the tensors of the base model: train none of them. An adapter is merged into new matrices when
    a model is built, so models of several adapters can be used at the same time.
    """

    def __init__(self, ckpt: str, adapters: Mapping[str, str] | None = None) -> None:
        """Load the base model, and add the adapters, paths by name. Errors: TinyGPTError as in `load_model`."""
        self.ckpt = ckpt
        self._base = checkpoint.load(ckpt)
        self._fingerprint = weights_fingerprint(self._base.model)
        self._adapters: dict[str, dict[str, Any]] = {}
        for name, path in (adapters or {}).items():
            self._adapters[name] = _read_adapter(path, ckpt, self._fingerprint)
            self.checkpoint(name).build_model()  # an adapter that does not fit is refused here

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    def checkpoint(self, name: str = "") -> Checkpoint:
        """Return the base model combined with the adapter `name`; without a name, the base model. Errors: TinyGPTError
        for an unknown name."""
        if not name:
            return self._base
        if name not in self._adapters:
            raise TinyGPTError(f"no adapter is called {name!r}")
        return _combined(self._base, self.ckpt, self._adapters[name])


def _read_adapter(adapter: str, ckpt: str, fingerprint: str) -> dict[str, Any]:
    """Read an adapter for the base model `ckpt` with this fingerprint."""
    path = Path(adapter) / "adapter.pt" if Path(adapter).is_dir() else Path(adapter)
    if not path.exists() and (Path(adapter) / "ckpt.pt").exists():
        problem = f"{adapter}: contains no adapter, because its run has trained all weights: it is a model of its own"
        hint = f"--ckpt={suggest.quoted(adapter)}, or tinygpt finetune --lora_rank=8 for an adapter"
        raise TinyGPTError(problem, hint)
    state = checkpoint.read(path)
    if not isinstance(state, dict) or state.get("tinygpt_adapter") != ADAPTER_FORMAT:
        raise TinyGPTError(f"{path}: not an adapter", "tinygpt finetune --lora_rank=8, which writes OUT_DIR/adapter.pt")
    if state["base"] != fingerprint:
        trained_from = state["config"].get("init_from", "out/ckpt.pt")
        problem = f"{path} was trained on a base model other than {ckpt}"
        hint = f"give the checkpoint that it was trained from: --ckpt={suggest.quoted(trained_from)}"
        if checkpoint.file_of(trained_from).resolve() == checkpoint.file_of(ckpt).resolve():
            problem += ", which has been trained further or replaced since"
            hint = "train the adapter again, or give the older file of the base model as --ckpt"
        raise TinyGPTError(f"{problem} (fingerprints {state['base']} and {fingerprint})", hint)
    return state


def _combined(base: Checkpoint, ckpt: str, state: dict[str, Any]) -> Checkpoint:
    """Combine base, whose tensors are shared, and the content of an adapter."""
    tokenizer = tokenizer_from_dict(state["tokenizer"], ckpt)
    known_tokens = tokenizer_from_dict(base.tokenizer, ckpt).vocab_size if base.tokenizer else tokenizer.vocab_size
    model = base.build_model()
    trained = state["config"].get("block_size")
    relative = model.position.relative
    if relative and isinstance(trained, int) and model.config.block_size < trained <= checkpoint.LONGEST_CONTEXT:
        set_block_size(model, trained)  # the run's rows were longer than the base's context
    if tokenizer.vocab_size > known_tokens:
        grow_vocabulary(model, known_tokens, state["vocab_size"])
    return Checkpoint(
        model={**model.state_dict(), **state["weights"]},
        model_args=dataclasses.asdict(model.config),
        config=state["config"],
        step=state["step"],
        best_val_loss=state["best_val_loss"],
        tokenizer=state["tokenizer"],
    )
