"""Proofs of the reliability contract: nothing is lost under kills, full disks, damaged files and hostile input.

pytest tests/test_reliability.py    # a few rounds of each proof
python scripts/torture.py           # the full number of rounds, with the figures of each proof

A proof disturbs child processes and requires that the promise holds. Each proof runs once more without the protection
that it tests, and must fail then.
"""

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import random
import re
import resource
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
import numpy as np
import pytest
import torch
from children import (
    LETTERS,
    Child,
    Harness,
    answer,
    assert_intact,
    assert_same_run,
    leftovers,
    lines_of,
    loaded,
    nothing,
    parallel,
    ranks,
    remove,
    snapshot,
    wait_for_lines,
)
from conftest import PATIENCE, TINY_TRAIN, until
from faults import SAFE_ORDER, Fault

from tinygpt import cli
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import Checkpoint, load, save

SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 1, "block_size": 1, "vocab_size": 1}  # where only the file matters

# ---- proofs 1 to 4: a run and its checkpoints ------------------------------------------------------------------------


def test_exact_resume(harness: Harness) -> None:
    """Proof 1: a run that is killed and resumed many times ends exactly as an uninterrupted one."""
    undisturbed = harness.undisturbed("--max_iters=60")
    size = (undisturbed / "last.pt").stat().st_size
    wanted = {"kills": harness.rounds(2, 200), "kills in a save": harness.rounds(1, 50)}
    while any(harness.figures[figure] < count for figure, count in wanted.items()):
        out, status = harness.new("killed"), None
        while status != 0:
            left = [figure for figure, count in wanted.items() if harness.figures[figure] < count]
            figure = harness.random.choice(left) if left else "none"
            fault = faults.death_in_a_save(harness.random, size) if figure == "kills in a save" else None
            child = harness.fork(harness.training(out, "--max_iters=60"), fault.install if fault else nothing)
            if figure == "kills":  # while it starts, or after a checkpoint of this process
                wait_for_lines(child, out, lines_of(out) + harness.random.choice([-1, *range(8, 25)]))
                child.wait(harness.random.uniform(0, 0.01))
                child.send(signal.SIGKILL)
            status = child.wait(harness.patience if fault else PATIENCE, otherwise=signal.SIGKILL)
            assert status in (0, -signal.SIGKILL), child.output
            assert_intact(out)
            if status:
                harness.figures[figure] += 1
        assert_same_run(out, undisturbed)
        remove(out)


def test_a_child_computes_with_several_threads_after_its_parent(tmp_path: Path) -> None:
    """Of the harness: the order of the tests does not matter."""

    def compute() -> None:
        torch.set_num_threads(2)
        torch.relu(torch.zeros(1_000_000))

    before = torch.get_num_threads()
    try:
        compute()
        child = Child(compute, tmp_path / "log", tmp_path)
        assert child.wait(60, otherwise=signal.SIGKILL) == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_changed_threads(harness: Harness) -> None:
    """Proof 1, for a run that continues with one thread instead of two: resumed, it keeps the number of its state."""
    larger = ["--max_iters=40", "--n_embd=64", "--block_size=64", "--batch_size=12"]
    undisturbed = harness.undisturbed(*larger, before=faults.two_threads_then_one)
    out = harness.new("killed")
    child = harness.run(harness.training(out, *larger), functools.partial(faults.two_threads_then_one, last=27))
    assert child.status == -signal.SIGKILL, child.output
    assert_intact(out)
    harness.succeed(harness.training(out, *larger), faults.two_threads)
    assert_same_run(out, undisturbed)
    harness.figures["changes of threads"] += 1


