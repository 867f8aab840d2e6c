"""The time pilot: a short run of the configuration itself, which shows what each part of a run costs.

It makes WARM_UP + STEPS iterations with two evaluations and their saves, as `tinygpt train` in a process of its own, so
its start and its peak memory are those of the run. All times are differences of the `seconds` in its metrics.jsonl.

    parts(config, measure(config))      # {"start": Part(1, 3.1), "iterations": Part(2000, 0.0129), ...}
"""

import dataclasses
import math
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import to_yaml
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import writing
from tinygpt.base.process import ended_by_sigterm, run
from tinygpt.checkpoint.snapshots import snapshot_steps
from tinygpt.training.log import read_metrics

# iterations; the first ones are slower
WARM_UP = 5
STEPS = 20
SAVE_AT = 15  # the iteration before which last.pt is saved once more
TIME_ERROR = 0.08  # relative, at least
MEMORY_ERROR = 0.05  # relative


class Interval(NamedTuple):
    """A prediction with its lower and upper limit."""

    value: float
    low: float
    high: float


class Costs(NamedTuple):
    """What the parts of a run cost on this machine, in seconds; `memory` in bytes."""

    start: float  # imports, data and model: until metrics.jsonl begins to count
    warm_up: float  # extra time of the first evaluation and the first iterations
    step: float  # one iteration
    evaluation: float  # of both splits
    save: float  # of one checkpoint
    sample: float
    memory: int  # peak of the process; 0 on Windows
    blocks: list[float]  # seconds per iteration in each quarter of the pilot


class Part(NamedTuple):
    """A part of a run: how often it occurs, and how many seconds it takes each time."""

    times: int
    each: float

    @property
    def seconds(self) -> float:
        return self.times * self.each


def measure(config: TrainConfig) -> Costs:
    """Run the time pilot in a temporary folder on the run's disk. Errors: TinyGPTError; the pilot has printed why."""
    length = WARM_UP + STEPS
    disk = next(path for path in Path(config.out_dir).absolute().parents if path.is_dir())
    with writing(disk), ended_by_sigterm(), TemporaryDirectory(prefix=".plan-", dir=disk) as name:
        out = Path(name, "time")
        pilot = dataclasses.replace(
            config, max_iters=length, eval_interval=length, log_interval=1, checkpoint_interval=SAVE_AT,
            sample_interval=length if config.sample_interval else 0, patience=0, snapshots=0,
            always_save_checkpoint=True, context_warmup=0, out_dir=str(out), report_to="none", quiet=True,
        )  # fmt: skip
        settings = Path(name, "time.yaml")
        settings.write_text(to_yaml(pilot), encoding="utf-8")
        try:
            process = run(Path(name, "time.log"), "train", str(settings))
        except TinyGPTError as error:
            problem = f"the time pilot failed with status {error.status}, for the reason above"
            raise TinyGPTError(problem, "fix the cause, and run the same command again", error.status) from None
        return costs_of(read_metrics(out), process.seconds)._replace(memory=process.memory)


def costs_of(entries: list[dict[str, Any]], seconds: float) -> Costs:
    """Derive the costs, without memory, from the metrics of a time pilot and the seconds its process took."""
    length = WARM_UP + STEPS
    seconds_at = {(entry["kind"], entry["step"]): entry["seconds"] for entry in entries}
    durations = {i: seconds_at["train", i] - seconds_at["train", i - 1] for i in range(WARM_UP, length)}
    with_save = durations.pop(SAVE_AT)
    steady = list(durations.values())
    step = statistics.fmean(sorted(steady)[1:-1])  # not the median: batches of pairs differ in length
    save = max(0.0, with_save - step)
    evaluation = seconds_at["eval", length] - seconds_at["train", length - 1]
    sample = seconds_at["sample", length] - seconds_at["eval", length] if ("sample", length) in seconds_at else 0.0
    end = seconds_at["eval", length] + sample + 2 * save
    warm_up = end - length * step - 2 * (evaluation + sample) - 5 * save
    blocks = [statistics.median(steady[i : i + 5]) for i in (0, 5, 10, 14)]
    return Costs(max(0.0, seconds - end), max(0.0, warm_up), step, evaluation, save, sample, 0, blocks)


def parts(config: TrainConfig, costs: Costs) -> dict[str, Part]:
    """Count the parts of the complete run. With `patience` it may end earlier."""
    end = config.max_iters
    interval = config.eval_interval
    extra = end % interval > 0  # the evaluation at the end is not at a multiple of eval_interval
    evaluations = end // interval + 1 + extra
    saves = 2 * evaluations  # ckpt.pt, if each evaluation is the best one so far, and last.pt
    if config.checkpoint_interval:
        between = (end - 1) // config.checkpoint_interval
        saves += between - (end - 1) // math.lcm(config.checkpoint_interval, interval)
    saves += len(snapshot_steps(config.snapshots, end))
    samples = 0
    if config.sample_interval:
        samples = end // math.lcm(interval, config.sample_interval) + 1
        samples += extra and end % config.sample_interval == 0
    run_parts = {
        "start": Part(1, costs.start + costs.warm_up),
        "iterations": Part(end, costs.step),
        "evaluations": Part(evaluations, costs.evaluation),
        "saves": Part(saves, costs.save),
        "samples": Part(samples, costs.sample),
    }
    return {name: part for name, part in run_parts.items() if part.times}


def seconds(config: TrainConfig, costs: Costs) -> Interval:
    """Predict the time of the run. The interval is from the speed of the fastest block of the pilot to that of the
    slowest one, and at least TIME_ERROR to both sides."""
    total = sum(part.seconds for part in parts(config, costs).values())
    fast = total + config.max_iters * (min(costs.blocks) - costs.step)
    slow = total + config.max_iters * (max(costs.blocks) - costs.step)
    return Interval(total, min(fast, total * (1 - TIME_ERROR)), max(slow, total * (1 + TIME_ERROR)))


def memory_mb(costs: Costs) -> Interval | None:
    """Predict the peak memory of the run's process, in 10^6 bytes; None on Windows."""
    mb = costs.memory / 1e6
    return Interval(mb, mb * (1 - MEMORY_ERROR), mb * (1 + MEMORY_ERROR)) if mb else None
