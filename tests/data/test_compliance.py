"""The task `compliance` and the trade-off of a rare label: labels by an oracle, figures against scikit-learn's and
cases by hand. What is refused: ../transcripts/data_pairs.txt."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from conftest import cli_here, ok
from inputs import csv_file
from tasks_made import examples, two_labels

import tinygpt
from tinygpt.base.configs.core import PrepareConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.preview import print_next_commands
from tinygpt.data.tasks import compliance
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.eval.classify import ngram_classifier
from tinygpt.examine.eval.threshold import (
    as_text,
    average_precision,
    cheapest_threshold,
    make_tradeoff,
    outcome,
    precision_recall,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = examples("compliance")

# ---- the task ---------------------------------------------------------------------------------------------------


def test_a_fiftieth_of_the_messages_are_breaches() -> None:
    for pairs in EXAMPLES.values():
        assert Counter(label for _, label in pairs)["breach"] == len(pairs) / 50 >= 100
        for prompt, _ in pairs:
            assert 60 <= len(prompt) <= 110 and not re.search(r"[{}]|  |\.\.", prompt), prompt


def test_clients_of_a_split_are_its_own() -> None:
    for split, pairs in EXAMPLES.items():
        others = {name for other, names in compliance.NAMES.items() if other != split for name in names}
        assert not any(others.intersection(re.findall("[A-Z][a-z]+", prompt)) for prompt, _ in pairs)
    assert len({name for names in compliance.NAMES.values() for name in names}) == sum(
        map(len, compliance.NAMES.values())
    )


FORBIDDEN = {
    "return": r"promise |cannot lose|guarantee \w+ \w+ \d|free of any risk|that \d+ % on the [\w ]+ is guaranteed",
    "inside": r"before the (?:merger|results)|before it is public|unpublished|secret",
    "channel": r"(?:to|on|from) my private|off the recorded line|in a private chat",
    "gift": r"\b(?:1[1-9]\d|10[1-9]|[2-9]\d\d) euros",
    "data": r"my home|friend|my brother|my own cloud",
    "ahead": r"own account before|sell our \w+ first|put my own|hold the \w+ \w+ order|put our \w+ trade first"
    r"|sell my own \w+ shares ahead",
}  # fmt: skip
REFUSED = r"(?:I will|not going to|Let us|do|am) not\b|not going to|refused|never|obody may|I said no"


def rules_of(message: str) -> list[str]:
    """The rules whose forbidden act a message names, by reading."""
    return [rule for rule, cue in FORBIDDEN.items() if re.search(cue, message)]


def oracle(message: str) -> str:
    return "breach" if rules_of(message) and not re.search(REFUSED, message) else "ok"


@pytest.mark.parametrize("seed", [1337, pytest.param(2, marks=pytest.mark.slow)])
def test_messages_have_the_label_a_reader_gives(seed: int) -> None:
    for pairs in examples("compliance", seed).values():
        for message, label in pairs:
            assert oracle(message) == label, message
            assert len(rules_of(message)) <= 1, message


def test_breaches_are_of_all_rules_and_a_tenth_of_the_others_refuse_one() -> None:
    for pairs in EXAMPLES.values():
        breaches = Counter(rules_of(message)[0] for message, label in pairs if label == "breach")
        assert set(breaches) == set(compliance.RULES) and max(breaches.values()) - min(breaches.values()) <= 1
        refusals = Counter(rules_of(message)[0] for message, label in pairs if label == "ok" and rules_of(message))
        assert set(refusals) == set(compliance.RULES)
        assert 0.08 < refusals.total() / len(pairs) < 0.12


def test_words_of_a_breach_are_in_more_messages_without_one() -> None:
    """No single word or frame gives the label away; half of the hard negatives have a frame of the breaches."""
    train = EXAMPLES["train"]
    for cue in (*compliance._DOING[0], "guarantee", "private", "euros", "before", "own", "merger"):
        pattern = re.compile(re.escape(cue.partition("{a}")[0].strip()))
        count = Counter(label for message, label in train if pattern.search(message))
        assert count["ok"] > count["breach"] > 5, cue


def test_a_part_of_the_wordings_is_held_out_of_train() -> None:
    for wordings in (*compliance._ACTS.values(), compliance._DOING, compliance._REFUSING, compliance._ORDINARY):
        for wording in wordings[1]:
            for form in {wording} if isinstance(wording, str) else set(wording):
                text = re.sub(r"\\\{\w\\\}", r"[\\w ]+", re.escape(form))
                pattern = re.compile(text if form in compliance._ORDINARY[1] else text.replace(r"\{a\}", ".*"))
                found = {split: any(pattern.search(m) for m, _ in pairs) for split, pairs in EXAMPLES.items()}
                assert found == {"train": False, "val": True, "test": True}, form


def test_prepare_shows_the_shares_and_the_next_command(tmp_path: Path) -> None:
    result = ok(tmp_path, "prepare", "compliance", "--show=2")
    assert "labels:     ok 98.0%, breach 2.0%\n" in result.out and "note:" not in result.out
    assert f"<|prompt|>{EXAMPLES['train'][0][0]}<|response|>[" in result.out
    assert result.out.endswith("\nnext: tinygpt train configs/compliance.yaml\n")
    dataset = Dataset(str(tmp_path / "data"), "compliance")
    assert dataset.labels == ["ok", "breach"]


# ---- figures ----------------------------------------------------------------------------------------------------


def drawn(seed: int, n: int = 400, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, higher for the positives, of which there are about a tenth."""
    draw = np.random.default_rng(seed)
    positive = draw.random(n) < 0.1
    return np.round(np.clip(draw.normal(0.3 + 0.2 * positive, 0.15), 0, 1), digits), positive


