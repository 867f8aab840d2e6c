"""The loss pilots: complete runs at 1/32, 1/16 and 1/8 of the length, or the first quarter of the run itself.

A run cannot be predicted from its own beginning, because the decay of the learning rate lowers the loss towards the
end. A short run with its own warm-up and decay can be compared with a long one (Hoffmann et al. 2022, appendix B;
Porian et al. 2024).

If the loss cannot be predicted, whatever the pilots show, the beginning of the run still gives an upper bound, because
a run keeps the weights of its best evaluation. A short run with a decay gives a bound only if the run makes few passes
over its data: a long run that overfits before it decays may never reach that loss.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import NamedTuple

from tinygpt.config.schema import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.device import Compute
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.baselines import ngram_baselines
from tinygpt.evaluate.loss import validation_loss
from tinygpt.files import writing
from tinygpt.plan.cost import Block, blocks_of, explaining
from tinygpt.train import train

PARTS = (32, 16, 8)  # the pilots have 1/32, 1/16 and 1/8 of the iterations of the run
BEGINNING = 4  # without a prediction, the only pilot is the first quarter of the run itself, which costs about as much
SHORTEST = 20  # iterations of a pilot; a shorter one is little more than its warm-up
BOUNDED = f"{BEGINNING * SHORTEST} iterations, and an evaluation in the first third of them"
MOST_PASSES = 8  # over the training data; see docs/SCALING.md


class Pilot(NamedTuple):
    """A loss pilot that has ended."""

    iterations: int
    loss: float  # on the complete validation split, in nats per token
    blocks: list[Block]  # for the step time


def refusal(config: TrainConfig, passes: float, pairs: bool) -> str:
    """Return why the loss of this run cannot be predicted, whatever the pilots find; empty if it may be."""
    if config.max_iters < BEGINNING * SHORTEST:
        return f"the run has fewer than {BEGINNING * SHORTEST} iterations, too few for a pilot"
    if config.init_from != "scratch":
        start = f"the run starts from trained weights ({config.init_from})"
        return f"{start}, and the power law is for training from scratch"
    if config.teacher:
        return "the run learns from a teacher, and the power law is for training on text alone"
    if pairs:
        return "the dataset has pairs, and the loss of such a task may fall suddenly, unlike a power law"
    if (length := config.max_iters // PARTS[0]) < SHORTEST:
        least = f"{SHORTEST} (max_iters={PARTS[0] * SHORTEST})"
        return f"the shortest pilot would end at iteration {length}; it needs {least}"
    if passes > MOST_PASSES:
        return f"the run makes {passes:.0f} passes over its data; the fit is for at most {MOST_PASSES}"
    return ""


def ngram_loss(config: TrainConfig) -> float:
    """Compute the loss of the best n-gram baseline on the validation split, in nats per token."""
    dataset = Dataset(config.data_dir, config.dataset)
    train, val = dataset.splits["train"], dataset.splits["val"]
    return min(ngram_baselines(train, val, dataset.tokenizer.vocab_size).values())


def configurations(config: TrainConfig, predictable: bool, folder: Path) -> list[TrainConfig]:
    """Return the pilots of a run, ordered by length: complete short runs if its loss may be predicted, else its own
    beginning; empty if that is too short."""
    if predictable:
        return [shortened(config, part, folder) for part in PARTS]
    length, decay = bounding(config), config.lr_decay_iters or config.max_iters
    return [pilot(config, length, folder, config.warmup_iters, decay)] if length else []


def bounding(config: TrainConfig) -> int:
    """Return the iteration whose validation loss is an upper bound of the run's best one: the last evaluation in the
    first quarter of the run, or else the first one in its first third; 0 if there is none. Only at an evaluation are
    weights kept."""
    if config.max_iters < BEGINNING * SHORTEST:
        return 0
    quarter, interval = config.max_iters // BEGINNING, config.eval_interval
    return quarter - quarter % interval or interval * (3 * interval <= config.max_iters)


def shortened(config: TrainConfig, part: int, folder: Path) -> TrainConfig:
    """Return the configuration with 1/`part` of the iterations, and a schedule that is shortened in proportion."""
    warm_up, decay = round(config.warmup_iters / part), round(config.lr_decay_iters / part)
    return pilot(config, config.max_iters // part, folder, warm_up, decay)


def pilot(config: TrainConfig, length: int, folder: Path, warm_up: int, decay: int) -> TrainConfig:
    """Return the configuration of a pilot with these iterations, or of its continuation if it was stopped."""
    out = folder / f"pilot-{length}"
    return dataclasses.replace(
        config, max_iters=length, eval_interval=length, eval_iters=1, sample_interval=0, checkpoint_interval=0,
        patience=0, snapshots=0, always_save_checkpoint=False, report_to="none", watch=False,
        quiet=False, log_interval=min(config.log_interval, max(1, length // 20)), out_dir=str(out),
        init_from="resume" if (out / "last.pt").exists() else config.init_from, warmup_iters=warm_up,
        lr_decay_iters=decay,
        given=frozenset({"block_size"}),  # may be shorter than that of the weights from which the run starts
    )  # fmt: skip


def run_pilot(config: TrainConfig, log: Path, compute: Compute) -> Pilot:
    """Train a pilot, or continue one that was stopped; what it prints goes into the log. compute: for its loss.
    Errors: TinyGPTError for a pilot that diverges, or that a signal stops."""
    log.parent.mkdir(parents=True, exist_ok=True)  # it was removed, if only plan.json is left of an interrupted plan
    with explaining(config), writing(log), open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        status = train(config)
    if status:
        problem = f"stopped in the pilot of {config.max_iters:,} iterations"
        raise TinyGPTError(problem, "the same command continues it", status)
    loss = validation_loss(Path(config.out_dir, "last.pt"), Dataset(config.data_dir, config.dataset), compute)
    return Pilot(config.max_iters, loss, blocks_of(Path(config.out_dir)))
