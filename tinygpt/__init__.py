"""tinygpt: train tiny character-level GPTs on a laptop, and see what they do.

From Python:

    import tinygpt

    model = tinygpt.load("out")                      # a run's folder, or a checkpoint
    print(model.generate("ROMEO:", 200, temperature=0.8))
    model.loss("To be, or not to be")                # nats per token; also logits(text), classify(prompt)

    from tinygpt import api                          # prepare, train, finetune, evaluate and plot, as functions

    run = api.train("configs/shakespeare_char.yaml", max_iters=500)

help(tinygpt.api) lists what they take, docs/how-to/python.md has examples, and `tinygpt --help` is the command line.

To understand how a GPT is trained, read model.py with options.py, prepare.py, data/rows.py, train.py (`loop` first)
and training/optimizer.py, then generate.py and sample.py. fast/ computes the same, faster on a CPU.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tinygpt.base import __version__ as __version__
from tinygpt.base.errors import TinyGPTError

if TYPE_CHECKING:
    from pathlib import Path

    from tinygpt import api
    from tinygpt.api import LoadedModel

__all__ = ["TinyGPTError", "api", "load"]


def load(path: "str | Path" = "out", **options: Any) -> "LoadedModel":
    """Load a trained model: a checkpoint, or the best one of a run's folder.

    Returns an object with generate(prompt, n), logits(text), loss(text), classify(prompt), tokenizer and config.
    options: adapter, device, dtype, threads, data_dir, as in `tinygpt sample --help`. Errors: TinyGPTError.
    """
    return importlib.import_module("tinygpt.api").load(path, **options)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import tinygpt.api when it is first used: it imports torch, which takes seconds."""
        if name == "api":
            return importlib.import_module("tinygpt.api")
        raise AttributeError(f"module 'tinygpt' has no attribute {name!r}")
