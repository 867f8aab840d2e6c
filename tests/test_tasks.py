"""The classification tasks: the same examples from the same seed, no leak between splits, and labels that are right.

The labels are checked by oracles written here, from the text of the prompt alone.
"""

import hashlib
import json
import re
from collections import Counter

import pytest

from tinygpt.data import tasks
from tinygpt.data.tasks import TASKS

SHA256 = {
    "transactions": "de2783b6d1e93d130fac28d586b6b577af0431e6f03281e36d6524e317551e95",
    "headlines": "b80dd1aa16f4b80617749ea44c4023293343e5549038d312727c286344dde207",
}
WORDS = {
    "transactions": {split: tasks.NAMES[split] + tasks.INVENTED[split] for split in tasks.SIZES},
    "headlines": tasks.COMPANIES,
}
EXAMPLES = {name: task.make(1337) for name, task in TASKS.items()}
each_task = pytest.mark.parametrize("name", TASKS)


def words(prompt: str) -> list[str]:
    return re.findall("[A-Za-z]+", prompt)


def letters(prompt: str) -> str:
    return re.sub("[^a-z]", "", prompt.lower())


@each_task
def test_the_seed_decides(name: str) -> None:
    assert TASKS[name].name == name
    assert TASKS[name].make(1337) == EXAMPLES[name] != TASKS[name].make(1338)
    assert hashlib.sha256(json.dumps(EXAMPLES[name]).encode()).hexdigest() == SHA256[name]


@each_task
@pytest.mark.parametrize("seed", [1337, 2])
def test_sizes_labels_and_lengths(name: str, seed: int) -> None:
    splits, longest = TASKS[name].make(seed), max(map(len, TASKS[name].labels))
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 4000, "val": 500, "test": 1000}
    for examples in splits.values():
        counts = Counter(label for _, label in examples)
        assert set(counts) == set(TASKS[name].labels)
        assert max(counts.values()) - min(counts.values()) <= 1
        for prompt, _ in examples:
            assert len(prompt) + longest + 3 <= 64  # every label is scored with every prompt
            assert prompt.isascii() and prompt.isprintable() and prompt.strip() == prompt != ""


@each_task
@pytest.mark.parametrize("seed", [1337, 2])
def test_no_prompt_comes_twice(name: str, seed: int) -> None:
    prompts = [letters(prompt) for examples in TASKS[name].make(seed).values() for prompt, _ in examples]
    assert len(set(prompts)) == len(prompts)


@each_task
def test_merchants_and_companies_of_a_split_are_its_own(name: str) -> None:
    for split, examples in EXAMPLES[name].items():
        others = {word for other, names in WORDS[name].items() if other != split for word in names}
        for prompt, _ in examples:
            assert any(word in WORDS[name][split] for word in words(prompt)), prompt
            assert not others.intersection(words(prompt)), prompt


CUES = {  # of the trades, however they are cut, and of the shapes
    "groceries": r"MARKE|MKT|GROCE|FOOD|SUPER|PRODU|LN \d\d ITEMS|SCALE",
    "dining": r"GRILL|PIZZ|KITCH|DINER|SUSHI|BISTR|TBL|SVR",
    "coffee": r"COFFE|ESPRE|ROAST|CAFE|\dX \d\dOZ|\d SHOT",
    "transport": r"TAXI|CAB|PARKI|TRANS|METRO|TOLL|TRIP|TAP \d",
    "fuel": r"GAS\b(?! &)|FUEL|PETRO|OIL|PUMP \d|[\d.]+ GAL REG",
    "travel": r"HOTEL|AIR|INN|RESOR|\d{13} [A-Z]{3} [A-Z]{3}|FOLIO",
    "health": r"PHARM|PHCY|DENT|CLINI|VISIO|RX \d|PT \d",
    "utilities": r"ELEC|WATER|POWER|GAS &|ENERG|SEWER|\d+KWH|MTR",
    "shopping": r"BOOKS|SHOE|HARDW|TOY|APPAR|FURN|ORD \d{3}-|SKU",
    "subscriptions": r"STREA|MUSIC|CLOUD|VPN|NEWS|TV|DIGIT|COM\b",
    "fees": r"ATM|SERVI|SVC F|OVERD|WIRE|LATE|INTL TXN",
    "income": r"PAYRO|DIR D|DIREC|SALAR|INTER|PENSI|PPD ID",
}


