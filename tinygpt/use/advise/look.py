"""Look at labelled examples before training: duplicates, contradictions, rare labels, and likely personal data.

lines = [Line("card lost", "card", "line 2"), Line("loan rate?", "loan", "line 3")]
print(*as_text(look(lines, ["card", "loan"])), sep="\\n")

Likely personal data are masked wherever examples are shown.
"""

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from tinygpt.base.errors import library
from tinygpt.base.terminal import cut, escaped, progress
from tinygpt.data.pairs import normalised
from tinygpt.examine.experiment.summary import COLUMNS, Table
from tinygpt.use.advise.personal import masked

FEW = 10  # examples: a label with fewer can be neither learned nor tested
MANY = 12  # labels that are listed
THRESHOLD = 0.9  # cosine of near duplicates
BLOCK = 256  # prompts that all others are compared with at once: for 20,000 prompts a matrix of 40 MB
SHOWN = 70  # characters of an example, after its places
SPELLINGS = "labels in several spellings"  # a finding
PLACES = 3  # that are named with an example


class Line(NamedTuple):
    prompt: str
    label: str
    place: str  # in the file: `line 5`, or `row 5` of an Excel sheet


class Finding(NamedTuple):
    name: str
    count: int  # type: ignore[assignment] # hides tuple.count, which nobody calls
    what: str  # was found: a sentence with the count
    examples: list[str]  # up to two, each with its places
    advice: str  # what to do; empty if nothing has to be done


def look(lines: Sequence[Line], labels: Sequence[str]) -> list[Finding]:
    """Describe examples, and find what is wrong with them; the first three findings are always there.

    lines: one or more. labels: all that there are.
    Errors: TinyGPTError if scikit-learn is not installed.
    """
    problems = [spellings(lines), contradictions(lines), near(lines), *too_little(lines, labels), personal_data(lines)]
    return [*described(lines, labels), duplicates(lines), *(finding for finding in problems if finding.count)]


def grouped(lines: Sequence[Line], key: Callable[[Line], Hashable]) -> list[list[Line]]:
    """Group lines with equal keys; the groups and the lines of each keep their order."""
    groups = defaultdict[Hashable, list[Line]](list)
    for line in lines:
        groups[key(line)].append(line)
    return list(groups.values())


def described(lines: Sequence[Line], labels: Sequence[str]) -> list[Finding]:
    n = len(lines)
    counts = Counter(line.label for line in lines)
    ranked = sorted(labels, key=lambda label: -counts[label])
    rarest = f"; the rarest: {listed(ranked[-1:], counts)}" if len(labels) > MANY else ""
    what = f"Examples: {n:,}. Labels: {len(labels):,} ({listed(ranked, counts)}{rarest})."
    advice = ""
    if (share := counts[ranked[0]] / n) >= 0.8:
        advice = f"Always answering {shown(ranked[0], 30)} has an accuracy of {share:.0%}: compare macro-F1, too."
    ordered = sorted(lines, key=lambda line: len(line.prompt))
    longest = len(ordered[-1].prompt)
    middle, high = np.percentile([len(line.prompt) for line in lines], [50, 95])
    size = f"Characters of a prompt: median {middle:,.0f}, 95th percentile {high:,.0f}, longest {longest:,}."
    several = "Look at the longest prompts: several texts may have become one." if longest > 10 * high else ""
    first = Finding("examples and labels", n, what, [], advice)
    return [first, Finding("lengths", n, size, [prompt_of(ordered[0]), prompt_of(ordered[-1])], several)]


def duplicates(lines: Sequence[Line]) -> Finding:
    groups = grouped(lines, lambda line: (normalised(line.prompt), line.label))
    count = len(lines) - len(groups)
    examples = [arrow(group) for group in sorted(groups, key=len, reverse=True)[:2] if len(group) > 1]
    what = f"Lines that repeat an earlier one (the same letters and digits, the same response): {count:,}."
    advice = "Keep one of each, unless prompts repeat like this in use." if count else ""
    return Finding("exact duplicates", count, what, examples, advice)


def contradictions(lines: Sequence[Line]) -> Finding:
    """Find prompts, equal in every character, that occur with several labels."""
    by_label = [grouped(group, lambda line: line.label) for group in grouped(lines, lambda line: line.prompt)]
    several = [groups for groups in by_label if len(groups) > 1]
    ceiling = 100 * sum(max(map(len, groups)) for groups in by_label) / len(lines)
    what = f"Prompts that occur with different labels: {len(several):,}, so the highest possible accuracy on these "
    examples = [arrow([group[0] for group in groups]) for groups in several[:2]]
    advice = "Choose one of the labels for each, or add to the prompt what tells the cases apart."
    return Finding("different labels", len(several), f"{what}lines is {ceiling:.1f}%.", examples, advice)


