"""The mean loss of a model on a split, in nats per token.

loss = mean_loss(model, source, source.all_rows(block_size), compute)      # source = dataset.sources["val"]
bits = bits_per_character(loss, dataset)
"""

import math
import sys
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from tinygpt.base import device
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import progress
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows, Rows
from tinygpt.model import GPT
from tinygpt.training.optimizer import AmpModel
from tinygpt.training.processes import Processes

CHEAP = 10**12  # parameters x tokens of a sample: seconds on two cores; a smaller split is measured completely
CHUNK = 32  # rows
ERROR = 0.05  # standard error of a sampled loss at most: nats, or as a share of a loss above one nat


def mean_loss(model: AmpModel, source: Rows, row_indices: np.ndarray, compute: device.Compute) -> float:
    """Compute the mean cross-entropy in nats over all targets of some rows."""
    return loss_and_error(model, source, row_indices, compute)[0]


def loss_and_error(
    model: AmpModel, source: Rows, row_indices: np.ndarray, compute: device.Compute, ranks: Processes = Processes()
) -> tuple[float, float]:
    """Compute `mean_loss` and its standard error, infinite for a single row. The processes share the rows."""
    sums = loss_sums(model, source, row_indices, compute, ranks)
    return ratio(ranks.sum(sums.tolist(), compute.device), source.width(model.config.block_size))


class Sampled(NamedTuple):
    """A loss in nats per token, measured on `rows` of the `of` rows of a source, and its standard error."""

    loss: float
    error: float
    rows: int
    of: int


