"""The command to try next with a model.

print(f"next: {next_command(checkpoint, 'out', data_dir(config, checkpoint.config, 'out'))}")
"""

import contextlib
from pathlib import Path

from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config import suggest
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import PROMPT
from tinygpt.errors import TinyGPTError


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
