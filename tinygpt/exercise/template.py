"""The ten steps as a reader gets them: signatures, shapes and what to write.

`tinygpt exercise start N` copies step N out of this file into my_gpt.py. Nothing imports it.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# Shapes: B sequences, T positions, C = n_embd channels, V = vocab_size.


# ==== step 1: tokenizer ====


class CharTokenizer:
    """Text to numbers and back: one number for each distinct character of a text, in sorted order."""

    def __init__(self, text: str) -> None:
        self.vocab_size = 0  # how many distinct characters the text has
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The number of each character. Raises ValueError naming a character that is not in the vocabulary."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


# ==== step 2: batches ====


def split(data: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Cut data (n,) in two before any window is made: the first part to train on, its end to validate."""
    raise NotImplementedError


def get_batch(data: Tensor, block_size: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows at random positions of data (n,), drawn with `generator`: x and y, both int64 (batch_size, block_size).

    y is x shifted by one: y[b, t] is the number that follows x[b, t] in the data.
    """
    raise NotImplementedError


# ==== step 3: bigram ====


class Bigram(nn.Module):
    """Guesses the next character from the last one alone: a table with a row of logits for each character."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """idx and targets int64 (B, T); logits (B, T, V), and the mean cross-entropy, or None without targets."""
        raise NotImplementedError


def counts_loss(data: Tensor, vocab_size: int) -> float:
    """The mean of -ln p(next | current) over all pairs of data (n,), with p from counting those very pairs.

    No bigram model can do better on this data, so this is where training must end.
    """
    raise NotImplementedError


# ==== step 4: head ====


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much each position looks at each: q, k (B, T, head_size) to (B, T, T), [b, t, s] being t's look at s.

    Rows sum to one; nobody looks at a later position; scores are scaled by 1 / sqrt(head_size) before the softmax.
    """
    raise NotImplementedError


class Head(nn.Module):
    """One head of self-attention: each position gathers the values of those that it looks at."""

    def __init__(self, n_embd: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) to (B, T, head_size)"""
        raise NotImplementedError


# ==== step 5: block ====


class MultiHeadAttention(nn.Module):
    """n_head heads of size C / n_head at once: q, k and v come out of one product, side by side in that order."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # its output: q (C channels), then k (C), then v (C)
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes what the heads found

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) to (B, T, C). Head 0 has the first C / n_head channels of q, k and v, head 1 the next, ..."""
        raise NotImplementedError


class MLP(nn.Module):
    """Two linear layers with GELU in between, four times as wide there, at each position by itself."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Block(nn.Module):
    """Attention, then the MLP; each reads a normalised copy of the stream and adds what it found to the stream."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = MultiHeadAttention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


# ==== step 6: gpt ====


class GPT(nn.Module):
    """Embeddings of characters and of positions, n_layer blocks, a last norm, and a linear head over the vocabulary."""

    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int) -> None:
        """Make self.wte, self.wpe (embeddings), self.h (nn.ModuleList of Block), self.ln_f and self.lm_head; linear and
        embedding weights start as normal noise of standard deviation 0.02, biases at zero."""
        super().__init__()
        raise NotImplementedError

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """idx and targets int64 (B, T), T <= block_size; logits (B, T, V), and the mean cross-entropy or None."""
        raise NotImplementedError


# ==== step 7: training ====


def learning_rate(step: int, peak: float, minimum: float, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine. For step < warmup: peak (step + 1) / (warmup + 1); at step = warmup: peak;
    from there down along a cosine to `minimum` at step = total; `minimum` after that."""
    raise NotImplementedError


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, lr: float, max_norm: float
) -> float:
    """One update of the weights with learning rate lr, the gradient's norm clipped to max_norm; `model(x, y)` returns
    (logits, loss). Returns the loss before the update, as a Python number."""
    raise NotImplementedError


# ==== step 8: sampler ====


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """What to draw the next character from: logits (V,) to probabilities (V,) that sum to one.

    In this order: divide by the temperature; keep the top_k largest (0: all); of what is left, keep the fewest whose
    probabilities together reach top_p.
    """
    raise NotImplementedError


@torch.no_grad()
def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    block_size: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Continue idx int64 (B, T) by max_new_tokens, drawn with `generator`; returns (B, T + max_new_tokens).

    The model sees at most the last block_size numbers; `model(x)` returns (logits (B, T, V), None).
    """
    raise NotImplementedError


# ==== step 9: fine-tuning ====


def pair_example(prompt: list[int], response: list[int], end: int, block_size: int) -> tuple[Tensor, Tensor]:
    """A prompt and its response as one training example: x and y, int64 (block_size,).

    The sequence is prompt, response, end; y is x shifted by one, and -1 wherever no loss is wanted: where the target
    belongs to the prompt, and in the padding. x is padded with `end`.
    """
    raise NotImplementedError


def masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over the targets that are not -1. logits (B, T, V), targets int64 (B, T)."""
    raise NotImplementedError


# ==== step 10: lora ====


class LoRALinear(nn.Module):
    """A frozen linear layer W with two thin trainable matrices beside it: W x + bias + (alpha / rank) B A x."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        """Make self.A (rank, in_features) and self.B (out_features, rank) such that at first nothing changes."""
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)"""
        raise NotImplementedError

    def merged(self) -> nn.Linear:
        """An ordinary linear layer that computes the same; the frozen one stays as it is."""
        raise NotImplementedError
