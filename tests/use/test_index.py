"""The index of `tinygpt ask`: documents become passages that a search finds, also after a failure of an update."""

import itertools
import math
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import PATIENCE, Result, cli, cli_here, listing, needs_fork, ok, refused

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import file_lock
from tinygpt.use.ask import documents, embeddings, index, passages, store
from tinygpt.use.ask.search import search
from tinygpt.use.ask.store import Index, Passage, open_index

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


ASK = ["ask", "Who is it?"]
DEFAULTS = ["--index=index.db", "--embeddings=none"]


def pdf(path: Path, *pages: str) -> None:
    """Write a PDF of one line per page, by hand: pypdf itself cannot write text."""
    count = len(pages)
    kids = " ".join(f"{3 + 2 * page} 0 R" for page in range(count))
    font = "<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {count} >>"]
    for page, text in enumerate(pages):
        shown = f"BT /F 12 Tf 72 720 Td ({text}) Tj ET"
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {font} /Contents {4 + 2 * page} 0 R >>"
        )
        bodies.append(f"<< /Length {len(shown)} >>\nstream\n{shown}\nendstream")
    data, starts = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, start=1):
        starts.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{start:010} 00000 n \n" for start in starts)
    end = f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{table}trailer << /Size {len(bodies) + 1} /Root 1 0 R >>\n"
    path.write_bytes(data + f"{end}startxref\n{len(data)}\n%%EOF\n".encode())


def encrypted_pdf(path: Path) -> None:
    import pypdf

    pdf(path, "secret page")
    writer = pypdf.PdfWriter(clone_from=path)
    writer.encrypt("password", algorithm="RC4-128")
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
    (docs / "report.md").write_text(REPORT)
    (docs / "web.html").write_text(WEB)
    (docs / "table.csv").write_text(TABLE, encoding="utf-8")
    (docs / "notes.txt").write_text("The meeting is on Monday.\n\nBring the blue folder.\n")
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


def starting_with(code: str, folder: Path) -> str:
    """The PYTHONPATH with which a Python process runs this code first."""
    (folder / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])


def found(folder: Path, question: str, count: int = 5) -> list[Passage]:
    with open_index(folder / "index.db") as opened:
        return search(opened, question, count)


def texts(folder: Path) -> set[str]:
    with open_index(folder / "index.db") as opened:
        return {passage.text for passage in opened.passages(range(1000))}


