"""`tinygpt train` end to end, in a folder of its own: what it writes, how it resumes, what it refuses."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import filelock
import numpy as np
import pytest
import torch
from conftest import (
    PATIENCE,
    TINY_MODEL,
    TINY_TRAIN,
    cli,
    cli_here,
    listing,
    needs_fork,
    ok,
    refused,
    tiny_text,
    trained,
    until,
)
from models import nanogpts_file, same_weights
from runs import column, entries

from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.fields import Key, keys
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.snapshots import affordable, snapshots
from tinygpt.checkpoint.store import load, save
from tinygpt.train import batch
from tinygpt.training.log import read_metrics
from tinygpt.training.optimizer import learning_rate
from tinygpt.training.run import set_up
from tinygpt.training.start import ARCHITECTURE, load_run_to_resume, resolve

# ---- output -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_four_files(tiny_run: Path) -> None:
    names = {path.name for path in (tiny_run / "out").iterdir()} - {".lock"}
    assert names == {"ckpt.pt", "last.pt", "metrics.jsonl", "config.yaml"}
    last = load(tiny_run / "out/last.pt")
    assert last.step == 20 and all(weight.dtype is torch.float32 for weight in last.model.values())
    assert "transformer.h.0.attn.c_attn.weight" in last.model  # nanoGPT's names


def test_metrics_hold_what_they_promise(tiny_run: Path) -> None:
    lines = [json.loads(line) for line in (tiny_run / "out/metrics.jsonl").read_text().splitlines()]
    keys = {
        "train": {"kind", "step", "seconds", "loss", "lr", "grad_norm", "tokens_per_second"},
        "eval": {"kind", "step", "seconds", "train_loss", "val_loss", "val_loss_se", "memory_mb"},
    }
    assert all(line.keys() == keys[line["kind"]] for line in lines)
    train, evaluations = (entries(tiny_run / "out", kind) for kind in ("train", "eval"))
    assert [line["step"] for line in train] == list(range(20))
    assert [line["step"] for line in evaluations] == [0, 10, 20]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    config = SimpleNamespace(**load(tiny_run / "out/last.pt").config)
    assert [line["lr"] for line in train] == [learning_rate(step, config) for step in range(20)]  # type: ignore[arg-type]
    assert train[-1]["loss"] < train[0]["loss"] - 0.3
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"] - 0.3


def test_ckpt_is_the_best_and_last_the_newest(work: Path) -> None:
    """With a learning rate that is too high, the best evaluation is not the last one."""
    trained(work, "--max_iters=12", "--decay_lr=False", "--learning_rate=1", "--eval_interval=4", "--grad_clip=0")
    losses = dict(zip(column(work / "out", "eval", "step"), column(work / "out", "eval", "val_loss"), strict=True))
    best = min(losses, key=losses.__getitem__)
    assert best < 12
    ckpt, last = load(work / "out/ckpt.pt"), load(work / "out/last.pt")
    assert (ckpt.step, last.step) == (best, 12)
    assert ckpt.best_val_loss == last.best_val_loss == losses[best]
    trained(work, "--max_iters=4", "--eval_interval=2", "--learning_rate=0", "--min_lr=0", "--always_save_checkpoint")
    assert load(work / "out/ckpt.pt").step == 4


def test_config_yaml_is_a_config_and_the_seed_decides(tiny_run: Path, work: Path) -> None:
    ok(work, "train", tiny_run / "out/config.yaml", "--out_dir=again")
    assert same_weights(tiny_run / "out/last.pt", work / "again/last.pt")
    first, again = ((folder / "config.yaml").read_text() for folder in (tiny_run / "out", work / "again"))
    assert first.replace("out_dir: out", "out_dir: again") == again
    trained(work, "--seed=8")
    assert not same_weights(tiny_run / "out/last.pt", work / "out/last.pt")


def test_what_is_shown(work: Path) -> None:
    shown = trained(work, "--max_iters=30", "--sample_interval=10").out
    for pattern in (
        r"^dataset: +data/tiny: [\d,]+ training tokens",
        r"^model: +[\d,]+ parameters: 1 layer, 2 heads, width 16, context 16$",
        r"^training: +30 iterations of [\d,]+ tokens: \d\.\d passes over the data$",
        r"^device: +cpu \(\d+ threads?\), float32; checkpoints in out$",
        r"^expected: +[\d.]+ s for 5 more iterations \([\d.]+ ms each\)$",
        r"^step +0: train loss \d\.\d{4}, val loss \d\.\d{4}$",
        r"^step 30: train loss \d\.\d{4}, val loss \d\.\d{4} \(best\)$",
        r"^done in \d+ s: the best validation loss is \d\.\d\d; the loss still falls, .*$",
        r"^next: tinygpt sample out$",
    ):
        assert re.search(pattern, shown, re.MULTILINE), pattern
    assert f"{load(work / 'out').build_model().num_params():,} parameters" in shown
    texts = entries(work / "out", "sample")
    assert [entry["step"] for entry in texts] == [0, 10, 20, 30] and {len(entry["text"]) for entry in texts} == {200}
    assert shown.splitlines()[4].startswith("    | ") and "rule:" not in shown  # four lines, and the untrained model
    quiet = trained(work, "--quiet", "--sample_interval=10").out
    assert "device:" not in quiet and "    | " not in quiet and "step 20: train loss" in quiet


def test_samples_of_pairs_end_where_the_response_does(work: Path) -> None:
    pairs = (f'{{"prompt": "{number}", "response": "c"}}\n' for number in range(100))
    (work / "pairs.jsonl").write_text("".join(pairs))
    ok(work, "prepare", "pairs", "--input=pairs.jsonl", "--format=pairs")
    trained(work, "--dataset=pairs", "--max_iters=1", "--sample_interval=1")
    assert all(len(entry["text"]) < 200 and "<|end|>" not in entry["text"] for entry in entries(work / "out", "sample"))


def test_a_model_that_was_trained_longer_is_kept(work: Path) -> None:
    """Of three runs in one folder the longest model stays, also when a shorter one replaces a shorter one."""

    def seconds(name: str) -> float:
        return float(load(work / "out" / name).training["progress"]["seconds"])

    trained(work)
    state = load(work / "out/ckpt.pt")
    state.training["progress"]["seconds"] = 600.0
    save(work / "out/ckpt.pt", state)
    first = (work / "out/ckpt.pt").read_bytes()
    shown = trained(work, "--max_iters=2").out
    assert "note: this run replaces the model in out, which stays as out/previous.pt (trained for 10 min)\n" in shown
    assert (work / "out/previous.pt").read_bytes() == first and load(work / "out/ckpt.pt").step == 2
    ok(work, "sample", "out/previous.pt", "--max_new_tokens=5")
    shown = trained(work, "--max_iters=4").out
    assert "; out/previous.pt, trained longer, stays\n" in shown
    assert (work / "out/previous.pt").read_bytes() == first and load(work / "out/ckpt.pt").step == 4
    trained(work, "--max_iters=8", "--init_from=resume")  # a resumed run replaces nothing
    assert (work / "out/previous.pt").read_bytes() == first
    state = load(work / "out/ckpt.pt")
    state.training["progress"]["seconds"] = 700.0
    save(work / "out/ckpt.pt", state)
    trained(work, "--max_iters=2")
    assert seconds("previous.pt") == 700 and ok(work, "doctor", "out").status == 0
    (work / "out/previous.pt").write_bytes(b"damaged")
    assert "which stays as out/previous.pt" in trained(work, "--max_iters=2").out
    state.training["progress"]["seconds"] = float("nan")
    save(work / "out/ckpt.pt", state)
    (work / "out/last.pt").unlink()
    assert "; out/previous.pt, trained longer, stays\n" in trained(work, "--max_iters=2").out


def test_a_trained_model_that_was_not_evaluated_is_kept(work: Path) -> None:
    """A run that is stopped before its second evaluation has the untrained model in ckpt.pt, and its own in last.pt."""
    trained(work, "--max_iters=8")
    last = (work / "out/last.pt").read_bytes()
    save(work / "out/ckpt.pt", dataclasses.replace(load(work / "out/last.pt"), step=0))
    trained(work, "--max_iters=2")
    assert (work / "out/previous.pt").read_bytes() == last


@pytest.mark.parametrize(
    ("parameters", "tokens", "on_cpu", "expected"),
    [
        (599_040, 800 * 2048, True, 9),  # the default preset: 6 MB
        (599_040, 20 * 2048, True, 0),  # a test
        (30_000, 10**9, True, 10),
        (1_400_000, 10**9, True, 4),
        (1_600_000, 10**9, True, 0),  # larger models
        (599_040, 800 * 2048, False, 0),  # on a GPU this takes seconds
    ],
)
def test_snapshots_are_on_where_they_cost_little(parameters: int, tokens: int, on_cpu: bool, expected: int) -> None:
    assert affordable(parameters, tokens, on_cpu) == expected


def test_snapshots_are_decided_before_a_run_starts(work: Path) -> None:
    """A run that is resumed for longer keeps its number; 0 means none. (Each run here stops after four iterations.)"""
    long = ["--max_iters=10000000", "--patience=2", "--learning_rate=0", "--min_lr=0", "--eval_interval=2"]
    trained(work, *long)
    assert list(snapshots(work / "out")) == [0] and load(work / "out/last.pt").config["snapshots"] == 10
    trained(work, *long, "--snapshots=0", "--out_dir=none")
    trained(work, "--max_iters=5", "--out_dir=short")
    trained(work, *long, "--init_from=resume", "--out_dir=short")
    for folder in ("none", "short"):
        assert not snapshots(work / folder) and load(work / folder / "last.pt").config["snapshots"] == 0


def test_log_interval_thins_the_lines_and_changes_nothing_else(tiny_run: Path, work: Path) -> None:
    trained(work, "--log_interval=5", "--sample_interval=5", "--checkpoint_interval=3")
    assert column(work / "out", "train", "step") == [0, 5, 10, 15]
    assert column(work / "out", "train", "loss") == column(tiny_run / "out", "train", "loss")[::5]
    assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")


# ---- stopping and evaluating ------------------------------------------------------------------------------------


def test_patience_stops_early(work: Path) -> None:
    still = ["--learning_rate=0", "--min_lr=0", "--eval_interval=2"]
    shown = trained(work, "--patience=3", *still).out
    assert column(work / "out", "eval", "step") == [0, 2, 4, 6]  # the first is the best; three are not better
    assert "stopped early: 3 evaluations without a better validation loss" in shown
    assert load(work / "out/last.pt").step == 6
    trained(work, *still)
    assert column(work / "out", "eval", "step")[-1] == 20


def test_eval_only_writes_nothing(run_copy: Path) -> None:
    shown = trained(run_copy, "--eval_only", "--out_dir=fresh").out
    assert len(re.findall("val loss", shown)) == 1
    assert not (run_copy / "fresh").exists()
    before = listing(run_copy / "out")
    shown = trained(run_copy, "--init_from=resume", "--eval_only").out
    last = entries(run_copy / "out", "eval")[-1]
    assert f"step 20: train loss {last['train_loss']:.4f}, val loss {last['val_loss']:.4f}" in shown
    assert listing(run_copy / "out") == before


def test_eval_iters_0_is_the_whole_split(tiny_run: Path, work: Path) -> None:
    trained(work, "--eval_iters=0")
    measured = cli_here("eval", "--json", "--device=cpu", "--dtype=float32", "--ckpt=out/last.pt", cwd=work)
    assert json.loads(measured.out)["loss"] == pytest.approx(column(work / "out", "eval", "val_loss")[-1], abs=1e-6)
    assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")  # evaluation does not affect training


# ---- resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        pytest.param(["--sampling=epochs"], True, marks=pytest.mark.slow),
        (["--optimizer=muon"], False),
    ],
    ids=["adamw, epochs, in another process", "muon"],
)
def test_resuming_is_exact(work: Path, options: list[str], processes: bool) -> None:
    """With dropout; also with each part in a process of its own, in which sets have another order."""
    trained(work, *options, "--out_dir=whole")
    for seed, args in enumerate((["--max_iters=7"], ["--init_from=resume", "--max_iters=13"], ["--init_from=resume"])):
        command = [*TINY_TRAIN, *options, *args]
        result = cli(*command, cwd=work, PYTHONHASHSEED=str(seed)) if processes else cli_here(*command, cwd=work)
        assert result.status == 0, result.err
        if seed == 0:
            assert not same_weights(work / "whole/last.pt", work / "out/last.pt")
    assert same_weights(work / "whole/last.pt", work / "out/last.pt")
    for name in ("loss", "lr", "grad_norm"):
        assert column(work / "whole", "train", name) == column(work / "out", "train", name)


def test_resuming_a_finished_run_changes_nothing(run_copy: Path) -> None:
    before = listing(run_copy / "out")
    trained(run_copy, "--init_from=resume")
    after = listing(run_copy / "out")
    assert {name for name in before if before[name] != after[name]} <= {"config.yaml"}


def test_resuming_without_a_config_takes_the_old_values(run_copy: Path) -> None:
    old = load(run_copy / "out/last.pt").config
    ok(run_copy, "train", "--init_from=resume", "--max_iters=25")
    new = load(run_copy / "out/last.pt")
    assert new.step == 25
    assert {key for key in old if old[key] != new.config[key]} == {"max_iters"}


def test_a_run_with_a_data_dir_of_its_own_is_resumed_from_another_folder(work: Path) -> None:
    (work / "data").rename(work / "texts")
    trained(work, "--data_dir=texts")
    (work / "other").mkdir()
    ok(work / "other", "train", "--init_from=resume", "--out_dir=../out", "--max_iters=25")
    assert load(work / "out/last.pt").step == 25


OF_THE_COMMAND = {"config", "quiet", "out_dir", "watch", "budget"}  # and not of the run
SMALL = {"n_embd": 8, "n_head": 2, "n_kv_head": 1}  # each divides the one before


def another(key: Key) -> Any:
    """A value of a key that is not its default."""
    by_type = {bool: (not key.default,), int: (300, 2, 1), float: (0.75, 0.25), str: ("2", "other"), tuple: (("x",),)}
    limits = [mark for mark in key.marks if hasattr(mark, "problem")]
    possible = [
        value
        for value in get_args(key.type)[::-1] or by_type[key.type]
        if value != key.default and not any(limit.problem(key.name, value) for limit in limits)
    ]
    return possible[0]


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


def test_a_stored_value_of_the_wrong_type_is_refused(run_copy: Path) -> None:
    """A last.pt from a stranger, or of a newer version; what the command gives counts instead."""
    state = load(run_copy / "out/last.pt")
    save(run_copy / "out/last.pt", dataclasses.replace(state, config=state.config | {"grad_clip": "much"}))
    message = refused(run_copy, "train", "--init_from=resume", "--max_iters=30")
    assert "last.pt: grad_clip: 'much' is not a number" in message and "--init_from=out/last.pt" in message
    ok(run_copy, "train", "--init_from=resume", "--max_iters=30", "--grad_clip=1")


def test_decay_lr_alone_means_a_constant_rate_until_a_schedule_is_given(work: Path) -> None:
    constant = ["--decay_lr=False", "--learning_rate=0.5"]
    trained(work, *constant)
    assert {*column(work / "out", "train", "lr")} == {0.5}
    ok(work, "train", work / "out/config.yaml", "--out_dir=again")  # not refused: no flag contradicts
    assert {*column(work / "again", "train", "lr")} == {0.5}
    ok(work, "train", "--init_from=resume", "--max_iters=25")
    assert {*column(work / "out", "train", "lr")} == {0.5}
    ok(work, "train", "--init_from=resume", "--max_iters=30", "--lr_schedule=linear")
    assert column(work / "out", "train", "lr")[-1] < 0.5


def test_a_resumed_run_knows_its_best_loss_and_its_patience(work: Path) -> None:
    still = ["--learning_rate=0", "--min_lr=0", "--eval_interval=2", "--patience=3"]
    trained(work, *still, "--max_iters=4")
    trained(work, *still, "--init_from=resume")
    assert column(work / "out", "eval", "step") == [0, 2, 4, 6]  # the first is the best; three are not better
    ckpt, last = load(work / "out/ckpt.pt"), load(work / "out/last.pt")
    assert (ckpt.step, last.step) == (0, 6)
    assert ckpt.best_val_loss == last.best_val_loss == column(work / "out", "eval", "val_loss")[0]


def test_resuming_with_another_optimizer_is_refused(run_copy: Path) -> None:
    message = refused(run_copy, *TINY_TRAIN, "--init_from=resume", "--max_iters=30", "--optimizer=muon")
    assert "optimizer is muon here and adamw in the checkpoint" in message


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--batch_size=8", "batch_size x gradient_accumulation_steps is 16 here and 8 in the checkpoint"),
        ("--gradient_accumulation_steps=3", "is 12 here and 8 in the checkpoint"),
        ("--seed=8", "seed is 8 here and 7 in the checkpoint"),
        ("--group_by_length=True", "group_by_length is True here and False in the checkpoint"),
        ("--block_size=5", "block_size is 5 here and"),
    ],
)
def test_an_epoch_cannot_be_continued_with_another_batch(work: Path, flag: str, says: str) -> None:
    """Its order would be another one: rows would be read twice, and others never."""
    trained(work, "--sampling=epochs", "--max_iters=3")
    command = ["train", "--init_from=resume", "--max_iters=6", flag]
    message = refused(work, *command)
    assert says in message
    if "--sampling=independent" in message:
        ok(work, *command, "--sampling=independent")
        ok(work, *command, "--max_iters=9", "--sampling=epochs")  # in epochs from here on


def test_an_epoch_continues_with_its_batch_in_smaller_pieces(work: Path) -> None:
    epochs = ["--sampling=epochs", "--dropout=0"]
    trained(work, *epochs, "--out_dir=whole")
    trained(work, *epochs, "--max_iters=7")
    ok(work, "train", "--init_from=resume", "--max_iters=20", "--batch_size=2", "--gradient_accumulation_steps=4")
    losses = column(work / "whole", "train", "loss")
    assert column(work / "out", "train", "loss") == pytest.approx(losses, abs=1e-5)


def test_auto_resumes_when_there_is_something_to_resume(tiny_run: Path, work: Path) -> None:
    assert "resuming" not in trained(work, "--init_from=auto", "--max_iters=9").out
    assert "resuming after iteration 9" in trained(work, "--init_from=auto").out
    assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")


def test_resuming_on_other_data_is_refused(run_copy: Path) -> None:
    (run_copy / "text.txt").write_text(tiny_text(seed=2))  # the same vocabulary
    ok(run_copy, "prepare", "tiny", "--input=text.txt")
    message = refused(run_copy, *TINY_TRAIN, "--init_from=resume", "--max_iters=30")
    assert "has been prepared from different text" in message
    trained(run_copy, "--init_from=out/last.pt", "--out_dir=new")  # starting from its weights is allowed


def test_the_same_text_with_other_line_ends_is_the_same_data(run_copy: Path) -> None:
    text = tiny_text().replace("\n", "\r\n")
    (run_copy / "text.txt").write_bytes(text.encode())
    ok(run_copy, "prepare", "tiny", "--input=text.txt")
    said = cli_here("doctor", "out", cwd=run_copy).out
    assert "files:       intact" in said and "not checked" not in said
    assert "resuming after" in trained(run_copy, "--init_from=resume", "--max_iters=30").out


def test_starting_from_another_runs_weights(run_copy: Path) -> None:
    trained(run_copy, "--init_from=out/ckpt.pt", "--out_dir=new", "--max_iters=1", "--n_embd=16")
    assert column(run_copy / "new", "eval", "val_loss")[0] == pytest.approx(load(run_copy / "out").best_val_loss)
    assert column(run_copy / "new", "train", "step") == [0]
    newer = ["--init_from=out/ckpt.pt", "--out_dir=newer"]
    assert "n_embd is 32 here and 16 in the checkpoint" in refused(run_copy, *TINY_TRAIN, *newer, "--n_embd=32")
    (run_copy / "preset.yaml").write_text("dataset: tiny\nn_embd: 36\n")  # a flag can be dropped, a preset's value not
    assert "try: --n_embd=16, or start" in refused(run_copy, "train", "preset.yaml", *newer)
    trained(run_copy, "--init_from=out/ckpt.pt", "--out_dir=short", "--block_size=5", "--max_iters=1")
    assert load(run_copy / "short").model["transformer.wpe.weight"].shape == (5, 16)


def test_starting_from_nanogpts_file(run_copy: Path) -> None:
    ours = load(run_copy / "out/last.pt")
    torch.save(nanogpts_file(ours), run_copy / "nano.pt")
    trained(run_copy, "--init_from=nano.pt", "--out_dir=new", "--max_iters=0")
    assert column(run_copy / "new", "eval", "val_loss") == [
        pytest.approx(column(run_copy / "out", "eval", "val_loss")[-1])
    ]
    assert load(run_copy / "new").tokenizer == ours.tokenizer  # it now has one
    small = nanogpts_file(ours)
    for table in ("_orig_mod.transformer.wte.weight", "_orig_mod.lm_head.weight"):
        small["model"][table] = small["model"][table][:5].clone()
    small["model_args"]["vocab_size"] = 5
    torch.save(small, run_copy / "nano.pt")
    message = refused(run_copy, *TINY_TRAIN, "--init_from=nano.pt", "--out_dir=newer")
    assert "nano.pt has a vocabulary of 5 tokens" in message


# ---- options ----------------------------------------------------------------------------------------------------


def test_nanogpts_command_line(work: Path) -> None:
    """The one of its README for a CPU, for another dataset and 3 iterations; the preset is found by its name."""
    line = (
        "train nanogpt --device=cpu --compile=False --eval_iters=20 --block_size=64 "
        "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=3 --lr_decay_iters=3 --dropout=0.0"
    )
    assert ok(work, *line.split(), "--dataset=tiny").err == ""
    assert load(work / "out-nanogpt").model_args["n_embd"] == 128 and load(work / "out-nanogpt/last.pt").step == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_as_float32_does(tiny_run: Path, work: Path, dtype: str) -> None:
    assert f", {dtype}; checkpoints in out" in trained(work, f"--dtype={dtype}").out
    exact, rough = (column(folder / "out", "train", "loss") for folder in (tiny_run, work))
    assert exact != rough
    assert rough[0] == pytest.approx(exact[0], abs=0.01) and rough[-1] == pytest.approx(exact[-1], abs=0.1)
    assert all(weight.dtype == torch.float32 for weight in load(work / "out").model.values())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_compiled_training(tiny_run: Path, work: Path) -> None:
    result = cli(*TINY_TRAIN, "--compile=True", cwd=work, timeout=PATIENCE)
    assert result.status == 0, result.err
    assert re.search(r"^device: .*, compile on; checkpoints in out$", result.out, re.MULTILINE)
    found = column(work / "out", "train", "loss")
    assert found[:3] == pytest.approx(column(tiny_run / "out", "train", "loss")[:3], abs=0.05)  # dropout's masks differ


def broken(*_: object) -> None:
    raise OSError("no compiler")


@pytest.mark.parametrize("real", [pytest.param(True, marks=pytest.mark.slow), False])
def test_without_a_compiler_it_goes_on(tiny_run: Path, work: Path, real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(work / "cache")
    monkeypatch.setattr(torch, "compile", broken)
    command = [*TINY_TRAIN, "--compile=True"]
    result = cli(*command, cwd=work, timeout=PATIENCE, **env) if real else ok(work, *command)
    assert result.status == 0, result.err
    assert re.search(r"^device: .*, compile off: torch.compile failed here \(.+\);", result.out, re.MULTILINE)
    assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")


def test_nothing_is_sent_to_weights_and_biases(work: Path) -> None:
    """Its keys are nanoGPT's: a config file may have them."""
    (work / "nano.py").write_text("wandb_log = True\nwandb_project = 'owt'\nwandb_run_name = 'gpt2-124M'\n")
    said = ok(work, *TINY_TRAIN, "nano.py", "--max_iters=1").err
    assert "note: nano.py: wandb_log is ignored" in said
    assert "note: --wandb_log is ignored" in ok(work, *TINY_TRAIN, "--wandb_log=True", "--max_iters=1").err
    (work / "old.yaml").write_text("wandb_log: false\nwandb_run_name: run\n")
    assert "wandb" not in ok(work, *TINY_TRAIN, "old.yaml", "--max_iters=1", "--out_dir=old").err


