"""`tinygpt check`: is what lies in a folder whole, and what can still be used; and does resuming keep its promise here.

tinygpt check out/ data/shakespeare_char
tinygpt check --resume configs/shakespeare_char.yaml
"""

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tinygpt.checkpoint import Checkpoint, load, read
from tinygpt.config import CheckConfig
from tinygpt.data import TOKEN, Dataset
from tinygpt.errors import TinyGPTError
from tinygpt.runlog import read_metrics
from tinygpt.tokenizer import fingerprint


def check(config: CheckConfig) -> int:
    """Print the findings; returns 0 when everything is good, 1 when something is not."""
    if config.resume:
        return check_resume(config)
    good = True
    for name in config.folders:
        folder = Path(name)
        if (folder / "meta.json").exists():
            good &= check_dataset(folder)
        elif any(folder.glob("*.pt")):
            good &= check_run(folder, config.data_dir)
        else:
            raise TinyGPTError(
                f"{folder}: neither a run (ckpt.pt, last.pt) nor a dataset (meta.json)", "tinygpt check out"
            )
    return 0 if good else 1


def report(good: bool, text: str, way_out: str = "") -> bool:
    print(f"{'good' if good else 'BAD '}  {text}" + (f"\n      try: {way_out}" if way_out else ""))
    return good


# ---- folders ----------------------------------------------------------------------------------------------------


def check_run(folder: Path, data_dir: str) -> bool:
    """Checksums, format and weights of each checkpoint; the newest against the best; the dataset; the metrics."""
    loaded: dict[str, Checkpoint] = {}
    good = True
    for path in sorted(folder.glob("*.pt")):
        try:
            if path.name == "adapter.pt":
                read(path)
                report(True, f"{path}: whole")
                continue
            loaded[path.name] = load(path)
            loaded[path.name].build_model()
            loss = f", best validation loss {loaded[path.name].best_val_loss:.4f}"
            report(True, f"{path}: whole, before iteration {loaded[path.name].step:,}{loss}")
        except TinyGPTError as error:
            loaded.pop(path.name, None)
            good = report(False, error.message, error.hint)
    best, last = loaded.get("ckpt.pt"), loaded.get("last.pt")
    if best and last and last.step < best.step:
        print(f"note  last.pt (iteration {last.step:,}) is older than ckpt.pt ({best.step:,}): the run was stopped")
        print("      between writing the two; resuming does those iterations again, with the same result")
    newest = last or best
    if newest and newest.tokenizer is not None:
        good &= check_vocabulary(newest, data_dir)
    if (folder / "metrics.jsonl").exists():
        entries = read_metrics(folder)
        lines = len((folder / "metrics.jsonl").read_bytes().splitlines())
        good &= report(lines == len(entries), f"{folder}/metrics.jsonl: {len(entries):,} of {lines:,} lines whole")
    usable = []
    if best:
        usable.append(f"tinygpt sample --ckpt {folder}/ckpt.pt")
    if last and last.training:
        usable.append(f"tinygpt train --init_from=resume --out_dir={folder}")
    print("can be used: " + ("; ".join(usable) if usable else "nothing here; train again"))
    return good


def check_vocabulary(state: Checkpoint, data_dir: str) -> bool:
    name = str(state.config.get("dataset", ""))
    try:
        dataset = Dataset(data_dir, name)
    except TinyGPTError as error:
        print(f"note  its dataset cannot be compared: {error.message}")
        return True
    own = fingerprint(state.tokenizer or {})
    if own != dataset.fingerprint:
        return report(
            False,
            f"the vocabulary ({own}) is not that of dataset {name!r} now ({dataset.fingerprint})",
            "sampling works (the checkpoint has its own); to resume, prepare the old text again",
        )
    same = dataset.is_of(state.data)
    return report(
        same,
        f"dataset {name!r}: " + ("the one it was trained on" if same else "the same vocabulary, but other text"),
        "" if same else "to resume, prepare the old text again",
    )


def check_dataset(folder: Path) -> bool:
    """Format and checksums of a prepared dataset, whatever its size."""
    try:
        dataset = Dataset(str(folder.parent), folder.name)
        for split in dataset.splits:
            dataset.verify(split, np.memmap(folder / f"{split}.bin", dtype=TOKEN, mode="r"))
            report(True, f"{folder}/{split}.bin: whole, {len(dataset.splits[split]):,} tokens")
        return True
    except TinyGPTError as error:
        return report(False, error.message, error.hint)


# ---- the promise of exact resume --------------------------------------------------------------------------------


def check_resume(config: CheckConfig) -> int:
    """Train a short run undisturbed, and again with a kill -9 in the middle and --init_from=auto; compare."""
    iterations = config.iterations
    with tempfile.TemporaryDirectory(prefix="tinygpt-check-") as scratch:
        command = [sys.executable, "-m", "tinygpt", "train", config.resume, f"--data_dir={config.data_dir}"]
        command += [f"--max_iters={iterations}", f"--checkpoint_interval={max(iterations // 6, 1)}", "--eval_iters=2"]
        command += [f"--eval_interval={max(iterations // 2, 1)}", "--log_interval=1", "--init_from=auto", "--quiet"]
        hashes = {}
        for name in ("undisturbed", "killed and resumed"):
            out = Path(scratch) / name.split()[0]
            run = [*command, f"--out_dir={out}"]
            if name != "undisturbed":
                kill_at(run, out, iterations * 2 // 3)
            finished = subprocess.run(run, capture_output=True, text=True)
            if finished.returncode:
                message = finished.stderr.strip().removeprefix("error: ")
                raise TinyGPTError(f"the run for this check failed: {message}", f"tinygpt train {config.resume}")
            hashes[name] = weights_hash(load(out / "last.pt"))
            print(f"{name + ':':<20} {hashes[name]}")
    same = len(set(hashes.values())) == 1
    return 0 if report(same, f"weights after {iterations} iterations are {'equal' if same else 'NOT equal'}") else 1


def kill_at(command: list[str], out: Path, step: int) -> None:
    """Start a run and send it SIGKILL when its metrics show iteration `step`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        metrics = out / "metrics.jsonl"
        reached = metrics.exists() and any(e["kind"] == "train" and e["step"] >= step for e in read_metrics(out))
        if reached:
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"kill -9 after iteration {step}")
        time.sleep(0.005)
    if process.stderr:
        process.stderr.close()


def weights_hash(state: Checkpoint) -> str:
    """SHA-256 over the names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(state.model.items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()
