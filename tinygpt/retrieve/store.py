"""The index: passages, their words and their vectors, in one SQLite file.

SQLite's header has two fields for applications: `application_id` names the format, and `user_version` is the CRC-32 of
everything else in the file. So a truncated or damaged index is refused when it is opened.

Words are in an FTS5 table, which ranks with BM25. Vectors are 8-bit integers, one row per passage. numpy compares a
question with all of them: 3.5 ms for 100,000 passages on one core (docs/RETRIEVAL.md compares sqlite-vec and usearch).

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
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tinygpt.config import suggest
from tinygpt.errors import TinyGPTError
from tinygpt.files import file_error, replacing
from tinygpt.retrieve import embeddings

FORMAT = 1
SQLITE, MAGIC = b"SQLite format 3\0", b"tgi"  # the first bytes of the file; those of application_id, before FORMAT
SEAL, APPLICATION = slice(60, 64), slice(68, 72)  # user_version and application_id in SQLite's header
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
    """A passage of the index. The scores are 0 unless a search returned it."""

    source: str = ""  # the document's path as the user gave it
    position: str = ""  # "line 12", "page 3", "row 7"
    title: str = ""  # headings above it, "Report > Outlook", may be empty
    score: float = 0.0  # of the reciprocal rank fusion
    bm25: float = 0.0  # BM25 score, higher is better, 0.0 if the passage was not found by BM25
    similarity: float = 0.0  # cosine, 0.0 without vectors
    text: str = ""
    id: int = 0


class Similarities(NamedTuple):
    """Cosine similarities of a question and all passages."""

    ids: np.ndarray  # of the passages, ascending, int64 (n,)
    cosines: np.ndarray  # float32 (n,)

    def best(self, count: int) -> list[int]:
        """Return the ids of the most similar passages, best first."""
        top = np.argpartition(-self.cosines, min(count, len(self.ids)) - 1)[:count]
        ids: list[int] = self.ids[top[np.lexsort((top, -self.cosines[top]))]].tolist()
        return ids

    def of(self, passage: int) -> float:
        return float(self.cosines[np.searchsorted(self.ids, passage)])


class Index:
    """An open index."""

    def __init__(self, connection: sqlite3.Connection, path: Path, version: tuple[int, int] = (0, 0)) -> None:
        self._db, self.path, self._version = connection, path, version

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
    def embeddings(self) -> embeddings.Embeddings | None:
        """Load the embeddings that made the index's vectors; None if it has no vectors. Errors: TinyGPTError."""
        settings = self.settings
        try:
            loaded = embeddings.load(settings["embeddings"])
        except TinyGPTError as error:
            message = f"{self.path}: was made with --embeddings={settings['embeddings']}: {error.message}"
            raise TinyGPTError(message, f"{error.hint}, or index the documents again") from None
        if loaded and loaded.fingerprint != settings["fingerprint"]:
            message = f"{self.path}: was made with another model; {loaded.name} has changed since then"
            raise TinyGPTError(message, "index the documents again")
        return loaded

    @functools.cached_property
    def _vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read the passages' ids, int64 (n,), ascending, their vectors, int8 (n, d), and the vectors' norms, (n,)."""
        rows = self._db.execute("SELECT passage, vector FROM vectors ORDER BY passage").fetchall()
        ids = np.array([row[0] for row in rows], dtype=np.int64)
        matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype=np.int8).reshape(len(rows), -1)
        norms = [np.linalg.norm(block.astype(np.float32), axis=1) for block in blocks(matrix)]
        return ids, matrix, np.maximum(np.concatenate(norms), 1)

    def similarities(self, question: str) -> Similarities | None:
        """Compare a question with all passages; None without any vector, or for a question without tokens."""
        if self.embeddings is None or not len(self) or not (vector := self.embeddings.vectors([question])[0]).any():
            return None
        ids, matrix, norms = self._vectors
        products = [block.astype(np.float32) @ vector for block in blocks(matrix)]
        return Similarities(ids, np.concatenate(products) / norms)

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
    """Open an index for reading. Errors: TinyGPTError if the file is not an index, or is damaged."""
    if path.is_dir():
        raise TinyGPTError(f"{path}: is a folder, not an index", suggest.command("ask", "your question", path))
    try:
        with open(path, "rb") as file:
            require_intact(path, file)
            opened = version(os.fstat(file.fileno()))
    except OSError as error:
        raise file_error(path, error, suggest.command("ask", "your question", "DOCUMENTS", "--index", path)) from None
    uri = re.sub("^file://(?=[^/])", "file:////", path.absolute().as_uri())  # SQLite takes no host of a share
    try:
        # the server opens the index in one thread and asks it in another
        connection = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        with contextlib.closing(connection):
            yield Index(connection, path, opened)
    except sqlite3.DatabaseError as error:
        raise unusable(path, f"is damaged ({error})") from None


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
                raise unusable(path, f"is damaged ({error})") from None
        seal = checksum(file).to_bytes(4, "big")
        file.seek(SEAL.start)
        file.write(seal)


def create(connection: sqlite3.Connection, settings: dict[str, Any]) -> None:
    """Create the tables."""
    application_id = int.from_bytes(MAGIC + bytes([FORMAT]), "big")
    connection.executescript(f"PRAGMA application_id = {application_id}; {SCHEMA}")
    connection.executemany("INSERT INTO settings VALUES (?, ?)", settings.items())


def require_intact(path: Path, file: IO[bytes]) -> None:
    """Check the header and the checksum of an open index. Errors: TinyGPTError."""
    header = file.read(APPLICATION.stop)
    if not header.startswith(SQLITE) or header[APPLICATION][:3] != MAGIC:
        raise unusable(path, "is not an index of tinygpt")
    if header[APPLICATION][3:] > bytes([FORMAT]):
        raise TinyGPTError(f"{path}: is an index of a newer tinygpt", "pip install --upgrade tinygpt")
    if checksum(file) != int.from_bytes(header[SEAL], "big"):
        raise unusable(path, "is damaged or cut short: its checksum is wrong")


def checksum(file: IO[bytes]) -> int:
    """Return the CRC-32 of a file, without the field that holds it."""
    file.seek(0)
    crc = zlib.crc32(file.read(SEAL.start))
    file.seek(SEAL.stop)
    while chunk := file.read(1 << 20):
        crc = zlib.crc32(chunk, crc)
    return crc


def unusable(path: Path, problem: str) -> TinyGPTError:
    hint = suggest.command("ask", "your question", "DOCUMENTS", "--index", path.with_name(f"new-{path.name}"))
    return TinyGPTError(f"{path}: {problem}", hint)
