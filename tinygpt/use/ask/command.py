"""`tinygpt ask`: answer a question with the sentence of your documents that answers it, quoted, with its place.

The index finds passages, and rank.py ranks their sentences, table rows, list items and headings. No word is generated.
A model is an addition (`--ckpt`): it reads the passages of the best sentences (RAG, Lewis et al. 2020), and its answer
is shown only if it is a quotation from one of them. `--questions` measures this on questions with known answers.

Sources: https://arxiv.org/abs/2005.11401; answers are compared as in SQuAD, https://arxiv.org/abs/1606.05250.

    tinygpt ask "How long is the notice period?" notes/
    tinygpt ask - notes/ --questions val.jsonl
"""

import io
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.configs.use import AskConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import read_text, strict_json
from tinygpt.base.intervals import INTERVALS, intervals, percent
from tinygpt.base.terminal import counted, escaped, one_line, progress
from tinygpt.data.tasks.reader import normalised
from tinygpt.data.text_files import json_lines, text_in
from tinygpt.data.tokenizer import lone_surrogate
from tinygpt.use.ask.index import index_of
from tinygpt.use.ask.questions import answer_in
from tinygpt.use.ask.rank import Ranking, rank
from tinygpt.use.ask.sentences import unquoted
from tinygpt.use.ask.store import Index, open_index

SHOWN = 3  # sentences: the answer and two runners-up
COLUMNS = 100  # width of the terminal
LONGEST = 10_000  # characters of a question: a second of ranking, which other clients of the server wait for
ABSTENTION = "probably not in the documents, or in other words"


class Outcome(NamedTuple):
    """The answer to a question, and the sentences that were compared."""

    question: str
    answer: str  # the quoted sentence; empty: probably not in the documents
    marked: str  # the number, date, name or place in it that the question asks for; may be empty
    probability: float  # that the first sentence answers the question
    sentences: tuple[dict[str, Any], ...]  # the best, with source, position, title, text, start, end, passage
    model: str = ""  # the model's answer, a quotation from a passage; empty without a model, or if it is none
    note: str = ""  # which passages the model did not read completely


def ask(config: AskConfig) -> int:
    """Answer a question or the lines of standard input, or evaluate a file of questions. Returns the exit status."""
    question = "" if config.question == AskConfig.question else checked_question(config.question)
    if os.path.exists(question):
        commands = (suggest.command("ask", first, question, *config.documents) for first in ("your question", "-"))
        raise TinyGPTError(f"{question}: is a file or folder, and a question comes first", ", or ".join(commands))
    if question and config.questions:
        raise TinyGPTError("a question and --questions are two tasks", "give one of them")
    questions = read_questions(Path(config.questions)) if config.questions else []
    reader = load_reader(config)
    with open_index(index_of(config)) as index:
        respond = Responder(config, index, reader)
        if questions:
            results = evaluate(respond, questions)
            print(strict_json(results) if config.json else report(results))
        elif question:
            show(respond(question), config)
        else:
            return prompt_loop(respond)
    return 0


@dataclass
class Responder:
    """An index, and a model if there is one, loaded once, that answer questions."""

    config: AskConfig
    index: Index
    reader: Any  # a Reader, or None

    def __call__(self, question: str) -> Outcome:
        """Answer a question. Errors: TinyGPTError as in `search` and `Reader.quoted`."""
        ranking = rank(self.index, question)
        found = tuple(quotation(question, ranking, number) for number in range(min(SHOWN, len(ranking.found))))
        if ranking.probability < self.config.min_probability or not found:
            return Outcome(question, "", "", ranking.probability, found)
        text, start, end = (found[0][name] for name in ("text", "start", "end"))
        outcome = Outcome(question, text, text[start:end] if end else "", ranking.probability, found)
        passages = list(dict.fromkeys(passage for _, passage in ranking.found))[: self.config.passages]
        read = self.reader.quoted(question, passages) if self.reader else None
        return outcome._replace(model=read.text, note=read.note) if read else outcome


def load_reader(config: AskConfig) -> Any:
    """Load the model of --ckpt; None without it. Errors: TinyGPTError."""
    if not config.ckpt:
        return None
    from tinygpt.use.ask import answer  # not at once: torch takes a second to import

    return answer.load_reader(config)


