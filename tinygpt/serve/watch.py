"""`tinygpt watch`: serve the report of a run, and keep it up to date while the run trains in another process.

After each evaluation of the run, a thread of low priority makes the page again from the run's folder. After a page that
took t seconds of computing the next one waits for 9 t, so that the pages, after the first one and before the last one,
take at most a tenth of one core on average.

`train --watch` starts this command with --until_eof. Then the end of standard input is the end of the run, however its
process ended: the last page is written to RUN/report.html, open pages get it, and the command ends.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tinygpt.config.schema import WatchConfig
from tinygpt.errors import TinyGPTError, require_installed
from tinygpt.files import WINDOWS, lock_owner
from tinygpt.report import gather
from tinygpt.report.page import render, write
from tinygpt.serve.follow import ENDED, FollowedRun
from tinygpt.serve.listen import LOCAL, listen, make_server, signals
from tinygpt.terminal import escaped, silence
from tinygpt.training.watch import PACKAGES

HOST = "127.0.0.1"
DRAIN = 2  # seconds for the answers that are being sent when the server is asked to end
TICK = 0.25  # seconds between two reads of the run's folder
PAUSE = 9  # seconds of pause per second of computing
PORTS = 20  # that are tried, from --port on, with --until_eof
LOAD_TIME = 6.0  # seconds in which open pages can load the last page
OPEN_TIME = 12.0  # seconds after its last request for the state in which a page counts as open
LAST_PAGE = 120.0  # seconds for the last page, after which the process ends
LARGE = 100_000_000  # bytes of a checkpoint that takes long to read


def watch(config: WatchConfig) -> None:
    """Serve until a signal, or with --until_eof until standard input ends; then end this process."""
    require_installed("tinygpt watch", *PACKAGES)
    folder = Path(config.run)
    if not folder.is_dir():
        raise TinyGPTError(f"{folder}: no such folder", "give the folder of a run, which may still be empty")
    listener = listen_from(config.port) if config.until_eof else listen(HOST, config.port)
    if hasattr(os, "nice"):
        os.nice(10)  # about a tenth of a core that a run keeps busy
    live = LivePage(config)
    server = make_server(make_app(live), DRAIN)
    print_line(f"watch: http://{HOST}:{listener.getsockname()[1]}")
    with signals(server) if not config.until_eof else contextlib.nullcontext():
        threading.Thread(target=live.work, args=(server,), daemon=True).start()
        if config.until_eof:
            threading.Thread(target=live.wait_for_eof, daemon=True).start()
        server.run([listener])
        listener.close()
    if not config.until_eof:
        print_line("stopped")
    os._exit(0)  # a thread that is inside PyTorch would abort the process when Python ends


def listen_from(port: int) -> socket.socket:
    """Open the socket at `port`, or at the next free one; at any free one if PORTS are in use. Errors: TinyGPTError."""
    for candidate in range(port, min(port + PORTS, 65536)) if port else ():
        with contextlib.suppress(TinyGPTError):
            return listen(HOST, candidate)
    return listen(HOST, 0)


def print_line(text: str) -> None:
    """Print a line, or nothing if standard output cannot be written to."""
    try:
        print(text, flush=True)
    except OSError:
        silence("stdout")


class LivePage:
    """The page and the state of a run, and the thread that updates them."""

    def __init__(self, config: WatchConfig) -> None:
        self.config, self.folder = config, Path(config.run)
        self.run = FollowedRun(self.folder)
        self.content: Any = None  # the evaluations in the page, and whether they are those of a run that has ended
        self.paused_until = 0.0
        self.problem = ""  # why there is no page
        self.ended = threading.Event()  # with --until_eof: the run has ended
        self.last_poll = time.monotonic()  # of any page; the start counts, for a page of an earlier server
        self.has_report = False  # False: the page says what is missing
        self.state_lock = threading.Lock()
        self.state: dict[str, Any] = {}
        self.read_state()
        self.show_waiting("The page appears after the first evaluation of the run")

    def answer(self) -> dict[str, Any]:
        """Return the state for an open page: the version of the newest page, and the state of the run."""
        self.read_state()  # the thread may be making a page
        self.last_poll = time.monotonic()
        is_last = not self.run.evaluations or self.content == (self.run.evaluations, True)
        return {"version": self.version, "is_waiting": not self.has_report, "is_last": is_last, **self.state}

    def work(self, server: Any) -> None:
        """Update the page until the server ends; with --until_eof, end the server after the last page."""
        while not server.should_exit:
            ended = self.ended.is_set()
            try:
                self.read_state()
                if ended:
                    self.finish()
                elif self.is_due():
                    self.make_page()
            except Exception as error:  # the next attempt may succeed
                self.fail(error)
            server.should_exit = server.should_exit or ended
            time.sleep(TICK)

    def read_state(self) -> None:
        with self.state_lock:
            self.run.read()
            self.state = self.run.state(ended=self.ended.is_set())

    def is_due(self) -> bool:
        """Return whether to make a new page: a new evaluation has its checkpoint, or the run has ended."""
        ended = self.state["phase"] in ENDED
        if not self.run.evaluations or self.content == (self.run.evaluations, ended):
            return False
        if ended:
            return not self.run.is_running
        path = self.folder / "ckpt.pt"
        if WINDOWS and path.exists() and path.stat().st_size > LARGE:
            return False  # the run could not replace the checkpoint while it is being read, which would take too long
        return self.run.is_saved and time.monotonic() >= self.paused_until

    def make_page(self) -> dict[str, Any]:
        """Make the page and return its values."""
        import torch

        from tinygpt.checkpoint.store import load

        torch.set_num_threads(1)
        started, ended, is_first = time.thread_time(), self.state["phase"] in ENDED, self.content is None
        content = ([*self.run.evaluations], ended)
        if not self.has_report:
            self.show_waiting("The page is being made")
        try:
            if ended:
                with contextlib.suppress(TinyGPTError):
                    self.run.saved = load(self.folder / "last.pt").step
            values = gather([self.folder], self.config, quick=not ended)
            self.show(values)
            self.has_report = True
            return values
        finally:
            self.content = content
            if not is_first:  # the first page takes longer, since PyTorch and matplotlib warm up
                self.paused_until = time.monotonic() + PAUSE * (time.thread_time() - started)

    def show(self, values: dict[str, Any], **template: Any) -> None:
        """Serve a new version of the page. template: see `render`."""
        version = secrets.token_hex(8)  # never that of an earlier server
        self.page = render(values, version=version, **template)
        self.version, self.problem = version, ""

    def show_waiting(self, reason: str) -> None:
        values = {"title": self.folder.resolve().name, "kind": "waiting", "reason": reason}
        self.show(values, template="report/waiting.html.j2", scripts=[])

    def fail(self, error: Exception) -> None:
        """Print a note about an error, unless it is the same as the last one."""
        problem = error.message if isinstance(error, TinyGPTError) else f"{type(error).__name__}: {error}"
        if problem != self.problem:
            print_line(f"note: the page cannot be made ({escaped(problem)})")
            if not self.has_report:
                self.show_waiting(f"The page cannot be made: {problem}")
            self.problem = problem

    def wait_for_eof(self) -> None:
        """Wait for the end of standard input, then limit the time until this process ends."""
        started_by = lock_owner(self.folder)
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.buffer.read()
        self.ended.set()
        deadline = time.monotonic() + LAST_PAGE
        while lock_owner(self.folder) in (None, 0, started_by) and time.monotonic() < deadline:
            time.sleep(TICK)
        os._exit(0)  # the resumed run has its own server, which may need the port

    def finish(self) -> None:
        """Make the last page, write it, and wait until open pages have loaded it."""
        if not self.run.evaluations:
            return
        path = self.folder / "report.html"
        write(render(self.make_page()), path)
        print_line(f"page: {path}")
        if time.monotonic() < self.last_poll + OPEN_TIME:
            time.sleep(LOAD_TIME)


def make_app(live: LivePage) -> Any:
    """Make the ASGI application."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from tinygpt.serve.http import Guard, security_headers

    async def page(request: Request) -> Response:
        return Response(live.page.content, media_type="text/html", headers=security_headers(live.page.policy))

    async def state(request: Request) -> Response:
        return JSONResponse(live.answer(), headers={"cache-control": "no-store", "x-content-type-options": "nosniff"})

    return Guard(Starlette(routes=[Route("/", page), Route("/state", state)]), key="", hosts=LOCAL)
