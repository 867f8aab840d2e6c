"""The index of `tinygpt ask`: documents become passages that a search finds, also after a failure of an update."""

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import socket
import sqlite3
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from conftest import Result, cli_here, listing, needs_fork, ok, refused

from tinygpt.base.files import file_lock
from tinygpt.use.ask import documents, embeddings, index, passages, store
from tinygpt.use.ask.search import search
from tinygpt.use.ask.store import Passage, open_index

REPORT = """# Report
Kalor Foods sold 412 tonnes of cheese.

## Outlook
Prices will fall. The board expects 7 million euros.

```
# not a heading
```
"""
WEB = """<html><head><title>hidden title</title><style>hidden { style }</style></head><body>
<h1>The<br/>Hand<br>book</h1><p>The <b>warranty</b> lasts
five years.</p><script>hidden()</script><h2>Returns</h2><ul><li>Send it back.<li>Add the bill.</ul>
<pre>line one
  line two</pre></body></html>"""
TABLE = 'name;city;staff\nKalor;Velno;12\nTashbel;"Qui; Sen";7\n;;\nA\u2028B;"C\nD";\n'
NOTES = "The meeting is on Monday.\n\nBring the blue folder.\n"
ASK = ["ask", "Who is it?"]
DEFAULTS = ["--index=index.db", "--embeddings=none"]


def pdf(path: Path, *pages: str, password: str = "") -> None:
    """Write a PDF of one line per page; pypdf has no function that writes text."""
    import pypdf
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    resources = b"<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for text in pages:
        page, content = writer.add_blank_page(612, 792), DecodedStreamObject()
        content.set_data(f"BT /F 12 Tf 72 720 Td ({text}) Tj ET".encode())
        page[NameObject("/Resources")] = DictionaryObject.read_from_stream(io.BytesIO(resources), None)
        page[NameObject("/Contents")] = writer._add_object(content)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)


def word(path: Path) -> None:
    import docx

    document = docx.Document()
    document.add_heading("Manual", level=1)
    document.add_paragraph("Press the red button.")
    document.add_heading("Care", level=2)
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "soap", "water"
    prices = document.add_table(rows=0, cols=3)
    for row in (("item", "price", "terms"), ("hose", "3.90", "14 days")):
        for cell, text in zip(prices.add_row().cells, row, strict=True):
            cell.text = text
    document.save(str(path))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One document of each format."""
    docs = tmp_path_factory.mktemp("docs")
    texts = {"report.md": REPORT, "web.html": WEB, "table.csv": TABLE, "notes.txt": NOTES}
    for name, text in texts.items():
        (docs / name).write_text(text, encoding="utf-8")
    pdf(docs / "paper.pdf", "Protons are heavy.", "Electrons are light.")
    word(docs / "manual.docx")
    return docs


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A working folder with docs/, a copy of these."""
    shutil.copytree(written, tmp_path / "docs")
    (tmp_path / ".index.db.lock").touch()  # stays after the first command
    return tmp_path


def run(folder: Path, *args: str, documents: tuple[str, ...] = ("docs",)) -> Result:
    """Ask about documents, which makes or updates index.db, without vectors unless the arguments say otherwise."""
    return ok(folder, *ASK, *documents, *DEFAULTS, *args)


def found(folder: Path, question: str, count: int = 5) -> list[Passage]:
    with open_index(folder / "index.db") as opened:
        return search(opened, question, count)


def texts(folder: Path) -> set[str]:
    with open_index(folder / "index.db") as opened:
        return {passage.text for passage in opened.passages(range(1000))}