def quotation(question: str, ranking: Ranking, number: int) -> dict[str, Any]:
    """Describe a ranked sentence; start and end are the place of the part that answers, None if that is not clear."""
    unit, passage = ranking.found[number]
    start, end = (ranking.kind and answer_in(unit.text, question, ranking.kind)) or (None, None)
    return {
        "rank": number + 1,
        "source": passage.source,
        "position": unit.position,
        "title": passage.title,
        "text": unit.text,
        "start": start,
        "end": end,
        "score": float(ranking.scores[number]),
        "columns": unit.header,
        "passage": unquoted(passage.text),
    }


# ---- asking -----------------------------------------------------------------------------------------------------


def checked_question(question: str) -> str:
    """Return the question on one line. Errors: TinyGPTError if it is empty, too long or not valid Unicode."""
    if not question.strip():
        raise TinyGPTError("the question is empty", 'tinygpt ask "Who is the CFO of Norvik?"')
    if len(question) > LONGEST:
        message = f"the question has {len(question):,} characters, more than the limit of {LONGEST:,}"
        raise TinyGPTError(message, "ask about one thing, in one sentence")
    if surrogate := lone_surrogate(question):
        raise TinyGPTError(f"the question contains a lone surrogate ({surrogate})", "use UTF-8 text")
    return one_line(question)


def prompt_loop(respond: Responder) -> int:
    """Answer each line of standard input; return the exit status of the last failure, or 0.

    At a prompt, an empty line ends it; in a file or a pipe, empty lines are skipped.
    """
    # else a prompt would be written into a file
    status = 0
    is_typed = sys.stdin.isatty() and sys.stdout.isatty()
    if not sys.stdin.isatty() and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")  # refused by `checked_question`
    for line in iter(typed_line, "") if is_typed else filter(str.strip, sys.stdin):
        try:
            show(respond(checked_question(line)), respond.config)
            if not respond.config.json:
                print(flush=True)
        except TinyGPTError as error:
            terminal.print_error(error.text())
            status = error.status
    return status


