"""Event files for TensorBoard, read with its own reader: the figures of metrics.jsonl, each step once, whatever happens
to the run; and nothing that happens to the event files ends a run."""

import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import numpy as np
import pytest
import torch.utils.tensorboard
from children import Child
from conftest import TINY_TRAIN, cli_here, listing, needs_fork, ok, refused, tiny_text, trained, until
from runs import BATCH, FLAGS, two_processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tinygpt.train
from tinygpt.training.log import read_metrics

ON = "--report_to=tensorboard"
Point = tuple[str, str, int, float]  # run, tag, step, value


def readers(out: Path) -> dict[str, EventAccumulator]:
    """TensorBoard's readers of a run's two folders, which keep every point."""
    names = ("train", "val")
    return {name: EventAccumulator(str(out / "tensorboard" / name), size_guidance={"scalars": 0}) for name in names}


def scalars(found: dict[str, EventAccumulator]) -> list[tuple[Point, float]]:
    """All points that the readers see now, sorted, each with its time."""
    for reader in found.values():
        reader.Reload()
    return sorted(
        ((name, tag, event.step, event.value), event.wall_time)
        for name, reader in found.items()
        for tag in reader.Tags()["scalars"]
        for event in reader.Scalars(tag)
    )


def shown(out: Path) -> list[Point]:
    return [point for point, _ in scalars(readers(out))]


def logged(out: Path) -> list[Point]:
    """The points that the lines of metrics.jsonl stand for; TensorBoard's values are float32."""
    points = []
    for entry in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        if entry["kind"] == "train":
            points.append(("train", "loss/batch", entry["step"], entry["loss"]))
            for key in ("lr", "grad_norm", "tokens_per_second"):
                points.append(("train", f"training/{key}", entry["step"], entry[key]))
        elif entry["kind"] == "eval":
            points.append(("train", "loss", entry["step"], entry["train_loss"]))
            points.append(("val", "loss", entry["step"], entry["val_loss"]))
    return sorted((run, tag, step, float(np.float32(value))) for run, tag, step, value in points)


# ---- the points -------------------------------------------------------------------------------------------------


