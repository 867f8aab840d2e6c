"""The built-in tasks: one contract for all (same examples from the same seed, no leak, the documented sizes); then what
is particular to transactions and headlines. The others have files of their own.

The labels are checked by oracles written here, from the text of the prompt alone; those of real brands against the
table, and the table against the package that it is derived from, where that is installed.
"""

import hashlib
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ok, script
from tasks_made import examples

from tinygpt.data.dataset import Dataset
from tinygpt.data.tasks import TASKS, generate, headlines, merchants, sql, transactions
from tinygpt.examine.eval.classify import ngram_classifier

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "node_modules/name-suggestion-index"
README = (ROOT / "data/README.md").read_text(encoding="utf-8")
SYNTHETIC = "transactions --synthetic"


class Contract(NamedTuple):
    """What every task promises, for the seed 1337."""

    sha256: str
    longest: int  # characters of a prompt and its response, or the longest label; three special tokens join them
    sizes: str  # of train, val and test, as data/README.md quotes them at the end of this line
    most_frequent: str = ""  # share of the most frequent label, as data/README.md quotes it


THREE = "| train / val / test | 4,000 / 500 / 1,000 | 4,000 / 500 / 1,000 | 4,000 / 500 / 1,000 |"
SHARES = "| most frequent label | 8.4% of test | 8.4% of test | 33.4% of test |"
SQL_256 = "fe2f945910ea327977f8676274003364b0383b44823ea289b229c6e527f62426"
CONTRACTS = {
    "transactions": Contract("82210fdb88710becdca786b7f01e46588a1a1be1d84001a5540c7fffe433c376", 61, THREE, SHARES),
    SYNTHETIC: Contract("de2783b6d1e93d130fac28d586b6b577af0431e6f03281e36d6524e317551e95", 61, THREE, SHARES),
    "headlines": Contract("84a50bcb5d41fd6dc1f603854912c4f8975cc3138f32a7b5bd86fd6fece6246e", 61, THREE, SHARES),
    "compliance": Contract(
        "e90a7e588a243e56a9b66e791b857e3e397d5fdbc3b58806c5eadbe8ee2ab2bc",
        125,
        "| train / val / test | 10,000 / 5,000 / 5,000 |",
        "| most frequent label | 98.0% of test |",
    ),
    "sectors": Contract(
        "2b9f562fcb9c23ba2c0e46b048fd3fd956283fbe0888576de8568ce19cda4399",
        61,
        "| all | 2,070 | 281 | 571 |",
        "the most frequent one is 25.2% of test",
    ),
    "reader": Contract("a3c5eea775da20e7fdf2d9ad9937606bbe24211c1f375fc5ee33f87432f84de3", 254, ""),
    "reader_long": Contract("3c00695a6110ffeaff6fb286fd378e58c383cc22757441d28d7c6b150615b7a4", 510, ""),
    "reports": Contract(
        "4aa5396fb06c121f4a9cee247268afb3f9cf45b25bfbe8880c9193dc2e7b6399", 141, "4,000 train, 200 val, 500 test"
    ),
    "reports_a": Contract("9022a7526746e178ae335156d4b467225b592ef050f6862d0ae5f4668283ea6d", 141, ""),
    "reports_b": Contract("9b002fe4bc7b6dec5595a9a7f26757751875181fdc0b49dd145aefd8bed5c7ee", 141, ""),
    "sql": Contract("5403d5e56ea74888677e8b6bc23bc57fe0b08c8a143d252b3cbea136f8135e0e", 157, ""),
}
CASES = [pytest.param(form, 1337, id=form) for form in CONTRACTS]
CASES += [pytest.param(form, 2, id=f"{form}, another seed") for form in ("transactions", SYNTHETIC, "headlines")]
CASES += [
    pytest.param(form, 2, id=f"{form}, another seed", marks=pytest.mark.slow)
    for form in ("compliance", "sectors", "reader", "reports_a", "sql")
]


