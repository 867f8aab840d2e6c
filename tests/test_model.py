"""The model against formulas, and against itself.

test_architectures.py compares it with transformers' GPT-2, MPT, Llama and others, test_fast.py the two paths.
"""

import itertools
import math
import typing
from typing import Any

import pytest
import torch
from models import CHOICES, NEEDS, SMALL, every_pair, every_path, ids, largest, shaken, small

from tinygpt.base.configs.core import TrainConfig
from tinygpt.checkpoint.resize import set_block_size
from tinygpt.generate import Sampling, generate
from tinygpt.model import GPT, GPTConfig
from tinygpt.options import POSITIONS


@pytest.mark.parametrize("name", CHOICES)
@every_path
@torch.inference_mode()
def test_every_value_of_an_option_makes_another_model(kind: type[GPT], name: str) -> None:
    """The same weights, where two models have them both, and other logits: no value is taken for another."""
    models = [shaken(small(kind=kind, **NEEDS.get(name, {}) | {name: value})) for value in CHOICES[name]]
    found, first = [], dict(models[0].named_parameters())
    for model in models:
        for key, parameter in model.named_parameters():
            if key in first and parameter.shape == first[key].shape:
                parameter.copy_(first[key])
        found.append(model(ids(2, 16))[0])
    if name == "zero_init":  # the initial weights are what it changes
        found = [small(kind=kind, zero_init=value)(ids(2, 16))[0] for value in CHOICES[name]]
    for a, b in itertools.combinations(found, 2):
        assert largest(a - b) > 1e-3


@pytest.mark.parametrize("name", CHOICES)
def test_the_configuration_offers_what_the_model_has(name: str) -> None:
    if isinstance(getattr(GPTConfig, name), str):
        assert [*typing.get_args(typing.get_type_hints(TrainConfig)[name])] == CHOICES[name]
    assert getattr(TrainConfig, name) == getattr(SMALL, name) == getattr(GPTConfig, name)


@every_pair
def test_the_first_loss_is_that_of_a_uniform_guess(options: dict[str, Any]) -> None:
    assert abs(small(**options)(ids(8, 16), ids(8, 16, seed=1))[1].item() - math.log(65)) < 0.05


@torch.inference_mode()
def test_loss_is_the_mean_over_the_targets_that_are_not_padding() -> None:
    model = shaken(small())
    x, y = ids(3, 16), ids(3, 16, seed=1)
    y[0, 4:] = y[2, :] = -1
    logits, loss = model(x, y)
    chances = logits.double().softmax(-1)
    by_hand = [-math.log(chances[b, t, y[b, t]]) for b in range(3) for t in range(16) if y[b, t] != -1]
    assert len(by_hand) == 20
    assert loss.item() == pytest.approx(sum(by_hand) / 20, abs=1e-5)


@every_pair
@every_path
@torch.inference_mode()
def test_no_logit_depends_on_a_later_token(kind: type[GPT], options: dict[str, Any]) -> None:
    model, idx = shaken(small(kind=kind, **options)), ids(2, 16)
    before = model(idx)[0]
    for at in (1, 7, 15):
        changed = idx.clone()
        changed[:, at] = (changed[:, at] + 1) % 65
        after = model(changed)[0]
        assert torch.equal(after[:, :at], before[:, :at])
        assert largest(after[:, at:] - before[:, at:]) > 0.01
        assert largest(after[:, -1] - before[:, -1]) > 1e-4  # and the past does count


