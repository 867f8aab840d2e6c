"""The task `reader`: a question and passages -> what is asked, a judgement of each passage, the answer copied from one.

A passage states facts about an invented company, and the question asks for one of them. Names and values are drawn
afresh for every example, so a model has to copy them. The question comes first, because attention is causal. A response
repeats the relation and the name, so that attention to earlier occurrences of the same letters (induction heads, Olsson
et al. 2022) finds the passages; then it judges one passage after the other.

`reader.txt` contains the wordings. val has those of train with other names and values; test has new wordings for the
question, and in half of the examples also for the statement.

    make(1337)["train"][0]             # -> (reader_prompt(question, passages), "chair of Norvik [1] no [2] Ana Torres")
    documents, questions = library(7)  # Markdown documents and questions, to try an index and a reader with
"""

import functools
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tinygpt.base.terminal import one_line, progress
from tinygpt.data.tasks.generate import Pair, digits, read_wordings, word_lists

UNANSWERABLE = "not in the documents"
NO = "no"  # what a response says of a passage that does not answer the question
UNANSWERABLE_SHARE = 0.4
SIZES = {
    "reader": {"train": 240_000, "val": 1000, "test": 1000},
    "reader_long": {"train": 160_000, "val": 1000, "test": 1000},
}
DATASETS = tuple(SIZES)  # with the format of prompts and responses that the reader knows


def reader_prompt(question: str, passages: Sequence[str]) -> str:
    """Write the prompt of a reader: the question on the first line, then each passage on a line, after its number."""
    numbered = (f"[{number}] {passage}" for number, passage in enumerate(passages, start=1))
    return "\n".join(one_line(line) for line in (question, *numbered))


def reader_response(subject: str, answers: Sequence[str]) -> str:
    """Write the response of a reader: its subject, then a judgement of each passage up to the one with the answer.

    subject: the relation and the name, `chair of Norvik`. answers: of each passage, empty if it has none.
    """
    response = subject
    for number, answer in enumerate(answers, start=1):
        response += f" [{number}] {answer or NO}"
        if answer:
            return response
    return f"{response}: {UNANSWERABLE}"


def cited_answer(response: str) -> tuple[int, str]:
    """Find the passage with the answer in a reader's response: its number, 0 if there is none, and the answer alone."""
    match = re.search(rf"(?:\[\d{{1,3}}\] {NO} )*\[(\d{{1,3}})\] ?(.*)", response, re.DOTALL)
    if not match or response.endswith(f": {UNANSWERABLE}"):
        return 0, response
    return int(match[1]), "" if match[2] == NO else match[2]


def normalised(text: str) -> str:
    """Normalise an answer as SQuAD does (Rajpurkar et al. 2016): no capitals, punctuation, articles or extra spaces."""
    letters = "".join(c for c in text.casefold() if unicodedata.category(c)[0] not in "PS")
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the"))


def unanswerable(text: str) -> bool:
    """Return whether a response is empty or says that the question is unanswerable."""
    return not text or normalised(UNANSWERABLE) in normalised(text)


def abstention(prompt: str, response: str) -> str:
    """Make the response to the same prompt that judges each passage as `no`."""
    subject = response.partition(" [")[0]
    return reader_response(subject, [""] * prompt.count("\n"))


# ---- names and values -------------------------------------------------------------------------------------------

Rng = random.Random
_PARTS = word_lists("reader: parts of names and values")


def company(rng: Rng) -> str:
    if rng.random() < 0.08:
        name = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(3))
    else:
        name = _word(rng, rng.choice((1, 2, 2)))
    return f"{name} {rng.choice(_PARTS['form'])}" if rng.random() < 0.4 else name


def short(company: str) -> str:
    """Return the company's name without Ltd, Group, ..."""
    return company.partition(" ")[0]


def person(rng: Rng) -> str:
    first = rng.choice(_PARTS["first"]) if rng.random() < 0.7 else _word(rng, 2)
    middle = f" {rng.choice('ABCDEFGHJKLMNPRSTW')}." if rng.random() < 0.1 else ""
    return f"{first}{middle} {_word(rng, rng.choice((1, 2)))}"