@pytest.mark.parametrize("digits", [1, 2, 17], ids=["most tied", "some tied", "none tied"])
@pytest.mark.parametrize("seed", range(4))
def test_the_curve_equals_scikit_learns(seed: int, digits: int) -> None:
    scores, positive = drawn(seed, digits=digits)
    curve = precision_recall(scores, positive)
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(positive, scores)
    np.testing.assert_array_equal(curve.thresholds, thresholds[::-1])
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
    assert average_precision(curve) == pytest.approx(sklearn.metrics.average_precision_score(positive, scores))
    assert len(thresholds) < 400 or digits == 17


@pytest.mark.parametrize("miss_cost", [0.3, 1, 20])
@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_costs_less(seed: int, miss_cost: float) -> None:
    scores, positive = drawn(seed)
    chosen = cheapest_threshold(precision_recall(scores, positive), miss_cost)
    others = [outcome(scores, positive, t, miss_cost)["cost"] for t in (*np.linspace(0, 1.01, 405), math.inf)]
    assert outcome(scores, positive, chosen, miss_cost)["cost"] == pytest.approx(min(others))


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


def tradeoff_of(classifier: str, split: str = "test"):
    """The trade-off of a classifier without a model, on 4,000 prompts of which 2% are positive."""
    positive = np.arange(4000) % 50 == 0
    score = {
        "random": lambda seed: np.random.default_rng(seed).random(4000),
        "majority": lambda seed: np.full(4000, 0.02),
        "perfect": lambda seed: np.where(positive, 0.3, 0.1) + np.random.default_rng(seed).random(4000) / 20,
    }[classifier]
    val, wanted = ({"model": score(1)}, positive), ({"model": score(2)}, positive)
    return make_tradeoff("bad\x1b[1m", split, 20, val, wanted)[0]


def test_a_random_scorer_is_no_better_than_the_share() -> None:
    found = tradeoff_of("random")
    assert found["average_precision"]["model"] == pytest.approx(0.02, abs=0.01)
    assert found["rows"][1]["cost"] > 0.95 * min(found["rows"][2]["cost"], found["rows"][3]["cost"])


def test_a_majority_scorer_flags_nothing() -> None:
    found = tradeoff_of("majority")
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
    assert max(map(len, text.splitlines())) <= 100


def test_a_perfect_scorer_costs_nothing_at_its_own_threshold() -> None:
    found = tradeoff_of("perfect")
    half, chosen = found["rows"][:2]
    assert found["average_precision"]["model"] == 1
    assert half["recall"] == 0 and 0.3 <= chosen["threshold"] < 0.31  # no P(positive) is above one half
    assert chosen["recall"] > 0.9 and chosen["false_alarms"] == 0
    assert "this same split" in as_text(tradeoff_of("perfect", "val")) and "this same split" not in as_text(found)
    assert json.loads(json.dumps(found, allow_nan=False))["rows"] == found["rows"]


@pytest.mark.slow
def test_the_quoted_figures_of_the_n_gram_baseline() -> None:
    splits = {split: [prompt for prompt, _ in pairs] for split, pairs in EXAMPLES.items()}
    truth = {split: np.array([label == "breach" for _, label in pairs]) for split, pairs in EXAMPLES.items()}
    both = splits["val"] + splits["test"]
    classifier, _ = ngram_classifier(splits["train"], truth["train"].astype(int), 2)
    assert classifier
    probs = classifier(both)
    val, test = (({"ngram": some}, truth[s]) for s, some in zip(("val", "test"), np.split(probs[:, 1], 2), strict=True))
    found, _ = make_tradeoff("breach", "test", 20, val, test)
    half, chosen = (f"{row['precision']:.2f} | {row['recall']:.2f} | {row['cost']:.0f}" for row in found["rows"][:2])
    area = f"{found['average_precision']['ngram']:.3f}"
    text = (ROOT / "docs/explanation/fine-tuning.md").read_text(encoding="utf-8")
    assert f"| n-gram baseline, 0.5 | {half} |" in text
    assert f"| n-gram baseline, chosen: {found['rows'][1]['threshold']:.3f} | {chosen} |" in text
    assert f"average precision of `breach` {area} |" in (ROOT / "data/README.md").read_text(encoding="utf-8")


