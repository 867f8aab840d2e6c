# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # GPT from an empty file
#
# Everything that a GPT is, built from nothing: text to numbers, a first model that counts, attention, the whole
# transformer, its training, its voice, and what it takes to make it answer. Each part ends in a picture of *your own*
# run and in one question; its answer is folded away below it.
#
# It runs from top to bottom in a few minutes on a laptop's processor, without a network. Change things and run it again:
# every number that you see is computed here.
#
# The same steps with checks that say whether what *you* wrote is right: `tinygpt exercise list`.

# %%
import copy
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from IPython.display import display

from tinygpt.data.corpora import tiny_shakespeare  # only to fetch the text; and once more at the end, to compare

torch.manual_seed(1337)
torch.set_num_threads(max(1, min(8, torch.get_num_threads())))
plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
started = time.time()

folder = Path(tempfile.mkdtemp())
tiny_shakespeare(folder / "input.txt")
text = (folder / "input.txt").read_text()
print(f"{len(text):,} characters")
print(text[:170])

# %% [markdown]
# ## 1. Characters to numbers and back
#
# A network works on numbers. The simplest way from text to numbers: list the distinct characters in a fixed order, and
# call each by its position in the list.

# %%
symbols = sorted(set(text))
V = len(symbols)
number = {symbol: i for i, symbol in enumerate(symbols)}


def encode(text: str) -> list[int]:
    return [number[symbol] for symbol in text]


def decode(ids) -> str:
    return "".join(symbols[int(i)] for i in ids)


line = "Speak, I charge thee, speak!"
print(V, "symbols:", "".join(symbols[1:]))
print(encode(line))
assert decode(encode(text)) == text

# %% [markdown]
# There are other ways to cut a line. **Bytes**: UTF-8 has 256 of them, so nothing is ever unknown, but an `é` takes two.
# **Byte-pair encoding** (Sennrich et al. 2016): begin with characters, and again and again join the pair that stands
# side by side most often into a new symbol. Frequent words become one symbol; the list of symbols grows.


# %%
def learn_bpe(text: str, merges: int) -> list[tuple[str, str]]:
    """The pairs that are joined, in order. Words keep the blank before them; pairs are counted within words."""
    words = Counter(tuple(word) for word in text.replace(" ", "\n ").split("\n") if word)
    learned = []
    for _ in range(merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = pairs.most_common(1)[0][0]
        learned.append(best)
        words = Counter({joined(word, best): count for word, count in words.items()})
    return learned


def joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in word:
        return word
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


merges = learn_bpe(text[:150_000], 250)
pieces = []
for word in line.replace(" ", "\n ").split("\n"):
    word = tuple(word)
    for pair in merges:
        word = joined(word, pair)
    pieces += word
print("the first merges:", ["".join(pair) for pair in merges[:12]])


def boxes(axes, parts: list[str], title: str) -> None:
    """Parts of a line as boxes, as wide as they are long."""
    x = 0
    for i, part in enumerate(parts):
        axes.add_patch(plt.Rectangle((x, 0), len(part), 1, color=plt.cm.Pastel1(i % 9)))
        axes.text(x + len(part) / 2, 0.5, part.replace(" ", "␣"), ha="center", va="center", family="monospace")
        x += len(part)
    axes.set(xlim=(0, x), ylim=(0, 1), title=title)
    axes.axis("off")


figure, rows = plt.subplots(3, 1, figsize=(9, 2.6), layout="constrained")
boxes(rows[0], list(line), f"characters: {len(line)} symbols out of {V}")
boxes(rows[1], [f"{b:02x}" for b in line.encode()], f"bytes (in hexadecimal): {len(line.encode())} symbols out of 256")
boxes(rows[2], pieces, f"byte pairs after {len(merges)} merges: {len(pieces)} symbols out of {V + len(merges)}")
plt.show()
assert "".join(pieces) == line and len(pieces) < len(line)

# %% [markdown]
# **Question.** A byte-pair tokenizer makes the line shorter. Why does this notebook stay with characters all the same?
#
# <details><summary>Answer</summary>
#
# The vocabulary is part of the model: each token has a row in the embedding and one in the output. GPT-2's 50,257
# tokens at 128 channels are 6.4 million parameters, eight times this entire model, and most of them would be seen a few
# times in a million characters. Short sequences pay when there is enough text to learn the tokens from.
# </details>

# %% [markdown]
# ## 2. Batches
#
# The model reads a window of T characters and guesses, at each position, the one that follows. So the target is the input
# shifted by one, and a window of T characters is T exercises at once.
#
# The text is cut into a part to train on and a part to validate **before** any window is made.

# %%
data = torch.tensor(encode(text))
cut = int(0.9 * len(data))
train_data, val_data = data[:cut], data[cut:]
T, B = 64, 12  # characters in a window, windows in a batch


def get_batch(data, generator, batch_size=B, block_size=T):
    """x, y (B, T): windows at random positions, and the same windows one character later."""
    starts = torch.randint(len(data) - block_size, (batch_size, 1), generator=generator)
    windows = data[starts + torch.arange(block_size + 1)]
    return windows[:, :-1], windows[:, 1:]


x, y = get_batch(train_data, torch.Generator().manual_seed(1), 4, 16)
figure, axes = plt.subplots(1, 2, figsize=(9, 1.9), layout="constrained")
for ax, part, name in zip(axes, (x, y), ("x: what the model reads", "y: what it must guess, position by position")):
    ax.imshow(part, cmap="Pastel2", aspect="auto")
    for (b, t), i in np.ndenumerate(part.numpy()):
        ax.text(t, b, decode([i]).replace("\n", "⏎").replace(" ", "␣"), ha="center", va="center", family="monospace")
    ax.set(title=name, xticks=[], yticks=range(4), ylabel="window")
plt.show()
assert torch.equal(x[:, 1:], y[:, :-1])

# What if the windows were made first, and then divided at random?
shuffled = torch.randperm(len(data) - T, generator=torch.Generator().manual_seed(1))
in_training = torch.zeros(len(data) - T, dtype=torch.bool)
in_training[shuffled[: int(0.9 * len(shuffled))]] = True
neighbours = [in_training[max(0, i - 8) : i + 9].any() for i in shuffled[int(0.9 * len(shuffled)) :][:2000].tolist()]
print(f"validation windows that a training window covers but for 8 characters: {100 * np.mean(neighbours):.0f} %")

# %% [markdown]
# **Question.** What would the validation loss say if windows were divided at random instead?
#
# <details><summary>Answer</summary>
#
# Nearly the training loss, whatever happens: each validation window has been read in training, shifted by a few
# characters. A model that has memorised the text would look perfect.
# </details>

# %% [markdown]
# ## 3. The first model: a bigram table
#
# Guess the next character from the last one alone. The model is a table with a row of 65 scores (logits) for each
# character; softmax makes them probabilities, and the loss is the mean of $-\ln p$ of what really followed.
#
# Before any training all are equally likely: $\ln 65 = 4.17$. And there is an exact answer to compare with: simply
# count how often each character follows each.

# %%
counts = torch.zeros(V, V)
counts.index_put_((train_data[:-1], train_data[1:]), torch.tensor(1.0), accumulate=True)
chances = (counts + 1) / (counts + 1).sum(1, keepdim=True)  # one more for each pair: none is impossible
# (`tinygpt eval` adds one observation per row, distributed like the unigram, and reaches 2.491)
counted = -chances[val_data[:-1], val_data[1:]].log().mean().item()


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, V)
        nn.init.zeros_(self.table.weight)

    def forward(self, idx, targets=None):
        logits = self.table(idx)  # (B, T, V)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def whole_loss(model, data=None, block_size=T) -> float:
    """The mean loss over all windows of the validation text."""
    data = val_data if data is None else data
    windows = data[: (len(data) - 1) // block_size * block_size].view(-1, block_size)
    targets = data[1 : windows.numel() + 1].view(-1, block_size)
    model.eval()
    losses = [model(a, b)[1] * len(a) for a, b in zip(windows.split(256), targets.split(256))]
    return (sum(losses) / len(windows)).item()


bigram, generator = Bigram(), torch.Generator().manual_seed(1337)
first = whole_loss(bigram)
optimizer = torch.optim.AdamW(bigram.parameters(), lr=0.1, weight_decay=0)
for step in range(1500):
    loss = bigram(*get_batch(train_data, generator, 32))[1]
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 1500)
    optimizer.step()
