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
# All cells run from top to bottom in six minutes on two processor cores. Once tinygpt is installed, they need no
# network. The outputs that you see first are stored from one run; run the cells, and they are yours. Each part ends
# with a picture and a question; a click on "Answer" opens its answer. In an exercise you change something and run it
# again. The checks then print `right: ...`, or `not yet: ...` with a hint.
#
# - **Short path** (about 4,400 words, 22 minutes of reading without the code): parts 1, 2, 3, 4, 5, 6, 7, 10, 12, 13,
#   15, 17, 18, 20, 21 and 22.
# - **Full path**: all parts. Each heading says which path its part belongs to.
#
# Run all cells in either case: the short path uses code of the other parts.
#
# Choose the text in the next cell: `CORPUS = "shakespeare"` is 1.1 MB from nine plays, `"naics"` descriptions of
# industries by the United States Census Bureau. If tinygpt is not installed, the cell installs it from the clone that
# contains this notebook.

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
# The next cell loads the text, which ships with tinygpt. You build the rest yourself, until part 21 uses tinygpt's
# search and part 23 compares your model with two of tinygpt's.

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
folder = Path(tempfile.mkdtemp())
if CORPUS == "shakespeare":
    text = tiny_shakespeare()
    line = "Speak, I charge thee, speak!"  # to cut into tokens
    phrase = "speak, speak"  # for pictures of attention
    start = "ROMEO:\nWhat, shall I h"  # of a sample
    SEPARATOR = "$"  # hardly used in this text; part 17 needs such a character
else:
    text = industry_descriptions()
    line = "fish markets and meat markets"
    phrase = "fish markets"
    start = "This industry comprises establishments primarily engaged in "
    SEPARATOR = "%"
print(f"{len(text):,} characters")
print(text[:170])

# %% [markdown]
# The next cell draws the pictures and prints the checks. It has nothing about language models: skip it.

# %% jupyter={"source_hidden": true}
colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"]  # Okabe & Ito: also for colour-blind readers
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "figure.dpi": 80})
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=colours)


def show(description: str) -> None:
    """Show the current figure, with a description for readers who cannot see it."""
    display(plt.gcf(), metadata={"image/png": {"alt": description}})
    plt.close()


def check(holds, claim: str, hint: str = "What did you change?") -> None:
    """Print whether a claim of the text holds in this run."""
    print(f"right: {claim}" if holds else f"not yet: {claim}. Hint: {hint}")


def visible(text: str) -> str:
    """Show spaces and line ends."""
    return text.replace(" ", "␣").replace("\n", "⏎")


def draw_boxes(ax, parts: list[str], title: str) -> None:
    """The tokens of a line."""
    widths = [max(1, len(part)) for part in parts]
    for i, (part, width) in enumerate(zip(parts, widths)):
        x = sum(widths[:i])
        ax.add_patch(plt.Rectangle((x, 0), width, 1, facecolor=plt.cm.Pastel1(i % 9), edgecolor="white"))
        ax.text(x + width / 2, 0.5, visible(part), ha="center", va="center", family="monospace", fontsize=9)
    ax.set(xlim=(0, sum(widths)), ylim=(0, 1), title=title)
    ax.axis("off")


def draw_cells(ax, values, texts, **options) -> None:
    """A table of coloured cells, each with a text."""
    ax.imshow(values, aspect="auto", **options)
    for (row, column), words in np.ndenumerate(np.array(texts)):
        ax.text(column, row, words, ha="center", va="center", family="monospace", fontsize=8)


def draw_attention(ax, weights, title: str):
    """The weights (T, T) of the phrase: a row for the position that looks, a column for the position looked at."""
    ax.set_xticks(range(len(phrase)), visible(phrase), fontsize=8)
    ax.set_yticks(range(len(phrase)), visible(phrase), fontsize=8)
    ax.set_title(title)
    return ax.imshow(weights, cmap="viridis", vmin=0, vmax=0.5)


def draw_heads(pictures, titles) -> None:
    figure, axes = plt.subplots(1, len(pictures), figsize=(11, 3.1), layout="constrained")
    for ax, weights, title in zip(axes, pictures, titles):
        image = draw_attention(ax, weights, title)
    axes[0].set(xlabel="position that is looked at", ylabel="position that looks")
    figure.colorbar(image, ax=axes, shrink=0.8, extend="max", label="weight")


def draw_bars(ax, values: dict[str, float], title: str, labels, **options) -> None:
    """A horizontal bar for each value; labels: a format, or a text for each bar."""
    bars = ax.barh(list(values), list(values.values()), **options)
    texts = [labels.format(value) for value in values.values()] if isinstance(labels, str) else labels
    ax.bar_label(bars, texts, padding=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    ax.set(title=title, ylim=(len(values) - 0.5, -0.5))
    ax.margins(x=0.3)


def draw_percent(ax, names, groups: dict[str, list[float]], title: str) -> None:
    """A horizontal bar for each name and group, in percent."""
    height = 0.8 / len(groups)
    for i, (group, shares) in enumerate(groups.items()):
        bars = ax.barh(
            np.arange(len(shares)) + height * i, [100 * share for share in shares], 0.95 * height, label=group
        )
        ax.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    ax.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    ax.set(title=title, xlim=(0, 115), ylim=(len(names) - 0.1, -0.3))
    ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=len(groups))


def draw_curves(ax, runs) -> None:
    """Validation loss as lines, training loss as thin dashes."""
    for (name, history), colour, mark in zip(runs.items(), colours, "os^v"):
        steps, train_losses, val_losses = zip(*history)
        ax.plot(steps, val_losses, f"{mark}-", color=colour, markersize=3, label=f"{name}: {val_losses[-1]:.2f}")
        ax.plot(steps, train_losses, "--", color=colour, linewidth=0.8)
    ax.set(title="loss: validation (line), training (dashes)", xlabel="step", ylabel="nats per character")
    ax.legend(frameon=False)


def table(head, rows) -> HTML:
    """A table for the page."""
    lines = ""
    for tag, row in (("th", head), *(("td", row) for row in rows)):
        cells = [f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row]
        lines += f"<tr>{''.join(cells)}</tr>"
    return HTML(f"<table>{lines}</table>")


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
# 10. Training repeats this step hundreds or thousands of times, each time with other examples.

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
check(abs(w.item() - 1) < 0.1, "after 12 steps w is within 0.1 of 1", "Is the learning rate too large, or too small?")

