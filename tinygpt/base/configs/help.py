"""The text of --help, and completion in a shell: argparse describes each command from its configuration.

    print(help_text(TrainConfig, "tinygpt train"))

argparse parses nothing here: `tinygpt/base/configs/parse.py` does.
"""

import argparse
import inspect
import shutil
import textwrap
from typing import Any, get_args

from tinygpt.base.configs.fields import (
    LARGEST,
    PATH,
    POSITIONAL,
    REQUIRED,
    RUN,
    Config,
    Key,
    Limit,
    groups,
    meanings,
)

NOTE = "--key=VALUE or --key VALUE; a switch needs no value (off: --key=False)"
WIDEST = 120  # longer lines are hard to read


class Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal, up to a limit; example commands stay as they are."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST)
        super().__init__(prog, max_help_position=width // 4 + 8, width=width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = inspect.cleandoc(text).split("\n\n")
        filled = [
            textwrap.indent(paragraph, "  ")
            if paragraph.startswith("tinygpt ")
            else textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent)
            for paragraph in paragraphs
        ]
        return "\n\n".join(filled)


def help_text(config_class: type[Config], prog: str) -> str:
    """Return what --help shows of the command `prog`."""
    parser = argparse.ArgumentParser(prog, add_help=False)
    return described(config_class, parser, hidden=config_class.hidden_groups).format_help()


def described(
    config_class: type, parser: argparse.ArgumentParser, hidden: tuple[str, ...] = ()
) -> argparse.ArgumentParser:
    """Describe a command by its configuration: the examples in the docstring, its arguments, and its keys in groups.

    hidden: titles of groups to leave out.
    """
    texts = meanings(config_class)
    usage = ["%(prog)s"]
    arguments = parser.add_argument_group("arguments")
    for title, members in groups(config_class).items():
        if title in hidden:
            continue
        group = arguments if title == "arguments" else parser.add_argument_group(title)
        for key in members:
            if RUN in key.marks:
                run = key._replace(name="run", marks=(POSITIONAL, PATH))
                usage.append(placeholder(run))
                add(arguments, run, texts[key.name])
                add(group, key._replace(default=""), "the same as RUN")
                continue
            if POSITIONAL in key.marks:
                usage.append(placeholder(key))
            add(group, key, texts[key.name])
        if title == "options":
            group.description = NOTE
            group.add_argument("-h", "--help", action="help", help="show this text")
    parser.usage = " ".join([*usage, "[OPTIONS]"])
    parser.description = config_class.__doc__
    parser.formatter_class = Formatter
    return parser


def add(group: Any, key: Key, text: str) -> None:
    """Add one key to a group of the parser."""
    options: dict[str, Any] = {"metavar": metavar(key)}
    shown = " ".join(key.default) if isinstance(key.default, tuple) else key.default
    if key.type is bool and not key.default:
        options = {"action": "store_true"}
    elif shown is not REQUIRED and shown != "":
        default = shown if str(shown).isprintable() else repr(shown)  # a line end would break the table
        text += f" (default: {default})"
    if key.type is bool and key.default:
        options["choices"] = ("True", "False")
    elif get_args(key.type):
        options["choices"] = get_args(key.type)
    if key.type is tuple:
        options["nargs"] = "*" if POSITIONAL in key.marks else "+"
    names = [f"--{key.name}"]
    if POSITIONAL in key.marks:
        names = [key.name]
    elif key.name == "output":
        names.insert(0, "-o")
    action = group.add_argument(*names, help=text.replace("%", "%%"), **options)
    if PATH in key.marks:
        action.complete = "file"  # for shtab


def placeholder(key: Key) -> str:
    """Return what stands for a positional argument in the line of usage."""
    name = f"{key.name.upper()} ..." if key.type is tuple else key.name.upper()
    return name if key.default is REQUIRED else f"[{name}]"


def metavar(key: Key) -> str | None:
    """Return the placeholder for a key's value; None: the choices in braces."""
    if POSITIONAL in key.marks:
        return key.name.upper()
    if get_args(key.type) or key.type is bool:
        return None
    if PATH in key.marks:
        return "PATH"
    limits = [f"{mark.sign}{mark.bound}" for mark in key.marks if isinstance(mark, Limit) and mark.bound < LARGEST]
    return {int: "INT", float: "FLOAT"}.get(key.type, "TEXT") + ",".join(limits)
