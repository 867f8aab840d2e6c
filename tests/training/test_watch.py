"""`train --watch` and `report --live`: real runs that are started, stopped, killed and resumed, seen in Chromium.

Runs are forked from this process (children.py). Pages are opened from disk, as a person does it.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from children import Child, ranks, wait_for_lines
from conftest import PATIENCE, TINY_TRAIN, cli_here, listing, ok, refused, until
from models import same_weights
from pages import Browser, in_a_browser

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.files import file_lock
from tinygpt.checkpoint.store import load
from tinygpt.examine.report import live
from tinygpt.examine.report.follow import FollowedRun
from tinygpt.examine.report.live import LivePage
from tinygpt.training import watch

LONG = ["--max_iters=1000000", "--eval_interval=500", "--log_interval=20", "--sample_interval=1000", "--quiet"]
RESUME = ["train", "--init_from=resume", "--out_dir=out", "--quiet"]


@contextlib.contextmanager
def watching_here(run: Path) -> Iterator[None]:
    """What `tinygpt report --live` does, in a thread of this process, without rest."""
    config = ReportConfig(runs=(str(run),), data_dir=str(run.parent / "data"), live=True)
    page = LivePage(config, run / "report.html")
    thread = threading.Thread(target=page.work)
    with mock.patch.multiple(live, PAUSE=0, LOAD_TIME=0):
        thread.start()
        try:
            yield
        finally:
            page.ended.set()
            thread.join(PATIENCE)
            with page.state_lock:  # its thread still writes states
                live.remove_scripts(page.scripts)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start `tinygpt ARGS` in a forked process, in the folder `work`; at the end all are killed."""
    monkeypatch.setattr(watch, "LAST_PAGE", 150)
    children = []

    def start(work: Path, *args: str, **options: Any) -> Child:
        children.append(Child([*args], tmp_path / f"log-{len(children)}", work, **options))
        return children[-1]

    yield start
    for child in children:
        child.kill()


def is_finished(run: Path) -> bool:
    """Whether the page is the last one, without the live parts."""
    page = run / "report.html"
    return page.exists() and 'id="live"' not in page.read_text("utf-8") and not (run / "report-live").exists()


class Made:
    """A run folder with made-up files."""

    def __init__(self, folder: Path, **settings: int) -> None:
        self.folder, self.lock = folder, folder / ".lock"
        self.run = FollowedRun(folder)
        known = {"max_iters": 100, "eval_interval": 50, "log_interval": 10} | settings
        (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in known.items()))

    def add(self, kind: str, step: int, **values: Any) -> None:
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": kind, "step": step, "seconds": 2.0 * step, **values}) + "\n")

    def state(self) -> dict[str, Any]:
        self.run.read()
        return self.run.state()

    @property
    def phase(self) -> str:
        return f"{self.state()['phase']} {self.state()['step']}"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def live_page(run: Path, **settings: bool) -> LivePage:
    page = LivePage(ReportConfig(runs=(str(run),), live=True, **settings), run / "report.html")
    page.scripts.mkdir(exist_ok=True)
    return page


def written_state(page: LivePage) -> dict[str, Any]:
    page.write_state()
    return dict(json.loads((page.scripts / "state.js").read_text()[len("TinyLive(") : -len(");\n")]))


class Page(Browser):
    """The page of a run that is watched."""

    def visit(self, run: Path) -> None:
        self.driver.get("about:blank")  # the page of an earlier test still loads states
        for log in ("performance", "browser"):
            self.driver.get_log(log)
        self.open(until(lambda: (run / "report.html").exists()) and run / "report.html")

    @property
    def status(self) -> str:
        return str(self.run("return document.getElementById('live').textContent.trim().replace(/\\s+/g, ' ')"))

    @property
    def steps(self) -> list[str]:
        """The steps of the evaluations that the page shows."""
        cells = "[...document.querySelectorAll('#curves details tbody th')]"
        return list(self.run(f"return {cells}.map(th => th.textContent)"))

    def wait(self, pattern: str) -> re.Match[str]:
        found = until(lambda: re.search(pattern, self.status))
        assert isinstance(found, re.Match)
        return found

    def write(self, text: str) -> None:
        """Type a text, and choose a temperature and a head; the box keeps the focus."""
        until(lambda: len(self.all("#heads button")) > 1)  # the page's script makes them, after the table of steps
        self.run("document.querySelectorAll('#heads button')[1].click()")
        self.slide("#temperature", 1.5)
        self.type_into("#text", text)

    def written(self) -> list[Any]:
        """What the reader has left on the page, and where it is in the window."""
        parts = "$('#text').value, $('#temperature').value, document.activeElement.id, $('#text').selectionEnd,"
        parts += "$('#heads [aria-pressed=true]').ariaLabel, $('#type').getBoundingClientRect().top"
        return list(self.run(f"const $ = (selector) => document.querySelector(selector); return [{parts}]"))

    def keeps(self, left: list[Any], within: float) -> bool:
        """Whether all is as it was left, at the same place of the window within so many pixels."""
        *texts, top = self.written()
        return texts == left[:-1] and abs(top - left[-1]) < within


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("chromium"), local=True)
    yield page
    page.driver.quit()


