"""The number of threads: as many as cores are free, the fastest for a run, and what the user asks for."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY_TRAIN, cli, ok, refused

from tinygpt import threads
from tinygpt.checkpoint.store import load

CORES = os.cpu_count() or 1
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the load is known on Linux only")
with_two = pytest.mark.skipif(CORES < 2, reason="needs two cores")


@pytest.fixture
def count() -> Iterator[Callable[[int], None]]:
    """Sets PyTorch's number of threads, and restores it after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@contextlib.contextmanager
def busy(*prefix: str) -> Iterator[None]:
    """As many busy processes as cores."""
    others = [subprocess.Popen([*prefix, sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


# ---- the load of the machine --------------------------------------------------------------------------------------


def free(folder: Path, *args: str) -> tuple[str, str]:
    """Run a command for which the user has not chosen a number of threads; returns its output and its notes."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-m", "tinygpt", *args], cwd=folder, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(), done.stderr.decode()


@on_linux
@with_two
def test_beside_busy_processes_one_thread_computes(work: Path) -> None:
    with busy():
        out, notes = free(work, *TINY_TRAIN)
        assert "cpu (1 thread)" in out
        assert f"of {CORES} cores busy, so tinygpt computes with 1 thread; --threads={CORES} would use" in notes
        assert load(work / "out/last.pt").training["threads"] == 1
        out, notes = free(work, *TINY_TRAIN, "--threads=2", "--out_dir=out-two")
        assert "cpu (2 threads)" in out and not notes
        assert "cpu (1 thread)" in cli(*TINY_TRAIN, "--out_dir=out-one", cwd=work, OMP_NUM_THREADS="1").out
        assert "1 thread" in free(work, "sample", "--max_new_tokens=1")[1]


@on_linux
def test_the_load_is_that_of_other_processes() -> None:
    """Programs with a lower priority, which give way, do not count, and this process does not."""
    spin = "import time; from tinygpt import threads; threads.measure(); end = time.time() + {}"
    code = f"{spin}\nwhile time.time() < end: pass\nprint(threads.busy_cores())"

    def measured(seconds: float) -> float:
        done = subprocess.run([sys.executable, "-c", code.format(seconds)], capture_output=True, check=True)
        return float(done.stdout)

    assert measured(0.1) == 0  # too short to know
    before = measured(1)
    with busy("nice", "-n", "19"):
        assert measured(1) < before + 0.8 * CORES  # other tests come and go
    with busy():
        assert measured(1) > 0.4 * CORES


# ---- the fastest number -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "seconds", "chosen", "timed"),
    [
        (2, {1: 0.03, 2: 0.015}, 2, [1, 2]),
        (2, {1: 0.01, 2: 0.03}, 1, [1, 2]),
        (2, {1: 0.1, 2: 0.105}, 2, [1, 2]),  # a little faster is not enough: the bits of a result would change
        (1, {1: 0.1, 2: 0.095}, 1, [1, 2]),
        (1, {1: 0.03, 2: 0.01}, 2, [1, 2]),
        (6, {1: 0.04, 2: 0.02, 4: 0.01, 6: 0.02}, 4, [1, 2, 4, 6]),
        (8, {1: 0.01, 2: 0.03}, 1, [1, 2]),  # more threads are not timed once they are much slower
        (2, {1: 0.4}, 2, []),  # long steps are not timed
        (2, {1: 0.01, 2: 0.4}, 1, [1]),
    ],
)
def test_the_fastest_number_of_threads(
    present: int, seconds: dict[int, float], chosen: int, timed: list[int], count: Callable[[int], None]
) -> None:
    count(present)
    times = threads.Timed().choose(lambda: time.sleep(seconds[torch.get_num_threads()]), present if present > 2 else 2)
    assert torch.get_num_threads() == chosen and list(times) == timed


def test_a_run_that_becomes_slow_is_timed_again(count: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    timed = threads.Timed()
    monkeypatch.setattr(threads, "_cores", 2)
    count(2)
    assert not timed.due(100) and not timed.due(50)  # it has just been timed
    timed.chosen_at -= timed.PAUSE + 1
    assert not timed.due(70) and timed.due(60)  # 100 / 1.5 is 66.7
    timed.chosen_at -= timed.AGAIN
    assert not timed.due(70)  # all cores compute already
    count(1)
    assert timed.due(70)  # the other programs may have ended


def test_a_step_that_was_timed_has_no_effect(work: Path) -> None:
    """A run whose steps were timed ends with the same weights as one with that number of threads."""
    free_run = "--dropout=0.1", "--dtype=float32"
    free(work, *TINY_TRAIN, *free_run)
    chosen = load(work / "out/last.pt")
    fixed = ok(work, *TINY_TRAIN, *free_run, f"--threads={chosen.training['threads']}", "--out_dir=out-fixed")
    assert "threads: " not in fixed.out
    again = load(work / "out-fixed/last.pt")
    assert all(torch.equal(weight, again.model[name]) for name, weight in chosen.model.items())


# ---- what the user asks for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "1000", ""])
def test_bad_numbers(value: str, work: Path) -> None:
    assert "must be auto or a number from 1 to 999" in refused(work, *TINY_TRAIN, f"--threads={value}")
    assert "must be auto or a number from 1 to 999" in refused(work, "sample", f"--threads={value}")


def test_a_resumed_run_keeps_its_number(run_copy: Path, count: Callable[[int], None]) -> None:
    ok(run_copy, *TINY_TRAIN, "--threads=2", "--out_dir=out-two")
    assert load(run_copy / "out-two/last.pt").training["threads"] == 2
    count(1)
    more = ["train", "--init_from=resume", "--out_dir=out-two"]
    assert "cpu (2 threads)" in ok(run_copy, *more, "--max_iters=25").out
    said = ok(run_copy, *more, "--max_iters=30", "--threads=1").out
    assert "note: this run used 2 threads until now and continues with 1;" in said
    assert load(run_copy / "out-two/last.pt").training["threads"] == 1
