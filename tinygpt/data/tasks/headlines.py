"""The task `headlines`: company news -> positive, neutral or negative. Templates and a seed generate it.

The label of a statement is the product of three signs: of the metric (profits or losses), of the verb (rise or fall)
and of the negation. Other words stand between metric and verb, and each word is equally frequent with both labels, so
the frequencies of words or n-grams do not tell positive from negative. Each company's first name belongs to one split.

In a third of test, metric and verb occur in train, but never together (48 of 144 combinations are held out); in the
others nothing in train tells the sign of the metric or the verb.

    make(1337)["train"][0]  # -> (prompt, response)
    group("Losses at Noble Rail plunge")  # -> "new words"
"""

import random
from collections.abc import Sequence

from tinygpt.data.tasks.generate import Pair, digits, generate, word_lists, words

SENTIMENTS = ("positive", "neutral", "negative")
# Of the metrics the first half is good, of the verbs the first half goes up.
METRICS = words("profits sales orders margins revenues exports losses costs debts complaints delays defects")
VERBS = words("rise jump climb grow surge soar fall drop shrink slide sink dip")
NEW_METRICS = words(  # in test only
    "earnings bookings receipts surpluses ratings customers deficits expenses fines recalls lawsuits shortages"
)
NEW_VERBS = words("increase double swell leap mount multiply decrease decline plunge halve tumble dwindle")
NEGATIONS = ("do not", "no longer", "fail to")
COMPANIES = word_lists("headlines: names of companies")
_BUSINESSES = words("Foods Mills Motors Bank Steel Labs Rail Gas Inns Glass Paper Shoes")
_WHEN = words("in Q1,in Q2,in Q3,in Q4,in May,in June,this year,this spring", ",")
_ASKING = ("Unclear if", "Analysts ask if", "Owners ask if")
_SAYING = ("Analysts say", "Owners told", "As forecast,", "Dividend unchanged,", "New chairman,", "Office moves,")
_STEADY = ("unchanged", "flat", "as forecast", "in line with forecasts")
_NOTICES = (  # + company, % metrics, ~ when, 9 a digit
    "+ names new chairman ~", "+ to hold annual meeting ~", "+ moves head office to unit 9", "+ to report % on 9 July",
    "+ names auditor of %", "Owners of + do not meet ~", "Owners of + no longer meet ~", "+ board to discuss % ~",
)  # fmt: skip
HEADLINE_WIDTH = 53


def make(seed: int) -> dict[str, list[Pair]]:
    """Make headlines about companies, each with one of `SENTIMENTS`."""
    return generate(seed, SENTIMENTS, _headline)


def group(prompt: str) -> str:
    """Return the group of a prompt: "neutral headlines", or for a statement what is new in it."""
    prompt_words = prompt.lower().split(" ")
    if prompt_words[-1] not in VERBS + NEW_VERBS or " if " in prompt or "neither" in prompt_words:
        return "neutral headlines"
    if not set(prompt_words).isdisjoint(NEW_METRICS + NEW_VERBS):
        return "new words"
    held_out = any(
        _held_out(metric, VERBS.index(prompt_words[-1])) for metric, word in enumerate(METRICS) if word in prompt_words
    )
    return "new combinations" if held_out else "known combinations"


def _held_out(metric: int, verb: int) -> bool:
    """Return whether a metric and a verb, given by index, occur together in test only. Each has four such partners."""
    return (metric + verb) % 3 == 0


def _headline(rng: random.Random, split: str, sentiment: str, number: int) -> str:
    """Draw a statement of `sentiment`, or one of three neutral kinds: a question, an unchanged metric, a notice.

    The number decides what is new in test, metric and negation (a third have one), so that these are balanced between
    the labels.
    """
    form = "statement" if sentiment != "neutral" else rng.choice(("question", "steady", "notice"))
    new, turn = (("combination", "metric", "verb")[number % 3], number // 3) if split == "test" else ("", number)
    index = turn % 12
    verbs = NEW_VERBS if new == "verb" else VERBS
    metric = (NEW_METRICS if new == "metric" else METRICS)[index]
    negation = (*NEGATIONS, "", "", "", "", "", "")[turn // 12 % 9]

    def verb(up: bool) -> str:
        half = range(6) if up else range(6, 12)
        return verbs[rng.choice([other for other in half if _held_out(index, other) == (new == "combination")])]

    company = f"{rng.choice(COMPANIES[split])} {rng.choice(_BUSINESSES)}"
    when = rng.choice(_WHEN)
    if form == "notice":
        return digits(rng, rng.choice(_NOTICES)).replace("+", company).replace("%", metric).replace("~", when)
    if form == "steady":
        neither = f"neither {verb(True)} nor {verb(False)}"
        predicate = rng.choice((*_STEADY, neither, neither))
    else:
        up = rng.randrange(2) == 1
        if form == "statement":  # the direction that makes the product of the three signs right
            up = (sentiment == "positive") == ((index < 6) == (negation == ""))
        predicate = f"{negation} {verb(up)}".strip()
    order = rng.randrange(3)
    subject = (f"{company} {metric} {when}", f"{metric} at {company}", f"{metric} at {company} {when}")[order]
    leads: Sequence[str] = ()
    if form == "question":
        leads = _ASKING
    elif rng.randrange(3) == 0:
        leads = _SAYING
    sentence = f"{subject} {predicate}"
    fitting = [lead for lead in leads if len(lead) + 1 + len(sentence) <= HEADLINE_WIDTH]
    if form == "question" and not fitting:
        return _headline(rng, split, sentiment, number)
    return f"{rng.choice(fitting)} {sentence}" if fitting else sentence[0].upper() + sentence[1:]
