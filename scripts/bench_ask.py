"""Measure `tinygpt ask` on questions about real documents: is the right sentence quoted, and does it abstain?

    python scripts/bench_ask.py questions.jsonl COLLECTIONS              # one folder per collection
    python scripts/bench_ask.py questions.jsonl COLLECTIONS --fit        # the weights of tinygpt/use/ask/rank.py

A line of the questions has collection, question, sentence (or sentences), and answer; without an answer, the documents
have none. A quoted sentence is right if it contains at least half of the words of a sentence that is right, and its
answer (case and punctuation do not count). If that sentence does not contain the answer, such as "yes", four fifths of
its words are needed.

The baseline picks, of the first three passages, the sentence that shares the rarest words with the question: each word
counts 1 / the number of these sentences that contain it.
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.configs.use import AskConfig
from tinygpt.base.intervals import percent
from tinygpt.use.ask import rank as ranking
from tinygpt.use.ask.answer import by_rare_words
from tinygpt.use.ask.index import index_of
from tinygpt.use.ask.passages import sentences
from tinygpt.use.ask.search import search
from tinygpt.use.ask.store import Index, open_index

Row = dict[str, Any]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def is_right(text: str, known: dict[str, Any]) -> bool:
    """Return whether a quoted text answers a question; never, if the documents have no answer."""
    wanted = (known.get("sentences") or [known["sentence"]]) if known["answer"] else []
    quoted = Counter(re.findall(r"\w+", text.casefold()))
    counts = [Counter(re.findall(r"\w+", one.casefold())) for one in wanted]
    return any(
        (quoted & count).total() >= count.total() * (0.5 if holds(one, known) else 0.8)
        and (holds(text, known) or not holds(one, known))
        for one, count in zip(wanted, counts, strict=True)
    )


def holds(text: str, known: dict[str, Any]) -> bool:
    answer, tokens = (" ".join(re.findall(r"\w+", one.casefold())) for one in (known["answer"], text))
    return f" {answer} " in f" {tokens} "


def baseline(index: Index, question: str) -> list[str]:
    """Return the sentences of the first three passages by the rare words that they share with the question."""
    found = [p.text[start:end] for p in search(index, question, 3) for start, end in sentences(p.text, len(p.text))]
    return [found[i] for i in by_rare_words(found, question)]


def measure(collections: Path, questions: list[Row], flags: dict[str, Any]) -> list[Row]:
    """Index each collection and ask its questions; return a row for each question."""
    rows, log, draw = [], io.StringIO(), np.random.default_rng(0)
    for name in sorted({known["collection"] for known in questions}):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "index.db"
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                index_of(AskConfig(documents=(str(collections / name),), index=str(out), **flags))
            with open_index(out) as index:
                ranking.rank(index, "warm up")
                for known in (known for known in questions if known["collection"] == name):
                    started = time.perf_counter()
                    ranked = ranking.rank(index, known["question"])
                    seconds = time.perf_counter() - started
                    mixed = draw.permutation(len(ranked.found))  # else the full score would break ties for a part of it
                    ranked = ranked._replace(found=[ranked.found[i] for i in mixed], features=ranked.features[mixed])
                    texts = {unit.text for unit, _ in ranked.found if is_right(unit.text, known)}
                    simple = [is_right(text, known) for text in baseline(index, known["question"])]
                    row = {"known": known, "ranked": ranked, "texts": texts, "simple": simple, "seconds": seconds}
                    rows.append(row | {"answerable": bool(known["answer"])})
    return ranked_again(rows)


def ranked_again(rows: list[Row]) -> list[Row]:
    """Rank the units with the present weights; add which ones are right, and the probability of the first one."""
    ranked = [row["ranked"].ordered() for row in rows]
    return [
        row | {"ranked": one, "right": [unit.text in row["texts"] for unit, _ in one.found], "p": one.probability}
        for row, one in zip(rows, ranked, strict=True)
    ]


def fit(rows: list[Row], used: np.ndarray) -> None:
    """Set the weights of rank.py: those of the features that are used, and those of the probability.

    The ranking is a conditional logistic regression: the right units of a question against all of its units.
    """
    from scipy.optimize import minimize
    from sklearn.linear_model import LogisticRegression

    pairs = [(row["ranked"].features * used, np.array(row["right"])) for row in rows if any(row["right"])]

    def loss(weights: np.ndarray) -> float:
        scores = [(features @ weights, right) for features, right in pairs]
        gains = [np.logaddexp.reduce(each[right]) - np.logaddexp.reduce(each) for each, right in scores]
        return float(weights @ weights / 4 - np.sum(gains))

    ranking.WEIGHTS[:] = used * minimize(loss, np.zeros(len(used)), method="L-BFGS-B").x
    again = ranked_again(rows)
    model = LogisticRegression(C=1e6, max_iter=1000)  # a penalty would shrink the weight of the share, which is below 1
    model.fit([row["ranked"].signs for row in again], [first(row) for row in again])
    ranking.SIGN_WEIGHTS[:], ranking.BIAS = model.coef_[0], float(model.intercept_[0])


def cross_validated(rows: list[Row], used: np.ndarray) -> list[Row]:
    """Fit on all collections but one, and rank the units of this one, for each collection."""
    done = []
    for name in dict.fromkeys(row["known"]["collection"] for row in rows):
        fit([row for row in rows if row["known"]["collection"] != name], used)
        done += ranked_again([row for row in rows if row["known"]["collection"] == name])
    return done


def first(row: Row, count: int = 1) -> bool:
    return any(row["right"][:count])


def share(cases: list[bool]) -> str:
    return percent(sum(cases) / len(cases), len(cases)) if cases else "-"


def shares(rows: list[Row]) -> dict[str, str]:
    """Format what is measured on some questions."""
    yes, no = [row for row in rows if row["answerable"]], [row for row in rows if not row["answerable"]]
    return {
        "n": f"{len(yes)}+{len(no)}",
        "a candidate": share([any(row["right"]) for row in yes]),
        "first": share([first(row) for row in yes]),
        "three": share([first(row, 3) for row in yes]),
        "wrong shown": share([row["p"] >= AskConfig.min_probability and not first(row) for row in yes]),
        "refused, answerable": share([row["p"] < AskConfig.min_probability for row in yes]),
        "refused, unanswerable": share([row["p"] < AskConfig.min_probability for row in no]),
        "simple first": share([any(row["simple"][:1]) for row in yes]),
        "simple three": share([any(row["simple"][:3]) for row in yes]),
    }


def show(rows: list[Row], title: str) -> None:
    """Print the shares per collection and group, the paired comparison with the baseline, and the abstentions."""
    groups = {name: [row for row in rows if row["known"]["collection"] == name] for name in
              dict.fromkeys(row["known"]["collection"] for row in rows)}  # fmt: skip
    groups["paraphrased"] = [row for row in rows if row["known"].get("paraphrased")]
    groups["words in common"] = [row for row in rows if row["answerable"] and not row["known"].get("paraphrased")]
    groups["all"] = rows
    table = {name: shares(group) for name, group in groups.items() if group}
    names = list(table["all"])
    print(
        f"\n{title}, threshold {AskConfig.min_probability}\n| collection | "
        + " | ".join(names)
        + " |\n"
        + "|---" * len(names)
        + "|---|"
    )
    for name, values in table.items():
        print(f"| {name} | " + " | ".join(values.values()) + " |")
    for count in (1, 3):
        print(f"among {count}, compared with the baseline: {paired(rows, count)}")
    print("\n| threshold | unanswerable refused | answerable refused | answerable, wrong shown |\n|---|---|---|---|")
    yes, no = [row for row in rows if row["answerable"]], [row for row in rows if not row["answerable"]]
    for limit in (0.1, 0.15, 0.16, 0.17, 0.2, 0.3, 0.4, 0.6):
        refused = [[row["p"] < limit for row in some] for some in (no, yes)]
        wrong = [row["p"] >= limit and not first(row) for row in yes]
        print(f"| {limit} | " + " | ".join(f"{100 * np.mean(each):.0f}%" for each in (*refused, wrong)) + " |")


def paired(rows: list[Row], count: int) -> str:
    """Compare with the baseline by McNemar's exact test."""
    import scipy.stats

    pairs = [(first(row, count), any(row["simple"][:count])) for row in rows if row["answerable"]]
    better, worse = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    p = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return f"{better} only here, {worse} only by the baseline, p = {p:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("collections", type=Path)
    parser.add_argument("--fit", action="store_true", help="fit the weights; what each feature gains, cross-validated")
    parser.add_argument("--embeddings", default="auto")
    arguments = parser.parse_args()
    questions = list(map(json.loads, arguments.questions.read_text(encoding="utf-8").splitlines()))
    rows = measure(arguments.collections, questions, {"embeddings": arguments.embeddings})
    milliseconds = [1000 * row["seconds"] for row in rows]
    print(f"{len(rows)} questions: median {np.median(milliseconds):.0f} ms, longest {max(milliseconds):.0f} ms")
    show(rows, "with the weights of rank.py")
    if arguments.fit:
        every = np.ones(len(ranking.FEATURES))
        show(cross_validated(rows, every), "fitted on the other collections")
        for number, name in enumerate(ranking.FEATURES):
            used = every * (np.arange(len(every)) != number)
            done = [row for row in cross_validated(rows, used) if row["answerable"]]
            print(f"without {name}: {sum(map(first, done))} first, {sum(first(row, 3) for row in done)} among three")
        fit(rows, every)
        print(
            "\nWEIGHTS =",
            ranking.WEIGHTS.round(1),
            "SIGN_WEIGHTS =",
            ranking.SIGN_WEIGHTS.round(1),
            f"{ranking.BIAS:.1f}",
        )


if __name__ == "__main__":
    main()
