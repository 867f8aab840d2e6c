"""tinygpt lab confidence and cascade: thresholds come from validation lines alone, figures from test lines."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cli_here, commands_here, lab_results, ok
from sklearn.metrics import roc_auc_score
from test_import import save_model

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.tasks import generate
from tinygpt.data.tasks.transactions import LINE_WIDTH
from tinygpt.learn.lab import cascade, confidence
from tinygpt.learn.lab.cascade import System
from tinygpt.learn.lab.confidence import auroc, threshold
from tinygpt.training.log import read_metrics

# ---- thresholds and AUROC --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 8])  # with ties, and without
def test_the_auroc_is_that_of_scikit_learn(digits: int) -> None:
    rng = np.random.default_rng(1)
    inside, outside = np.round(rng.beta(3, 2, 300), digits), np.round(rng.beta(2, 2, 50), digits)
    truth = np.repeat([1, 0], [300, 50])
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, np.concatenate([inside, outside])))


def test_the_auroc_of_a_perfect_a_useless_and_a_reversed_detector() -> None:
    high, low = np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3])
    assert (auroc(high, low), auroc(high, high), auroc(low, high)) == (1, 0.5, 0)
    assert math.isnan(auroc(high, low[:0])) and math.isnan(auroc(high[:0], low))


def test_the_threshold_is_the_lowest_that_meets_the_target() -> None:
    values, right = [0.6, 0.9, 0.8, 0.7, 0.8], [False, True, True, True, False]
    found = {target: threshold(values, right, target, 1) for target in (0.6, 0.7, 0.76, 0.99)}
    assert found == {0.6: 0.6, 0.7: 0.7, 0.76: 0.9, 0.99: 0.9}  # the two lines of 0.8 are answered together
    assert threshold([0.9, 0.8], [False, True], 0.9, 1) == threshold([], [], 0.9, 1) == math.inf
    ordered, hits = np.linspace(1, 0.1, 30), np.arange(30) < 19  # too few right answers, with the default
    assert threshold(ordered, hits, 0.99) == math.inf and threshold(ordered, hits, 0.99, 19) == ordered[18]


def test_the_threshold_is_that_of_a_search_through_all() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        values, right = np.round(rng.random(30), 1), rng.random(30) < 0.7
        good = [at for at in values if right[values >= at].mean() >= 0.75]
        assert threshold(values, right, 0.75, 1) == min(good, default=math.inf)


# ---- what lab confidence says ----------------------------------------------------------------------------------------

UP, DOWN = [0.9] * 100, [0.2] * 100


def results(inside: list[float], outside: list[float], right: int, after: float = 6.0) -> dict[str, Any]:
    """Results of one seed; of each split, the first `right` lines are answered correctly."""
    truth = [number < right for number in range(len(inside))]
    asked = {
        "confidence": {"val": inside, "test": inside, "poem": outside, "noise": outside},
        "right": {"val": truth, "test": truth},
    }
    useless = asked | {"confidence": dict.fromkeys(("val", "test", "poem", "noise"), UP)}
    forgotten = {"before": 1.8, "after": after, "characters": 65}
    return {"fine-tuning, seed 1": forgotten, "ask: model, seed 1": asked, "ask: ngram, seed 1": useless}


def verdicts(found: dict[str, Any], target: float) -> list[str]:
    return [each.text for each in confidence.summarise(found, LabConfig("confidence", target=target)).verdicts]


def test_what_a_model_knows_keeps_and_forgets() -> None:
    knows, kept, better, forgotten = verdicts(results(UP, DOWN, 90), 0.9)  # sure only inside
    assert "The fine-tuned model knows that" in knows and "it answers 0%" in knows
    assert kept.count("keeps it (90.0%") == 2
    assert "fine-tuned model detects" in better and "mean AUROC 1.00 and 0.50" in better
    assert "worse than uniform guessing: its loss rises from 1.80 to 6.00" in forgotten and "has 4.17" in forgotten
    knows, _, better, forgotten = verdicts(results(UP, UP, 90, after=3.0), 0.9)  # sure everywhere
    assert "does not know that" in knows and "it answers 100%" in knows
    assert "equally well" in better and "still predicts the text of its pretraining" in forgotten
    found = results(UP, DOWN, 90)
    for hits, word in ((60, "misses"), (100, "exceeds")):
        found["ask: model, seed 1"]["right"]["test"] = [number < hits for number in range(100)]
        assert f"fine-tuned model {word} it ({hits}.0%" in verdicts(found, 0.9)[1]


def test_without_a_threshold_nothing_is_answered() -> None:
    summary = confidence.summarise(results(UP, UP, 50), LabConfig("confidence"))
    assert list(summary.tables[0].rows[0].values())[2:] == ["none", "0%", "", "0%"]
    assert "with the threshold of the fine-tuned model nothing is answered" in summary.verdicts[1].text
    assert "keeps it" not in summary.verdicts[1].text


# ---- cascades --------------------------------------------------------------------------------------------------------


def system(values: list[float], right: list[int], seconds: float = 1.0, price: float = 3.0) -> System:
    """A system with the same answers to val and test; there are 20 lines of each kind."""
    both = ("val", "test")
    answers = dict.fromkeys(both, np.repeat(values, 20)), dict.fromkeys(both, np.repeat(np.array(right, bool), 20))
    return System(*answers, seconds, price)


FIRST = system([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0])
SECOND = system([0.5, 0.5, 0.9, 0.4], [0, 0, 1, 0], seconds=4, price=20)


def test_a_cascade_by_hand() -> None:
    """The first answers two kinds of lines, the second one of the two that reach it, a person the last."""
    run = cascade.cascade([FIRST, SECOND], 0.9)
    assert run.thresholds == [0.8, 0.9] and run.shares == [0.5, 0.25, 0.25] and run.accuracy == 1
    assert run.cost == 3 + 0.5 * 20 + 0.25 * 50
    assert run.seconds == 1 + 0.5 * 4 + 0.25 * cascade.PERSON_SECONDS
    assert run.answered["test"] == [(40, 40), (20, 20)]


def test_a_threshold_is_chosen_on_the_lines_that_reach_the_stage() -> None:
    """All lines give the second system half of its answers right from 0.6 on; those that reach it, none."""
    second = system([0.9, 0.9, 0.6, 0.6], [1, 1, 0, 0])
    assert cascade.cascade([second], 0.5).thresholds == [0.6]
    assert cascade.cascade([FIRST, second], 0.9).thresholds == [0.8, math.inf]
    assert cascade.cascade([FIRST, second], 0.5).shares == [1, 0, 0]  # nothing reaches it


def test_the_limits_of_a_cascade() -> None:
    """A perfect system leaves nothing to the person, one that is always wrong everything."""
    perfect, wrong = system([0.1, 0.2], [1, 1]), system([0.99, 1.0], [0, 0])
    assert cascade.cascade([perfect], 0.99)[2:] == ([1, 0], 1, 3, 1)
    assert cascade.cascade([wrong], 0.01)[2:] == ([0, 1], 1, 53, 1 + cascade.PERSON_SECONDS)
    assert cascade.cascade([], 0.9)[2:] == ([1], 1, 50, cascade.PERSON_SECONDS)
    assert cascade.alone(FIRST)[2:] == ([1, 0], 0.5, 3, 1)


def test_errors_among_the_answered_lines_lower_the_accuracy() -> None:
    """The threshold fits val; on test the same confidence is right less often."""
    first = FIRST._replace(right=FIRST.right | {"test": np.arange(80) < 20})
    assert cascade.cascade([first], 0.9).accuracy == 0.75


def stored(one: System, latency: float) -> dict[str, Any]:
    splits = {
        split: {"confidence": one.confidence[split].tolist(), "right": one.right[split].tolist()}
        for split in ("val", "test")
    }
    return {**splits, "latency": latency}


def test_the_cost_is_the_latency_at_the_price_of_an_hour() -> None:
    found = {f"ask: {name}, seed 1": stored(FIRST, 3.6) for name in ("ngram", "tiny", "pretrained tiny")}
    config = LabConfig("cascade", seeds=1, pretrained="tiny")
    here = cascade.systems_of(found, config, 1)
    assert list(here) == ["n-gram baseline", "tiny model", "pretrained model"]  # `tiny` is a stage's name, too
    assert here["pretrained model"].price == here["tiny model"].price == pytest.approx(0.1)


@pytest.mark.parametrize(("second", "start"), [(SECOND, "n-gram baseline and tiny model"), (FIRST, "n-gram baseline")])
def test_a_stage_is_advised_only_if_it_saves(second: System, start: str) -> None:
    found = {"ask: ngram, seed 1": stored(FIRST, 0.001), "ask: tiny, seed 1": stored(second, 0.01)}
    simple, _, kept = cascade.summarise(found, LabConfig("cascade", seeds=1)).verdicts
    assert simple.text.startswith(f"Start with: {start}; a person answers the rest")
    assert "n-gram baseline: kept (100 (91-100)%)" in kept.text
    assert ("tiny model: no" in kept.text) == (second is FIRST)


def test_cascades_are_compared_on_the_seeds_that_all_systems_have() -> None:
    """The pretrained model has one seed; on the other one, the n-grams would answer everything for nothing."""
    found = {f"ask: {name}, seed 1": stored(FIRST, 0.001) for name in ("ngram", "tiny", "pretrained big")}
    easy = FIRST._replace(right=dict.fromkeys(("val", "test"), np.ones(80, bool)))
    found |= {f"ask: {name}, seed 2": stored(easy, 0.001) for name in ("ngram", "tiny")}
    summary = cascade.summarise(found, LabConfig("cascade", seeds=2, pretrained="big"))
    assert (
        "n-gram baseline and person: 25.00; n-gram baseline, tiny model and person: 25.00" in summary.verdicts[0].text
    )
    assert "the best system alone, n-gram baseline, has 50.0%" in summary.verdicts[1].text
    assert summary.tables[0].rows[0]["accuracy"] == "75.0 (50.0 to 100.0)%"  # of both seeds


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Shorter trainings on a part of the lines, and fewer lines to ask."""
    with commands_here(), pytest.MonkeyPatch.context() as patch:
        for split, number in {"train": 800, "val": 150, "test": 150}.items():
            patch.setitem(generate.SIZES, split, number)
        patch.setattr(confidence, "QUICK", (2, 4))
        patch.setattr(cascade, "QUICK", (10, 2))
        patch.setattr(confidence, "OUTSIDE", 50)
        patch.setattr(cascade, "TIMED", 5)
        yield


