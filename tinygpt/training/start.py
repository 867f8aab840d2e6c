"""Decide everything about a run before its first iteration: configuration, device, data and checkpoint; make its model.

start = resolve(stack, config)      # stack: a contextlib.ExitStack, which leaves the processes of torchrun
model = make_model(start)

config.given has the keys that the command line or a config file gives, config.flags those of the command line alone.
"""

import contextlib
import copy
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinygpt.base import device
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import SESSION, FinetuneConfig, TrainConfig
from tinygpt.base.configs.fields import keys
from tinygpt.base.configs.parse import converted
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import print_error
from tinygpt.checkpoint import store
from tinygpt.checkpoint.gpt2 import gpt2_checkpoint
from tinygpt.checkpoint.lora import LoRA, attach
from tinygpt.checkpoint.resize import grow_vocabulary, set_block_size
from tinygpt.data.dataset import Dataset, data_dir, started_elsewhere
from tinygpt.data.rows import Batches, TextRows
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.fast.model import model_class
from tinygpt.generate import refuse_diverged
from tinygpt.model import GPT, GPTConfig
from tinygpt.training.optimizer import build
from tinygpt.training.processes import Processes, device_name, join_processes
from tinygpt.training.recipe import budget_of, refuse_budget, sizes
from tinygpt.training.tuning import Tuning

ARCHITECTURE = [field.name for field in dataclasses.fields(GPTConfig) if field.name not in ("vocab_size", "dropout")]
MOST_BIGRAM_TOKENS = 256  # of a new model with bigram_table, which has a row for each pair of them
FIXED = ("optimizer", "lora_rank", "lora_targets")  # the values that a saved optimizer state depends on


@dataclasses.dataclass(frozen=True)
class Start:
    """What is decided about a run before its first iteration. Only its number of threads can change later."""

    config: TrainConfig  # complete: what the checkpoint determines is filled in
    compute: Compute
    ranks: Processes
    dataset: Dataset  # in the vocabulary of the run
    source: Batches  # the rows from which batches are drawn
    checkpoint: store.Checkpoint | None  # of a base model, or of the run that is resumed; None: new weights
    checkpoint_name: str  # in messages
    known_tokens: int  # those of the vocabulary, the first ones, that the checkpoint has embeddings for
    saved: dict[str, Any]  # the training state in the checkpoint of a run that is resumed; empty for a new run
    tuning: Tuning | None  # None: not a fine-tuning run
    teacher: str  # the path of its checkpoint; empty: no distillation
    reason: str = ""  # for what a budget has fixed (budget.py)


def resolve(stack: contextlib.ExitStack, request: TrainConfig) -> Start:
    """Decide everything about a run, and complete a copy of the configuration that its command gives. The processes of
    torchrun are joined; `stack` leaves them again. A process that lacks the dataset fails after it has joined the
    others, so that they end, too. Errors: TinyGPTError for a run that cannot start, before a file is written."""
    config = copy.copy(request)
    resuming = resumes(config)
    checkpoint = load_run_to_resume(config) if resuming else load_base(config)
    name = f"{config.out_dir}/last.pt" if resuming else config.init_from
    last = checkpoint if checkpoint and resuming else store.Checkpoint({}, {}, {})  # a new run has no state
    compute = choose_compute(config, last.training)
    ranks = stack.enter_context(join_processes(config.backend, compute.device))
    dataset = Dataset(data_dir(request, last.config, config.out_dir), config.dataset)
    if request.init_from == "resume" and "budget" in request.flags:
        raise TinyGPTError("a resumed run keeps its length, so --budget has no effect", "--max_iters=N for another one")
    config.budget = "" if resuming else budget_of(config)
    refuse_budget(request, config.budget if ranks.count > 1 else "")
    if config.budget and not (checkpoint or config.config):
        config = sizes(config, dataset)[:3][-1]  # of middle size, since a GPU is not faster with the smallest
    ranks.share(config)
    config.shard = config.shard and may_shard(config)
    if compute.device.type == "cpu":
        device.keep_freed_memory(keep=not config.shard)
    torch.backends.cuda.matmul.allow_tf32 = True  # for matrix products that remain in float32
    if not ranks.agree((last.step, dataset.meta["sha256"]), compute.device):
        problem = "the processes start at different iterations, or with different data"
        raise TinyGPTError(problem, "give all nodes the same --data_dir, and an --out_dir that they share")
    known_tokens = fit_dataset(dataset, checkpoint, name, resuming)
    dataset.require(config.block_size)  # now, because another tokenizer changes the lengths
    if not resuming:
        compute = faster_on_a_mac(config, dataset, compute)
    tuning = Tuning.of(config, dataset, checkpoint, last.training, name) if isinstance(config, FinetuneConfig) else None
    source = tuning.rows if tuning else dataset.sources["train"]
    if config.context_warmup and (config.block_size % 4 or not isinstance(source, TextRows)):
        problem = "context_warmup is for plain text without replay, and for a block_size that 4 divides"
        raise TinyGPTError(problem, "--context_warmup=0")
    elsewhere = started_elsewhere(last.config, config.out_dir) if "teacher" not in config.flags else ()
    teachers = [folder / config.teacher for folder in elsewhere if config.teacher]
    return Start(
        config=config,
        compute=compute,
        ranks=ranks,
        dataset=dataset,
        source=source.arranged(config.group_by_length, config.sampling == "epochs"),
        checkpoint=checkpoint,
        checkpoint_name=name,
        known_tokens=known_tokens,
        saved=last.training,
        tuning=tuning,
        teacher=next((str(path) for path in teachers if path.exists()), config.teacher),
    )


