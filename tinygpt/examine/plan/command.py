"""`tinygpt plan`: run the time pilot, and print what it predicts; or compute the memory of several processes."""

import contextlib
import dataclasses
import os
import sys
from typing import Any

import torch

from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.examine import PlanConfig
from tinygpt.base.configs.fields import keys
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import strict_json
from tinygpt.base.terminal import duration, durations, table
from tinygpt.checkpoint.store import WithoutInit
from tinygpt.examine.plan import cost
from tinygpt.examine.plan.cost import Costs
from tinygpt.examine.plan.memory import plan_memory
from tinygpt.model import GPT
from tinygpt.training.budget import within_budget
from tinygpt.training.distillation import Teacher
from tinygpt.training.processes import Processes
from tinygpt.training.recipe import budget_of, refuse_budget
from tinygpt.training.start import Start, make_model, resolve, resumes


def plan(config: PlanConfig) -> None:
    """Predict a run, or the memory of its processes. Errors: TinyGPTError for a run that cannot be planned."""
    with contextlib.ExitStack() as stack:
        if config.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        start = within_budget(resolve(stack, planned(config), "plan"))
        with torch.device("meta") if start.checkpoint is None else contextlib.nullcontext(), WithoutInit():
            model = make_model(start)  # without weights, if they are new ones
        run = dataclasses.replace(start.config, shard=config.shard)
        Teacher.of(start)  # only for its errors
        if config.processes:
            Processes(0, config.processes).share(run)  # only for its errors
        show_run(start, model, config)
        result = (
            plan_memory(run, config.processes, model, start.compute) if config.processes else predict(start, config)
        )
    if config.json:
        print(strict_json(result))


def planned(config: PlanConfig) -> TrainConfig:
    """Return the configuration of the run, for one process. Errors: TinyGPTError if plan cannot predict it."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TinyGPTError("plan runs in one process", "run it without torchrun; --processes=N for the memory of N")
    if resumes(config) or config.eval_only or not config.max_iters:
        raise TinyGPTError("plan predicts a new run of at least one iteration", "drop init_from or eval_only")
    names = keys(TrainConfig).keys()
    settings = {name: getattr(config, name) for name in names} | {"shard": False}
    run = TrainConfig(**settings, flags=config.flags & names, given=config.given & names)
    refuse_budget(run, budget_of(run) if config.processes > 1 else "")
    return run


def show_run(start: Start, model: GPT, config: PlanConfig) -> None:
    """Print the device, the dataset and the size of the run."""
    run = start.config
    source = start.source
    passes = run.max_iters * source.passes(run.batch_size * run.gradient_accumulation_steps, run.block_size)
    print(f"device:      {start.compute.describe()}")
    if start.compute.device.type != "cpu" and not config.processes:
        print("note:        the memory is that of the process; the memory of the GPU is not predicted")
    print(f"dataset:     {start.dataset.folder}: {source.describe()}")
    print(f"model:       {model.num_params():,} parameters")
    print(f"iterations:  {run.max_iters:,}; {passes:.1f} passes over the data")
    if start.reason:
        print(f"budget:      {start.reason}")


def predict(start: Start, config: PlanConfig) -> dict[str, Any]:
    """Run the time pilot, print the predictions, and return them for --json."""
    print(f"time pilot:  {cost.WARM_UP + cost.STEPS} iterations and two evaluations", flush=True)
    costs = cost.measure(start.config)
    show_costs(start.config, costs)
    seconds = cost.seconds(start.config, costs)
    memory = cost.memory_mb(costs)
    low, high, value = durations([seconds.low, seconds.high, seconds.value])
    print(f"time:        {value} ({low} to {high})")
    if memory:
        print(f"memory:      {memory.value:,.0f} MB ({memory.low:,.0f} to {memory.high:,.0f})")
    if start.dataset.pairs:
        print("note:        batches of pairs differ in length, so the run may need more than twice the memory")
    flags = [suggest.flag(key, getattr(config, key)) for key in keys(TrainConfig) if key in config.flags]
    print(f"\nnext: {suggest.command('train', *config.config, *flags)}")
    return {
        "predicted_seconds": seconds._asdict(),
        "predicted_memory_mb": memory._asdict() if memory else None,
        "start": costs.start,
    }


def show_costs(config: TrainConfig, costs: Costs) -> None:
    """Print what each part of the run costs, according to the time pilot."""
    parts = cost.parts(config, costs)
    total = sum(part.seconds for part in parts.values())
    rows = []
    for name, part in parts.items():
        total_time = f"{part.seconds:.1f} s" if part.seconds < 90 else duration(part.seconds)
        rows.append((f"{name}:", part.times, 1000 * part.each, total_time, part.seconds / total))
    print("\n".join(table({"": "<13", "count": ">9,", "ms each": ">12,.1f", "total": ">12", "share": ">8.0%"}, rows)))
