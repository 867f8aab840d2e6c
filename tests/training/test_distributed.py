"""Several processes, forked or under torchrun, sharded or not, learn what one does; and activation checkpointing."""

import functools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import faults
import pytest
from children import Child, nothing, ranks, wait_for_lines
from conftest import PATIENCE, TINY_TRAIN, cli_here, needs_fork, ok
from runs import BATCH, assert_equal_runs, entries, numbers, processes

from tinygpt.checkpoint.store import load

pytestmark = needs_fork
SHARDED = [*TINY_TRAIN, *BATCH, "--shard=True"]


@pytest.mark.parametrize("flags", [[], ["--teacher=out"]], ids=["alone", "with a teacher"])
def test_two_processes_learn_what_one_does(run_copy: Path, flags: list[str]) -> None:
    """Same batches, so the same losses up to the order of additions, in training and in evaluation; written once."""
    ok(run_copy, *TINY_TRAIN, *BATCH, *flags, "--out_dir=one")
    output = processes(run_copy, 2, *TINY_TRAIN, *BATCH, *flags, "--out_dir=two")
    assert output.count("done in") == output.count("; 2 processes") == 1
    assert_equal_runs(run_copy / "two", run_copy / "one")
    (_, _, expected), (_, _, found) = (numbers(run_copy / run)[0] for run in ("one", "two"))
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_uneven_split_is_refused_in_one_sentence(work: Path) -> None:
    flags = ["--batch_size=2", "--gradient_accumulation_steps=3"]
    output = processes(work, 2, *TINY_TRAIN, *BATCH, *flags, status=2)
    assert output.count("error: 2 processes cannot share 6 sequences") == 2 and "Traceback" not in output
    assert not (work / "out").exists()


def test_a_process_that_loses_another_says_so_in_one_sentence(work: Path) -> None:
    """One is refused its dataset, while the other waits for it."""
    left, refused = (
        Child([*TINY_TRAIN, *BATCH, f"--data_dir={data}"], work / f"{data}.log", work, **place)
        for data, place in zip(("data", "nowhere"), ranks(2), strict=True)
    )
    assert refused.wait(PATIENCE, otherwise=signal.SIGKILL) == 2 and "dataset 'tiny' is not prepared" in refused.output
    assert left.wait(PATIENCE, otherwise=signal.SIGKILL) == 1 and len(left.output.splitlines()) == 2
    assert left.output.startswith("error: another process of this run has ended")


@pytest.mark.slow
def test_the_command_that_resumes_several_processes_works(work: Path) -> None:
    """A stopped run suggests it: the first signal to one process stops all of them after the same iteration."""
    flags = [*TINY_TRAIN, *BATCH, "--max_iters=100000", "--eval_interval=100000", "--out_dir=two"]
    both = [Child(flags, work / f"{rank['RANK']}.log", work, **rank) for rank in ranks(2)]
    wait_for_lines(both[0], work / "two", 5)
    both[0].send(signal.SIGINT)
    statuses = [child.wait(PATIENCE, otherwise=signal.SIGKILL) for child in both]
    assert statuses in ([130, 130], [130, 143]), both[0].output + both[1].output  # the second is told by the first
    (suggested,) = re.findall(r"^next: torchrun (.*)", both[0].output, flags=re.MULTILINE)
    step = load(work / "two/last.pt").step
    command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(suggested), f"--max_iters={step + 2}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    resumed = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert resumed.returncode == 0 and "; 2 processes" in resumed.stdout, resumed.stderr
    assert load(work / "two/last.pt").step == step + 2


def test_a_sharded_run_learns_what_one_process_does(work: Path) -> None:
    ok(work, *TINY_TRAIN, *BATCH, "--out_dir=one")
    output = processes(work, 2, *SHARDED, "--out_dir=two", "--sample_interval=2", "--snapshots=2")
    assert "; 2 processes, sharded; checkpoints in two\n" in output
    assert_equal_runs(work / "two", work / "one")
    assert len(entries(work / "two", "sample")) == 3
    ok(work, "sample", "--ckpt=two/snapshots/step-4.pt", "--max_new_tokens=5")
    (work / "two/snapshot.pt").touch()  # doctor says what can be used if a file is damaged
    said = cli_here("doctor", "two", cwd=work).out
    assert "; torchrun --standalone --nproc_per_node=2 -m tinygpt train" in said


@pytest.mark.slow
def test_sharding_changes_no_loss_and_no_dropout_mask(work: Path) -> None:
    """Compared with the same number of processes of which each holds everything."""
    flags = ["--dropout=0.2", "--gradient_accumulation_steps=2", "--batch_size=6", "--checkpoint_activations=True"]
    flags += ["--optimizer=muon", "--tie_weights=False", "--bias=True"]
    processes(work, 2, *TINY_TRAIN, *BATCH, *flags, "--fast=False", "--out_dir=complete")
    processes(work, 2, *SHARDED, *flags, "--out_dir=sharded")
    assert_equal_runs(work / "sharded", work / "complete")


def test_activation_checkpointing_changes_nothing(work: Path) -> None:
    for out, flags in (("kept", ["--fast=False"]), ("again", ["--checkpoint_activations=True"])):
        ok(work, *TINY_TRAIN, "--max_iters=4", *flags, f"--out_dir={out}")
    assert numbers(work / "again") == numbers(work / "kept")


@pytest.mark.slow
def test_a_killed_run_is_resumed_by_other_numbers_of_processes(work: Path) -> None:
    """4 sharded processes are killed; then 2 others and one end the run as one process would."""
    flags = ["--max_iters=7", "--checkpoint_interval=2"]
    ok(work, *TINY_TRAIN, *BATCH, *flags, "--out_dir=one")
    for count, sharding, killed_at in ((4, "True", 3), (2, "True", 5), (1, "False", 0)):
        die = functools.partial(faults.on_iteration, killed_at, faults.die)
        killed = {"status": -signal.SIGKILL, "before": dict.fromkeys(range(count), die)} if killed_at else {}
        resume = ["train", "--init_from=resume"] if count < 4 else [*TINY_TRAIN, *BATCH, *flags]
        processes(work, count, *resume, f"--shard={sharding}", "--out_dir=run", **killed)
    assert_equal_runs(work / "run", work / "one")


def test_a_weight_that_is_not_finite_in_one_process_stops_all(work: Path) -> None:
    overflow = functools.partial(faults.diverge, "overflow", 2, 1, nothing)
    flags = ["--out_dir=two", "--checkpoint_interval=1", "--max_iters=9"]
    output = processes(work, 2, *SHARDED, *flags, status=1, before={1: overflow})
    assert output.count("error: iteration 3: a weight is NaN or infinite; training has stopped") == 2
    assert load(work / "two/last.pt").step == 2


def test_processes_that_do_not_start_together_are_refused(work: Path) -> None:
    """A node without the shared folder would start from scratch while the others resume."""
    ok(work, *TINY_TRAIN, *BATCH, "--out_dir=shared")
    auto = [*TINY_TRAIN, *BATCH, "--max_iters=6", "--init_from=auto"]
    children = [
        Child([*auto, f"--out_dir={out}"], work / f"{out}.log", work, **place)
        for out, place in zip(("shared", "own"), ranks(2), strict=True)
    ]
    for child in children:
        assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 2, child.output
        assert "the processes start at different iterations, or with different data" in child.output
        assert "--out_dir that they share" in child.output
    assert not (work / "own").exists() and load(work / "shared/last.pt").step == 4
