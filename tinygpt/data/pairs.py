"""Prompts and responses into a dataset: read, split by example, written as PROMPT prompt RESPONSE response END.

An example belongs to a split by a hash of its prompt's letters and digits. So prompts that differ in case, spacing or
punctuation alone never stand on both sides, and an example keeps its split when others are added.
"""

import codecs
import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinygpt import terminal
from tinygpt.config import suggest
from tinygpt.config.schema import PrepareConfig, prepare_options
from tinygpt.data.dataset import commit_dataset, token_writers
from tinygpt.data.tasks import TASKS, Pair
from tinygpt.data.tokenizer import END, PROMPT, RESPONSE, SPECIAL, CharTokenizer, lone_surrogate
from tinygpt.errors import TinyGPTError
from tinygpt.files import folder_lock

MOST_LABELS = 50  # more distinct responses than this are free text


def prepare_pairs(config: PrepareConfig, paths: list[Path]) -> None:
    """Make DATA_DIR/NAME/{train,val,test}.bin and meta.json from files, or from a ready task's templates."""
    if config.name in TASKS:
        task = TASKS[config.name]
        splits, labels, source = task.make(1337), list(task.labels), f"the templates of tinygpt.tasks, {config.name}"
    else:
        pairs = list(read(paths, config))
        splits = split(pairs, config.val_fraction, config.test_fraction)
        labels = labels_of(pairs)
        source = ", ".join(map(str, paths[:3]))
    characters = sorted({character for part in splits.values() for pair in part for character in "".join(pair)})
    tokenizer = CharTokenizer([*characters, *SPECIAL])
    folder = Path(config.data_dir) / config.name
    with folder_lock(folder, "dataset"):
        meta = write(folder, splits, tokenizer, labels, prepare_options(config))
    describe(config, folder, meta, splits, source)


# ---- reading ----------------------------------------------------------------------------------------------------


def read(paths: list[Path], config: PrepareConfig) -> Iterator[Pair]:
    """The pairs of JSON Lines and CSV files. Errors: TinyGPTError naming the bad lines, unless --skip_bad."""
    bad: list[str] = []
    marks = 0
    for path in paths:
        try:
            with open(path, "rb") as raw:
                marked = has_byte_order_mark(path, raw, config.encoding)
                marks += marked
                file = io.TextIOWrapper(raw, "utf-8-sig" if marked else config.encoding, newline="")
                lines = csv_lines(path, file, config) if path.suffix.lower() == ".csv" else json_lines(file)
                for number, entry in lines:
                    pair, problem = checked(entry, config)
                    if problem:
                        bad.append(f"{path} line {number}: {problem}")
                    else:
                        yield pair
        except UnicodeError as error:
            known = isinstance(error, UnicodeDecodeError)
            byte = f"byte 0x{error.object[error.start]:02x}" if known else "the text"  # type: ignore[attr-defined]
            what = f"{path}: {byte} is not {config.encoding}"
            raise TinyGPTError(what, f"--encoding {'cp1252' if is_utf8(config.encoding) else 'utf-8'}") from None
        except csv.Error as error:
            raise TinyGPTError(f"{path}: not CSV ({error})", "write it with a csv library") from None
        except OSError as error:
            raise TinyGPTError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
    if bad and not config.skip_bad:
        more = f"; and {len(bad) - 5:,} more" if len(bad) > 5 else ""
        raise TinyGPTError("; ".join(bad[:5]) + more, "fix these lines, or pass --skip_bad to leave them out")
    for line in bad[:5]:
        terminal.print_error(f"left out: {line}")
    if len(bad) > 5:
        terminal.print_error(f"left out: {len(bad) - 5:,} more lines")
    if marks:
        print(f"note: removed {marks} byte-order mark{'s' * (marks > 1)}")


def is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def has_byte_order_mark(path: Path, raw: io.BufferedReader, encoding: str) -> bool:
    """Return whether the file begins with UTF-8's byte-order mark. Errors: TinyGPTError for unexpected UTF-16."""
    start = raw.peek(4)[:4] if is_utf8(encoding) else b""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TinyGPTError(f"{path}: is UTF-16 text, not UTF-8", "--encoding utf-16")
    return start.startswith(codecs.BOM_UTF8)


def json_lines(file: Any) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def csv_lines(path: Path, file: Any, config: PrepareConfig) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(file)
    missing = {config.prompt_field, config.response_field} - set(reader.fieldnames or ())
    if missing:
        has = ", ".join(reader.fieldnames or ()) or "no header"
        flags = "--prompt_field=COLUMN --response_field=COLUMN"
        if any(separator in has for separator in ";\t"):
            flags = "separate the columns with commas"
        raise TinyGPTError(f"{path}: no column {' or '.join(sorted(missing))} (it has: {has})", flags)
    for entry in reader:
        yield reader.line_num, entry


def checked(entry: Any, config: PrepareConfig) -> tuple[Pair, str]:
    """The pair in what a line holds, or what is wrong with it."""
    none = ("", "")
    if not isinstance(entry, dict):
        return none, "not a JSON object"
    for key in (config.prompt_field, config.response_field):
        if key not in entry:
            return none, f"no key {key!r}"
        if not isinstance(entry[key], str):
            return none, f"{key} is not text"
        if not entry[key].strip():
            return none, f"{key} is empty"
        if "\0" in entry[key]:
            return none, f"{key} has a NUL in it"
        if surrogate := lone_surrogate(entry[key]):
            return none, f"{key} contains a lone surrogate ({surrogate}), which is half of a character"
    return (entry[config.prompt_field].strip(), entry[config.response_field].strip()), ""


