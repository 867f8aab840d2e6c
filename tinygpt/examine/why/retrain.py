"""Train a run again without some of its training rows, with everything else equal.

A row that is left out stays in its batch, as context, but its targets are -1: no loss. The other rows, their order, the
dropout masks and the number of targets by which the loss is divided are those of the run. So an iteration differs by
the gradients of these rows and by nothing else.

    model = retrain(explained, left_out=np.array([3, 17]), seed=1337)
"""

import contextlib
import copy
import dataclasses
import io
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import is_out_of_memory
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.rows import Rows
from tinygpt.examine.why.explained import Explained
from tinygpt.examine.why.influence import Tracer, batch_of, positions_of, spans_of, sums_of_rows
from tinygpt.model import GPT
from tinygpt.train import loop
from tinygpt.training.processes import StopSignal
from tinygpt.training.run import Run, set_up
from tinygpt.training.start import resolve


def retrain(explained: Explained, left_out: np.ndarray, seed: int, embedded: bool = False) -> GPT:
    """Train up to the step of ckpt.pt without the rows numbered `left_out`, in a temporary folder.

    embedded: as in StopSignal. Errors: TinyGPTError as in training, also if a signal has stopped it; if it is embedded,
    KeyboardInterrupt.
    """
    source = without(explained.source, explained.rows[left_out], explained.config)
    with repeated(explained, seed, embedded) as (run, go):
        run.source = source
        require_targets(run.config, source)
        go()
        return run.model


def effects(explained: Explained, x: Tensor, y: Tensor, embedded: bool = False) -> tuple[np.ndarray, GPT]:
    """Train the run again, and estimate the change of an output's log-probability in nats if each training row is left
    out: float64 (rows,). An output can be several rows, whose log-probabilities are added.

    Also returns the model, which is that of the run on the same machine. Errors: as above.
    """
    with repeated(explained, explained.config.seed, embedded) as (run, go):
        tracer: Any = Tracer(run, explained.source, x, y)
        run.optimizer = tracer  # stands between the loop and the optimizer
        go()
        return sums_of_rows(tracer.effects, explained), run.model


@contextlib.contextmanager
def repeated(explained: Explained, seed: int, embedded: bool) -> Iterator[tuple[Run, Callable[[], None]]]:
    """Set up the run once more, and yield it with the function that trains it, silently but for a progress bar."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        run = set_up(stack, resolve(stack, settings(explained, seed, out)))
        stop = stack.enter_context(StopSignal(embedded))

        def go() -> None:
            try:
                status = loop(run, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = f"out of memory on {run.compute.device}: why needs more memory than the training"
                raise TinyGPTError(problem, "--device=cpu, or a machine with more memory", 1) from None
            if embedded and status == 128 + signal.SIGINT:
                raise KeyboardInterrupt
            if status:
                raise TinyGPTError(
                    "stopped", "the same command starts again, with the trainings that a proof has stored", status
                )

        yield run, go


def settings(explained: Explained, seed: int, out: str) -> TrainConfig:
    """Return the configuration of the run, to be trained up to the step of ckpt.pt, and evaluated as little as can be.

    Evaluations have random streams of their own, so they do not change the weights.
    """
    config, step, threads = explained.config, explained.checkpoint.step, explained.checkpoint.training.get("threads")
    return dataclasses.replace(
        config, out_dir=out, seed=seed, max_iters=step, quiet=False, report_to="none", eval_only=False, shard=False,
        lr_decay_iters=config.lr_decay_iters or config.max_iters,  # the schedule stays that of the whole run
        eval_interval=step, eval_iters=1, always_save_checkpoint=False, snapshots=0, sample_interval=0,
        checkpoint_interval=0, device=str(explained.compute.device),
        threads=str(threads) if type(threads) is int and threads > 0 else config.threads,  # for the same bits
    )  # fmt: skip


def without(source: Rows, left_out: np.ndarray, config: TrainConfig) -> Rows:
    """Return the source with the targets of some of its rows masked, in whichever window of plain text they are."""
    masked, is_masked = copy.copy(source), np.zeros(len(source.tokens), dtype=bool)
    for start, end in spans_of(source, left_out, config):
        is_masked[start:end] = True

    def rows(row_indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = source.rows(row_indices, width)
        return x, np.where(is_masked[positions_of(source, row_indices, width)], -1, y)

    masked.rows = rows  # type: ignore[method-assign]
    return masked


def require_targets(config: TrainConfig, source: Rows) -> None:
    """Check that each micro-batch of the run still has a target. Errors: TinyGPTError if one has none."""
    for step in range(config.max_iters):
        for part in np.split(batch_of(source, config, step), config.gradient_accumulation_steps):
            if (source.rows(part, source.width(config.block_size, part))[1] < 0).all():
                problem = f"without these rows, the batch of iteration {step:,} has no targets"
                raise TinyGPTError(problem, "a smaller --leave_out, or a run with a larger batch_size")
