"""Checkpoints: loading restores what was saved, and refuses everything else."""

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ok, refused
from models import every_option, nanogpts_file

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import Checkpoint, load, save
from tinygpt.data.dataset import Dataset
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


def nanogpts(**changes: Any) -> dict[str, Any]:
    return nanogpts_file(example(), **changes)


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    with torch.inference_mode():
        return checkpoint.build_model().eval()(torch.tensor([[0, 1, 2, 3, 4]]))[0]


def refusal(path: Path) -> TinyGPTError:
    with pytest.raises(TinyGPTError) as caught:
        load(path)
    assert caught.value.status == 2 and str(path) in caught.value.message and caught.value.hint
    return caught.value


# ---- round trip -------------------------------------------------------------------------------------------------


@every_option
def test_everything_comes_back_and_a_run_can_start_from_it(
    tmp_path: Path, tiny_data: Path, options: dict[str, Any]
) -> None:
    """With the options of the checkpoint, whatever the run's defaults are; test_train.py has those that it refuses."""
    dataset = Dataset(str(tiny_data / "data"), "tiny")
    made = example(**options, vocab_size=dataset.tokenizer.vocab_size)
    saved = dataclasses.replace(made, best_val_loss=math.inf, tokenizer=dataset.tokenizer.to_dict())
    save(tmp_path / "ckpt.pt", saved)
    assert os.listdir(tmp_path) == ["ckpt.pt"]  # no temporary file stays
    loaded = load(tmp_path / "ckpt.pt")
    for name, weight in saved.model.items():
        assert torch.equal(loaded.model[name], weight) and loaded.model[name].dtype == weight.dtype, name
    plain = {"model": 0, "training": 0}
    assert vars(loaded) | plain == vars(saved) | plain
    torch.testing.assert_close(loaded.training, saved.training, rtol=0, atol=0)
    config = TrainConfig(init_from=str(tmp_path / "ckpt.pt"), out_dir=str(tmp_path / "new"), block_size=8)
    config.dataset, config.data_dir, config.fast, config.device = "tiny", str(tiny_data / "data"), "False", "cpu"
    with contextlib.ExitStack() as stack:
        model = make_model(resolve(stack, config))
    assert dataclasses.asdict(model.config) == saved.model_args
    assert torch.equal(model.eval()(torch.tensor([[0, 1, 2, 3, 4]]))[0], logits(saved))


def test_a_folder_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "ckpt.pt", example())
    save(tmp_path / "last.pt", dataclasses.replace(example(), step=99))
    assert load(tmp_path).step == load(str(tmp_path)).step == 17


def test_our_file_is_an_ordinary_torch_save(tmp_path: Path) -> None:
    save(tmp_path / "ckpt.pt", example())
    plain = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert plain["tinygpt_format"] == 1 and plain["model"].keys() == example().model.keys()
    with zipfile.ZipFile(tmp_path / "ckpt.pt") as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"tinygpt sha256 ")


