"""Device and precision: each choice with its reason, which is shown at the start of a run.

compute = choose("auto", "auto")
print(compute.describe())          # cpu (2 threads), bfloat16: this processor multiplies it in hardware
"""

import ctypes
import dataclasses
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinygpt.base import terminal, threads
from tinygpt.base.errors import TinyGPTError


@dataclasses.dataclass(frozen=True)
class Compute:
    """The device, the dtype of the matrix products, and the reason for both."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def describe(self) -> str:
        name = str(self.device)
        if self.device.type == "cpu":
            name += f" ({terminal.counted(torch.get_num_threads(), 'thread')})"
        elif self.device.type == "cuda":
            name += f" ({torch.cuda.get_device_name(self.device)})"
        return f"{name}, {str(self.dtype).removeprefix('torch.')}: {self.reason}"


def choose(device: str, dtype: str, count: str = "", kept: int = 0) -> Compute:
    """Resolve `auto`: the first CUDA device, else the CPU. count, kept: see threads.set_threads. Errors: TinyGPTError
    for a device that this machine does not have."""
    target = _device(device)
    if target.type == "cpu" and (note := threads.set_threads(count, kept)):
        terminal.print_error(note)
    if dtype != "auto":
        return Compute(target, getattr(torch, dtype), "as asked")
    if target.type == "cuda":
        if has_bfloat16(target):
            return Compute(target, torch.bfloat16, "this GPU multiplies it in hardware")
        return Compute(target, torch.float16, "this GPU has no bfloat16; gradients are scaled")
    if target.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return Compute(target, torch.bfloat16, "this processor multiplies it in hardware")
        return Compute(target, torch.float32, "this processor has no bfloat16 instructions")
    return Compute(target, torch.float32, f"the safe choice on {target.type}")


LARGE = 20_000_000  # parameters


def choose_for_inference(device: str, dtype: str, parameters: int = 0, count: str = "") -> Compute:
    """Resolve `auto` as `choose` does, but to float32 for a model of up to LARGE parameters, which fits the processor's
    caches. A token of a larger model takes the time of reading all weights, and bfloat16 halves their bytes."""
    return choose(device, "float32" if dtype == "auto" and parameters <= LARGE else dtype, count)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise TinyGPTError(f"--device={device}: no such device", "auto, cpu, cuda, cuda:N or mps")
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            raise TinyGPTError(f"--device={device}: PyTorch sees {count or 'no'} GPU here", "--device=cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise TinyGPTError("--device=mps: this is not a Mac with Metal", "--device=cpu")
    return torch.device(device)


def choose_faster(cpu: Compute, other: Compute, seconds: Callable[[Compute], float]) -> Compute:
    """Return the one of two for which `seconds` returns less, with the comparison added to its reason. If the other one
    fails, for example because PyTorch lacks an operator for it, return the CPU, with the failure as the reason."""
    try:
        other_seconds = seconds(other)
    except Exception as error:  # missing operators, dtypes and memory raise many types
        reason = f"{other.device.type.upper()} fails here ({first_line(error)})"
        return dataclasses.replace(cpu, reason=f"{cpu.reason}; {reason}")
    cpu_seconds = seconds(cpu)
    best, worst = (cpu, other) if cpu_seconds <= other_seconds else (other, cpu)
    shorter, longer = sorted((cpu_seconds, other_seconds))
    comparison = f"{1000 * shorter:.1f} ms against {1000 * longer:.1f} ms per batch"
    reason = f"faster here than {worst.device.type.upper()}: {comparison}"
    return dataclasses.replace(best, reason=f"{best.reason}; {reason}")


def shortest(call: Callable[[], object], seconds: float = 1.0) -> float:
    """Return the shortest time in seconds of a few calls: at least two, since the first one compiles kernels."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def has_bfloat16(gpu: torch.device) -> bool:
    """Return whether the GPU multiplies bfloat16 in hardware: all of AMD's, and NVIDIA's from Ampere on."""
    # torch.cuda.is_bf16_supported is also true on a T4 or V100, where PyTorch emulates bfloat16 slowly
    return bool(torch.version.hip) or torch.cuda.get_device_capability(gpu) >= (8, 0)


def to_host(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to a float64 array. It is converted on the CPU, because MPS does not support float64."""
    return tensor.detach().cpu().double().numpy()  # type: ignore[no-any-return]


def to_device(block: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a batch to its device; to a CUDA device asynchronously, from pinned memory."""
    if device.type == "cuda":
        return block.pin_memory().to(device, non_blocking=True)
    return block.to(device)


class Autocast(nn.Module):
    """Run a model under torch.autocast: matrix products in compute.dtype, other operations as PyTorch decides."""

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.model = model
        self.compute = compute

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, targets_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        dtype = self.compute.dtype
        with torch.autocast(self.compute.device.type, dtype, enabled=dtype is not torch.float32):
            return self.model(idx, targets, targets_only=targets_only)


def compile_model(model: torch.nn.Module, setting: str, compute: Compute, example: torch.Tensor) -> tuple[Any, str]:
    """Compile the model if it is wanted, after a trial on rows (B, T). Return the callable, and "on" or the error."""
    if setting == "False" or (setting == "auto" and compute.device.type != "cuda"):
        return model, ""
    try:
        compiled = torch.compile(model)
        compiled(example, example)[1].backward()
        model.zero_grad(set_to_none=True)
        return compiled, "on"
    except Exception as error:  # a missing compiler raises many types, and none of them may stop a run
        model.zero_grad(set_to_none=True)
        torch.compiler.reset()
        return model, f"off: torch.compile failed here ({first_line(error)})"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 100 characters; the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()[:100]


# from malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory(keep: bool = True) -> None:
    """Ask glibc to keep the blocks that a training step frees, for the next step; without `keep`, to give those of a
    megabyte or more back at once: fragments add half to the memory of a sharded run. Other allocators are not changed.

    By default it gives large ones back to the kernel, and every step takes thousands of page faults to get the same
    memory again: a fifth of the time of nanoGPT's step (experiments.md).

    The mmap threshold is set first, because setting either threshold ends glibc's dynamic adjustment of both: with the
    trim threshold alone, every block of 128 KB or more would come from mmap. Older versions reject one above 32 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and not keep:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
    elif mallopt and (mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20)):
        mallopt(M_TRIM_THRESHOLD, 1 << 30)  # free memory to keep at the top of the heap


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch or Python means that memory has run out."""
    on_cpu = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return on_cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))
