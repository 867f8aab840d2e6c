"""The checks of step 8: temperature, top-k, top-p; the generation loop."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from tinygpt.learn.exercise.steps.expect import check, expect, expect_close, shown

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
ORDER = [2, 0, 3, 1]


def generated(
    my: Any, logits: Callable[[Tensor], Tensor], idx: Tensor, count: int, block_size: int = 8, seed: int = 0, **how: Any
) -> Any:
    """Call generate with a model that has these logits, and accepts at most block_size tokens."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            given = f"a model with block_size {block_size}"
            got = f"an input of {x.size(1)} tokens"
            expect(x.size(1) <= block_size, given, got, f"the last {block_size} tokens")
            return logits(x), None

    return my.generate(Model(), idx, count, block_size, torch.Generator().manual_seed(seed), **how)


def successor(x: Tensor) -> Tensor:
    """Return the logits of a model that predicts (n + 1) mod 10 after token n with certainty."""
    return 100.0 * F.one_hot((x + 1) % 10, 10)


def uniform(x: Tensor) -> Tensor:
    return torch.zeros(*x.shape, 50)


START = torch.zeros(1, 1, dtype=torch.int64)


@check(
    "probabilities sum to one, and the temperature divides the logits",
    "softmax(logits / temperature)",
)
def test_temperature(my: Any) -> None:
    for temperature in (1.0, 2.0, 0.5):
        expect_close(
            my.probabilities(LOGITS, temperature),
            F.softmax(LOGITS / temperature, 0),
            f"logits ln(0.5, 0.3, 0.15, 0.05), temperature {temperature}",
        )


@check(
    "a temperature near zero is greedy decoding",
    "divide the logits, not the probabilities",
)
def test_near_zero(my: Any) -> None:
    expect_close(
        my.probabilities(torch.tensor([1.0, 3.0, 2.9]), 1e-3),
        torch.tensor([0.0, 1.0, 0.0]),
        "logits 1, 3, 2.9, temperature 0.001",
    )


@check(
    "top_k keeps the k most probable tokens",
    "all others get probability zero; the k kept sum to one",
)
def test_top_k(my: Any) -> None:
    expect_close(
        my.probabilities(LOGITS[ORDER], 1.0, top_k=2),
        torch.tensor([0.5, 0.3, 0, 0])[ORDER] / 0.8,
        "logits ln(0.15, 0.5, 0.05, 0.3), top_k 2",
    )
    expect_close(my.probabilities(LOGITS, 1.0, top_k=9), LOGITS.exp(), "4 logits, top_k 9: all tokens are kept")


@check(
    "top_p keeps the smallest set of tokens that reaches p",
    "keep the token that reaches p as well; always keep the most probable token",
)
def test_top_p(my: Any) -> None:
    for top_p, kept in ((0.7, [0.5, 0.3, 0, 0]), (0.85, [0.5, 0.3, 0.15, 0]), (0.1, [0.5, 0, 0, 0])):
        expect_close(
            my.probabilities(LOGITS[ORDER], 1.0, top_p=top_p),
            torch.tensor(kept)[ORDER] / sum(kept),
            f"probabilities 0.15, 0.5, 0.05, 0.3, top_p {top_p}",
        )


@check(
    "temperature comes first, then top_k, then top_p",
    "normalise the probabilities after top_k, then apply top_p to them",
)
def test_order_of_filters(my: Any) -> None:
    first_only = torch.tensor([1.0, 0, 0, 0])
    expect_close(
        my.probabilities(LOGITS, 1.0, top_k=2, top_p=0.6),
        first_only,
        "probabilities 0.5, 0.3, 0.15, 0.05; top_k 2 gives 0.625 and 0.375, so top_p 0.6 keeps the first",
    )
    cold = shown(F.softmax(LOGITS / 0.5, 0))
    expect_close(
        my.probabilities(LOGITS, 0.5, top_p=0.6),
        first_only,
        f"temperature 0.5 raises the probability 0.5 to 0.68, so top_p 0.6 keeps only this token ({cold})",
    )


@check(
    "generate appends one token at a time to every sequence",
    "take the logits of the last position, draw a token, append it, repeat",
)
def test_appends(my: Any) -> None:
    expect_close(
        generated(my, successor, torch.tensor([[1, 2], [5, 7]]), 4),
        torch.tensor([[1, 2, 3, 4, 5, 6], [5, 7, 8, 9, 0, 1]]),
        "a model that predicts n + 1 after n; 4 new tokens after [[1, 2], [5, 7]]",
    )


@check(
    "the model gets at most the last block_size tokens",
    "idx[:, -block_size:]: the last tokens, not the first",
)
def test_last_tokens(my: Any) -> None:
    expect_close(
        generated(my, successor, torch.tensor([[1, 2, 3, 4]]), 5, block_size=3),
        torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]]),
        "block_size 3; 5 new tokens after [[1, 2, 3, 4]]",
    )


@check(
    "tokens are random and depend only on the generator",
    "torch.multinomial(probabilities, 1, generator=generator)",
)
def test_random_tokens(my: Any) -> None:
    first = generated(my, uniform, START, 40)
    second = generated(my, uniform, START, 40, seed=1)
    expect(
        len(set(first[0].tolist())) > 10,
        "a model with 50 equally probable tokens, 40 tokens drawn",
        first[0],
        "many different tokens",
    )
    torch.manual_seed(1)
    again = generated(my, uniform, START, 40)
    expect(torch.equal(first, again), "two generators of the same seed", "different tokens", "the same tokens")
    expect(not torch.equal(first, second), "generators of different seeds", "the same tokens", "different tokens")


@check(
    "generate uses temperature, top_k and top_p",
    "pass all three to probabilities",
)
def test_passes_options(my: Any) -> None:
    slope = -0.01 * torch.arange(50)
    for name, value, allowed in (("temperature", 1e-4, {0}), ("top_k", 3, {0, 1, 2}), ("top_p", 0.05, {0, 1, 2})):
        choice: dict[str, Any] = {name: value}
        drawn = set(generated(my, lambda x: slope.expand(*x.shape, 50), START, 40, **choice)[0, 1:].tolist())
        expect(
            drawn <= allowed,
            f"50 tokens, each slightly less probable than the one before it; {name} {value}",
            f"drawn: {sorted(drawn)}",
            f"drawn: only {sorted(allowed)}",
        )
