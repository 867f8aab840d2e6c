"""What `tinygpt lab facts` says: three tables, a picture, and verdicts with their rules."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import counted, duration
from tinygpt.examine.experiment.picture import name_rows
from tinygpt.examine.experiment.stages import Records
from tinygpt.examine.experiment.summary import Example, Share, Summary, Table, Verdict
from tinygpt.learn.lab.definition import HOUR
from tinygpt.learn.lab.facts import companies
from tinygpt.learn.lab.facts.experiment import TRIES, names

NEAR = 0.05  # systems whose shares of right answers differ by less count as equally good
OUTCOMES = {"right": "C2", "stale": "C1", "wrong": "C3", "abstained": "lightgray"}
KNOWS = (
    "Shares of the questions, whose wordings occur in no training set of this lab, nor in that of the tiny reader. "
    "In parentheses: 95% confidence intervals over the questions (Wilson). Right: the answer contains the right one. "
    "Unchanged, before and after: facts that do not change; a drop is damage done by the update. Changed: facts that "
    "have changed. Stale: the answer contains the value before the change. Passage given: right answers after the "
    "change if the reader gets only the passage with the answer. Abstains: on questions that no document answers. "
    "Confidence: mean probability of the answers to these questions, if the system does not abstain. Conflict: right "
    "where an older document says something else; the closed-book models were trained on the newer value only. The "
    "closed-book model that is not updated has never seen the changed facts, so it must be wrong about them."
)
CHANGES = (
    "Systems with an update. Update: time to index and ask, or to train, on this machine. Commands: for it. Examples: "
    "question-answer pairs that somebody has to write. Written: the documents, or the checkpoint. Time to a right "
    "answer: from a changed document to the first right answer, with the command ask; 'none' if "
    f"{TRIES} attempts failed; for a closed-book model, its update and one answer, right or not."
)
COSTS = (
    "Build: time to index and ask, or to train, on this machine. Commands: to build it. Examples: question-answer "
    "pairs about these companies that somebody has to write. Time per question: mean, with the model loaded. "
    "Connections: attempts to use the network while the system answered."
)
BASELINES = 2  # rows
EFFORT: dict[str, tuple[str, Callable[[float], str]]] = {  # column: key of a Cost, and how it is shown
    "update": ("seconds", duration),
    "build": ("seconds", duration),
    "commands": ("commands", "{:.0f}".format),
    "examples": ("examples", "{:,.0f}".format),
    "written": ("bytes", lambda size: f"{size / 1e3:,.0f} kB"),
    "parameters trained": ("weights", "{:,.0f}".format),
}


Part = tuple[str, str]  # a phase and a system, see experiment.py
NONE = ("", "")  # a part that a system does not have


class Row(NamedTuple):
    """A row of the tables: a system, and the parts of the lab that tell about it."""

    name: str
    build: Part
    before: Part
    update: Part
    after: Part

    def other(self, phase: str) -> Part:
        """Return another part of the same system, as `fresh`; not every system has it."""
        return phase, self.after[1]


def rows(pretrained: str) -> list[Row]:
    """List the systems, the simplest first; the first two are baselines."""
    systems = names(pretrained)
    titles = names("pretrained model")  # a path would be no title

    def retrieval(name: str, system: str, build: str = "index") -> Row:
        return Row(name, ("build", build), ("before", system), ("update", "index"), ("after", system))

    def closed(name: str, update: Part, after: Part, system: str = "closed") -> Row:
        return Row(name, ("build", system), ("before", system), update, after)

    lora = systems[2]
    tiny = [
        Row("majority baseline", NONE, ("before", "majority"), NONE, ("after", "majority")),
        retrieval("search only", "search"),
        retrieval("retrieval: tiny reader", "reader"),
        closed("closed book, not updated", NONE, ("before", "closed")),
        closed("closed book, fine-tuned", ("update", "closed"), ("after", "closed")),
        closed("closed book, trained again", ("update", "again"), ("after", "again")),
    ]
    if not pretrained:
        return tiny
    return [
        *tiny[:3],
        retrieval(f"retrieval: {titles[0]}", systems[0]),
        *tiny[3:],
        closed(f"closed book, {titles[2]}", ("update", lora), ("after", lora), lora),
        retrieval(f"retrieval: {titles[1]}", systems[1], systems[1]),
    ]


class Measured:
    """The records of the lab, over all seeds."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.questions = {
            seed: [companies.Question(*(record[field] for field in companies.Question._fields)) for record in own]
            for seed, own in records.where(phase="questions").by("seed").items()
        }
        self.kinds = Counter(question.kind for questions in self.questions.values() for question in questions)

    def of(self, part: Part) -> Records:
        """Return the records of a part, one for each seed that has it."""
        return self.records.where(phase=part[0], system=part[1])

    def replies(self, part: Part, kinds: Sequence[str]) -> Iterator[tuple[companies.Question, str, float | None]]:
        """Yield the questions of these kinds, each with its answer and the probability of the answer."""
        for record in self.of(part):
            columns = (record[key] for key in ("questions", "answers", "probabilities"))
            for number, text, probability in zip(*columns, strict=True):
                if (question := self.questions[record["seed"]][number]).kind in kinds:
                    yield question, text, probability

    def share(self, part: Part, kinds: Sequence[str], expected: str) -> Share:
        """Return the share of an outcome (see `companies.outcome`) among the answers to questions of these kinds."""
        outcomes = [companies.outcome(question, text) for question, text, _ in self.replies(part, kinds)]
        return Share(outcomes.count(expected), len(outcomes))

    def right(self, row: Row) -> float:
        """Return the share of right outcomes after the change. In a sample, kinds are weighted by true frequency."""
        best = {kind: "abstained" if kind == "absent" else "right" for kind in self.kinds}
        shares = {kind: self.share(row.after, [kind], outcome) for kind, outcome in best.items()}
        weights = {kind: self.kinds[kind] for kind, share in shares.items() if share.total}
        return sum(weight * shares[kind].value() for kind, weight in weights.items()) / sum(weights.values())

    def confidence(self, part: Part) -> float | None:
        """Average the probability of the answers to unanswerable questions; None without such answers."""
        replies = self.replies(part, ["absent"])
        values = [probability for _, text, probability in replies if text and probability is not None]
        return statistics.mean(values) if values else None

    def mean(self, part: Part, key: str) -> float | None:
        """Average a value over the seeds; None if there is no such part, or no value."""
        values = [record[key] for record in self.of(part) if record[key] is not None]
        return statistics.mean(values) if values else None

    def connections(self, row: Row) -> int:
        parts = {row.before, row.after, row.other("passage")}
        return sum(record["connections"] for part in parts for record in self.of(part))