def test_old_or_new(harness: Harness) -> None:
    """Proof 2: if a process is killed while it saves, the checkpoint is the old one or the new one."""

    def save_for_ever(path: Path) -> None:
        for number in itertools.count(1):
            weights = {str(part): torch.full((4096,), float(number)) for part in range(20)}
            save(path, Checkpoint(weights, SIZES, {}, step=number))

    out = harness.new("saves")
    out.mkdir()
    kinds = ["kills"] * harness.rounds(10, 200) + ["kills in a save"] * harness.rounds(2, 50)
    for index, figure in enumerate(kinds):
        save_one = functools.partial(save_for_ever, out / f"{index % 3}.pt")
        if figure == "kills":
            child = harness.fork(save_one)
            child.wait(harness.random.uniform(0.01, 0.06), otherwise=signal.SIGKILL)
        else:
            child = harness.fork(save_one, faults.death_in_a_save(harness.random, size=20 * 4 * 4096).install)
            child.wait(harness.patience, otherwise=signal.SIGKILL)
        harness.figures[figure] += 1
        assert child.status == -signal.SIGKILL, child.output
        for state in map(loaded, out.glob("*.pt")):
            assert all((weight == state.step).all() for weight in state.model.values()), "neither old nor new"


def test_power_loss(harness: Harness) -> None:
    """Proof 3: a save makes its system calls in the order that survives a power loss; any of them may fail."""

    def save_twice(path: Path, fault: Fault) -> None:
        save(path, Checkpoint({"w": torch.full((9,), 1.0)}, SIZES, {}, step=1))
        fault.install()
        save(path, Checkpoint({"w": torch.full((9,), 2.0)}, SIZES, {}, step=2))
        answer([name for name, _ in itertools.groupby(fault.calls)])

    def attempt(fault: Fault) -> tuple[Child, Path]:
        path = harness.new("save") / "last.pt"
        path.parent.mkdir()
        return harness.run(functools.partial(save_twice, path, fault)), path

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert attempt(Fault())[0].answers == [SAFE_ORDER], "order of calls"
    kinds = {1: functools.partial(faults.fail, errno.EIO), 130: interrupt}  # by exit status
    for call, after, status in itertools.product(SAFE_ORDER, (False, True), kinds):
        for count in [0, 500, 1000] if call == "write" else [0]:
            child, path = attempt(Fault(call, count, kinds[status], after))
            what = f"{call} failing {'after' if after else 'before'} {count}: {child.output}"
            assert child.status == status and "Traceback" not in child.output, what
            replaced = (SAFE_ORDER.index(call), after) >= (SAFE_ORDER.index("replace"), True)
            assert loaded(path).step == 1 + replaced and not leftovers(path.parent), what
            harness.figures["failing calls"] += 1


def test_disk_full(harness: Harness) -> None:
    """Proof 4: a disk that is full at any byte leaves the last checkpoint unchanged."""
    meter = Fault("write", -1)

    def count_bytes() -> None:
        cli.main(harness.training(undisturbed, "--max_iters=40"))
        answer(meter.seen)

    undisturbed = harness.new("undisturbed")
    (total,) = harness.succeed(count_bytes, meter.install).answers
    rounds = harness.rounds(3, 100)
    for index in range(rounds):
        out, reached = harness.new("full"), itertools.count()

        def full(out: Path = out, reached: Any = reached) -> None:
            if next(reached) == 0:
                answer(snapshot(out))
            faults.fail(errno.ENOSPC)

        offset = int(total * (index + harness.random.random()) / rounds)
        fault = Fault("write", offset, full, sticky=True)
        child = harness.run(harness.training(out, "--max_iters=40"), fault.install)
        what = f"after {offset} bytes: exit status {child.status}: {child.output[-400:]}"
        assert_intact(out)
        assert child.status == 1 and "Traceback" not in child.output, what
        assert "no space left" in child.output and "MB free" in child.output and not leftovers(out), what
        assert child.answers == [snapshot(out)], f"a checkpoint changed after {offset} bytes"
        harness.figures["offsets"] += 1
        remove(out)


# ---- proofs 5 to 7: hostile files ------------------------------------------------------------------------------------


