"""Where a run starts: its checkpoint, its complete configuration, its device and its model.

config.given has the keys that the command line or a config file gives, config.flags those of the command line alone.
"""

import copy
import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinygpt.base import device
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import MOST_BIGRAM_TOKENS, SESSION, FinetuneConfig, TrainConfig
from tinygpt.base.configs.fields import keys
from tinygpt.base.configs.parse import converted
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.checkpoint.gpt2 import gpt2_checkpoint
from tinygpt.checkpoint.resize import grow_vocabulary, set_block_size
from tinygpt.data.dataset import Dataset, data_dir, started_elsewhere
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.fast.model import model_class
from tinygpt.generate import refuse_diverged
from tinygpt.model import GPT, GPTConfig
from tinygpt.training import processes
from tinygpt.training.optimizer import build

ARCHITECTURE = [field.name for field in dataclasses.fields(GPTConfig) if field.name not in ("vocab_size", "dropout")]
FIXED = ("optimizer", "lora_rank", "lora_targets")  # the values that a saved optimizer state depends on


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run starts: new weights (no checkpoint), a base model, or its own last state when it is resumed."""

    config: TrainConfig  # complete: what the checkpoint determines is filled in
    checkpoint: store.Checkpoint | None = None
    resuming: bool = False
    checkpoint_name: str = ""  # in messages
    # of a run that is resumed from another folder; the configuration keeps its own
    data_dir: str = ""
    teacher: str = ""

    def dataset(self, name: str) -> Dataset:
        """Open a dataset of the run. Errors: TinyGPTError if it is missing or damaged."""
        return Dataset(self.data_dir or self.config.data_dir, name)

    @property
    def saved(self) -> dict[str, Any]:
        """Return the training state in the checkpoint of a resumed run; empty for a new run."""
        return self.checkpoint.training if self.checkpoint is not None and self.resuming else {}


def resumes(config: TrainConfig) -> bool:
    """Return whether the run in out_dir is to be resumed: for `resume` always, for `auto` if there is a last.pt."""
    return config.init_from == "resume" or (config.init_from == "auto" and Path(config.out_dir, "last.pt").exists())


def starting_point(config: TrainConfig) -> Start:
    """Load the checkpoint that `init_from` names, if any, and complete a copy of the configuration from it: the model's
    shape; when resuming, every value that the command does not give. Errors: TinyGPTError if the two contradict."""
    config = copy.copy(config)
    if resumes(config):
        last = load_run_to_resume(config)
        data_folder = data_dir(config, last.config, config.out_dir) if "data_dir" not in config.given else ""
        elsewhere = started_elsewhere(last.config, config.out_dir) if "teacher" not in config.flags else ()
        teachers = [folder / config.teacher for folder in elsewhere if config.teacher]
        teacher = next((str(path) for path in teachers if path.exists()), "")
        return Start(config, last, True, f"{config.out_dir}/last.pt", data_folder, teacher)
    if isinstance(config, FinetuneConfig):
        config.init_from = config.ckpt = base_model(config)
    require_dataset_choice(config)
    out = Path(config.out_dir)
    # os.path.exists is False for impossible names, too
    if not config.eval_only and os.path.exists(out / "ckpt.pt") and not os.path.exists(out / "config.yaml"):
        why = "no config.yaml says that a run made it (an imported, merged or copied model has none)"
        raise TinyGPTError(f"{out}/ckpt.pt would be overwritten, and {why}", suggest.quoted(f"--out_dir={out}-new"))
    if config.init_from in ("scratch", "auto"):  # auto without a last.pt: `resumes` is false
        config.init_from = "scratch"
        return Start(config)
    if re.fullmatch(r"gpt2(-\w+)?", config.init_from) and not Path(config.init_from).exists():
        base = gpt2_checkpoint(config.init_from)
    else:
        if not config.eval_only:
            store.refuse_overwriting(out, config.init_from, "the base model")
        base = store.load(config.init_from)
    take_shape(config, base, may_resize=True)
    if isinstance(config, FinetuneConfig):
        config.base_dataset = config.base_dataset or str(base.config.get("dataset", ""))
    return Start(config, base, False, config.init_from)


def base_model(config: FinetuneConfig) -> str:
    """Choose the checkpoint to fine-tune: `ckpt`, or `init_from` if the command line gives only that. (In a config file
    it records what an earlier run started from.) Errors: TinyGPTError for two different checkpoints."""
    if "init_from" not in config.flags or config.init_from in ("scratch", "auto"):
        return config.ckpt
    if "ckpt" in config.flags and config.ckpt != config.init_from:
        flags = f"--ckpt={config.ckpt} and --init_from={config.init_from}"
        raise TinyGPTError(f"two base models: {flags}", "give only --ckpt")
    return config.init_from


def require_dataset_choice(config: TrainConfig, command: str = "train") -> None:
    """Check that a new run has a config, --dataset, or nanoGPT's default prepared. Errors: TinyGPTError if not."""
    chosen = config.config or "dataset" in config.given or config.dataset != TrainConfig.dataset
    prepared = os.path.exists(Path(config.data_dir, config.dataset))
    if config.init_from in ("scratch", "auto") and not chosen and not prepared:
        flags = [suggest.flag(key, getattr(config, key)) for key in sorted(config.flags)]
        problem = f"no config was given, and the default dataset {config.dataset!r} is not prepared"
        raise TinyGPTError(problem, suggest.command(command, "configs/shakespeare_char.yaml", *flags))


