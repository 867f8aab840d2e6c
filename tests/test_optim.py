"""AdamW against torch's plain one, Muon against what it is meant to do; and mixed precision, whose flat weights they
move, against the model itself."""

import copy
from typing import Any

import pytest
import torch

from tinygpt.config.schema import TrainConfig
from tinygpt.errors import TinyGPTError
from tinygpt.fast.weights import MATRIX, MixedPrecision
from tinygpt.model import GPT, GPTConfig
from tinygpt.training.optimizer import Optimizer


def tiny(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, bias=True, **options))


def set_up(config: TrainConfig, **options: Any) -> tuple[GPT, MixedPrecision, Optimizer]:
    model = tiny(**options)
    mixed = MixedPrecision(model, torch.float32)
    return model, mixed, Optimizer(mixed, config)


def gradient(mixed: MixedPrecision | GPT, seed: int) -> None:
    x = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(seed))
    mixed(x[:, :-1], x[:, 1:])[1].backward()


def one_step(mixed: MixedPrecision, optimizer: Optimizer, seed: int) -> None:
    gradient(mixed, seed)
    optimizer.clip()
    optimizer.update()


def weights(model: GPT) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ---- the learning rates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "muons"), [(1e-3, 0.02), (2.5e-4, 0.005), (0.0, 0.0)])
def test_muons_rate_moves_with_adamws(rate: float, muons: float) -> None:
    """A constant gradient: Adam's first step is the rate itself, and Muon's goes with its own."""
    config = TrainConfig(optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.02, weight_decay=0, grad_clip=0)
    _, mixed, optimizer = set_up(config)
    optimizer.set_learning_rate(rate)
    before, matrices = mixed.flat.detach().clone(), mixed.place_of(MATRIX)
    mixed.flat.grad = torch.ones_like(mixed.flat)
    optimizer.update()
    moved = (before - mixed.flat.detach()).abs()
    torch.testing.assert_close(moved[matrices.stop :], torch.full_like(moved[matrices.stop :], rate), rtol=1e-2, atol=0)
    size = sum(max(1, shape[0] / shape[1]) for name, shape in mixed.shapes.items() if mixed.kinds[name] == MATRIX)
    assert moved[matrices].norm() == pytest.approx(muons * size**0.5, rel=0.35)  # Newton-Schulz leaves 0.7 to 1.2


def test_a_rate_of_zero_stays_zero() -> None:
    _, mixed, optimizer = set_up(TrainConfig(optimizer="muon", learning_rate=0.0))
    before = mixed.flat.detach().clone()
    one_step(mixed, optimizer, seed=0)
    assert torch.equal(mixed.flat.detach(), before)


# ---- which weights are moved how --------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [{}, {"position": "rope", "tie_weights": False, "norm": "rmsnorm"}]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matrices_are_decayed_and_vectors_are_not(options: dict[str, Any], optimizer: str) -> None:
    """Without a gradient, decay is all that moves: by rate times decay."""
    config = TrainConfig(optimizer=optimizer, learning_rate=0.1, muon_learning_rate=0.2, weight_decay=0.5)
    model, mixed, made = set_up(config, **options)
    before = weights(model)
    mixed.flat.grad = torch.zeros_like(mixed.flat)
    made.clip()
    made.update()
    for name, after in weights(model).items():
        muon = optimizer == "muon" and ".h." in name
        kept = (1 - 0.5 * (0.2 if muon else 0.1)) if after.dim() == 2 else 1.0
        torch.testing.assert_close(after, before[name] * kept, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_weight_is_moved_exactly_once(options: dict[str, Any], optimizer: str) -> None:
    """A constant gradient of 1: Adam's first step is the rate itself, so twice would show."""
    config = TrainConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.0, grad_clip=0)
    model, mixed, made = set_up(config, **options)
    before = weights(model)
    mixed.flat.grad = torch.ones_like(mixed.flat)
    made.clip()
    made.update()
    for name, after in weights(model).items():
        moved = before[name] - after
        if optimizer == "adamw" or ".h." not in name or after.dim() < 2:
            torch.testing.assert_close(moved, torch.full_like(moved, 0.1), atol=1e-4, rtol=0, msg=name)
        else:  # Muon: a matrix of rank one stays one, its singular value becomes about 1
            assert moved.std() < 1e-3 and 0.5 < moved.norm() / 0.02 / max(1, after.size(0) / after.size(1)) ** 0.5 < 1.5


