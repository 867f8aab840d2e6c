"""From config files and flags to a checked config, and back to a file.

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])
    config = from_values(TrainConfig, ["configs/shakespeare_char.yaml"], {"device": "cpu", "max_iters": 500})

A config file is YAML, or Python in nanoGPT's style, which is parsed and never executed. Values from files, flags and
Python go through the same function, `converted`, so a key has one type, one range and one error message.
"""

import ast
import itertools
import operator
import os
import reprlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from tinygpt.base import terminal
from tinygpt.base.configs import suggest, withdrawn
from tinygpt.base.configs.core import FinetuneConfig, TrainConfig, run_settings
from tinygpt.base.configs.fields import PATH, POSITIONAL, REQUIRED, RUN, Config, Key, keys
from tinygpt.base.configs.shared import Switch
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import read_text

OTHER_NAMES = {
    "plot": "output",
    "prompt": "start",
    "lr": "learning_rate",
    "model": "ckpt",
    "steps": "max_iters",
    "output_dir": "out_dir",
    "out_dir": "ckpt",
}
# keys whose value is text: `out_dir: 1.10` means the folder 1.10, not the number 1.1
TEXT_KEYS = {key.name for key in keys(FinetuneConfig).values() if key.type is str}
YAML = "tag:yaml.org,2002:"  # before the names of YAML's own types
PACKAGE = Path(__file__).parent.parent.parent
NANOGPT = {  # names of nanoGPT's own files, and the presets with their values
    "config/train_shakespeare_char.py": "shakespeare_char_gpu",
    "config/finetune_shakespeare.py": "gpt2_shakespeare",
    "config/train_gpt2.py": "gpt2_openwebtext",
}
WANDB = ("wandb_log", "wandb_project", "wandb_run_name")  # keys of nanoGPT that are ignored
PRESETS = [PACKAGE / "configs", PACKAGE.parent / "configs"]  # in a wheel; in a checkout
OTHERS = [
    PACKAGE / "learn/lab/configs",
    PACKAGE / "use/ask",
    PACKAGE / "base/configs",
]  # next to what uses them, and not listed
ConfigType = TypeVar("ConfigType", bound=Config)


def parse(config_class: type[ConfigType], args: list[str], prog: str = "tinygpt") -> ConfigType:
    """Make a config of `config_class` from its files and flags; check each value, and all values together.

    Errors: TinyGPTError for an unreadable file, an unknown key, a value of the wrong type, and all values out of range.
    """
    if "-h" in args or "--help" in args:
        from tinygpt.base.configs.help import help_text

        print(help_text(config_class, prog), end="")
        raise SystemExit
    return _checked(config_class, *split_arguments(config_class, args, prog), prog)


def from_values(
    config_class: type[ConfigType], positionals: Iterable[object], values: Mapping[str, object], prog: str = "tinygpt"
) -> ConfigType:
    """Make a config from Python values: positional arguments, and values by key, which count as flags.

    A path or a number of NumPy is a value, too; None is the default. A key that takes several values takes an iterable.
    Errors: as in `parse`.
    """
    flags = dict[str, Any]()
    for name, value in values.items():
        if ignored(config_class, name, value, "--"):
            continue
        key = find_key(config_class, name, "--", prog)
        items = value if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)) else [value]
        if items is value and key.type is not tuple:
            raise TinyGPTError(f"{name}: needs one value, not {value!r}")
        flags |= assigned(key, [plain(item) for item in items if item is not None], "--")
    return _checked(config_class, list(map(plain, positionals)), flags, prog)


def _checked(config_class: type[ConfigType], positionals: list[Any], flags: dict[str, Any], prog: str) -> ConfigType:
    """Make a config of positional arguments, the files that they name, and flags; check all values together."""
    values = positional_values(config_class, positionals, flags, prog)
    from_files = {}
    for path in map(find_config, values.get("config", ())):
        for name, value in read_config(path).items():
            prefix = f"{path}: "
            if withdrawn.ignore_key(prog, name, prefix) or ignored(config_class, name, value, prefix):
                continue
            from_files[name] = converted(find_key(config_class, name, prefix, prog), value, prefix)
    config = config_class(**values | from_files | flags, flags=frozenset(flags), given=frozenset(flags | from_files))
    if problems := list(config.problems()):
        raise TinyGPTError("; ".join(problems))
    return config


