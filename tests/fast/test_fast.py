"""The fast path computes the same as the plain path from the same weights, for every option."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ok, trained
from models import OPTIMIZERS, every_pair, ids, largest, shaken, small
from runs import column
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.lora import LoRA, attach
from tinygpt.checkpoint.store import load
from tinygpt.fast import attention
from tinygpt.fast.decoder import Decoder, Packed, can_pack, pack
from tinygpt.fast.dropout import dropout
from tinygpt.fast.model import FastGPT, model_class
from tinygpt.fast.norm import rms_norm
from tinygpt.model import GPT
from tinygpt.training.optimizer import build, state_of

CPU = Compute(torch.device("cpu"), torch.float32, "as asked")


def pair(**options: Any) -> tuple[GPT, GPT]:
    """A plain model, and a fast one with its weights."""
    plain, fast = shaken(small(**options)), small(kind=FastGPT, **options)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


LONG: dict[str, Any] = {"block_size": 600, "n_layer": 1, "n_head": 3, "n_embd": 18}


@every_pair
@pytest.mark.parametrize(
    ("size", "longest", "dropout"),
    [({}, 512, 0.0), (LONG, 512, 0.0), (LONG, 1024, 0.0), ({}, 512, 0.3)],
    ids=["short", "fused attention", "written out attention", "dropout"],
)
def test_logits_and_gradients_are_the_plain_models(
    size: dict[str, Any], longest: int, dropout: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 600 tokens both paths use fused attention; with fewer, only the plain path does."""
    monkeypatch.setattr(attention, "LONGEST", longest)
    monkeypatch.setattr(attention.FastSelfAttention, "drop", staticmethod(F.dropout))  # the same masks
    models, T = pair(**size, **options, dropout=dropout), size.get("block_size", 16)
    x, y = ids(2, T), ids(2, T, seed=1)
    found = []
    for model in models:
        torch.manual_seed(5)
        logits, loss = model.train()(x, y)
        loss.backward()
        found.append(logits)
    assert largest(found[0] - found[1]) < 1e-5 * max(1, largest(found[0]))
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert largest(a.grad - b.grad) < 1e-5 * max(1, largest(a.grad)), name
    assert dropout == 0 or largest(found[0] - models[0].eval()(x)[0]) > 0.01


@every_pair
@torch.inference_mode()
def test_decoding_takes_the_decoder_except_with_adapters(options: dict[str, Any]) -> None:
    _, fast = pair(**options)
    assert isinstance(fast.new_cache(2), Decoder)
    attach(fast, LoRA(rank=2, alpha=2.0), 0)
    cache, idx = fast.new_cache(2), ids(2, 16)
    assert not isinstance(cache, Decoder)
    cached = torch.cat([fast(piece, cache=cache)[0] for piece in idx.split([9, 1, 6], dim=1)], dim=1)
    assert largest(cached - fast(idx)[0]) < 1e-5 * largest(cached)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_pair
def test_training_moves_the_weights_as_plain_training_does(options: dict[str, Any], optimizer: str) -> None:
    """torch.optim.Muon multiplies in bfloat16 and the fast path in the run's dtype, hence the tolerance."""
    config = TrainConfig(optimizer=optimizer, learning_rate=3e-3, grad_clip=0.5, weight_decay=0.1)  # type: ignore[arg-type]
    plain, fast = pair(**options)
    before, states = {name: weight.clone() for name, weight in plain.state_dict().items()}, []
    for model in (plain, fast):
        computing, made = build(model, config, CPU)
        for seed in range(3):
            made.set_learning_rate(config.learning_rate / (seed + 1))
            made.backward(computing(ids(4, 16, seed=seed), ids(4, 16, seed=seed + 100))[1])
            made.clip()
            made.update()
        states.append(state_of(made))
    for name, weight in plain.state_dict().items():
        moved, difference = (weight - before[name]).norm(), (weight - fast.state_dict()[name]).norm()
        if not name.endswith("attn.c_attn.bias"):  # the keys' biases have no gradient but rounding
            assert moved > 0 and difference < (0.15 if optimizer == "muon" else 2e-3) * moved, name
    assert states[0]["steps"] == states[1]["steps"] == 3
    for name, parts in states[0]["moments"].items():
        others = states[1]["moments"][name]
        assert parts.keys() == others.keys(), name
        for part, moment in parts.items():
            scale = largest(moment) + 1e-6
            assert largest(moment - others[part]) < (0.1 if optimizer == "muon" else 1e-3) * scale, name


def test_only_a_cpu_has_the_fast_path() -> None:
    assert model_class("auto", CPU) is FastGPT and model_class("False", CPU) is GPT
    gpu = Compute(torch.device("cuda"), torch.bfloat16, "as asked")
    assert model_class("auto", gpu) is GPT and model_class("False", gpu) is GPT
    with pytest.raises(TinyGPTError, match="fast=True is for a CPU, not for cuda"):
        model_class("True", gpu)


PATHS = {"fast": "--fast=True", "plain": "--fast=False"}


@pytest.mark.parametrize("first", PATHS)
def test_a_resumed_run_can_change_its_path_and_says_so(work: Path, first: str) -> None:
    """Ten iterations on each path give the losses of twenty on one, up to rounding."""
    other = {"fast": "plain", "plain": "fast"}[first]
    trained(work, PATHS[first], "--dropout=0", "--out_dir=whole")  # the paths draw other masks
    trained(work, PATHS[first], "--dropout=0", "--max_iters=10")
    resumed = ok(work, "train", "--init_from=resume", PATHS[other], "--max_iters=20")
    assert f"was {first} until now and is {other} from here on" in resumed.out
    whole, parts = (column(work / folder, "train", "loss") for folder in ("whole", "out"))
    assert len(parts) == 20 and parts == pytest.approx(whole, abs=1e-3) and parts[:10] == whole[:10]
    again = ok(work, "train", "--init_from=resume", "--max_iters=20")
    assert "until now" not in again.out  # the run now uses this path itself


