"""Losses over a split against a loop over its tokens, and the command `tinygpt eval`."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, cli_here, ok, refused
from inputs import json_lines

from tinygpt.base import device
from tinygpt.base.configs.core import TrainConfig
from tinygpt.checkpoint import store
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import TextRows
from tinygpt.examine.eval.baselines import ngram_losses
from tinygpt.model import GPT, GPTConfig
from tinygpt.training.losses import bits_per_character, estimate_losses, loss_and_error, mean_loss, sampled_loss
from tinygpt.training.processes import Processes

CPU = device.choose("cpu", "float32")


def tiny(vocab_size: int = 7, **options: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{"n_layer": 1, **options}, block_size=8, vocab_size=vocab_size, n_head=2, n_embd=16))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def tokens(count: int, vocab_size: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, count).astype("<u2")


@torch.no_grad()
def one_by_one(model: GPT, ids: np.ndarray) -> list[float]:
    """The loss of each target, each by a forward pass of its own over what its window shows before it."""
    losses = []
    for target in range(1, len(ids)):
        start = (target - 1) // 8 * 8
        logits = model.eval()(torch.from_numpy(ids[start:target].astype(np.int64))[None])[0][0, -1]
        losses.append(-logits.double().log_softmax(-1)[int(ids[target])].item())
    return losses


def whole_loss(model: GPT, ids: np.ndarray) -> float:
    return mean_loss(model, TextRows(ids), TextRows(ids).all_rows(8), CPU)


@pytest.mark.parametrize(("count", "vocab_size"), [(2, 7), (9, 7), (10, 7), (66, 7), (200, 40_000)])
def test_the_whole_split_is_every_token_once(count: int, vocab_size: int) -> None:
    """A large vocabulary goes through in smaller batches."""
    model, ids = tiny(vocab_size), tokens(count, vocab_size)
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    loss = whole_loss(model, ids)
    hook.remove()
    assert sizes == ([13, 12] if count == 200 else [-(-(count - 1) // 8)])
    expected = one_by_one(model, ids)
    assert loss == pytest.approx(np.mean(expected), abs=1e-4)
    if count == 66:  # and the shorter last window counts
        assert abs(np.mean(expected[:-1]) - loss) > 1e-3


@pytest.mark.parametrize("eval_iters", [0, 3])
def test_evaluating_disturbs_nothing(tiny_data: Path, eval_iters: int) -> None:
    dataset = Dataset(str(tiny_data / "data"), "tiny")
    model = tiny(dataset.tokenizer.vocab_size, dropout=0.5).train()
    before, weights = torch.get_rng_state(), {name: w.clone() for name, w in model.state_dict().items()}
    config = TrainConfig(seed=1, eval_iters=eval_iters, batch_size=4)
    losses, again, other = (
        estimate_losses(model, dataset, dataclasses.replace(config, seed=seed), CPU, Processes()) for seed in (1, 1, 2)
    )
    assert losses == again  # dropout is off
    assert (losses == other) is (eval_iters == 0)  # another seed draws other windows
    assert all(module.training for module in model.modules()) and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    if eval_iters == 0:  # the whole split, and as much of the training split
        count = len(dataset.splits["val"])
        expected = {split: whole_loss(model, dataset.splits[split][:count]) for split in ("train", "val")}
        assert {split: losses[split] for split in expected} == pytest.approx(expected, abs=1e-5)


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


def test_eval_measures_what_the_model_does(tiny_run: Path) -> None:
    found = json.loads(ok(tiny_run, "eval", "--ckpt=out/ckpt.pt", "--device=cpu", "--dtype=float32", "--json").out)
    dataset = Dataset(str(tiny_run / "data"), "tiny")
    model, ids = load(tiny_run / "out").build_model().eval(), dataset.splits["val"]
    padded = torch.full(((len(ids) - 2) // 16 * 16 + 17,), -1)
    padded[: len(ids)] = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        expected = model(padded[:-1].view(-1, 16).clamp(min=0), padded[1:].view(-1, 16))[1].item()
    baselines = ngram_losses(dataset.splits["train"], ids, dataset.tokenizer.vocab_size)
    assert found["loss"] == pytest.approx(expected, abs=1e-4) and found["tokens"] == len(ids) - 1
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-3)
    assert found["bits_per_character"] == pytest.approx(expected / math.log(2), rel=1e-3)  # a token is a character
    assert found["baselines"] == pytest.approx(baselines)
    assert baselines["bigram"] < baselines["unigram"] < baselines["uniform"]
    assert (found["ckpt"], found["dataset"], found["note"]) == ("out/ckpt.pt", "tiny", "")
    table = ok(tiny_run, "eval", "--dtype=float32", "--ckpt=out").out  # shows people the same
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if len(line.split()) == 4}
    loss, perplexity, bits = (found[name] for name in ("loss", "perplexity", "bits_per_character"))
    assert rows["model"] == [f"{loss:.4f}", f"{perplexity:.2f}", f"{bits:.3f}"]
    assert rows["uniform"][0] == f"{baselines['uniform']:.4f}"


def test_bits_per_character_count_the_characters_of_a_token(tmp_path: Path) -> None:
    """A token of two characters has half of its bits for each; one of a response in characters is a character."""
    text: Any = SimpleNamespace(splits={"val": range(50)}, sources={"val": None}, meta={"characters": {"val": 100}})
    assert bits_per_character(math.log(4), text) == pytest.approx(1)
    text.meta = {}
    assert bits_per_character(math.log(4), text) == pytest.approx(2)
    json_lines(tmp_path, [{"prompt": f"prompt {number}", "response": f"{number} é"} for number in range(99)])
    ok(tmp_path, "prepare", "mine", "--input=pairs.jsonl", "--format=pairs")
    assert bits_per_character(math.log(4), Dataset(str(tmp_path / "data"), "mine")) == pytest.approx(2, rel=1e-15)


def test_a_sampled_loss_is_within_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete if that is cheap; else a sample whose error is bounded, of the same rows for every model."""
    model, other, source = tiny(), tiny(n_layer=2), TextRows(tokens(8 * 3000))
    rows = source.all_rows(8)
    exact, _ = loss_and_error(model, source, rows, CPU)
    assert sampled_loss(model, source, CPU)[::2] == (exact, 3000) and sampled_loss(model, source, CPU).of == 3000
    monkeypatch.setattr("tinygpt.training.losses.CHEAP", 0)
    monkeypatch.setattr("tinygpt.training.losses.ERROR", 0.01)
    sampled = sampled_loss(model, source, CPU)
    assert 32 < sampled.rows < 3000 and sampled.error <= 0.01 * max(1, sampled.loss)
    assert 0 < abs(sampled.loss - exact) < 4 * sampled.error
    chosen = np.random.default_rng(0).permutation(rows)[: sampled.rows]
    expected = mean_loss(other, source, chosen, CPU)
    assert sampled_loss(other, source, CPU, rows=sampled.rows).loss == pytest.approx(expected, abs=1e-6)


