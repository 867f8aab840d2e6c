"""How good a model is: its loss over a split, and `tinygpt eval`, which puts that number beside what counting reaches.

loss = split_loss(model, dataset.splits["val"], 64, compute)         # nats per token
bits_per_character = loss / math.log(2) * tokens / characters
"""

import json
import math
from collections.abc import Iterator

import numpy as np
import torch

from tinygpt import device
from tinygpt.checkpoint import load
from tinygpt.config import EvalConfig
from tinygpt.data import Dataset, draw_windows, windows
from tinygpt.distributed import Processes
from tinygpt.errors import TinyGPTError
from tinygpt.model import GPT
from tinygpt.precision import MixedPrecision
from tinygpt.tokenizer import fingerprint, tokenizer_from_dict


def every_token_once(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Starts of the windows that cover the targets tokens[1:], each once; the last may be shorter."""
    return np.arange(0, len(tokens) - 1, block_size)


def batches(
    tokens: np.ndarray, starts: np.ndarray, block_size: int, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(x, y) of `rows` windows at a time, int64; behind the end of the split y is -1, which carries no loss."""
    for at in range(0, len(starts), rows):
        some = starts[at : at + rows]
        if some[-1] + block_size < len(tokens):
            block = windows(tokens, some, block_size)
        else:
            places = some[:, None] + np.arange(block_size + 1)
            inside = places < len(tokens)
            block = np.where(inside, tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64), -1)
        yield np.maximum(block[:, :-1], 0), block[:, 1:]


@torch.inference_mode()
def mean_loss(
    model: GPT | MixedPrecision,
    tokens: np.ndarray,
    starts: np.ndarray,
    compute: device.Compute,
    ranks: Processes = Processes(),
    block_size: int = 0,
) -> float:
    """Mean cross-entropy in nats over all targets of the windows at `starts`, shared out among the processes."""
    block_size = block_size or model.config.block_size
    # several windows at once are faster; about 8,000 tokens of a small model, fewer of a large one
    rows = max(1, (1 << 22) // (block_size * max(model.config.vocab_size, 4 * model.config.n_embd)))
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for x, y in batches(tokens, starts[ranks.rank :: ranks.count], block_size, rows):
        loss = model(torch.from_numpy(x).to(compute.device), torch.from_numpy(y).to(compute.device))[1]
        valid = int((y >= 0).sum())
        total += loss.item() * valid
        count += valid
    model.train(was_training)
    total_loss, total_count = ranks.sum([total, count], compute.device)
    return total_loss / total_count


def estimate_losses(
    model: GPT | MixedPrecision,
    dataset: Dataset,
    seed: int,
    eval_iters: int,
    batch_size: int,
    compute: device.Compute,
    ranks: Processes,
) -> dict[str, float]:
    """Loss of both splits: over `eval_iters` random batches as in nanoGPT, or with 0 over the whole validation split
    and an equally long part of the training split.

    The random windows are the same at every evaluation, so that two evaluations differ by the model alone; they are a
    stream of their own, so that evaluating does not change what is trained on.
    """
    block_size, losses = model.config.block_size, {}
    for stream, (split, tokens) in enumerate(dataset.splits.items(), start=1):
        if eval_iters:
            starts = draw_windows(seed, 0, len(tokens), block_size, eval_iters * batch_size, stream)
        else:
            tokens = tokens[: len(dataset.splits["val"])]
            starts = every_token_once(tokens, block_size)
        losses[split] = mean_loss(model, tokens, starts, compute, ranks)
    return losses


# ---- counting, for comparison -----------------------------------------------------------------------------------


def count_baselines(train: np.ndarray, val: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Loss in nats per token, on all targets of `val`, of guessing from counts in `train`.

    uniform: log V. unigram: add-one counts. bigram: P(b | a) = (count(a, b) + P(b)) / (count(a) + 1), that is, one
    imagined observation spread like the unigram (Dirichlet smoothing; Jurafsky & Martin, chapter 3).
    """
    counts = np.bincount(train, minlength=vocab_size).astype(np.float64)
    unigram = (counts + 1) / (counts.sum() + vocab_size)
    pairs, pair_counts = np.unique(train[:-1].astype(np.int64) * vocab_size + train[1:], return_counts=True)
    wanted = val[:-1].astype(np.int64) * vocab_size + val[1:]
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    found = np.where(pairs[at] == wanted, pair_counts[at], 0)
    from_a = np.bincount(train[:-1], minlength=vocab_size)[val[:-1]]
    bigram = (found + unigram[val[1:]]) / (from_a + 1)
    return {
        "uniform": math.log(vocab_size),
        "unigram": float(-np.log(unigram[val[1:]]).mean()),
        "bigram": float(-np.log(bigram).mean()),
    }


# ---- the command ------------------------------------------------------------------------------------------------


def evaluate(config: EvalConfig) -> None:
    """`tinygpt eval`: whole-split loss, perplexity and bits per character of a checkpoint."""
    checkpoint = load(config.ckpt)
    name = config.dataset or str(checkpoint.config.get("dataset", ""))
    if not name:
        raise TinyGPTError(f"{config.ckpt} does not say what it was trained on", "--dataset=NAME")
    dataset = Dataset(config.data_dir, name)
    if checkpoint.tokenizer is not None:
        own = tokenizer_from_dict(checkpoint.tokenizer, config.ckpt).to_dict()
        if fingerprint(own) != dataset.fingerprint:
            raise TinyGPTError(
                f"{config.ckpt} and dataset {name!r} have different vocabularies "
                f"({fingerprint(own)} and {dataset.fingerprint})",
                "evaluate on the dataset it was trained on, or train on this one",
            )
    checkpoint.require_symbols(dataset.tokenizer, config.ckpt)
    compute = device.choose(config.device, "float32" if config.dtype == "auto" else config.dtype)
    model = checkpoint.build_model().to(compute.device, compute.dtype)
    train, val = dataset.splits["train"], dataset.splits["val"]
    if len(val) < 2:
        raise TinyGPTError(f"{dataset.folder}/val.bin has {len(val)} token, too few to measure", "prepare more text")
    loss = mean_loss(model, val, every_token_once(val, model.config.block_size), compute)
    tokens_per_character = len(val) / max(int(dataset.meta.get("characters", {}).get("val", len(val))), 1)
    losses = {**count_baselines(train, val, dataset.tokenizer.vocab_size), "model": loss}
    if config.json:
        result = {
            "ckpt": config.ckpt,
            "dataset": name,
            "tokens": len(val) - 1,
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_character": loss / math.log(2) * tokens_per_character,
            "baselines": {key: value for key, value in losses.items() if key != "model"},
        }
        print(json.dumps(result))
        return
    print(f"{config.ckpt} on the validation split of {name}: {len(val) - 1:,} tokens, each predicted once\n")
    print(f"{'':<10}{'loss':>8}{'perplexity':>13}{'bits per character':>21}")
    for key, value in losses.items():
        print(f"{key:<10}{value:>8.4f}{math.exp(value):>13.2f}{value / math.log(2) * tokens_per_character:>21.3f}")
    print("\nuniform: any symbol alike; unigram: by how often it occurs; bigram: by what followed the last symbol")
