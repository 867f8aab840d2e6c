"""Measure tinygpt and nanoGPT on this machine's processor: speed, loss in a given time, memory.

    python scripts/bench.py --nanogpt ../nanoGPT                  # all rows but thirty_times, 30 minutes on two cores
    python scripts/bench.py --nanogpt ../nanoGPT --rows step,flops --dtype float32
    python scripts/bench.py --device=cuda --nanogpt ../nanoGPT    # a GPU instead: scripts/bench_gpu.py
    python scripts/bench.py --quick                               # a test of this script; its figures mean nothing

Without a checkout of nanoGPT only tinygpt is measured, and nanoGPT's training is assumed to take NANOGPT_SECONDS. All
work is done in a temporary folder, with a copy of nanoGPT's files; nothing is downloaded for it. Both programs train
nanoGPT's recipe for a CPU (4 layers, width 128, context 64, batch 12, 2,000 iterations). The method:

- Training rows are measured with `tinygpt train --dtype=bfloat16` and `--dtype=float32` where the processor multiplies
  bfloat16 in hardware, and in float32 alone elsewhere, as on most laptops (`--dtype` chooses). Each row names its
  dtype. nanoGPT computes in float32 on every processor: its train.py and sample.py turn autocast off on a CPU, whatever
  their `dtype` says. So a float32 row compares float32 with float32, and a bfloat16 row compares the two programs as
  each runs by default. `tinygpt sample` also computes in float32 by default.
- A whole command runs in its own process, from start to exit, interpreter and imports included. Its peak memory is
  the kernel's figure, which is never below the memory of this script; so this script imports neither torch nor numpy.
- Steps and generation are measured in two workers that stay loaded, because allocator settings apply to a process. One
  runs the code of nanoGPT's train.py and sample.py, the other that of tinygpt's `loop` and `generate`. They take
  turns, A B A B; the first round is discarded. A ratio is the median of the rounds' ratios.
- Losses are those of `tinygpt eval`: the complete validation split, every character once, in float32. tinygpt's are of
  last.pt, the end of the run; nanoGPT keeps the best model by its own estimate.
- `flops`: the rate of a step's matrix products (three times the forward pass: linear layers, head, attention's two
  products over the full T x T), divided by the rate of 2048^3 products in the same dtype, measured between the rounds.
- `same_time`, `six_times`: as many iterations of the preset as fit into 1 and 6 times the wall time of nanoGPT's
  command, estimated from a run of 150. A bar does not count as met if a run takes more than 1% longer than that.
  `thirty_times`: the record preset, distilled from the model of `six_times`; both together take 30 times the wall time
  of nanoGPT's command. With `--seeds=3`, each of the three rows is the median of three seeds.
- `step_256`, `step_1024`: steps of the recipe's model with longer contexts, as `step`.
- `busy`, `busy_other`: commands beside processes that this script starts and ends, which keep a core busy each. A
  command runs as it is and with one thread, in turn, three times, and once with a thread for each CPU, which is stopped
  after twice the time of one thread and 5 s. The ratio is its time as it is over the better of the other two.
- `pieces`: PIECES names, for each piece of tinygpt/fast, a variant without it and one with it. One worker runs all
  variants in turn, A B C D, D C B A, ..., in short rounds. The row is the least gain; a second table has all gains.
- `to_loss` counts as met only if the run of every seed reaches TARGET_LOSS.
"""

import argparse
import contextlib
import copy
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tinygpt.errors import TinyGPTError

