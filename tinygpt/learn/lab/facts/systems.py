"""The systems of `tinygpt lab facts`, and how their answers are measured.

A closed-book system is a model that has the facts in its weights. A retrieval system finds passages, and a model reads
them. Each is a function from a question to a Reply.
"""

import functools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.configs.parse import parse
from tinygpt.base.configs.use import AskConfig
from tinygpt.base.terminal import progress
from tinygpt.learn.lab.facts.world import Question
from tinygpt.use.ask.answer import Reader, load_reader, occurrence, unanswerable
from tinygpt.use.ask.search import normalised, search, terms
from tinygpt.use.ask.store import Index, Passage

K1 = 1.2  # of SQLite's BM25
MIN_SCORE, MIN_PROBABILITY = 0.12, 0.3  # of the best passage and of the response; below, a reader abstains


class Reply(NamedTuple):
    text: str  # empty: the system abstains
    probability: float | None  # of the answer, as the model sees it; None for a system without a model


System = Callable[[Question], Reply]


def majority(questions: Sequence[Question]) -> System:
    """Make the majority baseline: the most frequent answer to questions about the same relation."""
    counts = Counter((question.relation, question.answer) for question in questions if question.answer).most_common()
    best = {relation: answer for (relation, answer), _ in reversed(counts)}  # the most frequent comes last
    return lambda question: Reply(best.get(question.relation, ""), None)  # a relation of no company: it abstains


def closed_book(ckpt: str) -> System:
    """Load a model that answers from its weights alone."""
    reader = load_reader(parse(AskConfig, [f"--ckpt={ckpt}", "--device=cpu"]))

    def ask(question: Question) -> Reply:
        prompt = reader.tokenizer.encode_prompt(question.text, skip_unknown=True).astype(np.int64)
        ids, probability = reader.respond(prompt)
        text = reader.tokenizer.decode(ids).strip()
        return Reply("" if unanswerable(text) else text, probability)

    return ask


def retrieval(reader: Reader, index: Index, question: Question) -> Reply:
    """Answer from the three passages that the search finds; abstain if the best one has a low score."""
    hits = search(index, question.text, 3)
    if not hits or max(relevance(index, question.text, hits)) < MIN_SCORE:
        return Reply("", 0.0)
    return given(reader, question, hits)


def given_the_right_passage(reader: Reader, index: Index, question: Question) -> Reply:
    """Answer from the passage that contains the answer: retrieval with a perfect search."""
    hits = search(index, question.text, 100)
    company_hits = (hit for hit in hits if Path(hit.source).stem == question.company)
    with_answer = [hit for hit in company_hits if occurrence(question.answer, hit.text)]
    return given(reader, question, with_answer[:1])


def given(reader: Reader, question: Question, hits: Sequence[Passage]) -> Reply:
    """Answer from passages; abstain if there is none, or if the response is improbable.

    The answer of a model of the tiny reader's kind must stand in a passage. An instruction model writes
    sentences, whose probability hardly says whether they are right.
    """
    if not hits:
        return Reply("", 0.0)
    answer = reader.quoted(question.text, hits) if reader.copies else reader.read(question.text, hits)
    sure = reader.instructed or answer.probability >= MIN_PROBABILITY
    return Reply(answer.text if sure else "", answer.probability)


def relevance(index: Index, question: str, hits: Sequence[Passage]) -> list[float]:
    """Score each passage from 0 to 1: its BM25 as a share of an upper bound for the question.

    BM25 is a sum over the question's words, to which each adds less than its inverse document frequency times k1 + 1.
    So the BM25 of different questions cannot be compared, but these shares can. The bound adds 1 inside the logarithm,
    as usual; SQLite does not, and counts a word that half of the passages contain as almost nothing.
    """
    n = len(index)
    frequencies = [index.frequency(term) for term in terms(question)]
    bound = (K1 + 1) * sum(math.log(1 + (n - df + 0.5) / (df + 0.5)) for df in frequencies)
    return [hit.bm25 / bound if bound else 0.0 for hit in hits]


def best_passage(index: Index, question: Question) -> Reply:
    """Answer with the complete best passage: the search alone."""
    return Reply(" ".join(hit.text for hit in search(index, question.text, 1)), None)


CONNECTIONS = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"}


@functools.cache  # once: an audit hook cannot be removed
def network_attempts() -> list[str]:
    """Return a list that grows with every attempt of this process to use the network."""
    attempts: list[str] = []
    sys.addaudithook(lambda event, _: attempts.append(event) if event in CONNECTIONS else None)
    return attempts


def outcome(question: Question, text: str) -> str:
    """Classify a reply: right, stale (the value before the change, or of the older document), wrong, or abstained."""
    padded = f" {normalised(text)} "
    if not text:
        return "abstained"
    if question.answer and f" {normalised(question.answer)} " in padded:
        return "right"
    return "stale" if question.stale and f" {normalised(question.stale)} " in padded else "wrong"


def measured(system: System, questions: Sequence[Question], numbers: Sequence[int]) -> dict[str, Any]:
    """Ask the questions with these indices; return answers, times and connections, as plain values."""
    attempts, began = len(network_attempts()), time.monotonic()
    replies = [system(questions[number]) for number in progress(numbers, desc="asking", unit="question")]
    return {
        "questions": list(numbers),
        "answers": [reply.text for reply in replies],
        "probabilities": [reply.probability for reply in replies],
        "seconds per question": (time.monotonic() - began) / len(numbers),
        "connections": len(network_attempts()) - attempts,
    }
