"""Invented companies: their facts, documents about them, questions, and what an answer to one is (`tinygpt lab facts`).

Each company has a Markdown document that states its facts. Some also have an older document, in which one fact has
another value: the documents conflict, and the newer one is right. Questions have wordings that neither the closed-book
models nor the tiny reader (`tinygpt prepare reader`) have seen in training.

    world = make(seed=1, companies=200)
    world.documents()                        # {"norvik.md": "# Norvik ..."}
    world.questions[0]                       # Question("Who heads Norvik?", "norvik", "chief executive", "Ana Torres")
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tinygpt.api import reader

FACTS = 5  # of each company
ABSENT = 1  # questions about each company whose answer no document contains
WORDINGS = 6  # questions about each fact that train a closed-book model
SAMPLE = {"changed": 0.25, "conflict": 0.1, "absent": 0.2}  # shares of the sample; the rest are other facts
CONFLICTS = 0.1  # share of the companies that also have an older document
DEVICES = {"con", "nul", "prn", "aux"}  # Windows has no files of these names
DATE = "3 March 2026"
OLD_DATE = "5 March 2024"


class Question(NamedTuple):
    text: str
    company: str  # key of the company
    relation: str
    answer: str  # empty: not in the documents
    kind: str  # fact, conflict (an older document says something else), changed, or absent
    stale: str = ""  # the answer before the facts changed, or that of the older document

    @property
    def fact(self) -> tuple[str, str]:
        return self.company, self.relation


class Company(NamedTuple):
    name: str
    facts: dict[str, str]  # relation: value
    old: dict[str, str]  # what an older document states, may be empty
    seed: int  # of the wordings: a changed fact is stated in the same words


class World(NamedTuple):
    companies: dict[str, Company]  # by key, which is the name in lower case without Ltd, Group, ...
    questions: list[Question]

    def documents(self) -> dict[str, str]:
        """Return the documents, by file name."""
        files = {}
        for key, company in self.companies.items():
            files[f"{key}.md"] = document(company, company.facts, DATE)
            if company.old:
                files[f"{key}-2024.md"] = document(company, company.old, OLD_DATE)
        return files


def make(seed: int, companies: int) -> World:
    """Invent companies, their facts, and one question per fact and one unanswerable question per company."""
    rng = reader.Rng(f"world {seed}")
    names: dict[str, str] = {}
    while len(names) < companies:
        name = reader.company(rng)
        if (key := reader.short(name).lower()) not in DEVICES:
            names.setdefault(key, name)
    invented = {}
    questions = []
    for key, name in names.items():
        relations = rng.sample(list(reader.RELATIONS), FACTS + ABSENT)
        stated = relations[:FACTS]
        absent = relations[FACTS:]
        facts = {relation: reader.RELATIONS[relation].value(rng) for relation in stated}
        old = {}
        if rng.random() < CONFLICTS:
            relation = rng.choice(stated)
            old = {relation: other_value(rng, relation, facts[relation])}
        invented[key] = Company(name, facts, old, rng.randrange(1 << 30))
        for relation in [*stated, *absent]:
            text = reader.question(rng, relation, rng.choice((name, reader.short(name))), new=True)
            kind = "conflict" if relation in old else "fact"
            if relation in absent:
                kind = "absent"
            questions.append(Question(text, key, relation, facts.get(relation, ""), kind, old.get(relation, "")))
    return World(invented, questions)


def other_value(rng: reader.Rng, relation: str, value: str) -> str:
    """Draw a value that differs from the given one; neither contains the other."""
    given = f" {reader.normalised(value)} "
    while True:
        drawn = reader.RELATIONS[relation].value(rng)
        other = f" {reader.normalised(drawn)} "
        if given not in other and other not in given:
            return drawn


def changed(world: World, seed: int, share: float) -> World:
    """Give a share of the facts new values. The old values become the questions' stale answers.

    Facts that an older document contradicts stay as they are.
    """
    rng = reader.Rng(f"change {seed}")
    known = [question for question in world.questions if question.answer]
    free = [question for question in known if question.kind != "conflict"]
    chosen = rng.sample(free, round(share * len(known)))
    new = {question.fact: other_value(rng, question.relation, question.answer) for question in chosen}
    companies = {}
    questions = []
    for key, company in world.companies.items():
        facts = {relation: new.get((key, relation), value) for relation, value in company.facts.items()}
        companies[key] = company._replace(facts=facts)
    for question in world.questions:
        update = (
            {"answer": new[question.fact], "kind": "changed", "stale": question.answer} if question.fact in new else {}
        )
        questions.append(question._replace(**update))
    return World(companies, questions)


def sample(questions: Sequence[Question], size: int) -> list[int]:
    """Draw the indices of `size` questions, of each kind the share in SAMPLE, or all if there are fewer."""
    rng = reader.Rng("sample")
    chosen = list[int]()
    for kind in [*SAMPLE, "fact"]:
        count = round(size * SAMPLE[kind]) if kind in SAMPLE else size - len(chosen)
        own = [number for number, question in enumerate(questions) if question.kind == kind]
        chosen += rng.sample(own, min(count, len(own)))
    return sorted(chosen)


def outcome(question: Question, text: str) -> str:
    """Classify a reply: right, stale (the value before the change, or of the older document), wrong, or abstained."""
    padded = f" {reader.normalised(text)} "
    if not text:
        return "abstained"
    if question.answer and f" {reader.normalised(question.answer)} " in padded:
        return "right"
    return "stale" if question.stale and f" {reader.normalised(question.stale)} " in padded else "wrong"


def document(company: Company, facts: dict[str, str], date: str) -> str:
    """State the facts in Markdown, a section for each kind."""
    rng = reader.Rng(company.seed)
    parts = [f"# {company.name}, report of {date}"]
    for section, relations in reader.SECTIONS.items():
        own = [reader.Fact(relation, facts[relation]) for relation in relations if relation in facts]
        if own:
            parts.append(f"## {section}\n\n" + " ".join(sentences(rng, own, company.name)))
    return "\n\n".join(parts) + "\n"


def sentences(rng: reader.Rng, facts: list[reader.Fact], name: str) -> Iterator[str]:
    """Yield a sentence for each fact, the first of which names the company, and sometimes a filler sentence."""
    rng.shuffle(facts)
    for index, fact in enumerate(facts):
        yield reader.statement(rng, fact, name if index == 0 or rng.random() < 0.4 else "")
    if rng.random() < 0.5:
        yield rng.choice(reader.FILLERS)


def pairs(world: World, seed: int, only: set[tuple[str, str]] | None = None) -> list[dict[str, str]]:
    """Make prompts and responses that teach all facts, or `only` some: WORDINGS for each, as no question is worded.

    Each company has one unanswerable relation, which no question asks for: its response is reader.UNANSWERABLE.
    """
    rng = reader.Rng(f"pairs {seed}")
    questioned = {question.fact for question in world.questions}
    examples = []
    for key, company in world.companies.items():
        absent = next(relation for relation in reader.RELATIONS if (key, relation) not in questioned)
        for relation, value in [*company.facts.items(), (absent, reader.UNANSWERABLE)]:
            for _ in range(WORDINGS if only is None or (key, relation) in only else 0):
                name = rng.choice((company.name, reader.short(company.name)))
                examples.append({"prompt": reader.question(rng, relation, name), "response": value})
    rng.shuffle(examples)
    return examples
