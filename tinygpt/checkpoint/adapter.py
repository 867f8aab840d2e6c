"""adapter.pt: the weights that a LoRA run has trained, without the base model.

A few hundred kilobytes at most: the adapters, the embeddings of new tokens, the grown vocabulary, and the fingerprint
of the base weights. An adapter is refused with any other base model, where its weights would be meaningless.

    save_adapter(path, checkpoint)                         # from a LoRA run's checkpoint
    checkpoint = load_model("out/ckpt.pt", "adapter.pt")   # base and adapter as one ordinary checkpoint
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinygpt import __version__
from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.resize import grow_vocabulary, set_block_size
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config import suggest
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.errors import TinyGPTError
from tinygpt.files import RUN_AGAIN
from tinygpt.lora import adapted_only

ADAPTER_FORMAT = 1


def weights_fingerprint(weights: dict[str, Tensor]) -> str:
    """Fingerprint of a model's weights: equal if and only if all their bits are."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach().cpu().contiguous()
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + weight.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def save_adapter(path: Path, run: Checkpoint, base: str, next_step: str = RUN_AGAIN) -> None:
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
    checkpoint.write(path, state, next_step)


def load_model(ckpt: str, adapter: str = "") -> Checkpoint:
    """Load a checkpoint, and apply an adapter if one is given. Errors: TinyGPTError, also for the wrong base model."""
    base = checkpoint.load(ckpt)
    return applied(base, ckpt, adapter) if adapter else base


def applied(base: Checkpoint, ckpt: str, adapter: str) -> Checkpoint:
    """Combine base and adapter into a checkpoint of a LoRA run. Errors: TinyGPTError if they do not belong together."""
    path = Path(adapter) / "adapter.pt" if Path(adapter).is_dir() else Path(adapter)
    state = checkpoint.read(path)
    if not _is_adapter(state):
        raise TinyGPTError(f"{path}: not an adapter", "tinygpt finetune --lora_rank=8 writes OUT_DIR/adapter.pt")
    own = weights_fingerprint(base.model)
    if state["base"] != own:
        trained_from = str(state["config"].get("init_from", "out/ckpt.pt"))
        raise TinyGPTError(
            f"{path} was trained on a base model other than {ckpt} (fingerprints {state['base']} and {own})",
            f"give the checkpoint that it was trained from: --ckpt {suggest.quoted(trained_from)}",
        )
    tokenizer = tokenizer_from_dict(state["tokenizer"], str(path))
    known = tokenizer_from_dict(base.tokenizer, ckpt).vocab_size if base.tokenizer else tokenizer.vocab_size
    model = base.build_model()
    trained, relative = state["config"].get("block_size"), model.position.relative
    if relative and isinstance(trained, int) and model.config.block_size < trained <= checkpoint.LONGEST_CONTEXT:
        set_block_size(model, trained)  # the run's rows were longer than the base's context
    if tokenizer.vocab_size > known:
        grow_vocabulary(model, known, state["vocab_size"])
    return Checkpoint(
        model={**model.state_dict(), **state["weights"]},
        model_args=dataclasses.asdict(model.config),
        config=state["config"],
        step=state["step"],
        best_val_loss=state["best_val_loss"],
        tokenizer=state["tokenizer"],
    )


def _is_adapter(state: Any) -> bool:
    if not isinstance(state, dict) or state.get("tinygpt_adapter") != ADAPTER_FORMAT:
        return False
    types = {"base": str, "weights": dict, "vocab_size": int, "tokenizer": dict, "config": dict, "step": int}
    return all(isinstance(state.get(name), kind) for name, kind in types.items()) and all(
        isinstance(weight, Tensor) for weight in state["weights"].values()
    )
