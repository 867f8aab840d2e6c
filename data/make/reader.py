"""Make the reader that ships with tinygpt: train it, store its weights in 8 bits, and evaluate it before and after.

    python data/make/reader.py                                    # trains in two stages, writes the file
    python data/make/reader.py --ckpt out-reader-long/ckpt.pt     # starts from a trained model

Prints the exact match on the short and the long examples: on val (wordings of train, other names) and on test (held-out
wordings), in float32 and in 8 bits. The same code gives the same reader again on the same machine; on another machine
the reader differs a little.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from tinygpt.checkpoint.eight_bits import to_8_bits
from tinygpt.checkpoint.store import Checkpoint, load, save
from tinygpt.data.tasks.reader import DATASETS
from tinygpt.use.ask.answer import SHIPPED

LARGEST = 1 << 20  # bytes


def tinygpt(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "tinygpt", *args], check=True)


def exact(ckpt: Path, task: str, split: str, data_dir: str) -> str:
    """Evaluate a model with `tinygpt eval`; return the results as one line."""
    flags = [f"--ckpt={ckpt}", f"--task={task}", f"--split={split}", f"--data_dir={data_dir}", "--device=cpu", "--json"]
    done = subprocess.run([sys.executable, "-m", "tinygpt", "eval", *flags], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    abstention = report["abstention"]
    return (
        f"exact {100 * report['exact']:.1f}%, with an answer {100 * abstention['exact_of_others']:.1f}%, without "
        f"{100 * abstention['recall']:.1f}% (precision {100 * abstention['precision']:.1f}%), of {report['n']:,}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="a trained reader; without it, one is trained")
    parser.add_argument("--data_dir", default="data", help="folder that holds the datasets")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="file to write")
    args = parser.parse_args()
    data_dir = f"--data_dir={args.data_dir}"
    for task in DATASETS:
        tinygpt("prepare", task, data_dir)
    if args.ckpt is None:
        tinygpt("train", "reader", "--device=cpu", data_dir)
        tinygpt("finetune", "finetune_reader_long", "--ckpt=out-reader", "--device=cpu", data_dir)
        args.ckpt = Path("out-reader-long/ckpt.pt")
    trained = load(args.ckpt)
    config = {key: value for key, value in trained.config.items() if key not in ("data_dir", "out_dir", "ckpt")}
    small = Checkpoint(to_8_bits(trained.model), trained.model_args, config, trained.step, trained.best_val_loss)
    small.tokenizer = trained.tokenizer
    new = args.output.with_suffix(".new")
    save(new, small)
    size = new.stat().st_size
    if size > LARGEST:
        sys.exit(f"{new}: {size:,} bytes, larger than {LARGEST:,}: a smaller model is needed")
    new.replace(args.output)
    for task, split, ckpt in itertools.product(DATASETS, ("val", "test"), (args.ckpt, args.output)):
        print(f"{task:<12} {split:<5} {ckpt!s:<30} {exact(ckpt, task, split, args.data_dir)}", flush=True)
    print(f"written: {args.output}, {size:,} bytes, {trained.num_params:,} parameters")


if __name__ == "__main__":
    main()