def split_arguments(config_class: type, args: list[str], prog: str) -> tuple[list[str], dict[str, Any]]:
    """Separate the positional arguments from the flags, whose values are converted.

    A flag is --key=value or --key value; a bare --quiet is True; the first argument of `sample out` is the flag
    --ckpt=out. A key that takes several values collects them from all its occurrences: --input a b --input=c.
    """
    positionals = list[str]()
    flags = dict[str, Any]()
    queue = list(args)
    while queue:
        arg = queue.pop(0)
        arg = "--output" if arg == "-o" and "output" in keys(config_class) else arg
        if not arg.startswith("-") or arg == "-":  # standard input
            positionals.append(arg)
            continue
        if not arg.startswith("--") or arg == "--":
            raise TinyGPTError(f"{arg}: no such option")
        name, equals, text = arg[2:].partition("=")
        if equals and ignored(config_class, name, text, "--"):
            continue
        key = find_key(config_class, name.replace("-", "_"), "--", prog)
        if equals:
            texts = [text]
        elif key.type is tuple:
            texts = list(itertools.takewhile(lambda arg: not arg.startswith("--"), queue))
            del queue[: len(texts)]
        elif key.type in (bool, Switch) and " ".join(queue[:1]).lower() not in ("true", "false", "auto"):
            texts = ["True"]
        else:
            texts = queue[:1]
            queue = queue[1:]
        if not texts:
            raise TinyGPTError(f"--{key.name} needs a value", f"--{key.name}=VALUE")
        values = [converted(key, text, "--") for text in texts]
        flags[key.name] = (*flags.get(key.name, ()), *values) if key.type is tuple else values[0]
    for key in keys(config_class).values():
        if RUN in key.marks and positionals and key.name not in flags:
            flags[key.name] = converted(key, positionals.pop(0), "--")
    return positionals, flags


def ignored(config_class: type, name: str, value: object, prefix: str) -> bool:
    """Return whether a training ignores a key of nanoGPT; print a note if wandb_log is on."""
    wandb = name in WANDB and issubclass(config_class, TrainConfig)
    if wandb and name == "wandb_log" and value and str(value).lower() != "false":
        terminal.print_error(f"note: {prefix}wandb_log is ignored: no run is sent to Weights & Biases")
    return wandb


def positional_values(config_class: type, texts: list[Any], flags: dict[str, Any], prog: str) -> dict[str, Any]:
    """Assign the positional arguments to their keys, in order. Errors: TinyGPTError for too few or too many."""
    values: dict[str, Any] = {}
    for key in keys(config_class).values():
        if POSITIONAL not in key.marks:
            continue
        if key.default is REQUIRED and not texts:
            raise TinyGPTError(f"{prog} needs {key.name.upper()}")
        taken, texts = (texts, []) if key.type is tuple else (texts[:1], texts[1:])
        values |= assigned(key, taken, "")
    if texts:
        hint = f"--start {suggest.quoted(texts[0])}" if "start" in keys(config_class) else ""
        run = next((key.name for key in keys(config_class).values() if RUN in key.marks), "")
        reason = f", since the model is {suggest.quoted(flags[run])}" if run else ""
        raise TinyGPTError(f"{texts[0]}: unexpected argument{reason}", hint)
    return values


def find_key(config_class: type, name: str, prefix: str, prog: str) -> Key:
    """Return the key of that name, unless it is positional. Errors: TinyGPTError that suggests the nearest name."""
    known = {key.name: key for key in keys(config_class).values() if POSITIONAL not in key.marks}
    if name in known:
        return known[name]
    if name in keys(config_class):
        raise TinyGPTError(f"{prefix}{name}: is an argument without a flag, not a key", f"{prog} {name.upper()}")
    if config_class is TrainConfig and name in keys(FinetuneConfig):
        raise TinyGPTError(
            f"{prefix}{name}: a key of tinygpt finetune", f"drop {name}, or tinygpt finetune --ckpt BASE"
        )
    if name in ("ckpt", "out_dir") and {"run", "runs"} & keys(config_class).keys():
        raise TinyGPTError(f"--{name}: {prog} takes the folder without a flag", f"{prog} out")
    withdrawn.refuse_key(prog, name)
    sign = " =" if prefix.endswith(".py: ") else ":"
    near = [key for key in (OTHER_NAMES.get(name), *get_close_matches(name, known, cutoff=0.7)) if key in known]
    hints = (f"--{key}=VALUE" if prefix == "--" else f"{key}{sign} VALUE" for key in near)
    raise TinyGPTError(f"{prefix}{name}: no such key", next(hints, ""))