def resumes(config: TrainConfig) -> bool:
    """Return whether the run in out_dir is to be resumed: for `resume` always, for `auto` if there is a last.pt."""
    return config.init_from == "resume" or (config.init_from == "auto" and Path(config.out_dir, "last.pt").exists())


def load_base(config: TrainConfig) -> store.Checkpoint | None:
    """Load the checkpoint from which a new run starts, if any, and complete the configuration from it: the model's
    shape. A fine-tuning starts from `ckpt`, or from `init_from` if the command line gives only that. Errors:
    TinyGPTError if they contradict one another, or if the run would overwrite a model that no run made."""
    if isinstance(config, FinetuneConfig):
        # in a config file init_from records what an earlier run started from
        if "init_from" in config.flags and config.init_from not in ("scratch", "auto"):
            if "ckpt" in config.flags and config.ckpt != config.init_from:
                flags = f"--ckpt={config.ckpt} and --init_from={config.init_from}"
                raise TinyGPTError(f"two base models: {flags}", "give only --ckpt")
            config.ckpt = config.init_from
        config.init_from = config.ckpt
        if config.init_from == "scratch":
            problem = "--ckpt=scratch: a fine-tuning starts from a trained model"
            raise TinyGPTError(problem, "--ckpt=out, or tinygpt train")
    chosen = config.config or "dataset" in config.given or config.dataset != TrainConfig.dataset
    prepared = os.path.exists(Path(config.data_dir, config.dataset))
    if config.init_from in ("scratch", "auto") and not chosen and not prepared:
        given = [suggest.flag(key, getattr(config, key)) for key in sorted(config.flags)]
        problem = f"no config was given, and the default dataset {config.dataset!r} is not prepared"
        raise TinyGPTError(problem, suggest.command("train", "configs/shakespeare_char.yaml", *given))
    out = Path(config.out_dir)
    # os.path.exists is False for impossible names, too
    if not config.eval_only and os.path.exists(out / "ckpt.pt") and not os.path.exists(out / "config.yaml"):
        why = "no config.yaml says that a run made it (an imported, merged or copied model has none)"
        raise TinyGPTError(f"{out}/ckpt.pt would be overwritten, and {why}", suggest.quoted(f"--out_dir={out}-new"))
    if config.init_from in ("scratch", "auto"):  # auto without a last.pt: `resumes` is false
        config.init_from = "scratch"
        return None
    if re.fullmatch(r"gpt2(-\w+)?", config.init_from) and not Path(config.init_from).exists():
        base = gpt2_checkpoint(config.init_from)
    else:
        base = store.load(config.init_from)
        if not config.eval_only:
            store.refuse_overwriting(out, config.init_from, "the base model")
    take_shape(config, base, may_resize=True)
    if isinstance(config, FinetuneConfig):
        config.base_dataset = config.base_dataset or str(base.config.get("dataset", ""))
    return base


