"""From config files and flags to a checked config.

A file's values and the command line's flags are turned into the same list of `--key=value` and go through the
same parser (tyro), so a key has one type, one default, one help text and one error message.

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from tinygpt.config.schema import DATASET_NAME, PATHS, PrepareConfig
from tinygpt.errors import TinyGPTError

ConfigType = TypeVar("ConfigType")


def parse(kind: type[ConfigType], args: list[str], prog: str = "tinygpt") -> ConfigType:
    """Make a config of `kind` from its files and flags, checked key by key and as a whole.

    Errors: TinyGPTError for an unreadable file, an unknown key ("did you mean"), or values out of range.
    """
    if "-h" in args or "--help" in args:
        _tyro(kind, ["--help"], prog)
    positionals, flags, lists = _split(kind, args)
    from_files = []
    if "config" in _fields(kind):
        from tinygpt.config.files import find_config, read_config  # PyYAML, which the other commands can do without

        for name in positionals:
            path = find_config(name)
            from_files += [_flag(kind, key, value, where=str(path)) for key, value in read_config(path).items()]
    config = _tyro(kind, [*positionals, *from_files, *flags], prog)
    for key, values in lists.items():
        setattr(config, key, tuple(values))
    for key in PATHS & _fields(kind).keys():  # shells do not expand ~/x after `--key=`
        value: Any = getattr(config, key)
        expanded = tuple(map(os.path.expanduser, value)) if isinstance(value, tuple) else os.path.expanduser(value)
        setattr(config, key, expanded)
    config.flags = {flag[2:].partition("=")[0] for flag in flags} | set(lists)  # type: ignore[attr-defined]
    config.given = config.flags | {flag[2:].partition("=")[0] for flag in from_files}  # type: ignore[attr-defined]
    problems = list(_problems(config))
    if problems:
        raise TinyGPTError("; ".join(problems), f"see {prog} --help for what each value means")
    return config


def _fields(kind: type) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _split(kind: type, args: list[str]) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Separate positionals, flags and lists.

    Flags are brought into the form --key=value (a bare --quiet is True). Lists hold the values of keys that accept
    several, from all occurrences of the key: `--input a b --input=c`.
    """
    hints = get_type_hints(kind)
    positionals: list[str] = []
    flags: list[str] = []
    lists: dict[str, list[str]] = {}
    queue = list(args)
    while queue:
        arg = queue.pop(0)
        if arg == "-o" and "output" in hints:
            arg = "--output"
        if not arg.startswith("--") or arg == "--":
            positionals.append(arg)
            continue
        key, equals, value = arg[2:].partition("=")
        key = key.replace("-", "_")
        if hints.get(key) is tuple and key in _options(kind):
            values = [value] if equals else []
            while not equals and queue and not queue[0].startswith("--"):
                values.append(queue.pop(0))
            if not values:
                raise TinyGPTError(f"--{key} needs a value", f"--{key} FILE")
            lists.setdefault(key, []).extend(values)
        elif equals:
            flags += [_flag(kind, key, value)]
        elif hints.get(key) is bool:
            literal = queue and queue[0].lower() in ("true", "false")
            flags += [_flag(kind, key, queue.pop(0) if literal else "True")]
        elif queue:
            flags += [_flag(kind, key, queue.pop(0))]
        else:
            _flag(kind, key, "")  # an unknown key is the likelier mistake
            raise TinyGPTError(f"--{key} needs a value", f"--{key}=VALUE")
    return positionals, flags, lists


def _options(kind: type) -> list[str]:
    """Keys that are flags, not positionals."""
    hints = get_type_hints(kind, include_extras=True)
    return [name for name in _fields(kind) if tyro.conf.Positional not in get_args(hints[name])]


