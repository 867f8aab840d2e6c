"""Predict runs with `tinygpt plan`, make the runs, and compare: the tables of docs/dev/SCALING.md.

    python scripts/bench_plan.py --data_dir=data --out_dir=out-bench-plan      # about an hour on two quiet cores
    python scripts/bench_plan.py --bounds                                      # about ten minutes on one
    python scripts/bench_plan.py --out_dir=out-bench-plan --table              # the table alone

The configurations were chosen and committed before the fit, and those of --bounds before the bounds were first
measured. Results are kept in OUT_DIR, one file per configuration, so the script continues where it was stopped. It
needs the datasets shakespeare_char, shakespeare, naics and sql; with --bounds also reports, transactions and excerpt,
the first 60,000 characters of Tiny Shakespeare as a text of one's own:

    head -c 60000 data/shakespeare_char/input.txt > excerpt.txt; tinygpt prepare excerpt --input excerpt.txt
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygpt.data.dataset import Dataset
from tinygpt.evaluate.loss import validation_loss
from tinygpt.evaluate.process import run
from tinygpt.files import replacing, strict_json

# name: arguments of tinygpt train
HELD_OUT = {
    "nanoGPT's recipe": "configs/nanogpt.yaml",
    "small and long": "configs/nanogpt.yaml --n_layer=2 --n_embd=64 --max_iters=12000 --eval_interval=2000",
    "large": "configs/nanogpt.yaml --n_layer=6 --n_head=6 --n_embd=192 --max_iters=2000",
    "context of 128": "configs/nanogpt.yaml --block_size=128 --max_iters=4000",
    "best recipe, shortened": "configs/shakespeare_char_best.yaml --max_iters=2000",
    "fast recipe, lengthened": "configs/shakespeare_char_fast.yaml --max_iters=4000 --eval_interval=1000",
    "the preset": "configs/shakespeare_char.yaml --max_iters=5000",
    "other corpus": "configs/nanogpt.yaml --dataset=naics --max_iters=5000",
    "other corpus, the preset, small": "configs/shakespeare_char.yaml --dataset=naics --n_head=3 --n_embd=96 "
    "--max_iters=8000 --eval_interval=1000",
    "byte-pair encoding": "configs/shakespeare.yaml --max_iters=1000",
    "pairs, from scratch": "configs/sql.yaml",
    "dropout, repeated data": "configs/shakespeare_char_best.yaml --n_layer=3 --n_head=3 --n_embd=96 --dropout=0.1 "
    "--max_iters=6000 --eval_interval=2000",
}
# runs whose loss is not predicted: does its upper bound hold? OUT is replaced by --out_dir
BOUNDS = {
    "fast preset": "configs/shakespeare_char_fast.yaml",
    "the preset, 800 iterations": "configs/shakespeare_char.yaml --max_iters=800",
    "small, context of 32": "configs/nanogpt.yaml --n_layer=2 --n_head=2 --n_embd=64 --block_size=32 --max_iters=4000",
    "other corpus, width 96": "configs/nanogpt.yaml --dataset=naics --n_layer=3 --n_head=3 --n_embd=96 "
    "--batch_size=16 --max_iters=1600",
    "byte-pair encoding, small": "configs/shakespeare.yaml --n_layer=2 --n_embd=48 --block_size=32 --batch_size=6 "
    "--max_iters=700",
    "small text, 21 passes": "configs/shakespeare_char_fast.yaml --dataset=excerpt --n_layer=2 --max_iters=1500 "
    "--eval_interval=150",
    "pairs, reports": "configs/reports.yaml",
    "pairs, labels": "configs/lab_classifier.yaml",
    "pairs, sql": "configs/sql.yaml --max_iters=800",
    "continued on another corpus": "configs/shakespeare_char_fast.yaml --init_from=OUT/fast-preset/ckpt.pt "
    "--dataset=naics --max_iters=400",
}
GOALS = {"seconds": 0.15, "memory_mb": 0.10, "loss": 0.02}  # largest relative errors


def measured(name: str, configuration: str, data_dir: str, folder: Path) -> dict[str, Any]:
    """Plan a run, then make it."""
    out = folder / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(out, ignore_errors=True)
    arguments = [
        *configuration.replace("OUT", str(folder)).split(),
        "--device=cpu",
        f"--data_dir={data_dir}",
        f"--out_dir={out}",
    ]
    began = time.monotonic()
    plan = [sys.executable, "-m", "tinygpt", "plan", *arguments, "--json"]
    said = subprocess.run(plan, stdout=subprocess.PIPE, check=True).stdout
    cost = time.monotonic() - began
    done = run(out / "train.log", "train", *arguments)
    dataset = json.loads((out / "plan.json").read_text())["settings"]["dataset"]
    loss, best = (validation_loss(out / file, Dataset(data_dir, dataset)) for file in ("last.pt", "ckpt.pt"))
    actual = {"seconds": done.seconds, "memory_mb": done.memory / 1e6, "loss": loss, "best_loss": best}
    return {"predicted": json.loads(said), "actual": actual, "cost": cost}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format the results in Markdown, and how many predictions reach each goal."""
    forms: dict[str, Callable[[float], str]] = {
        "seconds": "{:,.0f}".format, "memory_mb": "{:,.0f}".format, "loss": "{:.3f}".format
    }  # fmt: skip
    lines = [
        "| run | seconds: predicted | actual | MB: predicted | actual | loss: predicted | actual | plan / run time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    made, close, inside = (dict.fromkeys(GOALS, 0) for _ in range(3))
    for name, result in results.items():
        cells = [name]
        for key, goal in GOALS.items():
            said, was = result["predicted"][f"predicted_{key}"], result["actual"][key]
            if said is None:
                cells += ["not predicted", forms[key](was)]
                continue
            error = said["value"] / was - 1
            made[key] += 1
            close[key] += abs(error) <= goal
            inside[key] += said["low"] <= was <= said["high"]
            value, low, high = (forms[key](said[part]) for part in ("value", "low", "high"))
            cells += [f"{value} ({low} to {high})", f"{forms[key](was)} ({100 * error:+.1f}%)"]
        cells.append(f"{100 * result['cost'] / result['actual']['seconds']:.0f}%")
        lines.append(f"| {' | '.join(cells)} |")
    for key, goal in GOALS.items():
        lines.append(
            f"\n{key}: {made[key]} of {len(results)} predicted; of these, {close[key]} within {100 * goal:.0f}% and "
            f"{inside[key]} inside the interval"
        )
    return "\n".join(lines)


def bounds_table(results: dict[str, dict[str, Any]]) -> str:
    """Format the bounds and the losses of the best weights in Markdown, and how many bounds hold."""
    lines = ["| run | not predicted, because | loss: at most | measured | |", "| --- | --- | --- | --- | --- |"]
    held = 0
    for name, result in results.items():
        bound, loss = result["predicted"]["loss_at_most"], result["actual"]["best_loss"]
        reason = re.split("[,;]", result["predicted"]["no_loss"])[0]
        holds = bound is not None and loss <= bound
        held += holds
        said = "none" if bound is None else f"{bound:.3f}"
        lines.append(f"| {name} | {reason} | {said} | {loss:.3f} | {'held' if holds else 'did not hold'} |")
    return "\n".join([*lines, f"\n{held} of {len(results)} bounds held"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--out_dir", default="out-bench-plan")
    parser.add_argument("--bounds", action="store_true", help="make the runs whose loss is not predicted")
    parser.add_argument("--table", action="store_true", help="print the table of the results so far")
    options = parser.parse_args()
    folder, results = Path(options.out_dir), {}
    for name, configuration in (BOUNDS if options.bounds else HELD_OUT).items():
        path = folder / f"{name}.json"
        if not path.exists() and not options.table:
            print(f"{name} ...", flush=True)
            result = measured(name, configuration, options.data_dir, folder)
            with replacing(path) as file:
                file.write(strict_json(result).encode())
        if path.exists():
            results[name] = json.loads(path.read_text())
    print((bounds_table if options.bounds else table)(results))


if __name__ == "__main__":
    main()
