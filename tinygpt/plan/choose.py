"""`tinygpt plan --budget` and `--target`: choose a model size and a number of iterations for this machine.

The time of an iteration is measured for each size; a scaling law (evaluate/law.py) says which loss the model reaches in
the budget, or how long it needs to reach the target. Its losses serve to rank the sizes. To predict the loss of the
chosen one, plan that run: its loss pilots measure its own recipe.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.config import suggest
from tinygpt.config.schema import PlanConfig, TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.device import Compute
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.law import SHAKESPEARE, SHAPES, Law, read_law
from tinygpt.plan.pilots import MOST_PASSES
from tinygpt.terminal import duration, table
from tinygpt.training.start import Start, make_model, seconds_per_batch, training_class

START = 5.0  # seconds until the first iteration
SHARE = 0.9  # of the remaining time for iterations; the other tenth is for EVALUATIONS and their saves
EVALUATIONS = 4
FEWEST = 100  # iterations of a run that is suggested
SLOWEST = 2.0  # seconds per iteration; no size beyond the first that takes longer is measured


class SizedRun(NamedTuple):
    """A model size with the length of its run, its time, and its loss by the scaling law."""

    width: int
    parameters: int
    step: float  # seconds per iteration, measured on this machine
    iterations: int
    passes: float  # over the training data
    seconds: float
    loss: float  # in nats per token


def choose(config: PlanConfig, run: TrainConfig, flags: Sequence[str], compute: Compute) -> dict[str, Any]:
    """Print the possible model sizes and the best one; return them for --json. compute: where sizes are timed. Errors:
    TinyGPTError if none fits."""
    seconds = budget_seconds(config.budget) if config.budget else math.inf
    dataset = Dataset(run.data_dir, run.dataset)
    if run.init_from != "scratch" or dataset.pairs:
        problem = "a size can be chosen for a new model of plain text only"
        raise TinyGPTError(problem, "the same command without --budget and --target")
    candidates = list(choices(config, run, dataset, seconds, compute))
    if not candidates:
        needs = f"each needs at least {FEWEST} iterations, and at most {MOST_PASSES} passes over the data"
        other = "another target" if config.target else "a larger budget"
        raise TinyGPTError(f"no size fits: {needs}", f"{other}, or more text")
    best = min(candidates, key=lambda choice: choice.seconds if config.target else choice.loss)
    columns = {"width x layers": ">14", "parameters": ">12,", "ms/iter": ">9.1f", "iterations": ">12,"}
    columns |= {"passes": ">8.1f", "time": ">13", "loss": ">7.2f", "": "<0"}
    rows = []
    for choice in candidates:
        width, parameters, step, iterations, passes, run_time, loss = choice
        name, mark = f"{width} x {SHAPES[width][0]}", "  best" * (choice is best)
        rows.append((name, parameters, 1000 * step, iterations, passes, duration(run_time), loss, mark))
    print("\n".join(table(columns, rows)))
    if any(choice.passes > MOST_PASSES - 0.1 for choice in candidates):
        print(f"note:        no run is longer than {MOST_PASSES} passes over the data, so some leave time unused")
    command = arguments(run, flags, best)
    print(f"\nnext: {suggest.command('plan', *command)}")
    print(f"or:   {suggest.command('train', *command)}")
    records = [choice._asdict() for choice in candidates]
    return {"choices": records, "best": best._asdict(), "command": suggest.command("train", *command)}


def choices(
    config: PlanConfig, run: TrainConfig, dataset: Dataset, seconds: float, compute: Compute
) -> Iterator[SizedRun]:
    """Yield the sizes whose best run fits into the time: as long as it allows, or just until it reaches the target."""
    law, tokens = chosen_law(config, run), len(dataset.splits["train"])
    batch = run.batch_size * run.gradient_accumulation_steps * run.block_size
    for width in SHAPES:
        sized = dataclasses.replace(run, **shape(width))
        gpt_class = training_class(sized, compute)
        parameters = make_model(Start(sized), gpt_class, dataset.tokenizer.vocab_size)[0].num_params()
        step = seconds_per_batch(sized, dataset, compute) * run.gradient_accumulation_steps
        most_iterations = max(0.0, (seconds - START) * SHARE / step)
        if config.target:
            needed = law.tokens_for(config.target, parameters) / batch
            iterations = math.ceil(needed) if math.isfinite(needed) and needed <= most_iterations else 0
        else:
            iterations = min(int(most_iterations), MOST_PASSES * tokens // batch)
        passes = iterations * batch / tokens
        if iterations >= FEWEST and passes <= MOST_PASSES:
            loss = float(law.loss(parameters, iterations * batch))
            yield SizedRun(width, parameters, step, iterations, passes, START + iterations * step / SHARE, loss)
        if step > SLOWEST:
            break


def chosen_law(config: PlanConfig, run: TrainConfig) -> Law:
    """Return the law that --law names, or that of Tiny Shakespeare, and print where it was measured."""
    law, measured_on = read_law(Path(config.law)) if config.law else (SHAKESPEARE, "shakespeare_char")
    if config.target and measured_on != run.dataset:
        lab = suggest.command("lab", "scale", f"--dataset={run.dataset}")
        raise TinyGPTError(f"a target needs the scaling law of {run.dataset}", f"--law=out-lab-scale after {lab}")
    where = measured_on if measured_on == run.dataset else f"{measured_on}; on {run.dataset} it can only rank the sizes"
    print(f"law:         measured with the recipe configs/lab_scale.yaml on {where}")
    return law


def shape(width: int) -> dict[str, Any]:
    """Return the keys of TrainConfig for the model of a width."""
    layers, heads = SHAPES[width]
    return {"n_layer": layers, "n_head": heads, "n_embd": width, "n_kv_head": 0, "mlp_width": 0}


def arguments(run: TrainConfig, flags: Sequence[str], best: SizedRun) -> list[str]:
    """Return the arguments of `tinygpt train` for a model size: the user's, with the keys of that size in place of the
    same keys there. A key whose value is 0 is repeated only if a file or a flag gives it."""
    values = shape(best.width) | {"max_iters": best.iterations, "lr_decay_iters": 0}
    values["eval_interval"] = max(1, math.ceil(best.iterations / EVALUATIONS))
    other_flags = [flag for flag in flags if flag[2:].partition("=")[0] not in values]
    size_flags = [f"--{key}={value}" for key, value in values.items() if value or key in run.given]
    return [*run.config, *other_flags, *size_flags]


def budget_seconds(text: str) -> float:
    """Read a time such as 90s, 10m or 1.5h. Errors: TinyGPTError for any other text."""
    match = re.fullmatch(r"(\d*\.?\d+)([smh])", text)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 10 <= seconds < 1e8:
        raise TinyGPTError(f"--budget={text}: needs a time of 10 s or more with its unit", "--budget=90s, 10m or 1.5h")
    return seconds
