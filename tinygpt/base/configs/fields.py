"""The base class of configurations, their keys, and the annotations of these: limits, path, positional.

batch_size: Annotated[int, Limit(">=", 1)] = 12       # in core.py
keys(TrainConfig)["batch_size"].marks                 # (Limit(sign='>=', bound=1),)
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import operator
import re
import reprlib
import time
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

DATASET_NAME = r"\w[\w.-]{0,99}"  # a folder inside data/, and nowhere else
LARGEST = 2**53  # more than a machine can hold of anything


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit of a number. `Limit(">=", 0), Limit("<", 1)` in an annotation are the interval [0, 1)."""

    sign: Literal[">=", ">", "<=", "<"]
    bound: float

    def problem(self, name: str, value: float) -> str:
        """Return what is wrong with the value; empty if it is within the limit. NaN never is."""
        phrase, holds = {
            ">=": ("at least", operator.ge),
            ">": ("above", operator.gt),
            "<=": ("at most", operator.le),
            "<": ("below", operator.lt),
        }[self.sign]
        wanted = "finite" if math.isinf(self.bound) else f"{phrase} {self.bound}"
        problem = f"{name} is {reprlib.repr(value)}, but must be {wanted}"
        return "" if holds(value, self.bound) else problem


@dataclasses.dataclass(frozen=True)
class Text:
    """A pattern that a text must match, and its description."""

    pattern: str
    description: str

    def problem(self, name: str, value: str) -> str:
        """Return what is wrong with the value; empty if nothing is."""
        problem = f"{name} is {reprlib.repr(value)}, but must be {self.description}"
        return "" if re.fullmatch(self.pattern, value) else problem


REQUIRED = dataclasses.MISSING
POSITIONAL = "positional"  # annotates a key that is given without --key
RUN = "run"  # annotates a key that may also be given without --key, as the first argument: `tinygpt sample out`
PATH = "path"  # annotates a key whose value is a path: a leading ~ is the home folder, also in `--key=~/x` and in files


@dataclasses.dataclass(frozen=True)
class Group:
    """Annotates the first key of a group in --help; the group ends at the next one, or with the class."""

    title: str


@dataclasses.dataclass(kw_only=True)
class Config:
    """The configuration of a command. The keys are the fields of its subclasses."""

    # which keys were given; empty for a configuration made in Python
    flags: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)  # as flags
    given: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)  # as flags or in files
    started: float = dataclasses.field(default_factory=time.perf_counter, repr=False, compare=False)
    hidden_groups: ClassVar[tuple[str, ...]] = ()  # which --help leaves out

    def problems(self) -> Iterator[str]:
        """Yield one phrase for each key whose value is out of range. A subclass adds contradictions between values."""
        config_class: type = type(self)
        for key in keys(config_class).values():
            limits = [mark for mark in key.marks if hasattr(mark, "problem")]
            problems = [limit.problem(key.name, getattr(self, key.name)) for limit in limits]
            yield from [problem for problem in problems if problem][:1]


class Key(NamedTuple):
    """A key of a configuration: a field of its dataclass, but those of Config."""

    name: str
    type: Any  # str, int, float, bool, a Literal of strings, or tuple for several strings
    marks: tuple[Any, ...]  # Limit, Text, Group, POSITIONAL, RUN, PATH
    default: Any  # REQUIRED: none


@functools.cache
def keys(config_class: type) -> dict[str, Key]:
    """Return the keys of a configuration by name: its own before those of its base classes, which --help shows last."""
    hints = get_type_hints(config_class, include_extras=True)
    by_name = {}
    for name in dict.fromkeys([*inspect.get_annotations(config_class), *hints]):
        hint = hints[name]
        plain, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        plain = tuple if get_origin(plain) is tuple else plain
        if name not in Config.__annotations__:
            by_name[name] = Key(name, plain, tuple(marks), getattr(config_class, name, REQUIRED))
    return by_name


def groups(config_class: type) -> dict[str, list[Key]]:
    """Return the keys of a configuration by the title of their group in --help, the positional ones first.

    A subclass that changes a key's default leaves the key in its group.
    """
    titles: dict[str, str] = {}
    for base_class in reversed(config_class.__mro__):
        title = "options"
        for name, hint in inspect.get_annotations(base_class).items():
            title = next((mark.title for mark in get_args(hint)[1:] if isinstance(mark, Group)), title)
            titles.setdefault(name, title)
    found: dict[str, list[Key]] = {"arguments": [], "options": []}
    for key in keys(config_class).values():
        found.setdefault("arguments" if POSITIONAL in key.marks else titles[key.name], []).append(key)
    return found


def meanings(config_class: type) -> dict[str, str]:
    """Return the help text of each key of a configuration, by name: the string below its field."""
    texts = {}
    for base_class in reversed(config_class.__mro__[:-1]):
        body = ast.parse(inspect.getsource(base_class)).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return texts