# ---- documents and passages ------------------------------------------------------------------------------------------


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
    # closed by number signs after a space, in linear time: a quadratic search would take an hour
    found = titles(f"# C#\nc\n# D ## \nd\n# #\ne\n# {' ' * 200_000}f\nf\n# {'# ' * 100_000}g\ng\n")
    assert found[:4] == ["C#", "D", "", "f"] and len(found) == 5
    # a title is stored with each passage below it, so a long one is cut
    assert [*map(len, titles(f"# {'heading ' * 9999}\n## B\nb\n"))] == [documents.LONGEST_TITLE]
    # underlined, if the line stands alone; not in a fence, a table or a front matter, nor a rule below a paragraph
    assert titles("---\ntitle: A\n---\na\n\nB\n===\nb\n\nC\n---\nc\n## D\nd\nd\n---\ne\n") == [
        "",
        "B",
        "B > C",
        "B > D",
    ]
    assert titles("| E |\n|---|\n| e |\n\n- f\n---\n\n```\n\nG\n---\n\n```\n---\nh\n") == [""]
    (tmp_path / "a.md").write_text("I\n---\n\ni\n")
    (section,) = documents.read(tmp_path / "a.md")
    assert section.text.strip() == "i" and section.position(section.text.index("i")) == "line 4"
    # CommonMark: the line that opens a fence of backticks contains no other backtick
    assert titles("# A\n```code```\n# B\nb\n```python\n# not a heading\n```\t\n# C\nc\n") == ["A", "B", "C"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_an_empty_name_and_a_link_to_nothing_are_refused(folder: Path) -> None:
    """A pipe is empty when it is read again, and one without a writer would be waited for."""
    os.mkfifo(folder / "pipe")
    assert "pipe: is not a regular file" in cli_here(*ASK, "pipe", *DEFAULTS, cwd=folder).err
    (folder / "pipe").unlink()
    assert "a file name is empty" in refused(folder, *ASK, "", *DEFAULTS)
    for name, target in (("loop.txt", "loop.txt"), ("gone.txt", "nothing.txt"), ("again", ".")):
        (folder / "docs" / name).symlink_to(target)
    for name in ("docs/loop.txt", "docs/gone.txt"):
        assert f"{name}: no such file" in refused(folder, *ASK, name)
    assert " 6 documents, 6 new\n" in run(folder).err  # the links are not read


def test_a_document_that_is_deleted_during_the_command_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = index.compared
    notes = folder / "docs" / "notes.txt"
    monkeypatch.setattr(index, "compared", lambda *args: (notes.unlink(missing_ok=True), compared(*args))[1])
    err = run(folder).err
    assert "5 documents, 5 new, 1 left out\n" in err and "left out: docs/notes.txt: no such file" in err


def test_cells_of_a_table_may_be_long_and_contain_any_line_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\nname;text\nA;one\u2028two\x85\x0cthree\nB;"four\nfive"\nC;' + "x" * 200_000, "utf-8"
    )
    assert [section.text[:40].split() for section in documents.read(tmp_path / "a.csv")] == [
        ["name:", "A;", "text:", "one", "two", "three"],
        ["name:", "B;", "text:", "four", "five"],
        ["name:", "C;", "text:", "x" * 25],
    ]


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        (
            "Prices 2024\nvalid, for now\n\nitem;price\nchain;12,50\nbrake;8,00\n",
            [
                "row 1: Prices 2024",
                "row 2: valid, for now",
                "row 5: item: chain; price: 12,50",
                "row 6: item: brake; price: 8,00",
            ],
        ),
        ("sep=;\r\nitem;price\r\nchain;12,50\r\n", ["row 2: item: chain; price: 12,50"]),
        ("text\nHello, world\nOne; two, three\n", ["row 2: text: Hello, world", "row 3: text: One; two, three"]),
        ('list\n"a, b",c\n', ["row 2: list: a, b; c"]),
    ],
)  # fmt: skip
def test_a_table_below_a_title_and_one_of_one_column(text: str, sections: list[str], tmp_path: Path) -> None:
    """No number is cut at its comma, and no text."""
    (tmp_path / "a.csv").write_text(text)
    assert [f"{one.position(0)}: {one.text}" for one in documents.read(tmp_path / "a.csv")] == sections


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


def test_passages_are_whole_sentences_that_overlap() -> None:
    text = "It is new, e.g. here. Dogs bark. Cats sleep. Birds sing."
    assert [passage for passage, _ in passages.split(text, 34, 10)] == [
        "It is new, e.g. here. Dogs bark.",
        "Dogs bark. Cats sleep. Birds sing.",
    ]
    assert [passage for passage, _ in passages.split(text, 34, 9)][1] == "Cats sleep. Birds sing."


def test_splitting_takes_linear_time_for_text_without_sentences() -> None:
    """Two million characters: a quadratic loop would copy 10 GB."""
    assert sum(len(passage) for passage, _ in passages.split("ab" * 1_000_000, 400, 80)) == 2_000_000


# ---- search ----------------------------------------------------------------------------------------------------------

CORPUS = ["red red fish swim", "blue fish", "a red house in a blue town", "nothing of that", "green fish eat weed"]


def corpus(folder: Path, *args: str) -> None:
    docs = folder / "corpus"
    docs.mkdir()
    for number, text in enumerate(CORPUS):
        (docs / f"{number}.txt").write_text(text)
    run(folder, *args, documents=("corpus",))


