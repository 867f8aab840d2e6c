"""`tinygpt plan --budget` and `--target`: the size and the length that suit this machine, by a scaling law.

For each size the time of an iteration is measured here; the law (evaluate/law.py) says which loss the model reaches
in the budget, or how long it needs to reach the target.

    sizes = measured(config)                                   # [Size(width=32, ...), ...]
    within(sizes, config, law, seconds=600)                    # the lengths that fit 10 minutes, with their losses
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.config import suggest
from tinygpt.config.schema import PlanConfig, TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.law import SHAKESPEARE, SHAPES, Law, read_law
from tinygpt.evaluate.process import duration
from tinygpt.plan.pilots import MOST_PASSES
from tinygpt.training.build import choose_compute, model_class, seconds_per_batch
from tinygpt.training.start import Start, make_model

REST = 5.0  # seconds: the start of the process
SHARE = 0.9  # of the other time is spent on iterations; evaluations, saves and samples take the rest
FEWEST = 100  # iterations that are worth a run


class Size(NamedTuple):
    """A size of model on this machine."""

    width: int
    parameters: int
    step: float  # seconds of an iteration


class Choice(NamedTuple):
    """A size and a length."""

    size: Size
    iterations: int
    passes: float  # over the training data
    seconds: float
    loss: float  # by the law


def choose(config: PlanConfig, run: TrainConfig, flags: Sequence[str]) -> dict[str, Any]:
    """Print the choices and the best one; return them for --json. Errors: TinyGPTError if none fits."""
    law = read_law(Path(config.law)) if config.law else SHAKESPEARE
    if run.dataset != "shakespeare_char" and not config.law:
        if config.target:
            raise TinyGPTError(
                f"a target needs the scaling law of {run.dataset}",
                f"{suggest.command('lab', 'scale', f'--dataset={run.dataset}')}, then --law=out-lab-scale",
            )
        print("note:        sizes are compared by the law of Tiny Shakespeare; --law=FOLDER is that of a lab scale")
    sizes, tokens = measured(run), len(Dataset(run.data_dir, run.dataset).splits["train"])
    batch = run.batch_size * run.gradient_accumulation_steps * run.block_size
    asked = budget_seconds(config.budget) if config.budget else math.inf
    found = []
    for size in sizes:
        iterations = length_for(size, batch, law, asked, config.target)
        if iterations < FEWEST or iterations * batch > MOST_PASSES * tokens:
            continue
        seconds = REST + iterations * size.step / SHARE
        loss = float(law.loss(size.parameters, iterations * batch))
        found.append(Choice(size, iterations, iterations * batch / tokens, seconds, loss))
    if not found:
        raise TinyGPTError(
            f"no size fits: each needs at least {FEWEST} iterations and at most {MOST_PASSES} passes over the data",
            "a larger budget, a higher target, or more text",
        )
    best = min(found, key=lambda choice: choice.seconds if config.target else choice.loss)
    print(
        f"{'width x layers':>16}{'parameters':>12}{'ms each':>9}{'iterations':>12}{'passes':>8}{'time':>12}{'loss':>7}"
    )
    for choice in found:
        size = choice.size
        print(
            f"{f'{size.width} x {SHAPES[size.width][0]}':>16}{size.parameters:>12,}{1000 * size.step:>9.1f}"
            f"{choice.iterations:>12,}{choice.passes:>8.1f}{duration(choice.seconds):>12}{choice.loss:>7.2f}"
            f"{'  best' if choice is best else ''}"
        )
    layers, heads = SHAPES[best.size.width]
    shape = [f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={best.size.width}"]
    arguments = [*run.config, *flags, *shape, f"--max_iters={best.iterations}"]
    print(f"\nnext: {suggest.command('plan', *arguments)}")
    print(f"or:   {suggest.command('train', *arguments)}")
    rows = [choice.size._asdict() | choice._asdict() | {"size": None} for choice in found]
    return {"choices": rows, "best": best.size.width, "command": suggest.command("train", *arguments)}


def length_for(size: Size, batch: int, law: Law, seconds: float, target: float) -> int:
    """Iterations: as many as fit the seconds, or as few as reach the target; 0 if it cannot be reached in them."""
    most = (seconds - REST) * SHARE / size.step
    if not target:
        return max(0, int(most))
    rest = target - law.E - law.A * size.parameters**-law.alpha  # what is left for the data's term
    needed = (law.B / rest) ** (1 / law.beta) / batch if rest > 0 else math.inf
    return math.ceil(needed) if needed <= most else 0


def measured(run: TrainConfig) -> list[Size]:
    """The time of an iteration for each size, on one batch."""
    dataset, compute = Dataset(run.data_dir, run.dataset), choose_compute(run, {})
    found = []
    for width, (layers, heads) in SHAPES.items():
        config = dataclasses.replace(run, n_layer=layers, n_head=heads, n_embd=width, n_kv_head=0, mlp_width=0)
        model, _ = make_model(config, dataset, Start(), model_class(config.fast, compute))
        step = seconds_per_batch(config, dataset, compute) * run.gradient_accumulation_steps
        found.append(Size(width, model.num_params(), step))
        if found[-1].step > 2:  # larger ones need hours here
            break
    return found


def budget_seconds(text: str) -> float:
    """Read a time such as 90s, 10m or 1.5h. Errors: TinyGPTError for any other text."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
        if 10 <= seconds < 1e8:
            return seconds
    except (KeyError, ValueError):
        pass
    raise TinyGPTError(f"--budget={text}: not a time from 10 seconds on", "for example --budget=90s, 10m or 1.5h")
