"""`tinygpt finetune`: the training loop, starting from a trained model."""

from tinygpt.config.schema import FinetuneConfig
from tinygpt.errors import TinyGPTError
from tinygpt.finetune.method import FineTuning
from tinygpt.train import train
from tinygpt.training.start import resumes


def finetune(config: FinetuneConfig) -> int:
    """Run the command; returns the exit status."""
    if not resumes(config):
        config.init_from = config.ckpt = base_model(config)
    return train(config, FineTuning(config))


def base_model(config: FinetuneConfig) -> str:
    """Choose the checkpoint to start from: `ckpt`, or `init_from` if the command line gives only that.

    In a config file, `init_from` records what an earlier run started from. Errors: TinyGPTError if the command line
    gives two different checkpoints.
    """
    if "init_from" not in config.flags or config.init_from in ("scratch", "auto"):
        return config.ckpt
    if "ckpt" in config.flags and config.ckpt != config.init_from:
        raise TinyGPTError(
            f"two base models: --ckpt={config.ckpt} and --init_from={config.init_from}", "give only --ckpt"
        )
    return config.init_from
