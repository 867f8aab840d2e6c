"""Standard output that can fail without harm: closed, full, or in an encoding that lacks a character.

terminal.prepare()           # at the start of a command
print("→ 3 % ± 1")           # "? 3 % ? 1" where the encoding is ASCII
"""

import contextlib
import os
import sys


def prepare() -> None:
    """Replace characters that a stream's encoding lacks, and open the null device for a stream that is closed: `print`
    would do without, but the next file to be opened would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def silence(name: str) -> None:
    """Send a standard stream that takes no more to the null device: what was not written is dropped, and all that
    follows."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


def complain(text: str) -> None:
    """Print a line on standard error, if that can be written to."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence("stderr")