bigram_loss = whole_loss(bigram)
print(f"before {first:.4f} (ln 65 = {math.log(65):.4f}); trained {bigram_loss:.4f}; counted {counted:.4f}")
assert abs(first - math.log(65)) < 1e-3 and abs(bigram_loss - counted) < 0.02

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for ax, table, name in (
    (axes[0], chances, "counted"),
    (axes[1], bigram.table.weight.detach().softmax(1), "trained"),
):
    ax.imshow(table.clamp(min=1e-4).log(), cmap="viridis")
    ax.set(title=f"p(next | last), {name}", xlabel="next", ylabel="last")
    ticks = [number[c] for c in "\n AEMTaeiot"]
    ax.set_xticks(ticks, ["⏎", "␣", *"AEMTaeiot"])
    ax.set_yticks(ticks, ["⏎", "␣", *"AEMTaeiot"])
plt.show()


@torch.no_grad()
def sample(model, start="\n", count=200, seed=1) -> str:
    generator, idx = torch.Generator().manual_seed(seed), torch.tensor([encode(start)])
    model.eval()
    for _ in range(count):
        p = model(idx[:, -T:])[0][:, -1].softmax(-1)
        idx = torch.cat((idx, torch.multinomial(p, 1, generator=generator)), 1)
    return decode(idx[0])


print(sample(bigram))

# %% [markdown]
# **Question.** Training ends where counting does. What is gained by training then?
#
# <details><summary>Answer</summary>
#
# For this table, nothing. But a table for the last *two* characters has 65 × 65 rows, for the last ten 65¹⁰, and most of
# them are never seen. A network shares what it learns between contexts that are alike, and can be trained by the very
# same four lines.
# </details>

# %% [markdown]
# ## 4. Positions
#
# The next sections let each position look at all those before it. A sum over positions does not know their order: *on* and
# *no* have the same sum.

# %%
embedding = nn.Embedding(V, 32)


def bag(text: str):
    return embedding(torch.tensor(encode(text))).mean(0)


print("'on' and 'no' look alike:", torch.allclose(bag("on"), bag("no")))

