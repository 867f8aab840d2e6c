"""Run a command of tinygpt as a process of its own, and measure what it has cost.

A process of its own can be measured, and its memory is free again when it ends. Its progress bar and its errors appear
on the terminal; what it prints goes into a log.

    done = run(Path("out-lab/train.log"), "train", "configs/shakespeare_char.yaml", "--quiet")
    done.seconds, done.memory, done.output
"""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tinygpt.checkpoint.adapter import load_model
from tinygpt.config.schema import LabConfig
from tinygpt.errors import TinyGPTError
from tinygpt.files import writing
from tinygpt.lab.stages import Stage
from tinygpt.lora import adapted_only
from tinygpt.training.log import read_metrics

MEASURED = """
import sys
from pathlib import Path
from tinygpt.cli import main
from tinygpt.lab.processes import peak_memory
status = main(sys.argv[2:])
Path(sys.argv[1]).write_text(str(peak_memory()))
sys.exit(status)
"""


class Done(NamedTuple):
    """A command that has succeeded."""

    output: str  # what it printed
    seconds: float
    memory: int  # peak, in bytes; 0 on Windows, where Python cannot ask


def run(log: Path, *args: str) -> Done:
    """Run `tinygpt ARGS`. Errors: TinyGPTError with the status of the command, which has printed its own error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began, memory = time.monotonic(), log.with_suffix(".memory")
    with writing(log), open(log, "w+", encoding="utf-8") as file:
        group = None if sys.platform == "win32" else 0  # its own, so that Ctrl-C reaches this process alone
        command = [sys.executable, "-X", "utf8", "-c", MEASURED, str(memory), *args]
        child = subprocess.Popen(command, stdout=file, process_group=group)
        try:
            status = child.wait()
        except BaseException:  # Ctrl-C, or SIGTERM: the command is told once, and saves what it can
            if sys.platform != "win32":  # there it has received Ctrl-C already, and could not save when terminated
                child.terminate()
            child.wait()
            raise
        file.seek(0)
        output = file.read()
    if status:
        status = status if status > 0 else 128 - status  # a signal, as shells count it
        raise TinyGPTError(
            f"tinygpt {args[0]} failed with status {status}; its output is in {log}",
            "fix the cause, and run the same command again: the lab continues with this stage",
            status,
        )
    return Done(output, time.monotonic() - began, int(memory.read_text()))


def peak_memory() -> int:
    """The largest amount of memory that this process has used so far, in bytes; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also counts the memory of the process that started this one on Linux
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Trained(NamedTuple):
    """What a training has cost."""

    seconds: float  # evaluations included, over all sessions if it was stopped
    weights: int  # number of those that were trained
    bytes: int  # of the adapter, or of the checkpoint


def trained(out: Path) -> Trained:
    """What the training in a folder has cost."""
    saved = load_model(str(out / "ckpt.pt"))
    weights = adapted_only(saved.model) or saved.model
    tied = saved.model_args["tie_weights"]
    number = sum(weight.numel() for name, weight in weights.items() if not (tied and name == "lm_head.weight"))
    file = next(path for name in ("adapter.pt", "ckpt.pt") if (path := out / name).exists())
    return Trained(max(entry["seconds"] for entry in read_metrics(out)), number, file.stat().st_size)


def train(log: Path, command: str, preset: str, out: Path, *flags: str) -> Trained:
    """Run `tinygpt train` or `finetune` with a preset, or continue a training that was stopped.

    Errors: TinyGPTError as in `run`.
    """
    common = [f"--out_dir={out}", "--init_from=auto", "--device=cpu", "--quiet"]
    run(log, command, f"configs/{preset}.yaml", *common, *flags)
    return trained(out)


def prepared(config: LabConfig, folder: Path, dataset: str) -> Stage:
    """A stage that prepares a dataset, unless it is there."""

    def prepare() -> None:
        if not (Path(config.data_dir) / dataset / "meta.json").exists():
            run(folder / "prepare.log", "prepare", dataset, f"--data_dir={config.data_dir}")

    return Stage(f"prepare {dataset}", 5, prepare)


def require_ngrams() -> None:
    """Errors: TinyGPTError if scikit-learn is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise TinyGPTError("the n-gram baseline needs the package scikit-learn", "pip install 'tinygpt[eval]'")


def require_pretrained(config: LabConfig) -> None:
    """Errors: TinyGPTError if the pretrained model that the command names is missing."""
    if config.pretrained:
        require_model(config.pretrained, "tinygpt import smollm2 --out_dir out-smollm2", "--pretrained")


def require_model(path: str, command: str, flag: str) -> None:
    """Errors: TinyGPTError with the command that makes the model, if there is none."""
    if not any((Path(path) / name).is_file() for name in ("", "ckpt.pt")):
        raise TinyGPTError(f"{flag}={path}: no such model", command)
