"""`tinygpt label`: label the texts of a file with the classifier that `tinygpt advise` has left, or with a run.

tinygpt label new.csv --model out-advise -o labelled.csv
"""

import codecs
import collections
import contextlib
import dataclasses
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from tinygpt.base import terminal
from tinygpt.base.configs.use import LabelConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import (
    byte_order_mark,
    file_error,
    file_lock,
    is_formula,
    replacing,
    require_writable,
    strict_json,
    write_csv,
)
from tinygpt.data.sheets import PAIR_FILES, Sheet, distinct
from tinygpt.data.text_files import decoding_error, require_encoding
from tinygpt.data.workbook import UNREADABLE
from tinygpt.use.advise.labeller import GPT, Answer, Labeller, is_run, load, of_run

STDIN = "-"
ADDED = ("label", "probability", "sure")
BATCH = 1000  # texts between two steps of the progress bar


def label(config: LabelConfig) -> None:
    """Run the command."""
    source = Path(config.input)
    out = Path(config.output)
    ending = ".jsonl" if source.suffix.lower() == ".jsonl" else ".csv"
    if config.output:
        ending = out.suffix.lower()
    if ending not in (".csv", ".jsonl"):
        raise TinyGPTError(f"{out}: the labels are written as .csv or .jsonl", "-o labelled.csv")
    require_encoding(config.encoding)
    if config.output:
        require_writable(out, "-o labelled.csv")
        if config.input != STDIN and out.exists() and source.exists() and out.samefile(source):
            raise TinyGPTError(f"{out} is the input, which would be overwritten", "-o labelled.csv")
    from_run = config.adapter or is_run(Path(config.model))
    labeller = of_run(config) if from_run else load(Path(config.model))
    config = dataclasses.replace(config, prompt_field=config.prompt_field or labeller.prompt_field)
    with contextlib.redirect_stdout(sys.stderr):  # notes about the input; the labels may go to standard output
        entries, prompts, separator = read(config)
    if not entries:
        raise TinyGPTError(f"{shown(config)}: no texts to label", "tinygpt label --help")
    codec = "utf-8-sig" if ending == ".csv" and needs_mark(config) else "utf-8"
    columns = list(dict.fromkeys(itertools.chain.from_iterable(entries)))
    own_columns = ADDED[:2] if from_run else ADDED  # a run has no threshold
    added = distinct([*columns, *own_columns])[len(columns) :]
    if taken := [name for name in own_columns if name not in added]:
        terminal.print_error(f"note: the input has {', '.join(map(repr, taken))}; added {', '.join(map(repr, added))}")
    with file_lock(out, "choose another -o") if config.output else contextlib.nullcontext():
        answers = labelled(labeller, prompts)
        sure = list(map(sure_cell, entries, answers))
        as_json = ending == ".jsonl"
        header = [*columns, *added]
        rows = []
        for entry, (name, p, _), sure_or_not in zip(entries, answers, sure, strict=True):
            probability: Any = p if name else None
            if not as_json:
                probability = f"{p:.6f}" if name else ""
            own = name, probability, sure_or_not
            rows.append(entry | dict(zip(added, own, strict=False)))
        if as_json:
            text = "".join(f"{strict_json(row)}\n" for row in rows)
        else:
            table = [header, *([cell(row.get(column, "")) for column in header] for row in rows)]
            text = csv_text(table, separator, config.escape_formulas)
        if config.output:
            with replacing(out) as file:
                file.write(text.encode(codec, "backslashreplace"))  # JSON Lines may contain a lone surrogate
        else:
            sys.stdout.write(text)
    too_long = sum(len(prompt) > labeller.longest for prompt in prompts) if labeller.longest else 0
    terminal.print_error(summary(labeller, answers, sure.count("no"), too_long, config.output))


def shown(config: LabelConfig) -> str:
    return "standard input" if config.input == STDIN else config.input


def read(config: LabelConfig) -> tuple[list[dict[str, Any]], list[str], str]:
    """Read the entries, the prompt of each, and the separator of a CSV file (else a comma). Errors: TinyGPTError."""
    path = Path(config.input)
    ending = Path(config.input).suffix.lower()
    if config.input == STDIN or ending == ".txt":
        prompts = lines(path, config)
        return [{config.prompt_field: prompt} for prompt in prompts], [prompt.strip() for prompt in prompts], ","
    if ending not in (*PAIR_FILES, *UNREADABLE):
        raise TinyGPTError(f"{path}: not .csv, .xlsx, .jsonl or .txt", "give the file one of these endings")
    sheet = Sheet([path], {"--prompt_field": config.prompt_field}, config.encoding, keep_empty=True)
    rows = list(sheet.rows(lambda row: row.text(config.prompt_field, empty=True)))
    entries = [row.cells for row, _ in rows]
    separator = ","
    if ending == ".csv" and any(len(entry) > 1 for entry in entries):  # a single column has no separator
        with open(path, encoding=config.encoding, newline="") as file:
            separator = sheet.separator(file.readline().removeprefix("\ufeff"))
    return entries, [prompt for _, prompt in rows], separator


