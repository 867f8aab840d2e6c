"""Results of the labs, made up or from their quickest runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import commands_here, ok

from tinygpt.data.tasks import TASKS, Pair
from tinygpt.data.tasks.companies import Question
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import arithmetic, definition, labels

# three changed facts, one that stayed, one question without an answer
ASKED = [Question("?", "ba", "chair", "new", "changed", "old")] * 3
ASKED += [Question("?", "ba", "seat", "Oslo", "fact"), Question("?", "ba", "tax", "", "absent")]


def asked(*seeds: int) -> list[dict[str, Any]]:
    return [{"phase": "questions", "seed": seed, **question._asdict()} for seed in seeds for question in ASKED]


def answered(part: str, *texts: str, seed: int = 1, sure: float = 1) -> dict[str, Any]:
    """The answers to ASKED; sure: probability of the last one."""
    case = dict(zip(("phase", "system"), part.split(), strict=True))
    answers = {"questions": [*range(5)], "answers": texts, "probabilities": [1, 1, 1, 1, sure], "connections": 1}
    return {**case, "seed": seed, **answers}


FEW = arithmetic.Size(4_000, 40, 4, ("plain", "reversed"))


def quick(folder: Path, name: str, module: Any, size: Any) -> Path:
    """The folder of a finished quick lab of a given size; what it said is in said.txt."""
    with commands_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK", size)
        done = ok(folder, "lab", name, "--quick", "--out_dir=out")
    (folder / "out/said.txt").write_text(done.out, encoding="utf-8")
    return folder / "out"


def system(shares: dict[str, float], probability: float) -> Records:
    """One seed of a system that answers these shares of each kind of sum correctly."""
    prompts = arithmetic.sums(FEW, 1)[1]
    kinds = {kind: prompts[40 * place :][:40] for place, kind in enumerate(arithmetic.KINDS)}
    answers = [
        {"prompt": prompt, "text": arithmetic.right(prompt) if at < shares[kind] * 40 else "0", "seed": 1}
        for kind, some in kinds.items()
        for at, prompt in enumerate(some)
    ]
    return Records(arithmetic.judged(answer | {"probability": probability}) for answer in answers)


UP, DOWN = [0.9] * 100, [0.2] * 100


def results(inside: list[float], outside: list[float], right: int, after: float = 6.0, tested: int = 0) -> Records:
    """Records of one seed; the first `right` lines are answered correctly, of the test split the first `tested`."""
    truth = {
        split: [number < hits for number in range(100)] for split, hits in (("val", right), ("test", tested or right))
    }
    confidence = {"val": inside, "test": inside, "poem": outside, "noise": outside}
    model = {"system": "model", "confidence": confidence, "right": truth}
    useless = {"system": "ngram", "confidence": dict.fromkeys(confidence, UP), "right": truth | {"test": truth["val"]}}
    return Records([{"before": 1.8, "after": after, "characters": 65}, model, useless])


TASK = TASKS["transactions"]


def accuracy(answers: list[str], pairs: list[Pair]) -> float:
    probs = np.array([[answer == label for label in TASK.labels] for answer in answers])
    return definition.accuracy(probs, pairs, TASK.labels)


def learned(accuracies: dict[tuple[int, float], float], learner: str = labels.MODEL) -> Records:
    """Records of three seeds, by number of examples and share of wrong labels."""
    return Records(
        {"learner": learner, "examples": size, "share": share, "seed": seed, "correct": accuracy, "wrong": 0.3}
        for (size, share), accuracy in accuracies.items()
        for seed in (1, 2, 3)
    )
