"""Snapshots: the weights of a few steps of a run in 8 bits, for the slider through training of `tinygpt report`.

They are spaced logarithmically, since a model changes most at the beginning: snapshot_steps(6, 2000) is
[0, 20, 63, 200, 632, 2000]. Each is an ordinary checkpoint without the optimizer's state, so `sample` and `eval` read
it, too: out/snapshots/step-200.pt has 0.9 MB for 0.8 M parameters.
"""

import dataclasses
import re
from pathlib import Path

from tinygpt.checkpoint.eight_bits import to_8_bits
from tinygpt.checkpoint.store import Checkpoint, save

FOLDER = "snapshots"
RANGE = 100  # the last step divided by the first one after 0
# snapshots that a run keeps by default, if it keeps any
MOST = 10
FEWEST = 4
SPACE = 6_000_000  # bytes of all


def snapshot_steps(count: int, max_iters: int) -> list[int]:
    """Return at most `count` steps: 0, then a geometric sequence from max_iters / RANGE to max_iters."""
    count = min(count, max_iters + 1)
    later = {round(max_iters * RANGE ** (-i / max(1, count - 2))) for i in range(count - 1)}
    return sorted({0, *later})[:count]


def affordable(parameters: int, tokens: int, on_cpu: bool) -> int:
    """Return how many snapshots a run keeps by default: those that take less than 2% of its time and fit SPACE, or 0.

    tokens: trained on in the run. Measured: 3 ms and 4 ns per parameter for a snapshot, less than 0.2 Tflop/s on a CPU.
    """
    seconds = 6 * parameters * tokens / (2e11 if on_cpu else 2e13)  # of the run, at least
    count = min(MOST, SPACE // (parameters + 30_000), int(0.02 * seconds / (0.003 + 4e-9 * parameters)))
    return count if count >= FEWEST else 0


def save_snapshot(folder: Path, state: Checkpoint, retry_hint: str) -> None:
    """Write the snapshot of a run's state. Errors: TinyGPTError for a full disk; see `save`."""
    path = folder / FOLDER / f"step-{state.step}.pt"
    path.parent.mkdir(exist_ok=True)
    save(path, dataclasses.replace(state, model=to_8_bits(state.model), training={}), retry_hint)


def snapshots(folder: Path) -> dict[int, Path]:
    """Return the snapshots of a run by step, in ascending order."""
    matches = {path: re.fullmatch(r"step-(\d+)\.pt", path.name) for path in (folder / FOLDER).glob("step-*.pt")}
    return dict(sorted((int(match[1]), path) for path, match in matches.items() if match and path.is_file()))