def test_frozen_weights_are_left_out() -> None:
    model = tiny()
    before = model.transformer["wte"].weight.requires_grad_(False).clone()
    mixed = MixedPrecision(model, torch.float32)
    optimizer = Optimizer(mixed, TrainConfig())
    others = weights(model)
    one_step(mixed, optimizer, seed=0)
    assert torch.equal(model.transformer["wte"].weight, before)
    assert not torch.equal(model.transformer["wpe"].weight, others["transformer.wpe.weight"])


# ---- the updates ------------------------------------------------------------------------------------------------


def test_adamw_and_clipping_are_torchs_plain_ones() -> None:
    config = TrainConfig(learning_rate=1e-2, beta1=0.8, beta2=0.97, weight_decay=0.2, grad_clip=0.3)
    ours, mixed, mine = set_up(config)
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
        gradient(mixed, seed)
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


def test_muon_moves_matrices_by_nearly_orthogonal_updates() -> None:
    """Every singular value of an update is near the rate (Newton-Schulz leaves 0.7 to 1.2), as no gradient's are."""
    model, mixed, optimizer = set_up(TrainConfig(optimizer="muon", muon_learning_rate=0.1, weight_decay=0.0))
    before = weights(model)
    torch.manual_seed(0)
    gradients = {}
    for name, shape in mixed.shapes.items():
        gradients[name] = torch.randn(shape)
        if len(shape) == 2:  # singular values from 0.1 to 1
            u, values, v = torch.linalg.svd(gradients[name], full_matrices=False)
            gradients[name] = u @ torch.linspace(1, 0.1, len(values)).diag() @ v
    mixed.flat.grad = torch.cat([gradients[name].flatten() for name in mixed.places])
    optimizer.clip()
    optimizer.update()
    for name, after in weights(model).items():
        moved = after - before[name]
        assert moved.abs().max() > 0, name
        if ".h." in name and after.dim() == 2:
            tall = max(1, after.size(0) / after.size(1)) ** 0.5  # a tall matrix goes further: Jordan's "original"
            values = torch.linalg.svdvals(moved) / (0.1 * tall)
            assert values.min() > 0.6 and values.max() < 1.3, name
            u, _, v = torch.linalg.svd(gradients[name], full_matrices=False)
            off = (moved / (0.1 * tall) + u @ v).norm() / len(values) ** 0.5
            assert off < 0.3, name  # and the direction is the gradient's own, downhill


def test_muon_is_torchs() -> None:
    """torch's takes the matrices one by one, its products in bfloat16; ours in batches of one shape."""
    config = TrainConfig(optimizer="muon", muon_learning_rate=0.02, weight_decay=5.0, grad_clip=0)
    model, mixed, optimizer = set_up(config)
    start, theirs = weights(model), tiny()
    matrices = [p for name, p in theirs.named_parameters() if ".h." in name and p.dim() == 2]
    plain = torch.optim.Muon(matrices, lr=0.02, weight_decay=5.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        given = {name: torch.randn(p.shape, generator=generator) for name, p in theirs.named_parameters()}
        for name, parameter in theirs.named_parameters():
            parameter.grad = given[name].clone()
        mixed.flat.grad = torch.cat([given[name].flatten() for name in mixed.places])
        optimizer.clip()
        optimizer.update()
        plain.step()
    for name, parameter in theirs.named_parameters():
        if ".h." in name and parameter.dim() == 2:
            moved = (parameter.detach() - start[name]).norm()
            assert (weights(model)[name] - parameter.detach()).norm() < 0.03 * moved, name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_saved_state_goes_on_exactly(kind: str) -> None:
    config = TrainConfig(optimizer=kind)  # type: ignore[arg-type]
    through, mixed_through, optimizer = set_up(config)
    for seed in range(3):
        one_step(mixed_through, optimizer, seed)
    model, mixed, first = set_up(config)
    one_step(mixed, first, 0)
    saved = copy.deepcopy(first.state_dict())
    then = Optimizer(mixed, config)
    then.load_state_dict(saved)
    for seed in (1, 2):
        one_step(mixed, then, seed)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), model.parameters(), strict=True))


