"""The page of an experiment in Chromium and as text, and `scripts/docs.py --labs`, which makes the page of each lab."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import script
from labs import ASKED, DOWN, answered, asked, results, system
from pages import HOSTILE, Browser, in_a_browser

from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records
from tinygpt.examine.experiment.summary import Example, Summary, Table, Verdict, write
from tinygpt.learn.lab import arithmetic, canary, confidence
from tinygpt.learn.lab.facts.summary import NONE, Measured, Row, invented

NARROW = Table("Narrow", [{"label": "card", "lines": "9 of 12 (10 to 95)"}], "Few.")
WIDE = Table("Wide", [{"name": HOSTILE} | {f"column {n}": f"{n}.5 (1.0 to 9.0)%" for n in range(9)}] * 3, "Many.")
LAW = Table("Law", [{"E": "not determined"} | {f"{n} constants": "0.28 (0.08 to 0.64)" for n in "abc"}], "Four.")
LINES = [Line("a", [1, 2], [3, 4], "o-", "C0"), Line("", [1, 2], [4, 3], "o", "black")]
SUMMARY = Summary(
    "Which is better?",
    "The first or the second one.",
    [NARROW, WIDE, LAW],
    [Verdict("The first is 63% right (60.1 to 66.2); guessing 35%.", "the rule"), Verdict("A second.", "its rule")],
    "Both",
    Plane("x", "y", [*LINES, Line("c", [1, 2], [1, 2], "--", "C3")]),
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
    titles = "An error, Both, Narrow, What else follows, Wide, Law"
    assert ", ".join(one.text for one in browser.all("main h2")) == titles
    cells = browser.all("td[data-column='column 8']")
    assert browser.find("td[data-column='lines']").text == "9 of 12" and cells[0].text == "8.5%"
    assert min(one.size["height"] for one in browser.all("summary")) >= 32  # CSS pixels that a finger can hit
    for selector in ("header summary", "[aria-labelledby=table-2] summary", "[aria-labelledby=table-3] summary"):
        browser.run("document.querySelector(arguments[0]).focus()", selector)
        browser.driver.switch_to.active_element.send_keys("\ue007")  # Enter
    assert browser.find("h1").text == "The first is 63% right (60.1 to 66.2); guessing 35%."
    assert cells[0].text == "8.5 (1.0 to 9.0)%" and browser.find("td[data-column='lines']").text == "9 of 12"
    assert browser.violations() == [] and browser.run("return document.documentElement.scrollWidth") == 390
    browser.assert_quiet()


def test_only_a_wide_table_is_stacked_and_a_range_is_explained_only_if_there_is_one() -> None:
    assert WIDE.stacked and not NARROW.stacked and not LAW.stacked
    assert NARROW.sentences == {"label"} and WIDE.sentences == {"name"}
    for cell, explained in (("8.5 (1.0 to 9.0)", "Median (minimum to maximum)."), ("8.5", "Median.")):
        table = Table("x", [{"loss": cell}], "Median (minimum to maximum).")
        assert table.explained == explained and table.as_text().endswith(explained)


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


def test_the_pages_of_labs_are_made_and_one_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tinygpt(_lab: str, name: str, *flags: str) -> bool:
        folder = Path(flags[-1].removeprefix("--out_dir="))
        folder.mkdir()
        (folder / f"{name}.html").touch()
        return name != "canary"

    docs = script("docs")
    monkeypatch.setattr(docs, "tinygpt", tinygpt)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no page of canary"):
        docs.lab_pages(Path("pages"), ["arithmetic", "canary"], full=False)
    assert Path("pages/arithmetic.html").exists() and Path("out-lab-arithmetic-quick").exists()
    index = Path("pages/index.html").read_text(encoding="utf-8")
    assert '<a href="arithmetic.html">' in index and "canary" not in index
