"""The checks of step 2: train and validation split, windows and targets."""

from typing import Any

import torch

from tinygpt.learn.exercise.steps.expect import check, expect, expect_equal, expect_shape


def batch(my: Any, length: int, block: int, size: int, seed: int = 0) -> Any:
    return my.get_batch(torch.arange(length), block, size, torch.Generator().manual_seed(seed))


@check(
    "the validation part is the end of the data, without overlap",
    "split the data before you draw windows from it",
)
def test_split(my: Any) -> None:
    train, val = my.split(torch.arange(10), 0.2)
    got = f"{train.tolist()} and {val.tolist()}"
    expect_equal(got, "[0, 1, 2, 3, 4, 5, 6, 7] and [8, 9]", "split(torch.arange(10), 0.2)")


@check(
    "x and y are int64 of shape (batch_size, block_size)",
    "torch.stack: one window per row",
)
def test_shapes(my: Any) -> None:
    x, y = batch(my, 100, 8, 4)
    for name, part in (("x", x), ("y", y)):
        given = f"{name} of get_batch(torch.arange(100), 8, 4, generator)"
        expect_shape(part, (4, 8), given)
        expect_equal(str(part.dtype), "torch.int64", given)


@check(
    "the target is the input shifted by one",
    "y starts one position after x, in the same window",
)
def test_shifted_target(my: Any) -> None:
    x, y = batch(my, 100, 8, 4)
    given = f"data 0, 1, 2, ..., 99; the window x[0] = {x[0].tolist()}"
    expect((x[:, 1:] == x[:, :-1] + 1).all(), given, x[0], "consecutive numbers")
    expect((y == x + 1).all(), given, f"y[0] = {y[0].tolist()}", f"y[0] = {(x[0] + 1).tolist()}")


@check(
    "windows are random and depend only on the generator",
    "pass generator=generator to torch.randint",
)
def test_random_windows(my: Any) -> None:
    first = batch(my, 1000, 4, 6)[0]
    second = batch(my, 1000, 4, 6, seed=1)[0]
    starts = first[:, 0]
    expect(len(set(starts.tolist())) > 3, "6 windows of one batch", f"starts {starts.tolist()}", "different starts")
    torch.manual_seed(1)
    again = batch(my, 1000, 4, 6)[0]
    expect(
        torch.equal(first, again),
        "get_batch twice, with generators of the same seed",
        f"starts {again[:, 0].tolist()}",
        f"starts {starts.tolist()}",
    )
    expect(not torch.equal(first, second), "generators of different seeds", "the same windows", "different ones")


@check(
    "every window can be drawn, including the first and the last",
    "the last window starts block_size + 1 tokens before the end",
)
def test_every_window(my: Any) -> None:
    starts = sorted(set(batch(my, 7, 4, 300)[0][:, 0].tolist()))
    expect_equal(f"starts {starts}", "starts [0, 1, 2]", "300 windows of block_size 4 from 7 tokens")