def words(prompt: str) -> list[str]:
    return re.findall("[A-Za-z]+", prompt)


@pytest.mark.parametrize(("form", "seed"), CASES)
def test_a_task_keeps_its_contract(form: str, seed: int) -> None:
    contract, splits, labels = CONTRACTS[form], examples(form, seed), TASKS[form.split()[0]].labels
    digest = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    assert (digest == contract.sha256) == (seed == 1337)
    if contract.sizes:
        quoted = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", contract.sizes)]
        assert quoted[-3:] == [len(pairs) for pairs in splits.values()] and contract.sizes in README
    seen: set[str] = set()
    for split in ("test", "val", "train"):
        counts = Counter(response for _, response in splits[split])
        if labels:
            assert set(counts) == set(labels)
            assert form in ("compliance", "sectors") or max(counts.values()) - min(counts.values()) <= 1
        for prompt, response in splits[split]:
            assert len(prompt) + max(map(len, labels or [response])) <= contract.longest, prompt
            assert prompt.strip() == prompt != "" and response.strip() == response
            assert prompt.replace("\n", "").isprintable() and (prompt.isascii() or "reader" in form), prompt
            same = re.sub("[^a-z]", "", prompt.lower()) if labels else prompt
            assert same not in seen, prompt
            if (form, split) != ("sql", "train"):  # only there may a prompt occur twice
                seen.add(same)
    if contract.most_frequent and seed == 1337:
        most = Counter(label for _, label in splits["test"]).most_common(1)[0][1]
        assert f"{100 * most / len(splits['test']):.1f}% of test" in contract.most_frequent
        assert contract.most_frequent in README


@pytest.mark.slow
def test_the_complete_task_sql_keeps_its_contract() -> None:
    made = sql.make(1337)
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest() == SQL_256
    sizes = " / ".join(f"{len(pairs):,}" for pairs in made.values())
    assert f"| train / val / test | {sizes}, in equal shares of twelve kinds |" in README
    assert "Which 3 clients paid the most in May?" in {prompt for prompt, _ in made["train"]}  # in the README, too
    shares = {
        split: Counter(re.sub(r"'[^']+'|\d+", "_", re.sub(r"(sum|avg|max|min)\(", "_(", query)) for _, query in pairs)
        for split, pairs in made.items()
    }
    assert shares["train"].keys() == shares["test"].keys() and len(shares["test"]) > 25
    for shape, count in shares["train"].items():  # drawing again where a near miss gives equal rows leaves none out
        assert 0.4 < shares["test"][shape] / 1000 / (count / 48_000) < 2.5, shape


@pytest.mark.parametrize("form", ["transactions", SYNTHETIC, "headlines", "sectors", "reports_a"])
def test_prepare_writes_these_examples(form: str, tmp_path: Path) -> None:
    """And so does the command that a message suggests."""
    ok(tmp_path, "prepare", *form.split())
    dataset = Dataset(str(tmp_path / "data"), form.split()[0])
    assert dataset.meta["sha256"]["source"] == CONTRACTS[form].sha256
    prompt, label = examples(form)["test"][0]
    start = f"<|prompt|>{prompt}<|response|>{label}<"
    assert dataset.tokenizer.decode(dataset.splits["test"].tolist()).startswith(start)
    assert ("--synthetic" in dataset.prepare_command) == ("--synthetic" in form)
    if form == SYNTHETIC:
        shutil.rmtree(dataset.folder)
        ok(tmp_path, *dataset.prepare_command.split()[1:])
        assert Dataset(str(tmp_path / "data"), "transactions").meta == dataset.meta


WORDS = {
    SYNTHETIC: {split: transactions.NAMES[split] + transactions.INVENTED[split] for split in generate.SIZES},
    "headlines": headlines.COMPANIES,
}


