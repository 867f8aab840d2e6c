"""Prepare prompts and responses: read them, split them, write each as PROMPT prompt RESPONSE response END.

The split of an example is chosen by a hash of the letters and digits of its prompt. So prompts that differ only in
case, spacing or punctuation are in the same split, and an example keeps its split when others are added.
"""

import contextlib
import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinygpt.base import terminal
from tinygpt.base.configs.core import PrepareConfig, prepare_options
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock, replacing
from tinygpt.data.bpe import train_bpe
from tinygpt.data.preview import show_pairs
from tinygpt.data.sheets import Row, Sheet
from tinygpt.data.tasks import TASKS, Pair
from tinygpt.data.tasks.generate import hashed
from tinygpt.data.token_files import write_token_files
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, Tokenizer

MOST_LABELS = 50  # more distinct responses than this are free text

Texts = str | Iterable[Any] | Mapping[str, Any]  # a text, or several, also in lists, pairs and splits


def prepare_pairs(config: PrepareConfig, paths: list[Path], tokenizer: Tokenizer | None = None) -> None:
    """Make DATA_DIR/NAME/{train,val,test}.bin and meta.json from files, or from the templates of a built-in task.

    tokenizer: one that encodes pairs; None: that of the pairs' characters, or BPE trained on the training split.
    """
    task = TASKS.get(config.name)
    if task:
        make = task.synthetic if config.synthetic and task.synthetic else task.make
        splits = make(1337)
        labels = list(task.labels)
        source = f"the templates of tinygpt.data.tasks, {task.name}"
        if config.synthetic:
            source += ", synthetic"
    else:
        pairs = [pair for _, pair in read(paths, config)]
        splits = split(pairs, config.val_fraction, config.test_fraction)
        labels = [label.strip() for label in config.labels] or labels_of([response for _, response in pairs])
        source = ", ".join(map(str, paths[:3]))
    if tokenizer is None and config.tokenizer == "bpe":
        learned = train_bpe(itertools.chain.from_iterable(splits["train"]), config.vocab_size - len(SPECIAL))
        tokenizer = learned.joined(CharTokenizer(SPECIAL))
    tokenizer = tokenizer or tokenizer_of_pairs(splits)
    folder = Path(config.data_dir) / config.name
    with folder_lock(folder, "dataset"):
        if task and task.library:
            write_library(*task.library(1337), folder)
        if task and task.database:
            with replacing(folder / "bank.db") as file, contextlib.closing(sqlite3.connect(file.name)) as copy:
                task.database().backup(copy)
        meta = write_pairs(folder, splits, labels, tokenizer, prepare_options(config))
    show_pairs(config, meta, tokenizer, splits, source)


def tokenizer_of_pairs(texts: Texts) -> CharTokenizer:
    """Make a tokenizer of the characters of all prompts and responses, and the special tokens."""
    return CharTokenizer([*sorted(characters(texts)), *SPECIAL])


def characters(texts: Texts) -> set[str]:
    """Collect the characters of texts, which may be in pairs, lists and splits."""
    if isinstance(texts, str):
        return set(texts)
    parts = texts.values() if isinstance(texts, Mapping) else texts
    return set[str]().union(*map(characters, parts))


def write_pairs(
    folder: Path, splits: dict[str, list[Pair]], labels: list[str], tokenizer: Tokenizer, options: dict[str, Any]
) -> dict[str, Any]:
    """Write pairs into a folder that the caller has locked; return the content of meta.json. No labels: free text."""
    pieces = ((name, tokenizer.encode_pair(*pair)) for name, part in splits.items() for pair in part)
    examples = {name: len(part) for name, part in splits.items()}
    facts = {"kind": "pairs", "options": options, "labels": labels, "examples": examples}
    checksum = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    return write_token_files(folder, splits, pieces, tokenizer, checksum, facts)


def write_library(documents: dict[str, str], questions: dict[str, list[dict[str, str]]], folder: Path) -> None:
    """Write documents into folder/documents, and the questions about them next to it."""
    (folder / "documents").mkdir(exist_ok=True)
    files = {f"documents/{name}": text for name, text in documents.items()}
    for split, split_questions in questions.items():
        lines = (json.dumps(entry, ensure_ascii=False) for entry in split_questions)
        files[f"questions-{split}.jsonl"] = "".join(f"{line}\n" for line in lines)
    for name, text in files.items():
        with replacing(folder / name) as file:
            file.write(text.encode())


def read(paths: list[Path], config: PrepareConfig, quiet: bool = False) -> Iterator[tuple[Row, Pair]]:
    """Read the pairs of JSON Lines, CSV and Excel files. Errors: TinyGPTError for bad lines, unless --skip_bad.

    quiet: leave out bad lines without a message.
    """
    columns = {"--prompt_field": config.prompt_field, "--response_field": config.response_field}
    sheet = Sheet(paths, columns, config.encoding, config.skip_bad, quiet)
    return sheet.rows(lambda row: pair_of(row, config))


def pair_of(row: Row, config: PrepareConfig) -> Pair:
    """Return the prompt and the response of a row. Errors: ValueError."""
    prompt = row.text(config.prompt_field)
    response = row.text(config.response_field)
    if config.labels and response not in map(str.strip, config.labels):
        labels = ", ".join(config.labels)
        raise ValueError(f"{config.response_field} {response[:40]!r} is not one of the labels {labels}")
    return prompt, response


def split(pairs: list[Pair], val_fraction: float, test_fraction: float) -> dict[str, list[Pair]]:
    """Divide pairs into train, val and test by a hash of the prompt. Errors: TinyGPTError if a split is empty."""
    splits: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for pair in pairs:
        fraction = hashed(normalised(pair[0]))
        kept = "val" if fraction < test_fraction + val_fraction else "train"
        splits["test" if fraction < test_fraction else kept].append(pair)
    if empty := [name for name, part in splits.items() if not part]:
        what = f"{terminal.counted(len(pairs), 'pair')} cannot fill the splits: no pair is left for {', '.join(empty)}"
        raise TinyGPTError(what, "add pairs with different prompts, or use larger --val_fraction and --test_fraction")
    return splits


def normalised(prompt: str) -> str:
    """Reduce a prompt to its letters and digits, if it has any, without case, so that near duplicates become equal."""
    return "".join(filter(str.isalnum, prompt.casefold())) or prompt


def labels_of(responses: Sequence[str]) -> list[str]:
    """Return the distinct responses if they are few enough to be labels, else none."""
    labels = sorted(set(responses))
    return labels if 2 <= len(labels) <= MOST_LABELS and len(labels) * 4 <= len(responses) else []