def _flag(kind: type, key: str, value: Any, where: str = "") -> str:
    """One --key=value for tyro; Errors: a key that does not exist, a value that is not a plain one."""
    known, hints = _options(kind), get_type_hints(kind)
    prefix = f"{where}: " if where else "--"
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the keys are: {', '.join(known)}"
        raise TinyGPTError(f"{prefix}{key}: no such key", hint)
    if isinstance(value, int) and abs(value) > 1 << 64:
        raise TinyGPTError(f"{prefix}{key}: the number is too large", f"{key}: 1")
    if not isinstance(value, (str, int, float, bool)):
        raise TinyGPTError(f"{prefix}{key}: needs one plain value, not {type(value).__name__} {value!r}", f"{key}: 1")
    if hints[key] is str and not isinstance(value, str):  # from a Python config; from YAML it is text as written
        raise TinyGPTError(f"{prefix}{key}: needs text, not the number {value!r}", f"{key} = {str(value)!r}")
    text = str(value)
    if "\0" in text:
        raise TinyGPTError(f"{prefix}{key}: contains a NUL character", f"{key}: text without NUL")
    if text.lower() in ("true", "false") and hints[key] is not str:  # YAML's true, nanoGPT's True
        text = text.capitalize()
    return f"--{key}={text}"


def _tyro(kind: type[ConfigType], args: list[str], prog: str) -> ConfigType:
    """tyro's parser, with its boxed error turned into one sentence."""
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(kind, args=args, prog=prog, use_underscores=True, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = [re.sub(r"^[│╭╰]\s?|\s*[│╮╯]$", "", line) for line in boxed.getvalue().splitlines()[1:]]
        rule = next((i for i, line in enumerate(lines) if set(line.strip()) <= {"─"}), len(lines))
        sentence = " ".join(" ".join(lines[:rule]).split())
        raise TinyGPTError(sentence or f"{prog}: arguments not understood", f"{prog} --help") from None


def _problems(config: Any) -> Iterator[str]:
    """Everything that is wrong with the values taken together, each as one phrase."""
    at_least_one = "batch_size block_size gradient_accumulation_steps n_layer n_head n_embd eval_interval log_interval"
    for name in f"{at_least_one} num_samples iterations".split():
        if getattr(config, name, 1) < 1:
            yield f"{name} is {getattr(config, name)}, it must be at least 1"
        if getattr(config, name, 1) > 2**53:
            yield f"{name} is {getattr(config, name)}, more than any machine can hold"
    at_least_zero = "max_iters eval_iters patience checkpoint_interval sample_interval warmup_iters lr_decay_iters seed"
    at_least_zero += " lora_rank show"
    rates = "learning_rate muon_learning_rate min_lr weight_decay grad_clip temperature top_k max_new_tokens lora_alpha"
    for name in f"{at_least_zero} {rates}".split():
        if not 0 <= getattr(config, name, 0) < float("inf"):
            yield f"{name} is {getattr(config, name)}, it must be 0 or more"
    for name, low, high in [(name, 0, 1) for name in ("dropout", "lora_dropout", "replay", "beta1", "beta2")]:
        if not low <= getattr(config, name, low) < high:
            yield f"{name} is {getattr(config, name)}, it must be in [{low}, {high})"
    if hasattr(config, "val_fraction") and not 0 < config.val_fraction < 1:
        yield f"val_fraction is {config.val_fraction}, it must be between 0 and 1"
    pairs = isinstance(config, PrepareConfig) and config.format == "pairs"
    if pairs and not 0 < config.test_fraction < 1 - config.val_fraction:
        yield f"test_fraction is {config.test_fraction}, it must be above 0 and leave room for training"
    if hasattr(config, "top_p") and not 0 < config.top_p <= 1:
        yield f"top_p is {config.top_p}, it must be above 0 and at most 1"
    if hasattr(config, "n_head") and config.n_head > 0 and config.n_embd % config.n_head:
        yield f"n_head {config.n_head} does not divide n_embd {config.n_embd}"
    elif getattr(config, "position", "") == "rope" and config.n_head > 0 and config.n_embd // config.n_head % 2:
        yield f"position=rope turns pairs of numbers: n_embd {config.n_embd} / n_head {config.n_head} must be even"
    if getattr(config, "seed", 0) >= 2**63:
        yield f"seed is {config.seed}, it must be below 2**63"
    for key in ("dataset", "base_dataset", "task"):
        yield from _dataset_name_problems(getattr(config, key, ""))
    if isinstance(config, PrepareConfig):
        yield from _dataset_name_problems(config.name, required=True)


def _dataset_name_problems(name: str, required: bool = False) -> Iterator[str]:
    if (name or required) and not re.fullmatch(DATASET_NAME, name):
        yield f"dataset name {name!r} must be letters, digits, '_', '-' and '.' only (it names a folder inside data/)"
