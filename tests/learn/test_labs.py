"""What every lab does, from its first stage to its page, in its shortest form (support/labs.py)."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from labs import SHORTEST

from tinygpt.learn.lab.command import LABS

EVERYDAY = "arithmetic"  # the quickest one
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name != EVERYDAY)) for name in SHORTEST]


@pytest.mark.parametrize("name", NAMES)
def test_a_lab_runs_from_its_first_stage_to_its_page_and_continues(lab: Callable[[str], Path], name: str) -> None:
    folder = lab(name)
    stopped, continued, repeated = (
        re.findall(r"^stage (\d+) of (\d+): (.*) \(about", said, flags=re.MULTILINE)
        for said in json.loads((folder / "said.json").read_text())
    )
    assert [number for number, _, _ in stopped + continued] == [str(at + 1) for at in range(int(stopped[0][1]))]
    assert not repeated  # each stage ran once
    results = json.loads((folder / "out/lab.json").read_text(encoding="utf-8"))["stages"]
    assert list(results) == [stage for _, _, stage in stopped + continued] and len(stopped) == 1 < len(results)

    said = (folder / "said.txt").read_text(encoding="utf-8")
    assert said.startswith(f"lab {name}: {LABS[name].about}\n")
    assert said.count("\nverdict: ") == said.count("\nrule:    ") > 0
    page = (folder / f"out/{name}.html").read_text(encoding="utf-8")
    assert page.count("<summary>The rule") == said.count("\nrule:    ")
    assert "default-src 'none'" in page and not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert not re.search(r"<tr[^>]*><th[^>]*>[^<]*</th>(?:<td[^>]*></td>)+</tr>", page)  # a row without figures
    assert (folder / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