# %% [markdown]
# Two ways to say where a character stands:
#
# - **learned** (GPT-2): a second table with a row for each position, added to the character's row;
# - **rotary** (RoPE, Su et al. 2021): queries and keys, taken as pairs of numbers, are turned by an angle that grows with
#   the position; each pair turns at another speed. The product of a query and a key then depends on their *distance* alone.


# %%
def rotate(x, start: int = 0):
    """x (..., T, size): pair i of position t is turned by the angle t / 10000^(2 i / size)."""
    T, size = x.shape[-2:]
    angles = torch.arange(start, start + T)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    a, b = x[..., : size // 2], x[..., size // 2 :]
    return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)


positions = nn.Embedding(T, 32)
nn.init.normal_(positions.weight, std=0.02)
q = rotate(torch.ones(64, 32))
figure, axes = plt.subplots(1, 3, figsize=(11, 3.1), layout="constrained")
axes[0].imshow(positions.weight.detach(), aspect="auto", cmap="coolwarm")
axes[0].set(title="learned: a row a position (here before training)", xlabel="channel", ylabel="position")
angles = torch.arange(64)[:, None] * 10000.0 ** (-torch.arange(0, 32, 2) / 32)
axes[1].imshow(angles.cos(), aspect="auto", cmap="coolwarm")
axes[1].set(title="rotary: cosine of each pair's angle", xlabel="pair", ylabel="position")
for position in (0, 20, 40):
    axes[2].plot(np.arange(64) - position, (q @ q[position]).numpy(), label=f"query at {position}")
axes[2].set(title="rotary: q · k by distance", xlabel="position of the key minus position of the query")
axes[2].legend(frameon=False)
plt.show()
at_distance = [(q[t + 5] @ q[t]).item() for t in (0, 20, 40)]
assert max(at_distance) - min(at_distance) < 1e-3

# %% [markdown]
# **Question.** The three curves on the right lie on each other. Why is that useful for text?
#
# <details><summary>Answer</summary>
#
# Windows begin anywhere: that *q* is followed by *u* is true at position 3 and at position 40. With learned positions each
# position has to learn it anew; with rotary ones it is learned once.
# </details>

# %% [markdown]
# ## 5. Self-attention
#
# Each position asks a question (query *q*), offers a label (key *k*), and holds a content (value *v*), all three being
# linear functions of what stands there. It takes the average of the contents, weighted by how well their labels
# answer its question. First by hand, on eight characters, with loops:

# %%
size, C = 16, 32
torch.manual_seed(0)
x = embedding(torch.tensor(encode("to be or"))).detach()  # (8, C)
Wq, Wk, Wv = (torch.randn(C, size) / C**0.5 for _ in range(3))
q, k, v = x @ Wq, x @ Wk, x @ Wv

by_hand = torch.zeros(8, size)
for t in range(8):
    scores = [float(q[t] @ k[s]) / math.sqrt(size) for s in range(t + 1)]  # only the past, and itself
    weights = [math.exp(score) for score in scores]
    for s in range(t + 1):
        by_hand[t] += weights[s] / sum(weights) * v[s]

# %% [markdown]
# And as three matrix products. What must not be seen gets the score $-\infty$ before the softmax, so its weight is zero:

# %%
scores = q @ k.T / math.sqrt(size)  # (8, 8)
future = torch.ones(8, 8).triu(1).bool()
weights = scores.masked_fill(future, -torch.inf).softmax(-1)
print("the same:", torch.allclose(weights @ v, by_hand, atol=1e-5))
assert torch.allclose(weights @ v, by_hand, atol=1e-5)

# %% [markdown]
# Why divide by $\sqrt{\text{size}}$? A product of two vectors of `size` independent numbers has a variance of `size`. Without
# the division the largest score takes nearly everything, and where softmax is saturated the gradient vanishes.

# %%
sizes, largest = [4, 16, 64, 256], {True: [], False: []}
for scaled in (True, False):
    for d in sizes:
        a, b = torch.randn(500, 1, d), torch.randn(500, 16, d)
        s = (a * b).sum(-1) / (d**0.5 if scaled else 1)
        largest[scaled].append(s.softmax(-1).max(-1).values.mean().item())

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
letters = ["␣" if c == " " else c for c in "to be or"]
for ax, picture, name in ((axes[0], scores, "scores"), (axes[1], weights, "weights: masked, rows sum to one")):
    ax.imshow(picture.detach(), cmap="viridis")
    ax.set_xticks(range(8), letters)
    ax.set_yticks(range(8), letters)
    ax.set(title=name, xlabel="looked at", ylabel="looks")
axes[2].plot(sizes, largest[True], "o-", label="divided by √size")
axes[2].plot(sizes, largest[False], "o-", label="not divided")
axes[2].set(xscale="log", title="largest of 16 weights, random vectors", xlabel="size", ylim=(0, 1))
axes[2].legend(frameon=False)
plt.show()
assert largest[False][-1] > 0.8 > 0.4 > largest[True][-1]

# %% [markdown]
# Now heads that have learned something: a model of one attention layer and nothing else, trained for a moment.


