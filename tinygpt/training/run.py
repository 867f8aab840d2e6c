"""A run: its configuration, data, model, optimizer and log, set up before the first iteration.

run = set_up(stack, resolve(stack, config))
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from tinygpt.base import __version__, device, threads
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig, run_settings
from tinygpt.base.configs.parse import to_yaml
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock, refuse_link, remove, rename, replacing
from tinygpt.base.terminal import counted, duration
from tinygpt.checkpoint.snapshots import FOLDER, affordable, snapshots
from tinygpt.checkpoint.store import Checkpoint, load
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import Batches
from tinygpt.fast.model import FastGPT
from tinygpt.model import GPT
from tinygpt.training.child import log_of
from tinygpt.training.distillation import Teacher
from tinygpt.training.log import RunLog, read_metrics
from tinygpt.training.optimizer import AmpModel, Optimizer, build, load_state, schedule_note, state_of
from tinygpt.training.processes import Processes
from tinygpt.training.sharding import gather
from tinygpt.training.start import Start, make_model, new_run_from, row_length
from tinygpt.training.tensorboard import TensorBoard, discard_events, import_summary_writer
from tinygpt.training.tuning import Tuning
from tinygpt.training.watch import Page


@dataclasses.dataclass
class Progress:
    """Progress of a run, which every checkpoint contains."""

    step: int = 0  # iterations done
    best_val_loss: float = float("inf")
    evaluations_without_best: int = 0
    evaluated_at: int = -1
    seconds: float = 0.0  # over all sessions of this run

    @classmethod
    def restored(cls, saved: dict[str, Any], name: str) -> "Progress":
        """Read the progress from a checkpoint's training state. Errors: TinyGPTError if it is missing."""
        try:
            return cls(**{field.name: saved["progress"][field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError):
            raise TinyGPTError(f"{name} does not say how far its run was", new_run_from(name)) from None


@dataclasses.dataclass
class Run:
    """A run: configuration, data, model, optimizer, log and progress."""

    config: TrainConfig
    dataset: Dataset
    source: Batches  # the rows from which batches are drawn
    model: GPT  # with float32 weights, as saved
    amp_model: AmpModel  # the same weights, with matrix products in compute.dtype (automatic mixed precision)
    ddp_model: Any  # amp_model, compiled if configured, in DistributedDataParallel if several processes do not shard it
    optimizer: Optimizer
    compute: device.Compute
    ranks: Processes
    log: RunLog
    progress: Progress
    compiled: bool  # by torch.compile
    tuning: Tuning | None  # None: not a fine-tuning run
    teacher: Teacher | None  # None: no distillation
    tuner: threads.ThreadTuner | None  # None: the number of threads is not changed
    saved_at: int  # iterations done when last.pt was written; -1 before that
    out: Path  # the run's folder
    rows_per_iter: int  # of the global batch
    micro_steps: int  # forward passes per iteration in this process
    longest_row: int  # tokens
    has_dropout: bool
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def row_length(self, row_indices: np.ndarray) -> int:
        """Return the length to which the rows of a batch are padded; for a compiled model that of the longest row."""
        return self.longest_row if self.compiled else row_length(self.source, self.longest_row, row_indices)

    @property
    def resume_command(self) -> str:
        return suggest.resume(vars(self.config), self.out, processes=self.ranks.on_this_node)

    def seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self.started

    def metric(self, kind: str, **values: Any) -> None:
        """Append a line on the current iteration to metrics.jsonl."""
        self.log.metric(kind, self.progress.step, self.seconds(), **values)

    def numeric_settings(self) -> dict[str, str | int]:
        """Return the settings on which the last bits of a result depend, and the fingerprint of its teacher."""
        dtype = str(self.compute.dtype).removeprefix("torch.")
        path = "fast" if isinstance(self.model, FastGPT) else "plain"
        count = {"threads": torch.get_num_threads()} if self.compute.device.type == "cpu" else {}
        teacher = self.teacher.fingerprint if self.teacher else "none"
        return {"device": self.compute.device.type, "dtype": dtype, "path": path, "teacher": teacher, **count}

    def checkpoint(self) -> Checkpoint:
        """Return the complete state after `progress.step` iterations. In a sharded run all processes call this, and
        rank 0 alone gets the tensors."""
        weights = self.model.state_dict(keep_vars=self.config.shard)
        optimizer = state_of(self.optimizer)
        if self.config.shard:
            weights = gather(weights, self.ranks.is_main)
            moments = optimizer["moments"]
            optimizer["moments"] = {name: gather(parts, self.ranks.is_main) for name, parts in moments.items()}
        progress = dataclasses.replace(self.progress, seconds=self.seconds())
        return Checkpoint(
            model=weights,
            model_args=dataclasses.asdict(self.model.config),
            config=run_settings(self.config) | {"config": list(self.config.config)},
            step=progress.step,
            best_val_loss=progress.best_val_loss,
            tokenizer=self.dataset.tokenizer.to_dict(),
            data=self.dataset.meta["sha256"],
            training={
                "progress": dataclasses.asdict(progress),
                "optimizer": optimizer,
                **self.numeric_settings(),
                **(self.tuning.state if self.tuning else {}),
            },
        )


def set_up(stack: contextlib.ExitStack, start: Start) -> Run:
    """Set up a run, which `stack` closes, and print its settings. Errors: TinyGPTError, before any file is written."""
    config = start.config
    compute = start.compute
    ranks = start.ranks
    out = Path(start.config.out_dir)
    check(config)
    model = make_model(start)
    teacher = Teacher.of(start)
    if teacher and not ranks.agree(teacher.fingerprint, compute.device):
        raise TinyGPTError("the processes have different teachers", "give all nodes the same file as --teacher")
    if ranks.is_main and not config.eval_only:
        stack.enter_context(folder_lock(out, "run"))
    ranks.wait()

    amp_model, optimizer = build(model, config, compute)
    amp_model.train()
    progress = Progress()
    if start.saved:
        progress = Progress.restored(start.saved, start.checkpoint_name)
        load_state(optimizer, start.saved["optimizer"])
    micro_steps, rows = ranks.share(config)
    longest_row = start.source.width(config.block_size)
    example = torch.zeros((rows, longest_row), dtype=torch.long, device=compute.device)
    setting = "False" if config.shard else config.compile
    compiled, compile_status = device.compile_model(amp_model, setting, compute, example)
    tuner = thread_tuner(config, amp_model, example) if compiled is amp_model else None
    if tuner and not start.saved:
        tuner.tune(threads.free())
    run = Run(
        config=config,
        dataset=start.dataset,
        source=start.source,
        model=model,
        amp_model=amp_model,
        ddp_model=nn.parallel.DistributedDataParallel(compiled) if ranks.count > 1 and not config.shard else compiled,
        optimizer=optimizer,
        compute=compute,
        ranks=ranks,
        log=RunLog(out, ranks.is_main, config.quiet),
        progress=progress,
        compiled=compiled is not amp_model,
        tuning=start.tuning,
        teacher=teacher,
        tuner=tuner,
        saved_at=progress.step if start.saved else -1,
        out=out,
        rows_per_iter=config.batch_size * config.gradient_accumulation_steps,
        micro_steps=micro_steps,
        longest_row=longest_row,
        has_dropout=any(getattr(module, "dropout", 0) for module in model.modules()),
    )
    stack.callback(run.log.close)
    if config.snapshots < 0:
        tokens = 0 if start.saved or config.eval_only else config.max_iters * run.rows_per_iter * longest_row
        config.snapshots = affordable(model.num_params(), tokens, compute.device.type == "cpu")
    if ranks.is_main and not config.eval_only:
        open_folder(run, bool(start.saved))
    show_start(run, compile_status, start.reason)
    note_changes(run, {} if config.eval_only else start.saved)
    return run


def parts_of_rows(step: int, warmup: int) -> int:
    """Return into how many shorter ones an iteration cuts each row, in a context warm-up of so many iterations."""
    if step >= warmup:
        return 1
    return 4 if step < warmup // 2 else 2


def check(config: TrainConfig) -> None:
    """Check the folder of a run, and what the run needs later. Errors: TinyGPTError."""
    out = Path(config.out_dir)
    for name in ("ckpt.pt", "last.pt", "adapter.pt", "previous.pt", FOLDER):
        refuse_link(out / name)
    if config.report_to == "tensorboard":
        import_summary_writer("report_to=tensorboard", ", or --report_to=none")


def thread_tuner(config: TrainConfig, amp_model: AmpModel, example: torch.Tensor) -> threads.ThreadTuner | None:
    """Make the tuner of a run on a CPU, whose steps are a forward and a backward pass on `example` (B, T); None if the
    number of threads is the user's, or there is only one core."""
    on_cpu = example.device.type == "cpu" and not config.eval_only
    if not on_cpu or threads.is_fixed(config.threads) or threads.cores() == 1:
        return None

    def step() -> None:
        with torch.random.fork_rng(devices=[]):  # dropout draws from it
            loss: Any = amp_model(example, example)[1]
            loss.backward()
        amp_model.zero_grad(set_to_none=True)

    return threads.ThreadTuner(step)


def note_changes(run: Run, saved: dict[str, Any]) -> None:
    """Print what a resumed run computes differently from now on."""
    current = run.numeric_settings()
    names = {"path": "code path", "threads": "number of threads", "teacher": "teacher's fingerprint"}
    for key, earlier in saved.items():
        if current.get(key, earlier) != earlier:
            name = names.get(key, key)
            changed = f"the {name} of this run was {earlier} until now and is {current[key]} from here on"
            effect = "the result is not bit-identical to that of an unchanged run"
            run.log.print_line(f"note: {changed}; {effect}", always=True)


def open_folder(run: Run, resuming: bool) -> None:
    """Write config.yaml and open the log. In the folder of a new run, remove the files of an earlier one first."""
    if not resuming:
        if (run.out / "ckpt.pt").exists():
            run.log.print_line(f"note: {keep_previous(run.out)}", always=True)
        stale = snapshots(run.out).values() if (run.out / FOLDER).exists() else ()
        memory = log_of(run.out).with_suffix(".memory")
        for path in (run.out / "last.pt", run.out / "adapter.pt", memory, *stale):
            remove(path)
        if (run.out / "tensorboard").exists():
            for curves in ("train", "val"):
                discard_events(run.out / "tensorboard" / curves)
    with replacing(run.out / "config.yaml") as file:
        file.write(f"# tinygpt {__version__}, torch {torch.__version__}, {run.compute.describe()}\n".encode())
        file.write(to_yaml(run.config).encode())
    run.log.open(run.progress.step, run.progress.evaluated_at)
    if run.config.report_to == "tensorboard":
        started = time.time() - run.seconds()
        run.log.add_sink(TensorBoard.name, lambda: TensorBoard(run.out, read_metrics(run.out), started))
    if run.config.watch:
        config = run.config
        run.log.add_sink(Page.name, lambda: Page(run.out, config.dataset, config.max_iters, read_metrics(run.out)))
        run.log.print_line(f"watch: {(run.out / 'report.html').absolute().as_uri()}", always=True)


def keep_previous(out: Path) -> str:
    """Keep the model of an earlier run in `out` as previous.pt, unless that was trained longer. Returns a message."""
    best = out / "ckpt.pt"
    previous = out / "previous.pt"
    if not trained_seconds(best) and (out / "last.pt").exists():  # stopped before an evaluation of a trained model
        best = out / "last.pt"
    seconds = trained_seconds(best)
    replaces = f"this run replaces the model in {out}"
    if previous.exists() and seconds < trained_seconds(previous):
        return f"{replaces}, of {duration(seconds)}; {previous}, trained longer, stays"
    rename(best, previous)
    return f"{replaces}, which stays as {previous} (trained for {duration(seconds)})"


def trained_seconds(path: Path) -> float:
    """Return how long the model in a checkpoint was trained; 0 if not at all, or if the file does not say so."""
    with contextlib.suppress(TinyGPTError, KeyError, TypeError, ValueError):
        state = load(path)
        return max(0.0, float(state.training["progress"]["seconds"])) if state.step else 0.0  # 0 also for NaN
    return 0.0


def show_start(run: Run, compile_status: str, reason: str) -> None:
    """Print what is trained, how large, how long and where, before the first iteration. reason: for what a budget has
    fixed."""
    config = run.config
    model = run.model
    progress = run.progress
    source = run.source
    rows = run.rows_per_iter
    size = counted(rows, "example") if run.dataset.pairs else counted(rows * run.longest_row, "token")
    processes = f"; {run.ranks.count} processes" if run.ranks.count > 1 else ""
    if config.shard:
        processes += ", sharded"
    shape = f"{counted(config.n_layer, 'layer')}, {counted(config.n_head, 'head')}, width {config.n_embd}, "
    shape += f"context {config.block_size}"
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = not all(weight.requires_grad for weight in model.parameters())
    shorter = f"; {config.context_warmup:,} in shorter contexts" if config.context_warmup else ""
    trained = f", {trainable:,} of them trainable" if frozen else ""
    passes = config.max_iters * source.passes(rows, config.block_size)
    iterations = f"{counted(config.max_iters, 'iteration')} of {size}"
    taught = f"; {run.teacher.share:.0%} of the loss from the teacher {config.teacher}" if run.teacher else ""
    hardware, _, why = run.compute.describe().partition(": ")
    hardware += "".join(why.partition("; ")[1:])  # the choice of a Mac's device
    compiled = f", compile {compile_status}" if compile_status else ""
    for line in (
        f"dataset:     {run.dataset.folder}: {source.describe()}, vocabulary of {run.dataset.tokenizer.vocab_size:,}",
        f"model:       {model.num_params():,} parameters{trained}: {shape}",
        f"training:    {iterations}: {passes:.1f} passes over the data{shorter}{taught}",
        f"device:      {hardware}{processes}{compiled}; checkpoints in {run.out}",
        *([f"budget:      {reason}"] if reason else []),
    ):
        run.log.print_line(line)
    if not config.eval_only and (warning := schedule_note(config)):
        run.log.print_line(warning, always=True)
    if config.report_to == "tensorboard":
        run.log.print_line(f"curves:      {suggest.tensorboard(run.out)}")
    if progress.step:
        done = progress.step >= config.max_iters
        note = f"; nothing is left to do: max_iters is {config.max_iters:,}" if done else ""
        run.log.print_line(f"resuming after iteration {progress.step:,}{note}", always=True)


def log_divergence(run: Run, subject: str) -> TinyGPTError:
    """Log that a run diverged and return its error. `subject` names the value: "the loss is"."""
    reason = f"{subject} NaN or infinite"
    run.metric("diverged", reason=reason)
    run.log.ended = f"diverged: {reason}"
    # a state saved just before this iteration is intact, but a run resumed from it diverges here again
    usable = 0 <= run.saved_at < run.progress.step
    safe = f"{run.out}/last.pt was saved before that and is intact; resume from it" if usable else "start again"
    hint = f"{safe} with a lower learning_rate than {run.config.learning_rate}, or a longer warmup_iters"
    return TinyGPTError(f"iteration {run.progress.step}: {reason}; training has stopped", hint, status=1)


def out_of_memory(config: TrainConfig, where: object) -> TinyGPTError:
    """Make the error of a run that does not fit into memory."""
    rows = config.batch_size
    steps = 2 * config.gradient_accumulation_steps
    fits = f"--batch_size={max(rows // 2, 1)}, a smaller --block_size or a smaller model"
    if rows % 2 == 0:
        fits = f"the same iteration in smaller pieces: --batch_size={rows // 2} --gradient_accumulation_steps={steps}"
    problem = f"out of memory on {where} with batch_size {rows} x block_size {config.block_size}"
    return TinyGPTError(problem, fits, status=1)
