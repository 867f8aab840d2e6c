"""After any failure a file is either the old one or the new one; a folder has one writer."""

import contextlib
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import PATIENCE

from tinygpt.base import files
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock, replacing

OLD, NEW = b"old" * 1000, b"new" * 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "ckpt.pt").write_bytes(OLD)
    return tmp_path / "ckpt.pt"


def write(path: Path) -> None:
    with replacing(path) as file:
        for start in range(0, len(NEW), 4096):
            file.write(NEW[start : start + 4096])


def unchanged(path: Path) -> bool:
    return path.read_bytes() == OLD and os.listdir(path.parent) == [path.name]


# ---- failures ---------------------------------------------------------------------------------------------------

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
FAILURES = [NO_SPACE, OSError(errno.EIO, "Input/output error"), ZeroDivisionError(), KeyboardInterrupt()]


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_each_call_fails_in_turn(place: str, failure: BaseException, path: Path) -> None:
    with pytest.raises((TinyGPTError, type(failure))), mock.patch.object(os, place, side_effect=failure):
        write(path)
    assert unchanged(path)


def test_a_full_disk_is_reported(path: Path) -> None:
    with pytest.raises(TinyGPTError) as caught, replacing(path) as file:
        file.write(NEW)
        file.flush()
        raise NO_SPACE
    assert re.fullmatch(r".*ckpt\.pt: no space left to write it.* MB free.*", caught.value.message)
    assert caught.value.status == 1 and "free some space" in caught.value.hint and unchanged(path)
    # for the inner of two files: when the outer one learns of it, the temporary file is gone and the disk has space
    inner = path.with_name("inner.bin")
    with pytest.raises(TinyGPTError, match=r"inner.bin: no space left"), replacing(path), replacing(inner):
        raise NO_SPACE
    # torch.save reports the failure of a write through an error of its own
    for failure, said in zip(FAILURES[:2], ("no space left", "cannot be written: input/output error"), strict=True):
        with pytest.raises(TinyGPTError, match=said), replacing(path):
            try:
                raise failure
            except OSError:
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (the implicit chain is the point)
    assert unchanged(path)


def test_a_link_is_not_written_through(path: Path) -> None:
    link = path.with_name("link.pt")
    link.symlink_to(path.name)
    with pytest.raises(TinyGPTError, match=r"link\.pt is a link to ckpt\.pt"):
        write(link)
    assert path.read_bytes() == OLD and link.is_symlink()


# ---- several writers of a file ----------------------------------------------------------------------------------

WRITE = """
import sys
from pathlib import Path
from tinygpt.base.files import replacing
for _ in range(40):
    with replacing(Path(sys.argv[1])) as file:
        for _ in range(20):
            file.write(sys.argv[2].encode() * 1000)
            file.flush()
"""

WRITE_AFTER_A_LINE = """
import sys
from pathlib import Path
from tinygpt.base.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"first")
    file.flush()
    print("written", flush=True)
    sys.stdin.readline()
"""


def test_two_writers_at_the_same_time_never_mix_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    complete = {letter.encode() * 20_000 for letter in "ab"}
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(path), letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        with contextlib.suppress(FileNotFoundError):  # before the first is complete
            assert path.read_bytes() in complete
    assert [writer.returncode for writer in writers] == [0, 0]
    assert path.read_bytes() in complete and os.listdir(tmp_path) == [path.name]


@pytest.fixture
def first_writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has written to a temporary file, and replaces `path` when it gets a line."""
    command = [sys.executable, "-c", WRITE_AFTER_A_LINE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "written\n"
        yield process
        process.kill()


def test_the_temporary_file_of_a_living_writer_stays(path: Path, first_writer: subprocess.Popen[str]) -> None:
    write(path)
    assert path.read_bytes() == NEW
    first_writer.communicate("\n")
    assert first_writer.returncode == 0
    assert path.read_bytes() == b"first" and os.listdir(path.parent) == [path.name]


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(TinyGPTError, match="no such file"), replacing(tmp_path / "missing/folder/ckpt.pt"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_next_writer_removes_what_a_killed_one_left(path: Path, first_writer: subprocess.Popen[str]) -> None:
    first_writer.kill()
    first_writer.wait()
    (left,) = path.parent.glob(".*.tmp")
    assert left.read_bytes() == b"first" and path.read_bytes() == OLD
    (path.parent / f".{path.name}.0123abcd.tmp.lock").touch()  # killed just before the file was made, or after a rename
    (path.parent / ".ckpt.pt.tmp").write_text("of an earlier version")
    of_others = {path.parent / name for name in (".ckpt.pt.notes.tmp", ".last.pt.tmp", ".ckpt.pt.tmp.txt")}
    for other in of_others:
        other.write_text("")
    odd = path.parent / f".{path.name}.4567abcd.tmp"
    odd.mkdir()  # cannot be removed, and prevents nothing
    write(path)
    assert {*path.parent.iterdir()} == {path, odd, *of_others}


# ---- Windows: a file that another program has open --------------------------------------------------------------


def deny(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, times: int) -> mock.Mock:
    """Deny the first `times` calls, as Windows does for a file that is open elsewhere."""
    denied = [PermissionError(errno.EACCES, "Access is denied")] * times
    call = mock.Mock(wraps=getattr(owner, name), side_effect=[*denied, mock.DEFAULT])
    monkeypatch.setattr(owner, name, lambda *args, **options: call(*args, **options))
    return call


def test_a_file_that_is_open_for_a_moment_is_replaced(
    windows: None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", PATIENCE)
    calls = deny(monkeypatch, os, "replace", times=2)
    write(path)
    assert calls.call_count == 3 and path.read_bytes() == NEW
    calls = deny(monkeypatch, Path, "unlink", times=2)
    files.remove(path)
    assert calls.call_count == 3 and not path.exists()


def test_a_file_that_stays_open_is_named_and_kept(windows: None, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    deny(monkeypatch, os, "replace", times=999)
    with pytest.raises(TinyGPTError) as caught, replacing(path, "resume: tinygpt train") as file:
        file.write(NEW)
    assert "another program has this file open" in caught.value.message
    assert caught.value.hint.endswith("then resume: tinygpt train")
    assert caught.value.status == 1 and unchanged(path)


# ---- one writer per folder --------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from tinygpt.base.files import folder_lock
with folder_lock(Path(sys.argv[1]), "run"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    """And the lock ends with its process, even by kill -9."""
    folder = tmp_path / "new" / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout and first.stdout.readline() == "locked\n"
        in_use = pytest.raises(TinyGPTError, match=rf"(?m)out is in use by process {first.pid}$")
        with in_use as caught, folder_lock(folder, "run"):
            pass
        assert caught.value.status == 2 and "another folder for this run" in caught.value.hint
        first.kill()
    with folder_lock(folder, "run"):
        assert (folder / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), folder_lock(tmp_path, "run"):
        raise ZeroDivisionError
    with folder_lock(tmp_path, "run"), pytest.raises(TinyGPTError, match="in use"), folder_lock(tmp_path, "run"):
        pass