def spellings(lines: Sequence[Line]) -> Finding:
    """Find labels that differ only by case, blanks or the notation of a number."""
    counts = Counter(line.label for line in lines)
    groups = grouped([Line("", label, "") for label in counts], lambda line: spelling(line.label))
    several = [[line.label for line in group] for group in groups if len(group) > 1]
    examples = [" | ".join(f"{shown(label, 19)} {counts[label]:,}" for label in group) for group in several[:MANY]]
    what = f"Labels in several spellings (case, blanks, hyphens, notation of a number): {len(several):,}."
    advice = "If they mean the same, merge them (--merge_labels)."
    return Finding(SPELLINGS, len(several), what, examples, advice)


def spelling(label: str) -> Hashable:
    """Return what labels have in common that differ only in this way: a number, or words in lower case."""
    text = label.strip().casefold()
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        return Decimal(text)
    return re.sub(r"[\s_-]+", "", text) or text


def merged(labels: Sequence[str]) -> list[str]:
    """Replace each label by its most frequent spelling."""
    best: dict[Hashable, str] = {}
    for label, _ in Counter(labels).most_common():
        best.setdefault(spelling(label), label)
    return [best[spelling(label)] for label in labels]


def near(lines: Sequence[Line]) -> Finding:
    prompts = [group[0] for group in grouped(lines, lambda line: line.prompt)]  # other labels are contradictions
    firsts = [group[0] for group in grouped(prompts, lambda line: (normalised(line.prompt), line.label))]
    found = near_duplicates([line.prompt for line in firsts])
    differ = [(i, j) for i, j in found if firsts[i].label != firsts[j].label]
    what = f"Prompts that nearly repeat an earlier one (cosine of TF-IDF character trigrams from {THRESHOLD:g}): "
    what += f"{len(found):,}, {len(differ):,} of them with another label."
    examples = [arrow([firsts[index]]) for pair in (differ or found)[:1] for index in pair]
    advice = "Keep near duplicates in one split: a test on them does not show how a model does on new prompts."
    if differ:
        advice = f"Check labels that differ. {advice}"
    return Finding("near duplicates", len(found), what, examples, advice)


def across(lines: Sequence[Line], folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Finding]:
    """Count the tested lines that nearly repeat a training line of their fold. folds: as in `Split`."""
    found = near_duplicates([line.prompt for line in lines])
    examples = list[str]()
    tested = set[int]()
    for train, test in folds:
        sides = {**dict.fromkeys(train.tolist(), 0), **dict.fromkeys(test.tolist(), 1)}
        for pair in found:
            if all(line in sides for line in pair) and sides[pair[0]] != sides[pair[1]]:
                tested.add(pair[sides[pair[1]]])
                examples += [prompt_of(lines[line]) for line in pair] if not examples else []
    if not tested:
        return []
    what = f"Tested lines that nearly repeat a training line: {len(tested):,}."
    advice = "If texts do not repeat like this in use, the test is too easy: remove repeats, or use --by or --time."
    return [Finding("near duplicates across the split", len(tested), what, examples, advice)]


def unseen(truth: np.ndarray, labels: Sequence[str], folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Finding]:
    """Count the tested lines with a label that no training line of their fold has, such as a new kind of complaint."""
    new = np.concatenate([truth[test][~np.isin(truth[test], truth[train])] for train, test in folds])
    if not len(new):
        return []
    counts = Counter(labels[index] for index in new.tolist())
    what = f"Tested lines whose label no training line has: {len(new):,} ({listed(list(counts), counts)})."
    advice = "No model can give such a label: each of these lines counts as wrong. Add older examples of it."
    return [Finding("unseen labels", len(new), what, [], advice)]


def too_long(prompts: Sequence[str], longest: int | None) -> list[Finding]:
    """Count the prompts of which only the first `longest` characters are read."""
    if longest is None:
        return []
    count = sum(len(prompt) > longest for prompt in prompts)
    what = f"Prompts longer than {longest:,} characters: {count:,}. Models read only the beginning."
    advice = "Put what decides the label first, or give a summary of each text."
    return [Finding("long prompts", count, what, [], advice)]