def test_a_run_that_an_earlier_version_sent_to_weights_and_biases_is_resumed(run_copy: Path) -> None:
    state = load(run_copy / "out/last.pt")
    progress = state.training["progress"] | {"wandb_id": "0a1b2c3d"}
    config, training = state.config | {"wandb_log": True}, state.training | {"progress": progress}
    save(run_copy / "out/last.pt", dataclasses.replace(state, config=config, training=training))
    trained(run_copy, "--init_from=resume", "--max_iters=25")
    state = load(run_copy / "out/last.pt")
    assert state.step == 25 and "wandb_log" not in state.config and "wandb_id" not in state.training["progress"]


@needs_fork
def test_a_run_that_a_command_started_ends_with_it(work: Path) -> None:
    """Even if the command is killed and cannot end it: another try would find the folder in use, beyond any limit."""
    code = "import sys, pathlib; from tinygpt.base.process import run; run(pathlib.Path('log'), *sys.argv[1:])"
    command = [*TINY_TRAIN, "--max_iters=1000000", "--eval_interval=1000000", "--log_interval=1"]
    parent = subprocess.Popen([sys.executable, "-c", code, *command], cwd=work, stderr=subprocess.DEVNULL)
    until(lambda: (work / "out/metrics.jsonl").exists() and len(read_metrics(work / "out")) > 2, PATIENCE)
    parent.kill()
    parent.wait()
    filelock.FileLock(work / "out/.lock").acquire(timeout=PATIENCE)  # the run has ended, as at any SIGTERM
    assert load(work / "out/last.pt").step > 0


