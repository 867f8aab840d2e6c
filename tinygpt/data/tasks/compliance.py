"""The task `compliance`: a message of a bank's employee -> ok or breach. Templates and a seed generate it.

Two of a hundred messages break one of six rules: no promise of a return, no use of inside information, no business on
a private channel, no gift above 100 euros, no client data outside the bank, no trade ahead of a client's order. A
message is a breach if its author does, announces, proposes or requests the forbidden act. It is ok if the author
refuses, forbids, reports or quotes it.

So a breach is an act of `_ACTS` in a frame of `_DOING`. Every fifth ok message is a hard negative with the same words:
the same act in a frame of `_REFUSING`, or in a frame of `_DOING` the permitted counterpart of the act. The other ok
messages are ordinary. In val and test, every fourth act and every fourth frame is a wording that train does not have,
made of words that it has. Each client's name belongs to one split.

    make(1337)["train"][0]  # -> (prompt, response)
"""

import random
from typing import Any

from tinygpt.data.tasks.generate import Pair, generate, words

LABELS = ("ok", "breach")
SIZES = {"train": 10000, "val": 5000, "test": 5000}
SHORTEST, LONGEST = 60, 110  # characters of a message
GIFT_LIMIT = 100  # euros; a gift of exactly that value is permitted
NAMES = {  # of clients and listed companies
    "train": words(
        "Ardvik Belcor Cantrel Dorvane Elquist Farnoll Gavrick Hestral Ilmont Jorvel Kestwin Lorvane Marzell Nordell "
        "Ostrel Pelgrun Quenby Rolvik Sandrel Tarvin Ulmark Vestrin Wendral Yarvo Zelmont Brandix Corvell Dunmark "
        "Ebersol Fenwall Gravon Hollmar Istrel Jendrik Kolvane Lumark Mendral Novrin Orvell Prendix"
    ),
    "val": words(
        "Albrun Bestrix Caldrun Delmark Estrun Folvane Grendel Halvix Jastrin Kelmor Lindrex Morvale Nestrun Pravik "
        "Rendmar Solvix Trendal Umbrex Valdrun Westrix"
    ),
    "test": words(
        "Avremar Boldrex Cendrin Drovane Elvarin Fostrix Galdemar Hendrun Irvale Joldrex Kravmar Lestrin Mavrex "
        "Nildane Pestrun Ralvix Stelmar Tundrex Vorlane Wolmar"
    ),
}
_BUSINESSES = words("Foods Mills Motors Steel Labs Rail Gas Inns Glass Paper Shoes Farms")
_COLLEAGUES = words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Kate Leo Mia Noah Olga Paul Rosa Sam Tina Uwe"
)
_DAYS = words("Monday Tuesday Wednesday Thursday Friday")
_PRODUCTS = words("growth fund,bond fund,index note,savings plan,property fund,energy note", ",")
_GIFTS = words("watch hamper pen voucher bag vase painting jacket")

