"""`train --watch`: keep the run's page up to date while it trains, with a child process `tinygpt report --live`.

The child only reads the run's folder, and the run continues if the child fails. A pipe is its standard input: end of
file means that this process has ended, however it ended. Then the child writes OUT_DIR/report.html and exits.

    with Watcher(config, log, stop):        # prints "watch: file:///.../out/report.html" when there is one
        loop(run, stop)
    # waits for the last page, and prints "page: out/report.html"
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.terminal import escaped
from tinygpt.training.log import RunLog
from tinygpt.training.processes import StopSignal

PACKAGES = ("jinja2", "matplotlib")  # of the child
LAST_PAGE = 20.0  # seconds to wait for the last page
BACKGROUND = 0x4000 if os.name == "nt" else 0  # BELOW_NORMAL_PRIORITY_CLASS; on POSIX the child lowers its own priority
SEPARATE = 0x200 if os.name == "nt" else 0  # CREATE_NEW_PROCESS_GROUP: without Ctrl-C


class Watcher:
    """Context in which the child shows the run. On leaving it, wait for the last page, unless an error or a signal
    ended the run. The child lives a few seconds longer, so that open pages get the last page."""

    def __init__(self, config: TrainConfig, log: RunLog, stop: StopSignal) -> None:
        self.config = config
        self.log = log
        self.stop = stop
        self.child: subprocess.Popen[str] | None = None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.ending = False  # the run has ended, and so will the child
        self.written = threading.Event()  # the last page, or there will be none

    def __enter__(self) -> None:
        out = self.config.out_dir
        command = [sys.executable, "-m", "tinygpt", "report", f"./{out}" if out.startswith("-") else out]
        command += ["--live", "--until_eof", f"--data_dir={self.config.data_dir}"]
        try:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # Ctrl-C does not reach it
                creationflags=BACKGROUND | SEPARATE,
            )
        except OSError as error:
            self._note(str(error.strerror))
            return
        self.reader.start()

    def __exit__(self, error_type: type[BaseException] | None, *_: Any) -> None:
        if self.child is None or self.child.stdin is None:
            return
        self.ending = True
        status = self.stop.status
        with contextlib.suppress(OSError):
            self.child.stdin.close()  # end of file
        deadline = time.monotonic() + (0 if error_type else LAST_PAGE)
        if not error_type and not self.written.wait(1):
            self.log.print_line("page: the last one is being made", always=True)
        while not self.written.wait(0.05) and time.monotonic() < deadline and self.stop.status == status:
            pass
        if not self.written.is_set():
            self.log.print_line(f"page: {self.config.out_dir}/report.html is completed in the background", always=True)

    def _read(self) -> None:
        """Print the lines of the child's output, until it ends."""
        assert self.child is not None and self.child.stdout is not None
        last = ""
        for line in self.child.stdout:
            if line.startswith(("watch: ", "page: ", "note: ")):
                self.log.print_line(line.rstrip(), always=True)
            else:
                last = line.strip() or last
            if line.startswith("page: "):
                self.written.set()
        status = self.child.wait()
        if status or not self.ending:
            self._note(last or f"it ended with status {status}")
        self.written.set()

    def _note(self, reason: str) -> None:
        afterwards = suggest.command("report", Path(self.config.out_dir), *suggest.data_dir_flag(self.config.data_dir))
        problem = "the page of this run is no longer updated"
        self.log.print_line(f"note: {problem} ({escaped(reason)}); afterwards: {afterwards}", always=True)
