"""Event files for TensorBoard, which get the figures of a run's log in addition to metrics.jsonl.

Samples, prompts and responses stay in metrics.jsonl.

    log.add_sink("TensorBoard", lambda: TensorBoard(Path("out"), [], time.time()))  # out/tensorboard/{train,val}
    log.metric("eval", 0, 1.5, train_loss=4.2, val_loss=4.3)  # the tag `loss` of both, at step 0
"""

import threading
from pathlib import Path
from typing import Any

from tinygpt.base.errors import missing
from tinygpt.base.files import remove
from tinygpt.training.log import is_number

# Kind and key in metrics.jsonl: run and tag in TensorBoard. It draws a tag of several runs in one chart, and puts tags
# with the same beginning into one section of its page.
SCALARS = {
    ("eval", "train_loss"): ("train", "loss"),
    ("eval", "val_loss"): ("val", "loss"),
    ("train", "loss"): ("train", "loss/batch"),
    ("train", "lr"): ("train", "training/lr"),
    ("train", "grad_norm"): ("train", "training/grad_norm"),
    ("train", "tokens_per_second"): ("train", "training/tokens_per_second"),
}
SUFFIX = ".tinygpt"  # of the names of our event files; other files in the folder are left alone


class TensorBoard:
    """The sink of a run's log: it writes event files, FOLDER/tensorboard/{train,val}/events.out.tfevents.*, with
    PyTorch's SummaryWriter.

    It replaces its earlier files and first writes `entries`, the lines that metrics.jsonl already has, so a resumed run
    has each step once. The time of a point is `started` plus a line's `seconds`. Errors: TinyGPTError if the package is
    missing.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, entries: list[dict[str, Any]], started: float) -> None:
        writer = import_summary_writer("TensorBoard")
        threading.excepthook = _excepthook
        self.started = started
        self.writers: dict[str, Any] = {}
        for run in ("train", "val"):
            events = folder / "tensorboard" / run
            discard_events(events)
            # purge_step: a TensorBoard that is running forgets the points of the earlier file
            self.writers[run] = writer(str(events), purge_step=0, flush_secs=10, filename_suffix=SUFFIX)
        for entry in {(entry["kind"], entry["step"]): entry for entry in entries}.values():
            self.write(entry)

    def write(self, entry: dict[str, Any]) -> None:
        seconds = entry.get("seconds")
        time = self.started + (seconds if is_number(seconds) else 0.0)
        for key, value in entry.items():
            if (entry["kind"], key) in SCALARS and is_number(value):
                run, tag = SCALARS[entry["kind"], key]
                self.writers[run].add_scalar(tag, value, entry["step"], time)

    def close(self, _: str) -> None:
        for writer in self.writers.values():
            writer.close()


def import_summary_writer(feature: str, otherwise: str = "") -> Any:
    """Import SummaryWriter, for which PyTorch needs tensorboard. Errors: TinyGPTError if it is missing or broken."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception:  # not only ImportError: an old version does not fit a new NumPy or protobuf
        raise missing("tensorboard", feature, otherwise) from None
    return SummaryWriter


def discard_events(folder: Path) -> None:
    """Delete our event files in a folder, except the last one, which is emptied: a TensorBoard that is running without
    its data server, as on Windows, never leaves a file that was deleted, but goes on from an empty one to the next."""
    files = sorted(folder.glob(f"*tfevents*{SUFFIX}"))
    for path in files:
        if path == files[-1] and not path.is_symlink():
            path.write_bytes(b"")
        else:
            remove(path)


def _excepthook(args: threading.ExceptHookArgs) -> None:
    """Report the errors of threads, but not of SummaryWriter's, since add_scalar and close raise them again."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(args)
