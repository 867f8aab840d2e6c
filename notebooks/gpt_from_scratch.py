# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # GPT from an empty file
#
# You build a GPT one idea at a time. Each idea gets the same short training, so you see how much it lowers the loss.
# Then you train the whole model, teach it a task, watch it fail, and compare it with the alternatives: when do you
# retrieve documents, when do you fine-tune, and when do you train a model of your own?
#
# All cells run from top to bottom in five and a half minutes on two processor cores, without a network once tinygpt is
# installed. Every number that you see is computed here: change something and run it again. Each part ends with a
# picture of *your* run and a question; a click on "Answer" opens its answer.
#
# - **Short path** (about 4,200 words, 21 minutes of reading without the code): parts 1, 2, 3, 4, 5, 6, 7, 10, 12, 13,
#   15, 17, 19, 20 and 21.
# - **Full path**: all parts. Below each heading you see which path it belongs to.
#
# Run all cells in either case: the short path uses code of the other parts.
#
# Choose the text in the next cell: `CORPUS = "shakespeare"`, or `"naics"` for descriptions of industries by the United
# States Census Bureau. If tinygpt is not installed, the cell installs it from the clone that contains this notebook.

# %%
CORPUS = "shakespeare"  # or "naics"

import importlib.util
import subprocess
import sys
from pathlib import Path

found = importlib.util.find_spec("tinygpt")
if found is None or found.origin is None:  # not installed (a folder named tinygpt has no origin)
    here = Path.cwd()
    clones = [folder for folder in (here, *here.parents, here / "tinygpt") if (folder / "pyproject.toml").exists()]
    if not clones:
        sys.exit("tinygpt is not installed: open this notebook inside a clone of tinygpt, then run this cell again.")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"{clones[0]}[report]"], check=True)
    importlib.invalidate_caches()

# %% [markdown]
# The next cell loads the text, which ships with tinygpt. You build the rest yourself, until part 20 uses tinygpt's
# search and part 22 compares your model with tinygpt's.

# %%
import copy
import html
import json
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from IPython.display import HTML, display

from tinygpt.data.corpora import industry_descriptions, tiny_shakespeare

started = time.time()
torch.set_num_threads(max(1, min(8, torch.get_num_threads())))
colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"]  # Okabe & Ito: also for colour-blind readers
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "figure.dpi": 100})
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=colours)

# For each text: what loads it, a line to cut into tokens, a short phrase for pictures of attention, a start for samples,
# and a character that the text hardly uses (part 17 needs one).
load_text, line, phrase, start, SEPARATOR = {
    "shakespeare": (tiny_shakespeare, "Speak, I charge thee, speak!", "speak, speak", "ROMEO:\nWhat, shall I h", "$"),
    "naics": (
        industry_descriptions,
        "fish markets and meat markets",
        "fish markets",
        "This industry comprises establishments primarily engaged in ",
        "%",
    ),
}[CORPUS]
folder = Path(tempfile.mkdtemp())
text = load_text()
print(f"{len(text):,} characters")
print(text[:170])


def show(description: str) -> None:
    """Show the current figure, with a description for readers who cannot see it."""
    display(plt.gcf(), metadata={"image/png": {"alt": description}})
    plt.close()


# %% [markdown]
# ## 1. Three tools: vectors, softmax, gradient
# *Short path.*
#
# 1. A **vector** is a list of numbers, such as the three ratios of a company: (margin, growth, debt).
# 2. The model turns each character into a vector. The numbers are not chosen by hand; training finds them.
# 3. The **dot product** of two vectors multiplies them number by number and adds: (1, 2) · (3, 4) = 1×3 + 2×4 = 11.
# 4. It is large if two vectors point in the same direction, 0 at a right angle, negative if they oppose each other.
# 5. So a dot product measures how well two things match. Attention (part 6) is built on this.
# 6. A model gives **scores**, which may be any numbers. **Softmax** turns them into probabilities: take e (about
#    2.718) to the power of each score, then divide by the sum. The results are positive and add up to 1.
# 7. A **loss** says how bad a prediction was: −ln p, where p is the probability of what really happened and ln is the
#    natural logarithm. Certain and right costs 0, p = 50% costs 0.69, p = 1% costs 4.61. The unit is the nat.
# 8. The **gradient** says, for each parameter, how much the loss changes if this parameter grows a little.
# 9. **Training** moves each parameter a small step against its gradient: the gradient times a small number, the
#    **learning rate**.
# 10. Repeat this hundreds or thousands of times, each time with other examples: that is all training is.

# %%
a, b, c = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0]), torch.tensor([-1.0, 3.0])
print(f"a · b = {a @ b:.0f} (similar directions), a · c = {a @ c:.0f} (a right angle)")
scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
p = scores.exp() / scores.exp().sum()
assert torch.allclose(p, scores.softmax(0)) and abs(p.sum() - 1) < 1e-6
print("softmax of", scores.tolist(), "is", [round(x, 2) for x in p.tolist()])

w, path = torch.tensor(-1.5, requires_grad=True), []  # one parameter; its loss is (w - 1)²
for _ in range(12):
    loss = (w - 1) ** 2
    path.append((w.item(), loss.item()))
    loss.backward()  # puts the gradient into w.grad
    with torch.no_grad():
        w -= 0.15 * w.grad  # 0.15: the learning rate
        w.grad = None
print(f"after 12 steps w = {w.item():.2f}; the loss is lowest at w = 1")
assert abs(w.item() - 1) < 0.1

figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
for vector, name, colour in ((a, "a", colours[0]), (b, "b", colours[1]), (c, "c", colours[2])):
    axes[0].annotate("", vector.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2})
    axes[0].text(*(1.1 * vector).tolist(), name, color=colour, fontsize=12, ha="center", va="center")
axes[0].set(xlim=(-2, 4), ylim=(-0.5, 4), aspect="equal", title="vectors: a and b match, a and c do not")
axes[1].bar(range(4), p, tick_label=[f"{score:g}" for score in scores.tolist()])
axes[1].set(title="softmax: scores become probabilities", xlabel="score", ylabel="probability", ylim=(0, 1))
grid = np.linspace(-2, 3.5, 50)
axes[2].plot(grid, (grid - 1) ** 2, color=colours[4])
axes[2].plot(*zip(*path), "o-", color=colours[1], markersize=4)
axes[2].set(title="gradient: step by step downhill", xlabel="parameter w", ylabel="loss")
show("Three panels: three vectors as arrows; four bars of a softmax; steps down a curve of the loss.")

# %% [markdown]
# **Question.** You add 10 to all four scores. What happens to the probabilities?
#
# <details><summary>Answer</summary>
#
# Nothing. Each e^score becomes e¹⁰ times as large, and so does their sum. Only differences between scores count.
# </details>
#
# **Exercise.** Replace the learning rate 0.15 by 1.05 and run the cell again.
#
# <details><summary>Answer</summary>
#
# Each step jumps over the minimum and lands farther away than before: w goes from −1.5 to 3.75, then to −2.0, and after
# 12 steps it is at −6.8. The assert fails. Too large a learning rate makes the loss grow instead of fall.
# </details>

# %% [markdown]
# ## 2. Text to numbers, and back
# *Short path* (byte-pair encoding, the second half, belongs to the full path).
#
# A network computes with numbers. The unit of text that it reads is a **token**; here each character is a token. The
# list of all tokens is the **vocabulary**, and **V** is its size. A character's number, its id, is its place in the
# list.

# %%
vocabulary = sorted(set(text))
V = len(vocabulary)
id_of = {character: i for i, character in enumerate(vocabulary)}


def encode(text: str) -> list[int]:
    return [id_of[character] for character in text]


def decode(ids) -> str:
    return "".join(vocabulary[int(i)] for i in ids)


print(f"V = {V}:", "".join(vocabulary[1:]))
print(line, "→", encode(line))
assert decode(encode(text)) == text

# %% [markdown]
# Large models use longer tokens. **Byte-pair encoding** (Sennrich et al. 2016) starts with characters and repeatedly
# merges the most frequent pair of neighbours into a new token, so frequent words become one token. (The middle row of
# the picture shows bytes, the numbers in which a computer stores text: 256 of them suffice for all languages.)


