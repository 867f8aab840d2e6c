"""Standard streams that are closed, full, or in an encoding that lacks a character; control characters in text.

terminal.prepare()           # at the start of a command
print("→ 3 % ± 1")           # "? 3 % ? 1" where the encoding is ASCII
"""

import contextlib
import errno
import os
import sys


def prepare() -> None:
    """Replace characters that a stream's encoding lacks, and open the null device in place of a closed stream.

    `print` ignores a closed stream, but the next file opened would get its file descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def escaped(text: str) -> str:
    """Make text from a file printable on one line: `\\x1b` for an escape character, which could control a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def reader_has_left(error: OSError, system: str = os.name) -> bool:
    """Return whether the error means that the reader of a pipe has closed it; Windows reports that as EINVAL."""
    return isinstance(error, BrokenPipeError) or (system == "nt" and error.errno == errno.EINVAL)


def silence(name: str) -> None:
    """Redirect a broken standard stream to the null device, which discards pending and later output."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


def print_error(text: str) -> None:
    """Print a line on standard error, or nothing if standard error cannot be written to."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence("stderr")
