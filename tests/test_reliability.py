"""Proofs of the reliability contract: nothing is lost under kills, full disks, damaged files and hostile input.

pytest tests/test_reliability.py    # a few rounds of each proof
python scripts/torture.py           # the full number of rounds, with the figures of each proof

A proof disturbs child processes and requires that the promise holds. Most run once more without the protection that
they test, and must fail then.
"""

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import hostile
import pytest
import torch
from children import Harness, answer, assert_intact, assert_same_run, lines_of, loaded, ranks, snapshot, wait_for_lines
from conftest import PATIENCE, until
from faults import SAFE_ORDER, Fault

from tinygpt import cli, train
from tinygpt.base import files
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.checkpoint.store import Checkpoint, save
from tinygpt.data import dataset, token_files
from tinygpt.training import run
from tinygpt.training.processes import StopSignal

# ---- a run and its checkpoints ---------------------------------------------------------------------------------------


def test_exact_resume(harness: Harness) -> None:
    """A run that is killed, also while it saves, and resumed ends exactly as an uninterrupted one."""
    undisturbed, draw = harness.undisturbed(), harness.random
    for _ in range(harness.rounds(1, 60)):
        out = harness.new("killed")
        for figure in ("kills", "kills in a save", "kills", "ends"):
            in_a_save = Fault(draw.choice(SAFE_ORDER[1:]), draw.randrange(4), after=draw.random() < 0.5)
            fault = in_a_save if figure == "kills in a save" else Fault()
            child = harness.fork(harness.training(out), fault.install)
            if figure == "kills":
                wait_for_lines(child, out, lines_of(out) + draw.randrange(5, 15))
                child.send(signal.SIGKILL)
            assert child.wait(PATIENCE, otherwise=signal.SIGTERM) in (0, -signal.SIGKILL), child.output
            assert_intact(out)
            harness.figures[figure] += figure == "ends" or child.status != 0
        assert_same_run(out, undisturbed)


def test_old_or_new(harness: Harness) -> None:
    """A process that dies or fails at any call of a save leaves the old checkpoint or the new one."""

    def save_twice(path: Path, fault: Fault) -> None:
        for step in (1, 2):
            save(path, Checkpoint({"w": torch.full((9999,), float(step))}, {}, {}, step=step))
            if step == 1:
                fault.install()
        answer([name for name, _ in itertools.groupby(fault.calls)])

    def attempt(fault: Fault) -> tuple[Any, Path]:
        path = harness.new("save") / "last.pt"
        path.parent.mkdir()
        return harness.run(functools.partial(save_twice, path, fault)), path

    actions = {1: functools.partial(faults.fail, errno.ENOSPC), -signal.SIGKILL: faults.die}
    for call, after, (status, action) in itertools.product(SAFE_ORDER, (False, True), actions.items()):
        child, path = attempt(Fault(call, int(call == "write"), action, after))  # a part has been written
        what = f"{call} failing {'after' if after else 'before'}: {child.output}"
        assert child.status == status and "Traceback" not in child.output, what
        state, replaced = loaded(path), (SAFE_ORDER.index(call), after) >= (SAFE_ORDER.index("replace"), True)
        assert state.step == 1 + replaced and (state.model["w"] == state.step).all(), what
        assert status < 0 or os.listdir(path.parent) == ["last.pt"], what
        harness.figures["failing calls"] += 1
    assert attempt(Fault())[0].answers == [SAFE_ORDER], "the order does not survive a power loss"


def test_disk_full(harness: Harness) -> None:
    """A disk that is full, or fails, at any write leaves the last checkpoint unchanged."""
    said = {errno.ENOSPC: r"no space left .* MB free", errno.EIO: "cannot be written: input/output error"}
    for number in [*said] * harness.rounds(1, 50):
        out = harness.new("full")

        def full(out: Path = out, number: int = number) -> None:
            answer(snapshot(out))
            faults.fail(number)

        count = harness.random.randrange(60)
        child = harness.run(harness.training(out), Fault("write", count, full, sticky=True).install)
        what = f"after {count} writes: exit status {child.status}: {child.output[-400:]}"
        assert_intact(out)
        assert child.status == 1 and "Traceback" not in child.output, what
        assert re.search(said[number], child.output) and not [*out.glob(".*.tmp*")], what
        assert all(found == snapshot(out) for found in child.answers), f"a checkpoint changed after {count} writes"
        harness.figures["full disks"] += 1


