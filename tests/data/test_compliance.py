"""The task `compliance` and the threshold of a rare label.
What is refused: ../transcripts/data_pairs.txt."""

import contextlib
import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from conftest import ok
from inputs import ROOT, csv_file, prepared
from tasks_made import two_labels

import tinygpt
from tinygpt.data.dataset import Dataset


def test_a_misspelt_label_is_seen_and_a_split_without_a_label_is_noted(tmp_path: Path) -> None:
    csv_file(tmp_path / "mine.csv", ["prompt", "response"], *two_labels(), ["a note", "bda"])
    result = prepared(tmp_path, file="mine.csv")
    assert "labels:     bad 12.5%, bda 0.2%, fine 87.3%" in result.out
    notes = [line for line in result.out.splitlines() if line.startswith("note:")]
    assert notes == [f"note: the split {split} has no example of 'bda'" for split in ("val", "test")]


@pytest.fixture(scope="module")
def own(two_labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two-label dataset `mine`, and a model of it."""
    return Path(shutil.copytree(two_labelled, tmp_path_factory.mktemp("own") / "work"))


def blocks_of(page: str, after: str) -> tuple[str, str]:
    """The next two blocks of code of a page after a text."""
    text = (ROOT / page).read_text("utf-8").partition(after)[2]
    first, second = re.findall(r"```\w+\n(.*?)```", text, flags=re.DOTALL)[:2]
    return first, second


def test_the_page_chooses_the_threshold_that_costs_least(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands and the code of the page, with the names of this dataset: against all thresholds, one by one."""
    commands, code = blocks_of("docs/how-to/fine-tune.md", "**A rare label**")
    found = {}
    for command in commands.splitlines():
        if "--json" in command:
            args, _, name = command.replace("my-messages", "mine").replace("out-mine", "out").partition(" > ")
            (own / name).write_text(ok(own, *args.split()[1:]).out)
            found[name] = json.loads((own / name).read_text())
    val, test = found.values()
    model = tinygpt.load(own / "out", device="cpu")
    examples = Dataset(str(own / "data"), "mine").sources["test"].examples(model.tokenizer)
    assert test["true"] == [label for _, label in examples]
    expected = model.probabilities([prompt for prompt, _ in examples], test["labels"])
    np.testing.assert_allclose(test["probabilities"]["model"], expected, atol=1e-5)
    assert {len(rows) for rows in val["probabilities"].values()} == {val["n"]} and "ngram" in val["probabilities"]

    capsys.readouterr()
    with contextlib.chdir(own):
        runpy.run_path(str((own / "threshold.py").write_text(code.replace("breach", "bad")) and own / "threshold.py"))
    printed = [float(value) for value in re.findall(r"\d+\.\d+", capsys.readouterr().out)]

    def scored(results: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        scores = np.array(results["probabilities"]["model"])[:, results["labels"].index("bad")]
        return np.array(results["true"]) == "bad", scores

    truth, scores = scored(val)
    costs = {level: ((scores >= level) & ~truth).sum() + 20 * ((scores < level) & truth).sum() for level in scores}
    best = min(costs, key=lambda level: (costs[level], level))
    truth, scores = scored(test)
    flagged = scores >= best
    figures = [best, sklearn.metrics.recall_score(truth, flagged), sklearn.metrics.precision_score(truth, flagged)]
    assert printed == pytest.approx(figures, abs=6e-3)


def test_a_rare_label_is_noted(own: Path) -> None:
    """One of 12 is `odd`; of `mine` one of 8 is `bad`, which is not rare."""
    assert "is rare" not in ok(own, "eval", "--task=mine").out
    rows = [[f"{n:03} note", "odd" if n % 12 == 0 else "fine"] for n in range(400)]
    csv_file(own / "rare.csv", ["prompt", "response"], *rows)
    ok(own, "prepare", "rare", "--input=rare.csv", "--format=pairs")
    said = ok(own, "eval", "--task=rare", "-o", "rare.png").out
    assert "note: 'odd' is rare, so the accuracy misleads" in said and (own / "rare.png").exists()
