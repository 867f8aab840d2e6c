"""`tinygpt index`: make or update an index of documents.

A document with an unchanged size and modification time is not read again; one with another time but the same SHA-256 is
not indexed again.

tinygpt index docs/ --out index.db
"""

import fnmatch
import functools
import hashlib
import itertools
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

from tinygpt import terminal
from tinygpt.config import suggest
from tinygpt.config.schema import IndexConfig
from tinygpt.data.text_files import input_files, notes_on_unread
from tinygpt.errors import TinyGPTError
from tinygpt.files import file_error, file_lock, remove_leftovers, require_closed, require_writable
from tinygpt.retrieve import documents, embeddings, passages
from tinygpt.retrieve.embeddings import Embeddings
from tinygpt.retrieve.store import Fingerprint, Index, open_index, updated_index
from tinygpt.terminal import progress

BATCH = 1024  # passages that are embedded and stored together
SAMPLES, SHOWN = 3, 100  # passages that are shown at the end, and characters of each


def index(config: IndexConfig) -> None:
    """Make or update the index config.out; print what it contains, and the next command."""
    started, out = time.monotonic(), Path(config.out)
    if config.overlap >= config.passage_size:
        message = f"overlap is {config.overlap}, but must be below passage_size, which is {config.passage_size}"
        raise TinyGPTError(message, f"--overlap={config.passage_size // 5}")
    paths = existing(config, out)
    require_writable(out, "--out FOLDER/index.db")
    embedding = load_embeddings(config.embeddings)
    settings = {
        "embeddings": name_of(embedding.name) if embedding else embeddings.NONE,
        "fingerprint": embedding.fingerprint if embedding else "",
        "passage_size": config.passage_size,
        "overlap": config.overlap,
    }
    with file_lock(out, "choose another --out"):
        require_closed(out)
        remove_leftovers(out)  # they have text of documents, and an index without a change is not written
        counts = update(config, paths, settings, embedding)
    describe(out, counts)
    endings = (*documents.READERS, *sorted(documents.PLAIN - {""}))
    for note in notes_on_unread(config.documents, paths, [f"*{ending}" for ending in endings]):
        print(note)
    print(f"seconds: {time.monotonic() - started:.1f}")
    print(f"\nnext: {suggest.command('ask', 'your question', '--index', out)}")


def existing(config: IndexConfig, out: Path) -> list[Path]:
    """Find the documents that the command names. A note says which argument's documents are gone.

    Errors: TinyGPTError if an argument names no document, and the index never had one of it, or a folder that may not
    be read: its documents are not gone.
    """
    paths: dict[Path, Path] = {}  # by full path
    for item in config.documents:
        if os.path.isdir(item):
            for _ in os.walk(item, onerror=functools.partial(unreadable_folder, item)):
                pass
        try:
            endings, accepts = tuple(documents.READERS), documents.is_plain_text
            found = input_files([item], endings, hint=documents.FORMATS, accepts=accepts)
            paths = {path.resolve(): path for path in found} | paths
        except TinyGPTError:
            if not out.exists() or not was_named(out, item):
                raise
            print(terminal.escaped(f"note: {item}: no document is left there; the index keeps none of its text"))
    return list(paths.values())


def unreadable_folder(item: str, error: OSError) -> None:
    """Print that a folder in `item` is left out. Errors: TinyGPTError for `item` itself."""
    problem = file_error(error.filename, error, "change the permissions of the folder")
    if error.filename == item:
        raise problem
    print(terminal.escaped(f"left out: {problem.message}"), file=sys.stderr)


def was_named(out: Path, item: str) -> bool:
    """Return whether an argument names a document of the index, or was an argument of the command that wrote it."""
    with open_index(out) as index:
        names = [*index.sources, *index.settings.get("documents", "").split("\n")]
    path = name_of(Path(item))
    return any(path in (name, *map(str, Path(name).parents)) or fnmatch.fnmatch(name, path) for name in names)


def load_embeddings(name: str) -> Embeddings | None:
    """Load the embeddings that --embeddings names; print a note if a package is missing."""
    if name == "auto" and not embeddings.installed():
        hint = "pip install 'tinygpt[retrieve]' adds semantic search"
        print(f"note: keyword search only, since the package wordllama is missing; {hint}", flush=True)
        return None
    return embeddings.load(embeddings.WORDLLAMA if name == "auto" else name)


