"""Sharded runs (`--shard`) and activation checkpointing: they learn what other runs learn, and stop as one."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import faults
import pytest
from children import Child, nothing, ranks
from conftest import PATIENCE, TINY_TRAIN, cli_here, needs_fork, ok
from runs import BATCH, assert_equal_runs, numbers

from tinygpt.checkpoint.store import load

pytestmark = needs_fork
SHARDED = [*TINY_TRAIN, *BATCH, "--shard=True"]


def processes(folder: Path, count: int, *args: str, status: int = 0, before: dict[int, object] | None = None) -> str:
    """Run a command in forked processes, which end with `status`; return what they print. before: by rank."""
    first, before = len(list(folder.glob("*.log"))), before or {}
    children = [
        Child(list(args), folder / f"{first + rank}.log", folder, before.get(rank, nothing), **place)
        for rank, place in enumerate(ranks(count))
    ]
    for child in children:
        child.wait(PATIENCE, otherwise=signal.SIGKILL)
    output = "".join(child.output for child in children)
    assert {child.status for child in children} == {status}, output[-4000:]
    return output


def test_a_sharded_run_learns_what_one_process_does(work: Path) -> None:
    ok(work, *TINY_TRAIN, *BATCH, "--out_dir=one")
    output = processes(work, 2, *SHARDED, "--out_dir=two")
    assert "; 2 processes, sharded; checkpoints in two\n" in output
    assert_equal_runs(work / "two", work / "one")
    (work / "two/snapshot.pt").touch()  # doctor says what can be used if a file is damaged
    said = cli_here("doctor", "two", cwd=work).out
    assert "; torchrun --standalone --nproc_per_node=2 -m tinygpt train" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "flags"),
    [
        (4, ["--tie_weights=False", "--bias=True"]),
        (2, ["--optimizer=muon"]),
        (2, ["--dtype=float16"]),
        (2, ["--dropout=0.2", "--gradient_accumulation_steps=2", "--batch_size=6", "--checkpoint_activations=True"]),
        (2, ["--bigram_table=True", "--token_shift=True", "--position=alibi"]),
    ],
    ids=lambda value: str(value),
)
def test_sharding_changes_no_loss_and_no_dropout_mask(work: Path, count: int, flags: list[str]) -> None:
    """Compared with the same number of processes of which each holds everything."""
    processes(work, count, *TINY_TRAIN, *BATCH, *flags, "--fast=False", "--out_dir=complete")
    processes(work, count, *SHARDED, *flags, "--out_dir=sharded")
    assert_equal_runs(work / "sharded", work / "complete")


def test_activation_checkpointing_changes_nothing(work: Path) -> None:
    for out, flags in (("kept", ["--fast=False"]), ("again", ["--checkpoint_activations=True"])):
        ok(work, *TINY_TRAIN, "--max_iters=4", *flags, f"--out_dir={out}")
    assert numbers(work / "again") == numbers(work / "kept")


@pytest.mark.slow
def test_a_killed_run_is_resumed_by_other_numbers_of_processes(work: Path) -> None:
    """4 sharded processes are killed; then 2 others, 2 sharded ones and one end the run as one process would."""
    flags = ["--max_iters=9", "--checkpoint_interval=2"]
    ok(work, *TINY_TRAIN, *BATCH, *flags, "--out_dir=one")
    for count, sharding, killed_at in ((4, "True", 3), (2, "False", 5), (2, "True", 7), (1, "False", 0)):
        die = functools.partial(faults.on_iteration, killed_at, faults.die)
        killed = {"status": -signal.SIGKILL, "before": dict.fromkeys(range(count), die)} if killed_at else {}
        resume = ["train", "--init_from=resume"] if count < 4 else [*TINY_TRAIN, *BATCH, *flags]
        processes(work, count, *resume, f"--shard={sharding}", "--out_dir=run", **killed)
    assert_equal_runs(work / "run", work / "one")
    ok(work, "sample", "--ckpt=run/ckpt.pt", "--max_new_tokens=5")


def test_a_weight_that_is_not_finite_in_one_process_stops_all(work: Path) -> None:
    overflow = functools.partial(faults.diverge, "overflow", 2, 1, nothing)
    flags = ["--out_dir=two", "--checkpoint_interval=1", "--max_iters=9"]
    output = processes(work, 2, *SHARDED, *flags, status=1, before={1: overflow})
    assert output.count("error: iteration 3: a weight is NaN or infinite; training has stopped") == 2
    assert load(work / "two/last.pt").step == 2


@pytest.mark.slow
def test_the_memory_of_a_sharded_run_is_that_of_its_plan(work: Path) -> None:
    """Peaks within 20%, besides that of a tiny model; docs/developers/experiments.md has the errors of large ones."""
    large = ["--n_layer=4", "--n_head=8", "--n_embd=512", "--block_size=16"]  # 13 million parameters
    run = [*TINY_TRAIN[1:], "--max_iters=2", "--eval_interval=2", "--batch_size=2", "--gradient_accumulation_steps=1"]
    run += ["--shard=True", "--dropout=0"]
    plan = json.loads(ok(work, "plan", *run, *large, "--processes=2", "--json").out)["memory_mb"]
    training, saving = plan["training"], plan["saving (process 0, in main memory)"]
    besides, peaks = (memory_of_processes(work, 2, "train", *run, *more) for more in ([], large))
    measured = [(peak - other) / 1e6 for peak, other in zip(peaks, besides, strict=True)]
    assert measured == pytest.approx([max(training, saving), training], rel=0.2)


PEAK = """
import sys
from tinygpt import cli
from tinygpt.base.process import peak_memory
status = cli.main(sys.argv[1:])
print(peak_memory())
sys.exit(status)
"""


def memory_of_processes(folder: Path, count: int, *args: str) -> list[int]:
    """Run a command in new processes, since forked ones begin with the memory of this one; return the peak of each."""
    command = [sys.executable, "-c", PEAK, *args, "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(command, cwd=folder, env=environment | place, stdout=subprocess.PIPE, text=True)
        for place in ranks(count)
    ]
    printed = [run.communicate(timeout=PATIENCE)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * count
    return [int(output.splitlines()[-1]) for output in printed]


@pytest.mark.slow
def test_samples_and_snapshots_of_a_sharded_run(work: Path) -> None:
    processes(work, 2, *SHARDED, "--out_dir=two", "--max_iters=2", "--sample_interval=2", "--snapshots=2")
    assert (work / "two/metrics.jsonl").read_text().count('"kind": "sample"') == 2
    ok(work, "sample", "--ckpt=two/snapshots/step-2.pt", "--max_new_tokens=5")


def test_processes_that_do_not_start_together_are_refused(work: Path) -> None:
    """A node without the shared folder would start from scratch while the others resume."""
    ok(work, *TINY_TRAIN, *BATCH, "--out_dir=shared")
    auto = [*TINY_TRAIN, *BATCH, "--max_iters=6", "--init_from=auto"]
    place = ranks(2)
    children = [
        Child([*auto, f"--out_dir={out}"], work / f"{out}.log", work, nothing, **place[rank])
        for rank, out in enumerate(("shared", "own"))
    ]
    for child in children:
        assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 2, child.output
        assert "the processes start at different iterations, or with different data" in child.output
        assert "--out_dir that they share" in child.output
    assert not (work / "own").exists() and load(work / "shared/last.pt").step == 4
