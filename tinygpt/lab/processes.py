"""The trainings of a lab, as processes of their own, and what a lab requires before its first stage.

cost = train(Path("out-lab/train.log"), "train", "lab_classifier", Path("out-lab/a"), seed=1)
cost.seconds, cost.weights, cost.bytes
"""

from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.checkpoint.adapter import load_model
from tinygpt.config.schema import LabConfig
from tinygpt.errors import TinyGPTError, require_installed
from tinygpt.evaluate.process import run
from tinygpt.lab.stages import Stage
from tinygpt.lora import adapted_only
from tinygpt.training.log import read_metrics


class Trained(NamedTuple):
    """What a training has cost, and what it forgot."""

    seconds: float  # evaluations included, over all sessions if it was stopped
    weights: int  # number of those that were trained
    bytes: int  # of the adapter, or of the checkpoint
    memory: int  # peak of the process, in bytes
    base_losses: dict[str, float]  # on the base model's own data, "before" and "after" a fine-tuning, if measured


def trained(out: Path, memory: int) -> Trained:
    """What the training in a folder has cost."""
    saved = load_model(str(out / "ckpt.pt"))
    weights = adapted_only(saved.model) or saved.model
    tied = saved.model_args["tie_weights"]
    number = sum(weight.numel() for name, weight in weights.items() if not (tied and name == "lm_head.weight"))
    file = next(path for name in ("adapter.pt", "ckpt.pt") if (path := out / name).exists())
    metrics = read_metrics(out)
    losses = {entry["kind"]: entry["base_loss"] for entry in metrics if "base_loss" in entry}
    return Trained(max(entry["seconds"] for entry in metrics), number, file.stat().st_size, memory, losses)


def train(log: Path, command: str, preset: str, out: Path, *flags: str, **settings: Any) -> Trained:
    """Run `tinygpt train` or `finetune` with a preset, or continue a training that was stopped.

    settings: more flags, as values. With max_iters, the model is evaluated at the end only, unless they say otherwise.
    Errors: TinyGPTError as in evaluate/process.py.
    """
    if "max_iters" in settings:
        settings.setdefault("eval_interval", settings["max_iters"])
    common = [f"--out_dir={out}", "--init_from=auto", "--device=cpu", "--quiet"]
    flags += tuple(f"--{key}={value}" for key, value in settings.items())
    return trained(out, run(log, command, f"configs/{preset}.yaml", *common, *flags).memory)


def prepared(config: LabConfig, folder: Path, dataset: str) -> Stage:
    """A stage that prepares a dataset, unless it is there."""

    def prepare() -> None:
        if not (Path(config.data_dir) / dataset / "meta.json").exists():
            run(folder / "prepare.log", "prepare", dataset, f"--data_dir={config.data_dir}")

    return Stage(f"prepare {dataset}", 5, prepare)


def require_ngrams() -> None:
    """Errors: TinyGPTError if scikit-learn is missing."""
    require_installed("the n-gram baseline", "sklearn")


def require_pretrained(config: LabConfig) -> None:
    """Errors: TinyGPTError if the pretrained model that the command names is missing."""
    if config.pretrained:
        require_model(config.pretrained, "tinygpt import smollm2 --out_dir out-smollm2", "--pretrained")


def require_model(path: str, command: str, flag: str) -> None:
    """Errors: TinyGPTError with the command that makes the model, if there is none."""
    if not any((Path(path) / name).is_file() for name in ("", "ckpt.pt")):
        raise TinyGPTError(f"{flag}={path}: no such model", command)