def test_bm25_agrees_with_robertsons_formula(tmp_path: Path) -> None:
    """By hand: k1 1.2 and b 0.75, the constants of FTS5 (sqlite.org/fts5.html)."""
    corpus(tmp_path)
    words = [text.split() for text in CORPUS]
    mean = sum(map(len, words)) / len(words)
    expected = {}
    for number, passage in enumerate(words):
        score = 0.0
        for term in ("red", "house"):
            holding = sum(term in other for other in words)
            frequency = passage.count(term)
            idf = math.log((len(words) - holding + 0.5) / (holding + 0.5))
            score += idf * frequency * 2.2 / (frequency + 1.2 * (0.25 + 0.75 * len(passage) / mean))
        if score:
            expected[f"corpus/{number}.txt"] = score
    hits = found(tmp_path, "Red HOUSE?")
    assert {Path(hit.source).as_posix(): hit.bm25 for hit in hits} == pytest.approx(expected, rel=1e-5)
    assert [hit.bm25 for hit in hits] == sorted(expected.values(), reverse=True)


def test_cosines_agree_with_the_table_and_ranks_are_fused(tmp_path: Path) -> None:
    corpus(tmp_path, "--embeddings=wordllama")
    table = embeddings.WordLlama()
    vectors = table.vectors(["\n" + text for text in CORPUS])
    question = table.vectors(["azure salmon fish"])[0]
    cosines = (vectors @ question) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(question)
    hits = found(tmp_path, "azure salmon fish")
    by_words = sorted((hit for hit in hits if hit.bm25), key=lambda hit: -hit.bm25)
    by_vectors = sorted(hits, key=lambda hit: -cosines[CORPUS.index(hit.text)])
    ranks = [[ranking.index(hit) + 1 for ranking in (by_words, by_vectors) if hit in ranking] for hit in hits]
    scores = [sum(1 / (10 + rank) for rank in each) for each in ranks]
    assert scores == sorted(scores, reverse=True) and len(hits) == len(CORPUS)


def test_the_table_is_read_as_wordllama_reads_it() -> None:
    """Compared with wordllama's own code, which gets the table and the tokenizer: it does not find them itself."""
    from wordllama.inference import WordLlamaInference

    own = embeddings.WordLlama()
    texts = ["The warranty lasts five years.", "Hello", "Über Straße 東京"]
    vectors = own.vectors(texts)
    authority = WordLlamaInference(own._table, own._tokenizer)  # changes the tokenizer's settings
    assert vectors == pytest.approx(authority.embed(texts, norm=True), abs=1e-5)


def test_nothing_is_downloaded(folder: Path) -> None:
    """Without any network: in a process whose sockets raise."""
    code = "import socket; socket.socket.connect = lambda *a: 1 / 0; socket.getaddrinfo = lambda *a: 1 / 0\n"
    result = cli(*ASK, "docs", "--embeddings=wordllama", cwd=folder, PYTHONPATH=starting_with(code, folder))
    assert result.status == 0, result.err
    assert "docs" not in result.out or result.out.startswith(("probably", '"'))


def test_vectors_find_a_passage_without_a_common_word(folder: Path) -> None:
    (folder / "docs" / "zoo.txt").write_text("A physician treats illness.")
    run(folder, "--embeddings=wordllama")
    assert found(folder, "doctor")[0].text == "A physician treats illness."
    run(folder)
    assert not found(folder, "doctor")


def test_a_question_is_never_parsed_as_a_query(tmp_path: Path) -> None:
    corpus(tmp_path)
    questions = ["", "???", '"', "a OR", "NEAR(", "col:x", "red AND NOT", "x" * 100_000, "\0", "*", "-red", "ね" * 50]
    for question in questions:
        found(tmp_path, question)  # does not raise
        assert found(tmp_path, f"{question} red"), question


# ---- updates ---------------------------------------------------------------------------------------------------------