def test_commands_in_another_folder_find_the_dataset_of_a_run(run_copy: Path, tmp_path: Path) -> None:
    """The other folder has a dataset of the same name with other text, which must not be taken for the run's."""
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.mkdir()
    link.symlink_to(run_copy)
    (elsewhere / "other.txt").write_text("my heart doth sing and thou art gone from the king of me.\n" * 90)
    ok(elsewhere, "prepare", "tiny", "--input=other.txt")
    here, there = ok(run_copy, "eval", "--json"), ok(elsewhere, "eval", f"--ckpt={link}/out", "--json")
    assert {**json.loads(here.out), "ckpt": ""} == {**json.loads(there.out), "ckpt": ""}
    assert "not checked" not in ok(elsewhere, "doctor", f"{run_copy}/out").out
    moved = f"--ckpt={shutil.copytree(run_copy / 'out', tmp_path / 'moved')}"  # nothing tells where it was started
    ok(elsewhere, "train", "--init_from=resume", f"--out_dir={run_copy}/out", "--max_iters=22")
    assert load(run_copy / "out/last.pt").config["data_dir"] == "data"  # no path of this machine
    assert "try: --data_dir=FOLDER" in refused(tmp_path, "eval", moved)
    other = cli_here("eval", moved, cwd=elsewhere)
    assert other.status == 2 or "has other text than the one that the model was trained on" in other.err
    ok(tmp_path, "eval", moved, f"--data_dir={run_copy}/data")


def change_weights(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    for name in ("ckpt.pt", "last.pt"):
        state = load(run / name)
        change(state.model)
        store.save(run / name, state)


def infinite_logits(weights: dict[str, torch.Tensor]) -> None:
    for name, factor in (("transformer.wte", 1e18), ("lm_head", 1e18), ("transformer.ln_f", 1e25)):
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * factor  # not in place: tied weights are one tensor


BROKEN = {
    "infinite logits": infinite_logits,
    "NaN weights": lambda weights: weights["transformer.ln_f.weight"].fill_(math.nan),
}
COMMANDS = [
    ["eval"],
    ["eval", "--ckpt=out-finetune", "--task=colours", "--json"],
    ["label", "lines.txt", "--model=out-finetune"],
    ["sample", "--temperature=0"],
    ["sample", "--ckpt=out-finetune", "--start=001 red"],
    ["report", "out"],
    ["report", "out-finetune", "--data_dir=nowhere"],
    ["export"],
]


@pytest.fixture
def copy(tuned: Path, tmp_path: Path) -> Path:
    """A copy of `tuned` that a test may change."""
    (Path(shutil.copytree(tuned, tmp_path / "work")) / "lines.txt").write_text("001 red\n002 blue\n")
    return tmp_path / "work"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", BROKEN)
def test_every_command_reports_a_loss_that_is_not_finite_in_one_sentence(copy: Path, how: str) -> None:
    for folder in ("out", "out-finetune"):
        change_weights(copy / folder, BROKEN[how])
    for args in COMMANDS:
        result = cli_here(*args, cwd=copy)
        sentence, hint = result.err.splitlines()
        assert (result.status, result.out) == (1, "") and sentence.startswith("error: "), (args, result)
        assert re.search("NaN|infinite|not finite", sentence) and "training diverged" in sentence, args
        assert hint.startswith("  try: ") and "learning_rate" in hint, args


class OnDevice(torch.Tensor):
    """A tensor that behaves as if on a device without float64 (MPS) until `.cpu()` copies it to the host."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.tolist):
            with torch._C.DisableTorchFunctionSubclass():
                return func(args[0].as_subclass(torch.Tensor), *args[1:])
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result


@pytest.mark.parametrize(
    "args",
    [[*TINY_TRAIN, "--dataset=colours", "--eval_only"], ["eval", "--ckpt=out-finetune", "--task=colours", "--json"]],
    ids=["train", "labels"],
)
def test_measurements_are_the_same_on_a_device_without_float64(
    copy: Path, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, forward = ok(copy, *args), GPT.forward

    def device_forward(self: GPT, *args: Any, **kwargs: Any) -> Any:
        logits, loss = forward(self, *args, **kwargs)
        return logits.as_subclass(OnDevice), loss

    monkeypatch.setattr(GPT, "forward", device_forward)
    assert ok(copy, *args) == expected and expected.err == ""
