"""Resuming a run: exactly, with what was recorded, on the same data; and when it cannot be resumed."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, get_args

import faults
import pytest
from children import Child
from conftest import TINY_TRAIN, cli, listing, ok, refused, tiny_text, trained
from models import same_weights
from runs import FLAGS, column

from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.fields import Key, keys
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.store import load, save
from tinygpt.training.start import ARCHITECTURE, load_run_to_resume


@pytest.fixture
def tuned_work(tuned: Path, tmp_path: Path) -> Path:
    """data/tiny (text), data/colours (pairs), out/ (a base model), out-finetune/, out-lora/."""
    return Path(shutil.copytree(tuned, tmp_path / "work"))


MUON = ["--optimizer=muon"]


@pytest.mark.parametrize(
    "options", [MUON, [*MUON, "--fast=False"], pytest.param(["--sampling=epochs"], marks=pytest.mark.slow)], ids=str
)
def test_resuming_is_exact(work: Path, options: list[str]) -> None:
    """With dropout; with epochs, the second part in another process, in which sets have another order."""
    trained(work, *options, "--out_dir=whole")
    trained(work, *options, "--max_iters=7")
    assert not same_weights(work / "whole/last.pt", work / "out/last.pt")
    command = [*TINY_TRAIN, *options, "--init_from=resume", "--max_iters=13"]
    if "--sampling=epochs" in options:
        assert cli(*command, cwd=work, PYTHONHASHSEED="1").status == 0
    else:
        ok(work, *command)
    trained(work, *options, "--init_from=resume")
    assert same_weights(work / "whole/last.pt", work / "out/last.pt")
    for name in ("loss", "lr", "grad_norm"):
        assert column(work / "whole", "train", name) == column(work / "out", "train", name)


def test_a_finished_run_changes_nothing_and_a_longer_one_keeps_its_values(run_copy: Path) -> None:
    before, old = listing(run_copy / "out"), load(run_copy / "out/last.pt").config
    trained(run_copy, "--init_from=resume")
    after = listing(run_copy / "out")
    assert {name for name in before if before[name] != after[name]} <= {"config.yaml"}
    ok(run_copy, "train", "--init_from=resume", "--max_iters=25")
    new = load(run_copy / "out/last.pt")
    assert new.step == 25 and {key for key in old if old[key] != new.config[key]} == {"max_iters"}


OF_THE_COMMAND = {"config", "quiet", "out_dir", "watch", "budget"}  # and not of the run
SMALL = {"n_embd": 8, "n_head": 2, "n_kv_head": 1}  # each divides the one before


def another(key: Key) -> Any:
    """A value of a key that is not its default."""
    by_type = {bool: (not key.default,), int: (300, 2, 1), float: (0.75, 0.25), str: ("2", "other"), tuple: (("x",),)}
    limits = [mark for mark in key.marks if hasattr(mark, "problem")]
    for value in get_args(key.type)[::-1] or by_type[key.type]:
        if value != key.default and not any(limit.problem(key.name, value) for limit in limits):
            return value


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [(TrainConfig, SMALL), (FinetuneConfig, SMALL | {"sampling": "independent"})],  # epochs exclude replay
)
def test_resuming_keeps_every_value_that_is_not_the_default(
    run_copy: Path, kind: type[TrainConfig], chosen: dict[str, Any]
) -> None:
    """Of every key of a run, also of those that are added later."""
    expected = {name: another(key) for name, key in keys(kind).items() if name not in OF_THE_COMMAND} | chosen
    state = load(run_copy / "out/last.pt")
    shape = state.model_args | {name: expected[name] for name in ARCHITECTURE}
    save(run_copy / "out/last.pt", dataclasses.replace(state, model_args=shape, config=expected))
    resumed = parse(kind, ["--init_from=resume", f"--out_dir={run_copy / 'out'}"])
    load_run_to_resume(resumed)
    assert {name: getattr(resumed, name) for name in expected} == expected


def test_decay_lr_alone_means_a_constant_rate_until_a_schedule_is_given(work: Path) -> None:
    trained(work, "--decay_lr=False", "--learning_rate=0.5")
    ok(work, "train", work / "out/config.yaml", "--out_dir=again")  # not refused: no flag contradicts
    ok(work, "train", "--init_from=resume", "--max_iters=25")
    assert {*column(work / "out", "train", "lr"), *column(work / "again", "train", "lr")} == {0.5}
    ok(work, "train", "--init_from=resume", "--max_iters=30", "--lr_schedule=linear")
    assert column(work / "out", "train", "lr")[-1] < 0.5


def test_a_resumed_run_knows_its_best_loss_and_its_patience(work: Path) -> None:
    still = ["--learning_rate=0", "--min_lr=0", "--eval_interval=2", "--patience=3"]
    trained(work, *still, "--max_iters=4")
    shown = trained(work, *still, "--init_from=resume").out
    assert "stopped early: 3 evaluations without a better validation loss" in shown
    assert column(work / "out", "eval", "step") == [0, 2, 4, 6]  # the first is the best; three are not better
    ckpt, last = load(work / "out/ckpt.pt"), load(work / "out/last.pt")
    assert (ckpt.step, last.step) == (0, 6)
    assert ckpt.best_val_loss == last.best_val_loss == column(work / "out", "eval", "val_loss")[0]


def test_auto_resumes_when_there_is_something_to_resume(tiny_run: Path, work: Path) -> None:
    assert "resuming" not in trained(work, "--init_from=auto", "--max_iters=9").out
    assert "resuming after iteration 9" in trained(work, "--init_from=auto").out
    assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")


def test_other_data_may_begin_a_new_run(run_copy: Path) -> None:
    """With the weights of a run that cannot be resumed on it; the same text with other line ends is the same data."""
    (run_copy / "text.txt").write_bytes(tiny_text().replace("\n", "\r\n").encode())
    ok(run_copy, "prepare", "tiny", "--input=text.txt")
    assert "files:       intact" in ok(run_copy, "doctor", "out").out
    assert "resuming after" in trained(run_copy, "--init_from=resume", "--max_iters=30").out
    (run_copy / "text.txt").write_text(tiny_text(seed=2))  # the same vocabulary
    ok(run_copy, "prepare", "tiny", "--input=text.txt")
    assert "different text" in refused(run_copy, *TINY_TRAIN, "--init_from=resume", "--max_iters=40")
    trained(run_copy, "--init_from=out/last.pt", "--out_dir=new")


def test_resuming_keeps_the_origin_of_a_run(tuned_work: Path) -> None:
    """config.yaml records what a run started from, so that the run can be repeated elsewhere."""
    ok(tuned_work, *TINY_TRAIN, "--init_from=out/ckpt.pt", "--out_dir=run")
    for mode in ("resume", "auto"):
        ok(tuned_work, "train", f"--init_from={mode}", "--out_dir=run", "--max_iters=25")
        assert load(tuned_work / "run/last.pt").config["init_from"] == "out/ckpt.pt"
    shutil.move(tuned_work / "out", tuned_work / "base")
    ok(tuned_work, "finetune", *FLAGS, "--ckpt=base/ckpt.pt", "--out_dir=out")  # the default folder of a base
    ok(tuned_work, "finetune", "--init_from=resume", "--out_dir=out", "--max_iters=44")
    last = load(tuned_work / "out/last.pt")
    assert (last.step, last.config["ckpt"], last.config["init_from"]) == (44, "base/ckpt.pt", "base/ckpt.pt")


def test_a_new_run_in_an_old_folder_never_continues_the_old_one(tuned_work: Path) -> None:
    """Not even if it was killed before it saved anything."""
    other = [*TINY_TRAIN, "--seed=99", "--init_from=scratch", "--out_dir=out-lora"]
    assert Child(other, tuned_work / "log", tuned_work, faults.die_before_saving).wait() == -9
    assert "resuming" not in ok(tuned_work, *other[:-2], "--init_from=auto", "--out_dir=out-lora").out
    assert not (tuned_work / "out-lora/adapter.pt").exists()  # of the earlier run
