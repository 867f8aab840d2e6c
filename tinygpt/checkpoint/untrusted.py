"""Values from another tool's files, checked before use: the files may come from a stranger.

Whatever is wrong becomes a TinyGPTError that names the file and the value.

    with read_errors(path):
        width = size(config, "hidden_size")
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from tinygpt.base.errors import TinyGPTError

LARGEST = 1 << 20  # of any size in a config.json, so that no size overflows; contexts of a million tokens exist


@contextlib.contextmanager
def read_errors(source: object) -> Iterator[None]:
    """Turn what Python and libraries raise for a damaged or forged file into TinyGPTError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        problem = f"{source}: damaged, or of an unknown form ({type(error).__name__}: {shown(str(error))})"
        raise unusable(problem) from error


def number(
    values: dict[str, Any], key: str, low: float, high: float, where: object = "config.json", whole: bool = False
) -> float:
    """Take a number from the content of the file `where`. Errors: TinyGPTError unless it is from `low` to `high`."""
    value: Any = values.get(key)
    if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
        limits = f"a whole number from {low:,} to {high:,}" if whole else f"a number from {low:g} to {high:g}"
        raise unusable(f"{where}: {key} is {shown(value)}, not {limits}")
    return value if whole else float(value)


def size(values: dict[str, Any], key: str, default: int | None = None, where: object = "config.json") -> int:
    """Take a size, a whole number from 1 to LARGEST. Errors: as in `number`."""
    value = default if values.get(key) is None else values[key]
    return int(number({key: value}, key, 1, LARGEST, where, whole=True))


def shown(value: Any) -> str:
    """Format a value of unknown origin for a message: ASCII, and not long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def unusable(problem: str) -> TinyGPTError:
    return TinyGPTError(problem, "choose another model, or download its files again")