# Slots of the wordings: {c} client, {f} listed company, {n} colleague, {o} product, {p} per cent, {g} gift, {v} its
# value, {d} day, {h} hour, {k} a number. The first tuple is for every split, the second only for val and test.
_ACTS = {  # of each rule: the forbidden act, and its permitted counterpart (of a gift, one of a lower value)
    "return": (
        (
            ("promise {c} a guaranteed return of {p} % on the {o}", "tell {c} that no return on the {o} is guaranteed"),
            ("tell {c} that the {o} cannot lose money", "tell {c} that the {o} can lose money"),
            ("guarantee {c} {p} % a year on the {o}", "show {c} the {p} % of last year, not guaranteed, on the {o}"),
            ("offer {c} the {o} as free of any risk", "offer {c} the {o} with a list of its risks"),
        ),
        (
            ("promise {c} that the {o} cannot lose money", "write to {c} that the {o} can lose money"),
            ("write to {c} that {p} % on the {o} is guaranteed", "write to {c} that no {p} % is guaranteed on the {o}"),
        ),
    ),
    "inside": (
        (
            ("buy {f} shares before the merger is announced", "wait with {f} shares until the merger is announced"),
            ("tell {c} about the {f} deal before it is public", "tell {c} about the {f} deal, it is public now"),
            ("pass the unpublished {f} results on to {c}", "pass the published {f} results on to {c}"),
            ("let {c} know about the secret {f} merger", "let {c} know about the announced {f} merger"),
        ),
        (
            ("sell {f} shares before the results are public", "sell {f} shares now that the results are public"),
            ("tell {c} about the secret {f} results", "tell {c} about the published {f} results"),
        ),
    ),
    "channel": (
        (
            ("move the order of {c} to my private phone", "move the order of {c} to the recorded line"),
            ("write to {c} about {f} from my private e-mail", "write to {c} about {f} from the bank's e-mail"),
            ("keep the {c} order off the recorded line", "keep the {c} order on the recorded line"),
            ("settle the {c} trade in a private chat", "settle the {c} trade in the recorded chat"),
        ),
        (
            ("take the {f} order of {c} on my private phone", "take the {f} order of {c} on the recorded line"),
            ("move the chat with {c} off the recorded line", "move the chat with {c} to the recorded line"),
        ),
    ),
    "gift": (
        (
            ("accept the {g} worth {v} euros from {c}",) * 2,
            ("give {n} at {c} a {g} worth {v} euros",) * 2,
            ("take the {g} of {v} euros that {c} offers",) * 2,
            ("let {c} pay {v} euros for my dinner",) * 2,
        ),
        (("take the {g} worth {v} euros from {n} at {c}",) * 2, ("let {c} give me a {g} for {v} euros",) * 2),
    ),
    "data": (
        (
            ("send the account list of {c} to my home address", "send the account list of {c} to our back office"),
            ("forward the file of {c} to a friend elsewhere", "forward the file of {c} to our own archive"),
            ("show the balance of {c} to my brother", "show the balance of {c} to our auditors"),
            ("upload the {c} statements to my own cloud", "upload the {c} statements to the bank's cloud"),
        ),
        (
            ("send the {c} statements to my brother", "send the {c} statements to our auditors"),
            ("show the account list of {c} to a friend", "show the account list of {c} to our back office"),
        ),
    ),
    "ahead": (
        (
            (
                "buy {f} for my own account before the {c} order",
                "buy {f} for the {c} account before the end of the day",
            ),
            ("sell our {f} first and then the {c} order", "sell the {c} order first and then our {f}"),
            ("put my own {f} trade ahead of the {c} order", "put the {c} order ahead of my own {f} trade"),
            ("hold the {c} order until my {f} trade is done", "hold my {f} trade until the {c} order is done"),
        ),
        (
            ("put our {f} trade first and then the {c} order", "put the {c} order first and then our {f} trade"),
            ("sell my own {f} shares ahead of the {c} order", "sell the {c} order ahead of my own {f} shares"),
        ),
    ),
}
RULES = tuple(_ACTS)
_DOING = (
    ("I will {a}", "I am going to {a}", "Let us {a}", "Please {a}", "Can you {a}?", "We should {a}", "Just {a}"),
    ("We will {a}", "Can I {a}?", "Please just {a}", "I should {a}"),
)
_REFUSING = (
    (
        "I will not {a}", "I refused to {a}", "Let us not {a}", "Please do not {a}", "Nobody may {a}",
        "We should never {a}", "The policy says: do not {a}", "{n} asked me to {a}, I said no",
    ),
    (
        "I am not going to {a}", "We refused to {a}", "Please never {a}", "The policy says that nobody may {a}",
        "{n} asked me to {a}, I refused",
    ),
)  # fmt: skip
_ORDINARY = (
    (
        "The report on {c} is due on {d}, I am on page {k}",
        "Can you book a room for the meeting with {c} on {d}?",
        "The {f} order is done, the confirmation is in the file",
        "The lunch with {n} and {c} moves to {d} at {h}",
        "{c} asks for the fees of the {o}, who knows them?",
        "I am out on {d}, {n} takes the calls of {c}",
        "The new price list of the {o} is on the shared drive",
        "Please check the address of {c} before {d}",
        "The call with {c} on the recorded line starts at {h}",
        "The {f} shares closed {p} % higher on {d}",
        "We have {k} new accounts this week, two from {c}",
        "The printer on floor {k} is broken, use the one next to {n}",
        "{c} signed the contract for the {o} on {d}",
        "Who can translate the letter of {c} until {d}?",
        "My private phone is off until {h}, I am in the review of {c}",
        "Your training on gifts and client data is on {d} at {h}",
        "The public results of {f} are out, sales are up {p} %",
        "{n} has the statements of {c}, ask before {h}",
        "The guarantee for the loan of {c} ends on {d}",
        "Can you send me the slides about {f} by {h}?",
        "We should thank {n} for the work on the {o}",
        "I will be {k} minutes late for the meeting about {c}",
        "{c} wants to change the order from {k} to {h} shares of {f}",
        "Let us talk about the budget of {c} on {d}",
    ),
    (
        "The file of {c} needs a second signature by {d}",
        "Do we have the tax form of {c} for last year?",
        "The {o} was {p} % up last year, see the fact sheet for {c}",
        "{n} is on holiday, so send the {c} invoice to me",
        "Can we merge the two accounts of {c} before {d}?",
        "I would like a second screen for the {f} desk",
        "My plan for {d} is to finish the minutes on {c}",
        "Go ahead with the letter to {c}, {n} has no comments",
    ),
)
_OPENINGS = ("", "", "", "Hi {n}. ", "Morning {n}. ", "Hello all. ", "Dear {n}. ", "FYI: ", "A quick note: ")
_CLOSINGS = ("", "", "", " Thanks.", " See you on {d}.", " Back at {h}.", " Best, {n}.", " More on {d}.", " Ask {n}.")


