"""The task `compliance`: a message of a bank's employee -> ok or breach. Templates and a seed generate it.

Two of a hundred messages break one of six rules. A message is a breach if its author does, announces, proposes or
requests the forbidden act: an act of `_ACTS` in a frame of `_DOING`. It is ok if the author refuses, forbids, reports
or quotes it. Every fifth ok message is a hard negative with the same words: the same act in a frame of `_REFUSING`, or
in a frame of `_DOING` the permitted counterpart of the act.

`compliance.txt` has the wordings. In val and test, every fourth act and every fourth frame is a wording that train does
not have, made of words that it has. Each client's name belongs to one split.

    make(1337)["train"][0]  # -> (prompt, response)
"""

import random
from collections.abc import Sequence
from typing import Any

from tinygpt.data.tasks.generate import Pair, generate, read_wordings, word_lists, words

LABELS = ("ok", "breach")
SIZES = {"train": 10000, "val": 5000, "test": 5000}
# characters of a message
SHORTEST = 60
LONGEST = 110
GIFT_LIMIT = 100  # euros; a gift of exactly that value is permitted
NAMES = word_lists("compliance: names of clients")  # and of listed companies
_BUSINESSES = words("Foods Mills Motors Steel Labs Rail Gas Inns Glass Paper Shoes Farms")
_COLLEAGUES = words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Kate Leo Mia Noah Olga Paul Rosa Sam Tina Uwe"
)
_DAYS = words("Monday Tuesday Wednesday Thursday Friday")
_PRODUCTS = words("growth fund,bond fund,index note,savings plan,property fund,energy note", ",")
_GIFTS = words("watch hamper pen voucher bag vase painting jacket")

Wordings = tuple[Sequence[Any], Sequence[Any]]  # for every split, and only for val and test


def _acts(wordings: Sequence[str]) -> list[tuple[str, str]]:
    """Split `ACT | COUNTERPART` into a forbidden and a permitted act. A gift has no counterpart: its value decides."""
    return [(act, permitted or act) for act, _, permitted in (wording.partition(" | ") for wording in wordings)]


_SECTIONS: dict[str, Wordings] = {
    name: (lines["+"], lines["+!"]) for name, (_, lines) in read_wordings("compliance.txt").items()
}
_DOING, _REFUSING, _ORDINARY = map(_SECTIONS.pop, ("doing", "refusing", "ordinary"))
_ACTS: dict[str, Wordings] = {rule: (_acts(common), _acts(new)) for rule, (common, new) in _SECTIONS.items()}
RULES = tuple(_ACTS)
_OPENINGS = ("", "", "", "Hi {n}. ", "Morning {n}. ", "Hello all. ", "Dear {n}. ", "FYI: ", "A quick note: ")
_CLOSINGS = ("", "", "", " Thanks.", " See you on {d}.", " Back at {h}.", " Best, {n}.", " More on {d}.", " Ask {n}.")


def make(seed: int) -> dict[str, list[Pair]]:
    """Make messages, each with one of `LABELS`: one of fifty is a breach."""
    shares = (*LABELS[:1] * 49, LABELS[1])
    return generate(seed, shares, _message, SIZES, LONGEST + max(map(len, LABELS)))


def _message(rng: random.Random, split: str, label: str, number: int) -> str:
    """Draw a message with a label. Openings and closings do not depend on it; breaches take the rules in turn."""
    while True:
        if label == "breach":
            sentence = _act(rng, split, RULES[number % len(RULES)], forbidden=True, refused=False)
        elif rng.randrange(5) == 0:
            refused = rng.randrange(2) == 0
            sentence = _act(rng, split, rng.choice(RULES), forbidden=refused, refused=refused)
        else:
            sentence = _filled(rng, split, _wording(rng, split, _ORDINARY))
        sentence = sentence[0].upper() + sentence[1:]
        if not sentence.endswith("?"):
            sentence += "."
        message = _filled(rng, split, rng.choice(_OPENINGS)) + sentence + _filled(rng, split, rng.choice(_CLOSINGS))
        if SHORTEST <= len(message) <= LONGEST:
            return message


def _act(rng: random.Random, split: str, rule: str, forbidden: bool, refused: bool) -> str:
    """Draw a sentence about an act: forbidden or permitted, done or refused."""
    act = _wording(rng, split, _ACTS[rule])[0 if forbidden else 1]
    value = rng.randrange(GIFT_LIMIT + 10, 960, 10) if forbidden else rng.randrange(20, GIFT_LIMIT + 1, 5)
    frame = _wording(rng, split, _REFUSING if refused else _DOING)
    return _filled(rng, split, frame.replace("{a}", act), value)


def _wording(rng: random.Random, split: str, wordings: Wordings) -> Any:
    """Draw one of the wordings; in val and test, every fourth is one that train does not have."""
    common, new = wordings
    return rng.choice(new if split != "train" and rng.randrange(4) == 0 else common)


def _filled(rng: random.Random, split: str, wording: str, value: int = 0) -> str:
    """Fill the slots of a wording."""
    client, company = rng.sample(NAMES[split], 2)
    return wording.format(
        c=f"{client} {rng.choice(_BUSINESSES)}",
        f=company,
        n=rng.choice(_COLLEAGUES),
        o=rng.choice(_PRODUCTS),
        p=rng.randrange(3, 16),
        g=rng.choice(_GIFTS),
        v=value,
        d=rng.choice(_DAYS),
        h=rng.randrange(8, 18),
        k=rng.randrange(2, 30),
    )