# %%
def merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Replace each occurrence of the pair in a word by one token."""
    if pair[0] not in word:
        return word
    out = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return tuple(out)


def learn_merges(text: str, count: int) -> list[tuple[tuple[str, str], int, int]]:
    """Merges in order: the pair, how often it occurred, and the number of tokens of the text after it.

    A word keeps the space before it; pairs are counted within words.
    """
    words = Counter(tuple(word) for word in text.replace(" ", "\n ").split("\n") if word)
    learned = []
    for _ in range(count):
        pairs = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        pair, occurred = pairs.most_common(1)[0]
        words = Counter({merge(word, pair): times for word, times in words.items()})
        learned.append((pair, occurred, sum(len(word) * times for word, times in words.items())))
    return learned


def cut_into_tokens(text: str, merges: list[tuple[str, str]]) -> list[str]:
    """Apply the merges, in their order, to each word of a line."""
    found = []
    for word in text.replace(" ", "\n ").split("\n"):
        tokens = tuple(word)
        for pair in merges:
            tokens = merge(tokens, pair)
        found += tokens
    return found


learned = learn_merges(text[:150_000], 250)
merges = [pair for pair, _, _ in learned]
print("ten merges, how often each pair occurred, and the tokens of 150,000 characters after it (without line ends):")
for (left, right), occurred, total in learned[:10]:
    print(f"{left!r:>6} + {right!r:5} {occurred:6,} times → {total:,} tokens")
print("the line after them:", "|".join(cut_into_tokens(line, merges[:10])))
pieces = cut_into_tokens(line, merges)


def visible(text: str) -> str:
    """Show spaces and line ends."""
    return text.replace(" ", "␣").replace("\n", "⏎")


def boxes(ax, parts: list[str], title: str) -> None:
    """Draw the tokens of a line as boxes."""
    widths = [max(1, len(part)) for part in parts]
    for i, (part, width) in enumerate(zip(parts, widths)):
        x = sum(widths[:i])
        ax.add_patch(plt.Rectangle((x, 0), width, 1, facecolor=plt.cm.Pastel1(i % 9), edgecolor="white"))
        ax.text(x + width / 2, 0.5, visible(part), ha="center", va="center", family="monospace", fontsize=9)
    ax.set(xlim=(0, sum(widths)), ylim=(0, 1), title=title)
    ax.axis("off")


figure, axes = plt.subplots(3, 1, figsize=(10, 2.8), layout="constrained")
boxes(axes[0], list(line), f"characters: {len(line)} tokens, a vocabulary of {V}")
boxes(axes[1], [f"{byte:02x}" for byte in line.encode()], f"bytes: {len(line.encode())} tokens, a vocabulary of 256")
boxes(axes[2], pieces, f"byte pairs, {len(merges)} merges: {len(pieces)} tokens, a vocabulary of {V + len(merges)}")
show(f"One line cut into {len(line)} characters, as many bytes, and {len(pieces)} tokens of byte-pair encoding.")
assert "".join(pieces) == line and len(pieces) < len(line)

# %% [markdown]
# A library does the same, thousands of merges in a second. It starts with the 256 bytes instead of characters and also
# cuts a text between letters and punctuation, but the first merges are the same.

# %%
if importlib.util.find_spec("tokenizers"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # words, as in GPT-2
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + 250, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([text[:150_000]], trainer)
    print("the library's merges:", [library.decode([i]) for i in range(256, 266)])
    print("the line:", "|".join(library.decode([i]) for i in library.encode(line).ids))
    assert [library.decode([i]) for i in range(256, 266)] == ["".join(pair) for pair in merges[:10]]
else:
    print('not installed: pip install "tinygpt[pretrained]"')

# %% [markdown]
# **Question.** Byte-pair encoding makes the line shorter. Why does this notebook use characters all the same?
#
# <details><summary>Answer</summary>
#
# The vocabulary is part of the model: each token has a vector of its own. GPT-2's 50,257 tokens, with 128 numbers each,
# would be 6.4 million parameters, eight times the whole model of part 13. Most of these tokens would occur a few times
# in a million characters, too rarely to learn from.
# </details>
#
# **Exercise.** Each merge makes the text shorter. How much shorter do merges 1 to 10 make it, and merges 241 to 250?
# When would you stop?
#
# <details><summary>Answer</summary>
#
# `learned[9][2]` and `learned[239][2] - learned[249][2]` show it: of Shakespeare's text, the first ten merges remove
# 18,000 tokens, the last ten 750. A merge also adds a token, which needs a vector and examples to learn it from. So
# small texts get small vocabularies: `tinygpt prepare mine --input notes.txt --tokenizer=bpe --vocab_size=512`.
# </details>

# %% [markdown]
# ## 3. Batches, and an honest split
# *Short path.*
#
# The model reads a **window** of **T** characters, and predicts the next character at each position. So the target
# `y` is the input `x` shifted by one, and one window gives T predictions to learn from. **B** windows together are a
# **batch**.
#
# The last tenth of the text is kept for **validation**: the model never trains on it, so the loss there measures what
# it has learned rather than memorised. The text is split **before** any window is drawn.

# %%
data = torch.tensor(encode(text))
cut = int(0.9 * len(data))
train_data, val_data = data[:cut], data[cut:]
T, B = 64, 12


def get_batch(data, generator, B=B, T=T):
    """x, y (B, T): windows at random places, and the same windows one character later."""
    starts = torch.randint(len(data) - T, (B, 1), generator=generator)
    windows = data[starts + torch.arange(T + 1)]
    return windows[:, :-1], windows[:, 1:]


x, y = get_batch(train_data, torch.Generator().manual_seed(1), 4, 16)
figure, axes = plt.subplots(1, 2, figsize=(10, 2), layout="constrained")
for ax, part, name in zip(axes, (x, y), ("x: what the model reads", "y: what it must predict, at each position")):
    ax.imshow(part, cmap="Pastel2", aspect="auto")
    for (b, t), i in np.ndenumerate(part.numpy()):
        ax.text(t, b, visible(decode([i])), ha="center", va="center", family="monospace")
    ax.set(title=name, xticks=[], yticks=range(4), ylabel="window")
show("Four windows of sixteen characters, and the same windows shifted by one character.")
assert torch.equal(x[:, 1:], y[:, :-1])

# The mistake to avoid: draw the windows first, then divide them at random.
shuffled = torch.randperm(len(data) - T, generator=torch.Generator().manual_seed(1)).tolist()
ninety = int(0.9 * len(shuffled))
in_training = np.zeros(len(shuffled), dtype=bool)
in_training[shuffled[:ninety]] = True
covered = np.mean([in_training[max(0, i - 8) : i + 9].any() for i in shuffled[ninety:][:2000]])
print(f"validation windows that differ from a training window by at most 8 characters: {100 * covered:.0f}%")
assert covered > 0.99

# %% [markdown]
# **Question.** What would the validation loss tell you if the windows were divided at random?
#
# <details><summary>Answer</summary>
#
# Almost nothing: it would be close to the training loss, whatever happens. The model has read each validation window
# in training, shifted by a few characters. A model that has memorised the text would look perfect. This is data
# leakage. Part 17 shows a less obvious kind.
# </details>

# %% [markdown]
# ## 4. The first model: a bigram table
# *Short path.*
#
# Predict the next character from the last one alone. The model is a table: a row of V scores for each character.
# These scores are called **logits**; softmax turns them into probabilities; the loss is the mean of −ln p, the
# **cross-entropy**. (In the code, `idx` holds ids in the shape (B, T), and the logits have the shape (B, T, V).)
#
# Before training, all characters are equally probable (p = 1 / V), so the loss is ln V. For this model there is also
# an exact answer: count how often each character follows each other one. Training must come close to these
# frequencies. (The optimizer that moves the parameters is AdamW; part 13 says what it does.)


# %%
class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, V)
        nn.init.zeros_(self.table.weight)

    def forward(self, idx):
        return self.table(idx)  # (B, T) to (B, T, V)


def loss_of(model, x, y):
    """The mean of −ln p. (In part 17, -1 marks positions without a target, which do not count.)"""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1)


@torch.no_grad()
def val_loss(model) -> float:
    """The mean loss on the whole validation text, in nats per character."""
    model.eval()
    count = (len(val_data) - 1) // T
    x, y = val_data[: count * T].view(count, T), val_data[1 : count * T + 1].view(count, T)
    return sum(loss_of(model, a, b).item() * len(a) for a, b in zip(x.split(256), y.split(256))) / count


def train_briefly(model, steps=400, lr=3e-3, batch_size=B):
    """Train, and return the losses. The learning rate rises for 50 steps, then falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0)
    generator, losses = torch.Generator().manual_seed(1), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 50) * (1 - step / steps)
        loss = loss_of(model, *get_batch(train_data, generator, batch_size))  # predict and measure
        optimizer.zero_grad()
        loss.backward()  # find the gradient
        optimizer.step()  # move each parameter a little against it
        losses.append(loss.item())
    return losses


@torch.no_grad()
def sample(model, count=150, seed=1) -> str:
    """Draw one character after the other from the model's probabilities."""
    model.eval()
    generator, idx = torch.Generator().manual_seed(seed), torch.tensor([encode("\n")])
    for _ in range(count):
        p = model(idx[:, -T:])[:, -1].softmax(-1)
        idx = torch.cat((idx, torch.multinomial(p, 1, generator=generator)), 1)
    return decode(idx[0, 1:])


counts = torch.zeros(V, V)
counts.index_put_((train_data[:-1], train_data[1:]), torch.tensor(1.0), accumulate=True)
frequencies = (counts + 1) / (counts + 1).sum(1, keepdim=True)  # add one: no pair is impossible
counted_loss = -frequencies[val_data[:-1], val_data[1:]].log().mean().item()
# (`tinygpt eval` smooths the counts in another way, so its bigram baseline differs by about 0.01.)

logits, target = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([1])
by_hand = -(logits[0].exp() / logits.exp().sum())[1].log()  # −ln of the softmax at the target
assert torch.allclose(by_hand, F.cross_entropy(logits, target))

bigram = Bigram()
first_loss = val_loss(bigram)
train_briefly(bigram, steps=1500, lr=0.1, batch_size=32)
bigram_loss = val_loss(bigram)
print(f"untrained {first_loss:.4f} (ln {V} = {math.log(V):.4f}), trained {bigram_loss:.4f}, counted {counted_loss:.4f}")
assert abs(first_loss - math.log(V)) < 1e-3
assert abs(bigram_loss - counted_loss) < 0.03

figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
tables = {"counted": frequencies, "trained": bigram.table.weight.detach().softmax(1)}
for ax, (name, chances) in zip(axes, tables.items()):
    picture = ax.imshow(chances.clamp(min=1e-4).log10(), cmap="viridis", vmin=-4, vmax=0)
    ticks = [id_of[character] for character in "\nAMTaeiot"]
    ax.set_xticks(ticks, list("⏎AMTaeiot"))
    ax.set_yticks(ticks, list("⏎AMTaeiot"))
    ax.set(title=name, xlabel="next character", ylabel="last character")
bar = figure.colorbar(picture, ax=axes, shrink=0.8, ticks=[-4, -3, -2, -1, 0], label="probability")
bar.ax.set_yticklabels(["0.01%", "0.1%", "1%", "10%", "100%"])
show("Probabilities of the next character given the last one, counted and trained: alike, except for rare characters.")
print(sample(bigram))

# %% [markdown]
# The tables agree in the rows of frequent characters. The rows of rare characters differ: counting adds one to every
# pair, while training moves pairs that it never sees towards 0. These rows hardly weigh in the loss.
#
# **Question.** Training ends where counting does. What is gained by training, then?
#
# <details><summary>Answer</summary>
#
# For this table, nothing. But a table for the last two characters has V × V rows, one for the last ten V¹⁰, and most
# rows would never be seen. A network shares what it learns between contexts that are alike, and the same code trains
# it.
# </details>
#
# **Exercise.** In `train_briefly(bigram, ...)`, reduce 1500 steps to 15. What do you see?
#
# <details><summary>Answer</summary>
#
# The loss is 4.06 on Shakespeare: hardly below ln V, and the table on the right is nearly uniform. The assert fails:
# it compares the trained loss with the counted one, and notices that the training was not finished.
# </details>

# %% [markdown]
# ## 5. More than one character: average the past
# *Short path.*
#
# The bigram table uses only the last character. To use more, each position must collect information from the earlier
# ones. The simplest way: take the mean of all vectors so far. Each character gets a vector of **C** numbers (its
# **embedding**; C is the number of channels), so a window is a table of the shape (T, C). First as a loop:

# %%
C = 64
torch.manual_seed(1)
vectors = torch.randn(8, C)  # 8 positions, a vector each
by_loop = torch.zeros(8, C)
for t in range(8):
    by_loop[t] = vectors[: t + 1].mean(0)  # position t sees positions 0 to t, never a later one

# %% [markdown]
# Then the same as a product of matrices. Row t of `weights` says how much position t takes from each position. Zeros
# above the diagonal make the model **causal**: it must not look at the characters that it has to predict.

# %%
weights = torch.ones(8, 8).tril()  # 1 on and below the diagonal, 0 above
weights = weights / weights.sum(1, keepdim=True)  # each row adds up to 1
assert torch.allclose(weights @ vectors, by_loop, atol=1e-6)


class AveragePast(nn.Module):
    def forward(self, x):  # (B, T, C) to (B, T, C)
        T = x.shape[1]
        weights = torch.ones(T, T).tril()
        return weights / weights.sum(1, keepdim=True) @ x


class Model(nn.Module):
    """Characters become vectors, `core` works on them, and each result becomes V logits."""

    def __init__(self, core):
        super().__init__()
        self.embedding, self.core, self.to_logits = nn.Embedding(V, C), core, nn.Linear(C, V, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, idx):
        return self.to_logits(self.core(self.embedding(idx)))


def num_params(model) -> int:
    return sum(weight.numel() for weight in model.parameters())


ideas = {"bigram table": (num_params(bigram), bigram_loss, sample(bigram, 60))}


def try_idea(idea: str, make_model):
    """Train a model with one more idea: each gets the same short training, with the same batches."""
    torch.manual_seed(1)
    model = make_model()
    losses = train_briefly(model)
    ideas[idea] = num_params(model), val_loss(model), sample(model, 60)  # a second run replaces the row
    print(f"{idea}: loss {idea_loss(idea):.2f}, the bigram's is {bigram_loss:.2f}, {num_params(model):,} parameters")
    print("   writes:", visible(ideas[idea][2]))
    return model, losses


def idea_loss(idea: str) -> float:
    return ideas[idea][1]


averaging, _ = try_idea("average of the past", lambda: Model(AveragePast()))

figure, ax = plt.subplots(figsize=(5.6, 4), layout="constrained")
ax.imshow(weights, cmap="Blues", vmin=0, vmax=1)
for (t, s), weight in np.ndenumerate(weights.numpy()):
    ax.text(
        s,
        t,
        f"{weight:.2f}" if weight else "0",
        ha="center",
        va="center",
        color="w" if weight > 0.6 else "k",
        fontsize=8,
    )
ax.set(title="weights of the average", xlabel="position that is looked at", ylabel="position that looks")
show("A triangle of weights: row t has t + 1 equal weights, and zeros to the right of the diagonal.")
average_loss = idea_loss("average of the past")
assert average_loss > bigram_loss + 0.2

