"""The task `compliance` and the trade-off of a rare label: figures against scikit-learn's and cases by hand.
What is refused: ../transcripts/data_pairs.txt."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from conftest import ok
from inputs import csv_file, prepared
from tasks_made import two_labels

import tinygpt
from tinygpt.base.configs.core import PrepareConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.preview import print_next_commands
from tinygpt.data.tasks import compliance
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.eval.threshold import (
    as_text,
    average_precision,
    cheapest_threshold,
    make_tradeoff,
    outcome,
    precision_recall,
)


def test_prepare_shows_the_shares_and_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compliance, "SIZES", {"train": 1000, "val": 500, "test": 500})
    result = ok(tmp_path, "prepare", "compliance", "--show=2")
    assert "labels:     ok 98.0%, breach 2.0%\n" in result.out and "note:" not in result.out
    assert result.out.endswith("\nnext: tinygpt train configs/compliance.yaml\n")


@pytest.mark.parametrize("digits", [1, 2, 17], ids=["most tied", "some tied", "none tied"])
def test_the_curve_equals_scikit_learns(digits: int) -> None:
    draw = np.random.default_rng(1)
    positive = draw.random(400) < 0.1
    scores = np.round(np.clip(draw.normal(0.3 + 0.2 * positive, 0.15), 0, 1), digits)
    curve = precision_recall(scores, positive)
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(positive, scores)
    np.testing.assert_array_equal(curve.thresholds, thresholds[::-1])
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
    assert average_precision(curve) == pytest.approx(sklearn.metrics.average_precision_score(positive, scores))


def test_a_case_by_hand() -> None:
    """Six prompts, two of them positive; two share a score. Flagging 1, 3, 4 or all 6 of them are the choices."""
    scores, positive = np.array([0.2, 0.9, 0.5, 0.5, 0.2, 0.3]), np.array([0, 0, 1, 0, 0, 1], dtype=bool)
    curve = precision_recall(scores, positive)
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.3, 0.2]
    assert curve.hits.tolist() == [0, 1, 2, 2] and curve.false_alarms.tolist() == [1, 2, 2, 4]
    assert curve.precision.tolist() == [0, 1 / 3, 1 / 2, 1 / 3] and curve.recall.tolist() == [0, 0.5, 1, 1]
    assert average_precision(curve) == pytest.approx(0.5 / 3 + 0.5 / 2)
    assert cheapest_threshold(curve, 20) == 0.3  # 2 false alarms
    assert cheapest_threshold(curve, 1) == math.inf  # both cost 2: of equal ones the highest
    assert cheapest_threshold(curve, 1.01) == 0.3
    found = outcome(scores, positive, 0.5, miss_cost=20)
    assert (found["precision"], found["recall"], found["accuracy"]) == (1 / 3, 0.5, 0.5)
    per_thousand = [found[key] for key in ("false_alarms", "misses", "cost")]
    assert per_thousand == pytest.approx([2000 / 6, 1000 / 6, 22000 / 6])


def tradeoff_of(scores: Callable[[np.ndarray], np.ndarray], split: str = "test") -> dict[str, Any]:
    """The trade-off of a classifier without a model, on 4,000 prompts of which 2% are positive."""
    positive = np.arange(4000) % 50 == 0
    scored = {"model": scores(positive)}, positive
    return make_tradeoff("bad\x1b[1m", split, 20, scored, scored)[0]


def test_a_majority_scorer_flags_nothing() -> None:
    found = tradeoff_of(lambda positive: np.full(4000, 0.02))
    half, chosen, nothing, everything = found["rows"]
    assert found["average_precision"]["model"] == pytest.approx(0.02)
    for row in (half, chosen, nothing):  # 20 x 20 for the misses; flagging all would cost 980
        assert (row["precision"], row["recall"], row["false_alarms"], row["misses"]) == (None, 0, 0, 20)
        assert row["cost"] == 400 and row["accuracy"] == 0.98
    assert chosen["threshold"] is None
    assert (everything["recall"], everything["cost"], everything["precision"]) == (1, 980, 0.02)
    text = as_text(found)
    assert "accuracy misleads: flagging nothing is correct for 98.0% of the prompts" in text
    assert "the model is correct for 98.0% at threshold 0.5, and for 98.0% at the chosen" in text
    assert "none (val)" in text and all(line.isprintable() for line in text.splitlines())


def test_a_perfect_scorer_costs_nothing_at_its_own_threshold() -> None:
    found = tradeoff_of(lambda positive: np.where(positive, 0.3, 0.1), "val")
    half, chosen = found["rows"][:2]
    assert found["average_precision"]["model"] == 1
    assert half["recall"] == 0 and chosen["threshold"] == 0.3  # no P(positive) is above one half
    assert chosen["recall"] == 1 and chosen["cost"] == 0
    assert "this same split" in as_text(found) and "this same split" not in as_text(found | {"split": "test"})
    assert json.loads(json.dumps(found, allow_nan=False))["rows"] == found["rows"]


def test_the_next_command_of_a_model_s_tokenizer_names_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    """The preset for a model's tokenizer is that of transactions."""
    for name in ("compliance", "transactions"):
        config = PrepareConfig(name, tokenizer="out-base")
        print_next_commands(config, Path("data") / name, CharTokenizer([*"abc", *SPECIAL]), 60)
        own = " --dataset=compliance --out_dir=out-compliance" if name == "compliance" else ""
        preset = "configs/finetune_transactions.yaml"
        assert f"next: tinygpt finetune {preset} --ckpt=out-base{own} --lora_rank=8 " in capsys.readouterr().out


