"""What the transcripts can do before a command: make files, damage them, and look at what was written.

Every function works in the current folder, which `>>>` lines of a transcript share with its commands.
"""

import functools
import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import TINY_TRAIN, ok, tiny_text
from hostile import Reducer
from inputs import csv_file, json_lines, pairs, workbook

from tinygpt.checkpoint import store

# for `>>>` lines, too
__all__ = ["Path", "csv_file", "gzip", "json_lines", "ok", "pairs", "tiny_text", "torch", "workbook", "zipfile"]
HERE = Path()


def write(name: str, content: str | bytes) -> None:
    """Write a file, in UTF-8."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def change(name: str, how: Callable[[bytes], bytes]) -> None:
    """Change the content of the only file of this name."""
    (path,) = HERE.rglob(name)
    path.write_bytes(how(path.read_bytes()))


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def state(how: Callable[[dict], object], name: str = "ckpt.pt", folder: str = "out") -> None:
    """Write a checkpoint again, complete and sealed, with other content."""
    path = Path(folder, name)
    content = store.read(path)
    how(content)
    store.write(path, content)


def labeller(how: Callable[[dict], object]) -> None:
    """The same with model/model.pt, of `tinygpt advise`."""
    state(how, "model.pt", "model")


def colours() -> None:
    """A model of pairs in colours/, and an adapter of it in lora/."""
    pairs = [{"prompt": f"{n:03}", "response": "red" if n % 2 else "blue"} for n in range(60)]
    write("pairs.jsonl", "".join(f"{json.dumps(pair)}\n" for pair in pairs))
    ok(HERE, "prepare", "colours", "--input=pairs.jsonl", "--format=pairs")
    ok(HERE, *TINY_TRAIN, "--dataset=colours", "--out_dir=colours", "--max_iters=2")
    flags = ["--dataset=colours", "--device=cpu", "--compile=False", "--max_iters=2", "--lora_rank=2"]
    ok(HERE, "finetune", "--ckpt=colours", *flags, "--out_dir=lora")


def sheet(count: int = 48, **change: str) -> None:
    """pairs.csv, for `tinygpt advise`: the first word of a prompt is its label. {n} in a changed value is the row."""
    rows = []
    for n in range(count):
        label = ["card", "loan"][n % 2]
        row = {"prompt": f"{label} {n}", "response": label, "who": f"c{n % 12}", "day": f"2025-01-{1 + n % 25:02}"}
        rows.append(row | {column: text.format(n=n) for column, text in change.items()})
    csv_file(HERE / "pairs.csv", [*rows[0]], *([*row.values()] for row in rows))


Canary = functools.partial(Reducer, os.system, "touch executed")  # unpickling this writes a file


def only_pickle() -> None:
    """data/old: a dataset of nanoGPT, whose symbols are in a pickle that would run a command."""
    write("data/old/meta.pkl", pickle.dumps(Canary()))


def prepared(name: str, text: str, *flags: str) -> None:
    """data/NAME from this text."""
    write("input.txt", text)
    ok(HERE, "prepare", name, "--input=input.txt", *flags)


def without(path: Path, part: str) -> None:
    """Write a zip file again without one of its parts."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist() if name != part}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