# %% [markdown]
# The average is *worse* than the bigram table, although it sees more. It gives the last character, which matters
# most, no more weight than each of up to 63 others.
#
# **Question.** Which words can a model not tell apart if it sees only an average?
#
# <details><summary>Answer</summary>
#
# Words with the same letters in another order, such as *on* and *no*. A mean has no order. Part 12 adds positions.
# </details>

# %% [markdown]
# ## 6. Attention without parameters
# *Short path.*
#
# A better average takes more from positions that matter. But which are these? The vectors themselves can tell: the
# dot product of two vectors says how well they match (part 1). Softmax turns the scores of a row into weights. What
# lies in the future gets the score **−∞** (minus infinity) before softmax: e^−∞ is 0, so its weight is exactly 0.
# This is the **causal mask**.


# %%
MASK = True  # only the exercise of part 12 removes the mask


def causal_softmax(scores):
    """scores (..., T, T) to weights: no position looks at a later one, and each row adds up to 1."""
    T = scores.shape[-1]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)  # True above the diagonal
    if MASK:
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1)


class PlainAttention(nn.Module):
    def forward(self, x):
        scores = x @ x.transpose(1, 2) / math.sqrt(x.shape[2])  # (B, T, T); part 7 explains the square root
        self.weights = causal_softmax(scores)  # kept, to draw it
        return self.weights @ x


# With equal scores it is the average of part 5.
equal = causal_softmax(torch.zeros(8, 8))
assert torch.allclose(equal, weights)
plain, _ = try_idea("attention without parameters", lambda: Model(PlainAttention()))


def show_weights(ax, picture):
    """Attention weights (T, T) of the phrase. A row is the position that looks."""
    ax.set_xticks(range(len(phrase)), visible(phrase), fontsize=8)
    ax.set_yticks(range(len(phrase)), visible(phrase), fontsize=8)
    return ax.imshow(picture, cmap="viridis", vmin=0, vmax=0.5)


def draw_weights(pictures, titles):
    figure, axes = plt.subplots(1, len(pictures), figsize=(11, 3.1), layout="constrained")
    for ax, picture, title in zip(axes, pictures, titles):
        image = show_weights(ax, picture)
        ax.set_title(title)
    axes[0].set(xlabel="position that is looked at", ylabel="position that looks")
    figure.colorbar(image, ax=axes, shrink=0.8, extend="max", label="weight")


with torch.no_grad():
    plain(torch.tensor([encode(phrase)]))
draw_weights([causal_softmax(torch.zeros(len(phrase), len(phrase))), plain.core.weights[0]], ["average", "attention"])
show("Two triangles of weights for one phrase: equal weights, and weights that differ by character.")
assert idea_loss("attention without parameters") > bigram_loss + 0.2

# %% [markdown]
# Not much is gained: a vector looks for vectors that resemble it, so an *e* looks at other *e*s. That is seldom what
# the next character depends on.
#
# **Question.** Each row of weights adds up to 1. Why is that useful?
#
# <details><summary>Answer</summary>
#
# The result is then a weighted mean. It has about the same size, whether a position sees three characters or sixty.
# </details>

# %% [markdown]
# ## 7. One head: query, key and value
# *Short path.*
#
# What a position looks for differs from what it contains. So each position computes three vectors from its own
# vector, each with a matrix that training finds (Vaswani et al. 2017):
#
# - the **query** q: what does this position look for?
# - the **key** k: what does it offer to positions that look?
# - the **value** v: what does it pass on to a position that looks at it?
#
# The weight depends on the query of the position that looks, and on the key of the position that is looked at. One such
# unit is a **head**. First with loops, for 8 positions; `size` is the number of channels of q, k and v:

# %%
size = 16
torch.manual_seed(2)
Wq, Wk, Wv = (torch.randn(C, size) / math.sqrt(C) for _ in range(3))
q, k, v = vectors @ Wq, vectors @ Wk, vectors @ Wv  # (8, size) each

head_by_loop = torch.zeros(8, size)
for t in range(8):  # the position that looks
    scores = [float(q[t] @ k[s]) / math.sqrt(size) for s in range(t + 1)]  # only the past, and itself
    total = sum(math.exp(score) for score in scores)
    for s in range(t + 1):  # the position that is looked at
        head_by_loop[t] += math.exp(scores[s]) / total * v[s]


class Head(nn.Module):
    """The same as three products of matrices."""

    def __init__(self, size=C):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(C, size, bias=False) for _ in range(3))

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, size)
        self.weights = causal_softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]))
        return self.weights @ v


head = Head(size)
for linear, matrix in ((head.query, Wq), (head.key, Wk), (head.value, Wv)):
    linear.weight.data = matrix.T
by_matrix = head(vectors[None])[0]
print("loops and matrices agree:", torch.allclose(by_matrix, head_by_loop, atol=1e-5))
assert torch.allclose(by_matrix, head_by_loop, atol=1e-5)

# %% [markdown]
# **Why divide by √size?** The typical size of the dot product of two vectors of independent random numbers grows like
# √size. Without the division, large vectors give large scores, the largest takes nearly all the weight, and the
# gradient of the others vanishes. The right panel shows it for random vectors.

# %%
one_head, _ = try_idea("one head", lambda: Model(Head()))

sizes, largest = [4, 16, 64, 256], {"divided by √size": [], "not divided": []}
for name, row in largest.items():
    for d in sizes:
        scores = (torch.randn(500, 1, d) * torch.randn(500, 16, d)).sum(-1) / (d**0.5 if name[:3] == "div" else 1)
        row.append(scores.softmax(-1).max(-1).values.mean().item())
with torch.no_grad():
    one_head(torch.tensor([encode(phrase)]))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
image = show_weights(axes[0], one_head.core.weights[0])
figure.colorbar(image, ax=axes[0], shrink=0.8, extend="max", label="weight")
axes[0].set(title="weights of the trained head", xlabel="position that is looked at", ylabel="position that looks")
for (name, row), mark in zip(largest.items(), "os"):
    axes[1].plot(sizes, row, f"{mark}-", label=name)
axes[1].set(xscale="log", title="largest of 16 weights, random vectors", xlabel="size", ylim=(0, 1))
axes[1].set_xticks(sizes, sizes)
axes[1].minorticks_off()
axes[1].legend(frameon=False)
show("Left: the weights of a trained head. Right: without the division the largest weight approaches 1.")
assert largest["not divided"][-1] > 0.8 > 0.4 > largest["divided by √size"][-1]
assert bigram_loss + 0.1 < idea_loss("one head") < average_loss - 0.2

# %% [markdown]
# Much better than the average: queries and keys let a position look for what it needs. It still does not reach the
# bigram table. To know the last character, a head has to give most of its weight to its own position, and little is
# left for the others; part 10 solves this.
#
# **Question.** Position 4 predicts character 5. Which key may it see: that of character 4, or that of character 5?
#
# <details><summary>Answer</summary>
#
# That of character 4, its own, and all earlier ones. Character 5 is what it must predict; the mask gives it the
# weight 0.
# </details>

# %% [markdown]
# ## 8. Several heads
# *Full path.*
#
# One head takes one weighted mean. A position may need several things at once: the last vowel, the last space, the
# first letter of the word. So several heads work side by side, each with its own queries, keys and values of C / 4
# channels. Their results are put next to each other, and a last matrix (the **projection**) mixes them.