def make(seed: int) -> dict[str, list[Pair]]:
    """Make messages, each with one of `LABELS`: one of fifty is a breach."""
    shares = (*LABELS[:1] * 49, LABELS[1])
    return generate(seed, shares, _message, SIZES, LONGEST + max(map(len, LABELS)))


def _message(rng: random.Random, split: str, label: str, number: int) -> str:
    """A message of the label, with the same openings and closings for all kinds. Breaches take the rules in turn."""
    while True:
        if label == "breach":
            sentence = _act(rng, split, RULES[number % len(RULES)], forbidden=True, refused=False)
        elif rng.randrange(5) == 0:
            refused = rng.randrange(2) == 0
            sentence = _act(rng, split, rng.choice(RULES), forbidden=refused, refused=refused)
        else:
            sentence = _filled(rng, split, _wording(rng, split, _ORDINARY))
        sentence = sentence[0].upper() + sentence[1:] + "." * (not sentence.endswith("?"))
        message = _filled(rng, split, rng.choice(_OPENINGS)) + sentence + _filled(rng, split, rng.choice(_CLOSINGS))
        if SHORTEST <= len(message) <= LONGEST:
            return message


def _act(rng: random.Random, split: str, rule: str, forbidden: bool, refused: bool) -> str:
    """A sentence about an act: forbidden or permitted, done or refused."""
    act = _wording(rng, split, _ACTS[rule])[0 if forbidden else 1]
    value = rng.randrange(GIFT_LIMIT + 10, 960, 10) if forbidden else rng.randrange(20, GIFT_LIMIT + 1, 5)
    frame = _wording(rng, split, _REFUSING if refused else _DOING)
    return _filled(rng, split, frame.replace("{a}", act), value)


def _wording(rng: random.Random, split: str, wordings: tuple[tuple[Any, ...], tuple[Any, ...]]) -> Any:
    """One of the wordings; in val and test, every fourth is one that train does not have."""
    common, new = wordings
    return rng.choice(new if split != "train" and rng.randrange(4) == 0 else common)


def _filled(rng: random.Random, split: str, wording: str, value: int = 0) -> str:
    """The wording with its slots filled."""
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
