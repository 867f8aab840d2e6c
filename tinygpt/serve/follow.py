"""The progress of a run, read from its folder by another process while the run trains.

    progress = FollowedRun(Path("out"))
    progress.read()                     # the lines of metrics.jsonl that are new
    progress.state()                    # {"phase": "training", "step": 340, "max_iters": 2000, "loss": 2.11, ...}

It reads metrics.jsonl from where it stopped, so that a long run costs no more than a short one, and from the beginning
if the file was replaced: by a new run, or by one that is resumed.
"""

import contextlib
import itertools
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

from tinygpt.config import suggest
from tinygpt.config.parse import read_config
from tinygpt.errors import TinyGPTError
from tinygpt.files import WINDOWS, lock_owner
from tinygpt.training.log import intact_entry, is_number

ENDED = ("finished", "stopped", "diverged")
RECENT = 100  # lines from which the pace is estimated
FRESH = 30.0  # seconds


class FollowedRun:
    """The state of the run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.settings: dict[str, Any] = {}
        self._settings_time = 0
        self._forget()

    def _forget(self) -> None:
        self._start, self._offset, self._inode, self._changed = b"", 0, 0, 0.0
        self._lines: deque[dict[str, Any]] = deque(maxlen=RECENT)  # the last ones of kind "train"
        self.evaluations: list[tuple[int, float]] = []  # step and validation loss
        self.newest = ""  # kind of the last line
        self.saved = 0  # iterations done according to last.pt, if somebody has read it; not every iteration has a line

    def read(self) -> None:
        """Read the new lines of metrics.jsonl, and config.yaml if it has changed."""
        with contextlib.suppress(OSError, TinyGPTError):
            path = self.folder / "config.yaml"
            if (changed := path.stat().st_mtime_ns) != self._settings_time:
                self.settings, self._settings_time = read_config(path), changed
        try:
            with open(self.path, "rb") as file:
                status, start = self.path.stat(), file.read(200)
                same = status.st_ino == self._inode and status.st_size >= self._offset
                if not (same and start.startswith(self._start)):
                    self._forget()
                self._start, self._inode, self._changed = start, status.st_ino, status.st_mtime
                file.seek(self._offset)
                content = file.read()
        except OSError:  # it does not exist yet
            self._forget()
            return
        complete = content[: content.rfind(b"\n") + 1]  # the last line may not be complete yet
        self._offset += len(complete)
        for line in complete.decode("utf-8", "replace").splitlines():
            if entry := intact_entry(line):
                self.newest, self.saved = entry["kind"], 0
                if self.newest == "train" and is_number(entry.get("seconds")):
                    self._lines.append(entry)
                elif self.newest == "eval" and is_number(entry.get("val_loss")):
                    self.evaluations.append((entry["step"], entry["val_loss"]))

    @property
    def is_saved(self) -> bool:
        """Whether the model of the last evaluation is in ckpt.pt, if it is the best: training has gone on since."""
        return self.newest == "train"

    @property
    def is_running(self) -> bool:
        """Whether a process trains this run."""
        return lock_owner(self.folder) is not None or (WINDOWS and time.time() - self._changed < FRESH)

    def state(self, ended: bool = False) -> dict[str, Any]:
        """Return plain values. `ended`: it is known that no process trains this run.

        phase: waiting (for a run to start), starting, training, evaluating, finished, stopped or diverged; step:
        iterations done; loss: of the last logged batch; seconds_left: at the present pace; next: the command that
        resumes a stopped run.
        """
        last = self._lines[-1] if self._lines else {}
        done = max(last.get("step", -1) + 1, self.evaluations[-1][0] if self.evaluations else 0, self.saved)
        most, pace = self._setting("max_iters", done), self._pace()
        phase = self._phase(done, most, ended or not self.is_running)
        left = (most - done) * pace[0] if phase in ("training", "evaluating") and pace else None
        resumes = phase == "stopped" and (self.folder / "last.pt").exists()
        logged = {name: last[name] if is_number(last.get(name)) else None for name in ("loss", "tokens_per_second")}
        return {
            "phase": phase,
            "step": done,
            "max_iters": most,
            **logged,
            "seconds_left": None if left is None else round(left),
            "next": suggest.resume(self.settings, self.folder) if resumes else "",
        }

    def _phase(self, done: int, most: int, ended: bool) -> str:
        if not self.newest:
            return "waiting" if ended else "starting"
        if self.newest == "diverged":
            return "diverged"
        evaluated, losses = self.evaluations[-1][0] if self.evaluations else -1, [loss for _, loss in self.evaluations]
        patience = self._setting("patience", 0)
        if evaluated >= most or (patience and losses and len(losses) - 1 - losses.index(min(losses)) >= patience):
            return "finished"
        if ended:
            return "stopped"
        # every line is written at once, so a line that is late means that the evaluation has begun
        interval, pace = self._setting("eval_interval", 1), self._pace()
        begins = min((done - 1) // interval * interval + interval, most)
        due = begins > evaluated and begins - done < self._setting("log_interval", 1)
        late = not pace or time.time() - self._changed > (begins - done + 1) * pace[1]
        return "evaluating" if due and late else "training"

    def _pace(self) -> tuple[float, float] | None:
        """Seconds per iteration: their mean with evaluations, and their median without; None for a single line."""
        gaps = [
            (later["seconds"] - earlier["seconds"], later["step"] - earlier["step"])
            for earlier, later in itertools.pairwise(self._lines)
            if later["step"] > earlier["step"]
        ]
        if not gaps:
            return None
        seconds, steps = (sum(values) for values in zip(*gaps, strict=True))
        return seconds / steps, statistics.median(gap / count for gap, count in gaps)

    def _setting(self, name: str, otherwise: int) -> int:
        value = self.settings.get(name)
        return value if isinstance(value, int) and value > 0 else otherwise