def test_the_points_are_the_figures_of_metrics_jsonl(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the run is in progress, no report replaces them."""
    evaluate, said = tinygpt.train.evaluate, []

    def evaluated(run: Any) -> bool:
        best = evaluate(run)
        if run.progress.step == 10:
            child = Child(["report", "out", "--tensorboard"], work / "log", work)
            said.append((child.wait(), child.output))
        return best

    monkeypatch.setattr(tinygpt.train, "evaluate", evaluated)
    began = time.time()
    result = trained(work, ON)
    assert said[0][0] == 2 and f"out/tensorboard is in use by process {os.getpid()}" in said[0][1]
    assert shown(work / "out") == logged(work / "out") and len(shown(work / "out")) == 20 * 4 + 3 * 2
    assert "\ncurves:      tensorboard --logdir out\n" in result.out
    lines = [json.loads(line) for line in (work / "out/metrics.jsonl").read_text().splitlines()]
    seconds = {(entry["kind"], entry["step"]): entry["seconds"] for entry in lines}
    times = {point[1:3]: time for point, time in scalars(readers(work / "out"))}
    span = times["loss/batch", 19] - times["loss/batch", 0]
    assert span == pytest.approx(seconds["train", 19] - seconds["train", 0], abs=1e-5)
    assert began - 1 < times["loss", 0] < times["loss", 20] < time.time() + 1


def test_without_the_key_there_are_no_event_files(work: Path) -> None:
    trained(work, "--max_iters=1")
    trained(work, "--max_iters=1", "--init_from=out/ckpt.pt", "--eval_only", ON, "--out_dir=new")
    assert not (work / "out/tensorboard").exists() and not (work / "new").exists()


def test_event_files_have_no_text(tuned: Path, tmp_path: Path) -> None:
    """metrics.jsonl has samples, and prompts, responses and answers of the validation split."""
    flags = ["--max_iters=4", "--sample_interval=1", "--eval_interval=2", ON, "--out_dir=out-events"]
    folder = Path(shutil.copytree(tuned, tmp_path / "work"))
    ok(folder, "finetune", *FLAGS, *flags)
    out = folder / "out-events"
    files = [path for path in out.glob("tensorboard/**/*") if path.is_file() and path.stat().st_size]
    content = b"".join(path.read_bytes() for path in files)
    for kind, key in (("before", "prompts"), ("before", "responses"), ("after", "answers"), ("sample", "text")):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        texts = [line[key] for line in lines if line["kind"] == kind]
        assert texts and all(text.encode() not in content for entry in texts for text in np.ravel(entry) if text)
    assert shown(out) == logged(out) and b"loss/batch" in content


# ---- resuming ---------------------------------------------------------------------------------------------------


def test_a_killed_run_that_is_resumed_shows_each_step_once(work: Path) -> None:
    """Also in a TensorBoard that runs all the time; and resuming needs no --report_to, since it keeps the settings."""
    out = work / "out"
    endless = ["--max_iters=1000000", "--eval_interval=50", "--quiet", ON]
    dies = functools.partial(faults.on_iteration, 130, faults.die)  # well after an evaluation, which saves
    child = Child([*TINY_TRAIN, *endless], work / "log", work, dies)
    until(lambda: (out / "metrics.jsonl").exists() and len(read_metrics(out)) > 20)
    running = readers(out)
    scalars(running)
    assert child.wait() == -signal.SIGKILL
    last = torch.load(out / "last.pt", weights_only=True)["step"]
    assert max(point[2] for point, _ in scalars(running)) > last, "no iteration would be logged twice"
    second = int(time.time())
    until(lambda: int(time.time()) > second)  # files are read in the order of their names, which begin with it
    resumed = cli_here("train", "--init_from=resume", f"--max_iters={last + 2}", cwd=work)
    assert resumed.status == 0, resumed.err
    assert max(point[2] for point in logged(out)) == last + 2
    assert shown(out) == logged(out)
    assert [point for point, _ in scalars(running)] == logged(out)
    files = [path for path in (out / "tensorboard/train").glob("*tfevents*") if path.stat().st_size]
    assert len(files) == 1


def test_a_run_that_gets_the_key_later_shows_its_beginning(work: Path) -> None:
    trained(work)
    ok(work, "train", "--init_from=resume", "--max_iters=25", ON)
    points = shown(work / "out")
    assert points == logged(work / "out") and max(point[2] for point in points) == 25
    ok(work, "train", "--init_from=resume", "--max_iters=30", "--report_to=none")
    assert shown(work / "out") == points  # one that loses it again keeps what it has
    trained(work, ON, "--max_iters=5", "--seed=8")  # a new run has none of them
    assert shown(work / "out") == logged(work / "out") and len(shown(work / "out")) == 5 * 4 + 2 * 2


@needs_fork
def test_of_two_processes_one_writes(work: Path) -> None:
    first, second = two_processes(work, *TINY_TRAIN, *BATCH, ON)
    assert first.status == second.status == 0, first.output + second.output
    assert shown(work / "out") == logged(work / "out") and len(shown(work / "out")) == 4 * 4 + 3 * 2
    assert len(list((work / "out/tensorboard/train").glob("*tfevents*"))) == 1


# ---- failures ---------------------------------------------------------------------------------------------------


def delete(out: Path) -> None:
    shutil.rmtree(out / "tensorboard")


def break_the_package(out: Path) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("\x1b[31ma bug")

    torch.utils.tensorboard.SummaryWriter.add_scalar = broken


@pytest.mark.parametrize(("sabotage", "reason"), [(delete, "FileNotFoundError"), (break_the_package, "RuntimeError")])
def test_a_run_continues_without_event_files(
    sabotage: Callable[[Path], None], reason: str, work: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One note on one line, no traceback, and the same run; then the missing points can be made up for."""
    evaluate, add_scalar = tinygpt.train.evaluate, torch.utils.tensorboard.SummaryWriter.add_scalar

    def sabotaged(run: Any) -> bool:
        best = evaluate(run)
        if run.progress.step == 10:
            sabotage(run.out)
        return best

    with monkeypatch.context() as patched:
        patched.setattr(tinygpt.train, "evaluate", sabotaged)
        patched.setattr(threading, "excepthook", threading.__excepthook__)  # pytest's would collect the traceback
        patched.setattr(torch.utils.tensorboard.SummaryWriter, "add_scalar", add_scalar)
        result = trained(work, ON)
    (note,) = [line for line in result.out.splitlines() if line.startswith("note:")]
    assert f"without TensorBoard ({reason}: " in note and "\x1b" not in note and "Traceback" not in result.err
    assert note.endswith("; afterwards: tinygpt report out --tensorboard")
    for column in ("loss", "val_loss"):
        runs = [(folder / "out/metrics.jsonl").read_text().splitlines() for folder in (work, tiny_run)]
        ours, theirs = ([json.loads(line).get(column) for line in lines] for lines in runs)
        assert ours == theirs
    assert cli_here("report", "out", "--tensorboard", cwd=work).status == 0
    assert shown(work / "out") == logged(work / "out")


def test_a_run_continues_if_event_files_cannot_be_made(work: Path) -> None:
    (work / "out").mkdir()
    (work / "out/tensorboard").touch()
    result = trained(work, ON)
    (note,) = [line for line in result.out.splitlines() if line.startswith("note:")]
    assert "without TensorBoard (out/tensorboard: cannot be written" in note and "curves:" not in result.out


@pytest.mark.parametrize("package", [None, SimpleNamespace(__version__="odd")], ids=["missing", "broken"])
@pytest.mark.parametrize(
    "args", [[*TINY_TRAIN, ON, "--out_dir=new"], ["report", "out", "--tensorboard"]], ids=["train", "report"]
)
def test_without_the_package_it_says_how_to_get_it(
    args: list[str], package: Any, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(torch.utils, "tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    said = refused(run_copy, *args)
    assert "needs the package tensorboard\n" in said and "try: pip install tensorboard" in said
    assert cli_here("report", "out", "--png=loss.png", cwd=run_copy).status == 0


# ---- report --tensorboard ---------------------------------------------------------------------------------------


def test_old_runs_are_converted_once(run_copy: Path) -> None:
    """Several folders; lines that are cut, double or without numbers; files of others; the same again."""
    odd = '{"kind": "train", "step": 20, "seconds": null, "loss": null, "lr": "x", "grad_norm": 1e999}\n{"kind": "ev'
    shutil.copytree(run_copy / "out", run_copy / "other")
    with open(run_copy / "other/metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 19, "seconds": 9.5, "loss": 1.5}\n' + odd)
    os.utime(run_copy / "other/metrics.jsonl", (1e9, 1e9))
    (run_copy / "out/tensorboard/train").mkdir(parents=True)
    (run_copy / "out/tensorboard/train/events.out.tfevents.1.other").write_bytes(b"")
    link = run_copy / "out/tensorboard/train/events.out.tfevents.9.tinygpt"
    link.symlink_to(run_copy / "text.txt")
    said = ok(run_copy, "report", "out", "other/", "--tensorboard").out
    assert not link.is_symlink() and (run_copy / "text.txt").read_text() == tiny_text()
    assert "other/tensorboard (points: 83)" in said and said.endswith("next: tensorboard --logdir .\n")
    assert shown(run_copy / "out") == logged(run_copy / "out") and not (run_copy / "out/loss.png").exists()
    points = scalars(readers(run_copy / "other"))
    assert [(point, time) for point, time in points if point[2] == 19] == [(("train", "loss/batch", 19, 1.5), 1e9)]
    assert max(time for _, time in points) == 1e9
    before = [listing(run_copy / name / "tensorboard").keys() for name in ("out", "other")]
    for _ in range(3):
        assert cli_here("report", "other", "--tensorboard", cwd=run_copy).out.endswith("--logdir other\n")
        assert scalars(readers(run_copy / "other")) == points
    assert len(listing(run_copy / "other/tensorboard")) == len(before[1]) + 2, "one more, empty file in each folder"
    assert (run_copy / "out/tensorboard/train/events.out.tfevents.1.other").exists()
