"""The checks of step 3: the bigram model, and the lowest loss it can reach."""

import math
from typing import Any

import torch

from tinygpt.learn.exercise.steps.expect import (
    check,
    expect,
    expect_close,
    expect_number,
    expect_shape,
    noise,
    randomise,
    shown,
)

PAIRS = torch.tensor([0, 1, 0, 1, 0, 2])  # after 0: twice 1, once 2; after 1: always 0
LOWEST = (2 * math.log(3 / 2) + math.log(3) + 2 * math.log(1)) / 5


@check(
    "logits have shape (B, T, V), and the loss is None without targets",
    "logits = self.table(idx)",
)
def test_shapes(my: Any) -> None:
    logits, loss = my.Bigram(5)(torch.tensor([[0, 1, 2], [3, 4, 0]]))
    expect_shape(logits, (2, 3, 5), "the logits of Bigram(5) for idx of shape (2, 3)")
    expect(loss is None, "Bigram(5)(idx) without targets", loss, "None as the loss")


@check(
    "the logits depend on the current character only",
    "look up one row of the table per character; ignore the characters before it",
)
def test_current_character_only(my: Any) -> None:
    model = randomise(my.Bigram(5))
    logits = model(torch.tensor([[1, 2, 3], [0, 2, 4]]))[0]
    expect_close(logits[1, 1], logits[0, 1], "the logits at position 1 of [0, 2, 4] and of [1, 2, 3]")
    expect_close(logits[0, 1], model.table.weight[2], "the logits after token 2, compared with row 2 of self.table")


@check(
    "the loss is the mean cross-entropy in nats",
    "F.cross_entropy takes logits of shape (B T, V) and targets of shape (B T,)",
)
def test_loss(my: Any) -> None:
    model = my.Bigram(5)
    model.table.weight.data = 2 * noise(5, 5)
    idx = torch.tensor([[0, 1, 2], [3, 4, 0]])
    targets = torch.tensor([[1, 2, 3], [4, 0, 2]])
    expect_close(
        model(idx, targets)[1],
        -model.table.weight.log_softmax(1)[idx.flatten(), targets.flatten()].mean(),
        "idx [[0, 1, 2], [3, 4, 0]], targets [[1, 2, 3], [4, 0, 2]]: -log softmax(row)[target], averaged",
    )


@check(
    "counts_loss is the cross-entropy under the bigram frequencies",
    "p(next | current) = count(current, next) / count(current, any)",
)
def test_counts_loss(my: Any) -> None:
    got = float(my.counts_loss(PAIRS, 3))
    expect(
        abs(got - LOWEST) < 1e-4,
        "counts_loss of 0 1 0 1 0 2, where p(1 | 0) = 2/3, p(2 | 0) = 1/3 and p(0 | 1) = 1",
        f"{got:.4f}",
        f"(2 ln 3/2 + ln 3 + 2 ln 1) / 5 = {LOWEST:.4f}",
    )


@check(
    "training converges to the loss of the bigram frequencies",
    "the loss must be a tensor with a gradient: no .item(), no .detach()",
)
def test_convergence(my: Any) -> None:
    model = my.Bigram(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(PAIRS[None, :-1], PAIRS[None, 1:])[1]
        expect(
            isinstance(loss, torch.Tensor) and loss.requires_grad, "the loss", shown(loss), "a tensor with a gradient"
        )
        loss.backward()
        optimizer.step()
    expect_number(loss.item(), LOWEST, "300 training steps on 0 1 0 1 0 2, from random weights", "loss ", atol=0.02)
