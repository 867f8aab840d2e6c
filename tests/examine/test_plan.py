"""`tinygpt plan`: costs by hand and against real runs, the memory of several processes, and refusals."""

import functools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import cli_here, commands_here, ok, refused, tiny_text, trained
from models import ALONE, ids
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.base.terminal import durations
from tinygpt.checkpoint import store
from tinygpt.examine.plan import cost
from tinygpt.examine.plan.cost import Costs
from tinygpt.examine.plan.memory import memory
from tinygpt.model import GPT
from tinygpt.options import GPTConfig
from tinygpt.training.log import read_metrics
from tinygpt.training.processes import Processes

SMALL = ["--dataset=tiny", "--device=cpu", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16"]
SMALL += ["--batch_size=8", "--gradient_accumulation_steps=1", "--warmup_iters=40", "--learning_rate=1e-2"]
SMALL += ["--eval_interval=400", "--eval_iters=2", "--log_interval=10", "--max_iters=800", "--optimizer=muon"]


@pytest.fixture
def pilot_here() -> Iterator[None]:
    """The time pilot runs inside this process, which saves it the seconds of a start."""
    with commands_here():
        yield


def test_a_plan_predicts_time_and_memory_and_writes_nothing(work: Path) -> None:
    """The time pilot is a process of its own, so the memory is that of the run."""
    flags = [*SMALL, "--sample_interval=400", "--out_dir=runs/1"]
    result = ok(work, "plan", *flags, "--json")
    made = json.loads(result.out)
    for key in ("predicted_seconds", "predicted_memory_mb"):
        assert 0 < made[key]["low"] < made[key]["value"] < made[key]["high"]
    rows = ("iterations: +800", "evaluations: +3", "saves: +6", "samples: +3", r"time: .*\(", r"memory: .*MB \(")
    assert all(re.search(row, result.err) for row in rows), result.err
    command = shlex.split(result.err.rpartition("next: tinygpt train ")[2])
    suggested, asked = (parse(TrainConfig, args) for args in (command, flags))
    assert suggested == asked and suggested.flags == asked.flags
    assert os.listdir(work) == ["data"]


@pytest.mark.parametrize("trained_weights", [False, True], ids=["pairs", "trained weights"])
def test_a_run_on_pairs_or_from_trained_weights(
    models: Path, tmp_path: Path, trained_weights: bool, pilot_here: None
) -> None:
    """Also if its data has characters that the weights do not know."""
    for name in ("data", "out"):
        shutil.copytree(models / name, tmp_path / name)
    (tmp_path / "text.txt").write_text(f"0123456789 {tiny_text()}")
    ok(tmp_path, "prepare", "digits", "--input=text.txt")
    flags = [*SMALL, "--dataset=colours", "--block_size=20", "--group_by_length"]
    if trained_weights:
        shape = ("--n_", "--block_size")
        flags = [*(flag for flag in SMALL if not flag.startswith(shape)), "--dataset=digits", "--init_from=out/ckpt.pt"]
    said = ok(tmp_path, "plan", *flags, "--max_iters=3", "--out_dir=new").out
    assert re.search(r"^time: ", said, re.MULTILINE)
    assert ("more than twice the memory" in said) != trained_weights
    assert not (tmp_path / "new").exists()


def test_costs_by_hand() -> None:
    """The metrics of a time pilot on a machine with these costs: at iteration 0 it saves twice, and is slow."""
    step, evaluation, save, sample, warm = 0.02, 0.3, 0.05, 0.4, 0.25
    clock, entries = 0.5, []  # something before the first evaluation

    def note(kind: str, at: int, seconds: float) -> None:
        nonlocal clock
        clock += seconds
        entries.append({"kind": kind, "step": at, "seconds": clock})

    note("eval", 0, evaluation)
    note("sample", 0, sample)
    for i in range(25):
        note("train", i, step + (2 * save + warm if i == 0 else 0) + (save if i == cost.SAVE_AT else 0))
    note("eval", 25, evaluation)
    note("sample", 25, sample)
    found = cost.costs_of(entries, seconds=clock + 2 * save + 3)
    assert (found.step, found.evaluation) == pytest.approx((step, evaluation))
    assert (found.save, found.sample) == pytest.approx((save, sample))
    assert (found.start, found.warm_up) == pytest.approx((3, 0.75))  # 0.5 before, 0.25 at iteration 0
    config = TrainConfig(max_iters=100, eval_interval=40, sample_interval=80, checkpoint_interval=30, snapshots=4)
    # evaluations at 0, 40, 80, 100; last.pt also at 30, 60, 90; snapshots at 0, 1, 10, 100; samples at 0, 80
    times = {"start": 1, "iterations": 100, "evaluations": 4, "saves": 2 * 4 + 3 + 4, "samples": 2}
    assert {name: part.times for name, part in cost.parts(config, found).items()} == times
    value, low, high = cost.seconds(config, found)
    assert value == pytest.approx(3.75 + 100 * step + 4 * evaluation + 15 * save + 2 * sample)
    assert high - low == pytest.approx(2 * cost.TIME_ERROR * value)
    value, low, high = cost.seconds(config, found._replace(blocks=[0.01, 0.02, 0.02, 0.05]))
    assert (high - value, value - low) == pytest.approx((100 * 0.03, 100 * 0.01))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_iters": 50, "eval_interval": 20, "sample_interval": 40, "checkpoint_interval": 15},
        {"max_iters": 7, "eval_interval": 100, "sample_interval": 0, "checkpoint_interval": 7},
    ],
)
def test_the_parts_are_those_of_a_real_run(
    work: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], store.save
    monkeypatch.setattr(store, "save", lambda path, *rest: (saved.append(path), save(path, *rest)))
    trained(work, *(f"--{name}={value}" for name, value in settings.items()), "--always_save_checkpoint=True")
    kinds = [entry["kind"] for entry in read_metrics(work / "out")]
    parts = cost.parts(TrainConfig(**settings), Costs(0, 0, 0, 0, 0, 0, 0, []))
    assert parts["evaluations"].times == kinds.count("eval") and parts["saves"].times == len(saved)
    assert (parts["samples"].times if "samples" in parts else 0) == kinds.count("sample")