@in_a_browser
def test_an_open_page_is_updated_and_keeps_what_was_written(page: Page, run_copy: Path) -> None:
    run, before = run_copy / "out", listing(run_copy / "out").keys()
    with watching_here(run):
        page.visit(run)
        page.wait("^finished at step 20$")
        page.write("The king")
        left, stamp = page.written(), page.run("return (window.stamp = Math.random())")
        assert page.steps == ["0", "10", "20"] and left[:5] == ["The king", "1.5", "text", 8, "layer 1, head 2"]
        ok(run_copy, *RESUME, "--max_iters=40", "--lr_schedule=constant")
        page.wait("^finished at step 40$")
        until(lambda: page.steps[-1] == "40" and page.keeps(left, within=25))
        assert page.run("return window.stamp") == stamp  # it was never loaded again
        assert page.violations() == [] and page.driver.get_log("browser") == []
    assert listing(run).keys() == before | {"report.html"} and is_finished(run)


@in_a_browser
def test_a_page_that_waits_shows_a_sample_and_says_when_its_process_has_ended(page: Page, made: Made) -> None:
    made.lock.write_text(str(os.getpid()))
    made.add("sample", 0, text="<b>pzlla", prompt="\n")
    updater = live_page(made.folder)
    updater.write_state()
    updater.show({"title": "out", "kind": "waiting"}, template="examine/report/waiting.html.j2", scripts=[])
    updater.write_state()
    page.visit(made.folder)
    until(lambda: page.find("#untrained").text == "Before training, the model writes\n<b>pzlla")
    live.remove_scripts(updater.scripts)
    page.wait("^no longer updated; the page shows step 0$")


@pytest.mark.slow
@in_a_browser
def test_a_killed_run_is_resumed_and_the_open_page_goes_on(page: Page, work: Path, trainer: Any) -> None:
    training = trainer(work, *TINY_TRAIN, *LONG, "--watch")
    page.visit(work / "out")
    until(lambda: page.steps)
    page.wait(
        r"^training: step [\d,]+ of 1,000,000, training loss \d\.\d\d, validation loss \d\.\d\d, "
        r"[\d,]+k? tokens per second, about \d+ \w+ left$"
    )
    page.write("The king")
    left, stamp = page.written(), page.run("return (window.stamp = Math.random())")
    training.kill()
    found = page.wait(r"^stopped at step ([\d,]+); next: tinygpt train --init_from=resume --out_dir=out$")
    more = int(found[1].replace(",", "")) // 500 * 500 + 1000
    resumed = trainer(work, *RESUME, f"--max_iters={more}", "--watch")  # waits for the last page of the killed run
    page.wait(f"^finished at step {more:,}$")
    until(lambda: page.steps[-1] == f"{more:,}" and page.keeps(left, within=9999))
    assert page.run("return window.stamp") == stamp
    assert resumed.wait() == 0 and "\npage: out/report.html\n" in resumed.output
    until(lambda: is_finished(work / "out"))  # a few seconds later, when open pages have the last page
    scripts = {(work / f"out/report-live/{name}.js").as_uri() for name in ("state", "page")}
    assert {url.partition("?")[0] for url in page.requests()} == scripts
    # the page is the one that `tinygpt report` writes, but for ids in the curves, which are different each time
    ok(work, "report", "out", "-o", "other.html")
    pages = [(work / name).read_text() for name in ("out/report.html", "other.html")]
    one, other = (re.sub(r'(id="|url\(#)p\w+', r"\1p", text) for text in pages)
    assert one == other


@pytest.mark.parametrize("program", ["/nowhere", "/bin/false"])
def test_a_child_that_fails_costs_a_note(tiny_run: Path, work: Path, trainer: Any, program: str) -> None:
    training = trainer(work, *TINY_TRAIN, "--watch", before=functools.partial(replace_child, program))
    assert training.wait() == 0, training.output
    note = r"^note: the page of this run is no longer updated \((.*)\); afterwards: tinygpt report out$"
    assert len(re.findall(note, training.output, re.M)) == training.output.count("note: ") == 1
    assert "page: " not in training.output
    assert same_weights(work / "out/last.pt", tiny_run / "out/last.pt")


def replace_child(program: str | Path) -> None:
    watch.sys = SimpleNamespace(executable=str(program))  # type: ignore[attr-defined]


