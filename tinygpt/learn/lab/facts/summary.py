"""What `tinygpt lab facts` says: three tables, a picture, and verdicts with their rules."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import counted, duration
from tinygpt.examine.experiment.stages import Results
from tinygpt.examine.experiment.summary import Share, Summary, Table, Verdict
from tinygpt.learn.lab.definition import HOUR
from tinygpt.learn.lab.facts.experiment import TRIES, names
from tinygpt.learn.lab.facts.systems import outcome
from tinygpt.learn.lab.facts.world import Question

NEAR = 0.05  # systems whose shares of right answers differ by less count as equally good
OUTCOMES = {"right": "C2", "stale": "C1", "wrong": "C3", "abstained": "lightgray"}
KNOWS = (
    "In percent of the questions, whose wordings occur in no training set of this lab, nor in that of the tiny reader. "
    "In parentheses: 95% confidence intervals over the questions (Wilson). Right: the answer contains the right one. "
    "Unchanged, before and after: facts that do not change; a drop is damage done by the update. Changed: facts that "
    "have changed. Stale: the answer contains the value before the change. Passage given: right answers after the "
    "change if the reader gets only the passage with the answer. Abstains: on questions that no document answers. "
    "Confidence: mean probability of the answers to these questions, if the system does not abstain. Conflict: right "
    "where an older document says something else; the closed-book models were trained on the newer value only. The "
    "closed-book model that is not updated has never seen the changed facts, so it must be wrong about them."
)
CHANGES = (
    "Update: time to index and ask, or to train, on this machine. Commands: for the update. Examples: question-answer "
    "pairs that somebody has to write. Written: the documents, or the checkpoint. Trained: number of parameters. Time "
    "to a right answer: from a changed document to the first right answer, with the command ask; 'none' if "
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
    "trained": ("weights", "{:,.0f}".format),
}


class Row(NamedTuple):
    """A row of the tables: a system, and the names of its stages, without the seed; empty if it has no such stage."""

    name: str
    build: str
    before: str
    update: str
    after: str

    def stage(self, name: str) -> str:
        """Return the name of another stage of the same system, as `fresh`; not every system has it."""
        return f"{name}: {self.after.partition(': ')[2]}"


def rows(pretrained: str) -> list[Row]:
    """List the systems, the simplest first; the first two are baselines."""
    zero_shot, reading, lora = names(pretrained)
    titles = names("pretrained model")  # a path would be no title
    systems = [
        Row("majority baseline", "", "before: majority", "", "after: majority"),
        Row("search only", "build: index", "before: search", "update: index", "after: search"),
        Row("retrieval: tiny reader", "build: index", "before: reader", "update: index", "after: reader"),
        Row(f"retrieval: {titles[0]}", "build: index", f"before: {zero_shot}", "update: index", f"after: {zero_shot}"),
        Row("closed book, not updated", "build: closed", "before: closed", "", "before: closed"),
        Row("closed book, fine-tuned", "build: closed", "before: closed", "update: closed", "after: closed"),
        Row("closed book, trained again", "build: closed", "before: closed", "update: again", "after: again"),
        Row(f"closed book, {titles[2]}", f"build: {lora}", f"before: {lora}", f"update: {lora}", f"after: {lora}"),
        Row(f"retrieval: {titles[1]}", f"build: {reading}", f"before: {reading}", "update: index", f"after: {reading}"),
    ]
    return systems if pretrained else systems[:3] + systems[4:7]


class Measured:
    """The results of the lab by stage, over all seeds."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.questions = {
            int(name.rpartition(" ")[2]): [Question(*question) for question in result]
            for name, result in results.items()
            if name.startswith("questions, seed")
        }
        self.kinds = Counter(question.kind for questions in self.questions.values() for question in questions)

    def of(self, stage: str) -> dict[int, Any]:
        """Return the results of a stage by seed."""
        names = {seed: f"{stage}, seed {seed}" for seed in self.questions}
        return {seed: self.results[name] for seed, name in names.items() if name in self.results}

    def replies(self, stage: str, kinds: Sequence[str]) -> Iterator[tuple[Question, str, float | None]]:
        """Yield the questions of these kinds, each with its answer and the probability of the answer."""
        for seed, result in self.of(stage).items():
            columns = (result[key] for key in ("questions", "answers", "probabilities"))
            for number, text, probability in zip(*columns, strict=True):
                if (question := self.questions[seed][number]).kind in kinds:
                    yield question, text, probability

    def share(self, stage: str, kinds: Sequence[str], expected: str) -> Share:
        """Return the share of an outcome (see `systems.outcome`) among the answers to questions of these kinds."""
        outcomes = [outcome(question, text) for question, text, _ in self.replies(stage, kinds)]
        return Share(outcomes.count(expected), len(outcomes))

    def right(self, row: Row) -> float:
        """Return the share of right outcomes after the change. In a sample, kinds are weighted by true frequency."""
        best = {kind: "abstained" if kind == "absent" else "right" for kind in self.kinds}
        shares = {kind: self.share(row.after, [kind], outcome) for kind, outcome in best.items()}
        weights = {kind: self.kinds[kind] for kind, share in shares.items() if share.total}
        return sum(weight * shares[kind].value() for kind, weight in weights.items()) / sum(weights.values())

    def confidence(self, stage: str) -> float | None:
        """Average the probability of the answers to unanswerable questions; None without such answers."""
        replies = self.replies(stage, ["absent"])
        values = [probability for _, text, probability in replies if text and probability is not None]
        return statistics.mean(values) if values else None

    def mean(self, stage: str, key: str) -> float | None:
        """Average a value over the seeds; None if the stage does not exist or has no value."""
        values = [result[key] for result in self.of(stage).values() if result[key] is not None]
        return statistics.mean(values) if values else None

    def connections(self, row: Row) -> int:
        stages = {row.before, row.after, row.stage("passage")}
        return sum(result["connections"] for stage in stages for result in self.of(stage).values())


