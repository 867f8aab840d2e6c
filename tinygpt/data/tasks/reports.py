"""The tasks `reports`, `reports_a` and `reports_b`: a company's figures for a quarter -> two sentences about them.

The prompts are the same; the responses have the plain style of a base model, or that of one of two firms. Style and
fidelity are scored separately: by the rules of a firm's style, and by what the response states, in whatever style.

    prompt   Nordal Q2 sales 48.3 +6 profit 5.1 -12
    plain    In Q2 Nordal had sales of 48.3 million, up 6 percent. Profit was 5.1 million, down 12 percent.
    firm A   Nordal sales rose 6 % to EUR 48.3 m in Q2. Profit fell 12 % to EUR 5.1 m compared with last year.
    firm B   Q2 at Nordal: sales of €48.3m, up 6%. Profit of €5.1m, down 12%: mixed.

    make("a", 1337)["train"][0]      # -> (prompt, response)
"""

import random
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tinygpt.data.tasks.generate import Pair, words

SIZES = {"train": 4000, "val": 200, "test": 500}
FIRM_EXAMPLES = 400  # of train, for each firm
SOUNDS = ("BDGHKLMNPRSTV", "aeio", "lnr", "bdfgmstv", words("al en il is or eta ima ova"))  # of a company's name
MILLIONS = r"m\b|million\b"
PERCENT = r"%|percent\b"
SIGNS = {"up": 1, "rose": 1, "down": -1, "fell": -1}
VERDICTS = {"strong": {1}, "weak": {-1}, "mixed": {1, -1}}  # the signs of the two changes


class Figures(NamedTuple):
    """What a prompt states. Amounts are in millions; a change is in percent, with its sign."""

    company: str
    quarter: str
    sales: str
    sales_change: str
    profit: str
    profit_change: str

    def prompt(self) -> str:
        sales = f"{self.sales} {self.sales_change}"
        profit = f"{self.profit} {self.profit_change}"
        return f"{self.company} {self.quarter} sales {sales} profit {profit}"


def figures_of(prompt: str) -> Figures:
    """Parse the figures in a prompt of this task."""
    company, quarter, _, sales, sales_change, _, profit, profit_change = prompt.split()
    return Figures(company, quarter, sales, sales_change, profit, profit_change)


# ---- the three styles ------------------------------------------------------------------------------------------------


def plain(f: Figures) -> str:
    """Write the figures in the style of the base model."""
    sales, profit = changes(f, "up", "down", " percent")
    first = f"In {f.quarter} {f.company} had sales of {f.sales} million, {sales}."
    return f"{first} Profit was {f.profit} million, {profit}."


def firm_a(f: Figures) -> str:
    sales, profit = changes(f, "rose", "fell", " %")
    first = f"{f.company} sales {sales} to EUR {f.sales} m in {f.quarter}."
    return f"{first} Profit {profit} to EUR {f.profit} m compared with last year."


def firm_b(f: Figures) -> str:
    sales, profit = changes(f, "up", "down", "%")
    signs = {sign(f.sales_change), sign(f.profit_change)}
    verdict = next(name for name, verdict_signs in VERDICTS.items() if verdict_signs == signs)
    return f"{f.quarter} at {f.company}: sales of €{f.sales}m, {sales}. Profit of €{f.profit}m, {profit}: {verdict}."


def sign(change: str) -> int:
    return -1 if change.startswith("-") else 1


def changes(f: Figures, up: str, down: str, unit: str) -> list[str]:
    """Write the changes of sales and profit in words: `up 6 percent`."""
    words = {1: up, -1: down}
    return [f"{words[sign(change)]} {change[1:]}{unit}" for change in (f.sales_change, f.profit_change)]


STYLES: dict[str, Callable[[Figures], str]] = {"plain": plain, "a": firm_a, "b": firm_b}
NUMBER = r"\d+(?:\.\d+)?"
RULES = {  # name of a rule: pattern, and how often the response has it
    "plain": {
        "quarter first": (r"^In Q\d ", 1),
        "million in full": (rf"{NUMBER} million\b", 2),
        "percent in full": (rf"\b(?:up|down) {NUMBER} percent\b", 2),
    },
    "a": {
        "company first": (r"^(?!In |Q\d)[A-Z]\w+ ", 1),
        "EUR and m apart": (rf"\bEUR {NUMBER} m\b", 2),
        "percent sign apart": (rf"{NUMBER} %", 2),
        "past tense": (r"\b(?:rose|fell)\b", 2),
        "comparison at the end": (r" compared with last year\.$", 1),
    },
    "b": {
        "quarter first": (r"^Q\d ", 1),
        "€ and m attached": (rf"€{NUMBER}m\b", 2),
        "percent sign attached": (rf"{NUMBER}%", 2),
        "up or down": (r", (?:up|down)\b", 2),
        "verdict at the end": (rf": (?:{'|'.join(VERDICTS)})\.$", 1),
    },
}


