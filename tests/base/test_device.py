"""The choice of a device and a dtype, and what differs on a GPU, a Mac, and with glibc: both answers of each choice."""

import dataclasses
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, cli_here, refused
from models import OPTIMIZERS, small
from torch.utils._python_dispatch import TorchDispatchMode

from tinygpt import train
from tinygpt.base import device
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import load
from tinygpt.data.rows import TextRows
from tinygpt.training import processes as distributed
from tinygpt.training.distillation import Teacher
from tinygpt.training.optimizer import TorchOptimizer, build
from tinygpt.training.start import choose_compute, faster_on_a_mac

CPU = device.Compute(torch.device("cpu"), torch.float32, "no bfloat16")
MPS = device.Compute(torch.device("mps"), torch.float32, "the safe choice")
STAND_IN = dataclasses.replace(CPU, reason="instead of MPS")


class ReadsNothing(TorchDispatchMode):
    """Count how often a value is read from a tensor: on a GPU each read waits for all work to finish."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("optimizer", "taught"), [*((name, False) for name in OPTIMIZERS), ("adamw", True)])
def test_a_step_that_logs_nothing_does_not_synchronise(optimizer: str, taught: bool, dtype: torch.dtype) -> None:
    """The plain path, which a GPU takes, with two micro-steps, dropout and clipping; also with a teacher."""
    config = TrainConfig(optimizer=optimizer, batch_size=2, gradient_accumulation_steps=2, block_size=16)  # type: ignore[arg-type]
    compute = device.Compute(torch.device("cpu"), dtype, "")
    computing, made = build(small(dropout=0.1).train(), config, compute)
    run: Any = SimpleNamespace(config=config, compute=compute, ddp_model=computing, optimizer=made, has_dropout=True)
    run.teacher = Teacher(small(seed=1), 0.5, 65, "") if taught else None
    run.progress, run.ranks = SimpleNamespace(step=0), distributed.Processes()
    run.source, run.row_length = TextRows(np.arange(60, dtype=np.uint16)), lambda at: 16
    run.rows_per_iter, run.micro_steps = 4, 2
    with ReadsNothing() as counter:
        for step in range(3):
            run.progress.step = step
            made.set_learning_rate(1e-3)
            loss, norm = train.forward_backward(run, *train.batch(run, step))
            made.update()
        assert counter.reads == 0
        train.require_finite_loss(run, loss, norm)  # negative control: this is what a step that logs does
        assert counter.reads == 2


def test_gradient_clipping_works_where_fused_adamw_ignores_grad_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """On MPS before torch 2.13. The plain path, which a Mac's GPU takes, clips the gradients themselves.

    Compared with torch's own AdamW on a clipped gradient. The kernel that ignores `grad_scale` is simulated.
    """
    config = TrainConfig(learning_rate=0.1, grad_clip=1.0)
    model, theirs = small(), small()
    optimizer = TorchOptimizer(model, config, device.Compute(torch.device("cpu"), torch.float32, ""))
    kernel = torch._fused_adamw_

    def mps_kernel(*args: object, grad_scale: torch.Tensor | None = None, **options: object) -> None:
        kernel(*args, grad_scale=None, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "_fused_adamw_", mps_kernel)
    groups = [{"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1}]
    groups += [{"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), fused=False, foreach=False)
    # The moments show only in the second step: Adam's first step does not depend on the scale.
    for scale in (70.0, 7.0):
        for seed, (ours, other) in enumerate(zip(model.parameters(), theirs.parameters(), strict=True)):
            other.grad = scale * torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
            ours.grad = other.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
        assert optimizer.clip() > 1
        optimizer.update()
    for ours, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_several_processes_on_a_macs_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(TinyGPTError, match="several processes"),
        distributed.join_processes("auto", torch.device("mps")),
    ):
        pass


def test_the_faster_of_two_devices_is_chosen_with_the_comparison() -> None:
    for cpu, mps, chosen, text in (
        (0.012, 0.031, CPU, "no bfloat16; faster here than MPS: 12.0 ms against 31.0 ms per batch"),
        (0.9, 0.0456, MPS, "the safe choice; faster here than CPU: 45.6 ms against 900.0 ms per batch"),
    ):
        found = device.choose_faster(CPU, MPS, {CPU: cpu, MPS: mps}.__getitem__)
        assert found == dataclasses.replace(chosen, reason=text)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotImplementedError("The operator 'aten::x' is not\n implemented"), "(The operator 'aten::x' is not)"),
        (TypeError("no float64"), "(no float64)"),
        (MemoryError(), "(MemoryError)"),
    ],
)
def test_a_device_that_cannot_compute_a_step_leaves_the_cpu(error: Exception, text: str) -> None:
    def seconds(candidate: device.Compute) -> float:
        if candidate is MPS:
            raise error
        return 1.0

    assert device.choose_faster(CPU, MPS, seconds).describe().endswith(f"no bfloat16; MPS fails here {text}")
    with pytest.raises(type(error)):  # an error of the CPU itself is not hidden
        device.choose_faster(MPS, CPU, seconds)


def test_a_slow_step_is_timed_twice_and_the_first_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 6.0, 7.0])  # the beginning and the end of two calls
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    assert device.shortest(lambda: None, seconds=0.0) == 1.0


def pretend_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be a Mac with MPS, which cannot compute here; two steps are timed, instead of a second of them."""
    monkeypatch.setattr(device.shortest, "__defaults__", (0.0,))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_mac_whose_gpu_fails_trains_on_the_cpu(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_mps(monkeypatch)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="mps")
    found = r"^device: .*cpu .*float32; MPS fails here \("
    for flag, timed in (("--max_iters=1", True), ("--eval_only=True", False), ("--init_from=resume", False)):
        result = cli_here(*TINY_TRAIN, "--device=auto", "--out_dir=new", flag, cwd=work)
        assert result.status == 0 and bool(re.search(found, result.out, re.MULTILINE)) == timed


