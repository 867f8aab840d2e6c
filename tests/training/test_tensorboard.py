"""Event files for TensorBoard, read with its own reader: the figures of metrics.jsonl, each step once, whatever happens
to the run; and nothing that happens to the event files ends a run."""

import functools
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
import torch.utils.tensorboard
from children import Child
from conftest import TINY_TRAIN, needs_fork, ok, refused, trained, until
from models import same_weights
from runs import BATCH, FLAGS, column, processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tinygpt.train
from tinygpt.training.log import read_metrics

ON = "--report_to=tensorboard"
Point = tuple[str, str, int, float]  # run, tag, step, value


def readers(out: Path) -> dict[str, EventAccumulator]:
    """TensorBoard's readers of a run's two folders, which keep every point."""
    guidance = {"scalars": 0}
    return {name: EventAccumulator(str(out / "tensorboard" / name), guidance) for name in ("train", "val")}


def times(found: dict[str, EventAccumulator]) -> dict[Point, float]:
    """The time of each point that the readers see now."""
    for reader in found.values():
        reader.Reload()
    events = [
        ((name, tag, event.step, event.value), event.wall_time)
        for name, reader in found.items()
        for tag in reader.Tags()["scalars"]
        for event in reader.Scalars(tag)
    ]
    assert len(dict(events)) == len(events)  # each point once
    return dict(events)


def shown(out: Path) -> list[Point]:
    return sorted(times(readers(out)))


def logged(out: Path) -> list[Point]:
    """The points that the lines of metrics.jsonl stand for; TensorBoard's values are float32."""
    kept = ("lr", "grad_norm", "tokens_per_second")
    tags = {"train": {"loss": ("train", "loss/batch")} | {key: ("train", f"training/{key}") for key in kept}}
    tags["eval"] = {"train_loss": ("train", "loss"), "val_loss": ("val", "loss")}
    return sorted(
        (*tag, entry["step"], float(np.float32(entry[key])))
        for entry in read_metrics(out)
        for key, tag in tags.get(entry["kind"], {}).items()
    )


def test_the_points_are_the_figures_of_metrics_jsonl(work: Path) -> None:
    began = time.time()
    result = trained(work, ON)
    assert shown(work / "out") == logged(work / "out") and len(shown(work / "out")) == 20 * 4 + 3 * 2
    assert "\ncurves:      tensorboard --logdir out\n" in result.out
    seconds = column(work / "out", "train", "seconds")
    at = {step: time for (_, tag, step, _), time in times(readers(work / "out")).items() if tag == "loss/batch"}
    assert at[19] - at[0] == pytest.approx(seconds[19] - seconds[0], abs=1e-5)
    assert began - 1 < at[0] < at[19] < time.time() + 1


def test_event_files_have_no_text(tuned: Path, tmp_path: Path) -> None:
    """metrics.jsonl has samples, and prompts, responses and answers of the validation split."""
    flags = ["--max_iters=4", "--sample_interval=1", "--eval_interval=2", ON, "--out_dir=out-events"]
    folder = Path(shutil.copytree(tuned, tmp_path / "work"))
    ok(folder, "finetune", *FLAGS, *flags)
    out = folder / "out-events"
    files = [path for path in out.glob("tensorboard/**/*") if path.is_file() and path.stat().st_size]
    content = b"".join(path.read_bytes() for path in files)
    for kind, key in (("before", "prompts"), ("before", "responses"), ("after", "answers"), ("sample", "text")):
        texts = column(out, kind, key)
        assert texts and all(text.encode() not in content for entry in texts for text in np.ravel(entry) if text)
    assert shown(out) == logged(out) and b"loss/batch" in content


def test_a_killed_run_that_is_resumed_shows_each_step_once(work: Path) -> None:
    """Also in a TensorBoard that runs all the time; and resuming needs no --report_to, since it keeps the settings."""
    out = work / "out"
    endless = ["--max_iters=1000000", "--eval_interval=20", "--quiet", ON]
    dies = functools.partial(faults.on_iteration, 55, faults.die)  # well after an evaluation, which saves
    child = Child([*TINY_TRAIN, *endless], work / "log", work, dies)
    until(lambda: (out / "metrics.jsonl").exists() and len(read_metrics(out)) > 20)
    running = readers(out)
    times(running)
    assert child.wait() == -signal.SIGKILL
    last = torch.load(out / "last.pt", weights_only=True)["step"]
    assert max(step for _, _, step, _ in times(running)) > last, "no iteration would be logged twice"
    second = int(time.time())
    until(lambda: int(time.time()) > second)  # files are read in the order of their names, which begin with it
    ok(work, "train", "--init_from=resume", f"--max_iters={last + 2}")
    assert max(step for _, _, step, _ in logged(out)) == last + 2
    assert shown(out) == logged(out)
    assert sorted(times(running)) == logged(out)
    assert len([path for path in out.glob("tensorboard/train/*tfevents*") if path.stat().st_size]) == 1


def test_a_run_that_gets_the_key_later_shows_its_beginning(work: Path) -> None:
    trained(work)
    ok(work, "train", "--init_from=resume", "--max_iters=25", ON)
    points = shown(work / "out")
    assert points == logged(work / "out") and max(point[2] for point in points) == 25
    trained(work, ON, "--max_iters=5", "--seed=8")  # a new run has none of them
    assert shown(work / "out") == logged(work / "out") and len(shown(work / "out")) == 5 * 4 + 2 * 2


@needs_fork
def test_of_two_processes_one_writes(work: Path) -> None:
    processes(work, 2, *TINY_TRAIN, *BATCH, ON)
    assert shown(work / "out") == logged(work / "out") and len(shown(work / "out")) == 4 * 4 + 3 * 2
    assert len(list((work / "out/tensorboard/train").glob("*tfevents*"))) == 1


def test_a_run_continues_without_event_files(work: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One note on one line, no traceback, and the same run."""
    evaluate = tinygpt.train.evaluate

    def evaluated(run: Any) -> bool:
        best = evaluate(run)
        if run.progress.step == 10:
            shutil.rmtree(work / "out/tensorboard")
        return best

    monkeypatch.setattr(tinygpt.train, "evaluate", evaluated)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest's would collect the traceback
    result = trained(work, ON)
    (note,) = [line for line in result.out.splitlines() if line.startswith("note:")]
    assert "without TensorBoard (FileNotFoundError: " in note and "Traceback" not in result.err
    assert same_weights(work / "out/last.pt", tiny_run / "out/last.pt")


def test_without_the_package_it_says_how_to_get_it(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(torch.utils, "tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = refused(run_copy, *TINY_TRAIN, ON, "--out_dir=new")
    assert "needs the package tensorboard\n" in said and "try: pip install tensorboard" in said
