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
YAML = "tag:yaml.org,2002:"  # before the names of YAML's own types
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
    """Parse a YAML mapping of keys to plain values. PyYAML's safe loader refuses tags that would build objects.

    Only plain values are converted, since a few lines of aliases could expand to gigabytes. Errors: TinyGPTError, also
    for a key that occurs twice.
    """
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
            if not isinstance(key, yaml.ScalarNode):
                raise TinyGPTError(f"{path}, line {key.start_mark.line + 1}: a key must be a word", hint)
            if key.tag != YAML + "str":
                raise TinyGPTError(f"{path}: not a mapping of keys to values", hint)
            if key.value in values:
                raise TinyGPTError(f"{path}: {key.value} is set twice", "keep one of the two")
            if not isinstance(value, yaml.ScalarNode):
                plain = {YAML + "seq": "list", YAML + "map": "dict"}.get(value.tag)
                where = path if plain else f"{path}, line {value.start_mark.line + 1}"
                what = f"{where}: {key.value}: needs one plain value, not {plain or value.tag}"
                raise TinyGPTError(what, f"{hint} with plain values, for example {key.value}: 1")
            converted = loader.construct_object(value)
            values[key.value] = value.value if key.value in TEXT_KEYS and converted is not None else converted
    except TinyGPTError:
        raise
    except Exception as error:  # odd numbers and dates make PyYAML raise many types
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or type(error).__name__
        raise TinyGPTError(f"{where}: {what}", f"{hint} with plain values") from None
    return values


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
                result = _ARITHMETIC[type(op)](*sides)
                # a short line can have a huge result
                if (isinstance(result, int) and abs(result) > 1 << 64) or len(str(result)) > 10_000:
                    raise ValueError("gives a result that is too large")
                return result
            case ast.Call(func=func, args=arguments, keywords=[]) if ast.unparse(func) in _CALLS:
                return _CALLS[ast.unparse(func)](*map(evaluate, arguments))
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
                case ast.Assign(targets=[ast.Name(id=name)], value=node):
                    yaml_line = f"{name}: VALUE"
                    values[name] = evaluate(node)
                case ast.Import(names=[ast.alias(name="time", asname=None)]):
                    pass  # for str(time.time())
                case ast.Expr(value=ast.Constant()):
                    pass  # a docstring
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
    values = {key: value for key, value in run_settings(config).items() if key != "config"}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