def test_each_format_gives_its_sections(folder: Path) -> None:
    def sections(name: str) -> list[tuple[str, str, str]]:
        return [(s.title, s.text.strip(), s.position(0)) for s in documents.read(folder / "docs" / name)]

    assert sections("report.md") == [
        ("Report", "Kalor Foods sold 412 tonnes of cheese.", "line 2"),
        ("Report > Outlook", REPORT.split("Outlook\n")[1].strip(), "line 5"),
    ]
    assert sections("web.html") == [
        ("The Hand book", "The warranty lasts five years.", "paragraph 2"),
        ("The Hand book > Returns", "Send it back.\nAdd the bill.\nline one\n  line two", "paragraph 4"),
    ]
    assert sections("table.csv") == [
        ("", "name: Kalor; city: Velno; staff: 12", "row 2"),
        ("", "name: Tashbel; city: Qui; Sen; staff: 7", "row 3"),
        ("", "name: A\u2028B; city: C\nD", "row 5"),
    ]
    assert sections("paper.pdf") == [("", "Protons are heavy.", "page 1"), ("", "Electrons are light.", "page 2")]
    assert sections("manual.docx") == [
        ("Manual", "Press the red button.", "paragraph 2"),
        ("Manual > Care", "soap | water\nitem | price | terms\nitem: hose; price: 3.90; terms: 14 days", "paragraph 4"),
    ]
    (section,) = documents.read(folder / "docs" / "notes.txt")
    assert section.position(section.text.index("Bring")) == "line 3"


def test_headings(tmp_path: Path) -> None:
    def titles(text: str) -> list[str]:
        (tmp_path / "a.md").write_text(text)
        return [section.title for section in documents.read(tmp_path / "a.md")]

    assert titles("# A\n## B\n### C\nc\n## D\nd\n# E\ne\n") == ["A > B > C", "A > D", "E"]
    assert titles("# C#\nc\n# D ## \nd\n") == ["C#", "D"]
    # underlined, if the line stands alone; not in a fence, a table or a front matter, nor a rule below a paragraph
    underlined = titles("---\ntitle: A\n---\na\n\nB\n===\nb\n\nC\n---\nc\n## D\nd\nd\n---\ne\n")
    assert underlined == ["", "B", "B > C", "B > D"]
    assert titles("| E |\n|---|\n| e |\n\n- f\n---\n\n```\n\nG\n---\n\n```\n---\nh\n") == [""]
    # CommonMark: the line that opens a fence of backticks contains no other backtick
    assert titles("# A\n```code```\n# B\nb\n```python\n# not a heading\n```\t\n# C\nc\n") == ["A", "B", "C"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_and_a_link_to_nothing_are_refused(folder: Path) -> None:
    """A pipe is empty when it is read again, and one without a writer would be waited for."""
    os.mkfifo(folder / "pipe")
    assert "pipe: is not a regular file" in cli_here(*ASK, "pipe", *DEFAULTS, cwd=folder).err
    (folder / "pipe").unlink()
    for name, target in (("loop.txt", "loop.txt"), ("gone.txt", "nothing.txt"), ("again", ".")):
        (folder / "docs" / name).symlink_to(target)
    assert "docs/loop.txt: no such file" in refused(folder, *ASK, "docs/loop.txt")
    assert " 6 documents, 6 new\n" in run(folder).err  # the links are not read


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        (
            "Prices 2024\nvalid, for now\n\nitem;price\nchain;12,50\nbrake;8,00\n",
            ["1: Prices 2024", "2: valid, for now", "5: item: chain; price: 12,50", "6: item: brake; price: 8,00"],
        ),
        ("text\nHello, world\nOne; two, three\n", ["2: text: Hello, world", "3: text: One; two, three"]),
    ],
    ids=["title", "one column"],
)
def test_tables(text: str, sections: list[str], tmp_path: Path) -> None:
    """No number is cut at its comma, and no text."""
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert [f"{one.position(0)}: {one.text}" for one in documents.read(tmp_path / "a.csv")] == [
        f"row {section}" for section in sections
    ]


@hypothesis.given(
    st.text(alphabet="ab .!?\n。-1é", max_size=300), st.integers(1, 60), st.integers(0, 59), st.booleans()
)
@hypothesis.example("a" * 100, 7, 3, False)
def test_passages_cover_the_text_within_their_size(text: str, size: int, overlap: int, spaced: bool) -> None:
    text = text.replace("a", "a ") if spaced else text
    made = list(passages.split(text, size, min(overlap, size - 1)))
    covered = set()
    for passage, offset in made:
        assert 0 < len(passage) <= size and text[offset : offset + len(passage)] == passage == passage.strip()
        covered |= set(range(offset, offset + len(passage)))
    assert covered >= {at for at, character in enumerate(text) if not character.isspace()}
    for (first, start), (_, after) in itertools.pairwise(made):
        assert start < after and start + len(first) - after <= overlap


