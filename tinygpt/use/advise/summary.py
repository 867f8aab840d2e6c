"""What `tinygpt advise` says: the table of the contenders, the advice with its rule, and what to know before use."""

import math
from functools import cached_property
from typing import Any

import numpy as np

from tinygpt.base.terminal import counted, duration
from tinygpt.examine.eval.classify import confusion_matrix, quality, rates
from tinygpt.examine.experiment.picture import name_rows
from tinygpt.examine.experiment.stages import Results
from tinygpt.examine.experiment.summary import Example, Summary, Table, Verdict
from tinygpt.use.advise import judge, look
from tinygpt.use.advise.contenders import MAJORITY, SENTENCES, Data
from tinygpt.use.advise.judge import TARGET, Advice, Sure
from tinygpt.use.advise.look import Finding, as_table, shown
from tinygpt.use.advise.split import Split

LOOK = "look at the data"  # the stage of the findings
FOUND = 0.5  # a label with a lower recall is mostly missed
MOST = 5  # labels that are named
MISTAKES = 10  # that are shown
PARTS = 5  # in which the threshold is checked, if a single fold was tested


class Report:
    """The results as values, and as tables and verdicts."""

    def __init__(self, data: Data, divided: Split, results: Results) -> None:
        self.data = data
        self.split = divided
        self.results = results
        self.measured = {record["contender"]: record for record in results.records.where(share=1)}
        self.labels = data.labels
        self.L = len(data.labels)
        # of the tested lines
        self.lines = divided.tested
        self.truth = data.truth[self.lines]
        self.clusters = divided.clusters[self.lines]
        self.predicted = {name: np.array(record["predicted"]) for name, record in self.measured.items()}
        self.right = {name: predicted == self.truth for name, predicted in self.predicted.items()}

    @cached_property
    def advice(self) -> Advice:
        return judge.advise(self.right, self.clusters, MAJORITY)

    @property
    def confidence(self) -> np.ndarray:
        """Return the probabilities of the answers of the advised contender."""
        return np.array(self.measured[self.advice.name]["confidence"])

    @cached_property
    def sure(self) -> Sure:
        """Choose the threshold of the advised contender."""
        if self.advice.name == MAJORITY:
            return Sure(None, 0, 0, len(self.lines), (0.0, 1.0))
        sizes = [len(test) for _, test in self.split.folds]
        parts = np.repeat(np.arange(len(sizes)), sizes)  # the fold of each line
        if len(sizes) == 1:
            parts = np.unique(self.clusters, return_inverse=True)[1] % PARTS
        return judge.sure(self.confidence, self.right[self.advice.name], self.clusters, parts)

    @cached_property
    def contenders(self) -> list[dict[str, Any]]:
        """Return the figures of each contender."""
        return [
            {"name": name, "lines": len(self.lines)}
            | quality(confusion_matrix(self.truth, predicted, self.L))
            | {"macro_f1_interval": judge.macro_f1_interval(self.truth, predicted, self.clusters, self.L)}
            | {"accuracy_interval": judge.accuracy_interval(self.right[name], self.clusters)}
            | {"seconds": self.measured[name]["seconds"]}
            for name, predicted in self.predicted.items()
        ]

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """Return the accuracy at each share of the training lines, the smallest first; empty without a curve."""
        points = [
            {"name": record["contender"], "share": record["share"], "right": record["predicted"] == self.truth}
            for record in self.results.records
            if 0 < record.get("share", 0) < 1
        ]
        return points + [
            {"name": point["name"], "share": 1.0, "right": self.right[point["name"]]} for point in points[:1]
        ]

    @property
    def findings(self) -> list[Finding]:
        return [Finding(*finding) for finding in self.results[LOOK]]

    @cached_property
    def mistakes(self) -> list[dict[str, Any]]:
        """Return the wrong labels of the advised contender with the highest probability."""
        name = self.advice.name
        confidence = self.confidence
        wrong = sorted(np.flatnonzero(~self.right[name]).tolist(), key=lambda position: -confidence[position])
        return [
            {
                self.data.unit: self.data.numbers[self.lines[position]],
                "prompt": self.data.prompts[self.lines[position]],
                "label": self.labels[self.truth[position]],
                "answer": self.labels[self.predicted[name][position]],
                "probability": float(confidence[position]),
            }
            for position in wrong[:MISTAKES]
        ]

    @cached_property
    def confusion(self) -> np.ndarray:
        """Return the confusion matrix of the advised contender: int64 (L, L), a row for each true label."""
        return confusion_matrix(self.truth, self.predicted[self.advice.name], self.L)

    @cached_property
    def confusions(self) -> list[dict[str, Any]]:
        """Return the labels that the advised contender takes for others, the most frequent confusion first."""
        wrong = self.confusion * ~np.eye(self.L, dtype=bool)
        return [
            {"label": self.labels[i], "answer": self.labels[j], "lines": int(wrong[i, j])}
            | {"tested": int(self.confusion[i].sum())}
            for i, j in sorted(np.argwhere(wrong).tolist(), key=lambda place: -wrong[*place])
        ]

    @property
    def values(self) -> dict[str, Any]:
        """Return the report for --json."""
        return {
            "findings": [finding._asdict() for finding in self.findings],
            "split": {"how": self.split.how, "warning": self.split.warning},
            "contenders": self.contenders,
            "advice": {"name": self.advice.name, "why": self.advice.why},
            "per_label": self.per_label(),
            "confusions": self.confusions,
            "threshold": self.sure._asdict(),
            "learning_curve": [point | {"right": float(point["right"].mean())} for point in self.curve],
            "mistakes": self.mistakes,
        }

    def per_label(self) -> list[dict[str, Any]]:
        """Return precision, recall and F1 of the advised contender for each label."""
        columns = rates(self.confusion)
        return [
            {"label": label, "lines": int(columns["support"][index])}
            | {key: float(columns[key][index]) for key in ("precision", "recall", "f1")}
            for index, label in enumerate(self.labels)
        ]

    # ---- as text and page -------------------------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        name = self.advice.name
        rows = [
            {
                "contender": f"{row['name']} (advised)" if row["name"] == name else row["name"],
                "accuracy": ranged(row["accuracy"], row["accuracy_interval"]),
                "macro-F1": ranged(row["macro_f1"], row["macro_f1_interval"]),
                "lines tested": f"{row['lines']:,}",
                "training": duration(row["seconds"]) if row["seconds"] else "-",
            }
            for row in self.contenders
        ]
        how = (
            f"Split {self.split.how}. In parentheses: 95% confidence intervals in percent. Training: once. Macro-F1: "
            "the labels' mean F1; rare labels count as much as frequent ones. Linear model: logistic regression on the "
            "TF-IDF of words and characters."
        )
        if SENTENCES not in self.measured:
            how += " Not tried: a sentence encoder (--vectors), which can help with few examples."
        tables = [Table("Contenders, the simplest first", rows, how), self._label_table()]
        example = None
        if self.mistakes and name != MAJORITY:
            tables = [self._confusion_table(), *tables, self._mistakes_table()]
            example = self._example(self.mistakes[0])
        return Summary(
            "Which model for these data, and how good is it?",
            f"{self.data}: the simplest model that no other beats, tested as it will be used.",
            [*tables, as_table(self.findings)],
            [self._choice(), *self._spellings(), *self._missed(), self._threshold(), *self._more_labels()],
            "Accuracy of the contenders, with 95% confidence intervals",
            self._draw,
            example,
            f"figures, quotations from the sheet (of at most {look.SHOWN} characters) and its labels; in them, e-mail "
            "addresses, IBANs, payment cards and telephone numbers are masked where they are recognised, names and "
            "postal addresses are not",
        )

    def _example(self, row: dict[str, Any]) -> Example:
        note = f"In the sheet: {shown(row['label'])}. Probability of the answer: {100 * row['probability']:.0f}%."
        prompt = f"{shown(row['prompt'])} →"
        answer = shown(row["answer"])
        return Example("The wrong answer with the highest probability", prompt, answer, note)

    def _confusion_table(self) -> Table:
        rows = [
            {"in the sheet": shown(row["label"], 40), "answered": shown(row["answer"], 40)}
            | {"lines": f"{row['lines']:,} of {row['tested']:,}"}
            for row in self.confusions[:MISTAKES]
        ]
        first = rows[0]
        n = len(self.confusions)
        most = f": the {MISTAKES} most frequent of {n:,}" if n > MISTAKES else ""
        how = f"The first row: of the tested lines with the label {first['in the sheet']} in the sheet, "
        how += f"{self.advice.name} answered {first['answered']} to {first['lines']}."
        return Table(f"Which label is taken for which{most}", rows, how)

    def _label_table(self) -> Table:
        rows = [
            {"label": shown(row["label"], 40), "tested": f"{row['lines']:,}"}
            | {key: f"{row[key]:.2f}" for key in ("precision", "recall", "f1")}
            for row in self.per_label()
        ]
        how = (
            f"Of {self.advice.name}. Precision: of the lines with this answer, the share with this label. Recall: of "
            "the lines with this label, the share with this answer. Few tested lines make both uncertain."
        )
        return Table("Each label", rows, how)

    def _mistakes_table(self) -> Table:
        rows = [
            {
                self.data.unit: str(row[self.data.unit]),
                "prompt": shown(row["prompt"]),
                "label": shown(row["label"]),
            }
            | {"answer": shown(row["answer"]), "probability": f"{100 * row['probability']:.0f}%"}
            for row in self.mistakes
        ]
        return Table(
            "Wrong with the highest probability", rows, "Often the label is wrong, not the answer: check them."
        )

    def _choice(self) -> Verdict:
        accuracy = {row["name"]: row["accuracy"] for row in self.contenders}
        name = self.advice.name
        guess = f"{100 * accuracy[MAJORITY]:.1f}%"
        text = f"Advice: {name}, {100 * accuracy[name]:.1f}% right; guessing the most frequent label: {guess}."
        if name == MAJORITY:
            text = f"Advice: no model yet; none is clearly better than guessing the most frequent label, {guess} right."
        if self.split.warning:
            text += f" Careful: {self.split.warning}."
        return Verdict(
            text,
            f"the simplest contender that beats the majority (p < {judge.NOISE} divided by the number of other "
            f"contenders) and that no other beats (p < {judge.CHANCE}); paired, one-sided tests on common lines. If "
            f"there is none: no model. Here: {self.advice.why}",
        )

    def _spellings(self) -> list[Verdict]:
        """Warn of labels that a person has spelled in several ways, which no model can tell apart."""
        rule = "labels that are equal but for case, blanks, hyphens or the notation of a number"
        return [
            Verdict(f"First: each spelling of a label counts as a label of its own: {'; '.join(finding.examples)}. "
                    f"{finding.advice}", rule)
            for finding in self.findings
            if finding.name == look.SPELLINGS
        ]  # fmt: skip

    def _missed(self) -> list[Verdict]:
        """Warn of labels that are mostly missed, which the accuracy does not show if they are rare."""
        missed = [row for row in self.per_label() if row["lines"] and row["recall"] < FOUND]
        if not missed:
            return []
        missed.sort(key=lambda row: row["recall"])
        shares = [f"{shown(row['label'], 30)} ({100 * row['recall']:.0f}% of its lines)" for row in missed]
        named = ", ".join(shares[:MOST])
        more = f" and {counted(len(missed) - MOST, 'more label')}" if len(missed) > MOST else ""
        text = (
            f"Found least often: {named}{more}. If these are the lines that you look for, do not go by the accuracy: "
            "label more of them"
        )
        if self.advice.name != MAJORITY:
            text += ", or flag lines by their probability (docs/explanation/fine-tuning.md, a rare label)"
        return [Verdict(f"{text}.", f"labels with a recall below {100 * FOUND:.0f}%")]

    def _threshold(self) -> Verdict:
        sure = self.sure
        goal = f"{100 * TARGET:.0f}%"
        rule = (
            f"the lowest probability above which the accuracy's 95% interval begins at {goal} or higher, confirmed on "
            "lines that did not choose it (each part of the tested lines, with a threshold from the others)"
        )
        if sure.threshold is None:
            return Verdict(f"No threshold: at no probability are {goal} right answers certain. A person should look at "
                           "each line.", rule)  # fmt: skip
        share = sure.right / sure.answered
        low, high = sure.interval
        text = (
            f"Answers with a probability of at least {sure.threshold:.2f} count as sure. Thresholds chosen likewise on "
            f"other lines made {100 * sure.answered / sure.total:.0f}% of the lines sure, of which {100 * share:.1f}% "
            f"were right ({100 * low:.0f} to {100 * high:.0f}). A person should look at the others."
        )
        return Verdict(text, rule)

    def _more_labels(self) -> list[Verdict]:
        if len(self.curve) < 2:
            return []
        half = self.curve[-2]
        whole = self.curve[-1]
        gain = 100 * (whole["right"].mean() - half["right"].mean())
        low, high = (100 * bound for bound in judge.gain_interval(half["right"], whole["right"], self.clusters))
        steps = ", ".join(
            f"{100 * point['right'].mean():.1f}% with {100 * point['share']:.0f}%" for point in self.curve
        )
        verb = f"gained {gain:.1f} points" if gain >= 0 else f"lost {-gain:.1f} points"
        text = f"Twice as many examples: the last doubling {verb} ({low:+.1f} to {high:+.1f}). "
        text += f"{whole['name'][0].upper()}{whole['name'][1:]}: {steps} of the training lines."
        if gain >= 0 and low <= 0:
            text += " A gain is not certain."
        return [Verdict(text, "the gain from half of the training lines to all, on the same tested lines")]

    def _draw(self, axes: Any) -> None:
        """Draw the accuracy of each contender with its interval."""
        names = []
        for position, row in enumerate(self.contenders):
            advised = row["name"] == self.advice.name
            look: Any = {"color": "C0" if advised else "gray", "linewidth": 3}
            axes.plot(100 * np.array(row["accuracy_interval"]), [position, position], **look)
            axes.plot(100 * row["accuracy"], position, "o", markersize=8, **look)
            called = f"{row['name']} (advised)" if advised else row["name"]
            names.append(f"{called}: {100 * row['accuracy']:.1f}%")
        axes.set(xlabel="accuracy (%)", xlim=(0, 100))
        name_rows(axes, names)


def ranged(share: float, interval: tuple[float, float]) -> str:
    """Format a share and its interval in percent."""
    low, high = (100 * bound for bound in interval)
    digits = 0 if math.ceil(high - low) > 10 else 1
    return f"{100 * share:.1f}% ({low:.{digits}f} to {high:.{digits}f})"
