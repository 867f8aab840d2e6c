"""Labelled tasks: scores against one forward pass a label, figures against scikit-learn's and cases by hand."""

import itertools
import json
import math
import random
import struct
import sys
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
from tinygpt.examine.eval import classify
from tinygpt.examine.eval.classify import (
    as_text,
    calibration,
    confusion_matrix,
    draw_confusion,
    label_scores,
    make_report,
    matrix_lines,
    ngram_classifier,
    probabilities,
    quality,
    rates,
)
from tinygpt.model import GPT

TOKENIZER = CharTokenizer(["a", SPECIAL[2], "b", "c", SPECIAL[0], "d", " ", SPECIAL[1]])
PROMPTS = ["abc", "", "dad cab", "a", "bb", "abc"]
LABELS = ["a", "cab", "b d", "", "dd"]


def tiny(**options: object) -> GPT:
    return shaken(small(vocab_size=TOKENIZER.vocab_size, block_size=16, n_layer=1, **options))


@torch.no_grad()
def by_hand(model: GPT, prompt: str, response: str) -> tuple[float, int]:
    """log P(response, END | prompt) of a single row without padding, token by token, and the number of tokens."""
    spelled = [TOKENIZER.special[SPECIAL[0]], *TOKENIZER.encode(prompt).tolist(), TOKENIZER.special[SPECIAL[1]]]
    answer = [*TOKENIZER.encode(response).tolist(), TOKENIZER.special[SPECIAL[2]]]
    total = 0.0
    for token in answer:
        total += model(torch.tensor([spelled]))[0][0, -1].double().log_softmax(-1)[token].item()
        spelled.append(token)
    return total, len(answer)


# ---- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"position": "rope", "bigram_table": True}], ids=["gpt2", "rope"])
def test_scores_are_those_of_one_forward_pass_a_token(options: dict[str, object]) -> None:
    model = tiny(**options)
    total, lengths = label_scores(model, TOKENIZER, PROMPTS, LABELS)
    assert total.shape == (6, 5) and total.dtype == np.float64
    for (i, prompt), (j, label) in itertools.product(enumerate(PROMPTS), enumerate(LABELS)):
        expected, tokens = by_hand(model, prompt, label)
        assert total[i, j] == pytest.approx(expected, abs=1e-4)
        assert lengths[j] == tokens
    assert total.std() > 1  # the weights are such that something is at stake


@pytest.mark.parametrize("batch_tokens", [1, 60, 120])
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


def test_the_probabilities_of_all_responses_sum_to_one() -> None:
    """All texts of at most two characters, and all that begin with three: together whatever the model can say."""
    model, characters = tiny(), [s for s in TOKENIZER.symbols if s not in SPECIAL]
    short = ["".join(text) for length in range(3) for text in itertools.product(characters, repeat=length)]
    ended = np.exp(label_scores(model, TOKENIZER, ["ab"], short)[0]).sum()
    asked = torch.from_numpy(TOKENIZER.encode_prompt("ab").astype(np.int64))
    end, others = TOKENIZER.special[SPECIAL[2]], [i for i in range(TOKENIZER.vocab_size) if i != 1]
    ids = {symbol: TOKENIZER.symbols.index(symbol) for symbol in characters}
    assert end == 1
    going_on = 0.0  # the probability of anything but END, a special token included, at each place up to the third
    for text in short:
        rows = torch.cat((asked, torch.tensor([ids[c] for c in text], dtype=torch.long)))
        logprobs = model(rows[None])[0][0].double().log_softmax(-1).detach()
        reached = sum(logprobs[len(asked) - 1 + k, ids[c]].item() for k, c in enumerate(text))
        wanted = others if len(text) == 2 else [TOKENIZER.special[SPECIAL[0]], TOKENIZER.special[SPECIAL[1]]]
        going_on += math.exp(reached) * logprobs[-1, wanted].exp().sum().item()
    assert ended + going_on == pytest.approx(1, abs=1e-5) and 0.01 < ended < 0.99


