"""AdamW and Muon against torch's reference implementations, mixed precision with flat weights (test_fast.py compares
these with the model itself), and the learning-rate schedule against nanoGPT's formula."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import OPTIMIZERS, every_path
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.fast.model import FastGPT
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.model import GPT, GPTConfig
from tinygpt.training.optimizer import AmpModel, Optimizer, build, learning_rate, load_state, state_of


def tiny(kind: type[GPT] = GPT, **options: Any) -> GPT:
    torch.manual_seed(0)
    return kind(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, bias=True, **options))


def set_up(kind: type[GPT], config: TrainConfig, **options: Any) -> tuple[GPT, AmpModel, Optimizer]:
    model = tiny(kind, **options)
    return model, *build(model, config, Compute(torch.device("cpu"), torch.float32, ""))


def update(model: GPT, computing: AmpModel, optimizer: Optimizer, gradients: dict[str, Tensor]) -> None:
    """Make a step with these gradients."""
    if isinstance(computing, FlatWeights):
        computing.weights.grad = torch.cat([gradients[name].flatten() for name in computing.places])
    else:
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
    optimizer.clip()
    optimizer.update()


def gradient(computing: AmpModel, seed: int) -> None:
    x = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(seed))
    computing(x[:, :-1], x[:, 1:])[1].backward()


def weights(model: GPT) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@every_path
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_float16_overflow_anywhere_skips_the_whole_update(kind: type[GPT], name: str) -> None:
    """Adam and Muon together: the gradient of one matrix overflows, and no weight moves. The next step trains."""
    config = TrainConfig(optimizer=name, learning_rate=1e-3)  # type: ignore[arg-type]
    model = tiny(kind)
    computing, optimizer = build(model, config, Compute(torch.device("cpu"), torch.float16, ""))
    x = torch.arange(36).view(4, 9) % 11
    for overflows in (True, False):
        before, scale = weights(model), optimizer.scaler.get_scale()
        optimizer.backward(computing(x[:, :-1], x[:, 1:])[1])
        if overflows:
            is_flat = isinstance(computing, FlatWeights)
            first: Any = computing.weights if is_flat else model.transformer["h"][0].mlp.c_fc.weight
            first.grad.view(-1)[0] = float("inf")
        optimizer.clip()
        optimizer.update()
        same = [torch.equal(weight, before[name]) for name, weight in weights(model).items()]
        assert all(same) if overflows else not any(same)
        assert optimizer.scaler.get_scale() == (scale / 2 if overflows else scale)
        assert optimizer.steps == (0 if overflows else 1)


@every_path
def test_matrices_are_decayed_and_vectors_are_not(kind: type[GPT]) -> None:
    """Without a gradient, only weight decay changes the weights; Muon's rate moves with AdamW's."""
    config = TrainConfig(optimizer="muon", learning_rate=0.1, muon_learning_rate=0.2, weight_decay=0.5)
    model, computing, made = set_up(kind, config, position="rope", tie_weights=False, norm="rmsnorm")
    before = weights(model)
    made.set_learning_rate(0.05)
    update(model, computing, made, {name: torch.zeros_like(weight) for name, weight in before.items()})
    for name, after in weights(model).items():
        kept = (0.95 if ".h." in name else 0.975) if after.dim() == 2 else 1.0
        torch.testing.assert_close(after, before[name] * kept, msg=name)


@every_path
def test_adamw_and_clipping_are_torchs_plain_ones(kind: type[GPT]) -> None:
    config = TrainConfig(learning_rate=1e-2, beta1=0.8, beta2=0.97, weight_decay=0.2, grad_clip=0.3)
    ours, computing, mine = set_up(kind, config)
    start, theirs = weights(ours), tiny()
    matrices, vectors = ([p for p in theirs.parameters() if p.dim() == dim] for dim in (2, 1))
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.97), fused=False, foreach=False)
    for seed in range(4):
        gradient(computing, seed)
        norm = mine.clip()
        mine.update()
        theirs.zero_grad()
        gradient(theirs, seed)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        assert norm.item() == pytest.approx(expected.item(), rel=1e-4) and expected > 0.3
        plain.step()
    found = weights(ours)
    for name, expected in weights(theirs).items():
        # Adam divides by |gradient|, so where a gradient is nearly 0 (the keys' biases) rounding decides its sign
        if not name.endswith("attn.c_attn.bias"):
            assert (found[name] - expected).norm() < 1e-3 * (expected - start[name]).norm(), name


@every_path
@pytest.mark.parametrize(("first", "rate", "muons"), [(1e-3, 1e-3, 0.02), (1e-3, 2.5e-4, 0.005), (0.0, 0.0, 0.0)])
def test_muon_is_torchs(kind: type[GPT], first: float, rate: float, muons: float) -> None:
    """torch's takes the matrices one by one, its products in bfloat16; ours in batches of one shape."""
    config = TrainConfig(optimizer="muon", learning_rate=first, muon_learning_rate=0.02, weight_decay=5.0, grad_clip=0)
    model, computing, optimizer = set_up(kind, config)
    optimizer.set_learning_rate(rate)
    start, theirs = weights(model), dict(tiny().named_parameters())
    matrices = {name: weight for name, weight in theirs.items() if ".h." in name and weight.dim() == 2}
    plain = torch.optim.Muon(matrices.values(), lr=muons, weight_decay=5.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        given = {name: torch.randn(weight.shape, generator=generator) for name, weight in theirs.items()}
        for name, weight in theirs.items():
            weight.grad = given[name].clone()
        update(model, computing, optimizer, given)
        plain.step()
    found = weights(model)
    for name, weight in matrices.items():
        moved = (weight.detach() - start[name]).norm()
        assert (found[name] - weight.detach()).norm() <= 0.03 * moved and (moved > 0) == (rate > 0), name


@every_path
def test_a_loaded_state_takes_the_configs_rates_and_decay(kind: type[GPT]) -> None:
    """The next step is AdamW's by hand, from the saved moments and with the new values."""
    model, computing, saved = set_up(kind, TrainConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.95))
    gradient(computing, seed=0)
    saved.clip()
    saved.update()
    state = copy.deepcopy(state_of(saved))
    changed = TrainConfig(learning_rate=1e-4, weight_decay=0.3, beta1=0.8, beta2=0.99, grad_clip=0)
    model, computing, optimizer = set_up(kind, changed)
    load_state(optimizer, state)
    before = weights(model)
    update(model, computing, optimizer, {name: torch.full_like(weight, 0.5) for name, weight in before.items()})
    for name, after in weights(model).items():
        moments = state["moments"][name]
        average, square = 0.8 * moments["exp_avg"] + 0.2 * 0.5, 0.99 * moments["exp_avg_sq"] + 0.01 * 0.25
        step = average / (1 - 0.8**2) / ((square / (1 - 0.99**2)).sqrt() + 1e-8)
        expected = before[name] * (1 - 1e-4 * (0.3 if after.dim() == 2 else 0.0)) - 1e-4 * step
        torch.testing.assert_close(after, expected, atol=1e-7, rtol=1e-5, msg=name)


