"""The processes of a run: under torchrun they share its work, and a signal to one of them stops all.

Under `torchrun --nproc_per_node=2 -m tinygpt train ...` each process works on its slice of the same global batch, and
PyTorch's DistributedDataParallel, or fully_shard (sharding.py), averages the gradients, so the number of processes does
not change the result.
"""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted


@dataclasses.dataclass(frozen=True)
class Processes:
    """Rank of this process and number of processes. Rank 0 prints and writes."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_this_node(self) -> int:
        """Return the number of processes on this node, as torchrun gives it."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.count))

    def share(self, config: TrainConfig) -> tuple[int, int]:
        """Share the global batch. Returns the forward passes per iteration in each process, its micro-steps, and the
        rows of each of them, at most batch_size. Errors: TinyGPTError if the processes cannot share it evenly."""
        micro_steps = math.ceil(config.gradient_accumulation_steps / self.count)
        rows = config.batch_size * config.gradient_accumulation_steps
        if rows % (self.count * micro_steps):
            raise TinyGPTError(
                f"{self.count} processes cannot share {counted(rows, 'sequence')} per iteration evenly "
                f"(batch_size {config.batch_size} x gradient_accumulation_steps {config.gradient_accumulation_steps})",
                f"make gradient_accumulation_steps a multiple of {self.count}",
            )
        return micro_steps, rows // (self.count * micro_steps)

    def sum(self, values: list[float], device: torch.device) -> list[float]:
        """Add each value over all processes; every process gets the sums."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def agree(self, value: object, device: torch.device) -> bool:
        """Return whether all processes give the same value."""
        digest = zlib.crc32(repr(value).encode())
        return self.sum([digest], device) == [digest * self.count]

    def wait(self) -> None:
        """Wait until every process has made this call."""
        if self.count > 1:
            dist.barrier()


def device_name(device: str) -> str:
    """Resolve `auto` and `cuda` under torchrun: each process gets its own GPU; without GPUs `auto` is the CPU."""
    if "LOCAL_RANK" not in os.environ or device not in ("auto", "cuda"):
        return device
    if torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return "cpu" if device == "auto" else device


def has_lost_another(error: BaseException) -> bool:
    """Return whether this process was waiting for another one when that ended, which gloo reports as a RuntimeError."""
    return isinstance(error, RuntimeError) and "gloo" in str(error) and "by peer" in str(error)


@contextlib.contextmanager
def join_processes(backend: str, device: torch.device) -> Iterator[Processes]:
    """Join the other processes that torchrun started, if it did. Errors: TinyGPTError for an unusable backend."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    if device.type == "mps":
        raise TinyGPTError("several processes cannot share a Mac's GPU", "--device=cpu, or a single process")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if backend == "auto" or (backend == "nccl" and device.type != "cuda"):
        backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        # After a restart torchrun may hand out the store of the dead processes, with their addresses still in it. A
        # store of the processes is new, and between nodes the number of restarts differs.
        store, rank, count = next(iter(dist.rendezvous("env://")))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    except (ValueError, RuntimeError) as error:
        raise TinyGPTError(f"--backend={backend}: {str(error).splitlines()[0]}", "--backend=gloo") from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class StopSignal:
    """Context in which the first SIGINT or SIGTERM is recorded, for the loop to stop; a second one ends the process, or
    raises KeyboardInterrupt in a process that is not tinygpt's own (`embedded`), such as a notebook's kernel."""

    def __init__(self, embedded: bool = False) -> None:
        self.embedded = embedded
        self.status = 0  # exit status: 130 after SIGINT, 143 after SIGTERM, 1 if the callback has stopped the run
        self.cause = "a signal"
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():  # which alone can handle signals
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self) -> None:
        """Stop the run for its callback, as the first SIGINT does."""
        if not self.status:
            self.status = 1
            self.cause = "the callback"

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.status and self.embedded:
            raise KeyboardInterrupt
        if self.status:
            os._exit(128 + number)
        self.status = 128 + number

    def requested(self, ranks: Processes, device: torch.device) -> bool:
        """Return whether any process was asked to stop, so that all save and stop at the same iteration."""
        statuses = ranks.sum([float(self.status)], device)
        if statuses[0] and not self.status:
            self.status = 128 + signal.SIGTERM if statuses[0] >= 128 else 1
        return bool(statuses[0])
