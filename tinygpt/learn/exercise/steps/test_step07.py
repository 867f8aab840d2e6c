"""The checks of step 7: learning rate schedule; one step, gradient clipping."""

import math
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from tinygpt.learn.exercise.steps.expect import check, expect, expect_number, tokens
from tinygpt.model import GPT, GPTConfig


class Line(nn.Module):
    """A model with a simple gradient: loss = mean((w x - y)^2), so dloss/dw = mean(2 x (w x - y))."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.w * x, ((self.w * x - y) ** 2).mean()


def line_steps(my: Any, steps: int = 1, max_norm: float = 1e9) -> tuple[Any, float]:
    """Train a Line on x = 1, y = 1 with SGD and lr = 0.1. Returns what the last step returned, and w."""
    model = Line()
    one = torch.tensor([1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        loss = my.train_step(model, optimizer, one, one, 0.1, max_norm)
    return loss, model.w.item()


def expect_rates(my: Any, rates: dict[int, float]) -> None:
    """Check the learning rate of each step in `rates`."""
    for step, expected in rates.items():
        got = float(my.learning_rate(step, peak=1.0, minimum=0.1, warmup=9, total=109))
        expect_number(got, expected, f"learning_rate({step}, peak=1.0, minimum=0.1, warmup=9, total=109)")


@check(
    "the learning rate rises to the peak, then falls to the minimum",
    "three cases: step < warmup, step > total, and the cosine between them",
)
def test_rises_and_falls(my: Any) -> None:
    expect_rates(my, {0: 0.1, 3: 0.4, 9: 1.0, 109: 0.1, 500: 0.1})


@check(
    "the decay follows half a cosine",
    "(1 + cos(pi * progress)) / 2, where progress goes from 0 at warmup to 1 at total",
)
def test_cosine(my: Any) -> None:
    expect_rates(my, {34: 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 59: 0.55})


@check(
    "train_step returns the loss before the update, as a float",
    "loss.item()",
)
def test_loss_before_update(my: Any) -> None:
    loss, _ = line_steps(my)
    expect(isinstance(loss, float), "the return value of train_step", f"a {type(loss).__name__}", "a float")
    expect_number(loss, 1.0, "w = 0, x = 1, y = 1: the loss (w x - y)^2")


@check(
    "the update uses the given learning rate",
    "for group in optimizer.param_groups: group['lr'] = lr",
)
def test_given_rate(my: Any) -> None:
    expect_number(line_steps(my)[1], 0.2, "w = 0 with gradient -2, plain SGD, lr = 0.1", "w = ")


@check(
    "each update uses the gradient of its own batch only",
    "optimizer.zero_grad() before loss.backward()",
)
def test_own_gradient(my: Any) -> None:
    expect_number(
        line_steps(my, steps=2)[1],
        0.36,
        "two steps with lr = 0.1: w = 0 with gradient -2, then w = 0.2 with gradient -1.6",
        "w = ",
    )


@check(
    "the gradient is clipped between backward and step",
    "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)",
)
def test_clipping(my: Any) -> None:
    expect_number(
        line_steps(my, max_norm=0.5)[1],
        0.05,
        "gradient -2, max_norm = 0.5, lr = 0.1: the update is 0.1 times 0.5",
        "w = ",
        atol=1e-4,
    )


@check(
    "one batch can be memorised",
    "the loss, its gradient and the update: a correct training step can overfit one batch",
)
def test_memorises(my: Any) -> None:
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=32, bias=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    x = tokens(4, 8)
    y = tokens(4, 8, seed=1)
    first = model(x, y)[1].item()
    for _ in range(150):
        my.train_step(model, optimizer, x, y, 1e-2, 1.0)
    last = model(x, y)[1].item()
    expect(
        last < 0.1,
        "a GPT with one layer, 150 training steps on the same 4 windows",
        f"loss {first:.2f} at the start, {last:.2f} at the end",
        "a loss below 0.1 at the end",
    )
