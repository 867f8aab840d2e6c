"""`tinygpt watch`: serve the report of a run, and keep it up to date while the run trains in another process.

    GET /           the page, which live.js updates
    GET /state      {"version", "is_waiting", "is_last", "phase", "step", "max_iters", "loss", "tokens_per_second",
                    "seconds_left", "next"}; FollowedRun.state explains those from "phase" on

All that it knows of the run is in the run's folder, which it only reads. The page is made again when the run has been
evaluated again, in a thread of low priority. After a page that took t seconds of computing the next one waits for 9 t,
so that the pages, after the first one and before the last one, take at most a tenth of one core on average.

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
from tinygpt.files import WINDOWS, lock_owner, require_writable
from tinygpt.report import gather
from tinygpt.report.page import render, write
from tinygpt.serve.follow import ENDED, FollowedRun
from tinygpt.serve.listen import LOCAL, listen, make_server, signals
from tinygpt.terminal import escaped, reader_has_left, silence
from tinygpt.training.watch import PACKAGES

HOST = "127.0.0.1"
DRAIN = 2  # seconds for the answers that are being sent when the server is asked to end
TICK = 0.25  # seconds between looks at the run's folder
REST = 9  # seconds of rest per second of computing
PORTS = 20  # that are tried, from --port on, with --until_eof
NEWS = 6.0  # seconds after the last page in which open pages can get it
OPEN = 12.0  # seconds since its last question in which a page counts as open
QUIET = 1.5  # seconds without a question from a page that is not up to date: all have got the last page
TOO_LONG = 120.0  # seconds for the last page
LARGE = 100_000_000  # bytes of a checkpoint that takes long to read


def watch(config: WatchConfig) -> int:
    """Serve until a signal, or with --until_eof until standard input ends. Returns the exit status."""
    require_installed("tinygpt watch", *PACKAGES)
    folder = Path(config.run)
    if not folder.is_dir():
        raise TinyGPTError(f"{folder}: no such folder", "give the folder of a run, which may still be empty")
    listener = listen_from(config.port) if config.until_eof else listen(HOST, config.port)
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(10)  # about a tenth of a core that a run keeps busy
    live = LivePage(config)
    server = make_server(make_app(live), DRAIN)
    work = threading.Thread(target=live.work, args=(server,), daemon=True)
    say(f"watch: http://{HOST}:{listener.getsockname()[1]}")
    with signals(server) if not config.until_eof else contextlib.nullcontext():
        work.start()
        if config.until_eof:
            threading.Thread(target=live.wait_for_the_end, daemon=True).start()
        server.run([listener])
        listener.close()
    if not config.until_eof:
        say("stopped")
    if work.is_alive():
        os._exit(0)  # a thread that is inside PyTorch would abort the process when Python ends
    return 0


def listen_from(port: int) -> socket.socket:
    """Open the socket at `port`, or at the next one that is free. Errors: TinyGPTError if none of twenty is."""
    for each in range(port, min(port + PORTS, 65536)) if port else ():
        with contextlib.suppress(TinyGPTError):
            return listen(HOST, each)
    return listen(HOST, 0)


def say(text: str) -> None:
    """Print a line, if standard output can be written to: the process that reads it may have been killed."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not reader_has_left(error):
            raise
        silence("stdout")


