"""Intervals of shares: equal to those of scipy, and never empty in what is printed, if all of a few cases are right."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_MODEL, ok
from inputs import json_lines
from scipy.stats import binomtest

from tinygpt.base.intervals import intervals, lowest_threshold, percent, wilson

TRAIN = ["--dataset=all-right", "--device=cpu", "--dtype=float32", "--block_size=24", "--batch_size=32", "--quiet"]
TRAIN += ["--gradient_accumulation_steps=1", "--learning_rate=1e-2", "--warmup_iters=2", "--max_iters=80"]
TRAIN += ["--eval_interval=80", "--eval_iters=0"]
SHARE = re.compile(r"(\d+\.\d+)%? \((\d+(?:\.\d+)?)(?: to |-)(\d+(?:\.\d+)?)\)")


def scipys(hits: int, n: int) -> tuple[float, float]:
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return found.low, found.high


@pytest.mark.parametrize("n", [1, 5, 40, 10_000])
def test_the_interval_is_that_of_scipy(n: int) -> None:
    for hits in {*range(min(n, 20) + 1), n // 2, n - 1, n}:
        assert wilson(hits / n, n) == pytest.approx(scipys(hits, n), abs=1e-6)


def test_cases_by_hand() -> None:
    """5 of 5: the lower bound is n / (n + z^2) = 5 / 8.84; none of 5 is its mirror image."""
    assert percent(1.0, 5) == "100.0% (57 to 100)" and percent(0.0, 5) == "  0.0% (0 to 43)"
    assert percent(0.94, 1000) == " 94.0% (92.4 to 95.3)" and percent(0.998, 5000) == " 99.8% (99.6 to 99.9)"
    assert wilson(0.0, 0) == (0, 1)
    assert intervals({"a": 1.0, "b": None}, {"a": 5, "b": 0}) == {"a_interval": [*wilson(1, 5)], "b_interval": None}


def test_the_lowest_threshold() -> None:
    """By hand: of the answers from 0.6 on 2 of 3 are right, from 0.8 on all."""
    confidence, right = np.array([0.9, 0.6, 0.8, 0.5]), np.array([1, 0, 1, 0])
    assert lowest_threshold(confidence, lambda sure: right[sure].mean() > 0.6) == 0.6
    assert lowest_threshold(confidence, lambda sure: right[sure].mean() == 1) == 0.8
    assert lowest_threshold(confidence, lambda sure: right[sure].mean() > 0.6, np.array([0.7])) == 0.7
    assert lowest_threshold(confidence, lambda sure: sure.sum() > 4) is None


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right in all cases of one small dataset and, since the labels are swapped, in none of another."""
    folder = tmp_path_factory.mktemp("easy")
    for name, label in (("all-right", {"x": "bad", "o": "fine"}), ("all-wrong", {"x": "fine", "o": "bad"})):
        json_lines(folder, [{"prompt": f"{n:02} {3 * 'xo'[n % 2]}", "response": label["xo"[n % 2]]} for n in range(80)])
        for kind in (name, f"{name}-text"):
            ok(folder, "prepare", kind, "--input=pairs.jsonl", "--format=pairs", "--test_fraction=0.2")
        meta = folder / f"data/{name}-text/meta.json"  # responses that are free text
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"labels": []}))
    ok(folder, "train", *TINY_MODEL, *TRAIN)
    return folder


@pytest.mark.parametrize("flags", [["--task={}"], ["--task={}-text"]])
@pytest.mark.parametrize("name", ["all-right", "all-wrong"])
def test_eval_prints_no_empty_interval(name: str, flags: list[str], easy: Path) -> None:
    """Where all cases are right, or none."""
    args = ["eval", *(flag.format(name) for flag in flags)]
    shown, found = ok(easy, *args).out, json.loads(ok(easy, *args, "--json").out)
    assert "±" not in shown
    n, right = found["n"], name == "all-right"
    result, key = (found, "exact") if "exact" in found else (found["results"]["model"], "accuracy")
    assert result[key] == right and n == 13
    assert result[f"{key}_interval"] == pytest.approx(scipys(n * right, n), abs=1e-6)
    assert ("100.0% (77 to 100)" if right else "  0.0% (0 to 23)") in shown
    shares = SHARE.findall(shown)
    assert shares
    for value, low, high in shares:
        assert float(low) < float(high) and float(low) <= float(value) <= float(high), shown
