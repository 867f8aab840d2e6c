"""The index of `tinygpt ask`: made of the documents that the command names, and updated when they have changed.

A document with an unchanged size and modification time is not read again; one with another time but the same SHA-256 is
not indexed again. Without a change, nothing is written, so that any number of processes can ask at the same time.

    index_of(AskConfig(documents=("docs/",)))                   # .tinygpt/index-4f9ac91d.db
"""

import hashlib
import importlib.util
import itertools
import os
import stat
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.base.configs import suggest
from tinygpt.base.configs.use import AskConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import file_error, file_lock, remove_leftovers, require_closed, require_writable
from tinygpt.base.terminal import counted, escaped, print_error, progress
from tinygpt.data.input_files import input_files, notes_on_unread
from tinygpt.use.ask import documents, embeddings, passages
from tinygpt.use.ask.embeddings import WordLlama
from tinygpt.use.ask.store import Fingerprint, Index, open_index, updated_index

FOLDER = Path(".tinygpt")  # of the indexes without a name, in the current folder
BATCH = 1024  # passages that are embedded and stored together
PATIENCE = 60  # seconds to wait for another process that updates the index
SHOW_AFTER = 2  # seconds after which a progress bar appears
ELSEWHERE = "--index=FOLDER/index.db"
MISSING = 'tinygpt ask "How long is the notice period?" notes/, or --index=FILE'


class Changes(NamedTuple):
    """What an index lacks."""

    stored: dict[str, Fingerprint]  # its documents; none in a new index
    is_new: bool
    todo: dict[Path, Fingerprint]  # documents to read
    removed: list[str]
    problems: list[str]  # with documents that cannot be opened

    def __bool__(self) -> bool:
        return bool(self.is_new or self.todo or self.removed)


def index_of(config: AskConfig) -> Path:
    """Make or update the index of config.documents; print where it lies, and return its path. Without documents, return
    config.index. Errors: TinyGPTError."""
    if not config.documents:
        if not config.index:
            raise TinyGPTError("neither documents nor an index is given", MISSING)
        return Path(config.index)
    out = Path(config.index) if config.index else place(config.documents)
    settings = settings_of(config)
    paths = existing(config, out)
    if out.parent.is_dir():
        remove_leftovers(out)  # they have text of documents
    changes = compared(config, out, paths, settings)
    counts = Counter[str]()
    if changes:
        embedding = embeddings.load(settings["embeddings"])
        if config.index:
            require_writable(out, ELSEWHERE)
        with file_lock(out, ELSEWHERE, PATIENCE):
            require_closed(out)
            changes = compared(config, out, paths, settings)  # again, since another process may have updated it
            if changes:
                counts = update(config, out, settings, changes, embedding)
                endings = (*documents.READERS, *sorted(documents.PLAIN - {""}))
                for note in notes_on_unread(config.documents, paths, [f"*{ending}" for ending in endings]):
                    print_error(note)
    for problem in changes.problems:
        print_error(escaped(f"left out: {problem}"))
    with open_index(out) as index:
        indexed = len(readable(index))
        counts["left out"] = len(index.sources) - indexed + len(changes.problems)
    parts = [f"{count:,} {change}" for change, count in counts.items() if count]
    print_error(escaped(f"index: {out}: {', '.join([counted(indexed, 'document'), *parts])}"))
    return out


def place(names: tuple[str, ...]) -> Path:
    """Return the path of the index of these documents, in any order and spelling: `docs/` is `docs`."""
    spelled = "\n".join(sorted({name_of(Path(name)) for name in names}))
    return FOLDER / f"index-{hashlib.sha256(spelled.encode()).hexdigest()[:8]}.db"


def settings_of(config: AskConfig) -> dict[str, Any]:
    """Return what the passages and their vectors depend on."""
    best = embeddings.WORDLLAMA if embeddings.installed() else embeddings.NONE
    return {
        "embeddings": best if config.embeddings == "auto" else config.embeddings,
        "passage_size": config.passage_size,
        "formats": ", ".join(filter(importlib.util.find_spec, ("pypdf", "docx"))),
    }


def existing(config: AskConfig, out: Path) -> list[Path]:
    """Find the documents that the command names. A note says which argument's documents are gone.

    Errors: TinyGPTError if an argument names no document, unless the index is that of these arguments, or contains a
    document that the argument named before.
    """
    paths: dict[Path, Path] = {}  # by full path
    for item in config.documents:
        try:
            endings = tuple(documents.READERS)
            accepts = documents.is_plain_text
            found = input_files([item], endings, hint=documents.FORMATS, accepts=accepts)
            paths = {path.resolve(): path for path in found} | paths
        except TinyGPTError as error:
            if not (names_stored(item, out) if config.index else out.exists()):
                raise TinyGPTError(error.message, quoted_question(config) or error.hint) from None
            print_error(escaped(f"note: {item}: no document is left there; the index keeps none of its text"))
    return list(paths.values())


