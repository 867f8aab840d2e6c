"""The stages of `tinygpt lab facts`, and the data of its page.

The systems are built, and answer the questions; then the facts change, each system is brought up to date in its own
way, and the questions are asked again. A pretrained model answers a fixed sample of the questions of the first seed.

The records of a phase and a system, for each seed:

    questions       the questions as they are after the change
    build, update   what it cost, see Cost
    before, after   the answers before and after the change, see systems.measured
    passage         the same, but the system is given the right passage
    fresh           {"seconds": from a changed document to a right answer; null if none was right}
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.process import run
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.learn.lab.definition import learn, seeds
from tinygpt.learn.lab.facts import companies, systems
from tinygpt.learn.lab.facts.systems import System, measured

CHANGED = 0.1  # share of the facts
TRIES = 5  # changed documents, until an answer is right
When = Literal["before", "after"]


class Size(NamedTuple):
    companies: int
    closed: int  # iterations of the closed-book model
    update: int  # iterations in which it learns the facts that have changed
    sample: int  # questions to the pretrained model
    facts: int  # iterations in which the pretrained model learns the facts
    changes: int  # iterations in which it learns those that have changed
    reading: int  # iterations in which it learns to read


FULL = Size(200, 2000, 150, 200, 600, 60, 400)
QUICK = Size(30, 400, 40, 40, 90, 20, 150)


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    for seed in seeds(config):
        seed_folder = folder / f"seed-{seed}"
        yield from Tiny(seed_folder, seed, size).stages()
        if config.pretrained and seed == 1:
            yield from Pretrained(seed_folder, seed, size, config.pretrained).stages()


class Cost(TypedDict):
    """The cost of building or updating a system."""

    seconds: float  # to index, or to train
    commands: int
    examples: int  # pairs of question and answer about the companies that someone has to write
    bytes: int  # of the documents, or of the files of the model
    weights: int  # trained


@dataclass(frozen=True)
class SeedFolder:
    """The folder of one seed: documents, indexes, pairs and models; and what the groups of systems share."""

    folder: Path
    seed: int
    size: Size

    def world(self, when: When) -> companies.World:
        world = companies.make(self.seed, self.size.companies)
        return world if when == "before" else companies.changed(world, self.seed, CHANGED)

    def stage(self, phase: str, system: str, seconds: float, compute: Callable[[], Any]) -> Stage:
        case = {"phase": phase, "system": system, "seed": self.seed}
        name = f"{phase}: {system}" if system else phase
        return Stage(f"{name}, seed {self.seed}", seconds, compute, case)

    def asking(self, when: When, seconds: dict[str, float]) -> list[Stage]:
        """List the stages in which systems answer the questions. seconds: expected time, by system."""
        expected = seconds.items()
        return [self.stage(when, name, duration, partial(self.ask, name, when)) for name, duration in expected]

    def teach(self, preset: str, when: When, dataset: str, out: Path, **settings: Any) -> Cost:
        """Train on pairs that teach the facts, or with the dataset `changes` the new facts."""
        world = self.world(when)
        new = {question.fact for question in world.questions if question.kind == "changed"}
        lines = companies.pairs(world, self.seed, new if dataset == "changes" else None)
        source = self.folder / f"{dataset}.jsonl"
        data = self.folder / "data"
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        form = [f"--input={source}", "--format=pairs", f"--data_dir={data}"]
        run(self.folder / "prepare.log", "prepare", dataset, *form)
        return self.train(preset, data / dataset, out, **settings) | {"examples": len(lines)}

    def train(self, preset: str, dataset: Path, out: Path, **settings: Any) -> Cost:
        """Train, or continue a training that was stopped."""
        cost = learn(preset, out, api.Dataset(str(dataset.parent), dataset.name), seed=self.seed, **settings).cost
        return Cost(seconds=cost.seconds, commands=2, examples=0, bytes=cost.bytes, weights=cost.weights)

    def system(self, name: str, when: When, documents: api.Documents) -> System:
        raise NotImplementedError

    def model(self, name: str) -> Path | str:
        """Return the model of a retrieval system."""
        return "reader"

    def reader(self, name: str) -> api.LoadedModel:
        return api.load(self.model(name), device="cpu")

    def numbers(self) -> list[int]:
        """Return the indices of the questions that the systems answer."""
        return list(range(len(self.world("after").questions)))

    def ask(self, name: str, when: When) -> dict[str, Any]:
        documents = api.Documents(index=self.folder / f"{when}.db")
        return measured(self.system(name, when, documents), self.world(when).questions, self.numbers())

    def ask_with_passage(self, name: str) -> dict[str, Any]:
        """Measure a system's answers to the questions that have one, given the passage that contains it."""
        questions = self.world("after").questions
        numbers = [number for number in self.numbers() if questions[number].answer]
        documents = api.Documents(index=self.folder / "after.db")
        return measured(partial(systems.given_the_right_passage, self.reader(name), documents), questions, numbers)

    def freshness(self, name: str) -> dict[str, float | None]:
        """Time from a changed document to a correct answer, with the command `ask`; see TRIES."""
        after = self.world("after")
        again = companies.changed(after, self.seed + 1, CHANGED)
        questions = zip(after.questions, again.questions, strict=True)
        for question in [new for old, new in questions if old.answer != new.answer][:TRIES]:
            self.restore("after")
            path = self.folder / "docs" / f"{question.company}.md"
            path.write_text(again.documents()[path.name], encoding="utf-8")
            start = time.monotonic()
            output = json.loads(self.ask_command(question.text, f"--ckpt={self.model(name)}"))
            seconds = time.monotonic() - start
            if companies.outcome(question, output["model"] or output["answer"]) == "right":
                return {"seconds": seconds}
        return {"seconds": None}

    def write_documents(self, when: When) -> None:
        docs = self.folder / "docs"
        docs.mkdir(parents=True, exist_ok=True)
        for name, text in self.world(when).documents().items():
            (docs / name).write_text(text, encoding="utf-8")

    def ask_command(self, question: str, *flags: str) -> str:
        """Ask a question with the command `ask`, which first indexes the documents that have changed."""
        own = [f"--index={self.folder / 'index.db'}", "--embeddings=none", "--device=cpu", "--json"]
        own += ["--min_probability=0", *flags]
        return run(self.folder / "ask.log", "ask", question, str(self.folder / "docs"), *own)

    def restore(self, when: When) -> None:
        self.write_documents(when)
        shutil.copy(self.folder / f"{when}.db", self.folder / "index.db")