# %%
class MultiHead(nn.Module):
    def __init__(self, n_head=4, kind=Head):
        super().__init__()
        self.heads = nn.ModuleList(kind(C // n_head) for _ in range(n_head))
        self.projection = nn.Linear(C, C, bias=False)

    def forward(self, x):
        return self.projection(torch.cat([head(x) for head in self.heads], -1))


four_heads, _ = try_idea("four heads", lambda: Model(MultiHead()))
with torch.no_grad():
    four_heads(torch.tensor([encode(phrase)]))
draw_weights([head.weights[0] for head in four_heads.core.heads], [f"head {i}" for i in range(4)])
show("The attention weights of four heads on one phrase; each head looks at other characters.")
assert abs(idea_loss("four heads") - idea_loss("one head")) < 0.2

# %% [markdown]
# At this size four heads are worth hardly more than one: the loss changes by less than 0.2. Without positions, the
# heads cannot ask for "the character before me", so dividing the work among several heads gains little.
#
# **Question.** Four heads of 16 channels: how many more parameters is that than one head of 64 channels?
#
# <details><summary>Answer</summary>
#
# None in queries, keys and values: 4 × 3 × 64 × 16 = 3 × 64 × 64. Only the projection is new, with 64 × 64.
# </details>

# %% [markdown]
# ## 9. A block: attention and an MLP
# *Full path.*
#
# Attention moves information between positions, but it only takes means. An **MLP** (multi-layer perceptron) computes
# with the collected information, at each position separately: a matrix to four times the channels, a nonlinear
# function, and a matrix back. The nonlinear function is essential: without it, the two matrices would equal a single
# one. **GELU** (Hendrycks & Gimpel 2016) is close to 0 for negative inputs, and lets positive ones pass.


# %%
class MLP(nn.Module):
    def __init__(self, C=C):
        super().__init__()
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


block, block_losses = try_idea("block: heads and MLP", lambda: Model(nn.Sequential(MultiHead(), MLP())))


def draw_ideas(ax) -> None:
    """The loss with each idea, and the bigram's as a line."""
    bars = ax.barh(list(ideas), [loss for _, loss, _ in ideas.values()], color=colours[0])
    ax.axvline(bigram_loss, color=colours[1], linestyle="--")
    ax.bar_label(bars, fmt="%.2f", padding=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set(title="validation loss, nats per character (dashed: bigram)")


figure, axes = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained", width_ratios=(1, 2))
grid = torch.linspace(-4, 4, 100)
axes[0].plot(grid, F.gelu(grid))
axes[0].set(title="GELU: a nonlinear function", xlabel="input", ylabel="output")
draw_ideas(axes[1])
show("Left: the curve of GELU. Right: bars of the loss with each idea so far.")
assert abs(idea_loss("block: heads and MLP") - idea_loss("four heads")) < 0.2

# %% [markdown]
# The MLP hardly changes the loss here (by less than 0.2), although it more than doubles the parameters. The next part
# shows what is missing.
#
# **Question.** Could an MLP replace attention?
#
# <details><summary>Answer</summary>
#
# No. It works on each position by itself. Without attention the model knows the current character only, and the bigram
# table is the best it can reach.
# </details>

# %% [markdown]
# ## 10. Residuals, and depth
# *Short path.*
#
# (If you skipped parts 8 and 9: **several heads** attend at once, and a matrix mixes their results. An **MLP** then
# computes with each position's vector by itself: two matrices, with the nonlinear function GELU between them. Both
# together are a **block**; one block has about the same loss as one head.)
#
# Depth should help: a second block can work on what the first has found. First stack four blocks as they are. Then
# let each part *add* to its input instead of replacing it: x + part(x), a **residual connection** (He et al. 2016).
# The vector that runs through the model, to which each part adds, is the **residual stream**.


# %%
class Residual(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return x + self.part(x)


def stack(n_layer, wrap=None, kind=Head):
    """n_layer blocks of heads and an MLP, each part wrapped in a module such as Residual."""
    parts = []
    for _ in range(n_layer):
        for part in (MultiHead(kind=kind), MLP()):
            parts.append(wrap(part) if wrap else part)
    return nn.Sequential(*parts)


deep, deep_losses = try_idea("four blocks", lambda: Model(stack(4)))
residual, residual_losses = try_idea("four blocks with residuals", lambda: Model(stack(4, Residual)))


def smooth(losses, window=20):
    return np.convolve(losses, np.ones(window) / window, "valid")


figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
runs = {"one block": block_losses, "four blocks": deep_losses, "four blocks with residuals": residual_losses}
for (name, losses), style in zip(runs.items(), (":", "--", "-")):
    ax.plot(smooth(losses), style, label=name)
ax.axhline(bigram_loss, color=colours[4], linewidth=0.8)
ax.text(0, bigram_loss + 0.03, "bigram", color=colours[4])
ax.set(title="training loss (mean of 20 steps)", xlabel="step", ylabel="nats per character")
ax.legend(frameon=False)
show("Loss curves: four blocks without residuals stall high above the bigram, with residuals they fall below it.")
deep_loss, residual_loss = idea_loss("four blocks"), idea_loss("four blocks with residuals")
unigram = (counts.sum(1) + 1) / (counts.sum() + V)
unigram_loss = -unigram[val_data].log().mean().item()
print(f"if one knows only how frequent each character is: {unigram_loss:.2f}")
assert abs(deep_loss - unigram_loss) < 0.1
assert residual_loss < bigram_loss < deep_loss - 0.5

# %% [markdown]
# Four blocks without residuals stall: the model learns how frequent each character is, and nothing else. With
# residuals, the same blocks and the same number of parameters get below the bigram table, for two reasons. The last
# character is still in the stream, whatever attention adds. And the gradient has a direct path back to the first
# block; without residuals it has to pass through eight parts, each of which distorts it.
#
# **Question.** Which idea so far has the best ratio of gain to new parameters?
#
# <details><summary>Answer</summary>
#
# This one: the residual connection has no parameters at all.
# </details>
#
# **Exercise.** Use one block with residuals: `try_idea("one block with residuals", lambda: Model(stack(1, Residual)))`.
#
# <details><summary>Answer</summary>
#
# 2.5 on Shakespeare and 2.36 on the industries, compared with 2.8 without residuals: one block with residuals is as
# good as the bigram table. The gain of the other three blocks is only 0.1 to 0.2 as long as no position is known.
# </details>

# %% [markdown]
# ## 11. Norms
# *Full path.*
#
# Each part adds to the stream, so it grows, and each part must cope with inputs of every size. **Layer normalisation**
# (Ba et al. 2016) gives each part a copy of the stream that is shifted and scaled to mean 0 and variance 1; the stream
# itself stays as it is (*pre-norm*, as in GPT-2). A last norm comes before the logits.


# %%
class NormResidual(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.norm, self.part = nn.LayerNorm(C, bias=False), part

    def forward(self, x):
        return x + self.part(self.norm(x))


x = vectors - vectors.mean(1, keepdim=True)  # by hand: mean 0, then variance 1
assert torch.allclose(x / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt(), nn.LayerNorm(C)(vectors), atol=1e-5)


def normed_stack(n_layer, kind=Head):
    return nn.Sequential(*stack(n_layer, NormResidual, kind), nn.LayerNorm(C, bias=False))


normed, _ = try_idea("and norms", lambda: Model(normed_stack(4)))
norm_loss = idea_loss("and norms")

fast = {}
for name, core in (("without norms", lambda: stack(4, Residual)), ("with norms", lambda: normed_stack(4))):
    torch.manual_seed(1)
    hasty = Model(core())
    train_briefly(hasty, steps=200, lr=3e-2)  # ten times the learning rate, half the steps
    fast[name] = val_loss(hasty)
print("at ten times the learning rate:", {name: round(loss, 2) for name, loss in fast.items()})


@torch.no_grad()
def stream_sizes(model):
    """The standard deviation of the stream before the first part and after each part."""
    x = model.embedding(get_batch(val_data, torch.Generator().manual_seed(1))[0])
    sizes = [x.std().item()]
    for part in list(model.core)[:8]:
        x = part(x)
        sizes.append(x.std().item())
    return sizes


figure, axes = plt.subplots(1, 2, figsize=(10, 2.7), layout="constrained")
for blocks, name, mark in ((residual, "without norms", "o-"), (normed, "with norms", "s-")):
    axes[0].plot(stream_sizes(blocks), mark, label=name)
axes[0].set(title="size of the stream", xlabel="after this many parts", ylabel="standard deviation", ylim=(0, None))
axes[0].legend(frameon=False)
names = ["without norms", "with norms", "without norms,\n10 × learning rate", "with norms,\n10 × learning rate"]
losses = [residual_loss, norm_loss, *fast.values()]
bars = axes[1].barh(names, np.minimum(losses, 5), color=[colours[0], colours[1]] * 2)  # a bar ends at 5
axes[1].bar_label(bars, [f"{loss:.2f}" if loss < 5 else f"{loss:.1f} (bar cut)" for loss in losses], padding=3)
axes[1].invert_yaxis()
axes[1].margins(x=0.3)
axes[1].set(title="validation loss, nats per character")
show("Left: the stream grows from part to part. Right: the loss with and without norms, at two learning rates.")
assert norm_loss < residual_loss + 0.02 and residual_loss - norm_loss < 0.35
assert fast["with norms"] < bigram_loss + 0.3 and fast["without norms"] > math.log(V)  # worse than no training

# %% [markdown]
# With norms the stream grows sooner, after the first parts: each part reads a scaled copy, so a large stream does no
# harm, and nothing in the training keeps it small.
#
# With four blocks and a moderate learning rate, norms help less than residuals: the loss falls by less than 0.35.
# They matter when the learning rate is high: at ten times the learning rate the model without norms ends worse than
# before training (its loss is above ln V), while the model with norms learns. Norms also keep the training of deep
# models stable, so practically all large models have them.
#
# **Question.** The norm divides by the stream's size. Why does this not erase what the model has computed?
#
# <details><summary>Answer</summary>
#
# Only the copy that a part reads is normalised; the stream itself does not change. And the copy still shows which
# numbers are large compared with the others.
# </details>
#
# **Exercise.** Put the norm behind the part: `return self.norm(x + self.part(x))` (*post-norm*, as in the first
# transformer). How does the loss change?
#
# <details><summary>Answer</summary>
#
# Hardly at all: 2.33 instead of 2.35 on Shakespeare. With four blocks both work. In deep models the stream of
# post-norm is rescaled at each part, the direct path back for the gradient is lost, and training needs more care
# (Xiong et al. 2020).
# </details>

# %% [markdown]
# ## 12. Positions: learned, then rotary
# *Short path.*
#
# (If you skipped part 11: from here on, a **norm** before each part scales each position's vector to mean 0 and variance
# 1, which keeps the training stable.)
#
# So far no model knows the position of a character, because a weighted mean has no order. There are two methods:
#
# - **Learned positions** (GPT-2): a second table, with a vector for each of the T positions, added to the character's
#   vector.
# - **Rotary positions** (RoPE; Su et al. 2021): queries and keys are taken as pairs of numbers, and each pair is
#   turned by an angle that grows with the position. Each pair turns at its own speed, like the hands of a clock. If
#   query and key turn together, their dot product does not change; so the score depends only on the *distance*
#   between two positions.


# %%
class LearnedPositions(nn.Module):
    def __init__(self, core):
        super().__init__()
        self.positions, self.core = nn.Embedding(T, C), core
        nn.init.normal_(self.positions.weight, std=0.1)

    def forward(self, x):
        return self.core(x + self.positions.weight[: x.shape[1]])


def rotate(x, start: int = 0):
    """x (..., T, size): turn pair i at position t by the angle t / 10000^(2 i / size). The first position is `start`."""
    T, size = x.shape[-2:]
    angles = torch.arange(start, start + T)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    a, b = x[..., : size // 2], x[..., size // 2 :]  # pair i is (a[i], b[i])
    return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)


class RotaryHead(Head):
    def forward(self, x):
        q, k, v = rotate(self.query(x)), rotate(self.key(x)), self.value(x)
        self.weights = causal_softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]))
        return self.weights @ v


learned, _ = try_idea("and learned positions", lambda: Model(LearnedPositions(normed_stack(4))))
rotary, _ = try_idea("rotary positions instead", lambda: Model(normed_stack(4, RotaryHead)))

ones = rotate(torch.ones(T, 32))  # the same query and key at each position
figure, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for position, style in ((0, "-"), (20, "--"), (40, ":")):
    distances = np.arange(T) - position
    axes[0].plot(distances, ones @ ones[position], style, linewidth=4 - position / 15, label=f"query at {position}")
axes[0].set(title="rotary: q · k by distance", xlabel="position of the key minus that of the query")
axes[0].legend(frameon=False)
with torch.no_grad():
    rotary(torch.tensor([encode(phrase)]))
closest = max(
    (head for part in list(rotary.core)[:8:2] for head in part.part.heads),
    key=lambda head: head.weights[0].diagonal(-1).mean(),
)
show_weights(axes[1], closest.weights[0])
axes[1].set(title="the head that looks most at the previous character")
axes[1].set(xlabel="position that is looked at", ylabel="position that looks")
show("Left: three curves of q times k by distance coincide. Right: a head with a bright line below the diagonal.")
at_distance = [(ones[t + 5] @ ones[t]).item() for t in (0, 20, 40)]
assert max(at_distance) - min(at_distance) < 1e-3
since_residuals = ("four blocks with residuals", "and norms", "and learned positions", "rotary positions instead")
gains = [idea_loss(earlier) - idea_loss(later) for earlier, later in pairwise(since_residuals)]
rotary_loss = idea_loss("rotary positions instead")
assert gains[2] == max(gains) and gains[2] > 0.1 and rotary_loss < bigram_loss - 0.2
assert closest.weights[0].diagonal(-1).mean() > 0.3

# %% [markdown]
# Since the residuals, no idea has lowered the loss as much as rotary positions: a head can now ask for "the character
# before me", wherever that is. Learned positions help little or not at all in so short a training, because the model
# has to learn the same thing separately for each position. All ideas, each with the same training:


# %%
def table(head, rows) -> HTML:
    """A table for the page."""
    lines = ""
    for tag, row in (("th", head), *(("td", row) for row in rows)):
        cells = [f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row]
        lines += f"<tr>{''.join(cells)}</tr>"
    return HTML(f"<table>{lines}</table>")


rows = [(idea, f"{count:,}", f"{loss:.2f}", visible(text)) for idea, (count, loss, text) in ideas.items()]
display(table(("idea", "parameters", "validation loss", "sample"), rows))
figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
draw_ideas(ax)
show("Bars of the validation loss with each idea; the bigram's loss is a dashed line.")
assert rotary_loss == min(loss for _, loss, _ in ideas.values())

# %% [markdown]
# **Question.** The three curves on the left coincide. Why is this useful for text?
#
# <details><summary>Answer</summary>
#
# A window may begin anywhere. That *u* follows *q* is true at position 3 and at position 40. With rotary positions the
# model learns it once.
# </details>
#
# **Exercise.** Remove the causal mask of part 6. Copy this into a new cell below and run that cell alone:
#
# ```python
# MASK = False
# leak = Model(normed_stack(4, RotaryHead))
# train_briefly(leak)
# print(val_loss(leak), sample(leak))
# MASK = True
# ```
#
# <details><summary>Answer</summary>
#
# The loss is 0.04, on both texts. This looks excellent, but the model copies: it sees the next character at the next
# position. A loss that is too good to be true usually means a leak. When the model writes, there is no next character
# to copy, so its text hardly has a word. (Without positions, as in part 7, the model cannot know which position is the
# next one: removing the mask there gains nothing.)
# </details>

# %% [markdown]
# ## 13. The whole model, and its training
# *Short path.*
#
# Now everything together, twice as wide: 128 channels, four blocks, four heads. Four changes make it practical:
#
# - One product of matrices computes q, k and v of all heads, which is faster than a loop over heads.
# - The embedding and the last matrix share one table (Press & Wolf 2017).
# - All matrices start small (standard deviation 0.02), so that the first predictions are nearly uniform; those that
#   write into the stream start smaller still (GPT-2).
# - **Dropout** can set a random share of the numbers to zero in training, and divides the others by the share that
#   remains, so that their mean stays the same. It is off until part 14.


# %%
class Attention(nn.Module):
    """n_head rotary heads at once, of C / n_head channels each."""

    def __init__(self, C, n_head, dropout=0.0):
        super().__init__()
        self.n_head, self.dropout = n_head, nn.Dropout(dropout)
        self.qkv, self.projection = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)

    def split(self, x, start=0):
        """q, k, v, each (B, heads, T, size); x begins at position `start`."""
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        return rotate(q, start), rotate(k, start), v

    def join(self, heads):
        """(B, heads, T, size) to (B, T, C)"""
        return self.dropout(self.projection(heads.transpose(1, 2).flatten(2)))

    def forward(self, x):
        q, k, v = self.split(x)
        self.weights = causal_softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]))
        return self.join(self.dropout(self.weights) @ v)


