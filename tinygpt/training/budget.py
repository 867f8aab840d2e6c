"""Fix the length of a run, and the size of its model, so that it ends within a given time: `tinygpt train --budget=5m`.

start = within_budget(resolve(stack, config))

The speed is measured with a few steps of training. What is chosen is the largest model that gets the iterations which
it needs (recipe.py). The configuration that results has no budget, but a number of threads: repeating it gives the same
weights, bit for bit.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from tinygpt.base import device, threads
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.shared import seconds_of
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted, duration
from tinygpt.training import recipe
from tinygpt.training.distillation import Teacher
from tinygpt.training.start import Start, make_model, step_on_one_batch

USED = 0.97  # share of the time that is planned; the rest is for saves and samples
SETUP = 1.5  # seconds from the choice to the first iteration, and from the last one to the end
FORWARD = 0.4  # time of a batch of an evaluation, as a share of an iteration's
MEASURED = 0.6  # seconds
FEWEST = 10  # iterations


def within_budget(start: Start) -> Start:
    """Fix what the budget of a run leaves open: the number of iterations, and of a new model without a config its size
    and recipe. Without a budget, the start is returned as it is. Errors: TinyGPTError for a budget that is too short.
    """
    budget, dataset = start.config.budget, start.dataset
    if not budget:
        return start
    if start.compute.device.type == "cpu":
        device.keep_freed_memory(keep=not start.config.shard)  # as in the run, whose steps it makes faster
    config = dataclasses.replace(start.config, budget="", threads=measured_threads(start))
    sized = bool(config.config or start.checkpoint or dataset.pairs)
    end = config.started + USED * seconds_of(budget) - SETUP
    chosen, step, fitting = config, 0.0, 0
    for candidate in [config] if sized else recipe.sizes(config, dataset):
        larger = (candidate.n_embd / chosen.n_embd) ** 3
        if fitting and fitting < 0.5 * larger * recipe.needed(candidate):
            break  # so much too large that it need not be measured
        seconds = seconds_per_iteration(start, candidate)
        count = iterations(start, candidate, seconds, end - time.perf_counter())
        if fitting and not recipe.suits(candidate, count, dataset):
            break
        chosen, step, fitting = candidate, seconds, count
    if fitting < FEWEST:
        problem = f"a budget of {budget} is too short: it leaves {counted(max(0, fitting), 'iteration')}"
        raise TinyGPTError(problem, "--budget=2m")
    if sized:
        chosen, reason = dataclasses.replace(chosen, max_iters=fitting), "the model and the recipe are given"
    else:
        without, chosen = chosen, recipe.for_length(chosen, fitting, dataset)
        if chosen.dropout > without.dropout:  # which takes time
            step = seconds_per_iteration(start, chosen)
            fitting = iterations(start, chosen, step, end - time.perf_counter())
            chosen = recipe.for_length(chosen, fitting, dataset)
        reason = recipe.reason(chosen, dataset, fitting)
    length = f"{duration(seconds_of(budget))}: {counted(chosen.max_iters, 'iteration')} of {1000 * step:.1f} ms"
    measured = f"{length}, measured with {counted(torch.get_num_threads(), 'thread')}, and evaluations"
    return dataclasses.replace(start, config=chosen, reasons=(measured, reason))


def measured_threads(start: Start) -> str:
    """Choose the number of threads by timing steps, unless it is the user's; "auto" on a GPU."""
    config = start.config
    if start.compute.device.type != "cpu":
        return config.threads
    if not threads.is_fixed(config.threads):
        threads.ThreadTuner(step_of(start, config)).tune(threads.free())
    return str(torch.get_num_threads())


def step_of(start: Start, config: TrainConfig) -> Callable[[], None]:
    """Make a training step of a configuration: on the model that the run starts from, or on a new one."""
    given = start.checkpoint is not None
    return step_on_one_batch(
        config, start.dataset, start.compute, make_model(start) if given else None, Teacher.of(start)
    )


def seconds_per_iteration(start: Start, config: TrainConfig) -> float:
    """Measure the mean time of an iteration."""
    with torch.random.fork_rng(devices=[]):
        step = step_of(start, config)
        threads.mean_seconds(step, 2)  # the first steps are slower
        times: list[float] = []
        while len(times) < 3 or sum(times) < MEASURED:
            times.append(threads.mean_seconds(step, 1))
    return config.gradient_accumulation_steps * sum(times) / len(times) * padding(start, config)


def padding(start: Start, config: TrainConfig) -> float:
    """Return the mean length of the rows of a batch, as a share of the longest row's; 1 for plain text."""
    source, rows = start.source, config.batch_size
    drawn = [source.draw(config.seed, step, config.block_size, rows) for step in range(20)]
    widths = [source.width(config.block_size, row_indices) for row_indices in drawn]
    return float(np.mean(widths)) / source.width(config.block_size)


def iterations(start: Start, config: TrainConfig, step: float, seconds: float) -> int:
    """Return how many iterations, with their evaluations, take so many seconds."""
    batches = config.eval_iters or len(start.dataset.sources["val"].all_rows(config.block_size)) / config.batch_size
    evaluation = 2 * batches * FORWARD * step
    return int((seconds - 2 * evaluation) / (step + evaluation / config.eval_interval))