def place(rng: Rng) -> str:
    before = rng.choice(("", "", "", "", "New ", "Port ", "San ", "East ", "Lake "))
    return before + _word(rng, 2) + rng.choice(("", "", "", "", "ville", "burg", "ton", "field"))


def money(rng: Rng) -> str:
    currency = rng.choice(("$", "$", "$", "EUR ", "USD ", "£", "€", "CHF "))
    if rng.random() < 0.4:
        return currency + number(rng, rng.choice(("9,999", "99,000", "999,999")))
    amount = number(rng, rng.choice(("9", "99", "999", "9.9", "99.9", "9.99")))
    return currency + amount + rng.choice((" million", " million", " billion", "m"))


def date(rng: Rng) -> str:
    day = rng.randrange(1, 29)
    month = rng.choice(_PARTS["month"])
    return rng.choice((f"{day} {month}", f"{month} {day}", f"{day} {month} {rng.randrange(2019, 2030)}"))


def goods(rng: Rng) -> str:
    style = f"{rng.choice(_PARTS['style'])} " if rng.random() < 0.7 else ""
    return style + rng.choice(_PARTS["goods"])


def number(rng: Rng, pattern: str) -> str:
    """Replace the nines of the pattern by random digits, the first of which is not 0."""
    drawn = digits(rng, pattern)
    return f"{rng.randrange(1, 10)}{drawn[1:]}" if pattern[0] == "9" else drawn


def _word(rng: Rng, syllables: int) -> str:
    """Invent a word with a capital."""
    parts = [rng.choice(_PARTS["onset"]) + rng.choice(_PARTS["vowel"]) for _ in range(syllables)]
    return ("".join(parts) + (rng.choice(_PARTS["coda"]) if rng.random() < 0.6 else "")).capitalize()


# ---- facts about a company -------------------------------------------------------------------------------------


class Relation(NamedTuple):
    """A kind of fact about a company: how to draw its value, and the wordings of statements (+) and questions (?)."""

    value: Callable[[Rng], str]
    wordings: dict[str, list[str]]  # "+" and "?" for all splits, "+!" and "?!" for test only


VALUES: dict[str, Callable[[Rng], str]] = {
    **{draw.__name__: draw for draw in (company, person, place, money, date, goods)},
    "year": lambda rng: str(rng.randrange(1850, 2027)),
    "count": lambda rng: number(rng, rng.choice(("99", "999", "999", "9,999", "99,999", "9,900"))),
    "cents": lambda rng: rng.choice(("$", "$", "EUR ", "£")) + number(rng, rng.choice(("9.99", "0.99", "9.9"))),
    "percent": lambda rng: number(rng, rng.choice(("9", "99", "9.9", "9.99"))) + rng.choice(("%", " %", " percent")),
}
RELATIONS = {name: Relation(VALUES[value], wordings) for name, (value, wordings) in read_wordings("reader.txt").items()}
FILLERS = RELATIONS.pop("filler").wordings["+"]  # sentences that no question asks about
SECTIONS = {  # of a document, with their relations
    "Overview": ("founding year", "headquarters", "product", "owner", "employees"),
    "People": ("chief executive", "finance chief", "chair", "auditor"),
    "Figures": ("revenue", "profit", "growth", "dividend"),
    "Calendar": ("meeting", "results"),
}


class Fact(NamedTuple):
    relation: str
    value: str


def statement(rng: Rng, fact: Fact, name: str, new: bool = False) -> str:
    """State a fact about a company; without a name, call it "it", "the company" or "the firm"."""
    sentence = phrase(rng, RELATIONS[fact.relation].wordings["+!" if new else "+"])
    if name:
        sentence = sentence.replace("@", name)
    elif sentence.startswith("@") and rng.random() < 0.6:
        sentence = re.sub("^@('s)?", lambda match: "Its" if match[1] else "It", sentence)
    else:
        sentence = sentence.replace("@", rng.choice(("the company", "the company", "the firm")))
    sentence = sentence.replace("~", fact.value)
    return sentence[0].upper() + sentence[1:]