def load_run_to_resume(config: TrainConfig) -> store.Checkpoint:
    """Load the last state of the run in out_dir and restore its configuration. Errors: as in `starting_point`."""
    last = Path(config.out_dir) / "last.pt"
    if not os.path.exists(last):
        other, new = last.with_name("ckpt.pt"), f"drop --init_from={config.init_from} to start a run"
        hint = new_run_from(other) if os.path.exists(other) else f"--out_dir=FOLDER of the run, or {new}"
        raise TinyGPTError(f"{config.out_dir} has no run to resume (no last.pt)", hint)
    state = store.load(last)
    from_weights = new_run_from(last)
    saved_command, command = suggest.training_command(state.config), suggest.training_command(vars(config))
    if saved_command != command:
        problem = f"{config.out_dir} contains a run of tinygpt {saved_command}, not of tinygpt {command}"
        raise TinyGPTError(problem, suggest.resume(state.config, config.out_dir))
    take_shape(config, state, may_resize=False)
    saved = state.training.get("optimizer")
    if not isinstance(saved, dict) or "steps" not in saved:
        raise TinyGPTError(f"{last} has no optimizer state to resume from", from_weights)
    if "max_iters" in config.given and config.max_iters < state.step:
        problem = f"the run is at iteration {state.step:,}, so max_iters={config.max_iters:,} leaves nothing to do"
        raise TinyGPTError(problem, f"--max_iters={2 * state.step}")
    # not out_dir, since the file may come from a stranger
    not_restored = {*config.given, "config", "quiet", "out_dir", *SESSION} - {"init_from", "ckpt"}
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
        hint += ", or start a new model in another --out_dir" * ("ckpt" not in vars(config))
        raise TinyGPTError(f"{wrong[0]} is {given[wrong[0]]} here and {shape[wrong[0]]} in the checkpoint", hint)
    for name in ARCHITECTURE:
        setattr(config, name, shape[name])


def fit_dataset(dataset: Dataset, start: Start) -> int:
    """Encode the dataset with the checkpoint's vocabulary, with the dataset's new characters at its end, and return the
    number of tokens that the checkpoint knows (0 without one). Errors: TinyGPTError if the vocabularies cannot be
    joined, the text is not that of the run to be resumed, or a split does not fit block_size."""
    base, known_tokens = start.checkpoint, 0
    if base is not None and base.tokenizer is None:  # nanoGPT's
        base.require_embeddings(dataset.tokenizer, start.checkpoint_name)
        known_tokens = dataset.tokenizer.vocab_size
    elif base is not None:
        model_tokenizer = tokenizer_from_dict(base.tokenizer, start.checkpoint_name)
        joined = model_tokenizer if start.resuming else model_tokenizer.joined(dataset.tokenizer)
        hint = "prepare the text that it was trained on, or start with --init_from=scratch"
        dataset.require_tokenizer(joined, start.checkpoint_name, hint)
        if joined is model_tokenizer:
            base.require_embeddings(model_tokenizer, start.checkpoint_name)
        known_tokens = model_tokenizer.vocab_size
    dataset.require(start.config.block_size)  # now, because another tokenizer changes the lengths
    if base is not None and start.resuming and not dataset.has_checksums(base.data):
        name = start.checkpoint_name
        problem = f"dataset {dataset.name!r} has been prepared from different text since {name} was written"
        hint = "prepare the old text again, or start a new run on the new text from these weights: "
        raise TinyGPTError(problem, hint + new_run_from(name))
    return known_tokens


