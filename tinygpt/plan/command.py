"""`tinygpt plan`: the stages of a plan, what it prints, and plan.json.

The time pilot comes first and takes seconds; the loss pilots take about a quarter of the run. Each result is stored at
once, so a plan that was stopped continues with the pilot that it had begun, whose files are in OUT_DIR/.plan-pilots.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinygpt.checkpoint.store import WithoutInit
from tinygpt.config import suggest
from tinygpt.config.fields import keys
from tinygpt.config.schema import PlanConfig, TrainConfig, run_settings
from tinygpt.data.dataset import Dataset
from tinygpt.device import Compute
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.forecast import FILE, Forecast, Interval, differences, read_plan
from tinygpt.files import file_lock, replacing, strict_json
from tinygpt.model import GPT
from tinygpt.plan import cost, fit, pilots
from tinygpt.plan.choose import choose
from tinygpt.plan.cost import Costs
from tinygpt.plan.memory import plan_memory
from tinygpt.plan.pilots import Pilot
from tinygpt.terminal import duration, table
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

FOLDER = ".plan-pilots"  # in OUT_DIR
BUSY = 0.5  # load average per core, from which the machine counts as busy


class Planned(NamedTuple):
    """The run to be planned."""

    config: TrainConfig
    flags: list[str]  # of tinygpt train, as given on the command line
    passes: float  # over the training data
    pairs: bool  # the dataset has prompts and responses
    record: dict[str, Any]  # `settings`, and `data`: SHA-256 of the dataset's files
    model: GPT  # without weights, if they are new ones
    compute: Compute

    @property
    def out(self) -> Path:
        return Path(self.config.out_dir)


def plan(config: PlanConfig) -> None:
    """Predict a run or the memory of its processes, or choose a model size for --budget or --target. Errors:
    TinyGPTError for one that cannot be planned, and those of the pilots."""
    with contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext():
        run = planned(config)
        if config.processes:
            result = plan_memory(run.config, config.processes, run.model, run.compute)
        elif config.budget or config.target:
            result = choose(config, run.config, run.flags, run.compute)
        else:
            result = make_plan(run, config.time_only).as_json()
    if config.json:
        print(strict_json(result))


def make_plan(run: Planned, time_only: bool) -> Forecast:
    """Run the pilots, predict the run, print the forecast and write it to plan.json."""
    with file_lock(run.out / FILE, "choose another --out_dir"):
        costs, finished = unfinished(run)
        with contextlib.suppress(OSError, AttributeError):  # unknown here, as on Windows
            if os.getloadavg()[0] / (os.cpu_count() or 1) > BUSY:
                later = "for the time when it is idle, plan again later"
                print(f"note:        this machine was busy in the last minute; {later}")
        if run.config.max_iters < cost.WARM_UP + cost.STEPS:
            print("note:        the time pilot has more iterations than this run")
        if costs is None:
            print(f"time pilot:  {cost.WARM_UP + cost.STEPS} iterations and two evaluations", flush=True)
            costs = cost.measure(run.config, run.out / FOLDER)
            store(run, costs, finished)
        show_costs(run, costs)
        no_loss = "--time_only was given" if time_only else pilots.refusal(run.config, run.passes, run.pairs)
        if not time_only:
            finished = loss_pilots(run, costs, finished, predictable=not no_loss)
            if no_loss and not pilots.bounding(run.config):
                no_loss += f"; for an upper bound it needs {pilots.BOUNDED}"
        latest = cost.with_blocks(costs, [block for pilot in finished for block in pilot.blocks])
        forecast = predicted(run, latest, () if time_only else finished, no_loss)
        store(run, costs, finished, forecast)
        shutil.rmtree(run.out / FOLDER, ignore_errors=True)
    if finished:
        print(f"             {1000 * latest.step:.1f} ms per iteration, with which the time is predicted")
    print("\n".join(forecast.lines()))
    if run.pairs:
        print("note:        batches of pairs differ in length, so the run may need more than twice the memory")
    print(f"stored:      {run.out / FILE}; tinygpt doctor and tinygpt report will compare it with the run")
    print(f"\nnext: {suggest.command('train', *run.config.config, *run.flags)}")
    return forecast


def planned(config: PlanConfig) -> Planned:
    """Check the run, and print its device, dataset and size. Errors: TinyGPTError as at the start of the run."""
    run_keys = keys(TrainConfig)
    run = TrainConfig(**{key: getattr(config, key) for key in run_keys})
    run.flags, run.given = config.flags & run_keys.keys(), config.given & run_keys.keys()
    flags = [f"--{key}={getattr(config, key)}" for key in run_keys if key in config.flags]
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TinyGPTError("plan runs in one process", "run it without torchrun; --processes=N for the memory of N")
    if resumes(run) or run.eval_only or not run.max_iters:
        raise TinyGPTError("plan predicts a new run of at least one iteration", "drop init_from or eval_only")
    require_dataset_choice(run, "plan")
    dataset = Dataset(run.data_dir, run.dataset)
    start = starting_point(run)
    run, compute = start.config, choose_compute(start.config, {})
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
    if not (config.budget or config.target):
        print(f"model:       {model.num_params():,} parameters")
        print(f"iterations:  {run.max_iters:,}; {passes:.1f} passes over the data")
    record = {"settings": run_settings(run), "data": dataset.meta["sha256"]}
    return Planned(run, flags, passes, dataset.pairs, record, model, compute)


def unfinished(run: Planned) -> tuple[Costs | None, tuple[Pilot, ...]]:
    """Return what an interrupted plan of the same run has measured; remove the files of any other plan."""
    content = read_plan(run.out)
    if content and not content["predicted_seconds"] and not differences(content, **run.record):
        with contextlib.suppress(KeyError, TypeError):  # damaged, or of another version
            return Costs(**content["costs"]), tuple(Pilot(**pilot) for pilot in content["pilots"])
    shutil.rmtree(run.out / FOLDER, ignore_errors=True)
    return None, ()


def loss_pilots(run: Planned, costs: Costs, finished: tuple[Pilot, ...], predictable: bool) -> tuple[Pilot, ...]:
    """Run the loss pilots that are missing; return all, ordered by length."""
    configs = pilots.configurations(run.config, predictable, run.out / FOLDER)
    lengths = [config.max_iters for config in configs]
    estimate = duration(sum(lengths) * costs.step)
    if predictable:
        listed = f"{', '.join(f'{length:,}' for length in lengths[:-1])} and {lengths[-1]:,} iterations"
        print(f"loss pilots: runs of {listed}, about {estimate} in all, and an evaluation each", flush=True)
    elif configs:
        print(f"loss pilot:  the first {lengths[0]:,} iterations, about {estimate}, and an evaluation", flush=True)
    for config, length in zip(configs, lengths, strict=True):
        matching = [pilot for pilot in finished if pilot.iterations == length]
        if not matching:
            pilot = pilots.run_pilot(config, run.out / FOLDER / "log.txt", run.compute)
            finished, matching = (*finished, pilot), [pilot]
            store(run, costs, finished)
        print(f"             {length:>7,} iterations: validation loss {matching[0].loss:.4f}", flush=True)
    return tuple(sorted(pilot for pilot in finished if pilot.iterations in lengths))


def predicted(run: Planned, costs: Costs, finished: tuple[Pilot, ...], no_loss: str) -> Forecast:
    """Predict the time, the memory and the loss of the run from the measurements."""
    loss = at_most = None
    if losses := [pilot.loss for pilot in finished]:
        lengths, no_bound = [pilot.iterations for pilot in finished], fit.no_bound_reason(losses)
        no_loss = no_bound or no_loss or fit.refusal(losses, pilots.ngram_loss(run.config))
        loss = None if no_loss else fit.predict(lengths, losses, run.config.max_iters)
        at_most = losses[-1] if no_loss and not no_bound else None
    mb = costs.memory / 1e6
    memory = Interval(mb, mb * (1 - cost.MEMORY_ERROR), mb * (1 + cost.MEMORY_ERROR)) if mb else None
    return Forecast(cost.seconds(run.config, costs), memory, loss, at_most, no_loss, costs.start, cost.unsteady(costs))


def store(run: Planned, costs: Costs, finished: tuple[Pilot, ...], forecast: Forecast | None = None) -> None:
    """Write plan.json. Errors: TinyGPTError for a full disk."""
    content = run.record | {"costs": costs._asdict(), "pilots": [pilot._asdict() for pilot in finished]}
    with replacing(run.out / FILE, "free some space and run the command again") as file:
        file.write(strict_json(content | (forecast.as_json() if forecast else {})).encode() + b"\n")


def show_costs(run: Planned, costs: Costs) -> None:
    """Print what each part of the run costs, according to the time pilot."""
    parts = cost.parts(run.config, costs)
    total = sum(part.seconds for part in parts.values())
    rows = []
    for name, part in parts.items():
        total_time = f"{part.seconds:.1f} s" if part.seconds < 90 else duration(part.seconds)
        rows.append((f"{name}:", part.times, 1000 * part.each, total_time, part.seconds / total))
    print("\n".join(table({"": "<13", "count": ">9,", "ms each": ">12,.1f", "total": ">12", "share": ">8.0%"}, rows)))
    print(f"disk:        up to {cost.disk(run.config, costs) / 1e6:,.0f} MB in {run.out}")
