"""Mutation testing: put small defects (mutants) into a copy of the project, one at a time, and run the tests.

    python scripts/mutants.py trace              run the tests once, and note which lines of tinygpt/ each one executes
    python scripts/mutants.py draw 60 --seed=1   choose mutants at random, and add them to tests/mutants.jsonl
    python scripts/mutants.py run                the tests of each mutant's line, until one fails; prints a table

`run --everyday` leaves out what `scripts/test.sh` leaves out without `--all`; `trace` passes what follows `--` to
pytest. A mutant has survived when all tests of its line have passed, or after five minutes. The order: the files that
the mutant itself names (a file that is not Python must name them) or that mention its constant; then the tests that
execute its line (files about the module first, quick tests before slow ones); then the others of their files, which may
use what those have made. Child processes count: coverage starts in each of them.

A tool such as mutmut or cosmic-ray does not fit: much of this project is tested in child processes, which mutmut's
choice of tests does not see, and cosmic-ray would run the whole suite for each mutant.
"""

import argparse
import ast
import collections
import contextlib
import functools
import json
import os
import random
import re
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "mutants.jsonl"
LIMIT = 300  # seconds of tests for one mutant
# id, kind, file, line, old (text at or near that line), new, tests (globs), before (the result of the older tests)
Mutant = dict[str, Any]

# --- drawing -----------------------------------------------------------------------------------------------------

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr},
}


