"""Checkpoints: loading restores what was saved, and refuses everything else."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ok, refused
from models import every_option, nanogpts_file

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.checkpoint.store import Checkpoint, load, save
from tinygpt.data.dataset import Dataset
from tinygpt.fast.model import FastGPT
from tinygpt.model import GPT
from tinygpt.options import GPTConfig
from tinygpt.training.log import read_metrics
from tinygpt.training.start import make_model, resolve

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHAPE = {"block_size": 8, "vocab_size": 5, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.0, "bias": True}


def example(**options: Any) -> Checkpoint:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | options))
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.tensor([[0, 1, 2, 3]])
    model(x, x)[1].backward()
    optimizer.step()
    return Checkpoint(
        model=model.state_dict(),
        model_args=dataclasses.asdict(model.config),
        config={"dataset": "tiny", "learning_rate": 1e-3, "config": ["a.yaml"]},
        step=17,
        best_val_loss=1.25,
        tokenizer={"kind": "char", "symbols": ["\n", "a", "é", "字", "𝄞"]},
        data={"train.bin": "0" * 64},
        training={"optimizer": optimizer.state_dict(), "progress": {"step": 17, "seconds": 0.5}},
    )


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    with torch.inference_mode():
        return checkpoint.build_model().eval()(torch.tensor([[0, 1, 2, 3, 4]]))[0]


def refusal(path: Path) -> TinyGPTError:
    with pytest.raises(TinyGPTError) as caught:
        load(path)
    assert caught.value.status == 2 and str(path) in caught.value.message and caught.value.hint
    return caught.value


@every_option
def test_everything_comes_back_and_a_run_can_start_from_it(
    tmp_path: Path, tiny_data: Path, options: dict[str, Any]
) -> None:
    """With the options of the checkpoint, whatever the run's defaults are; test_train.py has those that it refuses."""
    tokenizer = Dataset(str(tiny_data / "data"), "tiny").tokenizer
    made = example(**options, vocab_size=tokenizer.vocab_size)
    saved = dataclasses.replace(made, best_val_loss=math.inf, tokenizer=tokenizer.to_dict())
    save(tmp_path / "ckpt.pt", saved)
    assert os.listdir(tmp_path) == ["ckpt.pt"]  # no temporary file stays
    loaded = load(tmp_path / "ckpt.pt")
    for name, weight in saved.model.items():
        assert torch.equal(loaded.model[name], weight) and loaded.model[name].dtype == weight.dtype, name
    plain = {"model": 0, "training": 0}
    assert vars(loaded) | plain == vars(saved) | plain
    torch.testing.assert_close(loaded.training, saved.training, rtol=0, atol=0)
    args = [f"--init_from={tmp_path}/ckpt.pt", f"--out_dir={tmp_path}/new", f"--data_dir={tiny_data}/data"]
    args += ["--dataset=tiny", "--block_size=8", "--fast=False", "--device=cpu"]
    with contextlib.ExitStack() as stack:
        model = make_model(resolve(stack, parse(TrainConfig, args)))
    assert dataclasses.asdict(model.config) == saved.model_args
    assert torch.equal(model.eval()(torch.tensor([[0, 1, 2, 3, 4]]))[0], logits(saved))


def test_a_save_replaces_and_a_failed_save_does_not(tmp_path: Path) -> None:
    """The file is an ordinary one of torch.save; a folder stands for its best checkpoint."""
    path = tmp_path / "ckpt.pt"
    save(path, example())
    save(path, dataclasses.replace(example(), step=18))
    good = path.read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError)):  # a lambda cannot be saved
        save(path, dataclasses.replace(example(), config={"broken": lambda: 0}))
    assert path.read_bytes() == good and os.listdir(tmp_path) == ["ckpt.pt"]
    save(tmp_path / "last.pt", dataclasses.replace(example(), step=99))
    assert load(tmp_path).step == load(str(tmp_path)).step == 18
    plain = torch.load(path, weights_only=True)
    assert plain["tinygpt_format"] == 1 and plain["model"].keys() == example().model.keys()


