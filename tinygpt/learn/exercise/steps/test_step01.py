"""The checks of step 1: text to token ids and back."""

from typing import Any

from tinygpt.learn.exercise.steps.expect import check, expect, expect_equal


@check(
    "vocab_size is the number of distinct characters",
    "set(text) contains each character once",
)
def test_vocab_size(my: Any) -> None:
    expect_equal(my.CharTokenizer("hello").vocab_size, 4, "CharTokenizer('hello').vocab_size")


@check(
    "token ids follow the sorted order of the characters",
    "sorted(set(text)): the order of a set can change from one run to the next",
)
def test_sorted_ids(my: Any) -> None:
    got = list(my.CharTokenizer("the cat").encode(" aceht"))
    expect_equal(got, [0, 1, 2, 3, 4, 5], "CharTokenizer('the cat').encode(' aceht')")


@check(
    "decoding gives the text back",
    "decode must be the inverse of encode, for every character",
)
def test_round_trip(my: Any) -> None:
    text = "First Citizen:\nBefore we proceed, naïve €5!\n\n"
    own = my.CharTokenizer(text)
    got = own.decode(own.encode(text))
    expect(got == text, "a text with capitals, line breaks and accents, encoded and decoded", repr(got), repr(text))


@check(
    "an unknown character raises an error that names it",
    "encode: a character that is not in the vocabulary",
)
def test_unknown_character(my: Any) -> None:
    given = "CharTokenizer('hello').encode('hex')"
    expected = "an error that names 'x'"
    try:
        got = my.CharTokenizer("hello").encode("hex")
    except Exception as error:
        expect("x" in str(error), given, f"{type(error).__name__}: {error}", expected)
    else:
        expect(False, given, got, expected)