def stored_documents(out: Path, settings: dict[str, Any]) -> dict[str, Fingerprint] | None:
    """Return the documents of the index at `out`; None without one, or, with a note, if its settings differ."""
    if not out.exists():
        return None
    with open_index(out) as old:
        stored = old.settings
        different = [f"{name}={stored.get(name)}" for name in settings if stored.get(name) != settings[name]]
        if different:
            message = f"{out} was made with {', '.join(different)}"
            print(f"note: {message}, so all documents are indexed again", flush=True)
        return None if different else old.sources


def update(
    config: IndexConfig, paths: list[Path], settings: dict[str, Any], embedding: Embeddings | None
) -> dict[str, int]:
    """Bring the index up to date with the documents; return how many were added, changed, ...

    Errors: TinyGPTError if a document that the user names cannot be read, or no document of the folders.
    """
    stored = stored_documents(Path(config.out), settings)  # None: make a new index
    old, named = stored or {}, {Path(item) for item in config.documents}
    todo = [path for path in paths if not is_untouched(path, old.get(name_of(path)))]
    removed = old.keys() - {name_of(path) for path in paths}
    counts = {"added": 0, "changed": 0, "removed": len(removed), "unchanged": len(paths) - len(todo), "left out": 0}
    if stored is not None and not todo and not removed:
        return counts
    writable = updated_index(Path(config.out), settings, new=stored is None)
    with writable as index, progress(todo, desc="indexing", unit="document") as bar:
        index.set_documents([name_of(Path(item)) for item in config.documents])
        for name in removed:
            index.remove_source(name)
        for path in bar:
            try:
                counts[refresh(index, path, old.get(name_of(path)), config, embedding, bar)] += 1
            except TinyGPTError as error:
                if path in named:
                    raise
                index.remove_source(name_of(path))  # what was stored before the error
                counts["left out"] += 1
                bar.write(terminal.escaped(f"left out: {error.message}"), file=sys.stderr)
        if not index.sources and not removed:
            found = terminal.counted(len(paths), "document")
            raise TinyGPTError(f"{found} found, but none can be indexed", documents.FORMATS)
    return counts


def refresh(
    index: Index, path: Path, old: Fingerprint | None, config: IndexConfig, embedding: Embeddings | None, bar: Any
) -> str:
    """Index a document unless its content is unchanged; return added, changed or unchanged. Errors: TinyGPTError."""
    name = name_of(path)
    file = fingerprint(path)
    if old and old.sha256 == file.sha256:
        index.update_source(name, file)
        return "unchanged"
    index.remove_source(name)
    source = index.add_source(name, file)
    rows = (
        (section.position(offset), section.title, text)
        for section in documents.read(path)
        for text, offset in passages.split(section.text, config.passage_size, config.overlap)
    )
    num_passages = 0
    while batch := list(itertools.islice(rows, BATCH)):
        vectors = embedding.vectors([f"{title}\n{text}" for _, title, text in batch]) if embedding else None
        index.add_passages(source, batch, vectors)
        num_passages += len(batch)
        bar.set_postfix_str(terminal.escaped(f"{path.name}: {terminal.counted(num_passages, 'passage')}"))
    return "changed" if old else "added"


def is_untouched(path: Path, old: Fingerprint | None) -> bool:
    """Return whether a file has the size and the modification time in the index."""
    try:
        status = path.stat()
    except OSError:
        return False  # it was deleted after it was listed; `fingerprint` says so
    return old is not None and (old.size, old.mtime) == (status.st_size, status.st_mtime_ns)


def fingerprint(path: Path) -> Fingerprint:
    """Return size, modification time and SHA-256 of a file. Errors: TinyGPTError if it cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            message = f"{path}: is not a regular file, and a document is read twice"
            raise TinyGPTError(message, "save it as a file first")
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            return Fingerprint(status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise file_error(path, error, documents.FORMATS) from None


def name_of(path: str | Path) -> str:
    """Return a path as valid Unicode: a byte of a file name that is not UTF-8 is written as \\udcXX."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def describe(out: Path, counts: dict[str, int]) -> None:
    """Print what the index contains, and some of its passages."""
    with open_index(out) as index:
        settings = index.settings
        changes = ", ".join(f"{count:,} {change}" for change, count in counts.items() if count)
        print(f"documents: {len(index.sources):,} ({changes or 'no changes'})")
        size = f"of up to {settings['passage_size']} characters, overlap {settings['overlap']}"
        print(f"passages: {len(index):,}, {size}; embeddings: {settings['embeddings']}")
        print(f"written: {out}, {out.stat().st_size / 1e6:.1f} MB")
        print("some passages:")
        for passage in index.samples(SAMPLES):
            text = terminal.cut(" ".join(passage.text.split()), SHOWN)
            print(terminal.escaped(f"  {passage.place}: {text}"))
