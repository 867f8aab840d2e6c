"""A run: everything that training needs, set up before the first iteration and saved in every checkpoint.

run = open_run(stack, config, compute, starting_point(config), Method())
store.save(run.out / "last.pt", run.checkpoint())
"""

import contextlib
import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from tinygpt import __version__
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config import suggest
from tinygpt.config.files import to_yaml
from tinygpt.config.schema import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import Rows
from tinygpt.errors import TinyGPTError
from tinygpt.files import folder_lock, refuse_link, replacing
from tinygpt.model import GPT
from tinygpt.training import device
from tinygpt.training.build import Computing, build, model_class
from tinygpt.training.log import RunLog, import_wandb
from tinygpt.training.optimizer import Optimizer, load_state, state_of
from tinygpt.training.processes import Processes, join_processes
from tinygpt.training.start import Start, make_model


class Method:
    """What a method of training adds to the loop: plain training nothing, fine-tuning LoRA and replay."""

    def rows(self, dataset: Dataset, start: Start) -> Rows:
        """What batches are drawn from."""
        return dataset.sources["train"]

    def adapt(self, model: GPT, new_tokens: int, start: Start) -> None:
        """Change the model of a new run before it is trained; its last `new_tokens` embeddings are new."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the method, under `training`."""
        return {}

    def before(self, run: "Run") -> None:
        """Look at a run before its first iteration."""

    def improved(self, run: "Run", best: Checkpoint) -> None:
        """Look at a run whose best model, ckpt.pt, was just written."""

    def after(self, run: "Run") -> None:
        """Look at a run that has ended."""


@dataclasses.dataclass
class Progress:
    """What a run knows besides weights and optimizer: saved in every checkpoint."""

    step: int = 0  # iterations done
    best_val_loss: float = float("inf")
    evaluations_without_best: int = 0
    evaluated_at: int = -1
    seconds: float = 0.0  # of all sessions of this run together


@dataclasses.dataclass
class Run:
    """A run, ready to go."""

    config: TrainConfig
    dataset: Dataset
    source: Rows  # what batches are drawn from
    model: GPT  # with its float32 weights: what is saved
    computing: Computing  # the same weights, computing in compute.dtype
    forward: Any  # `computing`, compiled and wrapped for several processes where asked
    optimizer: Optimizer
    method: Method
    compute: device.Compute
    ranks: Processes
    log: RunLog
    progress: Progress
    started: float = dataclasses.field(default_factory=time.perf_counter)
    saved_at: int = -1  # the iteration before which last.pt was written

    @property
    def out(self) -> Path:
        return Path(self.config.out_dir)

    @functools.cached_property
    def width(self) -> int:
        """Tokens per row of a batch."""
        return self.source.width(self.config.block_size)

    @property
    def rows_per_iter(self) -> int:
        """Rows of the global batch."""
        return self.config.batch_size * self.config.gradient_accumulation_steps

    @property
    def resume_command(self) -> str:
        return suggest.resume(vars(self.config), self.out, processes=self.ranks.count)

    @functools.cached_property
    def has_dropout(self) -> bool:
        return any(getattr(module, "dropout", 0) for module in self.model.modules())

    def seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self.started

    def numerics(self) -> dict[str, str]:
        """What the last bits of a result depend on."""
        dtype = str(self.compute.dtype).removeprefix("torch.")
        return {"device": self.compute.device.type, "dtype": dtype, "path": self.path}

    @property
    def path(self) -> str:
        return "plain" if type(self.model) is GPT else "fast"

    def checkpoint(self) -> Checkpoint:
        """All that the run knows, as it is before iteration `progress.step`."""
        progress = dataclasses.replace(self.progress, seconds=self.seconds())
        return Checkpoint(
            model=self.model.state_dict(),
            model_args=dataclasses.asdict(self.model.config),
            config=dataclasses.asdict(self.config) | {"config": list(self.config.config)},
            step=progress.step,
            best_val_loss=progress.best_val_loss,
            tokenizer=self.dataset.tokenizer.to_dict(),
            data={key: str(value) for key, value in self.dataset.meta["sha256"].items()},
            training={
                "progress": dataclasses.asdict(progress),
                "optimizer": state_of(self.optimizer),
                **self.numerics(),
                **self.method.state(),
            },
        )


def open_run(
    stack: contextlib.ExitStack, config: TrainConfig, compute: device.Compute, start: Start, method: Method
) -> Run:
    """Make a run out of its parts; `stack` closes it. What a user can get wrong is found before a file is written."""
    ranks = stack.enter_context(join_processes(config.backend, compute.device))
    dataset = Dataset(config.data_dir, config.dataset)
    dataset.require(config.block_size)
    check_processes(config, ranks)
    for name in ("ckpt.pt", "last.pt", "adapter.pt"):
        refuse_link(Path(config.out_dir) / name)
    model, new_tokens = make_model(config, dataset, start, model_class(config.fast, compute))
    method.adapt(model, new_tokens, start)
    source = method.rows(dataset, start)
    if config.wandb_log:
        import_wandb()
    if ranks.is_main and not config.eval_only:
        stack.enter_context(folder_lock(Path(config.out_dir), "run"))
    ranks.wait()
    run = set_up(config, compute, ranks, dataset, source, model, start, method)
    stack.callback(run.log.close)
    return run


