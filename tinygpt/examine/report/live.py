"""`tinygpt report RUN --live`: keep the report of a run up to date while the run trains in another process.

No server is needed. The page is a file, and in the folder next to it, report-live/, lie two scripts that open pages
load by script tags: state.js, the state of the run, written every second, and page.js, the newest page. Script tags
work in a page from a file, unlike fetch.

After each evaluation of the run the page is made again from the run's folder, with low priority. After a page that took
t seconds of computing the next one waits for 9 t, so that the pages, after the first one and before the last one, take
at most a tenth of one core on average.

`train --watch` starts this with --until_eof. Then the end of standard input is the end of the run, however its process
ended: the last page is written without the live parts, open pages get it, and the command ends.
"""

import contextlib
import json
import os
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import WINDOWS, file_lock, replacing, target_of
from tinygpt.base.terminal import escaped, print_line
from tinygpt.examine.report.follow import ENDED, FollowedRun
from tinygpt.examine.report.page import Page, render, write

TICK = 1.0  # seconds between two states
PAUSE = 9  # seconds of pause per second of computing
LOAD_TIME = 6.0  # seconds in which open pages can load the last page
LOCK_TIME = 120.0  # seconds for the last page of the process that kept this page up to date before
LARGE = 100_000_000  # bytes of a checkpoint that takes long to read


def keep_up_to_date(config: ReportConfig, path: Path) -> None:
    """Keep the page in the file `path` up to date until a signal, or with --until_eof until standard input ends."""
    for folder in map(Path, config.runs):
        if not folder.is_dir():
            raise TinyGPTError(f"{folder}: no such folder", "give the folder of a run, which may still be empty")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hasattr(os, "nice"):
        os.nice(10)  # about a tenth of a core that a run keeps busy
    live = LivePage(config, path)
    with file_lock(path, "choose another file: -o FILE", patience=LOCK_TIME if config.until_eof else 0):
        try:
            live.work()
        except KeyboardInterrupt:
            live.leave_page()
            print_line("stopped")
        finally:
            with live.state_lock:
                remove_scripts(live.scripts)


def remove_leftovers(path: Path) -> None:
    """Delete the scripts of a page whose updater was killed: they contain the page with its text."""
    scripts = scripts_of(path)
    if scripts.is_dir():
        with contextlib.suppress(TinyGPTError), file_lock(path, ""):  # else its updater lives
            remove_scripts(scripts)


def scripts_of(path: Path) -> Path:
    """Return the folder of the scripts of the page `path`."""
    return path.with_name(f"{path.stem}-live")


