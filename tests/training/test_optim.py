"""AdamW and Muon against torch's reference implementations, and mixed precision with flat weights (test_fast.py
compares these with the model itself)."""

import copy
from typing import Any

import pytest
import torch
from models import OPTIMIZERS
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.fast.model import FastGPT
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.model import GPT, MATRIX, GPTConfig
from tinygpt.model import parameter_class as kind_of
from tinygpt.training.optimizer import AmpModel, Optimizer, build, load_state, state_of

both = pytest.mark.parametrize("kind", [GPT, FastGPT], ids=["plain", "fast"])


def tiny(kind: type[GPT] = GPT, **options: Any) -> GPT:
    torch.manual_seed(0)
    return kind(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, bias=True, **options))


def set_up(kind: type[GPT], config: TrainConfig, **options: Any) -> tuple[GPT, AmpModel, Optimizer]:
    model = tiny(kind, **options)
    return model, *build(model, config, Compute(torch.device("cpu"), torch.float32, ""))


def give(model: GPT, computing: AmpModel, gradients: dict[str, Tensor]) -> None:
    """Set the gradient of every parameter that is trained."""
    if isinstance(computing, FlatWeights):
        computing.weights.grad = torch.cat([gradients[name].flatten() for name in computing.places])
    else:
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone() if parameter.requires_grad else None


def constant(model: GPT, value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(weight, value) for name, weight in model.named_parameters()}


def gradient(computing: AmpModel, seed: int) -> None:
    x = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(seed))
    computing(x[:, :-1], x[:, 1:])[1].backward()


def one_step(computing: AmpModel, optimizer: Optimizer, seed: int) -> None:
    gradient(computing, seed)
    optimizer.clip()
    optimizer.update()


def weights(model: GPT) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ---- the learning rates -------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("first", "rate", "muons"), [(1e-3, 1e-3, 0.02), (1e-3, 2.5e-4, 0.005), (0.0, 0.0, 0.0)])
def test_muons_rate_moves_with_adamws(kind: type[GPT], first: float, rate: float, muons: float) -> None:
    """With a constant gradient Adam's first step is its learning rate, and Muon's follows from its own."""
    config = TrainConfig(optimizer="muon", learning_rate=first, muon_learning_rate=0.02, weight_decay=0, grad_clip=0)
    model, computing, optimizer = set_up(kind, config)
    optimizer.set_learning_rate(rate)
    before = weights(model)
    give(model, computing, constant(model, 1.0))
    optimizer.clip()
    optimizer.update()
    size, moved = 0.0, 0.0
    for name, after in weights(model).items():
        if kind_of(name, after) == MATRIX:
            size += max(1, after.shape[0] / after.shape[1])
            moved += float((after - before[name]).square().sum())
        else:
            difference = (after - before[name]).abs()
            torch.testing.assert_close(difference, torch.full_like(after, rate), rtol=1e-2, atol=1e-9, msg=name)
    assert moved**0.5 == pytest.approx(muons * size**0.5, rel=0.35)  # Newton-Schulz leaves 0.7 to 1.2


@both
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_float16_overflow_anywhere_skips_the_whole_update(kind: type[GPT], name: str, bad: float) -> None:
    """Adam and Muon together: the gradient of one matrix overflows, and no weight moves. The next step trains."""
    config = TrainConfig(optimizer=name, learning_rate=1e-3)  # type: ignore[arg-type]
    model = tiny(kind)
    computing, optimizer = build(model, config, Compute(torch.device("cpu"), torch.float16, ""))
    x = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(0))
    for overflows in (True, False):
        before, scale = weights(model), optimizer.scaler.get_scale()
        optimizer.backward(computing(x[:, :-1], x[:, 1:])[1])
        if overflows:
            is_flat = isinstance(computing, FlatWeights)
            first = computing.weights if is_flat else model.transformer["h"][0].mlp.c_fc.weight
            assert first.grad is not None
            first.grad.view(-1)[0] = bad
        optimizer.clip()
        optimizer.update()
        same = [torch.equal(weight, before[name]) for name, weight in weights(model).items()]
        assert all(same) if overflows else not any(same)
        assert optimizer.scaler.get_scale() == (scale / 2 if overflows else scale)
        assert optimizer.steps == (0 if overflows else 1)


# ---- parameter groups -------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [{}, {"position": "rope", "tie_weights": False, "norm": "rmsnorm"}]


@both
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matrices_are_decayed_and_vectors_are_not(kind: type[GPT], options: dict[str, Any], optimizer: str) -> None:
    """Without a gradient, only weight decay changes the weights: by learning rate times decay."""
    config = TrainConfig(optimizer=optimizer, learning_rate=0.1, muon_learning_rate=0.2, weight_decay=0.5)
    model, computing, made = set_up(kind, config, **options)
    before = weights(model)
    give(model, computing, constant(model, 0.0))
    made.set_learning_rate(config.learning_rate)
    made.clip()
    made.update()
    for name, after in weights(model).items():
        muon = optimizer == "muon" and ".h." in name
        kept = (1 - 0.5 * (0.2 if muon else 0.1)) if after.dim() == 2 else 1.0
        torch.testing.assert_close(after, before[name] * kept, msg=name)


# ---- the updates ------------------------------------------------------------------------------------------------