def test_a_misspelt_label_is_seen_and_a_split_without_a_label_is_noted(tmp_path: Path) -> None:
    csv_file(tmp_path / "mine.csv", ["prompt", "response"], *two_labels(), ["a note", "bda"])
    result = prepared(tmp_path, file="mine.csv")
    assert "labels:     bad 12.5%, bda 0.2%, fine 87.3%" in result.out
    notes = [line for line in result.out.splitlines() if line.startswith("note:")]
    assert notes == [f"note: the split {split} has no example of 'bda'" for split in ("val", "test")]


@pytest.fixture(scope="module")
def own(two_labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two-label dataset `mine`, and a model of it."""
    return Path(shutil.copytree(two_labelled, tmp_path_factory.mktemp("own") / "work"))


def test_figures_of_eval_equal_scikit_learns(own: Path) -> None:
    """The threshold is that of the validation split."""
    dataset = Dataset(str(own / "data"), "mine")
    scores, truth = {}, {}
    for split in ("val", "test"):
        prompts, responses = zip(*dataset.sources[split].examples(dataset.tokenizer), strict=True)
        probabilities = tinygpt.load(own / "out", device="cpu").probabilities(prompts, dataset.labels)
        scores[split] = probabilities[:, dataset.labels.index("bad")]
        truth[split] = np.array(responses) == "bad"
    done = ok(own, "eval", "--task=mine", "--json", "--positive=bad", "--miss_cost=3")
    found = json.loads(done.out)["tradeoff"]
    assert found["positives"] == truth["test"].sum() > 5 and found["n"] == len(truth["test"])
    expected = sklearn.metrics.average_precision_score(truth["test"], scores["test"])
    assert found["average_precision"]["model"] == pytest.approx(expected)
    chosen = next(row for row in found["rows"] if row["classifier"] == "model" and row["chosen"])
    costs = {t: (scores["val"] >= t) @ ~truth["val"] + 3 * ((scores["val"] < t) @ truth["val"]) for t in scores["val"]}
    best = min(costs.values())
    assert chosen["threshold"] == pytest.approx(max(t for t in costs if costs[t] == best), abs=1e-5)
    flagged = scores["test"] >= chosen["threshold"] - 1e-6
    assert chosen["recall"] == pytest.approx(sklearn.metrics.recall_score(truth["test"], flagged))
    assert chosen["precision"] == pytest.approx(sklearn.metrics.precision_score(truth["test"], flagged))
    assert {row["classifier"] for row in found["rows"]} == {"model", "ngram", "nothing", "everything"}


def test_the_trade_off_has_a_picture_and_is_suggested_for_a_rare_label(own: Path) -> None:
    """One of 12 is `odd`; of `mine` one of 8 is `bad`, which is not rare."""
    (own / "out/confusion.png").unlink(missing_ok=True)  # of another test
    assert "precision-recall trade-off of 'bad'" in ok(own, "eval", "--task=mine", "--positive=bad").out
    assert (own / "out/precision_recall.png").read_bytes().startswith(b"\x89PNG")
    assert not (own / "out/confusion.png").exists()
    plain = ok(own, "eval", "--task=mine").out
    assert "trade-off" not in plain and "is rare" not in plain and (own / "out/confusion.png").exists()
    rows = [[f"{n:03} note", "odd" if n % 12 == 0 else "fine"] for n in range(400)]
    csv_file(own / "rare.csv", ["prompt", "response"], *rows)
    ok(own, "prepare", "rare", "--input=rare.csv", "--format=pairs")
    said = ok(own, "eval", "--task=rare", "-o", "rare.png").out
    assert "'odd' is rare: --positive=odd adds its precision" in said and (own / "rare.png").exists()
