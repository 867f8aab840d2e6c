"""The stages of `tinygpt lab facts`, and the data of its page.

For each seed, world.py invents companies, documents and questions. The systems (systems.py) are built, and answer the
questions; then the facts change, each system is brought up to date in its own way, and the questions are asked again.
A pretrained model answers a fixed sample of the questions of the first seed.

    questions, seed N           the questions as they are after the change, as lists
    build: NAME, seed N         what it cost, see Cost
    before: SYSTEM, seed N      the answers before the change, see systems.measured
    update: NAME, seed N        what it cost, see Cost
    after: SYSTEM, seed N       the answers after the change
    passage: SYSTEM, seed N     the same, but the system is given the right passage
    fresh: SYSTEM, seed N       {"seconds": from a changed document to a right answer; null if none was right}

The names of the pretrained model's systems contain its path.
"""

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinygpt.checkpoint.store import load, tokenizer_of
from tinygpt.config.parse import parse
from tinygpt.config.schema import AskConfig, LabConfig
from tinygpt.lab.facts.systems import (
    Reply,
    System,
    best_passage,
    closed_book,
    given_the_right_passage,
    majority,
    measured,
    outcome,
    retrieval,
)
from tinygpt.lab.facts.world import Question, World, changed, make, pairs, sample
from tinygpt.lab.processes import require_model, run, trained_weights
from tinygpt.lab.stages import Results, Stage
from tinygpt.report.weights import pack
from tinygpt.retrieve.ask import SHIPPED, Responder
from tinygpt.retrieve.store import Index, open_index

CHANGED = 0.1  # share of the facts
TRIES = 5  # changed documents, until an answer is right
When = Literal["before", "after"]


class Size(NamedTuple):
    """How large the lab is."""

    companies: int
    closed: int  # iterations of the closed-book model
    sample: int  # questions to the pretrained model
    facts: int  # iterations in which the pretrained model learns the facts
    changes: int  # iterations in which it learns those that have changed
    reading: int  # iterations in which it learns to read


FULL, QUICK = Size(200, 2000, 200, 600, 60, 400), Size(30, 400, 40, 90, 20, 150)


def stages(config: LabConfig, folder: Path) -> list[Stage]:
    """All stages. Errors: TinyGPTError if the pretrained model is missing."""
    size = QUICK if config.quick else FULL
    seeds = range(1, (1 if config.quick else config.seeds) + 1)
    found = [stage for seed in seeds for stage in Tiny(folder / f"seed-{seed}", seed, size).stages()]
    if config.pretrained:
        require_model(config.pretrained, "tinygpt import smollm2 --out_dir out-smollm2", "--pretrained")
        found += Pretrained(folder / "seed-1", 1, size, config.pretrained).stages()
    return found


