"""Choose the number of threads on a CPU that other programs use, too.

    threads.measure()                   # before torch is imported
    note = threads.set_threads("auto")  # afterwards

The threads of a matrix product busy-wait for each other. If another program takes one of their cores, all wait for the
thread that shares it: at a load of 2.8 on two cores, 150 iterations of nanogpt took 103 s with two threads and 9.5 s
with one. So no more threads compute than CPUs are idle, and a training run times its steps (`ThreadTuner`).
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from tinygpt.base.terminal import counted

# seconds over which the load is measured; importing torch takes one or two
SHORTEST = 0.2
LONGEST = 5.0
_start: tuple[float, float] | None = None  # seconds: now, and used by other programs
_cores = _free = 0  # numbers of threads: PyTorch's default, and the idle CPUs at the first `set_threads`


def measure() -> None:
    """Begin to measure the load of the machine."""
    global _start
    _start = _used_by_others()


def is_fixed(setting: str) -> bool:
    """Return whether tinygpt must not choose the number of threads: `setting` or OMP_NUM_THREADS is a number, or
    torchrun has started several processes."""
    by_user = re.match(r"\s*[1-9]", os.environ.get("OMP_NUM_THREADS", ""))  # libgomp ignores other values
    return setting != "auto" or bool(by_user) or os.environ.get("WORLD_SIZE", "1") != "1"


def set_threads(setting: str, kept: int = 0) -> str:
    """Set PyTorch's number of threads.

    setting: a number, "auto" or "". "auto": OMP_NUM_THREADS if it is set, else `kept`, the number of a run that is
    resumed, else the number of idle CPUs. "": as "auto" at the first call, later no change. Returns a note for the user
    if the machine is busy, else "".
    """
    import torch

    global _cores, _free
    first = not _cores
    busy = 0.0
    if first:
        _cores = _free = torch.get_num_threads()
    if setting.isdecimal():
        torch.set_num_threads(int(setting))
        return ""
    if is_fixed("auto") or not (first or setting):
        return ""
    if first and (busy := busy_cpus()):
        _free = min(_cores, max(1, int(_cpus() - busy + 0.5)))
    kept = kept if kept <= _cores else 0  # of a machine with more cores
    torch.set_num_threads(kept or _free)
    if not first or _free == _cores:
        return ""
    effect = f"tinygpt computes with {counted(kept or _free, 'thread')} (set OMP_NUM_THREADS to choose the number)"
    if kept > _free:
        faster = f"--threads={_free} may be faster, but changes the last bits"
        effect = f"this run keeps its {counted(kept, 'thread')}; {faster}"
    return f"note: other programs keep {busy:.1f} of {_cpus()} CPUs busy; {effect}"


def cores() -> int:
    """Return the number of threads that PyTorch chooses: OMP_NUM_THREADS, or one for each physical core."""
    import torch

    return _cores or torch.get_num_threads()


def free() -> int:
    """Return the number of threads for which there were idle CPUs at the start of this process."""
    return _free or cores()


def format_times(times: dict[int, float]) -> str:
    """Format seconds by number of threads: `27.1 ms with 1 thread, 21.3 ms with 2`."""
    counts = {n: counted(n, "thread") if n == 1 else n for n in times}
    return ", ".join(f"{1000 * seconds:.1f} ms with {counts[n]}" for n, seconds in times.items())


def busy_cpus() -> float:
    """Measure how many CPUs other programs have kept busy since `measure`; 0 where that is not known (not on Linux)."""
    if _start and time.perf_counter() - _start[0] > LONGEST:  # a lab has run for minutes
        measure()
        time.sleep(SHORTEST)
    end = _used_by_others()
    if _start is None or end is None or end[0] - _start[0] < SHORTEST:
        return 0.0
    return max(0.0, (end[1] - _start[1]) / (end[0] - _start[0]))


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _used_by_others() -> tuple[float, float] | None:
    """Return the current time, and how long this process's CPUs have worked for others, in seconds. Source: proc(5)."""
    try:
        used = cpu_seconds(Path("/proc/stat").read_text(encoding="ascii"), os.sched_getaffinity(0), nice=os.nice(0) > 0)
        return time.perf_counter(), used - sum(os.times()[:4])  # its own and its children's
    except (AttributeError, OSError, ValueError):
        return None