def plain(value: object) -> Any:
    """Convert a path to text, and a number of NumPy to one of Python; other values stay."""
    return os.fspath(value) if isinstance(value, os.PathLike) else getattr(value, "item", lambda: value)()


def assigned(key: Key, values: Iterable[Any], prefix: str) -> dict[str, Any]:
    """Convert the values given for a key, and return them by its name: a tuple if it takes several; empty for none."""
    parsed = tuple(converted(key, value, prefix) for value in values)
    if not parsed:
        return {}
    return {key.name: parsed if key.type is tuple else parsed[0]}


def converted(key: Key, value: Any, prefix: str) -> Any:
    """Return the value in the key's type. `prefix` precedes the key's name in messages. Errors: TinyGPTError."""
    name = f"{prefix}{key.name}"
    if not isinstance(value, (str, int, float, bool)):
        raise TinyGPTError(f"{name}: needs one plain value, not {type(value).__name__} {value!r}", f"{key.name}: 1")
    if isinstance(value, int) and abs(value) > 1 << 64:  # Python refuses to print an integer of thousands of digits
        raise TinyGPTError(f"{name}: this number is too large")
    if key.type in (str, tuple):
        if PATH in key.marks and "\0" in str(value):
            raise TinyGPTError(f"{name}: a path cannot contain a NUL character")
        if isinstance(value, (float, bool)):  # from a Python config; from YAML it is text as written
            raise TinyGPTError(f"{name}: needs text, not the number {value!r}", f"{key.name} = {str(value)!r}")
        return os.path.expanduser(str(value)) if PATH in key.marks else str(value)
    choices = ("True", "False") if key.type is bool else get_args(key.type)
    text = str(value)
    try:
        if not choices:
            return key.type(text)
        choice = {choice.lower(): choice for choice in choices}[text.lower()]
        return choice == "True" if key.type is bool else choice
    except (KeyError, ValueError):
        expected = {int: "a whole number", float: "a number"}.get(key.type, f"one of {', '.join(choices)}")
        raise TinyGPTError(f"{name}: {reprlib.repr(value)} is not {expected}") from None


