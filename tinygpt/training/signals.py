"""Graceful shutdown: the first SIGINT or SIGTERM ends the run after the current iteration, the second one at once.

with StopSignal() as stop:
    while not stop.requested(ranks, device): ...
exit(stop.status)                      # 130 after SIGINT, 143 after SIGTERM
"""

import os
import signal
from typing import Any

import torch

from tinygpt.training.processes import Processes


class StopSignal:
    """Context that records the first SIGINT or SIGTERM instead of ending the process."""

    def __init__(self) -> None:
        self.status = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.status:
            os._exit(128 + number)
        self.status = 128 + number

    def requested(self, ranks: Processes, device: torch.device) -> bool:
        """Return whether any process was asked to stop, so that all save and stop at the same iteration."""
        statuses = ranks.sum([float(self.status)], device)
        if statuses[0] and not self.status:
            self.status = 128 + signal.SIGTERM
        return bool(statuses[0])
