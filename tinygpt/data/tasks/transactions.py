"""The task `transactions`: a line of a card statement -> its spending category.

`with_brands`: the merchants of nine categories are real brands (data/tasks/merchants.py). The rest of a line tells
nothing except the low price of a coffee (data/README.md). Fees, income and subscriptions have invented lines.

`invented`: all merchants are invented (words for their trades: `transactions.txt`). Three of four lines name the trade,
in words that other merchants share; some have a decoy (in `GRILL AT HOLT MKT` the market is only the place). In the
fourth the merchant's name is an invented word, and the category follows from the rest of the line.

No merchant of val or test occurs in train.

    with_brands(1337)["train"][0]  # -> (prompt, response)
"""

import functools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tasks.generate import Pair, digits, generate, read_wordings, word_lists, words
from tinygpt.data.tasks.merchants import NAME_WIDTH, Merchant, merchants_by_label

_LINES = {category: lines for category, (_, lines) in read_wordings("transactions.txt").items()}
CATEGORIES = tuple(_LINES)
# The name of each invented merchant contains a word of its split's NAMES or INVENTED, which no other split has.
NAMES = word_lists("transactions: names of merchants")
_STARTS = word_lists("transactions: starts of invented names")
_ENDS = words("NA RIS TEK LO VEX DAN MIRA SOL PO NDER QUE ZZI THE RN BEL KA")
INVENTED = {split: tuple(start + end for start in starts for end in _ENDS) for split, starts in _STARTS.items()}

_SHOPS = ("groceries", "dining", "coffee", "fuel", "health", "shopping")  # whose place may be named after another trade
_AIRPORTS = words("JFK LHR LAX ORD SFO DFW ATL SEA BOS DEN MIA CDG FRA AMS MAD NRT")
_CITIES = words("AUSTIN TX,DENVER CO,BOISE ID,TAMPA FL,RENO NV,OMAHA NE,MACON GA,TULSA OK,EUGENE OR,TUCSON AZ", ",")
_PREFIXES = ("", "", "", "SQ *", "TST* ", "PAYPAL *", "SP ", "POS ")  # of payment processors, for shops
_MIDDLES = ("", "", "CITY ", "VALLEY ", "BROS ", "CREEK ", "& SON ")
_PLACES = {  # by country
    "us": _CITIES,
    "gb": words("LONDON GB,LEEDS GB,BRISTOL GB,GLASGOW GB,CARDIFF GB,BELFAST GB", ","),
    "ca": words("TORONTO ON,OTTAWA ON,CALGARY AB,HALIFAX NS,REGINA SK", ","),
    "au": words("SYDNEY AU,PERTH AU,HOBART AU,CAIRNS AU", ","),
    "ie": words("DUBLIN IE,CORK IE,GALWAY IE", ","),
    "nz": words("AUCKLAND NZ,NELSON NZ,DUNEDIN NZ", ","),
}
LINE_WIDTH = 48  # of a statement


def with_brands(seed: int, brands: int = 0, of: str = "train") -> dict[str, list[Pair]]:
    """Make lines of card statements with real brands, each with one of `CATEGORIES`.

    brands: the lines of all splits name the same brands, so many of each category that has brands, drawn from those of
    the split `of`, and the labels alternate; 0: each split names all its own brands.
    """
    if not brands:
        return generate(seed, CATEGORIES, _statement_line)
    if brands > (most := min(len(splits.get(of, ())) for splits in merchants_by_label().values())):
        raise TinyGPTError(f"brands={brands}: the split {of!r} has {most} brands of each category", f"brands={most}")
    rng = random.Random(seed)
    chosen = {label: rng.sample(splits[of], brands) for label, splits in merchants_by_label().items()}
    drawn = generate(seed, tuple(chosen), lambda rng, _, label, __: line_of(rng, rng.choice(chosen[label]), label))
    return {split: _in_turn(pairs) for split, pairs in drawn.items()}


def _in_turn(pairs: Sequence[Pair]) -> list[Pair]:
    """Sort the pairs so that their labels alternate: the first pair of each label, then the second of each, ..."""
    seen: defaultdict[str, Iterator[int]] = defaultdict(count)
    return sorted(pairs, key=lambda pair: next(seen[pair[1]]))


