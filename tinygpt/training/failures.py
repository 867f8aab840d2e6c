"""What a run says when it cannot go on."""

import math

from tinygpt.config.schema import TrainConfig
from tinygpt.errors import TinyGPTError
from tinygpt.training.run import Run


def not_finite(run: Run, loss: float, grad_norm: float) -> TinyGPTError:
    """The error of a run that diverged; it is logged, too."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
    run.log.metric("diverged", run.progress.step, run.seconds(), reason=what)
    # a state that was saved just before this iteration is intact, but it leads here
    usable = 0 <= run.saved_at < run.progress.step
    safe = f"{run.out}/last.pt is from before and good; go on from it" if usable else "start again"
    checked = run.compute.device.type == "cpu" or run.config.log_interval == 1  # see train.loop
    return TinyGPTError(
        f"iteration {run.progress.step}: {what}; stopped{' before the update' if checked else ''}",
        f"{safe} with a lower learning_rate than {run.config.learning_rate}, or a longer warmup_iters",
        status=1,
    )


def out_of_memory(config: TrainConfig, where: object) -> TinyGPTError:
    """The error of a run that does not fit into memory."""
    rows, steps = config.batch_size, config.gradient_accumulation_steps
    fits = (
        f"the same iteration in smaller pieces: --batch_size={rows // 2} --gradient_accumulation_steps={steps * 2}"
        if rows % 2 == 0
        else f"--batch_size={max(rows // 2, 1)}, a smaller --block_size or a smaller model"
    )
    return TinyGPTError(
        f"out of memory on {where} with batch_size {rows} x block_size {config.block_size}", fits, status=1
    )