def question(rng: Rng, relation: str, name: str, new: bool = False) -> str:
    return phrase(rng, RELATIONS[relation].wordings["?!" if new else "?"]).replace("@", name)


def phrase(rng: Rng, wordings: Sequence[str]) -> str:
    """Draw a wording, and one alternative of each (a|b) in it."""
    return re.sub(r"\(([^)]*)\)", lambda match: rng.choice(match[1].split("|")), rng.choice(wordings))


# ---- examples ---------------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """How long an example is, and what occurs in it. Numbers are drawn from the tuples."""

    longest: int = 254  # characters of prompt and response; with three special tokens and the shift: a context of 256
    others: tuple[int, ...] = (0, 1, 1, 1, 1, 2)  # passages about other companies
    repeats: tuple[int, ...] = (0, 0, 0, 1)  # further passages about the company that is asked about
    more: tuple[int, ...] = (0, 0, 0, 1)  # facts in a passage besides the kind that is asked for; at least one in all
    new_question: bool = False
    new_statement: bool = False


RECIPES = {
    "reader": Recipe(),
    "reader_long": Recipe(254 + 256, others=(0, 0, 1, 1, 2, 3, 5), repeats=(0, 1, 1, 2), more=(0, 1, 2, 3, 4)),
}


class Example(NamedTuple):
    prompt: str
    response: str
    held_out: set[str]  # names that do not occur in train if this example is in val or test: the company, the answer
    names: set[str]  # all names in the passages


def make(seed: int, dataset: str = "reader") -> dict[str, list[Pair]]:
    """Generate `SIZES[dataset]` examples: `reader` has short ones, for a context of 256 tokens, `reader_long`, for one
    of 512, more passages and more facts in each. The held-out names are those of both, which train the same model."""
    splits: dict[str, list[Pair]] = {"train": []}
    held_out: set[str] = set()
    for name, recipe in RECIPES.items():
        rng = Rng(f"{seed} {name}")
        new = recipe._replace(new_question=True)
        for split, recipes in (("val", [recipe]), ("test", [new, new._replace(new_statement=True)])):
            drawn = [example(rng, recipes[index % len(recipes)]) for index in range(SIZES[name][split])]
            held_out.update(*(sample.held_out for sample in drawn))
            if name == dataset:
                splits[split] = [(sample.prompt, sample.response) for sample in drawn]
    rng = Rng(f"{seed} {dataset} train")
    size = SIZES[dataset]["train"]
    with progress(total=size, desc="generating", unit="example") as bar:
        while len(splits["train"]) < size:
            sample = example(rng, RECIPES[dataset])
            if held_out.isdisjoint(sample.names):
                splits["train"].append((sample.prompt, sample.response))
                bar.update()
    return splits


make_long = functools.partial(make, dataset="reader_long")


def example(rng: Rng, recipe: Recipe) -> Example:
    """Draw an example that has at most the recipe's length, and in which every company has a name of its own."""
    while not (drawn := attempt(rng, recipe)):
        pass
    return drawn