def summarise(results: Results, config: LabConfig) -> Summary:
    """Summarise what each system knows before and after the change, and its costs."""
    measured, systems = Measured(results), rows(config.pretrained)
    fine_tuning = [combined(measured, config.pretrained)] if config.pretrained else []
    names = {"fact": "unchanged", "changed": "changed", "absent": "unanswerable", "conflict": "with a conflict"}
    counts = ", ".join(f"{measured.kinds[kind]:,} {name}" for kind, name in names.items())
    knows = f"Questions: {counts}; the pretrained model, if there is one, answers a sample of the first seed's. {KNOWS}"
    prices = f"{COSTS} Cost: at a price of {HOUR:g} per hour."

    def draw(axes: Any) -> None:
        for index, row in enumerate(systems):
            left = 0.0
            for each, color in OUTCOMES.items():
                width = 100 * measured.share(row.after, ["changed"], each).value()
                axes.barh(index, width, left=left, color=color, label=each if index == 0 else None)
                left += width
            unchanged = 100 * measured.share(row.after, ["fact"], "right").value()
            axes.plot(unchanged, index, "kD", markersize=5, label="unchanged facts: right" if index == 0 else None)
        axes.set_yticks(range(len(systems)), [row.name for row in systems], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="questions (%); bars: changed facts, after the update", xlim=(0, 100))
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))

    return Summary(
        "Retrieve, fine-tune or train?",
        "The same questions about invented companies for every method; then a tenth of the facts change.",
        [
            Table("Right answers before and after the change", [known(measured, row) for row in systems], knows),
            Table("What the change costs", [change(measured, row) for row in systems], CHANGES),
            Table("What building and asking cost", [costs(measured, row) for row in systems], prices),
        ],
        [simplest(measured, systems), freshest(measured), *fine_tuning, private(results)],
        "Answers after the change",
        draw,
    )


