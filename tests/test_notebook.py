"""The notebook runs from top to bottom, its figures hold, it has no stored outputs, and it equals its text form."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).parent.parent / "notebooks/gpt_from_scratch.ipynb"


def test_it_is_stripped() -> None:
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert NOTEBOOK.stat().st_size < 100_000


def test_it_says_what_its_text_form_says() -> None:
    text = jupytext.read(NOTEBOOK.with_suffix(".py"))
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(NOTEBOOK, 4).cells]
    assert cells == [(cell.cell_type, cell.source) for cell in text.cells], (
        "run: jupytext --sync notebooks/gpt_from_scratch.py"
    )


def test_each_part_has_a_picture_and_a_question_with_its_answer() -> None:
    parts: list[str] = []
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            parts.append("")
        if parts:
            parts[-1] += cell.source + "\n"
    assert len(parts) == 11
    for number, part in enumerate(parts, 1):
        assert part.startswith(f"## {number}. ")
        assert "plt.show()" in part or "display(" in part
        assert part.count("**Question.**") == part.count("<details><summary>Answer</summary>") == 1


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run the notebook in a kernel of this Python interpreter, whatever kernels the user has installed."""
    environment = os.environ | {"JUPYTER_PATH": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipython")}
    install = [sys.executable, "-m", "ipykernel", "install", "--prefix", str(folder), "--name", "python3"]
    subprocess.run(install, check=True, capture_output=True, env=environment)
    shutil.move(folder / "share/jupyter", folder / "jupyter")
    with pytest.MonkeyPatch.context() as patch:
        for key in ("JUPYTER_PATH", "IPYTHONDIR"):
            patch.setenv(key, environment[key])
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.timeout(1200)
def test_it_runs_from_top_to_bottom_and_its_numbers_hold(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    run(notebook, tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 20
    assert not [output.text for output in outputs if output.get("name") == "stderr"]  # no warning either


def test_a_number_that_does_not_hold_would_be_noticed(tmp_path: Path) -> None:
    """Negative control: the first three parts, with a bigram that is not trained."""
    notebook = nbformat.read(NOTEBOOK, 4)
    until = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## 4."))
    notebook.cells = notebook.cells[:until]
    for cell in notebook.cells:
        cell.source = cell.source.replace("for step in range(1500):", "for step in range(15):")
    with pytest.raises(CellExecutionError, match="abs\\(bigram_loss - counted\\)"):
        run(notebook, tmp_path)
