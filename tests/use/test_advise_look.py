"""What `tinygpt advise` finds in examples: by hand, near duplicates against all pairs, and personal data or not."""

import math
import sys
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinygpt.base.errors import TinyGPTError
from tinygpt.use.advise import look as look_module
from tinygpt.use.advise.look import Finding, Line, across, as_table, as_text, look, merged, near_duplicates, unseen
from tinygpt.use.advise.personal import masked

pytest.importorskip("sklearn")

PAIRS = [
    ("where is my card", "card"),
    ("Where is my card?", "card"),  # an exact duplicate, since it has the same letters
    ("what is the interest rate of a loan over ten years", "loan"),
    ("what is the interest rate of a loan over ten year", "card"),  # a near duplicate with another label
    ("hello", "card"),  # contradictions: at best two of these three are right
    ("hello", "loan"),
    ("hello", "loan"),
    ("?", "other"),
    ("my mail is mia.muster@example.org, or +49 171 1234567", "card"),
    *((f"{word} {word}", "card") for word in ("alpha", "bravo", "coffee", "delta", "echo")),
]
LABELS = ["card", "loan", "other"]


def lines_of(pairs: list[tuple[str, str]]) -> list[Line]:
    """The pairs as lines of a sheet whose first line names the columns."""
    return [Line(*pair, f"line {number}") for number, pair in enumerate(pairs, start=2)]


def found(pairs: list[tuple[str, str]], labels: list[str]) -> dict[str, Finding]:
    return {finding.name: finding for finding in look(lines_of(pairs), labels)}


def test_each_finding_by_hand() -> None:
    findings = found(PAIRS, LABELS)
    assert {name: finding.count for name, finding in findings.items()} == {
        "examples and labels": 14, "lengths": 14, "exact duplicates": 2, "different labels": 1, "near duplicates": 1,
        "rare labels": 2, "tiny prompts": 1, "personal data": 1,
    }  # fmt: skip
    assert "Labels: 3 (card 10, loan 3, other 1)." in findings["examples and labels"].what
    assert "median 11, 95th percentile 51, longest 53." in findings["lengths"].what
    assert findings["lengths"].examples[0] == "line 9: ?" and not findings["lengths"].advice
    assert findings["exact duplicates"].examples == [
        "line 2, line 3: where is my card → card",
        "line 7, line 8: hello → loan",
    ]
    assert "accuracy on these lines is 92.9%" in findings["different labels"].what  # 13 of 14
    assert findings["different labels"].examples == ["line 6, line 7: hello → card | loan"]
    assert "1 of them with another label" in findings["near duplicates"].what
    assert [text[:6] for text in findings["near duplicates"].examples] == ["line 4", "line 5"]
    assert "(other 1, loan 3)" in findings["rare labels"].what
    assert findings["tiny prompts"].examples == ["line 9: ? → other"]
    assert "1 (e-mail addresses in 1, telephone numbers in 1)" in findings["personal data"].what
    assert [text[:9] for text in findings["personal data"].examples] == ["line 10: "] * 2


def test_labels_in_several_spellings_are_found_and_merged() -> None:
    labels = ["Card", "card", "card", "ca rd", "two  words", "Two-words", "1", "1.0", "01", "+1", "1.5", "10", "1e0"]
    pairs = [(f"{word} {word}", label) for word, label in zip("abcdefghijklm", labels, strict=True)]
    finding = found(pairs, sorted(set(labels)))["labels in several spellings"]
    shown = ["Card 1 | card 2 | ca rd 1", "two  words 1 | Two-words 1", "1 1 | 1.0 1 | 01 1 | +1 1"]
    assert finding.count == 3 and finding.examples == shown
    assert "--merge_labels" in finding.advice
    assert merged(labels) == ["card"] * 4 + ["two  words"] * 2 + ["1"] * 4 + ["1.5", "10", "1e0"]
    assert "labels in several spellings" not in found(PAIRS, LABELS)  # control


def test_clean_examples_have_three_findings_without_advice() -> None:
    words = ("apple", "bridge", "candle", "donkey", "engine", "forest", "guitar", "hammer", "island", "jacket")
    pairs = [(f"{word} {label}", label) for word in words for label in ("yes", "no")]
    findings = look(lines_of(pairs), ["yes", "no"])
    assert [finding.name for finding in findings] == ["examples and labels", "lengths", "exact duplicates"]
    assert not any(finding.advice for finding in findings) and findings[2].count == 0


def test_personal_data_and_control_characters_are_shown_nowhere() -> None:
    pairs = [*PAIRS, (f"\x1b[31m{'mia.muster@example.org 4111 1111 1111 1111 ' * 20}", "card"), ("\x1b", "card")]
    text = "\n".join([*as_text(look(lines_of(pairs), LABELS)), as_table(look(lines_of(pairs), LABELS)).as_text()])
    assert "muster" not in text and "1111" not in text and "1234567" not in text and "\x1b" not in text
    assert "m…@example.org" in text and "\\x1b" in text


def cosines(prompts: list[str]) -> list[list[float]]:
    """The cosines of all pairs, from the definition: trigrams of each word with a space on both sides."""
    grams = [
        Counter(f" {word} "[i : i + 3] for word in prompt.lower().split() for i in range(len(word)))
        for prompt in prompts
    ]
    df = Counter(gram for counts in grams for gram in counts)
    idf = {gram: math.log((1 + len(prompts)) / (1 + n)) + 1 for gram, n in df.items()}
    vectors = [{gram: n * idf[gram] for gram, n in counts.items()} for counts in grams]
    lengths = [math.sqrt(sum(value**2 for value in vector.values())) or 1 for vector in vectors]
    dots = [[sum(value * other.get(gram, 0) for gram, value in one.items()) for other in vectors] for one in vectors]
    return [[dot / a / b for dot, b in zip(row, lengths, strict=True)] for row, a in zip(dots, lengths, strict=True)]


