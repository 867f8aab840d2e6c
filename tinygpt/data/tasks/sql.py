"""The task `sql`: a question about a bank's back office -> an SQL query, which is judged by running it.

The bank has three tables:

    clients(name, city, segment)      accounts(client, kind, balance)      payments(client, category, month, amount)

`sql.txt` has twelve kinds of questions. Half of test has wordings that train and val do not have. Clients and cities in
train are invented for each example, so that the model learns to copy; those of val and test are the bank's. Amounts of
val and test, and two of the months, do not occur in train either.

A query is correct if it returns the rows of the expected query (execution accuracy) in five databases with the same
clients and different rows, since in one a wrong query may do so by chance ("distilled test suites", Zhong, Yu and Klein
2020). In val and test, near misses of the expected query return other rows in one of the five.

    make(1337)["test"][0]                    # -> ("Which 3 clients paid the most in May?", "select client from ...")
    scores(question, expected, response)     # -> {"runs": True, "execution accuracy": False}
"""

import functools
import random
import re
import sqlite3
from typing import Any, NamedTuple

from tinygpt.data.run_sql import Rows, run_query, same_rows
from tinygpt.data.tasks.generate import Pair, read_wordings, word_lists
from tinygpt.data.tasks.reader import person, place

SIZES = {"train": 48_000, "val": 500, "test": 1000}
LONGEST = 157  # characters of prompt and response; with three special tokens: a context of 160
DATABASES = 5
SCHEMA = """
create table clients (name text primary key, city text, segment text);
create table accounts (client text references clients, kind text, balance integer);
create table payments (client text references clients, category text, month text, amount integer);
"""

# rows of the tables
CLIENTS = 300
ACCOUNTS = 600
PAYMENTS = 1500
COLUMNS = word_lists("sql: values of columns")
CITIES, SEGMENTS, ACCOUNT_KINDS, CATEGORIES, MONTHS = COLUMNS.values()
TRAIN_MONTHS = tuple(month for month in MONTHS if month not in ("April", "November"))
_LETTERS = "eeeeeaaaaiiiioooonnnnttttrrrrsssslllhhddccuummppggbbffyywwkvxzjq"
AGGREGATES = {
    "sum": ("total", "combined"),
    "avg": ("average", "mean"),
    "max": ("largest", "highest"),
    "min": ("smallest", "lowest"),
}
COMPARISONS = {">": ("above", "over", "more than"), "<": ("below", "under", "less than")}


class QuestionKind(NamedTuple):
    """A kind of question. The query and the wordings have slots; {filter} and {where} are text and SQL of a filter."""

    query: str
    filters: list[list[str]]  # text, SQL, and the column by which the query groups
    wordings: list[str]
    held_out: list[str]


KINDS = {
    name: QuestionKind(
        query, [[*line.split(" | "), "", ""][:3] for line in lines["="] or [""]], lines["?"], lines["?!"]
    )
    for name, (query, lines) in read_wordings("sql.txt").items()
}


# ---- the databases ----------------------------------------------------------------------------------------------


@functools.cache
def client_names() -> tuple[str, ...]:
    """Draw the names of the bank's clients; no two share a last name."""
    rng = random.Random(1)
    names = dict[str, str]()
    while len(names) < CLIENTS:
        name = short_name(rng)
        names.setdefault(name.split()[-1], name)
    return tuple(names.values())


def short_name(rng: random.Random) -> str:
    while len(name := person(rng)) > 13 or "." in name:
        pass
    return name


@functools.cache
def database(number: int = 0) -> sqlite3.Connection:
    """Make the bank's database in memory. Numbers above 0 are those with other rows, for the score."""
    rng = random.Random(number)
    names = client_names()
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    balances, amounts = (rng.sample(range(10, 3000), n) for n in (ACCOUNTS, PAYMENTS))  # no two are equal: no ties
    tables: dict[str, list[tuple[Any, ...]]] = {
        "clients": [(name, rng.choice(CITIES), rng.choice(SEGMENTS)) for name in names],
        "accounts": [(names[i % CLIENTS], rng.choice(ACCOUNT_KINDS), balance) for i, balance in enumerate(balances)],
        "payments": [(rng.choice(names), rng.choice(CATEGORIES), rng.choice(MONTHS), amount) for amount in amounts],
    }
    for table, rows in tables.items():
        connection.executemany(f"insert into {table} values ({', '.join('?' for _ in rows[0])})", rows)
    connection.commit()
    return connection


@functools.lru_cache(maxsize=1 << 14)
def answer(query: str, number: int = 0) -> Rows | None:
    """Run a query in one of the databases; return its rows, or None if it cannot be run."""
    return run_query(database(number), query)


def same_answers(expected: str, query: str) -> bool:
    """Return whether two queries give the same rows in all databases; in the same order if the expected one orders."""
    return all(
        (rows := answer(query, number)) is not None
        and same_rows(answer(expected, number) or [], rows, ordered=" order by " in expected)
        for number in range(DATABASES)
    )


def scores(prompt: str, expected: str, response: str) -> dict[str, bool]:
    """Judge a response: whether it runs, and whether it gives the rows of the expected query."""
    return {"runs": answer(response) is not None, "execution accuracy": same_answers(expected, response)}


