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


PLAN = ["plan", *SMALL, "--sample_interval=400"]


@pytest.fixture
def pilot_here() -> Iterator[None]:
    """The time pilot runs inside this process, which saves it the seconds of a start."""
    with commands_here():
        yield


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_plan_predicts_time_and_memory_and_writes_nothing(work: Path) -> None:
    """The time pilot is a process of its own, so the memory is that of the run."""
    result = ok(work, *PLAN, "--out_dir=runs/1", "--json")
    made = json.loads(result.out)
    for key in ("predicted_seconds", "predicted_memory_mb"):
        assert 0 < made[key]["low"] < made[key]["value"] < made[key]["high"]
    rows = ("iterations: +800", "evaluations: +3", "saves: +6", "samples: +3", r"time: .*\(", r"memory: .*MB \(")
    for row in rows:
        assert re.search(row, result.err), result.err
    command = shlex.split(result.err.rpartition("next: tinygpt train ")[2])
    suggested, asked = (parse(TrainConfig, args) for args in (command, [*PLAN[1:], "--out_dir=runs/1"]))
    assert suggested == asked and suggested.flags == asked.flags
    assert os.listdir(work) == ["data"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset=colours", "--block_size=20", "--group_by_length"],
        ["--dataset=digits", "--init_from=out/ckpt.pt", "--block_size=12"],
    ],
)
def test_a_run_on_pairs_or_from_trained_weights(
    models: Path, tmp_path: Path, flags: list[str], pilot_here: None
) -> None:
    """Also if its data has characters that the weights do not know."""
    for name in ("data", "out"):
        shutil.copytree(models / name, tmp_path / name)
    (tmp_path / "text.txt").write_text(f"0123456789 {tiny_text()}")
    ok(tmp_path, "prepare", "digits", "--input=text.txt")
    shape = ("--n_", "--block_size") if "--init_from=out/ckpt.pt" in flags else ("--dataset",)
    flags = [*(flag for flag in SMALL if not flag.startswith(shape)), "--max_iters=3", "--out_dir=new", *flags]
    said = ok(tmp_path, "plan", *flags).out
    assert re.search(r"^time: ", said, re.MULTILINE)
    assert ("more than twice the memory" in said) == ("--dataset=colours" in flags)
    assert not (tmp_path / "new").exists()


# ---- costs ----------------------------------------------------------------------------------------------------------


def pilot_entries(step: float, evaluation: float, save: float, sample: float, warm: float) -> list[dict[str, Any]]:
    """The metrics of a time pilot on a machine with these costs: at iteration 0 it saves twice, and is slow."""
    clock, entries = 0.5 + evaluation, []  # something before the first evaluation ends

    def note(kind: str, at: int) -> None:
        entries.append({"kind": kind, "step": at, "seconds": clock})

    note("eval", 0)
    clock += sample
    note("sample", 0)
    clock += 2 * save
    for i in range(25):
        clock += step + (warm if i == 0 else 0) + (save if i == cost.SAVE_AT else 0)
        note("train", i)
    clock += evaluation
    note("eval", 25)
    clock += sample
    note("sample", 25)
    return entries


def test_costs_by_hand() -> None:
    entries = pilot_entries(step=0.02, evaluation=0.3, save=0.05, sample=0.4, warm=0.25)
    found = cost.costs_of(entries, seconds=entries[-1]["seconds"] + 2 * 0.05 + 3)
    assert found.step == pytest.approx(0.02) and found.evaluation == pytest.approx(0.3)
    assert found.save == pytest.approx(0.05) and found.sample == pytest.approx(0.4)
    assert found.start == pytest.approx(3) and found.warm_up == pytest.approx(0.75)  # 0.5 before, 0.25 at iteration 0
    config = TrainConfig(max_iters=100, eval_interval=40, sample_interval=80, checkpoint_interval=30, snapshots=4)
    parts = cost.parts(config, found)
    # evaluations at 0, 40, 80, 100; last.pt also at 30, 60, 90; snapshots at 0, 1, 10, 100; samples at 0, 80
    assert {name: part.times for name, part in parts.items()} == {
        "start": 1, "iterations": 100, "evaluations": 4, "saves": 2 * 4 + 3 + 4, "samples": 2
    }  # fmt: skip
    total = 3.75 + 100 * 0.02 + 4 * 0.3 + 15 * 0.05 + 2 * 0.4
    assert cost.seconds(config, found).value == pytest.approx(total)


