"""The number of threads: as many as cores are free, the fastest for a run, and what the user asks for."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import TINY_TRAIN, ok
from models import same_weights

from tinygpt.base import threads
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.store import load
from tinygpt.training.start import choose_compute, load_run_to_resume

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the load is known on Linux only")


@pytest.fixture
def count() -> Iterator[Callable[[int], None]]:
    """Sets PyTorch's number of threads, and restores it after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- the load of the machine --------------------------------------------------------------------------------------


STAT = """cpu  700 70 300 9000 50 8 4 20 3 1
cpu0 100 10 100 4000 20 2 1 10 1 0
cpu1 600 60 200 5000 30 6 3 10 2 1
cpu12 9 9 9 9 9 9 9 9 9 9
intr 5 0
"""


@on_linux
def test_the_load_is_that_of_proc_stat() -> None:
    """By hand: user, system, irq, softirq and steal of the CPUs of this process, without idle, iowait and nice."""
    second = os.sysconf("SC_CLK_TCK")
    assert threads.cpu_seconds(STAT, {0}, nice=False) * second == pytest.approx(100 + 100 + 2 + 1 + 10)
    assert threads.cpu_seconds(STAT, {0, 1}, nice=False) * second == pytest.approx(213 + 600 + 200 + 6 + 3 + 10)
    assert threads.cpu_seconds(STAT, {1}, nice=True) * second == pytest.approx(819 + 60)


