"""Check that each figure in the prose of README.md and docs/ comes from a measurement in docs/figures.toml.

python scripts/figures.py                        # list the figures that no measurement of the page has; exit 1 if any
python scripts/figures.py docs/reference/labs.md # of these pages only

A page names its measurements in a comment: `<!-- figures: preset lab-reports -->`. A figure is a number with a decimal
point, a percent sign or a unit, or in a table; those in code do not count. It must be a value of one of these
measurements, or such a value rounded. The site shows the measurements at the end of the page.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OWN_RECORD = {"docs/developers/experiments.md"}  # states the source of each figure itself
NUMBER = r"(?<![\w.,-])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w])|(?<![\w.,-])\d+(?:\.\d+)?(?![\w]|\.\d)"
UNIT = r"(?: ?%| (?:s|ms|min|minutes?|seconds?|hours?|[kMG]B|nats?|bits?|times|percent)\b)"
RANGE = r"(?:(?:,| to|-|–| and| or) ?\d[\d.,]*)*"  # 13 to 84%; 2, 5 and 9 minutes
COMMENT = re.compile(r"<!-- figures: ([\w -]+?) -->\n?")


def measurements() -> dict[str, dict[str, Any]]:
    return tomllib.loads((ROOT / "docs/figures.toml").read_text(encoding="utf-8"))


def prose(text: str) -> str:
    """The text without code, the table of keys, comments, the targets of links, headings, and the numbers or minutes
    that begin an item of a list or a row."""
    row = r"^\| \d+(?:–\d+)? (?=\|)"
    comments = (r"<!-- keys.*?<!-- end -->", r"<!--.*?-->")
    for pattern in (r"\A---\n.*?\n---\n", r"^ *```.*?^ *```", *comments, r"^#.*?$", r"^ *\d+\. ", row):
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)|``.*?``|`[^`]*`|https?://\S+", "] ", text)


def figures(text: str) -> list[str]:
    """The figures in the prose of a page, as they are written."""
    found = []
    for paragraph in re.split(r"\n\s*\n", prose(text)):
        table = paragraph.lstrip().startswith("|")
        paragraph = " ".join(paragraph.split())
        for match in re.finditer(NUMBER, paragraph):
            if table or "." in match[0] or re.match(rf"{RANGE}{UNIT}", paragraph[match.end() :]):
                found.append(match[0])
    return found


def is_value(figure: str, values: list[str]) -> bool:
    """Whether the figure is one of the values, or one of them rounded."""
    number, unit = float(figure.replace(",", "")), 10.0 ** -len(figure.partition(".")[2])
    return any(abs(number - float(value.replace(",", ""))) <= unit / 2 + 1e-9 for value in values)


def unknown(text: str, known: dict[str, dict[str, Any]]) -> list[str]:
    """The figures of a page that none of the measurements that it names has. Errors: KeyError for no measurement."""
    names = [name for listed in COMMENT.findall(text) for name in listed.split()]
    values = [value for name in names for value in known[name]["values"].split()]
    return [figure for figure in figures(text) if not is_value(figure, values)]


def pages() -> list[Path]:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in paths if path.relative_to(ROOT).as_posix() not in OWN_RECORD]


def main() -> None:
    known, missing = measurements(), 0
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else pages():
        if wrong := unknown(path.read_text(encoding="utf-8"), known):
            print(f"{path}: {' '.join(wrong)}")
            missing += len(wrong)
    if missing:
        sys.exit(f"{missing} figures come from no measurement that their page names: see docs/figures.toml")


if __name__ == "__main__":
    main()