# ---- scores ----------------------------------------------------------------------------------------------------------


def check_style(firm: str, response: str) -> dict[str, bool]:
    """Check each rule of a firm's style. No rule looks at the company, the digits or the direction of a change."""
    return {name: len(re.findall(pattern, response)) == times for name, (pattern, times) in RULES[firm].items()}


def check_facts(prompt: str, response: str) -> dict[str, bool]:
    """Check what a response in any of the styles states: the prompt's figures, all of them, and nothing else.

    directions: sales and profit each have one word for the direction, which agrees with the sign of the change; a
    verdict, if there is one, agrees with both.
    """
    figures = figures_of(prompt)
    parts = re.split(r"\bprofit\b", response, flags=re.IGNORECASE)
    both = len(parts) == 2 and "sales" in parts[0]
    values = ((figures.sales, figures.sales_change), (figures.profit, figures.profit_change))
    signs = [sign(change) for _, change in values]
    verdicts = [verdict_signs for name, verdict_signs in VERDICTS.items() if re.search(rf"\b{name}\b", response)]
    return {
        "company": len(re.findall(rf"\b{figures.company}\b", response)) == 1,
        "quarter": re.findall(r"\bQ\d+", response) == [figures.quarter],
        "figures": both and all(map(has_figures, parts, values)),
        "directions": both
        and [signs_in(part) for part in parts] == [[expected] for expected in signs]
        and verdicts in ([], [set(signs)]),
    }


def has_figures(text: str, values: tuple[str, str]) -> bool:
    """Return whether a text has exactly this amount and this change, each with its unit, and no other number."""
    amount, change = values
    numbers = re.findall(NUMBER, re.sub(r"\bQ\d+", "", text))
    amounts, changes = (re.findall(rf"({NUMBER}) ?(?:{unit})", text) for unit in (MILLIONS, PERCENT))
    signed = re.search(r"[-+−]\W*\d", text)  # a word tells the direction
    return not signed and len(numbers) == 2 and (amounts, changes) == ([amount], [change[1:]])


def signs_in(text: str) -> list[int]:
    """Find the signs of the words for a direction in a text."""
    return [SIGNS[direction] for direction in re.findall(rf"\b(?:{'|'.join(SIGNS)})\b", text)]


def scores(firm: str, prompt: str, expected: str, response: str) -> dict[str, bool]:
    """Judge a response: `style` (all rules of the firm), `fidelity` (all facts), and each rule and fact by its name."""
    rules = check_style(firm, response)
    facts = check_facts(prompt, response)
    return {"style": all(rules.values()), "fidelity": all(facts.values()), **rules, **facts}


SCORES = {firm: partial(scores, firm) for firm in STYLES}


def make(firm: str, seed: int) -> dict[str, list[Pair]]:
    """Make the pairs of each split in a style: all of train for the base model, the first examples for a firm.

    Each company occurs once, so those of val and test do not occur in train. The figures are the same in all styles.
    """
    rng = random.Random(seed)
    companies: dict[str, None] = {}
    while len(companies) < sum(SIZES.values()):
        companies["".join(map(rng.choice, SOUNDS))] = None
    names = iter(companies)
    splits = {split: [draw_figures(rng, next(names)) for _ in range(size)] for split, size in SIZES.items()}
    if firm != "plain":
        splits["train"] = splits["train"][:FIRM_EXAMPLES]
    return {split: [(figures.prompt(), STYLES[firm](figures)) for figures in part] for split, part in splits.items()}


def draw_figures(rng: random.Random, company: str) -> Figures:
    """Draw figures of a company. The two changes differ in size, so that an exchange of the two is a mistake."""
    sales_change, profit_change = (f"{rng.choice('+-')}{size}" for size in rng.sample(range(1, 40), 2))
    sales = f"{rng.randrange(100, 1000) / 10:.1f}"
    profit = f"{rng.randrange(10, 100) / 10:.1f}"
    return Figures(company, f"Q{rng.randint(1, 4)}", sales, sales_change, profit, profit_change)