# ---- splitting --------------------------------------------------------------------------------------------------


def split(pairs: list[Pair], val_fraction: float, test_fraction: float) -> dict[str, list[Pair]]:
    """Train, val and test, by a hash of the prompt. Errors: TinyGPTError if one of them stays empty."""
    splits: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for pair in pairs:
        digest = hashlib.sha256(skeleton(pair[0]).encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        in_test, in_val = place < test_fraction, place < test_fraction + val_fraction
        splits["test" if in_test else "val" if in_val else "train"].append(pair)
    empty = [name for name, part in splits.items() if not part]
    if empty:
        raise TinyGPTError(
            f"{len(pairs)} pairs with different prompts are too few: nothing is left for {', '.join(empty)}",
            "more pairs, or larger --val_fraction and --test_fraction",
        )
    return splits


def skeleton(prompt: str) -> str:
    """What near-duplicates have in common: letters and digits, without case. A prompt without either is itself."""
    return "".join(filter(str.isalnum, prompt.casefold())) or prompt


def labels_of(pairs: list[Pair]) -> list[str]:
    """The distinct responses, if they are few enough to be labels."""
    labels = sorted({response for _, response in pairs})
    return labels if 2 <= len(labels) <= MOST_LABELS and len(labels) * 4 <= len(pairs) else []


# ---- writing ----------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    splits: dict[str, list[Pair]],
    tokenizer: CharTokenizer,
    labels: list[str],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Encode and commit; returns what meta.json says."""
    source = hashlib.sha256(json.dumps(splits, ensure_ascii=True).encode()).hexdigest()
    with token_writers(folder, splits) as writers:
        for name, pairs in splits.items():
            for pair in pairs:
                writers[name].write(tokenizer.encode_pair(*pair))
        meta = {
            "kind": "pairs",
            "options": options,
            "tokenizer": tokenizer.to_dict(),
            "vocab_size": tokenizer.vocab_size,
            "labels": labels,
            "examples": {name: len(pairs) for name, pairs in splits.items()},
            "tokens": {name: writer.tokens for name, writer in writers.items()},
            "sha256": {"source": source} | {w.path.name: w.sha256.hexdigest() for w in writers.values()},
        }
        commit_dataset(folder, list(writers.values()), meta)
    return meta


def describe(
    config: PrepareConfig, folder: Path, meta: dict[str, Any], splits: dict[str, list[Pair]], source: str
) -> None:
    """What was made, some examples as they are trained on, and the next command."""
    print(f"pairs:      {', '.join(f'{count:,} {name}' for name, count in meta['examples'].items())} (from {source})")
    if meta["labels"]:
        print(f"labels:     {', '.join(meta['labels'])}")
    lengths = [len(prompt) + len(response) + 3 for part in splits.values() for prompt, response in part]
    print(f"lengths:    up to {max(lengths)} tokens with the marks, {sum(lengths) / len(lengths):.0f} on average")
    for prompt, response in splits["train"][: config.show or 1]:
        print(f"  {coloured(prompt, response)}")
    print("              (what carries loss is " + ("green" if sys.stdout.isatty() else "between [ and ]") + ")")
    print(f"written:    {folder}/train.bin, val.bin, test.bin, meta.json")
    print_next_commands(config, folder, max(lengths) - 1)


def print_next_commands(config: PrepareConfig, folder: Path, width: int) -> None:
    """Print the command that fine-tunes on the pairs, preceded by those that train a base model if there is none.

    Pairs longer than the presets' context get a base model of their own, with block_size `width`.
    """
    base, flags = "out-fast", []
    if width > suggest.PRESET_BLOCK_SIZE:
        flags, base = [f"--block_size={width}", f"--out_dir=out-fast-{width}"], f"out-fast-{width}"
    own = [] if config.name in TASKS else [f"--dataset={config.name}", f"--out_dir=out-{config.name}"]
    preset = f"configs/finetune_{config.name if config.name in TASKS else 'transactions'}.yaml"
    place = suggest.data_dir_flag(folder.parent)
    print()
    if not Path(f"{base}/ckpt.pt").exists():
        print("first train a base model, which takes half a minute:")
        if not (folder.parent / "shakespeare_char" / "meta.json").exists():
            print(f"next: {suggest.command('prepare', 'shakespeare_char', *place)}")
        print(f"next: {suggest.command('train', 'configs/shakespeare_char_fast.yaml', *flags, *place)}")
    print(f"next: {suggest.command('finetune', preset, f'--ckpt={base}/ckpt.pt', *own, *place)}")


def coloured(prompt: str, response: str) -> str:
    """An example with the part that carries loss in green, or in brackets where there are no colours."""
    asked, answer = f"{PROMPT}{prompt}{RESPONSE}", f"{response}{END}"
    text = f"\033[2m{asked}\033[0m\033[32m{answer}\033[0m" if sys.stdout.isatty() else f"{asked}[{answer}]"
    return text if text.isprintable() or "\033" in text else text.replace("\n", "\\n")