def test_the_table_is_read_as_wordllama_reads_it() -> None:
    """Compared with wordllama's own code, which gets the table and the tokenizer: it does not find them itself."""
    from wordllama.inference import WordLlamaInference

    own = embeddings.WordLlama()
    texts = ["The warranty lasts five years.", "Hello", "Über Straße 東京"]
    vectors = own.vectors(texts)
    authority = WordLlamaInference(own._table, own._tokenizer)  # changes the tokenizer's settings
    assert vectors == pytest.approx(authority.embed(texts, norm=True), abs=1e-5)


def test_vectors_find_a_passage_without_a_common_word_and_without_a_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("it uses the network"))
    (folder / "docs" / "zoo.txt").write_text("A physician treats illness.")
    run(folder, "--embeddings=wordllama")
    assert found(folder, "doctor")[0].text == "A physician treats illness."
    run(folder)
    assert not found(folder, "doctor")


def test_a_question_is_never_parsed_as_a_query(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "fish.txt").write_text("red fish swim")
    run(tmp_path)
    questions = ["", "???", '"', "a OR", "NEAR(", "col:x", "red AND NOT", "x" * 100_000, "\0", "*", "-red", "ね" * 50]
    for question in questions:
        found(tmp_path, question)  # does not raise
        assert found(tmp_path, f"{question} red"), question


def test_only_what_changed_is_read_again(folder: Path) -> None:
    """A file with an unchanged time and size is not read, even if its text has changed: the old text stays."""
    assert "6 documents, 6 new\n" in run(folder).err
    docs, before = folder / "docs", texts(folder)
    status = (docs / "notes.txt").stat()
    (docs / "notes.txt").write_text(NOTES.replace("Monday", "Friday"))
    os.utime(docs / "notes.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    (docs / "report.md").write_text(REPORT.replace("412", "999"))
    os.utime(docs / "web.html")  # another time, the same content
    (docs / "paper.pdf").unlink()
    (docs / "new.md").write_text("A new document.")
    assert ": 6 documents, 1 new, 1 changed, 1 removed\n" in run(folder).err
    new = {"A new document.", "Kalor Foods sold 999 tonnes of cheese."}
    gone = {"Protons are heavy.", "Electrons are light.", "Kalor Foods sold 412 tonnes of cheese."}
    assert texts(folder) == (before - gone) | new
    assert [len(found(folder, word)) for word in ("Friday", "412", "protons", "999")] == [0, 0, 0, 1]
    status = (folder / "index.db").stat()
    assert run(folder).err == "index: index.db: 6 documents\n"
    assert (folder / "index.db").stat() == status  # nothing is written when nothing has changed
    (docs / "notes.txt").write_bytes(b"\0")
    assert ": 5 documents, 1 left out\n" in run(folder).err and not found(folder, "Monday")


def test_an_updated_index_equals_a_new_one(folder: Path) -> None:
    docs = folder / "docs"
    (docs / "fish.txt").write_text("Red fish swim in the town.")
    run(folder)
    changed = run(folder, "--embeddings=wordllama").err
    assert "made with other settings" in changed and "7 documents, 7 new\n" in changed
    (docs / "notes.txt").unlink()
    (docs / "fish.txt").write_text("Blue fish sing. Prices of fish rise.")
    (docs / "new.txt").write_text("A handbook about fish, without prices.")
    run(folder, "--embeddings=wordllama")
    run(folder, "--embeddings=wordllama", "--index=fresh.db")
    found = []
    for name in ("index.db", "fresh.db"):
        with open_index(folder / name) as opened:
            hits = search(opened, "the prices of fish in town", 50)
            found.append((len(opened), {(hit.text, hit.source) for hit in hits}))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["more", "docs"], []),
        (["more"], []),  # the last document of the index
        (["more/secret.txt"], ["--index=index.db", "--passage_size=400"]),
        (["more/**/*.txt"], ["--index=index.db"]),
    ],
    ids=str,
)
def test_text_that_is_gone_leaves_the_index(folder: Path, arguments: list[str], flags: list[str]) -> None:
    """Also if its argument names nothing any more."""

    def asked(*flags: str) -> tuple[str, bytes]:
        done = ok(folder, "ask", "What is the password?", *arguments, "--embeddings=none", *flags)
        (path,) = folder.rglob("*.db")
        return done.err + done.out, path.read_bytes()

    secret = folder / "more" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("The password is Zyzzyva. " * 2000)
    size = len(asked(*flags[:1])[1])
    assert b"Zyzzyva" in asked(*flags[:1])[1]
    assert "mroe: no such file" in refused(folder, *ASK, "mroe", *flags)  # negative control
    shutil.rmtree(secret.parent)
    said, data = asked(*flags)
    assert "no document is left there" in said and "1 removed" in said and "probably not in the documents" in said
    assert b"zyzzyva" not in data.lower() and len(data) < size
    if not flags:  # the index of these arguments stays
        assert "removed" not in asked()[0]
    secret.parent.mkdir()
    secret.write_text("The password is Xylem.")
    assert "Xylem" in asked(*flags)[0]


