"""The n-gram models against dictionaries of counts, and their limits."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.examine.eval import baselines
from tinygpt.examine.eval.baselines import ngram_losses, omissions_note

ALL = slice(None)


def by_definition(train: list[int], val: list[int], vocab_size: int, at: np.ndarray) -> dict[str, float]:
    """The losses of the targets `at`, from dictionaries of the n-grams of a list of tokens."""
    singles, pairs, triples = (Counter(zip(*(train[i:] for i in range(n)), strict=False)) for n in (1, 2, 3))
    firsts, first_pairs = Counter(train[:-1]), Counter(pairwise(train[:-1]))

    def unigram(b: int) -> float:
        return (singles[b,] + 1) / (len(train) + vocab_size)

    def bigram(a: int, b: int) -> float:
        return (pairs[a, b] + unigram(b)) / (firsts[a] + 1)

    def trigram(a: int, b: int, c: int) -> float:
        return (triples[a, b, c] + bigram(b, c)) / (first_pairs[a, b] + 1)

    probabilities = {
        "uniform": [1 / vocab_size for _ in at],
        "unigram": [unigram(val[i + 1]) for i in at],
        "bigram": [bigram(*val[i : i + 2]) for i in at],
        "trigram": [trigram(*val[i - 1 : i + 2]) if i else bigram(*val[:2]) for i in at],
    }
    return {name: -math.fsum(map(math.log, values)) / len(at) for name, values in probabilities.items()}


def check(train: list[int], val: list[int], vocab_size: int, where: slice | np.ndarray = ALL) -> None:
    at = np.arange(len(val) - 1)[where]
    arrays = np.array(train, dtype="<u2"), np.array(val, dtype="<u2")
    found = ngram_losses(*arrays, vocab_size, None if where is ALL else at)
    assert found == pytest.approx(by_definition(train, val, vocab_size, at), rel=0, abs=1e-12)


def text(vocab_size: int, count: int, seed: int) -> list[int]:
    """Random tokens among the 30 largest of the vocabulary, so that n-grams repeat and their keys are large."""
    ranks = np.random.default_rng(seed).geometric(0.2, count).clip(max=min(30, vocab_size))
    return (vocab_size - ranks).tolist()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.lists(st.integers(0, 4), min_size=2, max_size=20))
def test_short_texts(train: list[int], val: list[int]) -> None:
    """Every short case: unseen tokens, texts of one or two tokens, the first target, which has no trigram."""
    check(train, val, 5)


@pytest.mark.parametrize("vocab_size", [2, 65, 5000, 65536])
@pytest.mark.parametrize("where", [ALL, np.array([40, 0, 3, 3, 998])], ids=["all", "indices"])
def test_any_vocabulary_any_targets(vocab_size: int, where: slice | np.ndarray) -> None:
    check(text(vocab_size, 3000, 1), text(vocab_size, 1000, 2), vocab_size, where)


def test_beyond_the_limits_the_first_tokens_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = text(65, 3000, 1), text(65, 1000, 2)
    monkeypatch.setattr(baselines, "MOST_TRAINING", 2000)
    monkeypatch.setattr(baselines, "MOST_TARGETS", 100)
    found = ngram_losses(np.array(train, dtype="<u2"), np.array(val, dtype="<u2"), 65, np.arange(999))
    assert found == pytest.approx(by_definition(train[:2000], val, 65, np.arange(100)), rel=0, abs=1e-12)
    assert omissions_note(2000, 100) == ""
    assert "training tokens and measured on the first 100 of 999" in omissions_note(3000, 999)
