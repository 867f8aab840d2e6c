"""The reliability contract in short: each proof of scripts/torture.py at a small count, and each once more without
the protection that it is about. A proof that still passes then would prove nothing.
"""

import contextlib
import importlib.util
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from tinygpt import files, prepare, train
from tinygpt.checkpoint import store as checkpoint
from tinygpt.data import dataset as data
from tinygpt.data import rows
from tinygpt.sample import sample
from tinygpt.training.signals import StopSignal

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harm is done to forked processes")

if hasattr(os, "fork"):
    spec = importlib.util.spec_from_file_location("torture", Path(__file__).parent.parent / "scripts" / "torture.py")
    assert spec and spec.loader
    torture = importlib.util.module_from_spec(spec)
    sys.modules["torture"] = torture  # dataclasses look their module up
    spec.loader.exec_module(torture)

SCALES = {
    **{1: 0.02, 2: 0.05, 3: 1, 4: 0.05, 5: 1, 6: 0.05, 7: 0.01},
    **{8: 1, 9: 0.13, 10: 0.04, 11: 0.02, 12: 1, 13: 0.05, 14: 1},
}


@pytest.mark.parametrize("row", SCALES)
def test_row(row: int, tmp_path: Path) -> None:
    title, proof = torture.ROWS[row]
    result = proof(torture.Bench(tmp_path), SCALES[row])
    assert not result.breaches, f"row {row}, {title}"
    assert all(value != 0 for value in list(result.figures.values())[:1]), "nothing was tried"


# ---- without the protection ------------------------------------------------------------------------------------------
# Each function runs in the child before the work and takes one line of tinygpt out.


def dropout_from_one_generator() -> None:
    """train.training_step without `seed_dropout(...)`."""
    train.seed_dropout = lambda *args: None


@contextlib.contextmanager
def written_in_place(path: Path, next_step: str = "") -> Iterator[IO[bytes]]:
    with files.writing(path), getattr(files, "open", open)(path, "w+b") as file:
        yield file


def save_in_place() -> None:
    """files.replacing without its temporary file: the checkpoint is written straight onto its path."""
    checkpoint.replacing = written_in_place  # type: ignore[attr-defined]


def folder_not_synced() -> None:
    """files.replacing without `sync_folder(path.parent)`."""
    files.sync_folder = lambda folder: None


def any_pickle() -> None:
    """checkpoint.load without `weights_only=True`."""
    load = torch.load
    torch.load = lambda *args, **more: load(*args, **more | {"weights_only": False})


def unverified() -> None:
    """checkpoint.load without `verify(file, path)`."""
    checkpoint.verify = lambda file, path: True


def unchecked_meta() -> None:
    """data.Dataset without `_is_meta(meta)`."""
    data._is_meta = lambda meta: True


def any_data() -> None:
    """run.make_model without the comparison of the checkpoint's `data` with the dataset's checksums."""
    data.Dataset.is_of = lambda self, data: True  # type: ignore[method-assign]


def batches_from_one_generator() -> None:
    """rows.draw_windows without its key of (seed, step)."""

    def draw(seed: int, step: int, tokens: int, block_size: int, count: int, stream: int = 0) -> np.ndarray:
        return np.random.default_rng().integers(0, tokens - block_size, size=count)

    rows.draw_windows = draw


def no_lock() -> None:
    """train.train without `folder_lock(...)`."""
    train.folder_lock = lambda folder, use: contextlib.nullcontext(folder.mkdir(exist_ok=True))


def no_signal_handlers() -> None:
    """signals.StopSignal.__enter__ without `signal.signal(...)`."""
    StopSignal.__enter__ = lambda self: self  # type: ignore[method-assign]


def everything_is_finite() -> None:
    """train.training_step without `raise not_finite(...)`."""
    train.math = SimpleNamespace(**{**vars(math), "isfinite": lambda number: True})  # type: ignore[assignment]


