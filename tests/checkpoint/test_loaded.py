"""A model is loaded for inference as the settings say."""

import contextlib
from pathlib import Path

import pytest
import torch

from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.checkpoint.store import load, save
from tinygpt.fast.model import FastGPT
from tinygpt.model import GPT


def test_device_dtype_threads_and_path(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    settings = InferenceConfig(device="cpu", dtype="bfloat16", threads="3", fast="False")
    loaded = Loaded.load(str(models / "out"), "", settings)
    assert type(loaded.model) is GPT and not loaded.model.training and chosen == [3]
    assert loaded.compute.dtype == loaded.model.lm_head.weight.dtype == torch.bfloat16
    assert (loaded.path, loaded.name) == (models / "out", str(models / "out"))
    assert isinstance(Loaded.load(str(models / "out"), "", InferenceConfig(device="cpu")).model, FastGPT)
    with pytest.raises(TinyGPTError, match="--device=tpu"):
        Loaded.load(str(models / "out"), "", InferenceConfig(device="tpu"))


def test_an_adapter(models: Path) -> None:
    with contextlib.chdir(models):
        loaded = Loaded.load("out-colours", "out-german", InferenceConfig(device="cpu"))
        merged = load_model("out-colours", "out-german").build_model().eval()
    assert loaded.path == Path("out-german") and loaded.config["dataset"] == "german"
    idx = torch.from_numpy(loaded.tokenizer.encode_prompt("001 red").astype("int64"))[None]
    torch.testing.assert_close(loaded.model(idx)[0], merged(idx)[0], rtol=0, atol=1e-5)


def test_the_tokenizer_of_the_dataset(run_copy: Path) -> None:
    checkpoint = load(run_copy / "out")
    checkpoint.tokenizer = None
    save(run_copy / "out/ckpt.pt", checkpoint)
    data = str(run_copy / "data")
    loaded = Loaded.load(str(run_copy / "out"), "", InferenceConfig(device="cpu"), data)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("king").tolist()) == "king" and loaded.data_dir == data
    with pytest.raises(TinyGPTError, match="is not prepared"):
        Loaded.load(str(run_copy / "out"), "", InferenceConfig(device="cpu"), "none")
