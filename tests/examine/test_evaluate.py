"""Losses over a split against a loop over its tokens, and the command `tinygpt eval`."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import cli_here, ok, refused
from models import nanogpts_file

from tinygpt.base import device
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.examine import EvalConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.rows import TextRows
from tinygpt.examine.eval import baselines
from tinygpt.examine.eval.baselines import ngram_baselines
from tinygpt.model import GPT, GPTConfig
from tinygpt.training.losses import bits_per_character, estimate_losses, loss_and_error, mean_loss, sampled_loss
from tinygpt.training.processes import Processes

CPU = device.choose("cpu", "float32")


def tiny(vocab_size: int = 7, **options: object) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 1, **options}
    model = GPT(GPTConfig(block_size=8, vocab_size=vocab_size, n_head=2, n_embd=16, **shape))  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 7, count).astype("<u2")


@torch.no_grad()
def one_by_one(model: GPT, ids: np.ndarray) -> list[float]:
    """The loss of each target, each by a forward pass of its own over what its window shows before it."""
    model.eval()
    losses = []
    for target in range(1, len(ids)):
        start = (target - 1) // 8 * 8
        logits = model(torch.from_numpy(ids[start:target].astype(np.int64))[None])[0][0, -1].double()
        losses.append((logits.logsumexp(-1) - logits[int(ids[target])]).item())
    return losses


def whole_loss(model: GPT, ids: np.ndarray) -> float:
    return mean_loss(model, TextRows(ids), TextRows(ids).all_rows(8), CPU)


# ---- over a split -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 9, 10, 17, 64, 66])
def test_the_whole_split_is_every_token_once(count: int) -> None:
    model, ids = tiny(), tokens(count)
    expected = one_by_one(model, ids)
    loss = whole_loss(model, ids)
    assert loss == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    if count > 10:  # and the shorter last window counts
        assert abs(sum(expected[:-1]) / (len(expected) - 1) - loss) > 1e-5


def test_large_vocabularies_go_through_in_smaller_batches() -> None:
    model = tiny(vocab_size=40_000)
    ids = np.random.default_rng(0).integers(0, 40_000, 200).astype("<u2")
    sizes: list[int] = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    loss = whole_loss(model, ids)
    assert sizes == [13, 12]
    expected = one_by_one(model, ids)
    assert loss == pytest.approx(sum(expected) / 199, abs=1e-4)


@pytest.mark.parametrize("eval_iters", [0, 3])
@pytest.mark.parametrize("training", [True, False])
def test_evaluating_disturbs_nothing(tiny_data: Path, eval_iters: int, training: bool) -> None:
    dataset = Dataset(str(tiny_data / "data"), "tiny")
    model = tiny(dataset.tokenizer.vocab_size, dropout=0.5).train(training)
    before, weights = torch.get_rng_state(), {name: w.clone() for name, w in model.state_dict().items()}
    config = TrainConfig(seed=1, eval_iters=eval_iters, batch_size=4)
    losses = [estimate_losses(model, dataset, config, CPU, Processes()) for _ in range(2)]
    assert losses[0] == losses[1]  # dropout is off
    assert model.training is training and all(module.training is training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    other = estimate_losses(model, dataset, dataclasses.replace(config, seed=2), CPU, Processes())
    assert (other == losses[0]) is (eval_iters == 0)  # another seed draws other windows


def test_the_whole_split_and_as_much_of_the_training_split(tiny_data: Path) -> None:
    dataset = Dataset(str(tiny_data / "data"), "tiny")
    model = tiny(dataset.tokenizer.vocab_size)
    losses = estimate_losses(model, dataset, TrainConfig(seed=1, eval_iters=0, batch_size=4), CPU, Processes())
    count = len(dataset.splits["val"])
    for split in ("train", "val"):
        expected = one_by_one(model, dataset.splits[split][:count])
        assert losses[split] == pytest.approx(sum(expected) / (count - 1), abs=1e-5)


def test_the_standard_error_is_that_of_the_windows_means() -> None:
    """Windows of one length: the plain standard error of their means; and it predicts how estimates scatter."""
    model, source = tiny(), TextRows(tokens(4000))
    starts = source.draw(1, 0, 8, 50)
    mean, error = loss_and_error(model, source, starts, CPU)
    each = [mean_loss(model, source, starts[i : i + 1], CPU) for i in range(50)]
    assert mean == pytest.approx(np.mean(each), abs=1e-6)
    assert error == pytest.approx(np.std(each, ddof=1) / math.sqrt(50), rel=1e-3)
    scatter = np.std([mean_loss(model, source, source.draw(seed, 0, 8, 50), CPU) for seed in range(100)], ddof=1)
    assert error == pytest.approx(scatter, rel=0.3)
    assert loss_and_error(model, source, starts[:1], CPU)[1] == math.inf  # one window has no spread


# ---- the command ------------------------------------------------------------------------------------------------


def test_eval_measures_what_the_model_does(tiny_run: Path) -> None:
    result = cli_here("eval", "--ckpt=out/ckpt.pt", "--device=cpu", "--dtype=float32", "--json", cwd=tiny_run)
    assert result.status == 0, result.err
    found = json.loads(result.out)
    dataset = Dataset(str(tiny_run / "data"), "tiny")
    model, ids = load(tiny_run / "out").build_model().eval(), dataset.splits["val"]
    padded = torch.full(((len(ids) - 2) // 16 * 16 + 17,), -1)
    padded[: len(ids)] = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        expected = model(padded[:-1].view(-1, 16).clamp(min=0), padded[1:].view(-1, 16))[1].item()
    assert found["loss"] == pytest.approx(expected, abs=1e-4)
    assert found["tokens"] == len(ids) - 1
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-3)
    assert found["bits_per_character"] == pytest.approx(expected / math.log(2), rel=1e-3)  # a token is a character
    train = dataset.splits["train"]
    assert found["baselines"] == pytest.approx(ngram_baselines(train, ids, dataset.tokenizer.vocab_size))
    assert found["baselines"]["bigram"] < found["baselines"]["unigram"] < found["baselines"]["uniform"]
    assert (found["ckpt"], found["dataset"]) == ("out/ckpt.pt", "tiny")


def test_eval_for_people_shows_the_same(tiny_run: Path) -> None:
    found = json.loads(cli_here("eval", "--dtype=float32", "--json", cwd=tiny_run).out)
    table = cli_here("eval", "--dtype=float32", "--ckpt=out", cwd=tiny_run).out
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if len(line.split()) == 4}
    loss, perplexity, bits = (found[name] for name in ("loss", "perplexity", "bits_per_character"))
    assert rows["model"] == [f"{loss:.4f}", f"{perplexity:.2f}", f"{bits:.3f}"]
    assert {name: rows[name][0] for name in found["baselines"]} == {
        name: f"{value:.4f}" for name, value in found["baselines"].items()
    }


def test_eval_says_what_the_baselines_leave_out(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(cli_here("eval", "--json", cwd=tiny_run).out)["note"] == ""
    monkeypatch.setattr(baselines, "MOST_TRAINING", 50)
    found = json.loads(cli_here("eval", "--json", cwd=tiny_run).out)
    assert "the n-gram baselines are counted on the first 50 of " in found["note"]
    assert cli_here("eval", cwd=tiny_run).out.endswith(f"\nnote: {found['note']}\n")


def test_eval_refuses_a_larger_vocabulary_than_the_models(run_copy: Path) -> None:
    """nanoGPT's files hold no tokenizer, so the sizes are all that can be compared."""
    torch.save(nanogpts_file(load(run_copy / "out/last.pt")), run_copy / "nano.pt")
    (run_copy / "other.txt").write_text("".join(map(chr, range(32, 127))) * 50)
    ok(run_copy, "prepare", "tiny", "--input=other.txt")
    assert "but its tokenizer has 95" in refused(run_copy, "eval", "--ckpt=nano.pt")


