"""A training in a process of its own: the weights of the command, its cost, and how it continues."""

import os
from pathlib import Path

import pytest
import yaml
from conftest import TINY_TRAIN, commands_here
from models import same_weights

from tinygpt import api
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.process import peak_memory
from tinygpt.checkpoint.store import load
from tinygpt.training.child import Cost, cost_of
from tinygpt.training.log import read_metrics

OPTIONS = {key: yaml.safe_load(value) for key, value in (flag[2:].split("=") for flag in TINY_TRAIN[1:])}


def test_a_child_trains_as_the_command_does_and_its_cost_is_measured(
    tiny_run: Path, work: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused command leaves the memory of the run; a new run of the command removes it."""
    (work / "random.py").write_text("1 / 0")  # in the current folder: no module of the child
    monkeypatch.chdir(work)
    out = work / "out-1.5"
    cost = api.train(OPTIONS, out_dir=out, child=True).cost
    assert same_weights(out / "last.pt", tiny_run / "out/last.pt")
    seconds, size = read_metrics(out)[-1]["seconds"], os.stat(out / "ckpt.pt").st_size
    assert cost == Cost(seconds, cost.memory, size, load(out / "last.pt").num_params, base_losses={})
    assert 50e6 < cost.memory < 20e9 and cost.memory != peak_memory()
    assert capfd.readouterr().out == "" and (work / "out-1.5.log").exists()
    assert cost_of(out) == cost  # also later
    longer = api.train(OPTIONS, out_dir=out, max_iters=22, child=True).cost
    assert load(out / "last.pt").step == 22 and longer.seconds > seconds and longer.memory > 50e6
    with pytest.raises(TinyGPTError, match=r"failed with status 2; .* in .*out-1\.5\.log") as caught:
        api.train(OPTIONS | {"dataset": "none"}, out_dir=out, max_iters=30, child=True)
    assert caught.value.status == 2 and cost_of(out).memory == longer.memory


def test_the_cost_of_an_adapter_counts_what_was_trained(tuned: Path, tmp_path: Path) -> None:
    settings = {"lora_rank": 2, "max_iters": 2, "eval_interval": 2, "eval_iters": 1, "patience": 0, "device": "cpu"}
    settings |= {"ckpt": tuned / "out", "base_dataset": "tiny", "warmup_iters": 0}
    with commands_here():
        dataset = api.Dataset(str(tuned / "data"), "colours")
        cost = api.finetune(dataset=dataset, out_dir=tmp_path / "out", child=True, **settings).cost
    assert cost.bytes == os.stat(tmp_path / "out/adapter.pt").st_size
    adapted = {name: weight for name, weight in load(tmp_path / "out").model.items() if "lora" in name or "new" in name}
    assert cost.weights == sum(weight.numel() for weight in adapted.values()) and adapted
    assert cost.base_losses.keys() == {"before", "after"}
