"""The learning-rate schedule against nanoGPT's formula, and by hand."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import trained
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.base.configs.core import TrainConfig
from tinygpt.training.optimizer import learning_rate


def nanogpts(it: int, peak: float, least: float, warmup: int, decay: int) -> float:
    """The cosine schedule in the words of its paper: up in equal steps, half a cosine down, then flat."""
    if it < warmup:
        return peak * (it + 1) / (warmup + 1)
    if it >= decay:
        return least
    angle = math.pi * (it - warmup) / (decay - warmup)
    return least + (peak - least) * (1 + math.cos(angle)) / 2


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 100), st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_learning_rate_is_nanogpts(it: int, warmup: int, decay: int, peak: float, least: float, explicit: bool) -> None:
    """With lr_decay_iters, or without it and the same max_iters; the warm-up may be the longer of the two."""
    length: dict[str, Any] = {"lr_decay_iters" if explicit else "max_iters": decay}
    config = TrainConfig(learning_rate=peak, min_lr=least, warmup_iters=warmup, **length)
    assert learning_rate(it, config) == pytest.approx(nanogpts(it, peak, least, warmup, decay))


CONFIG = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=4, lr_decay_iters=104)


def test_a_linear_rate_and_corners() -> None:
    assert learning_rate(0, TrainConfig(warmup_iters=0)) > 0  # without a warm-up the first step counts in full
    straight = dataclasses.replace(CONFIG, lr_schedule="linear")
    rates = [learning_rate(it, straight) for it in (0, 3, 4, 29, 54, 104, 1_000_000)]
    assert rates == pytest.approx([0.2, 0.8, 1.0, 0.775, 0.55, 0.1, 0.1])
    no_decay = dataclasses.replace(CONFIG, lr_decay_iters=4)  # warm-up and decay end together
    assert [learning_rate(it, no_decay) for it in (3, 4, 5)] == pytest.approx([0.8, 0.1, 0.1])


@pytest.mark.parametrize("constant", [{"lr_schedule": "constant"}, {"decay_lr": False}])
def test_a_constant_rate_has_two_spellings(constant: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, **constant)
    assert {learning_rate(it, config) for it in (0, 3, 50, 1000)} == {1.0}


@pytest.mark.parametrize(
    ("flags", "noted"),
    [
        (["--max_iters=20"], False),
        (["--max_iters=2"], True),
        (["--lr_schedule=constant"], False),
        (["--optimizer=muon", "--warmup_iters=0", "--lr_schedule=linear"], False),
    ],
)
def test_a_run_notes_an_endless_warm_up(work: Path, flags: list[str], noted: bool) -> None:
    said = trained(work, "--lr_decay_iters=0", *flags).out  # by default 20 iterations, 2 of them warm-up
    assert ("the learning rate never reaches its peak" in said) == noted