@pytest.mark.parametrize(
    "optimizer", [pytest.param(name, marks=[pytest.mark.slow] * (name != "adamw")) for name in OPTIMIZERS]
)
def test_timing_changes_nothing_that_the_run_computes(
    optimizer: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands in for MPS. The weights are those of a run without timing, even with `shard` in a file."""
    (work / "shard.yaml").write_text("shard: true\n")
    flags = [*TINY_TRAIN, "shard.yaml", f"--optimizer={optimizer}"]
    assert cli_here(*flags, "--out_dir=plain", cwd=work).status == 0
    pretend_mps(monkeypatch)
    monkeypatch.setattr(device, "choose", lambda name, *_: CPU if name == "auto" else STAND_IN)
    result = cli_here(*flags, "--out_dir=timed", "--device=auto", cwd=work)
    assert result.status == 0 and "; faster here than CPU: " in result.out, result
    plain, timed = (load(work / out / "last.pt").model for out in ("plain", "timed"))
    assert all(torch.equal(weight, timed[name]) for name, weight in plain.items())


def test_who_does_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run keeps its device; a named device is used; processes agree; inference uses the CPU."""
    pretend_mps(monkeypatch)
    monkeypatch.setattr(device, "choose_faster", None)
    for saved, kept in (("cpu", "cpu"), ("mps", "mps"), ("cuda", "cpu"), (None, "cpu")):
        assert choose_compute(TrainConfig(), {"device": saved, "path": "plain"}).device.type == kept
    dataset: Any = None
    for name in ("cpu", "mps"):
        compute = choose_compute(TrainConfig(device=name), {})
        assert faster_on_a_mac(TrainConfig(device=name), dataset, compute).device.type == name
    assert device.choose_for_inference("auto", "auto").device.type == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert faster_on_a_mac(TrainConfig(), dataset, choose_compute(TrainConfig(), {})).device.type == "cpu"
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(TypeError):  # negative control: a new run on one process measures
        faster_on_a_mac(TrainConfig(), dataset, choose_compute(TrainConfig(), {}))


@pytest.mark.parametrize(
    ("capability", "hip", "dtype"),
    [((7, 5), None, torch.float16), ((7, 0), None, torch.float16), ((8, 0), None, torch.bfloat16),
     ((9, 0), None, torch.bfloat16), ((9, 0), "6.2", torch.bfloat16)],
    ids=["T4", "V100", "A100", "H100", "AMD"],
)  # fmt: skip
def test_bfloat16_is_chosen_only_if_the_given_gpu_multiplies_it_in_hardware(
    capability: tuple[int, int], hip: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def of(gpu: torch.device) -> tuple[int, int]:
        asked.append(gpu)
        return capability

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # counts emulation
    monkeypatch.setattr(torch.cuda, "get_device_capability", of)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert device.choose("cuda:1", "auto").dtype is dtype
    assert hip or asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(1 << 40, {-3: 1 << 30, -1: 1 << 30}), (32 << 20, {-3: 32 << 20, -1: 1 << 30}), (0, {})],
    ids=["new", "thresholds up to 32 MB", "refuses every threshold"],
)
def test_the_trim_threshold_is_set_only_with_the_mmap_threshold(
    largest: int, expected: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it would fix the mmap threshold at 128 KB, and each step would be slower than with neither of them set."""
    taken: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == -3 and value > largest:
            return 0
        taken[parameter] = value
        return 1

    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(sys, "platform", "linux")
    device.keep_freed_memory()
    assert taken == expected and list(taken) == list(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run_copy: Path) -> None:
    message = refused(run_copy, *TINY_TRAIN, "--device=cuda")
    assert message == "error: --device=cuda: PyTorch sees no GPU here\n  try: --device=cpu\n"