def make_model(start: Start, gpt_class: type[GPT], vocab_size: int, known_tokens: int = 0) -> tuple[GPT, int]:
    """Initialise a model from the seed, or build the checkpoint's and add embeddings for new tokens; return their
    number, too. vocab_size: of the dataset, of which the checkpoint knows the first `known_tokens`.

    Errors: TinyGPTError for a bigram_table of too many tokens."""
    config = start.config
    if start.checkpoint is None:
        if config.bigram_table and vocab_size > MOST_BIGRAM_TOKENS:
            weights = vocab_size**2 * config.n_embd
            problem = f"bigram_table has a row for each pair of tokens: {weights:,} weights for {vocab_size:,} tokens"
            raise TinyGPTError(problem, "--bigram_table=False")
        torch.manual_seed(config.seed)
        shape = {name: getattr(config, name) for name in [*ARCHITECTURE, "dropout"]}
        return gpt_class(GPTConfig(vocab_size=padded_vocab_size(vocab_size), **shape)), 0
    base = dataclasses.replace(start.checkpoint, model_args=start.checkpoint.model_args | {"dropout": config.dropout})
    if start.resuming:
        return base.build_for_resuming(gpt_class), 0
    model = base.build_model(gpt_class)
    refuse_diverged(model, start.checkpoint_name)
    set_block_size(model, config.block_size)
    if vocab_size <= known_tokens:
        return model, 0
    grow_vocabulary(model, known_tokens, padded_vocab_size(vocab_size))
    return model, model.config.vocab_size - known_tokens


def training_class(config: TrainConfig, compute: Compute) -> type[GPT]:
    """Choose GPT or FastGPT for a run. Errors: as in `model_class`."""
    return GPT if config.shard or config.checkpoint_activations else model_class(config.fast, compute)


def padded_vocab_size(vocab_size: int) -> int:
    """Round a large vocabulary up to a multiple of 64, which GPUs multiply faster (nanoGPT: 50257 -> 50304)."""
    return vocab_size if vocab_size < 1024 else math.ceil(vocab_size / 64) * 64


def choose_compute(config: TrainConfig, saved: dict[str, Any]) -> Compute:
    """Resolve the keys `device`, `dtype` and `threads` of a run. On a Mac, `auto` is the faster of CPU and MPS for this
    model, or the device in `saved`, the training state of a resumed run, which also keeps its number of threads."""
    name, kept = processes.device_name(config.device), saved.get("threads")
    # the number that one process was given is not for several
    several_processes = os.environ.get("WORLD_SIZE", "1") != "1" and "threads" not in config.given
    count = "auto" if several_processes else config.threads
    compute = device.choose(name, config.dtype, count, kept if type(kept) is int and kept > 0 else 0)
    if name != "auto" or compute.device.type != "cpu" or not torch.backends.mps.is_available():
        return compute
    mps = device.choose("mps", config.dtype)
    if saved:
        return mps if saved.get("device") == "mps" else compute
    if config.eval_only:
        return compute
    dataset = Dataset(config.data_dir, config.dataset)
    return device.choose_faster(compute, mps, lambda candidate: seconds_per_batch(config, dataset, candidate))


def seconds_per_batch(config: TrainConfig, dataset: Dataset, compute: Compute) -> float:
    """Measure the time of a training step on one batch, with a new model, and restore the random generator."""
    with torch.random.fork_rng(devices=[]):
        return device.shortest(step_on_one_batch(config, dataset, compute))


def step_on_one_batch(config: TrainConfig, dataset: Dataset, compute: Compute) -> Callable[[], None]:
    """Make a training step of a new model, whose weights stay as they are, so that it always takes the same time."""
    config = dataclasses.replace(config, shard=False)  # one process measures
    width = dataset.sources["train"].width(config.block_size)
    idx = torch.zeros((config.batch_size, width), dtype=torch.long, device=compute.device)
    model, _ = make_model(Start(config), training_class(config, compute), dataset.tokenizer.vocab_size)
    amp_model, optimizer = build(model, config, compute)
    amp_model.train()
    optimizer.set_learning_rate(0.0)

    def step() -> None:
        loss: Any = amp_model(idx, idx)[1]
        optimizer.backward(loss)
        optimizer.clip()
        optimizer.update()
        loss.item()  # waits for the device

    return step
