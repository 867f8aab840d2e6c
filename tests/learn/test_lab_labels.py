"""tinygpt lab labels and lab drift: the data are what the labs say, and so are the accuracies and verdicts."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import cli_here, commands_here, lab_results, ok
from labs import FEW_LABELS, SMALL, SPLITS, TASK, accuracy, learned, shortest
from runs import save_model
from scipy.stats import chisquare
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.tasks import TASKS, Pair
from tinygpt.data.tasks.generate import letters
from tinygpt.data.tasks.merchants import merchants_by_label
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import drift, labels

# ---- lab labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "share"), [(50, 0.1), (50, 0.2), (4000, 0.1), (4000, 0.0)])
def test_as_many_labels_are_wrong_as_asked(size: int, share: float) -> None:
    pairs = SPLITS["train"][:size]
    wrong = labels.mislabelled(pairs, TASK.labels, share, 1)
    assert [prompt for prompt, _ in wrong] == [prompt for prompt, _ in pairs]
    assert sum(a != b for a, b in zip(wrong, pairs, strict=True)) == share * size
    assert {label for _, label in wrong} <= set(TASK.labels)


def test_wrong_labels_are_uniform_and_a_larger_share_adds_to_a_smaller_one() -> None:
    pairs = [("line", "dining")] * 5000
    cases = ((0.1, 1), (0.2, 1), (0.2, 2))
    few, many, other = (labels.mislabelled(pairs, TASK.labels, share, seed) for share, seed in cases)
    assert all(some in (("line", "dining"), more) for some, more in zip(few, many, strict=True)) and many != other
    counts = Counter(label for _, label in many if label != "dining")
    assert len(counts) == len(TASK.labels) - 1 and chisquare(list(counts.values())).pvalue > 0.01


def test_accuracy_of_a_perfect_a_majority_and_a_random_answer() -> None:
    test = SPLITS["test"]
    assert accuracy([label for _, label in test], test) == 1
    assert accuracy(["fees"] * len(test), test) == sum(label == "fees" for _, label in test) / len(test)
    guesses = np.random.default_rng(0).choice(TASK.labels, len(test))
    assert accuracy(list(guesses), test) == pytest.approx(1 / 12, abs=0.03)


def test_wrong_labels_of_a_test_split_lower_a_measured_accuracy_as_expected() -> None:
    assert labels.on_wrong_labels(1.0) == 0.8
    assert labels.on_wrong_labels(1 / 12) == pytest.approx(1 / 12)  # guessing looks the same
    test, rng = SPLITS["test"], np.random.default_rng(0)
    answers = [label if rng.random() < 0.6 else str(rng.choice(TASK.labels)) for _, label in test]
    on_wrong = accuracy(answers, labels.mislabelled(test, TASK.labels, 0.2, 1))
    assert on_wrong == pytest.approx(labels.on_wrong_labels(accuracy(answers, test)), abs=0.03)


def test_the_worth_of_wrong_labels_by_hand() -> None:
    clean = {100: 0.2, 1000: 0.4}
    assert labels.worth(clean, 0.3) == round(math.sqrt(100 * 1000)) and labels.worth(clean, 0.4) == 1000
    assert labels.worth(clean, 0.5) == 1000 and labels.worth(clean, 0.1) == 100
    assert labels.worth({100: 0.3, 1000: 0.2, 10000: 0.5}, 0.4) == round(1000 * math.sqrt(10))


def test_a_verdict_follows_from_the_numbers() -> None:
    clean = {(100, 0.0): 0.2, (1000, 0.0): 0.4}
    costly, free = (labels.cost_of_wrong("x", learned({**clean, (1000, 0.1): 0.4 - lost})) for lost in (0.1, 0.01))
    assert "worth about 316 (316 to 316) correct ones (accuracy -10.0 points)" in costly.text
    assert "are worth as much as correct ones (accuracy -1.0 points)" in free.text
    edge, lost = (labels.cost_of_wrong("x", learned({**clean, (1000, 0.1): share})).text for share in (0.38, 0.1))
    assert "are worth as much as correct ones (accuracy -2.0 points)" in edge  # 0.4 - 0.38 is more than 0.02
    assert "are worth at most 100 (100 to 100) correct ones (accuracy -30.0 points)" in lost
    both = learned({**clean, (1000, 0.2): 0.1}) + learned({(100, 0.0): 0.2, (1000, 0.0): 0.21}, labels.NGRAM)
    verdicts = [verdict.text for verdict in labels.summarise(Records(both), LabConfig()).verdicts]
    more = "tiny model: collect more examples (+20.0 points); n-gram baseline: enough examples (+1.0 points)."
    assert more in verdicts and "reports 30.0% for a model whose accuracy is 40.0%" in verdicts[-1]
    assert "enough examples (+2.0 points)" in labels.more_labels({labels.MODEL: {1: 0.88, 2: 0.9}}).text


@pytest.mark.slow
def test_only_the_training_labels_are_wrong(lab: Callable[[str], Path]) -> None:
    quick = lab("labels")
    known = {prompt: label for split in SPLITS.values() for prompt, label in split}
    for size, share in ((50, 0), (200, 0), (200, 20)):
        dataset = Dataset(str(quick / "out/data"), f"{size}-{share}-1")
        texts = {split: rows.examples(dataset.tokenizer) for split, rows in dataset.sources.items()}
        assert texts["val"] == SMALL["val"] and texts["test"] == SMALL["test"]
        assert len(texts["train"]) == size and not {prompt for prompt, _ in texts["train"]} & dict(SPLITS["val"]).keys()
        assert sum(known[prompt] != label for prompt, label in texts["train"]) == size * share / 100


@pytest.mark.slow
def test_the_accuracies_are_those_of_eval_and_of_scikit_learn(lab: Callable[[str], Path]) -> None:
    quick = lab("labels")
    measured = lab_results(quick / "out")["200 examples, 20% wrong labels, seed 1"]
    model, ngram = (one for learner in (labels.MODEL, labels.NGRAM) for one in measured if one["learner"] == learner)
    flags = ["--ckpt=out/200-20-1", "--task=200-20-1", "--data_dir=out/data", "--device=cpu", "--json"]
    report = json.loads(cli_here("eval", *flags, cwd=quick).out)
    assert model["correct"] == pytest.approx(report["results"]["model"]["accuracy"])
    assert model["correct"] > 2 / 12  # the majority is 1 / 12
    dataset = Dataset(str(quick / "out/data"), "200-20-1")
    train, test = (dataset.sources[split].examples(dataset.tokenizer) for split in ("train", "test"))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 5), sublinear_tf=True)
    fitted = LogisticRegression(C=100, max_iter=1000).fit(
        vectorizer.fit_transform(p for p, _ in train), [y for _, y in train]
    )
    expected = fitted.score(vectorizer.transform(p for p, _ in test), [y for _, y in test])
    assert ngram["correct"] == pytest.approx(expected, abs=0.002)
    assert ngram["wrong"] < ngram["correct"]


@pytest.mark.slow
def test_the_quick_lab_has_a_row_for_each_case_and_a_verdict_for_each_learner(lab: Callable[[str], Path]) -> None:
    said = (lab("labels") / "said.txt").read_text(encoding="utf-8")
    rows = [line for line in said.splitlines() if line.startswith(("| 50 ", "| 200 "))]
    assert len(rows) == 3 and max(map(len, said.splitlines())) <= 120
    assert all(f"\nverdict: For the {name}, 200 labels, 20% wrong," in said for name in (labels.MODEL, labels.NGRAM))
    assert "| perfect model   | 100.0%" in said


def test_more_seeds_are_other_examples_and_stages(tmp_path: Path) -> None:
    names = [stage.name for stage in labels.stages(LabConfig(seeds=2), tmp_path)]
    assert len(set(names)) == 24 and names[12] == "50 examples, 0% wrong labels, seed 2"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_pretrained_model_adds_a_column(
    lab: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "theirs", "llama", context=1024)
    ok(tmp_path, "import", "theirs", "--out_dir=out-large")
    few = {split: pairs[:60] for split, pairs in SPLITS.items()}
    monkeypatch.setitem(TASKS, TASK.name, dataclasses.replace(TASK, make=lambda seed: few))
    monkeypatch.setattr(labels, "FINETUNING", {50: 1, 1000: 1})
    config, out = LabConfig(pretrained=str(tmp_path / "out-large"), quick=True), tmp_path / "out"
    stages = list(labels.stages(config, out))
    names = [stage.name.split(", from")[0] for stage in stages]
    assert names[3:] == ["pretrained, LoRA, 50 examples", "pretrained, LoRA, 1,000 examples"]
    out.mkdir()
    with commands_here():
        found = stages[3].compute() | stages[3].case
    assert found.keys() == {"learner", "share", "examples", "seed", "correct"}
    others = [
        {"examples": size, "share": share, "seed": 1, **one}
        for (size, share), measured in zip(FEW_LABELS, lab_results(lab("labels") / "out").values(), strict=True)
        for one in measured
    ]
    summary = labels.summarise(Records([*others, found, found | {"examples": 200}]), config)
    cells = [row[labels.PRETRAINED] for row in summary.tables[0].rows]
    assert cells == [f"{100 * found['correct']:.1f}%"] * 2 + [""]


# ---- lab drift -------------------------------------------------------------------------------------------------------


Years = dict[str, dict[str, list[Pair]]]  # year -> split -> pairs


@pytest.fixture(scope="module")
def years() -> Years:
    return {year: drift.lines_of(year, 1) for year in drift.YEARS}


def brands_in(pairs: list[Pair], brands: set[str]) -> set[str]:
    return {brand for prompt, _ in pairs for brand in brands if brand in prompt}


def test_only_the_brands_change(years: Years) -> None:
    by_label = merchants_by_label()
    for year, other in (("old", "test"), ("new", "train")):
        split = {"old": "train", "new": "test"}[year]
        for name, pairs in years[year].items():
            assert len(pairs) == drift.LINES[name]
            for label in by_label:  # each line names a brand of its category, and of its year
                mine = [prompt for prompt, own in pairs if own == label]
                assert all(any(brand.name in prompt for brand in by_label[label][split]) for prompt in mine)
        foreign = {brand.name for splits in by_label.values() for brand in splits[other] if len(brand.name) > 8}
        assert len(brands_in(years[year]["test"], foreign)) < 5  # a few brands are a part of another word or place


def test_the_categories_are_equally_frequent_in_every_beginning(years: Years) -> None:
    for splits in years.values():
        for pairs in splits.values():
            for size in (50, 90, len(pairs)):
                counts = Counter(label for _, label in pairs[:size])
                assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 9


def test_test_lines_are_others_about_the_same_brands(years: Years) -> None:
    prompts = [prompt for splits in years.values() for pairs in splits.values() for prompt, _ in pairs]
    assert len({letters(prompt) for prompt in prompts}) == len(prompts)
    names = {brand.name for splits in merchants_by_label().values() for brand in splits["test"]}
    learned, tested = (brands_in(years["new"][name], names) for name in ("train", "test"))
    assert len(learned) >= 9 * drift.BRANDS and len(tested - learned) < 0.1 * len(tested)
    assert drift.lines_of("old", 2)["train"] != years["old"]["train"] and drift.lines_of("new", 1) == years["new"]


def records(method: str, lines: int, old: float, new: float, seconds: float = 1) -> Records:
    one = {"method": method, "lines": lines, "old": old, "new": new, "next": (old + new) / 2, "seconds": seconds}
    return Records([one] * 3)


def test_the_verdicts_of_drift_follow_from_the_numbers() -> None:
    base = records("scratch", 0, 0.9, 0.3)
    bad, good = records("new", 200, 0.6, 0.8, 2), records("replay", 200, 0.9, 0.8, 3)
    curve = {0: base, 200: good, 1000: records("replay", 1000, 0.9, 0.9)}
    said = drift.repair(base, {"new": {0: base, 200: bad}, "replay": curve}).text
    assert "It is reached by fine-tuned, half of the lines replayed with 200 new lines (85.0%)." in said
    assert "The best of the others: fine-tuned on the new lines (70.0%)." in said
    assert drift.cost_of_drift(base, good).text == (
        "Without an update, the tiny model is right on 90% of lines with last year's brands and on 30% of those with "
        "new ones; the n-gram baseline on 90% and 80%."
    )
    assert "No method reaches it." in drift.repair(base, {"new": {0: base, 200: bad}}).text
    assert drift.gain_of_replay({"new": bad, "replay": good}, base).text.startswith("Replay old lines.")
    for old, new, advice in (
        (0.61, 0.8, "saves too little here"),
        (0.62, 0.8, "saves too little here"),
        (0.9, 0.5, "old lines"),
        (0.9, 0.4, "costs more than it saves here"),
    ):
        replay = records("replay", 200, old, new)
        assert drift.gain_of_replay({"new": bad, "replay": replay}, base).text.startswith(f"Replay {advice}.")
    changes = drift.gain_of_replay({"new": bad, "replay": records("replay", 200, 0.9, 0.8)}, base).text
    assert "by -30.0 points, with replay by +0.0. On new brands, replay changes the accuracy by +0.0 points." in changes
    start = records("scratch", 0, 0.56, 0.3)  # 100 * 0.56 - 5 is more than 51
    assert "It is reached by" in drift.repair(start, {"new": {0: start, 200: records("new", 200, 0.51, 0.51)}}).text
    both = {"new": bad, "replay": good}
    assert "choose: fine-tuned, half" in drift.cheapest({**both, "ngram": records("ngram", 200, 0.9, 0.7)}).text
    assert "choose: n-gram baseline" in drift.cheapest({**both, "ngram": records("ngram", 200, 0.9, 0.78)}).text
    edge = {"new": records("new", 200, 0.26, 0.26, 2), "ngram": records("ngram", 200, 0.24, 0.24)}
    assert "choose: n-gram baseline" in drift.cheapest(edge).text


LEARNING = {"LINES": {"train": 1500, "val": 50, "test": 200}, "SCRATCH_QUICK": 80, "UPDATE": {200: 40}}


def test_the_table_of_three_seeds_fits_into_a_terminal() -> None:
    cases = [(0, "scratch"), (0, "ngram"), *((size, method) for size in drift.UPDATE for method in drift.METHODS)]
    found = Records(
        {"method": method, "lines": size, "seed": seed, "old": 1.0, "new": 0.999, "seconds": 100.0}
        for seed in (1, 2, 3)
        for size, method in cases
    )
    said = drift.summarise(found, LabConfig()).as_text()
    assert "| 100 (100 to 100)% " in said and max(map(len, said.splitlines())) <= 130


@pytest.mark.slow
def test_new_brands_are_hard_and_replay_keeps_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LEARNING.items():
        monkeypatch.setattr(drift, name, value)
    with commands_here():
        said = ok(tmp_path, "lab", "drift", "--quick", "--out_dir=out").out
    base, new, replay = (one[0] for one in lab_results(tmp_path / "out").values())
    assert base["old"] > base["new"] + 0.2  # drift
    assert new["new"] > base["new"] + 0.1 and replay["new"] > base["new"] + 0.1  # the update helps
    assert new["old"] < base["old"] - 0.1 and replay["old"] > new["old"] + 0.1  # forgetting, and less with replay
    assert "verdict: Replay old lines." in said


@pytest.mark.slow
def test_an_update_learns_new_lines_only_and_replays_those_of_the_base_model(lab: Callable[[str], Path]) -> None:
    folder = lab("drift")
    assert "| n-gram baseline, trained on all" in (folder / "said.txt").read_text(encoding="utf-8")
    with shortest("drift"):
        years = {year: drift.lines_of(year, 1) for year in drift.YEARS}
    for way, share in (("new", 0.0), ("replay", drift.REPLAY)):
        dataset = Dataset(str(folder / "out/data"), f"{way}-200-1")
        assert dataset.sources["train"].examples(dataset.tokenizer) == years["new"]["train"][:200]
        config = (folder / f"out/{way}-200-1/config.yaml").read_text(encoding="utf-8")
        assert f"replay: {share}\n" in config and "base_dataset: scratch-0-1\n" in config
    base = Dataset(str(folder / "out/data"), "scratch-0-1")
    assert base.sources["train"].examples(base.tokenizer) == years["old"]["train"]
