"""Distillation: loss and gradient by hand, resumed runs, two processes, fine-tuning, and what is refused."""

import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_TRAIN, ok
from models import every_path, ids, same_weights, shaken, small
from runs import FLAGS, column
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.configs.parse import parse
from tinygpt.base.device import Autocast, Compute
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.examine.report.one_step import one_step
from tinygpt.fast.model import FastGPT
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.model import GPT
from tinygpt.training.distillation import Teacher
from tinygpt.training.start import resolve

TAUGHT = ["--teacher=out/ckpt.pt", "--out_dir=student", "--seed=8"]


def divergence(teacher: Tensor, student: Tensor) -> float:
    p, q = teacher.detach().double().softmax(-1), student.detach().double().softmax(-1)
    return (p * (p / q).log()).sum(-1).mean().item()


@pytest.mark.parametrize("ignored", [0, 5], ids=["text", "pairs"])
@every_path
def test_the_loss_by_hand(kind: type[GPT], ignored: int) -> None:
    """The fast path returns the logits of positions with a target only. The teacher gets no gradient. The gradient of
    the logits is (share (q - p) + (1 - share) (q - one-hot target)) / N."""
    compute, fast = Compute(torch.device("cpu"), torch.float32, ""), kind is FastGPT
    student, taught_by = (shaken(small(seed, kind)) for seed in (0, 1))
    idx, targets = ids(3, 16), ids(3, 16, seed=1)
    targets[:, :ignored] = -1
    keep = targets >= 0
    model: Any = FlatWeights(student, torch.float32) if fast else Autocast(student, compute)
    logits, loss = model(idx, targets)
    assert logits.dim() == (2 if fast and ignored else 3)
    logits.retain_grad()
    mixed = Teacher(taught_by, 0.3, 65, "").loss(loss, logits, idx, targets)
    mixed.backward()
    assert all(weight.grad is None for weight in taught_by.parameters())
    own, gradient = (part if part.dim() == 2 else part[keep] for part in (logits.detach(), logits.grad))
    theirs = shaken(small(1))(idx)[0][keep].detach()  # the same weights, on the plain path
    assert mixed.item() == pytest.approx(0.7 * loss.item() + 0.3 * divergence(theirs, own), abs=1e-5)
    q, p, one = own.softmax(-1), theirs.softmax(-1), torch.nn.functional.one_hot(targets[keep], 65)
    torch.testing.assert_close(gradient, (0.3 * (q - p) + 0.7 * (q - one)) / len(q), atol=1e-6, rtol=1e-4)


def test_a_teacher_with_more_rows_than_the_vocabulary() -> None:
    """Rows that pad a vocabulary to a multiple of 64 have no meaning, and two models may differ in their number."""
    student, teacher = shaken(small(0)), shaken(small(1, vocab_size=80))
    idx, targets = torch.randint(60, (2, 16)), torch.randint(60, (2, 16))
    logits, loss = student(idx, targets)
    found = Teacher(teacher, 0.999, 60, "").loss(loss, logits, idx, targets)
    expected = divergence(teacher(idx)[0][..., :60], logits[..., :60])
    assert found.item() == pytest.approx(0.999 * expected + 0.001 * loss.item(), abs=1e-5)


def test_a_share_of_0_changes_nothing_and_half_changes_the_weights(run_copy: Path) -> None:
    """The logged loss is the cross-entropy: at the first iteration, that of the run without a teacher."""
    said = ok(run_copy, *TINY_TRAIN, *TAUGHT, "--teacher_share=0", "--seed=7").out
    assert "; 0% of the loss from the teacher out/ckpt.pt\n" in said
    assert same_weights(run_copy / "out/last.pt", run_copy / "student/last.pt")
    ok(run_copy, *TINY_TRAIN, *TAUGHT, "--seed=7")
    assert not same_weights(run_copy / "out/last.pt", run_copy / "student/last.pt")
    assert column(run_copy / "student", "train", "loss")[0] == column(run_copy / "out", "train", "loss")[0]
    with contextlib.chdir(run_copy):
        assert one_step(LoadedRun("out", ReportConfig())) and not one_step(LoadedRun("student", ReportConfig()))


def test_resuming_is_exact_and_another_teacher_is_noted(run_copy: Path) -> None:
    """A relative path counts from where the run was started."""
    ok(run_copy, *TINY_TRAIN, *TAUGHT, "--out_dir=whole")
    ok(run_copy, *TINY_TRAIN, *TAUGHT, "--max_iters=13")
    shutil.copytree(run_copy / "student", run_copy / "changed")
    resume = ["train", "--init_from=resume", "--max_iters=20"]
    assert "fingerprint" not in ok(run_copy / "data", *resume, "--out_dir=../student").out
    assert same_weights(run_copy / "whole/last.pt", run_copy / "student/last.pt")
    (run_copy / "out/ckpt.pt").write_bytes((run_copy / "changed/last.pt").read_bytes())
    assert "the teacher's fingerprint of this run was " in ok(run_copy, *resume, "--out_dir=changed").out
    assert not same_weights(run_copy / "whole/last.pt", run_copy / "changed/last.pt")
    (run_copy / "out/ckpt.pt").unlink()
    said = ok(run_copy, "train", "--init_from=resume", "--out_dir=student", "--eval_only").out
    assert "fingerprint" not in said
    ok(run_copy, "sample", "--ckpt=student", "--max_new_tokens=5")


def test_fine_tuning_with_a_teacher(tuned: Path, tmp_path: Path) -> None:
    """A fine-tuned model teaches an adapter on the same base, on pairs."""
    work = Path(shutil.copytree(tuned, tmp_path / "work"))
    for flags in (["--out_dir=student", "--teacher=out-finetune"], ["--out_dir=alone"]):
        ok(work, "finetune", *FLAGS, "--lora_rank=2", *flags)
    assert not same_weights(work / "student/last.pt", work / "alone/last.pt")


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", "bfloat16"), ("float16", "float32")])
def test_a_teacher_in_low_precision(run_copy: Path, dtype: str, kept: str) -> None:
    """Weights outside the range of float16 would be infinite."""
    with contextlib.chdir(run_copy), contextlib.ExitStack() as stack:
        teacher = Teacher.of(resolve(stack, parse(TrainConfig, [*TINY_TRAIN[1:], *TAUGHT, f"--dtype={dtype}"])))
    assert teacher and {weight.dtype for weight in teacher.model.parameters()} == {getattr(torch, kept)}
    ok(run_copy, *TINY_TRAIN, *TAUGHT, f"--dtype={dtype}", "--max_iters=3")
    losses = column(run_copy / "student", "train", "loss")
    assert losses and all(map(math.isfinite, losses))