def summarise(records: Records, config: LabConfig) -> Summary:
    """Summarise what each system knows before and after the change, and its costs."""
    measured = Measured(records)
    systems = rows(config.pretrained)
    fine_tuning = [combined(measured, config.pretrained)] if config.pretrained else []
    names = {"fact": "unchanged", "changed": "changed", "absent": "unanswerable", "conflict": "with a conflict"}
    counts = ", ".join(f"{measured.kinds[kind]:,} {name}" for kind, name in names.items())
    knows = f"Questions: {counts}; the pretrained model, if there is one, answers a sample of the first seed's. {KNOWS}"
    prices = f"{COSTS} Cost: in any currency, at {HOUR:g} per hour."

    def draw(axes: Any) -> None:
        for index, row in enumerate(systems):
            left = 0.0
            for each, color in OUTCOMES.items():
                width = 100 * measured.share(row.after, ["changed"], each).value()
                axes.barh(index, width, 0.34, left, color=color, label=each if index == 0 else None)
                left += width
            unchanged = 100 * measured.share(row.after, ["fact"], "right").value()
            axes.plot(unchanged, index, "kD", markersize=5, label="unchanged facts: right" if index == 0 else None)
        axes.set(xlabel="questions (%); bars: changed facts, after the update", xlim=(0, 100))
        name_rows(axes, [row.name for row in systems])

    return Summary(
        "Retrieve, fine-tune or train?",
        "The same questions about invented companies for every method; then a tenth of the facts change.",
        [
            Table("Right answers before and after the change", [known(measured, row) for row in systems], knows),
            Table("What the change costs", [change(measured, row) for row in systems if row.update != NONE], CHANGES),
            Table("What building and asking cost", [costs(measured, row) for row in systems], prices),
        ],
        [simplest(measured, systems), freshest(measured), *fine_tuning, private(records)],
        "Answers after the change",
        draw,
        invented(measured, systems[BASELINES:]),
    )


def invented(measured: Measured, systems: Sequence[Row]) -> Example | None:
    """Show the most confident answer to a question that no document answers."""
    replies = [(row.name, reply) for row in systems for reply in measured.replies(row.after, ["absent"]) if reply[1]]
    if not replies:
        return None
    name, (question, text, probability) = max(replies, key=lambda own: own[1][2] or 0)
    note = f"No document answers this question. System: {name}; probability: {probability or 0:.2f}."
    return Example("An invented fact", question.text, text, note)


def known(measured: Measured, row: Row) -> dict[str, str]:
    confidence = measured.confidence(row.after)
    return {
        "system": row.name,
        "unchanged, before": str(measured.share(row.before, ["fact"], "right")),
        "unchanged, after": str(measured.share(row.after, ["fact"], "right")),
        "changed": str(measured.share(row.after, ["changed"], "right")),
        "stale": str(measured.share(row.after, ["changed"], "stale")),
        "passage given": str(measured.share(row.other("passage"), ["fact", "changed"], "right")),
        "abstains": str(measured.share(row.after, ["absent"], "abstained")),
        "confidence": "" if confidence is None else f"{confidence:.2f}",
        "conflict": str(measured.share(row.after, ["conflict"], "right")),
    }


