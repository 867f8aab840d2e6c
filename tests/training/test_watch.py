"""`train --watch`: what the page of a run shows while the run trains, when it stops, and when it has ended."""

import functools
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import faults
import pytest
from children import Child
from conftest import TINY_TRAIN, cli_here, needs_fork, ok, trained, until
from models import same_weights
from runs import BATCH, FLAGS, processes

import tinygpt.train
from tinygpt.examine.report import command as report_command
from tinygpt.training.watch import Page

WATCHED = ["--watch", "--sample_interval=5", "--eval_interval=5"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages that a run writes, without the full report at its end."""
    pages: list[str] = []
    show = Page.show

    def shown(page: Page, state: str) -> None:
        show(page, state)
        pages.append(page.path.read_text("utf-8"))

    monkeypatch.setattr(Page, "show", shown)
    monkeypatch.setattr(report_command, "report", lambda config: None)
    return pages


def points(page: str) -> list[int]:
    """The number of points of each curve."""
    return [len(line.split()) for line in re.findall(r'<polyline points="([^"]*)"', page)]


def test_the_page_grows_with_each_evaluation(work: Path, tiny_run: Path, seen: list[str]) -> None:
    result = trained(work, *WATCHED)
    assert f"watch: {(work / 'out/report.html').as_uri()}\n" in result.out
    assert "has not ended yet" in seen[0] and all('http-equiv="refresh"' in page for page in seen)
    assert list(dict.fromkeys(points(page)[0] for page in seen[2:])) == [1, 2, 3, 4]
    assert "<b>finished: iteration 20 of 20 after" in seen[-1]
    assert re.findall(r"Sample at iteration (\d+)", seen[-1]) == ["20", "15", "10"]
    assert same_weights(work / "out/last.pt", tiny_run / "out/last.pt")
    before = seen[-1]
    ok(work, "train", "--init_from=resume", "--max_iters=25", "--watch")  # shows its beginning, too
    assert points(before) == [4, 4] and points(seen[-1]) == [5, 5] and "of 25 after" in seen[-1]
    trained(work, "--max_iters=5")
    assert points(seen[-1]) == [5, 5], "without --watch there is no page"


def test_without_the_packages_of_a_report_the_page_stays(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.training.watch.REPORT_NEEDS", ("no_such_package",))
    monkeypatch.setattr(report_command, "report", lambda config: None)
    trained(work, *WATCHED)
    page = (work / "out/report.html").read_text("utf-8")
    assert "<b>finished: " in page and "refresh" not in page


def test_text_is_not_html(tmp_path: Path) -> None:
    page = Page(tmp_path, "<i>", 10, [])
    page.write({"kind": "sample", "step": 5, "seconds": 1.0, "text": "<script>alert(1)</script>&", "prompt": "<b>"})
    content = (tmp_path / "report.html").read_text("utf-8")
    assert "&lt;b&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in content and "<h1>&lt;i&gt;</h1>" in content
    assert "<script" not in content


@needs_fork
def test_a_run_that_is_stopped_or_fails_says_so(work: Path) -> None:
    endless = [*TINY_TRAIN, *WATCHED, "--max_iters=1000000", "--quiet", "--out_dir=out"]
    child = Child(endless, work / "log", work)
    page = work / "out/report.html"
    until(lambda: page.exists() and "iteration 5 of" in page.read_text("utf-8"))
    child.send(signal.SIGTERM)
    assert child.wait(60, signal.SIGKILL) == 143
    assert "<b>stopped: " in page.read_text("utf-8") and "refresh" not in page.read_text("utf-8")
    diverges = functools.partial(faults.diverge, "gradient", 7, 1, lambda: None)
    assert Child([*endless, "--seed=3"], work / "log", work, diverges).wait(60, signal.SIGKILL) == 1
    assert "<b>diverged: the norm of the gradient is NaN or infinite" in page.read_text("utf-8")


@needs_fork
def test_of_two_processes_one_writes(work: Path) -> None:
    processes(work, 2, *TINY_TRAIN, *BATCH, *WATCHED)
    page = (work / "out/report.html").read_text("utf-8")
    assert 'id="attention"' in page and 'http-equiv="refresh"' not in page


def test_a_page_that_cannot_be_written_does_not_end_the_run(
    work: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One note, and the same weights; the full report is written at the end."""
    evaluate = tinygpt.train.evaluate

    def evaluated(run: Any) -> bool:
        blocked = run.out / "report.html"
        if run.progress.step == 10:
            blocked.unlink()
            blocked.mkdir()
        best = evaluate(run)
        if blocked.is_dir():
            blocked.rmdir()
        return best

    monkeypatch.setattr(tinygpt.train, "evaluate", evaluated)
    said = trained(work, *WATCHED).out
    assert len(re.findall(r"^note: the run continues without --watch \(.*report\.html", said, re.MULTILINE)) == 1
    assert same_weights(work / "out/last.pt", tiny_run / "out/last.pt")
    assert 'id="attention"' in (work / "out/report.html").read_text("utf-8")


def test_a_fine_tuning_is_watched_too(tuned: Path, tmp_path: Path, seen: list[str]) -> None:
    folder = Path(shutil.copytree(tuned, tmp_path / "work"))
    result = cli_here("finetune", *FLAGS, *WATCHED, "--max_iters=10", "--out_dir=out-watched", cwd=folder)
    assert result.status == 0 and points(seen[-1])[0] == 3 and "Sample at iteration 10" in seen[-1]
