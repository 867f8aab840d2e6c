"""Two processes, forked or under torchrun: they learn what one process learns."""

import contextlib
import re
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from children import Child, ranks, wait_for_lines
from conftest import PATIENCE, TINY_TRAIN, needs_fork, ok
from runs import BATCH, assert_equal_runs, numbers, torchrun, two_processes

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.files import folder_lock
from tinygpt.checkpoint.store import load
from tinygpt.training.processes import Processes
from tinygpt.training.run import Run


@needs_fork
@pytest.mark.parametrize("flags", [[], ["--teacher=out"]], ids=["alone", "with a teacher"])
def test_two_processes_learn_what_one_does(run_copy: Path, flags: list[str]) -> None:
    """Same batches, so the same losses up to the order of additions, in training and in evaluation; written once."""
    ok(run_copy, *TINY_TRAIN, *BATCH, *flags, "--out_dir=one")
    first, second = two_processes(run_copy, *TINY_TRAIN, *BATCH, *flags, "--out_dir=two")
    assert first.status == second.status == 0, first.output + second.output
    assert first.output.count("done in") == 1 and "; 2 processes" in first.output and not second.output
    assert_equal_runs(run_copy / "two", run_copy / "one")
    for (kind, step, expected), (*_, found) in zip(numbers(run_copy / "one"), numbers(run_copy / "two"), strict=True):
        if step == 0:
            assert found == pytest.approx(expected, abs=1e-5), kind


@pytest.mark.parametrize(("count", "shares"), [(1, (8, 4)), (2, (4, 4)), (16, (1, 2))])
def test_processes_share_the_global_batch(count: int, shares: tuple[int, int]) -> None:
    """Micro-steps of each process, and the rows of each of them: with more processes than micro-steps, fewer rows."""
    config = TrainConfig(batch_size=4, gradient_accumulation_steps=8)
    assert Processes(0, count).share(config) == shares


@needs_fork
def test_an_uneven_split_is_refused_in_one_sentence(work: Path) -> None:
    for child in two_processes(work, *TINY_TRAIN, *BATCH, "--batch_size=2", "--gradient_accumulation_steps=3"):
        assert child.status == 2 and "Traceback" not in child.output, child.output
        assert "2 processes cannot share 6 sequences" in child.output and "a multiple of 2" in child.output
    assert not (work / "out").exists()


@needs_fork
@pytest.mark.parametrize("failure", ["the folder is in use", "no dataset"])
def test_a_process_that_loses_another_says_so_in_one_sentence(work: Path, failure: str) -> None:
    """One is refused its folder, or its dataset, while the other waits for it."""
    no_data = failure == "no dataset"
    folders = ["data", "nowhere" if no_data else "data"]
    lock = contextlib.nullcontext() if no_data else folder_lock(work / "two", "run")
    with lock:
        both = [
            Child([*TINY_TRAIN, *BATCH, "--out_dir=two", f"--data_dir={data}"], work / f"{rank}.log", work, **place)
            for rank, (data, place) in enumerate(zip(folders, ranks(2), strict=True))
        ]
        for child in both:
            child.wait(PATIENCE, otherwise=signal.SIGKILL)
    left, refused = both if no_data else both[::-1]
    reason = "dataset 'tiny' is not prepared (nowhere/tiny/meta.json" if no_data else "two is in use by process"
    assert refused.status == 2 and f"error: {reason}" in refused.output
    assert left.status == 1 and left.output.startswith("error: another process of this run has ended")
    assert len(left.output.splitlines()) == 2


@pytest.mark.slow
@needs_fork
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
    resumed = torchrun(work, f"--max_iters={step + 2}", launch=shlex.split(suggested))
    assert resumed.returncode == 0 and "; 2 processes" in resumed.stdout, resumed.stderr
    assert load(work / "two/last.pt").step == step + 2


def test_the_command_that_resumes_a_run_of_two_nodes_is_for_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(config=SimpleNamespace(), out="out", ranks=Processes(0, 16))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert vars(Run)["resume_command"].fget(run).startswith("torchrun --standalone --nproc_per_node=8 -m tinygpt train")
