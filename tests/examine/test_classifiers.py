"""Classifiers that are stored: against scikit-learn itself, the same after storing, impossible states refused."""

import copy
import functools
import operator
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.examine.eval.classifiers import CLASSIFIERS, Linear, Majority, Nearest, restored
from tinygpt.use.advise.labeller import load, save

WORDS = [["who", "whose", "person"], ["where", "city", "street"], ["when", "year", "monday"]]


def questions(n: int, seed: int, noise: float = 0.2) -> tuple[list[str], np.ndarray]:
    """Texts whose words tell the label, mostly."""
    draw = random.Random(seed)
    truth = draw.choices(range(3), weights=[5, 3, 2], k=n)
    told = [draw.randrange(3) if draw.random() < noise else label for label in truth]
    prompts = [f"{draw.choice(WORDS[label])} is {draw.choice('abcd') * 3} {draw.randrange(40)}?" for label in told]
    return prompts, np.array(truth)


PROMPTS, TRUTH = questions(120, 1)
NEW = [*questions(30, 2)[0], "", "%", "ünknown 🐳", "WHERE IS AAA?"]


def embed(texts: Sequence[str]) -> np.ndarray:
    """Vectors of length 1 in place of static word vectors: hashed characters with a large common part."""
    vectors = np.ones((len(texts), 16), dtype=np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for character in text:
            vector[ord(character) % 16] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fitted(kind: str, n_labels: int = 4) -> Any:
    if kind == "embedding":
        return Linear.fit(PROMPTS, TRUTH, n_labels, C=10, embed=embed)
    return CLASSIFIERS[kind].fit(PROMPTS, TRUTH, n_labels)


def tfidf(analyzer: str) -> TfidfVectorizer:
    options: dict[str, Any] = {"ngram_range": (1, 5)}
    if analyzer == "word":
        options = {"ngram_range": (1, 2), "token_pattern": r"\w+"}
    return TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, **options)


# ---- against scikit-learn ----------------------------------------------------------------------------------------


def test_the_linear_model_is_scikit_learns() -> None:
    vectorizers = tfidf("char"), tfidf("word")
    x = sparse.hstack([vectorizer.fit_transform(PROMPTS) for vectorizer in vectorizers], format="csr")
    model = LogisticRegression(C=10, max_iter=1000).fit(x, TRUTH)
    asked = sparse.hstack([vectorizer.transform(NEW) for vectorizer in vectorizers], format="csr")
    found = Linear.fit(PROMPTS, TRUTH, 3, C=10)(NEW)
    assert np.abs(found - model.predict_proba(asked)).max() < 1e-12
    assert np.abs(found - Linear.fit(PROMPTS, TRUTH, 3, C=10, features=("word",))(NEW)).max() > 0.01  # a control


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_word_vectors_are_centred_and_scaled_features(weight: float) -> None:
    vectors = embed(PROMPTS).astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    scale = weight / np.sqrt((centred**2).sum(axis=1).mean())
    model = LogisticRegression(C=10, max_iter=1000).fit(centred * scale, TRUTH)
    found = Linear.fit(PROMPTS, TRUTH, 3, features=(), C=10, embed=embed, weight=weight)(NEW)
    assert np.abs(found - model.predict_proba((embed(NEW) - vectors.mean(axis=0)) * scale)).max() < 1e-6
    words, both = (Linear.fit(PROMPTS, TRUTH, 3, C=10, embed=use)(NEW) for use in (None, embed))
    assert np.abs(words - both).max() > 0.01


def test_c_is_chosen_by_the_log_loss_of_held_out_training_lines() -> None:
    for noise in (0.0, 0.7):
        prompts, truth = questions(90, 3, noise)
        losses = {}
        train, held_out = train_test_split(np.arange(90), test_size=1 / 3, random_state=0, stratify=truth)
        for C in (1.0, 10.0, 100.0):
            part = Linear.fit([prompts[i] for i in train], truth[train], 3, C=C)
            losses[C] = log_loss(truth[held_out], part([prompts[i] for i in held_out]), labels=[0, 1, 2])
        chosen = Linear.fit(prompts, truth, 3)
        assert min(losses, key=losses.__getitem__) == chosen.C and "log loss" in chosen.reason
        assert (chosen(NEW) == Linear.fit(prompts, truth, 3)(NEW)).all()  # deterministic
        assert {0.0: 100, 0.7: 1}[noise] == chosen.C
    rare = Linear.fit([*PROMPTS, "how?"], np.append(TRUTH, 3), 4)  # one example of a label does not prevent it
    assert "log loss" in rare.reason and np.diff(rare(["who?", "how?"])[:, 3]) > 0.01
    few = Linear.fit(["aa", "bb", "bc", "bd"], np.array([0, 1, 1, 1]), 2)
    assert few.C == 100 and few.reason.startswith("fixed, since fewer than two labels have 3")


def test_the_nearest_are_scikit_learns_and_vote_with_their_cosines() -> None:
    vectorizer = tfidf("char")
    examples = vectorizer.fit_transform(PROMPTS)
    search = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(examples)
    distances, nearest = search.kneighbors(vectorizer.transform(NEW))
    found, checked = Nearest.fit(PROMPTS, TRUTH, 4)(NEW), 0
    for row, distance, indices in zip(found, distances, nearest, strict=True):
        if distance[5] - distance[4] < 1e-9:  # which of two is the fifth is not determined
            continue
        votes = (np.bincount(TRUTH, minlength=4) + 1) / (len(TRUTH) + 4)
        for index, d in zip(indices[:5], distance, strict=False):
            votes[TRUTH[index]] += 1 - d
        assert row == pytest.approx(votes / votes.sum())
        checked += 1
    assert checked > 10
    assert found[NEW.index("")] == pytest.approx(Majority.fit(PROMPTS, TRUTH, 4)([""])[0])  # no neighbour at all