def change(measured: Measured, row: Row) -> dict[str, str]:
    update = measured.mean(row.update, "seconds")
    fresh = measured.mean(row.other("fresh"), "seconds")
    failed = "none" if measured.of(row.other("fresh")) else ""
    if update is not None and not failed and row.after != ("after", "search"):
        fresh = update + (measured.mean(row.after, "seconds per question") or 0.0)
    return {
        "system": row.name,
        **effort(measured, row.update, "update", "commands", "examples", "written", "parameters trained"),
        "time to a right answer": failed if fresh is None else duration(fresh),
    }


def costs(measured: Measured, row: Row) -> dict[str, str]:
    seconds = measured.mean(row.after, "seconds per question") or 0.0
    return {
        "system": row.name,
        **effort(measured, row.build, "build", "commands", "examples"),
        "time per question": f"{1000 * seconds:,.0f} ms" if seconds >= 1e-3 else "under 1 ms",
        "cost of 1,000 questions": f"{1000 * seconds * HOUR / 3600:.4f}",
        "connections": str(measured.connections(row)),
    }


def effort(measured: Measured, part: Part, *columns: str) -> dict[str, str]:
    """Format figures of the Cost of a part, by column; empty cells if there is no such part."""
    means = {column: measured.mean(part, EFFORT[column][0]) for column in columns}
    return {column: "" if mean is None else EFFORT[column][1](mean) for column, mean in means.items()}


def simplest(measured: Measured, systems: Sequence[Row]) -> Verdict:
    """Choose the simplest system whose share of right outcomes after the change is close to the best."""
    right = {row.name: measured.right(row) for row in systems[BASELINES:]}
    best = max(right, key=right.__getitem__)
    name = next(name for name, share in right.items() if share >= right[best] - NEAR)
    other = max(right.keys() - {name}, key=right.__getitem__)
    return Verdict(
        f"Start with '{name}': {100 * right[name]:.0f}% right after facts have changed; the best of the others, "
        f"'{other}': {100 * right[other]:.0f}%.",
        f"the first system in the table, baselines excluded, within {100 * NEAR:.0f} percentage points of the best; an "
        "abstention is right if no document answers the question",
    )


def freshest(measured: Measured) -> Verdict:
    """Judge whether facts that change belong in documents or in a closed-book model."""
    index, again, alone = (measured.mean(("update", key), "seconds") or 0.0 for key in ("index", "again", "closed"))
    answering = ("reader", "again", "closed")
    right = {key: measured.share(("after", key), ["changed"], "right").value() for key in answering}
    before, after = (measured.share((when, "closed"), ["fact"], "right").value() for when in ("before", "after"))
    documents = index < again and right["reader"] >= right["again"] - NEAR
    advice = "keep them in documents" if documents else "train the closed-book model again"
    return Verdict(
        f"If facts change, {advice}. Right answers about changed facts: {100 * right['reader']:.0f}% with an update "
        f"of the index ({duration(index)}), {100 * right['again']:.0f}% with training the closed-book model again "
        f"({duration(again)}), and {100 * right['closed']:.0f}% with fine-tuning it on the changes alone "
        f"({duration(alone)}), after which {100 * after:.0f}% are right about unchanged facts, instead of "
        f"{100 * before:.0f}%.",
        "documents, if the update of the index is faster than training again, and gives as many right answers about "
        f"changed facts, or at most {100 * NEAR:.0f} percentage points fewer; fine-tuning on the changes alone "
        "is shown, not advised",
    )


def combined(measured: Measured, pretrained: str) -> Verdict:
    """State the effect of fine-tuning on retrieval."""
    after = [("after", name) for name in names(pretrained)[:2]]
    right = [100 * measured.share(part, ["fact", "changed"], "right").value() for part in after]
    abstains = [100 * measured.share(part, ["absent"], "abstained").value() for part in after]
    return Verdict(
        f"Fine-tuning {pretrained} to read passages changes its share of right answers from {right[0]:.0f} to "
        f"{right[1]:.0f}%, and its share of abstentions on unanswerable questions from {abstains[0]:.0f} to "
        f"{abstains[1]:.0f}%.",
        "the same questions and search, with the defaults of tinygpt ask for each model; the training examples "
        "state other facts, so fine-tuning has taught the task, not the facts",
    )


def private(records: Records) -> Verdict:
    used = sum(record.get("connections", 0) for record in records)
    attempts = f"Python reported {counted(used, 'attempt')} to use the network while the systems answered."
    return Verdict(
        attempts if used else "No system used the network while it answered.",
        "connections and name lookups reported by Python; this does not show what the weights have memorised "
        "(tinygpt lab canary does)",
    )
