"""A run and one of its outputs, loaded and checked for `tinygpt why`.

explained = load_run(config)
x, y = output(explained, ("SQ *BLUE HERON", "coffee"))   # int64 (n, T) each; y is -1 outside the outputs
"""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import SESSION, FinetuneConfig, PrepareConfig, TrainConfig
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.input_files import input_files
from tinygpt.data.pairs import read
from tinygpt.data.prompts import encode_prompt
from tinygpt.data.rows import PairRows, Rows
from tinygpt.data.sheets import PAIR_FILES
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.training.start import choose_compute

Output = tuple[Tensor, Tensor]  # inputs and targets, int64 (n, T) each: see `output`


class Explained(NamedTuple):
    """A run whose output is explained: that of ckpt.pt, the model that `tinygpt sample` uses."""

    out: Path
    checkpoint: store.Checkpoint
    config: TrainConfig  # complete, as the run stored it; data_dir is where the dataset is now
    compute: Compute  # on which the run is trained again
    dataset: Dataset
    source: Rows  # its training rows

    @property
    def rows(self) -> np.ndarray:
        """Return the indices of all training rows: examples, or passages of block_size tokens."""
        return self.source.all_rows(self.config.block_size)


def load_run(config: WhyConfig) -> Explained:
    """Open a run and its dataset. Errors: TinyGPTError if it cannot be explained, with the reason."""
    path = Path(config.run, "ckpt.pt")
    if Path(config.run).is_file():
        problem = f"{config.run} is a file; why explains the model ckpt.pt of a run's folder"
        raise TinyGPTError(problem, suggest.command("why", str(Path(config.run).parent)))
    checkpoint = store.load(path)
    recorded = checkpoint.config
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TinyGPTError("why works in one process, not under torchrun", suggest.command("why", config.run))
    if recorded.get("lora_rank") or recorded.get("replay"):
        what = "replayed rows of the base model's data" if recorded.get("replay") else "LoRA adapters"
        hint = "tinygpt finetune with --lora_rank=0 --replay=0 --out_dir=out-why, which trains all weights"
        raise TinyGPTError(f"{config.run} was trained with {what}, which why does not support", hint)
    if recorded.get("teacher"):
        problem = f"{config.run} also learned from a teacher's probabilities, which no training row explains"
        raise TinyGPTError(problem, "tinygpt train with --teacher= --out_dir=out-why, on the training rows alone")
    if not checkpoint.step or not recorded.get("dataset") or checkpoint.tokenizer is None:
        problem = f"{path} is not a model that tinygpt has trained: it names no step after 0, or no dataset"
        raise TinyGPTError(problem, "give the folder of a run of tinygpt train or finetune that improved")
    kind = FinetuneConfig if "ckpt" in recorded else TrainConfig
    names = {field.name for field in dataclasses.fields(kind)} - {"config", *SESSION}
    # block_size counts as given, since a fine-tuned model can have a shorter one than its base
    settings: dict[str, Any] = {name: value for name, value in recorded.items() if name in names}
    run = kind(**settings, given=frozenset({"block_size"}))
    if problems := list(run.problems()):
        raise TinyGPTError(f"{path} has settings that cannot be used: {'; '.join(problems)}", "another run")
    run.data_dir = data_dir(config, recorded, path)
    run.device = config.device or run.device
    dataset = Dataset(run.data_dir, run.dataset)
    if not dataset.has_checksums(checkpoint.data):
        problem = f"dataset {dataset.name!r} has been prepared from different text since {path} was written"
        raise TinyGPTError(problem, "prepare the old text again, or train again")
    dataset.require_tokenizer(tokenizer_from_dict(checkpoint.tokenizer, str(path)), str(path), "train again")
    source = dataset.sources["train"]
    if isinstance(run, FinetuneConfig) and run.examples:
        source = source.first(run.examples)
    source = source.arranged(run.group_by_length, run.sampling == "epochs")
    compute = choose_compute(run, checkpoint.training)
    if compute.device.type == "mps":
        raise TinyGPTError("why does not support MPS", "--device=cpu")
    return Explained(Path(config.run), checkpoint, run, compute, dataset, source)


