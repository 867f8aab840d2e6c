"""The progress of a run, read from its folder by another process while the run trains.

    progress = FollowedRun(Path("out"))
    progress.read()                     # the new lines of metrics.jsonl
    progress.state()                    # {"phase": "training", "step": 340, "max_iters": 2000, "loss": 2.11, ...}

Each call reads only the new lines of metrics.jsonl, so its cost does not grow with the run. It reads the complete file
if that was replaced, as by a new run or a resumed one.
"""

import contextlib
import time
from collections import deque
from pathlib import Path
from typing import Any

from tinygpt.base.configs import suggest
from tinygpt.base.configs.parse import read_config
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import WINDOWS, lock_owner
from tinygpt.training.log import intact_entry, is_number, number

ENDED = ("finished", "stopped", "diverged")
RECENT = 100  # lines from which the pace is estimated
FRESH = 30.0  # seconds since the last line in which a run on Windows counts as running


class FollowedRun:
    """The state of the run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.settings: dict[str, Any] = {}
        self._settings_time = 0
        self._reset()

    def _reset(self) -> None:
        self._start = b""
        self._offset = 0
        self._inode = 0
        self._changed = 0.0
        self._lines: deque[dict[str, Any]] = deque(maxlen=RECENT)  # the newest lines of kind "train"
        self.evaluations: list[tuple[int, float]] = []  # step and validation loss
        self.sample = ""  # the newest one
        self.newest_kind = ""  # kind of the last line
        self.saved = 0  # iterations done according to last.pt, set by the caller; not every iteration has a line

    def read(self) -> None:
        """Read the new lines of metrics.jsonl, and config.yaml if it has changed."""
        with contextlib.suppress(OSError, TinyGPTError):
            path = self.folder / "config.yaml"
            if (changed := path.stat().st_mtime_ns) != self._settings_time:
                self.settings = read_config(path)
                self._settings_time = changed
        try:
            with open(self.path, "rb") as file:
                status = self.path.stat()
                start = file.read(200)
                same = status.st_ino == self._inode and status.st_size >= self._offset
                if not (same and start.startswith(self._start)):
                    self._reset()
                self._start = start
                self._inode = status.st_ino
                self._changed = status.st_mtime
                file.seek(self._offset)
                content = file.read()
        except OSError:  # it does not exist yet
            self._reset()
            return
        complete = content[: content.rfind(b"\n") + 1]  # the last line may not be complete yet
        self._offset += len(complete)
        for line in complete.decode("utf-8", "replace").splitlines():
            if entry := intact_entry(line):
                self.newest_kind = entry["kind"]
                self.saved = 0
                if self.newest_kind == "train" and is_number(entry.get("seconds")):
                    self._lines.append(entry)
                elif self.newest_kind == "eval" and is_number(entry.get("val_loss")):
                    self.evaluations.append((entry["step"], entry["val_loss"]))
                elif self.newest_kind == "sample":
                    self.sample = str(entry.get("text", ""))

    @property
    def is_saved(self) -> bool:
        """Return whether ckpt.pt is complete after the last evaluation: an iteration was logged since then."""
        return self.newest_kind == "train"

    @property
    def is_running(self) -> bool:
        """Return whether a process trains this run."""
        return lock_owner(self.folder) is not None or (WINDOWS and time.time() - self._changed < FRESH)

    def state(self, ended: bool = False) -> dict[str, Any]:
        """Return the state of the run as JSON values. ended: no process trains this run, as the caller knows.

        phase: waiting (for a run to start), starting, training, finished, stopped or diverged; step: iterations done;
        loss: of the last logged batch; val_loss: of the last evaluation; seconds_left: at the present pace; next: the
        command that resumes a stopped run.
        """
        last = self._lines[-1] if self._lines else {}
        done = max(last.get("step", -1) + 1, self.evaluations[-1][0] if self.evaluations else 0, self.saved)
        max_iters = int(number(self.settings, "max_iters", done))
        pace = self._pace()
        phase = self._phase(max_iters, ended or not self.is_running)
        left = (max_iters - done) * pace if phase == "training" and pace else None
        can_resume = phase == "stopped" and (self.folder / "last.pt").exists()
        logged = {name: last[name] if is_number(last.get(name)) else None for name in ("loss", "tokens_per_second")}
        return {
            "phase": phase,
            "step": done,
            "max_iters": max_iters,
            **logged,
            "val_loss": self.evaluations[-1][1] if self.evaluations else None,
            "seconds_left": None if left is None else round(left),
            "next": suggest.resume(self.settings, self.folder) if can_resume else "",
        }

    def _phase(self, max_iters: int, ended: bool) -> str:
        if not self.newest_kind:
            return "waiting" if ended else "starting"
        if self.newest_kind == "diverged":
            return "diverged"
        evaluated = self.evaluations[-1][0] if self.evaluations else -1
        losses = [loss for _, loss in self.evaluations]
        patience = number(self.settings, "patience", 0)
        if evaluated >= max_iters or (patience and losses and len(losses) - 1 - losses.index(min(losses)) >= patience):
            return "finished"
        return "stopped" if ended else "training"

    def _pace(self) -> float | None:
        """Estimate the seconds per iteration, evaluations included; None for fewer than two lines."""
        if len(self._lines) < 2:
            return None
        first = self._lines[0]
        last = self._lines[-1]
        steps = last["step"] - first["step"]
        return (last["seconds"] - first["seconds"]) / steps if steps > 0 else None
