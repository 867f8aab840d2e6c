"""A run's folder with its best model loaded, from which the other modules compute the values of a page."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from tinygpt.base.configs.adapt import ExportConfig
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import without_folders
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.tokenizer import END, CharTokenizer
from tinygpt.examine.report.overlap import TrainingText
from tinygpt.generate import refuse_diverged
from tinygpt.model import GPT

CONTEXT = 1024  # most tokens read at once for the losses of a passage: with 135 M parameters they take 25 s on one core
MOST_TEXT = 10_000_000  # first tokens of the training text, in which quotations are looked up
SMALL = 4_000_000  # most parameters of a model for which one thread is enough
LARGEST = 9_000_000  # most parameters of a model in a page: 24 MB, which Node runs at 80 tokens per second on one core


class LoadedRun(Loaded):
    """A run's folder with its best model, the adapter of `export`, and its dataset if that is here.

    missing: why there is no dataset, or in what it differs from that of the run.
    """

    def __init__(self, path: str, config: ReportConfig | ExportConfig) -> None:
        """Errors: TinyGPTError for a missing checkpoint or tokenizer, and for a model that diverged."""
        self.checkpoint = load_model(path, config.adapter if isinstance(config, ExportConfig) else "")
        settings = InferenceConfig(device="auto", dtype="float32", threads="")
        data_folder = data_dir(config, self.checkpoint.config, path)
        super().__init__(self.checkpoint, path, settings, data_folder)
        refuse_diverged(self.model, path)
        self.name = self.path.name or self.path.resolve().name
        self.missing = ""
        self.dataset: Dataset | None = None
        name = str(self.config.get("dataset", ""))
        try:
            dataset = Dataset(data_folder, name)
            if not dataset.adopt_tokenizer(self.tokenizer):
                self.missing = f"dataset {name!r} and this model have different vocabularies"
                return
            self.dataset = dataset
            if self.checkpoint.data and not dataset.has_checksums(self.checkpoint.data):
                self.missing = f"dataset {name!r} is not the text that the model was trained on"
        except TinyGPTError as error:
            self.missing = error.message.replace(data_folder, without_folders(data_folder))

    @property
    def answers(self) -> bool:
        return self.tokenizer.pair is not None and self.tokenizer.stop == END

    @property
    def is_large(self) -> bool:
        """Return whether the model is too large for a page, which then has no model and no newly generated text."""
        return self.model.num_params() > LARGEST

    @property
    def unit(self) -> str:
        return "character" if isinstance(self.tokenizer, CharTokenizer) else "token"

    @property
    def context(self) -> int:
        """Return the context length for the losses of a passage."""
        return min(self.model.config.block_size, CONTEXT)

    def split(self, name: str) -> np.ndarray:
        assert self.dataset is not None
        return self.dataset.splits[name]

    def training_text(self) -> TrainingText:
        return TrainingText(self.tokenizer.decode(self.split("train")[:MOST_TEXT].tolist()))

    def held_out_pairs(self) -> list[tuple[str, str]]:
        """Return the prompts and responses of the validation split; none for plain text or without the dataset."""
        return self.dataset.sources["val"].examples(self.tokenizer) if self.dataset else []


@contextlib.contextmanager
def one_thread_if_small(model: GPT) -> Iterator[None]:
    """Compute with one thread if the model is small: its matrix products are too small to divide (see threads.py).

    On two busy cores, the report of the 0.8 M model took 11 s with one thread and 50 s with two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if model.num_params() < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
