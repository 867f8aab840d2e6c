"""Classifiers that train in seconds and can be stored: label frequencies, and a linear model.

Each is trained with `fit`, called with prompts for their probabilities, and stored as tensors and plain values, without
pickle: `restored(classifier.kind, classifier.state(), n_labels)` gives the same probabilities.

Shapes: n prompts, L labels. truth: indices of labels, int64 (n,).

    classifier = Linear.fit(["who was it?", "when was it?", ...], np.array([0, 1, ...]), 2)
    classifier(["who is she?"])                         # float64 (1, 2)
    same = restored("linear", classifier.state(), 2)
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch

from tinygpt.base.errors import TinyGPTError, library

FEATURES = {  # TF-IDF of the linear model
    "ngram": {"analyzer": "char", "ngram_range": (1, 5)},  # characters
    "word": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\w+"},
}
FIXED_C = 100.0  # inverse regularisation strength; scikit-learn's C = 1 underfits rows of unit length (data/README.md)
CHOICES = (1.0, 10.0, 100.0)  # of C, in ascending order
FEWEST = 3  # examples of a label that takes part in the choice of C
ABSENT = 1e-6  # probability of a label without an example
MOST_ROTATED = 2000  # rows
SMALLEST = 1e-10  # eigenvalue, as a share of the largest
PROBE = "The quick brown fox paid 12.50 for 3 boxes on Monday."  # its vector identifies an embedding

Embed = Callable[[Sequence[str]], np.ndarray]  # from n texts to vectors (n, d) of length 1


class Majority:
    """The frequencies of the labels, with one more example of each (Laplace), whatever the prompt."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        self.n_labels = len(counts)

    @classmethod
    def fit(cls, prompts: Sequence[str], truth: np.ndarray, n_labels: int) -> Self:
        return cls(np.bincount(truth, minlength=n_labels))

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        return np.tile((self.counts + 1) / (self.counts.sum() + self.n_labels), (len(prompts), 1))


