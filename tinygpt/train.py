"""`tinygpt train`: from a dataset and a configuration to checkpoints and metrics. Read `loop` first.

Everything that a run draws at random is a function of the seed and the iteration (batches, dropout) or has a stream of
its own (evaluation, samples), and everything else it knows is in `last.pt`. So a run that was killed at any moment
and started again with --init_from=resume ends in the same weights, bit for bit, as one that never was.
"""

import contextlib
import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch

from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.adapter import save_adapter
from tinygpt.config import suggest
from tinygpt.config.schema import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows, TextRows
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.doctor import judge
from tinygpt.evaluate.loss import estimate_losses
from tinygpt.files import folder_lock, refuse_link
from tinygpt.generate import Choice, generate
from tinygpt.training import device
from tinygpt.training import processes as distributed
from tinygpt.training.log import Pace, import_wandb, read_metrics
from tinygpt.training.schedule import learning_rate
from tinygpt.training.setup import (
    Run,
    Start,
    base_dataset,
    check_processes,
    make_model,
    micro_steps,
    set_up,
    starting_point,
)
from tinygpt.training.signals import StopSignal

REPLAY = 3  # the stream of draws from the base model's own data; 0 to 2 are taken, see rows.draw_windows


class Observer:
    """Looks at a run before its first iteration and after its last one."""

    def before(self, run: Run) -> None: ...

    def after(self, run: Run) -> None: ...


def train(config: TrainConfig, observer: Observer | None = None) -> int:
    """Run the command; returns the exit status. Errors: TinyGPTError for everything that a user can fix."""
    compute = None
    try:
        start = starting_point(config)  # first: a resumed run keeps its device and dtype
        compute = device.choose(distributed.device_name(config.device), config.dtype)
        return prepare_and_loop(config, compute, start, observer or Observer())
    except (RuntimeError, MemoryError) as error:
        if not device.is_out_of_memory(error):
            raise
        raise out_of_memory(config, compute.device if compute else "cpu") from None


def prepare_and_loop(
    config: TrainConfig,
    compute: device.Compute,
    start: Start,
    observer: Observer,
) -> int:
    """Everything a user can get wrong is found out before a file is written; then the loop."""
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(distributed.processes(config.backend, compute.device))
        dataset = Dataset(config.data_dir, config.dataset)
        dataset.require(config.block_size)
        check_processes(config, ranks)
        for name in ("ckpt.pt", "last.pt", "adapter.pt"):
            refuse_link(Path(config.out_dir) / name)
        model = make_model(config, dataset, start)
        base_data = base_dataset(config, dataset, start)
        if config.wandb_log:
            import_wandb()
        if ranks.is_main and not config.eval_only:
            stack.enter_context(folder_lock(Path(config.out_dir), "run"))
        ranks.wait()
        stop = stack.enter_context(StopSignal())
        run = set_up(config, compute, ranks, dataset, model, start, base_data)
        stack.callback(run.log.close)
        if config.eval_only:
            return loop(run, stop)
        observer.before(run)
        status = loop(run, stop)
        if not status:
            observer.after(run)
            finish(run)
        return status


# ---- the loop ---------------------------------------------------------------------------------------------------


def loop(run: Run, stop: "StopSignal") -> int:
    """Evaluate, save, step, until max_iters, until patience ends, or until a signal asks to stop."""
    config, progress = run.config, run.progress
    first, pace = progress.step, Pace()
    run.log.start_bar(first, config.max_iters)
    while True:
        if evaluation_due(run):
            evaluate_and_save(run)
        elif config.checkpoint_interval and progress.step % config.checkpoint_interval == 0 and progress.step > first:
            save(run, "last.pt")
        if config.eval_only or progress.step >= config.max_iters or out_of_patience(run):
            break

        rate = learning_rate(progress.step, config)
        run.optimizer.set_learning_rate(rate)
        began = time.perf_counter()
        loss, grad_norm = training_step(run)
        pace.add(run.tokens_per_iter, time.perf_counter() - began)
        progress.step += 1

        if (progress.step - 1) % config.log_interval == 0:
            pace.measure()
            run.log.metric(
                "train",
                progress.step - 1,
                run.seconds(),
                loss=loss,
                lr=rate,
                grad_norm=grad_norm,
                tokens_per_second=round(pace.tokens_per_second),
            )
        run.log.advance(loss=f"{loss:.3f}", tokens=f"{pace.tokens_per_second / 1000:.0f}k/s")
        announce_speed(run, pace, done=progress.step - first)
        if stop.requested(run.ranks, run.compute.device):
            save(run, "last.pt")
            run.log.say(
                f"stopped by a signal after iteration {progress.step:,}; {run.out}/last.pt has it all", always=True
            )
            run.log.say(f"next: {resume_command(run)}", always=True)
            return stop.status
    return 0


