"""The checks of step 10: a frozen layer with a low-rank update; merging."""

from typing import Any

import torch.nn as nn

from tinygpt.learn.exercise.steps.expect import check, expect, expect_close, expect_shape, noise, randomise


def linear() -> Any:
    return randomise(nn.Linear(6, 4))


def adapter(my: Any, layer: nn.Linear) -> Any:
    return my.LoRALinear(layer, rank=2, alpha=8.0)


def trained_adapter(my: Any, layer: nn.Linear) -> Any:
    """Return an adapter as after some training."""
    own = adapter(my, layer)
    own.A.data = noise(2, 6, seed=2)
    own.B.data = noise(4, 2, seed=3)
    return own


@check(
    "A is (rank, in_features) and B is (out_features, rank)",
    "make both in __init__, as nn.Parameter",
)
def test_shapes(my: Any) -> None:
    own = adapter(my, linear())
    for name, shape in (("A", (2, 6)), ("B", (4, 2))):
        expect_shape(getattr(own, name, None), shape, f"LoRALinear(nn.Linear(6, 4), rank=2, alpha=8).{name}")


@check(
    "a new adapter does not change the output",
    "initialise B with zeros, so that B A is zero",
)
def test_unchanged_output(my: Any) -> None:
    expect_close(
        adapter(my, linear())(noise(3, 6)),
        linear()(noise(3, 6)),
        "a new LoRALinear, compared with the layer that it wraps",
    )


@check(
    "only A and B are trainable",
    "linear.requires_grad_(False), and A and B as nn.Parameter: rank (in + out) trainable parameters",
)
def test_trainable(my: Any) -> None:
    got = sorted(name for name, parameter in adapter(my, linear()).named_parameters() if parameter.requires_grad)
    expect(
        got == ["A", "B"],
        "the trainable parameters for in_features 6, out_features 4, rank 2",
        ", ".join(got),
        "A, B: 2 (6 + 4) = 20 parameters",
    )


@check(
    "a new adapter can learn",
    "if A and B are both zero, both gradients are zero and stay zero",
)
def test_can_learn(my: Any) -> None:
    own = adapter(my, linear())
    own(noise(3, 6)).square().sum().backward()
    moved = any(part.grad is not None and part.grad.abs().sum() > 0 for part in (own.A, own.B))
    expect(moved, "the gradients of A and B after one backward pass", "zero", "one of them not zero")


@check(
    "the adapter adds (alpha / rank) B A x",
    "rank 2 and alpha 8: a factor of 4",
)
def test_scaled_update(my: Any) -> None:
    own = trained_adapter(my, linear())
    x = noise(3, 6, seed=4)
    expect_close(
        own(x),
        linear()(x) + 4 * x @ own.A.T @ own.B.T,
        "alpha 8, rank 2: the output is W x + bias + 4 B A x",
        1e-4,
    )


@check(
    "the merged layer computes the same output",
    "the weight W + (alpha / rank) B A, with the same bias",
)
def test_merged(my: Any) -> None:
    own = trained_adapter(my, linear())
    x = noise(3, 6, seed=4)
    before = own(x)
    merged = own.merged()
    expect(type(merged) is nn.Linear, "the return value of merged()", f"a {type(merged).__name__}", "an nn.Linear")
    expect_close(merged(x), before, "merged()(x), compared with the LoRALinear itself", 1e-4)


@check(
    "merging does not change the frozen layer",
    "copy the weight before you add to it",
)
def test_frozen_layer(my: Any) -> None:
    layer = linear()
    before = layer.weight.detach().clone()
    trained_adapter(my, layer).merged()
    expect_close(layer.weight, before, "the frozen weight after merged()")
