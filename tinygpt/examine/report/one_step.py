"""One training step with its numbers: batch, logits, loss, gradient, and AdamW's update of three weights.

The state is that of the run's best checkpoint, with the moments of its optimizer, and the update is made by the run's
own optimizer. So the numbers are those of training, except that dropout is off and the precision is float32.

    one_step(run)["weights"][0]["change"]     # what AdamW adds to this weight, Loshchilov & Hutter 2019
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.fields import keys
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import SPECIAL
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.examine.report.summary import PARTS
from tinygpt.model import VECTOR, parameter_class
from tinygpt.training.optimizer import TorchOptimizer, learning_rate, load_state
from tinygpt.training.run import parts_of_rows

SHOWN = 64  # most tokens of the first sequence that are shown
ROWS = 5  # most probable tokens that are shown for each of them
WORK = 4 * 10**9  # most parameters times tokens of the batch: 2 s on one core
EPSILON = 1e-8  # AdamW's, in torch.optim
NAMES = PARTS | {"mlp": "MLP", "ln_1": "norm", "ln_2": "norm", "ln_f": "final norm", "lm_head": "output"}


def one_step(run: LoadedRun) -> dict[str, Any]:
    """Make the training step after the best checkpoint, and return its numbers, as plain values for the template.

    A batch that is too large for WORK is cut to its first sequences. Replayed sequences (see `finetune --replay`) are
    left out. Empty for a run without its dataset or optimizer's state, for one with a teacher, and for a
    model too large for a page.
    """
    saved = run.checkpoint.training.get("optimizer")
    if run.is_large or run.dataset is None or not saved or run.checkpoint.config.get("teacher"):
        return {}
    config = TrainConfig(**{key: value for key, value in run.checkpoint.config.items() if key in keys(TrainConfig)})
    copies = {name: weight.clone() for name, weight in run.checkpoint.model.items()}  # the run's model shares them
    model = dataclasses.replace(run.checkpoint, model=copies).build_for_resuming().to(run.compute.device).eval()
    optimizer = TorchOptimizer(model, config, run.compute)
    try:
        load_state(optimizer, saved)
    except TinyGPTError:
        return {}
    step = run.checkpoint.step
    split = run.dataset.sources["train"]
    if examples := run.checkpoint.config.get("examples"):
        split = split.first(examples)
    source = split.arranged(config.group_by_length, config.sampling == "epochs")
    rate = learning_rate(min(step, config.max_iters - 1), config)  # a schedule may end at 0
    optimizer.set_learning_rate(rate)

    batch_rows = config.batch_size * config.gradient_accumulation_steps
    rows = min(batch_rows, max(1, WORK // model.num_params() // source.width(config.block_size)))
    row_indices = source.draw(config.seed, step, config.block_size, batch_rows)[:rows]
    whole = source.rows(row_indices, source.width(config.block_size, row_indices))
    parts = parts_of_rows(step, config.context_warmup)
    inputs, targets = (part.reshape(len(part) * parts, -1) for part in whole)
    x, y = (torch.from_numpy(part.astype(np.int64)).to(run.compute.device) for part in (inputs, targets))
    total = int((y >= 0).sum())

    def micro_losses() -> Iterator[torch.Tensor]:
        """Yield the contribution of each micro-step to the loss of the batch, as in training."""
        for a, b in zip(x.split(config.batch_size * parts), y.split(config.batch_size * parts), strict=True):
            yield model(a, b)[1] * ((b >= 0).sum() / total)

    logits = model(x[:1])[0][0].detach()
    loss = 0.0
    for share in micro_losses():
        optimizer.backward(share)
        loss += share.item()
    before = {name: weight.detach().clone() for name, weight in optimizer.named.items()}
    gradients = {name: weight.grad.clone() for name, weight in optimizer.named.items() if weight.grad is not None}
    moments = {name: [part.clone() for part in parts.values()] for name, parts in optimizer.moments().items()}
    norm = optimizer.clip().item()
    factor = min(1.0, config.grad_clip / (norm + 1e-6)) if config.grad_clip else 1.0
    updates = optimizer.steps + 1  # number of updates, including this one
    optimizer.update()
    with torch.no_grad():
        after = sum(share.item() for share in micro_losses())
    now = {name: weight.detach() for name, weight in optimizer.named.items()}
    predicted = sum(((now[name] - before[name]) * gradient).sum().item() for name, gradient in gradients.items())

    weights = []
    for name in choose_three(optimizer):
        index = int(gradients[name].abs().argmax())
        tensors = before[name], gradients[name], now[name], *moments[name]
        value, gradient, new, m, v = (tensor.flatten()[index].item() for tensor in tensors)
        decay = 0.0 if parameter_class(name, before[name]) == VECTOR else config.weight_decay
        weights.append(
            {
                "name": weight_name(name, index, before[name].shape, run),
                "value": value,
                "after": new,
                "gradient": gradient,
                "decay": decay,
                **adamw(value, factor * gradient, m, v, updates, config, rate, decay),
            }
        )
    return {
        "step": step,
        "config": config,
        "rows": rows,
        "whole": batch_rows,
        "width": x.shape[1],
        "targets": total,
        "replay": bool(run.checkpoint.config.get("replay")),
        "cells": cells(run, x[0].cpu(), y[0].cpu(), logits.cpu()),
        "loss": loss,
        "after": after,
        "diverged": not math.isfinite(after),
        "predicted": predicted,
        "norm": norm,
        "factor": factor,
        "rate": rate,
        "lora": any("lora_" in name for name in now),
        "times": updates,
        "weights": weights,
    }


def choose_three(optimizer: TorchOptimizer) -> list[str]:
    """Choose three parameters that AdamW updates: of an embedding, of attention and of an MLP if there are such."""
    names = [name for name, weight in optimizer.named.items() if isinstance(optimizer.owner[weight], torch.optim.AdamW)]
    preferred = [next((name for name in names if part in name.split(".")), "") for part in ("wte", "attn", "mlp")]
    return list(dict.fromkeys([*filter(None, preferred), *names]))[:3]


def adamw(
    value: float, gradient: float, m: float, v: float, updates: int, config: TrainConfig, rate: float, decay: float
) -> dict[str, float]:
    """Compute AdamW's update of one weight from its formula. m, v: its moments before; gradient: clipped."""
    b1 = config.beta1
    b2 = config.beta2
    new_m = b1 * m + (1 - b1) * gradient
    new_v = b2 * v + (1 - b2) * gradient**2
    m_hat = new_m / (1 - b1**updates)
    v_hat = new_v / (1 - b2**updates)
    return {
        "m": m,
        "v": v,
        "clipped": gradient,
        "new_m": new_m,
        "new_v": new_v,
        "m_hat": m_hat,
        "v_hat": v_hat,
        "change": -rate * (m_hat / (math.sqrt(v_hat) + EPSILON) + decay * value),
    }


