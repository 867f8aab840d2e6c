"""Atomic file writes, locks of folders and files, and text files.

with replacing(Path("out/ckpt.pt")) as file:   # out/.ckpt.pt.RANDOM.tmp, fsynced, then renamed
    torch.save(state, file)
with folder_lock(Path("out"), "run"): ...
"""

import codecs
import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import IO, Any, TextIO

from tinygpt.base.errors import TinyGPTError

UTF_16 = "save it as UTF-8, or --encoding=utf-16"
RUN_AGAIN = "run the command again"
FORMULA = r"[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]"  # the start of a cell; the last four are full-width = + - @
SIGNED_NUMBER = r"[+-][\d\s.,']*(?:[eE][+-]?\d+)?%?"  # -5, +3.2, -1,000, -1.5e-7; and a lone sign
WINDOWS = os.name == "nt"
PATIENCE = 2.0  # seconds for which a denied rename is tried again on Windows


@contextlib.contextmanager
def replacing(path: Path, retry_hint: str = RUN_AGAIN) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` in one step when the block ends, and not at all if it raises.

    The order survives a power loss: write the data, fsync the file, rename it, fsync the folder. Of several writers at
    the same time, each has a temporary file of its own, and the last rename counts. Errors: TinyGPTError if `path` is
    not a regular file, and as in `writing` and `_retry_while_open`.
    """
    refuse_link(path)
    if path.exists() and not path.is_file():
        raise TinyGPTError(f"{path}: is not a regular file", "name another file")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path, retry_hint):
        path.parent.stat()  # locking would create a folder that is missing
        with contextlib.suppress(OSError):  # another user's leftover must not prevent a new file
            remove_leftovers(path)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_writer_lock(temporary))
            except OSError:  # a file system without locks; the name is unique all the same
                Path(f"{temporary}.lock").unlink(missing_ok=True)
            try:
                with open(temporary, "w+b") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                _retry_while_open(lambda: os.replace(temporary, path), path, retry_hint)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        sync_folder(path.parent)


def target_of(name: str) -> str:
    """Return the name of the file that a temporary file of `replacing`, or its lock, is for; `name` of any other file.
    Earlier versions had no random part in it."""
    match = re.fullmatch(r"\.(.+?)(\.[0-9a-f]{8})?\.tmp(\.lock)?", name, re.DOTALL)
    return match[1] if match else name


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files for `path` of writers that were killed, and their locks, which may remain alone.

    Errors: OSError for one that cannot be deleted, after all others are.
    """
    import filelock

    problem: OSError | None = None
    for name in sorted({other.name.removesuffix(".lock") for other in path.parent.iterdir()}):
        if not name.endswith(".tmp") or target_of(name) != path.name:
            continue
        temporary = path.with_name(name)
        try:
            with _writer_lock(temporary, timeout=0):
                temporary.unlink(missing_ok=True)
        except filelock.Timeout:
            pass  # its writer is alive
        except OSError as error:
            problem = error
    if problem:
        raise problem


@contextlib.contextmanager
def _writer_lock(temporary: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock that a writer holds from before it creates its temporary file until it has renamed it.

    The lock ends with its process. A process id in the file's name would not do: ids are reused, and differ between
    containers. The lock is a separate file, since Windows can neither read a locked file nor rename an open one, and
    SQLite locks the temporary file itself. Errors: filelock.Timeout if it is held after `timeout` seconds (-1: wait for
    another process that is cleaning up), OSError.
    """
    import filelock

    lock = filelock.FileLock(f"{temporary}.lock")
    lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        # deleted before it is released: nobody must get a lock on a file that is then deleted
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()
        if WINDOWS:  # which cannot delete an open file
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)


def remove(path: Path) -> None:
    """Delete a file, if it exists. Errors: as in `_retry_while_open`."""
    _retry_while_open(lambda: path.unlink(missing_ok=True), path, RUN_AGAIN)


def rename(path: Path, new: Path) -> None:
    """Rename a file, replacing `new` if it exists. Errors: as in `_retry_while_open`."""
    _retry_while_open(lambda: os.replace(path, new), new, RUN_AGAIN)


def require_closed(path: Path) -> None:
    """Check that a file can be replaced, without changing it. Errors: as in `_retry_while_open`."""
    if WINDOWS and path.exists():  # renaming a file to its own name fails if replacing it would
        _retry_while_open(lambda: os.replace(path, path), path, RUN_AGAIN)


def _retry_while_open(change: Callable[[], None], path: Path, retry_hint: str) -> None:
    """Call `change`, which renames or deletes `path`. Windows denies both while another process has the file open, as a
    virus scanner does for a moment: there, try again for two seconds. Errors: TinyGPTError there, else PermissionError.
    """
    pause = 0.05
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return change()
        except PermissionError as error:
            if not WINDOWS:
                raise
            if time.monotonic() > deadline:
                problem = f"{path}: another program has this file open; what was saved before is unchanged"
                hint = "close the program (Excel, a training run that reads this dataset, a virus scanner, OneDrive)"
                hint += f", or make the file writable if it is read-only, then {retry_hint}"
                raise TinyGPTError(problem, hint, status=1) from error
        time.sleep(min(pause, max(deadline - time.monotonic(), 0.01)))
        pause *= 2


def file_error(path: object, error: OSError, hint: str = "", problem: str = "", status: int = 2) -> TinyGPTError:
    """Make a TinyGPTError from an OSError: "PATH: no such file", or with `problem` "PATH: PROBLEM: no such file"."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error) or "unusable")
    parts = [str(path), problem, reason.lower()]
    return TinyGPTError(": ".join(filter(None, parts)), hint, status)


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link, since a rename would replace the link and not its target. Errors: TinyGPTError."""
    if path.is_symlink():
        raise TinyGPTError(f"{path} is a link to {os.readlink(path)}", "remove the link, or choose another folder")


def require_writable(path: Path, hint: str) -> None:
    """Check that a file can be written to `path`, before any work starts. Errors: TinyGPTError with this hint."""
    refuse_link(path)
    folder = path.parent
    for problem, applies in (
        (f"{path}: is a folder", path.is_dir()),
        (f"{path}: is not a regular file", path.exists() and not path.is_file()),
        (f"{path}: is a checkpoint, which is not overwritten", path.suffix == ".pt" and path.exists()),
        (f"{folder}: no such folder", not folder.is_dir()),
        (f"{folder}: no permission to write to this folder", not os.access(folder, os.W_OK)),
    ):
        if applies:
            raise TinyGPTError(problem, hint)


@contextlib.contextmanager
def writing(path: Path, retry_hint: str = RUN_AGAIN) -> Iterator[None]:
    """Turn system errors while `path` is written into TinyGPTError, whose hint ends with `retry_hint`."""
    try:
        yield
    except TinyGPTError:  # of a file written meanwhile
        raise
    except Exception as error:
        system = _system_error(error)
        if system and system.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free / 1e6
            what = f"{path}: no space left to write it ({free:,.1f} MB free); what was saved before is unchanged"
            raise TinyGPTError(what, f"free some space, then {retry_hint}", status=1) from error
        if system:
            hint = f"check the disk and the folder's permissions, then {retry_hint}"
            problem = "what was saved before is unchanged, but this file cannot be written"
            raise file_error(path, system, hint, problem, status=1) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows needs no call for this, and cannot open a folder."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the first OSError among an error and what caused it: torch.save replaces one by its own error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def folder_lock(folder: Path, use: str) -> contextlib.AbstractContextManager[None]:
    """Lock a folder, so that it has one writer. Errors: as in `_lock`."""
    return _lock(folder / ".lock", folder, f"choose another folder for this {use}")


def file_lock(path: Path, hint: str, patience: float = 0) -> contextlib.AbstractContextManager[None]:
    """Lock a file that `replacing` writes, so that it has one writer. Errors: as in `_lock`."""
    return _lock(path.with_name(f".{path.name}.lock"), path, hint, patience)


@contextlib.contextmanager
def _lock(path: Path, locked: Path, hint: str, patience: float = 0) -> Iterator[None]:
    """Hold the lock file `path`; the lock ends with its process. Errors: TinyGPTError after `patience` seconds that
    names `locked`, the folder or file in use, and the process that holds the lock."""
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        lock.acquire(timeout=patience)
    except filelock.Timeout:
        time.sleep(0.2)  # a process writes its id just after it has taken the lock
        owner = ""
        with contextlib.suppress(OSError):  # Windows cannot read a locked file
            owner = path.read_text(encoding="ascii")
        by = f" by process {owner}" if owner else ""
        raise TinyGPTError(f"{locked} is in use{by}", f"wait for it, or {hint}") from None
    except OSError as error:
        raise file_error(locked, error, hint, "cannot be written") from None
    try:
        with contextlib.suppress(OSError):
            path.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        with contextlib.suppress(OSError):
            path.write_text("", encoding="ascii")
        lock.release()


def read_text(path: Path, hint: str) -> str:
    """Read a UTF-8 text file, without a byte-order mark and with CRLF converted to LF.

    Errors: TinyGPTError with the hint `hint` for a file that is missing, unreadable, not UTF-8 or binary.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise file_error(path, error, hint) from None
    start = byte_order_mark(data, path, hint="save it as UTF-8")
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {start + error.start}"
        raise TinyGPTError(f"{path}: not UTF-8 text ({byte})", hint) from None
    if "\0" in text:
        raise TinyGPTError(f"{path}: is binary, not text", hint)
    return text.replace("\r\n", "\n")


def byte_order_mark(start: bytes, path: Path, encoding: str = "utf-8", hint: str = UTF_16) -> int:
    """Return the length of UTF-8's byte-order mark at the start of a file, 0 or 3; 0 for other encodings. Errors:
    TinyGPTError with the hint `hint` for UTF-16 where UTF-8 is expected."""
    if codecs.lookup(encoding).name != "utf-8":
        return 0
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TinyGPTError(f"{path}: is UTF-16 text, not UTF-8", hint)
    return len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0


def is_formula(cell: str) -> bool:
    """Return whether a spreadsheet may take a cell of a CSV file for a formula. A number with a sign is none.

    Source: OWASP, "CSV Injection".
    """
    return bool(re.match(FORMULA, cell)) and not re.fullmatch(SIGNED_NUMBER, cell.strip())


def write_csv(file: TextIO, rows: Iterable[Sequence[str]], separator: str = ",", escape_formulas: bool = False) -> None:
    """Write the rows of a table as CSV; `file` must be open with newline="".

    escape_formulas: put an apostrophe before each cell that a spreadsheet may take for a formula.
    """
    plain = csv.writer(file, lineterminator="\n", delimiter=separator)
    quoted = csv.writer(file, lineterminator="\n", delimiter=separator, quoting=csv.QUOTE_ALL)
    for row in rows:
        if escape_formulas:
            row = [f"'{cell}" if is_formula(cell) else cell for cell in row]
        # before Python 3.13, csv leaves a carriage return unquoted, which ends a row
        (quoted if "\r" in "".join(row) else plain).writerow(row)


def write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a table as CSV for Excel, which reads UTF-8 only with a byte-order mark, and calculates "=1+1"."""
    text = io.StringIO(newline="")
    write_csv(text, rows, escape_formulas=True)
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8-sig"))


def strict_json(value: Any) -> str:
    """Format a value as one line of JSON that every parser accepts: ASCII only, with null for NaN and infinity."""

    def finite(part: Any) -> Any:
        if isinstance(part, float):
            return part if math.isfinite(part) else None
        if isinstance(part, dict):
            return {key: finite(inner) for key, inner in part.items()}
        return [finite(inner) for inner in part] if isinstance(part, (list, tuple)) else part

    return json.dumps(finite(value), ensure_ascii=True, allow_nan=False)


def folder_of(path: str | Path) -> Path:
    """Return the folder of a run or a checkpoint: the path itself if it is a folder, else its parent."""
    path = Path(path)
    return path if path.is_dir() else path.parent


def without_folders(value: Any) -> Any:
    """Reduce absolute paths of Windows and POSIX in a setting, or in a list or dict of settings, to their last part:
    they contain user names."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    is_absolute = isinstance(value, str) and PureWindowsPath(value).root
    return PureWindowsPath(value).name if is_absolute else value