class Linear:
    """Logistic regression on the TF-IDF of character n-grams and words, and on vectors of the texts if there are any.

    The TF-IDF of each kind has rows of length 1. The vectors are centred and scaled to a root mean square length of
    `weight`: with 1, each kind of feature counts about as much as another.
    """

    kind = "linear"

    def __init__(self, n_labels: int, features: Sequence[str], embed: Embed | None, weight: float = 1.0) -> None:
        """Make a classifier without weights, for `fit` and `from_state`."""
        self.n_labels = n_labels
        self.features = tuple(features)
        self.embed = embed
        self._weight = weight
        self._vectorizers: dict[str, Any] = {}
        # of the word vectors
        self._centre = np.zeros(0)
        self._scale = 1.0
        self._model = regression(FIXED_C)

    @classmethod
    def fit(
        cls,
        prompts: Sequence[str],
        truth: np.ndarray,
        n_labels: int,
        features: Sequence[str] = ("ngram", "word"),
        C: float | None = None,
        embed: Embed | None = None,
        weight: float = 1.0,
    ) -> Self:
        """Train on examples. features: keys of FEATURES. embed: a function from texts to vectors (n, d).

        C: the inverse regularisation strength; None: that of CHOICES with the lowest log loss on a third of these
        examples, without the labels that have fewer than FEWEST.
        Errors: TinyGPTError for a single label, for prompts without any feature, and without scikit-learn.
        """
        if len(np.unique(truth)) < 2:
            raise TinyGPTError("all examples have the same label", "add examples of another label")
        self = cls(n_labels, features, embed, weight)
        with one_thread():
            chosen = choose_c(self, prompts, truth) if C is None else C
            x = self._learn_features(prompts)
            rotation = Rotation(x)
            self._model = regression(chosen).fit(rotation(x), truth)
            self._model.coef_ = rotation.back(self._model.coef_)
            self._model.n_features_in_ = x.shape[1]
        return self

    def _learn_features(self, prompts: Sequence[str]) -> Any:
        """Learn the vocabularies, and the centre and scale of the word vectors; return the features, sparse (n, F).

        A kind of feature that no prompt has is left out."""
        blocks = []
        for name in self.features:
            fitted = vectorizer(name)
            with contextlib.suppress(ValueError):
                blocks.append(fitted.fit_transform(prompts))  # an empty vocabulary is a ValueError
                self._vectorizers[name] = fitted
        if self.embed:
            vectors = self.embed(prompts).astype(np.float64)
            self._centre = vectors.mean(axis=0)
            self._scale = self._weight / max(float(np.sqrt(((vectors - self._centre) ** 2).sum(axis=1).mean())), 1e-6)
            blocks.append(self._vectors(vectors))
        if not blocks:
            features = ", ".join(self.features)
            raise TinyGPTError(f"no prompt has anything to learn from ({features})", "give prompts with words")
        return stacked(blocks)

    def _features(self, prompts: Sequence[str]) -> Any:
        blocks = [vectorizer.transform(prompts) for vectorizer in self._vectorizers.values()]
        return stacked(blocks + ([self._vectors(self.embed(prompts))] if self.embed else []))

    def _vectors(self, vectors: np.ndarray) -> np.ndarray:
        return (vectors - self._centre) * self._scale

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        classes = self._model.classes_
        probs = np.full((len(prompts), self.n_labels), ABSENT)
        if len(prompts):
            with one_thread():
                known = self._model.predict_proba(self._features(prompts))
            probs[:, classes] = known * (1 - ABSENT * (self.n_labels - len(classes)))
        return probs

    def state(self) -> dict[str, Any]:
        tensors = {
            name: torch.from_numpy(getattr(self._model, f"{name}_")) for name in ("coef", "intercept", "classes")
        }
        embedding = None
        if self.embed:
            centre = torch.from_numpy(self._centre)
            probe = torch.from_numpy(self.embed([PROBE])[0].astype(np.float64))
            embedding = {"centre": centre, "scale": self._scale, "probe": probe}
        return tensors | {
            "n_labels": self.n_labels,
            "vocabularies": {  # in the order of the columns
                name: sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
                for name, vectorizer in self._vectorizers.items()
            },
            "idf": {name: torch.from_numpy(vectorizer.idf_) for name, vectorizer in self._vectorizers.items()},
            "embedding": embedding,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], embed: Embed | None = None) -> Self:
        embedding = state["embedding"]
        self = cls(state["n_labels"], list(state["vocabularies"]), embed if embedding else None)
        for name, words in state["vocabularies"].items():
            fitted = vectorizer(name, vocabulary={word: column for column, word in enumerate(words)})
            fitted.idf_ = state["idf"][name].numpy()
            self._vectorizers[name] = fitted
        if embedding:
            require_same(embedding["probe"].numpy(), embed)
            self._centre = embedding["centre"].numpy()
            self._scale = embedding["scale"]
        for name in ("coef", "intercept", "classes"):
            setattr(self._model, f"{name}_", state[name].numpy())
        self._model.n_features_in_ = self._model.coef_.shape[1]
        return self


Classifier = Majority | Linear


def restored(kind: str, state: dict[str, Any], n_labels: int, embed: Embed | None = None) -> Linear:
    """Make a classifier from its state, and try it on one prompt. embed: as in `Linear.fit`.

    Errors: TinyGPTError for an impossible state, and without the word vectors that it was trained with."""
    try:
        if kind != Linear.kind:
            raise ValueError
        classifier = Linear.from_state(state, embed)
        probs = classifier([PROBE])
        possible = probs.shape == (1, n_labels) and (probs >= 0).all() and np.isclose(probs.sum(), 1)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        possible = False
    if not possible:
        raise TinyGPTError("the stored classifier is impossible", "train it again")
    return classifier


def require_same(probe: np.ndarray, embed: Embed | None) -> None:
    """Check that PROBE has the vector that it had in the training. Errors: TinyGPTError."""
    vector = embed([PROBE])[0] if embed else np.zeros(0)
    if vector.shape != probe.shape or not np.allclose(vector, probe, atol=1e-3):
        problem = "this classifier needs the vectors that it was trained with"
        hint = (
            'pip install "tinygpt[retrieve]" for word vectors, in the version with which it was trained, or train again'
        )
        raise TinyGPTError(problem, hint)