@pytest.mark.parametrize("path", PATHS.values())
def test_a_run_can_become_a_float16_run_and_back(work: Path, path: str) -> None:
    """As when a run moves to a GPU without bfloat16. Only a float16 run has a scaler's state."""
    trained(work, path, "--dtype=bfloat16", "--max_iters=10")
    for iterations, dtype in ((12, "float16"), (14, "bfloat16"), (16, "float16"), (18, "float16")):
        resumed = ok(work, "train", "--init_from=resume", f"--dtype={dtype}", f"--max_iters={iterations}")
        assert ("until now and is" in resumed.out) == (iterations < 18)
    assert load(work / "out/last.pt").step == 18


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.02, 300.0])
def test_the_norm_and_its_gradient_do_not_overflow(size: float, dtype: torch.dtype, autocast: bool) -> None:
    """The square of 300 and the cube of 1 / 0.02 are above the largest number of float16."""
    torch.manual_seed(0)
    x = (torch.randn(4, 128) * size).to(torch.float32 if autocast else dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    weight = torch.linspace(0.5, 2, 128)
    (F.rms_norm(exact, (128,), weight.double(), 1e-5) * torch.linspace(-1, 1, 128)).sum().backward()
    with torch.autocast("cpu", dtype, enabled=autocast and dtype is not torch.float32):
        (rms_norm(x, weight.to(x.dtype), 1e-5).float() * torch.linspace(-1, 1, 128)).sum().backward()
    assert x.grad is not None and exact.grad is not None
    assert largest(x.grad - exact.grad) < 0.02 * largest(exact.grad)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the ids of each forward pass."""
    shapes, residual = list[tuple[int, ...]](), FastGPT.residual

    def noted(self: FastGPT, idx: Tensor, *more: Any) -> Tensor:
        shapes.append(tuple(idx.shape))
        return residual(self, idx, *more)

    monkeypatch.setattr(FastGPT, "residual", noted)
    return shapes


@pytest.mark.parametrize(
    "options", [{"n_kv_head": 1}, {"position": "learned"}, {"position": "alibi", "window": 4}], ids=str
)
@pytest.mark.parametrize("prefix", [0, 7, 8, 14])
def test_rows_with_a_common_beginning_have_the_loss_and_the_gradients_of_gpt(
    options: dict[str, Any], prefix: int, passes: list[tuple[int, ...]]
) -> None:
    plain, fast = pair(**{"position": "rope", "n_head": 4, **options})
    x, y = ids(3, 16), ids(3, 16, seed=1)
    x[:, :prefix], x[0, prefix], x[1:, prefix] = x[:1, :prefix], 1, 2
    y[:, :-2] = -1
    y[1, -2] = -1
    (logits, loss), (fast_logits, fast_loss) = (model(x, y, targets_only=True) for model in (plain, fast))
    assert largest(logits - fast_logits) < 1e-5 * largest(logits)
    losses = [plain(x, y)[1], fast_loss]
    assert largest(loss - losses[0]) < 1e-5 and largest(losses[0] - losses[1]) < 1e-5
    for loss in losses:
        loss.backward()
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        assert largest(a.grad - b.grad) < 1e-4 * max(1.0, largest(a.grad))
    assert passes == ([(1, prefix), (3, 16 - prefix)] if prefix >= 8 else [(3, 16)])


@every_pair
@torch.inference_mode()
def test_a_packed_model_in_bfloat16_has_the_same_logits(options: dict[str, Any]) -> None:
    if not can_pack():
        pytest.skip("this processor, or this PyTorch, has no packed products in bfloat16")
    plain, other = (shaken(small(n_embd=64, **options)).to(torch.bfloat16).eval() for _ in range(2))
    packed = pack(other)
    assert isinstance(packed.lm_head, Packed) and isinstance(packed.transformer["h"][0].attn.c_attn, Packed)
    cache, idx = packed.new_cache(2), ids(2, 16)
    expected = plain(idx)[0]
    torch.testing.assert_close(packed(idx)[0], expected, atol=0.02 * largest(expected), rtol=0)
    for position in range(3):
        logits = packed.next_logits(idx[:, position : position + 1], cache)
        torch.testing.assert_close(logits, expected[:, position], atol=0.05 * largest(expected), rtol=0)
    assert pack(small(**options)).lm_head.weight.dtype == torch.float32  # not packed: it would lose precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_drops_independently(dtype: torch.dtype) -> None:
    x, p = torch.ones(401, 503, dtype=dtype, requires_grad=True), 0.2  # no multiple of four
    torch.manual_seed(1)
    y = dropout(x, p, True)
    y.backward(torch.ones_like(y))
    kept = (y != 0).double()
    assert kept.mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    assert y[y != 0].float().unique().tolist() == pytest.approx([1.25], rel=1e-2 if dtype is torch.bfloat16 else 1e-4)
    assert x.grad is not None and torch.equal(x.grad, y)
    flat = kept.flatten() - kept.mean()
    for shift in range(1, 9):  # neighbours share a random number
        assert abs((flat[shift:] * flat[:-shift]).mean().item()) < 5 * p * (1 - p) / x.numel() ** 0.5
    torch.manual_seed(1)
    assert torch.equal(dropout(x, p, True), y) and not torch.equal(dropout(x, p, True), y)
    assert dropout(x, p, False) is x and dropout(x, 0.0, True) is x
    assert (dropout(x, 0.999999, True) != 0).sum() < 20
