"""`tinygpt train`: train a GPT on a dataset, and write checkpoints and metrics. Read `loop` first.

Batches and dropout masks are functions of the seed and the iteration; evaluation and samples have random streams of
their own. All other state is in `last.pt`. So a run that is killed at any moment and resumed with --init_from=resume
ends with the same weights, bit for bit, as an uninterrupted one.
"""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tinygpt.base import device, terminal, threads
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.process import peak_memory
from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import save_adapter
from tinygpt.checkpoint.snapshots import save_snapshot, snapshot_steps
from tinygpt.generate import Sampling, generate
from tinygpt.training import compare
from tinygpt.training.budget import within_budget
from tinygpt.training.log import Pace, read_metrics
from tinygpt.training.losses import estimate_losses
from tinygpt.training.optimizer import learning_rate
from tinygpt.training.processes import StopSignal, has_lost_another
from tinygpt.training.run import Run, log_divergence, out_of_memory, parts_of_rows, set_up
from tinygpt.training.sharding import local
from tinygpt.training.start import resolve
from tinygpt.training.verdict import MEANINGS, judge

Callback = Callable[[dict[str, Any]], object]
SAMPLE = 200  # tokens of a sample in the log


def train(config: TrainConfig, callback: Callback | None = None) -> int:
    """Run the command, also `finetune`, and return the exit status. `callback` gets each line of metrics.jsonl; the run
    stops when it returns True, with a status below 128. Errors: TinyGPTError for everything that a user can fix."""
    compute = None
    try:
        with contextlib.ExitStack() as stack:
            start = resolve(stack, config)
            config = start.config
            compute = start.compute
            start = within_budget(start)
            config = start.config
            run = set_up(stack, start)
            del start  # its checkpoint is as large as the run
            stop = stack.enter_context(StopSignal(embedded=callback is not None))
            run.log.callback = lambda entry: stop.ask() if callback and is_true(callback(entry)) else None
            if config.eval_only:
                run.log.start_bar(run.progress.step, config.max_iters)
                evaluate(run)
                return stop.status if stop.embedded else 0
            if run.tuning:
                compare.before(run, run.tuning)
            status = loop(run, stop)
            next_command = run.resume_command if status else finish(run)
            run.log.ended = "stopped" if status else "finished"
            run.log.print_line(f"\nnext: {next_command}", always=True)
            return status or (stop.status if stop.embedded else 0)
    except (RuntimeError, MemoryError) as error:
        if has_lost_another(error):
            problem = "another process of this run has ended, so this one ends, too"
            raise TinyGPTError(problem, "see the message of the process that ended first", status=1) from error
        if not device.is_out_of_memory(error):
            raise
        raise out_of_memory(config, compute.device if compute else "cpu") from None


def is_true(answer: object) -> bool:
    """Return whether a callback returned True; other true values, such as those of `file.write`, do not count."""
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


# ---- the loop ---------------------------------------------------------------------------------------------------


def loop(run: Run, stop: StopSignal) -> int:
    """Train: evaluate, save and step, until max_iters, until patience ends, or until a signal asks to stop.

    Returns the exit status: 0, or 128 plus the number of the signal.
    """
    config = run.config
    progress = run.progress
    first = progress.step
    pace = Pace()
    regular = max(first, config.context_warmup)  # where iterations begin to take their usual time
    snapshot_at = snapshot_steps(config.snapshots, config.max_iters) if config.snapshots else []
    run.log.start_bar(first, config.max_iters)
    x, y, loss_weights = batch(run, first)
    while True:
        if evaluation_due(run):
            best = evaluate(run)
            save(run, *["ckpt.pt", "last.pt"] if best or config.always_save_checkpoint else ["last.pt"])
        elif config.checkpoint_interval and progress.step % config.checkpoint_interval == 0 and progress.step > first:
            save(run, "last.pt")
        if progress.step in snapshot_at:
            keep_snapshot(run)
        if progress.step >= config.max_iters or out_of_patience(run):
            return 0

        began = time.perf_counter()
        rate = learning_rate(progress.step, config)
        run.optimizer.set_learning_rate(rate)
        loss, norm = forward_backward(run, x, y, loss_weights)
        tokens = run.ranks.count * x.numel()
        # the next batch is drawn and copied while a GPU still computes; that of the last iteration is not used
        x, y, loss_weights = batch(run, progress.step + 1)
        logged = progress.step % config.log_interval == 0
        synchronises = logged or run.compute.device.type == "cpu"  # reading a value waits for a GPU's queued kernels
        if synchronises:
            mean_loss, grad_norm = require_finite_loss(run, loss, norm)
        run.optimizer.update()
        seconds = time.perf_counter() - began
        pace.add(tokens, seconds)

        if logged:
            speed = pace.read()
            run.metric("train", loss=mean_loss, lr=rate, grad_norm=grad_norm, tokens_per_second=round(speed))
            run.log.show(loss=f"{mean_loss:.3f}", tokens=f"{speed / 1000:.0f}k/s")
        progress.step += 1
        if run.tuner and run.tuner.due(tokens, seconds):
            tune_threads(run, run.tuner)
        run.log.advance()
        if expected := pace.expected(progress.step - regular, config.max_iters - progress.step):
            run.log.print_line(expected)
        # with several processes this is an all-reduce, so it is done only where they synchronise anyway
        if (synchronises or run.ranks.count == 1) and stop.requested(run.ranks, run.compute.device):
            save(run, "last.pt")
            done = terminal.counted(progress.step, "iteration")
            saved = f"state saved in {run.out}/last.pt"
            run.log.print_line(f"stopped by {stop.cause} after {done}; {saved}", always=True)
            return stop.status