class Block(nn.Module):
    def __init__(self, C, n_head, dropout):
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(C, bias=False), Attention(C, n_head, dropout)
        self.norm_2, self.mlp, self.dropout = nn.LayerNorm(C, bias=False), MLP(C), nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class GPT(nn.Module):
    def __init__(self, n_layer=4, n_head=4, C=128, dropout=0.0):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(V, C), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(C, n_head, dropout) for _ in range(n_layer))
        self.norm = nn.LayerNorm(C, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_stream = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layer) if into_stream else 0.02)

    def forward(self, idx):
        x = self.dropout(self.embedding(idx))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T  # one table to read and to write


# The fast attention computes the same as the heads of part 12.
slow, quick = MultiHead(kind=RotaryHead), Attention(C, 4)
thirds = [torch.cat([getattr(head, name).weight for head in slow.heads]) for name in ("query", "key", "value")]
quick.qkv.weight.data, quick.projection = torch.cat(thirds), slow.projection
assert torch.allclose(slow(vectors[None]), quick(vectors[None]), atol=1e-5)

width, depth = 128, 4  # channels, blocks
by_formula = {
    "embedding": V * width,
    "attention": depth * 4 * width**2,
    "MLP": depth * 8 * width**2,
    "norms": (2 * depth + 1) * width,
}
print(f"{num_params(GPT()):,} parameters:", by_formula)
assert sum(by_formula.values()) == num_params(GPT())

# %% [markdown]
# The training adds four methods that are usual for larger models to the few lines of part 4:
#
# - **AdamW** (Loshchilov & Hutter 2019) gives each parameter a step size of its own; **weight decay** pulls matrices
#   towards zero.
# - **Warm-up**: the first gradients are unreliable, so the learning rate rises from nearly 0 to its peak.
# - **Cosine decay**: then it falls along a cosine, so that the parameters settle.
# - **Gradient clipping**: a gradient whose length (*norm*) is above 1 is shortened to 1, so that one unusual batch
#   has less effect.


# %%
def learning_rate(step, steps, peak, warmup=100):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2)


@torch.no_grad()
def estimate(model, data, batches=10):
    model.eval()  # no dropout while we measure
    generator = torch.Generator().manual_seed(0)  # always the same windows
    return np.mean([loss_of(model, *get_batch(data, generator)).item() for _ in range(batches)])


def train(model, steps, data=train_data, peak=1e-3, every=100, keep=None):
    """Returns the history (step, training loss, validation loss) and the gradient norms; `keep` gets the best model."""
    matrices, vectors = ([w for w in model.parameters() if (w.dim() > 1) == two] for two in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)
    generator, history, norms = torch.Generator().manual_seed(1337), [], []
    for step in range(steps + 1):
        if step % every == 0:
            history.append((step, estimate(model, data), estimate(model, val_data)))
            if keep is not None and history[-1][2] == min(entry[2] for entry in history):
                keep.load_state_dict(model.state_dict())
        if step == steps:
            return history, norms
        model.train()
        loss = loss_of(model, *get_batch(data, generator))
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()


def draw_curves(ax, runs):
    """Validation loss as lines, training loss as thin dashes."""
    for (name, history), colour, mark in zip(runs.items(), colours, "os^v"):
        steps, train_losses, val_losses = zip(*history)
        ax.plot(steps, val_losses, f"{mark}-", color=colour, markersize=3, label=f"{name}: {val_losses[-1]:.2f}")
        ax.plot(steps, train_losses, "--", color=colour, linewidth=0.8)
    ax.set(title="loss: validation (line), training (dashes)", xlabel="step", ylabel="nats per character")
    ax.legend(frameon=False)


torch.manual_seed(1337)
model = GPT()
begun = time.time()
history, norms = train(model, 1000)
training_seconds = time.time() - begun
final_loss = val_loss(model)
print(f"{training_seconds:.0f} s; validation loss {final_loss:.3f}, bigram {bigram_loss:.3f}, perplexity e^loss:")
print(f"as uncertain as between {math.exp(final_loss):.1f} equally probable characters")
print(sample(model))
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained", width_ratios=(1.1, 1.3, 1))
axes[0].barh(list(by_formula), by_formula.values())
axes[0].set(title=f"{num_params(model):,} parameters")
axes[0].set_xticks([0, 200_000, 400_000], ["0", "200,000", "400,000"])
draw_curves(axes[1], {"GPT": history})
axes[1].axhline(bigram_loss, color=colours[4], linewidth=0.8)
axes[1].text(1000, bigram_loss + 0.03, "bigram", color=colours[4], ha="right")
axes[2].plot(norms, linewidth=0.5)
axes[2].set(title="gradient norm, before clipping", xlabel="step", yscale="log")
axes[2].set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
axes[2].minorticks_off()
show("Three panels: where the parameters are, the loss curves, and the length of the gradient during training.")
assert abs(history[0][2] - math.log(V)) < 0.15  # an untrained model finds all characters about equally probable
assert final_loss < bigram_loss - 0.4 and final_loss < rotary_loss

# %% [markdown]
# (The legend's loss is that of 120 windows, and the printed one that of the whole validation text, so they differ a
# little.) What does the model look at?

# %%
with torch.no_grad():
    model(torch.tensor([encode(phrase)]))
draw_weights(model.blocks[0].attention.weights[0], [f"first block, head {i}" for i in range(4)])
show("The attention weights of the four heads of the first block.")
draw_weights(model.blocks[3].attention.weights[0], [f"last block, head {i}" for i in range(4)])
show("The attention weights of the four heads of the last block.")

# %% [markdown]
# **Question.** The loss of the untrained model is ln V. What would you suspect if it were 15 instead?
#
# <details><summary>Answer</summary>
#
# The initial weights are too large: the untrained model is confident and wrong. It then needs its first steps to
# unlearn that.
# </details>

# %% [markdown]
# ## 14. Overfitting, provoked and cured
# *Full path.*
#
# Give a model of two blocks only 10,000 characters and a higher learning rate. It memorises them: the training loss
# keeps falling, the validation loss rises. That is **overfitting**. Three cures:
#
# - **Dropout** (Srivastava et al. 2014): set a fifth of the numbers to zero at random in each step.
# - **Early stopping**: keep the model with the best validation loss.
# - **More data**: here, all of the training text.

# %%
little = train_data[:10_000]
runs = {}
for name, dropout, part in (
    ("10,000 characters", 0, little),
    ("and dropout", 0.2, little),
    ("all of the text", 0, train_data),
):
    torch.manual_seed(1337)
    small, best = GPT(n_layer=2, dropout=dropout), GPT(n_layer=2)
    runs[name], _ = train(small, 400, part, peak=3e-3, every=50, keep=best)
    if name == "10,000 characters":
        stopped = best
overfit, dropped, more = runs.values()
least = min(entry[2] for entry in overfit)
print(f"10,000 characters: training loss {overfit[-1][1]:.2f}, validation loss {overfit[-1][2]:.2f}")
print(f"early stopping {least:.2f}, dropout {dropped[-1][2]:.2f}, all of the text {more[-1][2]:.2f}")
figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
draw_curves(ax, runs)
at = min(overfit, key=lambda entry: entry[2])
ax.annotate("early stopping", (at[0], at[2]), (at[0], at[2] + 0.9), ha="center", arrowprops={"arrowstyle": "->"})
ax.set(ylim=(0, None))
show("Loss curves: with little text the validation loss rises again; with dropout less; with all of the text it falls.")
assert overfit[-1][2] > least + 0.05 and overfit[-1][1] < overfit[-1][2] - 1
assert dropped[-1][2] < overfit[-1][2] - 0.05 and more[-1][2] < least - 0.3
assert abs(estimate(stopped, val_data) - least) < 1e-6

# %% [markdown]
# **Question.** Which cure makes the model *better*, and which only keep it from becoming worse?
#
# <details><summary>Answer</summary>
#
# Early stopping keeps the best model of this run, and dropout slows overfitting down. Only more text makes the model
# much better: it changes what there is to learn, and its curve is by far the lowest.
# </details>
#
# **Exercise.** Use 100,000 characters: `little = train_data[:100_000]`.
#
# <details><summary>Answer</summary>
#
# On Shakespeare the validation loss falls to the end, to 2.40, with a training loss of 1.78. The gap shows that the
# model has begun to memorise, but ten times as much text is enough that this does no harm within 400 steps.
# </details>

# %% [markdown]
# ## 15. Generation
# *Short path.*
#
# The model gives V probabilities. How to choose the next character from them is up to you:
#
# - **Temperature** divides the logits before softmax. Below 1, probable characters become more probable.
# - **Greedy decoding** always takes the most probable character (a temperature close to 0).
# - **Top-k** draws only from the k most probable characters.
# - **Top-p** draws only from the most probable ones that together reach the probability p (Holtzman et al. 2020).


# %%
def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """logits (V,) to the probabilities (V,) from which the next character is drawn."""
    logits = logits / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    p, order = logits.softmax(-1).sort(descending=True)
    p[p.cumsum(0) - p >= top_p] = 0  # p was already reached before this one
    return torch.zeros_like(p).scatter(0, order, p / p.sum())


@torch.no_grad()
def write(model, start, count, seed=1, **choice) -> str:
    model.eval()
    generator, idx = torch.Generator().manual_seed(seed), torch.tensor([encode(start)])
    for _ in range(count):
        p = probabilities(model(idx[:, -T:])[0, -1], **choice)
        idx = torch.cat((idx, torch.multinomial(p, 1, generator=generator)[None]), 1)
    return decode(idx[0])


with torch.no_grad():
    logits = model(torch.tensor([encode(start)]))[0, -1]
choices = {
    "temperature 1": {},
    "temperature 0.5": {"temperature": 0.5},
    "top-k 5": {"top_k": 5},
    "top-p 0.6": {"top_p": 0.6},
}
order = logits.argsort(descending=True)[:12]
figure, axes = plt.subplots(1, 4, figsize=(11, 2.6), layout="constrained", sharey=True)
for ax, (name, choice) in zip(axes, choices.items()):
    p = probabilities(logits, **choice)
    ax.bar(range(12), p[order])
    ax.set_xticks(range(12), [visible(decode([i])) for i in order])
    ax.set_title(name)
    assert abs(p.sum().item() - 1) < 1e-5
axes[0].set(ylabel="probability")
last_words = " ".join(start.splitlines()[-1].split(" ")[-4:])
figure.suptitle(f"{visible(last_words)} ... and then?", fontsize=10)
show("Four bar charts of the probabilities of the next character: temperature 1 and 0.5, top-k, top-p.")
print("greedy decoding:\n", write(model, "\n", 200, temperature=1e-3))
print("\ntemperature 0.8:\n", write(model, "\n", 200, temperature=0.8))

