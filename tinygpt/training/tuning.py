"""The parts of a fine-tuning run: LoRA adapters next to frozen weights, and replayed rows of the base model's data.

tuning = Tuning.of(start, dataset, model, new_tokens)
"""

from typing import Any, NamedTuple, cast

import torch

from tinygpt.base.configs.core import FinetuneConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.checkpoint.lora import LoRA, attach
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import Batches, MixedRows
from tinygpt.model import GPT
from tinygpt.training.start import Start


class Tuning(NamedTuple):
    """Settings, rows and base model of a fine-tuning run, in addition to those of a training run."""

    config: FinetuneConfig
    rows: Batches  # from which batches are drawn
    base_data: Dataset | None  # the base model's dataset, if it is prepared here
    base_fingerprint: str  # of the base model's weights, to which an adapter belongs

    @classmethod
    def of(cls, start: Start, dataset: Dataset, model: GPT, new_tokens: int) -> "Tuning":
        """Prepare rows and model of a run. The last `new_tokens` embeddings of the model are new."""
        config, fingerprint = cast(FinetuneConfig, start.config), str(start.saved.get("base", ""))
        if config.lora_rank and not start.resuming:
            assert start.checkpoint is not None
            fingerprint = weights_fingerprint(start.checkpoint.model)
            torch.manual_seed(config.seed)
            adapter = LoRA(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
            attach(model, adapter, new_tokens)
        base_data = base_dataset(config, dataset, start)
        if config.examples:
            dataset.sources["train"] = dataset.sources["train"].first(config.examples)
            dataset.require(config.block_size)
        rows: Batches = dataset.sources["train"]
        if base_data and config.replay:
            rows = MixedRows(rows, base_data.sources["train"], config.replay)
        return cls(config, rows, base_data, fingerprint)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the fingerprint of the base model, and the checksums of replayed data."""
        replayed = self.base_data.meta["sha256"] if self.base_data and self.config.replay else {}
        return {"base": self.base_fingerprint, "replayed": replayed}


def base_dataset(config: FinetuneConfig, dataset: Dataset, start: Start) -> Dataset | None:
    """Open the dataset of the base model; None if it is not prepared here. Errors: TinyGPTError if replay needs it."""
    try:
        if not config.base_dataset:
            raise TinyGPTError("replay needs the base model's dataset", "--base_dataset=NAME")
        base = start.dataset(config.base_dataset)
        adopted = base.adopt_tokenizer(dataset.tokenizer)
        base.require(config.block_size)
        replayed = start.saved.get("replayed")
        if config.replay and replayed and not base.has_checksums(replayed):
            since = f"since {start.checkpoint_name} was written"
            problem = f"replay: dataset {base.name!r} has been prepared from different text {since}"
            raise TinyGPTError(problem, "prepare the old text again")
        if not adopted:
            problem = f"replay: dataset {base.name!r} has tokens outside the base model's vocabulary"
            raise TinyGPTError(problem, "--base_dataset=NAME of the text that the base model was trained on")
        return base
    except TinyGPTError:
        if config.replay:
            raise
        return None
