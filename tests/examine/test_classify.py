"""Labelled tasks: scores against one forward pass a label, figures against scikit-learn's and cases by hand."""

import json
import math
import random
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from models import shaken, small

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.intervals import percent, wilson
from tinygpt.data.tasks import TASKS
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.eval import classify, confusion
from tinygpt.examine.eval.classify import label_scores
from tinygpt.model import GPT

TOKENIZER = CharTokenizer(["a", SPECIAL[2], "b", "c", SPECIAL[0], "d", " ", SPECIAL[1]])
PROMPTS = ["abc", "", "dad cab", "a", "bb", "abc"]
LABELS = ["a", "cab", "b d", "", "dd"]
ENDINGS = [f"{stem}{ending}" for stem in ("walk", "talk", "jump", "mark", "park", "bark") for ending in ("ed", "ing")]


def tiny(**options: object) -> GPT:
    return shaken(small(vocab_size=TOKENIZER.vocab_size, block_size=16, n_layer=1, **options))


@torch.no_grad()
def by_hand(model: GPT, prompt: str, response: str) -> float:
    """log P(response, END | prompt) of a single row without padding, token by token."""
    spelled = [TOKENIZER.special[SPECIAL[0]], *TOKENIZER.encode(prompt).tolist(), TOKENIZER.special[SPECIAL[1]]]
    total = 0.0
    for token in [*TOKENIZER.encode(response).tolist(), TOKENIZER.special[SPECIAL[2]]]:
        total += model(torch.tensor([spelled]))[0][0, -1].double().log_softmax(-1)[token].item()
        spelled.append(token)
    return total


@pytest.mark.parametrize("options", [{}, {"position": "rope", "bigram_table": True}], ids=["gpt2", "rope"])
def test_scores_are_those_of_one_forward_pass_a_token(options: dict[str, object]) -> None:
    model = tiny(**options)
    total, lengths = label_scores(model, TOKENIZER, PROMPTS, LABELS)
    expected = np.array([[by_hand(model, prompt, label) for label in LABELS] for prompt in PROMPTS])
    np.testing.assert_allclose(total, expected, atol=1e-4)
    assert lengths.tolist() == [len(label) + 1 for label in LABELS] and total.dtype == np.float64
    assert total.std() > 1  # the weights are such that something is at stake
    training = tiny(**options, dropout=0.5).train()
    np.testing.assert_allclose(label_scores(training, TOKENIZER, PROMPTS, LABELS)[0], total, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 60])