def test_the_next_command_of_a_model_s_tokenizer_names_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    """The preset for a model's tokenizer is that of transactions."""
    for name in ("compliance", "transactions"):
        config = PrepareConfig(name, tokenizer="out-base")
        print_next_commands(config, Path("data") / name, CharTokenizer([*"abc", *SPECIAL]), 60)
        own = " --dataset=compliance --out_dir=out-compliance" if name == "compliance" else ""
        preset = "configs/finetune_transactions.yaml"
        assert f"next: tinygpt finetune {preset} --ckpt=out-base{own} --lora_rank=8 " in capsys.readouterr().out


# ---- your own labels --------------------------------------------------------------------------------------------


PREPARE = ("prepare", "mine", "--input=mine.csv", "--format=pairs")


def test_a_misspelt_label_is_seen_and_a_split_without_a_label_is_noted(tmp_path: Path) -> None:
    csv_file(tmp_path / "mine.csv", ["prompt", "response"], *two_labels(), ["a note", "bda"])
    result = cli_here(*PREPARE, cwd=tmp_path)
    assert "labels:     bad 12.5%, bda 0.2%, fine 87.3%" in result.out
    notes = [line for line in result.out.splitlines() if line.startswith("note:")]
    assert notes == [f"note: the split {split} has no example of 'bda'" for split in ("val", "test")]


@pytest.fixture(scope="module")
def own(two_labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two-label dataset `mine`, and a model of it."""
    return Path(shutil.copytree(two_labelled, tmp_path_factory.mktemp("own") / "work"))


def evaluated(folder: Path, *flags: str) -> dict:
    result = ok(folder, "eval", "--task=mine", "--json", *flags)
    return json.loads(result.out)


@pytest.mark.parametrize("split", ["test", "val"])
def test_figures_of_eval_equal_scikit_learns(own: Path, split: str) -> None:
    """The threshold is that of the validation split."""
    dataset = Dataset(str(own / "data"), "mine")
    scores, truth = {}, {}
    for part in ("val", split):
        examples = dataset.sources[part].examples(dataset.tokenizer)
        probabilities = tinygpt.load(own / "out", device="cpu").probabilities(
            [one[0] for one in examples], dataset.labels
        )
        scores[part] = probabilities[:, dataset.labels.index("bad")]
        truth[part] = np.array([response == "bad" for _, response in examples])
    found = evaluated(own, "--positive=bad", "--miss_cost=3", f"--split={split}")["tradeoff"]
    assert found["positives"] == truth[split].sum() > 5 and found["n"] == len(truth[split]) and found["miss_cost"] == 3
    expected = sklearn.metrics.average_precision_score(truth[split], scores[split])
    assert found["average_precision"]["model"] == pytest.approx(expected)
    chosen = next(row for row in found["rows"] if row["classifier"] == "model" and row["chosen"])
    costs = {t: (scores["val"] >= t) @ ~truth["val"] + 3 * ((scores["val"] < t) @ truth["val"]) for t in scores["val"]}
    best = min(costs.values())
    assert chosen["threshold"] == pytest.approx(max(t for t in costs if costs[t] == best), abs=1e-5)
    flagged = scores[split] >= chosen["threshold"] - 1e-6
    assert chosen["recall"] == pytest.approx(sklearn.metrics.recall_score(truth[split], flagged))
    assert chosen["precision"] == pytest.approx(sklearn.metrics.precision_score(truth[split], flagged))
    assert {row["classifier"] for row in found["rows"]} == {"model", "ngram", "nothing", "everything"}


def test_the_report_has_the_trade_off_and_its_picture(own: Path) -> None:
    (own / "out/confusion.png").unlink(missing_ok=True)  # of another test
    result = cli_here("eval", "--task=mine", "--positive=bad", cwd=own)
    assert result.status == 0 and "precision-recall trade-off of 'bad'" in result.out
    assert (own / "out/precision_recall.png").read_bytes().startswith(b"\x89PNG")
    assert not (own / "out/confusion.png").exists()
    ok(own, "eval", "--task=mine", "--positive=bad", "-o", "x.png")
    assert (own / "x.png").exists()
    plain = cli_here("eval", "--task=mine", cwd=own)
    assert "trade-off" not in plain.out and (own / "out/confusion.png").exists()
    assert "tradeoff" not in evaluated(own) and evaluated(own)["results"]["ngram"]


def test_a_rare_label_is_pointed_out(own: Path) -> None:
    """One of 12 is `odd`, and --positive is suggested; of `mine` one of 8 is `bad`, and it is not."""
    assert "is rare" not in ok(own, "eval", "--task=mine").out
    rows = [[f"{n:03} note", "odd" if n % 12 == 0 else "fine"] for n in range(400)]
    csv_file(own / "rare.csv", ["prompt", "response"], *rows)
    ok(own, "prepare", "rare", "--input=rare.csv", "--format=pairs")
    said = ok(own, "eval", "--task=rare", "-o", "rare.png").out
    assert "'odd' is rare: --positive=odd adds its precision" in said
