"""Documents, questions and an untrained reader for `tinygpt ask`, and a model for `tinygpt label`."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import GERMAN, Shared, ok
from inputs import json_lines

from tinygpt.data.tasks.generate import words
from tinygpt.data.tasks.reader import reader_prompt
from tinygpt.examine.eval.classifiers import Linear
from tinygpt.use.advise.labeller import save

NAMES = words("Ada Bea Cleo Dora Emil Finn Gina Hugo Ivo Jana Kira Leo Mona Nils Oda Paul Rosa Sven Tara Udo")
TRAIN = ["--dataset=colours", "--device=cpu", "--dtype=float32", "--compile=False", "--out_dir=out-colours", "--quiet"]
TRAIN += ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=256", "--position=rope", "--batch_size=8"]
TRAIN += ["--gradient_accumulation_steps=1", "--max_iters=1", "--eval_interval=1", "--eval_iters=1"]
DOCUMENTS = {
    "things.txt": "The box of Zoë is “green”. It is old.\n\nThe car of Emil is red. Nobody knows why.\n\n"
    "The pen of Udo is new.\n",
    "more/long.txt": "The lamp of Tara stands in the hall. " * 9 + "The hat of Tara is blue. "
    + "The lamp of Tara stands in the hall. " * 9,
}  # fmt: skip
EMIL = "Which colour is the car of Emil?"


def write(folder: Path, documents: dict[str, str], index: str = "index.db", size: int = 60) -> None:
    """Write documents into docs/ and index them by words alone, each paragraph in a passage of its own."""
    for name, text in documents.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    ok(folder, "ask", "Who?", "docs", f"--index={index}", "--embeddings=none", f"--passage_size={size}")


HANDBOOK = """# Handbook

Everybody is welcome here.

## Notice

The notice period is six weeks to the end of a quarter. Dr. Meier in the office signs it.
During the trial period, which lasts the first half of a year, two weeks suffice.

## Prices

| item | price |
|------|-------|
| large pump | 1,250.00 EUR |
| small pump | 310 EUR |

## Hours

Mon to Fri: 9 to 17
Saturday: 10 to 14
"""
BRIEF = """Betreff: Urlaub

Der Betriebsausflug findet am 3. Mai 2024 statt, d. h. an einem Freitag. Anmeldeschluss
ist z. B. für Gäste der 12. April.

- Frau Olga Brandt nimmt Anmeldungen entgegen.
- Treffpunkt: Parkplatz am Werkstor
"""


@pytest.fixture(scope="session")
def handbook(shared: Shared) -> Path:
    """A working folder with docs/ and index.db."""
    return shared("handbook", lambda folder: write(folder, {"handbook.md": HANDBOOK, "brief.txt": BRIEF}, size=400))


@pytest.fixture(scope="session")
def labelling(shared: Shared) -> Path:
    """A folder with the model `model` of `tinygpt advise`, which is unsure of what it has not seen."""

    def make(folder: Path) -> None:
        (folder / "model").mkdir()
        save(folder / "model", Linear.fit(*kinds(120), 3, C=100), LABELS, 0.7, "question")

    return shared("labelling", make)


LABELS = ["person", "place", "time"]
WORDS = dict(zip(LABELS, ("who", "where", "when"), strict=True))


def kinds(n: int) -> tuple[list[str], np.ndarray]:
    """Questions, and the number of the label of each."""
    draw = random.Random(n)
    truth = [draw.randrange(3) for _ in range(n)]
    return [f"{WORDS[LABELS[label]]} is {draw.choice('abcd') * 3}?" for label in truth], np.array(truth)


@pytest.fixture(scope="module")
def untrained(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with docs/, index.db and out-colours, a model of one iteration."""

    def make(folder: Path) -> None:
        facts = [(f"{thing} of {name}", colour) for thing in ("box", "hat") for name in NAMES for colour in GERMAN]
        lines = []
        for fact, colour in facts:
            asked = reader_prompt(f"Which colour is the {fact}?", [f"The {fact} is {colour}. Nobody knows."])
            lines.append({"prompt": asked, "response": f"[1] {colour}"})
        json_lines(folder, lines)
        ok(folder, "prepare", "colours", "--input=pairs.jsonl", "--format=pairs")
        ok(folder, "train", *TRAIN)
        write(folder, DOCUMENTS)

    return Path(shutil.copytree(shared("untrained", make), tmp_path_factory.mktemp("untrained") / "work"))
