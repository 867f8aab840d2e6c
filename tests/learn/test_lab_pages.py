"""The page of an experiment in Chromium and as text."""

from pathlib import Path

from labs import system
from pages import HOSTILE, Browser, in_a_browser

from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records
from tinygpt.examine.experiment.summary import Example, Summary, Table, Verdict, write
from tinygpt.learn.lab import arithmetic

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


def test_the_example_is_the_error_with_the_highest_probability() -> None:
    wrong, right = dict.fromkeys(arithmetic.KINDS, 0.5), dict.fromkeys(arithmetic.KINDS, 1.0)
    models = {name: system(wrong, sure) for name, sure in (("plain", 0.6), ("reversed", 0.7))}
    found = arithmetic.error({name: Records(one | {"system": name} for one in own) for name, own in models.items()})
    assert found and found.marked == "0" and "Model: reversed; probability: 0.70" in found.note
    assert f"Correct is {arithmetic.right(found.prompt.removesuffix(' ='))}." in found.note
    assert arithmetic.error({"plain": system(right, 0.9)}) is None
