"""Measure training on a GPU, tinygpt next to compiled nanoGPT, and print a text to send in.

    python scripts/bench.py --device=cuda --nanogpt ../nanoGPT            # ten minutes, half of it compilation
    python scripts/bench.py --device=cuda --cases 124M --batch_size 4     # for a GPU with little memory

Two cases: `configs/shakespeare_char_gpu.yaml` (10.7 M parameters), and GPT-2's size (124 M, a context of 1,024, 5
micro-steps of 12 rows, which is the share of one of 8 GPUs) on Tiny Shakespeare in GPT-2's tokens. The method:

- Each program trains in a process of its own, with its own preset's model, batch, dropout and optimizer; both use
  torch.compile, with an empty cache, and the dtype that tinygpt chooses. One runs the code of nanoGPT's train.py, the
  other that of tinygpt's `loop`. nanoGPT's model has no bias, as in its recipes.
- They take turns, A B A B, in rounds of a few seconds; the first round is discarded. The ratio is the median of the
  rounds' ratios.
- Compilation: from the creation of the model to the end of the first step, less a later step. Libraries that
  torch.compile loads are included.
- Memory: PyTorch's peak of allocated memory during the steps.
- Share of the peak: 6 FLOP per parameter and token, and attention's, over the GPU's peak for
  dense products as its maker states it, and over the rate of large products, measured here.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import Worker, markdown, nanogpt_batch, say, serve, shown

CASES = {  # name: preset and flags of tinygpt, dataset
    "shakespeare_char_gpu": (["configs/shakespeare_char_gpu.yaml"], "shakespeare_char"),
    "124M": (["gpt2_openwebtext", "--gradient_accumulation_steps=5"], "shakespeare"),
}
QUICK = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=2"]
SETTINGS = ("n_layer", "n_head", "n_embd", "block_size", "dropout", "batch_size", "gradient_accumulation_steps")
SETTINGS += ("learning_rate", "weight_decay", "beta1", "beta2", "grad_clip", "log_interval", "dataset")
PEAKS = {  # FLOP/s of dense products in bfloat16 or float16 with float32 sums, as stated by NVIDIA
    "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
ROUND = 3.0  # seconds


def nanogpt_worker() -> dict[str, Callable[..., Any]]:
    """nanoGPT's functions: an iteration of train.py, with model.py of this folder."""
    sys.path.insert(0, os.getcwd())
    import torch
    from model import GPT, GPTConfig

    step: Callable[[], None]

    def start(device: str, dtype: str, compiled: bool, vocab_size: int, c: dict[str, Any]) -> float:
        nonlocal step
        began, kind = time.perf_counter(), torch.device(device).type
        if ":" in device:
            torch.cuda.set_device(device)
        torch.manual_seed(1337)
        torch.backends.cuda.matmul.allow_tf32 = True
        shape = {name: c[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
        model = GPT(GPTConfig(bias=False, vocab_size=vocab_size, **shape)).to(device)
        scaler = torch.amp.GradScaler(kind, enabled=dtype == "float16")
        betas = (c["beta1"], c["beta2"])
        optimizer = model.configure_optimizers(c["weight_decay"], c["learning_rate"], betas, kind)
        fast = torch.compile(model) if compiled else model

        def get_batch() -> Any:
            x, y = nanogpt_batch(c["dataset"], c["block_size"], c["batch_size"])
            if kind == "cuda":
                x, y = x.pin_memory(), y.pin_memory()
            return x.to(device, non_blocking=True), y.to(device, non_blocking=True)

        ahead, iteration = [get_batch()], 0

        def one() -> None:
            nonlocal iteration
            for _ in range(c["gradient_accumulation_steps"]):
                with torch.autocast(kind, getattr(torch, dtype), enabled=dtype != "float32"):
                    loss = fast(*ahead.pop())[1] / c["gradient_accumulation_steps"]
                ahead.append(get_batch())
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), c["grad_clip"])
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if iteration % c["log_interval"] == 0:
                loss.item()
            iteration += 1

        step = one
        return first_step(step, began)

    return {"start": start, "steps": lambda count: timed(step, count), "memory": peak}


