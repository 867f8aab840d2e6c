"""The index: passages, their words and their vectors, in one SQLite file.

The field `application_id` of SQLite's header names the format.

Words are in an FTS5 table, which ranks with BM25. Vectors are 8-bit integers, one row per passage. numpy compares a
question with all of them: 3.5 ms for 100,000 passages on one core (experiments.md: sqlite-vec and usearch).

with open_index(Path("index.db")) as index:
    index.words("warranty", 10)                                    # [(passage, BM25 score), ...]
"""

import contextlib
import errno
import functools
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import file_error, replacing
from tinygpt.use.ask import embeddings

FORMAT = int.from_bytes(b"tgi\2", "big")  # application_id; an index of another format is made again
BLOCK = 1 << 13  # vectors compared at a time; they fit in the processor's caches
TITLE_WEIGHT = 4.0  # of a word in the title, relative to one in the text

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE sources (id INTEGER PRIMARY KEY, path TEXT UNIQUE, size INTEGER, mtime INTEGER, sha256 TEXT);
CREATE TABLE passages (id INTEGER PRIMARY KEY, source INTEGER, position TEXT, title TEXT, text TEXT);
CREATE INDEX passages_by_source ON passages (source);
CREATE TABLE vectors (passage INTEGER PRIMARY KEY, vector BLOB);
CREATE VIRTUAL TABLE words USING fts5 (title, text, content=passages, content_rowid=id, tokenize='porter unicode61');
"""


class Fingerprint(NamedTuple):
    """Size, modification time and hash of a document when it was indexed."""

    size: int
    mtime: int  # nanoseconds
    sha256: str


class Passage(NamedTuple):
    """A passage of the index."""

    source: str = ""  # the document's path as the user gave it
    position: str = ""  # "line 12", "page 3", "row 7"
    title: str = ""  # headings above it, "Report > Outlook", may be empty
    bm25: float = 0.0  # BM25 score, higher is better, 0.0 if the passage was not found by BM25
    text: str = ""
    id: int = 0
    relevance: float = 0.0  # its BM25 score as a share of the question's largest one, if that was computed


class Index:
    """An open index."""

    def __init__(self, connection: sqlite3.Connection, path: Path, version: tuple[int, int] = (0, 0)) -> None:
        self._db = connection
        self.path = path
        self._version = version

    def is_current(self) -> bool:
        """Return whether the file at the index's path is still the one that was opened."""
        try:
            return version(self.path.stat()) == self._version
        except OSError:
            return False

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self._db.execute("SELECT name, value FROM settings"))

    @property
    def sources(self) -> dict[str, Fingerprint]:
        """Return the fingerprints of the documents, by path; one that could not be read has no SHA-256."""
        rows = self._db.execute("SELECT path, size, mtime, sha256 FROM sources ORDER BY path")
        return {path: Fingerprint(*rest) for path, *rest in rows}

    def __len__(self) -> int:
        """Return the number of passages."""
        return int(self._db.execute("SELECT count(*) FROM passages").fetchone()[0])

    def passages(self, ids: Iterable[int]) -> list[Passage]:
        query = """SELECT path, position, title, text FROM passages JOIN sources ON sources.id = passages.source
                   WHERE passages.id = ?"""
        rows = ((i, self._db.execute(query, (int(i),)).fetchone()) for i in ids)
        return [Passage(row[0], row[1], row[2], text=row[3], id=i) for i, row in rows if row]

    def words(self, query: str, count: int) -> list[tuple[int, float]]:
        """Return the passages with the highest BM25 scores (id, score), best first; `query` is in FTS5's syntax."""
        select = f"""SELECT rowid, -bm25(words, {TITLE_WEIGHT}, 1.0) AS score FROM words WHERE words MATCH ?
                     ORDER BY score DESC, rowid LIMIT ?"""
        return self._db.execute(select, (query, count)).fetchall()

    def frequency(self, word: str) -> int:
        """Return the number of passages that contain a word; `word` is in FTS5's syntax."""
        return int(self._db.execute("SELECT count(*) FROM words WHERE words MATCH ?", (word,)).fetchone()[0])

    @functools.cached_property
    def embeddings(self) -> embeddings.WordLlama | None:
        """Load the table that made the index's vectors; None if it has no vectors. Errors: TinyGPTError."""
        return embeddings.load(self.settings["embeddings"])

    @functools.cached_property
    def _vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read the passages' ids, int64 (n,), ascending, their vectors, int8 (n, d), and the vectors' norms, (n,)."""
        rows = self._db.execute("SELECT passage, vector FROM vectors ORDER BY passage").fetchall()
        ids = np.array([row[0] for row in rows], dtype=np.int64)
        matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype=np.int8).reshape(len(rows), -1)
        norms = [np.linalg.norm(block.astype(np.float32), axis=1) for block in blocks(matrix)]
        return ids, matrix, np.maximum(np.concatenate(norms), 1)

    def nearest(self, question: str, count: int) -> list[int]:
        """Return the passages with the largest cosines, best first; none without vectors or without tokens."""
        if self.embeddings is None or not len(self) or not (vector := self.embeddings.vectors([question])[0]).any():
            return []
        ids, matrix, norms = self._vectors
        cosines = np.concatenate([block.astype(np.float32) @ vector for block in blocks(matrix)]) / norms
        found: list[int] = ids[np.argsort(-cosines, kind="stable")[:count]].tolist()
        return found

    def add_source(self, path: str, file: Fingerprint) -> int:
        """Add a document; return its id."""
        query = "INSERT INTO sources (path, size, mtime, sha256) VALUES (?, ?, ?, ?)"
        return int(self._db.execute(query, (path, *file)).lastrowid or 0)

    def update_source(self, path: str, file: Fingerprint) -> None:
        self._db.execute("UPDATE sources SET size = ?, mtime = ?, sha256 = ? WHERE path = ?", (*file, path))

    def add_passages(self, source: int, rows: Sequence[tuple[str, str, str]], vectors: np.ndarray | None) -> None:
        """Add passages (position, title, text) of a document, with their vectors, float32 (len(rows), d)."""
        first = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM passages").fetchone()[0]
        for passage_id, (position, title, text) in enumerate(rows, start=first):
            self._db.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", (passage_id, source, position, title, text))
            self._db.execute("INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", (passage_id, title, text))
        if vectors is not None:
            pairs = enumerate(map(np.ndarray.tobytes, quantised(vectors)), start=first)
            self._db.executemany("INSERT INTO vectors VALUES (?, ?)", pairs)

    def remove_source(self, path: str) -> None:
        """Remove a document and its passages, if the index contains it."""
        of_document = "FROM passages WHERE source = (SELECT id FROM sources WHERE path = ?)"
        for statement in (
            f"INSERT INTO words (words, rowid, title, text) SELECT 'delete', id, title, text {of_document}",
            f"DELETE FROM vectors WHERE passage IN (SELECT id {of_document})",
            f"DELETE {of_document}",
            "DELETE FROM sources WHERE path = ?",
        ):
            self._db.execute(statement, (path,))


def quantised(vectors: np.ndarray) -> np.ndarray:
    """Round vectors to int8; each is scaled to a largest absolute value of 127, which does not change its direction."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
    return np.rint(vectors * (127 / largest)).astype(np.int8)


