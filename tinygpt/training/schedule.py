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
    if config.lr_schedule == "constant" or not config.decay_lr:  # the second is nanoGPT's spelling
        return config.learning_rate
    end = config.lr_decay_iters or config.max_iters
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step >= end:
        return config.min_lr
    progress = (step - config.warmup_iters) / (end - config.warmup_iters)
    left = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + left * (config.learning_rate - config.min_lr)