def test_only_what_changed_is_read_again(folder: Path) -> None:
    """A file with an unchanged time and size is not read, even if its text has changed: the old text stays."""
    assert "6 documents, 6 new\n" in run(folder).err
    docs, before = folder / "docs", texts(folder)
    notes, report = docs / "notes.txt", docs / "report.md"
    status, text = notes.stat(), notes.read_text()
    notes.write_text(text.replace("Monday", "Friday"))
    os.utime(notes, ns=(status.st_atime_ns, status.st_mtime_ns))
    report.write_text(REPORT.replace("412", "999"))
    os.utime(docs / "web.html")  # another time, the same content
    (docs / "paper.pdf").unlink()
    (docs / "new.md").write_text("A new document.")
    result = run(folder)
    assert ": 6 documents, 1 new, 1 changed, 1 removed\n" in result.err
    new = {"A new document.", "Kalor Foods sold 999 tonnes of cheese."}
    gone = {"Protons are heavy.", "Electrons are light.", "Kalor Foods sold 412 tonnes of cheese."}
    assert texts(folder) == (before - gone) | new
    assert found(folder, "Friday") == [] and found(folder, "412") == [] and found(folder, "protons") == []
    assert len(found(folder, "999")) == 1
    status = (folder / "index.db").stat()
    assert run(folder).err == "index: index.db: 6 documents\n"
    assert (folder / "index.db").stat() == status  # nothing is written when nothing has changed
    notes.write_bytes(b"\0")
    assert ": 5 documents, 1 left out\n" in run(folder).err and not found(folder, "Monday")


def test_an_update_equals_a_new_index(folder: Path) -> None:
    draw, docs = random.Random(3), folder / "docs"
    for round_ in range(2):
        for number in range(12):
            path = docs / f"{number}.txt"
            if draw.random() < 0.4:
                path.write_text(" ".join(draw.choices(["red", "blue", "fish", "town", "sing"], k=30)) + f" {round_}.")
            elif path.exists() and draw.random() < 0.3:
                path.unlink()
        run(folder, "--embeddings=wordllama")
        run(folder, "--embeddings=wordllama", "--index=fresh.db")
        question = " ".join(draw.choices(["red", "blue", "fish", "town"], k=2))
        with open_index(folder / "index.db") as updated, open_index(folder / "fresh.db") as fresh:
            one, other = (
                {(h.text, h.source, round(h.bm25, 6)) for h in search(i, question, 50)} for i in (updated, fresh)
            )
            assert len(updated) == len(fresh) and one == other
        (folder / "fresh.db").unlink()


def test_removed_text_leaves_the_file(folder: Path) -> None:
    run(folder)
    size = (folder / "index.db").stat().st_size
    (folder / "docs" / "secret.txt").write_text("The password is Zyzzyva. " * 2000)
    run(folder)
    assert b"Zyzzyva" in (folder / "index.db").read_bytes()
    (folder / "docs" / "secret.txt").unlink()
    run(folder)
    assert b"zyzzyva" not in (folder / "index.db").read_bytes().lower()
    assert (folder / "index.db").stat().st_size == size


@pytest.mark.parametrize("gone", ["folder", "its files", "pattern", "the last document"])
def test_documents_of_an_argument_that_names_nothing_any_more_leave_the_index(folder: Path, gone: str) -> None:
    def asked() -> tuple[str, bytes]:
        done = ok(folder, "ask", "What is the password?", *arguments, "--embeddings=none")
        (path,) = (folder / ".tinygpt").glob("*.db")
        return done.err + done.out, path.read_bytes()

    secret = folder / "more" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("The password is Zyzzyva.")
    arguments = ["more/*.txt" if gone == "pattern" else "more", *(["docs"] if gone != "the last document" else [])]
    assert b"Zyzzyva" in asked()[1]
    if gone == "folder":
        shutil.rmtree(folder / "more")
    else:
        secret.unlink()
    said, data = asked()
    assert "no document is left there" in said and "1 removed" in said and b"zyzzyva" not in data.lower()
    assert "probably not in the documents" in said and "removed" not in asked()[0]
    assert "mroe: no such file" in refused(folder, *ASK, "mroe")  # negative control: it never was in the index
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("The password is Xylem.")
    assert "Xylem" in asked()[0]


