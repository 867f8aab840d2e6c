"""Two classification tasks for fine-tuning, synthetic: templates and a seed generate them.

`transactions`: a line of a card statement -> its spending category. The merchants in val and test do not occur in
train. Three of four lines name the trade, in words that other merchants share; some have a decoy (in `GRILL AT HOLT
MKT` the market is only the place). In the fourth the merchant's name is an invented word, and the category follows from
the rest of the line.

`headlines`: company news -> positive, neutral or negative. The label of a statement is the product of three signs: of
the metric (profits or losses), of the verb (rise or fall) and of the negation. Company, quarter and other words stand
between metric and verb, and each word is equally frequent with both labels, so the frequencies of words or n-grams do
not tell positive from negative. Names of companies contain positive and negative words, which do not affect the label.

    TASKS["headlines"].make(1337)["train"][0]  # -> (prompt, response)
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

SIZES = {"train": 4000, "val": 500, "test": 1000}
MAX_CHARS = 61  # a prompt with the longest label of the task; with three special tokens they fill a context of 64

Pair = tuple[str, str]  # (prompt, response)


@dataclass(frozen=True)
class Task:
    """A task: `make(seed)` returns the (prompt, response) pairs of each split; the responses are `labels`."""

    name: str
    labels: tuple[str, ...]
    make: Callable[[int], dict[str, list[Pair]]]


def transactions(seed: int) -> dict[str, list[Pair]]:
    """Make lines of card statements, each with one of `CATEGORIES`."""
    return _generate(seed, CATEGORIES, _statement_line)


def headlines(seed: int) -> dict[str, list[Pair]]:
    """Make headlines about companies, each with one of `SENTIMENTS`."""
    return _generate(seed, SENTIMENTS, _headline)


def letters(prompt: str) -> str:
    """The prompt without case, digits, spaces and punctuation: equal for near duplicates."""
    return "".join(character for character in prompt.lower() if character.isalpha())


def _generate(
    seed: int, labels: tuple[str, ...], draw: Callable[[random.Random, str, str, int], str]
) -> dict[str, list[Pair]]:
    """Generate `SIZES` examples without near duplicates, the labels in equal shares.

    `draw(rng, split, label, number)` returns a prompt; the examples of each label are numbered from 0.
    """
    rng, room = random.Random(seed), MAX_CHARS - max(map(len, labels))
    seen: set[str] = set()
    splits: dict[str, list[Pair]] = {}
    for split, size in SIZES.items():
        examples: list[Pair] = []
        while len(examples) < size:
            number, label = len(examples) // len(labels), labels[len(examples) % len(labels)]
            prompt = draw(rng, split, label, number)
            if len(prompt) <= room and letters(prompt) not in seen:
                seen.add(letters(prompt))
                examples.append((prompt, label))
        rng.shuffle(examples)
        splits[split] = examples
    return splits


def _words(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


# Transactions. The name of each merchant contains a word of its split's NAMES or INVENTED, which no other split has.

CATEGORIES = (
    "groceries", "dining", "coffee", "transport", "fuel", "travel", "health", "utilities", "shopping",
    "subscriptions", "fees", "income",
)  # fmt: skip
NAMES = {
    "train": _words(
        "ALDER ASHBY BARTON BELMONT BIRCH BLAKE BRIAR CALDER CARVER CEDAR COLBY CORBIN CRANE DALTON DENBY DUNMORE "
        "EASTON ELMORE EMBER FALCON FARROW FENTON GARNET GIBSON GOLDEN GRANT HALSEY HARLOW HAWTHORN HOLT HUDSON HUXLEY "
        "IRVING JASPER JUNIPER KELLER KENDAL KIRBY LAMBERT LAUREL LINDEN LOGAN LUNA MAGNOLIA MARLOW MERCER MILLER "
        "MONROE NEWTON NOLAN NORTH OAKLEY ORCHARD OTTER PARKER PEARL PIONEER PRESTON QUINN RAVEN RIDGE ROWAN RUBY SAGE "
        "SEABURY SHELDON SPENCER STELLA SUMMIT TANNER THATCHER TILDEN TURNER UNION VERNON WALDEN WALTON WARREN WILLOW "
        "WINSTON"
    ),
    "val": _words("AMBROSE BEACON CLIFTON DORSET ELLIS FOSTER GRAFTON HOBART IVY KESTREL LOWELL MAPLE"),
    "test": _words(
        "ARCHER BLUE BRADLEY CAMDEN CYPRESS DEXTER EVERETT FULTON GROVE HARBOR HICKORY JARVIS KNOX LANDON MADISON "
        "MORROW OSPREY PALMER REDWOOD RIVERSIDE SALEM SUTTON TRENT WESTON"
    ),
}
_STARTS = {
    "train": _words(
        "BALU CORVI MURGO FEXA GAMBRI HULO JORVE KALTI LUMBO MEZZA NIVRO OSTRU PELVA QUARLI RUVO SILBO TOXI VANDRE "
        "WEXO YULTA ZARBI"
    ),
    "val": _words("BRINJO DAXU FILVO GURTA MORJE SUNDVI"),
    "test": _words("ARVO CHUBLI DREMU ELTI HAXO IMBRE KOSTU LIRVA NUXE TRALDI UMBO VOLJI"),
}
_ENDS = _words("NA RIS TEK LO VEX DAN MIRA SOL PO NDER QUE ZZI THE RN BEL KA")
INVENTED = {split: tuple(start + end for start in starts for end in _ENDS) for split, starts in _STARTS.items()}

# The words for each trade: in every split, and (after the bar) only in val and test.
_TRADES = {
    "groceries": "MARKET,MKT,GROCERY,FOODS,SUPERMARKET,PRODUCE|GROCER,FOOD MART,FOOD MKT,MARKETPLACE",
    "dining": "GRILL,PIZZERIA,KITCHEN,DINER,SUSHI,BISTRO|GRILLE,PIZZA,SUSHI HOUSE,DINER CO,BISTRO & WINE",
    "coffee": "COFFEE,ESPRESSO,ROASTERS,CAFE,COFFEE CO|COFFEE ROASTERS,COFFEEHOUSE,ROASTERY,ESPRESSO BAR",
    "transport": "TAXI,CAB CO,PARKING,TRANSIT,METRO,TOLL RD|TAXICAB,CABS,PARKING GAR,TRANSIT AUTH,TOLLWAY",
    "fuel": "GAS,FUEL,PETROL,OIL CO,GAS MART|FUELS,FUEL PLAZA,GAS DEPOT,PETROLEUM,OIL & GAS",
    "travel": "HOTEL,AIRLINES,AIRL,INN,AIRWAYS,RESORT|HOTELS,AIR LINES,INN & SUITES,RESORT & SPA",
    "health": "PHARMACY,PHARM,PHCY,DENTAL,CLINIC,VISION|PHARMA,DENTIST,DENTAL ARTS,VISION CTR,CLINICS",
    "utilities": "ELECTRIC,WATER DIST,POWER & LT,GAS & ELEC,ENERGY,SEWER|ELEC COOP,WATER UTIL,POWER CO,ENERGY SVC",
    "shopping": "BOOKS,SHOES,HARDWARE,TOYS,APPAREL,FURNITURE|BOOKSHOP,SHOE SHOP,TOY BOX,FURN CO,HARDWARE DEPOT",
    "subscriptions": "STREAMING,MUSIC PLUS,CLOUD PLAN,VPN,NEWS DIGITAL,TV PLUS|STREAM,CLOUD PLUS,DIGITAL TV,VPN PLAN",
    "fees": "ATM FEE,SERVICE CHG,OVERDRAFT FEE,WIRE FEE,LATE FEE|SVC FEE,ATM CHG,OVERDRAFT CHG,WIRE CHG,SERVICE FEE",
    "income": "PAYROLL,DIR DEP,SALARY,INTEREST PAID,PENSION|PAYROLL DEP,SALARY PMT,PENSION PMT,DIRECT DEP,INTEREST PMT",
}
_SHOPS = ("groceries", "dining", "coffee", "fuel", "health", "shopping")  # whose place may be named after another trade
# Patterns of the lines with an invented name: ~ is the name, 9 a digit, @ a route.
_SHAPES = {
    "groceries": "~ LN 99 ITEMS 99,~ SCALE 9.99LB TARE .99",
    "dining": "~ TBL 99 TIP 9.99,~ CVR 9 SVR 99 GRAT 9.99",
    "coffee": "~ 9X 99OZ OATMILK,~ 9 SHOT 99OZ HOT",
    "transport": "~ *TRIP HELP.~.CO,~ TAP 99 ZONE 9-9",
    "fuel": "~ PUMP 99 99.999G,~ 99.999 GAL REG 9.999",
    "travel": "~ 9999999999999 @,~ FOLIO 999999 9 NTS",
    "health": "~ RX 9999999 COPAY,~ PT 999999 COPAY 99",
    "utilities": "~ ACCT 999999999 999KWH,~ AUTOPAY MTR 99999999",
    "shopping": "~ ORD 999-9999999-999,~ SKU 999999 QTY 9 SZ 99",
    "subscriptions": "~.COM/BILL,~ PRO MTHLY ~.COM",
    "fees": "INTL TXN 9.99% ~,ATM WD ~ SURCHG",
    "income": "~ DES:PAYROLL ID:99999,~ PPD ID:9999999999 CR",
}
_AIRPORTS = _words("JFK LHR LAX ORD SFO DFW ATL SEA BOS DEN MIA CDG FRA AMS MAD NRT")
_CITIES = _words("AUSTIN TX,DENVER CO,BOISE ID,TAMPA FL,RENO NV,OMAHA NE,MACON GA,TULSA OK,EUGENE OR,TUCSON AZ", ",")
_PREFIXES = ("", "", "", "SQ *", "TST* ", "PAYPAL *", "SP ", "POS ")  # of payment processors, for shops
_MIDDLES = ("", "", "CITY ", "VALLEY ", "BROS ", "CREEK ", "& SON ")
LINE_WIDTH, NAME_WIDTH = 48, 22  # of a statement, and of the merchant in it


def _statement_line(rng: random.Random, split: str, category: str, number: int) -> str:
    """A statement line: the name or pattern; number, city and date if drawn and if there is room; the amount."""
    if number % 4:
        prefix = rng.choice(_PREFIXES if category in _SHOPS else ("", "WEB ", "ACH "))
        line = prefix + _merchant(rng, split, category)
    else:
        line = rng.choice(_words(_SHAPES[category], ",")).replace("~", rng.choice(INVENTED[split]))
        line = _digits(rng, line).replace("@", f"{rng.choice(_AIRPORTS[:8])} {rng.choice(_AIRPORTS[8:])}")
    amount = _amount(rng, category)
    date = f" {1 + rng.randrange(12):02}/{1 + rng.randrange(28):02}"
    for extra in (_digits(rng, " #9999"), " " + rng.choice(_CITIES), date):
        if rng.randrange(2) and len(line + extra + amount) < LINE_WIDTH:
            line += extra
    return f"{line} {amount}"


def _merchant(rng: random.Random, split: str, category: str) -> str:
    """A merchant with its trade, truncated as banks do; half of the shops have another trade in their name, too."""
    common, new = _trades(category)
    trade = rng.choice(new if split != "train" and rng.randrange(2) else common)
    name = rng.choice(NAMES[split])
    if category in _SHOPS and rng.randrange(2):
        place = rng.choice(_trades(rng.choice([shop for shop in _SHOPS if shop != category]))[0])
        merchant = rng.choice((f"{trade} AT {name} {place}", f"{name} {place} ST {trade}"))
    else:
        merchant = f"{name} {rng.choice(_MIDDLES)}{trade}"
    cut = merchant[:NAME_WIDTH].rstrip()
    return cut if name in cut and trade[:5] in cut else f"{name} {trade}"[:NAME_WIDTH].rstrip()


def _trades(category: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    common, new = _TRADES[category].split("|")
    return _words(common, ","), _words(new, ",")


def _amount(rng: random.Random, category: str) -> str:
    if category == "income":
        return f"{rng.randrange(300, 5000):,}.{rng.randrange(100):02}"
    if category == "subscriptions":
        return f"-{rng.randrange(2, 30)}.99"
    if category == "fees":
        return f"-{rng.randrange(1, 36)}.{rng.choice(('00', '50'))}"
    return f"-{rng.randrange(3, 15 if category == 'coffee' else 160)}.{rng.randrange(100):02}"


def _digits(rng: random.Random, pattern: str) -> str:
    return "".join(str(rng.randrange(10)) if character == "9" else character for character in pattern)


# Headlines. Each company's first name belongs to one split.

SENTIMENTS = ("positive", "neutral", "negative")
GOOD_METRICS = ("profits", "sales", "orders", "margins", "revenues", "exports")
BAD_METRICS = ("losses", "costs", "debts", "complaints", "delays", "defects")
UP_VERBS = ("rise", "jump", "climb", "grow", "surge", "soar")
DOWN_VERBS = ("fall", "drop", "shrink", "slide", "sink", "dip")
NEGATIONS = ("do not", "no longer", "fail to")
COMPANIES = {
    "train": _words(
        "Ardent Goodwin Best Sharp Lossie Fairgain Bright Grimes Badger Hifall Profitt Costa Dropmore Uprise Winner "
        "Nott Nolan Risely Fallon Joy Gloom Sterling Poore Riches Harmon Crash Happy Sadler Debton Salesby Sinclair "
        "Growley Climber Luck Soren Slade Orderly Marlin Bolder Weakley Peake Slump Strong Crisp Delaney Merit Cloudy "
        "Sunny"
    ),
    "val": _words("Bonus Failsby Gaines Ruin Brisk Lowe Gladwin Dipton Robust Moody Quill Surgeon"),
    "test": _words(
        "Betterly Worsley Success Doome Noble Grieve Upton Downes Golden Lossiter Boon Bleak Proffer Costello Triumph "
        "Notley Risborough Falla Premier Harsh Swift Drab Cheers Soarby"
    ),
}
_BUSINESSES = _words("Foods Mills Motors Bank Steel Labs Rail Gas Inns Glass Paper Shoes")
_WHEN = _words("in Q1,in Q2,in Q3,in Q4,in May,in June,this year,this spring", ",")
_ASKING = ("Unclear if", "Analysts ask if", "Owners ask if")
_SAYING = ("Analysts say", "Owners told", "As forecast,", "Dividend unchanged,", "New chairman,", "Office moves,")
_STEADY = ("unchanged", "flat", "as forecast", "in line with forecasts")
_NOTICES = (  # + company, % metrics, ~ when, 9 a digit
    "+ names new chairman ~", "+ to hold annual meeting ~", "+ moves head office to unit 9", "+ to report % on 9 July",
    "+ names auditor of %", "Owners of + do not meet ~", "Owners of + no longer meet ~", "+ board to discuss % ~",
)  # fmt: skip
HEADLINE_WIDTH = 53


def _headline(rng: random.Random, split: str, sentiment: str, number: int) -> str:
    """A statement of `sentiment`, or one of three neutral kinds: a question, an unchanged metric, a notice.

    The number decides metric and negation (a third have one), so that these are balanced between the labels.
    """
    kind = "statement" if sentiment != "neutral" else rng.choice(("question", "steady", "notice"))
    metric = (GOOD_METRICS + BAD_METRICS)[number % 12]
    negation = (*NEGATIONS, "", "", "", "", "", "")[number // 12 % 9]
    company = f"{rng.choice(COMPANIES[split])} {rng.choice(_BUSINESSES)}"
    when = rng.choice(_WHEN)
    if kind == "notice":
        return _digits(rng, rng.choice(_NOTICES)).replace("+", company).replace("%", metric).replace("~", when)
    if kind == "steady":
        neither = f"neither {rng.choice(UP_VERBS)} nor {rng.choice(DOWN_VERBS)}"
        predicate = rng.choice((*_STEADY, neither, neither))
    else:
        up = rng.randrange(2) == 1
        if kind == "statement":  # the direction that makes the product of the three signs right
            up = (sentiment == "positive") == ((metric in GOOD_METRICS) == (negation == ""))
        predicate = f"{negation} {rng.choice(UP_VERBS if up else DOWN_VERBS)}".strip()
    order = rng.randrange(3)
    subject = f"{company} {metric} {when}" if order == 0 else f"{metric} at {company}" + f" {when}" * (order - 1)
    leads = _ASKING if kind == "question" else _SAYING if rng.randrange(3) == 0 else ()
    sentence = f"{subject} {predicate}"
    fitting = [lead for lead in leads if len(lead) + 1 + len(sentence) <= HEADLINE_WIDTH]
    if kind == "question" and not fitting:
        return _headline(rng, split, sentiment, number)
    return f"{rng.choice(fitting)} {sentence}" if fitting else sentence[0].upper() + sentence[1:]


TASKS: dict[str, Task] = {
    "transactions": Task("transactions", CATEGORIES, transactions),
    "headlines": Task("headlines", SENTIMENTS, headlines),
}