# %%
class Attention(nn.Module):
    """n_head heads at once: each works on its own C / n_head channels."""

    def __init__(self, C, n_head, position="learned", dropout=0.0):
        super().__init__()
        self.n_head, self.position, self.dropout = n_head, position, dropout
        self.c_attn = nn.Linear(C, 3 * C, bias=False)  # q, k and v in one product
        self.c_proj = nn.Linear(C, C, bias=False)
        self.cache = None  # for part 8

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        )  # (B, heads, T, size)
        past = 0 if self.cache is None else self.cache[0].shape[2]  # positions in the cache: x comes after them
        if self.position == "rotary":
            q, k = rotate(q, past), rotate(k, past)
        if self.cache is not None:
            k, v = (torch.cat(parts, 2) for parts in zip(self.cache, (k, v)))
            self.cache = k, v
        future = torch.ones(T, past + T, dtype=torch.bool).triu(past + 1)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        self.weights = weights = scores.masked_fill(future, -torch.inf).softmax(-1)  # kept to be drawn
        weights = F.dropout(weights, self.dropout, self.training)
        return F.dropout(self.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


class OneLayer(nn.Module):
    def __init__(self, C=64, n_head=4):
        super().__init__()
        self.wte, self.wpe, self.attn = nn.Embedding(V, C), nn.Embedding(T, C), Attention(C, n_head)
        self.head = nn.Linear(C, V)

    def forward(self, idx, targets=None):
        x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]
        logits = self.head(x + self.attn(x))
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


torch.manual_seed(1337)
one_layer = OneLayer()
optimizer = torch.optim.AdamW(one_layer.parameters(), lr=1e-2)
for step in range(500):
    loss = one_layer(*get_batch(train_data, generator, 24))[1]
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 500)
    optimizer.step()
one_layer_loss = whole_loss(one_layer)
print(f"one attention layer: {one_layer_loss:.3f}; bigram: {bigram_loss:.3f}")
assert one_layer_loss < bigram_loss - 0.1


def draw_heads(weights, line: str, title: str) -> None:
    """weights (heads, T, T)"""
    figure, axes = plt.subplots(1, len(weights), figsize=(11, 3), layout="constrained")
    for h, ax in enumerate(axes):
        ax.imshow(weights[h], cmap="viridis", vmin=0, vmax=max(0.5, weights[h].max().item()))
        ax.set_xticks(range(len(line)), line.replace(" ", "␣"), fontsize=6)
        ax.set_yticks(range(len(line)), line.replace(" ", "␣"), fontsize=6)
        ax.set_title(f"head {h}")
    figure.suptitle(title, fontsize=10)
    plt.show()


line = "Speak, I charge thee, speak!"
with torch.no_grad():
    one_layer(torch.tensor([encode(line)]))
draw_heads(
    one_layer.attn.weights[0], line, "one layer after 500 steps: each row is a position, bright is where it looks"
)

# %% [markdown]
# **Question.** In some head there is a bright line just below the diagonal. What does that head do?
#
# <details><summary>Answer</summary>
#
# It looks at the character before: together with the character itself, which comes along in the sum `x + attn(x)`, the
# model knows the last two. That alone makes it better than the bigram table.
# </details>

# %% [markdown]
# ## 6. One block, and many of them
#
# A block is attention, which moves information between positions, and an MLP, which works on it at each position. Both *add*
# to a stream that runs through the whole model (residuals: the gradient has a straight way back), and both read a
# *normalised* copy of it (LayerNorm: however large the stream grows, what is read has the same size).


# %%
class LayerNorm(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight)


