"""Compare tokenizers at equal training time; prints a Markdown table.

    python scripts/bench_tokenizers.py --text German=debian-paketmanagement.allinone.html    # an hour or more
    python scripts/bench_tokenizers.py --iterations 100 --seeds 1                            # a first look
    python scripts/bench_tokenizers.py --table                                # the table of the runs that are finished

Characters, BPE trained on the text (512, 1,024 and 4,096 tokens) and GPT-2's vocabulary (`tinygpt[offline]`), on Tiny
Shakespeare, on naics and on each --text. Shape and recipe are those of configs/nanogpt.yaml, with its context
of 64 tokens, so a model with longer tokens reads more characters. Equal time is the time in which the model of
characters makes --iterations: iterations and samples of all tokenizers are timed alternating, on all texts, with one
thread, and the median of the ratios to characters says how many iterations the others make. So other work on the
machine hardly changes a figure. The whole schedule of the learning rate is in each run. Losses are those of the last
weights on the complete validation split.

A --text may be any document that `tinygpt index` reads; of one in HTML, lines with fewer than 100 characters (headings,
listings) are left out. The German text of the table is the book in the Debian package debian-paketmanagement-buch
(Axel Beckert and Frank Hofmann, CC-BY-SA 4.0):

    apt-get download debian-paketmanagement-buch && dpkg -x debian-paketmanagement-buch_*.deb buch

Times are kept in FOLDER/times.json and finished runs in FOLDER/cells.jsonl, so the script continues where it was
stopped.
"""

import argparse
import contextlib
import io
import itertools
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinygpt.checkpoint.store import load
from tinygpt.config.parse import parse
from tinygpt.config.schema import PrepareConfig, TrainConfig
from tinygpt.data.corpora import CORPORA
from tinygpt.data.dataset import Dataset
from tinygpt.device import choose
from tinygpt.evaluate.loss import bits_per_character, validation_loss
from tinygpt.files import replacing, strict_json
from tinygpt.generate import Sampling, generate
from tinygpt.prepare import prepare
from tinygpt.retrieve import documents
from tinygpt.train import batch, forward_backward, train
from tinygpt.training.run import set_up
from tinygpt.training.start import choose_compute, starting_point

TOKENIZERS: dict[str, dict[str, Any]] = {  # name in the table: options of prepare
    "characters": {"tokenizer": "char"},
    "BPE, 512": {"tokenizer": "bpe", "vocab_size": 512},
    "BPE, 1,024": {"tokenizer": "bpe", "vocab_size": 1024},
    "BPE, 4,096": {"tokenizer": "bpe", "vocab_size": 4096},
    "GPT-2": {"tokenizer": "gpt2"},
}
CORPUS_TEXTS = {"Tiny Shakespeare": "shakespeare_char", "naics": "naics"}
SHORTEST_LINE = 100  # characters of a line of HTML
WARM, TIMED, ROUNDS = 5, 0.5, 3  # iterations before an iteration is timed; CPU seconds for which it is; how often
WARM_UP = 20  # a twentieth of the iterations is warm-up, as in nanogpt
SAMPLED = 200  # tokens


def text_of(name: str, path: str) -> str:
    """The text of a corpus or of a file."""
    if path in CORPORA:
        return CORPORA[path].text()
    lines = [line for section in documents.read(Path(path)) for line in section.text.splitlines()]
    shortest = SHORTEST_LINE if path.endswith((".html", ".htm")) else 0
    return "".join(f"{line}\n" for line in lines if len(line) >= shortest)


