"""Compare methods of fine-tuning: accuracy, forgetting and cost of each.

    tinygpt prepare transactions
    python scripts/compare.py --ckpt out-fast/ckpt.pt --pretrained out-smollm2/ckpt.pt

For each method and seed the script runs `tinygpt finetune` (or train, from scratch) and `tinygpt eval` on the
transactions. It prints a table in Markdown (median, minimum, maximum), draws accuracy against forgetting, and writes
all figures to compare.json. With --pretrained, the methods include a pretrained model: as it is, and with LoRA. With
--curve, it trains the small and the pretrained model on the first 50, 200, 1,000 and 4,000 examples, and draws the
learning curve. With --jobs, several runs share the processor and take longer. Runs that are complete are not repeated.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.checkpoint.adapter import load_model
from tinygpt.lora import adapted_only
from tinygpt.training.log import read_metrics

FULL, LORA, LARGE = (f"configs/finetune_transactions{kind}.yaml" for kind in ("", "_lora", "_pretrained"))
# from scratch: the small model with its own optimizer, and the schedule of FULL
SCRATCH = "configs/shakespeare_char_fast.yaml --dataset=transactions --batch_size=32 --dropout=0.1 --max_iters=1000"
SCRATCH += " --lr_schedule=linear --min_lr=0 --warmup_iters=50 --eval_interval=100 --eval_iters=0 --patience=5"
SIZES = {50: 30, 200: 50, 1000: 100, 4000: 250}  # training examples, and iterations of the pretrained model


class Method(NamedTuple):
    """A way to make a model for the task: a command and its flags, and the base model it starts from."""

    command: str  # finetune or train; empty: the base model as it is
    flags: list[str]
    base: str = "small"  # small, pretrained, or empty for none


METHODS = {
    "from scratch, no pretraining": Method("train", SCRATCH.split(), ""),
    "all weights": Method("finetune", [FULL]),
    "all weights, replay 0.001": Method("finetune", [FULL, "--replay=0.001"]),
    "LoRA, rank 2": Method("finetune", [LORA, "--lora_rank=2"]),
    "LoRA, rank 8": Method("finetune", [LORA]),
    "pretrained 135 M, zero-shot": Method("", [], "pretrained"),
    "pretrained 135 M, LoRA": Method("finetune", [LARGE, "--base_dataset=shakespeare_char"], "pretrained"),
}
CURVE = {name: METHODS[name] for name in ("all weights", "pretrained 135 M, LoRA")}
SONNET = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimmed;
And every fair from fair sometime declines,
By chance or nature's changing course untrimmed;
But thy eternal summer shall not fade,
Nor lose possession of that fair thou owest;
Nor shall death brag thou wanderest in his shade,
When in eternal lines to time thou growest:
So long as men can breathe or eyes can see,
So long lives this and this gives life to thee.
"""  # prompts outside the task: Shakespeare's sonnet 18


class Job(NamedTuple):
    """One run: a method, a seed and the number of training examples (0: all)."""

    name: str
    method: Method
    seed: int
    examples: int = 0


RUN = """
import resource, sys
from tinygpt.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def tinygpt(*args: str, threads: int) -> tuple[str, float]:
    """Run a command; returns what it printed, and its peak memory in bytes."""
    command = [sys.executable, "-c", RUN, *args]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}:\n{done.stderr[-500:]}")
    return done.stdout, int(done.stderr.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024)


def measure(job: Job, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Train once, evaluate, and return the figures; those of an earlier call are read from the run's folder."""
    parts = [job.name.replace(" ", "-").replace(",", ""), *([str(job.examples)] if job.examples else []), str(job.seed)]
    out = args.out / "-".join(parts)
    saved = out / "compare.json"
    if saved.exists():
        return dict(json.loads(saved.read_text()))
    peak = 0.0
    base = {"small": args.ckpt, "pretrained": args.pretrained}.get(job.method.base, "")
    data, began = f"--data_dir={args.data_dir}", time.perf_counter()
    if job.method.command:
        flags = [*job.method.flags, f"--out_dir={out}", f"--seed={job.seed}", "--device=cpu", "--quiet", data]
        flags += [f"--ckpt={base}"] if base else []
        flags += [f"--examples={job.examples}"] if job.examples else []
        if job.examples and job.method.base == "pretrained":
            flags += [f"--max_iters={SIZES[job.examples]}", f"--eval_interval={SIZES[job.examples]}"]
        _, peak = tinygpt(job.method.command, *flags, *args.more, threads=threads)
    seconds, model = time.perf_counter() - began, str(out) if job.method.command else base
    asked = "eval", f"--ckpt={model}", "--task=transactions", "--device=cpu", "--json", data
    report = json.loads(tinygpt(*asked, threads=threads)[0])
    outside = tinygpt(*asked, f"--predict={args.out / 'outside.txt'}", threads=threads)[0]
    found: dict[str, Any] = {"method": job.name, "seed": job.seed, "examples": job.examples, "seconds": seconds}
    found |= {"trained": 0, "megabytes": 0.0, "forgetting": None, "response_loss": report["loss"], "peak": peak}
    found["accuracy"] = report["results"]["model"]["accuracy"]
    found["confidence"] = sum(bin["count"] * (bin["confidence"] or 0) for bin in report["bins"]) / report["n"]
    found["outside"] = statistics.mean(json.loads(line)["probability"] for line in outside.splitlines())
    found["ngram"] = report["results"].get("ngram", {}).get("accuracy")
    if job.method.command:
        entries = {entry["kind"]: entry for entry in read_metrics(out)}
        saved_model = load_model(str(out / "ckpt.pt"))
        trained = adapted_only(saved_model.model) or saved_model.model
        if "lm_head.weight" in trained and saved_model.model_args["tie_weights"]:
            trained = {name: weight for name, weight in trained.items() if name != "lm_head.weight"}
        file = out / ("adapter.pt" if (out / "adapter.pt").exists() else "ckpt.pt")
        found["trained"] = sum(weight.numel() for weight in trained.values())
        found["megabytes"] = file.stat().st_size / 1e6
        if "base_loss" in entries.get("after", {}):
            found["forgetting"] = entries["after"]["base_loss"] - entries["before"]["base_loss"]
    out.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps(found))
    print(f"{job.name}, {job.examples or 'all'} examples, seed {job.seed}: {found['accuracy']:.3f}", file=sys.stderr)
    return found