def remove_scripts(folder: Path) -> None:
    """Delete the scripts and their temporary files, and the folder unless it has other files."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if target_of(path.name) in ("state.js", "page.js"):
                path.unlink(missing_ok=True)
        folder.rmdir()


class LivePage:
    """The page of a run and the scripts next to it, and a thread that writes the state."""

    def __init__(self, config: ReportConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self.folder = Path(config.runs[0])
        self.scripts = scripts_of(path)
        self.run = FollowedRun(self.folder)
        self.values: dict[str, Any] = {}  # of the newest page; empty: there is none yet
        self.content: Any = None  # the evaluations in the page, and whether they are those of a run that has ended
        self.version = ""  # of the file; empty: not written yet
        self.before: Page | None = None  # the file that the waiting page has replaced
        self.paused_until = 0.0
        self.problem = ""  # why there is no newer page
        self.ended = threading.Event()  # with --until_eof: the run has ended
        self.state_lock = threading.Lock()
        self.state: dict[str, Any] = {}
        self.count = 0  # states written; it shows open pages that this process lives

    def work(self) -> None:
        """Update the page; with --until_eof, return after the last page."""
        self.scripts.mkdir(exist_ok=True)
        self.write_state()
        if not self.run.evaluations:
            if self.path.exists():
                self.before = Page(self.path.read_bytes(), "", "")
            waiting = {"title": self.folder.resolve().name, "kind": "waiting"}
            self.show(waiting, template="examine/report/waiting.html.j2", scripts=[])
        threading.Thread(target=self.write_states, daemon=True).start()
        if self.config.until_eof:
            threading.Thread(target=self.wait_for_eof, daemon=True).start()
        while not self.ended.is_set():
            self.attempt(self.update)
            self.ended.wait(TICK)
        self.attempt(self.finish)

    def attempt(self, step: Any) -> None:
        """Run a step. An error is printed, unless it is the same as the last one, and the next attempt may succeed."""
        try:
            step()
        except Exception as error:
            problem = error.message if isinstance(error, TinyGPTError) else f"{type(error).__name__}: {error}"
            if problem != self.problem:
                print_line(f"note: the page cannot be made ({escaped(problem)})")
            self.problem = problem

    def write_states(self) -> None:
        while True:
            time.sleep(TICK)
            self.write_state()

    def write_state(self) -> None:
        """Read the run's state, and write it for open pages: the version of the newest page, and the state."""
        with self.state_lock:
            self.run.read()
            self.state = self.run.state(ended=self.ended.is_set())
            self.count += 1
            state = {
                "count": self.count,
                "version": self.version,
                "is_waiting": not self.values,
                "is_last": not self.run.evaluations or self.content == (self.run.evaluations, True),
                "problem": self.problem,
                "text": "" if self.values or self.config.no_text else self.run.sample,
            }
            temporary = self.scripts / ".state.js.tmp"
            with contextlib.suppress(OSError):  # Windows: a browser reads the old file; the next one will be written
                temporary.write_text(f"TinyLive({json.dumps(state | self.state)});\n", encoding="utf-8")
                os.replace(temporary, self.scripts / "state.js")

    def update(self) -> None:
        if self.is_due():
            self.make_page()

    def is_due(self) -> bool:
        """Return whether to make a new page: a new evaluation has its checkpoint, or the run has ended."""
        ended = self.state["phase"] in ENDED
        if not self.run.evaluations or self.content == (self.run.evaluations, ended):
            return False
        if ended:
            may_try = self.content is not None or time.monotonic() >= self.paused_until
            return may_try and not self.run.is_running
        path = self.folder / "ckpt.pt"
        if WINDOWS and path.exists() and path.stat().st_size > LARGE:
            return False  # the run could not replace the checkpoint while it is being read, which would take too long
        return self.run.is_saved and time.monotonic() >= self.paused_until

    def make_page(self) -> None:
        import torch

        from tinygpt.checkpoint.store import load
        from tinygpt.examine.report.gather import gather

        torch.set_num_threads(1)
        started = time.thread_time()
        ended = self.state["phase"] in ENDED
        is_first = self.content is None
        content: Any = ([*self.run.evaluations], ended)
        try:
            if ended:
                with contextlib.suppress(TinyGPTError):
                    self.run.saved = load(self.folder / "last.pt").step
            values = gather([Path(name) for name in self.config.runs], self.config, quick=not ended)
            self.show(values)
            self.values = values
            self.problem = ""
        except BaseException:
            if ended:
                content = None  # there is no later evaluation: try again after the pause
            raise
        finally:
            self.content = content
            if not (content and is_first):  # the first page takes longer, since PyTorch and matplotlib warm up
                self.paused_until = time.monotonic() + PAUSE * (time.thread_time() - started)

    def show(self, values: dict[str, Any], **template: Any) -> None:
        """Write a new version of the page: for open pages, and for those who open it now. template: see `render`."""
        version = secrets.token_hex(8)  # never that of an earlier process
        page = render(values, updated={"version": version, "scripts": self.scripts.name}, **template)
        with replacing(self.scripts / "page.js") as file:
            file.write(f"TinyLive({json.dumps(page.content.decode(), ensure_ascii=False)});\n".encode())
        write(page, self.path)
        if not self.version:
            print_line(f"watch: {self.path.absolute().as_uri()}")
        self.version = version

    def wait_for_eof(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        self.ended.set()

    def finish(self) -> None:
        """Make the last page, and wait until open pages have loaded it."""
        self.write_state()
        if self.run.evaluations:
            self.make_page()
        self.leave_page()
        if self.values:
            print_line(f"page: {self.path}")
            self.write_state()
            time.sleep(LOAD_TIME)

    def leave_page(self) -> None:
        """Leave the newest page without the live parts, or what was there before if the run was never evaluated."""
        if self.values:
            write(render(self.values), self.path)
        elif self.before:
            write(self.before, self.path)
        elif self.version:
            self.path.unlink(missing_ok=True)