def batch(run: Run, step: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Draw this process's share of the global batch of `step`: inputs and targets, int64 (micro_steps, rows, T), and
    the weight of each micro-step's mean loss.

    A weight is the micro-step's share of all targets, so that the loss is the mean over all targets of the global
    batch, times the number of processes, because DistributedDataParallel averages their gradients. For plain text it is
    1 / micro_steps, as in nanoGPT.
    """
    config = run.config
    ranks = run.ranks
    rows = run.rows_per_iter
    row_indices = run.source.draw(config.seed, step, config.block_size, rows)
    width = run.row_length(row_indices)
    total = int(run.source.targets(row_indices, width).sum())
    own = row_indices[ranks.rank * rows // ranks.count : (ranks.rank + 1) * rows // ranks.count]
    length = width // parts_of_rows(step, config.context_warmup)
    # int64 (2, micro_steps, rows, T): inputs and targets
    pieces = np.stack(run.source.rows(own, width)).reshape(2, run.micro_steps, -1, length)
    loss_weights = [ranks.count * int(np.count_nonzero(targets >= 0)) / total for targets in pieces[1]]
    x, y = device.to_device(torch.from_numpy(pieces), run.compute.device)
    return x, y, loss_weights


def forward_backward(
    run: Run, x: torch.Tensor, y: torch.Tensor, loss_weights: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute and clip the gradient of the share of a global batch that `batch` returns; with a teacher, of its `loss`.

    Returns this process's cross-entropy, whose average over the processes is that of the global batch, and the norm of
    the gradient before clipping.
    """
    loss = torch.zeros((), device=run.compute.device)
    for micro_step in range(len(x)):
        if run.has_dropout:
            seed_dropout(run.config.seed, run.progress.step, micro_step, run.ranks.rank)
        # gradients are averaged at the last micro-step; a sharded run cannot keep complete ones until then
        accumulating = run.ranks.count > 1 and not run.config.shard and micro_step < len(x) - 1
        with run.ddp_model.no_sync() if accumulating else contextlib.nullcontext():
            logits, micro_loss = run.ddp_model(x[micro_step], y[micro_step])
            loss += micro_loss.detach() * loss_weights[micro_step]
            if run.teacher:
                micro_loss = run.teacher.loss(micro_loss, logits, x[micro_step], y[micro_step])
            del logits  # as large as many activations
            run.optimizer.backward(micro_loss * loss_weights[micro_step])
    return loss, run.optimizer.clip()


def tune_threads(run: Run, tuner: threads.ThreadTuner) -> None:
    """Time steps again. If another number of threads is faster, save the state: a resumed run computes with it, too."""
    before = torch.get_num_threads()
    times = tuner.tune()
    if (now := torch.get_num_threads()) != before:
        change = f"on {terminal.counted(now, 'thread')} instead of {before}, faster now"
        note = f"note: from iteration {run.progress.step:,} {change} ({threads.format_times(times)} a step)"
        run.log.print_line(f"{note}; --threads={before} prevents this", always=True)
        save(run, "last.pt")


def require_finite_loss(run: Run, loss: torch.Tensor, norm: torch.Tensor) -> tuple[float, float]:
    """Return the loss of the global batch and the gradient's norm. Errors: TinyGPTError if one is not finite.

    In float16 a norm that is not finite is not an error: the scaler skips that update.
    """
    grad_norm = norm.item()
    mean_loss = run.ranks.sum([loss.item()], run.compute.device)[0] / run.ranks.count
    if not math.isfinite(mean_loss):
        raise log_divergence(run, "the loss is")
    if not (math.isfinite(grad_norm) or run.optimizer.scaler.is_enabled()):
        raise log_divergence(run, "the norm of the gradient is")
    return mean_loss, grad_norm


def seed_dropout(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Make dropout's masks a function of (seed, step, micro_step, rank)."""
    key = np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(key[0]))


# ---- evaluating and saving --------------------------------------------------------------------------------------


def evaluation_due(run: Run) -> bool:
    """Return whether to evaluate now: at multiples of eval_interval and at the end. A run that is resumed from the
    state after an evaluation does not repeat it."""
    config = run.config
    progress = run.progress
    due = progress.step % config.eval_interval == 0 or progress.step >= config.max_iters
    return due and progress.evaluated_at != progress.step


def evaluate(run: Run) -> bool:
    """Log the loss of both splits, and a sample. Returns whether the validation loss is the best so far."""
    config = run.config
    progress = run.progress
    # the untrained model's text comes before the evaluation, which takes longer; but what fully_shard gathers for the
    # first time must not be gathered in inference mode
    sample_first = progress.step == 0 and not config.shard
    if sample_first:
        show_sample(run)
    with run.log.show_activity("evaluating"):
        losses = estimate_losses(run.amp_model, run.dataset, config, run.compute, run.ranks)
    for split, name in (("train", "training"), ("val", "validation")):
        if not math.isfinite(losses[split]):
            raise log_divergence(run, f"the {name} loss is")
    best = losses["val"] < progress.best_val_loss
    mark = " (best)" if best and progress.step else ""
    run.log.print_line(
        f"step {progress.step:>{len(str(config.max_iters))}}: train loss {losses['train']:.4f}, "
        f"val loss {losses['val']:.4f}{mark}",
        always=True,
    )
    error = {"val_loss_se": losses["val_se"]} if math.isfinite(losses["val_se"]) else {}
    memory = round(peak_memory() / 1e6)
    run.metric("eval", train_loss=losses["train"], val_loss=losses["val"], **error, memory_mb=memory)
    run.log.show(val_loss=f"{losses['val']:.2f}")
    progress.evaluated_at = progress.step
    progress.evaluations_without_best = 0 if best else progress.evaluations_without_best + 1
    progress.best_val_loss = min(progress.best_val_loss, losses["val"])
    if not sample_first:
        show_sample(run)
    return best


def save(run: Run, *names: str) -> None:
    """Save the complete state after `progress.step` iterations, as each of `names`: ckpt.pt (the best), last.pt.

    Errors: TinyGPTError if a weight is not finite.
    """
    state = finite_state(run)
    if run.ranks.is_main:
        for name in names:
            store.save(run.out / name, state, run.log.retry_hint)
            if name == "ckpt.pt" and run.tuning and run.tuning.config.lora_rank:
                save_adapter(run.out / "adapter.pt", state, run.tuning.state["base"], run.log.retry_hint)
    run.saved_at = run.progress.step
    run.log.retry_hint = f"resume: {run.resume_command}"


def keep_snapshot(run: Run) -> None:
    """Keep the weights of this step for the report's slider. Errors: as in `save`."""
    state = finite_state(run)
    if run.ranks.is_main:
        save_snapshot(run.out, state, run.log.retry_hint)


def finite_state(run: Run) -> store.Checkpoint:
    """Return the complete state. Errors: TinyGPTError, which is also logged, if a weight is NaN or infinite."""
    finite = torch.stack([local(weight).isfinite().all() for weight in run.model.parameters()]).all()
    if run.ranks.sum([float(not finite)], run.compute.device)[0]:
        raise log_divergence(run, "a weight is")
    return run.checkpoint()


def show_sample(run: Run) -> None:
    """Print and log a short sample if it is due; prompt and seed are the same at every evaluation."""
    due = run.config.sample_interval and run.progress.step % run.config.sample_interval == 0
    if not due or not (run.ranks.is_main or run.config.shard):  # the processes of a sharded run compute together
        return
    tokenizer = run.dataset.tokenizer
    prompt = run.dataset.sources["val"].prompt()
    sampling = Sampling(temperature=0.8, top_k=200, seed=run.config.seed)
    idx = torch.from_numpy(prompt[None]).to(run.compute.device)
    tokens = generate(run.model.eval(), idx, SAMPLE, sampling, tokenizer.vocab_size, exact_window=run.config.shard)
    ids = [int(row[0]) for row in tokens]
    run.model.train()
    text = tokenizer.decode(ids)
    if tokenizer.stop:
        text = text.partition(tokenizer.stop)[0]
    run.metric("sample", text=text, prompt=tokenizer.decode(prompt.tolist()))
    run.log.print_line("".join(f"    | {terminal.without_control(line)}\n" for line in text.splitlines()).rstrip())


def out_of_patience(run: Run) -> bool:
    """Return whether to stop early: `patience` evaluations in a row were not better than the best one."""
    config = run.config
    progress = run.progress
    if not config.patience or progress.evaluations_without_best < config.patience:
        return False
    evaluations = terminal.counted(config.patience, "evaluation")
    run.log.print_line(f"stopped early: {evaluations} without a better validation loss", always=True)
    return True


def finish(run: Run) -> str:
    """Print the best loss with the verdict on the run in a few words. Returns the next command."""
    config = run.config
    source = run.dataset.sources["val"]
    if run.tuning:
        compare.after(run, run.tuning)
    if run.ranks.is_main:
        parameters = run.model.num_params()
        tokens = len(run.dataset.splits["train"])
        verdict = judge(read_metrics(run.out), vars(config), str(run.out), parameters, tokens)
        best = f"the best validation loss is {run.progress.best_val_loss:.2f}"
        run.log.print_line(f"done in {terminal.duration(run.seconds())}: {best}; {MEANINGS[verdict.kind]}", always=True)
    prompt = next((prompt for prompt, _ in source.examples(run.dataset.tokenizer)), None)
    return suggest.next_command(vars(config), run.out, prompt is not None, bool(run.dataset.labels), prompt)
