"""`train --watch` and `report --live`: real runs that are started, stopped, killed and resumed, seen in Chromium.

The runs of the slow tests are forked from this process (children.py); what updates their pages are processes of their
own. Pages are opened from disk, as a person does it.
"""

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
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

from tinygpt import train
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.files import file_lock
from tinygpt.checkpoint.store import load
from tinygpt.examine.report import follow, live
from tinygpt.examine.report.follow import FollowedRun
from tinygpt.examine.report.live import LivePage
from tinygpt.training import watch

LONG = ["--max_iters=1000000", "--eval_interval=50", "--log_interval=5", "--sample_interval=1000", "--quiet"]
RESUME = ["train", "--init_from=resume", "--out_dir=out", "--quiet"]
# as `tinygpt ARGS`, but without the pause between two pages
WITHOUT_PAUSES = (
    "import sys; from tinygpt.examine.report import live; from tinygpt.cli import main; "
    "live.PAUSE = 0; main(sys.argv[1:])"
)


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process `tinygpt report out --live` that has written its first page."""
    command = [sys.executable, "-c", WITHOUT_PAUSES, "report", "out", "--live"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline() == f"watch: {(folder / 'out/report.html').as_uri()}\n"
            yield process
        finally:
            process.kill()


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


def slow() -> None:
    """In the process of a trainer: make iterations of 10 ms that leave the processor to the others."""
    draw = train.batch

    def batch(*args: Any) -> Any:
        time.sleep(0.01)
        return draw(*args)

    train.batch = batch


def is_finished(run: Path) -> bool:
    """Whether the page is the last one, without the live parts."""
    page = run / "report.html"
    return page.exists() and 'id="live"' not in page.read_text("utf-8") and not (run / "report-live").exists()


# ---- in a browser -----------------------------------------------------------------------------------------------


class Page(Browser):
    """The page of a run that is watched."""

    def visit(self, run: Path) -> None:
        self.driver.get("about:blank")  # the page of an earlier test still loads states
        self.driver.get_log("performance")
        self.driver.get_log("browser")
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
        box = self.find("#text")
        box.clear()
        box.send_keys(text)

    def written(self) -> list[Any]:
        """What the reader has left on the page."""
        left = (
            "document.getElementById('text').value, document.getElementById('temperature').value,"
            "document.activeElement.id, document.activeElement.selectionEnd,"
            "document.querySelector('#heads [aria-pressed=true]').ariaLabel,"
            "document.getElementById('type').getBoundingClientRect().top"
        )
        return list(self.run(f"return [{left}]"))

    def keeps(self, left: list[Any]) -> bool:
        """Whether all is as it was left, at the same place of the window within a line of text, or above it where the
        page begins: at the end of the run, the section moves to the top of the page."""
        *texts, top = self.written()
        at_top = self.run("return scrollY") == 0 and 0 < top < left[-1]
        return texts == left[:-1] and (abs(top - left[-1]) < 25 or at_top)

    def first_screen(self) -> list[str]:
        """The sections whose sample or curve of losses, the upper part of the picture, is completely in the window."""
        self.run("scrollTo(0, 0)")
        parts = {"samples": ("#moments figure:not([hidden]) .text", 1), "curves": ("#curves .plot", 0.6)}
        bottom = (
            "const plot = [...document.querySelectorAll(arguments[0])].find(one => one.checkVisibility());"
            "const {top, height} = plot.getBoundingClientRect(); return top + arguments[1] * height <= innerHeight"
        )
        return [name for name, part in parts.items() if self.run(bottom, *part)]

    def errors(self) -> list[dict[str, Any]]:
        """What the browser logged, apart from scripts of a page that is no longer updated."""
        return [entry for entry in self.driver.get_log("browser") if "ERR_FILE_NOT_FOUND" not in entry["message"]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("chromium"), local=True)
    yield page
    page.driver.quit()


@in_a_browser
def test_open_pages_are_updated_and_keep_what_was_written(page: Page, run_copy: Path) -> None:
    """Two tabs: one from disk, one through `python -m http.server`, as for a run on another machine."""
    run, before = run_copy / "out", listing(run_copy / "out").keys()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(run))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, watching_here(run):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.visit(run)
        page.wait("^finished at step 20$")
        first = page.driver.current_window_handle
        page.driver.switch_to.new_window("tab")
        page.driver.get(f"http://127.0.0.1:{server.server_port}/report.html")
        assert page.steps == ["0", "10", "20"]
        page.driver.switch_to.window(first)
        page.write("The king")
        left, stamp = page.written(), page.run("return (window.stamp = Math.random())")
        assert page.steps == ["0", "10", "20"] and left[:5] == ["The king", "1.5", "text", 8, "layer 1, head 2"]
        ok(run_copy, *RESUME, "--max_iters=40", "--lr_schedule=constant")
        page.wait("^finished at step 40$")
        until(lambda: page.steps[-1] == "40")
        until(lambda: page.keeps(left))
        assert page.run("return window.stamp") == stamp  # it was never loaded again
        assert page.errors() == []
        page.driver.switch_to.window(page.driver.window_handles[-1])
        until(lambda: page.steps[-1] == "40")
        page.driver.close()
        page.driver.switch_to.window(first)
        server.shutdown()
    assert listing(run).keys() == before | {"report.html"} and is_finished(run)


@pytest.mark.slow
@in_a_browser
def test_a_run_is_seen_from_before_its_start_to_its_end(page: Page, work: Path, trainer: Any) -> None:
    (work / "out").mkdir()
    with watching(work):
        page.visit(work / "out")
        page.wait("^waiting: no run has started in this folder$")  # its process is killed now
    page.wait("^no longer updated; the page shows step 0$")
    with watching(work) as process:
        page.wait("^waiting: no run has started in this folder$")
        assert not page.find("#untrained").is_displayed()
        sample = {"kind": "sample", "step": 0, "seconds": 0, "text": "<b>pzlla", "prompt": "\n"}
        (work / "out/metrics.jsonl").write_text(json.dumps(sample) + "\n")
        until(lambda: page.find("#untrained").text == "Before training, the model writes\n<b>pzlla")
        (work / "out/metrics.jsonl").unlink()
        training = trainer(work, *TINY_TRAIN, *LONG, before=slow)
        until(lambda: page.steps)  # the page has become the report
        page.wait(
            r"^training: step [\d,]+ of 1,000,000, training loss \d\.\d\d, validation loss \d\.\d\d, "
            r"[\d,]+k? tokens per second, about \d+ \w+ left$"
        )
        assert page.violations() == []
        for width in (390, 1280):
            page.script.resize(page.driver, width)
            assert page.first_screen() == ["samples", "curves"]
        page.write("The king")
        left, before = page.written(), page.steps
        stamp = page.run("return (window.stamp = Math.random())")
        until(lambda: len(page.steps) > len(before))
        assert page.steps[: len(before)] == before and page.keeps(left)
        training.send(signal.SIGTERM)
        assert training.wait() == 143, training.output
        found = page.wait(r"^stopped at step ([\d,]+); next: tinygpt train --init_from=resume --out_dir=out$")
        memorised = "return document.getElementById('memorised').textContent"  # in one step: the page may change
        until(lambda: "best model" in page.run(memorised))  # measured when the run has ended
        more = int(found[1].replace(",", "")) + 60
        assert trainer(work, *RESUME, f"--max_iters={more}", "--lr_schedule=constant").wait() == 0
        page.wait(f"^finished at step {more:,}$")
        until(lambda: page.steps[-1] == f"{more:,}")
        until(lambda: page.keeps(left))
        assert page.run("return window.stamp") == stamp  # it was never loaded again
        assert page.run("return document.querySelectorAll('#bars tbody tr').length") == 11
        another = cli_here("report", "out", "--live", cwd=work)
        assert another.status == 2 and f"report.html is in use by process {process.pid}" in another.err
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0 and process.stdout and process.stdout.read() == "stopped\n"
    assert is_finished(work / "out")
    page.wait(f"^finished at step {more:,}$")
    assert {url.partition("?")[0] for url in page.requests()} == {
        (work / f"out/report-live/{name}.js").as_uri() for name in ("state", "page")
    }
    assert page.errors() == []


@pytest.mark.slow
@in_a_browser
def test_a_killed_run_is_resumed_and_the_open_page_goes_on(page: Page, work: Path, trainer: Any) -> None:
    training = trainer(work, *TINY_TRAIN, *LONG, "--watch", before=slow)
    page.visit(work / "out")
    until(lambda: page.steps)
    page.write("The king")
    left, stamp = page.written(), page.run("return (window.stamp = Math.random())")
    training.kill()
    found = page.wait(r"^stopped at step ([\d,]+); next: tinygpt train --init_from=resume --out_dir=out$")
    more = int(found[1].replace(",", "")) // 50 * 50 + 100
    resumed = trainer(work, *RESUME, f"--max_iters={more}", "--watch")  # waits for the last page of the killed run
    page.wait(f"^finished at step {more:,}$")
    until(lambda: page.steps[-1] == f"{more:,}")
    until(lambda: page.keeps(left))
    assert page.run("return window.stamp") == stamp
    assert resumed.wait() == 0 and "\npage: out/report.html\n" in resumed.output
    until(lambda: is_finished(work / "out"))  # a few seconds later, when open pages have the last page
    # the page is the one that `tinygpt report` writes, but for ids in the curves, which are different each time
    assert cli_here("report", "out", "-o", "other.html", cwd=work).status == 0
    one, other = (
        re.sub(r'(id="|url\(#)p\w+', r"\1p", (work / name).read_text()) for name in ("out/report.html", "other.html")
    )
    assert one == other


# ---- the run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["no program", "ends at once", "is killed"])
def test_a_child_that_fails_costs_a_note(tiny_run: Path, work: Path, trainer: Any, fault: str) -> None:
    def before() -> None:
        if fault != "is killed":
            watch.sys = SimpleNamespace(executable="/bin/false" if fault == "ends at once" else "/nowhere")  # type: ignore[attr-defined]
        else:
            start = watch.Watcher.__enter__

            def enter(self: watch.Watcher) -> None:
                start(self)
                assert self.child
                self.child.kill()
                self.reader.join()

            watch.Watcher.__enter__ = enter  # type: ignore[method-assign]

    training = trainer(work, *TINY_TRAIN, "--watch", before=before)
    assert training.wait() == 0, training.output
    note = r"^note: the page of this run is no longer updated \((.*)\); afterwards: tinygpt report out$"
    assert (
        len(re.findall(note, training.output, re.M)) == 1
        and training.output.count("note: ") == 1
        and "page: " not in training.output
    )
    assert same_weights(work / "out/last.pt", tiny_run / "out/last.pt")


STAND_IN = """#!{python}
import os, sys, time
open(f"started-{{os.getpid()}}", "w")
print("watch: file:///out/report.html", flush=True)
sys.stdin.read()
time.sleep({seconds})
print("page: out/report.html")
"""


def stand_in(work: Path, seconds: int) -> Callable[[], None]:
    """Replace the child: this one shows how often it is started and that its input is closed."""
    program = work / "python"
    program.write_text(STAND_IN.format(python=sys.executable, seconds=seconds))
    program.chmod(0o755)

    def before() -> None:
        watch.sys = SimpleNamespace(executable=str(program))  # type: ignore[attr-defined]

    return before


def test_watching_changes_nothing_in_a_run(tiny_run: Path, work: Path, trainer: Any) -> None:
    training = trainer(work, *TINY_TRAIN, "--watch", before=stand_in(work, seconds=0))
    assert training.wait() == 0, training.output
    assert training.output.count("watch: ") == 1
    assert re.search(r"\ndone in [^$]*\npage: out/report.html\n\nnext: .*\n$", training.output), training.output
    for name in ("ckpt.pt", "last.pt"):
        assert same_weights(work / "out" / name, tiny_run / "out" / name)
        assert "watch" not in load(work / "out" / name).config
    one, other = ((folder / "out/config.yaml").read_text() for folder in (work, tiny_run))
    assert one == other  # so it is not inherited, either


def test_the_page_of_a_run_that_a_signal_stops(work: Path, trainer: Any) -> None:
    training = trainer(work, *TINY_TRAIN, *LONG, "--watch", before=stand_in(work, seconds=0))
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
    both = [trainer(work, *flags, before=stand_in(work, seconds=0), **environment) for environment in ranks(2)]
    assert [training.wait() for training in both] == [0, 0], both[0].output
    assert both[0].output.count("watch: ") == 1 and both[0].output.count("\npage: out/report.html\n\nnext: ") == 1
    assert "watch: " not in both[1].output and len(list(work.glob("started-*"))) == 1


# ---- the page and its scripts -----------------------------------------------------------------------------------


def live_page(run: Path, **settings: bool) -> LivePage:
    page = LivePage(ReportConfig(runs=(str(run),), live=True, **settings), run.parent / "page.html")
    page.scripts.mkdir(exist_ok=True)
    return page


def written_state(page: LivePage) -> dict[str, Any]:
    page.write_state()
    return dict(json.loads((page.scripts / "state.js").read_text()[len("TinyLive(") : -len(");\n")]))


@pytest.mark.slow
def test_the_last_page_is_announced_until_it_is_made(run_copy: Path) -> None:
    page = live_page(run_copy / "out")
    said = [written_state(page)]
    page.make_page()
    said.append(written_state(page))
    ok(run_copy, *RESUME, "--max_iters=80", "--lr_schedule=constant")  # too short to be seen in between
    said.append(written_state(page))
    page.make_page()
    said.append(written_state(page))
    assert [(one["phase"], one["is_last"]) for one in said] == [("finished", False), ("finished", True)] * 2
    assert said[0]["step"] < 80 and said[2]["step"] == said[3]["step"] == 80
    assert [one["count"] for one in said] == [1, 2, 3, 4] and len({one["version"] for one in said}) == 3


@pytest.mark.parametrize("samples", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_page_of_a_run_that_trains_gives_no_advice(run_copy: Path, samples: bool) -> None:
    log = run_copy / "out/metrics.jsonl"
    whole = [line for line in log.read_text().splitlines(True) if samples or json.loads(line)["kind"] != "sample"]
    if samples:
        whole.insert(0, json.dumps({"kind": "sample", "step": 0, "seconds": 0, "text": "pzlla", "prompt": "\n"}) + "\n")
    page, found = live_page(run_copy / "out"), []
    for lines, running in ((whole[:-1], True), (whole, False)):
        log.write_text("".join(lines))
        with mock.patch.object(FollowedRun, "is_running", running):
            page.write_state()
            page.make_page()
        text = page.path.read_text("utf-8")
        advice = [one for one in ("verdict</dt>", "try next", 'class="verdict', "Train with") if one in text]
        found.append((re.findall(r'<section id="([\w-]+)"', text)[:3], advice))
    begin = ["samples", "curves", "type"] if samples else ["curves", "type", "walk"]
    assert found[0] == (begin, [])
    assert found[1][0] == ["type", "walk", "attention"]
    assert {"verdict</dt>", "try next"} <= set(found[1][1]) and ("Train with" in found[1][1]) != samples


def test_the_state_has_a_sample_until_there_is_a_page(tmp_path: Path) -> None:
    made = Made(tmp_path)
    page, without = live_page(tmp_path), live_page(tmp_path, no_text=True)
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
def test_a_run_without_an_evaluation_leaves_what_was_there(tmp_path: Path, before: dict[str, bytes]) -> None:
    path = tmp_path / "out/report.html"
    path.parent.mkdir()
    for content in before.values():
        path.write_bytes(content)
    with watching_here(path.parent):
        until(lambda: path.exists() and path.read_text("utf-8") != "mine")
        policy = re.search(r'Policy" content="([^"]*)"', path.read_text("utf-8"))
        assert policy and re.match(r"default-src 'none'; script-src 'sha256-[^']*' 'strict-dynamic';", policy[1])
    assert listing(path.parent) == before


def test_what_the_page_needs(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    without = lambda name, *more: None if name == "matplotlib" else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert "report --live needs the package matplotlib" in refused(tiny_run, "report", "out", "--live")
    message = refused(tiny_run, *TINY_TRAIN, "--out_dir=new", "--watch")
    assert message.startswith("error: --watch needs the package matplotlib\n") and "train without --watch" in message


# ---- the state of a run ------------------------------------------------------------------------------------------


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
    made.lock.write_text("")
    assert made.phase == "stopped 50" and made.state()["next"] == ""
    (made.folder / "last.pt").touch()
    assert made.state()["next"] == f"tinygpt train --init_from=resume --out_dir={made.folder}"
    made.add("eval", 100, train_loss=3.0, val_loss=3.0)
    assert made.phase == "finished 100"
    made.add("diverged", 100, reason="the loss is NaN")
    assert made.phase == "diverged 100"


def test_a_killed_run_is_not_running(made: Made) -> None:
    ended = subprocess.Popen(["true"])
    made.lock.write_text(str(ended.pid))
    made.add("train", 3, loss=1.0)
    ended.wait()
    assert made.phase == "stopped 4"


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
    path.unlink()
    assert made.phase == "waiting 0"
    for step in range(5):
        made.add("train", step, loss=1.0, tokens_per_second=1)
    path.write_text("".join(path.read_text().splitlines(True)[:2]))  # it was resumed
    assert made.phase == "stopped 2"


def test_a_long_log_is_read_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(50):
        made.add("train", step, loss=1.0)
    made.run.read()
    entries: list[dict[str, Any]] = []
    monkeypatch.setattr(follow, "intact_entry", lambda line: entries.append(json.loads(line)))
    made.add("train", 50, loss=1.0)
    made.run.read()
    assert [entry["step"] for entry in entries] == [50]