def test_signals(harness: Harness) -> None:
    """SIGINT and SIGTERM let the iteration finish and save it; a second signal ends the process at once."""
    short = "--max_iters=20"
    undisturbed = harness.undisturbed(short)
    for number in [signal.SIGINT, signal.SIGTERM] * harness.rounds(1, 30):
        out = harness.new("stopped")
        child = harness.fork(harness.training(out, short))
        wait_for_lines(child, out, harness.random.randrange(15))
        child.send(number)
        status = child.wait(PATIENCE, otherwise=signal.SIGKILL)
        assert status == 128 + number, f"{number.name}: exit status {status}: {child.output}"
        trained = (out / "metrics.jsonl").read_text().count('"train"')
        assert loaded(out / "last.pt").step == trained, f"{number.name}: last.pt is not of the last iteration"
        harness.succeed(harness.training(out, short))
        assert_same_run(out, undisturbed)
        child = harness.fork(harness.training(harness.new("impatient")), before=faults.endless_iterations)
        until(lambda child=child: "in an iteration" in child.output or child.wait(0) is not None)
        for _ in range(100):
            if child.wait(0.2) is None:
                child.send(number)
        assert child.wait(0, otherwise=signal.SIGKILL) == 128 + number, f"{number.name}: not at once"
        harness.figures[number.name] += 1


def test_not_finite(harness: Harness) -> None:
    """A NaN or infinite value stops the run before the update and before a save, wherever it arises."""
    places = {"second micro-step": 8, "gradient": 9, "overflow before an evaluation": 19, "overflow before a save": 13}
    for place, at in places.items():
        out = harness.new("diverging")

        def reached(out: Path = out) -> None:
            answer(snapshot(out))

        child = harness.run(harness.training(out), functools.partial(faults.diverge, place, at, 2, reached))
        what = f"{place}: exit status {child.status}: {child.output[-600:]}"
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert not [e for e in steps if e["kind"] == "train" and e["step"] > at], f"more iterations, {what}"
        assert child.status == 1 and "error: iteration" in child.output and "Traceback" not in child.output, what
        assert "updated before the check" not in child.output, what
        assert_intact(out)
        assert child.answers == [snapshot(out)] or place == "overflow before a save", f"a checkpoint changed, {what}"
        if advised := re.search(r"(\S+\.pt) was saved before that", child.output):
            assert loaded(Path(advised[1])).step <= at, f"advises the state that diverged, {what}"
        harness.figures["places"] += 1


# ---- hostile files ---------------------------------------------------------------------------------------------------


def sample(path: Path) -> list[str]:
    """The command line that reads everything in a checkpoint."""
    return ["sample", "--seed=1", f"--ckpt={path}", "--max_new_tokens=2", "--device=cpu"]


def test_damage(harness: Harness) -> None:
    """Every flipped bit and every truncation of a checkpoint is detected."""
    path, draw = harness.undisturbed("--max_iters=2") / "last.pt", harness.random
    good = path.read_bytes()
    for _ in range(harness.rounds(60, 2000)):
        place, bit = draw.randrange(len(good)), 1 << draw.randrange(8)
        for damaged in (good[:place], good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(TinyGPTError):
                store.load(path)
            harness.figures["damaged files"] += 1


def test_garbage(harness: Harness) -> None:
    """A mutated file is read, or refused with one message, in 2 GB and without hanging."""
    out, folder, draw = harness.undisturbed("--max_iters=2"), harness.folder / "mutants", harness.random
    good, count = (out / "last.pt").read_bytes(), harness.rounds(40, 3000)

    def refuse(what: str, *command: str) -> None:
        os.write(1, f"{what}\n".encode())  # the last line, if this mutant ends the process
        seen = io.StringIO()
        try:
            with contextlib.redirect_stdout(seen), contextlib.redirect_stderr(seen):
                cli.run([*command])  # cli.main would report an OSError as a message
        except TinyGPTError:
            pass
        except BaseException as error:
            raise AssertionError(f"unexplained {type(error).__name__}: {what}") from error

    def read_mutants() -> None:
        with contextlib.suppress(OSError, ValueError):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**9, used + 2 * 10**9))
        for index in range(count):
            shutil.copytree(harness.folder / "data/tiny", folder, dirs_exist_ok=True)
            hostile.mutate_dataset(draw, folder)
            place = ["--dataset=mutants", "--data_dir=.", "--device=cpu", "--json"]
            refuse(f"dataset {index}", "eval", f"--ckpt={out}", *place)
            (folder / "x.pt").write_bytes(hostile.mutate_checkpoint(draw, good))
            refuse(f"checkpoint {index}", *sample(folder / "x.pt"))
        for name, contents in hostile.HOSTILE_CONFIGS.items():
            for content in contents:
                (folder / name).write_bytes(content)
                refuse(f"config {content[:40]!r}", "train", str(folder / name))

    harness.succeed(read_mutants)
    harness.figures["mutants"] += 2 * count


# ---- data and processes ----------------------------------------------------------------------------------------------


