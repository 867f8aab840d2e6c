"""Prepare prompts and responses: read them, split them, write each as PROMPT prompt RESPONSE response END.

The split of an example is chosen by a hash of the letters and digits of its prompt. So prompts that differ only in
case, spacing or punctuation are in the same split, and an example keeps its split when others are added.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.configs.run import PrepareConfig, prepare_options
from tinygpt.base.configs.use import LabelConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import byte_order_mark, file_error, folder_lock, replacing
from tinygpt.data.bpe import train_bpe
from tinygpt.data.preview import show_pairs
from tinygpt.data.tasks import TASKS, Pair
from tinygpt.data.tasks.generate import hashed
from tinygpt.data.text_files import decoding_error, json_lines, text_in
from tinygpt.data.token_files import write_token_files
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, Tokenizer
from tinygpt.data.workbook import UNREADABLE, BadCell, read_sheet

PAIR_FILES = (".jsonl", ".csv", ".xlsx")  # endings of the files that are read in a folder
MOST_LABELS = 50  # more distinct responses than this are free text

Reading = PrepareConfig | LabelConfig  # a command that reads such files; the second needs no responses
Entry = dict[str, Any] | str  # a line; a string is the error of a bad one
T = TypeVar("T")


def prepare_pairs(config: PrepareConfig, paths: list[Path], tokenizer: Tokenizer | None = None) -> None:
    """Make DATA_DIR/NAME/{train,val,test}.bin and meta.json from files, or from the templates of a built-in task.

    tokenizer: one that encodes pairs; None: that of the pairs' characters, or BPE trained on the training split.
    """
    task = TASKS.get(config.name)
    if task:
        make = task.synthetic if config.synthetic and task.synthetic else task.make
        splits, labels = make(1337), list(task.labels)
        source = f"the templates of tinygpt.data.tasks, {task.name}{', synthetic' if config.synthetic else ''}"
    else:
        pairs = list(read(paths, config))
        splits = split(pairs, config.val_fraction, config.test_fraction)
        labels = [label.strip() for label in config.labels] or labels_of(pairs)
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


def tokenizer_of_pairs(splits: dict[str, list[Pair]]) -> CharTokenizer:
    """Make a tokenizer of the characters of all prompts and responses, and the special tokens."""
    characters = {character for part in splits.values() for pair in part for character in "".join(pair)}
    return CharTokenizer([*sorted(characters), *SPECIAL])


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


# ---- reading ----------------------------------------------------------------------------------------------------


def read(paths: list[Path], config: PrepareConfig) -> Iterator[Pair]:
    """Read the pairs of JSON Lines, CSV and Excel files. Errors: TinyGPTError for bad lines, unless --skip_bad."""
    return converted(paths, config, lambda entry: pair_of(entry, config))


def converted(paths: list[Path], config: Reading, convert: Callable[[Entry], T]) -> Iterator[T]:
    """Read the entries of files, and convert each; `convert` raises ValueError for a bad one. Errors: as in `read`."""
    problems = list[str]()
    for path in paths:
        try:
            with open(path, "rb") as raw:
                raw.read(byte_order_mark(raw.peek(3), path, config.encoding))
                for location, entry in entries(path, raw, config):
                    try:
                        yield convert(entry)
                    except ValueError as problem:
                        problems.append(f"{location}: {problem}")
        except UnicodeError as error:
            raise decoding_error(path, config.encoding, error) from None
        except csv.Error as error:
            raise TinyGPTError(f"{path}: not CSV ({error})", "write it with a csv library") from None
        except OSError as error:
            raise file_error(path, error) from None
    shown = problems[:5] + [terminal.counted(len(problems) - 5, "more line")] * (len(problems) > 5)
    if problems and not getattr(config, "skip_bad", False):
        raise TinyGPTError("; ".join(shown), "fix them in the file, or pass --skip_bad=True to leave them out")
    for line in shown:
        terminal.print_error(f"left out: {line}")


def columns(config: Reading) -> dict[str, str]:
    """Return the names of the columns that a command reads, by their flags."""
    names = {f"--{key}": getattr(config, key, "") for key in ("prompt_field", "response_field")}
    return {flag: name for flag, name in names.items() if name}


def entries(path: Path, file: Any, config: Reading) -> Iterator[tuple[str, Entry]]:
    """Read the entries of a binary file, each with its location for messages: `pairs.csv line 5`."""
    ending, where = path.suffix.lower(), str(path)
    if ending in UNREADABLE:
        raise TinyGPTError(f"{path}: tinygpt does not read {ending} files", "save it as .xlsx or .csv")
    if ending in (".gz", ".zst"):
        raise TinyGPTError(f"{path}: is compressed, and only text is read from compressed files", "decompress it first")
    if ending == ".xlsx":
        title, rows, others = read_sheet(path, file, set(columns(config).values()))
        if others:
            print(f"note: {path}: used the sheet {title!r}, not {', '.join(map(repr, others))}")
            where += f" sheet {title!r}"
        for number, entry in table_lines(where, ending, iter(rows), config):
            yield f"{where} row {number}", entry
        return
    with io.TextIOWrapper(file, config.encoding, newline="") as text:
        lines = table_lines(where, ending, csv_rows(text, config), config) if ending == ".csv" else json_lines(text)
        for number, entry in lines:
            yield f"{where} line {number}", entry


def csv_rows(file: Any, config: Reading) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a CSV file."""
    first = file.readline()
    reader = csv.reader(itertools.chain([first], file), delimiter=separator_of(first, config))
    for row in reader:
        yield reader.line_num, row