def test_the_majority_is_the_smoothed_frequencies() -> None:
    found = Majority.fit(["a"] * 4, np.array([0, 0, 1, 0]), 3)(["x", "y"])
    assert found == pytest.approx(np.array([[4, 2, 1], [4, 2, 1]]) / 7)


@pytest.mark.parametrize("kind", [*CLASSIFIERS, "embedding"])
def test_probabilities_are_float64_sum_to_1_and_are_never_0_or_1(kind: str) -> None:
    """Label 3 has no example."""
    probs = fitted(kind)([*NEW, *PROMPTS])
    assert probs.dtype == np.float64 and probs.shape == (len(NEW) + len(PROMPTS), 4)
    assert probs.sum(axis=1) == pytest.approx(1) and probs.min() > 0 and probs.max() < 1
    assert probs[:, 3].max() < (1e-5 if kind in ("linear", "embedding") else 0.05)
    assert fitted(kind)([]).shape == (0, 4)


def test_a_kind_of_features_that_no_prompt_has_is_left_out() -> None:
    found = Linear.fit(["!", "?", "!!", "??"], np.array([0, 1, 0, 1]), 2, C=100)
    assert found(["!!!", "???"]).argmax(axis=1).tolist() == [0, 1] and list(found.state()["idf"]) == ["ngram"]


@pytest.mark.parametrize(
    ("prompts", "truth", "features", "problem"),
    [
        (["a", "b"], [1, 1], ("ngram",), "all examples have the same label"),
        (["!", "?"], [0, 1], ("word",), "no prompt has anything to learn from"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(
    prompts: list[str], truth: list[int], features: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(TinyGPTError, match=problem):
        Linear.fit(prompts, np.array(truth), 2, features=features)


# ---- stored ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*CLASSIFIERS, "embedding"])
def test_storing_changes_no_probability(kind: str, tmp_path: Path) -> None:
    classifier = fitted(kind)
    store.write(tmp_path / "model.pt", classifier.state())
    again = restored(classifier.kind, store.read(tmp_path / "model.pt"), 4, embed)
    assert (again(NEW) == classifier(NEW)).all() and again.n_labels == 4
    store.write(tmp_path / "again.pt", again.state())
    assert (tmp_path / "again.pt").stat().st_size == (tmp_path / "model.pt").stat().st_size
    two = type(classifier).fit(PROMPTS, TRUTH.clip(max=1), 2)
    assert (restored(two.kind, two.state(), 2)(NEW) == two(NEW)).all()


def test_a_labeller_is_stored(tmp_path: Path) -> None:
    classifier = Linear.fit(PROMPTS[:12], TRUTH[:12], 3, features=("word",), C=1)
    save(tmp_path, classifier, ["who", "where", "when"], 0.5, about={"accuracy": 0.9})
    labeller = load(tmp_path)
    assert (labeller(NEW) == classifier(NEW)).all() and labeller.about == {"accuracy": 0.9}
    assert labeller.labels == ["who", "where", "when"] and labeller.threshold == 0.5 and labeller.kind == "linear"


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("majority", "counts", ...),
        ("majority", "counts", torch.tensor([-3, 9, 0, 0])),
        ("majority", "counts", torch.tensor([1, 1])),
        ("nearest", "prompts", ["a"]),
        ("nearest", "prompts", 3),
        ("nearest", "truth", torch.full((120,), 4)),
        ("linear", "coef", torch.zeros(3, 5, dtype=torch.float64)),
        ("linear", "coef", torch.zeros(3)),
        ("linear", "intercept", torch.tensor([0, float("nan"), 0], dtype=torch.float64)),
        ("linear", "classes", torch.tensor([0, 1, 4])),
        ("linear", "classes", ...),
        ("linear", "vocabularies", {"other": ["a"]}),
        ("linear", "vocabularies", {}),
        ("linear", "vocabularies.word", ["a", "a"]),
        ("linear", "vocabularies.ngram", [1]),
        ("linear", "idf.word", torch.ones(3, dtype=torch.float64)),
        ("linear", "idf", []),
        ("embedding", "embedding", [1]),
        ("embedding", "embedding.scale", "1"),
        ("embedding", "embedding.centre", torch.zeros(3, dtype=torch.float64)),
    ],
)
def test_an_impossible_state_is_refused(kind: str, name: str, value: object) -> None:
    """`a.b` names a value in the state; `...` removes it."""
    classifier = fitted(kind)
    state = copy.deepcopy(classifier.state())
    *folders, last = name.split(".")
    part = functools.reduce(operator.getitem, folders, state)
    part[last] = value
    if value is ...:
        del part[last]
    with pytest.raises(TinyGPTError, match="impossible"):
        restored(classifier.kind, state, 4, embed)


def test_word_vectors_other_than_those_of_the_training_are_refused() -> None:
    state = fitted("embedding").state()
    turned, narrow = (lambda texts: embed(texts)[:, ::-1]), (lambda texts: embed(texts)[:, :8])
    for other in (None, turned, narrow):
        with pytest.raises(TinyGPTError, match="word vectors") as refused:
            restored("linear", state, 4, other)
        assert "tinygpt[retrieve]" in refused.value.hint
    restored("linear", state, 4, lambda texts: embed(texts) + 1e-6)  # another machine rounds differently