def test_complete_datasets(harness: Harness) -> None:
    """`prepare`, killed at any time, leaves a complete dataset or none."""
    old, new = (harness.text(letters) for letters in ("abcdefgh .\n", "abcäöü"))
    source, folder = harness.new("source"), harness.folder / "data/mine"
    source.write_bytes(new.encode())
    places = [Fault("replace", count, after=after) for count in range(3) for after in (False, True)]
    for fault in [*places, Fault("write"), Fault("write", 2)]:
        harness.dataset("mine", old)
        child = harness.run(["prepare", "mine", f"--input={source}"], fault.install)
        assert child.status == -signal.SIGKILL, child.output
        if (folder / "meta.json").exists():
            sums = json.loads((folder / "meta.json").read_text())["sha256"]
            assert sums.pop("source") in [hashlib.sha256(text.encode()).hexdigest() for text in (old, new)]
            assert snapshot(folder, "*.bin") == sums, "neither complete nor absent"
        harness.figures["kills"] += 1


@pytest.mark.slow
def test_a_killed_process_of_torchrun(harness: Harness) -> None:
    """With --max-restarts, a run of two processes of which one is killed ends as an undisturbed one."""
    undisturbed, log = harness.new("two-undisturbed"), harness.new("log")
    for child in [harness.fork(harness.training(undisturbed), **rank) for rank in ranks(2)]:
        assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 0, child.output
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    for index in range(harness.rounds(1, 4)):
        out = harness.new("two-killed")
        with open(log, "wb") as file:
            args = [*command, "-m", "tinygpt", *harness.training(out)]
            process = subprocess.Popen(args, stdout=file, stderr=file, cwd=harness.folder)
        try:
            wait_for_lines(process, out, harness.random.randrange(10, 30))
            workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            main = (out / ".lock").read_text()  # the number of rank 0
            os.kill(int(next(pid for pid in workers if (pid == main) == (index % 2 == 1))), signal.SIGKILL)
            harness.figures["processes killed"] += 1
            assert process.wait(PATIENCE) == 0, log.read_text(errors="replace")[-2000:]
        finally:
            process.terminate()
            process.wait()
        assert_same_run(out, undisturbed)


def test_one_writer(harness: Harness) -> None:
    """Of two processes started at once in one folder, one works; when it dies, the folder is free."""
    for _ in range(harness.rounds(1, 50)):
        out = harness.new("contested")
        racers = [harness.fork(harness.training(out, "--max_iters=100000")) for _ in range(2)]
        while all(racer.wait(0) is None for racer in racers) and lines_of(out) < 60:
            time.sleep(0.01)
        won = [racer for racer in racers if racer.wait(0) is None]
        lost = [racer for racer in racers if racer.status is not None]
        for racer in won:
            wait_for_lines(racer, out, 0)
            racer.kill()
        outcome = f"undecided: {len(won)} at work; {[(racer.status, racer.output) for racer in lost]}"
        assert len(won) == 1 and lost[0].status == 2, outcome
        assert f"in use by process {won[0].pid}" in lost[0].output, outcome
        harness.succeed(harness.training(out, "--init_from=scratch", "--max_iters=1"))
        harness.figures["races"] += 1


# ---- without the protection ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_place(path: Path, *hint: str) -> Any:
    """files.replacing without its temporary file."""
    with files.writing(path, *hint), open(path, "w+b") as file:
        yield file


def free_folder(folder: Path, use: str) -> Any:
    """files.folder_lock without the lock."""
    return contextlib.nullcontext(folder.mkdir(exist_ok=True))


@pytest.mark.parametrize(
    ("proof", "owner", "name", "value", "failure"),
    [
        (test_old_or_new, store, "replacing", in_place, "cannot be loaded"),
        (test_old_or_new, files, "sync_folder", lambda folder: None, "open folder failing"),
        (test_not_finite, train, "require_finite_loss", lambda *args: (0.0, 0.0), "more iterations"),
        (test_garbage, dataset, "_is_dict", lambda value, kind: True, "unexplained"),
        (test_complete_datasets, token_files, "remove", lambda path: None, "neither complete nor absent"),
        pytest.param(test_one_writer, run, "folder_lock", free_folder, "undecided", marks=pytest.mark.slow),
        pytest.param(test_exact_resume, train, "seed_dropout", lambda *args: None, "differs", marks=pytest.mark.slow),
        pytest.param(test_signals, StopSignal, "__enter__", lambda self: self, "last.pt", marks=pytest.mark.slow),
    ],
)
def test_without_the_protection_the_proof_fails(
    proof: Callable[[Harness], None], owner: Any, name: str, value: Any, failure: str, tmp_path: Path
) -> None:
    """A proof that passes without the protection would prove nothing. It stops at the first failure."""
    with pytest.raises(AssertionError, match=failure):
        proof(Harness(tmp_path, before=functools.partial(faults.replace, owner, name, value)))


# ---- privacy ---------------------------------------------------------------------------------------------------------


def test_prepare_train_and_sample_open_no_socket(harness: Harness) -> None:
    out = harness.new("private")
    for command in (["prepare", "shakespeare_char"], harness.training(out, "--max_iters=2"), sample(out / "ckpt.pt")):
        harness.succeed(command, faults.forbid_sockets)

    def call_home() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=1)

    assert harness.run(call_home, faults.forbid_sockets).status == 99  # negative control