def weight_name(name: str, index: int, shape: torch.Size, run: LoadedRun) -> str:
    """Name a weight in words: its part of the model, and its row and column, or the token whose row it is in."""
    words = name.split(".")
    layer = f"layer {int(words[2]) + 1}, " if words[1] == "h" else ""
    part = next((text for key, text in NAMES.items() if key in words), name)
    matrix = f" {words[4]}" if len(words) > 4 and words[1] == "h" else ""
    if words[-1] in ("lora_A", "lora_B", "new_rows"):  # of a LoRA adapter
        matrix += f", {words[-1].replace('_', ' ')}"
    if len(shape) < 2:
        return f"{layer}{part}{matrix}: number {index + 1}"
    row, column = divmod(index, shape[1])
    if "wte" in words and shape[0] >= run.tokenizer.vocab_size > row:
        token = run.tokenizer.decode([row])
        visible = {" ": "␣", "\n": "↵", "\t": "⇥"}.get(token, token[2:-2] if token in SPECIAL else token)
        return f"{part} of “{visible}”: number {column + 1} of {shape[1]}"
    return f"{layer}{part}{matrix}: row {row + 1}, column {column + 1}"


def cells(run: LoadedRun, x: torch.Tensor, y: torch.Tensor, logits: torch.Tensor) -> list[dict[str, Any]]:
    """Make a cell for each of the first SHOWN tokens of a sequence: {"text"}, and for a target also its loss, as
    {"loss", "p", "sum" of the exponentials of all logits, "top": [(text, logit, p, gradient), ...]}.

    x, y: (T) inputs and targets; logits: (T, V). "top" contains the target. The gradient is that of the token's loss.
    """
    # padding follows
    last = int((y >= 0).nonzero().max())
    size = run.tokenizer.vocab_size
    result: list[dict[str, Any]] = [{"text": run.tokenizer.decode([int(x[0])])}]
    for position in range(min(last + 1, SHOWN)):
        target = int(y[position])
        row = logits[position].double()
        shown = target if target >= 0 else int(x[position + 1])
        cell: dict[str, Any] = {"text": run.tokenizer.decode([shown])}
        if target >= 0:
            probabilities = row.softmax(0).tolist()
            best = row[:size].topk(min(ROWS, size)).indices.tolist()
            p = probabilities[target]
            ids = best if target in best else [*best[:-1], target]
            top = [
                (run.tokenizer.decode([i]), row[i].item(), probabilities[i], probabilities[i] - (i == target))
                for i in ids
            ]
            cell |= {"p": p, "loss": -math.log(max(p, 1e-300)), "sum": row.exp().sum().item(), "top": top}
        result.append(cell)
    return result
