"""The task `transactions`: a line of a card statement -> its spending category.

The lines are templates: a payment processor's prefix, a merchant, a store number, a place, a date, an amount.

`with_brands`: the merchants of nine categories are real brands (data/tasks/merchants.py), and no brand of val or test
occurs in train. Many names do not say what the brand sells (`ARCO`, `WENDYS`). A model that knows the brands, for
example from pretraining on much text, can classify them; others have to guess. The rest of a line tells nothing except
the low price of a coffee: prefix, number and date are drawn in the same way for all nine, the place is in the brand's
country, and there are no lines whose form gives the label. The table has no brands for fees, income and subscriptions.
Their lines are invented, as below, and easy.

`invented`: all merchants are invented. Three of four lines name the trade, in words that other merchants share; some
have a decoy (in `GRILL AT HOLT MKT` the market is only the place). In the fourth the merchant's name is an invented
word, and the category follows from the rest of the line. The merchants in val and test do not occur in train.

    with_brands(1337)["train"][0]  # -> (prompt, response)
"""

import random

from tinygpt.data.tasks.generate import Pair, digits, generate, words
from tinygpt.data.tasks.merchants import NAME_WIDTH, Merchant, merchants_by_label

CATEGORIES = (
    "groceries", "dining", "coffee", "transport", "fuel", "travel", "health", "utilities", "shopping",
    "subscriptions", "fees", "income",
)  # fmt: skip
# The name of each invented merchant contains a word of its split's NAMES or INVENTED, which no other split has.
NAMES = {
    "train": words(
        "ALDER ASHBY BARTON BELMONT BIRCH BLAKE BRIAR CALDER CARVER CEDAR COLBY CORBIN CRANE DALTON DENBY DUNMORE "
        "EASTON ELMORE EMBER FALCON FARROW FENTON GARNET GIBSON GOLDEN GRANT HALSEY HARLOW HAWTHORN HOLT HUDSON HUXLEY "
        "IRVING JASPER JUNIPER KELLER KENDAL KIRBY LAMBERT LAUREL LINDEN LOGAN LUNA MAGNOLIA MARLOW MERCER MILLER "
        "MONROE NEWTON NOLAN NORTH OAKLEY ORCHARD OTTER PARKER PEARL PIONEER PRESTON QUINN RAVEN RIDGE ROWAN RUBY SAGE "
        "SEABURY SHELDON SPENCER STELLA SUMMIT TANNER THATCHER TILDEN TURNER UNION VERNON WALDEN WALTON WARREN WILLOW "
        "WINSTON"
    ),
    "val": words("AMBROSE BEACON CLIFTON DORSET ELLIS FOSTER GRAFTON HOBART IVY KESTREL LOWELL MAPLE"),
    "test": words(
        "ARCHER BLUE BRADLEY CAMDEN CYPRESS DEXTER EVERETT FULTON GROVE HARBOR HICKORY JARVIS KNOX LANDON MADISON "
        "MORROW OSPREY PALMER REDWOOD RIVERSIDE SALEM SUTTON TRENT WESTON"
    ),
}
_STARTS = {
    "train": words(
        "BALU CORVI MURGO FEXA GAMBRI HULO JORVE KALTI LUMBO MEZZA NIVRO OSTRU PELVA QUARLI RUVO SILBO TOXI VANDRE "
        "WEXO YULTA ZARBI"
    ),
    "val": words("BRINJO DAXU FILVO GURTA MORJE SUNDVI"),
    "test": words("ARVO CHUBLI DREMU ELTI HAXO IMBRE KOSTU LIRVA NUXE TRALDI UMBO VOLJI"),
}
_ENDS = words("NA RIS TEK LO VEX DAN MIRA SOL PO NDER QUE ZZI THE RN BEL KA")
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


def with_brands(seed: int) -> dict[str, list[Pair]]:
    """Make lines of card statements with real brands, each with one of `CATEGORIES`."""
    return generate(seed, CATEGORIES, _statement_line)


def invented(seed: int) -> dict[str, list[Pair]]:
    """Make lines of card statements with invented merchants, each with one of `CATEGORIES`."""
    return generate(seed, CATEGORIES, _invented_line)


def _statement_line(rng: random.Random, split: str, category: str, number: int) -> str:
    """A line with a real brand; if the category has none, with an invented merchant."""
    brands = merchants_by_label().get(category)
    if brands is None:
        return _invented_line(rng, split, category, number)
    return line_of(rng, rng.choice(brands[split]), category)


def line_of(rng: random.Random, merchant: Merchant, category: str) -> str:
    """A line of a card statement with a brand: a prefix, its name, a number, a place, a date, an amount."""
    places = _PLACES[rng.choice([country for country in merchant.countries if country in _PLACES] or list(_PLACES))]
    return _with_details(rng, rng.choice(_PREFIXES) + merchant.name, category, places)


def _invented_line(rng: random.Random, split: str, category: str, number: int) -> str:
    """A line with an invented merchant; in every fourth, the form of the line gives the category."""
    if number % 4:
        prefix = rng.choice(_PREFIXES if category in _SHOPS else ("", "WEB ", "ACH "))
        line = prefix + _merchant(rng, split, category)
    else:
        line = rng.choice(words(_SHAPES[category], ",")).replace("~", rng.choice(INVENTED[split]))
        line = digits(rng, line).replace("@", f"{rng.choice(_AIRPORTS[:8])} {rng.choice(_AIRPORTS[8:])}")
    return _with_details(rng, line, category, _CITIES)


def _with_details(rng: random.Random, line: str, category: str, places: tuple[str, ...]) -> str:
    """The line with its amount, and before it a number, a place and a date, each if drawn and if there is room."""
    amount = _amount(rng, category)
    date = f" {1 + rng.randrange(12):02}/{1 + rng.randrange(28):02}"
    for extra in (digits(rng, " #9999"), " " + rng.choice(places), date):
        if rng.randrange(2) and len(line + extra + amount) < LINE_WIDTH:
            line += extra
    return f"{line} {amount}"


def _merchant(rng: random.Random, split: str, category: str) -> str:
    """A merchant with its trade, truncated as banks do; half of the shops also have another trade in their name."""
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
    return words(common, ","), words(new, ",")


def _amount(rng: random.Random, category: str) -> str:
    if category == "income":
        return f"{rng.randrange(300, 5000):,}.{rng.randrange(100):02}"
    if category == "subscriptions":
        return f"-{rng.randrange(2, 30)}.99"
    if category == "fees":
        return f"-{rng.randrange(1, 36)}.{rng.choice(('00', '50'))}"
    return f"-{rng.randrange(3, 15 if category == 'coffee' else 160)}.{rng.randrange(100):02}"
