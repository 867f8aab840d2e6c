"""The notebook runs from top to bottom, it equals its text form, its stored outputs are complete, and the page that
scripts/notebook.py makes of it is complete and loads nothing.

The trainings are short here, so their numbers mean nothing: `scripts/notebook.py --check`, a part of a release, runs
the complete ones and checks each claim.
"""

import importlib.util
import re
import subprocess
import symtable
import sys
from collections import defaultdict
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import script

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/gpt_from_scratch.ipynb"
PARTS = 23
RUN = script("notebook")
SHORTER = {  # in all cells: fewer steps, a shorter text to measure on, smaller models of tinygpt's
    r'(steps=|train\(model, |train\(small, |"out", |"out-preset", )\d+': r"\g<1>20",
    r"count = \(len\(val_data\) - 1\) // T": "count = 20",
    r"batches=10": "batches=2",
    r"text\(1000, ": "text(20, ",  # a label at the last step: outside the axes, the picture would be very wide
    r"\*flags\)  # fmt: skip": '*flags, "--eval_iters=1", "--n_layer=1", "--n_head=2", "--n_embd=32")',
}


def parts() -> list[str]:
    """The source of each part: its text and its code."""
    found: list[str] = []
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            found.append("")
        if found:
            found[-1] += cell.source + "\n"
    return found