def test_bits_per_character_count_the_characters_of_a_token() -> None:
    """A token of two characters has half of its bits for each. (Pairs: tests/adapt/test_import.py and below.)"""
    text: Any = SimpleNamespace(splits={"val": range(50)}, sources={"val": None}, meta={"characters": {"val": 100}})
    assert bits_per_character(math.log(4), text) == pytest.approx(1)
    text.meta = {}
    assert bits_per_character(math.log(4), text) == pytest.approx(2)


def test_a_token_of_a_response_in_characters_is_a_character(tmp_path: Path) -> None:
    lines = [{"prompt": f"prompt {number}", "response": f"{number} é"} for number in range(99)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli_here("prepare", "mine", "--input=pairs.jsonl", "--format=pairs", cwd=tmp_path).status == 0
    dataset = Dataset(str(tmp_path / "data"), "mine")
    assert bits_per_character(math.log(4), dataset) == pytest.approx(2, rel=1e-15)


def test_a_sampled_loss_is_within_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete if that is cheap; else a sample whose error is bounded, of the same rows for every model."""
    model, source = tiny(), TextRows(tokens(8 * 3000))
    rows = source.all_rows(8)
    exact, _ = loss_and_error(model, source, rows, CPU)
    complete = sampled_loss(model, source, CPU)
    assert (complete.loss, complete.rows, complete.of) == (exact, 3000, 3000)
    monkeypatch.setattr("tinygpt.training.losses.CHEAP", 0)
    monkeypatch.setattr("tinygpt.training.losses.ERROR", 0.01)
    sampled = sampled_loss(model, source, CPU)
    bound = 0.01 * max(1, sampled.loss)
    assert 32 < sampled.rows < 3000 and sampled.error <= bound
    assert 0 < abs(sampled.loss - exact) < 4 * sampled.error
    fewer = sampled_loss(model, source, CPU, rows=sampled.rows - 32)
    assert fewer.error > bound and fewer.rows == sampled.rows - 32  # it stopped as soon as the bound was reached
    chosen = np.random.default_rng(0).permutation(rows)[: sampled.rows]
    other = tiny(n_layer=2)
    assert sampled_loss(other, source, CPU, rows=sampled.rows).loss == pytest.approx(
        mean_loss(other, source, chosen, CPU), abs=1e-6
    )
    few = TextRows(tokens(8 * 40))
    assert sampled_loss(model, few, CPU)[2:] == (40, 40)  # too few for the bound: all
    assert sampled_loss(model, few, CPU, rows=40)[2:] == (40, 40)


def test_the_folder_of_the_datasets_is_that_of_the_option_or_of_the_run(tmp_path: Path) -> None:
    recorded = {"data_dir": str(tmp_path)}
    assert data_dir(parse(EvalConfig, []), recorded, "out") == data_dir(EvalConfig(), recorded, "out") == str(tmp_path)
    assert data_dir(parse(EvalConfig, ["--data_dir=data"]), recorded, "out") == "data"
    assert data_dir(EvalConfig(data_dir="mine"), recorded, "out") == "mine"  # made in Python
    assert data_dir(EvalConfig(), {"data_dir": str(tmp_path / "gone")}, "out") == "data"
    run = {"data_dir": "data", "out_dir": "runs/a", "dataset": "mine"}
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "data/other").mkdir(parents=True)
    assert data_dir(EvalConfig(), run, tmp_path / "runs/a") == "data"  # that folder has no dataset of this name
    (tmp_path / "data/mine").mkdir()
    assert data_dir(EvalConfig(), run, tmp_path / "runs/a") == str(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    assert data_dir(EvalConfig(), run, tmp_path / "link/a") == str(tmp_path / "data")
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs/a").rmdir()
    (tmp_path / "runs/a").symlink_to(tmp_path / "disk")  # the run's own folder is a link to another disk
    assert data_dir(EvalConfig(), run, tmp_path / "runs/a") == str(tmp_path / "data")


def test_commands_in_another_folder_find_the_dataset_of_a_run(run_copy: Path, tmp_path: Path) -> None:
    """The other folder has a dataset of the same name with other text, which must not be taken for the run's."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.txt").write_text("my heart doth sing and thou art gone from the king of me.\n" * 90)
    assert cli_here("prepare", "tiny", "--input=other.txt", cwd=elsewhere).status == 0
    here = cli_here("eval", "--ckpt=out", "--json", cwd=run_copy)
    there = cli_here("eval", f"--ckpt={run_copy}/out", "--json", cwd=elsewhere)
    assert here.status == there.status == 0, there.err
    assert {**json.loads(here.out), "ckpt": ""} == {**json.loads(there.out), "ckpt": ""}
    checked = cli_here("doctor", f"{run_copy}/out", cwd=elsewhere)
    assert checked.status == 0 and "not checked" not in checked.out, checked.out
    shutil.copytree(run_copy / "out", tmp_path / "moved")  # nothing tells where that run was started
    resumed = cli_here("train", "--init_from=resume", f"--out_dir={run_copy}/out", "--max_iters=22", cwd=elsewhere)
    assert resumed.status == 0, resumed.err
    assert load(run_copy / "out/last.pt").config["data_dir"] == "data"  # no path of this machine
    lost = cli_here("eval", f"--ckpt={tmp_path}/moved", cwd=tmp_path)
    assert lost.status == 2 and "try: --data_dir=FOLDER" in lost.err, lost.err
    other = cli_here("eval", f"--ckpt={tmp_path}/moved", cwd=elsewhere)
    assert other.status == 2 or "has other text than the one that the model was trained on" in other.err
    assert cli_here("eval", f"--ckpt={tmp_path}/moved", f"--data_dir={run_copy}/data", cwd=tmp_path).status == 0
