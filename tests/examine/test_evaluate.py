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
from conftest import TINY_TRAIN, cli_here, ok
from inputs import json_lines

from tinygpt.base import device
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.examine import EvalConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint import store
from tinygpt.checkpoint.store import Checkpoint, load
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.rows import TextRows
from tinygpt.examine.eval import baselines
from tinygpt.examine.eval.baselines import ngram_losses
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
    found = json.loads(ok(tiny_run, "eval", "--ckpt=out/ckpt.pt", "--device=cpu", "--dtype=float32", "--json").out)
    dataset = Dataset(str(tiny_run / "data"), "tiny")
    model, ids = load(tiny_run / "out").build_model().eval(), dataset.splits["val"]
    padded = torch.full(((len(ids) - 2) // 16 * 16 + 17,), -1)
    padded[: len(ids)] = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        expected = model(padded[:-1].view(-1, 16).clamp(min=0), padded[1:].view(-1, 16))[1].item()
    bits = expected / math.log(2)  # a token is a character
    baselines = ngram_losses(dataset.splits["train"], ids, dataset.tokenizer.vocab_size)
    assert found["loss"] == pytest.approx(expected, abs=1e-4) and found["tokens"] == len(ids) - 1
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-3)
    assert found["bits_per_character"] == pytest.approx(bits, rel=1e-3)
    assert found["baselines"] == pytest.approx(baselines)
    assert baselines["bigram"] < baselines["unigram"] < baselines["uniform"]
    assert (found["ckpt"], found["dataset"]) == ("out/ckpt.pt", "tiny")
    table = ok(tiny_run, "eval", "--dtype=float32", "--ckpt=out").out  # shows people the same
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if len(line.split()) == 4}
    loss, perplexity, bits = (found[name] for name in ("loss", "perplexity", "bits_per_character"))
    assert rows["model"] == [f"{loss:.4f}", f"{perplexity:.2f}", f"{bits:.3f}"]
    assert {name: rows[name][0] for name in baselines} == {
        name: f"{value:.4f}" for name, value in found["baselines"].items()
    }


