"""Split a section into passages: whole sentences up to a size; each passage repeats the end of the one before it.

The search finds passages, and the model reads them. Sections are never joined, so each passage has one position in one
document. The overlap keeps a sentence together with the one before it, to which a pronoun may refer.

for text, offset in split("One. Two. Three.", size=10, overlap=5): ...      # ("One. Two.", 0), ("Two. Three.", 5)
"""

import re
from collections.abc import Iterator

ITEM = r"[ \t]*(?:[-*+•|]|\d+[.)])[ \t]"  # how an item of a list, or a row of a table, begins
BOUNDARY = re.compile(
    rf"""(?<=[.!?…])["'”’»)\]]*\s++(?![a-z])  # the end of a sentence; a lower-case letter continues it, as after "e.g."
    | (?<=[。！？])                             # these are not followed by a space
    | \n\s*\n                                 # the end of a paragraph
    | \n(?={ITEM})                            # the next item of a list, or row of a table
    """,
    re.VERBOSE,
)
ABBREVIATION = re.compile(  # a full stop that ends no sentence, as after an initial and an ordinal (`im 2. Stock`)
    r"""\b(?:Mr|Mrs|Ms|Dr|Prof|Mag|Dipl|Ing|Rev|St|Str|Nr|No|Abs|Art|Bd|Fig|Inc|Ltd|Co|Tel|approx|ca|Fa|Hr|bzw|ggf|inkl|vgl|vs|evtl|zzgl)\.\Z
    | \b[A-Za-z]\.\Z | \b(?:am|vom|zum|bis|der|des|dem|den|die|das|im|und|seit|ab)\ \d{1,2}\.\Z""",
    re.VERBOSE,
)
MONTH = re.compile("Jan|Feb|M[aä]r|Apr|Ma[iy]|Jun|Jul|Aug|Sep|O[ck]t|Nov|De[cz]")
NOT_SPACE = re.compile(r"\S")


def split(text: str, size: int, overlap: int) -> Iterator[tuple[str, int]]:
    """Split a text into passages of at most `size` characters; yield each, stripped, with its offset in the text.

    A passage repeats the last sentences of the one before it if they have at most `overlap` characters together. A
    sentence longer than `size` is cut at whitespace.
    """
    spans = list(sentences(text, size))
    first = 0  # index of the passage's first sentence
    for last, (_, end) in enumerate(spans):
        if last + 1 < len(spans) and spans[last + 1][1] - spans[first][0] <= size:
            continue
        start = spans[first][0]
        yield text[start:end], start
        if last + 1 < len(spans):
            first = last + 1
            next_end = spans[last + 1][1]
            while end - spans[first - 1][0] <= overlap and next_end - spans[first - 1][0] <= size:
                first -= 1


def sentences(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each sentence, stripped; one longer than `size` characters is cut."""
    start = 0
    for end in [*(match.end() for match in BOUNDARY.finditer(text) if not is_abbreviation(text, match)), len(text)]:
        last = start + len(text[start:end].rstrip())
        while match := NOT_SPACE.search(text, start, last):
            start = match.start()
            stop = last
            if stop - start > size:
                spaces = [i for i in (text.rfind(space, start, start + size + 1) for space in " \n") if i > start]
                stop = max(spaces, default=start + size)
            yield start, start + len(text[start:stop].rstrip())
            start = stop
        start = end


def is_abbreviation(text: str, boundary: re.Match[str]) -> bool:
    """Return whether a boundary within a line is none: after an abbreviation or an ordinal, or in a row of a table."""
    before = text[max(0, boundary.start() - 12) : boundary.start()]
    in_row = text.startswith("|", text.rfind("\n", 0, boundary.start()) + 1)
    is_date = before[-2:-1].isdigit() and before.endswith(".") and MONTH.match(text, boundary.end())  # `3. Mai`
    return "\n" not in boundary[0] and bool(in_row or is_date or ABBREVIATION.search(before))