def stand_in(work: Path, seconds: int = 0) -> Callable[[], None]:
    """Replace the child: this one shows how often it is started and that its input is closed."""
    steps = ["touch started-$$", "echo watch: file:///out/report.html", "cat", f"sleep {seconds}"]
    (work / "child").write_text("\n".join(["#!/bin/sh", *steps, "echo page: out/report.html\n"]))
    (work / "child").chmod(0o755)
    return functools.partial(replace_child, work / "child")


def test_watching_changes_nothing_in_a_run(tiny_run: Path, work: Path, trainer: Any) -> None:
    training = trainer(work, *TINY_TRAIN, "--watch", before=stand_in(work))
    assert training.wait() == 0, training.output
    assert training.output.count("watch: ") == 1
    assert re.search(r"\ndone in [^$]*\npage: out/report.html\n\nnext: .*\n$", training.output), training.output
    for name in ("ckpt.pt", "last.pt"):
        assert same_weights(work / "out" / name, tiny_run / "out" / name)
        assert "watch" not in load(work / "out" / name).config
    assert (work / "out/config.yaml").read_text() == (tiny_run / "out/config.yaml").read_text()


def test_the_page_of_a_run_that_a_signal_stops(work: Path, trainer: Any) -> None:
    training = trainer(work, *TINY_TRAIN, *LONG, "--watch", before=stand_in(work))
    wait_for_lines(training, work / "out", 5)
    training.send(signal.SIGINT)
    assert training.wait() == 130, training.output
    assert re.search(r"\npage: out/report.html\n\nnext: tinygpt train --init_from=resume .*\n$", training.output)


