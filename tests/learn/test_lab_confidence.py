"""tinygpt lab confidence and cascade: thresholds come from validation lines alone, figures from test lines."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lab_results, ok
from labs import DOWN, UP, results, shortest
from sklearn.metrics import roc_auc_score

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.tasks import TASKS
from tinygpt.data.tasks.transactions import LINE_WIDTH
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import cascade, confidence
from tinygpt.learn.lab.confidence import auroc, threshold


def test_the_auroc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    inside, outside = np.round(rng.beta(3, 2, 300), 1), np.round(rng.beta(2, 2, 50), 1)  # with ties
    truth = np.repeat([1, 0], [300, 50])
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, np.concatenate([inside, outside])))
    assert math.isnan(auroc(inside, outside[:0])) and math.isnan(auroc(inside[:0], outside))


def test_the_threshold_is_the_lowest_that_meets_the_target() -> None:
    values, right = np.array([0.6, 0.9, 0.8, 0.7, 0.8]), np.array([False, True, True, True, False])
    found = {target: threshold(values, right, target, 1) for target in (0.6, 0.7, 0.76, 0.99)}
    assert found == {0.6: 0.6, 0.7: 0.7, 0.76: 0.9, 0.99: 0.9}  # the two lines of 0.8 are answered together
    assert threshold(values[1:3], right[:2], 0.9, 1) == threshold(values[:0], right[:0], 0.9, 1) == math.inf
    ordered, hits = np.linspace(1, 0.1, 30), np.arange(30) < 19  # too few right answers, with the default
    assert threshold(ordered, hits, 0.99) == math.inf and threshold(ordered, hits, 0.99, 19) == ordered[18]


def verdicts(found: Records) -> list[str]:
    return [each.text for each in confidence.summarise(found, LabConfig("confidence", target=0.9)).verdicts]


def test_what_a_model_knows_keeps_and_forgets() -> None:
    knows, kept, forgotten = verdicts(results(UP, DOWN, 90))  # sure only inside
    assert "The fine-tuned model knows that" in knows and "it answers 0%" in knows
    assert kept.count("keeps it (90.0%") == 2
    assert "worse than uniform guessing: its loss rises from 1.80 to 6.00" in forgotten and "has 4.17" in forgotten
    knows, _, forgotten = verdicts(results(UP, UP, 90, after=3.0))  # sure everywhere
    assert "does not know that" in knows and "it answers 100%" in knows
    assert "still predicts the text of its pretraining" in forgotten
    assert "fine-tuned model misses it (60.0%" in verdicts(results(UP, DOWN, 90, tested=60))[1]


def test_a_model_must_abstain_from_each_kind_of_prompts_and_may_answer_nothing() -> None:
    found = results(UP, DOWN, 90)
    found[1]["confidence"]["poem"] = UP[:20] + DOWN[:80]
    summary = confidence.summarise(found, LabConfig("confidence", target=0.9))
    assert "does not know that it does not know: it answers 20% of one kind" in summary.verdicts[0].text
    assert summary.tables[0].rows[0]["outside, answered"] == "10%"  # the mean over the kinds
    summary = confidence.summarise(results(UP, UP, 50), LabConfig("confidence"))  # no threshold reaches the target
    assert "answers no line of its task, so its abstaining shows nothing" in summary.verdicts[0].text


def system(values: list[float], right: list[int], latency: float = 1.0, tested: list[int] | None = None) -> Any:
    """A system's answers, equal in val and test but for the correct ones; there are 20 lines of each kind."""
    truth = {"val": np.repeat(right, 20) > 0, "test": np.repeat(tested or right, 20) > 0}
    return {"confidence": dict.fromkeys(truth, np.repeat(values, 20)), "right": truth, "latency": latency}


FIRST = system([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0])
WRONG = system([0.99, 1.0], [0, 0])
SECOND = system([0.5, 0.5, 0.9, 0.4], [0, 0, 1, 0], latency=4)
PRICE = 1000 / 3600 * cascade.HOUR  # of 1,000 lines of a second each
PERSON = cascade.PERSON_SECONDS


def run(target: float, *systems: Any) -> Any:
    """The cascade of systems a, b, ..., and in the order of these: thresholds, shares with that of the person."""
    found = cascade.cascade(dict(zip("abc", systems, strict=False)), target)
    names = "abc"[: len(systems)]
    shares = [found[f"by {who}"] for who in (*names, "person")]
    return found, [found[f"threshold: {name}"] for name in names], shares


