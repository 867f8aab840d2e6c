"""The task `sectors` and `tinygpt lab domain`: no leak between splits or into the corpus; verdicts."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ok
from labs import SECTORS as EXAMPLES
from sklearn.metrics import f1_score

from tinygpt.checkpoint.store import load
from tinygpt.data import corpora
from tinygpt.data.dataset import Dataset
from tinygpt.data.tasks import TASKS, sectors
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import domain
from tinygpt.training.losses import bits_per_character

TEXT = corpora.industry_descriptions()


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


def test_each_prompt_is_an_activity_of_its_sector() -> None:
    codes = codes_of_prompts()
    for examples in EXAMPLES.values():
        assert {label for _, label in examples} == set(sectors.SECTORS)
        for prompt, label in examples:
            assert {code[:2] for code in codes[prompt]} <= set(sectors.NUMBERS[label].split()), prompt
            assert codes[prompt] and len(prompt) + max(map(len, sectors.SECTORS)) + 3 <= 64
    assert sum(map(len, EXAMPLES.values())) == 2922  # as data/README.md says


def test_no_industry_and_no_prompt_is_in_two_splits() -> None:
    codes, industries, prompts = codes_of_prompts(), defaultdict(set), []
    for split, examples in EXAMPLES.items():
        for prompt, label in examples:
            prompts.append(re.sub("[^a-z]", "", prompt))
            industries[split] |= {code if label == "management" else code[:5] for code in codes[prompt]}
    assert len(set(prompts)) == len(prompts)
    assert not industries["train"] & (industries["val"] | industries["test"]) and industries["test"]
    assert not industries["val"] & industries["test"]


def test_the_word_manufacturing_does_not_give_its_sector() -> None:
    for examples in EXAMPLES.values():
        assert not [prompt for prompt, _ in examples if prompt.endswith("manufacturing")]
    assert sum(line.lower().endswith("manufacturing") for line in TEXT.splitlines()) > 900  # the text has it


def test_the_seed_decides_the_order_and_not_the_split() -> None:
    other = sectors.make(2)
    assert other == sectors.make(2) and other["train"] != EXAMPLES["train"]
    assert {split: sorted(some) for split, some in other.items()} == {
        split: sorted(some) for split, some in EXAMPLES.items()
    }


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


def test_prepare_suggests_commands_that_know_the_task(tmp_path: Path) -> None:
    done = ok(tmp_path, "prepare", "sectors")
    assert "next: tinygpt finetune finetune_sectors --ckpt=out-fast/ckpt.pt" in done.out
    dataset = Dataset(str(tmp_path / "data"), "sectors")
    assert dataset.labels == list(sectors.SECTORS) == list(TASKS["sectors"].labels)


# ---- the lab ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quick_lab_shows_what_each_base_knows(lab: Callable[[str], Path]) -> None:
    quick = lab("domain")
    stages = json.loads((quick / "out/lab.json").read_text(encoding="utf-8"))["stages"]
    bits = {base: stages[f"base: {base}, seed 1"]["result"] for base in domain.BASES}
    for text, other in (("Shakespeare", "industries"), ("industries", "Shakespeare")):
        assert bits[text][text] < bits[other][text] - 0.3 < bits["none"][text] - 0.6
    vocabulary = load(quick / "out/seed-1/none/ckpt.pt").model_args["vocab_size"]
    assert bits["none"]["industries"] == pytest.approx(np.log2(vocabulary), abs=0.1)  # it guesses
    said = (quick / "said.txt").read_text(encoding="utf-8")
    assert "verdict: Pretraining on industries is" in said and "n-gram baseline" in said
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.slow
def test_the_bases_differ_in_their_weights_alone(lab: Callable[[str], Path]) -> None:
    quick = lab("domain")
    found = [load(quick / "out/seed-1" / base / "ckpt.pt") for base in domain.BASES]
    assert len({json.dumps(one.model_args, sort_keys=True) for one in found}) == 1
    assert len({json.dumps(one.tokenizer, sort_keys=True) for one in found}) == 1
    texts = [Dataset(str(quick / "out/texts"), text) for text in domain.TEXTS]
    assert texts[0].meta["characters"] == texts[1].meta["characters"]
    assert bits_per_character(np.log(2), texts[0]) == pytest.approx(1)  # a token is a character


def figures(**accuracies: tuple[float, ...]) -> domain.Figures:
    by_base = {base: Records({"accuracy": one} for one in values) for base, values in accuracies.items()}
    return {("sectors", 200, 40): by_base}


@pytest.mark.parametrize(
    ("mine", "its", "verdict"),
    [
        ((0.50, 0.51), (0.40, 0.45), "is better than"),
        ((0.40, 0.45), (0.50, 0.51), "is worse than"),
        ((0.46, 0.60), (0.40, 0.47), "is no different from"),  # they overlap
        ((0.50,), (0.48,), "is no different from"),  # too close
        ((0.50,), (0.46,), "is better than"),
        ((0.53,), (0.50,), "is no different from"),  # 0.53 - 0.5 is more than 0.03 in floating point
        ((0.50,), (0.53,), "is no different from"),
    ],
)
def test_a_difference_counts_by_its_rule(mine: tuple[float, ...], its: tuple[float, ...], verdict: str) -> None:
    said = domain.compared(figures(industries=mine, Shakespeare=its), "industries", "Shakespeare").text
    assert said.startswith(f"Pretraining on industries {verdict} pretraining on Shakespeare: sectors, 200 examples")


def test_the_macro_f1_is_that_of_scikit_learn() -> None:
    """Labels that occur neither in the truth nor among the answers do not count."""
    rng, labels = np.random.default_rng(0), list("abcdef")
    scores, truth = rng.random((40, 6)) * [1, 1, 1, 1, 0, 1], rng.choice(labels[:4], 40)
    measured = domain.quality(scores, truth, labels)
    predicted = [labels[index] for index in scores.argmax(axis=1)]
    assert measured["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert measured["accuracy"] == np.mean(truth == np.array(predicted)) and "e" not in predicted
