"""What measures a model, and what reads and writes text: each test is named after the promise that it checks."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL, Result, cli, cli_here
from test_pairs import json_lines

from tinygpt import checkpoint

COLOURS = ["red", "green", "blue"]
RATES = ["--learning_rate=1e-2", "--min_lr=1e-3", "--warmup_iters=2"]
SHORT = [*RATES, "--max_iters=20", "--eval_interval=10", "--eval_iters=2", "--gradient_accumulation_steps=1"]
TRAIN = ["train", "--device=cpu", "--dtype=float32", "--compile=False", "--quiet", *TINY_MODEL, *SHORT]


@pytest.fixture(scope="session")
def measured(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run on plain text, and out-pairs/, one on the labelled task `colours`."""
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("measured") / "work"))
    json_lines(folder, [{"prompt": f"{n:03} {COLOURS[n % 3]}", "response": COLOURS[n % 3]} for n in range(90)])
    assert cli_here("prepare", "colours", "--input=pairs.jsonl", "--format=pairs", cwd=folder).status == 0
    result = cli_here(*TRAIN, "--dataset=colours", "--out_dir=out-pairs", "--block_size=24", cwd=folder)
    assert result.status == 0, result.err
    return folder


@pytest.fixture
def work(measured: Path, tmp_path: Path) -> Path:
    """A copy of `measured`, to change and to write in."""
    return Path(shutil.copytree(measured, tmp_path / "work"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write the run's checkpoints again, intact and sealed, with other weights."""
    for name in ("ckpt.pt", "last.pt"):
        state = torch.load(folder / name, weights_only=True)
        change(state["model"])
        with open(folder / name, "w+b") as file:
            torch.save(state, file)
            checkpoint._seal(file)


def scaled(factor: float, *names: str) -> Callable[[dict[str, torch.Tensor]], object]:
    """Weights times a factor: those whose name ends with one of `names`, or all."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            if not names or name.endswith(names):
                weights[name] = weights[name] * factor  # not in place: tied weights are one tensor

    return change


def strict(text: str) -> Any:
    """The value of one line of JSON. Fails for NaN and Infinity, which JSON has not."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def failure(result: Result, status: int = 1) -> str:
    """The sentence of an error. Fails for anything but that sentence and the way out of it."""
    assert result.status == status, result
    lines = result.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  try: "), result.err
    return lines[0].removeprefix("error: ")


# ---- a loss that is not finite ----------------------------------------------------------------------------------

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
    ["eval", "--ckpt=out-pairs", "--task=colours"],
    ["eval", "--ckpt=out-pairs", "--task=colours", "--json"],
    ["eval", "--ckpt=out-pairs", "--predict=lines.txt"],
    ["eval", "--ckpt=out-pairs", "--predict=lines.txt", "--json"],
    ["eval", "--ckpt=out-free", "--dataset=free"],
    ["eval", "--ckpt=out-free", "--dataset=free", "--json"],
    ["sample"],
    ["sample", "--temperature=0"],
    ["sample", "--top_k=0", "--exact_window"],
    ["sample", "--json"],
    ["sample", "--num_samples=3"],
    ["sample", "--ckpt=out-pairs", "--start=001 red"],
    ["report", "out"],
    ["report", "out-pairs"],
    ["report", "out", "--data_dir=nowhere"],
    ["report", "out-pairs", "--data_dir=nowhere"],
    ["export"],
    ["export", "--ckpt=out-pairs"],
    ["export", "--ckpt=out-pairs", "--data_dir=nowhere"],
]


def free_responses(folder: Path) -> None:
    """data/free, pairs whose responses are no labels; out-free/ is the model of the colours."""
    json_lines(folder, [{"prompt": f"{n:03} red", "response": f"{n}"} for n in range(90)], "free.jsonl")
    assert cli_here("prepare", "free", "--input=free.jsonl", "--format=pairs", cwd=folder).status == 0
    shutil.copytree(folder / "out-pairs", folder / "out-free")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", BROKEN)
def test_a_loss_that_is_not_finite_is_one_sentence_in_every_command(work: Path, how: str) -> None:
    free_responses(work)
    for folder in ("out", "out-pairs", "out-free"):
        change_weights(work / folder, BROKEN[how])
    (work / "lines.txt").write_text("001 red\n002 blue\n")
    said = []
    for args in COMMANDS:
        result = cli_here(*args, cwd=work)
        sentence = failure(result)
        said.append(f"{' '.join(args):60}{result.err}")
        assert result.out == ""
        assert "NaN" in sentence or "infinite" in sentence or "not finite" in sentence
        assert "training diverged" in sentence and "learning_rate" in result.err
    print("\n".join(said))


def test_a_loss_that_is_not_finite_leaves_standard_error_to_the_sentence(work: Path) -> None:
    """As a process of its own: no warning of numpy comes before it."""
    change_weights(work / "out-pairs", BROKEN["finite weights, a NaN loss"])
    sentence = failure(cli("eval", "--ckpt=out-pairs", "--task=colours", cwd=work))
    assert "the loss is NaN: training diverged" in sentence
