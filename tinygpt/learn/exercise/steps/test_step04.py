"""The checks of step 4: one attention head: scaled scores, causal mask."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from tinygpt.learn.exercise.steps.expect import check, expect, expect_close, expect_shape, noise, randomise


@check(
    "each row of attention weights sums to one",
    "softmax over the last dimension, after the mask",
)
def test_rows_sum_to_one(my: Any) -> None:
    weights = my.attention_weights(noise(2, 5, 16), noise(2, 5, 16, seed=1))
    expect_shape(weights, (2, 5, 5), "attention_weights of q and k, both (2, 5, 16)")
    expect_close(weights.sum(-1), torch.ones(2, 5), "the sums of the rows of attention_weights(q, k)")


@check(
    "no position attends to a later one",
    "set the scores of later positions to -inf before the softmax: torch.tril, masked_fill",
)
def test_causal(my: Any) -> None:
    weights = my.attention_weights(noise(1, 4, 16), noise(1, 4, 16, seed=1))[0]
    given = "attention_weights of 4 positions"
    expect(
        not (weights.triu(1).abs() > 1e-6).any(),
        f"{given}; row t has the weights of position t",
        weights,
        "zeros above the diagonal",
    )
    expect((weights.tril() > 0).sum() == 10, given, weights, "weights above zero on and below the diagonal")


@check(
    "equal scores give equal weights",
    "a query of zeros gives equal scores, so each of the t + 1 visible positions has the weight 1 / (t + 1)",
)
def test_equal_scores(my: Any) -> None:
    expect_close(
        my.attention_weights(torch.zeros(1, 3, 8), noise(1, 3, 8))[0],
        torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]),
        "queries of zeros, 3 positions",
    )


@check(
    "scores are scaled by 1 / sqrt(head_size)",
    "head_size is the last dimension of q, not T and not n_embd",
)
def test_scale(my: Any) -> None:
    q = torch.zeros(1, 2, 16)
    k = torch.zeros(1, 2, 16)
    # query 1 matches key 0: score 4, scaled 1
    q[0, 1, 0] = 2.0
    k[0, 0, 0] = 2.0
    expect_close(
        my.attention_weights(q, k)[0],
        torch.tensor([[1, 0], [math.e / (math.e + 1), 1 / (math.e + 1)]]),
        "head_size 16, scores of position 1 before scaling: 4 and 0, so softmax(4 / 4, 0)",
    )


@check(
    "the output is the weighted sum of the values",
    "weights @ self.value(x), and not weights @ x or weights @ keys",
)
def test_weighted_values(my: Any) -> None:
    own = randomise(my.Head(8, 16))
    x = noise(2, 5, 8)
    q = own.query(x)
    k = own.key(x)
    v = own.value(x)
    expect_close(
        own(x),
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "Head(8, 16) on x of shape (2, 5, 8), compared with PyTorch's attention",
    )
