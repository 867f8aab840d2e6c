"""`tinygpt ask`: search an index for passages, and answer from them (RAG, Lewis et al. 2020).

The index finds passages, and a model reads them or abstains. `--questions` measures this on questions with known
answers, and finds the best values of the two thresholds.

Sources: https://arxiv.org/abs/2005.11401; exact match as in SQuAD, https://arxiv.org/abs/1606.05250.

    tinygpt ask "Who is the CFO of Norvik?" --index index.db
    tinygpt ask --index index.db --questions val.jsonl
"""

import io
import json
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt import device, terminal
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import tokenizer_of
from tinygpt.config.schema import AskConfig
from tinygpt.data.tasks.reader import UNANSWERABLE
from tinygpt.data.tokenizer import lone_surrogate
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.share import INTERVALS, intervals, percent
from tinygpt.files import read_text, strict_json
from tinygpt.retrieve.answer import Answer, Reader, normalised
from tinygpt.retrieve.search import search, terms
from tinygpt.retrieve.store import Index, Passage, open_index
from tinygpt.terminal import escaped, progress

SHIPPED = Path(__file__).with_name("reader.pt")  # the reader for --ckpt ""
K1 = 1.2  # of SQLite's BM25
SMALL = 50  # passages; in a smaller index the default of --min_score does not apply, since all scores are low
COLUMNS, SHOWN = 100, 270  # width of the terminal; characters of a passage that are shown


class Outcome(NamedTuple):
    """The answer to a question, and what it is based on."""

    question: str
    answer: str  # empty: not in the documents
    candidate: str  # the model's answer, before the thresholds apply; empty: it found none
    probability: float  # of the candidate
    score: float  # of the best passage
    reason: str  # why there is no answer
    note: str  # which passages were shortened or left out; whether the answer was cut off
    passages: tuple[dict[str, Any], ...]  # rank, cited, source, position, title, score, ..., text, start, end


def ask(config: AskConfig) -> int:
    """Answer a question or the lines of standard input, or evaluate a file of questions. Returns the exit status."""
    question = checked_question(" ".join(config.question)) if config.question else ""
    if question and config.questions:
        raise TinyGPTError("a question and --questions are two tasks", "give one of them")
    questions = read_questions(Path(config.questions)) if config.questions else []
    with open_index(Path(config.index)) as index:
        respond = Responder(config, index)
        if questions:
            for entry in questions:
                respond.reader.require_room(entry.question)
            results = evaluate(respond, questions)
            print(strict_json(results) if config.json else report(results))
        elif question:
            show(respond(question), respond)
        else:
            return prompt_loop(respond)
    return 0


class Responder:
    """An index and a model, loaded once, that answer questions."""

    def __init__(self, config: AskConfig, index: Index) -> None:
        self.config, self.index = config, index
        self.reader = load_reader(config)
        is_limited = "min_probability" in config.given or not self.reader.instructed
        self.min_probability = config.min_probability if is_limited else 0.0
        self.min_score = config.min_score if "min_score" in config.given or len(index) > SMALL else 0.0

    def __call__(self, question: str) -> Outcome:
        self.reader.require_room(question)  # before the search, which takes long for thousands of words
        return self.read(question, search(self.index, question, self.config.passages))

    def read(self, question: str, hits: Sequence[Passage]) -> Outcome:
        """Answer from these passages, the most relevant first."""
        scores = relevance(self.index, question, hits)
        best = max(scores, default=0.0)
        response = self.reader.read(question, hits) if hits else Answer("", 0.0)
        reason, candidate, passages = self.reason(response, best, bool(hits)), response.text, []
        for rank, (hit, score) in enumerate(zip(hits, scores, strict=True), start=1):
            text = " ".join(hit.text.split())
            span = self.reader.span(response.text, text) if response.passage in (0, rank) else None
            start, end = span or (None, None)
            if span and candidate == response.text:
                candidate = text[start:end]  # as the document spells it
            fields = hit._asdict() | {"score": score, "text": text, "start": start, "end": end}
            passages.append({"rank": rank, "cited": rank == response.passage} | fields)
        if self.reader.copies and response.passage and all(passage["start"] is None for passage in passages):
            reason = reason or f'the model\'s answer "{response.text}" does not occur in the passage that it cites'
            candidate = ""  # no threshold would make it an answer
        answer = "" if reason else candidate
        return Outcome(question, answer, candidate, response.probability, best, reason, response.note, tuple(passages))

    def reason(self, answer: Answer, best_score: float, has_passages: bool) -> str:
        """Return why there is no answer; empty if there is one."""
        if not has_passages:
            return "no passage contains a word of the question"
        if best_score < self.min_score and len(self.index) > self.config.passages:  # a smaller index is read completely
            return f"the best passage's score {best_score:.2f} is below --min_score={self.min_score}"
        if not answer.text:
            return f"the model finds no answer in the passages (probability {answer.probability:.2f})"
        if answer.probability < self.min_probability:
            return (
                f"the answer's probability {answer.probability:.2f} is below --min_probability={self.min_probability}"
            )
        return ""


