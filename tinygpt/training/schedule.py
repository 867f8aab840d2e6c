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
    """For people: `0.001, after a warm-up of 100 iterations, then a cosine to 0.0001 at iteration 2,000`."""
    if is_constant(config):
        return f"{config.learning_rate:g}, constant"
    warm_up = f", after a warm-up of {config.warmup_iters:,} iterations" if config.warmup_iters else ""
    curve = "straight line" if config.lr_schedule == "linear" else "cosine"
    end = config.lr_decay_iters or config.max_iters
    return f"{config.learning_rate:g}{warm_up}, then a {curve} to {config.min_lr:g} at iteration {end:,}"


def note(config: TrainConfig) -> str:
    """A warning about a warm-up that the run does not leave; empty if it does."""
    if is_constant(config) or config.warmup_iters < config.max_iters:
        return ""
    return (
        f"note: the warm-up (warmup_iters={config.warmup_iters:,}) does not end before the run (max_iters="
        f"{config.max_iters:,}), so the learning rate never reaches {config.learning_rate:g}"
    )