class Tiny(SeedFolder):
    """The systems without a model, with the tiny reader, and with a model trained on the facts alone."""

    def stages(self) -> list[Stage]:
        scale = self.size.companies / FULL.companies
        training = 150 * self.size.closed / FULL.closed
        seconds = {"majority": scale, "search": 5 * scale, "reader": 90 * scale, "closed": 60 * scale}
        return [
            self.stage("questions", "", 1, self.questions),
            self.stage("build", "index", 3, partial(self.reindex, "before")),
            self.stage("build", "closed", training, partial(self.memorise, "before", "closed")),
            *self.asking("before", seconds),
            self.stage("update", "index", 3, partial(self.reindex, "after")),
            self.stage("update", "closed", 20, self.memorise_changes),
            self.stage("update", "again", training, partial(self.memorise, "after", "again")),
            *self.asking("after", seconds | {"again": seconds["closed"]}),
            self.stage("passage", "reader", 0.8 * seconds["reader"], partial(self.ask_with_passage, "reader")),
            self.stage("fresh", "reader", 5, partial(self.freshness, "reader")),
        ]

    def questions(self) -> list[dict[str, str]]:
        return [question._asdict() for question in self.world("after").questions]

    def reindex(self, when: When) -> Cost:
        """Index all documents (before), or only those that have changed (after)."""
        old: dict[str, str] = {}
        if when == "before":
            (self.folder / "index.db").unlink(missing_ok=True)
        else:
            self.restore("before")
            old = self.world("before").documents()
        self.write_documents(when)
        start = time.monotonic()
        self.ask_command("Who is the CFO?")
        seconds = time.monotonic() - start
        shutil.copy(self.folder / "index.db", self.folder / f"{when}.db")
        new = [text for name, text in self.world(when).documents().items() if old.get(name) != text]
        return Cost(seconds=seconds, commands=1, examples=0, bytes=sum(len(text.encode()) for text in new), weights=0)

    def memorise(self, when: When, name: str) -> Cost:
        """Train a closed-book model from scratch."""
        settings = {"max_iters": self.size.closed, "eval_interval": 500}
        return self.teach("lab_closed_book", when, f"facts-{when}", self.folder / name, **settings)

    def memorise_changes(self) -> Cost:
        """Teach the closed-book model the new facts alone."""
        settings = {"ckpt": self.folder / "closed", "max_iters": self.size.update, "eval_interval": 50}
        return self.teach("finetune_lab_update", "after", "changes", self.folder / "updated", **settings)

    def system(self, name: str, when: When, documents: api.Documents) -> System:
        if name == "majority":
            return systems.majority(self.world(when).questions)
        if name == "search":
            return partial(systems.best_passage, documents)
        if name == "reader":
            return partial(systems.retrieval, self.reader(name), documents)
        return systems.closed_book(self.folder / ("updated" if (name, when) == ("closed", "after") else name))


