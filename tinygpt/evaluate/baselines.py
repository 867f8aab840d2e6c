"""Losses of the n-gram baselines that a model is compared with: uniform, unigram, bigram and trigram.

Source: Jurafsky & Martin, "Speech and Language Processing", chapter 3 (n-gram language models and their smoothing).

losses = ngram_baselines(train, val, vocab_size)      # {"uniform": ln V, "unigram": ..., ...} in nats per token

Both splits may be memory-mapped files far larger than memory, with as many distinct trigrams as targets. So these are
counted in groups of at most KEYS, in ascending order of an integer key; each group costs one pass over the training
split and two over the validation split. The key begins with the trigram's middle token, because its bigram and both
contexts contain that token, too: a pass compares every token with the group's range and does work for few of them.

Measured on two busy cores, 10 GB of training and 1 GB of validation tokens: 3.5 minutes and 0.24 GB for 65 different
tokens; 12.6 minutes and 0.84 GB for 50,257. Uniformly random tokens, where almost no trigram repeats, took 1.13 GB.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

import numpy as np

from tinygpt.errors import TinyGPTError
from tinygpt.terminal import progress

BLOCK = 1 << 22  # tokens read at a time, and keys sorted at a time
KEYS = 1 << 22  # distinct trigrams whose counts are held at a time
TABLE = 1 << 22  # possible keys up to which a block is counted in a table, which is faster than sorting it
BAR_FROM = 10 << 20  # training tokens from which a progress bar is worth showing


def ngram_baselines(
    train: np.ndarray, val: np.ndarray, vocab_size: int, where: np.ndarray | slice = slice(None)
) -> dict[str, float]:
    """Mean loss of each baseline in nats per token, on the targets val[1:] or those of them at `where`.

    `train`, `val`: ids, uint16, shape (tokens,). `where`: a slice, or indices from 0; it selects at least one target.
    uniform: 1 / V. unigram: add-one smoothing. bigram: P(b | a) = (count(a, b) + P(b)) / (count(a) + 1), that is, one
    pseudo-observation distributed like the unigram (Dirichlet smoothing). trigram: the same after two tokens, the
    pseudo-observation distributed like the bigram; the first target, which only one token precedes, keeps its bigram.
    Errors: TinyGPTError for a token outside the vocabulary.
    """
    # A different extra token is put before each split. So the first bigram of a split also ends a trigram; and because
    # the two tokens differ, the first target's trigram and its context have count 0: its bigram's probability remains
    base = vocab_size + 2
    training = Trigrams(train, range(len(train) - 1), base, vocab_size)
    targets = Trigrams(val, selected(where, len(val) - 1), base, vocab_size + 1)
    once = unigram_counts(train, vocab_size, "training")
    unigram_counts(val, vocab_size, "validation")  # for its check alone: mapped files are not checked when opened
    unigram = (once + 1) / (len(train) + vocab_size)
    once[train[-1]] -= 1  # from here on: how often each token is followed by another
    sums, done, low = np.zeros(3), 0, 0
    while done < len(targets.at):
        keys = targets.smallest(low)  # (K,)
        contexts, pairs = distinct(keys // base, base**2)[0], distinct(ends(keys, base), base**2)[0]
        weight, triple_count, context_count, pair_count = (np.zeros(len(k)) for k in (keys, keys, contexts, pairs))
        show = f"n-gram baselines: {done / len(targets.at):.0%} of the targets done, next pass"
        middles = keys[0] // base**2, keys[-1] // base**2
        for part in batches(training.keys(*middles, show)):
            found, counts = distinct(part, base**3)
            add(triple_count, keys, found, counts)
            add(context_count, contexts, found // base, counts)
            add(pair_count, pairs, ends(found, base), counts)
        for part in batches(targets.keys(*middles)):
            add(weight, keys, *distinct(part, base**3))
        middle, last = keys // base**2, keys % base
        bigram = (pair_count[np.searchsorted(pairs, ends(keys, base))] + unigram[last]) / (once[middle] + 1)
        trigram = (triple_count + bigram) / (context_count[np.searchsorted(contexts, keys // base)] + 1)
        sums -= [(weight * np.log(p)).sum() for p in (unigram[last], bigram, trigram)]
        done += int(weight.sum())
        low = int(keys[-1]) + 1
    means = (sums / done).tolist()
    return {"uniform": float(np.log(vocab_size)), **dict(zip(("unigram", "bigram", "trigram"), means, strict=True))}


class Trigrams:
    """The trigrams of a split, as int64 keys (middle * base + previous) * base + last, enough for 65,536 tokens.

    `at`: the positions of their middle tokens, ascending. `before`: the token that is put before the split.
    """

    def __init__(self, ids: np.ndarray, at: range | np.ndarray, base: int, before: int) -> None:
        self.ids, self.at, self.base, self.before = ids, at, base, before

    def smallest(self, low: int) -> np.ndarray:
        """The smallest KEYS distinct keys from `low`, or all if there are fewer: ascending."""
        found, high = np.zeros(0, dtype=np.int64), self.base**3
        wanted = (keys[(keys >= low) & (keys <= high)] for keys in self.keys(low // self.base**2, self.base))
        for keys in batches(wanted):
            found = distinct(np.append(found, keys), self.base**3)[0][:KEYS]
            if len(found) == KEYS:
                high = found[-1]  # `wanted` sees it, and no longer collects larger keys
        return found

    def keys(self, first: int, last: int, show: str = "") -> Iterator[np.ndarray]:
        """The keys with middle tokens from `first` to `last`, block by block; `show` names a progress bar."""
        end = len(self.ids) - 1
        with progress(None, bool(show) and end >= BAR_FROM, total=end, unit="tok", unit_scale=True, desc=show) as bar:
            for start in range(0, end, BLOCK):
                stop = min(start + BLOCK, end)
                block = np.asarray(self.ids[max(start - 1, 0) : stop + 1])
                if start == 0:
                    block = np.append(np.uint32(self.before), block)
                at = self.at[bisect_left(self.at, start) : bisect_left(self.at, stop)]
                here = slice(at.start - start, at.stop - start, at.step) if isinstance(at, range) else at - start
                columns = [block[offset : len(block) - 2 + offset][here] for offset in range(3)]
                kept = np.flatnonzero((columns[1] >= first) & (columns[1] <= last))  # as uint16: 0.4 ns per token
                previous, middle, following = (column[kept] for column in columns)
                yield (middle.astype(np.int64) * self.base + previous) * self.base + following
                bar.update(stop - start)


def selected(where: np.ndarray | slice, count: int) -> range | np.ndarray:
    """`where` of `count` positions, ascending."""
    if isinstance(where, slice):
        at = range(count)[where]
        return at if at.step > 0 else at[::-1]
    assert where.dtype.kind in "iu" and where.min() >= 0 and where.max() < count, "indices from 0"
    return np.sort(where)


def unigram_counts(ids: np.ndarray, vocab_size: int, split: str) -> np.ndarray:
    """How often each token occurs, float64 (vocab_size,). Errors: TinyGPTError for a token outside the vocabulary."""
    counts = np.zeros(vocab_size)
    for start in range(0, len(ids), BLOCK):
        found = np.bincount(ids[start : start + BLOCK], minlength=vocab_size)
        if len(found) > vocab_size:
            outside = f"token {len(found) - 1}, outside the {vocab_size:,} tokens of the vocabulary"
            raise TinyGPTError(f"the {split} split has {outside}", "tinygpt check DATASET_FOLDER")
        counts += found
    return counts


def ends(keys: np.ndarray, base: int) -> np.ndarray:
    """The keys of the pairs that end these trigrams: middle * base + last."""
    return keys // base**2 * base + keys % base


def batches(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts joined to at least BLOCK elements, and the rest."""
    held, size = [np.zeros(0, dtype=np.int64)], 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= BLOCK:
            yield np.concatenate(held)
            held, size = [], 0
    if size:
        yield np.concatenate(held)


def distinct(keys: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of `keys`, all below `size`, ascending; and how often each occurs."""
    if size > TABLE:
        return np.unique(keys, return_counts=True)  # without counts numpy 2.3 takes ten times as long: it hashes
    counts = np.bincount(keys)
    found = np.flatnonzero(counts)
    return found, counts[found]


def add(totals: np.ndarray, known: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> None:
    """Add the counts of the keys that are among `known` to its totals, in place. `known` is ascending."""
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    totals += np.bincount(at, counts * (known[at] == keys), minlength=len(known))
