"""A run: its configuration, data, model, optimizer and log, set up before the first iteration.

run = open_run(stack, config, compute, starting_point(config), Method())
store.save(run.out / "last.pt", run.checkpoint())
"""

import contextlib
import dataclasses
import functools
import math
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from tinygpt import __version__, device
from tinygpt.checkpoint.snapshots import FOLDER, snapshots
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config import suggest
from tinygpt.config.fields import LARGEST
from tinygpt.config.files import to_yaml
from tinygpt.config.schema import TrainConfig, run_settings
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import Batches
from tinygpt.errors import TinyGPTError, require_installed
from tinygpt.fast import model_class
from tinygpt.files import folder_lock, refuse_link, remove, replacing
from tinygpt.model import GPT
from tinygpt.training import schedule, watch
from tinygpt.training.build import Computing, build
from tinygpt.training.log import RunLog, read_metrics
from tinygpt.training.optimizer import Optimizer, load_state, state_of
from tinygpt.training.processes import Processes, join_processes
from tinygpt.training.sinks import TensorBoard, Wandb, discard_events, require_packages
from tinygpt.training.start import Start, make_model, new_run_from


class Method:
    """Hooks of a training method. Those of plain training do nothing; fine-tuning adds LoRA and replay."""

    def rows(self, dataset: Dataset, start: Start) -> Batches:
        """Return the rows from which batches are drawn."""
        return dataset.sources["train"]

    def adapt(self, model: GPT, new_tokens: int, start: Start) -> None:
        """Change the model of a new run before it is trained; its last `new_tokens` embeddings are new."""

    def state(self) -> dict[str, Any]:
        """Return the method's state, which checkpoints contain under `training`."""
        return {}

    def before(self, run: "Run") -> None:
        """Called before the first iteration."""

    def improved(self, run: "Run", best: Checkpoint) -> None:
        """Called after a new best model was written to ckpt.pt."""

    def after(self, run: "Run") -> None:
        """Called after the last iteration."""


@dataclasses.dataclass
class Progress:
    """Progress of a run, which every checkpoint contains."""

    step: int = 0  # iterations done
    best_val_loss: float = float("inf")
    evaluations_without_best: int = 0
    evaluated_at: int = -1
    seconds: float = 0.0  # over all sessions of this run
    wandb_id: str = ""  # of this run at Weights & Biases, if it is sent there

    @classmethod
    def restored(cls, saved: dict[str, Any], where: str) -> "Progress":
        """Return that of a run to be resumed. Errors: TinyGPTError if it is missing, or is not that of a run."""
        found, fields = saved.get("progress"), dataclasses.fields(cls)
        values = {field.name: found.get(field.name, field.default) for field in fields if isinstance(found, dict)}
        if values and all(isinstance(values[field.name], (type(field.default), int)) for field in fields):
            made = cls(**values)
            if 0 <= made.step <= LARGEST and 0 <= made.seconds < math.inf and not math.isnan(made.best_val_loss):
                return made
        raise TinyGPTError(f"{where} does not say how far its run was", new_run_from(where))


@dataclasses.dataclass
class Run:
    """The parts of a run."""

    config: TrainConfig
    dataset: Dataset
    source: Batches  # from which batches are drawn
    model: GPT  # with float32 weights, as saved
    computing: Computing  # the same weights, computing in compute.dtype
    forward: Any  # `computing`, compiled or wrapped for several processes if configured
    optimizer: Optimizer
    method: Method
    compute: device.Compute
    ranks: Processes
    log: RunLog
    progress: Progress
    started: float = dataclasses.field(default_factory=time.perf_counter)
    saved_at: int = -1  # the iteration before which last.pt was written
    compiled: bool = False  # by torch.compile

    @property
    def out(self) -> Path:
        return Path(self.config.out_dir)

    @functools.cached_property
    def width(self) -> int:
        """Tokens per row of a batch, at most."""
        return self.source.width(self.config.block_size)

    def width_of(self, at: np.ndarray) -> int:
        """Tokens per row of the batch `at`: those of its longest row, rounded up to a multiple of 8, so that there are
        few different shapes. A compiled model gets a single shape."""
        needed = self.source.width(self.config.block_size, at)
        return self.width if self.compiled else min(self.width, math.ceil(needed / 8) * 8)

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
        """Return the settings on which the last bits of a result depend."""
        dtype = str(self.compute.dtype).removeprefix("torch.")
        return {"device": self.compute.device.type, "dtype": dtype, "path": self.path}

    @property
    def path(self) -> str:
        return "plain" if type(self.model) is GPT else "fast"

    def checkpoint(self) -> Checkpoint:
        """Return the complete state before iteration `progress.step`."""
        progress = dataclasses.replace(self.progress, seconds=self.seconds())
        return Checkpoint(
            model=self.model.state_dict(),
            model_args=dataclasses.asdict(self.model.config),
            config=run_settings(self.config) | {"config": list(self.config.config)},
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
    """Set up a run, which `stack` closes. Mistakes of the user are found before any file is written."""
    ranks = stack.enter_context(join_processes(config.backend, compute.device))
    dataset = Dataset(start.data_dir or config.data_dir, config.dataset)
    check_processes(config, ranks)
    for name in ("ckpt.pt", "last.pt", "adapter.pt", FOLDER):
        refuse_link(Path(config.out_dir) / name)
    if (folder := Path(config.out_dir) / FOLDER).is_file() and config.snapshots:
        raise TinyGPTError(f"{folder} is a file, but is needed as a folder for snapshots", "remove or rename it")
    model, new_tokens = make_model(config, dataset, start, model_class(config.fast, compute))
    method.adapt(model, new_tokens, start)
    source = method.rows(dataset, start)
    if config.group_by_length:
        source = source.grouped()
    require_packages(config)
    if config.watch:
        require_installed("--watch", *watch.PACKAGES, otherwise=", or train without --watch")
    if ranks.is_main and not config.eval_only:
        stack.enter_context(folder_lock(Path(config.out_dir), "run"))
    ranks.wait()
    run = set_up(config, compute, ranks, dataset, source, model, start, method)
    stack.callback(run.log.close)
    return run


def micro_steps(config: TrainConfig, ranks: Processes) -> int:
    """Forward passes per iteration in each process, none with more than batch_size rows."""
    return math.ceil(config.gradient_accumulation_steps / ranks.count)


def check_processes(config: TrainConfig, ranks: Processes) -> None:
    """Check that the processes can share the global batch evenly. Errors: TinyGPTError if not."""
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
    source: Batches,
    model: GPT,
    start: Start = Start(),
    method: Method = Method(),
) -> Run:
    """Build model, optimizer and log, restore the checkpoint's state if resuming, and print the settings."""
    torch.backends.cuda.matmul.allow_tf32 = True  # for matrix products that remain in float32
    if compute.device.type == "cpu":
        device.keep_freed_memory()
    computing, optimizer = build(model.to(compute.device), config, compute)
    computing.train()
    progress, saved = Progress(), start.saved
    if saved:
        progress = Progress.restored(saved, start.where)
        load_state(optimizer, saved["optimizer"])
    log = RunLog(Path(config.out_dir), ranks.is_main, config.quiet)
    run = Run(
        config, dataset, source, model, computing, computing, optimizer, method, compute, ranks, log, progress,
        saved_at=progress.step if saved else -1,
    )  # fmt: skip
    rows = run.rows_per_iter // (ranks.count * micro_steps(config, ranks))
    example = torch.zeros((rows, run.width), dtype=torch.long, device=compute.device)
    run.forward, compiled = device.compile_model(computing, config.compile, compute, example)
    run.compiled = run.forward is not computing
    if ranks.count > 1:
        run.forward = nn.parallel.DistributedDataParallel(run.forward)
    if ranks.is_main and not config.eval_only:
        open_folder(run, start)
    show_start(run, compiled)
    note_changes(run, saved)
    return run