def load_reader(config: AskConfig) -> Reader:
    """Load the model of --ckpt and --adapter. Errors: TinyGPTError, also if it only continues text."""
    ckpt = config.ckpt or str(SHIPPED)
    checkpoint = load_model(ckpt, config.adapter)
    tokenizer = tokenizer_of(checkpoint, ckpt, "data")
    compute = device.choose_for_inference(config.device, config.dtype, checkpoint.num_params, config.threads)
    model = checkpoint.for_inference(compute, config.fast)
    return Reader(model, tokenizer, str(checkpoint.config.get("dataset", "")))


def relevance(index: Index, question: str, hits: Sequence[Passage]) -> list[float]:
    """Score each passage from 0 to 1: its BM25 as a share of an upper bound for the question.

    BM25 is a sum over the question's words, to which each adds less than its inverse document frequency times k1 + 1.
    So the BM25 of different questions cannot be compared, but these shares can. A word that no passage contains lowers
    all shares. The bound adds 1 inside the logarithm, as usual; SQLite does not, and counts a word that half of the
    passages contain as almost nothing. So a score is far below 1 in a small index.
    """
    n = len(index)
    frequencies = [index.frequency(term) for term in terms(question)]
    bound = (K1 + 1) * sum(math.log(1 + (n - df + 0.5) / (df + 0.5)) for df in frequencies)
    return [hit.bm25 / bound if bound else 0.0 for hit in hits]


# ---- asking -----------------------------------------------------------------------------------------------------


def checked_question(question: str) -> str:
    """Return the question on one line. Errors: TinyGPTError if it is empty or not valid Unicode."""
    if not question.strip():
        raise TinyGPTError("the question is empty", 'tinygpt ask "Who is the CFO of Norvik?"')
    if surrogate := lone_surrogate(question):
        raise TinyGPTError(f"the question contains a lone surrogate ({surrogate})", "use UTF-8 text")
    return " ".join(question.split())


def prompt_loop(respond: Responder) -> int:
    """Answer each line of standard input until an empty line; return the exit status of the last failure, or 0."""
    status = 0
    if not sys.stdin.isatty() and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")  # refused by `checked_question`
    while line := next_line():
        try:
            show(respond(checked_question(line)), respond)
            if not respond.config.json:
                print(flush=True)
        except TinyGPTError as error:
            terminal.print_error(error.text())
            status = error.status
    return status