@dataclass(frozen=True)
class Place:
    """The folder of one seed: its documents, indexes, pairs and models, and what all systems have in common."""

    folder: Path
    seed: int
    size: Size

    def world(self, when: When) -> World:
        world = make(self.seed, self.size.companies)
        return world if when == "before" else changed(world, self.seed, CHANGED)

    def questions(self, when: When) -> list[Question]:
        return self.world(when).questions

    def stage(self, name: str, seconds: float, compute: Callable[[], Any]) -> Stage:
        return Stage(f"{name}, seed {self.seed}", seconds, lambda _: compute())

    # ---- models ---------------------------------------------------------------------------------------------------

    def prepare(self, when: When, dataset: str) -> int:
        """Prepare pairs that teach the facts, or with the dataset `changes` the new facts; return how many."""
        world = self.world(when)
        new = {(one.company, one.relation) for one in world.questions if one.kind == "changed"}
        lines = pairs(world, self.seed, new if dataset == "changes" else None)
        source = self.folder / f"{dataset}.jsonl"
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        form = ["--format=pairs", f"--data_dir={self.folder / 'data'}"]
        run(self.folder / "prepare.log", "prepare", dataset, f"--input={source}", *form)
        return len(lines)

    def train(self, command: str, preset: str, dataset: str, out: str, *flags: str) -> None:
        """Train, or continue a training that was stopped."""
        data = [f"--dataset={dataset}", f"--data_dir={self.folder / 'data'}", f"--out_dir={self.folder / out}"]
        common = ["--init_from=auto", f"--seed={self.seed}", "--device=cpu", "--quiet"]
        run(self.folder / "train.log", command, f"configs/{preset}.yaml", *data, *flags, *common)

    # ---- questions ------------------------------------------------------------------------------------------------

    def system(self, name: str, when: When, index: Index) -> System:
        raise NotImplementedError

    def reader_flags(self, name: str) -> list[str]:
        """Flags of `tinygpt ask` for the model of a retrieval system."""
        raise NotImplementedError

    def responder(self, name: str, index: Index) -> Responder:
        return Responder(parse(AskConfig, ["--device=cpu", *self.reader_flags(name)]), index)

    def numbers(self) -> list[int]:
        """The numbers of the questions that the systems answer."""
        return list(range(len(self.questions("after"))))

    def ask(self, name: str, when: When) -> dict[str, Any]:
        """Let a system answer the questions."""
        with open_index(self.folder / f"{when}.db") as index:
            return measured(self.system(name, when, index), self.questions(when), self.numbers())

    def ask_with_passage(self, name: str) -> dict[str, Any]:
        """Let a system answer the questions that have an answer, given the passage that contains it."""
        questions = self.questions("after")
        numbers = [number for number in self.numbers() if questions[number].answer]
        with open_index(self.folder / "after.db") as index:
            return measured(given_the_right_passage(self.responder(name, index)), questions, numbers)

    def freshness(self, name: str) -> dict[str, float | None]:
        """Seconds from a changed document to a right answer, with the commands `index` and `ask`; see TRIES."""
        after = self.world("after")
        again = changed(after, self.seed + 1, CHANGED)
        new = [one for old, one in zip(after.questions, again.questions, strict=True) if old.answer != one.answer]
        for one in new[:TRIES]:
            path = self.folder / "docs" / f"{one.company}.md"
            path.write_text(again.documents()[path.name], encoding="utf-8")
            began = time.monotonic()
            self.index()
            flags = [f"--index={self.folder / 'index.db'}", "--device=cpu", "--json", *self.reader_flags(name)]
            said = json.loads(run(self.folder / "ask.log", "ask", one.text, *flags).output)
            seconds = time.monotonic() - began
            path.write_text(after.documents()[path.name], encoding="utf-8")
            self.index()
            if outcome(one, Reply(said["answer"], 1.0)) == "right":
                return {"seconds": seconds}
        return {"seconds": None}

    def index(self) -> None:
        """Index the documents that have changed."""
        flags = [f"--out={self.folder / 'index.db'}", "--embeddings=none"]
        run(self.folder / "index.log", "index", str(self.folder / "docs"), *flags)


class Cost(NamedTuple):
    """What it costs to build a system, or to bring it up to date."""

    seconds: float
    commands: int
    examples: int  # pairs of question and answer that someone has to write
    bytes: int  # of the documents or models that were written
    weights: int  # trained

    @staticmethod
    def of_training(began: float, commands: int, examples: int, out: Path) -> dict[str, float]:
        file = next(path for name in ("adapter.pt", "ckpt.pt") if (path := out / name).exists())
        cost = Cost(time.monotonic() - began, commands, examples, file.stat().st_size, trained_weights(out))
        return cost._asdict()