@pytest.fixture(scope="module")
def asked(small: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of `lab confidence --quick`, and what it has printed."""
    folder = tmp_path_factory.mktemp("confidence")
    return folder, ok(folder, "lab", "confidence", "--quick", "--out_dir=out").out


def cells(said: str, name: str) -> list[str]:
    row = next(line for line in said.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_has_the_figures_of_scikit_learn(asked: tuple[Path, str]) -> None:
    folder, said = asked
    found = lab_results(folder / "out")
    for place, name in ((3, "ask: model, seed 1"), (5, "ask: ngram, seed 1")):
        values = found[name]["confidence"]
        for kind in ("Shakespeare", "other languages", "headlines", "random characters"):
            truth = [1] * 150 + [0] * len(values[kind])
            assert cells(said, kind)[place] == f"{roc_auc_score(truth, values['test'] + values[kind]):.2f}"
        right = found[name]["right"]["test"]
        assert cells(said, "its wrong answers")[place] == f"{roc_auc_score(right, values['test']):.2f}"


@pytest.mark.slow
def test_the_model_forgets_its_text_and_answers_outside_the_task_more_often_than_the_baseline(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss on its own text is that of the training."""
    monkeypatch.setattr(confidence, "QUICK", (10, 70))
    said = ok(tmp_path, "lab", "confidence", "--quick", "--out_dir=out").out
    losses = {one["kind"]: one.get("base_loss") for one in read_metrics(tmp_path / "out/seed-1/model")}
    assert cells(said, "base model")[1] == f"{losses['before']:.2f}" and cells(said, "after fine-tuning")[1] == (
        f"{losses['after']:.2f}"
    )
    assert cells(said, "uniform guessing")[1] == "4.17" and losses["after"] > losses["before"] + 1
    found = {name: confidence.SystemResults(lab_results(tmp_path / "out"), name, 0.95) for name in ("model", "ngram")}
    mean = {name: each.mean(each.auroc)[0] for name, each in found.items()}
    assert mean["model"] < mean["ngram"] - 0.05
    assert mean["ngram"] > 0.6


def test_a_second_run_with_another_target_trains_nothing(asked: tuple[Path, str]) -> None:
    folder, said = asked
    again = cli_here("lab", "confidence", "--quick", "--out_dir=out", "--target=0.6", cwd=folder)
    assert again.status == 0 and "stage " not in again.out
    assert float(cells(again.out, "n-gram baseline")[2]) < float(cells(said, "n-gram baseline")[2])
    assert (folder / "out/confidence.png").read_bytes().startswith(b"\x89PNG")
    assert "know that it does not know" in (folder / "out/confidence.html").read_text(encoding="utf-8")


def test_the_prompts_outside_are_no_lines_of_the_task_and_fit(asked: tuple[Path, str]) -> None:
    pairs = confidence.TASK.make(1)
    kinds = confidence.outside(asked[0] / "out/data", pairs, 1)
    assert [len(prompts) for prompts in kinds.values()] == [50, 40, 50, 50]
    inside = {prompt for split in pairs.values() for prompt, _ in split}
    for prompts in kinds.values():
        assert len(set(prompts)) == len(prompts) and not inside & set(prompts)
        assert all(0 < len(prompt) <= LINE_WIDTH for prompt in prompts)
    assert kinds == confidence.outside(asked[0] / "out/data", pairs, 1)


@pytest.fixture(scope="module")
def cascaded(small: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("cascade")
    return folder, ok(folder, "lab", "cascade", "--quick", "--out_dir=out").out


def test_the_cascade_is_compared_with_each_system_and_with_a_person(cascaded: tuple[Path, str]) -> None:
    _, said = cascaded
    assert cells(said, "person alone")[1:4] == ["100.0%", "50.00", "10.0 s"]
    accuracy, cost = (float(cells(said, "n-gram baseline, person")[place].split()[0].rstrip("%")) for place in (1, 2))
    assert accuracy > float(cells(said, "n-gram baseline alone")[1].split()[0].rstrip("%")) and cost < 50
    shares = [int(cell.split()[0].rstrip("%")) for cell in cells(said, "n-gram baseline, tiny model, person")[4:]]
    assert sum(shares) == pytest.approx(100, abs=2)


@pytest.mark.slow
def test_a_pretrained_model_adds_stages(cascaded: tuple[Path, str]) -> None:
    folder, _ = cascaded
    save_model(folder / "theirs", "llama", context=1024)
    ok(folder, "import", "theirs", "--out_dir=large")
    lab = ["lab", "cascade", "--quick", "--out_dir=out", "--pretrained=large"]
    done = ok(folder, *lab)
    assert re.findall("stage . of .: (.*), seed", done.out) == ["train: pretrained large", "ask: pretrained large"]
    assert "by pretrained model" in done.out and "The pretrained model is large." in " ".join(done.out.split())
