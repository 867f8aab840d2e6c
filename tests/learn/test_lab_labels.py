"""tinygpt lab labels and lab drift: the data are what the labs say, and so are the accuracies and verdicts."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import lab_results, ok
from labs import SMALL, SPLITS, TASK, learned, shortest
from scipy.stats import chisquare
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.tasks import Pair
from tinygpt.data.tasks.generate import letters
from tinygpt.data.tasks.merchants import merchants_by_label
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import definition, drift, labels


def test_as_many_labels_are_wrong_as_asked_and_a_larger_share_adds_to_a_smaller_one() -> None:
    pairs = SPLITS["train"][:4000]
    few, many, other = (labels.mislabelled(pairs, TASK.labels, *case) for case in ((0.1, 1), (0.2, 1), (0.2, 2)))
    assert [prompt for prompt, _ in few] == [prompt for prompt, _ in pairs] and many != other
    assert all(some in (right, more) for some, more, right in zip(few, many, pairs, strict=True))
    for wrong, count in ((few, 400), (many, 800)):
        assert sum(a != b for a, b in zip(wrong, pairs, strict=True)) == count
    same = labels.mislabelled([("line", "dining")] * 5000, TASK.labels, 0.2, 1)
    counts = Counter(label for _, label in same if label != "dining")  # uniform
    assert counts.keys() == {*TASK.labels} - {"dining"} and chisquare(list(counts.values())).pvalue > 0.01


def test_the_accuracy_and_the_worth_of_wrong_labels_by_hand() -> None:
    assert definition.accuracy(np.eye(3)[[0, 1, 1, 1]], [("x", label) for label in "abbc"], "abc") == 0.75
    assert labels.on_wrong_labels(1.0) == 0.8
    assert labels.on_wrong_labels(1 / 12) == pytest.approx(1 / 12)  # guessing looks the same
    clean = {100: 0.2, 1000: 0.4}
    worths = [labels.worth(clean, accuracy) for accuracy in (0.1, 0.3, 0.4, 0.5)]
    assert worths == [100, round(math.sqrt(100 * 1000)), 1000, 1000]
    assert labels.worth({100: 0.3, 1000: 0.2, 10000: 0.5}, 0.4) == round(1000 * math.sqrt(10))


def test_a_verdict_follows_from_the_numbers() -> None:
    clean = {(100, 0.0): 0.2, (1000, 0.0): 0.4}
    costly, free = (labels.cost_of_wrong("x", learned({**clean, (1000, 0.1): 0.4 - lost})) for lost in (0.1, 0.01))
    assert "worth about 316 (316 to 316) correct ones (accuracy -10.0 points)" in costly.text
    assert "are worth as much as correct ones (accuracy -1.0 points)" in free.text
    both = learned({**clean, (1000, 0.2): 0.1}) + learned({(100, 0.0): 0.2, (1000, 0.0): 0.21}, labels.NGRAM)
    verdicts = [verdict.text for verdict in labels.summarise(Records(both), LabConfig()).verdicts]
    more = "tiny model: collect more examples (+20.0 points); n-gram baseline: enough examples (+1.0 points)."
    assert more in verdicts and "reports 30.0% for a model whose accuracy is 40.0%" in verdicts[-1]


@pytest.mark.slow
def test_only_the_training_labels_are_wrong_and_the_accuracies_are_those_of_eval_and_of_scikit_learn(
    lab: Callable[[str], Path],
) -> None:
    quick = lab("labels")
    known = {prompt: label for split in SPLITS.values() for prompt, label in split}
    for size, share in ((200, 0), (200, 20)):
        dataset = Dataset(str(quick / "out/data"), f"{size}-{share}-1")
        texts = {split: rows.examples(dataset.tokenizer) for split, rows in dataset.sources.items()}
        assert texts["val"] == SMALL["val"] and texts["test"] == SMALL["test"]
        assert len(texts["train"]) == size and not {prompt for prompt, _ in texts["train"]} & dict(SPLITS["val"]).keys()
        assert sum(known[prompt] != label for prompt, label in texts["train"]) == size * share / 100
    measured = lab_results(quick / "out")["200 examples, 20% wrong labels, seed 1"]
    model, ngram = (one for learner in (labels.MODEL, labels.NGRAM) for one in measured if one["learner"] == learner)
    flags = ["--ckpt=out/200-20-1", "--task=200-20-1", "--data_dir=out/data", "--device=cpu", "--json"]
    report = json.loads(ok(quick, "eval", *flags).out)
    assert model["correct"] == pytest.approx(report["results"]["model"]["accuracy"])
    assert model["correct"] > 2 / 12  # the majority is 1 / 12
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 5), sublinear_tf=True)
    (train, labelled), (test, truth) = (zip(*texts[split], strict=True) for split in ("train", "test"))
    fitted = LogisticRegression(C=100, max_iter=1000).fit(vectorizer.fit_transform(train), labelled)
    assert ngram["correct"] == pytest.approx(fitted.score(vectorizer.transform(test), truth), abs=0.002)
    assert ngram["wrong"] < ngram["correct"]
    said = (quick / "said.txt").read_text(encoding="utf-8")
    assert all(f"\nverdict: For the {name}, 200 labels, 20% wrong," in said for name in (labels.MODEL, labels.NGRAM))


def brands_in(pairs: list[Pair], brands: set[str]) -> set[str]:
    return {brand for prompt, _ in pairs for brand in brands if brand in prompt}


def test_only_the_brands_change_and_test_lines_are_others_about_the_same_brands() -> None:
    by_label, years = merchants_by_label(), {year: drift.lines_of(year, 1) for year in drift.YEARS}
    for year, split, other in (("old", "train", "test"), ("new", "test", "train")):
        for name, pairs in years[year].items():
            assert len(pairs) == drift.LINES[name]
            for label in by_label:  # each line names a brand of its category, and of its year
                mine = [prompt for prompt, own in pairs if own == label]
                assert all(any(brand.name in prompt for brand in by_label[label][split]) for prompt in mine)
            for size in (50, 90, len(pairs)):  # the categories are equally frequent in every beginning
                counts = Counter(label for _, label in pairs[:size])
                assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 9
        foreign = {brand.name for splits in by_label.values() for brand in splits[other] if len(brand.name) > 8}
        assert len(brands_in(years[year]["test"], foreign)) < 5  # a few brands are a part of another word or place
    prompts = [prompt for splits in years.values() for pairs in splits.values() for prompt, _ in pairs]
    assert len({letters(prompt) for prompt in prompts}) == len(prompts)
    names = {brand.name for splits in by_label.values() for brand in splits["test"]}
    learned, tested = (brands_in(years["new"][name], names) for name in ("train", "test"))
    assert len(learned) >= 9 * drift.BRANDS and len(tested - learned) < 0.1 * len(tested)
    assert drift.lines_of("old", 2)["train"] != years["old"]["train"]


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
    assert "No method reaches it." in drift.repair(base, {"new": {0: base, 200: bad}}).text
    assert (
        "is right on 90% of lines with last year's brands and on 30% of those" in drift.cost_of_drift(base, good).text
    )
    for old, new, advice in ((0.9, 0.8, "old lines"), (0.62, 0.8, "saves too little"), (0.9, 0.4, "costs more than")):
        said = drift.gain_of_replay({"new": bad, "replay": records("replay", 200, old, new)}, base).text
        assert said.startswith(f"Replay {advice}")
    for ngram, choice in ((0.7, "fine-tuned, half"), (0.78, "n-gram baseline")):
        ways = {"new": bad, "replay": good, "ngram": records("ngram", 200, 0.9, ngram)}
        assert f"choose: {choice}" in drift.cheapest(ways).text


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