WORDS = st.sampled_from(["ab", "abc", "abcd", "hello", "help", "yes", "no"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=12), st.sampled_from([0.3, 0.6, 1]), st.integers(1, 5)
)
def test_near_duplicates_are_those_of_all_pairs(prompts: list[str], threshold: float, block: int) -> None:
    values = cosines(prompts)
    assume(all(abs(value - threshold) > 1e-7 or threshold == 1 for row in values for value in row))
    close = [[i for i in range(j) if values[i][j] > threshold - 1e-8] for j in range(len(prompts))]
    with mock.patch.object(look_module, "BLOCK", block):
        assert near_duplicates(prompts, threshold) == [(some[0], j) for j, some in enumerate(close) if some]


def test_near_duplicates_by_hand() -> None:
    long = "the quick brown fox jumps over the lazy dog and runs into the deep dark forest"
    assert near_duplicates([long, "other", long + "s", long.upper(), ""]) == [(0, 2), (0, 3)]
    assert near_duplicates(["", " "]) == near_duplicates(["2+3", "2-3"]) == []


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(TinyGPTError) as caught:
        look(lines_of(PAIRS), LABELS)
    assert "tinygpt[eval]" in caught.value.hint


PERSONAL = {  # reserved or invented numbers, and the examples of the standards
    "e-mail addresses": "mia.muster+x@example.co.uk; ü.k@müller.example; m@example.org",
    "IBANs": "DE89 3704 0044 0532 0130 00; de89370400440532013000; AT611904300234573201; GB82-WEST-1234-5698-7654-32",
    "payment cards": "4111 1111 1111 1111; 5555555555554444; 3782 822463 10005; 6011-1111-1111-1117",
    "telephone numbers": "+49 30 123456789; +49 (0)30 1234567; 0049 30 12345678; 030/1234567; 01711234567; "
    "(089) 123456-0; 0171-1234567; Tel. 0301234567; 079 123 45 67; 020 7946 0958; +1 212 555 0123; (212) 555-0123",
}
IMPERSONAL = [
    "1.234,56 2.500,00 12.000,00", "+1,000,000 USD", "2024-05-17T10:00:00+02:00", "17.05.2024 bis 18.05.2024",
    "Telefon 01.02.2024", "Telefonrechnung 49,99", "order 0123 456 789", "Rechnung Nr. 0123/456789", "01067 Dresden",
    "version 3.11.4 and 10.0.19045.3803", "192.168.178.100", "@mia and user@host", "1234567890", "978-3-16-148410-0",
    "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "0.0123456789", "0 1 2 3 4 5 6 7 8 9 10", "ab07700900123",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, some in PERSONAL.items() for text in some.split("; ")]
)
def test_personal_data_are_found_and_masked(kind: str, text: str) -> None:
    hidden, kinds = masked(f"please use {text}, thanks")
    assert kinds == [kind] and hidden.startswith("please use ") and hidden.endswith(", thanks") and text not in hidden
    assert kind == "e-mail addresses" or sum(map(str.isdigit, hidden)) == 2


@pytest.mark.parametrize("text", IMPERSONAL)
def test_other_numbers_are_left_alone(text: str) -> None:
    assert masked(f"about {text}, thanks") == (f"about {text}, thanks", [])


def test_a_long_text_without_spaces_takes_no_quadratic_time() -> None:
    """With a quadratic pattern, this would end at the time limit of the tests."""
    for text in ("a" * 500_000 + "@", "1" * 500_000, "a." * 250_000, "+49 " * 100_000, "0 " * 250_000):
        assert masked(text) == (text, [])


@given(st.integers(10**14, 10**15 - 1), st.integers(0, 9))
def test_the_check_of_cards_is_that_of_luhn(digits: int, last: int) -> None:
    number = f"4{str(digits)[:14]}{last}"
    doubled = [int(digit) * (2 - index % 2) for index, digit in enumerate(number)]
    assert bool(masked(number)[1]) == (sum(value - 9 * (value > 9) for value in doubled) % 10 == 0)


def test_tested_lines_that_nearly_repeat_a_training_line() -> None:
    prompts = ["please send the invoice again", "Please send the invoice again!", "where is my card", "another text"]
    lines = lines_of([(prompt, "any") for prompt in prompts])
    folds = [(np.array([0, 2]), np.array([1, 3]))]
    (found,) = across(lines, folds)
    assert found.count == 1 and found.examples == [f"line 2: {prompts[0]}", f"line 3: {prompts[1]}"]
    assert across(lines, [(np.array([0, 1]), np.array([2, 3]))]) == []  # both on one side


def test_tested_lines_with_a_label_that_is_new() -> None:
    truth, labels = np.array([0, 1, 0, 2, 2, 1]), ["card", "loan", "crypto"]
    (found,) = unseen(truth, labels, [(np.array([0, 1, 2]), np.array([3, 4, 5]))])
    assert found.count == 2 and "crypto 2" in found.what and "loan" not in found.what
    assert unseen(truth, labels, [(np.array([0, 1, 3]), np.array([2, 4, 5]))]) == []
