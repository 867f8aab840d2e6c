"""`tinygpt lab facts`: retrieve, fine-tune or train? Measured, and then a tenth of the facts change.

For each seed, world.py invents companies, documents and questions. The systems (systems.py) answer all questions; then
the facts change, each system is brought up to date in its own way, and the questions are asked again.

    before: KEY, seed N      {"outcomes", "answers", "probabilities", "seconds", "connections"}, see systems.measured
    update: KEY, seed N      what it cost: {"seconds", "bytes", "examples"}
    after: KEY, seed N       as before
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.checkpoint.store import load, tokenizer_of
from tinygpt.config.parse import parse
from tinygpt.config.schema import AskConfig, LabConfig
from tinygpt.errors import TinyGPTError
from tinygpt.lab.processes import run
from tinygpt.lab.stages import Results, Stage, duration
from tinygpt.lab.summary import Summary, Table, Verdict
from tinygpt.lab.systems import best_passage, closed_book, given_the_right_passage, measured, retrieval
from tinygpt.lab.world import Question, World, changed, make, pairs
from tinygpt.report.weights import pack
from tinygpt.retrieve.ask import SHIPPED, Responder
from tinygpt.retrieve.store import open_index

CHANGED = 0.1  # share of the facts
NEAR = 0.05  # systems whose shares of right answers differ by less count as equally good


class Size(NamedTuple):
    """How large the lab is."""

    companies: int
    iterations: int  # of the closed-book model


FULL, QUICK = Size(200, 2000), Size(30, 400)


def stages(config: LabConfig, folder: Path) -> list[Stage]:
    """All stages. Errors: TinyGPTError if a pretrained model is named."""
    if config.pretrained:
        raise TinyGPTError("lab facts compares tiny models only", "tinygpt lab facts, without --pretrained")
    size, found = QUICK if config.quick else FULL, []
    for seed in range(1, (1 if config.quick else config.seeds) + 1):
        found += Place(folder / f"seed-{seed}", seed, size).stages()
    return found


@dataclass(frozen=True)
class Place:
    """The folder of one seed: its documents, index, pairs and models."""

    folder: Path
    seed: int
    size: Size

    def before(self) -> World:
        return make(self.seed, self.size.companies)

    def after(self) -> World:
        return changed(self.before(), self.seed, CHANGED)

    @property
    def index(self) -> Path:
        return self.folder / "index.db"

    def stages(self) -> list[Stage]:
        scale = self.size.companies / FULL.companies
        seconds = {"closed": 60 * scale, "reader": 90 * scale, "search": 5 * scale, "reader, right passage": 70 * scale}
        train = 150 * self.size.iterations / FULL.iterations

        def stage(name: str, expected: float, compute: Callable[[Results], Any]) -> Stage:
            return Stage(f"{name}, seed {self.seed}", expected, compute)

        return [
            stage("questions", 1, lambda _: self.write_questions()),
            stage("build: index", 3, lambda _: self.build_index(self.before())),
            stage("build: closed", train, lambda _: self.train(self.before(), "closed")),
            *(stage(f"before: {key}", seconds[key], partial(self.ask, key, "closed", self.before)) for key in seconds),
            stage("update: index", 3, lambda _: self.build_index(self.after())),
            stage("update: closed", 20, lambda _: self.finetune()),
            stage("update: trained again", train, lambda _: self.train(self.after(), "again")),
            *(stage(f"after: {key}", seconds[key], partial(self.ask, key, "updated", self.after)) for key in seconds),
            stage("after: trained again", seconds["closed"], partial(self.ask, "closed", "again", self.after)),
            stage("fresh", 10, lambda _: self.freshness()),
        ]

    def write_questions(self) -> list[Question]:
        return self.after().questions

    def build_index(self, world: World) -> dict[str, float]:
        """Write the documents that differ, and index them; return what it cost."""
        docs, written = self.folder / "docs", 0
        docs.mkdir(parents=True, exist_ok=True)
        for name, text in world.documents().items():
            path = docs / name
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                written += path.stat().st_size
        done = run(self.folder / "index.log", "index", str(docs), f"--out={self.index}", "--embeddings=none")
        return {"seconds": done.seconds, "bytes": written, "examples": 0}

    def prepare(self, world: World, dataset: str, only: set[tuple[str, str]] | None = None) -> int:
        """Prepare pairs that teach the facts; return their number."""
        lines = pairs(world, self.seed, only)
        source = self.folder / f"{dataset}.jsonl"
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        form = ["--format=pairs", f"--data_dir={self.folder / 'data'}"]
        run(self.folder / "prepare.log", "prepare", dataset, f"--input={source}", *form)
        return len(lines)

    def train(self, world: World, name: str) -> dict[str, float]:
        """Train a closed-book model from nothing; return what it cost."""
        began, examples = time.monotonic(), self.prepare(world, f"facts-{name}")
        flags = [f"--dataset=facts-{name}", f"--data_dir={self.folder / 'data'}", f"--out_dir={self.folder / name}"]
        flags += [f"--max_iters={self.size.iterations}", f"--seed={self.seed}", "--device=cpu", "--quiet"]
        run(self.folder / "train.log", "train", "configs/lab_closed_book.yaml", *flags, "--init_from=auto")
        return {"seconds": time.monotonic() - began, "bytes": written_by(self.folder / name), "examples": examples}

    def finetune(self) -> dict[str, float]:
        """Teach the closed-book model the new facts alone; return what it cost."""
        began, after = time.monotonic(), self.after()
        new = {(one.company, one.relation) for one in after.questions if one.kind == "changed"}
        examples = self.prepare(after, "changes", new)
        flags = ["--dataset=changes", f"--data_dir={self.folder / 'data'}", f"--out_dir={self.folder / 'updated'}"]
        flags += [f"--ckpt={self.folder / 'closed'}", f"--seed={self.seed}", "--device=cpu", "--quiet"]
        run(self.folder / "train.log", "finetune", "configs/finetune_lab_update.yaml", *flags, "--init_from=auto")
        return {"seconds": time.monotonic() - began, "bytes": written_by(self.folder / "updated"), "examples": examples}

    def ask(self, key: str, model: str, world: Callable[[], World], _: Results) -> dict[str, Any]:
        """Let a system answer all questions."""
        questions = world().questions
        if key == "closed":
            return measured(closed_book(str(self.folder / model)), questions)
        with open_index(self.index) as index:
            if key == "search":
                return measured(best_passage(index), questions, only_answerable=True)
            respond = Responder(parse(AskConfig, ["--device=cpu"]), index)
            if key == "reader":
                return measured(retrieval(respond), questions)
            return measured(given_the_right_passage(respond), questions, only_answerable=True)

    def freshness(self) -> dict[str, float]:
        """Seconds from a changed document to an answer, with the commands: `index`, then `ask`."""
        after = self.after()
        again = changed(after, self.seed + 1, CHANGED)
        one = next(new for old, new in zip(after.questions, again.questions, strict=True) if old != new)
        path = self.folder / "docs" / f"{one.company}.md"
        before = path.read_text(encoding="utf-8")
        path.write_text(again.documents()[path.name], encoding="utf-8")
        began = time.monotonic()
        run(self.folder / "index.log", "index", str(path.parent), f"--out={self.index}", "--embeddings=none")
        run(self.folder / "ask.log", "ask", one.text, f"--index={self.index}", "--device=cpu")
        seconds = time.monotonic() - began
        path.write_text(before, encoding="utf-8")
        return {"seconds": seconds}


def written_by(folder: Path) -> int:
    return (folder / "ckpt.pt").stat().st_size


def live(config: LabConfig, folder: Path) -> dict[str, Any]:
    """The documents and the models of the page, from the first seed."""
    place = Place(folder / "seed-1", 1, QUICK if config.quick else FULL)
    before = place.before()
    packed = {"reader": pack_model(SHIPPED), "closed": pack_model(place.folder / "closed/ckpt.pt")}
    questions: dict[str, list[str]] = {}
    for one in before.questions:
        questions.setdefault(one.company, []).append(one.text)
    names = {key: company.name for key, company in before.companies.items()}
    data = packed | {"documents": before.documents(), "questions": questions, "names": names}
    return {"data": data, "parameters": load(SHIPPED).num_params}


def pack_model(path: Path) -> dict[str, Any]:
    checkpoint = load(path)
    return pack(checkpoint.build_model(), tokenizer_of(checkpoint, str(path), "data"))


# ---- what the lab says -----------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A system: the stages with its answers before and after the change, and with its update."""

    name: str
    before: str
    update: str
    after: str


