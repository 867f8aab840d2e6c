"""The n-gram models against dictionaries of counts, and their limits."""

import math
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.examine.eval import baselines
from tinygpt.examine.eval.baselines import ngram_losses, omissions_note

ALL = slice(None)
MEMORY = 1 << 30  # bytes that a child process may grow by, the mapped pages of its files included


class Reference:
    """The probabilities by definition, from dictionaries of the n-grams of a list of tokens."""

    def __init__(self, train: list[int], vocab_size: int) -> None:
        self.tokens, self.vocab_size = len(train), vocab_size
        self.singles, self.pairs = Counter(train), Counter(pairwise(train))
        self.triples = Counter(zip(train, train[1:], train[2:], strict=False))
        self.firsts, self.first_pairs = Counter(train[:-1]), Counter(pairwise(train[:-1]))

    def unigram(self, b: int) -> float:
        return (self.singles[b] + 1) / (self.tokens + self.vocab_size)

    def bigram(self, a: int, b: int) -> float:
        return (self.pairs[a, b] + self.unigram(b)) / (self.firsts[a] + 1)

    def trigram(self, a: int, b: int, c: int) -> float:
        return (self.triples[a, b, c] + self.bigram(b, c)) / (self.first_pairs[a, b] + 1)

    def losses(self, val: list[int], where: slice | np.ndarray = ALL) -> dict[str, float]:
        at = np.arange(1, len(val))[where].tolist()
        probabilities = {
            "uniform": [1 / self.vocab_size for _ in at],
            "unigram": [self.unigram(val[i]) for i in at],
            "bigram": [self.bigram(*val[i - 1 : i + 1]) for i in at],
            "trigram": [self.trigram(*val[i - 2 : i + 1]) if i > 1 else self.bigram(*val[:2]) for i in at],
        }
        return {name: -math.fsum(map(math.log, values)) / len(at) for name, values in probabilities.items()}


def check(train: list[int], val: list[int], vocab_size: int, where: slice | np.ndarray = ALL) -> None:
    at = None if where is ALL else np.arange(len(val) - 1)[where]
    found = ngram_losses(np.array(train, dtype="<u2"), np.array(val, dtype="<u2"), vocab_size, at)
    expected = Reference(train, vocab_size).losses(val, where)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


def text(vocab_size: int, count: int, seed: int) -> list[int]:
    """Random tokens among the 30 largest of the vocabulary, so that n-grams repeat and their keys are large."""
    ranks = np.random.default_rng(seed).geometric(0.2, count).clip(max=min(30, vocab_size))
    return (vocab_size - ranks).tolist()


# ---- the losses -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.lists(st.integers(0, 4), min_size=2, max_size=20))
@settings(deadline=None)
def test_short_texts(train: list[int], val: list[int]) -> None:
    """Every short case: unseen tokens, texts of one or two tokens, the first target, which has no trigram."""
    check(train, val, 5)


@pytest.mark.parametrize("vocab_size", [2, 65, 300, 5000, 50257, 65536])
@pytest.mark.parametrize(
    "where",
    [ALL, slice(100), slice(7, None, 3), slice(None, None, -2), np.array([40, 0, 3, 3, 998]), np.array([5])],
    ids=["all", "first", "every third", "backwards", "indices", "one"],
)
def test_any_vocabulary_any_targets(vocab_size: int, where: slice | np.ndarray) -> None:
    check(text(vocab_size, 3000, 1), text(vocab_size, 1000, 2), vocab_size, where)


# ---- limits -----------------------------------------------------------------------------------------------------


def test_beyond_the_limits_the_first_tokens_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = text(65, 3000, 1), text(65, 1000, 2)
    monkeypatch.setattr(baselines, "MOST_TRAINING", 2000)
    monkeypatch.setattr(baselines, "MOST_TARGETS", 100)
    ids = np.array(train, dtype="<u2"), np.array(val, dtype="<u2")
    expected = pytest.approx(Reference(train[:2000], 65).losses(val[:101]), rel=0, abs=1e-12)
    assert ngram_losses(*ids, 65) == ngram_losses(*ids, 65, np.arange(999)) == expected
    assert omissions_note(2000, 100) == ""
    assert "first 2,000 of 2,001 training tokens" in omissions_note(2001, 100)
    assert "first 100 of 101 validation tokens" in omissions_note(2000, 101)
    assert "training tokens and measured on the first 100 of 999" in omissions_note(3000, 999)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process its peak memory")
@pytest.mark.parametrize("vocab_size", [65, 50257])
def test_ngram_losses_at_their_limits_need_little_memory(vocab_size: int, tmp_path: Path) -> None:
    """80 million training tokens, a sparse file, and 5 million validation tokens, of which all trigrams may differ."""
    with open(tmp_path / "train.bin", "wb") as file:
        file.truncate(160_000_000)
    np.random.default_rng(0).integers(0, vocab_size, 5_000_000).astype("<u2").tofile(tmp_path / "val.bin")
    code = f"""
import re
import numpy as np
from tinygpt.examine.eval.baselines import ngram_losses
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) << 10
train, val = (np.memmap(name + ".bin", dtype="<u2", mode="r") for name in ("train", "val"))
before = peak()
losses = ngram_losses(train, val, {vocab_size})
print("grew by", peak() - before, "loss", losses["trigram"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    grown = re.match(r"grew by (\d+)", done.stdout)
    assert grown, done.stderr
    assert int(grown[1]) < MEMORY
    assert not done.stderr  # and no progress bar where there is no terminal
