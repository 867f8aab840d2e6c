"""`tinygpt doctor --machine`: describe this machine and test it, in less than a minute.

It is for machines on which nobody has run the tests. It calls the commands' own functions in a temporary folder. All
that it prints may be sent to others: it names no user, computer or folder.
"""

import contextlib
import ctypes
import io
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, raise_signal
from typing import Any

import numpy as np
import torch

from tinygpt.base import __version__, device, threads
from tinygpt.base.configs.core import PrepareConfig, SampleConfig, TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint import store
from tinygpt.data.dataset import Dataset
from tinygpt.prepare import prepare
from tinygpt.sample import sample
from tinygpt.train import train
from tinygpt.training.log import read_metrics
from tinygpt.training.start import seconds_per_batch

DATASET = "shakespeare_char"
PRESET = "configs/nanogpt.yaml"
SMALL = [
    *(PRESET, "--n_layer=2", "--n_embd=64", "--block_size=32", "--dropout=0.1", "--learning_rate=5e-3", "--quiet"),
    *("--max_iters=60", "--warmup_iters=5", "--eval_interval=20", "--sample_interval=0", "--compile=False"),
]
# limits for differences of logits; the second in 16 bits or on a GPU, which may use TF32
EXACT = 1e-4
ROUNDED = 5e-2


def check_machine() -> int:
    """Describe the machine, and test each of its devices. Returns 0 if every check passes, else 1."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names.append("cuda")
    if torch.backends.mps.is_available():
        names.append("mps")
    computes = [device.choose(name, "auto") for name in names]
    passed: list[bool] = []
    print(*description(), *(f"device:    {compute.describe()}" for compute in computes), sep="\n", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.chdir(folder):
        for compute in computes:
            check_device(compute, passed)
    print(f"{sum(passed)} of {len(passed)} checks passed. The lines above name no user, computer or folder.")
    return 0 if all(passed) else 1


def description() -> Iterator[str]:
    """Yield lines on this machine and its software. Each system is asked in its own way; what fails is unknown."""
    system = platform.platform(terse=True)
    memory = "unknown memory"
    with contextlib.suppress(Exception):
        if sys.platform == "win32":
            ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes := ctypes.c_uint64()))
            memory = f"{kibibytes.value / 1e9 * 1024:.1f} GB"
        else:
            memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB"
        if sys.platform == "linux":
            system = " ".join((platform.freedesktop_os_release()["PRETTY_NAME"], *platform.libc_ver()))
    yield f"system:    {system}, {platform.machine()}"
    yield f"processor: {device.processor()}"
    yield f"memory:    {memory}; free disk space {shutil.disk_usage('.').free / 1e9:,.1f} GB"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    yield f"software:  tinygpt {__version__}, {versions}"


@contextlib.contextmanager
def finding(passed: list[bool], name: str) -> Iterator[list[Any]]:
    """Report a check. Its body puts into the list whether it passed, and a figure. An error is a failure, too."""
    result: list[Any] = []
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield result
    except Exception as error:  # on an unknown machine anything may fail
        text = (error.strerror or "") if isinstance(error, OSError) else device.first_line(error)  # without the path
        result = [False, f"{type(error).__name__}: {text}".replace(str(Path.home()), "~")]
    print(f"{'OK  ' if result[0] else 'FAIL'}  {name}: {result[1]}", flush=True)  # the next check may crash
    passed.append(result[0])


def check_device(compute: device.Compute, passed: list[bool]) -> None:
    """Run the three commands on a device, resume a run, compare logits, and time training steps."""
    name = str(compute.device)
    args = [f"--device={name}", f"--threads={torch.get_num_threads()}"]
    with finding(passed, f"prepare, train, sample on {name}") as result:
        prepare(parse(PrepareConfig, [DATASET]))
        train(parse(TrainConfig, [*SMALL, *args, f"--out_dir={name}"]))
        sample(parse(SampleConfig, [*args, f"--ckpt={name}", "--max_new_tokens=50", "--seed=1"]))
        losses = [entry["val_loss"] for entry in read_metrics(Path(name)) if entry["kind"] == "eval"]
        result += [losses[-1] < losses[0] - 0.5, f"validation loss {losses[0]:.2f}, then {losses[-1]:.2f}"]
    with finding(passed, f"interrupted and resumed on {name}") as result:
        args += [f"--out_dir={name}-resumed"]
        status = train(parse(TrainConfig, [*SMALL, *args]), interrupt)
        train(parse(TrainConfig, ["--init_from=resume", *args]))
        require_equal(f"{name}/last.pt", f"{name}-resumed/last.pt")
        result += [status == 130, "the same weights, bit for bit"]
    for dtype in dict.fromkeys([torch.float32, compute.dtype]):
        with finding(passed, f"logits on {name} in {str(dtype).removeprefix('torch.')}") as result:
            expected = logits(store.load("cpu").build_model().eval())
            got = logits(store.load("cpu").for_inference(device.Compute(compute.device, dtype, "")))
            difference = float((got - expected).abs().max() / expected.abs().max())
            limit = EXACT if (name, dtype) == ("cpu", torch.float32) else ROUNDED
            figures = f"relative difference {difference:.1e} from plain PyTorch on the CPU (limit {limit:.0e})"
            result += [difference < limit, figures]
    with finding(passed, f"training step of {DATASET} on {name}") as result:
        config = parse(TrainConfig, [PRESET])
        dataset = Dataset("data", DATASET)
        times = {}
        for count in sorted({1, torch.get_num_threads()}):
            torch.set_num_threads(count)
            times[count] = seconds_per_batch(config, dataset, compute)
        result += [True, threads.format_times(times)]


def interrupt(entry: dict[str, Any]) -> None:
    """Send SIGINT to this process at the evaluation of step 20. entry: a line of metrics.jsonl."""
    if entry["kind"] == "eval" and entry["step"] == 20:
        raise_signal(SIGINT)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    """Compute the logits (T + 1, V) of a forward pass over T tokens, and of decoding these tokens with a cache."""
    idx = torch.arange(32, device=model.lm_head.weight.device)[None]
    cache = model.new_cache(1)
    decoded = [model.next_logits(piece, cache) for piece in idx.split(8, dim=1)]
    return torch.cat([model(idx)[0][0], decoded[-1]]).cpu().float()


def require_equal(*paths: str) -> None:
    """Check that two checkpoints have the same weights and optimizer state. Errors: AssertionError."""
    states = [store.load(path) for path in paths]
    torch.testing.assert_close(*([state.model, state.training["optimizer"]] for state in states), rtol=0, atol=0)
