"""How many threads compute on a CPU that other programs use, too.

    threads.measure()                   # before torch is imported
    note = threads.settle("auto")       # afterwards: sets the number of threads

The threads of a matrix product wait for each other, and they wait actively. If another program takes one of their
cores, all wait for the thread that shares it: beside two busy programs, 150 iterations of the recipe took 103 s with
two threads and 9 s with one. So no more threads compute than cores are free, and a training run times its steps with
several numbers of threads, at its start and when it becomes slow (`Timed`).
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

SHORTEST = 0.2  # seconds over which the load is measured at least; importing torch takes longer
_start: tuple[float, float] | None = None  # seconds: now, and used by other programs
_cores = 0  # number of threads before `settle`


def measure() -> None:
    """Begin to measure the load of the machine."""
    global _start
    _start = _used_by_others()


def is_fixed(asked: str) -> bool:
    """Return whether the user has chosen the number of threads: `asked` is a number, or OMP_NUM_THREADS is set."""
    return asked != "auto" or "OMP_NUM_THREADS" in os.environ


def settle(asked: str) -> str:
    """Set the number of threads: `asked`; for "auto" OMP_NUM_THREADS, or at the first call as many as cores are free.

    Returns a note for the user if the machine is busy, else "".
    """
    import torch

    global _cores
    first, _cores = not _cores, _cores or torch.get_num_threads()
    if asked != "auto":
        torch.set_num_threads(int(asked))
    elif first and not is_fixed(asked) and (free := max(1, round(_cores - (busy := busy_cores())))) < _cores:
        torch.set_num_threads(free)
        computes = f"other programs keep {busy:.1f} of {_cores} cores busy, so tinygpt computes with {counted(free)}"
        return f"note: {computes}; --threads={_cores} would use all cores"
    return ""


def cores() -> int:
    """Number of threads that PyTorch would use: one for each physical core."""
    import torch

    return _cores or torch.get_num_threads()


def counted(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def busy_cores() -> float:
    """Number of cores that other programs have kept busy since `measure`; 0 where that is not known (not on Linux)."""
    end = _used_by_others()
    if _start is None or end is None or end[0] - _start[0] < SHORTEST:
        return 0.0
    return max(0.0, (end[1] - _start[1]) / (end[0] - _start[0]))


def _used_by_others() -> tuple[float, float] | None:
    """Seconds now, and seconds for which this process's cores have worked for others, except for programs that give way
    (nice). Source: proc(5), /proc/stat."""
    try:
        cores, ticks = os.sched_getaffinity(0), 0
        for name, *fields in map(str.split, Path("/proc/stat").read_text().splitlines()):
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
                user, _nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                ticks += user + system + irq + softirq + steal
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])  # without its children
    except (AttributeError, OSError, ValueError):
        return None


class Timed:
    """The number of threads of a training run: the one with which its steps are fastest.

    threads = Timed()
    threads.choose(step)                          # at the start of a run
    if threads.due(speed): threads.choose(step)   # while it trains
    """

    GAIN = 1.15  # by which another number must be faster than the present one: it changes the last bits of results
    LONG = 0.3  # seconds; a longer step is large enough to be divided among all threads
    SLOW = 1.5  # a run that is slower than it was by this factor is timed again ...
    PAUSE = 10.0  # ... if the number was chosen at least as many seconds ago
    AGAIN = 60.0  # seconds after which a run with fewer threads than cores is timed again

    def __init__(self) -> None:
        self.fastest, self.chosen_at = 0.0, time.perf_counter()

    def choose(self, step: Callable[[], object], most: int = 0) -> dict[int, float]:
        """Time `step`, a training step without effects, with 1, 2, 4, ..., `most` threads, and set the best number.

        most: 0 for all cores. Returns the mean seconds of a step by number of threads; empty if they are long.
        """
        import torch

        now, most, times = torch.get_num_threads(), most or cores(), dict[int, float]()
        for threads in sorted({2**n for n in range(most.bit_length())} | {most}):
            torch.set_num_threads(threads)
            if mean_seconds(step, 1) > self.LONG:  # the first step also allocates memory and makes kernels
                break
            times[threads] = mean_seconds(step, 2)
            if times[threads] > self.SLOW * min(times.values()):
                break
        best = min(times, key=times.__getitem__, default=now)
        stays = now in times and times[now] <= self.GAIN * times[best]
        torch.set_num_threads(now if stays else best)
        self.fastest, self.chosen_at = 0.0, time.perf_counter()
        return times

    def due(self, speed: float) -> bool:
        """Return whether to choose again; speed: tokens per second since the last call."""
        import torch

        self.fastest, since = max(self.fastest, speed), time.perf_counter() - self.chosen_at
        slow = speed * self.SLOW < self.fastest and since > self.PAUSE
        return slow or (since > self.AGAIN and torch.get_num_threads() < cores())


def mean_seconds(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count
