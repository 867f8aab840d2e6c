"""The derivative of a whole training: against the run's own steps, autograd and retraining."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Shared, ok, tiny_text
from inputs import json_lines

from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.examine.why import exact
from tinygpt.examine.why.explained import Explained, load_run, output
from tinygpt.examine.why.step import State, Training

MODEL = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--device=cpu", "--dtype=float32", "--quiet", "--threads=1"]
LEARN = ["--batch_size=4", "--gradient_accumulation_steps=2", "--max_iters=10", "--eval_interval=10", "--eval_iters=1"]
ADAMW = ["--learning_rate=3e-3", "--grad_clip=0.5", "--warmup_iters=2"]
MUON = [*ADAMW, "--optimizer=muon", "--norm=rmsnorm", "--position=rope", "--activation=relu2"]
TEXT, PAIRS = ["--dataset=text", "--block_size=16"], ["--dataset=pairs", "--block_size=24"]
RUNS = {
    "AdamW, dropout": [*TEXT, *ADAMW, "--dropout=0.2"],
    "Muon, epochs, contexts": [*TEXT, *MUON, "--sampling=epochs", "--context_warmup=6", "--lr_schedule=linear"],
    "AdamW, pairs, SwiGLU": [*PAIRS, *ADAMW, "--activation=swiglu", "--norm=rmsnorm", "--group_by_length=True"],
}
OUTPUT = {"text": ("The kin", "g of my"), "pairs": ("3 red", "rot")}


@pytest.fixture(scope="session")
def runs(shared: Shared) -> Path:
    """A folder with two datasets and the RUNS."""

    def make(folder: Path) -> None:
        words = {"red": "rot", "green": "gruen", "blue": "blau"}
        pairs = [{"prompt": f"{n} {word}", "response": answer} for n in range(8) for word, answer in words.items()]
        json_lines(folder, pairs, "pairs.jsonl")
        (folder / "text.txt").write_text(tiny_text(20))
        ok(folder, "prepare", "pairs", "--input=pairs.jsonl", "--format=pairs", "--val_fraction=0.2")
        ok(folder, "prepare", "text", "--input=text.txt")
        for name, flags in RUNS.items():
            ok(folder, "train", *MODEL, *LEARN, *flags, f"--out_dir={name}")

    return shared("exact", make)


def training_of(folder: Path, name: str) -> tuple[Explained, Training]:
    explained = load_run(WhyConfig(run=str(folder / name), data_dir=str(folder / "data")))
    return explained, Training(explained, explained.config.seed)


def final(training: Training) -> State:
    state = training.start()
    for number in range(training.steps):
        state = training.step(state, number, training.batch(number))
    return state


@pytest.mark.parametrize("name", RUNS)
def test_the_steps_are_those_of_the_run(runs: Path, name: str) -> None:
    _, training = training_of(runs, name)
    state, last = final(training), store.load(runs / name / "last.pt")
    found, began = training.named(state.weights), training.named(training.start().weights)
    for parameter, weight in found.items():
        moved = (last.model[parameter] - began[parameter]).norm()
        assert moved > 1e-3 and (weight - last.model[parameter]).norm() < 1e-3 * moved, parameter
    for parameter, parts in last.training["optimizer"]["moments"].items():
        moment = parts.get("exp_avg", parts.get("momentum"))
        assert torch.allclose(training.named(state.first)[parameter], moment, rtol=1e-2, atol=1e-5), parameter


@pytest.mark.parametrize("name", RUNS)
def test_the_sweep_is_autograd_through_all_steps(runs: Path, name: str) -> None:
    """With states at intervals, and for two outputs at once; also the sum rule and a finite difference."""
    explained, training = training_of(runs, name)
    tokens = torch.ones(len(explained.source.tokens), requires_grad=True)
    state = training.start()
    size = 4 * sum(tensor.numel() for tensor in state)
    state = state._replace(weights=state.weights.requires_grad_())
    for number in range(training.steps):
        batch = training.batch(number)
        weights = tokens[torch.from_numpy(batch.positions)]
        state = training.step(state, number, batch._replace(weights=weights))
    whole = output(explained, OUTPUT[explained.config.dataset])
    outputs = [whole, tuple(part[:, :-1] for part in whole)]
    chances = [training.log_probability(state.weights, *each) for each in outputs]
    expected = [torch.autograd.grad(chance, tokens, retain_graph=True)[0] for chance in chances]
    for states in (training.steps, 6):
        found, weights = exact.exact_effects(training, outputs, size * states)
        assert torch.allclose(weights, state.weights.detach(), atol=1e-5)
        for ours, autograd in zip(found, expected, strict=True):
            scale = float(autograd.abs().max())
            assert scale > 1e-4 and ours == pytest.approx(-autograd.numpy(), abs=1e-3 * scale)
    both = []
    for change in (0.01, -0.01):  # of the weights of all rows: the sum of all effects
        training.token_weights = np.full(len(tokens), 1 + change, np.float32)
        both.append(float(training.log_probability(final(training).weights, *whole)))
    assert (both[0] - both[1]) / 0.02 == pytest.approx(-found[0].sum(), rel=0.1, abs=1e-3)


def test_memory_bounds_the_states(runs: Path) -> None:
    _, training = training_of(runs, "AdamW, dropout")
    size = 4 * sum(tensor.numel() for tensor in training.start())
    for steps in (1, 2, 10, 97, 2000):
        training.steps = steps
        assert exact.interval(training, size * steps) == 1
        least = min(-(-steps // every) + every - 1 for every in range(1, steps + 1))
        every = exact.interval(training, size * least)
        assert -(-steps // every) + every - 1 <= least  # kept states, and those of the interval that is swept
        with pytest.raises(TinyGPTError, match="may have"):
            exact.interval(training, size * (least - 1))
