"""Mutation testing: put small defects (mutants) into copies of the tracked files, and check that the tests fail.

    python scripts/mutants.py trace                       run all tests once, and record the lines that each executes
    python scripts/mutants.py draw 60 --seed=1 >> tests/mutants.jsonl             choose 60 random mutants of tinygpt/
    python scripts/mutants.py run                         test the mutants in tests/mutants.jsonl that have no result

A mutant is killed when a test fails or takes two minutes, and survives when none has after five. The tests that execute
its line run first, then the others that execute its file. Results are appended to .mutants/all.jsonl, with
`run --everyday` (no slow tests) to .mutants/everyday.jsonl; pytest's output is in .mutants/ID.log. Trace again after
changing tests.

mutmut 3.8 and cosmic-ray 8.7 mutate Python alone, and take no mutants from a table. mutmut does not see which tests
call a function in a child process; cosmic-ray runs the same tests for every mutant.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / ".mutants"
# A line of tests/mutants.jsonl. Of several occurrences of `old` in `file`, `new` replaces the one nearest to `line`.
# `tests` has patterns of test files to run first, for what coverage does not see: JavaScript, and killed processes.
Mutant = dict[str, Any]
SWAPS = {
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "in": "not in", "not": ""},
    **{"+": "-", "-": "+", "*": "//", "/": "*", "//": "*", "%": "//", "0": "({} + 1)"},  # 0 stands for any number
    **{"if": "if not", "elif": "elif not", "and": "or", "or": "and", "True": "False", "return": "return None;"},
}


def draw(number: int, seed: int) -> None:
    """Print random mutants: first a key of SWAPS is drawn, then one of its places."""
    places: dict[str, list[tuple[str, tokenize.TokenInfo]]] = {kind: [] for kind in SWAPS}
    for path in sorted(ROOT.glob("tinygpt/**/*.py")):
        for token in tokenize.generate_tokens(path.open(encoding="utf-8").readline):
            kind = "0" if token.type == tokenize.NUMBER else token.string
            if kind in SWAPS:
                places[kind].append((path.relative_to(ROOT).as_posix(), token))
    choose = random.Random(seed)
    drawn = 0
    while drawn < number:
        kind = choose.choice([*SWAPS])
        file, token = choose.choice(places[kind])
        line, start = token.start
        old = (ROOT / file).read_text(encoding="utf-8").splitlines(keepends=True)[line - 1]
        new = old[:start] + SWAPS[kind].format(token.string) + old[token.end[1] :]
        mutant = {"id": f"r{seed}-{drawn + 1:02}", "kind": kind, "file": file, "line": line, "old": old, "new": new}
        with contextlib.suppress(SyntaxError):
            compile(mutate(mutant)[0], file, "exec")
            print(json.dumps(mutant))
            drawn += 1


def mutate(mutant: Mutant, root: Path = ROOT) -> tuple[str, int]:
    """Return the text of the mutant's file with its defect, and the line number of the defect."""
    source = (root / mutant["file"]).read_text(encoding="utf-8")
    starts = [match.start() for match in re.finditer(re.escape(mutant["old"]), source)]
    if not starts:
        raise SystemExit(f"{mutant['id']}: {mutant['file']} has no {mutant['old']!r}; change tests/mutants.jsonl")
    lines = {start: source.count("\n", 0, start) + 1 for start in starts}
    start = min(starts, key=lambda start: abs(lines[start] - mutant["line"]))
    return source[:start] + mutant["new"] + source[start + len(mutant["old"]) :], lines[start]


def pytest_runtest_logstart(nodeid: str) -> None:
    """As a plugin of pytest: attribute the lines that are executed from now on to this test."""
    if current := coverage.Coverage.current():
        current.switch_context(nodeid)
        current.set_option("run:context", nodeid)  # for forks of this process
        os.environ["TINYGPT_TEST"] = nodeid  # for other child processes, see pyproject.toml


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """As a plugin of pytest: run only the tests that `result` lists, in its order."""
    if file := os.environ.get("TINYGPT_TESTS"):
        found = {item.nodeid: item for item in items}
        items[:] = [found[test] for test in json.loads(Path(file).read_text()) if test in found]


def start_pytest(folder: Path, options: list[str], env: dict[str, str], **others: Any) -> subprocess.Popen:
    """Start pytest on the tests and the package in `folder`."""
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}/scripts", "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", "pytest", "-p", "mutants", "-p", "no:cacheprovider", *options]
    return subprocess.Popen(command, cwd=folder, env=env, **others)


