"""The model's predictions of passages of both splits: the loss, rank and probabilities of each token."""

import math
from typing import Any

import numpy as np
import torch

from tinygpt.data.rows import PairRows
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.generate import require_finite

PASSAGE = 600  # tokens of each split whose losses are shown
EXAMPLES = 8  # examples of each split whose losses are shown, for prompts with responses


def passages(run: LoadedRun) -> dict[str, list[dict[str, Any]]]:
    """Predict a passage of each split, train and val: a cell for each token, see `predictions`."""
    if run.dataset is None:
        return {}
    cells: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for split in cells:
        source = run.dataset.sources[split]
        tokens = run.split(split)
        if isinstance(source, PairRows):
            for start, response, end in list(zip(source.starts, source.responses, source.ends, strict=True))[:EXAMPLES]:
                cells[split] += predictions(run, tokens[start:end], 1, int(response - start))
        else:
            first = max(1, min(len(tokens) // 2, len(tokens) - PASSAGE))
            if "\n" in (text := run.tokenizer.decode(tokens[first : first + 200].tolist()))[:-1]:
                first += len(run.tokenizer.encode(text[: text.index("\n") + 1]))  # begin at the start of a line
            start = max(0, first - run.context)
            cells[split] = predictions(run, tokens[start : first + PASSAGE], first - start)[first - start :]
    return cells


@torch.inference_mode()
def predictions(run: LoadedRun, tokens: np.ndarray, first: int, prompt_end: int = 0) -> list[dict[str, Any]]:
    """Make a cell for each token: {"text"}, and from position `first` and after `prompt_end` also the prediction.

    A prediction is {"p", "loss", "rank" of the token, "top": [(text, probability), ...] of the five most probable}.
    Its context is at least half of `run.context`, or all earlier tokens if there are fewer.
    """
    count = len(tokens)
    half = max(1, run.context // 2)
    ids = torch.from_numpy(tokens.astype(np.int64)).to(run.compute.device)
    names = [run.tokenizer.decode([token]) for token in tokens.tolist()]
    cells: list[dict[str, Any]] = [{"text": name} for name in names]
    for start in range(first, count, half):
        low = max(0, start - max(1, run.context - half))
        high = min(start + half, count)
        logits = run.model(ids[None, low : high - 1])[0][0, start - low - 1 :, : run.tokenizer.vocab_size]
        require_finite(logits)
        probabilities = logits.softmax(-1)
        best = logits.topk(min(5, run.tokenizer.vocab_size)).indices
        token_probabilities = probabilities.gather(1, ids[start:high, None])
        ranks = (probabilities > token_probabilities).sum(1) + 1
        for row, position in enumerate(range(start, high)):
            if position > prompt_end:
                top = [(run.tokenizer.decode([int(i)]), round(probabilities[row, i].item(), 4)) for i in best[row]]
                p = token_probabilities[row].item()
                cells[position] |= {"p": p, "loss": -math.log(max(p, 1e-9)), "rank": int(ranks[row]), "top": top}
    return cells