def separator_of(first: str, config: Reading) -> str:
    """Return the separator of a CSV file, given its first line: that of tab, semicolon and comma which gives the needed
    columns, or else the most columns. A comma, which also occurs in text, is the last choice."""
    needed = set(columns(config).values())
    headers = {d: [name.strip() for name in next(csv.reader([first], delimiter=d), [])] for d in "\t;,"}
    return max(headers, key=lambda d: (needed <= set(headers[d]), len(headers[d])))


def table_lines(
    where: str, ending: str, rows: Iterator[tuple[int, list[str]]], config: Reading
) -> Iterator[tuple[int, Entry]]:
    """Read the rows of a table as entries: the first row names the columns, and empty rows are skipped.

    Of columns with the same name, the second one is `name (2)`.
    In a CSV file, text to the right of the named columns is an error, since its usual cause is an unquoted separator.
    Errors: TinyGPTError for a column that is missing, or is there twice.
    """
    header = [name.strip() for name in next(rows, (1, []))[1]]
    flags = columns(config)
    fields = sorted(set(flags.values()))
    missing = [field for field in fields if field not in header]
    if missing:
        names = list(filter(None, header))
        first = f"is: {', '.join(names)}" if names else "is empty"
        what = f"{where}: no column {' or '.join(missing)}; the first row, which has to name the columns, {first}"
        if len(names) < len(fields) and len(missing) == len(fields):
            raise TinyGPTError(what, "delete what is above the names of the columns")
        by_case = {name.casefold(): name for name in names}
        hint = (f"{flag}={by_case.get(field.casefold(), 'COLUMN')}" for flag, field in flags.items())
        raise TinyGPTError(what, " ".join(map(suggest.quoted, hint)))
    width = max(column for column, name in enumerate(header, start=1) if name)
    for field in fields:
        if header.count(field) > 1:
            raise TinyGPTError(f"{where}: {header.count(field)} columns are named {field!r}", "rename all but one")
    header = distinct(header)
    for number, row in rows:
        beyond = next(filter(None, map(str.strip, row[width:])), "")
        if beyond and ending == ".csv":
            problem = f"{beyond[:40]!r} is to the right of the named columns"
            yield number, f"{problem}: put text with a separator in double quotes, or name the column"
        elif any(map(str.strip, row)):
            yield number, dict(itertools.zip_longest(header[:width], row[:width], fillvalue=""))


def distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct: `a`, `a (2)`, `a (3)`."""
    made: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        made.append(next(candidate for candidate in candidates if candidate not in made))
    return made


def text_of(entry: Entry, key: str) -> str:
    """Return a text of an entry, without blanks around it. Errors: ValueError."""
    text = text_in(entry, key)
    if isinstance(text, BadCell):
        raise ValueError(f"{key} is {text}")
    return text.strip()


def pair_of(entry: Entry, config: PrepareConfig) -> Pair:
    """Return the prompt and the response of an entry. Errors: ValueError."""
    keys = (config.prompt_field, config.response_field)
    prompt, response = (text_of(entry, key) for key in keys)
    for key, text in zip(keys, (prompt, response), strict=True):
        if not text:
            raise ValueError(f"{key} is empty")
    if config.labels and response not in map(str.strip, config.labels):
        labels = ", ".join(config.labels)
        raise ValueError(f"{config.response_field} {response[:40]!r} is not one of the labels {labels}")
    return prompt, response


def split(pairs: list[Pair], val_fraction: float, test_fraction: float) -> dict[str, list[Pair]]:
    """Divide pairs into train, val and test by a hash of the prompt. Errors: TinyGPTError if a split is empty."""
    splits: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for pair in pairs:
        fraction = hashed(normalised(pair[0]))
        in_test, in_val = fraction < test_fraction, fraction < test_fraction + val_fraction
        splits["test" if in_test else "val" if in_val else "train"].append(pair)
    if empty := [name for name, part in splits.items() if not part]:
        what = f"{terminal.counted(len(pairs), 'pair')} cannot fill the splits: no pair is left for {', '.join(empty)}"
        raise TinyGPTError(what, "add pairs with different prompts, or use larger --val_fraction and --test_fraction")
    return splits


def normalised(prompt: str) -> str:
    """Reduce a prompt to its letters and digits, if it has any, without case, so that near duplicates become equal."""
    return "".join(filter(str.isalnum, prompt.casefold())) or prompt


def labels_of(pairs: list[Pair]) -> list[str]:
    """Return the distinct responses if they are few enough to be labels, else none."""
    labels = sorted({response for _, response in pairs})
    return labels if 2 <= len(labels) <= MOST_LABELS and len(labels) * 4 <= len(pairs) else []