@every_path
def test_the_state_of_something_else_is_refused(kind: type[GPT]) -> None:
    own = set_up(kind, TrainConfig())[2]
    others = set_up(kind, TrainConfig(optimizer="muon"))[2], set_up(kind, TrainConfig(), position="rope")[2]
    for state in (*map(state_of, others), {}, {"moments": 1, "steps": 1}, {"moments": {}, "steps": 1}):
        with pytest.raises(TinyGPTError, match="does not fit this model"):
            load_state(own, state)


def test_gradients_of_micro_steps_add_up_in_float32() -> None:
    """256 + 1 is 256 in bfloat16."""
    flat = FlatWeights(tiny(FastGPT), torch.bfloat16)
    gradient(flat, seed=0)
    one = flat.weights.grad.clone()
    flat.weights.grad.mul_(0).add_(256.0)
    gradient(flat, seed=0)
    assert flat.weights.grad.dtype == torch.float32
    torch.testing.assert_close(flat.weights.grad - 256.0, one, atol=1e-4, rtol=0)
    assert one.abs().max() > 1e-3


def nanogpts(it: int, peak: float, least: float, warmup: int, decay: int) -> float:
    """The cosine schedule in the words of its paper: up in equal steps, half a cosine down, then flat."""
    if it < warmup:
        return peak * (it + 1) / (warmup + 1)
    if it >= decay:
        return least
    angle = math.pi * (it - warmup) / (decay - warmup)
    return least + (peak - least) * (1 + math.cos(angle)) / 2


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 100), st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_learning_rate_is_nanogpts(it: int, warmup: int, decay: int, peak: float, least: float, explicit: bool) -> None:
    """With lr_decay_iters, or without it and the same max_iters; the warm-up may be the longer of the two."""
    length: dict[str, Any] = {"lr_decay_iters" if explicit else "max_iters": decay}
    config = TrainConfig(learning_rate=peak, min_lr=least, warmup_iters=warmup, **length)
    assert learning_rate(it, config) == pytest.approx(nanogpts(it, peak, least, warmup, decay))


def test_a_linear_rate_and_corners() -> None:
    config = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=4, lr_decay_iters=104)
    assert learning_rate(0, TrainConfig(warmup_iters=0)) > 0  # without a warm-up the first step counts in full
    straight = dataclasses.replace(config, lr_schedule="linear")
    rates = [learning_rate(it, straight) for it in (0, 3, 4, 29, 54, 104, 1_000_000)]
    assert rates == pytest.approx([0.2, 0.8, 1.0, 0.775, 0.55, 0.1, 0.1])
    no_decay = dataclasses.replace(config, lr_decay_iters=4)  # warm-up and decay end together
    assert [learning_rate(it, no_decay) for it in (3, 4, 5)] == pytest.approx([0.8, 0.1, 0.1])
    constant = dataclasses.replace(config, lr_schedule="constant")  # test_resume.py has the other spelling
    assert {learning_rate(it, constant) for it in (0, 3, 50, 1000)} == {1.0}
