"""`tinygpt plan`: the stages of a plan, what it prints, and plan.json.

The time pilot comes first and takes seconds; the loss pilots take about a quarter of the run. Each result is stored in
OUT_DIR/plan.json at once, so a plan that was stopped continues with the pilot it was in. The pilots' own files are in
OUT_DIR/plan, which is removed at the end.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.config import suggest
from tinygpt.config.fields import keys
from tinygpt.config.schema import PlanConfig, TrainConfig, run_settings
from tinygpt.data.dataset import Dataset
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.forecast import FILE, Forecast, read_plan, relevant
from tinygpt.evaluate.process import duration
from tinygpt.files import folder_lock, replacing, strict_json
from tinygpt.plan import cost, fit, pilots
from tinygpt.plan.choose import choose
from tinygpt.training.build import choose_compute, model_class
from tinygpt.training.start import make_model, starting_point


class Planned(NamedTuple):
    """The run that is planned."""

    config: TrainConfig
    flags: list[str]  # those of tinygpt train that the command has
    folder: Path  # of the pilots
    passes: float  # over the training data
    pairs: bool  # the dataset has prompts and responses


class Measured(NamedTuple):
    """What the pilots have measured so far."""

    costs: cost.Costs | None = None
    done: tuple[pilots.Pilot, ...] = ()  # loss pilots


def plan(config: PlanConfig) -> None:
    """Run the command. Errors: TinyGPTError for a run that cannot be planned, and those of the pilots."""
    with contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext():
        run = planned(config)
        choosing = bool(config.budget or config.target)
        found = choose(config, run.config, run.flags) if choosing else make_plan(run, config.time_only).as_json()
    if config.json:
        print(strict_json(found))


def make_plan(run: Planned, time_only: bool) -> Forecast:
    """Measure, predict, store and print."""
    with folder_lock(run.folder, "plan"):
        measured = unfinished(run)
        if cost.busy() > 0.5:
            print("note:        other programs have used the cores in the last minute; the time depends on them")
        if measured.costs is None:
            print(f"time pilot:  {cost.WARM_UP + cost.STEPS} iterations and two evaluations", flush=True)
            measured = Measured(cost.measure(run.config, run.folder))
            store(run, measured)
        show_costs(run, measured)
        no_loss = "--time_only was given" if time_only else pilots.refusal(run.config, run.passes, run.pairs)
        if not no_loss:
            measured = with_loss_pilots(run, measured)
        forecast = predicted(run, measured, no_loss)
        store(run, measured, forecast)
    shutil.rmtree(run.folder, ignore_errors=True)
    print("\n".join(forecast.lines()))
    print(f"stored:      {Path(run.config.out_dir) / FILE}; tinygpt doctor and report compare it with the run")
    print(f"\nnext: {suggest.command('train', *run.config.config, *run.flags)}")
    return forecast


# ---- the run --------------------------------------------------------------------------------------------------------


def planned(config: PlanConfig) -> Planned:
    """Check and describe the run. Errors: TinyGPTError as at the start of the run itself."""
    own = keys(PlanConfig).keys() - keys(TrainConfig).keys()
    run = TrainConfig(**{key: value for key, value in vars(config).items() if key in keys(TrainConfig)})
    run.given = config.given - own  # type: ignore[attr-defined]
    flags = [f"--{key}={getattr(config, key)}" for key in keys(TrainConfig) if key in config.flags]  # type: ignore[attr-defined]
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TinyGPTError("plan predicts runs of one process", "run it without torchrun")
    if run.init_from == "resume" or run.eval_only or not run.max_iters:
        what = "init_from=resume" if run.init_from == "resume" else "eval_only" if run.eval_only else "max_iters=0"
        raise TinyGPTError(f"plan predicts a new run, but {what}", "drop it")
    dataset = Dataset(run.data_dir, run.dataset)
    start, compute = starting_point(run), choose_compute(run, {})
    model, _ = make_model(run, dataset, start, model_class(run.fast, compute))
    source = dataset.sources["train"]
    passes = run.max_iters * source.passes(run.batch_size * run.gradient_accumulation_steps, run.block_size)
    print(f"device:      {compute.describe()}")
    print(f"dataset:     {dataset.folder}: {source.describe()}")
    print(f"model:       {model.num_params():,} parameters")
    print(f"iterations:  {run.max_iters:,}; {passes:.1f} passes over the data")
    return Planned(run, flags, Path(run.out_dir) / "plan", passes, dataset.pairs)


# ---- measuring ------------------------------------------------------------------------------------------------------


def unfinished(run: Planned) -> Measured:
    """What an interrupted plan of the same run has measured."""
    content = read_plan(Path(run.config.out_dir))
    if content is None or "predicted_seconds" in content:
        return Measured()
    if relevant(content["settings"]) != relevant(run_settings(run.config)):
        shutil.rmtree(run.folder, ignore_errors=True)
        return Measured()
    try:
        return Measured(cost.from_json(content["costs"]), tuple(map(pilots.from_json, content["pilots"])))
    except (TypeError, KeyError, ValueError):  # the file was edited
        return Measured()


def with_loss_pilots(run: Planned, measured: Measured) -> Measured:
    """Run the loss pilots that are missing."""
    assert measured.costs is not None
    lengths = [run.config.max_iters // part for part in pilots.PARTS]
    listed = ", ".join(f"{length:,}" for length in lengths[:-1])
    took = pilots.seconds(run.config, measured.costs)
    print(f"loss pilots: runs of {listed} and {lengths[-1]:,} iterations, about {duration(took)}", flush=True)
    for part, length in zip(pilots.PARTS, lengths, strict=True):
        if any(pilot.iterations == length for pilot in measured.done):
            continue
        pilot = pilots.run_pilot(pilots.shortened(run.config, part, run.folder), run.folder / "pilots.log")
        measured = measured._replace(done=(*measured.done, pilot))
        store(run, measured)
        print(f"             {length:>7,} iterations: validation loss {pilot.loss:.4f}", flush=True)
    return measured


def predicted(run: Planned, measured: Measured, no_loss: str) -> Forecast:
    """The predictions of the run."""
    assert measured.costs is not None
    costs = cost.with_blocks(measured.costs, [block for pilot in measured.done for block in pilot.blocks])
    loss = None
    if not no_loss:
        lengths, losses = [pilot.iterations for pilot in measured.done], [pilot.loss for pilot in measured.done]
        no_loss = fit.refusal(losses, pilots.ngram_loss(run.config))
        if not no_loss:
            loss = fit.predict(lengths, losses, run.config.max_iters)
    return Forecast(
        cost.seconds(run.config, costs),
        cost.memory_mb(costs) if costs.memory else None,
        loss,
        no_loss,
        costs.start,
        cost.spread(costs) > cost.UNSTEADY,
    )


def store(run: Planned, measured: Measured, forecast: Forecast | None = None) -> None:
    """Write plan.json. Errors: TinyGPTError for a full disk."""
    assert measured.costs is not None
    content: dict[str, Any] = {"settings": run_settings(run.config), "costs": measured.costs._asdict()}
    content["pilots"] = [pilot._asdict() for pilot in measured.done]
    with replacing(Path(run.config.out_dir) / FILE, "free some space and run the command again") as file:
        file.write(strict_json(content | (forecast.as_json() if forecast else {})).encode() + b"\n")


def show_costs(run: Planned, measured: Measured) -> None:
    """Print what each part of the run costs."""
    assert measured.costs is not None
    found = cost.parts(run.config, measured.costs)
    total = sum(part.seconds for part in found.values())
    print(f"{'':13}{'count':>9}{'ms each':>12}{'total':>12}{'share':>8}")
    for name, part in found.items():
        share = f"{part.seconds / total:.0%}"
        print(f"{name + ':':13}{part.times:>9,}{1000 * part.each:>12,.1f}{duration(part.seconds):>12}{share:>8}")
    disk = cost.disk(run.config, measured.costs)
    print(f"disk:        {disk / 1e6:,.0f} MB in {run.config.out_dir}")