def test_several_processes_are_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(work, "plan", *SMALL, "--processes=3")
    assert "3 processes cannot share 8 sequences per iteration evenly" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refused(work, "plan", *SMALL)


def test_the_memory_of_two_processes(work: Path) -> None:
    """Of 3,840 parameters, 3,072 are in the block's matrices, for which Muon has one moment."""
    out = ok(work, "plan", *SMALL, "--optimizer=muon", "--shard=True", "--processes=2", "--json").out
    parts = json.loads(out)["memory_mb"]
    assert parts["weights and optimizer state"] == pytest.approx((6 * 3840 - 2 * 3072) / 1e6)
    assert parts["training"] == pytest.approx(sum(list(parts.values())[:3]))
    assert parts["saving (process 0, in main memory)"] == pytest.approx((18 * 3840 - 6 * 3072) / 1e6)
    plain = json.loads(ok(work, "plan", *SMALL, "--optimizer=adamw", "--processes=2", "--json").out)["memory_mb"]
    assert plain["weights and optimizer state"] == pytest.approx(12 * 3840 / 1e6) and len(plain) == len(parts) - 1
    assert not (work / "out").exists()


@functools.cache
def kept_and_planned(**options: Any) -> tuple[int, float]:
    """The bytes that a forward pass keeps for the backward pass, besides the weights, and those of the plan."""
    sizes = {"block_size": 32, "n_layer": 3, "n_head": 4, "n_embd": 32, "batch_size": 8}
    config = TrainConfig(**sizes, **options, gradient_accumulation_steps=2)
    model = GPT(GPTConfig.from_dict(vars(config) | {"vocab_size": 200}))
    kept, x = dict[int, int](), ids(8, 32)

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x, x)[1].backward()
    for weight in model.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    gradients = sum(4 * weight.numel() for weight in model.parameters()) / 1e6
    return sum(kept.values()), memory(config, Processes(0, 1), model, 4)["gradients and activations"] - gradients


@pytest.mark.parametrize("options", ALONE, ids=str)
def test_the_planned_activations_grow_with_an_option_as_those_that_are_kept(options: dict[str, Any]) -> None:
    """Within 35%: the plan leaves out the copies that qk_norm, RoPE and RMSNorm make."""
    (usual, usual_plan), (kept, plan) = kept_and_planned(), kept_and_planned(**options)
    assert 0.8 < (kept / usual) / (plan / usual_plan) < 1.35


def test_the_memory_on_a_gpu_is_computed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    out = ok(work, "plan", *SMALL, "--device=mps", "--processes=2").out
    assert "computed for the GPU, not measured on one\n" in out and "not predicted" not in out
    assert "GPU" not in ok(work, "plan", *SMALL, "--processes=2").out


def test_a_run_that_diverges_is_a_finding(work: Path, pilot_here: None) -> None:
    result = cli_here("plan", *SMALL, "--learning_rate=1e30", "--optimizer=adamw", "--grad_clip=0", cwd=work)
    assert result.status == 1, (result.out, result.err)
    assert re.search(r"diverged|NaN", result.err) and "1e+30" in result.err


def test_times_have_one_unit() -> None:
    assert durations((110.4, 129.6, 120)) == ["110", "130", "120 s"]
    assert durations((552, 648, 600)) == ["9.2", "10.8", "10.0 min"]
    assert durations((30000, 43000, 36000)) == ["8.3", "11.9", "10.0 h"]
    assert durations((9e5, 1.1e6, 1e6)) == ["10.4", "12.7", "11.6 days"]