@pytest.mark.parametrize("form", WORDS)
def test_merchants_and_companies_of_a_split_are_its_own(form: str) -> None:
    for split, pairs in examples(form).items():
        others = {word for other, names in WORDS[form].items() if other != split for word in names}
        for prompt, _ in pairs:
            assert any(word in WORDS[form][split] for word in words(prompt)), prompt
            assert not others.intersection(words(prompt)), prompt


@pytest.mark.slow
def test_the_examples_in_the_readme_of_the_data_are_examples_of_the_tasks() -> None:
    """Those of the tables but that of sql, and the indented lines that end with a label."""
    forms = ("headlines", "transactions", "compliance", "sectors", SYNTHETIC)
    pairs = {pair for form in forms for split in examples(form).values() for pair in split}
    prompts = {prompt for prompt, _ in pairs}
    tables = re.findall(r"^\| (?:example|prompt) \| .*`.*$", README, re.MULTILINE)
    cells = [cell for row in tables for cell in re.findall("`(.*?)`", row)]
    assert len(cells) == 5 and [cell for cell in cells[:4] if cell not in prompts] == []
    labels = "|".join(label for task in TASKS.values() for label in task.labels)
    lines = re.findall(rf"^    (\S.*\S) +({labels})$", README, re.MULTILINE)
    assert len(lines) == 14 and [line for line in lines if line not in pairs] == []


# ---- real brands ------------------------------------------------------------------------------------------------

BRANDS = {
    (label, split): [merchant.name for merchant in those]
    for label, splits in merchants.merchants_by_label().items()
    for split, those in splits.items()
}
PREFIXES = ("", "SQ *", "TST* ", "PAYPAL *", "SP ", "POS ")
DETAILS = re.compile(r"(?: #\d{4})?(?: [A-Z]+ [A-Z]{2})?(?: \d\d/\d\d)? -\d+\.\d\d")


def spaced(name: str) -> str:
    """The words of a name with a space around each: ` TESCO EXTRA `."""
    return f" {' '.join(word for word in re.findall('[A-Z0-9]+', name) if word not in ('THE', 'AND'))} "


def test_no_brand_of_one_split_is_in_another() -> None:
    """Neither the name, nor a name that is a part of it or that it is a part of."""
    names: dict[str, set[str]] = defaultdict(set)
    for (_, split), those in BRANDS.items():
        names[split] |= {spaced(name) for name in those}
    for split in names:
        others = "|".join(sorted(name for other in names if other != split for name in names[other]))
        assert not [name for name in names[split] if name in others]
        squeezed = {name.replace(" ", "") for name in names[split]}
        assert not squeezed & {name.replace(" ", "") for name in others.split("|")}


def test_no_brand_of_val_or_test_is_in_a_line_of_train() -> None:
    lines = "|".join(spaced(prompt) for prompt, _ in examples("transactions")["train"])
    held_out = [name for (_, split), names in BRANDS.items() if split != "train" for name in names]
    assert not [name for name in held_out if spaced(name) in lines]
    assert [name for name in BRANDS["coffee", "train"] if spaced(name) in lines]


def test_each_line_has_a_brand_of_its_label_and_split_or_an_invented_name() -> None:
    seen = set()
    for split, pairs in examples("transactions").items():
        for prompt, label in pairs:
            if label not in ("subscriptions", "fees", "income"):
                rests = [prompt.removeprefix(prefix) for prefix in PREFIXES]
                fitting = [
                    name
                    for name in BRANDS[label, split]
                    if any(rest.startswith(name) and DETAILS.fullmatch(rest[len(name) :]) for rest in rests)
                ]
                assert fitting, prompt
                seen.add((split, max(fitting, key=len)))
            else:
                assert set(WORDS[SYNTHETIC][split]).intersection(words(prompt)), prompt
    counts = Counter(split for split, _ in seen)
    assert counts["train"] > 1500 and counts["val"] > 200 and counts["test"] > 400