class Tiny(Place):
    """The systems without a model, with the tiny reader, and with a model trained on the facts alone."""

    def stages(self) -> list[Stage]:
        scale, train = self.size.companies / FULL.companies, 150 * self.size.closed / FULL.closed
        seconds = {
            name: scale * each for name, each in {"majority": 1, "search": 5, "reader": 90, "closed": 60}.items()
        }
        return [
            self.stage("questions", 1, partial(self.questions, "after")),
            self.stage("build: index", 3, partial(self.update_index, "before")),
            self.stage("build: closed", train, partial(self.memorise, "before", "closed")),
            *(self.stage(f"before: {name}", each, partial(self.ask, name, "before")) for name, each in seconds.items()),
            self.stage("update: index", 3, partial(self.update_index, "after")),
            self.stage("update: closed", 20, self.memorise_changes),
            self.stage("update: again", train, partial(self.memorise, "after", "again")),
            *(self.stage(f"after: {name}", each, partial(self.ask, name, "after")) for name, each in seconds.items()),
            self.stage("after: again", seconds["closed"], partial(self.ask, "again", "after")),
            self.stage("passage: reader", 0.8 * seconds["reader"], partial(self.ask_with_passage, "reader")),
            self.stage("fresh: reader", 5, partial(self.freshness, "reader")),
        ]

    def update_index(self, when: When) -> dict[str, float]:
        """Write the documents that differ, and index them; return what it cost."""
        docs, written = self.folder / "docs", 0
        docs.mkdir(parents=True, exist_ok=True)
        for name, text in self.world(when).documents().items():
            path = docs / name
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                written += path.stat().st_size
        began = time.monotonic()
        self.index()
        seconds = time.monotonic() - began
        shutil.copy(self.folder / "index.db", self.folder / f"{when}.db")
        return Cost(seconds, 1, 0, written, 0)._asdict()

    def memorise(self, when: When, name: str) -> dict[str, float]:
        """Train a closed-book model from nothing; return what it cost."""
        began = time.monotonic()
        examples = self.prepare(when, f"facts-{when}")
        self.train("train", "lab_closed_book", f"facts-{when}", name, f"--max_iters={self.size.closed}")
        return Cost.of_training(began, 2, examples, self.folder / name)

    def memorise_changes(self) -> dict[str, float]:
        """Teach the closed-book model the new facts alone; return what it cost."""
        began = time.monotonic()
        examples = self.prepare("after", "changes")
        self.train("finetune", "finetune_lab_update", "changes", "updated", f"--ckpt={self.folder / 'closed'}")
        return Cost.of_training(began, 2, examples, self.folder / "updated")

    def system(self, name: str, when: When, index: Index) -> System:
        if name == "majority":
            return majority(self.questions(when))
        if name == "search":
            return best_passage(index)
        if name == "reader":
            return retrieval(self.responder(name, index))
        return closed_book(str(self.folder / ("updated" if (name, when) == ("closed", "after") else name)))

    def reader_flags(self, name: str) -> list[str]:
        return []  # the reader that ships with tinygpt