def sample(path: Path) -> list[str]:
    """The command line that reads everything in a checkpoint."""
    return ["sample", "--seed=1", f"--ckpt={path}", "--max_new_tokens=2", "--device=cpu"]


def test_no_file_runs_code(harness: Harness) -> None:
    """Proof 5: no payload creates the canary."""
    canary = harness.folder / "canary"

    def load_all() -> None:
        for name, file, content in hostile.payloads(str(canary)):
            folder, seen = harness.new("payload"), io.StringIO()
            folder.mkdir()
            (folder / file).write_bytes(content)
            by_suffix = {
                ".pt": sample(folder / file),
                ".pkl": [*TINY_TRAIN, f"--dataset={folder.name}", "--data_dir=."],
            }
            with contextlib.redirect_stdout(seen), contextlib.redirect_stderr(seen):
                status = cli.main(by_suffix.get(Path(file).suffix, ["train", str(folder / file)]))
            assert not canary.exists(), f"{name} ran code"
            assert status in (1, 2) and "Traceback" not in seen.getvalue(), f"{name}: {seen.getvalue()}"
            answer(name)

    harness.figures["payloads"] = len(harness.succeed(load_all).answers)
    assert not canary.exists()  # nor when the process ended


def test_corruption(harness: Harness) -> None:
    """Proof 6: every flipped bit and every truncation of a checkpoint is detected."""
    flips, cuts = harness.rounds(100, 2000), harness.rounds(25, 500)
    out, path, seed = harness.new("trained"), harness.new("damaged.pt"), harness.random.random()
    harness.succeed(harness.training(out, "--max_iters=2"))
    good = (out / "last.pt").read_bytes()

    def damage() -> None:
        draw, undetected = random.Random(seed), 0
        for index in range(flips + cuts):
            damaged, at = bytearray(good), draw.randrange(len(good))
            if index < flips:
                damaged[at] ^= 1 << draw.randrange(8)
            else:
                del damaged[at:]
            path.write_bytes(damaged)
            try:
                load(path)
                raise AssertionError(f"accepted: {'flipped' if index < flips else 'truncated'} at {at}")
            except TinyGPTError:
                pass
            with contextlib.suppress(Exception):
                torch.load(path, weights_only=True)
                undetected += 1
        answer(undetected)

    child = harness.succeed(damage)
    harness.figures |= {"bit flips": flips, "truncations": cuts, "accepted by torch.load": child.answers[0]}


def test_garbage(harness: Harness) -> None:
    """Proof 7: a mutated file is read, or refused with one message, in 2 GB and without hanging."""
    folder, out, seed = harness.new("mutants"), harness.new("trained"), harness.random.random()
    folder.mkdir()
    harness.succeed(harness.training(out, "--max_iters=2"))
    mutants = hostile.Mutants(out / "last.pt", harness.folder / "data/tiny", folder)
    count, size = harness.rounds(25, 10_000), 250
    kinds = ("meta", "tokens", "config", "checkpoint")
    spans = [(kind, start, min(start + size, count)) for kind in kinds for start in range(0, count, size)]

    def read_span(kind: str, start: int, stop: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**9, used + 2 * 10**9))
        for index in range(start, stop):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            args, seen = mutants.write(kind, index, random.Random(f"{seed} {index}")), io.StringIO()
            os.write(1, f"{kind} {index}\n".encode())  # the last line, if this mutant ends the process
            try:
                with (
                    contextlib.redirect_stdout(seen),
                    contextlib.redirect_stderr(seen),
                    contextlib.suppress(TinyGPTError),
                ):
                    cli.run(args)  # cli.main would report an OSError as a message
            except BaseException as error:  # any other exception is a failure
                raise AssertionError(f"unexplained {type(error).__name__}: {kind} {index}") from error
        signal.setitimer(signal.ITIMER_REAL, 0)

    for (kind, start, stop), child in parallel(spans, lambda span: harness.fork(functools.partial(read_span, *span))):
        what = "it hangs" if child.status == -signal.SIGALRM else f"exit status {child.status}"
        assert child.status == 0, f"{what}: {child.output[-2000:]}"
        harness.figures[kind] += stop - start


