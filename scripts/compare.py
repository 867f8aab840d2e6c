"""Compare methods of fine-tuning: accuracy, forgetting and cost of each.

    python scripts/compare.py --ckpt out-fast/ckpt.pt

The methods are: no fine-tuning, all weights, all weights with replay of the base model's text, LoRA with two ranks.
For each, the script runs `tinygpt finetune` and `tinygpt eval` on the transactions with three seeds. It prints a table
in Markdown (median, minimum, maximum), draws accuracy against forgetting, and writes all figures to compare.json. With
--jobs, several runs share the processor and take longer.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tinygpt.checkpoint.adapter import load_model
from tinygpt.lora import adapted_only
from tinygpt.training.log import read_metrics

FULL, LORA = (f"configs/finetune_transactions{kind}.yaml" for kind in ("", "_lora"))
METHODS = {
    "all weights": [FULL],
    "all weights, replay 0.001": [FULL, "--replay=0.001"],
    "LoRA, rank 2": [LORA, "--lora_rank=2"],
    "LoRA, rank 8": [LORA],
}


def tinygpt(*args: str, threads: int) -> str:
    command = [sys.executable, "-m", "tinygpt", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}:\n{done.stderr[-500:]}")
    return done.stdout


def measure(method: str, seed: int, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Fine-tune once, evaluate, and return the figures."""
    out = args.out / f"{method.replace(' ', '-').replace(',', '')}-{seed}"
    flags = [*METHODS[method], f"--ckpt={args.ckpt}", f"--out_dir={out}", f"--seed={seed}", "--device=cpu", "--quiet"]
    tinygpt("finetune", *flags, *args.more, threads=threads)
    report = json.loads(tinygpt("eval", f"--ckpt={out}", "--device=cpu", "--json", threads=threads))
    entries = {entry["kind"]: entry for entry in read_metrics(out)}
    saved = load_model(str(out / "ckpt.pt"))
    trained = adapted_only(saved.model) or saved.model
    if "lm_head.weight" in trained and saved.model_args["tie_weights"]:
        trained = {name: weight for name, weight in trained.items() if name != "lm_head.weight"}
    file = out / ("adapter.pt" if (out / "adapter.pt").exists() else "ckpt.pt")
    found = {
        "method": method,
        "seed": seed,
        "trained": sum(weight.numel() for weight in trained.values()),
        "megabytes": file.stat().st_size / 1e6,
        "seconds": entries["after"]["seconds"],
        "accuracy": report["results"]["model"]["accuracy"],
        "ngram": report["results"].get("ngram", {}).get("accuracy"),
        "response_loss": report["loss"],
        "forgetting": entries["after"]["base_loss"] - entries["before"]["base_loss"],
        "before": entries["before"],
    }
    reached = f"accuracy {found['accuracy']:.3f}, forgetting {found['forgetting']:.2f}"
    print(f"{method}, seed {seed}: {reached}", file=sys.stderr)
    return found


def spread(values: list[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| method | trainable parameters | file | seconds | accuracy | loss on the responses | forgetting |",
        "|---|---|---|---|---|---|---|",
    ]
    before = results[0]["before"]
    lines.append(f"| no fine-tuning | 0 | | 0 | 0 % | {before['response_loss']:.3f} (validation) | 0 |")
    for method in METHODS:
        runs = [result for result in results if result["method"] == method]
        if not runs:
            continue
        columns = {key: [run[key] for run in runs] for key in runs[0]}
        cells = [
            method,
            f"{runs[0]['trained']:,}",
            f"{runs[0]['megabytes']:.1f} MB",
            f"{statistics.median(columns['seconds']):.0f}",
            spread([100 * accuracy for accuracy in columns["accuracy"]], ".1f") + " %",
            spread(columns["response_loss"], ".3f"),
            spread(columns["forgetting"], "+.2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if results[0]["ngram"] is not None:
        lines.append(f"| n-grams (no model) | | | | {100 * results[0]['ngram']:.1f} % | | |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against forgetting, one point per run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for index, method in enumerate(METHODS):
        runs = [run for run in results if run["method"] == method]
        xs, ys = [run["forgetting"] for run in runs], [100 * run["accuracy"] for run in runs]
        axes.plot(xs, ys, "o", color=f"C{index}", markersize=6, label=method)
    axes.set(xlabel="forgetting: loss on the base model's own validation split, after minus before (nats)")
    axes.set(ylabel="accuracy on the test split (%)")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="out-fast/ckpt.pt", help="checkpoint of the base model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run per seed and method")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    parser.add_argument("--out", type=Path, default=Path("out-compare"), help="folder for the runs")
    parser.add_argument("--picture", type=Path, help="accuracy against forgetting as PNG; default: OUT/compare.png")
    parser.add_argument("more", nargs="*", help="further flags for every run, after --")
    args = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install matplotlib")
    args.out.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    slowest_first = sorted(METHODS, key=lambda method: "LoRA" not in method)
    jobs = [(method, seed) for method in slowest_first for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda job: measure(*job, args, threads), jobs))
    (args.out / "compare.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    draw(results, args.picture or args.out / "compare.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
