"""Train a model in a process of its own, and state what the training has cost.

run_in_child(config)
cost_of(Path(config.out_dir)).memory
"""

from pathlib import Path
from typing import NamedTuple

from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.process import run
from tinygpt.checkpoint.lora import adapted_only
from tinygpt.checkpoint.store import load
from tinygpt.training.log import read_metrics
from tinygpt.training.start import without_length


class Cost(NamedTuple):
    """The cost of a training, and the losses that show its forgetting."""

    seconds: float  # evaluations included, over all sessions if it was stopped
    memory: int  # peak of its process, in bytes; 0 if it had no process of its own
    bytes: int  # of the adapter, or of the checkpoint
    weights: int  # number of those that were trained
    base_losses: dict[str, float]  # on the base model's own data, "before" and "after" a fine-tuning, if measured


def run_in_child(config: TrainConfig) -> None:
    """Run the training of a configuration; unless it says otherwise, continue the run in out_dir if there is one.
    Errors: TinyGPTError as above, and for `train` from other weights, which a second start would not continue."""
    command = suggest.training_command(vars(config))
    given = config.given if command == "train" else config.flags  # as in start.load_base
    start = config.init_from if "init_from" in given else "auto"
    values = {key: getattr(config, key) for key in config.flags} | {"out_dir": config.out_dir, "init_from": start}
    if start not in ("scratch", "auto", "resume"):
        if command == "train":
            problem = (
                f"init_from={config.init_from}: a process of its own continues its run, or starts with new weights"
            )
            raise TinyGPTError(problem, "child=False, or finetune(ckpt=...)")
        if (ckpt := values.get("ckpt", start)) != start:
            raise TinyGPTError(f"two base models: ckpt={ckpt} and init_from={start}", "give only ckpt")
        values |= {"ckpt": start, "init_from": "auto"}
    require_same_settings(config, start)
    flags = [f"--{key}={value}" for key, value in values.items()]
    run(log_of(Path(config.out_dir)), command, *config.config, "--quiet", *flags)


def require_same_settings(config: TrainConfig, start: str) -> None:
    """Refuse other settings than those of a run that has ended: it would be returned as it is. Errors: TinyGPTError."""
    path = Path(config.out_dir, "last.pt")
    if start == "scratch" or not path.exists():
        return
    last = load(path)
    given = without_length(config)
    if last.step < (config.max_iters if "max_iters" in given else last.config.get("max_iters", 0)):
        return
    for key in sorted(given & last.config.keys() - {"init_from", "ckpt", "out_dir", "data_dir", "quiet"}):
        if (old := last.config[key]) != getattr(config, key):
            problem = f"the run in {config.out_dir} has ended, with {key}={old}"
            raise TinyGPTError(problem, 'another out_dir, or init_from="scratch"')


def log_of(out: Path) -> Path:
    out = out.absolute()
    return out.with_name(f"{out.name}.log")


def cost_of(out: Path) -> Cost:
    """Read the cost of the training in a run's folder. Errors: TinyGPTError without a model."""
    saved = load(out / "ckpt.pt")
    metrics = read_metrics(out)
    memory = log_of(out).with_suffix(".memory")
    weights = sum(weight.numel() for weight in adapted_only(saved.model).values()) or saved.num_params
    file = next(path for name in ("adapter.pt", "ckpt.pt") if (path := out / name).exists())
    return Cost(
        seconds=max(entry["seconds"] for entry in metrics),
        memory=int(memory.read_text()) if memory.exists() else 0,
        bytes=file.stat().st_size,
        weights=weights,
        base_losses={entry["kind"]: entry["base_loss"] for entry in metrics if "base_loss" in entry},
    )