def test_a_page_that_takes_long_is_completed_later(work: Path, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LAST_PAGE", 0)
    training = trainer(work, *TINY_TRAIN, "--watch", before=stand_in(work, seconds=10))
    assert training.wait() == 0, training.output
    assert "\npage: out/report.html is completed in the background\n\nnext: " in training.output


def test_two_processes_have_one_child(work: Path, trainer: Any) -> None:
    flags = [*TINY_TRAIN, "--dropout=0", "--max_iters=2", "--watch"]
    both = [trainer(work, *flags, before=stand_in(work), **environment) for environment in ranks(2)]
    assert [training.wait() for training in both] == [0, 0], both[0].output
    assert both[0].output.count("watch: ") == 1 and len(list(work.glob("started-*"))) == 1


def test_the_page_of_a_run_that_trains_gives_no_advice(run_copy: Path) -> None:
    log = run_copy / "out/metrics.jsonl"
    sample = json.dumps({"kind": "sample", "step": 0, "seconds": 0, "text": "pzlla", "prompt": "\n"})
    lines = [f"{sample}\n", *log.read_text().splitlines(True)]
    page, found = live_page(run_copy / "out"), []
    for written, running in ((lines[:-1], True), (lines, False)):
        log.write_text("".join(written))
        with mock.patch.object(FollowedRun, "is_running", running):
            is_last = [written_state(page)["is_last"]]
            page.make_page()
            is_last.append(written_state(page)["is_last"])
        text = page.path.read_text("utf-8")
        advice = [one for one in ("verdict</dt>", "try next", 'class="verdict', "Train with") if one in text]
        found.append((re.findall(r'<section id="([\w-]+)"', text)[:3], advice, is_last))
    assert found[0] == (["samples", "curves", "type"], [], [False, False])
    assert found[1] == (["type", "walk", "attention"], ["verdict</dt>", "try next", 'class="verdict'], [False, True])


def test_the_state_has_a_sample_until_there_is_a_page(made: Made) -> None:
    page, without = live_page(made.folder), live_page(made.folder, no_text=True)
    made.add("sample", 0, text="pzlla", prompt="\n")
    assert written_state(page)["text"] == "pzlla" and written_state(without)["text"] == ""
    page.values = {"title": "of the first page"}
    assert written_state(page)["text"] == ""


def test_a_page_of_an_ended_run_that_failed_is_tried_again(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = live_page(run_copy / "out")
    page.write_state()
    os.rename(run_copy / "out/ckpt.pt", run_copy / "away")
    page.attempt(page.update)
    assert "ckpt.pt: no such file" in page.problem and not page.is_due()  # but after a pause:
    page.paused_until = 0
    os.rename(run_copy / "away", run_copy / "out/ckpt.pt")
    page.attempt(page.update)
    assert not page.problem and page.path.exists() and not page.is_due()


def test_what_a_killed_process_left_is_removed_by_the_next_report(run_copy: Path) -> None:
    left = run_copy / "out/report-live"
    left.mkdir()
    for name in ("state.js", "page.js", ".state.js.tmp", ".page.js.01234567.tmp"):
        (left / name).write_text("text of the dataset")
    with file_lock(run_copy / "out/report.html", ""):  # its process lives
        live.remove_leftovers(run_copy / "out/report.html")
        assert len(list(left.iterdir())) == 4
    ok(run_copy, "report", "out", "--no_text")
    assert not left.exists()


@pytest.mark.parametrize("before", [{}, {"report.html": b"mine"}], ids=["nothing", "a page"])
def test_a_run_without_an_evaluation_leaves_what_was_there(work: Path, before: dict[str, bytes], trainer: Any) -> None:
    path = work / "out/report.html"
    path.parent.mkdir()
    for content in before.values():
        path.write_bytes(content)
    with watching_here(path.parent):
        until(lambda: path.exists() and path.read_text("utf-8") != "mine")
        policy = re.search(r'Policy" content="([^"]*)"', path.read_text("utf-8"))
        assert policy and re.match(r"default-src 'none'; script-src 'sha256-[^']*' 'strict-dynamic';", policy[1])
    assert listing(path.parent) == before
    process = trainer(work, "report", "out", "--live")
    until(lambda: f"watch: {path.as_uri()}\n" in process.output)
    another = cli_here("report", "out", "--live", cwd=work)
    assert another.status == 2 and f"report.html is in use by process {process.pid}" in another.err
    process.send(signal.SIGINT)
    assert process.wait() == 0 and process.output.endswith("\nstopped\n")
    assert listing(path.parent) | before == listing(path.parent) and not (work / "out/report-live").exists()


def test_watching_needs_a_package(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    without = lambda name, *more: None if name == "matplotlib" else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    message = refused(tiny_run, *TINY_TRAIN, "--out_dir=new", "--watch")
    assert message.startswith("error: --watch needs the package matplotlib\n") and "train without --watch" in message


def test_the_phases_of_a_run(made: Made) -> None:
    assert made.phase == "waiting 0"
    made.lock.write_text(str(os.getpid()))
    assert made.phase == "starting 0"
    made.add("eval", 0, train_loss=4.0, val_loss=4.0)
    assert made.phase == "training 0" and not made.run.is_saved
    for step in range(0, 40, 10):
        made.add("train", step, loss=3.5, tokens_per_second=41_000)
    assert made.state() == {
        "phase": "training", "step": 31, "max_iters": 100, "loss": 3.5, "tokens_per_second": 41_000,
        "val_loss": 4.0, "seconds_left": 138, "next": "",
    }  # fmt: skip
    assert made.run.is_saved
    made.add("eval", 50, train_loss=3.0, val_loss=3.0)
    assert made.phase == "training 50" and made.run.evaluations == [(0, 4.0), (50, 3.0)]
    ended = subprocess.Popen(["true"])
    ended.wait()
    for owner in (str(ended.pid), ""):
        made.lock.write_text(owner)
        assert made.phase == "stopped 50" and made.state()["next"] == ""
    (made.folder / "last.pt").touch()
    assert made.state()["next"] == f"tinygpt train --init_from=resume --out_dir={made.folder}"
    made.add("eval", 100, train_loss=3.0, val_loss=3.0)
    assert made.phase == "finished 100"
    made.add("diverged", 100, reason="the loss is NaN")
    assert made.phase == "diverged 100"


def test_early_stopping_is_an_end(tmp_path: Path) -> None:
    made = Made(tmp_path, patience=2)
    for step, loss, phase in ((0, 4.0, "stopped"), (10, 3.0, "stopped"), (20, 3.5, "stopped"), (30, 3.1, "finished")):
        made.add("eval", step, train_loss=loss, val_loss=loss)
        assert made.phase == f"{phase} {step}"


def test_lines_that_are_incomplete_damaged_or_replaced(made: Made) -> None:
    path = made.folder / "metrics.jsonl"
    made.add("eval", 0, train_loss=4.0, val_loss=4.0)
    made.add("train", 10, loss=2.0)
    assert made.phase == "stopped 11"
    with open(path, "a") as file:
        file.write('[1]\n\n{"kind": "train", "step": 20, "sec')
    assert made.phase == "stopped 11"
    with open(path, "a") as file:
        file.write('onds": 40, "loss": null}\n')
    assert made.phase == "stopped 21" and made.state()["loss"] is None
    path.write_text("")  # a new run in the same folder, whose file is soon longer; perhaps with the same inode
    for step in range(5):
        made.add("train", step, loss=1.0, tokens_per_second=1)
    assert made.phase == "stopped 5" and made.run.evaluations == []
    path.write_text("".join(path.read_text().splitlines(True)[:2]))  # it was resumed
    assert made.phase == "stopped 2"
    path.unlink()
    assert made.phase == "waiting 0"