SYSTEMS = [  # the simplest first
    Row("search alone: the best passage", "search", "index", "search"),
    Row("retrieval: the tiny reader", "reader", "index", "reader"),
    Row("retrieval, given the right passage", "reader, right passage", "index", "reader, right passage"),
    Row("closed book, fine-tuned on the new facts", "closed", "closed", "closed"),
    Row("closed book, trained again on all facts", "closed", "trained again", "trained again"),
]
OUTCOMES = {"right": "C2", "stale": "C1", "wrong": "C3", "abstained": "lightgray"}
KNOWS = (
    "Shares of the questions, in wordings that no model has seen in training, with 95 % confidence intervals (Wilson). "
    "Right: the answer contains the right one. Stale: the value before the change. Others: facts that did not change. "
    "Abstains: on questions that no document answers. Conflict: right where an older document says something else."
)
COSTS = (
    "Build and update: time to prepare and train or index, on this machine. Examples: the questions with answers that "
    "someone has to write for the update. Weights: those that the update changes. Fresh: from a changed document to a "
    "right answer, with the commands. Connections: attempts to use the network while the system answered."
)


class Measured:
    """The results of a lab, by system."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.seeds = [int(name.rpartition(" ")[2]) for name in results if name.startswith("questions, seed")]

    def share(self, phase: str, key: str, kinds: Sequence[str], outcome: str) -> "Share":
        """The share of an outcome among the questions of these kinds, over all seeds."""
        found: list[str] = []
        for seed in self.seeds:
            answers = self.results[f"{phase}: {key}, seed {seed}"]
            questions = [Question(*self.results[f"questions, seed {seed}"][number]) for number in answers["questions"]]
            pairs = zip(questions, answers["outcomes"], strict=True)
            found += [each for question, each in pairs if question.kind in kinds]
        return Share(found.count(outcome), len(found))

    def mean(self, stage: str, key: str) -> float:
        return statistics.mean(self.results[f"{stage}, seed {seed}"][key] for seed in self.seeds)

    def connections(self, row: Row) -> int:
        stages = (
            f"{when}, seed {seed}" for when in (f"before: {row.before}", f"after: {row.after}") for seed in self.seeds
        )
        return sum(self.results[stage]["connections"] for stage in stages)


def summarise(results: Results, config: LabConfig) -> Summary:
    """What each system knows before and after the change, and what it costs."""
    found = Measured(results)
    knows = [
        [
            row.name,
            str(found.share("before", row.before, ["fact", "changed"], "right")),
            str(found.share("after", row.after, ["changed"], "right")),
            str(found.share("after", row.after, ["changed"], "stale")),
            str(found.share("after", row.after, ["fact"], "right")),
            str(found.share("after", row.after, ["absent"], "abstained")),
            str(found.share("after", row.after, ["conflict"], "right")),
        ]
        for row in SYSTEMS
    ]
    costs = []
    for row in SYSTEMS:
        seconds = found.mean(f"after: {row.after}", "seconds per question")
        update = found.mean(f"update: {row.update}", "seconds")
        trained = row.update != "index"
        costs.append(
            [
                row.name,
                duration(found.mean(f"build: {'closed' if trained else 'index'}", "seconds")),
                duration(update),
                f"{found.mean(f'update: {row.update}', 'examples'):,.0f}",
                "all" if trained else "none",
                duration(update + seconds if trained else found.mean("fresh", "seconds")),
                f"{1000 * seconds:.0f} ms",
                f"{1000 * seconds * config.price / 3600:.4f}",
                str(found.connections(row)),
            ]
        )
    learned = ["system", "right before", "new facts right", "stale", "others right", "abstains", "conflict"]
    spent = [
        "system",
        "build",
        "update",
        "examples",
        "weights",
        "fresh",
        "a question",
        "1,000 questions",
        "connections",
    ]

    def draw(axes: Any) -> None:
        for index, row in enumerate(SYSTEMS):
            left = 0.0
            for outcome, color in OUTCOMES.items():
                width = 100 * found.share("after", row.after, ["changed"], outcome).value()
                axes.barh(index, width, left=left, color=color, label=outcome if index == 0 else None)
                left += width
        axes.set_yticks(range(len(SYSTEMS)), [row.name for row in SYSTEMS], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="questions about facts that have changed (%)", xlim=(0, 100))
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))

    return Summary(
        "Retrieve, fine-tune or train?",
        "The same questions about invented companies for every method; then a tenth of the facts change.",
        [
            Table("Before and after the change", learned, knows, KNOWS),
            Table(
                "What it costs", spent, costs, f"{COSTS} 1,000 questions: with a price of {config.price:g} per hour."
            ),
        ],
        [simplest(found), freshest(found), private(found)],
        "Questions about the facts that have changed",
        draw,
    )


def simplest(found: Measured) -> Verdict:
    """The simplest system that is nearly as often right as the best, after the change."""
    shares = {row.name: found.share("after", row.after, ["fact", "changed"], "right").value() for row in SYSTEMS}
    able = {row.name: shares[row.name] for row in SYSTEMS if row.after not in ("search", "reader, right passage")}
    best = max(able.values())
    name = next(name for name, share in able.items() if share >= best - NEAR)
    return Verdict(
        f"Start with {name}: {100 * able[name]:.0f} % of the facts are right after the change, {100 * best:.0f} % with "
        "the best system.",
        f"the first system, from simple to complex, within {100 * NEAR:.0f} percentage points of the best; search "
        "alone gives a passage and no answer, and the right passage is known only in a test",
    )


def freshest(found: Measured) -> Verdict:
    """How much longer a model that has memorised facts takes to learn a change."""
    index, trained = (found.mean(f"update: {each}", "seconds") for each in ("index", "closed"))
    stale = found.share("after", "closed", ["changed"], "stale")
    before = found.share("before", "closed", ["fact"], "right").value()
    damage = before - found.share("after", "closed", ["fact"], "right").value()
    return Verdict(
        f"If facts change, keep them in documents: the index is up to date after {duration(index)}, the model after "
        f"{duration(trained)}, and it has lost {100 * damage:.0f} percentage points of the other facts.",
        f"seconds of the two updates; {stale} of the model's answers to changed facts are still the old ones",
    )


def private(found: Measured) -> Verdict:
    connections = sum(found.connections(row) for row in SYSTEMS)
    return Verdict(
        "No data left this machine." if not connections else f"{connections} attempts to use the network.",
        "the number of connections and name lookups that Python reported while the systems answered",
    )


class Share(NamedTuple):
    """A share, with its 95 % confidence interval (Wilson 1927)."""

    hits: int
    total: int

    def value(self) -> float:
        return self.hits / max(self.total, 1)

    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.96, self.total, self.hits / self.total
        middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        if not self.total:
            return ""
        low, high = self.interval()
        return f"{100 * self.hits / self.total:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