def trace(options: list[str]) -> None:
    """Run the tests under coverage; write .mutants/coverage and .mutants/tests.xml."""
    OUT.mkdir(exist_ok=True)
    options = ["-n", "auto", "--dist=loadfile", "--no-loadscope-reorder", *options]
    options += [f"--junit-xml={OUT}/tests.xml", "--override-ini=junit_family=xunit1"]  # with the file of each test
    with tempfile.TemporaryDirectory() as folder:
        env = {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": f"{folder}/coverage"}
        start_pytest(ROOT, options, env).wait()
        combine = [sys.executable, "-m", "coverage", "combine", "--quiet", f"--data-file={OUT}/coverage", folder]
        subprocess.run(combine, check=True)


def select(mutant: Mutant, seconds: dict[str, float], data: coverage.CoverageData) -> list[str]:
    """Return the tests that may kill a mutant: the likeliest first, and of these the quickest."""
    lines = data.contexts_by_lineno(str(ROOT / mutant["file"]))
    _, defect = mutate(mutant)
    recorded = max((line for line in lines if line <= defect), default=0)  # of a long statement, perhaps its start
    patterns = mutant.get("tests", [f"test_{Path(mutant['file']).stem}*.py"])
    near = {test for test in seconds if any(Path(test.split("::")[0]).match(pattern) for pattern in patterns)}
    direct = near if "tests" in mutant else set(lines.get(recorded, []))
    tests = direct.union(*lines.values()) & seconds.keys()
    return sorted(tests, key=lambda test: (test not in direct, test not in near, seconds[test]))


def result(mutant: Mutant, tests: list[str], commit: str, options: list[str]) -> str:
    """Run the tests in a new copy of the project that has the mutant's defect; return how it ended."""
    log = OUT / f"{mutant['id']}.log"
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as scratch, log.open("w") as output:
        folder = Path(scratch) / "project"
        git("worktree", "add", "--detach", str(folder), commit)
        (folder / mutant["file"]).write_text(mutate(mutant, folder)[0], encoding="utf-8")
        (Path(scratch) / "tests.json").write_text(json.dumps(tests))
        options = ["-x", "-rfE", "--timeout=120", *options, *{test.split("::")[0] for test in tests}]
        env = {"TMPDIR": scratch, "TINYGPT_TESTS": f"{scratch}/tests.json"}
        child = start_pytest(folder, options, env, stdout=output, stderr=output, start_new_session=True)
        try:
            status = child.wait(timeout=300)
        except subprocess.TimeoutExpired:
            return "survived five minutes"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # also what its tests have left running
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        return "survived: no test to run"
    if status == pytest.ExitCode.OK:
        return "survived"
    failures = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", log.read_text(), re.MULTILINE)
    return f"killed by {failures[-1] if failures else 'an error'}"


def git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def run(everyday: bool, only: str, processes: int) -> None:
    """Test the mutants, `processes` at a time, with the tests that passed in the trace."""
    cases = ElementTree.parse(OUT / "tests.xml").findall(".//testcase")
    passed = [case for case in cases if case.find("failure") is None and case.find("error") is None]
    seconds = {f"{case.get('file')}::{case.get('name')}": float(case.get("time", 0)) for case in passed}
    data = coverage.CoverageData(str(OUT / "coverage"))
    data.read()
    results = OUT / ("everyday.jsonl" if everyday else "all.jsonl")
    results.touch()
    done = {json.loads(line)["id"] for line in results.open()}
    table = [json.loads(line) for line in (ROOT / "tests" / "mutants.jsonl").open(encoding="utf-8")]
    mutants = [mutant for mutant in table if mutant["id"].startswith(only) and mutant["id"] not in done]
    commit = git("stash", "create") or "HEAD"
    options = ["-m", "not slow"] if everyday else []

    def test(mutant: Mutant, tests: list[str]) -> None:
        row = {"id": mutant["id"], "result": result(mutant, tests, commit, options)}
        with results.open("a") as file:
            file.write(f"{json.dumps(row)}\n")
        print(*row.values(), flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(test, mutants, [select(mutant, seconds, data) for mutant in mutants]))
    git("worktree", "prune")
    print(sum('"killed by' in line for line in results.open()), "killed in", results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("trace").add_argument("options", nargs="*", help="options and files for pytest, after --")
    command = commands.add_parser("draw")
    command.add_argument("number", type=int)
    command.add_argument("--seed", type=int, default=1)
    command = commands.add_parser("run")
    command.add_argument("--everyday", action="store_true", help="without the slow tests")
    command.add_argument("--only", default="", help="the mutants whose id begins so")
    command.add_argument("--processes", type=int, default=os.cpu_count(), help="mutants at a time")
    options = vars(parser.parse_args())
    {"trace": trace, "draw": draw, "run": run}[options.pop("command")](**options)


if __name__ == "__main__":
    main()