def test_mixed_precision_and_a_training_model_score_alike() -> None:
    model = tiny(dropout=0.5).train()
    expected = label_scores(tiny(), TOKENIZER, PROMPTS, LABELS)[0]
    np.testing.assert_allclose(label_scores(model, TOKENIZER, PROMPTS, LABELS)[0], expected, atol=1e-4)
    low = label_scores(tiny().bfloat16(), TOKENIZER, PROMPTS, LABELS)[0]
    np.testing.assert_allclose(low, expected, rtol=0.1, atol=0.5)


def test_the_longest_prompt_that_fits_and_the_next() -> None:
    model, fits = tiny(), "a" * 11  # PROMPT 11 RESPONSE and the 3 of `cab`; END is predicted, not read
    total, _ = label_scores(model, TOKENIZER, [fits], LABELS)
    assert total[0, 1] == pytest.approx(by_hand(model, fits, "cab")[0], abs=1e-4)
    with pytest.raises(TinyGPTError) as caught:
        label_scores(model, TOKENIZER, ["a", fits + "b"], LABELS)
    assert str(caught.value) == "prompt 2 ('aaaaaaaaaaab') takes 17 tokens with the label 'cab', but the model reads 16"
    assert "--block_size" in caught.value.hint


def test_unknown_characters_are_refused_or_left_out() -> None:
    model = tiny()
    with pytest.raises(TinyGPTError, match="'é'"):
        label_scores(model, TOKENIZER, ["aébc"], LABELS)
    skipped = label_scores(model, TOKENIZER, ["aébc"], LABELS, skip_unknown=True)[0]
    np.testing.assert_allclose(skipped[0], label_scores(model, TOKENIZER, ["abc"], LABELS)[0][0], atol=1e-5)
    with pytest.raises(TinyGPTError, match="'é'"):
        label_scores(model, TOKENIZER, ["abc"], ["é"], skip_unknown=True)


def test_no_prompts_no_scores_and_a_softmax_over_the_labels() -> None:
    assert [scores.shape for scores in label_scores(tiny(), TOKENIZER, [], LABELS)] == [(0, 5), (5,)]
    scores = np.array([[-1000.0, -1000.0 - math.log(3)], [-5.0, -5.0], [0.0, -2000.0]])
    np.testing.assert_allclose(probabilities(scores), [[0.75, 0.25], [0.5, 0.5], [1, 0]], atol=1e-12)