def find_config(name: str) -> Path:
    """Return the file itself, or the preset of that name in the package (pip users have no configs/ folder): `nanogpt`,
    `nanogpt.yaml` or `configs/nanogpt.yaml`.

    The names of nanoGPT's own files mean presets, too, if there are no such files. Errors: TinyGPTError that lists the
    presets.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix == ".txt":
            problem = f"{name} is a text, not a config file (.yaml or .py)"
            raise TinyGPTError(problem, suggest.command("prepare", path.stem, "--input", path))
        return path
    if preset := NANOGPT.get(path.as_posix()):
        terminal.print_error(f"note: {name}: no such file, so the preset with nanoGPT's values is used: {preset}")
        path = Path(preset)
    if path.is_dir() and (path / "config.yaml").exists():
        hint = f"{name}/config.yaml to repeat the run, or tinygpt finetune --ckpt {name}"
        raise TinyGPTError(f"{name}: is the folder of a run, not a config file", hint)
    presets = {preset.stem: preset for folder in PRESETS for preset in sorted(folder.glob("*.yaml"))}
    others = {preset.stem: preset for folder in OTHERS for preset in folder.glob("*.yaml")}
    if path.parent.name in ("", "configs") and path.suffix in ("", ".yaml") and path.stem in presets | others:
        return (presets | others)[path.stem]
    close = get_close_matches(path.stem, presets, n=1)
    hint = f"configs/{close[0]}.yaml" if close else "choose a preset, or name a file of your own"
    comments = {stem: preset.read_text("utf-8").partition("\n")[0][2:] for stem, preset in presets.items()}
    listed = [f"{stem:<33} {terminal.cut(comment, 80)}" for stem, comment in comments.items()]
    raise TinyGPTError("\n    ".join((f"{name}: no such config file; the presets:", *listed)), hint)


def read_config(path: Path) -> dict[str, Any]:
    """Read the keys and values of one config file."""
    text = read_text(path, "give YAML, or Python in nanoGPT's style")
    return read_python(text, path) if path.suffix == ".py" else read_yaml(text, path)


def read_yaml(text: str, path: Path) -> dict[str, Any]:
    """Parse a YAML mapping of keys to plain values. PyYAML's safe loader refuses tags that would build objects.

    Only plain values are converted, since a few lines of aliases could expand to gigabytes. Errors: TinyGPTError, also
    for a key that occurs twice.
    """
    import yaml

    values: dict[str, Any] = {}
    hint = "write lines of 'key: value'"
    try:
        loader = yaml.SafeLoader(text)
        top = loader.get_single_node()
        if top is None or top.tag == YAML + "null":
            return {}
        if not isinstance(top, yaml.MappingNode):
            raise TinyGPTError(f"{path}: not a mapping of keys to values", hint)
        for key, value in top.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != YAML + "str":
                raise TinyGPTError(f"{path}, line {key.start_mark.line + 1}: a key must be a word", hint)
            if key.value in values:
                raise TinyGPTError(f"{path}: {key.value} is set twice", "keep one of the two")
            if not isinstance(value, yaml.ScalarNode):
                plain = {YAML + "seq": "list", YAML + "map": "dict"}.get(value.tag)
                where = path if plain else f"{path}, line {value.start_mark.line + 1}"
                problem = f"{where}: {key.value}: needs one plain value, not {plain or value.tag}"
                raise TinyGPTError(problem, f"{hint} with plain values, for example {key.value}: 1")
            parsed = loader.construct_object(value)
            values[key.value] = value.value if key.value in TEXT_KEYS and parsed is not None else parsed
    except TinyGPTError:
        raise
    except Exception as error:  # odd numbers and dates make PyYAML raise many types
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or type(error).__name__
        raise TinyGPTError(f"{where}: {problem}", f"{hint} with plain values") from None
    return values


_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def read_python(text: str, path: Path) -> dict[str, Any]:
    """Parse a Python config in nanoGPT's style, without executing it: assignments of literals, and arithmetic on
    literals and earlier names. Errors: TinyGPTError that quotes any other line, with its number."""
    values: dict[str, Any] = {}

    def evaluate(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value) if isinstance(value, (str, int, float, bool)):
                return value
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -evaluate(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                operands = evaluate(left), evaluate(right)
                if any(isinstance(item, str) for item in operands) and not isinstance(op, ast.Add):
                    raise TypeError("arithmetic on text")  # 'a' * 10**9 would fill the memory
                result = _ARITHMETIC[type(op)](*operands)
                # a short line can have a huge result
                if (isinstance(result, int) and abs(result) > 1 << 64) or len(str(result)) > 10_000:
                    raise ValueError("gives a result that is too large")
                return result
        raise TypeError("would need to be executed")

    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise TinyGPTError(f"{path}, line {line}: not Python: {error}", "fix it, or write YAML: key: value") from None
    for statement in statements:
        yaml_line = "key: value"
        try:
            match statement:
                case ast.Assign(targets=[ast.Name(id="wandb_run_name")]):
                    pass  # nanoGPT's 'ft-' + str(time.time())
                case ast.Assign(targets=[ast.Name(id=name)], value=node):
                    yaml_line = f"{name}: VALUE"
                    values[name] = evaluate(node)
                case ast.Import(names=[ast.alias(name="time", asname=None)]) | ast.Expr(value=ast.Constant()):
                    pass  # for time.time(), too; a docstring
                case _:
                    raise TypeError("would need to be executed")
        except (TypeError, ArithmeticError, ValueError, RecursionError) as error:
            line = (ast.get_source_segment(text, statement) or "...").splitlines()[0][:60]
            raise TinyGPTError(
                f"{path}, line {statement.lineno}: `{line}`: {error}; configs are parsed, never executed",
                f"write the value itself, or use a YAML file with the line `{yaml_line}`",
            ) from None
    return values


def to_yaml(config: Any) -> str:
    """Format the resolved config as YAML that `parse` reads back; a run saves it next to its checkpoints."""
    import yaml

    values = {key: value for key, value in run_settings(config).items() if key != "config"}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
