"""A training in a process of its own: the weights of the command, its cost, and how it continues."""

import os
from pathlib import Path

import pytest
from conftest import TINY_TRAIN, commands_here, ok
from models import same_weights

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.process import peak_memory
from tinygpt.checkpoint.store import load
from tinygpt.training.child import Cost, cost_of, train_in_child
from tinygpt.training.log import read_metrics

OPTIONS = dict(flag[2:].split("=") for flag in TINY_TRAIN[1:] if not flag.startswith("--dataset"))


def test_a_child_trains_as_the_command_does_and_its_cost_is_measured(
    tiny_run: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = work / "out-1.5"
    cost = train_in_child("train", "", out, work / "data/tiny", **OPTIONS)
    assert same_weights(out / "last.pt", tiny_run / "out/last.pt")
    seconds, size = read_metrics(out)[-1]["seconds"], os.stat(out / "ckpt.pt").st_size
    assert cost == Cost(seconds, cost.memory, size, load(out / "last.pt").num_params, base_losses={})
    assert 50e6 < cost.memory < 20e9 and cost.memory != peak_memory()
    assert capfd.readouterr().out == "" and (work / "out-1.5.log").exists()
    assert cost_of(out) == cost  # also later
    assert cost_of(tiny_run / "out").memory == 0  # it had no process of its own


def test_a_child_continues_a_run_and_one_that_is_refused_leaves_its_memory(
    tiny_run: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake has the status of the command; a new run of the command removes the memory."""
    (run_copy / "random.py").write_text("1 / 0")  # in the current folder: no module of the child
    monkeypatch.chdir(run_copy)
    out, data = run_copy / "out", run_copy / "data/tiny"
    longer = train_in_child("train", "", out, data, max_iters=22)
    assert (
        load(out / "last.pt").step == 22 and longer.seconds > cost_of(tiny_run / "out").seconds and longer.memory > 50e6
    )
    with pytest.raises(TinyGPTError, match=r"failed with status 2; .* in .*out\.log") as caught:
        train_in_child("train", "", out, data, n_layr=1)
    assert caught.value.status == 2 and cost_of(out).memory == longer.memory
    ok(run_copy, *TINY_TRAIN, "--max_iters=1")
    assert cost_of(out).memory == 0


def test_the_cost_of_an_adapter_counts_what_was_trained(tuned: Path, tmp_path: Path) -> None:
    settings = {"lora_rank": 2, "max_iters": 2, "eval_interval": 2, "eval_iters": 1, "patience": 0, "device": "cpu"}
    settings |= {"ckpt": tuned / "out", "base_dataset": "tiny", "warmup_iters": 0}
    with commands_here():
        cost = train_in_child("finetune", "", tmp_path / "out", tuned / "data/colours", **settings)
    assert cost.bytes == os.stat(tmp_path / "out/adapter.pt").st_size
    adapted = {name: weight for name, weight in load(tmp_path / "out").model.items() if "lora" in name or "new" in name}
    assert cost.weights == sum(weight.numel() for weight in adapted.values()) and adapted
    assert cost.base_losses.keys() == {"before", "after"}