class LivePage:
    """The page of a run, its state, and the thread that keeps them up to date."""

    def __init__(self, config: WatchConfig) -> None:
        self.config, self.folder = config, Path(config.run)
        self.run = FollowedRun(self.folder)
        self.shows: Any = None  # what the run was like when the newest page was begun,
        self.shown: Any = None  # and when the page that is served was
        self.rest_until = 0.0
        self.problem = ""  # why there is no page
        self.ended = threading.Event()  # with --until_eof: the run has ended
        self.asked_old_at = 0.0  # when an open page asked that was not up to date
        self.asked_at = time.monotonic()  # when any did; a page of an earlier server may not have asked yet
        self.has_report = False  # else the page says what is missing
        self.looking = threading.Lock()
        self.state: dict[str, Any] = {}
        self.look()
        self.show_waiting("The page appears after the first evaluation of the run")

    def answer(self, have: str) -> dict[str, Any]:
        """Return the state for a page of version `have`."""
        self.look()  # the thread may be making a page
        self.asked_at = time.monotonic()
        if have != self.version:
            self.asked_old_at = self.asked_at
        is_last = not self.run.evaluations or self.shown == (self.run.evaluations, True)
        return {"version": self.version, "is_waiting": not self.has_report, "is_last": is_last, **self.state}

    def work(self, server: Any) -> None:
        """Follow the run until the server ends; with --until_eof, end it after the last page."""
        while not server.should_exit:
            try:
                self.look()
                if self.ended.is_set():
                    try:
                        self.finish()
                    finally:
                        server.should_exit = True
                elif self.is_due():
                    self.make()
            except Exception as error:  # the next look may succeed
                self.fail(error)
            time.sleep(TICK)

    def look(self) -> None:
        """Read the state of the run."""
        with self.looking:
            self.run.read()
            self.state = self.run.state(ended=self.ended.is_set())

    def is_due(self) -> bool:
        """Whether to make the page again: there is a new evaluation, whose model is saved, or the run has ended."""
        ended = self.state["phase"] in ENDED
        if not self.run.evaluations or self.shows == (self.run.evaluations, ended):
            return False
        if ended:
            return not self.run.is_running
        path = self.folder / "ckpt.pt"
        if WINDOWS and path.exists() and path.stat().st_size > LARGE:
            return False  # the run could not replace the checkpoint while it is being read, which would take too long
        return self.run.is_saved and time.monotonic() >= self.rest_until

    def make(self) -> dict[str, Any]:
        """Make the page. A page that cannot be made is only noted. Returns its values; none if it failed."""
        import torch
        from matplotlib import pyplot  # noqa: F401 (imported before the time is taken)

        from tinygpt.checkpoint.store import load
        from tinygpt.report import collect, one_step  # noqa: F401

        torch.set_num_threads(1)
        began, ended, is_first = time.thread_time(), self.state["phase"] in ENDED, self.shows is None
        self.shows = ([*self.run.evaluations], ended)
        if not self.has_report:
            self.show_waiting("The page is being made")
        try:
            if ended:
                with contextlib.suppress(TinyGPTError):
                    self.run.saved = load(self.folder / "last.pt").step
            values = gather([self.folder], self.config, quick=not ended)
            self.show(values)
            self.has_report = True
        except Exception as error:
            values = {}
            self.fail(error)
        self.shown = self.shows
        if not is_first:  # the first page takes longer, since PyTorch and matplotlib warm up
            self.rest_until = time.monotonic() + REST * (time.thread_time() - began)
        return values

    def show(self, values: dict[str, Any], **template: Any) -> None:
        """Serve a new version of the page. template: see `render`."""
        version = secrets.token_hex(8)  # never that of an earlier server
        self.page = render(values, version=version, **template)
        self.version, self.problem = version, ""

    def show_waiting(self, reason: str) -> None:
        values = {"title": self.folder.resolve().name, "kind": "waiting", "reason": reason}
        self.show(values, template="report/waiting.html.j2", scripts=[])

    def fail(self, error: Exception) -> None:
        """Note a problem, once."""
        problem = error.message if isinstance(error, TinyGPTError) else f"{type(error).__name__}: {error}"
        if problem != self.problem:
            say(f"note: the page cannot be made ({escaped(problem)})")
            if not self.has_report:
                self.show_waiting(f"The page cannot be made: {problem}")
            self.problem = problem

    def wait_for_the_end(self) -> None:
        """Wait for the end of standard input; then see to it that this process ends."""
        started_by = lock_owner(self.folder)
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(1 << 16):
                pass
        self.ended.set()
        deadline = time.monotonic() + TOO_LONG
        while lock_owner(self.folder) in (None, 0, started_by) and time.monotonic() < deadline:
            time.sleep(TICK)
        os._exit(0)  # the run was resumed, and has a server of its own, for which this one must make room

    def finish(self) -> None:
        """Make the last page, write it, and give open pages the time to get it."""
        path = self.folder / "report.html"
        self.look()
        if not self.run.evaluations:
            return
        if values := self.make():
            try:
                require_writable(path, "")
                write(render(values), path)
                say(f"page: {path}")
            except TinyGPTError as error:
                self.fail(error)
        made = time.monotonic()
        while self.asked_at > made - OPEN and time.monotonic() < made + NEWS:
            if self.asked_at > made and self.asked_old_at < time.monotonic() - QUIET:
                break
            time.sleep(TICK)


def make_app(live: LivePage) -> Any:
    """Make the ASGI application."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from tinygpt.serve.http import Guard, security

    async def page(request: Request) -> Response:
        return Response(live.page.content, media_type="text/html", headers=security(live.page.policy))

    async def state(request: Request) -> Response:
        answer = live.answer(request.query_params.get("have", ""))
        return JSONResponse(answer, headers={"cache-control": "no-store", "x-content-type-options": "nosniff"})

    return Guard(Starlette(routes=[Route("/", page), Route("/state", state)]), key="", hosts=LOCAL)