def prepared(folder: Path, text: str, path: str, tokenizer: str) -> Dataset:
    """Make the dataset of a text and a tokenizer if it is not there."""
    name = "-".join("".join(c if c.isalnum() else " " for c in f"{text} {tokenizer}").lower().split())
    source, data = folder / f"{name}.txt", folder / "data"
    if not (data / name / "meta.json").exists():
        source.write_text(text_of(text, path), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(PrepareConfig(name, (str(source),), data_dir=str(data), **TOKENIZERS[tokenizer]))
        source.unlink()
    return Dataset(str(data), name)


def configuration(dataset: Dataset, folder: Path, iterations: int, seed: int) -> TrainConfig:
    """A run of the preset nanogpt with so many iterations, which is evaluated at the end."""
    return parse(
        TrainConfig,
        [
            *("configs/nanogpt.yaml", "--device=cpu", "--threads=1", "--quiet", "--sample_interval=0"),
            *(f"--dataset={dataset.name}", f"--data_dir={dataset.folder.parent}", f"--out_dir={folder / 'run'}"),
            *(f"--max_iters={iterations}", f"--warmup_iters={iterations // WARM_UP}", f"--seed={seed}"),
            *(f"--eval_interval={iterations}", "--eval_iters=1"),
        ],
    )


def timed(config: TrainConfig) -> tuple[float, float]:
    """Measure the CPU seconds of an iteration (batch, gradient and update), and of a sampled token."""
    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(io.StringIO()):
        start = starting_point(config)
        run = set_up(stack, start, choose_compute(start.config, start.saved))
        began, step = 0.0, 0
        while step <= WARM or time.process_time() - began < TIMED:
            if step == WARM:
                began = time.process_time()
            run.optimizer.set_learning_rate(0.0)
            forward_backward(run, *batch(run, step))[1].item()
            run.optimizer.update()
            step += 1
        iteration = (time.process_time() - began) / (step - WARM)
        prompt = torch.zeros(1, 1, dtype=torch.long)
        began = time.process_time()
        with torch.inference_mode():
            list(generate(run.model.eval(), prompt, SAMPLED, Sampling(0.8, 200), run.dataset.tokenizer.vocab_size))
        return iteration, (time.process_time() - began) / SAMPLED


def relative_times(folder: Path, texts: dict[str, str], tokenizers: list[str]) -> dict[str, tuple[float, float]]:
    """Measure the time of an iteration and of a sampled token of each tokenizer, relative to characters: medians over
    texts and rounds. Neither depends on the text, but for the size of its vocabulary."""
    path, names = folder / "times.json", list(dict.fromkeys(["characters", *tokenizers]))
    rounds = json.loads(path.read_text(encoding="utf-8")) if path.exists() else [{}]
    if set(names) - set(rounds[0]):
        rounds = [
            {name: timed(configuration(prepared(folder, text, source, name), folder, 1000, 1)) for name in names}
            for _ in range(ROUNDS)
            for text, source in texts.items()
        ]
        path.write_text(strict_json(rounds), encoding="utf-8")
    ratios = [{name: np.divide(one[name], one["characters"]) for name in names} for one in rounds]
    return {name: tuple(np.median([one[name] for one in ratios], axis=0).tolist()) for name in names}


def measured(folder: Path, dataset: Dataset, iterations: int, seed: int) -> dict[str, Any]:
    """Train, and measure the model."""
    config = configuration(dataset, folder, iterations, seed)
    with contextlib.redirect_stdout(io.StringIO()):
        assert train(config) == 0
    last = Path(config.out_dir, "last.pt")
    loss = validation_loss(last, dataset, choose("cpu", "float32", "1"))
    return {
        "bits": bits_per_character(loss, dataset),
        "parameters": load(last).num_params,
        "vocabulary": dataset.tokenizer.vocab_size,
        "machine": Path(config.out_dir, "config.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# "),
    }


def run_cells(args: argparse.Namespace, path: Path, texts: dict[str, str]) -> None:
    """Run what is not finished yet."""
    torch.set_num_threads(1)
    cells, times = finished(path), relative_times(args.folder, texts, args.tokenizers)
    wanted = list(itertools.product(texts, args.tokenizers, range(1, args.seeds + 1)))
    missing = [key for key in wanted if (*key, args.iterations) not in cells]
    print(f"{len(missing)} of {len(wanted)} runs")
    for text, name, seed in missing:
        dataset = prepared(args.folder, text, texts[text], name)
        iteration, sampled = times[name]
        per_token = dataset.meta["characters"]["train"] / dataset.meta["tokens"]["train"]
        cell = {"text": text, "tokenizer": name, "seed": seed, "equal_to": args.iterations}
        cell |= {"iterations": max(1, round(args.iterations / iteration)), "characters_per_token": per_token}
        cell |= {"read": per_token / iteration, "sampled": per_token / sampled}  # relative to characters
        shutil.rmtree(args.folder / "run", ignore_errors=True)
        cell |= measured(args.folder, dataset, cell["iterations"], seed)
        cells[text, name, seed, args.iterations] = cell
        with replacing(path) as file:
            file.write("".join(f"{strict_json(one)}\n" for one in cells.values()).encode())
        print(f"{text}, {name}, seed {seed}: {cell['bits']:.3f} bits per character, {cell['iterations']:,} iterations")
    shutil.rmtree(args.folder / "run", ignore_errors=True)


def finished(path: Path) -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """The finished runs by text, tokenizer, seed and iterations of the model of characters."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cells = map(json.loads, lines)
    return {(cell["text"], cell["tokenizer"], cell["seed"], cell["equal_to"]): cell for cell in cells}


def table(cells: list[dict[str, Any]]) -> str:
    """The means of the seeds as a Markdown table."""
    heads = ["text", "tokenizer", "tokens", "parameters", "characters per token", "iterations"]
    heads += ["characters read, of the same text = 1", "bits per character", "speed of sampling, characters = 1"]
    rows = [heads, ["---"] * len(heads)]
    for (text, name), group in itertools.groupby(cells, key=lambda cell: (cell["text"], cell["tokenizer"])):
        runs = list(group)
        first, bits = runs[0], [run["bits"] for run in runs]
        spread = f" ({min(bits):.3f} to {max(bits):.3f})" if len(bits) > 1 else ""
        rows.append(
            [text, name, f"{first['vocabulary']:,}", f"{first['parameters'] / 1e6:.2f} M",
             f"{first['characters_per_token']:.2f}", f"{first['iterations']:,}", f"{first['read']:.2f}",
             f"{statistics.mean(bits):.3f}{spread}", f"{first['sampled']:.2f}"]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench-tokenizers"), help="datasets and finished runs")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH", help="a further text")
    parser.add_argument("--texts", nargs="+", choices=CORPUS_TEXTS, default=list(CORPUS_TEXTS), metavar="NAME")
    parser.add_argument("--tokenizers", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS), metavar="NAME")
    parser.add_argument(
        "--iterations", type=int, default=500, help="of the model of characters; the others get as long"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs, and run nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "cells.jsonl"
    if not args.table:
        texts = {name: CORPUS_TEXTS[name] for name in args.texts}
        run_cells(args, path, texts | dict(named.split("=", 1) for named in args.text))
    order = list(TOKENIZERS)
    cells = [cell for cell in finished(path).values() if cell["equal_to"] == args.iterations]
    cells.sort(key=lambda cell: order.index(cell["tokenizer"]))
    names = dict.fromkeys(cell["text"] for cell in finished(path).values())
    cells = [cell for name in names for cell in cells if cell["text"] == name]
    print(f"\n{table(cells)}\n")
    print(*dict.fromkeys(cell["machine"] for cell in cells), sep="\n")


if __name__ == "__main__":
    main()