def test_saving_replaces_and_a_failed_save_does_not(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    save(path, example())
    save(path, dataclasses.replace(example(), step=18))
    good = path.read_bytes()
    assert load(path).step == 18
    with pytest.raises((AttributeError, TypeError, RuntimeError)):  # a lambda cannot be saved
        save(path, dataclasses.replace(example(), config={"broken": lambda: 0}))
    assert path.read_bytes() == good and os.listdir(tmp_path) == ["ckpt.pt"]


@pytest.fixture
def run_of_version_0_2(tmp_path: Path) -> Path:
    """A working folder with out/last.pt, which is format1.pt: the last state of a run of 300 iterations (1 layer, width
    4, Muon), made by version 0.2; and with the dataset of this run."""
    (tmp_path / "text.txt").write_text("ab aab b\naab ab b\nb b ab\n" * 40)
    ok(tmp_path, "prepare", "tiny", "--input=text.txt")
    (tmp_path / "out").mkdir()
    shutil.copy(FIXTURES / "format1.pt", tmp_path / "out/last.pt")
    return tmp_path


def test_files_of_version_0_2_are_read(run_of_version_0_2: Path) -> None:
    """The model gives the same logits, the run can go on, and its configuration is one of today."""
    work = run_of_version_0_2
    expected = json.loads((FIXTURES / "format1.json").read_text())
    loaded = load(FIXTURES / "format1.pt")
    with torch.inference_mode():
        found = loaded.build_model().eval()(torch.tensor([expected["ids"]]))[0][0]
    torch.testing.assert_close(found, torch.tensor(expected["logits"]), atol=1e-4, rtol=0)
    assert (loaded.step, loaded.best_val_loss) == (expected["step"], pytest.approx(expected["best_val_loss"]))
    assert loaded.tokenizer == expected["tokenizer"]
    ok(work, "train", "--init_from=resume", "--max_iters=310")
    assert load(work / "out/last.pt").step == 310
    assert read_metrics(work / "out")[-1]["val_loss"] < expected["best_val_loss"] + 0.2
    settings = {name: value for name, value in loaded.config.items() if name != "config"}
    (work / "config.yaml").write_text(yaml.safe_dump(settings))
    ok(work, "train", "config.yaml", "--out_dir=again", "--max_iters=1")


def test_a_run_of_version_0_1_is_not_resumed_but_its_weights_are_used(run_of_version_0_2: Path) -> None:
    """It had the moments as slices of flat weights."""
    path, slices = run_of_version_0_2 / "out/last.pt", [torch.zeros(3), torch.zeros(2)]
    state = {"moments": {"exp_avg": slices, "exp_avg_sq": slices, "steps": [torch.ones(())]}, "scaler": {}}
    earlier = load(path)
    save(path, dataclasses.replace(earlier, training=earlier.training | {"optimizer": state}))
    message = refused(run_of_version_0_2, "train", "--init_from=resume")
    assert "no optimizer state to resume from" in message
    flags = message.partition("try: ")[2].split()
    assert flags == ["--init_from=out/last.pt", "--out_dir=out-new"]
    ok(run_of_version_0_2, "train", "--dataset=tiny", "--device=cpu", "--batch_size=2", "--max_iters=1", *flags)


DEFAULTS: dict[str, Any] = {  # a new option joins them; a default never changes, since files leave it out
    **{"block_size": 1024, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.0},
    **{"bias": False, "norm": "layernorm", "position": "learned", "activation": "gelu", "qk_norm": False},
    **{"tie_weights": True, "zero_init": False, "bigram_table": False, "token_shift": False, "n_kv_head": 0},
    **{"mlp_width": 0, "rope_base": 10000.0, "norm_eps": 1e-5, "qk_norm_weights": False, "window": 0},
}


def test_the_defaults_of_options_never_change() -> None:
    assert vars(GPTConfig()) == DEFAULTS


# ---- damage -----------------------------------------------------------------------------------------------------


def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    save(path, example())
    data, draw = path.read_bytes(), random.Random(0)
    for place in {*draw.sample(range(len(data)), 60), *range(20), *range(len(data) - 100, len(data))}:
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
        refusal(path)
    for size in {0, 1, 100, len(data) // 2, *range(len(data) - 130, len(data))}:
        path.write_bytes(data[:size])
        refusal(path)
    path.write_bytes(data + b"\0")
    refusal(path)
    path.write_bytes(data)
    load(path)


def test_a_good_neighbour_is_named_and_a_bad_one_is_not(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", example())
    good = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(good[:3000])
    (tmp_path / "aaa.pt").write_bytes(good)  # of another run
    assert refusal(tmp_path / "ckpt.pt").hint == f"{tmp_path}/last.pt is intact"
    assert refusal(tmp_path / "gone.pt").hint == f"{tmp_path}/last.pt is intact"
    (tmp_path / "last.pt").write_bytes(good[:3000])  # now all are damaged
    assert "intact" not in refusal(tmp_path / "ckpt.pt").hint


# ---- files of other programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "_orig_mod."], ids=["plain", "compiled"])
def test_nanogpts_file_is_read_as_it_is(tmp_path: Path, prefix: str) -> None:
    weights = {f"{prefix}{name}": weight for name, weight in example().model.items()}
    masks = {f"{prefix}transformer.h.{layer}.attn.bias": torch.ones(1, 1, 8, 8).tril() for layer in range(2)}
    torch.save(nanogpts(model=weights | masks), tmp_path / "ckpt.pt")
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
    content = Canary(canary) if where == "alone" else nanogpts(**{where: {"x": Canary(canary)}})
    torch.save(content, path)
    assert "could run code" in refusal(path).message
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # the file is a real attack


CONTRADICTIONS: list[dict[str, Any]] = [{"n_layer": 3}, {"n_layer": 10**9}, {"n_embd": 16}, {"vocab_size": 10**9}]
CONTRADICTIONS += [{"block_size": 10**6}, {"n_head": 3}, {"n_head": 0}, {"rope_base": float("nan")}]
CONTRADICTIONS += [{"norm_eps": -1.0}, {"n_embd": "8"}, {"bias": False}]


@pytest.mark.parametrize("change", CONTRADICTIONS, ids=str)
def test_model_args_that_contradict_the_weights_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    torch.save(nanogpts(model_args=SHAPE | change), tmp_path / "ckpt.pt")
    with pytest.raises(TinyGPTError):
        load(tmp_path / "ckpt.pt").build_model()


def test_an_option_of_another_program_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nanogpts(model_args=SHAPE | {"softcap": 30.0}), tmp_path / "ckpt.pt")
    assert "softcap" in refusal(tmp_path / "ckpt.pt").message
    torch.save(nanogpts(model_args=SHAPE | {"softcap": 0, "flash": False, "sinks": None}), tmp_path / "ckpt.pt")
    assert torch.equal(logits(load(tmp_path / "ckpt.pt")), logits(example()))
