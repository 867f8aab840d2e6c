"""The data of a fine-tuning run: its rows, and the base model's dataset for replay and for measuring forgetting.

tuning = Tuning.of(config, dataset, checkpoint, saved, name)
"""

from typing import Any, NamedTuple

from tinygpt.base.configs.core import FinetuneConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import Batches, MixedRows


class Tuning(NamedTuple):
    """Settings, rows and base model of a fine-tuning run, in addition to those of a training run."""

    config: FinetuneConfig
    rows: Batches  # from which batches are drawn
    base_data: Dataset | None  # the base model's dataset, if it is prepared here
    state: dict[str, Any]  # of the base in checkpoints: the weights' fingerprint ("base"), checksums of replayed data

    @classmethod
    def of(
        cls, config: FinetuneConfig, dataset: Dataset, base: Checkpoint | None, saved: dict[str, Any], name: str
    ) -> "Tuning":
        """Open the data of a run, which starts from the checkpoint `base`, in messages `name`. saved: the training
        state of a run that is resumed. Errors: TinyGPTError as in `base_dataset`."""
        fingerprint = saved.get("base", "")
        if config.lora_rank and not saved:
            assert base is not None
            fingerprint = weights_fingerprint(base.model)
        base_data = base_dataset(config, dataset, saved.get("replayed"), name)
        if config.examples:
            dataset.sources["train"] = dataset.sources["train"].first(config.examples)
            dataset.require(config.block_size)
        rows: Batches = dataset.sources["train"]
        replayed = {}
        if base_data and config.replay:
            rows = MixedRows(rows, base_data.sources["train"], config.replay)
            replayed = base_data.meta["sha256"]
        return cls(config, rows, base_data, {"base": fingerprint, "replayed": replayed})


def base_dataset(config: FinetuneConfig, dataset: Dataset, replayed: Any, name: str) -> Dataset | None:
    """Open the dataset of the base model, which is next to the other one; None if it is not prepared here. Errors:
    TinyGPTError if replay needs it. replayed: its checksums in the run that is resumed from the checkpoint `name`."""
    try:
        if not config.base_dataset:
            raise TinyGPTError("replay needs the base model's dataset", "--base_dataset=NAME")
        base = Dataset(str(dataset.folder.parent), config.base_dataset)
        adopted = base.adopt_tokenizer(dataset.tokenizer)
        base.require(config.block_size)
        if config.replay and replayed and not base.has_checksums(replayed):
            problem = f"replay: dataset {base.name!r} has been prepared from different text since {name} was written"
            raise TinyGPTError(problem, "prepare the old text again")
        if not adopted:
            problem = f"replay: dataset {base.name!r} has tokens outside the base model's vocabulary"
            raise TinyGPTError(problem, "--base_dataset=NAME of the text that the base model was trained on")
        return base
    except TinyGPTError:
        if config.replay:
            raise
        return None
