"""The derivative of a whole training: against the run's own steps, a hand calculation, autograd and retraining."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Shared, ok, tiny_text
from inputs import json_lines

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.examine.why import exact
from tinygpt.examine.why.explained import Explained, Output, load_run, output
from tinygpt.examine.why.rows import positions_of, rows_of_batch, sums_of_rows
from tinygpt.examine.why.step import State, Training

MODEL = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--device=cpu", "--dtype=float32", "--quiet", "--threads=1"]
LEARN = ["--batch_size=4", "--gradient_accumulation_steps=2", "--max_iters=10", "--eval_interval=10", "--eval_iters=1"]
ADAMW = ["--learning_rate=3e-3", "--grad_clip=0.5", "--warmup_iters=2"]
MUON = [*ADAMW, "--optimizer=muon", "--norm=rmsnorm", "--position=rope", "--activation=relu2"]
TEXT, PAIRS = ["--dataset=text", "--block_size=16"], ["--dataset=pairs", "--block_size=24"]
RUNS = {
    "AdamW, dropout": [*TEXT, *ADAMW, "--dropout=0.2"],
    "Muon, epochs, contexts": [*TEXT, *MUON, "--sampling=epochs", "--context_warmup=6", "--lr_schedule=linear"],
    "Muon, pairs, dropout": [*PAIRS, *MUON, "--dropout=0.2", "--group_by_length=True"],
    "AdamW, pairs, SwiGLU": [*PAIRS, *ADAMW, "--activation=swiglu", "--norm=rmsnorm", "--qk_norm=True"],
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


def explained_run(folder: Path, name: str) -> Explained:
    return load_run(WhyConfig(run=str(folder / name), data_dir=str(folder / "data")))


def query(explained: Explained) -> Output:
    return output(explained, OUTPUT[explained.config.dataset])


def final(training: Training) -> State:
    state = training.start()
    for number in range(training.steps):
        state = training.step(state, number, training.batch(number))
    return state


# ---- the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_the_steps_are_those_of_the_run(runs: Path, name: str) -> None:
    explained = explained_run(runs, name)
    training = Training(explained, explained.config.seed)
    state, last = final(training), store.load(runs / name / "last.pt")
    found, began = training.named(state.weights), training.named(training.start().weights)
    for parameter, weight in found.items():
        moved = (last.model[parameter] - began[parameter]).norm()
        assert moved > 1e-3 and (weight - last.model[parameter]).norm() < 1e-3 * moved, parameter
    for parameter, parts in last.training["optimizer"]["moments"].items():
        moment = parts.get("exp_avg", parts.get("momentum"))
        assert torch.allclose(training.named(state.first)[parameter], moment, rtol=1e-2, atol=1e-5), parameter


def test_a_row_left_out_has_no_influence_at_all(runs: Path) -> None:
    """Only its own gradient is missing, in every place of the batch where it is drawn."""
    explained = explained_run(runs, "AdamW, pairs, SwiGLU")
    training, state = Training(explained, 1337), Training(explained, 1337).start()
    batch = training.batch(0)
    drawn = rows_of_batch(explained.source, training.config, 0)
    kept = Training(explained, 1337, drawn[:1]).batch(0).weights
    weights = (torch.ones(batch.y.shape), kept, 1 - kept)
    whole, less, alone = (training.gradient(state.weights, 0, batch._replace(weights=each)) for each in weights)
    assert alone.norm() > 0 and torch.allclose(whole, less + alone, atol=1e-6)
    times = int((drawn == drawn[0]).sum())
    width = batch.y.shape[-1]
    assert int((1 - kept).mul(batch.y >= 0).sum()) == times * explained.source.targets(drawn[:1], width)[0]


# ---- the derivative ---------------------------------------------------------------------------------------------


def test_two_steps_of_one_weight_by_hand() -> None:
    """AdamW without weight decay; the loss of token i is weight_i times g_i w, the output is w."""
    g, rate, beta1, beta2 = [0.5, -2.0], 0.1, 0.9, 0.99
    config = TrainConfig(
        learning_rate=rate, lr_schedule="constant", warmup_iters=0, beta1=beta1, beta2=beta2, weight_decay=0.0,
        grad_clip=0.0,
    )  # fmt: skip
    training: Any = SimpleNamespace(config=config, adam=slice(0, None), decays=torch.zeros(1, dtype=torch.float64))
    training.clipping = lambda gradient: Training.clipping(training, gradient)
    training.adamw = lambda *args: Training.adamw(training, *args)
    weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    state = State(*(torch.zeros(1, dtype=torch.float64) for _ in range(3)))
    for number in range(2):
        state = Training.update(training, state, number, g[number] * weights[number : number + 1])
    found = torch.autograd.grad(state.weights.sum(), weights)[0]

    # step 1 is -rate sign(g1): no derivative; step 2 is -rate m / sqrt(v), with m and v after bias correction
    m1, m2 = (1 - beta1) * beta1 * g[0] / (1 - beta1**2), (1 - beta1) * g[1] / (1 - beta1**2)
    v1, v2 = (1 - beta2) * beta2 * g[0] ** 2 / (1 - beta2**2), (1 - beta2) * g[1] ** 2 / (1 - beta2**2)
    m, v = m1 + m2, v1 + v2
    expected = [-rate * (part / v**0.5 - m * square / v**1.5) for part, square in ((m1, v1), (m2, v2))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert state.weights.item() == pytest.approx(-rate * (1 + m / v**0.5), rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_the_sweep_is_autograd_through_all_steps(runs: Path, name: str) -> None:
    """With states at intervals, and for two outputs at once; also the sum rule and a finite difference."""
    explained = explained_run(runs, name)
    training = Training(explained, explained.config.seed)
    tokens = torch.ones(len(explained.source.tokens), requires_grad=True)
    state = training.start()
    state = State(state.weights.requires_grad_(), *state[1:])
    for number in range(training.steps):
        batch = training.batch(number)
        weights = tokens[torch.from_numpy(batch.positions)]
        state = training.step(state, number, batch._replace(weights=weights))
    outputs = [query(explained), tuple(part[:, :-1] for part in query(explained))]
    expected = [torch.autograd.grad(training.log_probability(state.weights, *each), tokens, retain_graph=True)[0]
                for each in outputs]  # fmt: skip
    size = 4 * sum(tensor.numel() for tensor in training.start())
    for states in (training.steps, 6):
        found, weights = exact.exact_effects(training, outputs, size * states)
        assert torch.allclose(weights, state.weights.detach(), atol=1e-5)
        for ours, autograd in zip(found, expected, strict=True):
            scale = float(autograd.abs().max())
            assert scale > 1e-4 and ours == pytest.approx(-autograd.numpy(), abs=1e-3 * scale)
    # all rows weighted 1 + h: the sum of all effects
    h = 1e-2
    both = []
    for sign in (1, -1):
        training.token_weights = np.full(len(tokens), 1 + sign * h, np.float32)
        both.append(float(training.log_probability(final(training).weights, *outputs[0])))
    assert (both[0] - both[1]) / (2 * h) == pytest.approx(-found[0].sum(), rel=0.1, abs=1e-3)


def test_a_row_that_no_batch_draws_has_no_effect(runs: Path) -> None:
    explained = explained_run(runs, "AdamW, pairs, SwiGLU")
    training = Training(explained, explained.config.seed)
    training.steps = 1
    found = sums_of_rows(exact.exact_effects(training, [query(explained)], 1e9)[0][0], explained)
    drawn = set(rows_of_batch(explained.source, training.config, 0).tolist())
    assert 0 < len(drawn) < len(found)
    assert {row for row, effect in enumerate(found) if effect} == drawn


def test_memory_bounds_the_states(runs: Path) -> None:
    explained = explained_run(runs, "AdamW, dropout")
    training = Training(explained, explained.config.seed)
    size = 4 * sum(tensor.numel() for tensor in training.start())
    for steps in (1, 2, 10, 97, 2000):
        training.steps = steps
        assert exact.interval(training, size * steps) == 1
        least = min(-(-steps // every) + every - 1 for every in range(1, steps + 1))
        every = exact.interval(training, size * least)
        held = most = -(-steps // every)  # kept states; then those of the interval that is swept
        for first in range(every * (held - 1), -1, -every):
            most, held = max(most, held + min(every, steps - first) - 1), held - 1
        assert most <= least
        with pytest.raises(TinyGPTError, match="may have"):
            exact.interval(training, size * (least - 1))
    assert (positions_of(explained.source, np.array([0]), 3) == [[1, 2, 3]]).all()
