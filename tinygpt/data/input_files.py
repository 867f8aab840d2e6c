"""Find the text files that a user names: files, those in folders, and those that match patterns.

paths = input_files(["notes.txt", "more/", "*.md"])
"""

import codecs
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError

TEXT_FILES = tuple(ending + packed for packed in ("", ".gz", ".zst") for ending in (".txt", ".jsonl", ".ndjson"))
INPUT_HINT = "give a text file, a folder or a quoted pattern to --input"
LOCK_FILE = "~$"  # start of the name of the file that Excel keeps next to an open workbook
HIDDEN = r"(^|/)(\.|~\$)"
ASCII_BASED = r"utf-8|ascii|cp125\d|iso8859-\d+"  # encodings whose bytes below 128 are always ASCII (unlike UTF-7's)


def input_files(
    inputs: Iterable[str],
    endings: Sequence[str] = (".txt",),
    refused: Sequence[str] = (),
    hint: str = "",
    accepts: Callable[[Path], bool] = lambda path: False,
) -> list[Path]:
    """Find the files that --input names: a file, the files in a folder with one of `endings`, or a pattern's matches.

    Those of a folder, without hidden ones, or a pattern are in sorted order. A file that is named twice is listed once:
    its text would be in both splits. Files of a folder with an ending in `refused` are listed, too, so that the reader
    refuses them by name instead of leaving them out, and so are those that `accepts` is true of. Errors: TinyGPTError
    if there is none, with `hint` as its hint.
    """
    paths: dict[Path, Path] = {}  # by full path
    for item in inputs:
        if not item:
            raise TinyGPTError("a file name is empty", hint or INPUT_HINT)
        path = Path(item)
        problem = "no such file"
        default = INPUT_HINT
        if path.is_dir():
            listed = (*endings, *refused)
            matches = [file for file in visible(path) if file.name.lower().endswith(listed) or accepts(file)]
            problem = f"a folder without any {uncompressed(endings)} file"
            default = "name the files"
            if endings == TEXT_FILES:
                default += ", or a pattern like '*.md', or for prompts and responses add --format=pairs"
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(map(Path, glob.glob(item, recursive=True)))
        if matches != [path] or not path.exists():  # a link to nothing
            matches = [match for match in matches if match.is_file() and not match.name.startswith(LOCK_FILE)]
        if not matches:
            raise TinyGPTError(f"{item}: {problem}", hint or default)
        for match in matches:
            paths.setdefault(match.resolve(), match)
    return list(paths.values())


def uncompressed(endings: Iterable[str]) -> str:
    """List patterns for files with these endings, but the compressed ones."""
    return " or ".join(f"*{ending}" for ending in endings if not ending.endswith((".gz", ".zst")))


def of_one_ending(item: str, encoding: str, tables: tuple[str, ...]) -> list[str]:
    """Return the text files of a folder that has none of TEXT_FILES, and print which and how many, with a note on what
    is left out. Return [item] of other input, and of a folder with `tables`, endings of files that may be pairs.

    Errors: TinyGPTError if the files have several endings.
    """
    files = [path for path in visible(Path(item)) if path.is_file()] if os.path.isdir(item) else []
    if any(path.name.lower().endswith((*TEXT_FILES, *tables)) for path in files):
        return [item]
    texts = [path for path in files if path.stat().st_size and starts_as_text(path, encoding)]
    if not texts:
        return [item]
    spelled = {path.suffix.lower(): path.suffix for path in texts}
    counts = Counter(path.suffix.lower() for path in texts).most_common()
    kinds = [f"{count:,} *{suffix}" if suffix else f"{count:,} without an ending" for suffix, count in counts]
    about = f"{Path(item)} has no {uncompressed(TEXT_FILES)} file; its text files: {terminal.listed(kinds)}"
    if len(counts) > 1:
        folder = glob.escape(str(Path(item)))
        patterns = [suggest.quoted(f"{folder}/**/*{spelled[suffix]}") for suffix, _ in counts[:5] if suffix]
        raise TinyGPTError(about, f"name those that you want: --input {' '.join(patterns)}")
    print(terminal.escaped(f"note: {about}"))
    # also those that are not in this encoding, which the reader refuses by name
    read = [path for path in files if path.suffix.lower() == counts[0][0]]
    for line in notes_on_unread([item], read, [f"*{counts[0][0]}" if counts[0][0] else "files without an ending"]):
        print(line)
    return list(map(str, read))


def starts_as_text(path: Path, encoding: str = "utf-8") -> bool:
    """Return whether the start of a file can be text in this encoding: no PDF, and without a NUL where only UTF-16 and
    its like have some."""
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        return True  # the reader names the problem
    if re.fullmatch(ASCII_BASED, codecs.lookup(encoding).name):
        return b"\0" not in start and not start.startswith(b"%PDF-")
    try:
        codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError:
        return False
    return True


def visible(folder: Path) -> list[Path]:
    """List the contents of a folder and its subfolders in sorted order, without hidden ones and Excel's lock files."""
    return sorted(path for path in folder.rglob("*") if not re.search(HIDDEN, path.relative_to(folder).as_posix()))


def notes_on_unread(inputs: Sequence[str], paths: Iterable[Path], kinds: Sequence[str]) -> list[str]:
    """Make for each folder of `inputs` a note on its files that are not among `paths`; kinds: those that are read, for
    example `*.txt`. Hidden files do not count."""
    read = {path.resolve() for path in paths}
    notes = []
    for folder in filter(Path.is_dir, map(Path, inputs)):
        files = [path for path in visible(folder) if os.path.isfile(path) and path.resolve() not in read]
        endings = [ending for ending, _ in Counter(sorted(path.suffix or path.name for path in files)).most_common()]
        if endings:
            listed = terminal.escaped(terminal.listed(endings))
            read_kinds = ", ".join(kinds)
            others = f"{terminal.counted(len(files), 'other file')} ({listed})"
            notes.append(f"note: of {terminal.escaped(str(folder))} only {read_kinds} are read; left out {others}")
    return notes