@dataclass(frozen=True)
class Pretrained(SeedFolder):
    """The systems with a pretrained model: zero-shot, fine-tuned to read passages, and fine-tuned on the facts."""

    path: str

    def stages(self) -> list[Stage]:
        size = self.size
        zero_shot, reading, memorised = names(self.path)
        ask_seconds = {zero_shot: 1.5 * size.sample, reading: 1.5 * size.sample, memorised: 0.5 * size.sample}
        return [
            self.stage("build", memorised, 1.5 * size.facts, self.memorise),
            self.stage("build", reading, 30 + 3 * size.reading, self.learn_to_read),
            *self.asking("before", ask_seconds),
            self.stage("update", memorised, 10 + 1.5 * size.changes, self.memorise_changes),
            *self.asking("after", ask_seconds),
            self.stage("passage", zero_shot, 0.8 * size.sample, partial(self.ask_with_passage, zero_shot)),
            self.stage("passage", reading, 0.8 * size.sample, partial(self.ask_with_passage, reading)),
            self.stage("fresh", zero_shot, 10, partial(self.freshness, zero_shot)),
            self.stage("fresh", reading, 10, partial(self.freshness, reading)),
        ]

    def numbers(self) -> list[int]:
        return companies.sample(self.world("after").questions, self.size.sample)

    def out(self, name: str) -> Path:
        """Return the folder of a model derived from the pretrained one."""
        return self.folder / f"{name}-{hashlib.sha256(self.path.encode()).hexdigest()[:8]}"

    def memorise(self) -> Cost:
        """Teach the facts with LoRA."""
        settings = {"ckpt": self.path, "max_iters": self.size.facts}
        out = self.out("closed")
        return self.teach("finetune_lab_facts", "before", "facts-before", out, **settings)

    def memorise_changes(self) -> Cost:
        """Merge the adapter into the model, and teach the new facts alone with another one."""
        merged = self.out("merged")
        files = [f"--ckpt={self.path}", f"--adapter={self.out('closed')}", f"--output={merged}"]
        start = time.monotonic()
        run(self.folder / "merge.log", "export", "--format=checkpoint", *files)
        seconds = time.monotonic() - start
        settings = {"ckpt": merged, "max_iters": self.size.changes}
        out = self.out("updated")
        cost = self.teach("finetune_lab_facts", "after", "changes", out, **settings)
        written = (merged / "ckpt.pt").stat().st_size
        return cost | {"commands": 3, "seconds": seconds + cost["seconds"], "bytes": written + cost["bytes"]}

    def learn_to_read(self) -> Cost:
        """Learn to answer from passages about other facts (RAFT, Zhang et al. 2024)."""
        dataset = self.out("data") / "reader_long"
        if not (dataset / "meta.json").exists():  # 160,000 examples, too many to encode when training starts
            flags = [f"--tokenizer={self.path}", f"--data_dir={dataset.parent}"]
            run(self.folder / "prepare.log", "prepare", dataset.name, *flags)
        settings = {"ckpt": self.path, "max_iters": self.size.reading}
        return self.train("finetune_lab_reader", dataset, self.out("reader"), **settings)

    def system(self, name: str, when: When, documents: api.Documents) -> System:
        if name != names(self.path)[2]:
            return partial(systems.retrieval, self.reader(name), documents)
        return systems.closed_book(self.out("closed" if when == "before" else "updated"))

    def model(self, name: str) -> Path | str:
        return self.out("reader") if name == names(self.path)[1] else self.path


def names(pretrained: str) -> tuple[str, str, str]:
    """Return the names of the pretrained model's systems: zero-shot, fine-tuned to read, fine-tuned on the facts."""
    return f"{pretrained} zero-shot", f"{pretrained} fine-tuned to read", f"{pretrained} with LoRA"


def live(config: LabConfig, folder: Path, records: Records) -> dict[str, Any]:
    """Collect the page's documents and models, from the first seed, and the answers of the pretrained model."""
    tiny = Tiny(folder / "seed-1", 1, QUICK if config.quick else FULL)
    before = tiny.world("before")
    question_pairs = zip(before.questions, tiny.world("after").questions, strict=True)
    return {
        "models": {"reader": api.load("reader", device="cpu").path, "closed": tiny.folder / "closed/ckpt.pt"},
        "documents": before.documents(),
        "questions": {
            key: [question.text for question in before.questions if question.company == key] for key in before.companies
        },
        "known": {old.text: [old.answer, new.answer] for old, new in question_pairs},
        "names": {key: company.name for key, company in before.companies.items()},
        "recorded": recorded(config.pretrained, before.questions, records) if config.pretrained else {},
        "thresholds": {"min_score": systems.MIN_SCORE, "min_probability": systems.MIN_PROBABILITY},
    }


def recorded(pretrained: str, questions: list[companies.Question], records: Records) -> dict[str, list[list[str]]]:
    """Collect by question: name, answer before and answer after the change, for each system of the pretrained model."""
    by_question: dict[str, list[list[str]]] = {}
    for name in names(pretrained):
        before, after = (records.where(phase=phase, system=name, seed=1)[0] for phase in ("before", "after"))
        for number, *answers in zip(before["questions"], before["answers"], after["answers"], strict=True):
            by_question.setdefault(questions[number].text, []).append([name, *answers])
    return by_question