def too_little(lines: Sequence[Line], labels: Sequence[str]) -> list[Finding]:
    counts = Counter(line.label for line in lines)
    rare = sorted((label for label in labels if counts[label] < FEW), key=lambda label: counts[label])
    what = f"Labels with fewer than {FEW} examples: {len(rare):,} ({listed(rare, counts)})."
    advice = "Add examples or merge labels: so few examples are enough neither to learn a label nor to test it."
    seldom = Finding(
        "rare labels", len(rare), what, [arrow([line]) for line in lines if line.label in rare][:2], advice
    )
    tiny = [arrow([line]) for line in lines if len(line.prompt.strip()) < 2]
    what = f"Prompts that are empty or a single character: {len(tiny):,}."
    return [seldom, Finding("tiny prompts", len(tiny), what, tiny[:2], "Remove them, unless they occur in use.")]


def personal_data(lines: Sequence[Line]) -> Finding:
    kinds = Counter[str]()
    examples = dict[str, str]()
    count = 0
    for line in lines:
        found = {kind: text for text, some in map(masked, line[:2]) for kind in some}
        kinds.update(found.keys())
        count += bool(found)
        for kind, text in found.items():
            match = re.search(r"…@|\d\D{0,2}x", text)
            if match and match.start() > 25:
                text = f"…{text[match.start() - 25 :]}"
            examples.setdefault(kind, f"{line.place}: {cut(escaped(text), SHOWN)}")
    listing = ", ".join(f"{kind} in {n:,}" for kind, n in kinds.most_common())
    what = f"Lines with likely personal data: {count:,} ({listing}); names and addresses are not looked for."
    advice = (
        "Replace them before training: a model can repeat its training text "
        "(docs/how-to/privacy.md; `tinygpt lab canary`)"
    )
    return Finding("personal data", count, what, [*examples.values()][:2], advice + ".")


def near_duplicates(prompts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Pair each prompt that has earlier near duplicates with the first of them: (i, j), i < j, ascending in j.

    Near duplicates have a cosine of at least threshold, 0 < threshold <= 1, between the TF-IDF vectors of their
    character trigrams within words (scikit-learn's `char_wb`); equal prompts are among them. So each j occurs once, and
    an i may occur often. Errors: TinyGPTError without scikit-learn.
    """
    text = library("sklearn.feature_extraction.text", "the search for near duplicates")
    if not any(map(str.strip, prompts)):
        return []
    vectors = text.TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit_transform(prompts)  # (n, trigrams)
    partner = np.full(len(prompts), -1)
    for start in progress(range(0, len(prompts), BLOCK), desc="looking for near duplicates", unit="block"):
        rows = start + 1 + np.flatnonzero(partner[start + 1 :] < 0)
        close = (vectors[rows] @ vectors[start : start + BLOCK].T).toarray() >= threshold - 1e-9  # (rows, BLOCK)
        close &= start + np.arange(close.shape[1]) < rows[:, None]
        partner[rows[close.any(axis=1)]] = start + close.argmax(axis=1)[close.any(axis=1)]
    return [(int(partner[j]), int(j)) for j in np.flatnonzero(partner >= 0)]


def shown(text: str, width: int = SHOWN) -> str:
    return cut(escaped(masked(text)[0]), width)


def prompt_of(line: Line) -> str:
    return f"{line.place}: {shown(line.prompt)}"


def arrow(lines: Sequence[Line]) -> str:
    """Show the places, the prompt and the labels of lines with the same prompt."""
    places = [line.place for line in lines[:PLACES]] + ["..."] * (len(lines) > PLACES)
    labels = " | ".join(dict.fromkeys(line.label for line in lines))
    return f"{', '.join(places)}: {shown(lines[0].prompt, 48)} → {shown(labels, 19)}"


def listed(labels: Sequence[str], counts: Counter[str]) -> str:
    items = [f"{shown(label, 30)} {counts[label]:,}" for label in labels[:MANY]]
    return ", ".join(items + ["..."] * (len(labels) > MANY))


def as_text(findings: Sequence[Finding]) -> list[str]:
    """Format lines of at most 100 columns: what was found, examples, and what to do."""
    lines = []
    for finding in findings:
        about = [finding.what, *(f"  e.g. {example}" for example in finding.examples)]
        for text in about + [f"  to do: {finding.advice}"] * bool(finding.advice):
            lines += textwrap.wrap(text, COLUMNS, subsequent_indent="    ", break_on_hyphens=False)
    return lines


def as_table(findings: Sequence[Finding]) -> Table:
    columns = ("name", "count", "found", "examples", "what to do")
    rows = [(f.name, f"{f.count:,}", f.what, " / ".join(f.examples), f.advice) for f in findings]
    how = "Likely personal data in examples are masked, but not names and postal addresses."
    return Table("The data", [dict(zip(columns, row, strict=True)) for row in rows], how)