# %% [markdown]
# **Question.** Greedy decoding soon repeats itself. Why?
#
# <details><summary>Answer</summary>
#
# The most probable continuation of common words is again common words. Once a phrase is in the window, the same phrase
# becomes the most probable one, and nothing random leads out of the loop.
# </details>
#
# **Exercise.** Add `print(write(model, "\n", 200, temperature=2.0))`.
#
# <details><summary>Answer</summary>
#
# Hardly a word is left: at temperature 2 the rare characters together take a large share of the probability, and
# after one of them the context is unlike any text that the model was trained on.
# </details>

# %% [markdown]
# ## 16. A cache for keys and values
# *Full path.*
#
# To write one more character, `write` computes everything before it again, though the keys and values of earlier
# positions never change: the mask keeps them from seeing anything later. Keep them in a **cache**, and a step costs one
# position. A key is rotated by its own position before it is stored, a query by its own; their score depends on the
# distance alone, so nothing has to be rotated again.


# %%
@torch.no_grad()
def cached_logits(model, ids, first=0, window=None):
    """Logits (len(ids), V), one position at a time; the text begins at position `first`."""
    model.eval()
    caches, out = [None] * len(model.blocks), []
    for t, i in enumerate(ids, first):
        x = model.embedding(torch.tensor([[i]]))  # (1, 1, C): the new position only
        for n, block in enumerate(model.blocks):
            q, k, v = block.attention.split(block.norm_1(x), start=t)
            if caches[n] is not None:
                k, v = (torch.cat(pair, 2)[:, :, -(window or len(ids)) :] for pair in zip(caches[n], (k, v)))
            caches[n] = k, v
            weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(-1)  # all of them are in the past
            x = x + block.attention.join(weights @ v)
            x = x + block.mlp(block.norm_2(x))
        out.append((model.norm(x) @ model.embedding.weight.T)[0, 0])
    return torch.stack(out)


ids = val_data[:T].tolist()
with torch.no_grad():
    direct = model(torch.tensor([ids]))[0]
difference = (cached_logits(model, ids) - direct).abs().max().item()
moved = (cached_logits(model, ids, first=1000) - direct).abs().max().item()
print(
    f"logits with and without a cache differ by at most {difference:.0e}; if the text begins at position 1000, {moved:.0e}"
)
assert difference < 1e-3 and moved < 1e-2

longer = val_data[: 4 * T + 1]
sliding = cached_logits(model, longer[:-1].tolist(), window=T)  # beyond the window: the oldest keys and values go
fresh = torch.stack([model(longer[t - T : t][None])[0, -1] for t in range(T, 4 * T + 1)]).detach()
losses = [F.cross_entropy(each, longer[T : 4 * T + 1]).item() for each in (sliding[T - 1 :], fresh)]
print(
    f"past the window: loss {losses[0]:.3f} with a sliding cache, {losses[1]:.3f} if the last {T} are read again each time"
)
assert abs(losses[0] - losses[1]) < 0.1


def seconds(function) -> float:
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def uncached_logits():
    with torch.no_grad():
        return [model(torch.tensor([ids[: t + 1]]))[0, -1] for t in range(T)]


times = {"without a cache": seconds(uncached_logits), "with a cache": seconds(lambda: cached_logits(model, ids))}
works = {"without a cache": sum(range(1, T + 1)), "with a cache": T}
figure, axes = plt.subplots(1, 2, figsize=(10, 1.7), layout="constrained")
for ax, row, title in zip(
    axes,
    (works, {k: 1000 * v / T for k, v in times.items()}),
    (f"positions computed for {T} characters", "milliseconds per character"),
):
    bars = ax.barh(list(row), row.values(), color=[colours[4], colours[0]])
    ax.bar_label(bars, [f"{value:,.0f}" if value > 10 else f"{value:.1f}" for value in row.values()], padding=3)
    ax.margins(x=0.25)
    ax.set(title=title)
show("Bars: positions computed and milliseconds per character, with and without a cache.")

# %% [markdown]
# The cache computes 32 times fewer positions, but is not 32 times as fast: in so small a model, most of the time goes
# into the calls themselves, whether a call computes one position or 64.
#
# **Question.** With learned positions the window could not slide like this. Why?
#
# <details><summary>Answer</summary>
#
# When the window slides by one, what stood at position 1 stands at position 0 and gets another position's vector, so
# each key and value changes. With rotary positions only distances count, and those stay. The result still differs a
# little from reading the last T characters again: above the first block, the kept keys and values have seen
# characters that have since been dropped.
# </details>

# %% [markdown]
# ## 17. Fine-tuning, and what a split hides
# *Short path.*
#
# The model continues text. To make it *answer*, continue its training on pairs of **prompt** and **response**
# (**fine-tuning**). Only the response counts in the loss: the prompt is given, so the model need not learn to predict
# it. Here a prompt is a line of a card statement, and the response is its spending category. A special token
# separates them. `tinygpt finetune` adds one to the vocabulary; here a character that the text hardly uses will do
# (`SEPARATOR`).
#
# How to split the pairs? Each line is an owner and a shop word, such as RIVER BAKERY. There are two tests:
#
# - **New combinations**: a random sample of the lines. RIVER BAKERY is new, but training has seen KENT BAKERY. Each shop
#   word of this test occurs in training.
# - **New words**: four shop words per category are held out. No line with them occurs in training.

# %%
shops = {  # category: words for training and the first test | words that are held out
    "food": "BAKERY,GROCER,MARKET,BUTCHER,DELI,FARM SHOP,FISHMONGER,DAIRY|GREENGROCER,CAFE,PIZZERIA,TEA ROOM",
    "travel": "AIRLINE,RAILWAY,TAXI,HOTEL,FERRY,HOSTEL,COACH LINES,CAR HIRE|BUS LINES,AIRPORT,TRAM,CRUISES",
    "health": "PHARMACY,DENTIST,CLINIC,OPTICIAN,HOSPITAL,PHYSIO,CHEMIST,DOCTOR|DENTAL CARE,SURGERY,NURSE,VACCINES",
    "home": "FURNITURE,HARDWARE,PLUMBER,PAINTS,GARDEN CENTRE,LIGHTING,CARPETS,ROOFING|FURNISHINGS,KITCHENS,BEDS,TILES",
}
owners = "SMITH,JONES,NORTH,RIVER,ROYAL,CITY,GREEN,LONDON,KENT,YORK,BRISTOL,HARBOUR".split(",")
labels = list(shops)
results, took, trained_parameters = {}, {}, {}  # by method: accuracy, seconds, parameters (for part 21)


def lines_of(part: int):
    return [(f"{owner} {shop}", label) for label, words in shops.items()
            for shop in words.split("|")[part].split(",") for owner in owners]  # fmt: skip


train_pairs, tests = [], {"new combinations": [], "new words": lines_of(1)}
for label in labels:
    lines = [pair for pair in lines_of(0) if pair[1] == label]
    random.Random(label).shuffle(lines)
    tests["new combinations"] += lines[:16]
    train_pairs += lines[16:]


def shop_of(pair):
    return pair[0].partition(" ")[2]


for name, pairs in tests.items():
    seen = np.mean([shop_of(pair) in {shop_of(other) for other in train_pairs} for pair in pairs])
    print(f"{name}: {len(pairs)} lines, {100 * seen:.0f}% of their shop words occur in training")
    assert seen == (name == "new combinations")


def example(prompt: str, response: str, masked=True, length=40):
    """x, y (length,): y is x one character later, and -1 (no target) in the prompt and in the padding behind."""
    ids = encode(prompt + SEPARATOR + response + "\n")  # a line end says that the response is complete
    x, y = torch.zeros(length, dtype=torch.long), torch.full((length,), -1)
    x[: len(ids) - 1], y[: len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    if masked:
        y[: len(prompt)] = -1
    return x, y


def batch_of(pairs, masked=True):
    return (torch.stack(parts) for parts in zip(*(example(*pair, masked) for pair in pairs)))


x, y = example(*train_pairs[0])
print("x:", visible(decode(x[:28])))
print("y:", "".join("·" if i < 0 else visible(decode([i])) for i in y[:28]))


def finetune(model, pairs, steps=300, lr=1e-3, masked=True):
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, draw = torch.optim.AdamW(trained, lr=lr, fused=True), random.Random(1)
    for step in range(steps):
        model.train()
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / steps)
        loss = loss_of(model, *batch_of(draw.choices(pairs, k=16), masked))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def label_probabilities(model, prompts):
    """(N, 4): the probability of each label as the complete response. What is missing to 1 goes to other texts."""
    model.eval()
    columns = []
    for label in labels:
        x, y = batch_of([(prompt, label) for prompt in prompts])
        losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none")
        columns.append((-losses.view(y.shape).sum(1)).exp())
    return torch.stack(columns, 1)


@torch.no_grad()
def answers(model, prompts, count=14) -> list[str]:
    """Greedy decoding of the responses."""
    model.eval()
    out = []
    for prompt in prompts:
        idx = torch.tensor([encode(prompt + SEPARATOR)])
        for _ in range(count):
            idx = torch.cat((idx, model(idx[:, -T:])[:, -1:].argmax(-1)), 1)
            if decode(idx[0, -1:]) == "\n":
                break
        out.append(decode(idx[0]).partition(SEPARATOR)[2].partition("\n")[0])
    return out


# %% [markdown]
# A result means little without baselines. Three of them, from cheap to expensive:
#
# - the **majority baseline** always gives the most frequent label of the training lines;
# - the **n-gram baseline** looks at pieces of one to four characters: one weight per piece and label (logistic
#   regression), trained within seconds;
# - **training from scratch**: the same model, the same training, but starting from random parameters.


# %%
def pieces_of(prompt: str) -> set[str]:
    return {prompt[i : i + n] for n in (1, 2, 3, 4) for i in range(len(prompt) - n + 1)}


def ngram_baseline(pairs):
    """Train on pairs; returns a function from prompts to probabilities (N, 4)."""
    pieces = {piece: i for i, piece in enumerate(sorted(set().union(*(pieces_of(prompt) for prompt, _ in pairs))))}

    def features(prompts):
        x = torch.zeros(len(prompts), len(pieces))
        for row, prompt in zip(x, prompts):
            row[[pieces[piece] for piece in pieces_of(prompt) if piece in pieces]] = 1
        return x / x.norm(dim=1, keepdim=True).clamp(min=1)

    x, y = features([prompt for prompt, _ in pairs]), torch.tensor([labels.index(label) for _, label in pairs])
    linear = nn.Linear(len(pieces), len(labels))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.05)
    for _ in range(200):
        loss = F.cross_entropy(linear(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lambda prompts: linear(features(prompts)).softmax(1).detach(), num_params(linear)


def accuracy(classify) -> dict[str, float]:
    """The share of the lines of each test whose most probable label is the right one."""
    shares = {}
    for name, pairs in tests.items():
        best = classify([prompt for prompt, _ in pairs]).argmax(1)
        shares[name] = np.mean([labels[i] == label for i, (_, label) in zip(best, pairs)])
    return shares


def note(name, classify, begun, trained):
    """Note the seconds since `begun`, the number of trained parameters, and the accuracy on both tests."""
    took[name], trained_parameters[name], results[name] = time.time() - begun, trained, accuracy(classify)
    print(f"{name:<22}" + "   ".join(f"{test}: {100 * share:3.0f}%" for test, share in results[name].items()))


most_frequent = labels.index(Counter(label for _, label in train_pairs).most_common(1)[0][0])
note("majority baseline", lambda prompts: torch.eye(4)[[most_frequent] * len(prompts)], time.time(), 0)

torch.manual_seed(1)
begun = time.time()
ngram, count = ngram_baseline(train_pairs)
note("n-gram baseline", ngram, begun, count)

begun = time.time()
scratch_model = finetune(GPT(), train_pairs)
note(
    "training from scratch",
    lambda prompts: label_probabilities(scratch_model, prompts),
    begun,
    num_params(scratch_model),
)

begun = time.time()
tuned_model = finetune(copy.deepcopy(model), train_pairs)
note("fine-tuning", lambda prompts: label_probabilities(tuned_model, prompts), begun, num_params(tuned_model))
print(f"the loss on {CORPUS} rises from {final_loss:.2f} to {val_loss(tuned_model):.2f}: this is forgetting")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=(1, 1.1))
place = np.arange(len(results))
for i, (test, colour) in enumerate(zip(tests, colours)):
    bars = axes[0].barh(place + 0.4 * i, [100 * row[test] for row in results.values()], 0.38, color=colour, label=test)
    axes[0].bar_label(bars, fmt="%.0f", padding=3)
axes[0].set_yticks(place + 0.2, results)
axes[0].invert_yaxis()
axes[0].set(xlim=(0, 112), title="correct answers, %")
axes[0].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=2)
new = [prompt for prompt, _ in tests["new words"]]
for i, (name, p) in enumerate(
    {"n-gram baseline": ngram(new), "fine-tuning": label_probabilities(tuned_model, new)}.items()
):
    right = {shop_of(pair): 0 for pair in tests["new words"]}
    for pair, best in zip(tests["new words"], p.argmax(1)):
        right[shop_of(pair)] += labels[best] == pair[1]
    shares_of_words = [100 * count / len(owners) for count in right.values()]
    axes[1].bar(np.arange(len(right)) + 0.4 * i, shares_of_words, 0.38, color=colours[2 + i], label=name)