def note_changes(run: Run, saved: dict[str, Any]) -> None:
    """Print what a resumed run computes differently from now on. Version 0.1 had only the fast path."""
    now = run.numerics()
    for key, earlier in ({"path": "fast"} | saved if saved else {}).items():
        if now.get(key, earlier) != earlier:
            name = "code path" if key == "path" else key
            changed = f"this run used {name} {earlier} until now and continues with {now[key]}"
            run.log.say(f"note: {changed}; the result is not bit-identical to that of an unchanged run", always=True)


def open_folder(run: Run, start: Start) -> None:
    """Write config.yaml and open the log. In the folder of a new run, remove the files of an earlier one first."""
    if not start.resuming:
        if any((run.out / name).exists() for name in ("ckpt.pt", "last.pt")):
            run.log.say(f"note: this run replaces the earlier one in {run.out}; --out_dir=NAME keeps both", always=True)
        for name in ("last.pt", "adapter.pt"):
            remove(run.out / name)
        for path in snapshots(run.out).values():
            remove(path)
        for curves in ("train", "val"):
            discard_events(run.out / "tensorboard" / curves)
    with replacing(run.out / "config.yaml") as file:
        file.write(f"# tinygpt {__version__}, torch {torch.__version__}, {run.compute.describe()}\n".encode())
        file.write(to_yaml(run.config).encode())
    run.log.open(run.progress.step, run.progress.evaluated_at)
    if run.config.wandb_log:
        run.progress.wandb_id = run.progress.wandb_id or secrets.token_hex(4)
        # not `add`: a mistake in its settings ends the command
        run.log.sinks["Weights & Biases"] = Wandb(run.config, run.progress.wandb_id)
    if run.config.report_to == "tensorboard":
        started = time.time() - run.seconds()
        run.log.add("TensorBoard", lambda: TensorBoard(run.out, read_metrics(run.out), started))


def show_start(run: Run, compiled: str) -> None:
    """Print the settings of the run and derived figures, before the first iteration."""
    config, model, progress = run.config, run.model, run.progress
    source = run.source
    size = source.describe_rows(run.rows_per_iter, run.width)
    processes = f"; {run.ranks.count} processes" if run.ranks.count > 1 else ""
    shape = f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context {config.block_size}"
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = any(not weight.requires_grad for weight in model.parameters())
    path = "the CPU's fast path (tinygpt/fast)" if run.path == "fast" else "plain PyTorch"
    trained = f", {trainable:,} of them trainable" if frozen else ""
    passes = config.max_iters * source.passes(run.rows_per_iter, config.block_size)
    for line in (
        f"device:      {run.compute.describe()}{processes}",
        f"computed by: {path}",
        f"compile:     {compiled}",
        f"dataset:     {run.dataset.folder}: {source.describe()}, vocabulary of {run.dataset.tokenizer.vocab_size:,}",
        f"model:       {model.num_params():,} parameters{trained}: {shape}",
        f"iterations:  {config.max_iters:,}, each with {size}; {passes:.1f} passes over the data",
        f"optimizer:   {config.optimizer}, {schedule.describe(config)}",
    ):
        run.log.say(line)
    if not config.eval_only and (warning := schedule.note(config)):
        run.log.say(warning, always=True)
    if "TensorBoard" in run.log.sinks:
        run.log.say(f"curves:      {suggest.tensorboard(run.out)}")
    if progress.step:
        done = f"; nothing is left to do: max_iters is {config.max_iters:,}"
        left = "" if progress.step < config.max_iters else done
        run.log.say(f"resuming after iteration {progress.step:,}{left}", always=True)