def needs_mark(config: LabelConfig) -> bool:
    """Return whether a CSV file of the labels needs a byte-order mark, without which Excel does not read it as UTF-8:
    if the input is an Excel file, or any that is not plain UTF-8."""
    path = Path(config.input)
    if not path.is_file():  # standard input, or a pipe, which cannot be read again
        return False
    if path.suffix.lower() == ".xlsx" or codecs.lookup(config.encoding).name != "utf-8":
        return True
    with open(path, "rb") as file:
        return byte_order_mark(file.read(3), path) > 0


def lines(path: Path, config: LabelConfig) -> list[str]:
    """Read the lines of a text file or of standard input; empty lines stay, so that line n has label n."""
    try:
        data = sys.stdin.buffer.read() if config.input == STDIN else path.read_bytes()
        text = data[byte_order_mark(data, Path(shown(config)), config.encoding) :].decode(config.encoding)
    except UnicodeError as error:
        raise decoding_error(Path(shown(config)), config.encoding, error) from None
    except OSError as error:
        raise file_error(path, error) from None
    return text.removesuffix("\n").removesuffix("\r").replace("\r\n", "\n").split("\n") if text else []


def labelled(labeller: Labeller, prompts: list[str]) -> list[Answer]:
    """Label the prompts, with a progress bar; a GPT shows its own."""
    step = len(prompts) if labeller.kind == GPT else BATCH
    answers: list[Answer] = []
    with terminal.progress(total=len(prompts), unit="line", desc="labelling", show=step < len(prompts)) as bar:
        for start in range(0, len(prompts), step):
            answers += labeller.label(prompts[start : start + step])
            bar.update(len(answers) - bar.n)
    return answers


def cell(value: Any) -> str:
    """Format a value for CSV: what JSON Lines or Excel give that is not text, as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def csv_text(table: list[list[str]], separator: str, escape_formulas: bool) -> str:
    """Format a table as CSV, and print a note about cells that a spreadsheet would take for formulas."""
    numbered = ((number, cell) for number, row in enumerate(table, start=1) for cell in row)
    if formulas := [(number, cell) for number, cell in numbered if is_formula(cell)]:
        number, first = formulas[0]
        what = f"cells that begin like a formula, which Excel calculates: {len(formulas):,}"
        where = f"the first in row {number}: {terminal.cut(terminal.escaped(first), 40)}"
        how = "each has an apostrophe now" if escape_formulas else "--escape_formulas puts an apostrophe before each"
        terminal.print_error(f"note: {what}, {where}; {how}")
    text = io.StringIO(newline="")
    write_csv(text, table, separator, escape_formulas)
    return text.getvalue()


def sure_cell(entry: dict[str, Any], answer: Answer) -> str:
    """Return the content of the column `sure`. An empty row stays empty, so that readers of the output skip it."""
    if answer.sure:
        return "yes"
    return "no" if any(cell(value).strip() for value in entry.values()) else ""


def summary(labeller: Labeller, answers: list[Answer], unsure: int, too_long: int, output: str) -> str:
    """Format what was labelled, and the next step."""
    counts = collections.Counter(answer.label for answer in answers)
    empty = counts.pop("", 0)
    sure_count = sum(answer.sure for answer in answers)
    names = ", ".join(f"{terminal.cut(terminal.escaped(name), 40)} {count:,}" for name, count in counts.most_common(10))
    more = f", and {terminal.counted(len(counts) - 10, 'other label')}" if len(counts) > 10 else ""
    text = [f"{terminal.counted(counts.total(), 'line')} labelled: {names}{more}"]
    if too_long:
        text.append(f"longer than the {labeller.longest:,} characters that the model reads: {too_long:,}")
    text += [f"empty lines, which have no label: {empty:,}"] * bool(empty)
    if labeller.about.get("run"):
        text.append("no column sure: tinygpt advise measures a threshold, but this run has none")
    elif labeller.threshold is None:
        text.append("sure: none, since on new examples this model was not right often enough at any threshold")
    else:
        sure = f"sure (probability {labeller.threshold:.2f} or more): {sure_count:,}"
        text.append(f"{sure}; unsure: {unsure:,}")
    text += [f"written: {output}"] * bool(output)
    if unsure and not labeller.about.get("run"):
        whose = f"the unsure lines ({unsure:,})" if sure_count else "all lines"
        text.append(f"next: a person should look at {whose}: sure = no")
    return "\n".join(text)
