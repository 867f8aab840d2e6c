"""The checks of step 9: prompt and response; loss on the response only."""

from typing import Any

import torch

from tinygpt.learn.exercise.steps.expect import check, expect, expect_close, expect_equal, expect_shape, noise

PAIR = "pair_example(prompt=[1, 2, 3], response=[4, 5], end=9, block_size=8)"


def pair(my: Any) -> Any:
    return my.pair_example([1, 2, 3], [4, 5], 9, 8)


@check(
    "x is the prompt, then the response, padded with end",
    "sequence = prompt + response + [end]; x = sequence[:-1]",
)
def test_sequence(my: Any) -> None:
    x, y = pair(my)
    expect_shape(x, (8,), f"x of {PAIR}")
    expect_shape(y, (8,), f"y of {PAIR}")
    expect_equal(x.tolist(), [1, 2, 3, 4, 5, 9, 9, 9], f"x of {PAIR}")


@check(
    "the prompt carries no loss",
    "the first len(prompt) - 1 targets belong to the prompt: -1",
)
def test_prompt_without_loss(my: Any) -> None:
    y = pair(my)[1]
    expect(
        y[:2].tolist() == [-1, -1],
        f"the first two targets y of {PAIR}",
        y[:2],
        "[-1, -1], because 2 and 3 belong to the prompt",
    )


@check(
    "the first token of the response is a target",
    "at the last position of the prompt the target is the first token of the response",
)
def test_first_of_response(my: Any) -> None:
    expect_equal(pair(my)[1][2:4].tolist(), [4, 5], f"positions 2 and 3 of y of {PAIR}")


@check(
    "the end token is a target",
    "at the last token of the response the target is end, or the model never learns to stop",
)
def test_end_token(my: Any) -> None:
    expect_equal(pair(my)[1][4].item(), 9, f"position 4 of y of {PAIR}")


@check(
    "padding carries no loss",
    "end is a target once; after that y is -1",
)
def test_padding(my: Any) -> None:
    expect_equal(pair(my)[1][5:].tolist(), [-1, -1, -1], f"the last three targets y of {PAIR}")


@check(
    "the loss is the mean over the targets that are not -1",
    "F.cross_entropy(..., ignore_index=-1)",
)
def test_masked_loss(my: Any) -> None:
    logits = 2 * noise(2, 4, 5)
    targets = torch.tensor([[-1, -1, 3, 1], [-1, 2, -1, -1]])
    chosen = logits.log_softmax(2)[[0, 0, 1], [2, 3, 1], [3, 1, 2]]
    expect_close(
        my.masked_loss(logits, targets),
        -chosen.mean(),
        "targets [[-1, -1, 3, 1], [-1, 2, -1, -1]]: the mean of three terms",
    )


@check(
    "the logits at masked positions get no gradient",
    "ignore_index=-1: replacing -1 with a valid token id would train on a wrong target",
)
def test_masked_gradient(my: Any) -> None:
    logits = noise(1, 4, 5).requires_grad_()
    targets = torch.tensor([[-1, -1, 3, 1]])
    (gradient,) = torch.autograd.grad(my.masked_loss(logits, targets), logits)
    sizes = gradient[0].abs().sum(-1)
    expect(not sizes[:2].sum(), "the gradient at the masked positions 0 and 1", sizes[:2], "zeros")
    expect((sizes[2:] > 0).all(), "the gradient at positions 2 and 3", "zero", "not zero")