def test_a_run_that_may_choose_times_its_steps_without_effect(
    run_copy: Path, count: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the same weights as one whose number of threads is given."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "_cores", 2)
    monkeypatch.setattr(threads, "_free", 2)
    count(1)
    tune = threads.ThreadTuner.tune
    with mock.patch.object(threads.ThreadTuner, "tune", autospec=True, side_effect=tune) as timed:
        ok(run_copy, *TINY_TRAIN, "--out_dir=chosen")
        assert timed.call_count == 1
        number = load(run_copy / "chosen/last.pt").training["threads"]
        ok(run_copy, *TINY_TRAIN, f"--threads={number}", "--out_dir=fixed")
        assert timed.call_count == 1
    assert same_weights(run_copy / "chosen/last.pt", run_copy / "fixed/last.pt")


@on_linux
def test_the_time_of_this_process_is_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds in which this process worked for 1 and its children for 2, and other programs for 4.5."""
    moments = iter([(10.0, 100.0, (5.0, 1.0, 2.0, 0.0, 0.0)), (13.0, 107.5, (6.0, 1.0, 3.0, 1.0, 0.0))])
    now = next(moments)
    monkeypatch.setattr(threads, "cpu_seconds", lambda *args, **kwargs: now[1])
    monkeypatch.setattr(threads.os, "times", lambda: now[2])
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    threads.measure()
    now = next(moments)
    assert threads.busy_cpus() == pytest.approx(1.5)


# ---- the fastest number -------------------------------------------------------------------------------------------


class Machine:
    """A clock, and a step that takes as long as the number of threads says."""

    def __init__(self, seconds: dict[int, list[float]]) -> None:
        self.seconds, self.now, self.steps = seconds, 0.0, 0
        self.coming = {count: itertools.cycle(times) for count, times in seconds.items()}

    def perf_counter(self) -> float:
        return self.now

    def step(self) -> None:
        self.steps += 1
        self.now += next(self.coming[torch.get_num_threads()])


@pytest.fixture
def machine(request: pytest.FixtureRequest, count: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """With two threads, and two cores."""
    made = Machine(getattr(request, "param", {1: [0.1], 2: [0.1]}))
    monkeypatch.setattr(threads, "time", made)
    monkeypatch.setattr(threads, "_cores", 2)
    count(2)
    return made


@pytest.mark.parametrize(
    ("present", "most", "machine", "chosen", "steps"),
    [
        (2, 2, {1: [0.020], 2: [0.022]}, 2, 4),  # a little faster is not enough: the bits of a result would change
        (1, 2, {1: [0.025], 2: [0.01]}, 2, 10),
        (2, 1, {1: [0.01], 2: [0.02]}, 1, 10),  # the present number is timed, too
        (6, 6, {1: [0.04], 2: [0.02], 4: [0.01], 6: [0.02]}, 4, 17),  # one thread is not timed twice
        (2, 2, {1: [0.02], 2: [0.01, 0.05] + [0.01] * 9}, 2, 10),  # an interruption in the first round
        (2, 2, {1: [5.0]}, 2, 1),  # long steps are not timed further
    ],
    indirect=["machine"],
)
def test_the_fastest_number_of_threads(
    present: int, most: int, machine: Machine, chosen: int, steps: int, count: Callable[[int], None]
) -> None:
    count(present)
    times = threads.ThreadTuner(machine.step).tune(most)
    assert torch.get_num_threads() == chosen and machine.steps == steps
    assert times == {n: pytest.approx(min(each)) for n, each in machine.seconds.items()} or not times


def test_a_run_that_becomes_slow_is_tuned_again(machine: Machine, count: Callable[[int], None]) -> None:
    tuner = threads.ThreadTuner(machine.step)
    tuner.tune(2)

    def tuned(speed: float, seconds: int) -> list[int]:
        """Train at this speed for a time. Returns the seconds at which the run is to be tuned."""
        began, found = machine.now, []
        for _ in range(10 * seconds):
            machine.now += 0.1
            if tuner.due(round(speed / 10), 0.1):
                found.append(round(machine.now - began))
        return found

    assert not tuned(1000, 60) and not tuned(700, 60)  # 1000 / 1.5 is 667
    assert tuned(600, 10)[0] <= 4
    tuner.tune()  # nothing is faster: the next time after 20 s at least
    assert not tuned(600, 300)  # this is its speed now


def test_one_slow_iteration_is_no_reason(machine: Machine) -> None:
    tuner = threads.ThreadTuner(machine.step)
    for index in range(2_000):
        seconds = 0.5 if index % 50 == 20 else 0.013  # a row of each batch is long, and an iteration was interrupted
        machine.now += seconds
        assert not tuner.due(200 + index % 7 * 100, seconds)


# ---- what the user asks for ---------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_number(
    run_copy: Path, count: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not in several processes, which share the cores."""
    ok(run_copy, *TINY_TRAIN, "--threads=2", "--out_dir=out-two")
    assert load(run_copy / "out-two/last.pt").training["threads"] == 2
    for processes, flags, used in (("2", [], 1), ("2", ["--threads=2"], 2), ("1", [], 2)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        count(1)
        config = parse(TrainConfig, ["--init_from=resume", f"--out_dir={run_copy / 'out-two'}", *flags])
        choose_compute(config, load_run_to_resume(config).training)
        assert torch.get_num_threads() == used
    count(1)
    more = ["train", "--init_from=resume", "--out_dir=out-two"]
    assert "cpu (2 threads)" in ok(run_copy, *more, "--max_iters=25").out
    said = ok(run_copy, *more, "--max_iters=30", "--threads=1").out
    assert "note: the number of threads of this run was 2 until now and is 1 from here on;" in said
    assert load(run_copy / "out-two/last.pt").training["threads"] == 1


def test_what_fixes_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value, fixed in (
        ("OMP_NUM_THREADS", "2", True),
        ("OMP_NUM_THREADS", "", False),  # libgomp ignores these
        ("OMP_NUM_THREADS", "0", False),
        ("WORLD_SIZE", "2", True),  # processes of torchrun share the cores
    ):
        monkeypatch.setattr(os, "environ", {variable: value})
        assert threads.is_fixed("auto") == fixed and threads.is_fixed("3"), (variable, value)


def test_a_number_that_is_kept_beside_busy_processes(
    count: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(threads, "busy_cpus", lambda: 2.9)
    monkeypatch.setattr(threads, "_cpus", lambda: 4)
    for kept, used, says in (
        (0, 1, "tinygpt computes with 1 thread (set"),
        (3, 3, "this run keeps its 3 threads; --threads=1 may be faster"),
        (8, 1, "tinygpt computes with 1 thread (set"),  # of a machine with more cores
    ):
        monkeypatch.setattr(threads, "_cores", 0)
        count(4)
        note = threads.set_threads("auto", kept)
        assert torch.get_num_threads() == used and f"keep 2.9 of 4 CPUs busy; {says}" in note