def test_batches_and_padding_change_nothing(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = label_scores(model, TOKENIZER, PROMPTS, LABELS)[0]
    groups, scores = [], classify.answer_scores
    monkeypatch.setattr(classify, "answer_scores", lambda *args: groups.append(len(args[2])) or scores(*args))
    monkeypatch.setattr(classify, "BATCH_TOKENS", batch_tokens)
    np.testing.assert_allclose(label_scores(model, TOKENIZER, PROMPTS, LABELS)[0], expected, atol=1e-4)
    longest = max(map(len, LABELS)) + 1
    assert sum(groups) == len(PROMPTS) and (len(groups) == len(PROMPTS)) == (batch_tokens == 1)
    assert all(group * len(LABELS) * longest <= batch_tokens or group == 1 for group in groups)


def test_the_longest_prompt_that_fits_and_the_next() -> None:
    model, fits = tiny(), "a" * 11  # PROMPT 11 RESPONSE and the 3 of `cab`; END is predicted, not read
    total, _ = label_scores(model, TOKENIZER, [fits], LABELS)
    assert total[0, 1] == pytest.approx(by_hand(model, fits, "cab"), abs=1e-4)
    said = r"prompt 2 \('aaaaaaaaaaab'\) takes 17 tokens with the label 'cab', but the model reads 16"
    with pytest.raises(TinyGPTError, match=said):
        label_scores(model, TOKENIZER, ["a", fits + "b"], LABELS)


def test_unknown_characters_are_refused_or_left_out() -> None:
    model = tiny()
    for prompt, label, skip in (("aébc", "a", False), ("abc", "é", True)):
        with pytest.raises(TinyGPTError, match="'é'"):
            label_scores(model, TOKENIZER, [prompt], [label], skip_unknown=skip)
    skipped, plain = label_scores(model, TOKENIZER, ["aébc", "abc"], LABELS, skip_unknown=True)[0]
    np.testing.assert_allclose(skipped, plain, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_figures_equal_scikit_learns(seed: int) -> None:
    draw, L = np.random.default_rng(seed), 3 + seed
    truth = draw.integers(0, L - 1, 60)  # the last label does not occur
    predicted = np.where(draw.random(60) < 0.5, truth, draw.integers(0, L - (seed % 2), 60))  # or is answered
    confusion = classify.confusion_matrix(truth, predicted, L)
    assert (confusion == sklearn.metrics.confusion_matrix(truth, predicted, labels=range(L))).all()
    assert classify.quality(confusion)["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    macro = sklearn.metrics.f1_score(truth, predicted, average="macro")
    assert classify.quality(confusion)["macro_f1"] == pytest.approx(macro)
    each = sklearn.metrics.precision_recall_fscore_support(truth, predicted, labels=range(L), zero_division=0)
    for ours, theirs in zip(classify.rates(confusion).values(), each, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_calibration_of_a_case_by_hand() -> None:
    """Five answers: 0.6 falls into the bin that ends there, 0.61 and 0.69 into the next, 1 and 0.95 into the last."""
    sure = np.array([0.6, 0.61, 0.69, 1.0, 0.95])
    error, bins = classify.calibration(np.stack((sure, 1 - sure), axis=1), np.array([0, 0, 1, 0, 0]))
    assert [part["count"] for part in bins] == [0, 0, 0, 0, 0, 1, 2, 0, 0, 2]
    assert bins[6] == {"count": 2, "confidence": pytest.approx(0.65), "accuracy": 0.5}
    assert bins[0] == {"count": 0, "confidence": None, "accuracy": None}
    assert error == pytest.approx((0.4 + 2 * 0.15 + 2 * 0.025) / 5)
    scores = np.array([[-1000.0, -1000.0 - math.log(3)], [0.0, -2000.0]])
    np.testing.assert_allclose(classify.probabilities(scores), [[0.75, 0.25], [1, 0]], atol=1e-12)


def toy(n: int, seed: int) -> list[tuple[str, str]]:
    """Questions whose first word tells the label; three in five are `person`."""
    words = {"who": "person", "where": "place", "when": "time"}
    draw = random.Random(seed)
    asked = draw.choices(list(words), weights=[6, 2, 2], k=n)
    return [(f"{word} {draw.choice(['was', 'is'])} {draw.choice('abcdefgh') * 3}?", words[word]) for word in asked]


@pytest.mark.parametrize("kind", ["ngram", "word"])
def test_the_word_baseline_sees_nothing_inside_a_word(kind: str) -> None:
    classifier, _ = classify.ngram_classifier(ENDINGS, np.array([0, 1] * 6), 2, kind)
    assert classifier and (classifier(["looked", "looking"]).argmax(axis=1).tolist() == [0, 1]) == (kind == "ngram")


def test_a_missing_ngram_baseline_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    none, note = classify.ngram_classifier(["a", "b"], np.array([1, 1]), 2, "ngram")  # one label: nothing to separate
    assert none is None and "cannot be trained" in note
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    none, note = classify.ngram_classifier(["a", "b"], np.array([0, 1]), 2, "ngram")
    assert none is None and note == "the n-gram and word baselines need scikit-learn: pip install scikit-learn"
    report = sample_report()
    assert set(report["results"]) == {"model", "normalised", "majority"} and f"({note})" in classify.as_text(report)


def sample_report(labels: Sequence[str] = ("person", "place", "time"), n: int = 80) -> dict[str, Any]:
    """A report on made-up scores, right in most cases."""
    draw, (train, val) = np.random.default_rng(0), (toy(200, 1), toy(n, 2))
    if labels[0] != "person":
        train, val = (
            [(prompt, labels[i * i % 61 % len(labels)]) for i, (prompt, _) in enumerate(s)] for s in (train, val)
        )
    truth = np.array([labels.index(label) for _, label in val])
    total = draw.normal(-9, 1, (n, len(labels)))
    total[np.arange(n), np.where(draw.random(n) < 0.3, draw.integers(0, len(labels), n), truth)] += 6
    return classify.make_report("toy", "val", val, list(labels), total, np.full(len(labels), 5), train)


def test_the_report_adds_up() -> None:
    train, labels = toy(200, 1), ["person", "place", "time"]
    val = [("who is aaa?", "person"), ("where is bbb?", "place"), ("when is ccc?", "time"), ("who is ddd?", "person")]
    probs = np.array([[0.7, 0.2, 0.1], [0.9, 0.05, 0.05], [0.3, 0.3, 0.4], [0.4, 0.6, 0.0]])
    tokens = np.array([8, 3, 2])  # with END; not the characters
    report = classify.make_report("toy", "val", val, labels, np.log(probs + 1e-9), tokens, train)
    assert (report["n"], report["labels"], report["note"], report["groups"]) == (4, labels, "", {})
    assert report["results"]["model"]["accuracy"] == 0.5
    person = {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3) / 3), "accuracy_interval": [*wilson(0.5, 4)]}
    assert report["results"]["normalised"] == report["results"]["majority"] == person  # always this label
    right = {"accuracy": 1, "macro_f1": 1, "accuracy_interval": [*wilson(1, 4)]}
    assert report["results"]["ngram"] == report["results"]["word"] == right
    assert report["confusion"] == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert report["per_label"]["person"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert report["loss"] == pytest.approx(-math.log(0.7 * 0.05 * 0.4 * 0.4) / (8 + 3 + 2 + 8))
    assert report["calibration_error"] == pytest.approx((0.3 + 0.9 + abs(0.4 - 1) + 0.6) / 4)
    assert report["mistakes"] == [
        {"prompt": "where is bbb?", "true": "place", "predicted": "person", "probability": pytest.approx(0.9)},
        {"prompt": "who is ddd?", "true": "person", "predicted": "place", "probability": pytest.approx(0.6)},
    ]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_text_has_the_figures() -> None:
    report = sample_report()
    text = classify.as_text(report)
    names = {"model": "model ", "normalised": "model, length", "ngram": "n-gra", "word": "word", "majority": "majo"}
    for key, name in names.items():
        line, result = re.search(f"^{name}.*$", text, re.MULTILINE)[0], report["results"][key]
        assert percent(result["accuracy"], 80) in line and line.endswith(f"{result['macro_f1']:.3f}")
    assert f"loss {report['loss']:.4f}" in text and f"expected error {report['calibration_error']:.3f}" in text
    row = re.search("^place.*$", text, re.MULTILINE)[0].split()
    recall = f"{report['per_label']['place']['recall']:.2f}"
    assert row[1:5] == [*(str(count or "·") for count in report["confusion"][1]), recall]
    mistake = report["mistakes"][0]
    assert repr(mistake["prompt"]) in text and f"{100 * mistake['probability']:.1f}%" in text


def test_the_groups_of_a_built_in_task_have_accuracies_of_their_own() -> None:
    task, examples = TASKS["headlines"], TASKS["headlines"].make(1337)
    test, few, labels = examples["test"], examples["train"][:200], sorted(task.labels)
    groups = np.array([task.group(prompt) for prompt, _ in test])
    truth = np.array([labels.index(label) for _, label in test])
    total = np.eye(3)[np.where(groups == "new words", labels.index("positive"), truth)]  # `positive` to all new words
    report = classify.make_report("headlines", "test", test, labels, total, np.ones(3), few)
    found = {name: (group["n"], group["model"]) for name, group in report["groups"].items()}
    assert found == {"neutral headlines": (333, 1), "new combinations": (223, 1), "new words": (444, 0.5)}
    accuracies = [f"{100 * report['groups']['new words'][key]:.1f}%" for key in ("model", "ngram", "word", "majority")]
    assert re.search(r"^new words +444 +" + " +".join(accuracies), classify.as_text(report), re.MULTILINE)


def test_a_rate_without_cases_is_not_shown_as_0() -> None:
    examples = [("a", "x"), ("b", "x"), ("c", "y")]
    total = np.log([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.9, 0.05, 0.05]])  # always x; z is not in the split
    report = classify.make_report("toy", "test", examples, ["x", "y", "z"], total, np.full(3, 2), examples)
    shown = confusion.matrix_lines(report, 100)
    assert [line.split()[-1] for line in shown[2:5]] == ["1.00", "0.00", "-"]
    assert shown[5].split() == ["precision", "0.67", "-", "-"]


def test_control_characters_of_labels_and_prompts_are_shown_escaped() -> None:
    text = classify.as_text(sample_report(("red\x1b[1m", "blue\n", "\x9bgreen")))
    assert text.replace("\n", "").isprintable() and "\nred\\x1b[1m " in text and "\nblue\\n " in text


def test_the_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    """Names are not mathematics."""
    for labels in (("person", "place", "time"), ("$\\no$", "a_b^c", "_hidden", "d" * 40)):
        confusion.draw_confusion(sample_report(labels) | {"task": r"$\frac$"}, tmp_path / "picture.png")
        data = (tmp_path / "picture.png").read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 5000
        assert min(struct.unpack(">II", data[16:24])) > 400  # pixels