@pytest.mark.parametrize("split", tasks.SIZES)
def test_one_trade_is_at_the_head_of_each_line(split: str) -> None:
    decoys = 0
    for prompt, label in EXAMPLES["transactions"][split]:
        assert prompt == prompt.upper()
        head = prompt.split(" AT ")[0].split(" ST ")[-1]
        assert [trade for trade, cue in CUES.items() if re.search(rf"\b(?:{cue})", head)] == [label], prompt
        decoys += head != prompt
    assert 0.1 < decoys / tasks.SIZES[split] < 0.3


def test_a_quarter_of_the_lines_has_only_its_shape() -> None:
    for split, examples in EXAMPLES["transactions"].items():
        invented = [label for prompt, label in examples if set(tasks.INVENTED[split]).intersection(words(prompt))]
        assert 0.2 < len(invented) / len(examples) < 0.3
        assert set(invented) == set(tasks.CATEGORIES)


GOOD = ["profits", "sales", "orders", "margins", "revenues", "exports"]
BAD = ["losses", "costs", "debts", "complaints", "delays", "defects"]
UP = ["rise", "jump", "climb", "grow", "surge", "soar"]
DOWN = ["fall", "drop", "shrink", "slide", "sink", "dip"]
NEGATIONS = ("do not", "no longer", "fail to")


def oracle(headline: str) -> str:
    """The label by reading: each bad metric, downward verb and negation turns the sign of a statement once."""
    tail = headline.split()
    if tail[-1] not in UP + DOWN or " if " in headline or " neither " in headline:
        return "neutral"
    metrics = [word.lower() for word in tail if word.lower() in GOOD + BAD]
    assert len(metrics) == 1, headline
    turns = (metrics[0] in BAD) + (tail[-1] in DOWN) + any(f" {negation} " in headline for negation in NEGATIONS)
    return "negative" if turns % 2 else "positive"


@pytest.mark.parametrize(
    ("headline", "label"),
    [
        ("Losses at Ardent Foods in Q3 shrink", "positive"),
        ("Ardent Foods profits in Q3 no longer rise", "negative"),
        ("Losses at Goodwin Rail do not fall", "negative"),
        ("New chairman, Best Inns costs in May fail to climb", "positive"),
        ("Owners ask if sales at Sharp Gas surge", "neutral"),
        ("Sales at Sharp Gas neither rise nor fall", "neutral"),
        ("Owners of Sharp Gas do not meet in May", "neutral"),
    ],
)
def test_the_oracle_reads(headline: str, label: str) -> None:
    assert oracle(headline) == label


@pytest.mark.parametrize("seed", [1337, 2])
def test_headlines_have_the_label_a_reader_gives(seed: int) -> None:
    for examples in TASKS["headlines"].make(seed).values():
        for headline, label in examples:
            assert oracle(headline) == label, headline


def test_no_word_tells_positive_from_negative() -> None:
    examples = EXAMPLES["headlines"]["train"]
    for phrase in [*GOOD, *BAD, *UP, *DOWN, *NEGATIONS]:
        count = Counter(label for headline, label in examples if re.search(rf"\b{phrase}\b", headline, re.IGNORECASE))
        assert count["neutral"] > 20, phrase
        assert min(count["positive"], count["negative"]) > 0.7 * max(count["positive"], count["negative"]), phrase


def test_all_three_signs_are_needed() -> None:
    """How often the best rule on two of metric, verb and negation is right: 1/2, or on metric and verb 2/3."""
    signs = [
        (
            any(word in GOOD for word in headline.lower().split()),
            headline.split()[-1] in UP,
            any(f" {negation} " in headline for negation in NEGATIONS),
            label,
        )
        for headline, label in EXAMPLES["headlines"]["train"]
        if label != "neutral"
    ]
    for left_out, right in ((0, 0.5), (1, 0.5), (2, 2 / 3)):
        counts = Counter((*sign[:left_out], *sign[left_out + 1 :]) for sign in signs)
        best = sum(max(counts[a, b, "positive"], counts[a, b, "negative"]) for a in (0, 1) for b in (0, 1))
        assert best / len(signs) == pytest.approx(right, abs=0.03)


def test_metric_and_verb_are_further_apart_than_a_short_n_gram() -> None:
    for headline, label in EXAMPLES["headlines"]["train"]:
        if label != "neutral":
            between = re.search(rf"\b(?:{'|'.join(GOOD + BAD)})\b(.*) \w+$", headline, re.IGNORECASE)
            assert between and len(between[1]) >= 6, headline
