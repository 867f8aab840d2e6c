"""Distillation: the loss by hand, one step by torch, resumed and shared runs, fine-tuning, and what is refused."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, cli_here, needs_fork, ok, refused
from models import shaken, small
from test_distributed import BATCH, numbers, two_processes
from test_finetune import FLAGS, tuned  # noqa: F401 (a fixture)
from test_train import column, same_weights

from tinygpt.checkpoint.store import load
from tinygpt.device import Autocast, Compute
from tinygpt.fast.model import FastGPT
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.training.distillation import Teacher

TAUGHT = ["--teacher=out/ckpt.pt", "--out_dir=student", "--seed=8"]


def by_hand(teacher: np.ndarray, student: np.ndarray, targets: np.ndarray, share: float) -> float:
    """The loss in numpy, float64, token by token: logits (N, V), targets (N,)."""
    total = 0.0
    for row, own, target in zip(teacher.astype(float), student.astype(float), targets, strict=True):
        p, q = (np.exp(x) / np.exp(x).sum() for x in (row, own))
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += (1 - share) * -math.log(q[target]) + share * divergence
    return total / len(targets)


@pytest.mark.parametrize("ignored", [0, 5], ids=["text", "pairs"])
@pytest.mark.parametrize("fast", [False, True])
def test_the_loss_by_hand(fast: bool, ignored: int) -> None:
    """On both paths; the fast one returns the logits of positions with a target only. The teacher stays as it is."""
    compute = Compute(torch.device("cpu"), torch.float32, "")
    kind = FastGPT if fast else small(0).__class__
    student, taught_by = (shaken(small(seed, kind)) for seed in (0, 1))
    reference = shaken(small(1))  # the teacher's weights, on the plain path
    before = {name: weight.clone() for name, weight in taught_by.named_parameters()}
    idx, targets = torch.randint(65, (3, 16)), torch.randint(65, (3, 16))
    targets[:, :ignored] = -1
    keep = targets >= 0
    model: Any = FlatWeights(student, torch.float32) if fast else Autocast(student, compute)
    logits, loss = model(idx, targets)
    assert logits.dim() == (2 if fast and ignored else 3)
    mixed = Teacher(taught_by, 0.3, 65, "").distilled(loss, logits, idx, targets)
    chosen = logits if logits.dim() == 2 else logits[keep]
    expected = by_hand(reference(idx)[0][keep].detach().numpy(), chosen.detach().numpy(), targets[keep].numpy(), 0.3)
    assert mixed.item() == pytest.approx(expected, abs=1e-5)
    mixed.backward()
    assert all(torch.equal(weight, before[name]) for name, weight in taught_by.named_parameters())
    # the gradient of the logits is (share (q - p) + (1 - share) (q - one-hot target)) / N
    logits, loss = model(idx, targets)
    logits.retain_grad()
    Teacher(taught_by, 0.3, 65, "").distilled(loss, logits, idx, targets).backward()
    q = logits.detach().softmax(-1) if logits.dim() == 2 else logits.detach()[keep].softmax(-1)
    p, one = reference(idx)[0][keep].detach().softmax(-1), torch.nn.functional.one_hot(targets[keep], 65)
    wanted = (0.3 * (q - p) + 0.7 * (q - one)) / len(q)
    found = logits.grad if logits.dim() == 2 else logits.grad[keep]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_a_teacher_with_more_rows_than_the_vocabulary() -> None:
    """Rows that pad a vocabulary to a multiple of 64 have no meaning, and two models may differ in their number."""
    student, teacher = shaken(small(0)), shaken(small(1, vocab_size=80))
    idx, targets = torch.randint(60, (2, 16)), torch.randint(60, (2, 16))
    logits, loss = student(idx, targets)
    found = Teacher(teacher, 0.999, 60, "").distilled(loss, logits, idx, targets)
    own, theirs = (x[..., :60].flatten(0, 1).detach().numpy() for x in (logits, teacher(idx)[0]))
    divergence = by_hand(theirs, own, targets.flatten().numpy(), 1.0)
    assert found.item() == pytest.approx(0.999 * divergence + 0.001 * loss.item(), abs=1e-5)


def test_a_share_of_0_changes_nothing_and_half_changes_the_weights(run_copy: Path) -> None:
    said = ok(run_copy, *TINY_TRAIN, *TAUGHT, "--teacher_share=0", "--seed=7").out
    assert f"teacher:     out/ckpt.pt: {load(run_copy / 'out').build_model().num_params():,} parameters, 0% of" in said
    assert same_weights(run_copy / "out/last.pt", run_copy / "student/last.pt")
    ok(run_copy, *TINY_TRAIN, *TAUGHT, "--seed=7")
    assert not same_weights(run_copy / "out/last.pt", run_copy / "student/last.pt")
    # the logged loss is the cross-entropy: at the first iteration, that of the run without a teacher
    assert column(run_copy / "student", "train", "loss")[0] == column(run_copy / "out", "train", "loss")[0]


def test_a_student_of_the_teacher_alone_agrees_with_it(run_copy: Path) -> None:
    """The text of the run is noise here, in which the teacher has learned nothing to be found: its probabilities are
    learned all the same. Negative control: the run without a teacher."""
    flags = ["--max_iters=150", "--lr_decay_iters=150", "--eval_interval=150", "--dropout=0", "--learning_rate=3e-2"]
    ok(run_copy, *TINY_TRAIN, *flags, *TAUGHT, "--teacher_share=1")
    ok(run_copy, *TINY_TRAIN, *flags, "--out_dir=alone", "--seed=8")
    paths = [run_copy / "out/ckpt.pt", run_copy / "student/last.pt", run_copy / "alone/last.pt"]
    teacher, student, alone = (load(path).build_model().eval() for path in paths)
    idx = torch.randint(teacher.config.vocab_size, (8, 16))
    p, q, r = (model(idx)[0].detach().log_softmax(-1) for model in (teacher, student, alone))
    to_student, to_alone = ((p.exp() * (p - x)).sum(-1).mean().item() for x in (q, r))
    assert to_student < to_alone / 2


@pytest.mark.parametrize("changed", [False, True])
def test_resuming_is_exact_and_another_teacher_is_noted(run_copy: Path, changed: bool) -> None:
    ok(run_copy, *TINY_TRAIN, *TAUGHT, "--out_dir=whole")
    ok(run_copy, *TINY_TRAIN, *TAUGHT, "--max_iters=13")
    if changed:
        (run_copy / "out/ckpt.pt").write_bytes((run_copy / "student/last.pt").read_bytes())
    said = ok(run_copy, "train", "--init_from=resume", "--out_dir=student", "--max_iters=20").out
    assert ("the teacher of this run was " in said) == changed
    assert same_weights(run_copy / "whole/last.pt", run_copy / "student/last.pt") != changed


@needs_fork
def test_two_processes_learn_what_one_does(run_copy: Path) -> None:
    for name in ("one", "two"):
        flags = [*TINY_TRAIN, *BATCH, "--teacher=out", f"--out_dir={name}"]
        if name == "one":
            ok(run_copy, *flags)
        else:
            assert [child.status for child in two_processes(run_copy, *flags)] == [0, 0]
    for (*_, expected), (*_, found) in zip(numbers(run_copy / "one"), numbers(run_copy / "two"), strict=True):
        assert found == pytest.approx(expected, abs=1e-3)


def test_fine_tuning_with_a_teacher(tuned: Path, tmp_path: Path) -> None:  # noqa: F811
    """A fine-tuned model teaches an adapter on the same base, on pairs; a model without the task's tokens cannot."""
    work = Path(shutil.copytree(tuned, tmp_path / "work"))
    args = ["finetune", *FLAGS, "--lora_rank=2", "--out_dir=student"]
    assert "another vocabulary" in refused(work, *args, "--teacher=out")
    ok(work, *args, "--teacher=out-finetune")
    ok(work, *args, "--out_dir=alone")
    assert not same_weights(work / "student/last.pt", work / "alone/last.pt")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--teacher=gone.pt"], "teacher: gone.pt: no such file"),
        (["--teacher=text.txt"], "text.txt: not a checkpoint"),
        (["--teacher=out/ckpt.pt", "--out_dir=out"], "out contains the teacher, which would be overwritten"),
        (["--teacher=out", "--block_size=32"], "reads 16 tokens, but the rows of this run have 32"),
        (["--teacher=out", "--teacher_share=1.5"], "teacher_share is 1.5"),
    ],
)
def test_mistakes_get_one_sentence(run_copy: Path, flags: list[str], says: str) -> None:
    said = refused(run_copy, *TINY_TRAIN, "--out_dir=student", *flags)
    assert says in said and "try: " in said


def test_commands_that_cannot_have_a_teacher(run_copy: Path) -> None:
    ok(run_copy, *TINY_TRAIN, *TAUGHT)
    assert "also learned from a teacher" in refused(run_copy, "why", "student", "--text=a")
    assert "teacher cannot be used with" in refused(run_copy, "plan", *TINY_TRAIN[1:], *TAUGHT, "--processes=2")
    (run_copy / "mine.yaml").write_text("teacher: out/ckpt.pt\n")
    (run_copy / "long.txt").write_text("All the world's a stage. " * 10_000)
    assert "learns from a trained model" in refused(run_copy, "race", "mine.yaml", "--text=long.txt")
    (run_copy / "out/ckpt.pt").unlink()
    assert cli_here("sample", "--ckpt=student", "--max_new_tokens=5", cwd=run_copy).status == 0  # needs no teacher
