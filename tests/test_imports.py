"""The modules import each other in one direction, and the command line imports nothing heavy before it has to."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinygpt

SOURCE = Path(tinygpt.__file__).parent
LAYERS = [  # each module imports only from rows above its own, or from the same row without a circle
    "errors suggest terminal",
    "files config skeleton report.curves baselines",
    "configfile parse tokenizer model device data corpora tasks",
    "distributed precision muon decode lora pairs report.overlap",
    "optim signals report.weights",
    "checkpoint generate prepare runlog pretrained classify",
    "adapter evaluate ladder doctor",
    "run train sample plot check finetune exercise",
    "report.collect",
    "report",
    "cli __main__",
]
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules.split()}
PACKAGES = {f"tinygpt.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
HEAVY = {
    "torch",
    "numpy",
    "tiktoken",
    "yaml",
    "tqdm",
    "requests",
    "tyro",
    "filelock",
    "transformers",
    "matplotlib",
    "sklearn",
    "jinja2",
}


def imported(tree: ast.AST) -> set[str]:
    """The modules that a piece of code names in its imports; of tinygpt's own, `tinygpt.NAME`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            inside = node.module in ("tinygpt", *PACKAGES)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {str(node.module)}
    return found


def modules() -> dict[str, ast.Module]:
    """Every module by its name inside tinygpt; a package has the name of its folder."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def own(tree: ast.AST) -> set[str]:
    """tinygpt's modules among the imports, without the version, which is in `tinygpt` itself."""
    names = {name.removeprefix("tinygpt.") for name in imported(tree) if name.startswith("tinygpt.")}
    return names - {"__version__"}


def at_module_level(tree: ast.Module) -> ast.Module:
    kept = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return ast.Module(kept, [])


def test_every_module_has_its_row() -> None:
    assert set(ROW) == set(modules()) - {"__init__"}


def test_imports_point_one_way_only() -> None:
    graph = {name: own(tree) for name, tree in modules().items()}
    wrong = [f"{name} imports {other}" for name in ROW for other in graph[name] if ROW[other] > ROW[name]]
    assert not wrong


def test_there_is_no_circle() -> None:
    graph = {name: own(tree) for name, tree in modules().items()}
    while graph:  # take away what needs nothing more; a circle would stay
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a circle among {', '.join(sorted(graph))}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_nothing_heavy_at_module_level_of_the_command_line() -> None:
    for name in ("__init__", "__main__", "cli", "report"):
        found = {module.split(".")[0] for module in imported(at_module_level(modules()[name]))}
        assert not found & HEAVY, name
    assert "torch" in imported(at_module_level(modules()["train"]))  # the search does find things


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["sample", "--help"], ["prepare", "--help"], ["no"]])
def test_help_never_imports_torch(args: list[str]) -> None:
    code = f"""
import sys
from tinygpt.cli import main
try:
    main({args!r})
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "False", done.stderr


def test_preparing_text_never_imports_torch(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text to learn from\n" * 50)
    code = """
import sys
from tinygpt.cli import main
status = main(["prepare", "mine", "--input=text.txt"])
print(status, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
