"""The checks of step 6: the complete model."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from tinygpt.learn.exercise.steps.expect import (
    check,
    expect,
    expect_causal,
    expect_close,
    expect_shape,
    randomise,
    shown,
    tokens,
)


def small_gpt(my: Any, n_layer: int = 2) -> Any:
    return my.GPT(vocab_size=11, block_size=8, n_layer=n_layer, n_head=2, n_embd=16)


@check(
    "logits have shape (B, T, V) for every T up to block_size",
    "add the first T rows of self.wpe, not all of them",
)
def test_shapes(my: Any) -> None:
    for T in (8, 3, 1):
        logits, loss = small_gpt(my)(tokens(2, T))
        expect_shape(logits, (2, T, 11), f"the logits of GPT(11, 8, 2, 2, 16) for idx of shape (2, {T})")
        expect(loss is None, "the model without targets", loss, "None as the loss")


@check(
    "the loss of an untrained model is about ln(vocab_size)",
    "initialise linear and embedding weights with standard deviation 0.02",
)
def test_untrained_loss(my: Any) -> None:
    loss = small_gpt(my)(tokens(32, 8), tokens(32, 8, seed=1))[1]
    expect(isinstance(loss, torch.Tensor), "the model with targets", shown(loss), "a loss")
    expect(
        abs(loss.item() - math.log(11)) < 0.05,
        "an untrained model with vocab_size 11",
        f"{loss.item():.3f}",
        f"about ln 11 = {math.log(11):.3f}",
    )


@check(
    "the loss is the mean cross-entropy of the logits",
    "average over all positions of all sequences",
)
def test_loss(my: Any) -> None:
    model = randomise(small_gpt(my))
    x = tokens(3, 8)
    y = tokens(3, 8, seed=1)
    expected = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
    expect_close(model(x, y)[1], expected, "idx and targets of shape (3, 8)", 1e-4)


@check(
    "logits do not depend on later tokens",
    "causal attention in every block",
)
def test_causal(my: Any) -> None:
    model = randomise(small_gpt(my))
    x = tokens(2, 8)
    other = torch.cat((x[:, :-2], (x[:, -2:] + 3) % 11), 1)
    expect_causal(lambda idx: model(idx)[0], x, other, "sequences")


@check(
    "the order of earlier characters matters",
    "add the position embedding to the token embedding",
)
def test_position(my: Any) -> None:
    model = randomise(small_gpt(my, n_layer=1))
    one, two = (model(torch.tensor([text]))[0][0, -1] for text in ([1, 2, 3, 4], [2, 1, 3, 4]))
    expect(
        not torch.allclose(one, two, atol=1e-4),
        "one layer; the last logits for [1, 2, 3, 4] and for [2, 1, 3, 4]",
        "the same logits",
        "different logits",
    )


@check(
    "every parameter gets a gradient",
    "a layer that is made in __init__ but not used in forward gets none",
)
def test_every_gradient(my: Any) -> None:
    model = randomise(small_gpt(my))
    model(tokens(4, 8), tokens(4, 8, seed=1))[1].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    expect(not idle, "one backward pass", f"no gradient for {', '.join(idle)}", "a gradient for every parameter")
    sizes = [sum(p.numel() for p in small_gpt(my, n_layer).parameters()) for n_layer in (1, 2)]
    expect(sizes[1] > sizes[0], "n_layer = 2", "one block used twice", "more parameters than with n_layer = 1")