def test_plain_text_of_any_name_is_read_in_a_folder_and_the_rest_counted(folder: Path) -> None:
    plain = ["LICENSE", "README.Debian", "guide.rst", "run.log", "popcon.FAQ", "sub/NEWS.2023"]
    others = ["photo.png", "code.py", "binary", ".hidden/LICENSE"]
    for name in plain + others:
        (folder / "docs" / name).parent.mkdir(exist_ok=True)
        (folder / "docs" / name).write_bytes(b"\0" if name == "binary" else f"Kumquat of {name}.".encode())
    err = run(folder).err
    assert f": {6 + len(plain)} documents" in err and "left out 3 other files" in err
    hits = found(folder, "kumquat", 20)
    assert {Path(hit.source).relative_to("docs").as_posix() for hit in hits} == set(plain)


def test_without_the_extra_the_index_is_searched_for_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing is None in sys.modules."""
    for name in ("wordllama", "pypdf", "docx"):
        monkeypatch.setitem(sys.modules, name, None)
    result = ok(folder, *ASK, "docs", "--index=index.db")
    assert "note: keyword search only" in result.err and "4 documents, 4 new, 2 left out" in result.err
    assert "paper.pdf: PDF needs the package pypdf" in result.err
    assert found(folder, "cheese")[0].text == "Kalor Foods sold 412 tonnes of cheese."
    for args, package in (("docs/paper.pdf", "pypdf"), ("docs --embeddings=wordllama", "wordllama")):
        result = cli_here(*ASK, *args.split(), cwd=folder)
        assert result.status == 2 and f'pip install {package} (also in "tinygpt[retrieve]")' in result.err


def test_each_set_of_documents_has_its_own_index(folder: Path) -> None:
    def place(*names: str) -> str:
        line = ok(folder, *ASK, *names, "--embeddings=none").err.splitlines()[-1]
        (path,) = re.findall(r"^index: (.tinygpt.index-\w{8}\.db): ", line)
        return str(path)

    both = place("docs", "docs/notes.txt")
    assert both == place("docs/notes.txt", "./docs/") != place("docs")
    (folder / "docs" / "notes.txt").write_text("The password is Zyzzyva.")
    assert both == place("docs", "docs/notes.txt")
    answer = ok(folder, "ask", "What is the password?", f"--index={both}")
    assert "Zyzzyva" in answer.out and answer.err == ""  # without documents, the index is asked as it is


BAD = {
    "binary.txt": (b"text\0more", "is binary, not text"),
    "latin.md": ("Straße".encode("cp1252"), "not UTF-8 text (byte 0xdf at offset 4)"),
    "blank.md": (b"\n# \n \t", "contains no text"),
    "quote.csv": (b"a,b\n" + b"bad,row\n" * 1500 + b'"c,d\n', "is not a valid CSV file"),
    "damaged.pdf": (b"%PDF-1.4 and no more", "cannot be read as PDF"),
    "damaged.docx": (b"PK\x03\x04 and no more", "cannot be read as .docx"),
    "locked.pdf": (None, "is encrypted with a password"),
    "scan.pdf": (None, "contains no text"),
}


def test_a_bad_document_is_refused_when_named_and_left_out_of_a_folder(folder: Path) -> None:
    bad = folder / "bad"
    bad.mkdir()
    for name, (content, _) in BAD.items():
        (bad / name).write_bytes(content or b"")
    pdf(bad / "locked.pdf", "secret page", password="password")
    pdf(bad / "scan.pdf", "")
    only_bad = cli_here(*ASK, "bad", *DEFAULTS, cwd=folder)
    assert only_bad.status == 2 and f"{len(BAD)} documents found, but none can be indexed" in only_bad.err
    assert not (folder / "index.db").exists()
    *left_out, summary = run(folder, documents=("docs", "bad")).err.splitlines()
    assert summary == f"index: index.db: 6 documents, 6 new, {len(BAD)} left out" and not found(folder, "bad")
    again = run(folder, documents=("docs", "bad")).err
    assert again == f"index: index.db: 6 documents, {len(BAD)} left out\n"  # they are not read again
    for name, (_, problem) in BAD.items():
        assert any(re.match(rf"left out: bad.{name}: {re.escape(problem)}", line) for line in left_out), name
        assert f"{name}: {problem}" in refused(folder, *ASK, "docs", f"bad/{name}", *DEFAULTS)


def test_a_file_name_of_any_bytes(folder: Path) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.txt")
    try:
        (folder / "docs" / name).write_text("mammoth")
    except (OSError, UnicodeError):
        pytest.skip("this file system has only names of Unicode")
    (folder / "docs" / name).with_suffix(".md").write_bytes(b"\0")
    assert r"left out: docs/\udcff\x1b[31m.md" in (err := run(folder).err) and "\x1b" not in err
    assert len(found(folder, "mammoth")) == 1


def test_an_index_that_is_damaged_or_of_another_program_is_refused(folder: Path) -> None:
    run(folder)
    path = folder / "index.db"
    data = path.read_bytes()
    (folder / "docs" / "notes.txt").unlink()  # so that it has to be read
    with contextlib.closing(sqlite3.connect(folder / "other.db")) as connection:
        connection.execute("CREATE TABLE passages (id)")
    for content, problem in (
        (data[: len(data) // 2], "it is damaged"),
        ((folder / "other.db").read_bytes(), "is not an index of this version of tinygpt"),
    ):
        path.write_bytes(content)
        assert problem in refused(folder, *ASK, "docs", *DEFAULTS)
        assert problem in cli_here("ask", "cheese", "--index=index.db", cwd=folder).err


def test_there_is_one_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks meanwhile waits for it; without a change, nobody has to."""
    run(folder)
    monkeypatch.setattr(index, "PATIENCE", 0.1)
    with file_lock(folder / "index.db", "index"):
        run(folder)
        (folder / "docs" / "notes.txt").unlink()
        message = refused(folder, *ASK, "docs", *DEFAULTS)
    assert re.search(rf"index\.db is in use by process {os.getpid()}", message)