# ---- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_figures_equal_scikit_learns(seed: int) -> None:
    draw, L = np.random.default_rng(seed), 3 + seed
    truth = draw.integers(0, L - 1, 60)  # the last label does not occur
    predicted = np.where(draw.random(60) < 0.5, truth, draw.integers(0, L - (seed % 2), 60))  # or is answered
    confusion = confusion_matrix(truth, predicted, L)
    assert (confusion == sklearn.metrics.confusion_matrix(truth, predicted, labels=range(L))).all()
    assert quality(confusion)["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    macro = sklearn.metrics.f1_score(truth, predicted, average="macro")
    assert quality(confusion)["macro_f1"] == pytest.approx(macro)
    each = sklearn.metrics.precision_recall_fscore_support(truth, predicted, labels=range(L), zero_division=0)
    for ours, theirs in zip(rates(confusion).values(), each, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_calibration_of_a_case_by_hand() -> None:
    """Five answers: 0.6 falls into the bin that ends there, 0.61 and 0.69 into the next, 1 and 0.95 into the last."""
    sure, right = np.array([0.6, 0.61, 0.69, 1.0, 0.95]), [True, True, False, True, True]
    truth = np.array([0 if good else 1 for good in right])
    error, bins = calibration(np.stack((sure, 1 - sure), axis=1), truth)
    assert [part["count"] for part in bins] == [0, 0, 0, 0, 0, 1, 2, 0, 0, 2]
    assert bins[5] == {"count": 1, "confidence": 0.6, "accuracy": 1.0}
    assert bins[6] == {"count": 2, "confidence": pytest.approx(0.65), "accuracy": 0.5}
    assert bins[9] == {"count": 2, "confidence": pytest.approx(0.975), "accuracy": 1.0}
    assert bins[0] == {"count": 0, "confidence": None, "accuracy": None}
    assert error == pytest.approx((0.4 + 2 * 0.15 + 2 * 0.025) / 5)


def toy(n: int, seed: int) -> list[tuple[str, str]]:
    """Questions whose first word tells the label; three in five are `person`."""
    words = {"who": "person", "where": "place", "when": "time"}
    draw = random.Random(seed)
    asked = draw.choices(list(words), weights=[6, 2, 2], k=n)
    return [(f"{word} {draw.choice(['was', 'is'])} {draw.choice('abcdefgh') * 3}?", words[word]) for word in asked]


def ngram_probabilities(
    train: list[str], truth: np.ndarray, prompts: list[str], n_labels: int, kind: str = "ngram"
) -> tuple[np.ndarray | None, str]:
    classifier, note = ngram_classifier(train, truth, n_labels, kind)
    return classifier and classifier(prompts), note


def test_ngrams_learn_an_easy_task() -> None:
    train, val = toy(200, 1), toy(50, 2)
    labels = ["person", "place", "time"]
    truth = np.array([labels.index(label) for _, label in train])
    probs, note = ngram_probabilities([prompt for prompt, _ in train], truth, [prompt for prompt, _ in val], 3)
    assert probs is not None and note == ""
    assert [labels[answer] for answer in probs.argmax(axis=1)] == [label for _, label in val]
    assert probs.sum(axis=1) == pytest.approx(1)
    prompts = [prompt for prompt, _ in train]
    rare, _ = ngram_probabilities(prompts, truth + 1, ["who?"], 5)  # labels 0 and 4 do not occur
    assert rare is not None and rare[0, [0, 4]].tolist() == [1e-6, 1e-6] and rare[0].argmax() == 1


def test_the_word_baseline_sees_words_of_one_letter_and_pairs_but_nothing_inside_a_word() -> None:
    orders = [(f"{rest} {pair}", int(pair == "b a")) for rest in "cdefgh" for pair in ("a b", "b a")]
    endings = [
        (f"{stem}{ending}", int(ending == "ing")) for stem in ("walk", "talk", "jump") for ending in ("ed", "ing")
    ]
    for pairs, asked, kinds in (
        (orders, [("z a b", 0), ("z b a", 1)], ("ngram", "word")),
        (endings, [("looked", 0), ("looking", 1)], ("ngram",)),
    ):
        prompts, truth = [prompt for prompt, _ in pairs], np.array([label for _, label in pairs])
        for kind in ("ngram", "word"):
            probs, note = ngram_probabilities(prompts, truth, [prompt for prompt, _ in asked], 2, kind)
            assert probs is not None and note == ""
            assert (probs.argmax(axis=1).tolist() == [label for _, label in asked]) == (kind in kinds), (kind, pairs)
    assert ngram_probabilities(["!", "?"], np.array([0, 1]), ["!"], 2)[0] is not None
    nothing, note = ngram_probabilities(["!", "?"], np.array([0, 1]), ["!"], 2, "word")
    assert nothing is None and note.startswith("the word baseline cannot be trained")


def test_a_missing_ngram_baseline_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    none, note = ngram_probabilities(["a", "b"], np.array([1, 1]), ["c"], 2)  # one label: nothing to separate
    assert none is None and "cannot be trained" in note
    missing(monkeypatch, "sklearn")
    answers, note = ngram_probabilities(["a", "b"], np.array([0, 1]), ["c"], 2)
    assert answers is None and note == "the n-gram and word baselines need scikit-learn: pip install scikit-learn"
    report = sample_report()
    assert set(report["results"]) == {"model", "normalised", "majority"}
    assert f"({note})" in as_text(report) and "\nn-gram baseline" not in as_text(report)


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if it were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


# ---- the report -------------------------------------------------------------------------------------------------


def sample_report(
    labels: tuple[str, ...] = ("person", "place", "time"), n: int = 80, wrong: float = 0.3
) -> dict[str, Any]:
    """A report on made-up scores, right in most cases."""
    draw, train, val = np.random.default_rng(0), toy(200, 1), toy(n, 2)
    if labels != ("person", "place", "time"):
        train, val = (
            [(prompt, labels[i * i % 61 % len(labels)]) for i, (prompt, _) in enumerate(s)] for s in (train, val)
        )
    truth = np.array([labels.index(label) for _, label in val])
    total = draw.normal(-9, 1, (n, len(labels)))
    total[np.arange(n), np.where(draw.random(n) < wrong, draw.integers(0, len(labels), n), truth)] += 6
    tokens = np.array([len(label) + 1 for label in labels])
    return make_report("toy", "val", val, list(labels), total, tokens, train)


def test_the_report_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = toy(200, 1), ["person", "place", "time"]
    val = [("who is aaa?", "person"), ("where is bbb?", "place"), ("when is ccc?", "time"), ("who is ddd?", "person")]
    probs = np.array([[0.7, 0.2, 0.1], [0.9, 0.05, 0.05], [0.3, 0.3, 0.4], [0.4, 0.6, 0.0]])
    total = np.log(probs + 1e-9)
    tokens = np.array([8, 3, 2])  # with END; not the characters
    report = make_report("toy", "val", val, labels, total, tokens, train)
    assert (report["n"], report["labels"], report["note"]) == (4, labels, "")
    assert report["results"]["model"]["accuracy"] == 0.5
    person = {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3) / 3), "accuracy_interval": [*wilson(0.5, 4)]}
    assert report["results"]["normalised"] == report["results"]["majority"] == person  # always this label
    right = {"accuracy": 1, "macro_f1": 1, "accuracy_interval": [*wilson(1, 4)]}
    assert report["results"]["ngram"] == report["results"]["word"] == right
    assert report["groups"] == {}
    assert report["confusion"] == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert report["per_label"]["person"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert report["loss"] == pytest.approx(-math.log(0.7 * 0.05 * 0.4 * 0.4) / (8 + 3 + 2 + 8))
    assert report["calibration_error"] == pytest.approx((0.3 + 0.9 + abs(0.4 - 1) + 0.6) / 4)
    assert report["mistakes"] == [
        {"prompt": "where is bbb?", "true": "place", "predicted": "person", "probability": pytest.approx(0.9)},
        {"prompt": "who is ddd?", "true": "person", "predicted": "place", "probability": pytest.approx(0.6)},
    ]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    monkeypatch.setattr(classify, "MISTAKES", 1)
    assert len(make_report("toy", "val", val, labels, total, tokens, train)["mistakes"]) == 1


def test_the_text_has_the_figures() -> None:
    report = sample_report()
    text = as_text(report)
    lines = text.splitlines()
    names = {
        "model ": "model",
        "model, length-norm": "normalised",
        "n-gra": "ngram",
        "word": "word",
        "majo": "majority",
    }
    for name, key in names.items():
        line, result = next(line for line in lines if line.startswith(name)), report["results"][key]
        assert percent(result["accuracy"], 80) in line and line.endswith(f"{result['macro_f1']:.3f}")
    assert "length-normalised: ranked by mean log-probability per token" in text
    assert f"loss {report['loss']:.4f}" in text and f"expected error {report['calibration_error']:.3f}" in text
    row = next(line for line in lines if line.startswith("place")).split()
    recall = f"{report['per_label']['place']['recall']:.2f}"
    assert row[1:5] == [*(str(count or "·") for count in report["confusion"][1]), recall]
    mistake = report["mistakes"][0]
    assert repr(mistake["prompt"]) in text and f"{100 * mistake['probability']:.1f}%" in text


def test_the_groups_of_a_built_in_task_have_accuracies_of_their_own() -> None:
    task, examples = TASKS["headlines"], TASKS["headlines"].make(1337)
    test, labels = examples["test"], sorted(task.labels)
    groups = np.array([task.group(prompt) for prompt, _ in test])
    truth = np.array([labels.index(label) for _, label in test])
    total = np.eye(3)[np.where(groups == "new words", labels.index("positive"), truth)]  # `positive` to all new words
    report = make_report("headlines", "test", test, labels, total, np.ones(3), examples["train"])
    assert {name: (group["n"], group["model"]) for name, group in report["groups"].items()} == {
        "neutral headlines": (333, 1),
        "new combinations": (223, 1),
        "new words": (444, 0.5),
    }
    for key, result in report["results"].items():
        weighted = sum(group["n"] * group[key] for group in report["groups"].values())
        assert weighted == pytest.approx(1000 * result["accuracy"])
    shown = next(line for line in as_text(report).splitlines() if line.startswith("new words")).split()
    accuracies = [report["groups"]["new words"][key] for key in ("model", "ngram", "word", "majority")]
    assert shown[2:] == ["444", *(f"{100 * a:.1f}%" for a in accuracies)]
    own = [(prompt, f"my {label}") for prompt, label in test]  # a dataset of the same name with labels of its own
    assert make_report("headlines", "test", own, [f"my {x}" for x in labels], total, np.ones(3), own)["groups"] == {}


def test_a_rate_without_cases_is_not_shown_as_0() -> None:
    examples = [("a", "x"), ("b", "x"), ("c", "y")]
    total = np.log([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.9, 0.05, 0.05]])  # always x; z is not in the split
    shown = matrix_lines(make_report("toy", "test", examples, ["x", "y", "z"], total, np.full(3, 2), examples))
    assert [line.split()[-1] for line in shown[2:5]] == ["1.00", "0.00", "-"]
    assert shown[5].split() == ["precision", "0.67", "-", "-"]


