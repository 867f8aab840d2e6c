"""A run before its first iteration: where it starts, what it is made of, and what is said about it.

start = starting_point(config)                # the checkpoint to start from, if any; config takes what it settles
run = set_up(config, ...)                     # a Run: dataset, model, optimizers, log, progress
"""

import dataclasses
import functools
import math
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn

from tinygpt import __version__
from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.config import suggest
from tinygpt.config.files import to_yaml
from tinygpt.config.schema import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows
from tinygpt.data.tokenizer import CharTokenizer, fingerprint, tokenizer_from_dict
from tinygpt.errors import TinyGPTError
from tinygpt.fast.weights import MixedPrecision
from tinygpt.files import replacing
from tinygpt.finetune import lora
from tinygpt.generate import refuse_diverged
from tinygpt.model import GPT, GPTConfig
from tinygpt.training import device
from tinygpt.training.log import RunLog
from tinygpt.training.optimizer import Optimizer
from tinygpt.training.processes import Processes

ARCHITECTURE = [field.name for field in dataclasses.fields(GPTConfig) if field.name not in ("vocab_size", "dropout")]


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
    model: GPT  # with its float32 weights: what is saved, and what writes samples
    mixed: MixedPrecision  # the same weights, computing in compute.dtype
    forward: Any  # `mixed`, compiled and wrapped for several processes where asked
    optimizer: Optimizer
    compute: device.Compute
    ranks: Processes
    log: RunLog
    progress: Progress
    started: float = dataclasses.field(default_factory=time.perf_counter)
    saved_at: int = -1  # the iteration before which last.pt was written
    base_data: Dataset | None = None  # what the base model was trained on: for replay, and to see what is forgotten
    base_fingerprint: str = ""  # of the weights that an adapter of this run belongs to
    clock: float = 0.0  # seconds of training when the measurement of the expected time began

    @property
    def out(self) -> Path:
        return Path(self.config.out_dir)

    @functools.cached_property
    def width(self) -> int:
        """Tokens per row of a batch; for pairs, the length of the longest example, including replayed ones."""
        source, block_size = self.dataset.sources["train"], self.config.block_size
        replayed = self.base_data.sources["train"] if self.base_data and self.config.replay else None
        longest = replayed.width(block_size) if isinstance(replayed, PairRows) else 0
        return max(source.width(block_size), longest)

    @property
    def tokens_per_iter(self) -> int:
        """Tokens that an iteration reads, padding included."""
        return self.config.batch_size * self.config.gradient_accumulation_steps * self.width

    @property
    def dtype(self) -> str:
        """Name of the dtype of the matrix products."""
        return str(self.compute.dtype).removeprefix("torch.")

    def plain_model(self) -> GPT:
        """The model as it is now, with adapters added to its weights: what writes samples."""
        if not self.config.lora_rank:
            return self.model
        plain = GPT(self.model.config).to(self.compute.device)
        plain.load_state_dict(lora.merged(self.model.state_dict(), self.config.lora_alpha))
        return plain

    def seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self.started


class Start(NamedTuple):
    """What a run begins with: nothing, a base model, or its own state when it is resumed."""

    state: checkpoint.Checkpoint | None = None
    resuming: bool = False
    where: str = ""  # names the checkpoint in messages


def resumes(config: TrainConfig) -> bool:
    """Return whether the run in out_dir is to be resumed: for `resume` always, for `auto` if there is a last.pt."""
    last = Path(config.out_dir) / "last.pt"
    return config.init_from == "resume" or (config.init_from == "auto" and last.exists())


def starting_point(config: TrainConfig) -> Start:
    """Load the checkpoint that `init_from` names, if any.

    Fills `config` with what the checkpoint determines: always the model's shape; when resuming, also every value that
    the command does not give, including device, dtype and origin. Errors: TinyGPTError if the command contradicts the
    checkpoint.
    """
    if resumes(config):
        return Start(load_run_to_resume(config), True, f"{config.out_dir}/last.pt")
    if config.init_from in ("scratch", "auto"):
        config.init_from = "scratch"
        return Start()
    if re.fullmatch(r"gpt2(-\w+)?", config.init_from) and not Path(config.init_from).exists():
        from tinygpt.checkpoint.gpt2 import gpt2_checkpoint

        base = gpt2_checkpoint(config.init_from)
    else:
        if not config.eval_only:
            checkpoint.refuse_overwriting(Path(config.out_dir), config.init_from, "the base model")
        base = checkpoint.load(config.init_from)
    take_shape(config, base, may_crop=True)
    return Start(base, False, config.init_from)