def training_step(run: Run) -> tuple[float, float]:
    """One optimizer update on the global batch of this iteration; returns its mean loss and the gradient's norm.

    Errors: TinyGPTError, before the update, when the loss or the gradient is not finite.
    """
    config, step = run.config, run.progress.step
    x, y, weights = batch(run, step)  # (micro_steps, rows, T), and (micro_steps,)
    loss = torch.zeros((), device=run.compute.device)
    for micro_step in range(len(x)):
        last = micro_step == len(x) - 1
        seed_dropout(config, step, micro_step, run.ranks.rank)
        with contextlib.nullcontext() if last or run.ranks.count == 1 else run.forward.no_sync():
            micro_loss = run.forward(x[micro_step], y[micro_step])[1] * weights[micro_step]
            run.optimizer.scaler.scale(micro_loss).backward()
        loss += micro_loss.detach()
    norm = run.optimizer.clip().item()
    mean_loss = run.ranks.sum([loss.item()], run.compute.device)[0] / run.ranks.count
    if not math.isfinite(mean_loss) or not (math.isfinite(norm) or run.optimizer.scaler.is_enabled()):
        raise not_finite(run, mean_loss, norm)
    run.optimizer.update()
    return mean_loss, norm


def batch(run: Run, step: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """This process's share of the global batch of `step`: inputs and targets, int64 (micro_steps, rows, T), and the
    weight of each micro-step's mean loss.

    With these weights the loss is the mean over all targets of the global batch, however the batch is split into
    micro-steps and among processes. Each weight is the micro-step's share of all targets, times the number of
    processes, because DistributedDataParallel averages their gradients.
    """
    config, ranks = run.config, run.ranks
    rows = config.batch_size * config.gradient_accumulation_steps
    parts = global_batch(run, step, rows)
    total = sum(int(source.targets(at, run.width).sum()) for source, at, _ in parts)
    first, end = ranks.rank * rows // ranks.count, (ranks.rank + 1) * rows // ranks.count
    block = np.empty((2, end - first, run.width), dtype=np.int64)
    for source, at, places in parts:
        mine = (places >= first) & (places < end)
        block[:, places[mine] - first] = source.rows(at[mine], run.width)
    pieces = block.reshape(2, micro_steps(config, ranks), -1, run.width)
    weights = [ranks.count * int(np.count_nonzero(targets >= 0)) / total for targets in pieces[1]]
    inputs, targets = device.to_device(torch.from_numpy(pieces), run.compute.device)
    return inputs, targets, weights


def global_batch(run: Run, step: int, rows: int) -> list[tuple[TextRows | PairRows, np.ndarray, np.ndarray]]:
    """The rows of all processes together, by source: the source, where in it each row is, and its place in the batch.
    Replayed rows are spread evenly over the batch, and so over the processes."""
    config, source = run.config, run.dataset.sources["train"]
    replayed = replayed_rows(config.replay, rows, step) if run.base_data else 0
    old = np.arange(replayed) * rows // max(replayed, 1)
    new = np.setdiff1d(np.arange(rows), old)
    parts = [(source, source.draw(config.seed, step, config.block_size, len(new)), new)]
    if run.base_data and replayed:
        base = run.base_data.sources["train"]
        parts.append((base, base.draw(config.seed, step, run.width, replayed, REPLAY), old))
    return parts


def replayed_rows(share: float, rows: int, step: int) -> int:
    """How many of the `rows` of iteration `step` are the base model's own data: whole rows, none in most iterations if
    the share is small, which add up to that share of all rows."""
    return math.floor((step + 1) * share * rows) - math.floor(step * share * rows)


def seed_dropout(config: TrainConfig, step: int, micro_step: int, rank: int) -> None:
    """Dropout's masks are a function of (seed, step, micro_step, rank)."""
    if config.dropout or config.lora_dropout:
        key = np.random.SeedSequence([config.seed, step, micro_step, rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(key[0]))


# ---- evaluating and saving --------------------------------------------------------------------------------------


def evaluation_due(run: Run) -> bool:
    """At every eval_interval and at the end, once each."""
    config, progress = run.config, run.progress
    due = progress.step % config.eval_interval == 0 or progress.step >= config.max_iters
    return config.eval_only or (due and progress.evaluated_at != progress.step)


def evaluate_and_save(run: Run) -> None:
    """Both losses to terminal and metrics; ckpt.pt if they are the best; then last.pt, which remembers that."""
    config, progress = run.config, run.progress
    losses = estimate_losses(
        run.mixed, run.dataset, config.seed, config.eval_iters, config.batch_size, run.compute, run.ranks
    )
    if not (math.isfinite(losses["train"]) and math.isfinite(losses["val"])):
        raise not_finite(run, losses["val"], 0.0)
    best = losses["val"] < progress.best_val_loss
    run.log.say(
        f"step {progress.step:>{len(str(config.max_iters))}}: train loss {losses['train']:.4f}, "
        f"val loss {losses['val']:.4f}{' (best)' if best and progress.step else ''}",
        always=True,
    )
    error = {"val_loss_se": losses["val_se"]} if math.isfinite(losses["val_se"]) else {}
    run.log.metric("eval", progress.step, run.seconds(), train_loss=losses["train"], val_loss=losses["val"], **error)
    progress.evaluated_at = progress.step
    progress.evaluations_without_best = 0 if best else progress.evaluations_without_best + 1
    progress.best_val_loss = min(progress.best_val_loss, losses["val"])
    if config.sample_interval and progress.step % config.sample_interval == 0:
        show_sample(run)
    if config.eval_only:
        return
    if best or config.always_save_checkpoint:
        save(run, "ckpt.pt")
        if config.lora_rank and run.ranks.is_main:
            save_adapter(run.out / "adapter.pt", state_of(run), run.base_fingerprint, run.log.next_step)
    save(run, "last.pt")


def save(run: Run, name: str) -> None:
    """Write the whole state, as it is before iteration `progress.step`. Errors: weights that are not finite."""
    if not run.mixed.flat.isfinite().all():
        raise not_finite(run, math.nan, 0.0)
    if run.ranks.is_main:
        checkpoint.save(run.out / name, state_of(run), run.log.next_step)
    if name == "last.pt":
        run.saved_at = run.progress.step
        run.log.next_step = f"resume: {resume_command(run)}"


def resume_command(run: Run) -> str:
    return suggest.resume(vars(run.config), run.out, processes=run.ranks.count)


def state_of(run: Run) -> checkpoint.Checkpoint:
    """All that a run knows."""
    progress = dataclasses.replace(run.progress, seconds=run.seconds())
    return checkpoint.Checkpoint(
        model=run.model.state_dict(),
        model_args=dataclasses.asdict(run.model.config),
        config=dataclasses.asdict(run.config) | {"config": list(run.config.config)},
        step=progress.step,
        best_val_loss=progress.best_val_loss,
        tokenizer=run.dataset.tokenizer.to_dict(),
        data={key: str(value) for key, value in run.dataset.meta["sha256"].items()},
        training={
            "progress": dataclasses.asdict(progress),
            "optimizer": run.optimizer.state_dict(),
            "dtype": run.dtype,
            "base": run.base_fingerprint,
            "replayed": run.base_data.meta["sha256"] if run.base_data and run.config.replay else {},
        },
    )


def show_sample(run: Run, length: int = 200) -> None:
    """A short sample with a seed of its own: the same prompt and seed at every evaluation."""
    if not run.ranks.is_main:
        return
    tokenizer = run.dataset.tokenizer
    source, start = run.dataset.sources["val"], np.zeros(1, dtype=np.int64)
    if isinstance(source, PairRows):  # the first example's prompt, up to where its response begins
        start = source.tokens[: source.responses[0] + 1].astype(np.int64)
    prompt = torch.from_numpy(start[None]).to(run.compute.device)
    choice, model = Choice(temperature=0.8, top_k=200, seed=run.config.seed), run.plain_model().eval()
    made = [int(row[0]) for row in generate(model, prompt, length, choice, tokenizer.vocab_size)]
    run.model.train()
    text = tokenizer.decode(made)
    run.log.metric("sample", run.progress.step, run.seconds(), text=text, prompt=tokenizer.decode(start.tolist()))
    run.log.say("".join(f"    | {line}\n" for line in text.splitlines()).rstrip())


def out_of_patience(run: Run) -> bool:
    config, progress = run.config, run.progress
    if not config.patience or progress.evaluations_without_best < config.patience:
        return False
    run.log.say(f"stopped early: {config.patience} evaluations without a better validation loss", always=True)
    return True


def finish(run: Run) -> None:
    config = run.config
    best = run.progress.best_val_loss
    minutes, seconds = divmod(run.seconds(), 60)
    run.log.say(f"done in {minutes:.0f} min {seconds:.0f} s; best validation loss {best:.4f}", always=True)
    adapter = ", adapter.pt" if config.lora_rank else ""
    run.log.say(f"written: {run.out}/ckpt.pt (the best){adapter}, last.pt (the newest), metrics.jsonl, config.yaml")
    if run.ranks.is_main:
        sizes = run.model.num_params(), len(run.dataset.splits["train"])
        for line in judge(read_metrics(run.out), dataclasses.asdict(config), str(run.out), *sizes).lines():
            run.log.say(line, always=True)
    run.log.say(f"\nnext: {next_command(run)}", always=True)


def next_command(run: Run) -> str:
    """Command to try after training: eval for a labelled task, else sample, with a prompt for a model of pairs."""
    source = run.dataset.sources["val"]
    if run.dataset.labels:
        return suggest.evaluate(vars(run.config), run.out)
    prompt = source.texts(run.dataset.tokenizer)[0][0] if isinstance(source, PairRows) else None
    return suggest.sample(f"{run.out}/ckpt.pt", prompt)


def announce_speed(run: Run, pace: Pace, done: int, settle: int = 5, measure: int = 20) -> None:
    """How long the run will take, measured on its first iterations."""
    if done == settle:
        run.clock = pace.total
    if done == settle + measure:
        each = (pace.total - run.clock) / measure
        left = run.config.max_iters - run.progress.step
        run.log.say(
            f"expected:    {each * left / 60:.1f} minutes for {left:,} more iterations ({each * 1000:.1f} ms each)"
        )


def not_finite(run: Run, loss: float, grad_norm: float) -> TinyGPTError:
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
    run.log.metric("diverged", run.progress.step, run.seconds(), reason=what)
    # what was saved just before this iteration is whole, but it is the state that leads here
    good = 0 <= run.saved_at < run.progress.step
    safe = f"{run.out}/last.pt is from before and good; go on from it" if good else "start again"
    return TinyGPTError(
        f"iteration {run.progress.step}: {what}; stopped before the update",
        f"{safe} with a lower learning_rate than {run.config.learning_rate}, or a longer warmup_iters",
        status=1,
    )


def out_of_memory(config: TrainConfig, where: object) -> TinyGPTError:
    rows, steps = config.batch_size, config.gradient_accumulation_steps
    fits = (
        f"the same iteration in smaller pieces: --batch_size={rows // 2} --gradient_accumulation_steps={steps * 2}"
        if rows % 2 == 0
        else f"--batch_size={max(rows // 2, 1)}, a smaller --block_size or a smaller model"
    )
    return TinyGPTError(
        f"out of memory on {where} with batch_size {rows} x block_size {config.block_size}", fits, status=1
    )
