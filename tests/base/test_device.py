"""The choice of a device and a dtype, and what differs on a GPU, a Mac, and with glibc: both answers of each choice."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, ok, refused
from models import OPTIMIZERS, small
from torch.utils._python_dispatch import TorchDispatchMode

from tinygpt import train
from tinygpt.base import device
from tinygpt.base.configs.core import TrainConfig
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


@pytest.mark.parametrize(("optimizer", "taught"), [*((name, False) for name in OPTIMIZERS), ("adamw", True)])
def test_a_step_that_logs_nothing_does_not_synchronise(optimizer: str, taught: bool) -> None:
    """The plain path, which a GPU takes, with two micro-steps, dropout and clipping; also with a teacher."""
    config = TrainConfig(optimizer=optimizer, batch_size=2, gradient_accumulation_steps=2, block_size=16)  # type: ignore[arg-type]
    compute = device.Compute(torch.device("cpu"), torch.bfloat16, "")
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


def test_gradients_are_clipped_without_grad_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of MPS ignores it before torch 2.13."""
    model, config = small(), TrainConfig(learning_rate=0.1, grad_clip=1.0)
    optimizer = TorchOptimizer(model, config, CPU)
    kernel = mock.Mock(wraps=torch._fused_adamw_)
    monkeypatch.setattr(torch, "_fused_adamw_", kernel)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.clip() > 1
    clipped = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert clipped.item() == pytest.approx(1, abs=1e-3)
    optimizer.update()
    assert kernel.called and all(call.kwargs.get("grad_scale") is None for call in kernel.call_args_list)


def test_the_faster_of_two_devices_is_chosen_with_the_comparison() -> None:
    for cpu, mps, chosen, text in (
        (0.012, 0.031, CPU, "no bfloat16; faster here than MPS: 12.0 ms against 31.0 ms per batch"),
        (0.9, 0.0456, MPS, "the safe choice; faster here than CPU: 45.6 ms against 900.0 ms per batch"),
    ):
        found = device.choose_faster(CPU, MPS, {CPU: cpu, MPS: mps}.__getitem__)
        assert found == dataclasses.replace(chosen, reason=text)


def pretend_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be a Mac with MPS, which cannot compute here; two steps are timed, instead of a second of them."""
    monkeypatch.setattr(device.shortest, "__defaults__", (0.0,))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_mac_whose_gpu_fails_trains_on_the_cpu(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_mps(monkeypatch)
    found = re.compile(r"^device: .*cpu .*float32; MPS fails here \(", re.MULTILINE)
    for flag, timed in (("--max_iters=1", True), ("--eval_only=True", False), ("--init_from=resume", False)):
        said = ok(work, *TINY_TRAIN, "--device=auto", "--out_dir=new", flag).out
        assert bool(found.search(said)) == timed


def test_timing_changes_nothing_that_the_run_computes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for MPS. The weights are those of a run without timing, even with `shard` in a file."""
    (work / "shard.yaml").write_text("shard: true\n")
    ok(work, *TINY_TRAIN, "shard.yaml", "--out_dir=plain")
    pretend_mps(monkeypatch)
    monkeypatch.setattr(device, "choose", lambda name, *_: CPU if name == "auto" else STAND_IN)
    said = ok(work, *TINY_TRAIN, "shard.yaml", "--out_dir=timed", "--device=auto").out
    assert "; faster here than CPU: " in said
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
    ("gpu", "hip", "dtype"), [((7, 5), None, "float16"), ((8, 0), None, "bfloat16"), ((7, 0), "6.2", "bfloat16")]
)
def test_bfloat16_is_chosen_only_if_the_given_gpu_multiplies_it_in_hardware(
    gpu: tuple[int, int], hip: str | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = mock.Mock(return_value=gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # counts emulation
    monkeypatch.setattr(torch.cuda, "get_device_capability", asked)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert device.choose("cuda:1", "auto").dtype is getattr(torch, dtype)
    assert hip or asked.call_args.args == (torch.device("cuda:1"),)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run_copy: Path) -> None:
    message = refused(run_copy, *TINY_TRAIN, "--device=cuda")
    assert message == "error: --device=cuda: PyTorch sees no GPU here\n  try: --device=cpu\n"