@every_pair
@every_path
@torch.inference_mode()
def test_targets_only_gives_the_positions_with_a_target_and_last_only_the_last(
    kind: type[GPT], options: dict[str, Any]
) -> None:
    model = shaken(small(kind=kind, **options))
    last = model(ids(2, 16), last_only=True)[0]
    assert last.shape == (2, 1, 65)
    torch.testing.assert_close(last, model(ids(2, 16))[0][:, -1:], atol=1e-5, rtol=1e-5)
    x, y = ids(3, 16), ids(3, 16, seed=1)
    x[:, :9] = x[:1, :9]  # the fast path computes this beginning once
    y[:, :10] = y[1] = -1
    (every, loss), (some, loss_of_some) = model(x, y), model(x, y, targets_only=True)
    assert every.shape == (3, 16, 65) and some.shape == (12, 65)
    torch.testing.assert_close(some, every[y >= 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss_of_some, loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
@every_path
@torch.inference_mode()
def test_a_position_attends_to_itself_and_to_window_minus_one_before_it(kind: type[GPT], position: str) -> None:
    """In one layer: the changed token at position 5 is seen at 5, 6, ..., 5 + window - 1, and nowhere else."""
    for window in (1, 2, 7, 0):
        model, idx = shaken(small(kind=kind, position=position, window=window, n_layer=1)), ids(1, 16)
        changed = idx.clone()
        changed[:, 5] = (changed[:, 5] + 1) % 65
        differs = (model(idx)[0] - model(changed)[0]).abs().amax((0, 2)) > 1e-4
        assert differs.nonzero().flatten().tolist() == [*range(5, min(5 + (window or 16), 16))]
    attention = shaken(small(kind=kind, position=position, window=1)).transformer["h"][0].attn
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    values = attention.c_attn(x)[..., 64:]  # with one key, the softmax is 1
    context = small(position=position, window=1).context(torch.arange(16))
    torch.testing.assert_close(attention(x, context), attention.c_proj(values))


@every_pair
def test_every_tensor_is_made_on_the_models_device(options: dict[str, Any]) -> None:
    """On the device "meta", which computes shapes alone and, like a GPU, refuses tensors of the CPU."""
    model, idx = small(**options).to("meta"), ids(2, 16).to("meta")
    loss = model(idx, idx)[1]
    loss.backward()
    cache = model.new_cache(2)
    logits = [model(piece, cache=cache)[0] for piece in idx.split([3, 1, 12], dim=1)]
    assert {tensor.device.type for tensor in (loss, *logits)} == {"meta"}


@every_pair
def test_dropout_works_in_training_only(options: dict[str, Any]) -> None:
    model = shaken(small(**options, dropout=0.5))
    assert torch.equal(model(ids(1, 16))[0], model(ids(1, 16))[0])
    assert torch.equal(model(ids(1, 16))[0], shaken(small(**options))(ids(1, 16))[0])
    model.train()
    assert largest(model(ids(1, 16))[0] - model(ids(1, 16))[0]) > 0.01


def test_parameters_by_formula() -> None:
    C, V, L = 32, 65, 2
    for bias, norm, position, tied in itertools.product([0, 1], CHOICES["norm"], CHOICES["position"], [0, 1]):
        model = small(bias=bool(bias), norm=norm, position=position, tie_weights=bool(tied))
        norms = (2 * L + 1) * C * (2 if bias and norm == "layernorm" else 1)
        blocks = L * (12 * C * C + bias * 9 * C)  # 3C + C in attention, 4C + C in the MLP
        assert model.num_params() == V * C * (1 if tied else 2) + blocks + norms
        positions = sum(p.numel() for p in model.parameters()) - model.num_params()
        assert positions == (16 * C if position == "learned" else 0)
    assert small(activation="swiglu").num_params() == pytest.approx(small().num_params(), rel=0.02)


def test_initial_weights_are_gpt2s() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, bias=True))
    for name, weight in model.named_parameters():
        if weight.dim() == 2:  # 8 projections add up in the residual stream
            expected = 0.02 / math.sqrt(8) if name.endswith("c_proj.weight") else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert torch.equal(weight, torch.full_like(weight, float("ln" in name and "weight" in name))), name


@torch.inference_mode()
def test_zero_initialised_blocks_begin_as_the_identity_and_the_bigram_table_is_looked_up_by_hand() -> None:
    """Row 65 a + b is added where b follows a; the first token follows token 0."""
    idx = ids(2, 16)
    pairs = torch.tensor([[65 * (row[t - 1] if t else 0) + row[t] for t in range(16)] for row in idx.tolist()])
    for bigram_table in (False, True):
        model = small(bigram_table=bigram_table, zero_init=True)
        x = model.transformer["wte"](idx) + model.transformer["wpe"].weight
        x = x + model.transformer["wbe"].weight[pairs] if bigram_table else x
        torch.testing.assert_close(model(idx)[0], model.lm_head(model.transformer["ln_f"](x)))
        assert model.num_params() == small().num_params() + bigram_table * 65 * 65 * 32
    assert largest(small()(idx)[0] - model(idx)[0]) > 1e-3


@torch.inference_mode()
def test_a_shifted_block_reads_half_of_the_position_before() -> None:
    """One block by hand: channel c < 16 of what is read at t comes from t - 1, zero at the first; the rest from t."""
    model, x = shaken(small(token_shift=True, n_layer=1)), torch.randn(2, 16, 32)
    block = model.transformer["h"][0]

    def read(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for t in range(16):
            for c in range(32):
                out[:, t, c] = x[:, t, c] if c >= 16 else x[:, t - 1, c] if t else 0
        return out

    context = model.context(torch.arange(16))
    middle = x + block.attn(read(block.ln_1(x)), context)
    expected = middle + block.mlp(read(block.ln_2(middle)))
    torch.testing.assert_close(block(x, context), expected)
    block.token_shift = False
    assert largest(block(x, context) - expected) > 1e-3


@pytest.mark.parametrize("position", CHOICES["position"])
@torch.inference_mode()
def test_another_context_changes_no_logit_inside_it(position: str) -> None:
    model = shaken(small(position=position))
    before = model(ids(2, 16))[0]
    if POSITIONS[position].relative:
        set_block_size(model, 40)
        assert torch.equal(model(ids(2, 16))[0], before)
        longer = shaken(small(position=position, block_size=40))
        assert torch.equal(longer(ids(2, 40))[0], model(ids(2, 40))[0])
    set_block_size(model, 8)
    assert model.config.block_size == 8
    torch.testing.assert_close(model(ids(2, 16)[:, :8])[0], before[:, :8])
    assert len(list(generate(model, ids(1, 8), 12, Sampling(seed=1)))) == 12
    GPT(model.config).load_state_dict(model.state_dict())  # a table of positions has been cropped too
