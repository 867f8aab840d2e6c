"""`scripts/docs.py --labs` makes the page of each lab and a list of them; a lab that fails does not stop the others."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import listing

SCRIPT = Path(__file__).parents[2] / "scripts/docs.py"


def lab_pages(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, "--labs", *args], cwd=folder, capture_output=True, text=True)


def test_an_unknown_lab_is_refused(tmp_path: Path) -> None:
    done = lab_pages(tmp_path, "pages", "lables")
    assert done.returncode == 2 and "no such lab: lables; choose from facts" in done.stderr
    assert listing(tmp_path) == {}


def test_a_lab_that_fails_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    (tmp_path / "out-lab-canary-quick").write_text("a file in the place of the folder")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/labels.html").write_text("of an earlier call")
    done = lab_pages(tmp_path, "pages", "canary")
    assert done.returncode == 1 and "no page of canary" in done.stderr and "Traceback" not in done.stderr
    index = (tmp_path / "pages/index.html").read_text(encoding="utf-8")
    assert '<a href="labels.html">' in index and "canary" not in index


@pytest.mark.slow
def test_a_page_is_made_once(tmp_path: Path) -> None:
    done = lab_pages(tmp_path, "pages", "arithmetic")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "pages/arithmetic.html").read_bytes()
    assert page == (tmp_path / "out-lab-arithmetic-quick/arithmetic.html").read_bytes()
    assert '<a href="arithmetic.html">' in (tmp_path / "pages/index.html").read_text(encoding="utf-8")
    again = lab_pages(tmp_path, "pages", "arithmetic")
    assert again.returncode == 0 and "stage 1 of" in done.stdout and "stage 1 of" not in again.stdout