# ---- proofs 8 and 9: data and processes ------------------------------------------------------------------------------


def test_other_data(harness: Harness) -> None:
    """Proof 8: resuming on other data is refused; sampling does not depend on the dataset."""
    text = harness.text()
    reordered = "".join(sorted(set(text), reverse=True)) + text
    variants: dict[str, Callable[[], None]] = {
        "other alphabet": lambda: harness.dataset("moving", text.replace("a", "z")),
        "other split": lambda: harness.dataset("moving", text, "--val_fraction=0.2"),
        "reordered": lambda: harness.dataset("moving", reordered),
        "other tokenizer": lambda: harness.dataset("moving", text, "--tokenizer=gpt2"),
        "truncated": lambda: os.truncate(harness.folder / "data/moving/train.bin", 4000),
        "other text": lambda: harness.dataset("moving", harness.text()),  # the everyday run has the last two
    }
    out = harness.new("run")
    harness.dataset("moving", text)
    harness.succeed(harness.training(out, "--dataset=moving", "--max_iters=20"))
    first = harness.succeed(sample(out / "ckpt.pt"))
    for name, change in list(variants.items())[-harness.rounds(2, len(variants)) :]:
        harness.dataset("moving", text)
        change()
        before = snapshot(out, "*")
        child = harness.run(harness.training(out, "--dataset=moving", "--max_iters=40"))
        assert child.status == 2, f"{name}: was not refused: exit status {child.status}: {child.output}"
        assert "error: " in child.output and "try: " in child.output, f"{name}: {child.output}"
        assert snapshot(out, "*") == before, f"{name}: files changed"
        assert harness.succeed(sample(out / "ckpt.pt")).output == first.output, f"{name}: the sample changed"
        harness.figures["variants"] += 1