def output(explained: Explained, *pairs: tuple[str, str]) -> Output:
    """Encode prompts with their responses as training rows: inputs and targets, which are the responses and their ends;
    of plain text a single beginning and its continuation.

    Errors: TinyGPTError for no pair, an empty text, one outside the vocabulary, and more tokens than the context has.
    """
    tokenizer = explained.dataset.tokenizer
    block_size = explained.config.block_size
    if not pairs:
        raise TinyGPTError("there is no output to explain", "give prompts with their responses")
    if len(pairs) > 1 and not explained.dataset.pairs:
        raise TinyGPTError("a run on plain text explains one output at a time", "give one (start, text)")
    if not all(text.strip() for _, text in pairs):
        raise TinyGPTError("why explains an output of the model, but --text is empty", '--start "PROMPT" --text OUTPUT')
    if explained.dataset.pairs:
        for start, _ in pairs:
            encode_prompt(start, tokenizer)  # refuses an empty prompt
        rows = [tokenizer.encode_pair(start.strip(), text.strip()) for start, text in pairs]
        x, y = PairRows(np.concatenate(rows), tokenizer).rows(np.arange(len(rows)), max(map(len, rows)) - 1)
    else:
        ((start, text),) = pairs
        first = encode_prompt(start, tokenizer, plain=True)
        tokens = np.array([*first, *tokenizer.encode(text)], dtype=np.int64)[None]
        x = tokens[:, :-1]
        y = tokens[:, 1:].copy()
        y[:, : len(first) - 1] = -1
    if x.shape[1] > block_size:
        problem = f"--start and --text have {x.shape[1] + 1} tokens; the run was trained on at most {block_size + 1}"
        raise TinyGPTError(problem, "shorten --start")
    return torch.from_numpy(x), torch.from_numpy(y)


def row_numbers(explained: Explained, rows: np.ndarray | Sequence[int]) -> np.ndarray:
    """Return the numbers of training rows, int64 (n,). Errors: TinyGPTError for a mask, and for a row that the run does
    not have."""
    numbers = np.asarray(rows)
    if numbers.dtype == bool:
        raise TinyGPTError("a mask does not number training rows", "np.flatnonzero(mask)")
    if len(wrong := np.setdiff1d(numbers, np.arange(len(explained.rows)))):
        raise TinyGPTError(f"no training row {wrong[0]}", f"rows are numbered from 0 to {len(explained.rows) - 1:,}")
    return numbers.astype(np.int64)


def texts_of(explained: Explained) -> list[str]:
    """Return the text of each training row: `prompt -> response`, or the passage that the row predicts."""
    if explained.dataset.pairs:
        return [" -> ".join(pair) for pair in explained.source.examples(explained.dataset.tokenizer)]
    tokens = explained.source.tokens
    size = explained.config.block_size
    decode = explained.dataset.tokenizer.decode
    return [decode(tokens[start + 1 : start + 1 + size].tolist()) for start in explained.rows.tolist()]


def places_of(explained: Explained, numbers: list[int]) -> dict[int, str]:
    """Name the place of some training rows: the file and line of an example if the files are still there, else its
    number in the training split; the line of the training text where a passage begins."""
    dataset = explained.dataset
    if not dataset.pairs:
        tokens = explained.source.tokens
        decode = dataset.tokenizer.decode
        starts = {number: int(explained.rows[number]) + 1 for number in numbers}
        lines = {number: decode(tokens[:start].tolist()).count("\n") + 1 for number, start in starts.items()}
        return {number: f"line {line} of the training text" for number, line in lines.items()}
    pairs = explained.source.examples(dataset.tokenizer)
    known = lines_of_pairs(dataset)
    in_file: dict[int, str] = {}
    for number, pair in enumerate(pairs):  # equal examples are in the order of their lines
        if known[pair]:
            in_file[number] = known[pair].pop(0)
    return {number: in_file.get(number, f"training example {number + 1:,}") for number in numbers}


def lines_of_pairs(dataset: Dataset) -> dict[tuple[str, str], list[str]]:
    """Find the lines of each pair in the files that the dataset was made of; none if they are gone or unreadable."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    try:
        options = PrepareConfig(dataset.name, **dataset.meta.get("options", {}))
        paths = input_files(options.input, PAIR_FILES) if options.input else []
        for row, pair in read(paths, options, quiet=True):
            places[pair].append(row.location)
    except (TinyGPTError, OSError, ValueError, TypeError):
        places.clear()
    return places