@pytest.mark.parametrize("argument", ["notes/", "notes/secret.md", "notes/**/*.md"])
@pytest.mark.parametrize("flag", ["--passage_size=500", "--passage_size=400"])
def test_a_named_index_keeps_no_text_of_documents_that_are_gone(folder: Path, argument: str, flag: str) -> None:
    (folder / "notes").mkdir()
    (folder / "notes/secret.md").write_text("The password is Zyzzyva.")
    run(folder, "--passage_size=500", documents=(argument,))
    index = folder / "index.db"
    before = index.read_bytes()
    assert b"Zyzzyva" in before
    for mistake, says in (("ntoes", "ntoes: no such file"), ("", "a file name is empty")):
        assert says in refused(folder, *ASK, mistake, *DEFAULTS) and index.read_bytes() == before
    shutil.rmtree(folder / "notes")
    said = run(folder, flag, documents=(argument,)).err
    assert "no document is left there" in said and "1 removed" in said
    assert b"zyzzyva" not in index.read_bytes().lower()


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


def test_other_settings_rebuild_the_index(folder: Path) -> None:
    run(folder)
    for more in (["--passage_size=60"], ["--passage_size=60", "--embeddings=wordllama"]):
        err = run(folder, *more).err
        assert "made with other settings" in err and "6 documents, 6 new\n" in err
    assert max(map(len, texts(folder))) <= 60


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


# ---- the place of the index ------------------------------------------------------------------------------------------


def test_each_set_of_documents_has_its_own_index(folder: Path) -> None:
    def place(*names: str) -> str:
        line = ok(folder, *ASK, *names, "--embeddings=none").err.splitlines()[-1]
        (path,) = re.findall(r"^index: (.tinygpt.index-\w{8}\.db): ", line)
        return str(path)

    both = place("docs", "docs/notes.txt")
    assert both == place("docs/notes.txt", "./docs/") != place("docs")
    assert len([*(folder / ".tinygpt").glob("*.db")]) == 2
    (folder / "docs" / "notes.txt").write_text("The password is Zyzzyva.")
    assert both == place("docs", "docs/notes.txt")
    answer = ok(folder, "ask", "What is the password?", f"--index={both}")
    assert "Zyzzyva" in answer.out and answer.err == ""  # without documents, the index is asked as it is


@pytest.mark.slow
@needs_fork
def test_processes_ask_at_the_same_time(folder: Path) -> None:
    """They make the index, read it, and update it; each waits for the others, and answers from all documents."""
    for number in range(2):
        (folder / "docs" / "new.txt").write_text(f"The mammoth is {number}.")
        command = [sys.executable, "-m", "tinygpt", "ask", "Where is the mammoth?", "docs", *DEFAULTS, "--json"]
        children = [subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True) for _ in range(3)]
        for child in children:
            out, err = child.communicate(timeout=PATIENCE)
            assert child.returncode == 0 and f"The mammoth is {number}." in out and ": 7 documents" in err, err


