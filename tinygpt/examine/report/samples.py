"""Samples that a model generates, and the share of them that is quoted from the training text (overlap.py)."""

import contextlib
import math
from typing import Any

import torch

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import load
from tinygpt.data.prompts import encode_prompt
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.examine.report.overlap import SHORTEST, TrainingText, marked
from tinygpt.examine.report.predictions import EXAMPLES
from tinygpt.generate import Sampling, answer, generate
from tinygpt.model import GPT

HELD_OUT = 20_000  # tokens of the validation text that are searched for quotations, to compare the samples with


def samples(entries: list[dict[str, Any]], training: TrainingText | None) -> list[dict[str, Any]]:
    """Cut the samples that `train` generated into pieces, and mark those that are quotations from the training text."""
    return [
        {
            "step": entry["step"],
            "prompt": entry["prompt"],
            "pieces": marked(entry["text"], training.stretches(entry["text"]) if training else []),
            "share": training.share(entry["text"]) if training else math.nan,
        }
        for entry in entries
        if entry["kind"] == "sample"
    ]


def memorised(run: LoadedRun, training: TrainingText | None, quote: bool) -> dict[str, Any]:
    """Measure the fraction of quotations in new samples of the best and the newest model, and in the validation text.

    Returns {"texts": whether any sample is long enough, "shares": {name: (fraction, characters)}, "longest": [(length,
    name, text), ...] of the quotations in the samples, none without `quote`, "characters": length of the windows};
    empty without a training text, and for a model that is too large for a page: its samples would take minutes.
    """
    if training is None or run.is_large:
        return {}
    texts = {f"best model (step {run.checkpoint.step:,})": fresh(run, run.model)}
    with contextlib.suppress(TinyGPTError):  # a folder with the best model alone
        last = load(run.path / "last.pt")
        if last.step > run.checkpoint.step:
            texts[f"newest model (step {last.step:,})"] = fresh(run, last.for_inference(run.compute))
    longest = [
        (end - start, name, text[start:end])
        for name, group in texts.items()
        for text in group
        for start, end in training.stretches(text)
        if quote
    ]
    if pairs := run.held_out_pairs():
        texts["validation responses"] = [response for _, response in pairs]
    else:
        texts["validation text"] = [run.tokenizer.decode(run.split("val")[:HELD_OUT].tolist())]
    return {
        "texts": any(len(text) >= SHORTEST for group in texts.values() for text in group),
        "shares": {name: (training.share(*group), sum(map(len, group))) for name, group in texts.items()},
        "longest": sorted(longest, key=lambda quotation: -quotation[0])[:5],
        "characters": SHORTEST,
    }


def fresh(run: LoadedRun, model: GPT, count: int = 4, length: int = 500) -> list[str]:
    """Generate text: `count` samples at temperature 0.8, or for a model that answers prompts, greedy responses."""
    if run.answers:
        return [answer(model, run.tokenizer, prompt) for prompt, _ in run.held_out_pairs()[:EXAMPLES]]
    start = torch.tensor([encode_prompt("", run.tokenizer, plain=True)] * count, device=run.compute.device)
    choice = Sampling(temperature=0.8, top_k=200)
    token_ids = torch.stack(list(generate(model, start, length, choice, run.tokenizer.vocab_size)), dim=1)
    return [run.tokenizer.decode(row) for row in token_ids.tolist()]


def opening(run: LoadedRun) -> str:
    """Make the first content of the text box: words that the model generates, or a prompt of the validation split."""
    if run.answers:
        return next((prompt for prompt, _ in run.held_out_pairs()), "")
    (text,) = fresh(run, run.model, count=1, length=80)
    text = text.lstrip()[:60]
    return text.rpartition(" ")[0] or text