def blocks(matrix: np.ndarray) -> Iterator[np.ndarray]:
    return (matrix[start : start + BLOCK] for start in range(0, len(matrix), BLOCK))


# ---- the file --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_index(path: Path) -> Iterator[Index]:
    """Open an index for reading. Errors: TinyGPTError if the file is not an index, or is found to be damaged."""
    if path.is_dir():
        raise TinyGPTError(f"{path}: is a folder, not an index", suggest.command("ask", "your question", path))
    try:
        with open(path, "rb") as file:
            opened = version(os.fstat(file.fileno()))
    except OSError as error:
        raise file_error(path, error, suggest.command("ask", "your question", "DOCUMENTS", "--index", path)) from None
    uri = re.sub("^file://(?=[^/])", "file:////", path.absolute().as_uri())  # SQLite takes no host of a share
    try:
        # the server opens the index in one thread and asks it in another
        connection = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        with contextlib.closing(connection):
            if connection.execute("PRAGMA application_id").fetchone()[0] != FORMAT:
                raise unusable(path, "is not an index of this version of tinygpt")
            yield Index(connection, path, opened)
    except sqlite3.DatabaseError as error:
        raise unusable(path, f"is not an index, or it is damaged ({error})") from None


def version(status: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from one that replaced it."""
    return status.st_ino, status.st_mtime_ns


@contextlib.contextmanager
def updated_index(path: Path, settings: dict[str, Any], new: bool) -> Iterator[Index]:
    """Open an index for writing: a copy of the file at `path`, or, if `new`, an empty index with these settings.

    It replaces the file when the block ends. If the block raises, the file stays as it was. Errors: TinyGPTError if the
    file is damaged, and those of `replacing`.
    """
    with replacing(path) as file:
        if not new:
            with open(path, "rb") as old:
                shutil.copyfileobj(old, file, 1 << 20)
            file.flush()
        with contextlib.closing(sqlite3.connect(file.name, isolation_level=None)) as connection:
            try:
                # this file is deleted after any error, so it needs no journal; `replacing` syncs it
                connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
                if new:
                    create(connection, settings)
                connection.execute("BEGIN")
                yield Index(connection, path)
                connection.execute("INSERT INTO words (words) VALUES ('optimize')")  # drops removed words
                connection.execute("COMMIT")
                connection.execute("VACUUM")  # removed text leaves the file
            except sqlite3.DatabaseError as error:
                errno_of = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}
                if number := errno_of.get(getattr(error, "sqlite_errorcode", 0) & 0xFF):
                    raise OSError(number, str(error)) from error
                raise unusable(path, f"is not an index, or it is damaged ({error})") from None


def create(connection: sqlite3.Connection, settings: dict[str, Any]) -> None:
    """Create the tables."""
    connection.executescript(f"PRAGMA application_id = {FORMAT}; {SCHEMA}")
    connection.executemany("INSERT INTO settings VALUES (?, ?)", settings.items())


def unusable(path: Path, problem: str) -> TinyGPTError:
    hint = suggest.command("ask", "your question", "DOCUMENTS", "--index", path.with_name(f"new-{path.name}"))
    return TinyGPTError(f"{path}: {problem}", hint)