def test_a_context_warmup_cuts_the_same_rows(work: Path) -> None:
    """First into four rows each, then into two, then not at all."""

    def batches(flag: str) -> list[tuple[np.ndarray, np.ndarray]]:
        with contextlib.ExitStack() as stack, contextlib.chdir(work), contextlib.redirect_stdout(io.StringIO()):
            args = ["--dataset=tiny", "--device=cpu", "--out_dir=out-cut", "--batch_size=4", *TINY_MODEL, flag]
            run = set_up(stack, resolve(stack, parse(TrainConfig, [*args, "--gradient_accumulation_steps=2"])))
            return [tuple(part.numpy() for part in batch(run, step)[:2]) for step in (0, 3, 4, 7, 8)]

    for number, (short, whole) in enumerate(zip(batches("--context_warmup=8"), batches("--seed=1337"), strict=True)):
        for a, b in zip(short, whole, strict=True):
            parts = (4, 4, 2, 2, 1)[number]
            assert a.shape == (2, 4 * parts, b.shape[2] // parts) and (a.reshape(b.shape) == b).all()


@pytest.mark.parametrize("flags", [["--block_size=18"], ["--dataset=pairs"]], ids=str)
def test_a_context_warmup_that_cannot_be_is_refused(work: Path, flags: list[str]) -> None:
    pairs = (f'{{"prompt": "{number}", "response": "c"}}\n' for number in range(100))
    (work / "pairs.jsonl").write_text("".join(pairs))
    if not (work / "data/pairs").exists():
        ok(work, "prepare", "pairs", "--input=pairs.jsonl", "--format=pairs")
    args = ["--dataset=tiny", "--out_dir=out-none", "--device=cpu", "--max_iters=2", *TINY_MODEL, *flags]
    assert "context_warmup is for plain text" in refused(work, "train", *args, "--context_warmup=2")
    assert not (work / "out-none").exists()
