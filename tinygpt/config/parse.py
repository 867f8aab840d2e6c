"""From config files and flags to a checked config.

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])

Values from files and flags go through the same function, `converted`, so a key has one type, one range and one error
message. tyro prints --help and the shell completion; nothing else needs it.
"""

import dataclasses
import difflib
import inspect
import itertools
import math
import os
import reprlib
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn, TypeVar, get_args

from tinygpt.config.fields import LARGEST, PATH, POSITIONAL, Key, Limit, Switch, keys, meanings
from tinygpt.config.schema import (
    EvalConfig,
    ExportConfig,
    FinetuneConfig,
    PlanConfig,
    PlotConfig,
    PrepareConfig,
    TrainConfig,
)
from tinygpt.errors import TinyGPTError

ConfigType = TypeVar("ConfigType")


def parse(kind: type[ConfigType], args: list[str], prog: str = "tinygpt") -> ConfigType:
    """Make a config of `kind` from its files and flags; check each value, and all values together.

    `config.flags` are the keys given as flags, `config.given` those given as flags or in files. Errors: TinyGPTError
    for an unreadable file, an unknown key ("did you mean"), a value of the wrong type, and all values out of range.
    """
    if "-h" in args or "--help" in args:
        show_help(kind, prog)
    texts, flags = split(kind, args, prog)
    values, from_files = placed(kind, texts, prog), {}
    if values.get("config"):
        from tinygpt.config.files import find_config, read_config  # PyYAML, which no other command needs

        for path in map(find_config, values["config"]):
            for name, value in read_config(path).items():
                if kind in (TrainConfig, PlanConfig) and is_left_over(name, value):
                    continue
                from_files[name] = converted(find_key(kind, name, f"{path}: "), value, f"{path}: ", prog)
    config = kind(**values | from_files | flags)
    config.flags = set(flags)  # type: ignore[attr-defined]
    config.given = flags.keys() | from_files.keys()  # type: ignore[attr-defined]
    problems = [*out_of_range(config), *contradictions(config)]
    if problems:
        raise TinyGPTError("; ".join(problems), f"{prog} --help")
    return config


def split(kind: type, args: list[str], prog: str) -> tuple[list[str], dict[str, Any]]:
    """Separate the positional arguments from the flags, whose values are converted.

    A flag is --key=value or --key value; a bare --quiet is True. A key that takes several values collects them from all
    its occurrences: --input a b --input=c.
    """
    positionals: list[str] = []
    flags: dict[str, Any] = {}
    queue = list(args)
    while queue:
        arg = queue.pop(0)
        arg = "--output" if arg == "-o" and "output" in keys(kind) else arg
        if not arg.startswith("-"):
            positionals.append(arg)
            continue
        if not arg.startswith("--") or arg == "--":
            raise TinyGPTError(f"{arg}: no such option", f"{prog} --help")
        name, equals, text = arg[2:].partition("=")
        key = find_key(kind, name.replace("-", "_"), "--")
        if equals:
            texts = [text]
        elif key.type is tuple:
            texts = list(itertools.takewhile(lambda arg: not arg.startswith("--"), queue))
            del queue[: len(texts)]
        elif key.type in (bool, Switch) and " ".join(queue[:1]).lower() not in ("true", "false", "auto"):
            texts = ["True"]
        else:
            texts, queue = queue[:1], queue[1:]
        if not texts:
            raise TinyGPTError(f"--{key.name} needs a value", f"--{key.name}=VALUE")
        found = [converted(key, text, "--", prog) for text in texts]
        flags[key.name] = (*flags.get(key.name, ()), *found) if key.type is tuple else found[0]
    return positionals, flags


