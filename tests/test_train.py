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
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from conftest import PATIENCE, TINY_MODEL, TINY_TRAIN, cli, cli_here, listing, needs_fork, ok, trained, until
from models import nanogpts_file, same_weights
from runs import column, entries

from tinygpt import train
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.snapshots import snapshots
from tinygpt.checkpoint.store import load, save
from tinygpt.training.log import read_metrics
from tinygpt.training.optimizer import learning_rate
from tinygpt.training.run import set_up
from tinygpt.training.start import resolve


def test_a_run_leaves_its_four_files_and_metrics_hold_what_they_promise(tiny_run: Path) -> None:
    names = {path.name for path in (tiny_run / "out").iterdir()} - {".lock"}
    assert names == {"ckpt.pt", "last.pt", "metrics.jsonl", "config.yaml"}
    last = load(tiny_run / "out/last.pt")
    assert last.step == 20 and all(weight.dtype is torch.float32 for weight in last.model.values())
    assert "transformer.h.0.attn.c_attn.weight" in last.model  # nanoGPT's names
    lines = read_metrics(tiny_run / "out")
    keys = {
        "train": {"kind", "step", "seconds", "loss", "lr", "grad_norm", "tokens_per_second"},
        "eval": {"kind", "step", "seconds", "train_loss", "val_loss", "val_loss_se", "memory_mb"},
    }
    assert all(line.keys() == keys[line["kind"]] for line in lines)
    steps, evaluations = (entries(tiny_run / "out", kind) for kind in ("train", "eval"))
    assert [line["step"] for line in steps] == list(range(20))
    assert [line["step"] for line in evaluations] == [0, 10, 20]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    config = SimpleNamespace(**last.config)
    assert [line["lr"] for line in steps] == [learning_rate(step, config) for step in range(20)]  # type: ignore[arg-type]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"] - 0.3


def test_ckpt_is_the_best_and_last_the_newest(work: Path) -> None:
    """With a learning rate that is too high, the best evaluation is not the last one."""
    trained(work, "--max_iters=12", "--decay_lr=False", "--learning_rate=10", "--eval_interval=4", "--grad_clip=0")
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


def test_samples_of_pairs_end_where_the_response_does(models: Path, work: Path) -> None:
    trained(work, "--dataset=colours", f"--data_dir={models / 'data'}", "--max_iters=1", "--sample_interval=1")
    assert all(len(entry["text"]) < 200 and "<|end|>" not in entry["text"] for entry in entries(work / "out", "sample"))


def test_a_model_that_was_trained_longer_is_kept(work: Path) -> None:
    """Of three runs in one folder the longest model stays, also when a shorter one replaces a shorter one."""

    def set_seconds(seconds: float) -> bytes:
        state = load(work / "out/ckpt.pt")
        state.training["progress"]["seconds"] = seconds
        save(work / "out/ckpt.pt", state)
        return (work / "out/ckpt.pt").read_bytes()

    trained(work, "--max_iters=1")
    first = set_seconds(600.0)
    shown = trained(work, "--max_iters=2").out
    assert "note: this run replaces the model in out, which stays as out/previous.pt (trained for 10 min)\n" in shown
    assert (work / "out/previous.pt").read_bytes() == first and load(work / "out/ckpt.pt").step == 2
    assert "; out/previous.pt, trained longer, stays\n" in trained(work, "--max_iters=4").out
    assert (work / "out/previous.pt").read_bytes() == first and load(work / "out/ckpt.pt").step == 4
    trained(work, "--max_iters=8", "--init_from=resume")  # a resumed run replaces nothing
    assert (work / "out/previous.pt").read_bytes() == first
    longest = set_seconds(700.0)
    trained(work, "--max_iters=1")
    assert (work / "out/previous.pt").read_bytes() == longest


def test_a_trained_model_that_was_not_evaluated_is_kept(run_copy: Path) -> None:
    """A run that is stopped before its second evaluation has the untrained model in ckpt.pt, and its own in last.pt."""
    last = (run_copy / "out/last.pt").read_bytes()
    save(run_copy / "out/ckpt.pt", dataclasses.replace(load(run_copy / "out/last.pt"), step=0))
    trained(run_copy, "--max_iters=1")
    assert (run_copy / "out/previous.pt").read_bytes() == last


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