# ---- bad documents ---------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "binary.txt": (lambda path: path.write_bytes(b"text\0more"), "is binary, not text"),
    "latin.md": (lambda path: path.write_bytes("Straße".encode("cp1252")), "not UTF-8 text (byte 0xdf at offset 4)"),
    "utf16.csv": (lambda path: path.write_bytes("a;b".encode("utf-16")), "is UTF-16 text, not UTF-8"),
    "empty.txt": (lambda path: path.write_bytes(b""), "contains no text"),
    "blank.md": (lambda path: path.write_bytes(b"\n# \n \t"), "contains no text"),
    "scripts.html": (lambda path: path.write_text("<script>x</script>"), "contains no text"),
    "header.csv": (lambda path: path.write_text("a,b\n"), "contains no text"),
    "quote.csv": (lambda path: path.write_text("a,b\n" + "bad,row\n" * 1500 + '"c,d\n'), "is not a valid CSV file"),
    "locked.pdf": (encrypted_pdf, "is encrypted with a password"),
    "scan.pdf": (lambda path: pdf(path, ""), "contains no text"),
    "damaged.pdf": (lambda path: path.write_bytes(b"%PDF-1.4 and no more"), "cannot be read as PDF"),
    "damaged.docx": (lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "cannot be read as .docx"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_is_refused_when_named_and_left_out_of_a_folder(folder: Path, name: str) -> None:
    write, problem = BAD[name]
    write(folder / "docs" / name)
    message = refused(folder, *ASK, f"docs/{name}", *DEFAULTS)
    assert f"{name}: {problem}" in message and "try: " in message
    result = run(folder)
    assert not found(folder, "bad")
    left_out, summary = result.err.splitlines()
    assert left_out.startswith("left out: ") and f"{name}: {problem}" in left_out
    assert summary == "index: index.db: 6 documents, 6 new, 1 left out"
    assert run(folder).err == "index: index.db: 6 documents, 1 left out\n"  # it is not read again
    before = (folder / "index.db").read_bytes()
    refused(folder, *ASK, "docs", f"docs/{name}", *DEFAULTS)
    assert (folder / "index.db").read_bytes() == before


def test_a_declaration_that_html_does_not_have_ends_no_command(folder: Path) -> None:
    """Older versions of html.parser raise AssertionError; then the document is left out."""
    (folder / "docs" / "declaration.html").write_text("<p>x<![y[z]]>")
    assert " 7 new\n" in (err := run(folder).err) or " 6 new, 1 left out\n" in err


def test_a_folder_of_bad_documents_is_refused(tmp_path: Path) -> None:
    for name, (write, _) in BAD.items():
        (tmp_path / "bad").mkdir(exist_ok=True)
        write(tmp_path / "bad" / name)
    result = cli_here(*ASK, "bad", *DEFAULTS, cwd=tmp_path)
    assert result.status == 2 and f"{len(BAD)} documents found, but none can be indexed" in result.err
    assert not (tmp_path / "index.db").exists()


def test_a_file_name_of_any_bytes(folder: Path) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.txt")
    try:
        (folder / "docs" / name).write_text("mammoth")
    except (OSError, UnicodeError):
        pytest.skip("this file system has only names of Unicode")
    (folder / "docs" / name).with_suffix(".md").write_bytes(b"\0")
    assert r"left out: docs/\udcff\x1b[31m.md" in (err := run(folder).err) and "\x1b" not in err
    assert len(found(folder, "mammoth")) == 1 and ": 7 documents, 1 left out\n" in run(folder).err


# ---- the file --------------------------------------------------------------------------------------------------------


def test_the_message_says_what_is_wrong_with_an_index(folder: Path) -> None:
    run(folder)
    path = folder / "index.db"
    data = path.read_bytes()
    for content, problem in (
        (b"", "is not an index of this version of tinygpt"),
        (b"hello", "it is damaged (file is not a database)"),
        (data[: len(data) // 2], "it is damaged (database disk image is malformed)"),
        (data[:71] + b"\x01" + data[72:], "is not an index of this version of tinygpt"),
    ):
        path.write_bytes(content)
        assert problem in refused(folder, *ASK, "docs", *DEFAULTS)
    path.unlink()  # then the database of another program
    connection = sqlite3.connect(folder / "index.db")
    connection.execute("CREATE TABLE passages (id)")
    connection.commit()
    connection.close()
    assert "is not an index of this version of tinygpt" in refused(folder, *ASK, "docs", *DEFAULTS)


def test_the_file_is_an_intact_database(folder: Path) -> None:
    """By the integrity checks of SQLite and of FTS5."""
    run(folder, "--embeddings=wordllama")
    (folder / "docs" / "notes.txt").unlink()
    run(folder, "--embeddings=wordllama")
    connection = sqlite3.connect(folder / "index.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
    (passages,), (vectors,) = (
        connection.execute(f"SELECT count(*) FROM {t}").fetchone() for t in ("passages", "vectors")
    )
    assert passages == vectors > 5
    connection.close()


def test_there_is_one_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks meanwhile waits for it; without a change, nobody has to."""
    run(folder)
    monkeypatch.setattr(index, "PATIENCE", 0.1)
    with file_lock(folder / "index.db", "index"):
        run(folder)
        (folder / "docs" / "notes.txt").unlink()
        message = refused(folder, *ASK, "docs", *DEFAULTS)
    assert re.search(rf"index\.db is in use by process {os.getpid()}", message)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot replace an open file")
def test_an_open_index_does_not_change_during_an_update(folder: Path) -> None:
    run(folder)
    with open_index(folder / "index.db") as opened:
        (folder / "docs" / "notes.txt").unlink()
        run(folder)
        assert search(opened, "Monday", 5)
    assert not found(folder, "Monday")


def test_wrong_tables_are_refused(folder: Path) -> None:
    run(folder)
    connection = sqlite3.connect(folder / "index.db")
    connection.execute("DROP TABLE passages")
    connection.commit()
    connection.close()
    with pytest.raises(TinyGPTError, match="is damaged"):
        found(folder, "cheese")
    (folder / "docs" / "notes.txt").unlink()
    assert "is damaged" in refused(folder, *ASK, "docs", *DEFAULTS)


@needs_fork
@pytest.mark.parametrize("moment", ["second document", "rename"])
def test_a_killed_process_leaves_the_old_index_and_no_text(folder: Path, harness: Any, moment: str) -> None:
    """What is left contains text of the documents, also of those that are gone when nothing is to be written."""
    run(folder)
    old = (folder / "index.db").read_bytes()
    for path in ("notes.txt", "report.md"):
        (folder / "docs" / path).write_text("The mammoth is extinct.")
    (folder / "docs" / "extinct.txt").write_text("The mammoth is extinct.")

    def before() -> None:
        os.chdir(folder)
        if moment == "rename":
            os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        else:
            add, calls = Index.add_passages, itertools.count()

            def dying(*args: Any) -> None:
                if next(calls):
                    os.kill(os.getpid(), signal.SIGKILL)
                add(*args)

            Index.add_passages = dying  # type: ignore[method-assign]

    child = harness.run([*ASK, "docs", *DEFAULTS], before)
    assert child.status == -signal.SIGKILL, child.output
    assert (folder / "index.db").read_bytes() == old and found(folder, "Monday")
    (left,) = folder.glob(".*.tmp")
    shutil.rmtree(folder / "docs")
    (folder / "docs").mkdir()
    (folder / "docs" / "notes.txt").write_text("The meeting is on Monday.")
    run(folder)
    assert not left.exists() and not [path for path in folder.rglob("*.*") if b"mammoth" in path.read_bytes()]


def test_a_full_disk_leaves_the_old_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite reports that the disk is full when the file has reached its largest number of pages."""
    run(folder)
    create = store.create

    def limited(connection: sqlite3.Connection, settings: dict[str, Any]) -> None:
        create(connection, settings)
        connection.execute("PRAGMA max_page_count = 20")

    monkeypatch.setattr(store, "create", limited)
    (folder / "docs" / "big.txt").write_text("".join(f"word{number} " for number in range(20_000)))
    before = listing(folder)
    result = cli_here(*ASK, "docs", *DEFAULTS, "--passage_size=100", cwd=folder)
    assert result.status == 1 and "index.db: no space left to write it" in result.err
    assert listing(folder) == before