axes[1].set_xticks(np.arange(len(right)) + 0.2, right, rotation=90, fontsize=8)
axes[1].set(title="correct answers for each new word, %", ylim=(0, 125), yticks=range(0, 101, 20))
axes[1].legend(frameon=False, loc="upper right", ncols=2)
show(
    "Left: accuracy of four methods on new combinations and on new words. Right: accuracy of two of them for each new word."
)
for prompt, label in (tests["new combinations"][0], *tests["new words"][::40]):
    print(f"{prompt}: {answers(tuned_model, [prompt])[0]!r} (correct: {label})")
assert set(results["majority baseline"].values()) == {0.25}
for name in ("n-gram baseline", "training from scratch", "fine-tuning"):
    assert results[name]["new combinations"] > 0.9, name
    assert results[name]["new words"] < 0.6, name
assert results["n-gram baseline"]["new words"] > results["fine-tuning"]["new words"] - 0.1
assert val_loss(tuned_model) > final_loss + 0.3

# %% [markdown]
# One model, two results. On new combinations it looks perfect: every shop word of that test occurs in training, so
# the test asks whether the model has memorised 32 words. That is **data leakage** (Kaufman et al. 2012). On new words
# it is far worse (guessing would reach 25%), and the n-gram baseline, which takes seconds, does about as well or
# better. The right panel shows for which words. **The split decides what the number means**: test on what
# will be new when the model is in use. (And the 192 lines of the second test are 16 words, so its uncertainty is
# large: some ten percentage points.)
#
# **Question.** Your colleague reports 100% on a random split of last year's transactions. What do you ask?
#
# <details><summary>Answer</summary>
#
# How many of the test's merchants occur in training? What does the model score on merchants that do not, or on the
# following month? And what do the majority and the n-gram baseline score on the same test?
# </details>
#
# **Exercise.** Let training see one line of each new word: add `train_pairs += [pair for pair in tests["new words"] if
# pair[0].startswith("KENT")]` before the baselines.
#
# <details><summary>Answer</summary>
#
# With Shakespeare, the fine-tuned model gets 84% of the other lines with new words right, instead of 27%, and the
# n-gram baseline 100%, instead of 38%. Sixteen lines, one for each word, are worth more than any change of the model:
# what was missing was the knowledge that a nurse belongs to health.
# </details>

# %% [markdown]
# ## 18. LoRA
# *Full path.*
#
# A complete copy of the parameters for each task is large. **LoRA** (Hu et al. 2021) freezes a matrix W and trains a
# small difference next to it, the product of two thin matrices B and A: W + (α / r) · B A. The **rank** r is their
# shared inner dimension, here 8; α (alpha) scales the difference. The trained matrices are the **adapter**.


# %%
class LoRA(nn.Module):
    def __init__(self, linear, rank=8, alpha=16):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))  # zero: at first nothing changes

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self):
        self.linear.weight.data += self.scale * self.B.data @ self.A.data
        return self.linear


def matrices(model):
    return [(part, name) for block in model.blocks for part, name in
            ((block.attention, "qkv"), (block.attention, "projection"), (block.mlp, "up"), (block.mlp, "down"))]  # fmt: skip


torch.manual_seed(1)
adapted = copy.deepcopy(model).requires_grad_(False)
for part, name in matrices(adapted):
    setattr(part, name, LoRA(getattr(part, name)))
probe = torch.tensor([encode(line)])
with torch.no_grad():
    assert torch.equal(adapted(probe), model(probe))  # at first nothing changes


begun = time.time()
finetune(adapted, train_pairs, lr=5e-3)
adapter_parameters = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
note("LoRA", lambda prompts: label_probabilities(adapted, prompts), begun, adapter_parameters)
with torch.no_grad():
    not_merged = adapted(probe)
    for part, name in matrices(adapted):
        setattr(part, name, getattr(part, name).merged())
    assert torch.allclose(adapted(probe), not_merged, atol=1e-3)  # merged: an ordinary model again

guessed = accuracy(lambda prompts: label_probabilities(model, prompts))["new combinations"]
panels = {
    "trained parameters": [0, num_params(model), trained_parameters["LoRA"]],
    f"loss on {CORPUS} (forgetting)": [final_loss, val_loss(tuned_model), val_loss(adapted)],
    "new combinations correct, %": [
        100 * share
        for share in (guessed, results["fine-tuning"]["new combinations"], results["LoRA"]["new combinations"])
    ],
}
figure, axes = plt.subplots(1, 3, figsize=(11, 1.9), layout="constrained", sharey=True)
for ax, (title, values) in zip(axes, panels.items()):
    bars = ax.barh(["base model", "fine-tuning", "LoRA"], values, color=colours[:3])
    ax.bar_label(bars, [f"{value:.2f}" if "loss" in title else f"{value:,.0f}" for value in values], padding=3)
    ax.margins(x=0.3)
    ax.set(title=title, xticks=[])
axes[0].invert_yaxis()
show("Bars for the base model, fine-tuning and LoRA: trained parameters, forgetting, and correct answers.")
assert results["LoRA"]["new combinations"] > 0.85
assert trained_parameters["LoRA"] < 0.1 * num_params(model)

# %% [markdown]
# LoRA trains less than a tenth of the parameters. The adapter can be removed at any time, and then nothing is
# forgotten; while it is in place, the model forgets, too: with Shakespeare as much as with all weights. (On other tasks
# it was half or three quarters as much: docs/FINETUNING.md.)
#
# **Question.** With A *and* B at zero, nothing would change at first, too. Why is only B zero?
#
# <details><summary>Answer</summary>
#
# The gradient of B is a product with A, that of A a product with B. If both are zero, both gradients are zero, and the
# adapter never learns.
# </details>

# %% [markdown]
# ## 19. Confidently wrong
# *Short path.*
#
# What does the fine-tuned model say outside its task? It gets pieces of the corpus, in capitals like a card statement
# but with nothing to do with spending, and the new words of part 17. Its **confidence** is the probability of its most
# probable label.

# %%
passages = [" ".join(decode(val_data[i : i + 20]).split()).upper() for i in range(0, 100 * 500, 500)]
groups = {name: [prompt for prompt, _ in pairs] for name, pairs in tests.items()} | {"outside the task": passages}
confidence, chosen = {}, {}
for name, prompts in groups.items():
    best = label_probabilities(tuned_model, prompts).max(1)
    confidence[name], chosen[name] = best.values, [labels[i] for i in best.indices]
wrong = [answer != label for answer, (_, label) in zip(chosen["new words"], tests["new words"])]
wrong_confidence = confidence["new words"][wrong]
for prompt, answer, sure in list(zip(passages, chosen["outside the task"], confidence["outside the task"]))[:4]:
    print(f"{prompt!r}: {answer}, confidence {100 * sure:.0f}%")
print(f"mean confidence: {', '.join(f'{name} {100 * values.mean():.0f}%' for name, values in confidence.items())};"
      f" wrong answers to new words {100 * wrong_confidence.mean():.0f}%")  # fmt: skip

# A remedy: answer only above a threshold, and abstain otherwise. Take the one that keeps 95% of the known words.
threshold = confidence["new combinations"].quantile(0.05).item()
answered = {name: (values >= threshold).float().mean().item() for name, values in confidence.items()}
print(
    f"above a threshold of {threshold:.3f} it answers "
    + ", ".join(f"{100 * share:.0f}% ({name})" for name, share in answered.items())
)
figure, axes = plt.subplots(1, 2, figsize=(10, 2.9), layout="constrained", width_ratios=(1.6, 1))
for (name, values), colour, hatch in zip(confidence.items(), colours, ("", "//", "..")):
    share = np.histogram(values, 10, (0, 1))[0] / len(values)
    at = np.arange(10) / 10 + 0.02 + 0.028 * list(confidence).index(name)
    axes[0].bar(
        at, 100 * share, 0.028, color=colour, hatch=hatch, edgecolor="white", linewidth=0, align="edge", label=name
    )
axes[0].set(title="how confident are the answers?", xlabel="confidence", ylabel="% of the prompts", xlim=(0, 1))
axes[0].legend(frameon=False, loc="upper left")
bars = axes[1].barh(list(answered), [100 * share for share in answered.values()], color=colours)
axes[1].bar_label(bars, fmt="%.0f", padding=3)
axes[1].invert_yaxis()
axes[1].set(title="answered above the threshold, %", xlim=(0, 112))
show("Left: confidence for known words, new words and lines outside the task. Right: the share above the threshold.")
assert confidence["outside the task"].mean() > 0.4  # no answer is right there; four equal chances would be 0.25
assert wrong_confidence.mean() > 0.5

# %% [markdown]
# Every line gets a spending category: the model has learned four responses and nothing else, so it has no way to say
# "none of these". Confidence says how the model compares its four answers, not whether the question makes sense. A
# threshold helps, but look at what still passes it in the right panel. (Hendrycks & Gimpel 2017; the lab `tinygpt lab
# confidence` measures it at full size.)
#
# **Question.** What would a fifth label, "other", change?
#
# <details><summary>Answer</summary>
#
# It helps for prompts like those that you collect for it. Training on lines of the corpus as "other" would catch such
# lines, but not the next kind of unexpected prompt. It is worth doing, but guarantees nothing.
# </details>
#
# **Exercise.** What does it say if there is no shop at all? Try `label_probabilities(tuned_model, ["QQQQ ZZZZ",
# "SMITH"])`.
#
# <details><summary>Answer</summary>
#
# In the run with Shakespeare: QQQQ ZZZZ is food, with a confidence of 50%, and SMITH, an owner without a shop, is
# health with 89%. Nothing in SMITH speaks for health. The model has to choose one of four responses, and does.
# </details>

# %% [markdown]
# ## 20. Retrieval: the answer is in a document
# *Short path.*
#
# Facts change, and a model's parameters do not. **Retrieval** (Lewis et al. 2020) keeps facts in documents: search for
# passages with the question's words, then let a model *read* them. `tinygpt index` and `tinygpt ask` do both. The
# **reader** that ships with tinygpt is a GPT like yours, trained to copy the answer from a passage or to say that there
# is none.
#
# It is compared with a **closed-book** model: yours, fine-tuned on the same facts, answering from its parameters
# alone.