def test_lines_with_a_brand_are_a_group() -> None:
    for split, pairs in examples("transactions").items():
        groups = [TASKS["transactions"].group(prompt) == "with a brand" for prompt, _ in pairs]
        named = [label not in ("subscriptions", "fees", "income") for _, label in pairs]
        wrong = [pair for pair, one, other in zip(pairs, groups, named, strict=True) if one != other]
        # one is also an invented name, such as OAKLEY
        assert len(wrong) <= (10 if split == "train" else 0), wrong
    synthetic = examples(SYNTHETIC)["test"]
    assert {TASKS["transactions"].group(prompt) for prompt, _ in synthetic} == {"without a brand"}


def test_every_label_has_brands_enough_in_every_split() -> None:
    least = {"train": 90, "val": 12, "test": 25}
    assert len(BRANDS) == 27 and all(len(names) >= least[split] for (_, split), names in BRANDS.items())
    assert all(len(set(names)) == len(names) for names in BRANDS.values())


def test_well_known_brands_have_the_label_that_everybody_gives() -> None:
    known = {
        "groceries": "LIDL ICELAND WAITROSE", "dining": "WENDYS KFC NANDOS", "coffee": "STARBUCKS COSTA",
        "transport": "ZIPCAR LYFT TTC", "fuel": "BP ARCO GULF", "travel": "HILTON MARRIOTT RAMADA",
        "health": "SPECSAVERS AMPLIFON", "utilities": "ENTERGY PPL UGI", "shopping": "ZARA NIKE PRIMARK",
    }  # fmt: skip
    for label, names in known.items():
        assert set(names.split()) <= {name for split in generate.SIZES for name in BRANDS[label, split]}, label


def test_a_name_with_two_labels_is_in_no_line() -> None:
    """From the table alone: the labels of a name are those of all its categories."""
    labels: dict[str, set[str]] = defaultdict(set)
    for name, category, countries in merchants.rows():
        labels[merchants.descriptor(name)].add(merchants.LABELS[category])
        assert set(countries) <= {"au", "ca", "gb", "ie", "nz", "us", "001"} and countries, name
    assert sum(len(those) > 1 for those in labels.values()) > 100
    for (label, _), names in BRANDS.items():
        assert all(labels[name] == {label} for name in names)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("McDonald's", "MCDONALDS"), ("Crème & Co.", "CREME & CO"), ("H&M", "H&M"), ("Toys“R”Us", "TOYS R US"),
        ("Yuba-Sutter Transit", "YUBA-SUTTER TRANSIT"), ("Applebee's Neighborhood Grill", "APPLEBEES NEIGHBORHOOD"),
        ("Пятёрочка", ""), ("Smørrebrød", ""), ("76", ""), ("3", ""), ("", ""),
    ],
)  # fmt: skip
def test_names_are_shown_as_statements_show_them(name: str, shown: str) -> None:
    assert merchants.descriptor(name) == shown


def test_what_the_script_takes_from_the_index() -> None:
    index: dict[str, dict[str, list]] = {category: {"items": []} for category in merchants.LABELS}

    def add(category: str, key: str, name: str, *places: object, **tags: str) -> None:
        item = {"displayName": f"{name} (x)", "locationSet": {"include": [*places]}, "tags": {key: name, **tags}}
        index[category]["items"].append(item)

    add("brands/amenity/fuel", "brand", "Shell", "us-tx.geojson", "ie")
    add("brands/amenity/fuel", "brand", "Shell", "001")
    add("brands/amenity/fuel", "brand", "Total", "fr", [2.3, 48.9, 5])
    add("brands/amenity/fuel", "brand", "Лукойл", "001")
    add("brands/amenity/cafe", "brand", "Koi", "us", cuisine="bubble_tea")
    add("brands/amenity/cafe", "brand", "Costa", "gb-eng", cuisine="coffee_shop")
    add("brands/amenity/cafe", "brand", "Eggslut", "us", cuisine="coffee_shop")
    add("transit/route/bus", "network", "Barnsley", "gb")
    add("transit/route/bus", "network", "OCTA", "us")
    add("transit/route/bus", "network", "MHD", "001")
    add("operators/man_made/water_works", "operator", "City of Austin", "us")
    lines = [line for line in script("merchants", "data/make").table(index).splitlines() if not line.startswith("#")]
    assert lines == ["Costa\tgb", "OCTA\tus", "Shell\t001 ie us"]


