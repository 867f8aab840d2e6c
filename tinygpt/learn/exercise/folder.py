"""Check a folder of students' files: a line per file, a table of the class, and a CSV file of the results.

check_folder(Path("submissions"), template_steps()[1], table=Path("grades.csv"))
"""

import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinygpt.base import terminal
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import read_text, require_closed, require_writable, write_table
from tinygpt.learn.exercise.outline import Step, defined
from tinygpt.learn.exercise.runner import Outcomes, check_file

JOBS = min(4, os.cpu_count() or 1)  # processes at a time; each computes with one thread
SKIPPED = ("__pycache__", "site-packages")  # folders without a student's own files, as are those with a leading dot


def check_folder(folder: Path, steps: list[Step], table: Path | None) -> int:
    """Check these steps in every Python file of a folder, and write the results to the CSV file `table`.

    Returns 0 if no check failed and at least one ran, else 1. Errors: TinyGPTError, before the first file is checked,
    if there are no files or the table cannot be written.
    """
    rows = [["file", *(f"step {step.number}" for step in steps), "steps passed", "first failed check", "message"]]
    if table:
        require_table(table, rows[0])
    paths = [path for path in own_files(folder) if path.suffix == ".py"]
    if not paths:
        what = f"{folder}: no Python files (*.py) in this folder"
        raise TinyGPTError(what, "name the folder that holds the students' files")
    show_unread(folder, paths)  # before a file runs, which may delete the folder
    print(f"Python files: {len(paths)}. They run with your permissions, not in a sandbox.", flush=True)
    results = []
    with ThreadPoolExecutor(JOBS) as pool:
        for path, outcomes in zip(paths, pool.map(check_steps_in, paths, itertools.repeat(steps)), strict=True):
            results.append(outcomes)
            file = terminal.escaped(path.relative_to(folder).as_posix())
            cells = {number: "FAIL" if any(checks.values()) else "PASS" for number, checks in outcomes.items()}
            passed = [*cells.values()].count("PASS")
            check, message = first_failure(outcomes)
            rows.append([file, *(cells.get(step.number, "") for step in steps), str(passed), check, message])
            status = "PASS" if outcomes else "NONE"
            if check:
                status = "FAIL"
            so_many = terminal.counted(len(outcomes), "step")
            what = f"{passed} of {so_many}" if outcomes else "contains no part of these steps"
            print("  ".join(filter(None, (f"  {status}", file, what, check))), flush=True)
    show_class(results, steps)
    if table:
        write_table(table, rows)
        print(f"written: {table}")
    return int(not any(results) or any(first_failure(outcomes)[0] for outcomes in results))


def own_files(folder: Path) -> list[Path]:
    """List the files of a folder and of its subfolders, without hidden ones and those of SKIPPED."""
    below = [(path, path.relative_to(folder).parts) for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path, parts in below if not any(part[0] == "." or part in SKIPPED for part in parts))


def show_unread(folder: Path, paths: list[Path]) -> None:
    """Print which files of the folder, and which of its subfolders without a Python file, were not checked."""
    others = [path for path in own_files(folder) if path.suffix not in (".py", ".csv")]
    skipped = {path.relative_to(folder).parts[0] for path in paths} | {*SKIPPED}
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    empty = [path for path in subfolders if path.name not in skipped]
    for what, listed in (("not checked, not *.py", others), ("subfolders without a Python file", empty)):
        names = [terminal.escaped(path.relative_to(folder).as_posix()) for path in listed]
        if names:
            print(f"  note: {what}: {terminal.listed(names, most=20)}")


def check_steps_in(path: Path, steps: list[Step]) -> Outcomes:
    """Check those of the steps that the file contains; 0 is the step of a file that cannot be read."""
    try:
        names = set(defined(read_text(path, "")))
    except TinyGPTError as error:
        return {0: {"the file can be read": {"got": error.message.removeprefix(f"{path}: ")}}}
    contained = [step.number for step in steps if names & set(step.names)]
    return check_file(path, contained, quiet=True)


def first_failure(outcomes: Outcomes) -> tuple[str, str]:
    """Return the first failed check, and its message in one line; both empty if no check failed."""
    for number, checks in outcomes.items():
        for check, report in checks.items():
            if report:
                message = terminal.one_line("; ".join(f"{label}: {text}" for label, text in report.items()))
                return f"step {number}: {check}" if number else check, terminal.escaped(message)
    return "", ""


def show_class(results: list[Outcomes], steps: list[Step]) -> None:
    """Print how many files passed, failed and do not contain each step, and its most frequent failed check."""
    print("\nstep  passed  failed  missing  most frequent failed check")
    for step in steps:
        checked = [outcomes[step.number] for outcomes in results if step.number in outcomes]
        failed = Counter(check for checks in checked for check, report in checks.items() if report)
        often = "".join(f"{check} ({count})" for check, count in failed.most_common(1))
        passed = len(checked) - failed.total()
        missing = len(results) - len(checked)
        print(f"{step.number:>4}  {passed:>6}  {failed.total():>6}  {missing:>7}  {often}".rstrip())


def require_table(path: Path, header: list[str]) -> None:
    """Check that the table can be written. Errors: TinyGPTError, also if it would replace another kind of file."""
    if path.suffix.lower() != ".csv":
        raise TinyGPTError(f"{path}: the name of the table must end in .csv", "--csv grades.csv")
    require_writable(path, "--csv FOLDER/grades.csv")
    if path.exists():
        require_closed(path)
        with open(path, "rb") as file:
            first = file.readline(1000).decode("utf-8-sig", "replace").rstrip("\r\n")
        if first != ",".join(header):
            raise TinyGPTError(f"{path} is a table of other steps, or not a table of results", "name another file")