@functools.cache
def _brands() -> set[str]:
    names = {name for splits in merchants_by_label().values() for split in splits.values() for name, _ in split}
    return names - set(chain.from_iterable(NAMES.values()))  # without invented ones: OSPREY, which is also a brand


def group(prompt: str) -> str:
    """Return "with a brand" if the line names a real brand, else "without a brand"."""
    parts = [prompt.removeprefix(prefix).split(" ") for prefix in _PREFIXES]
    named = any(" ".join(words[:end]) in _brands() for words in parts for end in range(1, len(words)))
    return "with a brand" if named else "without a brand"


def invented(seed: int) -> dict[str, list[Pair]]:
    """Make lines of card statements with invented merchants, each with one of `CATEGORIES`."""
    return generate(seed, CATEGORIES, _invented_line)


def _statement_line(rng: random.Random, split: str, category: str, number: int) -> str:
    """Draw a line with a real brand; if the category has none, with an invented merchant."""
    brands = merchants_by_label().get(category)
    if brands is None:
        return _invented_line(rng, split, category, number)
    return line_of(rng, rng.choice(brands[split]), category)


def line_of(rng: random.Random, merchant: Merchant, category: str) -> str:
    """Draw a line of a card statement with a brand: a prefix, its name, a number, a place, a date, an amount."""
    places = _PLACES[rng.choice([country for country in merchant.countries if country in _PLACES] or list(_PLACES))]
    return _with_details(rng, rng.choice(_PREFIXES) + merchant.name, category, places)


def _invented_line(rng: random.Random, split: str, category: str, number: int) -> str:
    """Draw a line with an invented merchant; in every fourth, the form of the line gives the category."""
    if number % 4:
        prefix = rng.choice(_PREFIXES if category in _SHOPS else ("", "WEB ", "ACH "))
        line = prefix + _merchant(rng, split, category)
    else:
        line = rng.choice(_LINES[category]["="]).replace("~", rng.choice(INVENTED[split]))
        line = digits(rng, line).replace("@", f"{rng.choice(_AIRPORTS[:8])} {rng.choice(_AIRPORTS[8:])}")
    return _with_details(rng, line, category, _CITIES)


def _with_details(rng: random.Random, line: str, category: str, places: tuple[str, ...]) -> str:
    """Add to a line its amount, and before it a number, a place and a date, each if drawn and if there is room."""
    amount = _amount(rng, category)
    date = f" {1 + rng.randrange(12):02}/{1 + rng.randrange(28):02}"
    for extra in (digits(rng, " #9999"), " " + rng.choice(places), date):
        if rng.randrange(2) and len(line + extra + amount) < LINE_WIDTH:
            line += extra
    return f"{line} {amount}"


def _merchant(rng: random.Random, split: str, category: str) -> str:
    """Draw a merchant with its trade, cut as banks do; half of the shops also have another trade in their name."""
    trade = rng.choice(_LINES[category]["+!" if split != "train" and rng.randrange(2) else "+"])
    name = rng.choice(NAMES[split])
    if category in _SHOPS and rng.randrange(2):
        place = rng.choice(_LINES[rng.choice([shop for shop in _SHOPS if shop != category])]["+"])
        merchant = rng.choice((f"{trade} AT {name} {place}", f"{name} {place} ST {trade}"))
    else:
        merchant = f"{name} {rng.choice(_MIDDLES)}{trade}"
    cut = merchant[:NAME_WIDTH].rstrip()
    return cut if name in cut and trade[:5] in cut else f"{name} {trade}"[:NAME_WIDTH].rstrip()


def _amount(rng: random.Random, category: str) -> str:
    if category == "income":
        return f"{rng.randrange(300, 5000):,}.{rng.randrange(100):02}"
    if category == "subscriptions":
        return f"-{rng.randrange(2, 30)}.99"
    if category == "fees":
        return f"-{rng.randrange(1, 36)}.{rng.choice(('00', '50'))}"
    most = 15 if category == "coffee" else 160
    return f"-{rng.randrange(3, most)}.{rng.randrange(100):02}"