@pytest.mark.skipif(not INDEX.exists(), reason="needs npm install --no-save name-suggestion-index@8.0.20260918")
def test_the_script_makes_the_table_again() -> None:
    index = json.loads((INDEX / "dist/json/nsi.json").read_text(encoding="utf-8"))["nsi"]
    assert script("merchants", "data/make").table(index) == merchants.TABLE.read_text(encoding="utf-8")
    notice = merchants.TABLE.with_suffix(".LICENSE").read_text(encoding="utf-8")
    assert notice == (INDEX / "LICENSE.md").read_text(encoding="utf-8")
    for (label, _), names in BRANDS.items():
        items = [item for category in merchants.CATEGORIES[label] for item in index[category]["items"]]
        found = {merchants.descriptor(value) for item in items for value in item["tags"].values()}
        assert set(names) <= found | {merchants.descriptor(item["displayName"]) for item in items}


def test_the_notice_of_the_table_is_complete() -> None:
    notice = merchants.TABLE.with_suffix(".LICENSE").read_text(encoding="utf-8")
    assert "BSD 3-Clause" in notice and "name-suggestion-index contributors" in notice and "AS IS" in notice


@pytest.mark.slow
def test_the_quoted_counts_and_baseline_are_those_of_the_task() -> None:
    pytest.importorskip("sklearn")
    for label in merchants.CATEGORIES:
        assert f"| {label} | {' | '.join(str(len(BRANDS[label, split])) for split in generate.SIZES)} |" in README
    prompts, labels = (
        {split: [pair[i] for pair in examples("transactions")[split]] for split in generate.SIZES} for i in (0, 1)
    )
    names = list(TASKS["transactions"].labels)
    truth = {split: np.array([names.index(label) for label in labels[split]]) for split in labels}
    classifier, _ = ngram_classifier(prompts["train"], truth["train"], len(names))
    assert classifier
    right = classifier(prompts["test"]).argmax(axis=1) == truth["test"]
    with_brands = np.isin(labels["test"], list(merchants.CATEGORIES))
    assert f", {100 * right.mean():.1f}% (across words)" in README
    assert f"character n-grams reach {100 * right[with_brands].mean():.1f}%" in README.replace("\n", " ")


# ---- invented merchants -----------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("split", generate.SIZES)
def test_one_trade_is_at_the_head_of_each_line(split: str) -> None:
    decoys = 0
    for prompt, label in examples(SYNTHETIC)[split]:
        assert prompt == prompt.upper()
        head = prompt.split(" AT ")[0].split(" ST ")[-1]
        assert [trade for trade, cue in CUES.items() if re.search(rf"\b(?:{cue})", head)] == [label], prompt
        decoys += head != prompt
    assert 0.1 < decoys / generate.SIZES[split] < 0.3


def test_a_quarter_of_the_lines_has_only_its_shape() -> None:
    for split, pairs in examples(SYNTHETIC).items():
        invented = [label for prompt, label in pairs if set(transactions.INVENTED[split]).intersection(words(prompt))]
        assert 0.2 < len(invented) / len(pairs) < 0.3
        assert set(invented) == set(transactions.CATEGORIES)


# ---- headlines --------------------------------------------------------------------------------------------------

