"""The one error type for everything that a user can cause and fix.

Anything a person can get wrong (a path, a flag, a file) raises `TinyGPTError` with one sentence that
names the thing and one hint that shows the way out. `tinygpt/cli.py` is the only place that prints it:

    error: input.txt: no such file
      try: tinygpt prepare mine --input path/to/text.txt
"""

import math


class TinyGPTError(Exception):
    """`message` says what is wrong, `hint` what to do next; `status` is the exit status.

    2: a mistake in the command, nothing written. 1: a failure while the command ran (a full disk, out of memory, a loss
    that is not finite).
    """

    def __init__(self, message: str, hint: str = "", status: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status

    def text(self) -> str:
        """Return the lines that a person reads."""
        return f"error: {self.message}" + (f"\n  try: {self.hint}" if self.hint else "")


def diverged(what: str, value: float) -> TinyGPTError:
    """Make the error for a loss, logits or weights that are NaN or infinite: `diverged("the loss is", loss)`."""
    shown = "NaN" if math.isnan(value) else "infinite"
    return TinyGPTError(f"{what} {shown}: training diverged", "train again with a lower learning_rate", status=1)


def missing(package: str, what: str, extra: str = "pretrained") -> TinyGPTError:
    """Make the error for an extra that is not installed: `missing("gguf", "GGUF")`."""
    hint = f'pip install {package} (also in "tinygpt[{extra}]")'
    return TinyGPTError(f"{what} needs the package {package}", hint)
