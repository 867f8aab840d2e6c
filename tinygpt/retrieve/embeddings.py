"""Turn texts into vectors: with a table of word vectors, or with a model of tinygpt.

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

from tinygpt.errors import TinyGPTError, missing

NONE, WORDLLAMA = "none", "wordllama"  # anything else is the path of a checkpoint
BATCH = 64  # texts, or windows of a model's context


def installed() -> bool:
    """Return whether the packages that `wordllama` needs are installed."""
    return all(importlib.util.find_spec(package) for package in (WORDLLAMA, "tokenizers", "safetensors"))


class WordLlama:
    """Embeddings: the mean of the tokens' vectors in WordLlama's table. `name` and `fingerprint` identify the table."""

    name, fingerprint = WORDLLAMA, "l2_supercat_256"

    def __init__(self) -> None:
        if not installed():
            raise missing(WORDLLAMA, "the embedding table")
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        spec = importlib.util.find_spec(WORDLLAMA)  # does not import it
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        try:
            tensors = load_file(folder / "weights" / f"{self.fingerprint}.safetensors")
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
        return normalised(means)


class HiddenStates:
    """Embeddings: the mean of a model's hidden states, after its final norm, over the tokens of a text.

    A text longer than the context is read in windows. Characters outside the model's vocabulary are left out.
    """

    def __init__(self, ckpt: str) -> None:
        from tinygpt import device
        from tinygpt.checkpoint import store
        from tinygpt.checkpoint.adapter import weights_fingerprint
        from tinygpt.generate import refuse_diverged

        checkpoint = store.load(ckpt)
        self.name, self.fingerprint = ckpt, weights_fingerprint(checkpoint.model)
        self._tokenizer = store.tokenizer_of(checkpoint, ckpt, "data")
        self._compute = device.choose_for_inference("auto", "auto", checkpoint.num_params)
        self._model = checkpoint.for_inference(self._compute)
        refuse_diverged(self._model, ckpt)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts, as WordLlama.vectors does."""
        import torch

        context = self._model.config.block_size
        windows: list[tuple[int, np.ndarray]] = []  # (index of the text, token ids)
        for text_index, text in enumerate(texts):
            ids = self._tokenizer.encode(text, skip_unknown=True)
            windows += [(text_index, ids[start : start + context]) for start in range(0, len(ids), context)]
        windows.sort(key=lambda window: len(window[1]))  # so that little is padded
        sums = np.zeros((len(texts), self._model.config.n_embd), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(windows), BATCH):
                batch = windows[start : start + BATCH]
                # a causal model ignores the padding, since it follows
                padded = np.zeros((len(batch), len(batch[-1][1])), dtype=np.int64)
                for row, (_, ids) in zip(padded, batch, strict=True):
                    row[: len(ids)] = ids
                states = self._model.residual(torch.from_numpy(padded).to(self._compute.device))
                states = self._model.transformer["ln_f"](states).float().cpu().numpy()
                for state, (text_index, ids) in zip(states, batch, strict=True):
                    sums[text_index] += state[: len(ids)].sum(axis=0)
        return normalised(sums)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Scale the rows to length 1; a row of zeros stays as it is."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


Embeddings = WordLlama | HiddenStates  # vectors of different embeddings cannot be compared


def load(name: str) -> Embeddings | None:
    """Load embeddings: None for `none`, else `wordllama` or those of a checkpoint. Errors: TinyGPTError."""
    if name == NONE:
        return None
    return WordLlama() if name == WORDLLAMA else HiddenStates(name)
