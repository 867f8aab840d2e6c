"""The notebook runs from top to bottom, it equals its text form, its stored outputs are complete, and the page that
scripts/notebook.py makes of it is complete and loads nothing.

The trainings are short here, so their numbers mean nothing: `scripts/notebook.py --check`, a part of a release, runs
the complete ones and checks each claim.
"""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import script

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/gpt_from_scratch.ipynb"
PARTS = 23
RUN = script("notebook")
SHORTER = {  # in all cells: fewer steps, smaller batches, and shorter texts to learn from and to measure on
    r"(steps=|train\(model, |train\(small, )\d+": r"\g<1>20",
    r"T, B = 64, 12": "T, B = 64, 2",
    r"learn_merges\(text\[:150_000\], 250\)": "learn_merges(text[:150_000], 12)",
    r"count = \(len\(val_data\) - 1\) // T": "count = 20",
    r"batches=10": "batches=2",
    r"lines\[:16\]": "lines[:4]",
    r"range\(0, 100 \* 500, 500\)": "range(0, 10 * 500, 500)",
    r"text\(1000, ": "text(20, ",  # a label at the last step: outside the axes, the picture would be very wide
}


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
    (cell,) = (cell for cell in notebook.cells if cell.source.startswith("class Bigram"))
    for change in ({"outputs": []}, {"outputs": ["/home/ada/tinygpt"]}, {"execution_count": 99}):  # negative control
        cell.update(change)
        assert wrong_outputs(notebook) == ["class Bigram(nn.Module):"]


def test_it_says_what_its_text_form_says() -> None:
    text, notebook = (jupytext.read(NOTEBOOK.with_suffix(ending)) for ending in (".py", ".ipynb"))
    cells, written = ([(cell.cell_type, cell.source) for cell in each.cells] for each in (notebook, text))
    assert cells == written, "run: jupytext --sync notebooks/gpt_from_scratch.py"


def test_a_request_would_be_noticed() -> None:
    for text in ('<script src="https://x.example/a.js">', "<img src='https://x.example/a.png'>"):
        assert RUN.REQUESTS.search(text)


def test_the_first_part_runs_and_is_a_page_and_an_exercise_that_is_not_solved_says_so(tmp_path: Path) -> None:
    notebook = RUN.load(until=2)
    (cell,) = (cell for cell in notebook.cells if "w -= 0.15 * w.grad" in cell.source)
    notebook.cells.append(nbformat.v4.new_code_cell(cell.source.replace("w -= 0.15", "w -= 1.05")))
    RUN.execute(notebook, tmp_path)
    assert "not yet: after 12 steps w is within 0.1 of 1. Hint: Is the learning rate too large" in RUN.printed(notebook)
    with pytest.raises(AssertionError, match="not yet: after 12 steps"):
        RUN.check_claims(notebook)
    notebook.cells.pop()
    RUN.check_claims(notebook)
    assert "within 0.1 of 1" in RUN.check_page(notebook)
    RUN.store(notebook, tmp_path / "stored.ipynb")
    assert not wrong_outputs(nbformat.read(tmp_path / "stored.ipynb", 4))


@pytest.mark.slow
def test_all_cells_run_with_short_trainings_and_the_page_is_complete(tmp_path: Path) -> None:
    """With the descriptions of industries, since the stored outputs are of Shakespeare; parts 4 to 7 run twice."""
    notebook = RUN.load("naics", until=PARTS)  # the last part runs commands of tinygpt
    for pattern, replacement in SHORTER.items():
        assert [cell for cell in notebook.cells if re.search(pattern, cell.source)], pattern
        for cell in notebook.cells:
            cell.source = re.sub(pattern, replacement, cell.source)
    starts = {
        int(found[1]): i for i, cell in enumerate(notebook.cells) if (found := re.match(r"## (\d+)\. ", cell.source))
    }
    again = [cell.source for cell in notebook.cells[starts[4] : starts[8]] if cell.cell_type == "code"]
    again = ["rows = len(ideas)", *again, "assert len(ideas) == rows  # replaced, not added"]
    notebook.cells[starts[8] : starts[8]] = map(nbformat.v4.new_code_cell, again)
    said: list[str] = []
    RUN.execute(notebook, tmp_path, said.append)
    assert [re.search(r"min +(\d+)\. ", text)[1] for text in said] == [*map(str, starts)]  # type: ignore[index]
    page = RUN.check_page(notebook)
    assert RUN.printed(notebook).count("right: ") + RUN.printed(notebook).count("not yet: ") >= PARTS
    assert "<th>sample</th>" in page and page.count("<tr><td>") == 11 + 7  # the table of ideas, and which method
    assert "<td>combining: retrieval and a model trained to read</td>" in page and "Court Reporting" in page
    contents = re.findall(r'<a href="#(.*?)">', page.partition("</nav>")[0])
    assert len(contents) == PARTS - 1 and all(f'<h2 id="{anchor}">' in page for anchor in contents)