def spread(values: list[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})" if len(values) > 1 else f"{middle:{form}}"


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| method | trained | file | seconds | memory | accuracy | confidence: on the task, outside | forgetting |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        runs = [result for result in results if result["method"] == method]
        if not runs:
            continue
        columns = {key: [run[key] for run in runs] for key in runs[0]}
        forgetting = [value for value in columns["forgetting"] if value is not None]
        cells = [
            method,
            f"{runs[0]['trained']:,}",
            f"{runs[0]['megabytes']:.1f} MB" if runs[0]["megabytes"] else "",
            f"{statistics.median(columns['seconds']):.0f}",
            f"{statistics.median(columns['peak']) / 1e9:.1f} GB" if runs[0]["peak"] else "",
            spread([100 * accuracy for accuracy in columns["accuracy"]], ".1f") + " %",
            ", ".join(f"{100 * statistics.median(columns[key]):.0f} %" for key in ("confidence", "outside")),
            spread(forgetting, "+.2f") if forgetting else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ngram = next((result["ngram"] for result in results if result["ngram"] is not None), None)
    if ngram is not None:
        lines.append(f"| n-grams (no model) | | | | | {100 * ngram:.1f} % | | |")
    return "\n".join(lines)


def curve_table(results: list[dict[str, Any]]) -> str:
    names = [name for name in CURVE if any(run["method"] == name for run in results)]
    lines = [f"| examples | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for size in SIZES:
        cells = []
        for name in names:
            runs = [run for run in results if run["method"] == name and (run["examples"] or max(SIZES)) == size]
            cells.append(spread([100 * run["accuracy"] for run in runs], ".1f") + " %")
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def axes_of(size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    axes.set(ylabel="accuracy on the test split (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against forgetting, one point per run."""
    figure, axes = axes_of((7, 4.2))
    for index, method in enumerate(METHODS):
        runs = [run for run in results if run["method"] == method and run["forgetting"] is not None]
        if runs:
            xs, ys = [run["forgetting"] for run in runs], [100 * run["accuracy"] for run in runs]
            axes.plot(xs, ys, "o", color=f"C{index}", markersize=6, label=method)
    axes.set(xlabel="forgetting: loss on the base model's own validation split, after minus before (nats)")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def draw_curve(results: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against the number of training examples: the median, and all runs as points."""
    figure, axes = axes_of((7, 4.2))
    for index, name in enumerate(CURVE):
        runs = [run for run in results if run["method"] == name]
        if not runs:
            continue
        for run in runs:
            run["examples"] = run["examples"] or max(SIZES)
        medians = [statistics.median(100 * r["accuracy"] for r in runs if r["examples"] == size) for size in SIZES]
        axes.plot(list(SIZES), medians, "-", color=f"C{index}", label=name)
        axes.plot([run["examples"] for run in runs], [100 * run["accuracy"] for run in runs], "o", color=f"C{index}")
    ngram = next((100 * run["ngram"] for run in results if run["ngram"] is not None), None)
    if ngram is not None:
        axes.axhline(ngram, color="gray", linestyle=":", label="n-grams, 4,000 examples")
    axes.set(xlabel="training examples", xscale="log")
    axes.set_xticks(list(SIZES), [f"{size:,}" for size in SIZES])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="out-fast/ckpt.pt", help="checkpoint of the small base model")
    parser.add_argument("--pretrained", default="", help="checkpoint of an imported model; empty: leave its rows out")
    parser.add_argument("--curve", action="store_true", help="measure the learning curve instead of the table")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="rows of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run per seed and method")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    parser.add_argument("--data_dir", default="data", help="folder with the prepared datasets")
    parser.add_argument("--out", type=Path, default=Path("out-compare"), help="folder for the runs")
    parser.add_argument("--picture", type=Path, help="the picture as PNG; default: OUT/compare.png or OUT/curve.png")
    parser.add_argument("more", nargs="*", help="further flags for every training, after --")
    args = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install matplotlib")
    args.out.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    chosen = CURVE if args.curve else {name: METHODS[name] for name in args.methods}
    methods = {name: method for name, method in chosen.items() if args.pretrained or method.base != "pretrained"}
    (args.out / "outside.txt").write_text(SONNET)
    sizes = [size if size < max(SIZES) else 0 for size in SIZES] if args.curve else [0]  # all 4,000: as in the table
    jobs = [
        Job(name, method, seed, size)
        for seed in args.seeds
        for size in sizes
        for name, method in methods.items()
        if method.command or seed == args.seeds[0]  # a model as it is has no seed
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda job: measure(job, args, threads), jobs))
    (args.out / "compare.json").write_text(json.dumps(results, indent=1) + "\n")
    print(curve_table(results) if args.curve else table(results))
    (draw_curve if args.curve else draw)(
        results, args.picture or args.out / f"{'curve' if args.curve else 'compare'}.png"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
