"""Fix the length of a run, and the size of its model, so that it ends within a given time: `tinygpt train --budget=5m`.

start = within_budget(resolve(stack, config))

The speed is measured with a few steps of training. What is chosen is the largest model that gets the iterations which
it needs (recipe.py). The configuration that results has no budget, but a number of threads: repeating it gives the same
weights, bit for bit.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import torch

from tinygpt.base import device, threads
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.shared import seconds_of
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted
from tinygpt.training import recipe
from tinygpt.training.distillation import Teacher
from tinygpt.training.losses import CHEAP, CHUNK
from tinygpt.training.start import Start, make_model, training_step

USED = 0.97  # share of the time that is planned; the rest is for saves and samples
SETUP = 1.5  # seconds from the choice to the first iteration, and from the last one to the end
FORWARD = 0.4  # time of a batch of an evaluation, as a share of a micro-step's
MEASURED = 0.6  # seconds
FEWEST = 10  # iterations
WORTH_COMPILING = 600  # seconds: compiling for a GPU takes about one minute of them


def within_budget(start: Start) -> Start:
    """Fix what the budget of a run leaves open: the number of iterations, and of a new model without a config its size
    and recipe. Without a budget, the start is returned as it is. Errors: TinyGPTError for a budget that is too short.
    """
    budget = start.config.budget
    dataset = start.dataset
    if not budget:
        return start
    end = start.config.started + USED * seconds_of(budget) - SETUP
    compiled = start.config.compile
    if compiled == "auto" and seconds_of(budget) < WORTH_COMPILING:
        compiled = "False"
    config = dataclasses.replace(start.config, budget="", compile=compiled)
    given = bool(config.config or start.checkpoint)
    sizes = [config] if given or dataset.pairs else recipe.sizes(config, dataset)
    tune_threads(start, config)
    chosen, fitting, limit = largest(start, sizes, end)
    tune_threads(start, chosen)
    if start.compute.device.type == "cpu":
        chosen = dataclasses.replace(chosen, threads=str(torch.get_num_threads()))

    def for_length(iterations: int) -> TrainConfig:
        length = dataclasses.replace(chosen, max_iters=iterations)
        return length if given else recipe.for_length(chosen, iterations, dataset)

    fitting, step, has_dropout = fit(start, for_length, fitting, end, budget)
    if has_dropout and not for_length(fitting).dropout:  # it takes so much time that the rest does not need it
        chosen = dataclasses.replace(chosen, dropout=0.0, given=chosen.given | {"dropout"})
        fitting, step, _ = fit(start, for_length, fitting, end, budget)
    if fitting < FEWEST:
        problem = f"a budget of {budget} is too short: it leaves {counted(max(0, fitting), 'iteration')}"
        least = seconds_of(budget) + 1.5 * (FEWEST - fitting) * step
        raise TinyGPTError(problem, f"--budget={10 * math.ceil(least / 10)}s")
    fixed = for_length(fitting)
    on = f" with {counted(torch.get_num_threads(), 'thread')}" if start.compute.device.type == "cpu" else ""
    reason = "the model and the recipe are given" if given else recipe.reason(fixed, dataset, fitting, limit)
    reason = f"{budget}, {1000 * step:.1f} ms for an iteration{on}; {reason}"
    return dataclasses.replace(start, config=fixed, reason=reason)


def fit(
    start: Start, for_length: Callable[[int], TrainConfig], fitting: int, end: float, budget: str
) -> tuple[int, float, bool]:
    """Return how many iterations end at the time `end`, the seconds of each, and whether it was measured with dropout.

    fitting: about how many; measured longer than for `largest`, since the load of a machine changes.
    """
    measured = for_length(fitting)
    step = seconds_per_iteration(start, measured, min(5.0, 0.03 * seconds_of(budget)))
    for _ in range(3):  # the evaluations depend on the length, and it on them
        fitting = iterations(start, for_length(fitting), step, end)
    return fitting, step, measured.dropout > 0


def largest(start: Start, sizes: list[TrainConfig], end: float) -> tuple[TrainConfig, int, str]:
    """Choose the largest model for which the time and the text are enough. Returns it, its number of iterations, and
    what limits its size; empty if there is no choice."""
    chosen = sizes[0]
    fitting = 0

    def limit(reason: str) -> str:
        return ", the smallest" if chosen is sizes[0] else f", the largest {reason}"

    for size in sizes:
        if fitting and recipe.weights_per_token(size, start.dataset) > recipe.LARGE:
            return chosen, fitting, limit("that this text is enough for")
        count = int(4 * fitting * recipe.weights(chosen) / recipe.weights(size))  # at most
        try:
            if count >= recipe.needed(size) or not fitting:  # else it need not be measured
                count = iterations(start, size, seconds_per_iteration(start, size), end)
        except (RuntimeError, MemoryError) as error:
            if not fitting or not device.is_out_of_memory(error):
                raise
            return chosen, fitting, limit("that fits into memory")
        if fitting and count < recipe.needed(size):
            return chosen, fitting, limit("for which there is time")
        chosen = size
        fitting = max(1, count)
    return chosen, fitting, limit("of the recipe") if len(sizes) > 1 else ""


def tune_threads(start: Start, config: TrainConfig) -> None:
    """Choose the number of threads on a CPU by timing steps, unless it is the user's."""
    if start.compute.device.type == "cpu" and not threads.is_fixed(start.config.threads):
        threads.ThreadTuner(step_of(start, config)).tune(threads.free())


def step_of(start: Start, config: TrainConfig) -> Callable[[], None]:
    """Make a training step of a configuration, to measure its time."""
    model = make_model(dataclasses.replace(start, config=config))
    return training_step(config, start.source, start.compute, model, Teacher.of(start))


def seconds_per_iteration(start: Start, config: TrainConfig, measured: float = MEASURED) -> float:
    """Measure the mean time of an iteration, for `measured` seconds or a little longer."""
    step = step_of(start, config)
    threads.mean_seconds(step, 2)  # the first steps are slower
    times: list[float] = []
    while len(times) < 3 or sum(times) < measured:
        times.append(threads.mean_seconds(step, 1))
    return config.gradient_accumulation_steps * sum(times) / len(times)


def iterations(start: Start, config: TrainConfig, step: float, end: float) -> int:
    """Return how many iterations of `step` seconds, with their evaluations, end at the time `end`."""
    forward = FORWARD * step / config.gradient_accumulation_steps  # of batch_size rows
    rows = start.dataset.sources["val"].all_rows(config.block_size)
    evaluation = 2 * (config.eval_iters or len(rows) / config.batch_size) * forward
    seconds = end - time.perf_counter() - 2 * evaluation - comparison(start, config, forward)
    return int(seconds / (step + evaluation / config.eval_interval))


def comparison(start: Start, config: TrainConfig, forward: float) -> float:
    """Return the seconds in which a fine-tuned model is compared with its base model (compare.py)."""
    if not (start.tuning and start.checkpoint):
        return 0.0
    rows = 0.0
    for dataset in filter(None, (start.dataset, start.tuning.base_data)):
        split = dataset.sources["val"]
        length = config.block_size
        most = max(CHUNK, CHEAP // (split.width(length) * start.checkpoint.num_params))
        rows += min(most, len(split.all_rows(length)))
    return 2 * rows / config.batch_size * forward
