"""The page of an experiment in Chromium and as text, and `scripts/docs.py --labs`, which makes the page of each lab."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import listing, script
from labs import ASKED, DOWN, answered, asked, learned, results, shortest, system
from pages import HOSTILE, Browser, in_a_browser

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.cli import main
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records
from tinygpt.examine.experiment.summary import Example, Summary, Table, Verdict, write
from tinygpt.learn.lab import arithmetic, canary, confidence, labels
from tinygpt.learn.lab.facts.summary import NONE, Measured, Row, invented

SCRIPT = Path(__file__).parents[2] / "scripts/docs.py"


def lab_pages(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, "--labs", *args], cwd=folder, capture_output=True, text=True)


def test_an_unknown_lab_is_refused(tmp_path: Path) -> None:
    done = lab_pages(tmp_path, "pages", "lables")
    assert done.returncode == 2 and "no such lab: lables; choose from facts" in done.stderr
    assert listing(tmp_path) == {}


@pytest.mark.slow
def test_a_lab_that_fails_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    (tmp_path / "out-lab-canary-quick").write_text("a file in the place of the folder")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/labels.html").write_text("of an earlier call")
    done = lab_pages(tmp_path, "pages", "canary")
    assert done.returncode == 1 and "no page of canary" in done.stderr and "Traceback" not in done.stderr
    index = (tmp_path / "pages/index.html").read_text(encoding="utf-8")
    assert '<a href="labels.html">' in index and "canary" not in index


# ---- the page --------------------------------------------------------------------------------------------------------

NARROW = Table("Narrow", [{"label": "card", "lines": "9 of 12 (10 to 95)"}], "Few.")
WIDE = Table("Wide", [{"name": HOSTILE} | {f"column {n}": f"{n}.5 (1.0 to 9.0)%" for n in range(9)}] * 3, "Many.")
LAW = Table("Law", [{"E": "not determined"} | {f"{n} constants": "0.28 (0.08 to 0.64)" for n in "abc"}], "Four.")
LINES = [
    Line("a", [1, 2], [3, 4], "o-", "C0"),
    Line("", [1, 2], [4, 3], "o", "black"),
    Line("c", [1, 2], [1, 2], "--", "C3"),
]
SUMMARY = Summary(
    "Which is better?",
    "The first or the second one.",
    [NARROW, WIDE, LAW],
    [Verdict("The first is 63% right (60.1 to 66.2); guessing 35%.", "the rule"), Verdict("A second.", "its rule")],
    "Both",
    Plane("x", "y", LINES),
    Example("An error", f"{HOSTILE} 1+1 =", "3", "Correct is 2."),
)


@in_a_browser
def test_the_page_fits_a_phone_and_folds_the_statistics(tmp_path: Path, browser: Browser) -> None:
    _, page = write(SUMMARY, tmp_path, "x")
    for width in (1280, 800, 390):
        for dark in (False, True):
            browser.script.resize(browser.driver, width, dark)
            browser.driver.get(page.as_uri())
            assert browser.violations() == [] and browser.driver.title == "Which is better? · tinygpt lab"
            assert browser.run("return document.documentElement.scrollWidth") == width
            drawn = [one for one in browser.all(".plot svg") if one.is_displayed()]
            assert len(drawn) == 1 and drawn[0].size["width"] > 0.65 * min(width, 900)
    assert browser.find("h1").text == "The first is 63% right; guessing 35%." and browser.find("mark").text == "3"
    assert [one.text for one in browser.all("main h2")] == [
        "An error",
        "Both",
        "Narrow",
        "What else follows",
        "Wide",
        "Law",
    ]
    cells = browser.all("td[data-column='column 8']")
    assert browser.find("td[data-column='lines']").text == "9 of 12" and cells[0].text == "8.5%"
    assert min(one.size["height"] for one in browser.all("summary")) >= 32  # CSS pixels that a finger can hit
    for selector in ("header summary", "[aria-labelledby=table-2] summary", "[aria-labelledby=table-3] summary"):
        browser.run("document.querySelector(arguments[0]).focus()", selector)
        browser.driver.switch_to.active_element.send_keys("\ue007")  # Enter
    assert browser.find("h1").text == "The first is 63% right (60.1 to 66.2); guessing 35%."
    assert cells[0].text == "8.5 (1.0 to 9.0)%" and browser.find("td[data-column='lines']").text == "9 of 12"
    assert browser.violations() == [] and browser.run("return document.documentElement.scrollWidth") == 390
    assert browser.driver.get_log("browser") == [] and browser.requests() == []


def test_the_picture_has_the_colours_of_the_page(tmp_path: Path) -> None:
    picture, page = write(SUMMARY, tmp_path, "x")
    drawings = re.findall(r"<svg.*?</svg>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(drawings) == 2 and picture.read_bytes().startswith(b"\x89PNG")
    for drawing in drawings:
        assert {"var(--run-0)", "var(--run-3)", "var(--ink)", "var(--line)"} <= set(re.findall(r"var\(.*?\)", drawing))
        assert not re.findall(r"(?:fill|stroke): #", drawing)


def test_only_a_wide_table_is_stacked() -> None:
    assert (
        WIDE.stacked
        and not NARROW.stacked
        and not LAW.stacked
        and NARROW.sentences == {"label"}
        and WIDE.sentences == {"name"}
    )


def test_a_range_is_explained_only_if_there_is_one() -> None:
    for cell, explained in (("8.5 (1.0 to 9.0)", "Median (minimum to maximum)."), ("8.5", "Median.")):
        table = Table("x", [{"loss": cell}], "Median (minimum to maximum).")
        assert table.explained == explained and table.as_text().endswith(explained)


def test_a_lab_opens_with_a_line_that_has_a_wrong_label(tmp_path: Path) -> None:
    clean = {(100, 0.0): 0.2, (1000, 0.0): 0.4}
    found = learned({**clean, (1000, 0.2): 0.1}) + learned(clean, labels.NGRAM)
    summary = labels.summarise(Records(found), LabConfig())
    assert summary.example and summary.verdicts[0].text.startswith("For the tiny model, 1,000 labels, 20% wrong")
    truth = dict(api.task(labels.TASK).splits["train"])[summary.example.prompt.removesuffix(" →")]
    assert truth != summary.example.marked and f"The right label is {truth}." in summary.example.note


def test_the_example_is_the_error_with_the_highest_probability() -> None:
    wrong, right = dict.fromkeys(arithmetic.KINDS, 0.5), dict.fromkeys(arithmetic.KINDS, 1.0)
    models = {name: system(wrong, sure) for name, sure in (("plain", 0.6), ("reversed", 0.7))}
    found = arithmetic.error({name: Records(one | {"system": name} for one in own) for name, own in models.items()})
    assert found and found.marked == "0" and "Model: reversed; probability: 0.70" in found.note
    assert f"Correct is {arithmetic.right(found.prompt.removesuffix(' ='))}." in found.note
    assert arithmetic.error({"plain": system(right, 0.9)}) is None
    row = Row("x", NONE, NONE, NONE, ("after", "x"))
    for text, marked in (("Rome", "Rome"), ("", None)):  # the last question has no answer
        found = invented(Measured(Records([*asked(1), answered("after x", "", "", "", "", text, sure=0.9)])), [row])
        assert (found and found.marked) == marked and (not found or found.prompt == ASKED[-1].text)


def test_the_example_of_a_memorised_number_is_the_one_planted_least_often() -> None:
    planted = canary.canaries(canary.QUICK, 1)
    numbers = [{"seed": 1, **one._asdict(), "extracted": one.planted > 1} for one in planted]
    found = canary.memorised(Records(numbers), canary.QUICK)
    least = min((one for one in planted if one.planted > 1), key=lambda one: one.planted)
    assert found and found.marked == least.number and least.name in found.prompt
    assert canary.memorised(Records([numbers[0] | {"extracted": False}]), canary.QUICK) is None


def test_the_example_of_confidence_is_a_sentence_that_is_answered() -> None:
    record: dict[str, Any] = results(DOWN, DOWN, 90)[1] | {"threshold": 0.5}
    record["confidence"][confidence.LANGUAGES] = np.linspace(0.1, 0.8, 40).tolist()
    found = confidence.error(record)
    assert found and found.prompt == confidence.SENTENCES.read_text(encoding="utf-8").splitlines()[39] + " →"
    assert confidence.error(record | {"threshold": 0.9}) is None


# ---- the pages of all labs ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_page_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = script("docs")
    monkeypatch.setattr(docs, "tinygpt", lambda *command: main([*command]) == 0)  # in this process
    monkeypatch.chdir(tmp_path)
    with shortest("arithmetic"):
        docs.lab_pages(Path("pages"), ["arithmetic"], full=False)
        assert "stage 1 of" in capsys.readouterr().out
        page = Path("pages/arithmetic.html").read_bytes()
        assert page == Path("out-lab-arithmetic-quick/arithmetic.html").read_bytes()
        assert '<a href="arithmetic.html">' in Path("pages/index.html").read_text(encoding="utf-8")
        docs.lab_pages(Path("pages"), ["arithmetic"], full=False)
    assert "stage 1 of" not in capsys.readouterr().out
