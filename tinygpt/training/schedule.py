"""The learning-rate schedule: a pure function of the iteration.

learning_rate(step, config)     # step 0 is the first update
"""

import math

from tinygpt.config.schema import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of iteration `step`, counted from 0.

    The rate rises linearly for `warmup_iters` iterations, then falls to `min_lr` along a cosine (Loshchilov & Hutter
    2017, "SGDR") or a straight line, and stays there. The cosine is nanoGPT's get_lr. The decay ends at
    `lr_decay_iters`, or at `max_iters` if that is 0; a run that is resumed with a larger `max_iters` then continues on
    the longer schedule. A warm-up that is longer than the decay is not shortened; after it the rate is `min_lr`.
    """
    if is_constant(config):
        return config.learning_rate
    end = config.lr_decay_iters or config.max_iters
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step >= end:
        return config.min_lr
    progress = (step - config.warmup_iters) / (end - config.warmup_iters)
    left = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + left * (config.learning_rate - config.min_lr)


def is_constant(config: TrainConfig) -> bool:
    return config.lr_schedule == "constant" or not config.decay_lr  # the second is nanoGPT's spelling


def describe(config: TrainConfig) -> str:
    """In words: `learning rate 0.001; warm-up of 100 iterations, cosine decay to 0.0001 at iteration 2,000`."""
    rate = f"learning rate {config.learning_rate:g}"
    if config.optimizer == "muon":
        rate = f"learning rate {config.muon_learning_rate:g} for matrices, {config.learning_rate:g} for the others"
    if is_constant(config):
        return f"{rate}; constant"
    end = config.lr_decay_iters or config.max_iters
    warm_up = f"warm-up of {config.warmup_iters:,} iterations, " if config.warmup_iters else ""
    least = f"{config.min_lr:g}"
    if config.optimizer == "muon":
        least = f"{config.min_lr / (config.learning_rate or 1):.0%}"  # of both rates
    return f"{rate}; {warm_up}{config.lr_schedule} decay to {least} at iteration {end:,}"


def note(config: TrainConfig) -> str:
    """A warning about a warm-up that does not end before the run or its decay; empty if it does."""
    last = min(config.max_iters, config.lr_decay_iters or config.max_iters)
    if is_constant(config) or config.warmup_iters < max(last, 1):
        return ""
    return (
        f"note: the warm-up of {config.warmup_iters:,} iterations does not end before iteration {last:,}, so the "
        f"learning rate never reaches its peak; use --warmup_iters={last // 10}"
    )
