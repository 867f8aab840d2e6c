"""The ten steps as a student gets them: signatures, shapes and what to write.

`tinygpt exercise start N` copies step N from this file to my_gpt.py. No module imports it.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# Shapes: B sequences, T positions, C = n_embd channels, V = vocab_size.


# ==== step 1: text to token ids and back ====


class CharTokenizer:
    """Text to token ids and back: an id for each distinct character of a text, in sorted order."""

    def __init__(self, text: str) -> None:
        self.vocab_size = 0  # number of distinct characters in the text
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Return the id of each character. A character outside the vocabulary raises an error that names it."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids."""
        raise NotImplementedError


# ==== step 2: train and validation split, windows and targets ====


def split(data: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Split data (n,) into the training part and, at its end, the validation part (a share of val_fraction)."""
    raise NotImplementedError


def get_batch(data: Tensor, block_size: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw windows at random positions of data (n,) with `generator`. Returns x, y, int64 (batch_size, block_size).

    y is x shifted by one: y[b, t] is the token that follows x[b, t] in the data.
    """
    raise NotImplementedError


# ==== step 3: the bigram model, and the lowest loss it can reach ====


class Bigram(nn.Module):
    """Predicts the next character from the current one only: a table with a row of logits per character."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """idx and targets: int64 (B, T). Returns logits (B, T, V) and the mean cross-entropy (None without targets)."""
        raise NotImplementedError


def counts_loss(data: Tensor, vocab_size: int) -> float:
    """Return the mean of -ln p(next | current) over all pairs in data (n,), with p from the frequencies of these pairs.

    No bigram model has a lower loss on this data, so training must converge to this value.
    """
    raise NotImplementedError


# ==== step 4: one attention head: scaled scores, causal mask ====


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights (B, T, T) of q, k (B, T, head_size); [b, t, s] is the weight of position s for position t.

    Scores are scaled by 1 / sqrt(head_size) before the softmax. Each row sums to one. Later positions have weight zero.
    """
    raise NotImplementedError


class Head(nn.Module):
    """One head of causal self-attention: each position gets the weighted sum of the values."""

    def __init__(self, n_embd: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C). Returns (B, T, head_size)."""
        raise NotImplementedError


# ==== step 5: multi-head attention, MLP, residuals, LayerNorm ====


class MultiHeadAttention(nn.Module):
    """n_head causal heads of size C / n_head; one linear layer computes q, k and v of all heads."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # output: q (C channels), then k (C), then v (C)
        self.c_proj = nn.Linear(n_embd, n_embd)  # mixes the outputs of the heads

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C). Returns (B, T, C). Head 0 uses the first C / n_head channels of q, k, v; head 1 the next."""
        raise NotImplementedError


class MLP(nn.Module):
    """Linear layer to 4 C channels, GELU, linear layer back to C; the same at every position."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Block(nn.Module):
    """Attention, then the MLP. The input of each is normalised; the output of each is added to the residual stream."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = MultiHeadAttention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


# ==== step 6: the complete model ====


class GPT(nn.Module):
    """Token and position embeddings, n_layer blocks, a final LayerNorm, and a linear layer to the logits."""

    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int) -> None:
        """Make self.wte, self.wpe (embeddings), self.h (nn.ModuleList of Block), self.ln_f and self.lm_head.

        Initialise linear and embedding weights from a normal distribution (standard deviation 0.02), biases with zero.
        """
        super().__init__()
        raise NotImplementedError

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """idx and targets: int64 (B, T), T <= block_size. Returns logits (B, T, V) and mean cross-entropy or None."""
        raise NotImplementedError


# ==== step 7: learning rate schedule; one step, gradient clipping ====


def learning_rate(step: int, peak: float, minimum: float, warmup: int, total: int) -> float:
    """Linear warm-up, then cosine decay.

    For step < warmup: peak (step + 1) / (warmup + 1). At step = warmup: peak. After that, half a cosine down to
    `minimum` at step = total, and `minimum` for every later step.
    """
    raise NotImplementedError


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, lr: float, max_norm: float
) -> float:
    """Update the weights once with learning rate lr, with the gradient's norm clipped to max_norm.

    `model(x, y)` returns (logits, loss). Returns the loss before the update, as a Python float.
    """
    raise NotImplementedError


# ==== step 8: temperature, top-k, top-p; the generation loop ====


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Turn logits (V,) into the probabilities (V,) from which the next token is drawn. They sum to one.

    In this order: divide by the temperature; keep the top_k largest logits (0: all); of their probabilities, keep the
    smallest set of the most probable tokens whose sum reaches top_p.
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
    """Append max_new_tokens tokens, drawn with `generator`, to idx int64 (B, T). Returns (B, T + max_new_tokens).

    The input of the model is at most the last block_size tokens; `model(x)` returns (logits (B, T, V), None).
    """
    raise NotImplementedError


# ==== step 9: prompt and response; loss on the response only ====


def pair_example(prompt: list[int], response: list[int], end: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Make one training example of a prompt and its response: x and y, int64 (block_size,).

    The sequence is prompt, response, end. y is x shifted by one, but -1 (no loss) where the target belongs to the
    prompt, and in the padding. x is padded with `end`.
    """
    raise NotImplementedError


def masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the targets that are not -1. logits (B, T, V), targets int64 (B, T)."""
    raise NotImplementedError


# ==== step 10: a frozen layer with a low-rank update; merging ====


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update: W x + bias + (alpha / rank) B A x."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        """Make self.A (rank, in_features) and self.B (out_features, rank) so that at first the output is unchanged."""
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features). Returns (..., out_features)."""
        raise NotImplementedError

    def merged(self) -> nn.Linear:
        """Return an ordinary linear layer with the same output. The frozen layer does not change."""
        raise NotImplementedError