def load_run_to_resume(config: TrainConfig) -> checkpoint.Checkpoint:
    """Load the last state of the run in out_dir and restore its configuration. Errors: as in `starting_point`."""
    last = Path(config.out_dir) / "last.pt"
    state = checkpoint.load(last)
    started_from = origin(state.config)
    command, asked = suggest.training_command(state.config), suggest.training_command(vars(config))
    if command != asked:
        raise TinyGPTError(
            f"{config.out_dir} contains a run of tinygpt {command}, not of tinygpt {asked}",
            suggest.resume(state.config, config.out_dir),
        )
    take_shape(config, state, may_crop=False)
    if "optimizer" not in state.training:
        raise TinyGPTError(f"{last} has no optimizer state to resume from", f"--init_from={last} --out_dir=out-new")
    given: set[str] = getattr(config, "given", set())
    for name in ("optimizer", "lora_rank", "lora_targets"):  # the saved optimizer state fits only these values
        wanted, has = getattr(config, name), state.config.get(name, getattr(config, name))
        if name in given and wanted != has:
            raise TinyGPTError(
                f"{name} is {wanted} here and {has} in the checkpoint",
                f"drop {name}, or start from the weights alone: --init_from={last} --out_dir=out-new",
            )
    # not restored, beyond what the command gives: output folder and logging, as the file may come from somebody else
    kept = (given | {"config", "quiet", "out_dir", "wandb_log"}) - {"init_from", "ckpt"}
    for field in dataclasses.fields(config):
        if field.name in state.config and field.name not in kept:
            setattr(config, field.name, state.config[field.name])
    config.init_from = started_from
    return state


def take_shape(config: TrainConfig, base: checkpoint.Checkpoint, may_crop: bool) -> None:
    """Take the model's shape from the checkpoint. Errors: TinyGPTError if the command gives another shape; `may_crop`
    allows a shorter block_size."""
    shape = dataclasses.asdict(GPTConfig.from_dict(base.model_args))
    given: set[str] = getattr(config, "given", set())
    for name in ARCHITECTURE:
        wanted, has = getattr(config, name), shape[name]
        crops = may_crop and name == "block_size" and wanted < has
        if name in given and wanted != has and not crops:
            raise TinyGPTError(
                f"{name} is {wanted} here and {has} in the checkpoint",
                f"drop {name}" if "ckpt" in vars(config) else f"drop {name}, or start a new model in another --out_dir",
            )
        if not crops or name not in given:
            setattr(config, name, has)


def origin(config: dict[str, Any]) -> str:
    """Return what a run started from: scratch, a checkpoint's path or a pretrained model's name.

    Older files record `resume` or `auto` for a resumed run. Such a run counts as started from `ckpt` if it was
    fine-tuned, else from scratch.
    """
    init_from = str(config.get("init_from", "scratch"))
    return str(config.get("ckpt", "scratch")) if init_from in ("scratch", "resume", "auto") else init_from