GOOD = ["profits", "sales", "orders", "margins", "revenues", "exports"]
BAD = ["losses", "costs", "debts", "complaints", "delays", "defects"]
UP = ["rise", "jump", "climb", "grow", "surge", "soar"]
DOWN = ["fall", "drop", "shrink", "slide", "sink", "dip"]
NEGATIONS = ("do not", "no longer", "fail to")
NEW_GOOD = ["earnings", "bookings", "receipts", "surpluses", "ratings", "customers"]
NEW_BAD = ["deficits", "expenses", "fines", "recalls", "lawsuits", "shortages"]
NEW_UP = ["increase", "double", "swell", "leap", "mount", "multiply"]
NEW_DOWN = ["decrease", "decline", "plunge", "halve", "tumble", "dwindle"]
DOWNWARD, UNWANTED = DOWN + NEW_DOWN, BAD + NEW_BAD
ALL_VERBS, ALL_METRICS = UP + NEW_UP + DOWNWARD, GOOD + NEW_GOOD + UNWANTED


def named(headline: str, listed: list[str]) -> list[str]:
    return [word for word in headline.lower().split() if word in listed]


def oracle(headline: str) -> str:
    """The label by reading: each bad metric, downward verb and negation turns the sign of a statement once."""
    tail = headline.split()
    if tail[-1] not in ALL_VERBS or " if " in headline or " neither " in headline:
        return "neutral"
    (metric,) = named(headline, ALL_METRICS)
    turns = (metric in UNWANTED) + (tail[-1] in DOWNWARD) + any(f" {no} " in headline for no in NEGATIONS)
    return "negative" if turns % 2 else "positive"


@pytest.mark.parametrize("seed", [1337, 2])
def test_headlines_have_the_label_a_reader_gives(seed: int) -> None:
    for pairs in examples("headlines", seed).values():
        for headline, label in pairs:
            assert oracle(headline) == label, headline


@pytest.mark.parametrize("seed", [1337, 2])
def test_each_statement_of_test_is_new_in_its_metric_its_verb_or_both_together(seed: int) -> None:
    splits = examples("headlines", seed)
    known = [headline for split in ("train", "val") for headline, _ in splits[split]]
    seen = {word for headline in known for word in words(headline.lower())}
    together = {(m, v) for one in known for m in named(one, ALL_METRICS) for v in named(one, ALL_VERBS)}
    assert len(together) == 2 / 3 * 144  # each metric with 8 of 12 verbs
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for headline, label in splits["test"]:
        group = "neutral headlines"
        if label != "neutral":
            (metric,), (verb,) = named(headline, ALL_METRICS), named(headline, ALL_VERBS)
            new = [word for word in (metric, verb) if word not in seen]
            assert len(new) == 1 or (not new and (metric, verb) not in together), headline
            group = "new words" if new else "new combinations"
        assert TASKS["headlines"].group(headline) == group, headline
        groups[group][label] += 1
    assert groups["new words"] == {"positive": 222, "negative": 222}
    assert sum(groups["new combinations"].values()) == 223 and len(groups) == 3
    for headline, label in splits["train"] + splits["val"]:
        group = "neutral headlines" if label == "neutral" else "known combinations"
        assert TASKS["headlines"].group(headline) == group, headline


def test_no_word_tells_positive_from_negative() -> None:
    pairs = examples("headlines")["train"]
    for phrase in [*GOOD, *BAD, *UP, *DOWN, *NEGATIONS]:
        count = Counter(label for headline, label in pairs if re.search(rf"\b{phrase}\b", headline, re.IGNORECASE))
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
        for headline, label in examples("headlines")["train"]
        if label != "neutral"
    ]
    for left_out, right in ((0, 0.5), (1, 0.5), (2, 2 / 3)):
        counts = Counter((*sign[:left_out], *sign[left_out + 1 :]) for sign in signs)
        best = sum(max(counts[a, b, "positive"], counts[a, b, "negative"]) for a in (0, 1) for b in (0, 1))
        assert best / len(signs) == pytest.approx(right, abs=0.03)


def test_metric_and_verb_are_further_apart_than_a_short_n_gram() -> None:
    for headline, label in examples("headlines")["train"]:
        if label != "neutral":
            between = re.search(rf"\b(?:{'|'.join(GOOD + BAD)})\b(.*) \w+$", headline, re.IGNORECASE)
            assert between and len(between[1]) >= 6, headline