# %% [markdown]
# **Question.** You add 10 to all four scores. What happens to the probabilities?
#
# <details><summary>Answer</summary>
#
# Nothing. Each e^score becomes e¹⁰ times as large, and so does their sum. Only differences between scores count.
# </details>
#
# **Exercise.** Set the learning rate to 1.05 and run the cell again. Then find the largest learning rate, to two
# decimals, for which the check prints `right`.
#
# <details><summary>Answer</summary>
#
# At 1.05 each step jumps over the minimum and lands farther away than before: w goes from −1.5 to 3.75, then to −2.0,
# and after 12 steps it is −6.8. At 0.88 each step still jumps over the minimum, but lands closer to it, and the check
# prints `right`. Too large a learning rate makes the loss grow.
# </details>

# %% [markdown]
# ## 2. Text to numbers, and back
# *Short path* (byte-pair encoding, the second half, belongs to the full path).
#
# A network computes with numbers. It reads text in units, the **tokens**; here each character is a token. The list of
# all tokens is the **vocabulary**, and **V** is its size. A character's id is its place in the list.

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
# the picture shows bytes, in which a computer stores text: 256 of them suffice for all languages.)


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

figure, axes = plt.subplots(3, 1, figsize=(10, 2.8), layout="constrained")
draw_boxes(axes[0], list(line), f"characters: {len(line)} tokens, a vocabulary of {V}")
draw_boxes(
    axes[1], [f"{byte:02x}" for byte in line.encode()], f"bytes: {len(line.encode())} tokens, a vocabulary of 256"
)
draw_boxes(
    axes[2], pieces, f"byte pairs, {len(merges)} merges: {len(pieces)} tokens, a vocabulary of {V + len(merges)}"
)
show(f"One line cut into {len(line)} characters, as many bytes, and {len(pieces)} tokens of byte-pair encoding.")
assert "".join(pieces) == line and len(pieces) < len(line)

# %% [markdown]
# A library learns thousands of merges in a second. It starts with the 256 bytes and also cuts a text between letters
# and punctuation, but its first merges are the same.

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
# The last tenth of the text is kept for **validation**. The model never trains on it, so memorising does not lower the
# loss there. The text is split **before** any window is drawn.

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
    draw_cells(ax, part, [[visible(decode([i])) for i in row] for row in part], cmap="Pastel2")
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
check(covered > 0.99, "if windows are divided at random, nearly every validation window has a twin in training")

# %% [markdown]
# **Question.** What would the validation loss tell you if the windows were divided at random?
#
# <details><summary>Answer</summary>
#
# Almost nothing: it would stay close to the training loss. In training the model has read each validation window,
# shifted by a few characters. A model that has memorised the text would look perfect. This is data leakage. Part 18
# shows a less obvious kind.
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
    """The mean of −ln p. (In part 17, -1 marks positions without a target; they do not count.)"""
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
check(abs(bigram_loss - counted_loss) < 0.03, "training comes within 0.03 of counting", "Train for more steps.")

# %% [markdown]
# The tables agree in the rows of frequent characters. The rows of rare characters differ: counting adds one to every
# pair, while training moves pairs that it never sees towards 0. These rows hardly weigh in the loss.
#
# **Question.** Training ends where counting does. What is gained by training, then?
#
# <details><summary>Answer</summary>
#
# For this table, nothing. But a table for the last two characters has V × V rows, and a table for the last ten has V¹⁰:
# most rows would never be seen. A network shares what it learns between similar contexts, and the same code trains it.
# </details>
#
# **Exercise.** In `train_briefly(bigram, ...)`, reduce 1500 steps to 15. How many steps does the check need?
#
# <details><summary>Answer</summary>
#
# With 15 steps the loss on Shakespeare is 4.06, hardly below ln V. The table on the right is nearly uniform, and the
# check prints `not yet`: the training is not finished. About 150 steps are enough.
# </details>

# %% [markdown]
# ## 5. More than one character: average the past
# *Short path.*
#
# Parts 5 to 9 add one idea each, and all of them end **above** the loss of the bigram table: a part alone is not yet a
# model. Part 10 puts the ideas together, and gets below it.
#
# The bigram table uses only the last character. To use more, each position must collect information from earlier ones.
# The simplest way: take the mean of all vectors so far. Each character gets a vector of **C** numbers (its
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
draw_cells(ax, weights, [[f"{weight:.2f}" for weight in row] for row in weights], cmap="Blues", vmin=0, vmax=1.5)
ax.set(title="weights of the average", xlabel="position that is looked at", ylabel="position that looks")
show("A triangle of weights: row t has t + 1 equal weights, and zeros to the right of the diagonal.")
average_loss = idea_loss("average of the past")
check(average_loss > bigram_loss + 0.2, "the average is worse than the bigram table")

# %% [markdown]
# The average is *worse* than the bigram table, although it sees more. The last character matters most, but it gets no
# more weight than each of up to 63 others.
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
# A better average takes more from the positions that matter. This one still loses to the bigram table, but it is the
# mechanism of every GPT. The vectors themselves can tell: the dot product of two vectors says how well they match (part
# 1). Softmax turns the scores of a row into weights. Later positions get the score **−∞** (minus infinity) before
# softmax: e^−∞ is 0, so their weight is exactly 0. This is the **causal mask**.


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


with torch.no_grad():
    plain(torch.tensor([encode(phrase)]))
draw_heads([causal_softmax(torch.zeros(len(phrase), len(phrase))), plain.core.weights[0]], ["average", "attention"])
show("Two triangles of weights for one phrase: equal weights, and weights that differ by character.")
check(idea_loss("attention without parameters") > bigram_loss + 0.2, "this is still worse than the bigram table")

# %% [markdown]
# Not much is gained: a vector looks for similar vectors, so an *e* looks at other *e*s. The next character seldom
# depends on these.
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
# What a position looks for differs from what it contains. To say both, attention gets parameters, and comes closer to
# the bigram table, though not below it. Each position computes three vectors from its own vector, each with a matrix
# that training finds (Vaswani et al. 2017):
#
# - the **query** q: what does this position look for?
# - the **key** k: what does it offer to positions that look?
# - the **value** v: what does it pass on to a position that looks at it?
#
# The weight depends on the query of the position that looks, and on the key of the other position. One such unit is a
# **head**. First with loops, for 8 positions; `size` is the number of channels of q, k and v:

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
# **Why divide by √size?** The dot product of two random vectors typically grows like √size. Without the division, large
# vectors give large scores, the largest score takes nearly all the weight, and the gradient of the others vanishes. The
# right panel shows it for random vectors.

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
image = draw_attention(axes[0], one_head.core.weights[0], "weights of the trained head")
figure.colorbar(image, ax=axes[0], shrink=0.8, extend="max", label="weight")
axes[0].set(xlabel="position that is looked at", ylabel="position that looks")
for (name, row), mark in zip(largest.items(), "os"):
    axes[1].plot(sizes, row, f"{mark}-", label=name)
