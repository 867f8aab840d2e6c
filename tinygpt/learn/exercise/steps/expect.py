"""Expect properties of the student's code, report how one does not hold, and make the inputs of the checks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor


class CheckFailed(AssertionError):
    """A property that does not hold. Its argument: {"given", "got", "expected"}, as texts."""


def check(name: str, look: str) -> Callable[[Any], Any]:
    """Mark a test with the property that it checks, and with the place where the mistake probably is if it fails."""

    def mark(test: Any) -> Any:
        test.check = name, look
        return test

    return mark


def expect(holds: Any, given: str, got: Any, expected: Any) -> None:
    """Check a property. Errors: CheckFailed unless it holds."""
    if not holds:
        raise CheckFailed({"given": given, "got": shown(got), "expected": shown(expected)})


def expect_equal(got: Any, expected: Any, given: str) -> None:
    expect(got == expected, given, got, expected)


def expect_number(got: float, expected: float, given: str, label: str = "", atol: float = 1e-6) -> None:
    expect(abs(got - expected) < atol, given, f"{label}{got:.4f}", f"{label}{expected:.4f}")


def expect_close(got: Any, expected: Tensor, given: str, atol: float = 1e-5) -> None:
    """Check shape and, up to rounding, values of a tensor. Errors: CheckFailed unless they are those of `expected`."""
    expect_shape(got, tuple(expected.shape), given)
    expect(torch.isfinite(got).all(), given, got, expected)
    expect(torch.allclose(got.float(), expected.float(), atol=atol, rtol=1e-4), given, got, expected)


def expect_shape(got: Any, shape: tuple[int, ...], given: str) -> None:
    expect(isinstance(got, Tensor), given, f"a {type(got).__name__}", "a tensor")
    expect(tuple(got.shape) == shape, given, f"a tensor of shape {tuple(got.shape)}", f"a tensor of shape {shape}")


def shown(value: Any) -> str:
    """Format a value in a few lines; a large tensor by its shape and first values."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, str) else repr(value)
    if value.numel() > 40:
        flat = ", ".join(f"{x:.4g}" for x in value.flatten()[:6].tolist())
        return f"a tensor of shape {tuple(value.shape)}, beginning with {flat}, ..."
    numbers = nested(value.tolist()) if value.is_floating_point() else str(value.tolist())
    return numbers.replace("], [", "],\n [")


def nested(value: Any) -> str:
    return f"[{', '.join(map(nested, value))}]" if isinstance(value, list) else f"{value:.4f}"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module) -> Any:
    """Draw weights large enough that every parameter changes the output."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data = 0.5 * noise(*parameter.shape, seed=index)
    return module.eval()


def expect_causal(function: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, inputs: str) -> None:
    """Check that no output depends on later positions: x and other differ only in the last two of T positions."""
    T = x.size(1)
    before = function(x)
    after = function(other)
    changed = [t for t in range(T - 2) if not torch.allclose(before[:, t], after[:, t], atol=1e-5)]
    given = f"two {inputs} of {T} positions that differ only at positions {T - 2} and {T - 1}"
    expect(
        not changed,
        given,
        f"different outputs at positions {changed}",
        f"the same outputs at positions 0 to {T - 3}",
    )
    same_end = torch.allclose(before[:, -1], after[:, -1], atol=1e-6)
    expect(not same_end, given, f"the same output at position {T - 1}", f"different outputs at position {T - 1}")