def cpu_seconds(stat: str, cpus: set[int], nice: bool) -> float:
    """Add the seconds that these CPUs have worked, from the text of /proc/stat; niced programs count only if `nice`."""
    ticks = 0
    for name, *fields in map(str.split, stat.splitlines()):
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cpus:
            user, niced, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + system + irq + softirq + steal + nice * niced
    return ticks / os.sysconf("SC_CLK_TCK")


class ThreadTuner:
    """Choose the number of threads with which the steps of a training run are fastest.

    tuner = ThreadTuner(step)
    tuner.tune(threads.free())                    # at the start of a run
    if tuner.due(tokens, seconds): tuner.tune()   # after an iteration
    """

    GAIN = 1.15  # another number must be faster by this factor, since a change alters the last bits of results
    LONG = 0.3  # seconds; longer steps are not timed, since they are large enough to be divided among all threads
    WINDOW = 2.0  # seconds over which the speed of a run is averaged
    SLOW = 1.5  # a run is tuned again if it is slower than its fastest window by this factor
    AGAIN = 10.0  # seconds between two tunings, at least; doubled after each tuning that changes nothing. After 6 times
    # as many seconds, a run with fewer threads than cores is tuned again even if it is not slow

    def __init__(self, step: Callable[[], object]) -> None:
        """step: a training step without side effects."""
        self.step = step
        self.wait = self.AGAIN / 2
        self.tuned_at = time.perf_counter()
        self.tokens = 0
        self.seconds = 0.0
        self.fastest = 0.0

    def tune(self, max_threads: int = 0) -> dict[int, float]:
        """Time steps with 1, 2, 4, ..., `max_threads` threads (0: one for each core), and set the best number.

        Returns the seconds of a step by number of threads; empty if steps are long.
        """
        import torch

        current = torch.get_num_threads()
        max_threads = max_threads or cores()
        times = dict[int, float]()
        self.tokens = 0
        self.seconds = 0.0
        self.fastest = 0.0
        self.tuned_at = time.perf_counter()
        self.wait *= 2
        for count in (1, 2):  # the second round confirms a change: the lesser of two times leaves out interruptions
            for threads in sorted({2**n for n in range(max_threads.bit_length())} | {max_threads, current}):
                too_long = 3 * min(times.values(), default=self.LONG)
                if times.get(threads, 0.0) > too_long:
                    continue
                torch.set_num_threads(threads)
                seconds = mean_seconds(self.step, 1)  # also allocates memory and makes kernels
                if seconds < too_long:
                    seconds = mean_seconds(self.step, count)
                times[threads] = min(seconds, times.get(threads, seconds))
                if times[min(times)] > self.LONG:
                    torch.set_num_threads(current)
                    return {}
            best = min(times, key=times.__getitem__)
            if times[current] <= self.GAIN * times[best]:
                torch.set_num_threads(current)
                return times
        torch.set_num_threads(best)
        self.wait = self.AGAIN
        return times

    def due(self, tokens: int, seconds: float) -> bool:
        """Count an iteration of `tokens` tokens and `seconds`. Return whether to tune again."""
        import torch

        self.tokens = self.tokens + tokens
        self.seconds = self.seconds + seconds
        if self.seconds < self.WINDOW:
            return False
        speed = self.tokens / self.seconds
        self.tokens = 0
        self.seconds = 0.0
        slow = speed * self.SLOW < self.fastest
        waited = time.perf_counter() - self.tuned_at
        self.fastest = max(self.fastest, speed)
        return waited > self.wait and (slow or (waited > 6 * self.wait and torch.get_num_threads() < cores()))


def mean_seconds(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count
