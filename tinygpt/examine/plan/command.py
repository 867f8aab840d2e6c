"""`tinygpt plan`: run the time pilot, and print what it predicts; or compute the memory of several processes."""

import contextlib
import os
import sys
from typing import Any, NamedTuple

import torch

from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.examine import PlanConfig
from tinygpt.base.configs.fields import keys
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import strict_json
from tinygpt.base.terminal import duration, durations, table
from tinygpt.checkpoint.store import WithoutInit
from tinygpt.data.dataset import Dataset
from tinygpt.examine.plan import cost
from tinygpt.examine.plan.cost import Costs
from tinygpt.examine.plan.memory import plan_memory
from tinygpt.model import GPT
from tinygpt.training.distillation import Teacher
from tinygpt.training.start import (
    choose_compute,
    fit_dataset,
    make_model,
    require_dataset_choice,
    resumes,
    starting_point,
    training_class,
)


class Planned(NamedTuple):
    """The run to be planned."""

    config: TrainConfig
    flags: list[str]  # of tinygpt train, as given on the command line
    pairs: bool  # the dataset has prompts and responses
    model: GPT  # without weights, if they are new ones
    compute: Compute


def plan(config: PlanConfig) -> None:
    """Predict a run, or the memory of its processes. Errors: TinyGPTError for a run that cannot be planned."""
    with contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext():
        run = planned(config)
        result = plan_memory(run.config, config.processes, run.model, run.compute) if config.processes else predict(run)
    if config.json:
        print(strict_json(result))


def predict(run: Planned) -> dict[str, Any]:
    """Run the time pilot, print the predictions, and return them for --json."""
    print(f"time pilot:  {cost.WARM_UP + cost.STEPS} iterations and two evaluations", flush=True)
    costs = cost.measure(run.config)
    show_costs(run.config, costs)
    seconds = cost.seconds(run.config, costs)
    memory = cost.memory_mb(costs)
    low, high, value = durations([seconds.low, seconds.high, seconds.value])
    print(f"time:        {value} ({low} to {high})")
    if memory:
        print(f"memory:      {memory.value:,.0f} MB ({memory.low:,.0f} to {memory.high:,.0f})")
    if run.pairs:
        print("note:        batches of pairs differ in length, so the run may need more than twice the memory")
    print(f"\nnext: {suggest.command('train', *run.config.config, *run.flags)}")
    return {
        "predicted_seconds": seconds._asdict(),
        "predicted_memory_mb": memory._asdict() if memory else None,
        "start": costs.start,
    }


def planned(config: PlanConfig) -> Planned:
    """Check the run, and print its device, dataset and size. Errors: TinyGPTError as at the start of the run."""
    run_keys = keys(TrainConfig)
    run = TrainConfig(**{key: getattr(config, key) for key in run_keys})
    run.flags = config.flags & run_keys.keys()
    run.given = config.given & run_keys.keys()
    flags = [suggest.flag(key, getattr(config, key)) for key in run_keys if key in config.flags]
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TinyGPTError("plan runs in one process", "run it without torchrun; --processes=N for the memory of N")
    if resumes(run) or run.eval_only or not run.max_iters:
        raise TinyGPTError("plan predicts a new run of at least one iteration", "drop init_from or eval_only")
    require_dataset_choice(run, "plan")
    dataset = Dataset(run.data_dir, run.dataset)
    start = starting_point(run)
    run = start.config
    compute = choose_compute(run, {})
    known_tokens = fit_dataset(dataset, start)
    with torch.device("meta") if start.checkpoint is None else contextlib.nullcontext(), WithoutInit():
        model, _ = make_model(start, training_class(run, compute), dataset.tokenizer.vocab_size, known_tokens)
    source = dataset.sources["train"]
    Teacher.of(run.teacher, run, compute, dataset, source.width(run.block_size))  # only for its errors
    passes = run.max_iters * source.passes(run.batch_size * run.gradient_accumulation_steps, run.block_size)
    print(f"device:      {compute.describe()}")
    if compute.device.type != "cpu" and not config.processes:
        print("note:        the memory is that of the process; the memory of the GPU is not predicted")
    print(f"dataset:     {dataset.folder}: {source.describe()}")
    print(f"model:       {model.num_params():,} parameters")
    print(f"iterations:  {run.max_iters:,}; {passes:.1f} passes over the data")
    return Planned(run, flags, dataset.pairs, model, compute)


def show_costs(config: TrainConfig, costs: Costs) -> None:
    """Print what each part of the run costs, according to the time pilot."""
    parts = cost.parts(config, costs)
    total = sum(part.seconds for part in parts.values())
    rows = []
    for name, part in parts.items():
        total_time = f"{part.seconds:.1f} s" if part.seconds < 90 else duration(part.seconds)
        rows.append((f"{name}:", part.times, 1000 * part.each, total_time, part.seconds / total))
    print("\n".join(table({"": "<13", "count": ">9,", "ms each": ">12,.1f", "total": ">12", "share": ">8.0%"}, rows)))
