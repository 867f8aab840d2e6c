"""The verdict's rule on curves that were recorded, and the command that prints it."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import cli_here, ok, trained

from tinygpt.training.log import read_run
from tinygpt.training.verdict import MEANINGS, RULES, Verdict, judge, remedy

# of runs on Tiny Shakespeare or a piece of it: step, training loss, validation loss, its standard error
CURVES = json.loads((Path(__file__).parents[1] / "fixtures/curves.json").read_text())
SETTINGS = {"max_iters": 2000, "eval_interval": 250, "learning_rate": 1e-3, "n_layer": 4, "dataset": "tiny"}


def entries(rows: list[list[float]]) -> list[dict[str, Any]]:
    names = ("step", "train_loss", "val_loss", "val_loss_se")
    return [{"kind": "eval", **dict(zip(names, row, strict=False))} for row in rows]


def verdict(rows: list[list[float]], **sizes: int) -> Verdict:
    return judge(entries(rows), SETTINGS, "out", **sizes)


def rising(*above: float, error: float = 0.01) -> list[list[float]]:
    """A curve that falls to 2.0 at step 200, and then exceeds that by so many standard errors."""
    after = [[300 + 100 * i, 1.8, 2.0 + errors * error, error] for i, errors in enumerate(above)]
    return [[0, 4.2, 4.2, error], [100, 2.4, 2.5, error], [200, 1.9, 2.0, error], *after]


def test_recorded_curves() -> None:
    """The last evaluations of `noisy` exceed the best one, but by less than two standard errors."""
    kinds = {"improving": "still improving", "overfitted": "overfitting", "noisy": "finished"}
    for name, curve in CURVES.items():
        found, kind = verdict(curve), kinds.get(name, name)
        assert found.kind == kind and found.rule == RULES[kind] and MEANINGS.keys() == RULES.keys()
        assert (found.since is None) is (kind in ("still improving", "finished"))


@pytest.mark.parametrize(
    ("above", "since"),
    [
        ((2.1, 2.1, 2.1), 300),
        ((2.1, 2.1, 1.9, 2.1, 2.1), None),  # not in a row
        ((1.9, 2.1, 2.1, 2.1), 400),
        ((3, 3, 3, 0.5), None),  # nearly so
    ],
)
def test_overfitting_is_three_in_a_row_by_two_standard_errors(above: tuple[float, ...], since: int | None) -> None:
    found = verdict(rising(*above))
    assert found.since == since
    assert (found.kind == "overfitting") is (since is not None)
    last = "perhaps" if above[-1] > 2 else "not seen"
    assert found.overfitting == (last if since is None else f"since step {since}")


def test_too_little_data_is_overfitting_with_many_parameters_a_token() -> None:
    curve = rising(3, 3, 3)
    assert verdict(curve, parameters=800_000, tokens=80_001).kind == "overfitting"
    found = verdict(curve, parameters=800_000, tokens=79_999)
    assert found.kind == "too little data"


def test_diverging_is_seen_in_the_training_loss_or_in_its_end() -> None:
    up = [[0, 4.2, 4.2, 0.01], [100, 2.2, 2.2, 0.01], [200, 3.0, 3.0, 0.01]]
    assert verdict(up).kind != "diverged"
    assert verdict([*up, [300, 3.3, 3.3, 0.01]]).title == "diverged since step 300"
    ended = [*entries(rising(-5)), {"kind": "diverged", "step": 321, "seconds": 1, "reason": "the loss is nan"}]
    assert judge(ended, SETTINGS, "out").lines()[0] == "verdict:     diverged since step 321 (the loss is nan)"


@pytest.mark.parametrize(
    ("val", "patience", "max_iters", "kind"),
    [
        ([4.2, 1.94, 2.38], 0, 200, "rising"),  # below the first one, but no longer the best
        ([2.3 - 0.006 * n for n in range(40)], 0, 3900, "still improving"),  # by little at each of many evaluations
        ([4.2, 2.0, 2.3, 2.3, 2.3, 2.01, 2.005], 0, 600, "finished"),  # it recovered
        # three evaluations after the best one, not overfitting: finished, unless patience ended the run
        ([4.2, 2.5, 2.0, 2.01, 2.01, 2.01], 3, 2000, "stopped early"),
        ([4.2, 2.5, 2.0, 2.01, 2.01, 2.01], 4, 2000, "finished"),
    ],
)
def test_a_verdict_is_about_the_end_of_the_run(val: list[float], patience: int, max_iters: int, kind: str) -> None:
    curve = entries([[100 * n, loss - 0.1, loss, 0.01] for n, loss in enumerate(val)])
    found = judge(curve, SETTINGS | {"patience": patience, "max_iters": max_iters}, "out")
    assert (found.kind, found.rule) == (kind, RULES[kind])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_few_evaluations_are_no_trend(count: int) -> None:
    """While the run goes on it is too early for one; at its end there is nothing to wait for."""
    assert verdict(rising()[:count]).kind == "too early"
    ended = judge(entries(rising()[:count]), SETTINGS | {"max_iters": 100 * max(0, count - 1)}, "out")
    assert ended.kind == ("trend unknown" if count else "too early")


@pytest.mark.parametrize(
    ("kind", "settings", "changes"),
    [
        ("too little data", {"init_from": "b.pt"}, "--ckpt=b.pt --lora_rank=8 --out_dir=o-lora"),
        # a longer run decays to its own end, also after one whose configuration fixes the end, as nanoGPT's do
        ("still improving", {"lr_decay_iters": 9}, "--out_dir=o --max_iters=4000 --lr_decay_iters=0"),
        ("overfitting", {"dropout": 0.2}, "--dropout=0.4 --patience=3 --out_dir=o-dropout"),
    ],
)
def test_the_remedy_fits_the_settings(kind: str, settings: dict[str, Any], changes: str) -> None:
    commands = {"too little data": "finetune o/config.yaml", "still improving": "train --init_from=resume"}
    assert remedy(kind, SETTINGS | settings, "o") == f"tinygpt {commands.get(kind, 'train o/config.yaml')} {changes}"


def test_the_command_on_a_run_and_the_end_of_training_say_the_same(work: Path) -> None:
    said, result = trained(work).out, ok(work, "doctor", "out").out
    assert result.startswith("files:       intact\nverdict:     still improving (")
    assert "; the loss still falls, so longer training may help\n" in said and "\ntrained:     tinygpt " in result


def test_a_damaged_trail_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    draw, junk = random.Random(2), [None, "x", -1, 1e400, math.nan, [], {}, True, 10**30, ""]
    for _ in range(100):
        lines = [dict(entry) for entry in entries(CURVES["overfitted"])]
        for line in draw.choices(lines, k=4):
            line[draw.choice(["step", "kind", "train_loss", "val_loss", "val_loss_se"])] = draw.choice(junk)
        (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{")
        (tmp_path / "config.yaml").write_text(f"{draw.choice(list(SETTINGS))}: {json.dumps(draw.choice(junk))}\n")
        assert len(judge(*read_run(tmp_path), "out").lines()) >= 4


def test_an_unfinished_run_is_continued(run_copy: Path) -> None:
    log = run_copy / "out/metrics.jsonl"
    assert "unfinished" not in ok(run_copy, "doctor", "out").out
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-3]))
    out = ok(run_copy, "doctor", "out").out
    assert re.search(r"^unfinished:  1\d of 20 iterations$", out, re.MULTILINE), out


def test_each_damaged_file_is_found(run_copy: Path) -> None:
    assert cli_here("doctor", "out", "data/tiny", cwd=run_copy).out.count("files:       intact\n") == 2
    for name in ("out/ckpt.pt", "out/last.pt", "out/metrics.jsonl", "data/tiny/train.bin"):
        content = (run_copy / name).read_bytes()
        (run_copy / name).write_bytes(content[:-9])
        result = cli_here("doctor", "out", "data/tiny", cwd=run_copy)
        assert result.status == 1 and re.search(rf"^FAIL +{name}: ", result.out, re.MULTILINE), result.out
        (run_copy / name).write_bytes(content)