# %%
companies = (
    "Norvik Foods,Calder Steel,Aldora Bank,Brenta Motors,Tavor Energy,Kestrel Air,Lumen Glass,Orsini Wines".split(",")
)
people = "Ana Torres,Jan Berg,Mia Okoro,Leo Brandt,Ines Duarte,Paul Keller,Nora Lind,Omar Haddad".split(",")
places = "Oslo,Leeds,Porto,Turin,Bergen,Lyon,Graz,Siena".split(",")
cfo, base = dict(zip(companies, people)), dict(zip(companies, places))


def write_documents():
    (folder / "documents").mkdir(exist_ok=True)
    for name in companies:
        document = f"# {name}\n\nThe CFO of {name} is {cfo[name]}. {name} is based in {base[name]}.\n"
        (folder / "documents" / f"{name.split()[0]}.md").write_text(document, encoding="utf-8")


def questions():
    """question for the reader, prompt for the closed-book model, answer"""
    return [(f"Who is the CFO of {name}?", f"CFO of {name}", cfo[name]) for name in companies] + [
        (f"Where is {name} based?", f"base of {name}", base[name]) for name in companies
    ]


def tinygpt(*args, questions=()):
    command = [sys.executable, "-m", "tinygpt", *args]
    done = subprocess.run(
        command, cwd=folder, input="\n".join(questions), capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(*asked):
    out = tinygpt("ask", "--index=index.db", "--ckpt=reader", "--min_probability=0", "--json=True", questions=asked)
    return [json.loads(row) for row in out.splitlines()]


def index() -> float:
    begun = time.time()
    tinygpt("index", "documents", "--out=index.db", "--embeddings=none")  # keyword search alone
    return time.time() - begun


write_documents()
took["retrieval"] = index()
first = ask(*(question for question, _, _ in questions()), "Who is the CFO of Velmar Rail?")
unknown = first.pop()
begun = time.time()
torch.manual_seed(1)
facts_model = finetune(copy.deepcopy(model), [(prompt, answer) for _, prompt, answer in questions()], steps=300)
took["closed book"] = time.time() - begun


def shares(asked):
    """The share of the correct answers: search alone, search and reader, closed book; and those about new CFOs."""
    truth = [answer for _, _, answer in questions()]
    systems = {
        "search alone": [truth[i] in row["sentences"][0]["text"] for i, row in enumerate(asked)],
        "search and reader": [row["model"] == answer for row, answer in zip(asked, truth)],
        "closed book": [a == answer for a, answer in zip(answers(facts_model, [p for _, p, _ in questions()]), truth)],
    }
    return {name: (np.mean(right), np.mean(right[:3])) for name, right in systems.items()}


before = shares(first)
print(first[0]["question"], "→", first[0]["model"], "| sentence:", first[0]["sentences"][0]["text"])
print(unknown["question"], "→", unknown["model"] or "not in the documents")
print("closed book, a company that does not exist →", answers(facts_model, ["CFO of Velmar Rail"])[0])

# Three companies get a new CFO. The documents are corrected and indexed again; the parameters stay.
cfo |= {"Norvik Foods": "Rita Moreau", "Calder Steel": "Tom Ashby", "Aldora Bank": "Vera Novak"}
write_documents()
took["new index"] = index()
second = ask(*(question for question, _, _ in questions()))
after = shares(second)
print("after the change:", second[0]["question"], "→", second[0]["model"])
print("closed book, after the change →", answers(facts_model, ["CFO of Norvik Foods"])[0])
figure, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
for i, (title, column) in enumerate((("before the change, all questions", [row[0] for row in before.values()]),
                                     ("after, all questions", [row[0] for row in after.values()]),
                                     ("after, the three facts that changed", [row[1] for row in after.values()]))):  # fmt: skip
    bars = ax.bar(np.arange(3) + 0.27 * i, [100 * share for share in column], 0.25, label=title)
    ax.bar_label(bars, fmt="%.0f")
ax.set_xticks(np.arange(3) + 0.27, before)
ax.set(ylabel="correct answers, %", ylim=(0, 112))
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
show("Bars of correct answers before and after the facts change: search, search and reader, closed book.")
assert before["closed book"][0] > 0.9 and after["closed book"][1] == 0
assert before["search and reader"][0] > 0.8 and after["search and reader"][1] > 0.6
assert before["search alone"][0] > 0.9 and after["search alone"][1] > 0.9
assert answers(facts_model, ["CFO of Velmar Rail"]) != [""]
assert unknown["model"] == "" and second[0]["model"] != first[0]["model"]

# %% [markdown]
# The closed-book model knows its facts, until they change: then it states the old ones, as fluently as before. Its 0%
# holds by construction: nothing has told it the new facts. In `tinygpt lab facts`, a closed-book model that is trained
# again on all facts answers 69% of the changed ones correctly, and so does retrieval; but training takes 2 minutes, and
# indexing the corrected document 1 second. The model also answers for a company that does not exist. With retrieval, the passage can be checked,
# and the reader abstains. (These sentences are as plain as the reader's training examples. On longer documents about
# companies it answers 71 to 74% of the questions, on other documents none: docs/RETRIEVAL.md.)
#
# **Question.** Search alone already finds every passage. What does the reader add?
#
# <details><summary>Answer</summary>
#
# The answer instead of a text to read, and "not in the documents" if there is none. Whether that is worth the risk of a
# misreading depends on who reads the passages.
# </details>
#
# **Exercise.** Fine-tune the closed-book model on the three new facts alone, for 100 steps, then ask all questions.
#
# <details><summary>Answer</summary>
#
# With Shakespeare: the three new facts are right, and the other thirteen are all wrong. Most answers are now made of
# the new names ("Ria Novak"). A closed-book model has to be trained again on all its facts, not only on those that
# changed.
# </details>

# %% [markdown]
# ## 21. Which method?
# *Short path.*
#
# The table that this course ends with, filled in from *your* run: labels with the test of part 17, facts with the
# questions of part 20. "–" means that a method was not measured on this task; the closed-book model was not
# trained on the changed facts. (If you skipped part 18: **LoRA**
# fine-tunes a small difference to each matrix, and leaves the model's own parameters as they are.)


# %%
def percent(share):
    return f"{100 * share:.0f}%"


def again(name):
    return f"train again: {took[name]:.1f} s"


def labelled(name):
    return [percent(share) for share in results[name].values()]


def known_facts(name):
    return [percent(before[name][0]), percent(after[name][1])]


no, reindex, full = ["–", "–"], f"index again: {took['new index']:.1f} s", f"{num_params(model):,}"
few = {name: f"{trained_parameters[name]:,}" for name in ("n-gram baseline", "LoRA")}
rows = [
    ("n-gram baseline", *labelled("n-gram baseline"), *no, few["n-gram baseline"], again("n-gram baseline")),
    ("training from scratch", *labelled("training from scratch"), *no, full, again("training from scratch")),
    ("fine-tuning on labels", *labelled("fine-tuning"), *no, full, again("fine-tuning")),
    ("fine-tuning on labels with LoRA", *labelled("LoRA"), *no, few["LoRA"], again("LoRA")),
    ("fine-tuning on facts (closed book)", *no, *known_facts("closed book"), full, again("closed book")),
    ("retrieval (a person reads the passage)", *no, *known_facts("search alone"), "0", reindex),
    (
        "combining: retrieval and a model trained to read",
        *no,
        *known_facts("search and reader"),
        "0 (the reader is trained)",
        reindex,
    ),
]
head = (
    "method",
    "labels: new combinations",
    "labels: new words",
    "facts",
    "facts that changed",
    "trained parameters",
    "what a change costs",
)
display(table(head, rows))
figure, axes = plt.subplots(1, 2, figsize=(10, 2.6), layout="constrained")
for ax, columns, title in ((axes[0], (1, 2), "labels"), (axes[1], (3, 4), "facts")):
    shown = [row for row in rows if row[columns[0]] != "–"]
    names = [row[0].partition(" (")[0].partition(":")[0] for row in shown]
    for i, column in enumerate(columns):
        values = [float(row[column].split()[0]) for row in shown]
        bars = ax.barh(np.arange(len(shown)) + 0.4 * i, values, 0.38, label=head[column].removeprefix("labels: "))
        ax.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    ax.set_yticks(np.arange(len(shown)) + 0.2, names)
    ax.invert_yaxis()
    ax.set(title=f"{title}: correct, %", xlim=(0, 115))
    ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=2)
show("Bars: correct labels by four methods, and correct facts by three methods, before and after a change.")
assert len(rows) == 7

# %% [markdown]
# Read it by asking what is new when the system is in use:
#
# - **A skill with a fixed form** (a label, a style, a format): fine-tune. For labels, start with the n-gram baseline,
#   and fine-tune only if that is measurably better on a test with new words. Train from scratch if the task is narrow
#   and you have enough examples; here, starting from your base model gains little or nothing, since its text says
#   little about shops.
# - **Facts, above all facts that change**: retrieval. A correction costs seconds instead of a training on all facts, and
#   every answer has its source.
# - **Both** (an answer in your form, from today's facts): combine them: retrieve, and train a model to read.
# - **Prompts outside the task**: a fine-tuned model answers them all the same (part 19). Abstain below a threshold,
#   and test with such prompts.
#
# Your numbers are from one small run. The labs measure the same questions at full size, with three seeds: `tinygpt lab
# methods`, `tinygpt lab facts`, `tinygpt lab confidence`.
#
# **Question.** A bank wants a model that writes client letters in its tone and quotes today's interest rates. Which
# method?
#
# <details><summary>Answer</summary>
#
# Both. The tone is a form, which fine-tuning teaches with a few hundred examples. The rates change, so they come from a
# document with each request, and a check compares the letter's numbers with it.
# </details>

# %% [markdown]
# ## 22. The same model with `tinygpt train`
# *Full path.*
#
# The preset `shakespeare_char.yaml`, with rotary positions, describes the model and the training of part 13. So both
# curves should agree, except for noise: other random numbers, and on some processors numbers of lower precision. (The
# legend's losses are those of a part of the validation text, the printed ones those of all of it.)

# %%
dataset = {"shakespeare": "shakespeare_char", "naics": "naics"}[CORPUS]
shutil.rmtree(folder / "out", ignore_errors=True)  # if this cell ran before
tinygpt("prepare", dataset)
begun = time.time()
tinygpt("train", "configs/shakespeare_char.yaml", f"--dataset={dataset}", "--position=rope", "--device=cpu",
        "--max_iters=1000", "--eval_interval=100")  # fmt: skip
print(f"{time.time() - begun:.0f} s, and {training_seconds:.0f} s in part 13")
entries = [json.loads(row) for row in (folder / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
theirs = [(e["step"], e["train_loss"], e["val_loss"]) for e in entries if e["kind"] == "eval"]
measured = json.loads(tinygpt("eval", "--ckpt", "out/last.pt", "--json=True", "--device=cpu"))["loss"]
print(f"whole validation text: {final_loss:.3f} in this notebook, {measured:.3f} with tinygpt train")
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
draw_curves(ax, {"this notebook": history, "tinygpt train": theirs})
show("Two pairs of loss curves, of this notebook and of tinygpt train: they nearly coincide.")
assert abs(final_loss - measured) < 0.08
print(f"all cells took {(time.time() - started) / 60:.1f} minutes")

# %% [markdown]
# **Question.** Where would you look first if the curves did *not* agree?
#
# <details><summary>Answer</summary>
#
# At step 0: both must start at ln V, or the initial parameters differ. Then at the first 100 steps: the learning rate.
# Then at the distance between training and validation: dropout, weight decay, the split.
# </details>
#
# Next: `tinygpt exercise list`, to write all of this yourself and have it checked; and
# `configs/shakespeare_char_fast.yaml`, which reaches the loss of the preset in 210 iterations instead of 2,000 and
# explains why.