def placed(kind: type, texts: list[str], prog: str) -> dict[str, Any]:
    """Assign the positional arguments to their keys, in order. Errors: TinyGPTError for too few or too many."""
    values: dict[str, Any] = {}
    for key in keys(kind).values():
        if POSITIONAL not in key.marks:
            continue
        if key.required and not texts:
            raise TinyGPTError(f"{prog} needs {key.name.upper()}", f"{prog} --help")
        here, texts = (texts, []) if key.type is tuple else (texts[:1], texts[1:])
        found = [converted(key, text, "", prog) for text in here]
        if found:
            values[key.name] = tuple(found) if key.type is tuple else found[0]
    if texts:
        raise TinyGPTError(f"{texts[0]}: unexpected argument", f"{prog} --help")
    return values


def find_key(kind: type, name: str, where: str) -> Key:
    """Return the key of that name, unless it is positional. Errors: TinyGPTError that suggests the nearest name."""
    known = {key.name: key for key in keys(kind).values() if POSITIONAL not in key.marks}
    if name not in known and kind in (TrainConfig, PlanConfig) and name in keys(FinetuneConfig):
        raise TinyGPTError(f"{where}{name}: a key of tinygpt finetune", "tinygpt finetune --ckpt BASE/ckpt.pt")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the keys are: {', '.join(known)}"
        raise TinyGPTError(f"{where}{name}: no such key", hint)
    return known[name]


def is_left_over(name: str, value: Any) -> bool:
    """Return whether version 0.1 wrote this value into a config of `tinygpt train` without effect.

    It wrote the defaults of finetune's keys, and base_dataset, which only other keys of finetune use.
    """
    left_over = keys(FinetuneConfig).keys() - keys(TrainConfig).keys() - {"ckpt"}
    return name in left_over and (name == "base_dataset" or value == getattr(FinetuneConfig, name))


def converted(key: Key, value: Any, where: str, prog: str) -> Any:
    """Return the value in the key's type. `where` goes before the key's name in messages. Errors: TinyGPTError."""
    name = f"{where}{key.name}"
    if not isinstance(value, (str, int, float, bool)):
        raise TinyGPTError(f"{name}: needs one plain value, not {type(value).__name__} {value!r}", f"{key.name}: 1")
    if isinstance(value, int) and abs(value) > 1 << 64:  # Python refuses to print an integer of thousands of digits
        raise TinyGPTError(f"{name}: this number is too large", f"{key.name}: 1")
    if key.type in (str, tuple):
        if not isinstance(value, str):  # from a Python config; from YAML it is text as written
            raise TinyGPTError(f"{name}: needs text, not the number {value!r}", f"{key.name} = {str(value)!r}")
        if "\0" in value:
            raise TinyGPTError(f"{name}: contains a NUL character", f"{key.name}: text without NUL")
        return os.path.expanduser(value) if PATH in key.marks else value
    choices = ("True", "False") if key.type is bool else get_args(key.type)
    try:
        if choices:
            text = {choice.lower(): choice for choice in choices}[str(value).lower()]
            return text == "True" if key.type is bool else text
        return key.type(str(value))
    except (KeyError, ValueError):
        listed = ", ".join(choice or "(empty)" for choice in choices)
        expected = {int: "a whole number", float: "a number"}.get(key.type, f"one of {listed}")
        raise TinyGPTError(f"{name}: {reprlib.repr(value)} is not {expected}", f"{prog} --help") from None


def out_of_range(config: Any) -> Iterator[str]:
    """Yield one phrase for each key whose value is out of range."""
    for key in keys(config.__class__).values():
        problems = (mark.problem(key.name, getattr(config, key.name)) for mark in key.marks if hasattr(mark, "problem"))
        yield from [problem for problem in problems if problem][:1]


