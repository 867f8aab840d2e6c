"""The dataset that a model was trained on: its folder, and the command to try next.

folder = data_dir(config, checkpoint.config)            # --data_dir, or the one in the run's configuration
print(f"next: {next_command(checkpoint, 'out', folder)}")
"""

import contextlib
from pathlib import Path
from typing import Any

from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config import suggest
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import PROMPT
from tinygpt.errors import TinyGPTError


def data_dir(config: Any, recorded: dict[str, Any]) -> str:
    """Choose the folder of the datasets: the option --data_dir if it is given, else that of the run's configuration.

    A configuration from another machine may name a folder that does not exist here. Then the default is used.
    """
    folder = recorded.get("data_dir")
    given = "data_dir" in config.given or config.data_dir != type(config).data_dir  # the second: made in Python
    return str(config.data_dir if given or not isinstance(folder, str) or not Path(folder).is_dir() else folder)


def next_command(model: Checkpoint, out: str | Path, folder: str) -> str:
    """Command to try with a model whose best checkpoint is in `out`; its dataset is looked for in `folder`."""
    tokenizer = model.tokenizer or {}
    answers_prompts = bool(tokenizer.get("pair")) or PROMPT in tokenizer.get("symbols", [])
    labelled, prompt = False, None
    if answers_prompts:
        with contextlib.suppress(TinyGPTError):
            dataset = Dataset(folder, str(model.config.get("dataset", "")))
            labelled = bool(dataset.labels)
            prompt = next((prompt for prompt, _ in dataset.sources["val"].texts(dataset.tokenizer)), None)
    return suggest.next_command(model.config | {"data_dir": folder}, out, answers_prompts, labelled, prompt)
