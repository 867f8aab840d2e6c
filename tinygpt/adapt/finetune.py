"""`tinygpt finetune`: train on from a model, all of its weights or LoRA adapters (Hu et al. 2021)."""

from tinygpt.base.configs.core import FinetuneConfig
from tinygpt.train import train


def finetune(config: FinetuneConfig) -> int:
    """Run the command, and return the exit status. The loop is that of `train`, with the base model and the replayed
    data of training/tuning.py, and the comparison of training/compare.py. Errors: as those of `train`."""
    return train(config)