@both
def test_adamw_and_clipping_are_torchs_plain_ones(kind: type[GPT]) -> None:
    config = TrainConfig(learning_rate=1e-2, beta1=0.8, beta2=0.97, weight_decay=0.2, grad_clip=0.3)
    ours, computing, mine = set_up(kind, config)
    start, theirs = weights(ours), tiny()
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
    for seed in range(4):
        gradient(computing, seed)
        norm = mine.clip()
        mine.update()
        theirs.zero_grad()
        gradient(theirs, seed)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        assert norm.item() == pytest.approx(expected.item(), rel=1e-4) and expected > 0.3
        plain.step()
    for name, b in weights(theirs).items():
        a, moved = weights(ours)[name], (b - start[name]).norm()
        assert moved > 1e-3, name
        # Adam divides by |gradient|, so where a gradient is nearly 0 (the keys' biases) rounding decides its sign
        if not name.endswith("attn.c_attn.bias"):
            assert (a - b).norm() < 1e-3 * moved, name


@both
def test_muon_is_torchs(kind: type[GPT]) -> None:
    """torch's takes the matrices one by one, its products in bfloat16; ours in batches of one shape."""
    config = TrainConfig(optimizer="muon", muon_learning_rate=0.02, weight_decay=5.0, grad_clip=0)
    model, computing, optimizer = set_up(kind, config)
    start, theirs = weights(model), tiny()
    matrices = [p for name, p in theirs.named_parameters() if ".h." in name and p.dim() == 2]
    plain = torch.optim.Muon(matrices, lr=0.02, weight_decay=5.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        given = {name: torch.randn(p.shape, generator=generator) for name, p in theirs.named_parameters()}
        for name, parameter in theirs.named_parameters():
            parameter.grad = given[name].clone()
        give(model, computing, given)
        optimizer.clip()
        optimizer.update()
        plain.step()
    for name, parameter in theirs.named_parameters():
        if ".h." in name and parameter.dim() == 2:
            moved = (parameter.detach() - start[name]).norm()
            assert (weights(model)[name] - parameter.detach()).norm() < 0.03 * moved, name


@both
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_state_goes_on_exactly(kind: type[GPT], name: str) -> None:
    config = TrainConfig(optimizer=name)  # type: ignore[arg-type]
    through, computing_through, optimizer = set_up(kind, config)
    for seed in range(3):
        one_step(computing_through, optimizer, seed)
    model, computing, first = set_up(kind, config)
    one_step(computing, first, 0)
    saved = copy.deepcopy(state_of(first))
    again, computing, then = set_up(kind, config)
    again.load_state_dict(model.state_dict())
    load_state(then, saved)
    for seed in (1, 2):
        one_step(computing, then, seed)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), again.parameters(), strict=True))


@both
def test_a_loaded_state_takes_the_configs_rates_and_decay(kind: type[GPT]) -> None:
    """The next step is AdamW's by hand, from the saved moments and with the new values."""
    model, computing, saved = set_up(kind, TrainConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.95))
    one_step(computing, saved, seed=0)
    state = copy.deepcopy(state_of(saved))
    changed = TrainConfig(learning_rate=1e-4, weight_decay=0.3, beta1=0.8, beta2=0.99, grad_clip=0)
    model, computing, optimizer = set_up(kind, changed)
    load_state(optimizer, state)
    before = weights(model)
    give(model, computing, constant(model, 0.5))
    optimizer.clip()
    optimizer.update()
    for name, after in weights(model).items():
        moments = state["moments"][name]
        average, square = 0.8 * moments["exp_avg"] + 0.2 * 0.5, 0.99 * moments["exp_avg_sq"] + 0.01 * 0.25
        step = average / (1 - 0.8**2) / ((square / (1 - 0.99**2)).sqrt() + 1e-8)
        expected = before[name] * (1 - 1e-4 * (0.3 if after.dim() == 2 else 0.0)) - 1e-4 * step
        torch.testing.assert_close(after, expected, atol=1e-7, rtol=1e-5, msg=name)


@both
def test_the_state_of_something_else_is_refused(kind: type[GPT]) -> None:
    own = set_up(kind, TrainConfig())[2]
    others = set_up(kind, TrainConfig(optimizer="muon"))[2], set_up(kind, TrainConfig(), position="rope")[2]
    released = {"exp_avg": [torch.zeros(3)], "exp_avg_sq": [torch.zeros(3)], "steps": [torch.zeros(())]}
    nonsense: list[dict[str, Any]] = [{}, {"moments": 1}, {"moments": 1, "steps": 1}, {"moments": {}, "steps": 1}]
    nonsense += [{"moments": released, "scaler": {}}, {"moments": {"exp_avg": [1, 2], "exp_avg_sq": [], "steps": []}}]
    for state in (*map(state_of, others), *nonsense):
        with pytest.raises(TinyGPTError, match="does not fit this model"):
            load_state(own, state)


# ---- mixed precision --------------------------------------------------------------------------------------------


def test_training_on_pairs_computes_the_logits_of_targets_alone() -> None:
    flat, sizes = FlatWeights(tiny(FastGPT), torch.float32), []
    flat.model.lm_head.register_forward_hook(lambda *call: sizes.append(call[-1].shape))
    x = torch.arange(32).view(4, 8) % 11
    flat(x, x)
    flat(x, x.masked_fill(x < 5, -1))
    assert sizes == [(4, 8, 11), (int((x >= 5).sum()), 11)]


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