def make_model(config: TrainConfig, dataset: Dataset, start: Start = Start()) -> GPT:
    """A new model from the seed, or that of the checkpoint, grown by the symbols that are new in the dataset.

    The dataset then speaks the model's vocabulary. Errors: TinyGPTError when the two vocabularies cannot be one.
    """
    base = start.state
    if base is None:
        for name in ("lora_rank", "replay"):
            if getattr(config, name):
                raise TinyGPTError(
                    f"{name} needs a trained model to start from", "--init_from=out/ckpt.pt --out_dir=out-new"
                )
        torch.manual_seed(config.seed)
        shape = {name: getattr(config, name) for name in [*ARCHITECTURE, "dropout"]}
        return GPT(GPTConfig(vocab_size=padded_vocab_size(dataset.tokenizer.vocab_size), **shape))
    known = agree_on_symbols(dataset, base, start)
    if start.resuming and not dataset.is_of(base.data):
        raise TinyGPTError(
            f"dataset {dataset.name!r} has been prepared from other text since {config.out_dir}/last.pt was written",
            f"prepare the old text again, or start a new run on the new one from these weights: "
            f"--init_from={config.out_dir}/last.pt --out_dir=out-new",
        )
    base.model_args["dropout"] = config.dropout
    adapter = lora.LoRA(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
    if start.resuming and config.lora_rank:
        return base.build_adapted(adapter)
    model = base.build_model()
    if not start.resuming:
        refuse_diverged(model, start.where)
    if config.block_size < model.config.block_size:
        model.crop_block_size(config.block_size)
    size = dataset.tokenizer.vocab_size
    if size > known:
        model.grow_vocabulary(known, padded_vocab_size(size))
    if config.lora_rank:
        torch.manual_seed(config.seed)
        lora.attach(model, adapter, model.config.vocab_size - known if size > known else 0)
    return model


def agree_on_symbols(dataset: Dataset, base: checkpoint.Checkpoint, start: Start) -> int:
    """Let the dataset speak the checkpoint's vocabulary, to whose end new characters are added; returns how many
    symbols the checkpoint knows. Errors: TinyGPTError when there is no such vocabulary."""
    if base.tokenizer is None:  # nanoGPT's
        base.require_symbols(dataset.tokenizer, start.where)
        return dataset.tokenizer.vocab_size
    own, fresh = tokenizer_from_dict(base.tokenizer, start.where), dataset.fingerprint
    both = own
    if not start.resuming and isinstance(own, CharTokenizer) and isinstance(dataset.tokenizer, CharTokenizer):
        both = own.grown(dataset.tokenizer.symbols)
    if not dataset.adopt_tokenizer(both):
        raise TinyGPTError(
            f"the checkpoint's vocabulary ({fingerprint(own.to_dict())}) is not that of dataset "
            f"{dataset.name!r} ({fresh})",
            "prepare the text that it was trained on, or start with --init_from=scratch",
        )
    if both is own:
        base.require_symbols(own, start.where)
    return own.vocab_size


def base_dataset(config: TrainConfig, dataset: Dataset, start: Start) -> Dataset | None:
    """What the base model was trained on, if it is prepared here. Errors: TinyGPTError if replay needs it."""
    if start.state is not None and not config.base_dataset and not start.resuming:
        config.base_dataset = str(start.state.config.get("dataset", ""))
    if not config.base_dataset:
        if config.replay:
            raise TinyGPTError("replay needs the base model's own data", "--base_dataset=NAME")
        return None
    try:
        found = Dataset(config.data_dir, config.base_dataset)
        found.require(config.block_size)
    except TinyGPTError:
        if config.replay:
            raise
        return None
    earlier = start.state.training.get("replayed") if start.state is not None and start.resuming else None
    if config.replay and earlier and not found.is_of(earlier):
        raise TinyGPTError(
            f"replay: dataset {found.name!r} has been prepared from other text since {start.where} was written",
            "prepare the old text again",
        )
    if found.adopt_tokenizer(dataset.tokenizer):
        return found
    if config.replay:
        raise TinyGPTError(
            f"replay: dataset {found.name!r} has symbols that the base model does not know",
            "--base_dataset=NAME of the text that the base model was trained on",
        )
    return None


def micro_steps(config: TrainConfig, ranks: Processes) -> int:
    """Forward passes an iteration in each process: never more rows at once than batch_size."""
    return math.ceil(config.gradient_accumulation_steps / ranks.count)


def padded_vocab_size(vocab_size: int) -> int:
    """A large vocabulary is rounded up to a multiple of 64, which matrix units like (nanoGPT: 50257 -> 50304)."""
    return vocab_size if vocab_size < 1024 else math.ceil(vocab_size / 64) * 64


def check_processes(config: TrainConfig, ranks: Processes) -> None:
    rows = config.batch_size * config.gradient_accumulation_steps
    if rows % (ranks.count * micro_steps(config, ranks)):
        raise TinyGPTError(
            f"{ranks.count} processes cannot share {rows} sequences an iteration evenly "
            f"(batch_size {config.batch_size} x gradient_accumulation_steps {config.gradient_accumulation_steps})",
            f"make gradient_accumulation_steps or batch_size a multiple of {ranks.count}",
        )


def set_up(
    config: TrainConfig,
    compute: device.Compute,
    ranks: Processes,
    dataset: Dataset,
    model: GPT,
    start: Start = Start(),
    base_data: Dataset | None = None,
) -> Run:
    """Model, optimizer and log on their device, with the checkpoint's state if resuming; shows what was chosen."""
    torch.backends.cuda.matmul.allow_tf32 = True  # where float32 products remain
    if compute.device.type == "cpu":
        device.keep_freed_memory()
    mixed = MixedPrecision(model.to(compute.device), compute.dtype).train()
    optimizer = Optimizer(mixed, config)
    progress, state = Progress(), start.state
    if state is not None and start.resuming:
        progress = Progress(**state.training["progress"])
        optimizer.load_state_dict(state.training["optimizer"])
    log = RunLog(Path(config.out_dir), ranks.is_main, config.quiet)
    run = Run(config, dataset, model, mixed, mixed, optimizer, compute, ranks, log, progress, base_data=base_data)
    example = torch.zeros((config.batch_size, run.width), dtype=torch.long, device=compute.device)
    run.forward, compiled = device.compile_model(mixed, config.compile, compute, example)
    if ranks.count > 1:
        run.forward = nn.parallel.DistributedDataParallel(run.forward)
    if state is not None and start.resuming:
        run.saved_at = progress.step
        run.base_fingerprint = str(state.training.get("base", ""))
    elif state is not None and config.lora_rank:
        run.base_fingerprint = weights_fingerprint(state.model)
    if ranks.is_main and not config.eval_only:
        if not start.resuming:  # what an earlier run left here is not this run's state, not even for a moment
            if (run.out / "last.pt").exists():
                log.say(f"note: this run replaces the earlier one in {run.out}; --out_dir=NAME keeps both", always=True)
            for name in ("last.pt", "adapter.pt"):
                (run.out / name).unlink(missing_ok=True)
        with replacing(run.out / "config.yaml") as file:
            file.write(f"# tinygpt {__version__}, torch {torch.__version__}, {compute.describe()}\n".encode())
            file.write(to_yaml(config).encode())
        log.open(progress.step, progress.evaluated_at)
    if config.wandb_log and ranks.is_main:
        log.start_wandb(config)
    show_start(run, compiled)
    earlier = state.training.get("dtype", "") if state is not None and start.resuming else ""
    if earlier and earlier != run.dtype:
        log.say(f"note: this run has used dtype {earlier} so far; from now on it uses {run.dtype}", always=True)
    return run


def show_start(run: Run, compiled: str) -> None:
    """What was chosen and what follows from it, before the first iteration."""
    config, data = run.config, run.dataset
    rows, source = config.batch_size * config.gradient_accumulation_steps, data.sources["train"]
    processes = f"; {run.ranks.count} processes" if run.ranks.count > 1 else ""
    shape = f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context {config.block_size}"
    if isinstance(source, PairRows):
        size, passes, per_iter = (
            f"{len(source.starts):,} training examples",
            rows / len(source.starts),
            f"{rows} examples",
        )
    else:
        size, passes = f"{len(source.tokens):,} training tokens", run.tokens_per_iter / len(source.tokens)
        per_iter = f"{run.tokens_per_iter:,} tokens"
    trained = run.mixed.flat.numel()
    part = f"; {trained:,} of them are trained" if config.lora_rank else ""
    for line in (
        f"device:      {run.compute.describe()}{processes}",
        f"compile:     {compiled}",
        f"dataset:     {data.folder}: {size}, {data.tokenizer.vocab_size:,} symbols",
        f"model:       {run.model.num_params():,} parameters{part}: {shape}",
        f"iterations:  {config.max_iters:,} of {per_iter}, {config.max_iters * passes:.1f} passes over the data",
    ):
        run.log.say(line)
    if run.progress.step:
        done = f"; nothing is left to do: max_iters is {config.max_iters:,}"
        left = "" if run.progress.step < config.max_iters else done
        run.log.say(f"resuming after iteration {run.progress.step:,}{left}", always=True)
