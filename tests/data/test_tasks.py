"""The built-in tasks: one contract for all (same examples from the same seed, no leak, the documented sizes); then what
is particular to transactions and headlines. The others have files of their own.

The labels are checked by oracles written here, from the text of the prompt alone; those of brands against the table.
"""

import hashlib
import itertools
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from conftest import ok
from tasks_made import Examples, examples

from tinygpt.data.dataset import Dataset
from tinygpt.data.tasks import TASKS, merchants, sql, transactions

SYNTHETIC = "transactions --synthetic"
CONTRACTS = {  # SHA-256 of the examples for the seed 1337, and the most characters of a prompt with its label
    "transactions": ("82210fdb88710becdca786b7f01e46588a1a1be1d84001a5540c7fffe433c376", 61),
    SYNTHETIC: ("de2783b6d1e93d130fac28d586b6b577af0431e6f03281e36d6524e317551e95", 61),
    "headlines": ("84a50bcb5d41fd6dc1f603854912c4f8975cc3138f32a7b5bd86fd6fece6246e", 61),
    "compliance": ("e90a7e588a243e56a9b66e791b857e3e397d5fdbc3b58806c5eadbe8ee2ab2bc", 125),
    "reader": ("a3c5eea775da20e7fdf2d9ad9937606bbe24211c1f375fc5ee33f87432f84de3", 254),
    "reader_long": ("3c00695a6110ffeaff6fb286fd378e58c383cc22757441d28d7c6b150615b7a4", 510),
    "reports": ("4aa5396fb06c121f4a9cee247268afb3f9cf45b25bfbe8880c9193dc2e7b6399", 141),
    "reports_a": ("9022a7526746e178ae335156d4b467225b592ef050f6862d0ae5f4668283ea6d", 141),
    "reports_b": ("9b002fe4bc7b6dec5595a9a7f26757751875181fdc0b49dd145aefd8bed5c7ee", 141),
    "sql": ("5403d5e56ea74888677e8b6bc23bc57fe0b08c8a143d252b3cbea136f8135e0e", 157),
}
SQL_256 = "fe2f945910ea327977f8676274003364b0383b44823ea289b229c6e527f62426"
CASES = [pytest.param(form, 1337, id=form) for form in CONTRACTS]
CASES += [pytest.param(form, 2, id=f"{form}, another seed") for form in ("headlines", "reports_a")]


def words(prompt: str) -> list[str]:
    return re.findall("[A-Za-z]+", prompt)


def sha256(splits: Examples) -> str:
    return hashlib.sha256(json.dumps(splits).encode()).hexdigest()


@pytest.mark.parametrize(("form", "seed"), CASES)
def test_a_task_keeps_its_contract(form: str, seed: int) -> None:
    splits, labels, (expected, longest) = examples(form, seed), TASKS[form.split()[0]].labels, CONTRACTS[form]
    assert (sha256(splits) == expected) == (seed == 1337)
    seen: set[str] = set()
    for split in ("test", "val", "train"):
        counts = Counter(response for _, response in splits[split])
        if labels:
            assert set(counts) == set(labels)
            assert form == "compliance" or max(counts.values()) - min(counts.values()) <= 1
        for prompt, response in splits[split]:
            assert len(prompt) + max(map(len, labels or [response])) <= longest, prompt
            assert prompt.strip() == prompt != "" and response.strip() == response
            assert prompt.replace("\n", "").isprintable() and (prompt.isascii() or "reader" in form), prompt
            same = re.sub("[^a-z]", "", prompt.lower()) if labels else prompt
            assert same not in seen, prompt
            if (form, split) != ("sql", "train"):  # only there may a prompt occur twice
                seen.add(same)


@pytest.mark.slow
def test_the_complete_task_sql_keeps_its_contract() -> None:
    assert sha256(sql.make(1337)) == SQL_256


@pytest.mark.parametrize("form", [SYNTHETIC, "headlines"])
def test_prepare_writes_these_examples(form: str, tmp_path: Path) -> None:
    """And so does the command that a message suggests."""
    ok(tmp_path, "prepare", *form.split())
    dataset = Dataset(str(tmp_path / "data"), form.split()[0])
    assert dataset.meta["sha256"]["source"] == CONTRACTS[form][0]
    prompt, label = examples(form)["test"][0]
    start = f"<|prompt|>{prompt}<|response|>{label}<"
    assert dataset.tokenizer.decode(dataset.splits["test"].tolist()).startswith(start)
    assert ("--synthetic" in dataset.prepare_command) == ("--synthetic" in form)
    if form == SYNTHETIC:
        shutil.rmtree(dataset.folder)
        ok(tmp_path, *dataset.prepare_command.split()[1:])
        assert Dataset(str(tmp_path / "data"), "transactions").meta == dataset.meta


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


def test_each_line_has_a_brand_of_its_label_and_split_or_an_invented_name() -> None:
    for split, pairs in examples("transactions").items():
        for prompt, label in pairs:
            group = TASKS["transactions"].group(prompt)
            if label in ("subscriptions", "fees", "income"):
                assert set(transactions.NAMES[split] + transactions.INVENTED[split]).intersection(words(prompt)), prompt
                assert group == "without a brand" or split == "train", prompt  # some brands of train are invented names
            else:
                rests = [prompt.removeprefix(prefix) for prefix in PREFIXES]
                brands = [name for name in BRANDS[label, split] if name in prompt]
                pairs_of = itertools.product(brands, rests)
                assert any(rest.startswith(name) and DETAILS.fullmatch(rest[len(name) :]) for name, rest in pairs_of)
                assert group == "with a brand" or split == "train", prompt


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


def test_headlines_have_the_label_a_reader_gives() -> None:
    """Each bad metric, downward verb and negation turns the sign of a statement once."""
    for headline, label in itertools.chain(*examples("headlines").values()):
        verb, expected = headline.split()[-1], "neutral"
        if verb in ALL_VERBS and " if " not in headline and " neither " not in headline:
            (metric,) = named(headline, ALL_METRICS)
            turns = (metric in UNWANTED) + (verb in DOWNWARD) + any(f" {no} " in headline for no in NEGATIONS)
            expected = "negative" if turns % 2 else "positive"
        assert label == expected, headline


def test_each_statement_of_test_is_new_in_its_metric_its_verb_or_both_together() -> None:
    splits = examples("headlines")
    known = [headline for headline, _ in splits["train"] + splits["val"]]
    seen = {word for headline in known for word in words(headline.lower())}
    together = {(m, v) for one in known for m in named(one, ALL_METRICS) for v in named(one, ALL_VERBS)}
    assert len(together) == 2 / 3 * 144  # each metric with 8 of 12 verbs
    for headline, label in splits["test"]:
        group = "neutral headlines"
        if label != "neutral":
            (metric,), (verb,) = named(headline, ALL_METRICS), named(headline, ALL_VERBS)
            new = [word for word in (metric, verb) if word not in seen]
            assert len(new) == 1 or (not new and (metric, verb) not in together), headline
            group = "new words" if new else "new combinations"
        assert TASKS["headlines"].group(headline) == group, headline
    groups = {TASKS["headlines"].group(headline) for headline in known}
    assert groups == {"neutral headlines", "known combinations"}