axes[1].set(xscale="log", title="largest of 16 weights, random vectors", xlabel="size", ylim=(0, 1))
axes[1].set_xticks(sizes, sizes)
axes[1].minorticks_off()
axes[1].legend(frameon=False)
show("Left: the weights of a trained head. Right: without the division the largest weight approaches 1.")
check(largest["not divided"][-1] > 0.8 > 0.4 > largest["divided by √size"][-1], "the division keeps the weights even")
check(idea_loss("one head") < average_loss - 0.2, "one head is better than the average")
check(idea_loss("one head") > bigram_loss + 0.1, "it is still worse than the bigram table")

# %% [markdown]
# Much better than the average: queries and keys let a position look for what it needs. But the bigram table is still
# better. To know the last character, a head has to give most of its weight to its own position, and little is left for
# the others. Part 10 solves this.
#
# **Question.** Counted from 0, position 4 holds character 4, and predicts character 5. Which key may it see: that of
# character 4, or that of character 5?
#
# <details><summary>Answer</summary>
#
# That of character 4, its own, and all earlier ones. It must predict character 5, so the mask gives that the weight 0.
# </details>

# %% [markdown]
# ## 8. Several heads
# *Full path.*
#
# This part and the next one hardly change the loss, which stays above the bigram table's; they pay from part 10 on.
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
draw_heads([head.weights[0] for head in four_heads.core.heads], [f"head {i}" for i in range(4)])
show("The attention weights of four heads on one phrase; each head looks at other characters.")
check(abs(idea_loss("four heads") - idea_loss("one head")) < 0.2, "four heads change the loss by less than 0.2")

# %% [markdown]
# At this size four heads are hardly better than one. Without positions, no head can ask for "the character before me",
# so dividing the work among several heads gains little.
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
# This is the last idea that does not beat the bigram table on its own. Attention moves information between positions,
# but it only takes means. An **MLP** (multi-layer perceptron) computes with the collected information, at each position
# separately: a matrix to four times the channels, a nonlinear function, and a matrix back. Without the nonlinear
# function, the two matrices would equal a single one. **GELU** (Hendrycks & Gimpel 2016) is close to 0 for negative
# inputs, and lets positive ones pass.


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
    losses = {idea: loss for idea, (_, loss, _) in ideas.items()}
    draw_bars(ax, losses, "validation loss, nats per character (dashed: bigram)", "{:.2f}")
    ax.axvline(bigram_loss, color=colours[1], linestyle="--")


figure, axes = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained", width_ratios=(1, 2))
grid = torch.linspace(-4, 4, 100)
axes[0].plot(grid, F.gelu(grid))
axes[0].set(title="GELU: a nonlinear function", xlabel="input", ylabel="output")
draw_ideas(axes[1])
show("Left: the curve of GELU. Right: bars of the loss with each idea so far.")
change = idea_loss("block: heads and MLP") - idea_loss("four heads")
check(abs(change) < 0.2, "the MLP changes the loss by less than 0.2")

# %% [markdown]
# The MLP hardly changes the loss here, although it more than doubles the parameters. The next part shows what is
# missing.
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
# Depth should help: a second block can use the results of the first. First stack four blocks as they are. Then let each
# part *add* to its input instead of replacing it: x + part(x), a **residual connection** (He et al. 2016). All parts
# add to the same vector, the **residual stream**.


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


figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
runs = {"one block": block_losses, "four blocks": deep_losses, "four blocks with residuals": residual_losses}
for (name, losses), style in zip(runs.items(), (":", "--", "-")):
    ax.plot(np.convolve(losses, np.ones(20) / 20, "valid"), style, label=name)
ax.axhline(bigram_loss, color=colours[4], linewidth=0.8)
ax.text(0, bigram_loss + 0.03, "bigram", color=colours[4])
ax.set(title="training loss (mean of 20 steps)", xlabel="step", ylabel="nats per character")
ax.legend(frameon=False)
show("Loss curves: four blocks without residuals stall high above the bigram, with residuals they fall below it.")
deep_loss, residual_loss = idea_loss("four blocks"), idea_loss("four blocks with residuals")
unigram = (counts.sum(1) + 1) / (counts.sum() + V)
unigram_loss = -unigram[val_data].log().mean().item()
print(f"if one knows only how frequent each character is: {unigram_loss:.2f}")
check(abs(deep_loss - unigram_loss) < 0.1, "without residuals, four blocks learn only how frequent each character is")
check(residual_loss < bigram_loss < deep_loss - 0.5, "with residuals, four blocks are better than the bigram table")

# %% [markdown]
# Four blocks without residuals stall: the model learns how frequent each character is, and nothing else. With
# residuals, the same blocks and the same number of parameters get below the bigram table, for two reasons. The last
# character stays in the stream, whatever attention adds. And the gradient has a direct path back to the first block;
# without residuals, each of eight parts distorts it.
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
# 2.5 on Shakespeare and 2.36 on the industries, compared with 2.8 without residuals. One block with residuals is as
# good as the bigram table. Without positions, the other three blocks gain only 0.1 to 0.2.
# </details>

# %% [markdown]
# ## 11. Norms
# *Full path.*
#
# Each part adds to the stream, so it grows, and each part must cope with inputs of every size. **Layer normalisation**
# (Ba et al. 2016) gives each part a copy of the stream, shifted and scaled to mean 0 and variance 1. The stream itself
# does not change (*pre-norm*, as in GPT-2). A last norm comes before the logits.


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
texts = [f"{loss:.2f}" if loss < 5 else f"{loss:.1f} (bar cut)" for loss in losses]
title = "validation loss, nats per character"
draw_bars(axes[1], dict(zip(names, np.minimum(losses, 5))), title, texts, color=[colours[0], colours[1]] * 2)
show("Left: the stream grows from part to part. Right: the loss with and without norms, at two learning rates.")
check(-0.02 < residual_loss - norm_loss < 0.35, "at a moderate learning rate, norms gain less than 0.35")
check(fast["with norms"] < bigram_loss + 0.3, "at ten times the learning rate, the model with norms learns")
check(fast["without norms"] > math.log(V), "the model without norms ends worse than before training")