@functools.cache
def _held_out_wordings() -> re.Pattern[str]:
    """Make a pattern of every prompt in a wording that train does not have."""
    wordings = [
        wording.replace("{filter}", text)
        for kind in KINDS.values()
        for wording in kind.held_out
        for text, _, _ in kind.filters
    ]
    return re.compile("|".join(re.sub(r"\\{\w+\\}", ".+", re.escape(wording)) for wording in wordings), re.IGNORECASE)


def group(prompt: str) -> str:
    """Return the group of a prompt: "known wordings", or "new wordings" if its wording does not occur in train."""
    return "new wordings" if _held_out_wordings().fullmatch(prompt) else "known wordings"


# ---- the pairs --------------------------------------------------------------------------------------------------


def make(seed: int) -> dict[str, list[Pair]]:
    """Generate the pairs, the kinds in equal shares. Only in train may a pair occur twice."""
    rng = random.Random(seed)
    held_out = set[str]()
    splits = dict[str, list[Pair]]()
    for split in reversed(SIZES):  # train is last, and has no prompt of the others
        pairs: list[Pair] = []
        while len(pairs) < SIZES[split]:
            kind = list(KINDS.values())[len(pairs) % len(KINDS)]
            new = split == "test" and len(pairs) // len(KINDS) % 2 == 1
            prompt, query = draw(rng, kind, split != "train", new)
            fits = len(prompt) + len(query) <= LONGEST and prompt not in held_out
            if fits and (not names_bank_value(query) if split == "train" else informative(query)):
                pairs.append((prompt, query))
                held_out |= {prompt} if split != "train" else set()
        rng.shuffle(pairs)
        splits[split] = pairs
    return {split: splits[split] for split in SIZES}


def draw(rng: random.Random, kind: QuestionKind, new_values: bool, new_wording: bool) -> Pair:
    """Draw a question of a kind, and its query. new_values: about values of the bank, which train does not have."""
    aggregate = rng.choice(list(AGGREGATES))
    sign = rng.choice(list(COMPARISONS))
    descending = rng.randrange(2) == 1
    amount = 40 * rng.randrange(3, 72)  # a multiple of 40 is for val and test
    slots: dict[str, Any] = {
        "client": rng.choice(client_names()) if new_values else rng.choice((short_name(rng), random_name(rng))),
        "city": rng.choice(CITIES) if new_values else rng.choice((place(rng).split()[-1], random_name(rng))),
        "month": rng.choice(MONTHS if new_values else TRAIN_MONTHS),
        "amount": amount if new_values else amount + rng.choice((10, 20, 30)),
        "segment": rng.choice(SEGMENTS), "kind": rng.choice(ACCOUNT_KINDS), "category": rng.choice(CATEGORIES),
        "aggregate": aggregate, "word": rng.choice(AGGREGATES[aggregate]), "n": rng.randrange(2, 10),
        "sign": sign, "above": rng.choice(COMPARISONS[sign]),
        "order": "desc " if descending else "",
        "extreme": rng.choice(AGGREGATES["max" if descending else "min"]), "column": rng.choice(("city", "segment")),
    }  # fmt: skip
    text, where, slots["group"] = rng.choice(kind.filters)
    slots |= {"filter": text.format(**slots), "where": where.format(**slots)}
    prompt = rng.choice(kind.held_out if new_wording else kind.wordings).format(**slots)
    return prompt[0].upper() + prompt[1:], kind.query.format(**slots)


def random_name(rng: random.Random) -> str:
    """Draw a name of random letters, as frequent as in English. Its end can only be copied, not guessed."""
    return "".join(rng.choices(_LETTERS, k=rng.randrange(3, 10))).capitalize()


def names_bank_value(query: str) -> bool:
    """Return whether a query names a client or a city of the bank."""
    values = re.findall("'([^']*)'", query)
    return not {*values, *" ".join(values).split()}.isdisjoint((*client_names(), *CITIES))


def informative(query: str) -> bool:
    """Return whether a query gives rows that are not empty, NULL or 0, and its near misses give others."""
    rows = answer(query)
    return bool(rows and rows[0][-1]) and not any(same_answers(query, variant) for variant in near_misses(query))


def near_misses(query: str) -> list[str]:
    """Return near misses of a query: another aggregate, comparison, order, limit or value, or a condition less."""
    variants = [re.sub(r"\b(sum|avg|max|min)\(", f"{aggregate}(", query) for aggregate in AGGREGATES]
    variants.append(re.sub(r"\b(sum|avg|max|min)\(\w+\)", "count(*)", query))
    swaps = ((">", "<"), ("<", ">"), (" desc", ""), (" amount limit", " amount desc limit"))
    variants += [query.replace(old, new) for old, new in swaps]
    variants.append(re.sub(r"limit (\d)", lambda match: f"limit {int(match[1]) + 1}", query))
    for number in re.findall(r"[<>] (\d+)", query):
        variants += [query.replace(number, str(int(number) + change)) for change in (-10, 10)]
    for column, values in COLUMNS.items():
        variants += [re.sub(rf"\b{column} = '\w+'", f"{column} = '{value}'", query) for value in values]
    variants += [query.replace(condition, " ", 1) for condition in re.findall(r" and \w+ . \S+", query)]
    variants.append(re.sub(r"where .*? and ", "where ", query))
    variants.append(re.sub(r"where \w+ . ('[^']*'|\d+)(?! and)", "", query))
    return sorted(set(variants) - {query})
