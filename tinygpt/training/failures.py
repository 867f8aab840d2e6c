"""Errors that end a run: a value that is not finite, and running out of memory."""

from tinygpt.config.schema import TrainConfig
from tinygpt.errors import TinyGPTError
from tinygpt.training.run import Run


def not_finite(run: Run, what: str) -> TinyGPTError:
    """Log that a run diverged and return its error. `what` names the value: "the loss is"."""
    reason = f"{what} NaN or infinite"
    run.log.metric("diverged", run.progress.step, run.seconds(), reason=reason)
    # a state saved just before this iteration is intact, but a run resumed from it diverges here again
    usable = 0 <= run.saved_at < run.progress.step
    safe = f"{run.out}/last.pt was saved before that and is intact; resume from it" if usable else "start again"
    return TinyGPTError(
        f"iteration {run.progress.step}: {reason}; training has stopped",
        f"{safe} with a lower learning_rate than {run.config.learning_rate}, or a longer warmup_iters",
        status=1,
    )


def out_of_memory(config: TrainConfig, where: object) -> TinyGPTError:
    """Make the error of a run that does not fit into memory."""
    rows, steps = config.batch_size, config.gradient_accumulation_steps
    fits = (
        f"the same iteration in smaller pieces: --batch_size={rows // 2} --gradient_accumulation_steps={steps * 2}"
        if rows % 2 == 0
        else f"--batch_size={max(rows // 2, 1)}, a smaller --block_size or a smaller model"
    )
    return TinyGPTError(
        f"out of memory on {where} with batch_size {rows} x block_size {config.block_size}", fits, status=1
    )
