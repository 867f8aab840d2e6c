"""The checks of step 5: multi-head attention, MLP, residuals, LayerNorm."""

from typing import Any

import torch
import torch.nn.functional as F

from tinygpt.learn.exercise.steps.expect import check, expect_causal, expect_close, expect_shape, noise, randomise


@check(
    "attention keeps the shape (B, T, C)",
    "concatenate the heads along the channels, then apply self.c_proj",
)
def test_shape(my: Any) -> None:
    expect_shape(my.MultiHeadAttention(12, 3)(noise(2, 5, 12)), (2, 5, 12), "MultiHeadAttention(12, 3) on (2, 5, 12)")


@check(
    "no head attends to a later position",
    "view(B, T, n_head, head_size).transpose(1, 2), as view(B, n_head, T, head_size) mixes positions; the mask",
)
def test_causal(my: Any) -> None:
    attention = randomise(my.MultiHeadAttention(12, 3))
    x = noise(2, 6, 12)
    other = torch.cat((x[:, :-2], noise(2, 2, 12, seed=9)), 1)
    expect_causal(attention, x, other, "inputs of MultiHeadAttention(12, 3)")


@check(
    "each head works on its own channels",
    "q, k, v in this order; head h uses channels h * head_size to (h + 1) * head_size - 1 of each",
)
def test_heads(my: Any) -> None:
    attention = randomise(my.MultiHeadAttention(12, 3))
    x = noise(2, 5, 12)
    q, k, v = (part.view(2, 5, 3, 4).transpose(1, 2) for part in attention.c_attn(x).split(12, dim=2))
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expect_close(
        attention(x),
        attention.c_proj(heads.transpose(1, 2).reshape(2, 5, 12)),
        "12 channels in 3 heads, compared with PyTorch's attention on each head",
    )


@check(
    "the MLP is linear, GELU, linear",
    "self.c_proj(F.gelu(self.c_fc(x)))",
)
def test_mlp(my: Any) -> None:
    mlp = randomise(my.MLP(8))
    x = noise(2, 3, 8)
    # atol accepts the tanh approximation of GELU
    expect_close(mlp(x), mlp.c_proj(F.gelu(mlp.c_fc(x))), "MLP(8) on x of shape (2, 3, 8)", atol=5e-3)


@check(
    "a block adds to the residual stream",
    "x = x + ...: if both output projections are zero, the output is x",
)
def test_residual(my: Any) -> None:
    own = randomise(my.Block(12, 3))
    x = noise(2, 5, 12)
    for parameter in (*own.attn.c_proj.parameters(), *own.mlp.c_proj.parameters()):
        torch.nn.init.zeros_(parameter)
    expect_close(own(x), x, "Block(12, 3) whose output projections are zero")


@check(
    "attention and the MLP each get a normalised input",
    "x = x + self.attn(self.ln_1(x)), then x = x + self.mlp(self.ln_2(x))",
)
def test_normalised_inputs(my: Any) -> None:
    own = randomise(my.Block(12, 3))
    x = 3 * noise(2, 5, 12)
    middle = x + own.attn(own.ln_1(x))
    expect_close(
        own(x),
        middle + own.mlp(own.ln_2(middle)),
        "Block(12, 3) on x, compared with x + attn(ln_1(x)) followed by x + mlp(ln_2(x))",
        1e-4,
    )