def names_stored(item: str, out: Path) -> bool:
    """Return whether an argument, a path or a pattern, names a document of the index."""
    if not item or not out.exists():
        return False
    path = Path(name_of(item))
    pattern = path.as_posix().replace("**/", "*")  # fnmatch has no **
    with open_index(out) as index:
        return any(path in (Path(name), *Path(name).parents) or fnmatch(name, pattern) for name in index.sources)


def quoted_question(config: AskConfig) -> str:
    """Return the command with its question in quotes; empty if the question has some, or is none."""
    if " " in config.question or config.question == AskConfig.question:
        return ""
    words = itertools.takewhile(lambda word: not os.path.exists(word), config.documents)
    question = " ".join([config.question, *words])
    rest = config.documents[question.count(" ") :]
    searched = [*rest, *(["--index", config.index] if config.index else [])]
    return suggest.command("ask", question, *(searched or ["DOCUMENTS"]))


def compared(config: AskConfig, out: Path, paths: list[Path], settings: dict[str, Any]) -> Changes:
    """Compare the documents with the index. Errors: TinyGPTError if one that the user names cannot be opened."""
    earlier: dict[str, Fingerprint] = {}  # also those of an index with other settings
    is_new = True
    if out.exists():
        with open_index(out) as index:
            earlier = index.sources
            is_new = not settings.items() <= index.settings.items()
    stored = {} if is_new else earlier
    todo: dict[Path, Fingerprint] = {}
    problems = []
    kept = set()
    for path in paths:
        old = stored.get(name_of(path))
        is_named = path in map(Path, config.documents)
        try:
            file = fingerprint(path, None if is_named and old and not old.sha256 else old)
        except TinyGPTError as error:
            if is_named:
                raise
            problems.append(error.message)
            continue
        kept.add(name_of(path))
        if file != old:
            todo[path] = file
    return Changes(stored, is_new, todo, sorted(earlier.keys() - kept), problems)


def update(
    config: AskConfig, out: Path, settings: dict[str, Any], changes: Changes, embedding: WordLlama | None
) -> Counter[str]:
    """Bring the index up to date; return how many documents are new, changed and removed.

    Errors: TinyGPTError if a document that the user names cannot be read, or no document of the folders.
    """
    if changes.is_new and out.exists():
        print_error(escaped(f"note: {out} was made with other settings, so all documents are indexed again"))
    if config.embeddings == "auto" and embedding is None:
        hint = "pip install 'tinygpt[retrieve]' adds semantic search"
        print_error(f"note: keyword search only, since the package wordllama is missing; {hint}")
    counts = Counter(new=0, changed=0, removed=len(changes.removed))
    bar = progress(changes.todo.items(), desc="indexing", unit="document", delay=SHOW_AFTER)
    with updated_index(out, settings, changes.is_new) as index, bar:
        for name in changes.removed:
            index.remove_source(name)
        for path, file in bar:
            name = name_of(path)
            old = changes.stored.get(name)
            if old and old.sha256 == file.sha256:
                index.update_source(name, file)
                continue
            try:
                add(index, path, file, config.passage_size, embedding, bar)
                counts["changed" if old and old.sha256 else "new"] += 1
            except TinyGPTError as error:
                if path in map(Path, config.documents):
                    raise
                index.remove_source(name)  # what was stored before the error
                index.add_source(name, file._replace(sha256=""))
                bar.write(escaped(f"left out: {error.message}"), file=sys.stderr)
        if not readable(index) and not changes.removed:
            found = counted(len(changes.todo), "document")
            raise TinyGPTError(f"{found} found, but none can be indexed", documents.FORMATS)
    return counts


def add(index: Index, path: Path, file: Fingerprint, size: int, embedding: WordLlama | None, bar: Any) -> None:
    """Index a document in place of its earlier text. Errors: TinyGPTError if it cannot be read."""
    index.remove_source(name_of(path))
    source = index.add_source(name_of(path), file)
    rows = (
        (section.position(offset), section.title, text)
        for section in documents.read(path)
        for text, offset in passages.split(section.text, size, size // 5)
    )
    num_passages = 0
    while batch := list(itertools.islice(rows, BATCH)):
        vectors = embedding.vectors([f"{title}\n{text}" for _, title, text in batch]) if embedding else None
        index.add_passages(source, batch, vectors)
        num_passages += len(batch)
        bar.set_postfix_str(escaped(f"{path.name}: {counted(num_passages, 'passage')}"))


def fingerprint(path: Path, old: Fingerprint | None) -> Fingerprint:
    """Return size, modification time and SHA-256 of a file, which is not read if size and time are those of `old`.
    Errors: TinyGPTError if it cannot be read."""
    try:
        status = os.stat(path)
        if old and (old.size, old.mtime) == (status.st_size, status.st_mtime_ns):
            return old
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            message = f"{path}: is not a regular file, and a document is read twice"
            raise TinyGPTError(message, "save it as a file first")
        with open(path, "rb") as file:
            return Fingerprint(status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise file_error(path, error, documents.FORMATS) from None


def name_of(path: str | Path) -> str:
    """Return a path as valid Unicode: a byte of a file name that is not UTF-8 is written as \\udcXX."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def readable(index: Index) -> list[str]:
    """Return the paths of the documents that could be read."""
    return [path for path, file in index.sources.items() if file.sha256]