def contradictions(config: Any) -> Iterator[str]:
    """Yield one phrase for each contradiction between values."""
    pairs = isinstance(config, PrepareConfig) and config.format == "pairs"
    if pairs and not 0 < config.test_fraction < 1 - config.val_fraction:
        yield f"test_fraction is {config.test_fraction}, but must be above 0 and leave room for training"
    if isinstance(config, EvalConfig) and (config.plot if config.predict else config.output):
        yield "output (the file of labels) needs predict; plot (the confusion matrix) cannot be used with predict"
    if isinstance(config, EvalConfig) and config.predict and {"positive", "miss_cost"} & config.given:  # type: ignore[attr-defined]
        yield "positive and miss_cost are for an evaluation, and cannot be used with predict"
    if isinstance(config, ExportConfig) and "quantisation" in config.given and config.format != "gguf":  # type: ignore[attr-defined]
        yield f"quantisation needs format=gguf, but format is {config.format}"
    if isinstance(config, TrainConfig) and config.watch and config.eval_only:
        yield "watch shows a run while it trains, and cannot be used with eval_only"
    if isinstance(config, PlanConfig):
        choosing = bool(config.budget or config.target)
        if config.law and not choosing:
            yield "law needs budget or target"
        if config.time_only and choosing:
            yield "time_only cannot be used with budget or target, which run no pilots"
    if isinstance(config, PlotConfig) and config.output and config.to != "png":
        yield f"output is the PNG file, and cannot be used with to={config.to}"
    if hasattr(config, "n_head") and config.n_head > 0:
        if config.n_embd % config.n_head:
            yield f"n_head {config.n_head} does not divide n_embd {config.n_embd}"
        elif config.position == "rope" and (width := config.n_embd // config.n_head) % 2:
            yield f"position=rope rotates pairs of channels, so n_embd / n_head must be even, but is {width}"
        if config.n_kv_head and config.n_head % config.n_kv_head:
            yield f"n_kv_head {config.n_kv_head} does not divide n_head {config.n_head}"
        if config.qk_norm_weights and not config.qk_norm:
            yield "qk_norm_weights needs qk_norm"
    for factor in ("gradient_accumulation_steps", "eval_iters"):
        names = (factor, "batch_size", "block_size")
        if all(hasattr(config, name) for name in names):
            tokens = math.prod(getattr(config, name) for name in names)
            if tokens > LARGEST:
                yield f"{' x '.join(names)} is {tokens:,} tokens, more than any machine can hold"


def show_help(kind: type, prog: str) -> NoReturn:
    """Print what the command does and what each key means, then exit."""
    import tyro

    tyro.cli(for_tyro(kind), args=["--help"], prog=prog, use_underscores=True, config=(tyro.conf.FlagConversionOff,))
    raise SystemExit


def for_tyro(kind: type) -> type:
    """Translate a configuration class for tyro; a command's own keys come before those that it shares with `train`."""
    import tyro

    texts, own = meanings(kind), list(inspect.get_annotations(kind))
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    annotations, defaults = {}, {}
    for field in sorted(fields, key=lambda field: own.index(field.name) if field.name in own else len(own)):
        key = keys(kind)[field.name]
        marks: list[Any] = [tyro.conf.Positional] if POSITIONAL in key.marks else []
        empty = field.default == () or (key.type is tuple and key.required)
        empty = empty or (POSITIONAL in key.marks and field.default == "")
        hint: dict[str, Any] = {"help_behavior_hint": ""} if empty else {}  # not "(default: )"
        marks.append(tyro.conf.arg(help=texts[key.name], metavar=metavar(key) or None, **hint))
        plain = tuple[str, ...] if key.type is tuple else key.type
        annotations[key.name] = Annotated[(plain, *marks)]
        if not key.required:
            defaults[key.name] = field.default
    shown = type(kind.__name__, (), {"__doc__": kind.__doc__, "__annotations__": annotations, **defaults})
    return dataclasses.dataclass(shown)


def metavar(key: Key) -> str:
    """Return the placeholder for a key's value in --help; empty: tyro's own."""
    if get_args(key.type):
        return ""
    if POSITIONAL in key.marks:
        name = f"{key.name.upper()} ..." if key.type is tuple else key.name.upper()
        return name if key.required else f"[{name}]"
    limits = [f"{mark.sign}{mark.bound}" for mark in key.marks if isinstance(mark, Limit) and mark.bound < LARGEST]
    if key.type is tuple:
        return "FILE ..." if PATH in key.marks else "STR ..."
    return f"{key.type.__name__.upper()}{','.join(limits)}" if limits else ""
