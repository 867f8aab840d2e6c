"""Config files: YAML, or Python in nanoGPT's style, which is parsed and never executed."""

import ast
import difflib
import operator
import time
from pathlib import Path
from typing import Any

import yaml

from tinygpt import terminal
from tinygpt.config.fields import keys
from tinygpt.config.schema import FinetuneConfig, run_settings
from tinygpt.errors import TinyGPTError
from tinygpt.files import read_text

# keys whose value is text: `out_dir: 1.10` means the folder 1.10, not the number 1.1
TEXT_KEYS = {key.name for key in keys(FinetuneConfig).values() if key.type is str}
PACKAGE = Path(__file__).parent.parent
NANOGPT = {  # names of nanoGPT's own files, and the presets with their values
    "config/train_shakespeare_char.py": "configs/shakespeare_char_gpu.yaml",
    "config/finetune_shakespeare.py": "configs/gpt2_shakespeare.yaml",
    "config/train_gpt2.py": "configs/gpt2_openwebtext.yaml",
}
PRESETS = [PACKAGE / "configs", PACKAGE.parent / "configs"]  # in a wheel; in a checkout


def find_config(name: str) -> Path:
    """Return the file itself, or the preset of that name in the package (pip users have no configs/ folder).

    The names of nanoGPT's own files mean presets, too, if there are no such files.
    """
    path = Path(name)
    if path.is_file():
        return path
    if preset := NANOGPT.get(path.as_posix()):
        terminal.print_error(f"note: {name}: no such file, so the preset with nanoGPT's values is used: {preset}")
        path = Path(preset)
    presets = {preset.name: preset for folder in PRESETS for preset in sorted(folder.glob("*.yaml"))}
    if path.parent.name in ("", "configs") and path.name in presets:
        return presets[path.name]
    if path.is_dir() and (path / "config.yaml").exists():
        hint = f"{name}/config.yaml to repeat the run, --ckpt {name} to fine-tune its model"
        raise TinyGPTError(f"{name}: is the folder of a run, not a config file", hint)
    close = difflib.get_close_matches(path.stem, [Path(preset).stem for preset in presets], n=1)
    hint = f"configs/{close[0]}.yaml" if close else f"choose one of {', '.join(presets)}"
    raise TinyGPTError(f"{name}: no such config file", hint)


def read_config(path: Path) -> dict[str, Any]:
    """Read the keys and values of one config file."""
    text = read_text(path, "give YAML, or Python in nanoGPT's style")
    return read_python(text, path) if path.suffix == ".py" else read_yaml(text, path)


def read_yaml(text: str, path: Path) -> dict[str, Any]:
    """Parse a YAML mapping of keys to plain values. PyYAML's safe loader refuses tags that would build objects."""
    try:
        written = _check_flat(yaml.compose(text, Loader=yaml.SafeLoader), path)
        loaded = yaml.safe_load(text)
    except TinyGPTError:
        raise
    except Exception as error:  # odd numbers and dates make PyYAML raise many types
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or type(error).__name__
        raise TinyGPTError(f"{where}: {what}", "write lines of 'key: value' with plain values") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise TinyGPTError(f"{path}: not a mapping of keys to values", "write lines of 'key: value'")
    return {key: written[key] if key in TEXT_KEYS and value is not None else value for key, value in loaded.items()}


def _check_flat(node: Any, path: Path) -> dict[str, str]:
    """Check that a config is flat, and return its values as written.

    The check precedes YAML's own conversion, in which a few lines of aliases could expand to gigabytes. Errors:
    TinyGPTError for a key that occurs twice, and for a value that is a list, a mapping or an object.
    """
    written: dict[str, str] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if not isinstance(key, yaml.ScalarNode):
            raise TinyGPTError(
                f"{path}, line {key.start_mark.line + 1}: a key must be a word", "write lines of 'key: value'"
            )
        if key.value in written:
            raise TinyGPTError(f"{path}: {key.value} is set twice", "keep one of the two")
        if not isinstance(value, yaml.ScalarNode):
            plain = value.tag in ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
            what = ("list" if isinstance(value, yaml.SequenceNode) else "dict") if plain else value.tag
            where = path if plain else f"{path}, line {value.start_mark.line + 1}"
            raise TinyGPTError(
                f"{where}: {key.value}: needs one plain value, not {what}",
                f"write lines of 'key: value' with plain values, for example {key.value}: 1",
            )
        written[key.value] = value.value
    return written


_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_CALLS: dict[str, Any] = {"str": str, "time.time": time.time}  # nanoGPT's 'ft-' + str(time.time())


def read_python(text: str, path: Path) -> dict[str, Any]:
    """Parse a Python config in nanoGPT's style, without executing it: assignments of literals, arithmetic on literals
    and earlier names, and `str(time.time())`. Errors: TinyGPTError that quotes any other line, with its number."""
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
                sides = evaluate(left), evaluate(right)
                if any(isinstance(side, str) for side in sides) and not isinstance(op, ast.Add):
                    raise TypeError("arithmetic on text")  # 'a' * 10**9 would fill the memory
                return _bounded(_ARITHMETIC[type(op)](*sides))
            case ast.Call(func=func, args=arguments, keywords=[]) if ast.unparse(func) in _CALLS:
                return _CALLS[ast.unparse(func)](*map(evaluate, arguments))
        raise TypeError("would need to be executed")

    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise TinyGPTError(f"{path}, line {line}: not Python: {error}", "fix it, or write YAML: key: value") from None
    for statement in statements:
        line = (ast.get_source_segment(text, statement) or "...").splitlines()[0][:60]
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=node):
                try:
                    values[name] = evaluate(node)
                except (TypeError, ArithmeticError, ValueError, RecursionError) as error:
                    raise _needs_execution(line, statement.lineno, path, f"{name}: VALUE", str(error)) from None
            case ast.Import(names=[ast.alias(name="time", asname=None)]):
                pass  # for str(time.time())
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case _:
                raise _needs_execution(line, statement.lineno, path, "key: value")
    return values


def _bounded(value: Any) -> Any:
    """Return a result of arithmetic. Errors: ValueError if it is huge, which a short line can achieve."""
    if (isinstance(value, int) and abs(value) > 1 << 64) or (isinstance(value, str) and len(value) > 10_000):
        raise ValueError("gives a result that is too large")
    return value


def _needs_execution(line: str, number: int, path: Path, yaml_line: str, why: str = "would need to be executed"):
    return TinyGPTError(
        f"{path}, line {number}: `{line}`: {why}; configs are parsed, never executed",
        f"write the value itself, or use a YAML file with the line `{yaml_line}`",
    )


def to_yaml(config: Any) -> str:
    """Format the resolved config as YAML that `parse` reads back; a run saves it next to its checkpoints."""
    values = {key: value for key, value in run_settings(config).items() if key != "config"}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
