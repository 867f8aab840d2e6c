"""A trained model: it generates, classifies, answers and measures, one prompt or many at once."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch

from tinygpt import sample
from tinygpt.api.arguments import config_of, require_known
from tinygpt.base.configs.core import SampleConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted
from tinygpt.data.dataset import Dataset
from tinygpt.data.prompts import require_room
from tinygpt.data.rows import PairRows, Rows, TextRows
from tinygpt.examine.eval import classify, respond
from tinygpt.training.losses import mean_loss
from tinygpt.use.ask.answer import Answer, Reader
from tinygpt.use.ask.store import Passage

GENERATE = ("temperature", "top_k", "top_p", "seed", "stop", "plain", "skip_unknown")
SEED = 1337  # without another one, the same call gives the same text


class LoadedModel(sample.LoadedModel):
    """A trained model with its tokenizer; `load` makes one.

    tokenizer: `encode(text)` returns ids, uint16 (n,); `decode(ids)` returns text. config: the run's configuration.
    model: the torch module, whose call with ids, int64 (B, T), returns logits (B, T, V) and None.
    """

    def __repr__(self) -> str:
        size = f"{self.model.num_params():,} parameters"
        shape = self.model.config
        return f"<{self.name}: {size}, {counted(shape.n_layer, 'layer')}, context {shape.block_size}>"

    @overload
    def generate(self, prompt: str = ..., n: int = ..., *, stream: Literal[False] = ..., **options: Any) -> str: ...
    @overload
    def generate(self, prompt: str = ..., n: int = ..., *, stream: Literal[True], **options: Any) -> Iterator[str]: ...
    def generate(
        self, prompt: str = "\n", n: int = 500, *, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """Continue a prompt by up to `n` tokens, and return the new text; with `stream`, yield it in pieces.

        A model that answers prompts answers this one. options: temperature, top_k, top_p, seed, stop, plain and
        skip_unknown of `tinygpt sample`, with its defaults, but seed=1337. Errors: TinyGPTError for a character that
        the model does not know, and for a prompt that does not fit its context.
        """
        require_known("generate", options, GENERATE)
        settings = config_of(SampleConfig, start=prompt, max_new_tokens=n, **{"seed": SEED} | options)
        ids = self.encode(settings.start, settings.skip_unknown, settings.plain)
        text = (piece for (piece,) in self.samples(ids, settings))
        return text if stream else "".join(text)

    @torch.inference_mode()
    def logits(self, text: str) -> torch.Tensor:
        """Compute the logits of the token after each token of a text, float32 (T, V) on the CPU.

        A model that answers prompts reads the text as a prompt; the last row is of the first token of its response.
        Errors: as in `generate`.
        """
        ids = self.encode(text)
        require_room(ids, self.model.config.block_size)
        idx = torch.tensor([ids], device=self.compute.device)
        return self.model(idx)[0][0, :, : self.tokenizer.vocab_size].float().cpu()

    def loss(self, text: str | Dataset, response: str | None = None) -> float:
        """Compute the mean cross-entropy in nats per token: of a text, each token predicted once, of the response to
        a prompt and its end, or of a dataset's complete validation split. A text that is longer than the context is
        read in pieces of its length.

        Errors: TinyGPTError for unknown characters, and for a text without a token to predict.
        """
        rows: Rows
        if isinstance(text, Dataset):
            if response is not None:
                raise TinyGPTError("loss: a dataset has its own responses", "loss(dataset)")
            own = Dataset(str(text.folder.parent), text.name)  # which gets the model's tokenizer
            own.require_tokenizer(self.tokenizer, self.name, "the dataset that the model was trained on")
            rows = own.sources["val"]
            if own.pairs:
                rows.require(self.model.config.block_size, f"{own.folder}/val.bin")
        elif response is None:
            ids = self.tokenizer.encode(text)
            rows = TextRows(np.concatenate((self.tokenizer.start, ids)))
        else:
            self._require_pairs()
            rows = PairRows(self.tokenizer.encode_pair(text, response), self.tokenizer)
            rows.require(self.model.config.block_size, "the prompt and its response")
        if len(rows.tokens) < 2:
            raise TinyGPTError("the text has no second token to predict", "give a longer text")
        return mean_loss(self.model, rows, rows.all_rows(self.model.config.block_size), self.compute)

    def classify(self, prompt: str, labels: list[str] | None = None) -> dict[str, float]:
        """Compute the probability of each label as the response to a prompt, the most probable first.

        labels: by default those of the dataset that the model was trained on. Errors: TinyGPTError if it has none, and
        for a model that does not answer prompts.
        """
        labels = self._labels(labels)
        scores, _ = classify.label_scores(self.model, self.tokenizer, [prompt], labels)
        probabilities = dict(zip(labels, classify.probabilities(scores)[0].tolist(), strict=True))
        return dict(sorted(probabilities.items(), key=lambda item: -item[1]))

    def probabilities(self, prompts: Sequence[str], labels: Sequence[str] | None = None) -> np.ndarray:
        """Compute the probabilities of labels as responses to many prompts, float64 (n, L).

        Characters that the model does not know are left out. labels and errors: as in `classify`.
        """
        return classify.gpt_classifier(self.model, self.tokenizer, self._labels(labels))(prompts)

    def responses(self, prompts: Sequence[str], n: int) -> tuple[list[str], np.ndarray]:
        """Answer many prompts by greedy decoding with at most `n` tokens: the responses, and their probabilities,
        float64 (n,). Characters that the model does not know are left out. Errors: TinyGPTError as in `classify`."""
        self._require_pairs()
        return respond.responses(self.model, self.tokenizer, prompts, n, skip_unknown=True)

    def log_probabilities(self, prefix: str, continuations: Sequence[str]) -> np.ndarray:
        """Compute the log-probabilities of continuations of a text, in nats, float64 (n,).

        A model that answers prompts reads the text as a prompt, and the continuations as responses with their end.
        Errors: as in `generate`.
        """
        return classify.continuation_scores(self.model, self.tokenizer, prefix, continuations)

    def read(self, question: str, passages: Sequence[str | Passage]) -> Answer:
        """Answer a question from passages, the most relevant first: text (empty: none answers it), probability, and the
        number of the passage that is cited. A model that was trained to copy answers quotes a passage.

        Errors: TinyGPTError as in `classify`, and for a question that leaves no room for a passage.
        """
        reader = Reader(self.model, self.tokenizer, str(self.config.get("dataset", "")))
        read = reader.quoted if reader.copies else reader.read
        return read(question, [Passage(text=each) if isinstance(each, str) else each for each in passages])

    def _labels(self, labels: Sequence[str] | None) -> list[str]:
        self._require_pairs()
        if labels is None:
            name = str(self.config.get("dataset", ""))
            labels = Dataset(self.data_dir, name).labels
        if not labels:
            raise TinyGPTError("this model was not trained on labels", 'classify(prompt, labels=["one", "other"])')
        return list(labels)

    def _require_pairs(self) -> None:
        if self.tokenizer.pair is None:
            raise TinyGPTError("this model continues text: it was not trained on prompts", "generate or loss(text)")