def typed_line() -> str:
    """Read a line at the prompt and strip it; empty at the end of the input, and after Ctrl-C."""
    try:
        return input("question> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def show(outcome: Outcome, config: AskConfig) -> None:
    print(strict_json(outcome._asdict()) if config.json else as_text(outcome), flush=True)


def as_text(outcome: Outcome) -> str:
    """Format an outcome for the terminal: the quoted sentence and two others. Control characters are escaped."""
    if not outcome.sentences:
        return f"{ABSTENTION}: no passage contains a word of the question"
    first, *others = map(quoted, outcome.sentences)
    first = first if outcome.answer else f"{ABSTENTION}; the closest sentence is\n{first}"
    model = [f"model: {escaped(outcome.model)}"] if outcome.model else []
    model += [f"note: {outcome.note}"] if outcome.note else []
    return "\n".join([first, *model, *(["", "other candidates:"] if others else []), *others])


def quoted(sentence: dict[str, Any]) -> str:
    """Format a sentence and its place. The part that answers is between asterisks, unless the text has some itself."""
    text = sentence["text"]
    start, end = (0, 0) if "*" in text else (sentence["start"] or 0, sentence["end"] or 0)
    before, part, after = (escaped(piece) for piece in (text[:start], text[start:end], text[end:]))
    marked = f'"{before}**{part}**{after}"' if part else f'"{before}{after}"'
    columns = f"columns: {sentence['columns']}" if sentence["columns"] else ""
    place = escaped(", ".join(filter(None, (sentence["source"], sentence["position"], sentence["title"], columns))))
    return f"{textwrap.fill(marked, COLUMNS, break_on_hyphens=False)}\n   {place}"


# ---- evaluating -------------------------------------------------------------------------------------------------


class LabelledQuestion(NamedTuple):
    """A question with its known answer."""

    question: str
    answer: str  # empty: not in the documents


def read_questions(path: Path) -> list[LabelledQuestion]:
    """Read questions with known answers, JSON Lines. Errors: TinyGPTError that names the first invalid line."""
    example = 'write {"question": "Who is the CFO?", "answer": "Lars Holm"}'
    questions = []
    for number, entry in json_lines(read_text(path, "--questions questions.jsonl").split("\n")):
        try:
            answer = text_in(entry, "answer")
            questions.append(LabelledQuestion(checked_question(text_in(entry, "question")), answer))
        except (TinyGPTError, ValueError) as error:
            problem = getattr(error, "message", "not a question with its answer")
            raise TinyGPTError(f"{path} line {number}: {problem}", example) from None
    if not questions:
        raise TinyGPTError(f"{path}: contains no question", f"{example}, one per line")
    return questions


def evaluate(respond: Callable[[str], Outcome], questions: Sequence[LabelledQuestion]) -> dict[str, Any]:
    """Measure the outcomes on questions with known answers: shares from 0 to 1 (or None) and their 95% intervals."""
    outcomes = []
    for entry in progress(questions, desc="asking", unit="question"):
        try:
            outcomes.append(respond(entry.question))
        except TinyGPTError as error:  # a model cannot read it
            raise TinyGPTError(f"{terminal.cut(escaped(entry.question), 60)}: {error.message}", error.hint) from None
    pairs = list(zip(questions, outcomes, strict=True))
    right = [[holds(entry, sentence) for sentence in outcome.sentences] for entry, outcome in pairs]
    answerable = np.array([bool(entry.answer) for entry in questions])
    abstained = np.array([not outcome.answer for outcome in outcomes])
    first = np.array([any(found[:1]) for found in right])
    failures = []
    for (entry, outcome), found in zip(pairs, right, strict=True):
        if bool(entry.answer) != bool(outcome.answer) or (entry.answer and not any(found[:1])):
            best = outcome.sentences[0]["text"] if outcome.sentences else ""
            place = found.index(True) + 1 if any(found) else 0  # of the first sentence with the answer
            failures.append(entry._asdict() | {"quoted": outcome.answer, "closest": best, "place": place})
    results = {
        "questions": len(questions),
        "answerable": int(answerable.sum()),
        "in_first": share(first & ~abstained, answerable),
        "in_three": share(np.array([any(found) for found in right]) & ~abstained, answerable),
        "wrong": share(~first & ~abstained, answerable),
        "abstained": share(abstained, answerable),
        "abstained_unanswerable": share(abstained, ~answerable),
        "right": float(np.where(answerable, first & ~abstained, abstained).mean()),
        "failures": failures,
    }
    return results | intervals(results, cases(results))


def holds(entry: LabelledQuestion, sentence: dict[str, Any]) -> bool:
    """Return whether a sentence contains the known answer."""
    return bool(entry.answer) and f" {normalised(entry.answer)} " in f" {normalised(sentence['text'])} "


def cases(results: dict[str, Any]) -> dict[str, int]:
    """Return the denominator of each share: the number of questions that it is of."""
    n = results["questions"]
    answerable = results["answerable"]
    counts = dict.fromkeys(("in_first", "in_three", "wrong", "abstained"), answerable)
    return counts | {"abstained_unanswerable": n - answerable, "right": n}


def share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float((part & whole).sum() / whole.sum()) if whole.any() else None


def report(results: dict[str, Any]) -> str:
    """Format an evaluation for the terminal: what failed, then the shares."""
    counts = cases(results)

    def line(label: str, name: str, description: str) -> str:
        value = "    -" if results[name] is None else percent(results[name], counts[name])
        return f"{label:<18}{value:<25}{description}"

    def failure(one: dict[str, Any]) -> str:
        place = f" (candidate {one['place']})" if one["place"] else ""
        said = f'"{one["quoted"]}"' if one["quoted"] else f'{ABSTENTION}; "{one["closest"]}"'
        lines = f"failed: {one['question']}", f"  wanted: {one['answer'] or 'none'}{place}", f"  answer: {said}"
        return "\n".join(map(escaped, lines))

    return "\n".join(
        [
            *map(failure, results["failures"]),
            f"{counted(results['questions'], 'question')}, {results['answerable']:,} with an answer in the documents",
            INTERVALS,
            line("in the sentence", "in_first", "of the questions with an answer: the quoted sentence contains it"),
            line("among three", "in_three", "that sentence or one of the two others contains it"),
            line("wrong", "wrong", "another sentence is quoted as the answer"),
            line("abstained", "abstained", "although the documents have an answer"),
            line("", "abstained_unanswerable", "of the questions without an answer"),
            line("right outcomes", "right", "the sentence contains the answer, or abstention where there is none"),
        ]
    )