@needs_fork
def test_a_killed_process_leaves_the_old_index_and_no_text(folder: Path, harness: Any) -> None:
    """What is left contains text of the documents, also of those that are gone when nothing is to be written."""
    run(folder)
    old = (folder / "index.db").read_bytes()
    (folder / "docs" / "extinct.txt").write_text("The mammoth is extinct.")

    def before() -> None:
        os.chdir(folder)
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)

    child = harness.run([*ASK, "docs", *DEFAULTS], before)
    assert child.status == -signal.SIGKILL, child.output
    assert (folder / "index.db").read_bytes() == old and found(folder, "Monday")
    (left,) = folder.glob(".*.tmp")
    assert b"mammoth" in left.read_bytes()
    (folder / "docs" / "extinct.txt").unlink()
    run(folder)
    assert not left.exists() and not [path for path in folder.rglob("*.*") if b"mammoth" in path.read_bytes()]


def test_a_full_disk_leaves_the_old_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite reports that the disk is full when the file has reached its largest number of pages."""
    run(folder)
    create = store.create
    monkeypatch.setattr(
        store, "create", lambda db, settings: (create(db, settings), db.execute("PRAGMA max_page_count = 20"))
    )
    (folder / "docs" / "big.txt").write_text("".join(f"word{number} " for number in range(20_000)))
    before = listing(folder)
    result = cli_here(*ASK, "docs", *DEFAULTS, "--passage_size=100", cwd=folder)
    assert result.status == 1 and "index.db: no space left to write it" in result.err
    assert listing(folder) == before