def attempt(rng: Rng, recipe: Recipe) -> Example | None:
    """Draw an example; None if it is too long, or if two of its companies share a name."""
    relation = rng.choice(list(RELATIONS))
    target = company(rng)
    answer_section = next(section for section, relations in SECTIONS.items() if relation in relations)
    answer = Fact(relation, RELATIONS[relation].value(rng)) if rng.random() >= UNANSWERABLE_SHARE else None
    companies = [target]
    contents: list[tuple[str, str, list[Fact]]] = []  # of each passage: company, section and facts
    if answer:
        contents.append((target, answer_section, [answer]))
    elif rng.random() < 0.8:
        contents.append((target, answer_section, []))
    for _ in range(rng.choice(recipe.repeats) if contents else 0):
        contents.append((target, rng.choice(list(SECTIONS)), []))
    for _ in range(rng.choice(recipe.others) or int(not contents)):
        facts = [Fact(relation, RELATIONS[relation].value(rng))] if rng.random() < 0.85 else []
        companies.append(company(rng))
        contents.append((companies[-1], answer_section, facts))
    for _, section, facts in contents:
        free = [name for name in SECTIONS[section] if name != relation]
        more = rng.sample(free, min(rng.choice(recipe.more) or (not facts), len(free)))
        facts += [Fact(name, RELATIONS[name].value(rng)) for name in more]
        rng.shuffle(facts)
    rng.shuffle(contents)
    passages = [passage(rng, *content, relation if recipe.new_statement else "") for content in contents]
    question_text = question(rng, relation, rng.choice((target, target, short(target))), recipe.new_question)
    prompt = reader_prompt(question_text, passages)
    answers = [answer.value if answer and name == target and answer in facts else "" for name, _, facts in contents]
    response = reader_response(f"{relation} of {short(target)}", answers)
    if len(prompt) + len(response) > recipe.longest or len(set(map(short, companies))) < len(companies):
        return None
    held_out = {short(target), *(named_entity(answer) if answer else ())}
    names = {short(name) for name in companies}.union(
        *(named_entity(fact) for _, _, facts in contents for fact in facts)
    )
    return Example(prompt, response, held_out, names)


def named_entity(fact: Fact) -> set[str]:
    """Return the fact's value if it is a name, else an empty set."""
    draw = RELATIONS[fact.relation].value
    if draw is company:
        return {short(fact.value)}
    return {fact.value} if draw in (person, place) else set()


def passage(rng: Rng, name: str, section: str, facts: Sequence[Fact], new: str = "") -> str:
    """Write sentences about a company, which title or first sentence names. new: a relation to state in new wording."""
    title = rng.choice(("", "", f"{name}:", f"{name} > {section}:"))
    sentences = [title] if title else []
    for index, fact in enumerate(facts):
        named = (index == 0 and not title) or rng.random() < 0.5
        sentences.append(statement(rng, fact, name if named else "", fact.relation == new))
        if rng.random() < 0.06:
            sentences.append(rng.choice(FILLERS))
    return " ".join(sentences)


# ---- documents --------------------------------------------------------------------------------------------------


def library(seed: int, companies: int = 100) -> tuple[dict[str, str], dict[str, list[dict[str, str]]]]:
    """Write a document about each company, and questions about the documents.

    Returns the Markdown text of each file, and two lists of questions {"question", "answer", "source"}: val and test.
    The answer is empty if no document contains it. The questions of test have new wordings.
    """
    rng = Rng(seed)
    names: dict[str, str] = {}
    while len(names) < companies:
        names.setdefault(short(name := company(rng)).lower(), name)
    documents: dict[str, str] = {}
    questions: dict[str, list[dict[str, str]]] = {"val": [], "test": []}
    for short_name, name in names.items():
        source = f"{short_name}.md"
        parts = [f"# {name}"]
        for section, relations in SECTIONS.items():
            facts = [Fact(relation, RELATIONS[relation].value(rng)) for relation in relations if rng.random() < 0.8]
            if facts:
                rng.shuffle(facts)
                sentences = [statement(rng, fact, name if rng.random() < 0.4 else "") for fact in facts]
                sentences.insert(rng.randrange(len(facts) + 1), rng.choice(FILLERS))
                parts.append(f"## {section}\n\n{' '.join(sentences)}")
            known = {fact.relation: fact.value for fact in facts}
            for relation in relations:
                if relation in known or rng.random() < 0.5:
                    split = rng.choice(("val", "test"))
                    question_text = question(rng, relation, rng.choice((name, short(name))), new=split == "test")
                    questions[split].append(
                        {
                            "question": question_text,
                            "answer": known.get(relation, ""),
                            "source": source if relation in known else "",
                        }
                    )
        documents[source] = "\n\n".join(parts) + "\n"
    return documents, questions