def micro_steps(config: TrainConfig, ranks: Processes) -> int:
    """Forward passes an iteration in each process: never more rows at once than batch_size."""
    return math.ceil(config.gradient_accumulation_steps / ranks.count)


def check_processes(config: TrainConfig, ranks: Processes) -> None:
    """Errors: TinyGPTError if the processes cannot share the global batch evenly."""
    rows = config.batch_size * config.gradient_accumulation_steps
    if rows % (ranks.count * micro_steps(config, ranks)):
        raise TinyGPTError(
            f"{ranks.count} processes cannot share {rows} sequences per iteration evenly "
            f"(batch_size {config.batch_size} x gradient_accumulation_steps {config.gradient_accumulation_steps})",
            f"make gradient_accumulation_steps or batch_size a multiple of {ranks.count}",
        )


def set_up(
    config: TrainConfig,
    compute: device.Compute,
    ranks: Processes,
    dataset: Dataset,
    source: Rows,
    model: GPT,
    start: Start = Start(),
    method: Method = Method(),
) -> Run:
    """Put model, optimizer and log on their device, with the checkpoint's state if resuming; show what was chosen."""
    torch.backends.cuda.matmul.allow_tf32 = True  # where float32 products remain
    if compute.device.type == "cpu":
        device.keep_freed_memory()
    computing, optimizer = build(model.to(compute.device), config, compute)
    computing.train()
    progress, saved = Progress(), start.saved
    if saved:
        progress = Progress(**saved["progress"])
        load_state(optimizer, saved["optimizer"])
    log = RunLog(Path(config.out_dir), ranks.is_main, config.quiet)
    run = Run(
        config, dataset, source, model, computing, computing, optimizer, method, compute, ranks, log, progress,
        saved_at=progress.step if saved else -1,
    )  # fmt: skip
    rows = run.rows_per_iter // (ranks.count * micro_steps(config, ranks))
    example = torch.zeros((rows, run.width), dtype=torch.long, device=compute.device)
    run.forward, compiled = device.compile_model(computing, config.compile, compute, example)
    if ranks.count > 1:
        run.forward = nn.parallel.DistributedDataParallel(run.forward)
    if ranks.is_main and not config.eval_only:
        open_folder(run, start)
    if config.wandb_log and ranks.is_main:
        log.start_wandb(config)
    show_start(run, compiled)
    note_changes(run, saved)
    return run


def note_changes(run: Run, saved: dict[str, Any]) -> None:
    """Say what a resumed run computes differently from here on. Version 0.1 had the fast path alone, unnamed."""
    now = run.numerics()
    for key, earlier in ({"path": "fast"} | saved if saved else {}).items():
        if now.get(key, earlier) != earlier:
            name = "code path" if key == "path" else key
            changed = f"this run has used {name} {earlier} so far; from now on it uses {now[key]}"
            run.log.say(f"note: {changed}, so it is not bit for bit the run without this change", always=True)


def open_folder(run: Run, start: Start) -> None:
    """Write config.yaml and open the log. What an earlier run left in the folder of a new one is removed first."""
    if not start.resuming:
        if (run.out / "last.pt").exists():
            run.log.say(f"note: this run replaces the earlier one in {run.out}; --out_dir=NAME keeps both", always=True)
        for name in ("last.pt", "adapter.pt"):
            (run.out / name).unlink(missing_ok=True)
    with replacing(run.out / "config.yaml") as file:
        file.write(f"# tinygpt {__version__}, torch {torch.__version__}, {run.compute.describe()}\n".encode())
        file.write(to_yaml(run.config).encode())
    run.log.open(run.progress.step, run.progress.evaluated_at)


def show_start(run: Run, compiled: str) -> None:
    """Say what was chosen and what follows from it, before the first iteration."""
    config, model, progress = run.config, run.model, run.progress
    source = run.source
    size = source.describe_rows(run.rows_per_iter, run.width)
    processes = f"; {run.ranks.count} processes" if run.ranks.count > 1 else ""
    shape = f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context {config.block_size}"
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = any(not weight.requires_grad for weight in model.parameters())
    path = "the CPU's fast path (tinygpt/fast)" if run.path == "fast" else "plain PyTorch"
    trained = f"; {trainable:,} of them are trained" if frozen else ""
    passes = config.max_iters * source.passes(run.rows_per_iter, config.block_size)
    for line in (
        f"device:      {run.compute.describe()}{processes}",
        f"computed by: {path}",
        f"compile:     {compiled}",
        f"dataset:     {run.dataset.folder}: {source.describe()}, vocabulary of {run.dataset.tokenizer.vocab_size:,}",
        f"model:       {model.num_params():,} parameters{trained}: {shape}",
        f"iterations:  {config.max_iters:,} of {size}, {passes:.1f} passes over the data",
    ):
        run.log.say(line)
    if progress.step:
        done = f"; nothing is left to do: max_iters is {config.max_iters:,}"
        left = "" if progress.step < config.max_iters else done
        run.log.say(f"resuming after iteration {progress.step:,}{left}", always=True)