def wrong_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """The cells whose outputs are missing, of another run, or different on another machine."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    wrong = []
    for number, cell in enumerate(code, 1):
        speaks = re.search(r"^(print|show|check|display)\(", cell.source, re.M)
        private = re.search(r"/(home|tmp|root|Users|work)/|\\Users\\|\d\d:\d\d:\d\d", str(cell.outputs))
        if cell.execution_count != number or (speaks and not cell.outputs) or private or "execution" in cell.metadata:
            wrong.append(cell.source.splitlines()[0])
    return wrong


def test_its_outputs_are_stored() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    assert not wrong_outputs(notebook), f"run: python scripts/notebook.py --out {NOTEBOOK.relative_to(ROOT)}"
    RUN.check_claims(notebook)
    RUN.check_page(notebook)
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_a_missing_output_would_be_noticed() -> None:
    """Negative control: without the outputs of one cell, with a path, and with a cell that ran again."""
    for change in ({"outputs": []}, {"outputs": ["/home/ada/tinygpt"]}, {"execution_count": 99}):
        notebook = nbformat.read(NOTEBOOK, 4)
        (cell,) = (cell for cell in notebook.cells if cell.source.startswith("class Bigram"))
        cell.update(change)
        assert wrong_outputs(notebook) == ["class Bigram(nn.Module):"]


def test_it_says_what_its_text_form_says() -> None:
    text = jupytext.read(NOTEBOOK.with_suffix(".py"))
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(NOTEBOOK, 4).cells]
    assert cells == [(cell.cell_type, cell.source) for cell in text.cells], (
        "run: jupytext --sync notebooks/gpt_from_scratch.py"
    )


def test_each_part_has_a_picture_and_a_question_with_its_answer() -> None:
    assert len(parts()) == PARTS
    for number, part in enumerate(parts(), 1):
        assert part.startswith(f"## {number}. ")
        assert "\nshow(" in part or "display(" in part
        assert part.count("**Question.**") == 1
        answers = part.count("<details><summary>Answer</summary>")
        assert answers == part.count("</details>") == 1 + part.count("**Exercise.**")


def test_the_list_of_the_short_path_agrees_with_the_marks_of_the_parts() -> None:
    opening = nbformat.read(NOTEBOOK, 4).cells[0].source
    listed = re.search(r"\*\*Short path\*\*[^:]*: parts ([\d, and\s]+)\.", opening)
    assert listed
    marks = [part.splitlines()[1] for part in parts()]
    assert all(mark.startswith(("*Short path", "*Full path")) for mark in marks)
    short = [number for number, mark in enumerate(marks, 1) if mark.startswith("*Short path")]
    assert [int(number) for number in re.findall(r"\d+", listed[1])] == short


AT_ONCE = ("listcomp", "setcomp", "dictcomp", "genexpr", "lambda")  # what reads its names while its cell runs


def test_no_part_rebinds_a_name_that_another_part_uses() -> None:
    """So a part can run again after all the others."""
    part, bound, used = 0, defaultdict(set), []

    def used_in_functions(scope: symtable.SymbolTable) -> None:
        for inner in scope.get_children():
            runs_at_once = inner.get_type() == "class" or inner.get_name() in AT_ONCE
            for symbol in inner.get_symbols():
                name = symbol.get_name()
                if symbol.is_global() and symbol.is_referenced() and not (runs_at_once and name in here):
                    used.append((name, part))
            used_in_functions(inner)

    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if heading := re.match(r"## (\d+)\. ", cell.source):
            part = int(heading[1])
        if cell.cell_type == "code":
            scope = symtable.symtable(cell.source, "cell", "exec")
            here = {s.get_name() for s in scope.get_symbols() if s.is_assigned() or s.is_imported()}
            for name in here:
                bound[name].add(part)
            used += [(s.get_name(), part) for s in scope.get_symbols() if s.get_name() not in here]
            used_in_functions(scope)
    assert not sorted({(name, part, *bound[name]) for name, part in used if len(bound[name]) > 1})


def test_no_formula_needs_a_typesetter() -> None:
    """The page has none, so that it loads nothing."""
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "markdown":
            assert "$" not in re.sub(r"`[^`]*`", "", cell.source)


def test_the_first_cell_installs_from_the_clone_or_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = next(cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code")
    ran: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="open this notebook inside a clone of tinygpt"):
        exec(source, {})
    assert not ran
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    exec(source, {})
    assert ran == [[sys.executable, "-m", "pip", "install", "-q", f"{tmp_path}[report]"]]


@pytest.mark.parametrize("text", ['<script src="https://x.example/a.js">', "<img src='https://x.example/a.png'>"])
def test_a_request_would_be_noticed(text: str) -> None:
    assert RUN.REQUESTS.search(text)


def test_the_first_part_runs_and_is_a_page(tmp_path: Path) -> None:
    notebook = RUN.load("naics", until=2)
    RUN.execute(notebook, tmp_path)
    assert "verbatim reporting and stenotype recording" in RUN.check_page(notebook)
    RUN.check_claims(notebook)
    RUN.store(notebook, tmp_path / "stored.ipynb")
    assert not wrong_outputs(nbformat.read(tmp_path / "stored.ipynb", 4))


def test_an_exercise_that_is_not_solved_says_so_and_the_cells_go_on(tmp_path: Path) -> None:
    """Negative control: the exercise of part 1."""
    notebook = RUN.load("naics", until=2)
    (cell,) = (cell for cell in notebook.cells if "w -= 0.15 * w.grad" in cell.source)
    cell.source = cell.source.replace("w -= 0.15", "w -= 1.05")
    RUN.execute(notebook, tmp_path)
    assert "not yet: after 12 steps w is within 0.1 of 1. Hint: Is the learning rate too large" in RUN.printed(notebook)
    with pytest.raises(AssertionError, match="not yet: after 12 steps"):
        RUN.check_claims(notebook)


@pytest.mark.slow
def test_all_cells_run_with_short_trainings_and_the_page_is_complete(tmp_path: Path) -> None:
    notebook = RUN.load()
    for pattern, replacement in SHORTER.items():
        assert [cell for cell in notebook.cells if re.search(pattern, cell.source)], pattern
        for cell in notebook.cells:
            cell.source = re.sub(pattern, replacement, cell.source)
    RUN.execute(notebook, tmp_path)
    page = RUN.check_page(notebook)
    assert RUN.printed(notebook).count("right: ") + RUN.printed(notebook).count("not yet: ") > PARTS
    assert "<th>sample</th>" in page and page.count("<tr><td>") == 11 + 7  # the table of ideas, and which method
    assert "<td>combining: retrieval and a model trained to read</td>" in page


@pytest.mark.slow
def test_the_first_parts_run_with_the_descriptions_of_industries_and_run_again(tmp_path: Path) -> None:
    """Parts 4 to 7 run again after themselves, and a row of the list of ideas is replaced."""
    notebook = RUN.load("naics", until=8)
    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    begin = next(i for i, cell in enumerate(code) if cell.source.startswith("class Bigram"))
    again = nbformat.v4.new_code_cell("assert len(ideas) == 4 and C == 64")
    notebook.cells = [*cells, *(nbformat.v4.new_code_cell(cell.source) for cell in code[begin:]), again]
    said: list[str] = []
    RUN.execute(notebook, tmp_path, said.append)
    assert [re.search(r"min +(\d+)\. ", text)[1] for text in said] == list("1234567")  # type: ignore[index]
    notebook.cells = cells
    page = RUN.check_page(notebook)
    assert "Court Reporting" in page
    contents = re.findall(r'<a href="#(.*?)">', page.partition("</nav>")[0])
    assert len(contents) == 7 and all(f'<h2 id="{anchor}">' in page for anchor in contents)