def load_run_to_resume(config: TrainConfig) -> store.Checkpoint:
    """Load the last state of the run in out_dir and restore each value of its configuration that the command does not
    give. Errors: TinyGPTError if there is none, or if the command contradicts it."""
    last = Path(config.out_dir) / "last.pt"
    if not os.path.exists(last):
        other = last.with_name("ckpt.pt")
        new = f"drop --init_from={config.init_from} to start a run"
        hint = new_run_from(other) if os.path.exists(other) else f"--out_dir=FOLDER of the run, or {new}"
        raise TinyGPTError(f"{config.out_dir} has no run to resume (no last.pt)", hint)
    state = store.load(last)
    from_weights = new_run_from(last)
    saved_command = suggest.training_command(state.config)
    command = suggest.training_command(vars(config))
    if saved_command != command:
        problem = f"{config.out_dir} contains a run of tinygpt {saved_command}, not of tinygpt {command}"
        raise TinyGPTError(problem, suggest.resume(state.config, config.out_dir))
    take_shape(config, state, may_resize=False)
    saved = state.training.get("optimizer")
    if not isinstance(saved, dict) or "steps" not in saved:
        raise TinyGPTError(f"{last} has no optimizer state to resume from", from_weights)
    given = without_length(config)
    if "max_iters" in given and config.max_iters < state.step:
        problem = f"the run is at iteration {state.step:,}, so max_iters={config.max_iters:,} leaves nothing to do"
        raise TinyGPTError(problem, f"--max_iters={2 * state.step}")
    # not out_dir, since the file may come from a stranger
    not_restored = {*given, "config", "quiet", "out_dir", *SESSION} - {"init_from", "ckpt"}
    if "lr_schedule" in config.flags:
        not_restored.add("decay_lr")  # a stored False would make the rate constant
    kind: type = type(config)
    stored: dict[str, Any] = {}
    for name, key in keys(kind).items():
        if name in state.config and name != "config":
            try:
                stored[name] = converted(key, state.config[name], f"{last}: ")
            except TinyGPTError as error:
                if name not in not_restored:
                    raise TinyGPTError(error.message, from_weights) from None
    for name in stored.keys() - not_restored:
        setattr(config, name, stored[name])
    kept = fixed_values(vars(config) | stored)
    for name, value in fixed_values(vars(config)).items():
        if value != kept.get(name, value):
            problem = f"{name} is {value} here and {kept[name]} in the checkpoint"
            ways = f"drop {name}"
            if name not in FIXED:
                problem += ", and would change the order of the epoch that is continued"
                ways = f"keep {name} {kept[name]}, or --sampling=independent"
            raise TinyGPTError(problem, f"{ways}, or start from the weights alone: {from_weights}")
    if problems := list(config.problems()):
        raise TinyGPTError(f"{last} has settings that cannot be used: {'; '.join(problems)}", from_weights)
    return state


def without_length(config: TrainConfig) -> set[str]:
    """Return the keys that the command gives, without the length of a run whose budget has fixed another one."""
    return set(config.given) - ({"max_iters"} if config.budget else set())