def known(measured: Measured, row: Row) -> dict[str, str]:
    confidence = measured.confidence(row.after)
    return {
        "system": row.name,
        "unchanged, before": str(measured.share(row.before, ["fact"], "right")),
        "unchanged, after": str(measured.share(row.after, ["fact"], "right")),
        "changed": str(measured.share(row.after, ["changed"], "right")),
        "stale": str(measured.share(row.after, ["changed"], "stale")),
        "passage given": str(measured.share(row.stage("passage"), ["fact", "changed"], "right")),
        "abstains": str(measured.share(row.after, ["absent"], "abstained")),
        "confidence": "" if confidence is None else f"{confidence:.2f}",
        "conflict": str(measured.share(row.after, ["conflict"], "right")),
    }


def change(measured: Measured, row: Row) -> dict[str, str]:
    update, fresh = measured.mean(row.update, "seconds"), measured.mean(row.stage("fresh"), "seconds")
    failed = "none" if measured.of(row.stage("fresh")) else ""
    if update is not None and not failed and row.after != "after: search":
        fresh = update + (measured.mean(row.after, "seconds per question") or 0.0)
    return {
        "system": row.name,
        **effort(measured, row.update, "update", "commands", "examples", "written", "trained"),
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


def effort(measured: Measured, stage: str, *columns: str) -> dict[str, str]:
    """Format parts of the Cost of a stage, by column; empty cells if there is no such stage."""
    means = {column: measured.mean(stage, EFFORT[column][0]) for column in columns}
    return {column: "" if mean is None else EFFORT[column][1](mean) for column, mean in means.items()}


def simplest(measured: Measured, systems: Sequence[Row]) -> Verdict:
    """Choose the simplest system whose share of right outcomes after the change is close to the best."""
    right = {row.name: measured.right(row) for row in systems[BASELINES:]}
    best = max(right, key=right.__getitem__)
    name = next(name for name, share in right.items() if share >= right[best] - NEAR)
    than = "the best result" if name == best else f"compared with {100 * right[best]:.0f}% of '{best}'"
    return Verdict(
        f"Start with '{name}': after the change, {100 * right[name]:.0f}% of its outcomes are right, {than}.",
        f"the first system in the table, baselines excluded, within {100 * NEAR:.0f} percentage points of the best; an "
        "abstention is right if no document answers the question",
    )


def freshest(measured: Measured) -> Verdict:
    """Judge whether facts that change belong in documents or in a closed-book model."""
    index, again, alone = (measured.mean(f"update: {key}", "seconds") or 0.0 for key in ("index", "again", "closed"))
    answering = ("reader", "again", "closed")
    right = {key: measured.share(f"after: {key}", ["changed"], "right").value() for key in answering}
    before, after = (measured.share(f"{when}: closed", ["fact"], "right").value() for when in ("before", "after"))
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
    after_stages = [f"after: {name}" for name in names(pretrained)[:2]]
    right = [100 * measured.share(stage, ["fact", "changed"], "right").value() for stage in after_stages]
    abstains = [100 * measured.share(stage, ["absent"], "abstained").value() for stage in after_stages]
    return Verdict(
        f"Fine-tuning {pretrained} to read passages changes its share of right answers from {right[0]:.0f} to "
        f"{right[1]:.0f}%, and its share of abstentions on unanswerable questions from {abstains[0]:.0f} to "
        f"{abstains[1]:.0f}%.",
        "the same questions and search, with the defaults of tinygpt ask for each model; the training examples "
        "state other facts, so fine-tuning has taught the task, not the facts",
    )


def private(results: Results) -> Verdict:
    used = sum(result.get("connections", 0) for result in results.values() if isinstance(result, dict))
    attempts = f"Python reported {counted(used, 'attempt')} to use the network while the systems answered."
    return Verdict(
        attempts if used else "No system used the network while it answered.",
        "connections and name lookups reported by Python; this does not show what the weights have memorised "
        "(tinygpt lab canary does)",
    )