def test_same_batches(harness: Harness) -> None:
    """Proof 9: 1, 2 and 4 processes train on the same batches."""
    steps, batches = harness.rounds(10, 1000), []
    for count in (1, 2, 4):
        files = [harness.new("batches") for _ in range(count)]
        length = [f"--max_iters={steps}", "--eval_interval=100000", "--eval_iters=1", "--checkpoint_interval=0"]
        split = ["--batch_size=4", "--gradient_accumulation_steps=4"]
        args = harness.training(harness.new("split"), *split, *length)
        children = [
            harness.fork(args, functools.partial(faults.record_batches, file), **rank)
            for rank, file in zip(ranks(count), files, strict=True)
        ]
        for child in children:
            assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 0, child.output
        shares = [np.fromfile(file, dtype=np.int64).reshape(steps, 16 // count, 17) for file in files]
        batches.append(np.concatenate(shares, axis=1))
        assert np.array_equal(batches[-1], batches[0]), f"batches differ between 1 and {count} processes"
    assert len(np.unique(batches[0], axis=0)) == steps, "batches are repeated"
    harness.figures["steps"] += steps


@pytest.mark.slow
def test_a_killed_process_of_torchrun(harness: Harness) -> None:
    """Proof 9: with --max-restarts, a run of two processes of which one is killed ends as an undisturbed one."""
    undisturbed, log = harness.new("two-undisturbed"), harness.new("log")
    for child in [harness.fork(harness.training(undisturbed, "--max_iters=60"), **rank) for rank in ranks(2)]:
        assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 0, child.output
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    for index in range(harness.rounds(1, 4)):
        out = harness.new("two-killed")
        with open(log, "wb") as file:
            args = [*command, "-m", "tinygpt", *harness.training(out, "--max_iters=60")]
            process = subprocess.Popen(args, stdout=file, stderr=file, cwd=harness.folder)
        try:
            wait_for_lines(process, out, 0)
            workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            main = (out / ".lock").read_text()  # the number of rank 0
            wait_for_lines(process, out, harness.random.randrange(10, 40))
            os.kill(int(next(pid for pid in workers if (pid == main) == (index % 2 == 1))), signal.SIGKILL)
            harness.figures["processes killed"] += 1
            assert process.wait(PATIENCE) == 0, log.read_text(errors="replace")[-2000:]
        finally:
            process.terminate()
            process.wait()
        assert_same_run(out, undisturbed)


# ---- proofs 10 to 14 -----------------------------------------------------------------------------------------


def test_one_writer(harness: Harness) -> None:
    """Proof 10: of two processes started at once in one folder, one works; when it dies, the folder is free."""
    out = harness.new("contested")
    args = harness.training(out, "--init_from=scratch", "--max_iters=100000", "--eval_interval=100000")
    for _ in range(harness.rounds(2, 50)):
        gate, opener = os.pipe()

        def wait_at_gate(gate: int = gate, opener: int = opener) -> None:
            os.close(opener)
            os.read(gate, 1)  # returns when the parent closes the other end

        racers = [harness.fork(args, wait_at_gate) for _ in range(2)]
        os.close(gate)
        os.close(opener)
        end = time.monotonic() + harness.patience
        while time.monotonic() < end and all(racer.wait(0) is None for racer in racers):
            time.sleep(0.005)
        lost = [racer for racer in racers if racer.status is not None]
        won = [racer for racer in racers if racer.status is None]
        while won and time.monotonic() < end and not lines_of(out):
            time.sleep(0.002)
        for racer in won:
            racer.kill()
        outcome = f"undecided: {len(won)} at work; {[(racer.status, racer.output) for racer in lost]}"
        assert len(won) == 1 and lost[0].status == 2, outcome
        assert f"in use by process {won[0].pid}" in lost[0].output, outcome
        harness.succeed(harness.training(out, "--init_from=scratch", "--max_iters=1"))
        harness.figures["races"] += 1
        remove(out)


def test_signals(harness: Harness) -> None:
    """Proof 11: SIGINT and SIGTERM let the iteration finish and save it; a second signal ends the process at once."""
    undisturbed = harness.undisturbed("--max_iters=60")
    for number in (signal.SIGINT, signal.SIGTERM):
        wanted = harness.rounds(1, 50)
        while harness.figures[number.name] < wanted:
            out, status = harness.new("stopped"), None
            while status != 0:
                child = harness.fork(harness.training(out, "--max_iters=60"))
                wait_for_lines(child, out, lines_of(out) + harness.random.randrange(25))
                if harness.figures[number.name] < wanted and child.wait(0) is None:
                    child.send(number)
                status = child.wait(PATIENCE, otherwise=signal.SIGKILL)
                if status == 0:
                    break  # it finished before the signal arrived
                assert status == 128 + number, f"{number.name}: exit status {status}: {child.output}"
                trained = sum(b'"train"' in line for line in (out / "metrics.jsonl").read_bytes().splitlines())
                assert loaded(out / "last.pt").step == trained, f"{number.name}: last.pt is not of the last iteration"
                harness.figures[number.name] += 1
            assert_same_run(out, undisturbed)
    for index in range(harness.rounds(1, 20)):
        number, out = (signal.SIGINT, signal.SIGTERM)[index % 2], harness.new("impatient")
        child = harness.fork(harness.training(out), before=faults.endless_iterations)
        until(lambda child=child: child.wait(0) is not None or "in an iteration" in child.output)
        child.send(number)
        until(lambda child=child: child.wait(0) is not None or "signal seen" in child.output)
        assert child.wait(0) is None, f"the first {number.name} ended the iteration: {child.output}"
        child.send(number)
        assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 128 + number, f"{number.name}: not at once"
        assert_intact(out)
        harness.figures["second signals"] += 1


def test_not_finite(harness: Harness) -> None:
    """Proof 12: a NaN or infinite value stops the run before the update and before a save, wherever it arises."""
    places = {"loss": 24, "gradient": 25, "second micro-step": 26}
    overflows = {"overflow before an evaluation": 39, "overflow before a save": 27}
    for place, at in (places | overflows).items():
        out = harness.new("diverging")
        reached = functools.partial(lambda out: answer(snapshot(out)), out)
        child = harness.run(
            harness.training(out, "--max_iters=50"), functools.partial(faults.diverge, place, at, 2, reached)
        )
        what = f"{place}: exit status {child.status}: {child.output[-600:]}"
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert not [e for e in steps if e["kind"] == "train" and e["step"] > at], f"more iterations, {what}"
        assert child.status == 1 and "error: iteration" in child.output and "Traceback" not in child.output, what
        assert "updated before the check" not in child.output, what
        assert_intact(out)
        assert child.answers == [snapshot(out)] or place == "overflow before a save", f"a checkpoint changed, {what}"
        if advised := re.search(r"(\S+\.pt) was saved before that", child.output):
            assert loaded(Path(advised[1])).step <= at, f"advises the state that diverged, {what}"
        assert not leftovers(out), what
        harness.figures["places"] += 1


def test_complete_datasets(harness: Harness) -> None:
    """Proof 13: `prepare`, killed at any time, leaves a complete dataset or none; runs on the old dataset continue."""
    letters = LETTERS + "äöü"
    texts = [harness.text(letters, 100_000).encode(), harness.text(letters + "é", 100_000).encode()]
    sources = [harness.new("source") for _ in texts]
    for source, text in zip(sources, texts, strict=True):
        source.write_bytes(text)
    started = time.monotonic()
    harness.run(["prepare", "mine", f"--input={sources[0]}", "--data_dir=killed"])
    seconds, wanted = time.monotonic() - started, harness.rounds(2, 60)
    described = assert_complete_or_absent(harness.folder / "killed/mine", texts)
    while harness.figures["kills"] < wanted:
        source = sources[described == hashlib.sha256(texts[0]).hexdigest()]  # never the text that is prepared already
        args = ["prepare", "mine", f"--input={source}", "--data_dir=killed"]
        if not harness.figures["kills"] or harness.random.random() < 0.7:
            name = harness.random.choice(["write", "replace", "replace"])
            count, after = harness.random.randrange(200_000 if name == "write" else 3), harness.random.random() < 0.5
            fault = Fault(name, count, after=after) if harness.figures["kills"] else Fault("replace", after=True)
            child = harness.fork(args, fault.install)
            child.wait(harness.patience, otherwise=signal.SIGKILL)
        else:
            child = harness.fork(args)
            child.wait(harness.random.uniform(0, seconds), otherwise=signal.SIGKILL)
        assert child.status in (0, -signal.SIGKILL), child.output
        described = assert_complete_or_absent(harness.folder / "killed/mine", texts)
        harness.figures["kills"] += child.status != 0
    prepare_under_a_run(harness)


def assert_complete_or_absent(folder: Path, texts: list[bytes]) -> str:
    """Require that a dataset has no meta.json, or all that meta.json describes. Returns the SHA-256 of its text."""
    if not (folder / "meta.json").exists():
        return ""
    sums = json.loads((folder / "meta.json").read_text())["sha256"]
    assert sums["source"] in {hashlib.sha256(text).hexdigest() for text in texts}, "neither complete nor absent"
    for name in ("train.bin", "val.bin"):
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert found == sums[name], f"neither complete nor absent: {name}"
    tokens = sum((folder / name).stat().st_size for name in ("train.bin", "val.bin")) // 2
    assert tokens == len(texts[0].decode()), f"neither complete nor absent: {tokens} tokens"
    return str(sums["source"])


def prepare_under_a_run(harness: Harness) -> None:
    """Prepare other text while a run trains on the dataset, read into memory or mapped."""
    text, flags = harness.text(), ["--dataset=moving", "--max_iters=40"]
    harness.dataset("moving", text)
    undisturbed = harness.undisturbed(*flags)
    for before in (nothing, faults.map_token_files):
        harness.dataset("moving", text)
        out, reached, prepared = harness.new("moved"), harness.new("reached"), harness.new("prepared")

        def wait(reached: Path = reached, prepared: Path = prepared) -> None:
            reached.touch()
            until(prepared.exists)

        def pause(before: Callable[[], None] = before, wait: Callable[[], None] = wait) -> None:
            before()
            faults.on_iteration(10, wait)

        child = harness.fork(harness.training(out, *flags), pause)
        until(reached.exists)
        harness.dataset("moving", harness.text())
        prepared.touch()
        assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 0, child.output
        assert_same_run(out, undisturbed)
        harness.figures["prepared under a run"] += 1


def test_old_formats(harness: Harness) -> None:
    """Proof 14: a small checkpoint of every released format, stored with the tests, can be loaded."""
    for path in sorted((Path(__file__).parent / "fixtures").glob("*.pt")):
        child = harness.run(sample(path))
        assert child.status == 0, f"{path.name} was refused: {child.output}"
        harness.figures["fixtures"] += 1
    assert harness.figures["fixtures"]


# ---- without the protection ------------------------------------------------------------------------------------------

WITHOUT = [
    (test_exact_resume, faults.dropout_from_one_generator, "weights differ"),
    (test_changed_threads, faults.threads_not_stored, "weights differ"),
    (test_old_or_new, faults.save_in_place, "cannot be loaded"),
    (test_power_loss, faults.folder_not_synced, "order of calls"),
    (test_disk_full, faults.save_in_place, "cannot be loaded"),
    (test_no_file_runs_code, faults.any_pickle, "ran code"),
    (test_corruption, faults.unverified, "accepted"),
    (test_garbage, faults.unchecked_meta, "unexplained"),
    (test_other_data, faults.any_data, "was not refused"),
    (test_same_batches, faults.batches_from_one_generator, "batches differ"),
    (test_one_writer, faults.no_lock, "undecided"),
    (test_signals, faults.no_signal_handlers, "not of the last iteration|last.pt: no such file"),
    (test_not_finite, faults.everything_is_finite, "more iterations"),
    (test_complete_datasets, faults.meta_stays, "neither complete nor absent"),
    (test_old_formats, faults.next_format_only, "was refused"),
]


SECONDS = (test_exact_resume, test_changed_threads, test_disk_full, test_same_batches, test_one_writer, test_signals)


@pytest.mark.parametrize(
    ("proof", "protection", "failure"),
    [pytest.param(*each, id=each[1].__name__, marks=[pytest.mark.slow] * (each[0] in SECONDS)) for each in WITHOUT],
)
def test_without_the_protection_the_proof_fails(
    proof: Callable[[Harness], None], protection: Callable[[], None], failure: str, tmp_path: Path
) -> None:
    """A proof that passes without the protection would prove nothing. It stops at the first failure."""
    share = 0.02 if proof is test_same_batches else 0.3
    with pytest.raises(AssertionError, match=failure):
        proof(Harness(tmp_path, share=share, before=protection, patience=3))


# ---- privacy ----------------------------------------------------------------------------


def test_prepare_train_and_sample_open_no_socket(harness: Harness) -> None:
    out = harness.new("private")
    harness.succeed(["prepare", "shakespeare_char"], faults.forbid_sockets)
    harness.succeed(harness.training(out, "--max_iters=25"), faults.forbid_sockets)
    harness.succeed(sample(out / "ckpt.pt"), faults.forbid_sockets)


def test_a_socket_would_have_been_noticed(tmp_path: Path) -> None:
    def call_home() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=1)

    assert Harness(tmp_path).run(call_home, faults.forbid_sockets).status == 99
