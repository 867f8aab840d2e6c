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

import hashlib
import json
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
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.process import run
from tinygpt.lab.facts.systems import (
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
from tinygpt.lab.models import Trained, train
from tinygpt.lab.stages import Results, Stage, seeds
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
    update: int  # iterations in which it learns the facts that have changed
    sample: int  # questions to the pretrained model
    facts: int  # iterations in which the pretrained model learns the facts
    changes: int  # iterations in which it learns those that have changed
    reading: int  # iterations in which it learns to read


FULL, QUICK = Size(200, 2000, 150, 200, 600, 60, 400), Size(30, 400, 40, 40, 90, 20, 150)


def stages(config: LabConfig, folder: Path) -> list[Stage]:
    """All stages."""
    size = QUICK if config.quick else FULL
    places: list[Tiny | Pretrained] = [Tiny(folder / f"seed-{seed}", seed, size) for seed in seeds(config)]
    if config.pretrained:
        places.insert(1, Pretrained(folder / "seed-1", 1, size, config.pretrained))
    return [stage for place in places for stage in place.stages()]


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
        return Stage(f"{name}, seed {self.seed}", seconds, compute)

    # ---- models ---------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def prepare(self, when: When, dataset: str) -> int:
        """Prepare pairs that teach the facts, or with the dataset `changes` the new facts; return how many."""
        world = self.world(when)
        new = {(one.company, one.relation) for one in world.questions if one.kind == "changed"}
        lines = pairs(world, self.seed, new if dataset == "changes" else None)
        source = self.folder / f"{dataset}.jsonl"
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        form = ["--format=pairs", f"--data_dir={self.data}"]
        run(self.folder / "prepare.log", "prepare", dataset, f"--input={source}", *form)
        return len(lines)

    def train(self, command: str, preset: str, dataset: str, out: Path, data: Path, *flags: str) -> Trained:
        """Train, or continue a training that was stopped."""
        common = [f"--dataset={dataset}", f"--data_dir={data}", f"--seed={self.seed}"]
        return train(self.folder / "train.log", command, preset, out, *common, *flags)

    # ---- questions ------------------------------------------------------------------------------------------------

    def system(self, name: str, when: When, index: Index) -> System:
        raise NotImplementedError

    def reader_flags(self, name: str) -> list[str]:
        """Flags of `tinygpt ask` for the model of a retrieval system."""
        raise NotImplementedError

    def responder(self, name: str, index: Index, *flags: str) -> Responder:
        return Responder(parse(AskConfig, ["--device=cpu", *self.reader_flags(name), *flags]), index)

    def numbers(self) -> list[int]:
        """The numbers of the questions that the systems answer."""
        return list(range(len(self.questions("after"))))

    def ask(self, name: str, when: When) -> dict[str, Any]:
        """Let a system answer the questions."""
        with open_index(self.kept(f"{when}.db")) as index:
            return measured(self.system(name, when, index), self.questions(when), self.numbers())

    def ask_with_passage(self, name: str) -> dict[str, Any]:
        """Let a system answer the questions that have an answer, given the passage that contains it."""
        questions = self.questions("after")
        numbers = [number for number in self.numbers() if questions[number].answer]
        with open_index(self.kept("after.db")) as index:
            respond = self.responder(name, index, "--min_score=0")  # the score is that of the search
            return measured(given_the_right_passage(respond), questions, numbers)

    def freshness(self, name: str) -> dict[str, float | None]:
        """Seconds from a changed document to a right answer, with the commands `index` and `ask`; see TRIES."""
        after = self.world("after")
        again = changed(after, self.seed + 1, CHANGED)
        new = [one for old, one in zip(after.questions, again.questions, strict=True) if old.answer != one.answer]
        for one in new[:TRIES]:
            self.restore("after")
            path = self.folder / "docs" / f"{one.company}.md"
            path.write_text(again.documents()[path.name], encoding="utf-8")
            began = time.monotonic()
            self.index()
            flags = [f"--index={self.folder / 'index.db'}", "--device=cpu", "--json", *self.reader_flags(name)]
            said = json.loads(run(self.folder / "ask.log", "ask", one.text, *flags).output)
            seconds = time.monotonic() - began
            if outcome(one, said["answer"]) == "right":
                return {"seconds": seconds}
        return {"seconds": None}

    def write_documents(self, when: When) -> None:
        docs = self.folder / "docs"
        docs.mkdir(parents=True, exist_ok=True)
        for name, text in self.world(when).documents().items():
            (docs / name).write_text(text, encoding="utf-8")

    def index(self) -> None:
        """Index the documents that have changed."""
        flags = [f"--out={self.folder / 'index.db'}", "--embeddings=none"]
        run(self.folder / "index.log", "index", str(self.folder / "docs"), *flags)

    def restore(self, when: When) -> None:
        """Restore the documents and the index as they were."""
        self.write_documents(when)
        shutil.copy(self.kept(f"{when}.db"), self.folder / "index.db")

    def kept(self, name: str) -> Path:
        """The path of a file that a finished stage has written. Errors: TinyGPTError if it was deleted."""
        if not (path := self.folder / name).exists():
            lab = self.folder.parent
            raise TinyGPTError(
                f"{path} was deleted, and lab.json says that its stage is finished",
                f"delete {lab}, and run the lab again",
            )
        return path


class Cost(NamedTuple):
    """What it costs to build a system, or to bring it up to date."""

    seconds: float  # to index, or to train
    commands: int
    examples: int  # pairs of question and answer about the companies that someone has to write
    bytes: int  # of the documents, or of the files of the model
    weights: int  # trained


class Tiny(Place):
    """The systems without a model, with the tiny reader, and with a model trained on the facts alone."""

    def stages(self) -> list[Stage]:
        scale, train = self.size.companies / FULL.companies, 150 * self.size.closed / FULL.closed
        seconds = {
            name: scale * each for name, each in {"majority": 1, "search": 5, "reader": 90, "closed": 60}.items()
        }
        return [
            self.stage("questions", 1, partial(self.questions, "after")),
            self.stage("build: index", 3, self.build_index),
            self.stage("build: closed", train, partial(self.memorise, "before", "closed")),
            *(self.stage(f"before: {name}", each, partial(self.ask, name, "before")) for name, each in seconds.items()),
            self.stage("update: index", 3, self.update_index),
            self.stage("update: closed", 20, self.memorise_changes),
            self.stage("update: again", train, partial(self.memorise, "after", "again")),
            *(self.stage(f"after: {name}", each, partial(self.ask, name, "after")) for name, each in seconds.items()),
            self.stage("after: again", seconds["closed"], partial(self.ask, "again", "after")),
            self.stage("passage: reader", 0.8 * seconds["reader"], partial(self.ask_with_passage, "reader")),
            self.stage("fresh: reader", 5, partial(self.freshness, "reader")),
        ]

    def build_index(self) -> dict[str, float]:
        """Index the documents; return what it cost."""
        (self.folder / "index.db").unlink(missing_ok=True)
        return self.indexed("before", {})

    def update_index(self) -> dict[str, float]:
        """Index the documents after the change; return what it cost."""
        self.restore("before")
        return self.indexed("after", self.world("before").documents())

    def indexed(self, when: When, old: dict[str, str]) -> dict[str, float]:
        self.write_documents(when)
        new = [text for name, text in self.world(when).documents().items() if old.get(name) != text]
        began = time.monotonic()
        self.index()
        seconds = time.monotonic() - began
        shutil.copy(self.folder / "index.db", self.folder / f"{when}.db")
        return Cost(seconds, 1, 0, sum(len(text.encode()) for text in new), 0)._asdict()

    def memorise(self, when: When, name: str) -> dict[str, float]:
        """Train a closed-book model from scratch; return what it cost."""
        dataset, length = f"facts-{when}", f"--max_iters={self.size.closed}"
        examples = self.prepare(when, dataset)
        cost = self.train("train", "lab_closed_book", dataset, self.folder / name, self.data, length)
        return Cost(cost.seconds, 2, examples, cost.bytes, cost.weights)._asdict()

    def memorise_changes(self) -> dict[str, float]:
        """Teach the closed-book model the new facts alone; return what it cost."""
        examples, out = self.prepare("after", "changes"), self.folder / "updated"
        flags = [f"--ckpt={self.folder / 'closed'}", f"--max_iters={self.size.update}"]
        cost = self.train("finetune", "finetune_lab_update", "changes", out, self.data, *flags)
        return Cost(cost.seconds, 2, examples, cost.bytes, cost.weights)._asdict()

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
    """The systems with a pretrained model: zero-shot, fine-tuned to read passages, and fine-tuned on the facts."""

    path: str

    @property
    def names(self) -> tuple[str, str, str]:
        return names(self.path)

    def stages(self) -> list[Stage]:
        asked, size = dict(zip(self.names, (1.5, 1.5, 0.5), strict=True)), self.size
        zero_shot, reading, memorised = self.names
        return [
            self.stage(f"build: {memorised}", 1.5 * size.facts, self.memorise),
            self.stage(f"build: {reading}", 30 + 3 * size.reading, self.learn_to_read),
            *self.asking("before", asked),
            self.stage(f"update: {memorised}", 10 + 1.5 * size.changes, self.memorise_changes),
            *self.asking("after", asked),
            *(
                self.stage(f"passage: {name}", 0.8 * size.sample, partial(self.ask_with_passage, name))
                for name in (zero_shot, reading)
            ),
            *(self.stage(f"fresh: {name}", 10, partial(self.freshness, name)) for name in (zero_shot, reading)),
        ]

    def asking(self, when: When, seconds: dict[str, float]) -> list[Stage]:
        return [
            self.stage(f"{when}: {name}", self.size.sample * each, partial(self.ask, name, when))
            for name, each in seconds.items()
        ]

    def numbers(self) -> list[int]:
        return sample(self.questions("after"), self.size.sample)

    def out(self, name: str) -> Path:
        """A folder of its own for a model that is made from the pretrained one."""
        return self.folder / f"{name}-{hashlib.sha256(self.path.encode()).hexdigest()[:8]}"

    def adapt(self, preset: str, dataset: str, out: Path, data: Path, base: Path | str, iterations: int) -> Trained:
        """Fine-tune with LoRA, and evaluate once at the end."""
        flags = [f"--ckpt={base}", f"--max_iters={iterations}", f"--eval_interval={iterations}"]
        return self.train("finetune", preset, dataset, out, data, *flags)

    def memorise(self) -> dict[str, float]:
        """Teach the facts; return what it cost."""
        examples, out = self.prepare("before", "facts-before"), self.out("closed")
        cost = self.adapt("finetune_lab_facts", "facts-before", out, self.data, self.path, self.size.facts)
        return Cost(cost.seconds, 2, examples, cost.bytes, cost.weights)._asdict()

    def memorise_changes(self) -> dict[str, float]:
        """Merge the adapter into the model, and teach the new facts alone with another one; return what it cost."""
        examples, merged = self.prepare("after", "changes"), self.out("merged")
        flags = [f"--ckpt={self.path}", f"--adapter={self.out('closed')}", f"--out_dir={merged}"]
        seconds = run(self.folder / "merge.log", "merge", *flags).seconds
        out = self.out("updated")
        cost = self.adapt("finetune_lab_facts", "changes", out, self.data, merged, self.size.changes)
        written = cost.bytes + (merged / "ckpt.pt").stat().st_size
        return Cost(seconds + cost.seconds, 3, examples, written, cost.weights)._asdict()

    def learn_to_read(self) -> dict[str, float]:
        """Learn to answer from passages about other facts (RAFT, Zhang et al. 2024); return what it cost."""
        dataset, data, out = "reader_long", self.out("data"), self.out("reader")
        if not (data / dataset / "meta.json").exists():  # 160,000 examples, too many to encode when training starts
            form = [f"--tokenizer={self.path}", f"--data_dir={data}"]
            run(self.folder / "prepare.log", "prepare", dataset, *form)
        cost = self.adapt("finetune_lab_reader", dataset, out, data, self.path, self.size.reading)
        return Cost(cost.seconds, 2, 0, cost.bytes, cost.weights)._asdict()

    def system(self, name: str, when: When, index: Index) -> System:
        if name != self.names[2]:
            return retrieval(self.responder(name, index))
        return closed_book(str(self.out("closed" if when == "before" else "updated")))

    def reader_flags(self, name: str) -> list[str]:
        return [f"--ckpt={self.out('reader') if name == self.names[1] else self.path}"]


def names(pretrained: str) -> tuple[str, str, str]:
    """The names of the pretrained model's systems: zero-shot, fine-tuned to read, fine-tuned on the facts."""
    return f"{pretrained} zero-shot", f"{pretrained} fine-tuned to read", f"{pretrained} with LoRA"


# ---- the page --------------------------------------------------------------------------------------------------------


def live(config: LabConfig, folder: Path, results: Results) -> dict[str, Any]:
    """The documents and the models of the page, from the first seed, and what the pretrained model has answered."""
    place = Tiny(folder / "seed-1", 1, QUICK if config.quick else FULL)
    before = place.world("before")
    models = {"reader": load(SHIPPED), "closed": load(place.kept("closed/ckpt.pt"))}
    questions: dict[str, list[str]] = {}
    for one in before.questions:
        questions.setdefault(one.company, []).append(one.text)
    packed = {key: pack(each.build_model(), tokenizer_of(each, key, "data")) for key, each in models.items()}
    data = packed | {
        "documents": before.documents(),
        "questions": questions,
        "known": {
            old.text: [old.answer, new.answer]
            for old, new in zip(before.questions, place.world("after").questions, strict=True)
        },
        "names": {key: company.name for key, company in before.companies.items()},
        "recorded": recorded(config.pretrained, before.questions, results) if config.pretrained else {},
        "thresholds": {key: getattr(AskConfig, key) for key in ("min_score", "min_probability")},
    }
    return {"data": data, "parameters": {key: each.num_params for key, each in models.items()}}


def recorded(pretrained: str, questions: list[Question], results: Results) -> dict[str, list[list[str]]]:
    """By question: the name of each system of the pretrained model, its answer before and after the change."""
    found: dict[str, list[list[str]]] = {}
    for name in names(pretrained):
        before, after = (results[f"{when}: {name}, seed 1"] for when in ("before", "after"))
        for number, *answers in zip(before["questions"], before["answers"], after["answers"], strict=True):
            found.setdefault(questions[number].text, []).append([name, *answers])
    return found