@dataclass(frozen=True)
class Pretrained(Place):
    """The systems with a pretrained model: as it is, fine-tuned to read passages, and fine-tuned on the facts."""

    path: str

    @property
    def names(self) -> tuple[str, str, str]:
        return names(self.path)

    def stages(self) -> list[Stage]:
        asked, size = dict(zip(self.names, (1.5, 1.5, 0.5), strict=True)), self.size
        as_it_is, reading, memorised = self.names
        return [
            self.stage(f"build: {memorised}", 1.5 * size.facts, self.memorise),
            self.stage(f"build: {reading}", 30 + 3 * size.reading, self.learn_to_read),
            *self.asking("before", asked),
            self.stage(f"update: {memorised}", 10 + 1.5 * size.changes, self.memorise_changes),
            *self.asking("after", asked),
            *(
                self.stage(f"passage: {name}", 0.8 * size.sample, partial(self.ask_with_passage, name))
                for name in (as_it_is, reading)
            ),
            *(self.stage(f"fresh: {name}", 10, partial(self.freshness, name)) for name in (as_it_is, reading)),
        ]

    def asking(self, when: When, seconds: dict[str, float]) -> list[Stage]:
        return [
            self.stage(f"{when}: {name}", self.size.sample * each, partial(self.ask, name, when))
            for name, each in seconds.items()
        ]

    def numbers(self) -> list[int]:
        return sample(self.questions("after"), self.size.sample)

    def out(self, name: str) -> Path:
        """The folder of a model that is made from the pretrained one."""
        model = re.sub(r"\W+", "-", self.path).strip("-")
        return self.folder / f"{name}-{model}"

    @staticmethod
    def iterations(number: int) -> list[str]:
        return [f"--max_iters={number}", f"--eval_interval={number}"]  # one evaluation, at the end

    def memorise(self) -> dict[str, float]:
        """Teach the facts with LoRA; return what it cost."""
        began, out = time.monotonic(), self.out("closed")
        examples = self.prepare("before", "facts-before")
        flags = [f"--ckpt={self.path}", *self.iterations(self.size.facts)]
        self.train("finetune", "finetune_lab_facts", "facts-before", out.name, *flags)
        return Cost.of_training(began, 2, examples, out)

    def memorise_changes(self) -> dict[str, float]:
        """Merge the adapter into the model, and teach the new facts alone with another; return what it cost."""
        began, merged, out = time.monotonic(), self.out("merged"), self.out("updated")
        adapter = f"--adapter={self.out('closed')}"
        run(self.folder / "merge.log", "merge", f"--ckpt={self.path}", adapter, f"--out_dir={merged}")
        examples = self.prepare("after", "changes")
        flags = [f"--ckpt={merged}", *self.iterations(self.size.changes)]
        self.train("finetune", "finetune_lab_facts", "changes", out.name, *flags)
        return Cost.of_training(began, 3, examples, out)

    def learn_to_read(self) -> dict[str, float]:
        """Fine-tune to answer from passages about other companies (RAFT, Zhang et al. 2024); return what it cost."""
        began, out, dataset, place = time.monotonic(), self.out("reader"), "reader_long", self.out("data")
        if not (place / dataset / "meta.json").exists():
            form = [
                f"--tokenizer={self.path}",
                f"--data_dir={place}",
            ]  # 160,000 examples, too many to encode in training
            run(self.folder / "prepare.log", "prepare", dataset, *form)
        flags = [f"--ckpt={self.path}", *self.iterations(self.size.reading), f"--data_dir={place}"]
        self.train("finetune", "finetune_lab_reader", dataset, out.name, *flags)
        return Cost.of_training(began, 2, 0, out)

    def system(self, name: str, when: When, index: Index) -> System:
        if name != self.names[2]:
            return retrieval(self.responder(name, index))
        return closed_book(str(self.out("closed" if when == "before" else "updated")))

    def reader_flags(self, name: str) -> list[str]:
        return [f"--ckpt={self.out('reader') if name == self.names[1] else self.path}"]


def names(pretrained: str) -> tuple[str, str, str]:
    """The names of the pretrained model's systems: as it is, fine-tuned to read, fine-tuned on the facts."""
    return f"{pretrained} as it is", f"{pretrained} fine-tuned to read", f"{pretrained} with LoRA"


# ---- the page --------------------------------------------------------------------------------------------------------


def live(config: LabConfig, folder: Path, results: Results) -> dict[str, Any]:
    """The documents and the models of the page, from the first seed, and what the pretrained model has answered."""
    place = Tiny(folder / "seed-1", 1, QUICK if config.quick else FULL)
    before = place.world("before")
    packed = {"reader": pack_model(SHIPPED), "closed": pack_model(place.folder / "closed/ckpt.pt")}
    questions: dict[str, list[str]] = {}
    for one in before.questions:
        questions.setdefault(one.company, []).append(one.text)
    data = packed | {
        "documents": before.documents(),
        "questions": questions,
        "names": {key: company.name for key, company in before.companies.items()},
        "recorded": recorded(config.pretrained, before.questions, results) if config.pretrained else {},
    }
    return {"data": data, "parameters": load(SHIPPED).num_params}


def recorded(pretrained: str, questions: list[Question], results: Results) -> dict[str, list[list[str]]]:
    """By question: the name of each system of the pretrained model, its answer before and after the change."""
    found: dict[str, list[list[str]]] = {}
    for name in names(pretrained):
        before, after = (results[f"{when}: {name}, seed 1"] for when in ("before", "after"))
        for number, *answers in zip(before["questions"], before["answers"], after["answers"], strict=True):
            found.setdefault(questions[number].text, []).append([name, *answers])
    return found


def pack_model(path: Path) -> dict[str, Any]:
    checkpoint = load(path)
    return pack(checkpoint.build_model(), tokenizer_of(checkpoint, str(path), "data"))