def next_line() -> str:
    """Read a line and strip it; empty at the end of the input, and after Ctrl-C."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):  # the prompt would be written into a file
        return sys.stdin.readline().strip()
    try:
        return input("question> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def show(outcome: Outcome, respond: Responder) -> None:
    print(strict_json(outcome._asdict()) if respond.config.json else as_text(outcome, respond), flush=True)


def as_text(outcome: Outcome, respond: Responder) -> str:
    """Format an outcome for the terminal: answer, probability and passages. Control characters are escaped."""
    # the probability of an instruction model's sentence says nothing about whether it is right
    probability = "" if respond.reader.instructed else f"probability {outcome.probability:.2f}, "
    basis = escaped(outcome.reason) or f"{probability}score {outcome.score:.2f}"
    lines = [escaped(outcome.answer) or UNANSWERABLE, basis]
    lines += [f"note: {outcome.note}"] if outcome.note else []
    lines += ["", "nearest passages:" if outcome.reason else "passages:"] if outcome.passages else []
    for passage in outcome.passages:
        location = ", ".join(filter(None, (passage["source"], passage["position"], passage["title"])))
        cited = ", cited" if passage["cited"] and not outcome.reason else ""
        lines.append(escaped(f"{passage['rank']}. {location}, score {passage['score']:.2f}{cited}"))
        lines.append(textwrap.fill(excerpt(**passage), COLUMNS, initial_indent="   ", subsequent_indent="   "))
    return "\n".join(lines)


def excerpt(text: str, start: int | None, end: int | None, **others: Any) -> str:
    """Shorten a passage to about SHOWN characters, with the answer in brackets."""
    start, end = start or 0, end or 0
    first = text.rfind(" ", 0, start - SHOWN // 2) + 1 if start > SHOWN // 2 else 0
    last = len(text)
    if last - first > SHOWN:
        last = max(end, text.rfind(" ", first + SHOWN // 2, first + SHOWN), first + SHOWN // 2)
    before, answer, after = (escaped(part) for part in (text[first:start], text[start:end], text[end:last]))
    marked = f"{before}[{answer}]{after}" if answer else before + after
    return "... " * (first > 0) + marked + " ..." * (last < len(text))


# ---- evaluating -------------------------------------------------------------------------------------------------


class LabelledQuestion(NamedTuple):
    """A question with its known answer."""

    question: str
    answer: str  # empty: not in the documents
    source: str  # the document that contains the answer; empty: not known


def read_questions(path: Path) -> list[LabelledQuestion]:
    """Read questions with known answers, JSON Lines. Errors: TinyGPTError that names the first invalid line."""
    example = 'write {"question": "Who is the CFO?", "answer": "Lars Holm"}'
    questions = []
    for number, line in enumerate(read_text(path, "--questions questions.jsonl").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            question = checked_question(entry["question"])
            questions.append(LabelledQuestion(question, entry["answer"], entry.get("source", "")))
            if not isinstance(questions[-1].answer, str) or not isinstance(questions[-1].source, str):
                raise TypeError
        except (TinyGPTError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = getattr(error, "message", "not a question with its answer")
            raise TinyGPTError(f"{path} line {number}: {problem}", example) from None
    if not questions:
        raise TinyGPTError(f"{path}: contains no question", f"{example}, one per line")
    return questions


def evaluate(respond: Callable[[str], Outcome], questions: Sequence[LabelledQuestion]) -> dict[str, Any]:
    """Measure the outcomes on questions with known answers: shares from 0 to 1 (or None) and their 95 % intervals."""
    outcomes = [respond(entry.question) for entry in progress(questions, desc="asking", unit="question")]
    pairs = list(zip(questions, outcomes, strict=True))
    answers = [(normalised(entry.answer), normalised(outcome.candidate)) for entry, outcome in pairs]
    answerable = np.array([bool(entry.answer) for entry in questions])
    contained = answerable & np.array([f" {expected} " in f" {answer} " for expected, answer in answers])
    exact = contained & np.array([expected == answer for expected, answer in answers])
    abstained = np.array([not outcome.answer for outcome in outcomes])
    is_retrieved = [has_source(entry.source, outcome) for entry, outcome in pairs if entry.source]
    best, thresholds = best_thresholds(
        np.array([outcome.probability * bool(outcome.candidate) for outcome in outcomes]),
        np.array([outcome.score for outcome in outcomes]),
        contained,
        answerable,
    )
    results = {
        "questions": len(questions),
        "answerable": int(answerable.sum()),
        "abstentions": int(abstained.sum()),
        "exact_match": share(exact & ~abstained, answerable),
        "contained": share(contained & ~abstained, answerable),
        "retrieval_recall": sum(is_retrieved) / len(is_retrieved) if is_retrieved else None,
        "with_source": len(is_retrieved),
        "abstention_precision": share(abstained & ~answerable, abstained),
        "abstention_recall": share(abstained & ~answerable, ~answerable),
        "right": float(np.where(abstained, ~answerable, contained).mean()),
        "best_right": best,
        "best_thresholds": thresholds,
    }
    return results | intervals(results, cases(results))


def cases(results: dict[str, Any]) -> dict[str, int]:
    """Return the denominator of each share: the number of questions that it is of."""
    n, answerable = results["questions"], results["answerable"]
    counts = dict.fromkeys(("exact_match", "contained"), answerable) | dict.fromkeys(("right", "best_right"), n)
    counts |= {"abstention_precision": results["abstentions"], "abstention_recall": n - answerable}
    return counts | {"retrieval_recall": results["with_source"]}


def has_source(source: str, outcome: Outcome) -> bool:
    """Return whether a passage comes from a document whose path ends with `source`."""
    parts = Path(source).parts
    return any(Path(passage["source"]).parts[-len(parts) :] == parts for passage in outcome.passages)


def share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.sum() / whole.sum()) if whole.any() else None


def best_thresholds(
    probability: np.ndarray, score: np.ndarray, right: np.ndarray, answerable: np.ndarray
) -> tuple[float, dict[str, float]]:
    """Find the thresholds, in hundredths, with the largest share of right outcomes; return the share and thresholds.

    All arrays are (n,): `probability` of the model's answer, 0 if it found none; `score` of the best passage; `right`,
    whether that answer is right; `answerable`, whether the documents have one (if not, to abstain is right). Of equally
    good thresholds, those in the middle are returned.
    """
    steps = np.arange(100) / 100
    gains = np.where(probability > 0, right.astype(int) - ~answerable, 0)  # of answering instead of abstaining
    totals = (probability[:, None] >= steps).T @ (gains[:, None] * (score[:, None] >= steps)) + (~answerable).sum()
    ties = np.argwhere(totals == totals.max())
    i, j = ties[len(ties) // 2]
    return float(totals.max() / len(right)), {"min_probability": float(steps[i]), "min_score": float(steps[j])}


def report(results: dict[str, Any]) -> str:
    """Format an evaluation for the terminal."""
    counts = cases(results)
    flags = " ".join(f"--{name}={value}" for name, value in results["best_thresholds"].items())

    def line(label: str, name: str, description: str) -> str:
        value = "    -" if results[name] is None else percent(results[name], counts[name])
        return f"{label:<18}{value:<25}{description}"

    return "\n".join(
        [
            f"{results['questions']:,} questions, {results['answerable']:,} of them with an answer in the documents",
            INTERVALS,
            line("exact match", "exact_match", "of the questions with an answer"),
            line("answer contained", "contained", "the model's answer contains the right one"),
            line("retrieval recall", "retrieval_recall", "the right document is found"),
            line("abstention", "abstention_precision", "precision: share of the abstentions that are right"),
            line("", "abstention_recall", "recall: share of the questions without an answer"),
            line("right outcomes", "right", "answer contained, or abstention where there is no answer"),
            line("best thresholds", "best_right", f"right outcomes with {flags}"),
        ]
    )