@pytest.mark.parametrize(
    "flags",
    [
        ["--max_iters=50", "--eval_interval=20", "--sample_interval=40", "--checkpoint_interval=15"],
        ["--max_iters=40", "--eval_interval=20", "--sample_interval=0"],
        ["--max_iters=7", "--eval_interval=100", "--sample_interval=7", "--checkpoint_interval=7"],
    ],
)
def test_the_parts_are_those_of_a_real_run(work: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    from tinygpt.checkpoint import store

    save = store.save
    monkeypatch.setattr(store, "save", lambda path, *rest: (saved.append(path), save(path, *rest)))
    trained(work, *flags, "--always_save_checkpoint=True")
    kinds = [entry["kind"] for entry in read_metrics(work / "out")]
    values = {flag[2:].split("=")[0]: int(flag.split("=")[1]) for flag in flags}
    parts = cost.parts(TrainConfig(**values), Costs(0, 0, 0, 0, 0, 0, 0, []))  # type: ignore[arg-type]
    assert parts["evaluations"].times == kinds.count("eval") and parts["saves"].times == len(saved)
    assert (parts["samples"].times if "samples" in parts else 0) == kinds.count("sample")


def test_the_interval_of_the_time_follows_the_blocks() -> None:
    config = TrainConfig(max_iters=1000, eval_interval=1000)
    even = Costs(1, 0, 0.01, 0.1, 0.01, 0, 10**6, [0.01] * 4)
    value, low, high = cost.seconds(config, even)
    assert high - low == pytest.approx(2 * cost.TIME_ERROR * value)
    uneven = even._replace(blocks=[0.005, 0.01, 0.01, 0.02])
    value, low, high = cost.seconds(config, uneven)
    assert high - value == pytest.approx(1000 * 0.01) and value - low == pytest.approx(1000 * 0.005)


# ---- mistakes ------------------------------------------------------------------------------------


def test_several_processes_are_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(work, "plan", *SMALL, "--processes=3")
    assert "3 processes cannot share 8 sequences per iteration evenly" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refused(work, "plan", *SMALL)


@pytest.mark.parametrize(
    ("flags", "state", "saving"),
    [
        (["--optimizer=adamw"], 12 * 3840, None),
        (["--optimizer=adamw", "--shard=True"], 6 * 3840, 18 * 3840),
        (["--optimizer=muon", "--shard=True"], 6 * 3840 - 2 * 3072, 18 * 3840 - 6 * 3072),
    ],
)
def test_the_memory_of_two_processes(work: Path, flags: list[str], state: float, saving: float | None) -> None:
    """Of 3,840 parameters, 3,072 are in the block's matrices, for which Muon has one moment."""
    out = ok(work, "plan", *SMALL, *flags, "--processes=2", "--json").out
    parts = json.loads(out)["memory_mb"]
    assert parts["weights and optimizer state"] == pytest.approx(state / 1e6)
    assert parts["training"] == pytest.approx(sum(list(parts.values())[:3]))
    assert parts.get("saving (process 0, in main memory)") == (pytest.approx(saving / 1e6) if saving else None)
    assert not (work / "out").exists()


@functools.cache
def kept_and_planned(many_tokens: bool, **options: Any) -> tuple[int, float]:
    """The bytes that a forward pass keeps for the backward pass, besides the weights, and those of the plan."""
    sizes = {"block_size": 16, "n_layer": 1, "n_embd": 16} if many_tokens else {"block_size": 64, "n_embd": 64}
    config = TrainConfig(**{"n_layer": 3, "n_head": 4, **sizes, **options}, batch_size=8, gradient_accumulation_steps=2)
    shape = GPTConfig.from_dict(vars(config) | {"vocab_size": 300 if many_tokens else 65})
    model, kept = GPT(shape), dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = ids(8, config.block_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x, x)[1]
    weights = [*model.parameters()]
    besides = kept.keys() - {weight.untyped_storage().data_ptr() for weight in weights}
    gradients = sum(4 * weight.numel() for weight in weights) / 1e6
    planned = memory(config, Processes(0, 1), model, 4)["gradients and activations"] - gradients
    assert loss.requires_grad
    return sum(kept[at].untyped_storage().nbytes() for at in besides), planned


@pytest.mark.parametrize("many_tokens", [False, True], ids=["a long context", "a large vocabulary"])
@pytest.mark.parametrize("options", ALONE, ids=str)
def test_the_planned_activations_grow_with_an_option_as_those_that_are_kept(
    options: dict[str, Any], many_tokens: bool
) -> None:
    """Within 35%: the plan leaves out the copies that qk_norm, RoPE and RMSNorm make."""
    (usual, usual_plan), (kept, plan) = kept_and_planned(many_tokens), kept_and_planned(many_tokens, **options)
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((110.4, 129.6, 120), "120 s (110 to 130)"),
        ((2.8, 3.2, 3), "3 s (3 to 3)"),
        ((552, 648, 600), "10.0 min (9.2 to 10.8)"),
        ((6624, 7776, 7200), "120 min (110 to 130)"),
        ((30000, 43000, 36000), "10.0 h (8.3 to 11.9)"),
        ((9e5, 1.1e6, 1e6), "11.6 days (10.4 to 12.7)"),
    ],
)
def test_times_have_one_unit(seconds: tuple[float, float, float], text: str) -> None:
    low, high, value = durations(seconds)
    assert f"{value} ({low} to {high})" == text