def tinygpt_worker() -> dict[str, Callable[..., Any]]:
    """tinygpt's functions: a training step by the code of the command."""
    import torch

    from tinygpt import device
    from tinygpt.config.parse import parse
    from tinygpt.config.schema import TrainConfig
    from tinygpt.machine import description
    from tinygpt.train import batch, forward_backward, require_finite_loss
    from tinygpt.training.optimizer import learning_rate
    from tinygpt.training.run import Run, set_up
    from tinygpt.training.start import Start

    run: Run
    ahead: tuple[torch.Tensor, torch.Tensor, list[float]]

    def start(name: str, compiled: bool, *flags: str) -> float:
        nonlocal run, ahead
        began, compute = time.perf_counter(), device.choose(name, "auto")
        if compute.device.index is not None:
            torch.cuda.set_device(compute.device)
        more = [f"--device={name}", f"--compile={compiled}", "--eval_only", "--quiet"]  # eval_only: writes no files
        run = set_up(contextlib.ExitStack(), Start(parse(TrainConfig, [*flags, *more])), compute)
        ahead = batch(run, 0)
        return first_step(step, began)

    def step() -> None:
        nonlocal ahead
        run.optimizer.set_learning_rate(learning_rate(run.progress.step, run.config))
        loss, norm = forward_backward(run, *ahead)
        ahead = batch(run, run.progress.step + 1)
        if run.progress.step % run.config.log_interval == 0 or run.compute.device.type == "cpu":
            require_finite_loss(run, loss, norm)
        run.optimizer.update()
        run.progress.step += 1

    def facts() -> dict[str, Any]:
        c, gpu = run.config, ""
        machine = [*description(), f"device:    {run.compute.describe()}"]
        if run.compute.device.type == "cuda":
            about = torch.cuda.get_device_properties(run.compute.device)
            gpu, version = about.name, torch.version.cuda or torch.version.hip
            machine.append(f"GPU:       {gpu}, {about.total_memory / 1e9:.0f} GB, CUDA {version}")
        return {
            "config": {key: getattr(c, key) for key in SETTINGS},
            "vocab_size": run.model.config.vocab_size,
            "parameters": run.model.num_params(),
            "tokens": c.batch_size * c.gradient_accumulation_steps * c.block_size,
            "dtype": str(run.compute.dtype).removeprefix("torch."),
            "compiled": run.compiled,
            "machine": machine,
            # a variant of a card, such as H100 NVL, has another peak
            "peaks": [peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b(?! (NVL|Ti|D|Laptop)\b)", gpu)],
        }

    def large_products(size: int, count: int) -> float:
        """Measure FLOP/s."""
        a, b = (torch.randn(size, size, device=run.compute.device).to(run.compute.dtype) for _ in range(2))
        timed(lambda: torch.mm(a, b), 3)
        return 2 * size**3 / timed(lambda: torch.mm(a, b), count)

    functions = {"start": start, "steps": lambda count: timed(step, count), "memory": peak}
    return {**functions, "facts": facts, "large_products": large_products}


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], count: int) -> float:
    """Measure the seconds of one of `count` calls."""
    synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return (time.perf_counter() - began) / count


def first_step(step: Callable[[], None], began: float) -> float:
    """Run a step; return the seconds since `began`. The peak of memory is measured from here on."""
    import torch

    timed(step, 1)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter() - began


def peak() -> float:
    """Return the peak memory of the GPU in bytes, without one that of this process."""
    import torch

    from tinygpt.training.log import peak_memory

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()


# ---- the table ------------------------------------------------------------------------------------------------------