class MLP(nn.Module):
    def __init__(self, C, dropout=0.0):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)
        self.dropout = dropout

    def forward(self, x):
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, C, n_head, position, dropout):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(C), Attention(C, n_head, position, dropout)
        self.ln_2, self.mlp = LayerNorm(C), MLP(C, dropout)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, n_layer=4, n_head=4, C=128, position="learned", dropout=0.0, block_size=T):
        super().__init__()
        self.position, self.dropout = position, dropout
        self.wte = nn.Embedding(V, C)
        self.wpe = nn.Embedding(block_size, C) if position == "learned" else None
        self.h = nn.ModuleList(Block(C, n_head, position, dropout) for _ in range(n_layer))
        self.ln_f = LayerNorm(C)
        self.head = nn.Linear(C, V, bias=False)
        self.head.weight = self.wte.weight  # one table for reading and writing (Press & Wolf 2017)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # 2 n_layer projections add up in the stream, so they start smaller (GPT-2)
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layer) if "c_proj" in name else 0.02)

    def forward(self, idx, targets=None, start=0):
        x = self.wte(idx)
        if self.wpe is not None:
            x = x + self.wpe.weight[start : start + idx.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


# %% [markdown]
# How many numbers is that? By formula: a block has $4C^2$ in attention (q, k, v, projection), $8C^2$ in the MLP and $2C$
# in its norms.

# %%
C, L = 128, 4
by_formula = {
    "characters": V * C,
    "positions": T * C,
    "attention": L * 4 * C * C,
    "MLP": L * 8 * C * C,
    "norms": (2 * L + 1) * C,
}
by_code = sum(weight.numel() for weight in GPT().parameters())
print(by_formula, sum(by_formula.values()), by_code)
print(f"{by_code - by_formula['positions']:,} without the position embeddings, as nanoGPT and `tinygpt train` count")
assert sum(by_formula.values()) == by_code

# %% [markdown]
# What are positions worth? Three small models, the same in all but that:


# %%
def quick(model, steps, seed=1, lr=3e-3):
    """A short training; returns the validation loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        model.train()
        loss = model(*get_batch(train_data, generator))[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.step()
    return whole_loss(model)


position_losses = {}
for position in ("none", "learned", "rotary"):
    torch.manual_seed(1337)
    position_losses[position] = quick(GPT(2, 4, 64, position), 500)
print(position_losses)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
axes[0].barh(list(by_formula), by_formula.values(), color="C0")
axes[0].set(title=f"{by_code:,} numbers: where they are")
bars = axes[1].barh(list(position_losses), position_losses.values(), color="C1")
axes[1].bar_label(bars, fmt="%.2f", padding=3)
axes[1].margins(x=0.12)  # room for the labels
axes[1].set(title="validation loss after 500 steps, by kind of position")
plt.show()
assert position_losses["rotary"] < min(position_losses["learned"], position_losses["none"])

# %% [markdown]
# **Question.** Without positions the model is not hopeless. How can it know any order at all?
#
# <details><summary>Answer</summary>
#
# Through the mask. Position 3 sees three characters, position 4 sees four: what a second layer finds at each position already
# depends on how much of the text that position could see.
# </details>

# %% [markdown]
# ## 7. The loop
#
# Guess, measure, find the gradient, take a step; 1,000 times. AdamW (Loshchilov & Hutter 2019) gives each number a step
# size of its own, weight decay pulls matrices towards zero. The rate warms up, since the first gradients mean little,
# and comes down along a cosine. A gradient that is longer than 1 is cut to that length.


# %%
def learning_rate(step, steps, peak=1e-3, least=1e-4, warmup=100):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return least + (peak - least) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def make_optimizer(model, lr=1e-3):
    matrices = [w for w in model.parameters() if w.requires_grad and w.dim() >= 2]
    vectors = [w for w in model.parameters() if w.requires_grad and w.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)


@torch.no_grad()
def estimate(model, data, batches=20):
    model.eval()
    generator = torch.Generator().manual_seed(0)  # always the same windows
    return np.mean([model(*get_batch(data, generator))[1].item() for _ in range(batches)])


def train(model, steps, data=train_data, every=100, title="", peak=1e-3, seed=1337, patience=0):
    """Trains, draws while it does, and returns the history: (step, train loss, validation loss) and gradient norms."""
    optimizer, generator = make_optimizer(model), torch.Generator().manual_seed(seed)
    history, norms, best, picture = [], [], (math.inf, None), display(display_id=True)
    for step in range(steps + 1):
        if step % every == 0:
            history.append((step, estimate(model, data), estimate(model, val_data)))
            if history[-1][2] < best[0]:
                best = history[-1][2], copy.deepcopy(model.state_dict())
            picture.update(curves({title: history}, norms))
            if patience and history[-1][2] > best[0] and step >= every * patience:
                if all(entry[2] > best[0] for entry in history[-patience:]):
                    break
        if step == steps:
            break
        model.train()
        loss = model(*get_batch(data, generator))[1]
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()
    if patience:
        model.load_state_dict(best[1])  # early stopping: back to the best
    return history


def curves(runs, norms=()):
    figure, axes = plt.subplots(1, 2 if len(norms) else 1, figsize=(9, 3), layout="constrained", squeeze=False)
    for i, (title, history) in enumerate(runs.items()):
        steps, train_losses, val_losses = zip(*history)
        axes[0, 0].plot(steps, train_losses, "--", color=f"C{i}")
        axes[0, 0].plot(steps, val_losses, "-", color=f"C{i}", label=f"{title}: {val_losses[-1]:.2f}")
    axes[0, 0].set(title="loss: validation (line) and training (dashes)", xlabel="step")
    axes[0, 0].legend(frameon=False)
    if len(norms):
        axes[0, 1].plot(norms, linewidth=0.5)
        axes[0, 1].set(title="length of the gradient, before it is cut", xlabel="step", yscale="log")
    plt.close(figure)
    return figure


torch.manual_seed(1337)
model = GPT()
begun = time.time()
history = train(model, 1000, title="4 layers, 128 channels")
final_loss = whole_loss(model)
print(f"{time.time() - begun:.0f} s; validation loss {final_loss:.3f} (bigram {bigram_loss:.3f})")
assert abs(history[0][2] - math.log(V)) < 0.1  # an untrained model guesses evenly
assert final_loss < 2.15
print(sample(model))

# %%
line = "Speak, I charge thee, speak!"
with torch.no_grad():
    model(torch.tensor([encode(line)]))
draw_heads(model.h[0].attn.weights[0], line, "your model, first layer")
draw_heads(model.h[3].attn.weights[0], line, "your model, last layer")

# %% [markdown]
# ### Overfitting, provoked and cured
#
# Give a model half as deep, with rotary positions and a higher rate, only 10,000 characters. It will memorise them,
# and the validation loss tells.

# %%
little = train_data[:10_000]


def small(dropout=0.0):
    return GPT(n_layer=2, position="rotary", dropout=dropout)


torch.manual_seed(1337)
overfit = train(small(), 500, little, title="10,000 characters", peak=3e-3, every=50)

# %% [markdown]
# Three cures: switch off a fifth of the channels at random in each step (dropout, Srivastava et al. 2014); stop when
# the validation loss has not improved for three evaluations, and go back to the best; or simply more text.

# %%
torch.manual_seed(1337)
dropped = train(small(dropout=0.2), 500, little, title="and dropout 0.2", peak=3e-3, every=50)
torch.manual_seed(1337)
stopped_model = small()
stopped = train(stopped_model, 500, little, title="stopped early", peak=3e-3, every=50, patience=3)
torch.manual_seed(1337)
more = train(small(), 500, title="1,000,000 characters", peak=3e-3, every=50)

# %%
display(
    curves({"10,000 characters": overfit, "with dropout": dropped, "stopped early": stopped, "all of the text": more})
)
least = min(entry[2] for entry in overfit)
print(
    f"best {least:.2f}, at the end {overfit[-1][2]:.2f}; with dropout {dropped[-1][2]:.2f}; all of the text {more[-1][2]:.2f}"
)
assert overfit[-1][2] > least + 0.2 and overfit[-1][1] < 1.4  # the training loss falls on, the validation loss rises
assert dropped[-1][2] < overfit[-1][2] - 0.1 and more[-1][2] < least
assert len(stopped) < len(overfit) and abs(estimate(stopped_model, val_data) - min(e[2] for e in stopped)) < 1e-6

# %% [markdown]
# **Question.** Which of the three cures makes the model *better*, and which only keep it from becoming worse?
#
# <details><summary>Answer</summary>
#
# Stopping early finds the best that this much text allows and no more. Dropout moves that best a little. Only more text
# changes what there is to know: its curve is the lowest of all.
# </details>

# %% [markdown]
# ## 8. Generation
#
# The model gives 65 probabilities; how the next character is drawn from them is our choice. **Temperature** divides the
# logits: below 1 the likely becomes likelier. **Top-k** keeps the k likeliest. **Top-p** keeps the fewest that together
# reach p.


# %%
def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """logits (V,) to what is drawn from, (V,)"""
    logits = logits / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    p, order = logits.softmax(-1).sort(descending=True)
    p[p.cumsum(0) - p >= top_p] = 0  # p was reached before this one
    return torch.zeros_like(p).scatter(0, order, p / p.sum())


with torch.no_grad():
    logits = model(torch.tensor([encode("ROMEO:\nWhat, shall I h")]))[0][0, -1]
choices = {
    "as it is": {},
    "temperature 0.5": {"temperature": 0.5},
    "top_k 5": {"top_k": 5},
    "top_p 0.6": {"top_p": 0.6},
}
order = logits.argsort(descending=True)[:12]
figure, axes = plt.subplots(1, 4, figsize=(11, 2.4), layout="constrained", sharey=True)
for ax, (name, choice) in zip(axes, choices.items()):
    p = probabilities(logits, **choice)
    ax.bar(range(12), p[order], color="C0")
    ax.set_xticks(range(12), [decode([i]).replace("\n", "⏎").replace(" ", "␣") for i in order])
    ax.set_title(name)
    assert abs(p.sum().item() - 1) < 1e-5
figure.suptitle("What, shall I h...", fontsize=10)
plt.show()


@torch.no_grad()
def write(model, start, count, seed=1, **choice) -> str:
    model.eval()
    generator, idx = torch.Generator().manual_seed(seed), torch.tensor([encode(start)])
    for _ in range(count):
        p = probabilities(model(idx[:, -T:])[0][0, -1], **choice)
        idx = torch.cat((idx, torch.multinomial(p, 1, generator=generator)[None]), 1)
    return decode(idx[0])


print("the likeliest, always:\n", write(model, "\n", 160, temperature=1e-3))
print("\ntemperature 0.8:\n", write(model, "\n", 160, temperature=0.8))

# %% [markdown]
# Taking the likeliest each time ends in a circle. And there is waste in the loop: for each new character everything
# before it is computed again, though keys and values of earlier positions never change. Keep them (`cache` in
# `Attention`), and a step costs one position:


# %%
def set_cache(model, on: bool) -> None:
    """Give each block an empty cache, or remove the caches."""
    for block in model.h:
        block.attn.cache = tuple(torch.zeros(1, 4, 0, 32) for _ in range(2)) if on else None


@torch.no_grad()
def write_cached(model, start, count) -> str:
    """Greedy, up to the end of the window."""
    model.eval()
    set_cache(model, True)
    ids, new = encode(start), encode(start)
    for _ in range(count):
        new = [int(model(torch.tensor([new]), start=len(ids) - len(new))[0][0, -1].argmax())]
        ids += new
    set_cache(model, False)
    return decode(ids)


@torch.no_grad()
def cached_logits(model, ids, first):
    """Logits (len(ids), V): computed in one call for the first positions, then one at a time."""
    model.eval()
    set_cache(model, True)
    logits = [model(torch.tensor([ids[:first]]))[0][0]]
    for t in range(first, len(ids)):
        logits.append(model(torch.tensor([ids[t : t + 1]]), start=t)[0][0])
    set_cache(model, False)
    return torch.cat(logits)


# The cache must not change the logits, whatever the kind of position.
ids = val_data[:T].tolist()
for one in (model, stopped_model):
    with torch.no_grad():
        difference = (cached_logits(one, ids, 8) - one(torch.tensor([ids]))[0][0]).abs().max().item()
    print(f"{one.position} positions: logits with and without a cache differ by at most {difference:.0e}")
    assert difference < 1e-3
assert {model.position, stopped_model.position} == {"learned", "rotary"}


def seconds(function) -> float:
    times = []
    for _ in range(5):
        begun = time.time()
        function()
        times.append(time.time() - begun)
    return min(times)


assert write_cached(model, "ROMEO:", 55) == write(model, "ROMEO:", 55, temperature=1e-3)
times = {
    "all again": seconds(lambda: write(model, "ROMEO:", 55, temperature=1e-3)),
    "with a cache": seconds(lambda: write_cached(model, "ROMEO:", 55)),
}
figure, ax = plt.subplots(figsize=(6, 1.4), layout="constrained")
ax.barh(list(times), [1000 * t / 55 for t in times.values()])
ax.set(title="milliseconds a character")
plt.show()

# %% [markdown]
# **Question.** With learned positions the cache works up to the end of the window and no further. Why?
#
# <details><summary>Answer</summary>
#
# To go on, the window has to slide: what stood at position 1 must now stand at position 0 and gets another position's row, so
# every key and value changes.
#
# With rotary positions the window can slide. A key is rotated by its absolute position before it enters the cache, and a
# query by its own position; their score depends only on the difference between the two positions. So the oldest keys and
# values can be dropped without changing the other scores, provided that new positions are still counted from the beginning
# of the text, not of the cache. The result differs slightly from reading the last 64 characters afresh: above the first
# layer, the keys and values that are kept still contain information from characters that have been dropped.
# </details>

# %% [markdown]
# ## 9. Supervised fine-tuning
#
# The model continues text. To make it *answer*, show it pairs of prompt and response, and let only the response count:
# the prompt is given, so learning to guess it is effort spent on the wrong thing.
#
# Our pairs: a line of a bank statement, and what the money was spent on. Between prompt and response stands a mark that
# is no text: `tinygpt finetune` adds a symbol for it, here `$` will do, which occurs once in all of Shakespeare's text. A
# line end says that the answer is over.

# %%
shops = {
    "food": "BAKERY,GROCER,MARKET,BUTCHER,DELI,FARM SHOP,FISHMONGER,DAIRY",
    "travel": "AIRLINE,RAILWAY,TAXI,HOTEL,FERRY,HOSTEL,COACH LINES,CAR HIRE",
    "health": "PHARMACY,DENTIST,CLINIC,OPTICIAN,HOSPITAL,PHYSIO,CHEMIST,DOCTOR",
    "home": "FURNITURE,HARDWARE,PLUMBER,PAINTS,GARDEN CENTRE,LIGHTING,CARPETS,ROOFING",
}
owners = "SMITH,JONES,NORTH,RIVER,ROYAL,CITY,GREEN,LONDON,KENT,YORK,BRISTOL,HARBOUR".split(",")
pairs = [(f"{owner} {shop}", kind) for kind, names in shops.items() for shop in names.split(",") for owner in owners]
order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)).tolist()
train_pairs, val_pairs = [pairs[i] for i in order[60:]], [pairs[i] for i in order[:60]]
MARK = "$"  # once in the whole text


def example(prompt: str, response: str, masked=True):
    """x, y (40,): y is x one later; -1 where the target belongs to the prompt, and in the padding."""
    ids = encode(prompt + MARK + response + "\n")
    x, y = torch.zeros(40, dtype=torch.long), torch.full((40,), -1)
    x[: len(ids) - 1], y[: len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    if masked:
        y[: len(prompt)] = -1  # all targets up to and including the mark
    return x, y


def pair_batch(pairs, masked=True):
    return (torch.stack(parts) for parts in zip(*(example(*pair, masked) for pair in pairs)))


@torch.no_grad()
def answer(model, prompt: str) -> str:
    out = write(model, prompt + MARK, 8, temperature=1e-3)
    return out.partition(MARK)[2].partition("\n")[0]


@torch.no_grad()
def pair_loss(model, masked=True) -> float:
    model.eval()
    return model(*pair_batch(val_pairs, masked))[1].item()


x, y = example("RIVER BAKERY", "food")
print("x:", decode(x[:17]).replace("\n", "⏎"))
print("y:", "".join("·" if i < 0 else decode([i]).replace("\n", "⏎") for i in y[:17]))


def finetune(model, steps=300, lr=1e-3, masked=True, seed=1):
    trained = [w for w in model.parameters() if w.requires_grad]
    optimizer, generator = torch.optim.AdamW(trained, lr=lr), torch.Generator().manual_seed(seed)
    for step in range(steps):
        model.train()
        chosen = torch.randint(len(train_pairs), (16,), generator=generator).tolist()
        loss = model(*pair_batch([train_pairs[i] for i in chosen], masked))[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.step()
    return model


def report(name, model):
    right = np.mean([answer(model, prompt) == response for prompt, response in val_pairs])
    row = {
        "right": right,
        "response loss": pair_loss(model),
        "all-positions loss": pair_loss(model, False),
        "Shakespeare": whole_loss(model),
    }
    print(f"{name:<24}" + "   ".join(f"{key} {value:.2f}" for key, value in row.items()))
    return row


before = report("before", model)
masked_model = finetune(copy.deepcopy(model))
after = report("after, masked", masked_model)
unmasked_model = finetune(copy.deepcopy(model), masked=False)
unmasked = report("after, not masked", unmasked_model)
for prompt, response in val_pairs[:3]:
    print(
        f"{prompt} (right: {response})\n   before: {answer(model, prompt)!r}   after: {answer(masked_model, prompt)!r}"
    )
assert after["right"] > 0.9 > before["right"] and after["response loss"] < 0.2
assert unmasked["all-positions loss"] < after["all-positions loss"]  # it has learned to guess prompts, too
assert after["Shakespeare"] > before["Shakespeare"] + 0.3  # and what it knew before is going

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
rows = {"before": before, "masked": after, "not masked": unmasked}
for ax, key in zip(axes, ("response loss", "Shakespeare")):
    ax.barh(list(rows), [row[key] for row in rows.values()], color=["C7", "C0", "C1"])
    ax.invert_yaxis()
    ax.set(
        title={"response loss": "loss on the responses", "Shakespeare": "loss on Shakespeare: what was forgotten"}[key]
    )
plt.show()

# %% [markdown]
# **Question.** The loss over all positions and the loss on the responses differ by far. Which of the two would you watch?
#
# <details><summary>Answer</summary>
#
# The one on the responses. Most positions belong to prompts, where much cannot be guessed at all (who owns the shop?), so the
# other number is mostly about them, and about padding if that counts too. It can fall while the answers become worse.
# </details>

# %% [markdown]
# ## 10. LoRA
#
# A copy of all weights for each task is a lot to keep, and everything old is overwritten. LoRA (Hu et al. 2021) freezes
# a matrix W and learns a small difference next to it, as the product of two thin matrices: $W + \frac{\alpha}{r} B A$.


# %%
class LoRA(nn.Module):
    def __init__(self, linear, rank=8, alpha=16):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))  # zero: at first nothing changes
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self):
        self.linear.weight.data += self.scale * self.B.data @ self.A.data
        return self.linear


def layers(model):
    return [(part, name) for block in model.h for part, name in
            ((block.attn, "c_attn"), (block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj"))]  # fmt: skip


torch.manual_seed(1)
adapted = copy.deepcopy(model).requires_grad_(False)
for part, name in layers(adapted):
    setattr(part, name, LoRA(getattr(part, name)))
probe = torch.tensor([encode(line)])
with torch.no_grad():
    assert torch.equal(adapted(probe)[0], model(probe)[0])  # at first nothing changes

finetune(adapted, lr=5e-3)
lora = report("LoRA, rank 8", adapted)
trained = sum(w.numel() for w in adapted.parameters() if w.requires_grad)
print(f"{trained:,} trainable parameters instead of {by_code:,}: {100 * trained / by_code:.0f} %")

with torch.no_grad():
    unmerged = adapted(probe)[0]
    for part, name in layers(adapted):
        setattr(part, name, getattr(part, name).merged())
    assert torch.allclose(adapted(probe)[0], unmerged, atol=1e-3)  # merged at the end: an ordinary model again
assert lora["right"] > 0.85

# %%
figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
for name, row, numbers in (("all weights", after, by_code), ("LoRA, rank 8", lora, trained)):
    ax.scatter(row["Shakespeare"] - before["Shakespeare"], 100 * row["right"], s=numbers / 800, alpha=0.5)
    ax.annotate(
        f"{name}\n{numbers:,} numbers", (row["Shakespeare"] - before["Shakespeare"], 100 * row["right"]), fontsize=8
    )
ax.set(
    xlabel="forgotten: loss on Shakespeare, after minus before",
    ylabel="right answers, %",
    ylim=(50, 115),
    xlim=(0, 1.4 * (after["Shakespeare"] - before["Shakespeare"])),
)
plt.show()

# %% [markdown]
# **Question.** A *and* B at zero would change nothing at first, too. Why is only B zero?
#
# <details><summary>Answer</summary>
#
# The gradient of B is a product with A, that of A a product with B. If both are zero, both gradients are, for ever.
# </details>

# %% [markdown]
# ## 11. The same model through `tinygpt train`
#
# The configuration `shakespeare_char.yaml` describes the model and the loop of part 7. So the curves should lie on each
# other, but for noise: other random numbers, and on many processors another precision.


# %%
def tinygpt(*args):
    done = subprocess.run([sys.executable, "-m", "tinygpt", *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


tinygpt("prepare", "shakespeare_char")
begun = time.time()
tinygpt(
    "train",
    "configs/shakespeare_char.yaml",
    "--device=cpu",
    "--max_iters=1000",
    "--eval_interval=100",
)
print(f"{time.time() - begun:.0f} s")

import json

entries = [json.loads(row) for row in (folder / "out/metrics.jsonl").read_text().splitlines()]
theirs = [(e["step"], e["train_loss"], e["val_loss"]) for e in entries if e["kind"] == "eval"]
display(curves({"this notebook": history, "tinygpt train": theirs}))
measured = json.loads(tinygpt("eval", "--ckpt", "out/last.pt", "--json", "--device=cpu"))["loss"]
print(f"the whole validation text: {final_loss:.3f} here, {measured:.3f} there")
assert abs(final_loss - measured) < 0.05
print(f"all of it took {(time.time() - started) / 60:.1f} minutes")

# %% [markdown]
# **Question.** Where would you look first if the two curves did *not* lie on each other?
#
# <details><summary>Answer</summary>
#
# At step 0: both must begin at ln 65, or the initial weights differ. Then at the first 100 steps: the learning rate. Then at
# the distance between training and validation: dropout, weight decay, the split. The gradient's length tells the rest.
# </details>
#
# Next: `tinygpt exercise list`, to write all of this yourself and have it checked; `configs/shakespeare_char_fast.yaml`,
# which reaches the same loss in 210 iterations instead of 2,000 and explains why.