def meta_stays() -> None:
    """data.commit_dataset without `(folder / "meta.json").unlink(...)`: the old one describes the new files."""
    commit, unlink = data.commit_dataset, Path.unlink

    def commit_beside_the_old(folder: Path, *args: Any) -> None:
        Path.unlink = lambda self, missing_ok=False: None  # type: ignore[method-assign]
        commit(folder, *args)
        Path.unlink = unlink  # type: ignore[method-assign]

    prepare.commit_dataset = commit_beside_the_old


def next_format_only() -> None:
    """A release whose checkpoint.load no longer knows format 1."""
    checkpoint.FORMAT = 0


WITHOUT = [
    (1, 0.03, dropout_from_one_generator, "weights differing"),
    (2, 0.06, save_in_place, "unloadable"),
    (3, 1, folder_not_synced, "orders wrong"),
    (4, 0.03, save_in_place, "unloadable"),
    (5, 1, any_pickle, "canaries"),
    (6, 0.02, unverified, "accepted"),
    (7, 0.03, unchecked_meta, "other exceptions"),
    (8, 1, any_data, "not refused"),
    (9, 0, batches_from_one_generator, "batches differing"),
    (10, 0.02, no_lock, "races undecided"),
    (11, 0.02, no_signal_handlers, "exit wrong"),
    (12, 1, everything_is_finite, "went on"),
    (13, 0.4, meta_stays, "neither complete nor absent"),
    (14, 1, next_format_only, "refused"),
]


@pytest.mark.parametrize(("row", "scale", "sabotage", "figure"), WITHOUT, ids=[str(entry[0]) for entry in WITHOUT])
def test_without_the_protection_the_proof_fails(
    row: int, scale: float, sabotage: Callable[[], None], figure: str, tmp_path: Path
) -> None:
    bench = torture.Bench(tmp_path, sabotage=sabotage)
    bench.patience = 3
    result = torture.ROWS[row][1](bench, scale)
    assert result.figures[figure] > 0, result


def test_the_source_scan_finds_what_it_bans() -> None:
    assert torture.dangerous("import pickle")
    assert torture.dangerous("from pickle import loads")
    assert torture.dangerous("exec('x = 1')")
    assert torture.dangerous("torch.load(path)")
    assert torture.dangerous("torch.load(path, weights_only=False)")
    assert torture.dangerous("yaml.load(text, Loader=yaml.Loader)")
    assert torture.dangerous("subprocess.run(line, shell=True)")
    assert not torture.dangerous("model.eval(); re.compile('x'); torch.load(path, weights_only=True)")


# ---- privacy ---------------------------------------------------------------------------------------------------------


def forbid_sockets() -> None:
    """From here on this process cannot be undone: whatever makes a socket, or looks a name up, ends it."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith("socket."):
            print(f"{event} {args}", flush=True)
            os._exit(99)

    sys.addaudithook(hook)


def test_train_and_sample_open_no_socket(tmp_path: Path) -> None:
    bench, out = torture.Bench(tmp_path), tmp_path / "out"
    child = bench.run(bench.train(out, forbid_sockets, max_iters=25))
    assert child.status == 0, child.said

    def write() -> None:
        forbid_sockets()
        sample(torture.SampleConfig(ckpt=str(out / "ckpt.pt"), max_new_tokens=20, device="cpu"))

    child = bench.run(write)
    assert child.status == 0, child.said


def test_a_socket_would_have_been_noticed(tmp_path: Path) -> None:
    def call_home() -> None:
        forbid_sockets()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=1)

    assert torture.Bench(tmp_path).run(call_home).status == 99


def test_a_child_killed_while_it_draws_its_progress_bar_stops_nobody_else(tmp_path: Path) -> None:
    """Without `tqdm.set_lock(...)` in scripts/torture.py every later progress bar waits for ever."""

    def die_holding_the_lock() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    tqdm.get_lock()  # made here, before the fork: what is made in a child is the child's own
    bench = torture.Bench(tmp_path)
    assert bench.run(die_holding_the_lock).status == -signal.SIGKILL
    child = bench.run(lambda: tqdm(disable=True).close(), seconds=20)
    assert child.status == 0, child.said
