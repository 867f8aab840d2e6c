"""Results of the labs, made up or from their quickest runs."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Shared, cli_here, commands_here, ok, tiny_text

from tinygpt.data.tasks import TASKS, generate
from tinygpt.examine.experiment import stages
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import (
    adapt,
    arithmetic,
    canary,
    cascade,
    confidence,
    definition,
    domain,
    drift,
    labels,
    methods,
    scale,
    sectors,
)
from tinygpt.learn.lab.facts import experiment
from tinygpt.learn.lab.facts.companies import Question

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
FEW_CANARIES = canary.Size(60_000, 2, 1 << 9, 8, (2,))
FEW_LABELS = [(50, 0.0), (200, 0.0), (200, 0.2)]  # numbers of examples, shares of wrong labels
FEW_FACTS = experiment.Size(companies=6, closed=250, update=80, sample=5, facts=2, changes=2, reading=2)
TASK, SPLITS = TASKS["transactions"], TASKS["transactions"].make(1337)
SMALL = SPLITS | {"val": SPLITS["val"][:60], "test": SPLITS["test"][:150]}
SECTORS = sectors.examples()
CORPUS = sectors.corpus()
FEW_SECTORS = SECTORS | {"val": SECTORS["val"][:40], "test": SECTORS["test"][:40]}
LINES = [(generate.SIZES, split, number) for split, number in {"train": 800, "val": 150, "test": 150}.items()]
SIXTY = [(generate.SIZES, split, 60) for split in generate.SIZES]
BRIEF = {"max_iters": 4, "eval_interval": 4, "batch_size": 4, "eval_iters": 1}
THREE_METHODS = {
    "from scratch, no pretraining": methods.Method("shakespeare_char_fast", methods.SCRATCH | BRIEF, ""),
    "all weights": methods.Method(methods.FULL, BRIEF),
    "LoRA, rank 8": methods.Method(methods.LORA, BRIEF),
}


def learn_quickly(preset: str, out: Path, dataset: Any, **settings: Any) -> Any:
    """Train on a quarter of each batch, and if from scratch, a small model."""
    size = {} if "ckpt" in settings else {"n_layer": 2, "n_embd": 64}
    return definition.learn(preset, out, dataset, batch_size=16, **size, **settings)


# what is smaller than in a quick lab, so that it takes a few seconds; most models learn hardly anything
SHORTEST: dict[str, list[tuple[Any, str, Any]]] = {
    "adapt": [(adapt, "QUICK", (4, 300, (1e-4, 1e-3)))],
    "arithmetic": [(arithmetic, "QUICK", FEW)],
    "canary": [(canary, "QUICK", FEW_CANARIES)],
    "cascade": [*LINES, (cascade, "QUICK", (10, 2)), (cascade, "TIMED", 5)],
    "confidence": [*LINES, (confidence, "QUICK", (2, 4)), (confidence, "OUTSIDE", 50)],
    "domain": [
        (sectors, "examples", lambda: FEW_SECTORS),
        (sectors, "corpus", lambda: CORPUS[:100_000]),
        (domain, "QUICK", (30, (("sectors", 200, 4),))),
    ],
    "drift": [
        (drift, "LINES", {"train": 400, "val": 50, "test": 60}),
        (drift, "SCRATCH_QUICK", 4),
        (drift, "UPDATE", {200: 4}),
    ],
    "facts": [  # nine facts change
        (experiment, "QUICK", FEW_FACTS),
        (experiment, "CHANGED", 0.3),
        (experiment, "TRIES", 2),
        (experiment, "learn", learn_quickly),
    ],
    "labels": [
        (labels, "QUICK", FEW_LABELS),
        (labels, "ITERATIONS", {50: 4, 200: 50}),
        (TASKS, TASK.name, dataclasses.replace(TASK, make=lambda seed: SMALL)),
    ],
    "methods": [*SIXTY, (methods, "METHODS", THREE_METHODS)],
    "scale": [(scale, "QUICK", scale.Size((32, 48), (0.1, 0.2), (64, 0.2)))],
}  # fmt: skip


@contextlib.contextmanager
def shortest(name: str) -> Iterator[None]:
    with commands_here(), pytest.MonkeyPatch.context() as patch:
        for thing, key, value in SHORTEST[name]:
            (patch.setitem if isinstance(thing, dict) else patch.setattr)(thing, key, value)
        yield


def flags_of(folder: Path, name: str) -> list[str]:
    """The command line of a lab, in a folder with what it needs."""
    given = {"methods": ["--seeds=1", "--ckpt=base"], "scale": ["--quick", "--dataset=mine"]}
    (folder / "text.txt").write_text(tiny_text(lines=4800))
    if name in given:
        ok(folder, "prepare", "mine", "--input=text.txt")
    if name == "methods":
        size = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=64", "--position=rope", "--device=cpu"]
        brief = [f"--{key}={value}" for key, value in BRIEF.items()]
        ok(folder, "train", "--dataset=mine", "--out_dir=base", *size, *brief)
    return ["lab", name, *given.get(name, ["--quick"]), "--out_dir=out"]


@pytest.fixture(scope="session")
def lab(shared: Shared) -> Callable[[str], Path]:
    """`lab(name)`: a folder with out/, the results of a lab in its shortest form. said.json has what it said in three
    runs: interrupted after its first stage, continued, and repeated."""

    def made(name: str) -> Path:
        def make(folder: Path) -> None:
            flags = flags_of(folder, name)
            with shortest(name):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(stages, "save", lambda *stored, save=stages.save: save(*stored) or interrupted())
                    stopped = cli_here(*flags, cwd=folder)
                assert stopped.status == 130, stopped
                said = [stopped.out, ok(folder, *flags).out, ok(folder, *flags).out]
            (folder / "said.json").write_text(json.dumps(said))
            (folder / "said.txt").write_text(said[1], encoding="utf-8")

        return shared(f"lab_{name}", make)

    return made


def interrupted() -> None:
    raise KeyboardInterrupt


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


def learned(accuracies: dict[tuple[int, float], float], learner: str = labels.MODEL) -> Records:
    """Records of three seeds, by number of examples and share of wrong labels."""
    return Records(
        {"learner": learner, "examples": size, "share": share, "seed": seed, "correct": accuracy, "wrong": 0.3}
        for (size, share), accuracy in accuracies.items()
        for seed in (1, 2, 3)
    )
