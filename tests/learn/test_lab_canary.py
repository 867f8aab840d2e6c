"""tinygpt lab canary and lab arithmetic: the measures agree with independent ones, and the controls stay at chance."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lab_results, ok
from labs import FEW, FEW_CANARIES, quick, system
from scipy.stats import expon, rankdata
from sklearn.feature_extraction.text import TfidfVectorizer

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.dataset import Dataset
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import arithmetic, canary

# these models learn something
LEARNING, LEARNING_SUMS = FEW_CANARIES._replace(iterations=100), FEW._replace(iterations=120)


def test_exposure_and_digits_by_hand_and_the_exposure_of_a_uniform_rank() -> None:
    assert canary.right_digits("1234 5679", "1234-5678") == 7 / 8 and canary.right_digits("1", "1234-5678") == 1 / 8
    assert [canary.exposure(rank, 16) for rank in (1, 2, 16)] == [4, 3, 0]
    every = [canary.exposure(rank, 1 << 14) for rank in range(1, (1 << 14) + 1)]  # of a number never seen
    assert np.mean(every) == pytest.approx(canary.UNSEEN, abs=1e-3)
    scale = expon(scale=canary.UNSEEN)
    assert canary.unseen_up_to(9) == pytest.approx(scale.mean() + 2 * scale.std() / 3)


def test_each_number_is_planted_as_often_as_it_says_and_the_rest_of_the_text_stays() -> None:
    text = "".join(f"line {number}\n" for number in range(300))
    some = canary.canaries(canary.FULL, 3)
    new = canary.with_canaries(text, some, 3)
    planted = Counter(re.findall(r"The account of (.*) is (\d{4}-\d{4})\.\n", new))
    assert planted == Counter({(one.name, one.number): one.planted for one in some if one.planted})
    assert re.sub(r"The account of .*\n", "", new) == text
    assert len({one.name for one in some}) == len({one.number for one in some}) == len(some) == 16


def test_the_validation_split_has_no_canary_and_is_the_same_without_canaries(lab: Callable[[str], Path]) -> None:
    texts = {}
    for name in ("canaries", "clean"):
        dataset = Dataset(str(lab("canary") / "out/seed-1/data"), name)
        texts[name] = [dataset.tokenizer.decode(dataset.splits[split].tolist()) for split in ("train", "val")]
    assert texts["canaries"][1] == texts["clean"][1] and "The account of" not in texts["clean"][1]
    assert texts["canaries"][0].count("The account of") == FEW_CANARIES.per_count * sum(canary.PLANTED)
    assert "The account of" not in texts["clean"][0]


def test_the_rank_is_that_of_scipy_on_probabilities_of_whole_lines(lab: Callable[[str], Path]) -> None:
    model = api.load(lab("canary") / "out/seed-1/canaries-2", device="cpu")
    sample = [f"{number:08}"[:4] + "-" + f"{number:08}"[4:] for number in range(0, 10**8, 400_009)]
    for one in canary.canaries(FEW_CANARIES, 1):
        prefix = f"\nThe account of {one.name} is "
        ids = torch.tensor(np.stack([model.tokenizer.encode(prefix + n) for n in (one.number, *sample)]).astype(int))
        with torch.inference_mode():
            logs = model.model(ids[:, :-1])[0].double().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        total = logs[:, len(prefix) - 1 :].sum(1).numpy()
        assert model.log_probabilities(prefix, [one.number, *sample]) == pytest.approx(total, abs=1e-3)
        assert canary.rank(model, prefix, one.number, sample) == rankdata(-total, "min")[0]


@pytest.mark.slow
def test_frequent_numbers_are_memorised_and_controls_are_not(tmp_path: Path) -> None:
    planted = quick(tmp_path, "canary", canary, LEARNING)
    found, most = lab_results(planted), np.log2(1 + FEW_CANARIES.sample)
    exposures = {
        times: [one["exposure"] for one in found["measure 2 layers, seed 1"] if one["planted"] == times]
        for times in canary.PLANTED
    }
    assert min(exposures[100]) == pytest.approx(most) and len(exposures[100]) == FEW_CANARIES.per_count
    assert np.mean(exposures[0]) < canary.unseen_up_to(FEW_CANARIES.per_count)
    assert "The control passes" in (planted / "said.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("exposures", "extracted", "words"),
    [
        ([1.4] * 4, (), ["does not write out most", "not clearly more than", "control passes"]),
        ([9.0, 9.0, 14.0, 14.0], (10, 100), ["of the 3 numbers planted 10 times", "knows more than", "control FAILS"]),
    ],
)
def test_verdicts_follow_the_numbers(exposures: list[float], extracted: tuple[int, ...], words: list[str]) -> None:
    """Of two layers, by times of planting."""
    trained = {"layers": 2, "weights": 2, "text": "canaries", "loss": 1.0}
    measured = zip(canary.PLANTED, exposures, strict=True)
    numbers = [{"layers": 2, "planted": times, "exposure": bits, "extracted": times in extracted, "digits": 0.0}
               for times, bits in measured for _ in range(3)]  # fmt: skip
    found = canary.summarise(Records([trained, *numbers]), LabConfig(quick=True)).verdicts
    said = " ".join(each.text for each in found)
    assert all(each in said for each in words)


def test_no_sum_of_the_test_is_in_training_and_no_training_number_is_longer_than_three_digits() -> None:
    known, test = arithmetic.sums(arithmetic.FULL, 2)
    assert len({*known, *test}) == len(known) + len(test) == 10_000 + 5 * 300
    assert max(int(number) for prompt in known for number in prompt.split("+")) == 999
    lengths = Counter(tuple(len(number) for number in prompt.split("+")) for prompt in test)
    assert lengths == dict.fromkeys(arithmetic.KINDS.values(), 300)


def test_the_datasets_hold_the_right_answers_in_both_formats_and_the_table_has_controls(
    lab: Callable[[str], Path],
) -> None:
    folder = lab("arithmetic")
    for name, step in (("plain", 1), ("reversed", -1)):
        dataset = Dataset(str(folder / "out/seed-1/data"), name)
        for split in ("train", "val", "test"):
            for prompt, response in dataset.sources[split].examples(dataset.tokenizer)[:500]:
                assert response[::step] == str(sum(map(int, prompt.split("+"))))
    said = (folder / "said.txt").read_text(encoding="utf-8")
    row = next(line for line in said.splitlines() if line.startswith("| calculator"))
    assert row.count("| 100% ") == len(arithmetic.KINDS)
    assert "No model adds numbers longer than those in training" in said


def test_the_nearest_example_is_that_of_scikit_learn() -> None:
    known, asked = arithmetic.sums(FEW, 1)
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), binary=True, use_idf=False)
    there = vectorizer.fit_transform([f"^{prompt}$" for prompt in known])
    cosines = (vectorizer.transform([f"^{prompt}$" for prompt in asked]) @ there.T).toarray()
    chosen = [known.index(prompt) for prompt in arithmetic.nearest(known, asked)]
    assert cosines[np.arange(len(asked)), chosen] == pytest.approx(cosines.max(axis=1))
    assert arithmetic.nearest(known, known[:50]) == known[:50]


def test_digits_and_failures_of_answers_by_hand() -> None:
    for said, failure, digits in (("32", "too few digits", 2 / 3), ("422", "one digit wrong", 2 / 3), ("432", "", 1)):
        answer = arithmetic.judged({"prompt": "47+385", "text": said})  # 432
        assert (answer["failure"], answer["digits"], answer["exact"]) == (failure, digits, said == "432")
        assert answer["kind"] == "2 + 3" and not answer["beyond"]


@pytest.mark.slow
def test_the_accuracy_is_that_of_tinygpt_eval(tmp_path: Path) -> None:
    added = quick(tmp_path, "arithmetic", arithmetic, LEARNING_SUMS)
    answers = [(one["prompt"].split("+"), one["text"]) for one in lab_results(added)["answer reversed, seed 1"]]
    share = np.mean([text == str(sum(map(int, numbers))) for numbers, text in answers])
    flags = [f"--ckpt={added / 'seed-1/reversed'}", f"--data_dir={added / 'seed-1/data'}", "--device=cpu", "--json"]
    report = json.loads(ok(added, "eval", "--task=reversed", *flags).out)
    assert 0 < report["exact"] < 1 and report["exact"] == pytest.approx(share)


def every(share: float, probability: float = 0.9) -> Records:
    return system(dict.fromkeys(arithmetic.KINDS, share), probability)


def test_verdicts_of_a_calculator_a_table_and_a_model() -> None:
    """Decided by what is printed; a gain or a confidence at its limit does not count."""
    calculator, table = every(1), every(0)
    model = system({kind: float(kind not in arithmetic.BEYOND) for kind in arithmetic.KINDS}, 0.4)
    assert "No model adds" in arithmetic.beyond({"plain": model, "reversed": table}).text
    assert "A model also adds" in arithmetic.beyond({"plain": calculator, "reversed": table}).text
    assert " generalises" in arithmetic.learned({"plain": model}, table).text
    assert "does not generalise" in arithmetic.learned({"plain": table}, table).text
    both = {"plain": table, "plain, larger model": table, "reversed": model}
    assert "helps, better than the larger" in arithmetic.form(both).text
    assert "helps, not better than" in arithmetic.form(both | {"plain, larger model": model}).text
    assert "does not matter" in arithmetic.form({"plain": every(0.5), "reversed": every(0.55)}).text
    assert "50.0%: they are not" in arithmetic.confident({"plain": every(0, 0.5004)}).text
    assert "50.6%: they are c" in arithmetic.confident({"plain": every(0, 0.506)}).text