def test_starting_from_another_runs_weights(run_copy: Path) -> None:
    trained(run_copy, "--init_from=out/ckpt.pt", "--out_dir=new", "--max_iters=1", "--n_embd=16")
    assert column(run_copy / "new", "eval", "val_loss")[0] == pytest.approx(load(run_copy / "out").best_val_loss)
    assert column(run_copy / "new", "train", "step") == [0]
    trained(run_copy, "--init_from=out/ckpt.pt", "--out_dir=short", "--block_size=5", "--max_iters=1")
    assert load(run_copy / "short").model["transformer.wpe.weight"].shape == (5, 16)


def test_starting_from_nanogpts_file(run_copy: Path) -> None:
    ours = load(run_copy / "out/last.pt")
    torch.save(nanogpts_file(ours), run_copy / "nano.pt")
    trained(run_copy, "--init_from=nano.pt", "--out_dir=new", "--max_iters=0")
    (loss,) = column(run_copy / "new", "eval", "val_loss")
    assert loss == pytest.approx(column(run_copy / "out", "eval", "val_loss")[-1])
    assert load(run_copy / "new").tokenizer == ours.tokenizer  # it now has one


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
    short = ["--compile=True", "--max_iters=3", "--eval_interval=3"]
    result = cli(*TINY_TRAIN, *short, cwd=work, timeout=PATIENCE, TORCHINDUCTOR_COMPILE_THREADS="1")
    assert result.status == 0, result.err
    assert re.search(r"^device: .*, compile on; checkpoints in out$", result.out, re.MULTILINE)
    found = column(work / "out", "train", "loss")
    assert found[:3] == pytest.approx(column(tiny_run / "out", "train", "loss")[:3], abs=0.05)  # dropout's masks differ


def test_without_a_compiler_it_goes_on(tiny_run: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    shown = trained(work, "--compile=True").out
    assert re.search(r"^device: .*, compile off: torch.compile failed here \(.+\);", shown, re.MULTILINE)
    assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")


@pytest.mark.slow
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
            return [tuple(part.numpy() for part in train.batch(run, step)[:2]) for step in (0, 3, 4, 7, 8)]

    for number, (short, whole) in enumerate(zip(batches("--context_warmup=8"), batches("--seed=1337"), strict=True)):
        for a, b in zip(short, whole, strict=True):
            parts = (4, 4, 2, 2, 1)[number]
            assert a.shape == (2, 4 * parts, b.shape[2] // parts) and (a.reshape(b.shape) == b).all()


def test_values_of_text_keys_are_taken_as_written_also_after_a_byte_order_mark(tmp_path: Path) -> None:
    for written in ("1.10", "010", "0x1F", "2024-01-01", "yes", "1_000", "1e3"):
        (tmp_path / "c.yaml").write_bytes(f"\ufeffout_dir: {written}\n".encode())
        assert parse(TrainConfig, [str(tmp_path / "c.yaml")]).out_dir == written
    (tmp_path / "c.py").write_bytes("\ufeffmax_iters = 1\n".encode())
    assert parse(TrainConfig, [str(tmp_path / "c.py")]).max_iters == 1


def test_speed_is_that_of_the_iterations_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of metrics.jsonl counts the iterations since the last one, the first line one; no evaluation counts."""
    now = [0.0]
    step, evaluation = train.forward_backward, train.evaluate

    def forward_backward(*args: Any) -> Any:
        now[0] += 0.5
        return step(*args)

    def evaluate(run: Any) -> bool:
        now[0] += 60
        return evaluation(run)

    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(train, "forward_backward", forward_backward)
    monkeypatch.setattr(train, "evaluate", evaluate)
    flags = ["--log_interval=3", "--eval_interval=4", "--checkpoint_interval=3", "--max_iters=30", "--out_dir=run"]
    said = ok(work, *TINY_TRAIN, *flags).out
    speeds = [entry["tokens_per_second"] for entry in read_metrics(work / "run") if entry["kind"] == "train"]
    assert speeds == [2 * 4 * 2 * 16] * 10  # two iterations per second of 4 x 2 rows of 16 tokens
    assert "(500.0 ms each)" in said
