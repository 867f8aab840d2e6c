"""The help is the map of the package, imports point one way, and the command line imports heavy packages late."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE

import tinygpt
from tinygpt.cli import GROUPS, config_class

SOURCE = Path(tinygpt.__file__).parent
FIRST = next(iter(GROUPS))
ROOMS = [  # a module imports from its own room and from those before it
    *("base", "data", "options", "model", "generate", "fast", "checkpoint", "training"),
    *("prepare", "train", "sample", "examine", "adapt", "use", "api", "learn", "cli", "__init__", "__main__"),
]
HEAVY = {"torch", "tensorboard", "numpy", "tiktoken", "yaml", "tqdm", "requests", "shtab", "filelock"}
HEAVY |= {"transformers", "matplotlib", "sklearn", "jinja2", "gguf", "tokenizers", "safetensors", "huggingface_hub"}
HEAVY |= {"starlette", "uvicorn"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of each module of tinygpt, by its name without `tinygpt.`."""
    paths = {path.relative_to(SOURCE).with_suffix(""): path for path in sorted(SOURCE.rglob("*.py"))}
    return {
        ".".join(name.parts).removesuffix(".__init__"): ast.parse(path.read_bytes()) for name, path in paths.items()
    }


def imported(tree: ast.AST) -> set[str]:
    """The modules that a piece of code imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            assert "tinygpt" not in found, "import tinygpt hides which module is used"
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_once(tree: ast.Module) -> ast.Module:
    """What is executed when a module is imported: without the bodies of functions and classes."""
    return ast.Module([node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))], [])


def own(name: str, first: bool = False) -> set[str]:
    """The modules of tinygpt that the module `name` imports (first: when it is imported itself), without itself."""
    found = imported(at_once(modules()[name]) if first else modules()[name])
    full = {other.removeprefix("tinygpt.") for other in found if other.startswith("tinygpt.")}
    full = {other if other in modules() else other.rpartition(".")[0] or "__init__" for other in full}
    return full - {name}


def room(name: str) -> str:
    """The module at the top, or the package, in which a module is."""
    return name.partition(".")[0]


def test_the_help_is_the_map() -> None:
    """The command NAME of GROUP is tinygpt/GROUP/NAME.py, or in tinygpt/GROUP/NAME/; the first three are at the top."""
    assert {room(name) for name in modules()} == {*ROOMS}
    for group, commands in GROUPS.items():
        for name, (target, config, _) in commands.items():
            place = name if group == FIRST else f"{group}.{name}"
            module = target.partition(":")[0]
            assert module.removesuffix("_") in (place, f"{place}.command") and module in modules()
            in_core = group == FIRST or name == "finetune"
            assert config.partition(":")[0] == ("core" if in_core else group) and config_class(name)
    places = {
        tuple(name.removesuffix("_").split(".")[:2]) for name in modules() if room(name) in GROUPS and "." in name
    }
    commands = {(group, name) for group in GROUPS if group != FIRST for name in GROUPS[group]}
    assert places == commands | {("examine", "experiment"), ("adapt", "formats")}


def test_imports_point_one_way() -> None:
    arrows = {(room(name), room(other)) for name in modules() for other in own(name)}
    upward = [f"{one} imports {other}" for one, other in arrows if ROOMS.index(other) > ROOMS.index(one)]
    assert not upward
    assert len([one for one, other in arrows if one != other]) <= 74


def test_learn_is_a_client_of_the_public_api() -> None:
    """It imports base, the API and the mechanism of experiments; the exercise also the model, to compare with."""

    def inside(name: str) -> set[str]:
        rooms = {"base", "learn"} | ({"model"} if name.startswith("learn.exercise") else set())
        others = {other for other in own(name) if room(other) not in rooms} - {"api"}
        return {other for other in others if not f"{other}.".startswith("examine.experiment.")}

    assert inside("use.label") and inside("learn.exercise.steps.test_step07") == set()
    assert not {name for name in modules() if room(name) == "learn" and inside(name)}


def test_no_string_names_a_room_above() -> None:
    """Such a name could be imported later: by `importlib`, by `resolve_name`, or in the code of a child process."""
    named = re.compile(rf"\btinygpt(?:\.| import )({'|'.join(ROOMS[:-2])})\b")
    assert named.findall("from tinygpt import api") == ["api"]
    arrows = {
        (name, other)
        for name in modules()
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Constant)
        for other in named.findall(str(node.value))
    }
    upward = {(name, other) for name, other in arrows if ROOMS.index(other) > ROOMS.index(room(name))}
    assert upward == {("base.process", "cli")}  # runs a command in a child process


def test_there_is_no_cycle_of_modules() -> None:
    imports = {name: own(name) for name in modules()}
    while imports:  # remove modules without remaining imports; a cycle would stay
        free = {name for name, needs in imports.items() if not needs & imports.keys()}
        assert free, f"a cycle among {', '.join(sorted(imports))}"
        imports = {name: needs for name, needs in imports.items() if name not in free}


def test_no_module_is_long() -> None:
    assert not [path for path in SOURCE.rglob("*.py") if len(path.read_text("utf-8").splitlines()) > 400]


def test_every_package_says_what_it_is_for() -> None:
    for path in SOURCE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_bytes())), path


def test_nothing_heavy_at_module_level_of_the_command_line() -> None:
    for name in ("__init__", "__main__", "cli", "examine.report", "learn.exercise", "base.configs", "examine.eval"):
        assert not {other.split(".")[0] for other in imported(at_once(modules()[name]))} & HEAVY, name
    assert "torch" in imported(modules()["train"])  # the search does find things


def test_a_reader_of_sample_needs_few_modules() -> None:
    needed, new = set[str](), {"sample"}
    while new:
        needed |= new
        new = {other for name in new for other in own(name, first=True)} - needed
    assert len(needed - {"base"}) <= 21, needed  # base: the version


def test_help_and_preparing_text_import_nothing_heavy(tmp_path: Path) -> None:
    """In one process, which does not import PyTorch until it must."""
    (tmp_path / "text.txt").write_text("some text to learn from\n" * 50)
    code = """