def test_runs_of_earlier_versions(tmp_path: Path) -> None:
    """format1.pt is the last state of a run of 300 iterations with Muon, made by version 0.2: the model gives the same
    logits, the run can go on, and its configuration is one of today. Version 0.1 had the moments as slices of flat
    weights: of its runs the weights can be used."""
    (tmp_path / "text.txt").write_text("ab aab b\naab ab b\nb b ab\n" * 40)
    ok(tmp_path, "prepare", "tiny", "--input=text.txt")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out/last.pt"
    shutil.copy(FIXTURES / "format1.pt", path)
    expected, loaded = json.loads((FIXTURES / "format1.json").read_text()), load(path)
    with torch.inference_mode():
        found = loaded.build_model().eval()(torch.tensor([expected["ids"]]))[0][0]
    torch.testing.assert_close(found, torch.tensor(expected["logits"]), atol=1e-4, rtol=0)
    assert (loaded.step, loaded.best_val_loss) == (expected["step"], pytest.approx(expected["best_val_loss"]))
    assert loaded.tokenizer == expected["tokenizer"]
    ok(tmp_path, "train", "--init_from=resume", "--max_iters=310")
    assert load(path).step == 310
    assert read_metrics(tmp_path / "out")[-1]["val_loss"] < expected["best_val_loss"] + 0.2
    settings = {name: value for name, value in loaded.config.items() if name != "config"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    ok(tmp_path, "train", "config.yaml", "--out_dir=again", "--max_iters=1")
    slices = [torch.zeros(3), torch.zeros(2)]
    state = {"moments": {"exp_avg": slices, "exp_avg_sq": slices, "steps": [torch.ones(())]}, "scaler": {}}
    save(path, dataclasses.replace(loaded, training=loaded.training | {"optimizer": state}))
    message = refused(tmp_path, "train", "--init_from=resume")
    assert "no optimizer state to resume from" in message
    flags = message.partition("try: ")[2].split()
    assert flags == ["--init_from=out/last.pt", "--out_dir=out-new"]
    ok(tmp_path, "train", "--dataset=tiny", "--device=cpu", "--batch_size=2", "--max_iters=1", *flags)


DEFAULTS: dict[str, Any] = {  # a new option joins them; a default never changes, since files leave it out
    **{"block_size": 1024, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.0},
    **{"bias": False, "norm": "layernorm", "position": "learned", "activation": "gelu", "qk_norm": False},
    **{"tie_weights": True, "zero_init": False, "bigram_table": False, "token_shift": False, "n_kv_head": 0},
    **{"mlp_width": 0, "rope_base": 10000.0, "norm_eps": 1e-5, "qk_norm_weights": False, "window": 0},
}


def test_the_defaults_of_options_never_change() -> None:
    assert vars(GPTConfig()) == DEFAULTS


def test_damage_at_either_end_is_noticed(tmp_path: Path) -> None:
    """test_reliability.py damages all other places."""
    path = tmp_path / "ckpt.pt"
    save(path, example())
    data = path.read_bytes()
    for place in (*range(0, 20, 4), *range(len(data) - 100, len(data), 3)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refusal(path)
        path.write_bytes(data[:place])
        refusal(path)
    path.write_bytes(data + b"\0")
    refusal(path)


def test_a_good_neighbour_is_named_and_a_bad_one_is_not(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", example())
    good = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(good[:3000])
    (tmp_path / "aaa.pt").write_bytes(good)  # of another run
    assert refusal(tmp_path / "ckpt.pt").hint == f"{tmp_path}/last.pt is intact"
    assert refusal(tmp_path / "gone.pt").hint == f"{tmp_path}/last.pt is intact"
    (tmp_path / "last.pt").write_bytes(good[:3000])  # now all are damaged
    assert "intact" not in refusal(tmp_path / "ckpt.pt").hint


def test_nanogpts_file_is_read_as_it_is(tmp_path: Path) -> None:
    """Not compiled, with the masks of an early version; test_train.py starts from the other kind."""
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 8, 8).tril() for layer in range(2)}
    torch.save(nanogpts_file(example(), model=example().model | masks), tmp_path / "ckpt.pt")
    loaded = load(tmp_path / "ckpt.pt")
    assert torch.equal(logits(loaded), logits(example()))
    assert (loaded.step, loaded.best_val_loss) == (250, pytest.approx(1.8857))
    assert loaded.config["dataset"] == "tiny" and loaded.tokenizer is None and not loaded.training


class Canary:
    """Its pickle creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("where", ["model", "config", "model_args", "alone"])
def test_code_in_a_file_never_runs(tmp_path: Path, where: str) -> None:
    path, canary = tmp_path / "ckpt.pt", tmp_path / "canary"
    content = Canary(canary) if where == "alone" else nanogpts_file(example(), **{where: {"x": Canary(canary)}})
    torch.save(content, path)
    assert "could run code" in refusal(path).message
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # the file is a real attack


CONTRADICTIONS: list[dict[str, Any]] = [{"n_layer": 3}, {"vocab_size": 10**9}, {"n_head": 3}, {"n_head": 0}]
CONTRADICTIONS += [{"rope_base": float("nan")}, {"norm_eps": -1.0}, {"n_embd": "8"}, {"bias": False}]


@pytest.mark.parametrize("change", CONTRADICTIONS, ids=str)
def test_model_args_that_contradict_the_weights_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    torch.save(nanogpts_file(example(), model_args=SHAPE | change), tmp_path / "ckpt.pt")
    with pytest.raises(TinyGPTError):
        load(tmp_path / "ckpt.pt").build_model()


def test_an_option_of_another_program_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nanogpts_file(example(), model_args=SHAPE | {"softcap": 30.0}), tmp_path / "ckpt.pt")
    assert "softcap" in refusal(tmp_path / "ckpt.pt").message
    harmless = {"softcap": 0, "flash": False, "sinks": None}
    torch.save(nanogpts_file(example(), model_args=SHAPE | harmless), tmp_path / "ckpt.pt")
    assert torch.equal(logits(load(tmp_path / "ckpt.pt")), logits(example()))


def test_a_model_for_inference_has_the_device_dtype_threads_and_path_that_were_chosen(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    settings = InferenceConfig(device="cpu", dtype="bfloat16", threads="3", fast="False")
    loaded = Loaded.load(str(tiny_run / "out"), "", settings)
    assert type(loaded.model) is GPT and not loaded.model.training and chosen == [3]
    assert loaded.compute.dtype == loaded.model.lm_head.weight.dtype == torch.bfloat16
    assert (loaded.path, loaded.name) == (tiny_run / "out", str(tiny_run / "out"))
    assert isinstance(Loaded.load(str(tiny_run / "out"), "", InferenceConfig(device="cpu")).model, FastGPT)