def test_eval_says_what_the_baselines_leave_out(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(cli_here("eval", "--json", cwd=tiny_run).out)["note"] == ""
    monkeypatch.setattr(baselines, "MOST_TRAINING", 50)
    found = json.loads(cli_here("eval", "--json", cwd=tiny_run).out)
    assert "the n-gram models are counted on the first 50 of " in found["note"]
    assert cli_here("eval", cwd=tiny_run).out.endswith(f"\nnote: {found['note']}\n")


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


# ---- a loss that is not finite ------------------------------------------------------------------------------------


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the run's checkpoints, intact and sealed, with changed weights."""
    for name in ("ckpt.pt", "last.pt"):
        state = torch.load(folder / name, weights_only=True)
        change(state["model"])
        with open(folder / name, "w+b") as file:
            torch.save(state, file)
            store._seal(file)


def scaled(factor: float, *names: str) -> Callable[[dict[str, torch.Tensor]], object]:
    """Return a change that multiplies by `factor` the weights whose name ends with one of `names`, or all."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            if not names or name.endswith(names):
                weights[name] = weights[name] * factor  # not in place: tied weights are one tensor

    return change


BROKEN = {
    "finite weights, a NaN loss": scaled(1e30),
    "infinite logits": lambda weights: (
        scaled(1e18, "wte.weight", "lm_head.weight")(weights),
        scaled(1e25, "ln_f.weight")(weights),
    ),
    "NaN weights": lambda weights: weights["transformer.ln_f.weight"].fill_(math.nan),
    "infinite weights": lambda weights: weights["transformer.ln_f.weight"].fill_(math.inf),
}
COMMANDS = [
    ["eval"],
    ["eval", "--json"],
    ["eval", "--ckpt=out-finetune", "--task=colours"],
    ["label", "lines.txt", "--model=out-finetune"],
    ["eval", "--ckpt=out-free", "--dataset=free"],
    ["sample"],
    ["sample", "--temperature=0"],
    ["sample", "--top_k=0", "--exact_window"],
    ["sample", "--json"],
    ["sample", "--ckpt=out-finetune", "--start=001 red"],
    ["report", "out"],
    ["report", "out-finetune"],
    ["report", "out-finetune", "--data_dir=nowhere"],
    ["export"],
    ["export", "--ckpt=out-finetune", "--data_dir=nowhere"],
]


@pytest.fixture
def copy(tuned: Path, tmp_path: Path) -> Path:
    """A copy of `tuned` that a test may change."""
    (Path(shutil.copytree(tuned, tmp_path / "work")) / "lines.txt").write_text("001 red\n002 blue\n")
    return tmp_path / "work"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", BROKEN)
def test_every_command_reports_a_loss_that_is_not_finite_in_one_sentence(copy: Path, how: str) -> None:
    """Also of pairs whose responses are not labels (data/free)."""
    json_lines(copy, [{"prompt": f"{n:03} red", "response": f"{n}"} for n in range(90)], "free.jsonl")
    ok(copy, "prepare", "free", "--input=free.jsonl", "--format=pairs")
    shutil.copytree(copy / "out-finetune", copy / "out-free")
    for folder in ("out", "out-finetune", "out-free"):
        change_weights(copy / folder, BROKEN[how])
    for args in COMMANDS:
        result = cli_here(*args, cwd=copy)
        sentence, hint = result.err.splitlines()
        assert (result.status, result.out) == (1, "") and sentence.startswith("error: "), (args, result)
        assert re.search("NaN|infinite|not finite", sentence) and "training diverged" in sentence, args
        assert hint.startswith("  try: ") and "learning_rate" in hint, args


def strict(text: str) -> Any:
    """Parse one line of JSON. Fails for NaN and Infinity, which JSON does not have."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_loss_above_709_nats_has_an_infinite_perplexity(copy: Path) -> None:
    """exp overflows, which is shown as "inf" on the terminal and in the page, and as null in JSON."""
    change_weights(copy / "out", scaled(1e4, "ln_f.weight"))
    found = strict(ok(copy, "eval", "--json").out)
    assert found["loss"] > 710 and found["perplexity"] is None
    rows = [line.split() for line in ok(copy, "eval").out.splitlines()]
    assert ["model", f"{found['loss']:.4f}", "inf"] in [row[:3] for row in rows]
    ok(copy, "report", "out", "--no_text")
    page = (copy / "out/report.html").read_text()
    assert re.search(r'<th scope="row">this model</th><td>\d+\.\d+ .*<td>inf</td>', page)


def test_every_json_output_is_strict(copy: Path) -> None:
    """One object per line, ASCII, without NaN and Infinity, even from a model that is almost certain of its labels."""
    change_weights(copy / "out-finetune", scaled(1e3, "ln_f.weight"))
    for args in (
        ["eval"],
        ["eval", "--ckpt=out-finetune", "--task=colours"],
        ["sample", "--max_new_tokens=5", "--seed=1"],
        ["sample", "--num_samples=3", "--max_new_tokens=5", "--seed=1"],
    ):
        result = ok(copy, *args, "--json")
        assert result.err == "" and result.out.isascii() and [strict(line) for line in result.out.splitlines()]


# ---- devices without float64 --------------------------------------------------------------------------------------


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


def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the logits and embeddings of every model on such a device."""
    forward, build = GPT.forward, Checkpoint.build_model

    def device_forward(self: GPT, *args: Any, **kwargs: Any) -> Any:
        logits, loss = forward(self, *args, **kwargs)
        return logits.as_subclass(OnDevice), loss

    def device_build(self: Checkpoint, *args: Any) -> GPT:
        model = build(self, *args)
        wte = model.transformer["wte"]
        wte._parameters["weight"] = torch.nn.Parameter(wte.weight.detach().as_subclass(OnDevice))
        model.tie()
        return model

    monkeypatch.setattr(GPT, "forward", device_forward)
    monkeypatch.setattr(Checkpoint, "build_model", device_build)


@pytest.mark.parametrize(
    "args",
    [
        [*TINY_TRAIN, "--eval_only"],
        [*TINY_TRAIN, "--dataset=colours", "--eval_only"],
        ["eval", "--json"],
        ["eval", "--ckpt=out-finetune", "--task=colours", "--json"],
        pytest.param(["report", "out"], marks=pytest.mark.slow),
        pytest.param(["report", "out-finetune"], marks=pytest.mark.slow),
        ["export"],
    ],
    ids=lambda args: " ".join(args[:1] + args[-2:]),
)
def test_measurements_are_the_same_on_a_device_without_float64(
    copy: Path, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ok(copy, *args)
    on_device(monkeypatch)
    assert ok(copy, *args) == expected and expected.err == ""