import contextlib, sys
from tinygpt.cli import main
from tinygpt.base.configs.parse import parse
from tinygpt.base.configs.core import TrainConfig
imported = []
def note(*names):
    imported.append([name for name in names if name in sys.modules])
parse(TrainConfig, ["configs/shakespeare_char.yaml", "--seed=1"])
note("argparse")
lines = ["--help", "--version", "trian", "no", "report --help", "export --help", "doctor --help"]
for line in [*lines, "train --help", "prepare --help", "sample -h", "sample --help"]:
    with contextlib.suppress(SystemExit):
        main(line.split())
    note("torch", "numpy", "tiktoken", "requests", "jinja2", "shtab")
status = main(["prepare", "mine", "--input=text.txt"])
note("torch")
print(status, imported)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == f"0 {[[]] * 13}", done


@pytest.mark.slow
def test_sampling_never_imports_the_compiler_of_torch(tiny_run: Path) -> None:
    """It takes longer to import than a tiny model takes to load and to write a page."""
    code = """
import sys
from tinygpt.cli import main
status = main(["sample", "--ckpt=out", "--max_new_tokens=20", "--device=cpu"])
print()
print(status, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny_run, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == "0 False", (done.stdout, done.stderr)


RUNS_CODE = (
    r"(?<![.\w])(exec|eval)\(|\b(import|from) (pickle|marshal|shelve|dill|joblib)\b|\byaml\.(unsafe_|full_)?load\("
    r"|weights_only=False|torch\.load\((?!.*weights_only=True)|allow_pickle=True|shell=True"
)


def test_no_module_can_run_code_from_a_file() -> None:
    assert {path.name for path in SOURCE.rglob("*.py") if re.search(RUNS_CODE, path.read_text("utf-8"))} == set()
    assert re.search(RUNS_CODE, "state = torch.load(path)") and re.search(RUNS_CODE, "x = eval(text)")