def sites(tree: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """(kind, the node to replace, its new text): every mutant that a module has."""
    skip = {id(node) for parent in ast.walk(tree) for node in _not_code(parent)}
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        match node:
            case ast.Compare(left, [operator], others) if type(operator) in SWAPS:
                yield "comparison", node, ast.unparse(ast.Compare(left, [SWAPS[type(operator)]()], others))
            case ast.BinOp(op=operator) if type(operator) in SWAPS and not _is_text(node):
                yield "arithmetic", node, ast.unparse(ast.BinOp(node.left, SWAPS[type(operator)](), node.right))  # type: ignore[arg-type]
            case ast.Constant(value=bool(value)):
                yield "constant", node, str(not value)
            case ast.Constant(value=int(value) | float(value)):
                yield "constant", node, repr(value + 1)
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                yield "branch", test, f"(not ({ast.unparse(test)}))"
            case ast.BoolOp(op=operator, values=values):
                other = ast.Or() if isinstance(operator, ast.And) else ast.And()
                yield "branch", node, f"({ast.unparse(ast.BoolOp(other, values))})"
            case ast.FunctionDef(body=body) if (first := _first(body)) is not None:
                yield "early return", first, "return"


def _not_code(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node that are not executed as code: annotations, and what is read by type checkers only."""
    for name in ("annotation", "returns"):
        if part := getattr(node, name, None):
            yield from ast.walk(part)
    if isinstance(node, ast.JoinedStr | ast.MatchValue):  # their columns are not those of the source
        yield from (part for part in ast.walk(node) if part is not node)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        yield from ast.walk(node)
    if isinstance(node, ast.Assign | ast.TypeAlias if sys.version_info >= (3, 12) else ast.Assign):
        if isinstance(node.value, ast.BinOp | ast.Subscript) and ast.unparse(node.targets[0])[0].isupper():
            yield from (
                part for part in ast.walk(node) if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr)
            )


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.JoinedStr) or isinstance(getattr(side, "value", None), str)
               for side in (node.left, node.right))  # fmt: skip


def _first(body: list[ast.stmt]) -> ast.stmt | None:
    """Find the first statement after the docstring, where a `return` would change something."""
    body = body[1:] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else body
    return body[0] if body and not isinstance(body[0], ast.Pass | ast.Raise) else None


def draw(number: int, seed: int) -> list[Mutant]:
    """Draw mutants at random: the kinds are equally likely, and so are the places of a kind."""
    by_kind: dict[str, list[Mutant]] = collections.defaultdict(list)
    for path in sorted(ROOT.glob("tinygpt/**/*.py")):
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for kind, node, new in sites(ast.parse(source)):
            first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
            before = lines[first - 1].encode()[: node.col_offset].decode()  # type: ignore[attr-defined]
            if kind == "early return":  # the statement stays, and is not reached
                last, text = first, f"{before}{new}\n{lines[first - 1]}"
            else:
                text = before + new + lines[last - 1].encode()[node.end_col_offset :].decode()  # type: ignore[attr-defined]
            file, old = path.relative_to(ROOT).as_posix(), "".join(lines[first - 1 : last])
            by_kind[kind].append({"kind": kind, "file": file, "line": first, "old": old, "new": text})
    choose = random.Random(seed)
    chosen: list[Mutant] = []
    while len(chosen) < number:
        mutant = choose.choice(by_kind[choose.choice(sorted(by_kind))])
        try:
            compile(changed(mutant), mutant["file"], "exec")
        except SyntaxError:
            continue
        if mutant not in chosen:
            chosen.append(mutant)
    return [{"id": f"r{seed}-{n:02}", **mutant} for n, mutant in enumerate(chosen, 1)]


def changed(mutant: Mutant, root: Path = ROOT) -> str:
    """The text of the mutant's file with its defect: the occurrence of `old` that is nearest to `line`."""
    source = (root / mutant["file"]).read_text(encoding="utf-8")
    places = [at for at in range(len(source)) if source.startswith(mutant["old"], at)]
    if not places:
        raise SystemExit(f"{mutant['id']}: {mutant['file']} no longer has {mutant['old']!r}; change {TABLE.name}")
    at = min(places, key=lambda at: abs(source.count("\n", 0, at) + 1 - mutant.get("line", 0)))
    return source[:at] + mutant["new"] + source[at + len(mutant["old"]) :]


def statement(mutant: Mutant) -> tuple[int, int]:
    """The first and the last line of the statement that differs first; of one with a body, those of its head."""
    source = (ROOT / mutant["file"]).read_text(encoding="utf-8")
    pairs = zip(source.splitlines(), changed(mutant).splitlines(), strict=False)
    line = next((number for number, (old, new) in enumerate(pairs, 1) if old != new), 1)
    best = line, line
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body and line < body[0].lineno else node.end_lineno or 0
            best = node.lineno, max(end, node.lineno)
    return best


# --- which tests execute a line ------------------------------------------------------------------------------------

CONFIG = """[run]
source = {root}/tinygpt
data_file = {folder}/coverage
parallel = true
context = ${{PYTEST_CURRENT_TEST-}}
patch = _exit, fork
disable_warnings = no-data-collected
"""


TESTS: dict[str, list[Any]] = {}  # of each test: its seconds, its outcome, and whether it is slow


def pytest_runtest_logstart(nodeid: str) -> None:
    """This file is a plugin of pytest in `trace`: what follows is executed by this test."""
    import coverage

    if current := coverage.Coverage.current():
        current.switch_context(nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    test = TESTS.setdefault(report.nodeid, [0.0, "passed", "slow" in report.keywords])
    test[0] += report.duration
    test[1] = test[1] if report.passed else report.outcome


def pytest_sessionfinish(session: Any) -> None:
    if not hasattr(session.config, "workerinput"):  # not in a worker of xdist
        Path(os.environ["TINYGPT_TRACED"]).write_text(json.dumps(TESTS))


def copy() -> Path:
    """Copy the project's files to a new folder, as they are in the working tree."""
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(
        "git init -q && git add -A && git -c user.name=x -c user.email=x commit -qm x", shell=True, cwd=folder
    )
    return folder


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}{os.pathsep}{ROOT / 'scripts'}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def trace(out: Path, options: list[str]) -> None:
    """Run the tests under coverage: out/coverage, and out/tests.json with the seconds and the outcome of each."""
    out.mkdir(parents=True, exist_ok=True)
    folder = copy()
    (out / "coveragerc").write_text(CONFIG.format(root=folder, folder=out))
    hook = Path(site.getsitepackages()[0]) / "tinygpt_mutants.pth"
    hook.write_text("import coverage; coverage.process_startup()\n")  # nothing without COVERAGE_PROCESS_START
    try:
        command = [sys.executable, "-m", "pytest", "-p", "mutants", "-n", "auto", "--dist=loadfile", *options]
        files = {"COVERAGE_PROCESS_START": f"{out}/coveragerc", "TINYGPT_TRACED": f"{out}/traced.json"}
        subprocess.run(command, cwd=folder, env={**environment(folder), **files})
    finally:
        hook.unlink()
    coverage = [sys.executable, "-m", "coverage", "combine", "-q", f"--data-file={out}/coverage", str(out)]
    subprocess.run(coverage, cwd=folder, check=True)
    shutil.rmtree(folder, ignore_errors=True)
    tests = json.loads((out / "traced.json").read_text())
    (out / "tests.json").write_text(json.dumps({"root": str(folder), "tests": tests}))
    failed = [name for name, (_, outcome, _) in tests.items() if outcome == "failed"]
    print(f"{len(tests):,} tests in {out}; failed without a mutant, and left out: {', '.join(failed) or 'none'}")


class Choice:
    """The tests that can notice a mutant, in the order in which they run."""

    def __init__(self, out: Path, everyday: bool) -> None:
        import coverage

        saved = json.loads((out / "tests.json").read_text())
        self.root, passed = saved["root"], {k: v for k, v in saved["tests"].items() if v[1] == "passed"}
        self.seconds = {name: seconds for name, (seconds, _, slow) in passed.items() if not (slow and everyday)}
        self.data = coverage.CoverageData(str(out / "coverage"))
        self.data.read()

    @functools.cache  # noqa: B019 (one object for the whole run)
    def imports(self, file: str, module: str) -> bool:
        """Whether a file of tests imports this module by name, so that it probably tests it."""
        package, _, name = module.rpartition(".")
        text = (ROOT / file).read_text(encoding="utf-8")
        return bool(re.search(rf"{module}\b|from {package} import .*\b{name}\b", text))

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that execute the line first, of these the files about its module, and quick ones before slow ones."""
        named = {
            path.relative_to(ROOT).as_posix()
            for glob in mutant.get("tests", [])
            for path in (ROOT / "tests").rglob(glob)
        }
        files = {*named}
        direct, at_import = set[str](), False
        if mutant["file"].endswith(".py"):
            lines = self.data.contexts_by_lineno(f"{self.root}/{mutant['file']}")
            first, last = statement(mutant)
            contexts = {context for line in range(first, last + 1) for context in lines.get(line, [])}
            if at_import := "" in contexts:  # executed when the module is imported, so by no test: what else it holds
                contexts = {context for line in lines.values() for context in line}
            direct = {re.sub(r" \((setup|call|teardown)\)$", "", name) for c in contexts for name in c.split("|")}
            direct &= self.seconds.keys()
            files |= {name.split("::")[0] for name in direct}
        rest = {name for name in self.seconds if name.split("::")[0] in files} - direct
        module = ".".join(Path(mutant["file"]).with_suffix("").parts)
        near = {name for name in files if f"test_{Path(mutant['file']).stem}" in name or self.imports(name, module)}
        name = re.search(r"\w+", mutant["old"]) if at_import else None  # of the constant
        mentions = {file for file in files if name and re.search(rf"\b{name[0]}\b", (ROOT / file).read_text("utf-8"))}

        def key(name: str) -> tuple[bool, bool, bool, bool, float]:
            file = name.split("::")[0]
            return file not in named, file not in mentions, name in rest, file not in near, self.seconds[name]

        return sorted(direct | rest, key=key)


# --- running -------------------------------------------------------------------------------------------------------


def run_one(mutant: Mutant, tests: list[str], folder: Path) -> str:
    """How the mutant ended, in a copy of the project that is left as it was."""
    path = folder / mutant["file"]
    original, end = path.read_bytes(), time.monotonic() + LIMIT
    path.write_text(changed(mutant, folder), encoding="utf-8")
    scratch = Path(tempfile.mkdtemp(prefix="mutants-tests-"))
    base = f"--basetemp={scratch}/{scratch.name}"  # a test looks in pages for the name of this folder
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", base]
    try:
        for part in filter(None, (tests[:40], tests[40:400], tests[400:])):  # the first need not wait for the others
            (scratch / "tests").write_text("\n".join(part))
            child = subprocess.Popen(
                [*command, "--no-header", "-rfE", f"@{scratch}/tests"], cwd=folder, env=environment(folder),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
            try:
                output, _ = child.communicate(timeout=max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                return "survived five minutes"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, 9)  # and what its tests have left running
            if child.returncode:
                named = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return f"killed by {named[0].split(' - ')[0].split(' ', 1)[1] if named else output[-200:]}"
        return "survived"
    finally:
        path.write_bytes(original)
        shutil.rmtree(scratch, ignore_errors=True)


def run(out: Path, everyday: bool, only: str, name: str, processes: int) -> None:
    """Run the mutants of the table, `processes` at a time; append the results to out/NAME.jsonl."""
    mutants = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    results = out / f"{name}.jsonl"
    done = {json.loads(line)["id"] for line in results.read_text().splitlines()} if results.exists() else set()
    choice = Choice(out, everyday)
    work = [(m, choice.tests(m)) for m in mutants if m["id"].startswith(only) and m["id"] not in done]
    folders = [copy() for _ in range(processes)]

    def one(pair: tuple[Mutant, list[str]]) -> None:
        mutant, tests = pair
        folder, began = folders.pop(), time.monotonic()
        result = run_one(mutant, tests, folder) if tests else "survived: no test"
        folders.append(folder)
        line = {"id": mutant["id"], "result": result, "tests": len(tests), "seconds": round(time.monotonic() - began)}
        with results.open("a") as file:
            file.write(f"{json.dumps(line)}\n")
        print(f"{line['id']:8} {mutant['file']} {result} ({len(tests)} tests, {line['seconds']} s)", flush=True)

    with ThreadPoolExecutor(len(folders)) as pool:
        list(pool.map(one, work))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    print(f"{sum(row['result'].startswith('killed') for row in rows)} of {len(rows)} killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["trace", "draw", "run"])
    parser.add_argument("number", type=int, nargs="?", default=60, help="of mutants to draw")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--everyday", action="store_true", help="without the slow tests")
    parser.add_argument("--only", default="", help="run the mutants whose id begins so")
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".mutants", help="folder for what was traced, and the results"
    )
    parser.add_argument("--name", default="results", help="of the file of results in it")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="mutants at a time")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    out = options.out.resolve()
    if options.what == "trace":
        trace(out, sys.argv[end + 1 :])
    elif options.what == "run":
        run(out, options.everyday, options.only, options.name, options.processes)
    else:
        with TABLE.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(mutant)}\n" for mutant in draw(options.number, options.seed))


if __name__ == "__main__":
    main()
