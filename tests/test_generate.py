"""Sampling: the distribution against brute force, and cached generation against recomputing everything."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ids, shaken, small
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.generate import Sampling, generate, probabilities, refuse_diverged
from tinygpt.model import GPT, GPTConfig
from tinygpt.options import POSITIONS

BLOCK = 12


def tiny(seed: int = 0, **options: Any) -> GPT:
    """Random weights so large that the text varies, and depends on everything before it."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{"block_size": BLOCK, "vocab_size": 23, "n_layer": 2, "n_head": 2, "n_embd": 16} | options))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def text(model: GPT, prompt: Tensor, count: int, vocab_size: int = 0, exact: bool = False, **choice: Any) -> Tensor:
    """The generated ids, int64 (B, count)."""
    return torch.stack(list(generate(model, prompt, count, Sampling(**choice), vocab_size, exact)), dim=1)


@torch.no_grad()
def naive(model: GPT, idx: Tensor, count: int, **choice: Any) -> Tensor:
    """nanoGPT's generation: the complete window at every token."""
    sampling, start = Sampling(**choice), idx.size(1)
    generator = torch.Generator().manual_seed(sampling.seed)
    for _ in range(count):
        logits = model(idx[:, -model.config.block_size :])[0][:, -1, :]
        if sampling.temperature == 0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            logits = logits / sampling.temperature
            if sampling.top_k:
                v, _ = torch.topk(logits, min(sampling.top_k, logits.size(-1)))
                logits[logits < v[:, [-1]]] = -float("inf")
            chosen = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)
        idx = torch.cat((idx, chosen), dim=1)
    return idx[:, start:]


def prompt(rows: int = 2, length: int = 3) -> Tensor:
    return torch.randint(23, (rows, length), generator=torch.Generator().manual_seed(5))


# on a grid, so that values which differ in exact arithmetic differ in float32 too
numbers = st.lists(st.integers(-30 * 64, 30 * 64).map(lambda number: number / 64), min_size=1, max_size=30)


@settings(deadline=None)
@given(numbers, st.floats(0.05, 5), st.integers(0, 40))
def test_top_k_keeps_the_k_likeliest_and_what_ties_with_them(logits: list[float], heat: float, k: int) -> None:
    chances = probabilities(torch.tensor(logits), heat, k).tolist()
    least = sorted(logits, reverse=True)[k - 1] if 0 < k < len(logits) else -math.inf
    weights = [math.exp((x - max(logits)) / heat) if x >= least else 0.0 for x in logits]
    assert chances == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-6)
    assert sum(chances) == pytest.approx(1, abs=1e-5)
    assert all((chance > 0) <= (x >= least) for chance, x in zip(chances, logits, strict=True))


@settings(deadline=None)
@given(numbers, st.floats(0.2, 3), st.integers(0, 40), st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_that_reach_p(logits: list[float], heat: float, k: int, p: float) -> None:
    before = probabilities(torch.tensor(logits), heat, k)
    after = probabilities(torch.tensor(logits), heat, k, p)
    kept = after > 0
    assert after.sum().item() == pytest.approx(1, abs=1e-5)
    mass, slack = before[kept].double().sum().item(), 1e-5  # float32 sums may miss p by that much
    assert mass >= p - slack  # enough ...
    assert mass - before[kept].min().item() < p + slack  # ... and without the last one too few
    assert not len(before[~kept]) or before[kept].min() >= before[~kept].max()  # the most probable tokens are kept
    torch.testing.assert_close(after[kept], (before[kept].double() / mass).float(), atol=1e-6, rtol=1e-4)


def test_extreme_temperatures_give_a_distribution() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0], [500.0, -500.0, 0.0]])
    for temperature in (0, 5e-324, 1e-38, 1e-3, 1e300):
        chances = probabilities(logits, temperature, 2, 0.9)
        torch.testing.assert_close(chances.sum(-1), torch.ones(2))
        if temperature < 1:
            assert chances.argmax(-1).tolist() == [1, 0] and chances.max().item() == 1


OPTIONS: list[dict[str, Any]] = [
    *({"position": position} for position in POSITIONS),
    {"bigram_table": True},
    {"token_shift": True, "position": "rope"},
    {"token_shift": True, "bias": True},
    {"norm": "rmsnorm", "activation": "swiglu", "qk_norm": True, "bias": True},
    {"position": "rope", "norm": "rmsnorm", "activation": "relu2", "qk_norm": True, "tie_weights": False},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@options
def test_cached_text_is_nanogpts_inside_the_window_and_that_of_an_exact_window_also_past_it(
    options: dict[str, Any],
) -> None:
    model, count = tiny(**options), BLOCK - 3 + 1  # the last token is drawn from a full window
    for choice in ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 5}):
        cached = text(model, prompt(), count, **choice)
        assert not torch.equal(cached, naive(tiny(seed=1, **options), prompt(), count, **choice))
        long = naive(model, prompt(), 40, **choice)
        assert torch.equal(cached, long[:, :count])
        assert torch.equal(long, text(model, prompt(), 40, exact=True, **choice))


@torch.no_grad()
def test_learned_positions_go_on_from_half_a_window() -> None:
    """With 12 positions: when they are full, the last 6 tokens become the start of the context."""
    model, window = tiny(), prompt(1)
    made: list[int] = []
    for _ in range(60):
        chosen = model(window)[0][:, -1].argmax(-1, keepdim=True)
        made.append(chosen.item())
        window = torch.cat((window, chosen), dim=1)
        window = window[:, -BLOCK // 2 :] if window.size(1) > BLOCK else window
    assert text(model, prompt(1), 60, temperature=0.0)[0].tolist() == made
    assert made != text(model, prompt(1), 60, exact=True, temperature=0.0)[0].tolist()


@options
def test_only_the_last_block_of_a_long_prompt_counts(options: dict[str, Any]) -> None:
    model, long = tiny(**options), prompt(2, 3 * BLOCK)
    whole = text(model, long, 20, temperature=0.0)
    assert torch.equal(whole, text(model, long[:, -BLOCK:], 20, temperature=0.0))
    assert torch.equal(whole[:, 0], naive(model, long, 1, temperature=0.0)[:, 0])


def test_ids_of_padding_are_never_drawn() -> None:
    model = tiny(tie_weights=False)
    model.lm_head.weight.data[20:] *= 30  # they would be drawn all the time
    for choice in ({"temperature": 0.0}, {"temperature": 2.0, "top_k": 5, "top_p": 0.9}):
        assert text(model, prompt(16), 30, vocab_size=20, **choice).max() < 20
        assert text(model, prompt(16), 30, **choice).max() >= 20


def test_the_seed_decides() -> None:
    model = tiny()
    state = torch.get_rng_state()
    one = text(model, prompt(), 30, seed=1)
    torch.manual_seed(99)
    assert torch.equal(one, text(model, prompt(), 30, seed=1))
    assert not torch.equal(one, text(model, prompt(), 30, seed=2))
    torch.set_rng_state(state)
    text(model, prompt(), 30, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not used
    assert not torch.is_inference_mode_enabled()


@torch.inference_mode()
def test_a_head_that_overflows_is_refused() -> None:
    model = shaken(small())
    refuse_diverged(model, "ckpt.pt")
    model.transformer["ln_f"].weight *= 1e30
    model.lm_head.weight *= 1e15
    model.lm_head.weight[:, 1:] = 0  # no sum of infinite terms, which could be NaN
    assert model.residual(ids(1, 16)).isfinite().all()
    with pytest.raises(TinyGPTError, match="the logits are"):
        refuse_diverged(model, "ckpt.pt")