@pytest.mark.parametrize("name", ["country of {}", "{} and what else may be asked"], ids=["alike", "telling"])
def test_twelve_labels_fit_into_100_columns(name: str) -> None:
    labels = tuple(name.format(letter * 4) for letter in "abcdefghijkl")
    report = sample_report(labels, n=3000)
    lines = as_text(report).splitlines()
    assert max(map(len, lines)) <= 100
    heading = next(line for line in lines if line.startswith("true ")).split()
    assert heading[1:-1] == [str(i) for i in range(1, 13)] if "of" in name else heading[1] == "aaaa"
    assert len(set(heading)) == 14


def test_control_characters_of_labels_and_prompts_are_shown_escaped() -> None:
    lines = as_text(sample_report(("red\x1b[1m", "blue\n", "\x9bgreen"))).splitlines()
    assert all(line.isprintable() for line in lines)
    assert all(any(line.startswith(name) for line in lines) for name in (r"red\x1b[1m ", r"blue\n "))


def test_the_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    for name, labels in (("three", ("person", "place", "time")), ("odd", ("$\\no$", "a_b^c", "_hidden", "d" * 40))):
        draw_confusion(sample_report(labels), tmp_path / f"{name}.png")
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 400 and height > 400 and len(data) > 5000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.png", "three.png"]
    with pytest.raises(TinyGPTError, match="cannot be written"):
        draw_confusion(sample_report(), tmp_path / "nowhere" / "picture.png")
    draw_confusion(sample_report() | {"task": r"$\frac$"}, tmp_path / "name.png")  # a name is not mathematics


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = sample_report()
    missing(monkeypatch, "matplotlib")
    with pytest.raises(TinyGPTError, match="needs the package matplotlib") as caught:
        draw_confusion(report, tmp_path / "picture.png")
    assert "pip install matplotlib" in caught.value.hint and not list(tmp_path.iterdir())
