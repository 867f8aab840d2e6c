"""The schedule against nanoGPT's formula, AdamW against torch's plain one, Muon against what it is meant to do."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.config import TrainConfig
from tinygpt.model import GPT, GPTConfig
from tinygpt.optim import learning_rate, make_optimizers, set_learning_rate


def tiny(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, bias=True, **options))


def one_step(model: GPT, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    x = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(x[:, :-1], x[:, 1:])[1].backward()
    for optimizer in optimizers:
        optimizer.step()


def names_of(model: GPT, parameters: list[torch.Tensor]) -> list[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for parameter in parameters]


# ---- the schedule -----------------------------------------------------------------------------------------------


def nanogpts(it: int, peak: float, least: float, warmup: int, decay: int) -> float:
    """The cosine schedule in the words of its paper: up in equal steps, half a cosine down, then flat."""
    if it < warmup:
        return peak * (it + 1) / (warmup + 1)
    if it >= decay:
        return least
    angle = math.pi * (it - warmup) / (decay - warmup)
    return least + (peak - least) * (1 + math.cos(angle)) / 2


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 100), st.integers(0, 200), st.floats(0, 1), st.floats(0, 1))
def test_learning_rate_is_nanogpts(it: int, warmup: int, decay: int, peak: float, least: float) -> None:
    config = TrainConfig(learning_rate=peak, min_lr=least, warmup_iters=warmup, lr_decay_iters=decay)
    assert learning_rate(it, config) == pytest.approx(nanogpts(it, peak, least, warmup, decay))


def test_learning_rate_at_its_corners() -> None:
    config = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=4, lr_decay_iters=104)
    rates = [learning_rate(it, config) for it in (0, 3, 4, 54, 103, 104, 1_000_000)]
    assert rates == pytest.approx([0.2, 0.8, 1.0, 0.55, 0.1002, 0.1, 0.1], abs=1e-4)
    assert learning_rate(0, TrainConfig(warmup_iters=0)) > 0  # without a warm-up the first step counts in full
    no_warmup = dataclasses.replace(config, warmup_iters=0)
    assert [learning_rate(it, no_warmup) for it in (0, 52)] == pytest.approx([1.0, 0.55])
    no_decay = dataclasses.replace(config, lr_decay_iters=4)  # warm-up and decay end together
    assert [learning_rate(it, no_decay) for it in (3, 4, 5)] == pytest.approx([0.8, 0.1, 0.1])
    constant = dataclasses.replace(config, decay_lr=False)
    assert {learning_rate(it, constant) for it in (0, 3, 50, 1000)} == {1.0}


def test_every_group_gets_its_rate() -> None:
    config = TrainConfig(optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.02)
    adamw, muon = optimizers = make_optimizers(tiny(), config, "cpu")
    set_learning_rate(optimizers, 2.5e-4, config)
    assert [group["lr"] for group in adamw.param_groups] == pytest.approx([2.5e-4, 2.5e-4])
    assert [group["lr"] for group in muon.param_groups] == pytest.approx([0.005])
    still = dataclasses.replace(config, learning_rate=0.0)
    set_learning_rate(optimizers, 0.0, still)
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.0}


# ---- the groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("options", [{}, {"position": "rope", "tie_weights": False, "norm": "rmsnorm"}], ids=str)
def test_matrices_are_decayed_and_vectors_are_not_each_once(options: dict[str, Any], optimizer: str) -> None:
    model = tiny(**options)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3)
    made = make_optimizers(model, config, "cpu")
    groups = [(names_of(model, group["params"]), group["weight_decay"]) for o in made for group in o.param_groups]
    assert sorted(name for names, _ in groups for name in names) == sorted(n for n, _ in model.named_parameters())
    shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
    for names, decay in groups:
        assert {shapes[name] for name in names} == ({2} if decay == 0.3 else {1})
        assert decay in (0.3, 0.0)


def test_muon_has_the_blocks_matrices_in_the_models_order() -> None:
    """The order is how a saved optimizer state finds its parameters again, in another process too."""
    model = tiny()
    muon = make_optimizers(model, TrainConfig(optimizer="muon"), "cpu")[1]
    assert names_of(model, muon.param_groups[0]["params"]) == [
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]


def test_frozen_parameters_are_left_out() -> None:
    model = tiny()
    before = model.transformer["wte"].weight.requires_grad_(False).clone()
    optimizers = make_optimizers(model, TrainConfig(), "cpu")
    one_step(model, optimizers, seed=0)
    assert torch.equal(model.transformer["wte"].weight, before)


# ---- the updates ------------------------------------------------------------------------------------------------


def test_adamw_is_torchs_plain_one() -> None:
    config = TrainConfig(learning_rate=1e-2, beta1=0.8, beta2=0.97, weight_decay=0.2)
    ours, theirs = tiny(), tiny()
    mine = make_optimizers(ours, config, "cpu")
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.dim() == 2], "weight_decay": 0.2},
            {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.8, 0.97),
        fused=False,
        foreach=False,
    )
    start = [p.detach().clone() for p in ours.parameters()]
    for seed in range(4):
        one_step(ours, mine, seed)
        one_step(theirs, [plain], seed)
    for (name, a), b, before in zip(ours.named_parameters(), theirs.parameters(), start, strict=True):
        moved = (a - before).norm()
        assert moved > 1e-3, name
        # Adam divides by |gradient|, so where a gradient is nearly 0 (the keys' biases) rounding decides its sign
        if not name.endswith("attn.c_attn.bias"):
            assert (a - b).norm() < 1e-3 * moved, name


def test_decay_alone_shrinks_matrices_by_rate_times_decay() -> None:
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5)
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in make_optimizers(model, config, "cpu"):
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.data, before[name] * (0.95 if p.dim() == 2 else 1.0))


def test_muon_moves_matrices_by_nearly_orthogonal_updates() -> None:
    """Every singular value of an update is near the rate (Newton-Schulz leaves 0.7 to 1.2), as no gradient's are."""
    model = tiny()
    config = TrainConfig(optimizer="muon", muon_learning_rate=0.1, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape)
    for optimizer in make_optimizers(model, config, "cpu"):
        optimizer.step()
    for name, p in model.named_parameters():
        moved = p.detach() - before[name]
        assert moved.abs().max() > 0, name
        if ".h." in name and p.dim() == 2:
            tall = max(1, p.size(0) / p.size(1)) ** 0.5  # a tall matrix goes further: Jordan's "original"
            values, gradient = torch.linalg.svdvals(moved) / (0.1 * tall), torch.linalg.svdvals(p.grad)
            assert values.min() > 0.5 and values.max() < 1.5, name
            assert gradient.min() < 0.5 * gradient.max(), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_saved_state_goes_on_exactly(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer)
    model, other = tiny(), tiny()
    through, first = make_optimizers(model, config, "cpu"), make_optimizers(other, config, "cpu")
    for seed in range(3):
        one_step(model, through, seed)
    one_step(other, first, 0)
    then = make_optimizers(other, config, "cpu")
    for new, old in zip(then, first, strict=True):
        new.load_state_dict(old.state_dict())
    for seed in (1, 2):
        one_step(other, then, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
