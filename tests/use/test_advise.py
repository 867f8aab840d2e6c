"""`tinygpt advise`: its statistics by hand and against scipy, its splits, and the command, from examples to labels."""

import csv
import itertools
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE, needs_fork, ok, refused, until
from scipy import stats

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.intervals import Z, wilson
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.use.advise import contenders, judge, labeller, summary
from tinygpt.use.advise.contenders import MAJORITY, Data
from tinygpt.use.advise.split import Split, parsed_times, split

f1_score = pytest.importorskip("sklearn.metrics").f1_score


def bools(text: str) -> np.ndarray:
    """1 for true, 0 for false."""
    return np.array([letter == "1" for letter in text])


def alone(n: int) -> np.ndarray:
    """Clusters of one line each."""
    return np.arange(n)


@pytest.mark.parametrize("right, n", [(33, 40), (40, 40), (1, 1)])
def test_the_interval_of_independent_lines_is_wilsons(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert judge.accuracy_interval(np.arange(n) < right, alone(n)) == pytest.approx((expected.low, expected.high))


def test_clusters_count_as_fewer_lines() -> None:
    # Ten clusters of four lines, all alike within a cluster: ten independent lines, in 9 degrees of freedom.
    right, clusters = np.repeat(bools("1111111000"), 4), np.repeat(np.arange(10), 4)
    effective = 9 * (Z / stats.t.ppf(0.975, 9)) ** 2
    assert judge.accuracy_interval(right, clusters) == pytest.approx(wilson(0.7, effective))
    assert judge.accuracy_interval(np.ones(40, bool), clusters) == pytest.approx(wilson(1, effective))
    assert judge.accuracy_interval(right, np.zeros(40, int)) == (0, 1)  # one group says nothing about others


def test_the_interval_of_macro_f1() -> None:
    """Against a bootstrap, which takes it for certain that all are right."""
    draw = np.random.default_rng(0)
    truth = draw.choice(3, 400, p=[0.6, 0.3, 0.1])
    predicted = np.where(draw.random(400) < 0.8, truth, draw.integers(0, 3, 400))
    low, high = judge.macro_f1_interval(truth, predicted, alone(400), 4)  # the fourth label occurs nowhere
    samples = (draw.integers(0, 400, 400) for _ in range(200))
    scores = [f1_score(truth[lines], predicted[lines], average="macro") for lines in samples]
    assert (low, high) == pytest.approx(np.percentile(scores, [2.5, 97.5]), abs=0.015)
    assert low < f1_score(truth, predicted, average="macro") < high
    assert judge.macro_f1_interval(truth[:40], truth[:40], alone(40), 3) == pytest.approx(wilson(1, 40))
    wide = judge.macro_f1_interval(np.repeat(truth, 4), np.repeat(predicted, 4), np.repeat(alone(400), 4), 3)
    assert wide == pytest.approx((low, high), abs=0.003)  # the same lines four times are no evidence


def test_the_interval_of_a_gain() -> None:
    first, second = bools("1100" * 10), bools("1110" * 10)
    low, high = judge.gain_interval(first, second, alone(40))
    d = np.array([0, 0, 1, 0] * 10 + [1, -1])
    expected = stats.ttest_1samp(d, 0).confidence_interval()
    assert (low, high) == pytest.approx((expected.low, expected.high))
    low, high = judge.gain_interval(first, first, alone(40))
    assert low < -0.02 and high > 0.02


def test_the_paired_test_is_mcnemars_for_independent_lines() -> None:
    first, second = bools("1111111100001"), bools("0000000111111")  # 7 gained, 4 lost
    expected = stats.binomtest(7, 11, alternative="greater").pvalue
    assert judge.p_value(first, second, alone(13)) == pytest.approx(expected)
    assert judge.p_value(first, first, alone(13)) == 1


def test_the_paired_test_flips_whole_clusters() -> None:
    sums, sizes = [3, 2, -1, 4, 1, 0, 2], 5  # differences of seven clusters
    first = np.concatenate([np.arange(sizes) < max(0, total) for total in sums])
    second = np.concatenate([np.arange(sizes) < max(0, -total) for total in sums])
    flips = itertools.product((-1, 1), repeat=len(sums))
    exact = np.mean([np.dot(signs, sums) >= sum(sums) for signs in flips])
    clusters = np.repeat(np.arange(len(sums)), sizes)
    assert judge.p_value(first, second, clusters) == pytest.approx(exact, abs=0.01)
    assert judge.p_value(first, second, alone(len(first))) < exact / 5  # as if the lines were independent
    # Many clusters: the normal approximation of the same test.
    assert judge.p_value(np.tile(first, 400), np.tile(second, 400), np.arange(14000) // sizes) < 1e-9


@pytest.mark.parametrize(
    "expected, contenders",
    [
        ("a", {"majority": "1" * 20 + "0" * 20, "a": "1" * 38 + "00", "b": "1" * 40}),  # b may be better by chance
        ("b", {"majority": "1" * 20 + "0" * 20, "a": "1" * 30 + "0" * 10, "b": "1" * 40}),
        # six lines more: p = 1/64, too much for one of two; seven: p = 1/128, below 0.02 / 2
        ("majority", {"majority": "1" * 20 + "0" * 20, "a": "1" * 18 + "0" * 22, "b": "1" * 26 + "0" * 14}),
        ("b", {"majority": "1" * 20 + "0" * 20, "a": "1" * 18 + "0" * 22, "b": "1" * 27 + "0" * 13}),
    ],
)
def test_the_rule(expected: str, contenders: dict[str, str]) -> None:
    right = {name: bools(answers) for name, answers in contenders.items()}
    assert judge.advise(right, alone(40), MAJORITY).name == expected


def test_the_threshold_is_the_lowest_that_holds() -> None:
    confidence, right = np.arange(1000) / 1000, np.arange(1000) >= 320
    at = judge.threshold(confidence, right, alone(1000))
    assert at == 0.3  # 680 of 700 are right, which is at least 95.9%; above 0.25, 680 of 750, at most 92.6%
    assert wilson(680 / 700, 700)[0] > 0.95 > wilson(680 / 750, 750)[1]
    assert judge.threshold(confidence[:72], np.ones(72, bool), alone(72)) is None
    assert judge.threshold(confidence[:73], np.ones(73, bool), alone(73)) == 0
    assert judge.threshold(confidence, right, np.arange(1000) // 125) is None  # of 8 groups


def test_the_threshold_must_hold_on_other_lines() -> None:
    confidence, right, parts = np.arange(1000) / 1000, np.arange(1000) >= 320, np.arange(1000) % 5
    assert judge.sure(confidence, right, alone(1000), parts).threshold == 0.3
    # Part 0, of a fifth of the lines, is wrong where the others are right.
    bad = np.where(parts == 0, np.arange(1000) % 4 > 0, True)
    assert judge.threshold(confidence, bad, alone(1000)) is None
    assert not judge.sure(confidence, bad, alone(1000), parts).keeps


def test_confusions_are_counted_and_the_most_confident_error_comes_first() -> None:
    """Of 40 cards 12 are taken for cash, of 20 loans 3 for a card. The label cash is an e-mail address."""
    truth = np.repeat([0, 1, 2], [40, 40, 20])
    predicted = np.where(alone(100) < 12, 1, truth)
    predicted[97:] = 0
    confidence = [0.9 if line == 98 else 0.5 for line in range(100)]
    common = {"seconds": 1, "confidence": confidence}
    answers = {MAJORITY: [0] * 100, "x": predicted.tolist()}
    known = {name: {"result": common | {"predicted": each}} for name, each in answers.items()}
    stages = [Stage(summary.LOOK, 1, list), *(Stage(name, 1, list, {"contender": name, "share": 1}) for name in known)]
    data = Data([f"text {n}" for n in range(100)], truth, ["card", "cash.desk@example.org", "loan"], range(100))
    divided = Split("", [(alone(0), alone(100))], alone(100), None)
    report = summary.Report(data, divided, Results(stages, known | {summary.LOOK: {"result": []}}))
    table, example = report.summary.tables[0], report.summary.example
    assert [tuple(row.values()) for row in table.rows] == [
        ("card", "c…@example.org", "12 of 40"),
        ("loan", "card", "3 of 20"),
    ]
    assert "cash.desk" not in str(report.summary)
    assert example and (example.prompt, example.marked) == ("text 98 →", "card")
    assert report.values["confusions"][1] == {"label": "loan", "answer": "card", "lines": 3, "tested": 20}


PROMPTS = [f"{word} {n // 2}{'?' * (n % 2)}" for n, word in enumerate(["card", "loan", "mail"] * 30)]
TRUTH = np.arange(90) % 3


def check(divided: Split, keys: list[Any]) -> None:
    """Nothing with the same key is in training and in the test, and no line is tested twice."""
    for train, test in divided.folds:
        assert len(train) and len(test) and sorted([*train, *test]) == list(range(len(keys)))
        assert not {keys[line] for line in train} & {keys[line] for line in test}
    assert len(set(divided.tested)) == len(divided.tested)


def test_equal_prompts_are_on_one_side_and_each_line_is_tested_once() -> None:
    prompts = [f"Card {n // 3}" + ["", "?", " !"][n % 3] for n in range(90)]
    divided = split(prompts, TRUTH, None, None)
    check(divided, [n // 3 for n in range(90)])
    assert sorted(divided.tested) == list(range(90)) and len(divided.folds) == 5
    inner = divided.part(divided.folds[0][0], 0.25, seed=1)
    kept, rest = divided.folds[0][0][inner], divided.folds[0][0][~inner]
    assert 12 <= len(kept) <= 18 and not {n // 3 for n in kept} & {n // 3 for n in rest}
    few = split([f"{n} x" for n in range(24)], np.arange(24) % 6, None, None)
    assert len(few.folds) == 4  # four examples of each label


def test_no_group_is_on_both_sides() -> None:
    groups = [f"customer {n % 12}" for n in range(90)]
    divided = split(PROMPTS, TRUTH, groups, None)
    check(divided, groups)
    assert sorted(divided.tested) == list(range(90)) and not divided.warning
    few = split(PROMPTS, TRUTH, [f"{n % 3}" for n in range(90)], None)
    assert len(few.folds) == 3 and "only 3 groups" in few.warning


@pytest.mark.parametrize("distinct", [2, 7, 90])
def test_the_newest_are_tested_and_equal_times_are_on_one_side(distinct: int) -> None:
    times = np.random.default_rng(1).permutation(90) * distinct // 90
    divided = split(PROMPTS, TRUTH, None, times.astype(float))
    check(divided, times.tolist())
    (train, test), *others = divided.folds
    assert not others and times[train].max() < times[test].min() and len(test) >= 18
    newest = divided.part(train, 0.25, seed=1)
    assert newest.any()  # however many lines share the newest time
    assert newest.all() or times[train[newest]].min() > times[train[~newest]].max()


@pytest.mark.parametrize(
    "texts",
    [
        ["2024-12-31", "2025-01-02", "2025-11-01"],
        ["31.12.2024", "02.01.2025", "1.11.2025"],
        ["2025-01-01T02:00+03:00", "2025-01-01T00:00+00:00", "2025-01-01T00:00-01:00"],
        ["9", "10", "1e3"],
        ["20241231", "20250102", "20251101"],
    ],
    ids=str,
)
def test_times(texts: list[str]) -> None:
    times = parsed_times(texts, "day", ["here"] * len(texts))
    assert times[0] < times[1] < times[2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2025-01-01", "nan"], "line 3: day .* is not a date"),
        (["31.12", "1.11", " 02.1"], "line 2: day '31.12' is a date without a year"),
        (["31122024", "2012025"], "line 2: day '31122024' is a date that begins with the day"),
    ],
    ids=str,
)
def test_other_times_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(TinyGPTError, match=message):
        parsed_times(texts, "day", [f"line {row + 2}" for row in range(len(texts))])


def rows(n: int = 48, seed: int = 1) -> list[dict[str, str]]:
    """Examples in which a word shows the label, nearly always."""
    draw, made = random.Random(seed), []
    for number in range(n):
        label = ["card", "loan"][number % 2]
        word = label if draw.random() < 0.9 else "thing"
        prompt, day = f"{word} {draw.choice('abcdefgh')}{number}", f"2025-01-{1 + number % 25:02}"
        made.append({"prompt": prompt, "response": label, "who": f"c{number % 12}", "day": day})
    return made


def write(path: Path, examples: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(examples[0]))
        writer.writeheader()
        writer.writerows(examples)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "pairs.csv", rows())
    return tmp_path


def advice(work: Path, *flags: str) -> dict[str, Any]:
    """What --json prints, without what is measured in seconds."""
    values = json.loads(ok(work, "advise", "pairs.csv", "--json", *flags).out)
    for row in values["contenders"]:
        del row["seconds"]
    return dict(values)


def test_from_examples_to_labels(folder: Path) -> None:
    assert "tinygpt label new.csv --model=out-advise" in " ".join(ok(folder, "advise", "pairs.csv").out.split())
    out = folder / "out-advise"
    assert {"advise.json", "advise.html", "advise.png", "model.pt"} <= {path.name for path in out.iterdir()}
    write(folder / "new.csv", [{"prompt": prompt} for prompt in ("my card z", "a loan z", "LOAN")])
    ok(folder, "label", "new.csv", "--model=out-advise", "-o", "labelled.csv")
    with open(folder / "labelled.csv", newline="") as file:
        labelled = list(csv.DictReader(file))
    assert [row["label"] for row in labelled] == ["card", "loan", "loan"]
    model = labeller.load(out)
    answers = model.label([row["prompt"] for row in labelled])
    assert [row["probability"] for row in labelled] == [f"{answer.probability:.6f}" for answer in answers]
    stored = (out / "advise.json").read_bytes(), (out / "model.pt").read_bytes()
    values = advice(folder)  # the same command again
    assert ((out / "advise.json").read_bytes(), (out / "model.pt").read_bytes()) == stored
    by_name = {row["name"]: row for row in values["contenders"]}
    assert by_name[model.about["contender"]]["accuracy"] == model.about["accuracy"] > 0.8
    (out / "model.pt").write_bytes(stored[1][:500])  # a model that is lost is made again
    assert advice(folder)["advice"]["name"] == labeller.load(out).about["contender"] == model.about["contender"]
    assert "holds results of advise pairs.csv" in refused(folder, "advise", "pairs.csv", "--by=who")
    write(folder / "pairs.csv", rows(seed=2))  # another file of the same name
    assert "is not the one that out-advise was made with" in refused(folder, "advise", "pairs.csv")


@needs_fork
def test_killed_and_started_again(folder: Path, harness: Any) -> None:
    write(harness.folder / "pairs.csv", rows())
    child = harness.fork(["advise", "pairs.csv"])
    until(lambda: "linear model" in child.output, PATIENCE)
    child.kill()
    assert advice(harness.folder) == advice(folder)


def test_labels_in_several_spellings_come_first(tmp_path: Path) -> None:
    labels = [row["response"].upper() if n % 8 < 2 else row["response"] for n, row in enumerate(rows())]
    spelled = [{"text": row["prompt"], "response": label} for row, label in zip(rows(), labels, strict=True)]
    write(tmp_path / "my pairs.csv", spelled)
    said = ok(tmp_path, "advise", "my pairs.csv", "--prompt_field=text").out
    first = "verdict: First: each spelling of a label counts as a label of its own: CARD 6 | card 18; LOAN 6 | loan"
    assert first in " ".join(said.split())
    (following,) = re.findall(r"next: tinygpt (.*)", said)
    merged = ok(tmp_path, *shlex.split(following))
    assert "merged labels: CARD -> card, LOAN -> loan" in merged.err and "First: labels" not in merged.out
    assert labeller.load(tmp_path / "out-advise-merged").labels == ["card", "loan"]


def test_few_groups_show_nothing() -> None:
    """Seven signs are all positive in one case of 128, which is more than 0.02 / 4."""
    right = {name: bools(name[0] * 70) for name in ("0 majority", "1", "11", "111", "1111")}
    few = judge.advise(right, np.arange(70) % 7, "0 majority")
    assert few.name == "0 majority" and few.why.endswith("; with only 7 groups no difference can be significant")
    assert judge.advise(right, np.arange(70) % 8, "0 majority").name == "1"


def test_labels_without_any_rule_get_no_model(tmp_path: Path) -> None:
    draw = random.Random(5)
    words = ["card", "loan", "lost", "rate", "account", "fee", "transfer", "limit"]
    prompts = [f"{draw.choice(words)} {draw.choice(words)} {n}" for n in range(60)]
    write(tmp_path / "pairs.csv", [{"prompt": prompt, "response": draw.choice("ab")} for prompt in prompts])
    (tmp_path / "out-advise").mkdir()
    (tmp_path / "out-advise" / labeller.NAME).write_bytes(b"of an earlier advice")
    said = " ".join(ok(tmp_path, "advise", "pairs.csv").out.split())
    assert "no model yet" in said and "which can be chance" in said and "tinygpt label" not in said
    assert not (tmp_path / "out-advise" / labeller.NAME).exists()
    assert "no such file" in refused(tmp_path, "label", "pairs.csv")


@pytest.mark.slow
def test_long_texts_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "CHARACTERS", 60_000)
    long = [row | {"prompt": row["prompt"] + " and more" * 2000} for row in rows(8, seed=3)]
    write(tmp_path / "pairs.csv", rows() + long)
    findings = {finding["name"]: finding for finding in advice(tmp_path)["findings"]}
    assert findings["long prompts"]["count"] == 8 and "16," not in findings["long prompts"]["what"]
    model = labeller.load(tmp_path / "out-advise")
    assert model.longest is not None and 4000 < model.longest < 8000  # of 60,000 characters, for 8 texts
    text = long[0]["prompt"]
    assert model([text]) == pytest.approx(model([text[: model.longest]]))
    write(tmp_path / "long.csv", long)
    said = ok(tmp_path, "label", "long.csv", "-o", "labelled.csv").err
    assert f"longer than the {model.longest:,} characters that the model reads: 8" in said
    assert contenders.longest_for([row["prompt"] for row in rows()]) is None