def fixed_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the values that a resumed run must keep, by name: those of FIXED, and in epochs those on which the rows of
    a step depend, since rows would be read twice in the epoch that is continued, and others never."""
    values = {name: settings.get(name) for name in FIXED}
    if settings["sampling"] == "epochs" and not settings["eval_only"]:
        rows = settings["batch_size"] * settings["gradient_accumulation_steps"]
        values["batch_size x gradient_accumulation_steps"] = rows
        values |= {name: settings.get(name) for name in ("seed", "group_by_length", "examples")}
    return values


def new_run_from(path: str | Path) -> str:
    """Return the flags of a new run that starts from the weights in `path`."""
    return f"{suggest.quoted(f'--init_from={path}')} --out_dir=out-new"


def take_shape(config: TrainConfig, base: store.Checkpoint, may_resize: bool) -> None:
    """Take the model's shape from the checkpoint. Errors: TinyGPTError if the command gives another shape; with
    `may_resize` another block_size is allowed, a longer one if positions are relative."""
    model_config = GPTConfig.from_dict(base.model_args)
    shape = dataclasses.asdict(model_config)
    given = {name: getattr(config, name) for name in ARCHITECTURE if name in config.given}
    length = given.get("block_size", shape["block_size"])
    if may_resize and (length < shape["block_size"] or model_config.relative):
        shape["block_size"] = length
    if wrong := [name for name in given if given[name] != shape[name]]:
        flags = [name for name in wrong if name in config.flags]
        # without flags, a preset's values
        hint = f"drop {' and '.join(flags)}" if flags else " ".join(f"--{name}={shape[name]}" for name in wrong)
        if not isinstance(config, FinetuneConfig):
            hint += ", or start a new model in another --out_dir"
        raise TinyGPTError(f"{wrong[0]} is {given[wrong[0]]} here and {shape[wrong[0]]} in the checkpoint", hint)
    for name in ARCHITECTURE:
        setattr(config, name, shape[name])


def fit_dataset(dataset: Dataset, base: store.Checkpoint | None, name: str, resuming: bool) -> int:
    """Encode the dataset with the checkpoint's vocabulary, with the dataset's new characters at its end, and return the
    number of tokens that the checkpoint knows (0 without one). Errors: TinyGPTError if the vocabularies cannot be
    joined, or the text is not that of the run to be resumed."""
    known_tokens = 0
    if base is not None and base.tokenizer is None:  # nanoGPT's
        base.require_embeddings(dataset.tokenizer, name)
        known_tokens = dataset.tokenizer.vocab_size
    elif base is not None:
        model_tokenizer = tokenizer_from_dict(base.tokenizer, name)
        joined = model_tokenizer if resuming else model_tokenizer.joined(dataset.tokenizer)
        hint = "prepare the text that it was trained on, or start with --init_from=scratch"
        dataset.require_tokenizer(joined, name, hint)
        if joined is model_tokenizer:
            base.require_embeddings(model_tokenizer, name)
        known_tokens = model_tokenizer.vocab_size
    if base is not None and resuming and not dataset.has_checksums(base.data):
        problem = f"dataset {dataset.name!r} has been prepared from different text since {name} was written"
        raise TinyGPTError(problem, f"prepare the old text again, or train on the new one: {new_run_from(name)}")
    return known_tokens


def may_shard(config: TrainConfig) -> bool:
    """Return whether torchrun has started this process, and print a note if not: a config file, or the run that is
    resumed, is also for one process. Errors: TinyGPTError if the command line asks for shard."""
    started = torch.distributed.is_initialized()
    if not started:
        problem = "shard=True divides the model among the processes of torchrun, which has not started this one"
        if "shard" in config.flags:
            raise TinyGPTError(problem, "torchrun --standalone --nproc_per_node=2 -m tinygpt ..., or --shard=False")
        print_error(f"note: {problem}; the run continues without sharding")
    return started


def make_model(start: Start) -> GPT:
    """Initialise a model from the seed, or build the checkpoint's, with embeddings for new tokens and with adapters.

    Errors: TinyGPTError as in `new_model` and `attach`, and for weights that are not finite."""
    config = start.config
    base = start.checkpoint
    gpt_class = training_class(config, start.compute)
    vocab_size = start.dataset.tokenizer.vocab_size
    if base is None:
        return new_model(config, gpt_class, vocab_size)
    base = dataclasses.replace(base, model_args=base.model_args | {"dropout": config.dropout})
    if start.saved:
        return base.build_for_resuming(gpt_class)
    model = base.build_model(gpt_class)
    new_tokens = 0
    refuse_diverged(model, start.checkpoint_name)
    set_block_size(model, config.block_size)
    if vocab_size > start.known_tokens:
        grow_vocabulary(model, start.known_tokens, padded_vocab_size(vocab_size))
        new_tokens = model.config.vocab_size - start.known_tokens
    if isinstance(config, FinetuneConfig) and config.lora_rank:
        torch.manual_seed(config.seed)
        lora = LoRA(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
        attach(model, lora, new_tokens)
    return model


def new_model(config: TrainConfig, gpt_class: type[GPT], vocab_size: int) -> GPT:
    """Initialise a model from the seed. Errors: TinyGPTError for a bigram_table of too many tokens."""
    if config.bigram_table and vocab_size > MOST_BIGRAM_TOKENS:
        weights = vocab_size**2 * config.n_embd
        problem = f"bigram_table has a row for each pair of tokens: {weights:,} weights for {vocab_size:,} tokens"
        raise TinyGPTError(problem, "--bigram_table=False")
    torch.manual_seed(config.seed)
    shape = {name: getattr(config, name) for name in [*ARCHITECTURE, "dropout"]}
    return gpt_class(GPTConfig(vocab_size=padded_vocab_size(vocab_size), **shape))


def training_class(config: TrainConfig, compute: Compute) -> type[GPT]:
    """Choose GPT or FastGPT for a run. Errors: as in `model_class`."""
    return GPT if config.shard or config.checkpoint_activations else model_class(config.fast, compute)


def padded_vocab_size(vocab_size: int) -> int:
    """Round a large vocabulary up to a multiple of 64, which GPUs multiply faster (nanoGPT: 50257 -> 50304)."""
    return vocab_size if vocab_size < 1024 else math.ceil(vocab_size / 64) * 64


def choose_compute(config: TrainConfig, saved: dict[str, Any]) -> Compute:
    """Resolve the keys `device`, `dtype` and `threads` of a run. `auto` is also the Mac's GPU if `saved`, the training
    state of a resumed run, has that device; such a run keeps its number of threads, too."""
    name = device_name(config.device)
    kept = saved.get("threads")
    if name == "auto" and saved.get("device") == "mps" and torch.backends.mps.is_available():
        name = "mps"
    # the number that one process was given is not for several
    several_processes = os.environ.get("WORLD_SIZE", "1") != "1" and "threads" not in config.given
    count = "auto" if several_processes else config.threads
    return device.choose(name, config.dtype, count, kept if type(kept) is int and kept > 0 else 0)


def faster_on_a_mac(config: TrainConfig, dataset: Dataset, compute: Compute) -> Compute:
    """Return the faster of CPU and MPS for the model of a run, if `device` is auto, on a Mac; else `compute`."""
    is_cpu = device_name(config.device) == "auto" and compute.device.type == "cpu"
    if not is_cpu or config.eval_only or not torch.backends.mps.is_available():
        return compute
    mps = device.choose("mps", config.dtype)
    return device.choose_faster(compute, mps, lambda candidate: seconds_per_batch(config, dataset, candidate))


def row_length(source: Batches, longest: int, row_indices: np.ndarray) -> int:
    """Return the length to which the rows of a batch are padded: that of its longest row, rounded up to a multiple of
    8, which limits the number of shapes. longest: that of all rows."""
    return min(longest, math.ceil(source.width(longest, row_indices) / 8) * 8)


def seconds_per_batch(config: TrainConfig, dataset: Dataset, compute: Compute) -> float:
    """Measure the time of a training step on one batch, with a new model, and restore the random generator."""
    with torch.random.fork_rng(devices=[]):
        model = new_model(config, training_class(config, compute), dataset.tokenizer.vocab_size)
        return device.shortest(training_step(config, dataset.sources["train"], compute, model))


def training_step(
    config: TrainConfig, source: Batches, compute: Compute, model: GPT, teacher: Any = None
) -> Callable[[], None]:
    """Make a step on the next batch of a run, with one micro-step, to measure its time: the weights stay as they are.
    teacher: a Teacher of distillation.py, or None."""
    amp_model, optimizer = build(model, config, compute)
    amp_model.train()
    optimizer.set_learning_rate(0.0)
    numbers = itertools.count()
    drawn = config.batch_size * config.gradient_accumulation_steps

    def step() -> None:
        row_indices = source.draw(config.seed, next(numbers), config.block_size, drawn)
        width = row_length(source, source.width(config.block_size), row_indices)
        rows = np.stack(source.rows(row_indices[: config.batch_size], width))
        x, y = device.to_device(torch.from_numpy(rows), compute.device)
        logits, loss = amp_model(x, y)
        optimizer.backward(teacher.loss(loss, logits, x, y) if teacher else loss)
        optimizer.clip()
        optimizer.update()
        loss.item()  # waits for the device

    return step
