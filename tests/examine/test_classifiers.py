"""Classifiers that are stored: against scikit-learn itself, the same after storing, impossible states refused."""

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

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.examine.eval.classifiers import FEATURES, Linear, choose_c, restored

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
    return Linear.fit(PROMPTS, TRUTH, n_labels)


def tfidf(analyzer: str) -> TfidfVectorizer:
    options = {"ngram_range": (1, 2), "token_pattern": r"\w+"} if analyzer == "word" else {"ngram_range": (1, 5)}
    return TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, **options)


def test_the_linear_model_is_scikit_learns() -> None:
    vectorizers = tfidf("char"), tfidf("word")
    x = sparse.hstack([vectorizer.fit_transform(PROMPTS) for vectorizer in vectorizers], format="csr")
    model = LogisticRegression(C=10, max_iter=1000).fit(x, TRUTH)
    asked = sparse.hstack([vectorizer.transform(NEW) for vectorizer in vectorizers], format="csr")
    found = Linear.fit(PROMPTS, TRUTH, 3, C=10)(NEW)
    assert np.abs(found - model.predict_proba(asked)).max() < 1e-12
    assert np.abs(found - Linear.fit(PROMPTS, TRUTH, 3, C=10, features=("word",))(NEW)).max() > 0.01  # a control


def test_word_vectors_are_centred_and_scaled_features() -> None:
    vectors = embed(PROMPTS).astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    scale = 3 / np.sqrt((centred**2).sum(axis=1).mean())
    model = LogisticRegression(C=10, max_iter=1000).fit(centred * scale, TRUTH)
    found = Linear.fit(PROMPTS, TRUTH, 3, features=(), C=10, embed=embed, weight=3.0)(NEW)
    assert np.abs(found - model.predict_proba((embed(NEW) - vectors.mean(axis=0)) * scale)).max() < 1e-6


@pytest.mark.parametrize(("noise", "C"), [(0.0, 100), (0.7, 1)])
def test_c_is_chosen_by_the_log_loss_of_held_out_training_lines(noise: float, C: float) -> None:
    prompts, truth = questions(90, 3, noise)
    losses = {}
    train, held_out = train_test_split(np.arange(90), test_size=1 / 3, random_state=0, stratify=truth)
    for each in (1.0, 10.0, 100.0):
        part = Linear.fit([prompts[i] for i in train], truth[train], 3, C=each)
        losses[each] = log_loss(truth[held_out], part([prompts[i] for i in held_out]), labels=[0, 1, 2])
    assert min(losses, key=losses.__getitem__) == choose_c(Linear(3, FEATURES, None), prompts, truth) == C


def test_rare_labels_and_prompts_with_nothing_to_learn_from() -> None:
    rare = Linear.fit([*PROMPTS, "how?"], np.append(TRUTH, 3), 4)  # one example of a label does not prevent the choice
    assert np.diff(rare(["who?", "how?"])[:, 3]) > 0.01
    assert choose_c(Linear(2, FEATURES, None), ["aa", "bb", "bc", "bd"], np.array([0, 1, 1, 1])) == 100
    signs = Linear.fit(["!", "?", "!!", "??"], np.array([0, 1, 0, 1]), 2, C=100)  # which no word is
    assert signs(["!!!", "???"]).argmax(axis=1).tolist() == [0, 1] and list(signs.state()["idf"]) == ["ngram"]
    with pytest.raises(TinyGPTError, match="all examples have the same label"):
        Linear.fit(["a", "b"], np.array([1, 1]), 2)


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_probabilities_are_never_0_or_1_and_storing_does_not_change_them(kind: str, tmp_path: Path) -> None:
    """Label 3 has no example."""
    classifier = fitted(kind)
    found = classifier(NEW)
    assert found.dtype == np.float64 and found.sum(axis=1) == pytest.approx(1) and found.min() > 0 and found.max() < 1
    assert found[:, 3].max() < 1e-5
    assert classifier([]).shape == (0, 4)
    store.write(tmp_path / "model.pt", classifier.state())
    again = restored(classifier.kind, store.read(tmp_path / "model.pt"), 4, embed)
    assert (again(NEW) == found).all() and again.n_labels == 4
    two = type(classifier).fit(PROMPTS, TRUTH.clip(max=1), 2)
    assert (restored(two.kind, two.state(), 2)(NEW) == two(NEW)).all()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("linear", "coef", torch.zeros(3, 5, dtype=torch.float64)),
        ("linear", "intercept", torch.tensor([0, float("nan"), 0], dtype=torch.float64)),
        ("linear", "classes", torch.tensor([0, 1, 4])),
        ("embedding", "embedding", {"scale": 1.0, "centre": torch.zeros(3, dtype=torch.float64)}),
    ],
)
def test_an_impossible_state_is_refused(kind: str, name: str, value: object) -> None:
    classifier = fitted(kind)
    with pytest.raises(TinyGPTError, match="impossible"):
        restored(classifier.kind, classifier.state() | {name: value}, 4, embed)


def test_word_vectors_other_than_those_of_the_training_are_refused() -> None:
    state = fitted("embedding").state()
    turned, narrow = (lambda texts: embed(texts)[:, ::-1]), (lambda texts: embed(texts)[:, :8])
    for other in (None, turned, narrow):
        with pytest.raises(TinyGPTError, match="word vectors") as refused:
            restored("linear", state, 4, other)
        assert "tinygpt[retrieve]" in refused.value.hint
    restored("linear", state, 4, lambda texts: embed(texts) + 1e-6)  # another machine rounds differently