def test_a_cascade_by_hand() -> None:
    """The first answers two kinds of lines, the second one of the two that reach it, a person the last."""
    found, thresholds, shares = run(0.9, FIRST, SECOND)
    assert thresholds == [0.8, 0.9] and shares == [0.5, 0.25, 0.25] and found["accuracy"] == 1
    assert found["cost"] == pytest.approx(PRICE + 0.5 * 4 * PRICE + 0.25 * 50)
    assert found["seconds"] == 1 + 0.5 * 4 + 0.25 * PERSON
    assert found["reaches: b"] == 0.5 and (found["test: a"], found["test: b"]) == ((40, 40), (20, 20))


def test_a_threshold_is_chosen_on_the_lines_that_reach_the_stage() -> None:
    """All lines give the second system half of its answers right from 0.6 on; those that reach it, none."""
    second = system([0.9, 0.9, 0.6, 0.6], [1, 1, 0, 0])
    assert run(0.5, second)[1] == [0.6]
    assert run(0.9, FIRST, second)[1] == [0.8, math.inf]


def test_the_limits_of_a_cascade() -> None:
    """A perfect system leaves nothing to the person, one that is always wrong everything; on test, the confidence of
    the last is right less often than on val, to which the threshold is fitted."""
    for (found, _, shares), by, *figures in (
        (run(0.99, system([0.1, 0.2], [1, 1])), [1, 0], 1, PRICE, 1),
        (run(0.01, WRONG), [0, 1], 1, PRICE + 50, 1 + PERSON),
        (run(0.9), [1], 1, 50, PERSON),
        (run(cascade.ALONE, FIRST), [1, 0], 0.5, PRICE, 1),
    ):
        assert shares == by and [found[key] for key in ("accuracy", "cost", "seconds")] == pytest.approx(figures)
    assert run(0.9, system([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0], tested=[1, 0, 0, 0]))[0]["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("first", "second", "start"),
    [
        (FIRST, SECOND, "n-gram baseline and the tiny model; a person answers the rest"),
        (FIRST, FIRST, "n-gram baseline; a person answers the rest"),
        (WRONG, WRONG, "person alone. 1,000 lines cost 50.00;"),
    ],
)
def test_a_stage_is_advised_only_if_it_saves(first: Any, second: Any, start: str) -> None:
    found = [{"seed": 1, "system": name, **answers} for name, answers in (("ngram", first), ("tiny", second))]
    simple, kept = cascade.summarise(Records(found), LabConfig("cascade", seeds=1)).verdicts
    assert re.match(f"Start with (the|a) {re.escape(start)}", simple.text)
    assert ("n-gram baseline: kept (100.0%, 95% interval 91.2 to 100.0%)" in kept.text) == (first is FIRST)


def cells(said: str, name: str) -> list[str]:
    row = next(line for line in said.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.slow
def test_the_table_has_the_figures_of_scikit_learn_and_another_target_trains_nothing(
    lab: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lab("confidence"), tmp_path / "work"))
    said = (folder / "said.txt").read_text(encoding="utf-8")
    found = lab_results(folder / "out")
    for place, name in ((3, "ask: model, seed 1"), (5, "ask: ngram, seed 1")):
        values = found[name]["confidence"]
        truth = [1] * 150 + [0] * len(values["headlines"])
        assert cells(said, "headlines")[place] == f"{roc_auc_score(truth, values['test'] + values['headlines']):.2f}"
        right = found[name]["right"]["test"]
        assert cells(said, "its wrong answers")[place] == f"{roc_auc_score(right, values['test']):.2f}"
    with shortest("confidence"):
        again = ok(folder, "lab", "confidence", "--quick", "--out_dir=out", "--target=0.6").out
    assert "stage " not in again
    assert float(cells(again, "n-gram baseline")[2]) < float(cells(said, "n-gram baseline")[2])


def test_the_prompts_outside_are_no_lines_of_the_task_and_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confidence, "OUTSIDE", 50)
    ok(tmp_path, "prepare", "shakespeare_char")
    kinds = confidence.outside(tmp_path, 1)
    assert [len(prompts) for prompts in kinds.values()] == [50, 40, 50, 50]
    inside = {prompt for split in TASKS["transactions"].make(1).values() for prompt, _ in split}
    for prompts in kinds.values():
        assert len(set(prompts)) == len(prompts) and not inside & set(prompts)
        assert all(0 < len(prompt) <= LINE_WIDTH for prompt in prompts)
    assert kinds == confidence.outside(tmp_path, 1)
