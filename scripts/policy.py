"""The rules of the package that ruff cannot check: what a module may import, its length, where a command stands.

python scripts/policy.py    # a line for each violation; exit status 1 if there is one (scripts/test.sh)
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from docs import tree
from tinygpt import api
from tinygpt.cli import GROUPS, config_class

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tinygpt"
ROOMS = [  # a module imports from its own room, which is a package or a module at the top, and from those before it
    *("base", "data", "options", "model", "generate", "fast", "checkpoint", "training"),
    *("prepare", "train", "sample", "examine", "adapt", "use", "api", "learn", "cli", "__init__", "__main__"),
]
HEAVY = {"torch", "tensorboard", "numpy", "tiktoken", "yaml", "tqdm", "requests", "shtab", "filelock"}
HEAVY |= {"transformers", "matplotlib", "sklearn", "jinja2", "gguf", "tokenizers", "safetensors", "huggingface_hub"}
HEAVY |= {"starlette", "uvicorn"}
LIGHT = ("__init__", "__main__", "cli", "examine.report", "learn.exercise", "base.configs", "examine.eval")
RENAMES = re.compile(r"os\.(replace|rename)\(|\.(rename|replace)\((path|target|temporary)|shutil\.move")
SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}  # those that Windows has

FILES = {  # each module by its name without `tinygpt.`
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}


def imported(tree: ast.AST) -> set[str]:
    """The modules that a piece of code imports anywhere, in functions too."""
    nodes = list(ast.walk(tree))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return plain | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def at_once(name: str) -> set[str]:
    """What a module imports when it is imported: not in the bodies of functions and classes."""
    body = [node for node in TREES[name].body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return imported(ast.Module(body, []))


def own(name: str, found: set[str]) -> set[str]:
    """The modules of tinygpt among those found, without the module itself."""
    full = {other.removeprefix("tinygpt.") for other in found if other.startswith("tinygpt.")}
    return {other if other in TREES else other.rpartition(".")[0] or "__init__" for other in full} - {name}


def room(name: str) -> str:
    return name.partition(".")[0]


def above(name: str, other: str) -> bool:
    return ROOMS.index(room(other)) > ROOMS.index(room(name))


IMPORTS = {name: own(name, imported(tree)) for name, tree in TREES.items()}


def of_modules() -> Iterator[str]:
    named = re.compile(rf"\btinygpt(?:\.| import )({'|'.join(ROOMS[:-2])})\b")
    for name, text in TEXTS.items():
        if len(text.splitlines()) > 400:
            yield f"{name}: more than 400 lines"
        if "tinygpt" in imported(TREES[name]):
            yield f"{name}: `import tinygpt` hides which module is used"
        if RENAMES.search(text) and name != "base.files":
            yield f"{name}: renames a file; base/files.py does that, and tries again on Windows"
        if room(name) == "training" and not {*re.findall(r"\.(SIG[A-Z]+)\b", text)} <= SIGNALS:
            yield f"{name}: uses a signal that Windows lacks"
        strings = [node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant)]
        for string in strings:  # a name in it could be imported later, or in the code of a child process
            for other in named.findall(str(string)):
                if above(name, other) and (name, other) != ("base.process", "cli"):
                    yield f"{name}: a string names {other}, a room above"
    for name in LIGHT:
        for heavy in {room(other) for other in at_once(name)} & HEAVY:
            yield f"{name}: imports {heavy} at once, so the help would be slow"


def of_imports() -> Iterator[str]:
    for name in sorted({room(name) for name in TREES} ^ {*ROOMS}):
        yield f"{name}: in tinygpt/ or in ROOMS, but not in both"
    arrows = [(name, other) for name, others in IMPORTS.items() for other in others]
    yield from (f"{name}: imports {other}, which is above" for name, other in arrows if above(name, other))
    if (count := len({(room(name), room(other)) for name, other in arrows if room(name) != room(other)})) > 74:
        yield f"{count} arrows between rooms, and at most 74 may be"
    for name, other in arrows:  # learn is a client of the public API, and uses the mechanism of experiments
        allowed = ["base", "learn"] + ["model"] * name.startswith("learn.exercise")
        public = other == "api" or f"{other}.".startswith("examine.experiment.")
        if room(name) == "learn" and room(other) not in allowed and not public:
            yield f"{name}: imports {other}, which is not the public API"
    left = dict(IMPORTS)
    while free := [name for name in left if not left[name] & left.keys()]:  # a cycle would stay
        left = {name: others for name, others in left.items() if name not in free}
    if left:
        yield f"a cycle among {', '.join(sorted(left))}"
    needed, new = set[str](), {"sample"}
    while new := {other for name in new for other in own(name, at_once(name))} - needed:
        needed |= new
    if len(needed - {"base"}) > 20:  # base: the version
        yield f"a reader of sample.py needs {len(needed - {'base'})} other modules, and at most 20 may be"


def of_commands() -> Iterator[str]:
    """The help is the map: the command NAME of GROUP is tinygpt/GROUP/NAME.py or tinygpt/GROUP/NAME/command.py."""
    first, *groups = GROUPS  # the three commands of the first group stand at the top
    known = {("examine", "experiment"), ("adapt", "formats")}
    for group, commands in GROUPS.items():
        for name, (target, config, _) in commands.items():
            place = name if group == first else f"{group}.{name}"
            module = target.partition(":")[0]
            known.add((group, name))
            if module not in TREES or module.removesuffix("_") not in (place, f"{place}.command"):
                yield f"tinygpt {name}: is in {module}, not in {place}"
            core = group == first or name == "finetune"
            if config.partition(":")[0] != ("core" if core else group) or not config_class(name):
                yield f"tinygpt {name}: its configuration is in {config}"
    for name in TREES:
        if room(name) in groups and "." in name and (*name.removesuffix("_").split(".")[:2],) not in known:
            yield f"{name}: in the folder of a group, but no command"


def of_pages() -> Iterator[str]:
    for line in tree().splitlines():
        if len(line.split()) < 2 and not line.endswith("/"):
            yield f"{line.strip()}: does not say what it is for"
    if len((ROOT / "README.md").read_text(encoding="utf-8").split()) > 1000:
        yield "README.md: more than 1,000 words; tables and details belong to docs/"
    if len([*(ROOT / "configs").glob("*.yaml")]) > 12:
        yield "configs: more than 12 presets"
    members = [name for owner in (api.Documents, api.LoadedModel, api.Run) for name in vars(owner) if name[0] != "_"]
    if len(api.__all__) + len(members) > 38:
        yield f"tinygpt.api: {len(api.__all__) + len(members)} public names, and at most 38 may be"


def main() -> int:
    found = [*of_modules(), *of_imports(), *of_commands(), *of_pages()]
    print(*found, sep="\n", end="\n" * bool(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