def test_a_loaded_state_takes_the_configs_rates_and_decay() -> None:
    """What was learned about the gradients is the state's; rates, decay and betas are the config's of now."""
    _, mixed, saved = set_up(TrainConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.95))
    one_step(mixed, saved, seed=0)
    optimizer = Optimizer(mixed, TrainConfig(learning_rate=1e-4, weight_decay=0.3, beta2=0.99))
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.rate == 1e-4 and optimizer.adamw.decays == [0.3, 0.0] and optimizer.adamw.betas == (0.9, 0.99)
    assert [float(step) for step in optimizer.adamw.steps] == [1.0, 1.0]
    assert torch.equal(optimizer.adamw.exp_avg[0], saved.adamw.exp_avg[0]) and optimizer.adamw.exp_avg[0].norm() > 0


def test_the_state_of_something_else_is_refused() -> None:
    own = set_up(TrainConfig())[2]
    for other in (set_up(TrainConfig(optimizer="muon"))[2], set_up(TrainConfig(), position="rope")[2]):
        with pytest.raises(TinyGPTError, match="not that of this model"):
            own.load_state_dict(other.state_dict())
    for nonsense in ({}, {"moments": 1}, {"moments": {"exp_avg": [1, 2], "exp_avg_sq": [], "steps": []}}):
        with pytest.raises(TinyGPTError, match="not that of this model"):
            own.load_state_dict(nonsense)


# ---- mixed precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [*OPTIONS, {"activation": "swiglu", "qk_norm": True}], ids=str)
def test_mixed_precision_in_float32_is_the_model(options: dict[str, Any]) -> None:
    model = tiny(**options)
    gradient(model, seed=0)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    x = torch.arange(8)[None] % 11
    logits = model(x)[0]
    mixed = MixedPrecision(model, torch.float32)
    assert torch.equal(mixed(x)[0], logits) and torch.equal(model(x)[0], logits)
    gradient(mixed, seed=0)
    assert mixed.places.keys() == expected.keys() and mixed.flat.numel() == sum(g.numel() for g in expected.values())
    for name, place in mixed.places.items():
        torch.testing.assert_close(mixed.flat.grad[place].view(mixed.shapes[name]), expected[name], msg=name)


def test_the_models_weights_are_the_ones_trained() -> None:
    model, mixed, optimizer = set_up(TrainConfig(learning_rate=0.1))
    before = weights(model)
    one_step(mixed, optimizer, seed=0)
    for name, after in weights(model).items():
        assert not torch.equal(after, before[name]), name
        assert torch.equal(after.flatten(), mixed.flat[mixed.places[name]])


def test_gradients_of_micro_steps_add_up_in_float32() -> None:
    """256 + 1 is 256 in bfloat16."""
    mixed = MixedPrecision(tiny(), torch.bfloat16)
    gradient(mixed, seed=0)
    one = mixed.flat.grad.clone()
    mixed.flat.grad.mul_(0).add_(256.0)
    gradient(mixed, seed=0)
    assert mixed.flat.grad.dtype == torch.float32
    torch.testing.assert_close(mixed.flat.grad - 256.0, one, atol=1e-4, rtol=0)
    assert one.abs().max() > 1e-3