def measure(case: str, folder: Path, args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Measure a case; return the lines of its table, and all figures."""
    flags, dataset = CASES[case]
    command = [sys.executable, "-m", "tinygpt", "prepare", dataset]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    flags = [*flags, f"--dataset={dataset}", *(QUICK if args.quick else [])]
    flags += [f"--batch_size={args.batch_size}"] if args.batch_size else []
    with contextlib.ExitStack() as stack:

        def worker(kind: str, cwd: Path) -> Worker:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled" / f"{case}-{kind}")
            made = Worker(kind, [__file__, "--worker", kind], cwd)
            stack.callback(made.close)
            return made

        ours, compiled = worker("tinygpt", folder), args.compile == "True"
        say(f"{case}: compiling tinygpt")
        starts = {"tinygpt": ours.ask("start", args.device, compiled, *flags)}
        facts, workers = ours.ask("facts"), {"tinygpt": ours}
        if args.nanogpt:
            say(f"{case}: compiling nanoGPT")
            shutil.copytree(folder / "data" / dataset, folder / "nanogpt/data" / dataset, dirs_exist_ok=True)
            theirs = worker("nanogpt", folder / "nanogpt")
            same = [args.device, facts["dtype"], compiled, facts["vocab_size"], facts["config"]]
            starts = {"nanoGPT": theirs.ask("start", *same), **starts}
            workers = {"nanoGPT": theirs, **workers}
        rounds: dict[str, list[float]] = {name: [] for name in workers}
        counts = {
            name: max(1, round((0 if args.quick else ROUND) / one.ask("steps", 2))) for name, one in workers.items()
        }
        for index in range(3 if args.quick else 9):
            for name, one in workers.items():
                seconds = one.ask("steps", counts[name])
                if index:
                    rounds[name].append(seconds)
            say(
                f"  round {index}: " + ", ".join(f"{name} {times[-1]:.4f} s" for name, times in rounds.items() if times)
            )
        products = ours.ask("large_products", *((64, 3) if args.quick else (8192, 50)))
        memory = {name: one.ask("memory") for name, one in workers.items()}
    return table(case, facts, starts, rounds, memory, products), {
        "case": case, **facts, "starts": starts, "rounds": rounds, "memory": memory, "products": products
    }  # fmt: skip


def table(
    case: str,
    facts: dict[str, Any],
    starts: dict[str, float],
    rounds: dict[str, list[float]],
    memory: dict[str, float],
    products: float,
) -> list[str]:
    c, median = facts["config"], {name: statistics.median(times) for name, times in rounds.items()}
    flop = facts["tokens"] * (6 * facts["parameters"] + 12 * c["n_layer"] * c["n_embd"] * c["block_size"])
    values = {
        "step, ms": {name: 1e3 * seconds for name, seconds in median.items()},
        "tokens per second": {name: facts["tokens"] / seconds for name, seconds in median.items()},
        "memory, GB": {name: size / 1e9 for name, size in memory.items()},
        "compilation, s": {name: max(0.0, starts[name] - median[name]) for name in starts},
        "share of large products, %": {name: 100 * flop / seconds / products for name, seconds in median.items()},
    }
    if facts["peaks"]:
        share = {name: 100 * flop / seconds / facts["peaks"][0] for name, seconds in median.items()}
        values["share of the stated peak, %"] = share
    lines = [[case, *starts, "nanoGPT / tinygpt"]]
    for what, by_name in values.items():
        ratio = ""
        if "nanoGPT" in by_name and by_name["tinygpt"]:
            pairs = zip(rounds["nanoGPT"], rounds["tinygpt"], strict=True)
            of_rounds = statistics.median(theirs / ours for theirs, ours in pairs)
            ratio = f"{of_rounds if what == 'step, ms' else by_name['nanoGPT'] / by_name['tinygpt']:.2f}"
        lines.append([what, *(shown(by_name[name]) for name in starts), ratio])
    size = f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['tokens']:,} tokens per step, {facts['dtype']}"
    rate = f"large products: {products / 1e12:.3g} TFLOP/s{'' if facts['compiled'] else '; not compiled'}"
    return [*markdown(lines), "", f"{size}; {rate}"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:N")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to compare with")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch_size", type=int, default=0, help="rows per micro-step; 0: those of the preset")
    parser.add_argument("--compile", choices=("True", "False"), default="True")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this script, also on a CPU")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.json"), help="JSON file for all raw figures")
    parser.add_argument("--worker", choices=("nanogpt", "tinygpt"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        serve(nanogpt_worker if args.worker == "nanogpt" else tinygpt_worker)
        return 0
    if args.nanogpt and not (args.nanogpt / "train.py").exists():
        parser.error(f"{args.nanogpt} is not a checkout of nanoGPT (it has no train.py)")
    made, texts = [], []
    with tempfile.TemporaryDirectory(prefix="tinygpt-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if args.nanogpt:
            (folder / "nanogpt").mkdir()
            shutil.copy(args.nanogpt / "model.py", folder / "nanogpt")
        for case in args.cases:
            try:
                lines, figures = measure(case, folder, args)
            except (RuntimeError, subprocess.CalledProcessError) as error:  # out of memory, for example
                texts.append([f"{case}: failed: {error}"])
                continue
            made.append(figures)
            texts.append(lines)
            args.out.write_text(json.dumps({"quick": args.quick, "cases": made}, indent=1) + "\n")
    print("Please send this text as an issue; it names no user, computer or folder unless a case failed.\n")
    print("\n\n".join("\n".join(lines) for lines in ([figures["machine"] for figures in made[:1]] + texts)))
    print("\n(quick: the figures mean nothing)" if args.quick else "")
    return 0 if len(made) == len(args.cases) else 1


if __name__ == "__main__":
    sys.exit(main())