RECIPE = "configs/nanogpt.yaml"
FAST, BEST, RECORD = (f"configs/shakespeare_char_{kind}.yaml" for kind in ("fast", "best", "record"))
NANOGPT_RECIPE = [  # from its README, for a CPU
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=10",
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0",
]  # fmt: skip
# the advice in BEST for a run of a minute or two
SHORT = ["--block_size=128", "--batch_size=16", "--weight_decay=0.1", "--sampling=independent"]
TOO_LONG = 0.01  # relative: a run that takes longer does not meet a bar
NANOGPT_OUT = "nanogpt/out-shakespeare-char"
NANOGPT_SECONDS = 87.0  # its whole training command on two cores with AVX512, used without a checkout
TARGET_LOSS = 1.886  # nanoGPT's own estimate at the end of its recipe
BOTH, EACH = ["bfloat16", "float32"], "each"
A100_LOSS = 1.4697  # nanoGPT's README, 10.65 M parameters on an A100


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table. Its bars are minimum values, or maximum values if `lower`."""

    what: str
    unit: str
    first_bar: float
    goal: float
    lower: bool = False
    dtype: str = ""  # of tinygpt: "float32", EACH of those chosen by --dtype, or "" where there is no computation

    def dtypes(self, asked_for: list[str]) -> list[str]:
        return asked_for if self.dtype == EACH else [self.dtype]


ROWS = {
    "step": Row("step time, same recipe", "ms", 2.0, 3.0, dtype=EACH),
    "step_256": Row("step at context 256, 8 rows", "ms", 2.8, 3.5, dtype=EACH),
    "step_1024": Row("step at context 1,024, 2 rows", "ms", 1.76, 3.0, dtype=EACH),
    "flops": Row("matmul FLOP/s of a step / large products'", "GFLOP/s", 0.45, 0.65, dtype=EACH),
    "to_loss": Row(f"whole command until loss {TARGET_LOSS}", "s", 6, 12, dtype=EACH),
    "same_time": Row("loss in nanoGPT's time", "nats", 1.52, A100_LOSS, lower=True, dtype=EACH),
    "six_times": Row("loss in 6 x that time", "nats", 1.45, 1.40, lower=True, dtype=EACH),
    "thirty_times": Row("loss in 30 x that time, two models", "nats", 1.38, 1.36, lower=True, dtype=EACH),
    "sample_command": Row("sample 10 x 500, whole command", "s", 4, 6, dtype="float32"),
    "sample_batch": Row("10 samples, once loaded", "tokens/s", 10, 30, dtype="float32"),
    "sample_stream": Row("one sample streamed, once loaded", "tokens/s", 4, 10, dtype="float32"),
    "prepare": Row("prepare 56 MB of characters", "s", 8, 20),
    "prepare_memory": Row("peak memory of prepare at 1 GB", "MB", 200, 150, lower=True),
    "help": Row("tinygpt --help", "s", 0.3, 0.15, lower=True),
    "memory": Row("peak memory of training the recipe", "MB", 1, 1, dtype=EACH),
    "busy": Row("training beside 1, 2, 4 busy processes / better of 1 and all threads", "ratio", 1.5, 1.3, lower=True),
    "busy_other": Row(
        "other commands beside 2 busy processes / better of 1 and all threads", "ratio", 2.0, 1.5, lower=True
    ),
    "pieces": Row("least gain of a piece of tinygpt/fast", "ratio", 1.10, 1.50, dtype=EACH),
}

PIECES = [  # of tinygpt/fast: name, measurement, two variants of `tinygpt_worker`, presets
    ("FastSelfAttention alone", ["steps"], "plain", "attention", [RECIPE, FAST]),
    ("FlatWeights and FlatOptimizer alone", ["steps"], "plain", "flat", [RECIPE, FAST]),
    ("all pieces", ["steps"], "plain", "fast", [RECIPE, FAST]),
    ("FastSelfAttention, added last", ["steps"], "flat", "fast", [RECIPE, FAST]),
    ("FlatWeights and FlatOptimizer, added last", ["steps"], "attention", "fast", [RECIPE, FAST]),
    ("Muon in batches, the update alone", ["muon"], "torch.optim.Muon", "Muon", [FAST]),
    ("Decoder, 1 sample", ["decode", 1], "plain", "fast", [RECIPE, FAST]),
    ("Decoder, 10 samples", ["decode", 10], "plain", "fast", [RECIPE, FAST]),
]
UNITS = {"steps": "steps/s", "muon": "updates/s", "decode": "tokens/s"}


@dataclasses.dataclass
class Result:
    """The result of a row in one dtype: the medians of both programs, and the value to compare with the bars."""

    theirs: float | None
    ours: float
    value: float | None
    raw: dict[str, Any]
    note: str = ""
    counts: bool = True  # False: the row's condition was not met, so no bar is


@dataclasses.dataclass
class Command:
    """A finished process; `lines` are (seconds since its start, text)."""

    wall: float
    peak_mb: float
    lines: list[tuple[float, str]]

    def curve(self) -> list[tuple[float, float]]:
        """Parse (seconds, validation loss) of each evaluation, which both programs print in the same format."""
        found = ((at, re.match(r"step +[\d,]+: .*val loss ([\d.]+)", line)) for at, line in self.lines)
        return [(round(at, 3), float(match[1])) for at, match in found if match]


def run(args: list[str], cwd: Path, limit: float = 0, **variables: str) -> Command:
    """Run a command to its end, or kill it after `limit` seconds. Errors: RuntimeError with the last lines of its
    output."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    env |= {"PYTHONUNBUFFERED": "1"} | variables
    lines, start = [], time.perf_counter()
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(args, cwd=cwd, env=env, **pipes) as process, contextlib.ExitStack() as stack:
        assert process.stdout is not None
        if limit:
            timer = threading.Timer(limit, process.terminate)  # a lab ends its own children then
            timer.start()
            stack.callback(timer.cancel)
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line.rstrip()))
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not (limit and wall >= limit):
        end = "\n".join(line for _, line in lines[-6:])
        raise RuntimeError(f"{' '.join(args[1:4])} ... ended with {process.returncode}:\n{end}")
    return Command(wall, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024), lines)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` cores busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ---- workers: processes that stay loaded --------------------------------------------------------------------------


def nanogpt_batch(dataset: str, block_size: int, batch_size: int) -> Any:
    """Draw a batch as nanoGPT's train.py does: inputs and targets, int64 (batch_size, block_size)."""
    import numpy as np
    import torch

    data = np.memmap(f"data/{dataset}/train.bin", dtype=np.uint16, mode="r")
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in ix])
    return x, y


def nanogpt_worker() -> dict[str, Callable[..., Any]]:
    """nanoGPT's functions: an iteration of train.py and the generation of sample.py, with model.py of this folder."""
    sys.path.insert(0, os.getcwd())
    import torch
    from model import GPT, GPTConfig

    @functools.cache
    def training(block_size: int) -> tuple[Any, Any]:
        torch.manual_seed(1337)
        shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": block_size, "dropout": 0.0, "vocab_size": 65}
        model = GPT(GPTConfig(bias=False, **shape))
        return model, model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def steps(count: int, block_size: int, batch_size: int) -> float:
        model, optimizer = training(block_size)
        get_batch = functools.partial(nanogpt_batch, "shakespeare_char", block_size, batch_size)
        ahead = [get_batch()]  # nanoGPT's loop draws the next batch between the forward and the backward pass
        start = time.perf_counter()
        for step in range(count):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            _, loss = model(*ahead.pop())
            ahead.append(get_batch())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 10 == 0:
                loss.item()
        return (time.perf_counter() - start) / count * 1e3

    @functools.cache
    def trained() -> Any:
        saved = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu")
        trained = GPT(GPTConfig(**saved["model_args"]))
        trained.load_state_dict(saved["model"])
        return trained.eval()

    @torch.no_grad()
    def sample(samples: int, tokens: int) -> float:
        newline, generator = torch.zeros((1, 1), dtype=torch.long), trained()
        start = time.perf_counter()
        for _ in range(samples):
            generator.generate(newline, tokens, temperature=0.8, top_k=200)[0].tolist()
        return samples * tokens / (time.perf_counter() - start)

    return {"steps": steps, "sample": sample}


def tinygpt_worker(dtype: str) -> dict[str, Callable[..., Any]]:
    """tinygpt's functions: a training step in `dtype`, and generation, by the code of the commands."""
    import torch

    from tinygpt import device, sample
    from tinygpt.checkpoint.store import load, tokenizer_of
    from tinygpt.config.parse import parse
    from tinygpt.config.schema import SampleConfig, TrainConfig
    from tinygpt.data.prompts import encode_prompt
    from tinygpt.device import model_class
    from tinygpt.fast.model import FastGPT
    from tinygpt.fast.optimizer import FlatOptimizer, FlatWeights
    from tinygpt.model import GPT
    from tinygpt.train import batch, forward_backward, require_finite_loss
    from tinygpt.training import run as training_run
    from tinygpt.training.optimizer import TorchOptimizer, build, learning_rate
    from tinygpt.training.start import Start

    compute = device.choose("cpu", dtype)

    def autocast(model: GPT, config: TrainConfig, compute: device.Compute) -> Any:
        return device.Autocast(model, compute), TorchOptimizer(model, config, compute)

    def flat(model: GPT, config: TrainConfig, compute: device.Compute) -> Any:
        weights = FlatWeights(model, compute.dtype)
        return weights, FlatOptimizer(weights, config)

    variants: dict[str, tuple[type[GPT], Any]] = {  # model, its `build`
        "default": (model_class("auto", compute), build),
        "plain": (GPT, autocast),
        "attention": (FastGPT, autocast),
        "flat": (GPT, flat),
        "fast": (FastGPT, flat),
        "torch.optim.Muon": (GPT, autocast),
        "Muon": (GPT, flat),
    }

    @functools.cache
    def training(preset: str, variant: str, *flags: str) -> training_run.Run:
        """The state of `tinygpt train` before the first iteration. With eval_only it writes no files."""
        config = parse(TrainConfig, [preset, "--device=cpu", f"--dtype={dtype}", "--eval_only", "--quiet", *flags])
        kind, build_variant = variants[variant]
        changes = {"training_class": lambda *_: kind, "build": build_variant}
        with mock.patch.multiple(training_run, **changes):
            return training_run.set_up(contextlib.ExitStack(), Start(config), compute)

    def steps(preset: str, variant: str, count: int, *flags: str) -> float:
        """Measure iterations per second: the body of train.loop, without logging."""
        run = training(preset, variant, *flags)
        start = time.perf_counter()
        for _ in range(count):
            run.optimizer.set_learning_rate(learning_rate(run.progress.step, run.config))
            require_finite_loss(run, *forward_backward(run, *batch(run, run.progress.step)))
            run.optimizer.update()
            run.progress.step += 1
        return count / (time.perf_counter() - start)

    def muon(preset: str, variant: str, count: int) -> float:
        """Measure updates per second of the matrices alone; a learning rate of 0 keeps them unchanged."""
        optimizer: Any = training(preset, variant).optimizer
        if variant == "Muon":
            update = functools.partial(optimizer.muon.step, torch.randn_like(optimizer.muon.weights), lr=0.0)
        else:
            optimizer.set_learning_rate(0.0)
            update = optimizer.optimizers[0].step
            for matrix in optimizer.optimizers[0].param_groups[0]["params"]:
                matrix.grad = torch.randn_like(matrix)
        start = time.perf_counter()
        for _ in range(count):
            update()
        return count / (time.perf_counter() - start)

    @functools.cache
    def untrained(preset: str, variant: str) -> GPT:
        return copy.deepcopy(training(preset, variant).model).to(compute.dtype).eval()

    def decode(preset: str, variant: str, samples: int, count: int) -> float:
        """Measure tokens per second."""
        prompt, choice = torch.zeros((samples, 1), dtype=torch.long), sample.Sampling(temperature=0.8, top_k=200)
        start = time.perf_counter()
        for _ in sample.generate(untrained(preset, variant), prompt, 32 * count, choice):
            pass
        return samples * 32 * count / (time.perf_counter() - start)

    def facts() -> dict[str, Any]:
        run = training(RECIPE, "default")
        config, model = run.config, run.model
        B, T, C = config.batch_size, config.block_size, config.n_embd
        linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))  # the head is one
        flops = 3 * (2 * B * T * linears + config.n_layer * 2 * (2 * B * T * T * C))
        return {"flops": flops, "dtype": str(compute.dtype), "threads": torch.get_num_threads()}

    a, b, c = (torch.randn(2048, 2048).to(compute.dtype) for _ in range(3))

    def large_products(count: int) -> float:
        """Measure GFLOP/s."""
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=c)
        return count * 2 * 2048**3 / (time.perf_counter() - start) / 1e9

    @functools.cache
    def trained(samples: int, tokens: int) -> Any:
        """The state of `tinygpt sample` before the first token."""
        flags = [f"--ckpt=out-recipe-{dtype}", "--device=cpu", f"--num_samples={samples}", f"--max_new_tokens={tokens}"]
        wanted = parse(SampleConfig, flags)
        checkpoint = load(wanted.ckpt)
        tokenizer = tokenizer_of(checkpoint, wanted.ckpt, wanted.data_dir)
        compute = device.choose(wanted.device, "float32" if wanted.dtype == "auto" else wanted.dtype)
        prompt = encode_prompt(wanted.start, tokenizer, False)
        return checkpoint.for_inference(compute), prompt, wanted, tokenizer

    def generated(samples: int, tokens: int) -> float:
        generator, prompt, wanted, tokenizer = trained(samples, tokens)
        start = time.perf_counter()
        idx, choice = torch.tensor([prompt]).expand(samples, -1), sample.Sampling(wanted.temperature, wanted.top_k)
        rows = sample.generate(generator, idx, tokens, choice, tokenizer.vocab_size)
        if samples == 1:
            text = sample.TextStream(tokenizer, [wanted.stop])
            with contextlib.redirect_stdout(io.StringIO()):
                for row in rows:
                    print(text.feed(int(row[0])), end="", flush=True)
        else:
            torch.stack(list(rows), dim=1).tolist()
        return samples * tokens / (time.perf_counter() - start)

    loaded = {"sample": generated, "large_products": large_products, "facts": facts}
    return {"steps": steps, "muon": muon, "decode": decode, **loaded}


def serve(functions_of_worker: Callable[[], dict[str, Callable[..., Any]]]) -> None:
    """Answer requests until stdin ends: for each line of JSON, [name, *arguments], write a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of the programs must not mix with the answers
    functions = functions_of_worker()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(functions[name](*arguments)), file=answers, flush=True)


class Worker:
    """A process that runs `serve`."""

    def __init__(self, kind: str, script: list[str], cwd: Path) -> None:
        self.kind = kind
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the worker)
        self.process = subprocess.Popen(
            [sys.executable, *script],
            cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip

    def ask(self, *request: Any) -> Any:
        """Send a request and return the answer. Errors: RuntimeError with the end of the worker's output."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            raise RuntimeError(f"the {self.kind} worker stopped:\n{self.log.read()[-1000:]}")
        time.sleep(0.02)  # its threads go to sleep before the other side starts
        return json.loads(answer)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


# ---- the rows -------------------------------------------------------------------------------------------------------


class Bench:
    """The measurements, in one folder.

    Several rows need the same training runs. `trainings` keeps them: nanoGPT's as "nanogpt", tinygpt's as NAME-DTYPE.
    """

    def __init__(self, folder: Path, nanogpt: Path | None, quick: bool, nanogpt_runs: int, seeds: range) -> None:
        self.folder, self.quick, self.nanogpt_runs, self.seeds = folder, quick, nanogpt_runs, seeds
        self.has_nanogpt = nanogpt is not None
        self.trainings: dict[str, dict[str, Any]] = {}
        self.workers: dict[tuple[str, str], Worker] = {}
        self.found_rounds: dict[str, dict[str, list[float]]] = {}
        say("preparing Tiny Shakespeare")
        self.tinygpt("prepare", "shakespeare_char")
        self.text = (folder / "data/shakespeare_char/input.txt").read_bytes()
        if nanogpt is not None:
            left_out = shutil.ignore_patterns(".git", "out*", "*.bin", "*.pkl", "input.txt", "*.ipynb", "assets")
            shutil.copytree(nanogpt, folder / "nanogpt", ignore=left_out)
            (folder / "nanogpt/data/shakespeare_char/input.txt").write_bytes(self.text)
            self.nanogpt("data/shakespeare_char/prepare.py")

    def tinygpt(self, *args: str) -> Command:
        return run([sys.executable, "-m", "tinygpt", *args], self.folder)

    def nanogpt(self, *args: str) -> Command:
        return run([sys.executable, *args], self.folder / "nanogpt")

    def worker(self, kind: str, dtype: str = "float32") -> Worker:
        if (kind, dtype) not in self.workers:
            script = [str(Path(__file__).resolve()), "--worker", kind, "--dtype", dtype]
            self.workers[kind, dtype] = Worker(kind, script, self.folder / ("nanogpt" if kind == "nanogpt" else ""))
        return self.workers[kind, dtype]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    # training runs

    def train(self, name: str, preset: str, dtype: str, *flags: str) -> dict[str, Any]:
        """Run the whole command `tinygpt train`, then measure its loss."""
        name = f"{name}-{dtype}"
        short = ["--max_iters=40", "--lr_decay_iters=40", "--eval_interval=20", "--eval_iters=2"] if self.quick else []
        here = ["--device=cpu", f"--dtype={dtype}", f"--out_dir=out-{name}"]
        command = self.tinygpt("train", preset, *here, *short, *flags)
        return self.finished(name, dtype, command, f"out-{name}/last.pt")

    def finished(self, name: str, dtype: str, command: Command, ckpt: str) -> dict[str, Any]:
        output = self.tinygpt("eval", "--ckpt", ckpt, "--dataset=shakespeare_char", "--device=cpu", "--json").lines
        loss = json.loads(next(line for _, line in reversed(output) if line.startswith("{")))["loss"]
        say(f"  {name}: {command.wall:.1f} s, validation loss {loss:.4f} (whole split)")
        sizes = {"wall": command.wall, "peak_mb": command.peak_mb, "loss": loss}
        self.trainings[name] = done = {"dtype": dtype, **sizes, "curve": command.curve()}
        return done

    def theirs(self, index: int = 0) -> dict[str, Any]:
        """Train nanoGPT's recipe with nanoGPT, once per index."""
        name = numbered("nanogpt", index)
        short = ["--max_iters=40", "--eval_interval=20", "--eval_iters=2"] if self.quick else []
        if name not in self.trainings:
            say("  training nanoGPT's recipe with nanoGPT")
            command = self.nanogpt("train.py", *NANOGPT_RECIPE, *short)
            self.finished(name, "float32", command, f"{NANOGPT_OUT}/ckpt.pt")
        return self.trainings[name]

    def recipe(self, dtype: str) -> dict[str, Any]:
        return self.trainings.get(f"recipe-{dtype}") or self.train("recipe", RECIPE, dtype)

    def within(self, name: str, times: float, preset: str, dtype: str, *flags: str, teacher: str = "") -> Result:
        """Train a preset once per seed, for as many iterations as fit into `times` the wall time of nanoGPT's command.

        The row has the median loss. teacher: the row whose model of the same seed is the teacher; its time counts, too.
        """
        reference = self.theirs() if self.has_nanogpt else None
        wall = reference["wall"] if reference else 10 if self.quick else NANOGPT_SECONDS
        budget = wall * (min(times, 2) if self.quick else times)
        teachers = [f"{numbered(teacher, index)}-{dtype}" for index in range(len(self.seeds))] if teacher else []
        if teachers and not self.quick:
            budget -= max(self.trainings[key]["wall"] for key in teachers)
        interval = preset_value(preset, "eval_interval") if times > 1 else 300  # enough points for a curve

        def trained(key: str, index: int, iterations: int, interval: int, *more: str) -> dict[str, Any]:
            own = [f"--seed={self.seeds[index]}", f"--max_iters={iterations}", f"--lr_decay_iters={iterations}"]
            own += [f"--teacher=out-{teachers[index]}/last.pt"] if teachers else []
            done = self.train(key, preset, dtype, *flags, *own, f"--eval_interval={interval}", *more)
            return done | {"iterations": iterations, "interval": interval, "over": done["wall"] / budget - 1}

        pace = trained("pace", 0, 150, 50, "--log_interval=5")
        iterations = iterations_within(budget, pace, self.folder / f"out-pace-{dtype}", interval)
        runs = []
        for index in range(len(self.seeds)):
            for _ in range(1 if self.quick else 2):  # a shared machine slows down and recovers
                say(f"  {iterations} iterations of {preset} should fit into {budget:.0f} s")
                done = trained(numbered(name, index), index, iterations, interval)
                if done["over"] <= TOO_LONG:
                    break
                iterations = int(iterations * 0.97 * budget / done["wall"])
            runs.append(done)
        losses, slowest = [done["loss"] for done in runs], max(runs, key=lambda done: done["wall"])
        in_time = slowest["over"] <= TOO_LONG
        note = f"losses {', '.join(f'{loss:.4f}' for loss in losses)}; " if len(runs) > 1 else ""
        note += f"{slowest['iterations']} iterations, {slowest['wall']:.1f} s of {budget:.1f} s"
        note += ("" if reference else " assumed") + ("" if in_time else f", {slowest['over']:.1%} too long")
        loss = statistics.median(losses)
        return Result(reference["loss"] if reference else None, loss, loss, {"runs": runs}, note, counts=in_time)

    def same_time(self, dtype: str) -> Result:
        return self.within("same_time", 1, BEST, dtype, *SHORT)

    def six_times(self, dtype: str) -> Result:
        return self.within("six_times", 6, BEST, dtype)

    def thirty_times(self, dtype: str) -> Result:
        """Train the teachers as `six_times` does, and then their students in the rest of the time."""
        if f"{numbered('six_times', len(self.seeds) - 1)}-{dtype}" not in self.trainings:
            self.six_times(dtype)
        return self.within("thirty_times", 30, RECORD, dtype, teacher="six_times")

    # one method per row; it gets the dtype if the row is measured in EACH

    def rounds(self, dtype: str) -> dict[str, list[float]]:
        """Measure rounds of nanoGPT's steps, tinygpt's steps and large products, in turn, once per dtype."""
        if dtype in self.found_rounds:
            return self.found_rounds[dtype]
        found: dict[str, list[float]] = {"theirs": [], "ours": [], "products": []}
        nanogpt, tinygpt = self.worker("nanogpt") if self.has_nanogpt else None, self.worker("tinygpt", dtype)
        count, steps = (2, 3) if self.quick else (13, 20)
        for index in range(count + 1):
            theirs = [nanogpt.ask("steps", steps, 64, 12)] if nanogpt else []
            ours = 1e3 / tinygpt.ask("steps", RECIPE, "default", steps)
            products = tinygpt.ask("large_products", 4)
            if index:
                found["theirs"] += theirs
                found["ours"].append(ours)
                found["products"].append(products)
                say(f"  round {index}: {''.join(f'{x:.1f} and ' for x in theirs)}{ours:.1f} ms, {products:.0f} GFLOP/s")
        self.found_rounds[dtype] = found
        return found

    def step(self, dtype: str) -> Result:
        return compared(self.rounds(dtype)["theirs"], self.rounds(dtype)["ours"])

    def flops(self, dtype: str) -> Result:
        facts, rounds = self.worker("tinygpt", dtype).ask("facts"), self.rounds(dtype)
        achieved = [facts["flops"] / ms / 1e6 for ms in rounds["ours"]]
        shares = [rate / product for rate, product in zip(achieved, rounds["products"], strict=True)]
        raw = {"achieved": achieved, "products": rounds["products"], **facts}
        note = f"large products: {statistics.median(rounds['products']):.0f} GFLOP/s"
        return Result(None, statistics.median(achieved), statistics.median(shares), raw, note)

    def step_at(self, block_size: int, batch_size: int, dtype: str) -> Result:
        """Measure steps of the recipe with another context, of both programs in turn."""
        flags, steps = [f"--block_size={block_size}", f"--batch_size={batch_size}"], 2 if self.quick else 10
        ours, theirs = self.worker("tinygpt", dtype), self.worker("nanogpt") if self.has_nanogpt else None
        times: dict[str, list[float]] = {"theirs": [], "ours": []}
        for index in range(2 if self.quick else 10):  # the first round warms up
            their_ms = [theirs.ask("steps", steps, block_size, batch_size)] if theirs else []
            our_ms = 1e3 / ours.ask("steps", RECIPE, "default", steps, *flags)
            if index:
                times["theirs"] += their_ms
                times["ours"].append(our_ms)
        return compared(**times)

    step_256 = functools.partialmethod(step_at, 256, 8)
    step_1024 = functools.partialmethod(step_at, 1024, 2)

    def to_loss(self, dtype: str) -> Result:
        ours, theirs = [], []
        for index in range(max(3, self.nanogpt_runs)):
            if self.has_nanogpt and index < self.nanogpt_runs:
                theirs.append(self.theirs(index))
            if index < 3:
                ours.append(self.train(f"fast-{index}", FAST, dtype, f"--seed={1337 + index}"))
        losses = [training["loss"] for training in ours]
        result = compared([one["wall"] for one in theirs], [one["wall"] for one in ours], pairs=False)
        result.raw |= {"losses": losses, "their_loss": theirs[0]["loss"] if theirs else None}
        result.note = f"losses {', '.join(f'{loss:.4f}' for loss in losses)}"
        result.note += f"; nanoGPT's {theirs[0]['loss']:.4f}" if theirs else ""
        result.counts = max(losses) <= TARGET_LOSS
        return result

    def alternating(self, theirs: Callable[[], float], ours: Callable[[], float], times: int = 3) -> Result:
        their_numbers, our_numbers = [], []
        for _ in range(1 if self.quick else times):
            if self.has_nanogpt:
                their_numbers.append(theirs())
            our_numbers.append(ours())
        return compared(their_numbers, our_numbers)

    def trained_both(self) -> int:
        """Make sure that both programs have a checkpoint. Returns the number of tokens to sample."""
        self.recipe("float32")
        if self.has_nanogpt:
            self.theirs()
        return 50 if self.quick else 500

    def sample_command(self) -> Result:
        flags = ["--num_samples=10", f"--max_new_tokens={self.trained_both()}", "--device=cpu"]
        return self.alternating(
            lambda: self.nanogpt("sample.py", "--out_dir=out-shakespeare-char", "--compile=False", *flags).wall,
            lambda: self.tinygpt("sample", "--ckpt=out-recipe-float32", *flags).wall,
        )

    def sample_loaded(self, samples: int, times: int) -> Result:
        """Measure tokens per second; the ratio is tinygpt's over nanoGPT's."""
        tokens = self.trained_both()
        for kind in ("nanogpt", "tinygpt") if self.has_nanogpt else ("tinygpt",):
            self.worker(kind).ask("sample", samples, 20)
        result = self.alternating(
            lambda: self.worker("nanogpt").ask("sample", samples, tokens),
            lambda: self.worker("tinygpt").ask("sample", samples, tokens),
            times,
        )
        result.value = 1 / result.value if result.value else None
        return result

    sample_batch = functools.partialmethod(sample_loaded, 10, 3)
    sample_stream = functools.partialmethod(sample_loaded, 1, 7)

    def write_text(self, path: Path, copies: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for _ in range(copies):
                file.write(self.text)
        return path

    def prepare(self) -> Result:
        text = self.write_text(self.folder / "nanogpt/data/large/input.txt", 2 if self.quick else 50)
        if self.has_nanogpt:
            shutil.copy(self.folder / "nanogpt/data/shakespeare_char/prepare.py", text.parent)
        result = self.alternating(
            lambda: self.nanogpt("data/large/prepare.py").wall,
            lambda: self.tinygpt("prepare", "large", "--input", str(text)).wall,
        )
        shutil.rmtree(text.parent)
        shutil.rmtree(self.folder / "data/large")
        return result

    def prepare_memory(self) -> Result:
        text = self.write_text(self.folder / "huge.txt", 20 if self.quick else round(1e9 / len(self.text)))
        done = self.tinygpt("prepare", "huge", "--input", str(text))
        raw = {"bytes": text.stat().st_size, "wall": done.wall, "peak_mb": done.peak_mb}
        text.unlink()
        shutil.rmtree(self.folder / "data/huge")
        return Result(None, done.peak_mb, done.peak_mb, raw, f"{raw['bytes'] / 1e6:.0f} MB in {done.wall:.1f} s")

    def help(self) -> Result:
        script = Path(sys.executable).parent / "tinygpt"
        command = [str(script)] if script.exists() else [sys.executable, "-m", "tinygpt"]
        walls = [run([*command, "--help"], self.folder).wall for _ in range(2 if self.quick else 9)]
        median = statistics.median(walls)
        return Result(None, median, median, {"ours": walls}, spread(walls))

    def memory(self, dtype: str) -> Result:
        iterations = 20 if self.quick else 200  # both programs evaluate and save a checkpoint on the way
        flags = [f"--max_iters={iterations}", f"--eval_interval={iterations // 2}", "--device=cpu"]
        return self.alternating(
            lambda: self.nanogpt("train.py", *NANOGPT_RECIPE, *flags).peak_mb,
            lambda: self.tinygpt("train", RECIPE, f"--dtype={dtype}", "--out_dir=out-memory", *flags).peak_mb,
            times=1,
        )

    def beside(self, name: str, counts: list[int], seconds: Callable[..., float]) -> list[dict[str, Any]]:
        """Measure a command beside each number of busy processes: as it is, with one thread, and with all threads.

        seconds(limit, **variables): the time of the command, or of its start until it was killed after `limit`.
        """
        cores, found = str(os.cpu_count()), []
        for count in counts:
            with busy_processes(count):
                every, times = [], {"auto": list[float](), "one": list[float]()}
                for index in range(1 if self.quick else 3):
                    times["auto"].append(seconds(0))
                    times["one"].append(seconds(0, OMP_NUM_THREADS="1"))
                    if index == 0:  # once: a run that takes much longer than with one thread does not count
                        every.append(seconds(2 * times["one"][0] + 5, OMP_NUM_THREADS=cores))
            medians = {name: statistics.median(values) for name, values in (times | {"all": every}).items()}
            ratio = medians["auto"] / min(medians["one"], medians["all"])
            say(f"  {name} beside {count}: {', '.join(f'{key} {value:.1f} s' for key, value in medians.items())}")
            found.append({"command": name, "busy": count, **medians, "ratio": ratio, "raw": times})
        return found

    def busy_result(self, found: list[dict[str, Any]]) -> Result:
        worst = max(found, key=lambda one: one["ratio"])
        note = f"{worst['command']} beside {worst['busy']}"
        return Result(None, worst["ratio"], worst["ratio"], {"busy": found}, note)

    def command_seconds(self, *args: str) -> Callable[..., float]:
        def seconds(limit: float, **variables: str) -> float:
            shutil.rmtree(self.folder / "out-lab", ignore_errors=True)  # finished stages would be kept
            return run([sys.executable, "-m", "tinygpt", *args], self.folder, limit, **variables).wall

        return seconds

    def busy(self) -> Result:
        iterations = 10 if self.quick else 150
        flags = [f"--max_iters={iterations}", f"--eval_interval={iterations}", "--eval_iters=5", "--device=cpu"]
        train = self.command_seconds("train", RECIPE, *flags, "--out_dir=out-busy")
        return self.busy_result(self.beside(f"train, {iterations} iterations", [2] if self.quick else [1, 2, 4], train))

    def busy_other(self) -> Result:
        self.recipe("float32")
        self.tinygpt("prepare", "transactions", "--synthetic")
        ckpt, iterations = "--ckpt=out-recipe-float32", 5 if self.quick else 60
        flags = [f"--max_iters={iterations}", f"--eval_interval={iterations}", "--eval_iters=5", "--out_dir=out-tuned"]
        commands = {
            "finetune": ["finetune", "configs/finetune_transactions.yaml", ckpt, *flags],
            "sample 10 x 500": ["sample", ckpt, "--num_samples=10", f"--max_new_tokens={50 if self.quick else 500}"],
            "eval": ["eval", ckpt, "--dataset=shakespeare_char"],
        }
        if not self.quick:
            commands["lab labels --quick"] = ["lab", "labels", "--quick", "--out_dir=out-lab"]
        found = []
        for name, command in commands.items():
            found += self.beside(name, [2], self.command_seconds(*command))
        return self.busy_result(found + self.beside("serve, 10 requests", [2], self.serve_seconds))

    def serve_seconds(self, limit: float, **variables: str) -> float:
        """Measure the seconds that a server, once started, takes for ten requests of 100 tokens."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "tinygpt", "serve", "--ckpt=out-recipe-float32", f"--port={url[17:]}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | variables
        with subprocess.Popen(command, cwd=self.folder, env=env, **quiet) as server:
            try:
                while server.poll() is None:
                    with contextlib.suppress(OSError):
                        urllib.request.urlopen(f"{url}/health").close()
                        break
                    time.sleep(0.1)
                start, asked = time.perf_counter(), json.dumps({"prompt": "ROMEO:", "max_tokens": 100}).encode()
                for _ in range(10):
                    kind = {"Content-Type": "application/json"}
                    request = urllib.request.Request(f"{url}/v1/completions", asked, kind)
                    urllib.request.urlopen(request).read()
                    if limit and time.perf_counter() - start > limit:
                        break
                return time.perf_counter() - start
            finally:
                server.kill()

    def pieces(self, dtype: str) -> Result:
        worker, gains = self.worker("tinygpt", dtype), []
        count, size = (2, 1) if self.quick else (40, 3)
        for preset in (RECIPE, FAST):
            pieces = [piece for piece in PIECES if preset in piece[-1]]
            pairs = [[(name, preset, variant, *more) for variant in pair] for _, (name, *more), *pair, _ in pieces]
            speeds: dict[tuple[Any, ...], list[float]] = {request: [] for pair in pairs for request in pair}
            for index in range(count + 1):
                for request in list(speeds)[:: 1 if index % 2 else -1]:
                    speeds[request].append(worker.ask(*request, size))
            for (what, *_), pair in zip(pieces, pairs, strict=True):
                without, having = (speeds[request][1:] for request in pair)  # the first round warms up
                ratios = [b / a for a, b in zip(without, having, strict=True)]
                gains.append(
                    {"preset": Path(preset).stem, "piece": what, "unit": UNITS[pair[0][0]], "without": without}
                    | {"with": having, "ratio": statistics.median(ratios), "quartiles": statistics.quantiles(ratios)}
                )
        least = min(gains, key=lambda gain: gain["ratio"])
        note = f"{least['piece']}, {least['preset']}"
        return Result(None, least["ratio"], least["ratio"], {"pieces": gains}, note)


def compared(theirs: list[float], ours: list[float], pairs: bool = True) -> Result:
    """Compute both programs' medians, and that of the rounds' ratios theirs / ours, or without `pairs` the ratio of the
    medians."""
    median, raw = statistics.median, {"theirs": theirs, "ours": ours}
    if not theirs:
        return Result(None, median(ours), None, raw, spread(ours))
    ratio = median(a / b for a, b in zip(theirs, ours, strict=True)) if pairs else median(theirs) / median(ours)
    return Result(median(theirs), median(ours), ratio, raw, f"{spread(theirs)} and {spread(ours)}")


def spread(numbers: list[float]) -> str:
    return f"{shown(min(numbers))}..{shown(max(numbers))}"


def numbered(name: str, index: int) -> str:
    """Name the run of a seed: NAME, NAME-2, NAME-3, ..."""
    return name + (f"-{index + 1}" if index else "")


def preset_value(name: str, key: str) -> int:
    """Read a number in a preset of tinygpt, or its default."""
    from tinygpt.config.parse import find_config, read_config
    from tinygpt.config.schema import TrainConfig

    return int(read_config(find_config(name)).get(key, getattr(TrainConfig, key)))


def iterations_within(budget: float, done: dict[str, Any], out: Path, interval: int) -> int:
    """How many iterations fit into `budget` seconds, by the pace of a finished run (its metrics are in `out`).

    wall = start-up + iterations x step + evaluations x evaluation, with a reserve of 4%.
    """
    from tinygpt.training.log import read_metrics

    plain: list[tuple[float, int]] = []  # (seconds, iterations) between two lines of training ...
    broken: list[tuple[float, int]] = []  # ... with an evaluation in between
    last, evaluated = None, False
    for entry in read_metrics(out):
        if entry["kind"] == "train":
            if last:
                between = entry["seconds"] - last["seconds"], entry["step"] - last["step"]
                (broken if evaluated else plain).append(between)
            last, evaluated = entry, False
        evaluated |= entry["kind"] == "eval"
    step = sum(seconds for seconds, _ in plain[1:]) / sum(count for _, count in plain[1:])
    evaluation = max(0.0, statistics.median(seconds - count * step for seconds, count in broken)) if broken else 0.0

    def seconds(iterations: int, interval: int) -> float:
        return iterations * step + (-(-iterations // interval) + 1) * evaluation

    start_up = done["wall"] - seconds(done["iterations"], done["interval"])
    fits = max(1, int(budget / step))
    while fits > 1 and start_up + seconds(fits, interval) > 0.96 * budget:
        fits -= 1
    return fits


def chosen_dtypes(wanted: str, folder: Path) -> list[str]:
    """Return the dtypes of --dtype; `auto` asks tinygpt whether it would choose bfloat16 on this processor."""
    if wanted != "auto":
        return BOTH if wanted == "both" else [wanted]
    code = "from tinygpt import device; print(device.choose('cpu', 'auto').dtype)"
    _, chosen = run([sys.executable, "-c", code], folder).lines[-1]
    return BOTH if chosen == "torch.bfloat16" else ["float32"]


# ---- output ----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def shown(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.3g}"


def table(results: dict[tuple[str, str], Result]) -> Iterator[str]:
    """Format the main table in Markdown; `results` has the keys (row, tinygpt's dtype)."""
    lines = [
        ["row", "dtype", "unit", "nanoGPT", "tinygpt", "ratio or value", "first bar", "goal", "", "spread, remarks"]
    ]
    for (name, dtype), result in results.items():
        row, value = ROWS[name], result.value
        loss = row.unit == "nats"
        numbers = [f"{x:.4f}" if loss and x is not None else shown(x) for x in (result.theirs, result.ours, value)]
        bars = [str(row.first_bar), str(row.goal), verdict(row, result)]
        lines.append([row.what, dtype, row.unit, *numbers, *bars, result.note])
    yield from markdown(lines)


def pieces_table(results: dict[tuple[str, str], Result]) -> Iterator[str]:
    """Format the table of the pieces in Markdown: medians of all rounds, median of the rounds' ratios, quartiles."""
    lines = [["piece of tinygpt/fast", "preset", "dtype", "unit", "without", "with", "ratio", "quartiles"]]
    for (_, dtype), result in results.items():
        for gain in result.raw.get("pieces", []):
            medians = [shown(statistics.median(gain[side])) for side in ("without", "with")]
            ratios = [f"{gain['ratio']:.2f}", f"{gain['quartiles'][0]:.2f}..{gain['quartiles'][2]:.2f}"]
            lines.append([gain["piece"], gain["preset"], dtype, gain["unit"], *medians, *ratios])
    return markdown(lines) if len(lines) > 1 else iter(())


def busy_table(results: dict[tuple[str, str], Result]) -> Iterator[str]:
    """Format the table of the commands next to busy processes in Markdown, in seconds."""
    lines = [["command", "busy processes", "as it is, s", "one thread, s", "all threads, s", "ratio to the better"]]
    for result in results.values():
        for one in result.raw.get("busy", []):
            seconds = [shown(one[key]) for key in ("auto", "one", "all")]
            lines.append([one["command"], str(one["busy"]), *seconds, f"{one['ratio']:.2f}"])
    return markdown(lines) if len(lines) > 1 else iter(())


def markdown(lines: list[list[str]]) -> Iterator[str]:
    """Format a table in Markdown with aligned columns; the first line is the heading."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for index, line in enumerate(lines):
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        if index == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def verdict(row: Row, result: Result) -> str:
    if result.value is None:
        return "not compared"
    sign = -1 if row.lower else 1
    met = [result.counts and sign * result.value >= sign * bar for bar in (row.first_bar, row.goal)]
    return "goal met" if met[1] else "first bar met" if met[0] else "missed"


def machine(nanogpt: Path | None) -> dict[str, Any]:
    """Return processor, memory, versions and date."""
    cpu_info = Path("/proc/cpuinfo")
    info = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", cpu_info.read_text(), re.MULTILINE)) if cpu_info.exists() else {}
    features = info.get("flags", "").split()
    git = ["git", "-C", str(nanogpt), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if nanogpt else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cores": cores,
        "bfloat16": [flag for flag in features if "bf16" in flag],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", "numpy", "tinygpt")},
        "nanogpt": commit,
        "date": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 2),
    }


def described(about: dict[str, Any]) -> str:
    bfloat16 = " with bfloat16" if about["bfloat16"] else ""
    return f"{about['cpu']}, {about['cores']} cores{bfloat16}, torch {about['torch']}, {about['date']}"


def draw(path: Path, trainings: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    """Draw validation loss against seconds since each command's start; one panel per dtype, with the same axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = {
        "recipe": "tinygpt, same recipe",
        "fast-curve": "tinygpt, fast preset",
        "same_time": "tinygpt, best preset, short form",
        "six_times": "tinygpt, best preset",
        "thirty_times": "tinygpt, record preset (without its teacher)",
    }
    drawn = {key: training["curve"] for key, training in trainings.items() if training["curve"]}
    panels = {dtype: [key for key in names if f"{key}-{dtype}" in drawn] for dtype in BOTH}
    panels = {dtype: keys for dtype, keys in panels.items() if keys}
    if not panels:
        return
    shown_curves = [drawn[f"{key}-{dtype}"] for dtype, keys in panels.items() for key in keys]
    shown_curves += [drawn["nanogpt"]] if "nanogpt" in drawn else []
    last = max(curve[-1][0] for curve in shown_curves)
    lowest, highest = (pick(curve[-1][1] for curve in shown_curves) for pick in (min, max))
    limits = (1.5, last * 1.15)
    ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if tick < limits[1]]
    size = (8, 0.6 + 4 * len(panels))
    figure, rows = pyplot.subplots(len(panels), 1, figsize=size, layout="constrained", sharex=True, squeeze=False)
    for axes, (dtype, keys) in zip(rows.flat, panels.items(), strict=True):
        curves = {"nanoGPT (float32)": ("C0", drawn["nanogpt"])} if "nanogpt" in drawn else {}
        curves |= {names[key]: (f"C{1 + list(names).index(key)}", drawn[f"{key}-{dtype}"]) for key in keys}
        for name, (color, curve) in curves.items():
            seconds, losses = zip(*curve, strict=True)
            label = f"{name}: {losses[-1]:.2f} at {seconds[-1]:.0f} s"
            axes.plot(seconds, losses, "o-", markersize=3, color=color, label=label)
        axes.legend(loc="upper right", labelcolor="linecolor", frameon=False, fontsize=9)
        axes.axhline(A100_LOSS, color="gray", linewidth=0.8, linestyle=":")
        a100 = f"nanoGPT's 10.65 M parameters on an A100: {A100_LOSS}"
        at = {"xy": (0.01, A100_LOSS), "xycoords": ("axes fraction", "data")}
        axes.annotate(a100, **at, va="bottom", fontsize=8, color="gray")
        axes.set(xscale="log", xlim=limits, ylim=(min(lowest, A100_LOSS) - 0.06, max(2.9, highest + 0.3)))
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_ylabel("validation loss (nats per character)")
        axes.set_title(f"Tiny Shakespeare, tinygpt in {dtype}", fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    rows[-1, 0].set_xlabel("seconds since the start of the command")
    figure.supxlabel(f"{described(about)}; losses as each run printed them", fontsize=7, color="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    say(f"written: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to compare with")
    parser.add_argument("--nanogpt_runs", type=int, default=1, help="number of timed trainings of nanoGPT for to_loss")
    default = ",".join(name for name in ROWS if name != "thirty_times")
    help_text = f"rows to measure, out of {','.join(ROWS)}; the default omits thirty_times, the longest"
    parser.add_argument("--rows", default=default, help=help_text)
    help_text = "number of seeds of the rows same_time, six_times and thirty_times"
    parser.add_argument("--seeds", type=int, default=1, help=help_text)
    help_text = "the first of them; the others follow it (to measure the seeds on several days)"
    parser.add_argument("--first_seed", type=int, default=1337, help=help_text)
    dtypes = "dtype of the training rows; auto: both where the processor has bfloat16 hardware, else float32"
    parser.add_argument("--dtype", choices=("auto", *BOTH, "both"), default="auto", help=dtypes)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this script")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="JSON file for all raw figures")
    parser.add_argument("--picture", type=Path, default=Path("docs/bench.png"), help="PNG file of loss against seconds")
    parser.add_argument("--device", default="cpu", help="cuda: measure a GPU, see scripts/bench_gpu.py --help")
    parser.add_argument("--worker", choices=("nanogpt", "tinygpt"), help=argparse.SUPPRESS)
    args, others = parser.parse_known_args()
    if args.device != "cpu":
        import bench_gpu

        return bench_gpu.main()
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if args.worker:
        serve(nanogpt_worker if args.worker == "nanogpt" else functools.partial(tinygpt_worker, args.dtype))
        return 0
    rows = args.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; the rows are {', '.join(ROWS)}")
    if args.nanogpt and not (args.nanogpt / "train.py").exists():
        parser.error(f"{args.nanogpt} is not a checkout of nanoGPT (it has no train.py)")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install matplotlib")
    return measure(args, rows)


def measure(args: argparse.Namespace, rows: list[str]) -> int:
    """Measure row by row. The figures are written after each row, and a row that fails does not stop the others."""
    about, results, failed = machine(args.nanogpt), {}, []
    say(f"{len(rows)} rows{'' if args.quick else ' (without thirty_times about 20 minutes, in two dtypes 30)'}")
    if about["load"] > 0.5:
        say(f"warning: other programs are running (load {about['load']}), so the figures are not reliable")
    seeds = range(args.first_seed, args.first_seed + max(1, args.seeds))
    with tempfile.TemporaryDirectory(prefix="tinygpt-bench-") as folder:
        bench = Bench(Path(folder), args.nanogpt, args.quick, max(1, args.nanogpt_runs), seeds)
        dtypes = chosen_dtypes(args.dtype, Path(folder))
        parts = [(name, dtype) for name in rows for dtype in ROWS[name].dtypes(dtypes)]
        with contextlib.closing(bench):
            for name, dtype in parts:
                say(f"{name}: {ROWS[name].what}{f' ({dtype})' if dtype else ''}")
                try:
                    results[name, dtype] = getattr(bench, name)(*([dtype] if ROWS[name].dtype == EACH else []))
                except (RuntimeError, TinyGPTError) as error:
                    say(f"  failed: {error}")
                    failed.append(name)
                    continue
                workers = [worker for (kind, _), worker in bench.workers.items() if kind == "tinygpt"]
                if "threads" not in about and workers:
                    about["threads"] = workers[0].ask("facts")["threads"]
                write(args.out, about, results, bench.trainings, args.quick)
            for dtype in [dtype for name, dtype in results if name == "to_loss" and args.picture]:
                say(f"training again for the curves in the picture ({dtype})")
                bench.recipe(dtype)
                # the timed runs evaluate only at their end
                looks = [f"--eval_interval={max(1, preset_value(FAST, 'max_iters') // 10)}", "--eval_iters=20"]
                bench.train("fast-curve", FAST, dtype, *([] if args.quick else looks))
                write(args.out, about, results, bench.trainings, args.quick)
    print("\n".join([*table(results), "", *pieces_table(results), "", *busy_table(results)]))
    print(f"\n{described(about)}{' (quick: the figures mean nothing)' * args.quick}")
    draw(args.picture, bench.trainings, about)
    return 1 if failed else 0


def write(
    path: Path, about: dict[str, Any], results: dict[tuple[str, str], Result], trainings: Any, quick: bool
) -> None:
    rows = [
        {"row": name, **dataclasses.asdict(ROWS[name]), "dtype": dtype}
        | dataclasses.asdict(result)
        | {"verdict": verdict(ROWS[name], result)}
        for (name, dtype), result in results.items()
    ]
    everything = {"quick": quick, "machine": about, "rows": rows, "trainings": trainings}
    path.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
