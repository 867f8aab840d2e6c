"""The systems of `tinygpt lab facts`, and how their answers are measured.

A closed-book system is a model that has the facts in its weights. A retrieval system finds passages, and a model reads
them. Each is a function from a question to a Reply.
"""

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt import api
from tinygpt.api import reader
from tinygpt.base.terminal import progress
from tinygpt.learn.lab.facts import companies

# of the best passage and of the response; below, a reader abstains
MIN_SCORE = 0.12
MIN_PROBABILITY = 0.3
LONGEST = 96  # tokens of an answer


class Reply(NamedTuple):
    text: str  # empty: the system abstains
    probability: float | None  # of the answer, as the model sees it; None for a system without a model


System = Callable[[companies.Question], Reply]


def majority(questions: Sequence[companies.Question]) -> System:
    """Make the majority baseline: the most frequent answer to questions about the same relation."""
    counts = Counter((question.relation, question.answer) for question in questions if question.answer).most_common()
    best = {relation: answer for (relation, answer), _ in reversed(counts)}  # the most frequent comes last
    return lambda question: Reply(best.get(question.relation, ""), None)  # a relation of no company: it abstains


def closed_book(ckpt: Path) -> System:
    """Load a model that answers from its weights alone."""
    model = api.load(ckpt, device="cpu")
    longest = min(LONGEST, model.model.config.block_size // 3)

    def ask(question: companies.Question) -> Reply:
        (text,), (probability,) = model.responses([question.text], longest)
        return Reply("" if reader.unanswerable(text) else text.strip(), float(probability))

    return ask


def retrieval(model: api.LoadedModel, documents: api.Documents, question: companies.Question) -> Reply:
    """Answer from the three passages that the search finds; abstain if the best one has a low score."""
    hits = documents.search(question.text, 3)
    if not hits or max(hit.relevance for hit in hits) < MIN_SCORE:
        return Reply("", 0.0)
    return given(model, question, hits)


def given_the_right_passage(model: api.LoadedModel, documents: api.Documents, question: companies.Question) -> Reply:
    """Answer from the passage that contains the answer: retrieval with a perfect search."""
    hits = documents.search(question.text, 100)
    company_hits = (hit for hit in hits if Path(hit.source).stem == question.company)
    return given(model, question, [hit for hit in company_hits if companies.outcome(question, hit.text) == "right"][:1])


def given(model: api.LoadedModel, question: companies.Question, hits: Sequence[Any]) -> Reply:
    """Answer from passages; abstain if there is none, or if the response is improbable.

    The answer of a model of the tiny reader's kind must stand in a passage. An instruction model writes
    sentences, whose probability hardly says whether they are right.
    """
    if not hits:
        return Reply("", 0.0)
    answer = model.read(question.text, hits)
    chats = bool(getattr(model.tokenizer, "chat_template", ""))
    instructed = chats and not str(model.config.get("dataset", "")).startswith("reader")
    sure = instructed or answer.probability >= MIN_PROBABILITY
    return Reply(answer.text if sure else "", answer.probability)


def best_passage(documents: api.Documents, question: companies.Question) -> Reply:
    """Answer with the complete best passage: the search alone."""
    return Reply(" ".join(hit.text for hit in documents.search(question.text, 1)), None)


CONNECTIONS = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"}


@functools.cache  # once: an audit hook cannot be removed
def network_attempts() -> list[str]:
    """Return a list that grows with every attempt of this process to use the network."""
    attempts: list[str] = []
    sys.addaudithook(lambda event, _: attempts.append(event) if event in CONNECTIONS else None)
    return attempts


def measured(system: System, questions: Sequence[companies.Question], numbers: Sequence[int]) -> dict[str, Any]:
    """Ask the questions with these indices; return answers, times and connections, as plain values."""
    attempts = len(network_attempts())
    began = time.monotonic()
    replies = [system(questions[number]) for number in progress(numbers, desc="asking", unit="question")]
    return {
        "questions": list(numbers),
        "answers": [reply.text for reply in replies],
        "probabilities": [reply.probability for reply in replies],
        "seconds per question": (time.monotonic() - began) / len(numbers),
        "connections": len(network_attempts()) - attempts,
    }