# %% [markdown]
# With norms the stream grows sooner, after the first parts. Each part reads a scaled copy, so a large stream does no
# harm.
#
# With four blocks and a moderate learning rate, norms help less than residuals. They matter at a high learning rate:
# there the model without norms ends worse than before training (its loss is above ln V). Norms also keep the training
# of deep models stable, so practically all large models have them.
#
# **Question.** The norm divides by the stream's size. Why does this not erase what the model has computed?
#
# <details><summary>Answer</summary>
#
# Only the copy is normalised; the stream itself does not change. And the copy still shows which numbers are larger than
# the others.
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
# (If you skipped part 11: from here on, a **norm** before each part scales each position's vector to mean 0 and
# variance 1, which keeps the training stable.)
#
# So far no model knows the position of a character, because a weighted mean has no order. There are two methods:
#
# - **Learned positions** (GPT-2): a second table, with a vector for each of the T positions, added to the character's
#   vector.
# - **Rotary positions** (RoPE; Su et al. 2021): each pair of numbers in a query or key is turned by an angle. The angle
#   grows with the position, at a different speed for each pair, like the hands of a clock. If query and key turn
#   together, their dot product does not change. So the score depends only on the *distance* between two positions.


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
draw_attention(axes[1], closest.weights[0], "the head that looks most at the previous character")
axes[1].set(xlabel="position that is looked at", ylabel="position that looks")
show("Left: three curves of q times k by distance coincide. Right: a head with a bright line below the diagonal.")
at_distance = [(ones[t + 5] @ ones[t]).item() for t in (0, 20, 40)]
assert max(at_distance) - min(at_distance) < 1e-3
since_residuals = ("four blocks with residuals", "and norms", "and learned positions", "rotary positions instead")
gains = [idea_loss(earlier) - idea_loss(later) for earlier, later in pairwise(since_residuals)]
rotary_loss = idea_loss("rotary positions instead")
check(gains[2] == max(gains) and gains[2] > 0.1, "rotary positions gain the most since the residuals")
check(rotary_loss < bigram_loss - 0.2, "the model is now clearly better than the bigram table")
check(closest.weights[0].diagonal(-1).mean() > 0.3, "one head looks mostly at the previous character")

# %% [markdown]
# Since the residuals, no idea has lowered the loss as much as rotary positions: a head can now ask for "the character
# before me", wherever that is. Learned positions help little or not at all in so short a training, because the model
# has to learn the same thing separately for each position. All ideas, each with the same training:


# %%
rows = [(idea, f"{count:,}", f"{loss:.2f}", visible(text)) for idea, (count, loss, text) in ideas.items()]
display(table(("idea", "parameters", "validation loss", "sample"), rows))
figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
draw_ideas(ax)
show("Bars of the validation loss with each idea; the bigram's loss is a dashed line.")
check(rotary_loss == min(loss for _, loss, _ in ideas.values()), "the last idea has the lowest loss")

# %% [markdown]
# **Question.** The three curves on the left coincide. Why is this useful for text?
#
# <details><summary>Answer</summary>
#
# A window may begin anywhere: *u* follows *q* at position 3 and at position 40. With rotary positions the model learns
# this once.
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
# position. A loss too good to be true usually means a leak. When the model writes, there is no next character to copy,
# so its text has hardly a word. (Without positions, as in part 7, the model cannot tell where the next character is:
# removing the mask gains nothing there.)
# </details>

# %% [markdown]
# ## 13. The whole model, and its training
# *Short path.*
#
# Now everything together, twice as wide: 128 channels, four blocks, four heads. Four changes make it practical:
#
# - One product of matrices computes q, k and v of all heads, which is faster than a loop over heads.
# - The embedding and the last matrix share one table (Press & Wolf 2017).
# - All matrices start small (standard deviation 0.02), so the first predictions are nearly uniform. Matrices that write
#   into the stream start smaller still (GPT-2).
# - **Dropout** can set a random share of the numbers to zero in training. It divides the others by the remaining share,
#   so their mean stays the same. It is off until part 14.


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
# - **Gradient clipping**: a gradient longer than 1 (its *norm*) is shortened to 1. So one unusual batch has less
#   effect.


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
check(abs(history[0][2] - math.log(V)) < 0.15, "the untrained model finds all characters about equally probable")
check(final_loss < bigram_loss - 0.4 and final_loss < rotary_loss, "the whole model has the lowest loss so far")

# %% [markdown]
# (The legend's loss is measured on 120 windows, the printed one on the whole validation text. So they differ a little.)
# What does the model look at?

# %%
with torch.no_grad():
    model(torch.tensor([encode(phrase)]))
draw_heads(model.blocks[0].attention.weights[0], [f"first block, head {i}" for i in range(4)])
show("The attention weights of the four heads of the first block.")
draw_heads(model.blocks[3].attention.weights[0], [f"last block, head {i}" for i in range(4)])
show("The attention weights of the four heads of the last block.")

# %% [markdown]
# **Question.** The loss of the untrained model is ln V. What would you suspect if it were 15 instead?
#
# <details><summary>Answer</summary>
#
# The initial weights are too large: the untrained model is confident and wrong. It spends its first steps on unlearning
# that.
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
rises = overfit[-1][2] > least + 0.05 and overfit[-1][1] < overfit[-1][2] - 1
check(rises, "with little text the validation loss rises again", "Is there more text, or a shorter training?")
check(dropped[-1][2] < overfit[-1][2] - 0.05, "dropout slows this down", "Does the loss rise at all?")
check(more[-1][2] < least - 0.3, "all of the text lowers the loss most")
assert abs(estimate(stopped, val_data) - least) < 1e-6

# %% [markdown]
# **Question.** Which cure makes the model *better*, and which only keep it from becoming worse?
#
# <details><summary>Answer</summary>
#
# Early stopping keeps the best model of this run, and dropout slows overfitting down. Only more text makes the model
# much better: its curve is by far the lowest.
# </details>
#
# **Exercise.** Use 100,000 characters: `little = train_data[:100_000]`.
#
# <details><summary>Answer</summary>
#
# On Shakespeare the validation loss falls to the end, to 2.40, so the first check prints `not yet`. The training loss
# of 1.78 shows that the model has begun to memorise. With ten times as much text, this does no harm within 400 steps.
# </details>

# %% [markdown]
# ## 15. Generation
# *Short path.*
#
# The model gives V probabilities. You decide how to choose the next character:
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
# Common words most probably continue with common words. Once a phrase is in the window, the same phrase becomes the
# most probable one, and nothing random leads out of the loop.
# </details>
#
# **Exercise.** Add `print(write(model, "\n", 200, temperature=2.0))`.
#
# <details><summary>Answer</summary>
#
# Hardly a word is left. At temperature 2 the rare characters together get a large share of the probability. After one
# of them, the context is unlike any training text.
# </details>

# %% [markdown]
# ## 16. A cache for keys and values
# *Full path.*
#
# To write one more character, `write` computes all earlier positions again. But their keys and values never change: the
# mask hides everything later. Keep them in a **cache**, and a step costs one position. A key is rotated by its position
# before it is stored. The score depends on the distance alone, so no key has to be rotated again.


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
print(f"logits with and without a cache differ by at most {difference:.0e}; from position 1000, {moved:.0e}")
assert difference < 1e-3 and moved < 1e-2

