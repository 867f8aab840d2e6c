"""Losses of the n-gram models that a model is compared with: uniform, unigram, bigram and trigram.

Source: Jurafsky & Martin, "Speech and Language Processing", chapter 3 (n-gram models and their smoothing).

    losses = ngram_losses(train, val, vocab_size)      # {"uniform": ln V, "unigram": ..., ...} in nats per token

The n-grams are sorted and counted in memory, next to a model, on a laptop with 8 GB. So at most the first MOST_TRAINING
tokens are counted and the first MOST_TARGETS targets measured; `omissions_note` says so. At both limits, random tokens
from a vocabulary of 50,257, of which almost no trigram repeats, took 1.1 GB and 18 seconds on one core.
"""

import numpy as np

MOST_TRAINING = 50_000_000  # tokens
MOST_TARGETS = 4_000_000
BASE = 1 << 17  # of the n-grams as integers; more than the 65,536 tokens of a token file
NONE = BASE - 1  # padding in front of the first token of the validation split


def ngram_losses(
    train: np.ndarray, val: np.ndarray, vocab_size: int, indices: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the mean loss of each baseline in nats per token, on all targets val[1:] or on those with these indices.

    `train`, `val`: ids, uint16, shape (tokens,). `indices`: int64, at least one; index i is the target val[i + 1].
    uniform: 1 / V. unigram: add-one smoothing. bigram: P(b | a) = (count(a, b) + P(b)) / (count(a) + 1), that is, one
    pseudo-observation distributed like the unigram (Dirichlet smoothing). trigram: the same after two tokens, the
    pseudo-observation distributed like the bigram; the first target, which only one token precedes, keeps its bigram.
    """
    train = train[:MOST_TRAINING]
    indices = np.arange(min(len(val) - 1, MOST_TARGETS)) if indices is None else indices[:MOST_TARGETS]
    previous = val[indices - 1].astype(np.int64)
    middle = val[indices]
    last = val[indices + 1]
    previous[indices == 0] = NONE
    _, first, counts = np.unique(keys(middle, previous, last), return_index=True, return_counts=True)
    # each trigram once
    previous = previous[first]
    middle = middle[first]
    last = last[first]
    contexts = train[:-1]  # the last token has no successor
    unigram = (np.bincount(train, minlength=vocab_size)[last] + 1) / (len(train) + vocab_size)
    bigram = (count(train, middle, last) + unigram) / (count(contexts, middle) + 1)
    trigram = (count(train, previous, middle, last) + bigram) / (count(contexts, previous, middle) + 1)
    losses = {"uniform": float(np.log(vocab_size))}
    for name, probability in (("unigram", unigram), ("bigram", bigram), ("trigram", trigram)):
        losses[name] = 0.0 - float((counts * np.log(probability)).sum() / len(indices))  # not -0.0
    return losses


def omissions_note(training_tokens: int, targets: int) -> str:
    """Return a note on what `ngram_losses` leaves out of so many tokens and targets; empty if it uses them all."""
    parts = []
    if training_tokens > MOST_TRAINING:
        parts.append(f"counted on the first {MOST_TRAINING:,} of {training_tokens:,} training tokens")
    if targets > MOST_TARGETS:
        parts.append(f"measured on the first {MOST_TARGETS:,} of {targets:,} validation tokens")
    return f"to limit their memory, the n-gram models are {' and '.join(parts)}" if parts else ""


def count(ids: np.ndarray, *ngrams: np.ndarray) -> np.ndarray:
    """Count how often each n-gram occurs in `ids`: int64 (n,). `ngrams`: a column for each position, (n,) each."""
    length = max(0, len(ids) - len(ngrams) + 1)
    text_keys = keys(*(ids[start : start + length] for start in range(len(ngrams))))
    text_keys.sort()
    unique_keys, inverse = np.unique(keys(*ngrams), return_inverse=True)  # sorted: 20 times as fast
    return (np.searchsorted(text_keys, unique_keys, "right") - np.searchsorted(text_keys, unique_keys, "left"))[inverse]


def keys(*columns: np.ndarray) -> np.ndarray:
    """Encode n-grams, n = 1 to 3, given as columns of tokens, as integers in lexicographic order: int64 (n-grams,)."""
    key = columns[0].astype(np.int64)
    for column in columns[1:]:
        key *= BASE
        key += column
    return key
