"""The scaling law of `tinygpt lab scale`: the fit against known laws, its optimum against a search."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import lab_results

from tinygpt.learn.lab import scale
from tinygpt.learn.lab.scaling_law import Law, fit

TRUE = Law(E=1.0, A=20.0, B=60.0, alpha=0.4, beta=0.3)
SIZES, LENGTHS = np.array([27e3, 60e3, 150e3, 340e3, 800e3]), np.array([0.25e6, 0.5e6, 1e6, 2e6, 4e6])
GRID = [part.ravel() for part in np.meshgrid(SIZES, LENGTHS)]


def test_the_fit_recovers_a_law_and_parabolas_through_equal_compute_do_not() -> None:
    """The reason for variable projection: without any noise, the parabolas miss the growth of the best size."""
    computes = np.geomspace(3e11, 1e13, 6)
    parabolas = [np.polyfit(np.log(SIZES), TRUE.loss(SIZES, compute / 6 / SIZES), 2) for compute in computes]
    best = [np.exp(-b / 2 / a) for a, b, _ in parabolas]
    assert np.polyfit(np.log(computes), np.log(best), 1)[0] < 0.9 * TRUE.growth
    found = fit(*GRID, TRUE.loss(*GRID))
    assert found == pytest.approx(TRUE, rel=0.02)
    assert found.loss(10e6, 100e6) == pytest.approx(TRUE.loss(10e6, 100e6), rel=1e-3)
    assert found.best_parameters(computes[0]) == pytest.approx(TRUE.best_parameters(computes[0]), rel=0.05)


def test_the_best_size_and_length_against_a_search() -> None:
    for compute in (1e11, 1e13, 1e18):
        sizes = np.geomspace(1e3, 1e9, 20_000)
        searched = sizes[TRUE.loss(sizes, compute / 6 / sizes).argmin()]
        assert TRUE.best_parameters(compute) == pytest.approx(searched, rel=0.01)
        assert 6 * searched * TRUE.best_tokens(searched) == pytest.approx(compute, rel=0.05)
    steep = Law(1.0, 1e-3, 60.0, 0.4, 0.02)  # overflows as a power
    assert 1e6 < steep.best_tokens(124e6) < np.inf
    assert TRUE.best_loss(1e13) == pytest.approx(TRUE.loss(sizes, 1e13 / 6 / sizes).min(), rel=1e-6)


@pytest.mark.slow
def test_the_law_is_fitted_to_the_losses_of_the_runs(lab: Callable[[str], Path]) -> None:
    folder = lab("scale")
    stages, said = lab_results(folder / "out"), (folder / "said.txt").read_text(encoding="utf-8")
    assert len(stages) == 5 and all(0.3 < run["loss"] < 5 for run in stages.values())
    tokens = [stages[f"width 32, {passes} passes, seed 1"]["tokens"] for passes in (0.1, 0.2)]
    assert tokens[0] * 2 == pytest.approx(tokens[1], rel=0.1)
    kept = [run for name, run in stages.items() if "width 64" not in name]
    columns = [np.array([float(run[key]) for run in kept]) for key in ("parameters", "tokens", "loss")]
    law = fit(*columns)
    assert f"loss = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}," in said
    assert "held out" in said
    page = (folder / "out/scale.html").read_text()
    assert ">10^10</text>" in page and "mathdefault" not in page  # the ticks
    rows = [re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row) for row in page.split("<tr role")]
    targets = {row[0]: row for row in rows if row and row[0] in scale.TARGETS}
    assert len(targets) == len(scale.TARGETS)
    for row in targets.values():  # a time is predicted only if the runs determine the length
        assert ("(" in row[1]) == (row[-1] != "not determined")


def test_an_error_below_two_percent_is_a_prediction() -> None:
    for error, said in ((0.0196, "law predicts"), (0.02004, "not predict")):
        last = {"parameters": 1e6, "tokens": 1e7, "loss": TRUE.loss(1e6, 1e7) / (1 + error)}
        assert said in scale.predicted(TRUE, last).text