longer = val_data[: 4 * T + 1]
sliding = cached_logits(model, longer[:-1].tolist(), window=T)  # beyond the window: the oldest keys and values go
fresh = torch.stack([model(longer[t - T : t][None])[0, -1] for t in range(T, 4 * T + 1)]).detach()
losses = [F.cross_entropy(each, longer[T : 4 * T + 1]).item() for each in (sliding[T - 1 :], fresh)]
print(f"past the window: loss {losses[0]:.3f} with a sliding cache, {losses[1]:.3f} if {T} are read again each time")
check(abs(losses[0] - losses[1]) < 0.1, "a sliding cache costs less than 0.1 in loss")


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
draw_bars(axes[0], works, f"positions computed for {T} characters", "{:,.0f}", color=[colours[4], colours[0]])
milliseconds = {name: 1000 * each / T for name, each in times.items()}
draw_bars(axes[1], milliseconds, "milliseconds per character", "{:.1f}", color=[colours[4], colours[0]])
show("Bars: positions computed and milliseconds per character, with and without a cache.")

# %% [markdown]
# The cache computes 32 times fewer positions, but is not 32 times as fast. In so small a model the calls themselves
# take most of the time, whether a call computes one position or 64.
#
# **Question.** With learned positions the window could not slide like this. Why?
#
# <details><summary>Answer</summary>
#
# When the window slides by one, position 1 becomes position 0 and gets another position's vector. So each key and value
# changes. With rotary positions only distances count, and they stay the same. The result still differs a little from
# reading the last T characters again: above the first block, the kept keys and values depend on characters that have
# since been dropped.
# </details>

# %% [markdown]
# ## 17. Fine-tuning: from continuing to answering
# *Short path.*
#
# The model continues text. To make it *answer*, train it further on pairs of **prompt** and **response**
# (**fine-tuning**). Here a prompt is a line of a card statement: an owner and a shop word, such as RIVER BAKERY. The
# response is its spending category. A random sixth of the lines is kept for a test.

# %%
shops = {  # category: words for training and the first test | words that are held out for part 18
    "food": "BAKERY,GROCER,MARKET,BUTCHER,DELI,FARM SHOP,FISHMONGER,DAIRY|GREENGROCER,CAFE,PIZZERIA,TEA ROOM",
    "travel": "AIRLINE,RAILWAY,TAXI,HOTEL,FERRY,HOSTEL,COACH LINES,CAR HIRE|BUS LINES,AIRPORT,TRAM,CRUISES",
    "health": "PHARMACY,DENTIST,CLINIC,OPTICIAN,HOSPITAL,PHYSIO,CHEMIST,DOCTOR|DENTAL CARE,SURGERY,NURSE,VACCINES",
    "home": "FURNITURE,HARDWARE,PLUMBER,PAINTS,GARDEN CENTRE,LIGHTING,CARPETS,ROOFING|FURNISHINGS,KITCHENS,BEDS,TILES",
}
owners = "SMITH,JONES,NORTH,RIVER,ROYAL,CITY,GREEN,LONDON,KENT,YORK,BRISTOL,HARBOUR".split(",")
labels = list(shops)


def lines_of(part: int):
    return [(f"{owner} {shop}", label) for label, words in shops.items()
            for shop in words.split("|")[part].split(",") for owner in owners]  # fmt: skip


train_pairs, test_pairs = [], []
for label in labels:
    lines = [pair for pair in lines_of(0) if pair[1] == label]
    random.Random(label).shuffle(lines)
    test_pairs += lines[:16]
    train_pairs += lines[16:]
print(f"{len(train_pairs)} lines for training, {len(test_pairs)} for the test; the first: {train_pairs[0]}")

# %% [markdown]
# A special token separates prompt and response. `tinygpt finetune` adds one to the vocabulary; here a character that
# the text hardly uses will do (`SEPARATOR`). Only the response counts in the loss (a **loss mask**): the prompt is
# given, so the model need not learn to predict it.


