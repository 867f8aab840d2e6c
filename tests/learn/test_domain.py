"""`tinygpt lab domain` and its task `sectors`: no leak between splits or into the corpus; verdicts."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import lab_results

from tinygpt.checkpoint.store import load
from tinygpt.data import corpora
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import domain, sectors

TEXT = corpora.industry_descriptions()
EXAMPLES = sectors.examples()
SHA256 = "2b9f562fcb9c23ba2c0e46b048fd3fd956283fbe0888576de8568ce19cda4399"


def prompt_of(line: str) -> str:
    """A line of the descriptions as a prompt, written differently: parentheses are counted."""
    kept, depth = "", 0
    for character in line:
        depth += character == "("
        kept += character if depth == 0 else ""
        depth -= character == ")"
    return " ".join(kept.lower().replace(" ,", ",").split()).strip(" ,.").removesuffix("manufacturing").rstrip(" ,")


def codes_of_prompts() -> dict[str, set[str]]:
    """The five or six digits of the entries in which each prompt is a line, read from the text line by line."""
    found: dict[str, set[str]] = defaultdict(set)
    code = ""
    for line in TEXT.splitlines():
        if entry := re.match(r"(\d\d[-\d]*) (.*)", line):
            code, line = entry[1], entry[2]
        if re.fullmatch(r"\d{5,6}", code):
            found[prompt_of(line)].add(code)
    return found


def test_each_prompt_is_an_activity_of_its_sector_and_no_industry_is_in_two_splits() -> None:
    codes, industries, prompts = codes_of_prompts(), defaultdict(set), []
    for split, examples in EXAMPLES.items():
        for prompt, label in examples:
            assert {code[:2] for code in codes[prompt]} <= set(sectors.NUMBERS[label].split()), prompt
            assert codes[prompt] and len(prompt) + max(map(len, sectors.SECTORS)) + 3 <= 64
            prompts.append(re.sub("[^a-z]", "", prompt))
            industries[split] |= {code if label == "management" else code[:5] for code in codes[prompt]}
    assert len(set(prompts)) == len(prompts) == 2922
    assert hashlib.sha256(json.dumps(EXAMPLES).encode()).hexdigest() == SHA256
    train, val, test = industries.values()
    assert not train & (val | test) and not val & test


def test_the_corpus_has_the_training_industries_and_no_other() -> None:
    lines = {prompt_of(line) for line in sectors.corpus().splitlines()}
    share = {split: np.mean([prompt in lines for prompt, _ in some]) for split, some in EXAMPLES.items()}
    assert share["train"] == 1 and share["val"] == share["test"] == 0
    assert not re.search(r"^\d{2,6} [A-Z]", sectors.corpus(), re.MULTILINE)
    held_out = [each for each in sectors.industries() if sectors.splits()[each.group] != "train" and each.text]
    assert not [each.code for each in held_out if each.text in sectors.corpus()]


def test_the_note_says_how_much_of_the_held_out_text_occurs_in_training() -> None:
    text, width = sectors.corpus(), 50
    cut = int(0.9 * len(text))
    known = {text[at : at + width] for at in range(cut - width + 1)}
    places = [at for at in range(cut, len(text) - width + 1) if text[at : at + width] in known]
    covered = {place for at in places for place in range(at, at + width)}
    assert f"{100 * len(covered) / (len(text) - cut):.0f}%" == domain.REPEATED


@pytest.mark.slow
def test_the_quick_lab_shows_what_each_base_knows(lab: Callable[[str], Path]) -> None:
    quick = lab("domain")
    stages = lab_results(quick / "out")
    bits = {base: stages[f"base: {base}, seed 1"] for base in domain.BASES}
    for text, other in (("Shakespeare", "industries"), ("industries", "Shakespeare")):
        assert bits[text][text] < bits[other][text] - 0.3 < bits["none"][text] - 0.6
    found = [load(quick / "out/seed-1" / base / "ckpt.pt") for base in domain.BASES]
    vocabulary = found[0].model_args["vocab_size"]
    assert bits["none"]["industries"] == pytest.approx(np.log2(vocabulary), abs=0.1)  # it guesses
    # the bases differ in their weights alone
    assert all(one.model_args == found[0].model_args and one.tokenizer == found[0].tokenizer for one in found)
    said = (quick / "said.txt").read_text(encoding="utf-8")
    assert "verdict: Pretraining on industries is" in said and "n-gram baseline" in said


@pytest.mark.parametrize(
    ("mine", "its", "verdict"),
    [
        ((0.50, 0.51), (0.40, 0.45), "is better than"),
        ((0.40, 0.45), (0.50, 0.51), "is worse than"),
        ((0.46, 0.60), (0.40, 0.47), "is no different from"),  # they overlap
        ((0.53,), (0.50,), "is no different from"),  # 0.53 - 0.5 is more than 0.03 in floating point
    ],
)
def test_a_difference_counts_by_its_rule(mine: tuple[float, ...], its: tuple[float, ...], verdict: str) -> None:
    by_base = {"industries": mine, "Shakespeare": its}
    records = {base: Records({"accuracy": one} for one in values) for base, values in by_base.items()}
    said = domain.compared({("sectors", 200, 40): records}, "industries", "Shakespeare").text
    assert said.startswith(f"Pretraining on industries {verdict} pretraining on Shakespeare: sectors, 200 examples")