def sampled_loss(model: GPT, source: Rows, compute: device.Compute, rows: int = 0, desc: str = "") -> Sampled:
    """Measure the mean loss on all rows of a source if that costs little, else on a random sample of them.

    The sample is the same for every model: its first `rows` rows, or with 0 as many as bring the error below ERROR.
    """
    block_size = model.config.block_size
    row_indices = source.all_rows(block_size)
    width = source.width(block_size)
    least = min(len(row_indices), rows or max(CHUNK, CHEAP // (width * model.num_params())))
    if least < len(row_indices):
        row_indices = np.random.default_rng(0).permutation(row_indices)
    sums = np.zeros(6)
    done = 0
    mean = 0.0
    error = math.inf
    with progress(total=len(row_indices), unit="row", desc=desc) as bar:
        while done < least or (not rows and done < len(row_indices) and error > ERROR * max(1.0, mean)):
            chunk = row_indices[done : least if least == len(row_indices) else done + CHUNK]
            sums += loss_sums(model, source, chunk, compute)
            done += len(chunk)
            mean, error = ratio(sums.tolist(), width)
            bar.update(len(chunk))
    return Sampled(mean, error, done, len(row_indices))


def tensors(source: Rows, block_size: int, row_indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs and targets of rows, int64 (rows, T)."""
    x, y = source.rows(row_indices, source.width(block_size, row_indices))
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))


@torch.no_grad()  # fully_shard cannot train with tensors that it has made in inference mode
def loss_sums(
    model: AmpModel, source: Rows, row_indices: np.ndarray, compute: device.Compute, ranks: Processes = Processes()
) -> np.ndarray:
    """Compute sums over this process's rows, float64 (6,), of: loss, targets, rows, loss^2, loss * targets, targets^2.

    All processes make the same number of forward passes, in which those of a sharded model gather its weights."""
    block_size = model.config.block_size
    width = source.width(block_size)
    # several rows at once are faster: as many as have 4 M logits on a CPU, 256 M (1 GB in float32) on a GPU
    targets_per_row = math.ceil(source.targets(row_indices, width).mean()) if len(row_indices) else 1
    per_row = max(targets_per_row * model.config.vocab_size, width * 4 * model.config.n_embd)
    batch_size = max(1, (1 << (22 if compute.device.type == "cpu" else 28)) // per_row)
    was_training = model.training
    model.eval()
    sums = np.zeros(6)
    for index in range(0, len(row_indices), batch_size * ranks.count):
        together = row_indices[index : index + batch_size * ranks.count]
        own = together[ranks.rank :: ranks.count]
        batch_indices = own if len(own) else together[:1]
        x, y = (part.to(compute.device) for part in tensors(source, block_size, batch_indices))
        loss = device.to_host(row_losses(model, x, y))
        targets = device.to_host((y >= 0).sum(1))
        if len(own):
            with np.errstate(invalid="ignore"):  # the caller refuses a loss that is not finite
                sums += [loss.sum(), targets.sum(), len(loss), loss @ loss, loss @ targets, targets @ targets]
    model.train(was_training)
    return sums


def ratio(sums: list[float], width: int) -> tuple[float, float]:
    """Compute the mean loss per target and its standard error from the sums of `loss_sums` over rows of this width: a
    ratio of two sums, as rows have different numbers of targets (Cochran 1977, "Sampling Techniques", section 6.3)."""
    total, count, rows, square, mixed, counts_square = sums
    if not count:
        raise TinyGPTError(f"no response begins within a block_size of {width}", "a larger block_size")
    mean = total / count
    if rows < 2:
        return mean, math.inf
    residuals = max(square - 2 * mean * mixed + mean**2 * counts_square, 0.0)  # sum of (loss - mean * targets)^2
    return mean, math.sqrt(residuals * rows / (rows - 1)) / count


def row_losses(model: AmpModel, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropies of each row: float32 (B,), for x and y int64 (B, T), -1 where there is no target."""
    is_target = y >= 0
    if is_target.all():
        losses = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten(), reduction="none")
        return losses.view(y.shape).sum(1)
    losses = F.cross_entropy(model(x, y, targets_only=True)[0], y[is_target], reduction="none")
    return losses.new_zeros(len(y)).index_add_(0, is_target.nonzero()[:, 0], losses)


def estimate_losses(
    model: AmpModel, dataset: Dataset, config: TrainConfig, compute: device.Compute, ranks: Processes
) -> dict[str, float]:
    """Measure the losses `train` and `val` of both splits, and their standard errors `train_se` and `val_se`.

    They are measured on `eval_iters` random batches, the same at every evaluation, from streams of their own; with 0,
    on the whole validation split and an equally large part of the training split.
    """
    block_size = model.config.block_size
    losses = {}
    for stream, split in enumerate(("train", "val"), start=1):
        source = dataset.sources[split]
        if config.eval_iters:
            row_indices = source.draw(config.seed, 0, block_size, config.eval_iters * config.batch_size, stream)
        else:
            source = source.as_large_as(dataset.sources["val"])
            row_indices = source.all_rows(block_size)
        losses[split], losses[f"{split}_se"] = loss_and_error(model, source, row_indices, compute, ranks)
    return losses


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity where that exceeds the range of float64."""
    return math.inf if loss > math.log(sys.float_info.max) else math.exp(loss)


def bits_per_character(loss: float, dataset: Dataset) -> float:
    """Convert a loss on the validation split from nats per token. The end of a response counts as a character."""
    source = dataset.sources["val"]
    tokens = len(dataset.splits["val"])
    if isinstance(source, PairRows):
        spans = zip(source.responses + 1, source.ends - 1, strict=True)
        responses = [source.tokens[start:end].tolist() for start, end in spans]
        tokens = sum(len(ids) + 1 for ids in responses)
        characters = sum(len(dataset.tokenizer.decode(ids)) + 1 for ids in responses)
    else:
        characters = int(dataset.meta.get("characters", {}).get("val", tokens))
    return loss / math.log(2) * tokens / max(characters, 1)


def short_number(value: float) -> str:
    """Format a number with two decimals, or with three digits and an exponent if it is too large for the table."""
    return f"{value:.2f}" if value < 1e9 or math.isinf(value) else f"{value:.2e}"