# %%
def example(prompt: str, response: str, length=40):
    """x, y (length,): y is x one character later, and -1 (no target) in the prompt and in the padding behind."""
    ids = encode(prompt + SEPARATOR + response + "\n")  # a line end says that the response is complete
    x, y = torch.zeros(length, dtype=torch.long), torch.full((length,), -1)
    x[: len(ids) - 1], y[: len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    y[: len(prompt)] = -1
    return x, y


def batch_of(pairs):
    return (torch.stack(parts) for parts in zip(*(example(*pair) for pair in pairs)))


def finetune(model, pairs, steps=300, lr=1e-3):
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, draw = torch.optim.AdamW(trained, lr=lr, fused=True), random.Random(1)
    for step in range(steps):
        model.train()
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / steps)
        loss = loss_of(model, *batch_of(draw.choices(pairs, k=16)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


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


# %%
begun = time.time()
tuned_model = finetune(copy.deepcopy(model), train_pairs)
tuning_seconds, tuned_loss = time.time() - begun, val_loss(tuned_model)
test_answers = answers(tuned_model, [prompt for prompt, _ in test_pairs])
right = np.mean([answer == label for answer, (_, label) in zip(test_answers, test_pairs)])
for (prompt, label), answer in list(zip(test_pairs, test_answers))[::16]:
    print(f"{prompt}: {answer!r} (correct: {label})")
print(f"{100 * right:.0f}% of {len(test_pairs)} answers are right, after {tuning_seconds:.0f} s of training")

figure, axes = plt.subplots(1, 2, figsize=(11, 1.7), layout="constrained", width_ratios=(3, 1))
x, y = (ids[:28] for ids in example(*train_pairs[0]))
texts = [[visible(decode([i])) for i in x], [visible(decode([i])) if i >= 0 else "" for i in y]]
draw_cells(axes[0], torch.stack((torch.zeros(28), (y >= 0).float())), texts, cmap="Blues", vmax=3)
axes[0].set(title="one example; only the coloured targets count", xticks=[])
axes[0].set_yticks([0, 1], ["x", "y"])
losses = {"before": final_loss, "after": tuned_loss}
draw_bars(axes[1], losses, f"loss on {CORPUS}", "{:.2f}", color=colours[:2])
show("Left: a prompt and its response; only the response is a target. Right: the loss on the text before and after.")
check(right > 0.9, "the fine-tuned model answers over 90% of the test correctly")
check(tuned_loss > final_loss + 0.3, "it has forgotten much of the text: the loss there rises")

# %% [markdown]
# The model now answers, and it looks nearly perfect. The price is on the right: it has **forgotten** much of the text
# that it was trained on first.
#
# **Question.** The line end counts in the loss, as part of the response. Why?
#
# <details><summary>Answer</summary>
#
# The model must learn to stop. Without a target there, it would go on writing until the limit of 14 characters.
# </details>

# %% [markdown]
# ## 18. What a split hides
# *Short path.*
#
# In the test of part 17, RIVER BAKERY is new, but training has seen KENT BAKERY. So there are two kinds of tests:
#
# - **New combinations**: a random sample of the lines, as in part 17. Each shop word of this test occurs in training.
# - **New words**: four shop words per category are held out. No line with them occurs in training.

# %%
tests = {"new combinations": test_pairs, "new words": lines_of(1)}


def shop_of(pair):
    return pair[0].partition(" ")[2]


for name, pairs in tests.items():
    seen = np.mean([shop_of(pair) in {shop_of(other) for other in train_pairs} for pair in pairs])
    print(f"{name}: {len(pairs)} lines, {100 * seen:.0f}% of their shop words occur in training")
    assert seen == (name == "new combinations")


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


# %% [markdown]
# A result means little without baselines. Three of them, from cheap to expensive:
#
# - the **majority baseline** always gives the most frequent label of the training lines;
# - the **n-gram baseline** looks at pieces of one to four characters: one weight per piece and label (logistic
#   regression), trained within seconds;
# - **training from scratch**: the same model and training, but starting from random parameters.


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


# %%
results, took, trained_parameters = {}, {}, {}  # by method: accuracy, seconds, parameters (for part 22)


def accuracy(classify) -> dict[str, float]:
    """The share of the lines of each test whose most probable label is the right one."""
    shares = {}
    for name, pairs in tests.items():
        best = classify([prompt for prompt, _ in pairs]).argmax(1)
        shares[name] = np.mean([labels[i] == label for i, (_, label) in zip(best, pairs)])
    return shares


def note(name, classify, seconds, trained):
    """Note the accuracy on both tests, the seconds of the training, and the number of trained parameters."""
    took[name], trained_parameters[name], results[name] = seconds, trained, accuracy(classify)
    print(f"{name:<22}" + "   ".join(f"{test}: {100 * share:3.0f}%" for test, share in results[name].items()))


most_frequent = labels.index(Counter(label for _, label in train_pairs).most_common(1)[0][0])
note("majority baseline", lambda prompts: torch.eye(4)[[most_frequent] * len(prompts)], 0, 0)

torch.manual_seed(1)
begun = time.time()
ngram, count = ngram_baseline(train_pairs)
note("n-gram baseline", ngram, time.time() - begun, count)

begun = time.time()
scratch_model = finetune(GPT(), train_pairs)
scratch_seconds = time.time() - begun
scratch = num_params(scratch_model)
note("training from scratch", lambda prompts: label_probabilities(scratch_model, prompts), scratch_seconds, scratch)
note("fine-tuning", lambda prompts: label_probabilities(tuned_model, prompts), tuning_seconds, num_params(model))

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=(1, 1.1))
by_test = {test: [row[test] for row in results.values()] for test in tests}
draw_percent(axes[0], list(results), by_test, "correct answers, %")
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
show("Left: accuracy of four methods on new combinations and on new words. Right: of two methods, for each new word.")
for prompt, label in tests["new words"][::40]:
    print(f"{prompt}: {answers(tuned_model, [prompt])[0]!r} (correct: {label})")
assert set(results["majority baseline"].values()) == {0.25}
trained = [results[name] for name in ("n-gram baseline", "training from scratch", "fine-tuning")]
check(all(row["new combinations"] > 0.9 for row in trained), "three methods answer over 90% of the new combinations")
check(all(row["new words"] < 0.6 for row in trained), "all of them answer less than 60% of the new words")
lead = results["n-gram baseline"]["new words"] - results["fine-tuning"]["new words"]
check(lead > -0.1, "on new words the n-gram baseline is about as good as fine-tuning, or better")

# %% [markdown]
# One model, two results. On new combinations it looks perfect: training has seen every shop word, so this test only
# asks whether the model has memorised 32 words. That is **data leakage** (Kaufman et al. 2012). On new words it is far
# worse (guessing would reach 25%). The n-gram baseline takes seconds, and does about as well or better. The right panel
# shows for which words. **The split decides what the number means**: test on what will be new when the model is in use.
# (The 192 lines of the second test are 16 words, so its uncertainty is large: some ten percentage points.)
#
# **Question.** Your colleague reports 100% on a random split of last year's transactions. What do you ask?
#
# <details><summary>Answer</summary>
#
# How many of the test's merchants occur in training? What does the model score on other merchants, or on the following
# month? And what do the majority and the n-gram baseline score on the same test?
# </details>
#
# **Exercise.** Let training see one line of each new word. Copy this into a new cell below and run that cell alone:
#
# ```python
# more_pairs = train_pairs + [pair for pair in tests["new words"] if pair[0].startswith("KENT")]
# helped_model, (helped_ngram, _) = finetune(copy.deepcopy(model), more_pairs), ngram_baseline(more_pairs)
# print(accuracy(lambda prompts: label_probabilities(helped_model, prompts)), accuracy(helped_ngram))
# ```
#
# <details><summary>Answer</summary>
#
# With Shakespeare, the fine-tuned model gets 85% of the new words right, instead of 27%, and the n-gram baseline 100%,
# instead of 38%. Sixteen lines help more than any change of the model: what was missing was a fact, such as that a
# nurse belongs to health.
# </details>

# %% [markdown]
# ## 19. LoRA
# *Full path.*
#
# A complete copy of the parameters for each task is large. **LoRA** (Hu et al. 2021) freezes a matrix W and trains a
# small difference next to it, the product of two thin matrices B and A: W + (α / r) · B A. The **rank** r is their
# shared inner dimension, here 8; α (alpha) scales the difference. A and B are the **adapter**.


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
note("LoRA", lambda prompts: label_probabilities(adapted, prompts), time.time() - begun, adapter_parameters)
with torch.no_grad():
    not_merged = adapted(probe)
    for part, name in matrices(adapted):
        setattr(part, name, getattr(part, name).merged())
    assert torch.allclose(adapted(probe), not_merged, atol=1e-3)  # merged: an ordinary model again

guessed = accuracy(lambda prompts: label_probabilities(model, prompts))["new combinations"]
names = ("base model", "fine-tuning", "LoRA")
correct = [100 * share for share in (guessed, *(results[name]["new combinations"] for name in names[1:]))]
panels = {  # title: values and their format
    "trained parameters": ([0, num_params(model), adapter_parameters], "{:,.0f}"),
    f"loss on {CORPUS} (forgetting)": ([final_loss, tuned_loss, val_loss(adapted)], "{:.2f}"),
    "new combinations correct, %": (correct, "{:.0f}"),
}
figure, axes = plt.subplots(1, 3, figsize=(11, 1.9), layout="constrained", sharey=True)
for ax, (title, (values, form)) in zip(axes, panels.items()):
    draw_bars(ax, dict(zip(names, values)), title, form, color=colours[:3])
    ax.set(xticks=[])
show("Bars for the base model, fine-tuning and LoRA: trained parameters, forgetting, and correct answers.")
check(results["LoRA"]["new combinations"] > 0.85, "LoRA answers over 85% of the new combinations")
check(adapter_parameters < 0.1 * num_params(model), "it trains less than a tenth of the parameters")

# %% [markdown]
# The adapter can be removed at any time, and then nothing is forgotten. While it is in place, the model forgets, too:
# with Shakespeare as much as with all weights. (On other tasks it was half or three quarters as much:
# docs/explanation/fine-tuning.md.)
#
# **Question.** With A *and* B at zero, nothing would change at first, too. Why is only B zero?
#
# <details><summary>Answer</summary>
#
# The gradient of B is a product with A, that of A a product with B. If both are zero, both gradients are zero, and the
# adapter never learns.
# </details>

# %% [markdown]
# ## 20. Confidently wrong
# *Short path.*
#
# What does the fine-tuned model say outside its task? It gets the new words of part 18, and pieces of the corpus: in
# capitals like a card statement, but unrelated to spending. Its **confidence** is the probability of its most probable
# label.

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
above = ", ".join(f"{100 * share:.0f}% ({name})" for name, share in answered.items())
print(f"above a threshold of {threshold:.3f} it answers {above}")
figure, axes = plt.subplots(1, 2, figsize=(10, 2.9), layout="constrained", width_ratios=(1.6, 1))
for (name, values), colour, hatch in zip(confidence.items(), colours, ("", "//", "..")):
    share = np.histogram(values, 10, (0, 1))[0] / len(values)
    at = np.arange(10) / 10 + 0.02 + 0.028 * list(confidence).index(name)
    axes[0].bar(
        at, 100 * share, 0.028, color=colour, hatch=hatch, edgecolor="white", linewidth=0, align="edge", label=name
    )
axes[0].set(title="how confident are the answers?", xlabel="confidence", ylabel="% of the prompts", xlim=(0, 1))
axes[0].legend(frameon=False, loc="upper left")
percent_answered = {name: 100 * share for name, share in answered.items()}
draw_bars(axes[1], percent_answered, "answered above the threshold, %", "{:.0f}", color=colours[:3])
show("Left: confidence for known words, new words and lines outside the task. Right: the share above the threshold.")
check(confidence["outside the task"].mean() > 0.4, "outside the task the mean confidence is over 40%")
check(wrong_confidence.mean() > 0.5, "wrong answers to new words have a mean confidence over 50%")

# %% [markdown]
# Every line gets a spending category. The model has learned four responses, and it cannot say "none of these".
# Confidence compares these four answers; it does not say whether the question makes sense. A threshold helps, but the
# right panel shows how much still passes it. (Hendrycks & Gimpel 2017; `tinygpt lab confidence` measures it at full
# size.)
#
# **Question.** What would a fifth label, "other", change?
#
# <details><summary>Answer</summary>
#
# It helps for the kinds of prompts in its training lines. Lines of the corpus, labelled "other", would teach the model
# to catch such lines, but not the next kind of unexpected prompt. It is worth doing, but guarantees nothing.
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
# ## 21. Retrieval: the answer is in a document
# *Short path.*
#
# Facts change, and a model's parameters do not. **Retrieval** (Lewis et al. 2020) keeps facts in documents: search for
# passages with the question's words, then let a model *read* them. `tinygpt ask` does both. tinygpt
# ships with a **reader**: a GPT like yours, trained to copy the answer from a passage or to report that there is none.
#
# The alternative is a **closed-book** model: yours, fine-tuned on the same facts, answering from its parameters alone.

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
    tinygpt("ask", "Who?", "documents", "--index=index.db", "--embeddings=none")  # keyword search alone
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
groups_of_facts = {
    "before the change, all questions": [row[0] for row in before.values()],
    "after, all questions": [row[0] for row in after.values()],
    "after, the three facts that changed": [row[1] for row in after.values()],
}
draw_percent(ax, list(before), groups_of_facts, "correct answers, %")
show("Bars of correct answers before and after the facts change: search, search and reader, closed book.")
check(before["closed book"][0] > 0.9, "the closed-book model knows over 90% of the first facts")
check(after["closed book"][1] == 0, "it knows none of the new facts")
check(before["search alone"][0] > 0.9 and after["search alone"][1] > 0.9, "search alone finds over 90% of the passages")
check(before["search and reader"][0] > 0.8, "search and reader answer over 80% of the questions")
check(after["search and reader"][1] > 0.6, "they answer over 60% of the questions about new facts")
check(answers(facts_model, ["CFO of Velmar Rail"]) != [""], "the closed-book model answers for an unknown company")
check(unknown["model"] == "", "the reader abstains there")

# %% [markdown]
# The closed-book model knows its facts, until they change. Then it states the old ones, as fluently as before. Its 0%
# holds by construction: nothing has told it the new facts. In `tinygpt lab facts`, a closed-book model that is trained
# again on all facts answers 69% of the changed ones correctly, and so does retrieval. But training takes 2 minutes, and
# indexing the corrected document 1 second. With retrieval, a person can check the passage, and the reader abstains.
# (These sentences are as plain as the reader's training examples. On longer documents about companies it answers 71 to
# 74% of the questions, on other documents none: docs/explanation/retrieval.md.)
#
# **Question.** Search alone already finds every passage. What does the reader add?
#
# <details><summary>Answer</summary>
#
# The answer instead of a text to read, and "not in the documents" if there is none. But it can misread. Who reads the
# passages otherwise, and how much time do they have?
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
# ## 22. Which method?
# *Short path.*
#
# The last table of this course, filled in from *your* run: labels with the tests of part 18, facts with the questions
# of part 21. "–" means: not measured. The closed-book model was not trained on the changed facts. (If you skipped part
# 19: **LoRA** fine-tunes a small difference to each matrix, and leaves the model's own parameters as they are.)


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
    groups = {head[i].removeprefix("labels: "): [float(row[i].rstrip("%")) / 100 for row in shown] for i in columns}
    draw_percent(ax, names, groups, f"{title}: correct, %")
show("Bars: correct labels by four methods, and correct facts by three methods, before and after a change.")
assert len(rows) == 7

# %% [markdown]
# **Start simple**, and take the next step only if a test with new cases shows that it pays:
#
# 1. **Prompt an existing model.** (Yours is too small to follow a prompt, so the table has no such row.)
# 2. **Retrieval**, for facts, above all for facts that change. A correction costs seconds, and every answer has its
#    source.
# 3. **Fine-tuning**, for a skill with a fixed form: a label, a style, a format. For labels, beat the n-gram baseline on
#    a test with new words.
#
# Then **combine** them: for an answer in your form, from today's facts, retrieve and train a model to read. Train from
# scratch if the task is narrow and you have enough examples. (Here your base model gains little or nothing: its text
# says little about shops.) And whatever you choose, expect **prompts outside the task** (part 20): abstain below a
# threshold, and test it with such prompts.
#
# Your numbers are from one small run. The labs measure the same questions at full size, with three seeds: `tinygpt lab
# methods`, `tinygpt lab facts`, `tinygpt lab confidence`.
#
# **Question.** A bank wants a model that writes client letters in its tone and quotes today's interest rates. Which
# method?
#
# <details><summary>Answer</summary>
#
# First prompt an existing model with examples of the tone, and retrieve the rates: they change, so they come from a
# document with each request. A check compares the letter's numbers with it. If the tone is not good enough, fine-tune
# on a few hundred letters.
# </details>

# %% [markdown]
# ## 23. The same model with `tinygpt train`
# *Full path.*
#
# The preset `nanogpt.yaml` is nanoGPT's recipe of 2023. With rotary positions, it describes the model and the training
# of part 13. So both curves should agree, except for noise: other random numbers, and on some processors numbers of
# lower precision. (The legend's losses are measured on a part of the validation text, the printed ones on all of it.)


# %%
def train_with(preset, run, steps, *flags):
    """Train a preset in a new folder: its seconds, its 11 evaluations, its loss on the whole validation text."""
    shutil.rmtree(folder / run, ignore_errors=True)  # if this cell ran before
    begun = time.time()
    tinygpt("train", f"configs/{preset}.yaml", f"--dataset={dataset}", f"--out_dir={run}", "--device=cpu",
            f"--max_iters={steps}", f"--eval_interval={steps // 10}", *flags)  # fmt: skip
    taken = time.time() - begun
    entries = [json.loads(row) for row in (folder / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = json.loads(tinygpt("eval", f"--ckpt={run}/last.pt", "--json=True", "--device=cpu"))["loss"]
    return taken, [entry for entry in entries if entry["kind"] == "eval"], loss


def curve(evaluations, x="step"):
    return [(entry[x], entry["train_loss"], entry["val_loss"]) for entry in evaluations]


dataset = {"shakespeare": "shakespeare_char", "naics": "naics"}[CORPUS]
tinygpt("prepare", dataset)
recipe_seconds, recipe, recipe_loss = train_with("nanogpt", "out", 1000, "--position=rope")
print(f"{recipe_seconds:.0f} s, and {training_seconds:.0f} s in part 13")
print(f"whole validation text: {final_loss:.3f} in this notebook, {recipe_loss:.3f} with tinygpt train")
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
draw_curves(ax, {"this notebook": history, "tinygpt train": curve(recipe)})
show("Two pairs of loss curves, of this notebook and of tinygpt train: they nearly coincide.")
check(abs(final_loss - recipe_loss) < 0.08, "tinygpt train reaches the same loss, within 0.08")

# %% [markdown]
# What else could this time have bought? 400 steps of the preset `shakespeare_char.yaml` take about as long, or less:

# %%
preset_seconds, preset, preset_loss = train_with("shakespeare_char", "out-preset", 400)
print(f"nanogpt: {recipe_seconds:.0f} s, whole validation text {recipe_loss:.3f}")
print(f"shakespeare_char: {preset_seconds:.0f} s, whole validation text {preset_loss:.3f}")
for name, run in (("nanogpt", "out"), ("shakespeare_char", "out-preset")):
    continued = tinygpt("sample", f"--ckpt={run}/last.pt", f"--start={start}", "--max_new_tokens=150", "--device=cpu")
    print(f"\n--- {name}\n{continued.strip()}")
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
draw_curves(ax, {"nanogpt": curve(recipe, "seconds"), "shakespeare_char": curve(preset, "seconds")})
ax.set(xlabel="seconds of training")
show("Two pairs of loss curves over the seconds of training: the curve of shakespeare_char ends lower.")
check(preset_loss < recipe_loss, "400 steps of shakespeare_char reach a lower loss than 1,000 of nanogpt")
print(f"all cells took {(time.time() - started) / 60:.1f} minutes")

# %% [markdown]
# Both trainings read about the same amount of text: 1,000 × 12 × 64 and 400 × 32 × 64 characters. Both models have
# rotary positions here, and `nanogpt.yaml` alone would have learned ones. `shakespeare_char.yaml` has three blocks and
# two heads instead of four, larger batches, and choices that are usual today:
#
# - **RMSNorm** (Zhang & Sennrich 2019): a norm that does not subtract the mean.
# - **Squared ReLU** (So et al. 2021): the MLP's activation is max(0, x)² instead of GELU.
# - **Muon** (Jordan et al. 2024): an optimizer that makes the update of each matrix nearly orthogonal, so that no few
#   directions dominate it.
# - **Linear decay** of the learning rate to zero, instead of a cosine to a tenth of the peak.
#
# A lower loss does not say which of them helped. The exercise does.
#
# **Question.** Where would you look first if the curves did *not* agree?
#
# <details><summary>Answer</summary>
#
# At step 0: both must start at ln V, or the initial parameters differ. Then at the first 100 steps: the learning rate.
# Then at the distance between training and validation: dropout, weight decay, the split.
# </details>
#
# **Exercise.** Undo one choice at a time. Copy this into a new cell below and run that cell alone. Then replace the
# optimizer by `"--position=learned"`, `"--norm=layernorm"`, `"--activation=gelu"`, and `"--lr_schedule=cosine",
# "--min_lr=3e-4"`. Which choices lower the loss?
#
# ```python
# print(train_with("shakespeare_char", "out-undone", 400, "--optimizer=adamw")[2])
# ```
#
# <details><summary>Answer</summary>
#
# With Shakespeare, all choices together reach 1.75. AdamW: 1.90 (and 1.96 with a learning rate of 0.001). Learned
# positions: 1.80. So Muon and rotary positions help. LayerNorm (1.76) and the cosine (1.75) differ by less than two
# seeds do (0.02). GELU is even a little better: 1.74, and lower with each of three seeds. What is usual in large models
# need not help in so short a training: measure it.
# </details>
#
# Next: `tinygpt exercise list`, to write all of this yourself and have it checked. And
# `configs/shakespeare_char_fast.yaml`: it reaches the loss of `nanogpt.yaml` in 210 iterations instead of 2,000,
# and explains why.
