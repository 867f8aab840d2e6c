"""A correct solution of the exercise, for the tests: the template with every gap filled in."""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class CharTokenizer:
    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        self.vocab_size = len(self.characters)
        self.ids = {character: i for i, character in enumerate(self.characters)}

    def encode(self, text: str) -> list[int]:
        for c in text:
            if c not in self.ids:
                raise ValueError(f"{c!r} is not in the vocabulary")
        return [self.ids[c] for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.characters[i] for i in ids)


def split(data: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    cut = int(len(data) * (1 - val_fraction))
    return data[:cut], data[cut:]


def get_batch(data: Tensor, block_size: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(data) - block_size, (batch_size,), generator=generator)
    x = torch.stack([data[i : i + block_size] for i in starts])
    y = torch.stack([data[i + 1 : i + 1 + block_size] for i in starts])
    return x, y


class Bigram(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.table(idx)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def counts_loss(data: Tensor, vocab_size: int) -> float:
    counts = torch.zeros(vocab_size, vocab_size)
    for now, after in zip(data[:-1].tolist(), data[1:].tolist(), strict=True):
        counts[now, after] += 1
    p = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return -p[data[:-1], data[1:]].log().mean().item()


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    T, size = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(size)
    mask = torch.tril(torch.ones(T, T)) == 0
    return F.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)


class Head(nn.Module):
    def __init__(self, n_embd: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return attention_weights(self.query(x), self.key(x)) @ self.value(x)


class MultiHeadAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = MultiHeadAttention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList([Block(n_embd, n_head) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def learning_rate(step: int, peak: float, minimum: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step > total:
        return minimum
    share = (step - warmup) / (total - warmup)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * share)) / 2


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, lr: float, max_norm: float
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = model(x, y)[1]
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    logits = logits / temperature
    if top_k:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    p, order = F.softmax(logits, 0).sort(descending=True)
    before = p.cumsum(0) - p
    p = p.masked_fill(before >= top_p, 0.0)
    out = torch.zeros_like(p)
    out[order] = p / p.sum()
    return out


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
    for _ in range(max_new_tokens):
        logits = model(idx[:, -block_size:])[0][:, -1]
        p = torch.stack([probabilities(row, temperature, top_k, top_p) for row in logits])
        idx = torch.cat((idx, torch.multinomial(p, 1, generator=generator)), 1)
    return idx


def pair_example(prompt: list[int], response: list[int], end: int, block_size: int) -> tuple[Tensor, Tensor]:
    sequence = [*prompt, *response, end]
    x = torch.full((block_size,), end)
    y = torch.full((block_size,), -1)
    x[: len(sequence) - 1] = torch.tensor(sequence[:-1])
    y[len(prompt) - 1 : len(sequence) - 1] = torch.tensor(sequence[len(prompt) :])
    return x, y


def masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


class LoRALinear(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self) -> nn.Linear:
        out = nn.Linear(self.linear.in_features, self.linear.out_features, bias=self.linear.bias is not None)
        out.weight.data = self.linear.weight + self.scale * self.B @ self.A
        if self.linear.bias is not None:
            out.bias.data = self.linear.bias
        return out
