"""Two real processes under torchrun: they learn what one process learns."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_TRAIN, cli_here

from tinygpt.checkpoint.store import load
from tinygpt.training.log import read_metrics

BATCH = ["--batch_size=12", "--gradient_accumulation_steps=1", "--dropout=0", "--max_iters=4", "--eval_interval=2"]


def torchrun(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tinygpt", *args]
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture
def work(tiny_data: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to(tiny_data / "data")
    return tmp_path


def numbers(run: Path) -> list[tuple[str, int, list[float]]]:
    names = {"train": ("loss", "grad_norm", "lr"), "eval": ("train_loss", "val_loss")}
    return [(line["kind"], line["step"], [line[name] for name in names[line["kind"]]]) for line in read_metrics(run)]


def test_two_processes_learn_what_one_does(work: Path) -> None:
    """Same batches, so the same losses up to the order of additions, in training and in evaluation; written once."""
    assert cli_here(*TINY_TRAIN, *BATCH, "--out_dir=one", cwd=work).status == 0
    result = torchrun(work, *TINY_TRAIN, *BATCH, "--out_dir=two")
    assert result.returncode == 0, result.stderr
    one, two = numbers(work / "one"), numbers(work / "two")
    assert [line[:2] for line in two] == [line[:2] for line in one] and len(one) == 4 + 3
    for (_, _, expected), (kind, step, found) in zip(one, two, strict=True):
        assert found == pytest.approx(expected, abs=1e-5 if (kind, step) in {("train", 0), ("eval", 0)} else 1e-3)
    assert result.stdout.count("done in") == 1 and "; 2 processes" in result.stdout
    ours, theirs = load(work / "two/last.pt"), load(work / "one/last.pt")
    for name, weight in theirs.model.items():
        torch.testing.assert_close(ours.model[name], weight, atol=1e-3, rtol=0)


def test_an_uneven_split_is_refused_in_one_sentence(work: Path) -> None:
    result = torchrun(work, *TINY_TRAIN, *BATCH, "--batch_size=5")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "error:" in line and "processes" in line]
    assert said and "2 processes cannot share 5 sequences per iteration evenly" in said[0]
    assert "multiple of 2" in result.stderr and "tinygpt/train.py" not in result.stderr
    assert not (work / "out").exists()


def test_the_command_that_resumes_several_processes_works(work: Path) -> None:
    """A stopped run suggests it: the first signal to one process stops all of them after the same iteration."""
    flags = [*TINY_TRAIN, *BATCH, "--max_iters=100000", "--eval_interval=100000", "--out_dir=two"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tinygpt", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    with subprocess.Popen(
        [sys.executable, *command], cwd=work, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        metrics = work / "two/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and b'"train"' in metrics.read_bytes()):
            time.sleep(0.02)
        os.kill(int((work / "two/.lock").read_text()), signal.SIGINT)
        said = process.communicate(timeout=120)[0]
    (suggested,) = re.findall(r"^next: torchrun (.*)", said, flags=re.MULTILINE)
    step = load(work / "two/last.pt").step
    resumed = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *shlex.split(suggested), f"--max_iters={step + 2}"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert resumed.returncode == 0 and "; 2 processes" in resumed.stdout, resumed.stderr
    assert load(work / "two/last.pt").step == step + 2