def choose_c(untrained: Linear, prompts: Sequence[str], truth: np.ndarray) -> float:
    """Choose C from CHOICES by the log loss on a held-out third of the examples, which is deterministic.

    Labels with fewer than FEWEST examples do not take part; if fewer than two have as many, it is FIXED_C.
    """
    selection = library("sklearn.model_selection", "the linear model")
    usable = np.flatnonzero(np.bincount(truth, minlength=untrained.n_labels)[truth] >= FEWEST)
    if len(set(truth[usable].tolist())) < 2:
        return FIXED_C
    train, held_out = selection.train_test_split(usable, test_size=1 / 3, random_state=0, stratify=truth[usable])
    trained = Linear(untrained.n_labels, untrained.features, untrained.embed, untrained._weight)
    x = trained._learn_features([prompts[int(i)] for i in train])
    rotation = Rotation(x)
    x = rotation(x)
    tested = rotation(trained._features([prompts[int(i)] for i in held_out]))
    model = regression(1, warm_start=True)
    losses = []
    for choice in CHOICES:  # each begins with the weights of the one before
        model.set_params(C=choice).fit(x, truth[train])
        columns = np.searchsorted(model.classes_, truth[held_out])  # each label is in both parts
        probs = model.predict_proba(tested)[np.arange(len(held_out)), columns]
        losses.append(-np.log(np.maximum(probs, 1e-15)).sum())
    return CHOICES[int(np.argmin(losses))]


# ---- scikit-learn ----------------------------------------------------------------------------------------------------


def vectorizer(name: str, **options: Any) -> Any:
    """Make scikit-learn's TfidfVectorizer of the features `name`. Errors: TinyGPTError if it is not installed."""
    text = library("sklearn.feature_extraction.text", "the linear model" if name == "word" else "a model of n-grams")
    return text.TfidfVectorizer(**FEATURES[name], sublinear_tf=True, **options)


def one_thread() -> Any:
    """Compute with one thread in the body: the features are sparse, and further threads only wait for each other
    (beside two busy programs on two cores, a fit took 13 times as long with two threads)."""
    return library("threadpoolctl", "the linear model").threadpool_limits(1)


def regression(C: float, **options: Any) -> Any:
    return library("sklearn.linear_model", "the linear model").LogisticRegression(C=C, max_iter=1000, **options)


def stacked(blocks: list[Any]) -> Any:
    """Join blocks of features, (n, F) each, to one sparse matrix."""
    from scipy import sparse  # a requirement of scikit-learn

    return sparse.hstack(list(map(sparse.csr_matrix, blocks)), format="csr")


class Rotation:
    """The reduced singular value decomposition X = USV' of features (n, F); a row x becomes xV, with rank(X) features.

    It keeps the inner products of all rows, so that regression with an L2 penalty has the same solution: its weights
    are a linear combination of the rows (the representer theorem: Kimeldorf and Wahba 1971, "Some results on
    Tchebycheffian spline functions"). For 1,000 rows with 40,000 features it takes a sixth of the time. More than
    MOST_ROTATED rows stay as they are.
    """

    def __init__(self, x: Any) -> None:
        """x: the features of all examples, sparse (n, F)."""
        self.x = x if x.shape[0] <= min(MOST_ROTATED, x.shape[1]) else None
        if self.x is not None:
            squares, directions = np.linalg.eigh((x @ x.T).toarray())  # S squared in ascending order, and U
            kept = squares > SMALLEST * squares[-1]
            self._to = directions[:, kept] / np.sqrt(squares[kept])  # V = X' _to: (n, rank)

    def __call__(self, x: Any) -> Any:
        """Rotate features (m, F): (m, rank)."""
        return x if self.x is None else (x @ self.x.T).toarray() @ self._to

    def back(self, weights: np.ndarray) -> np.ndarray:
        """Return weights of the rotated features (L, rank) as weights of the features (L, F)."""
        return weights if self.x is None else (self.x.T @ (self._to @ weights.T)).T
