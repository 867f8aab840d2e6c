"""Turn texts into vectors with a table of word vectors.

The similarity of two texts is the cosine of their vectors. `wordllama` is a static table of 256 dimensions (WordLlama's
l2_supercat). Its package's own loader downloads the tokenizer, which the package has in another folder; so this module
reads table and tokenizer directly.

embeddings = load("wordllama")
embeddings.vectors(["How long is the warranty?"])       # float32 (1, 256), of length 1
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinygpt.base.errors import TinyGPTError, missing

NONE, WORDLLAMA = "none", "wordllama"
TABLE = "l2_supercat_256"


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

        spec = importlib.util.find_spec(WORDLLAMA)  # does not import it
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
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


def load(name: str) -> WordLlama | None:
    """Load the embeddings `wordllama`; None for `none`. Errors: TinyGPTError."""
    return WordLlama() if name == WORDLLAMA else None
