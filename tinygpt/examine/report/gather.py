"""The values of a page: what the template shows of a run, or of a model alone."""

import contextlib
import math
from pathlib import Path
from typing import Any

from tinygpt.base.configs import suggest
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import without_folders
from tinygpt.base.terminal import counted
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.report import packed_models, samples
from tinygpt.examine.report.curves import curves, draw_curves
from tinygpt.examine.report.embedding_map import embedding_map
from tinygpt.examine.report.loaded_run import LoadedRun, one_thread_if_small
from tinygpt.examine.report.one_step import one_step
from tinygpt.examine.report.predictions import passages
from tinygpt.examine.report.summary import reproduce, summary
from tinygpt.training.log import read_run


def gather(folders: list[Path], config: ReportConfig) -> dict[str, Any]:
    """Collect the values of a page for the template: it describes the run in the first folder."""
    entries, settings = read_run(folders[0])
    settings = without_folders(settings)
    run = LoadedRun(str(folders[0]), config)
    with one_thread_if_small(run.model):
        run_curves = [curves(folder) for folder in folders]
        training = run.training_text() if run.dataset else None
        values: dict[str, Any] = {
            "kind": "report",
            "title": config.title,
            "summary": summary(run, entries, settings),
            "runs": run_curves,
            "wide": draw_curves(run_curves, 860, run.unit),
            "narrow": draw_curves(run_curves, 360, run.unit),
            "samples": [] if config.no_text else samples.samples(entries, training),
            "passages": {} if config.no_text else passages(run),
            "step": {} if config.no_text else one_step(run),
            "memorised": samples.memorised(run, training, quote=not config.no_text),
            "reproduce": reproduce(run, settings or without_folders(run.checkpoint.config)),
            "no_text": config.no_text,
        }
        others = []
        for folder in folders[1:]:
            with contextlib.suppress(TinyGPTError):  # it may have no model, or one that diverged
                others.append(LoadedRun(str(folder), config))
        return complete(run, others, values, opening=not config.no_text)


def complete(run: LoadedRun, others: list[LoadedRun], values: dict[str, Any], opening: bool) -> dict[str, Any]:
    """Complete the values of a page: add those of every page, and empty ones for those that only a run has. others:
    runs whose models are compared with that of `run`. opening: put text into the text box."""
    nothing: dict[str, Any] = {"samples": [], "passages": {}, "runs": [], "memorised": {}, "step": {}}
    values = nothing | {"no_text": False} | values
    try:
        models = packed_models.models(run, others)
        silent = ""
    except TinyGPTError as error:
        models = []
        silent = error.message
    cells = {
        split: [[cell["rank"], cell["p"], cell["loss"], cell["top"]] if "p" in cell else 0 for cell in passage]
        for split, passage in values["passages"].items()
    }
    first = samples.opening(run) if models and opening else ""
    embedding = embedding_map(run)
    # sections, and what they would show
    omitted = {"walk": "one prediction", "attention": "attention"} if silent else {}
    omitted |= {} if embedding else {"tokens": "embedding map"}
    omitted |= {"one-step": "one training step", "memorised": "memorised text"} if run.is_large else {}
    note = "whoever has this file has all of this"
    if models:
        note += ", and a model can reproduce text that it has memorised"
    has_text = values["kind"] == "report" and not values["no_text"]
    names = [model["name"] for model in models]
    words = str(run.checkpoint.config.get("dataset") or "a model").replace("_", " ")
    return values | {
        "title": values["title"] or words[0].upper() + words[1:],
        "unit": run.unit,
        "answers": run.answers,
        "parameters": run.model.num_params(),
        "silent": silent,
        "omitted": omitted,
        "missing": run.missing,
        "opening": first,
        "contents": contents(run, values, first, models),
        "note": note,
        "without_text": suggest.command("report", without_folders(str(run.path)), "--no_text") if has_text else "",
        "start": "base model" if "ckpt" in run.checkpoint.config else "untrained",  # what step 0 is
        "embedding": embedding,
        "not_compared": [entry["name"] for entry in values["runs"] if entry["name"] not in names] if models else [],
        "comparable": len(models) > 1 or any(model["packed"].get("snapshots") for model in models),
        "any_answers": any(model["answers"] for model in models),
        "data": {"models": models, "cells": cells, "step": values["step"].get("cells", [])},
    }


def contents(run: LoadedRun, values: dict[str, Any], first: str, packed: list[dict[str, Any]]) -> str:
    """List what a reader of the page gets, with amounts. first: the opening; packed: its models."""
    items = []
    for index, entry in enumerate(packed):
        weights = sum(math.prod(tensor["shape"]) for tensor in entry["packed"]["tensors"].values())
        whose = f" in {entry['name']}" if index else ""
        items.append(f"all weights of the model{whose} ({weights:,} parameters)")
        if count := len(entry["packed"].get("snapshots", ())):
            items.append(f"{counted(count, 'snapshot')} of its training")
        if index:
            items.append(f"its vocabulary ({len(entry['packed']['vocabulary']):,} tokens)")
    if packed or isinstance(run.tokenizer, CharTokenizer):
        words = "" if isinstance(run.tokenizer, CharTokenizer) else ", words of the training data among them"
        items.append(f"the vocabulary ({run.tokenizer.vocab_size:,} tokens{words})")
    if runs := len(values["runs"]):
        items += [
            "the run's settings, column and file names, checksums and versions",
            f"the losses of {counted(runs, 'run')}",
        ]
    if shown_samples := values["samples"]:
        length = sum(len(entry["prompt"]) + sum(len(piece) for piece, _ in entry["pieces"]) for entry in shown_samples)
        items.append(f"{counted(len(shown_samples), 'sample')} ({counted(length, 'character')})")
    shown = values["passages"] | values["step"]
    for key, whose in (("train", "the training data"), ("val", "the validation data"), ("cells", "a training batch")):
        if key in shown:
            length = sum(len(cell["text"]) for cell in shown[key] if cell["text"] not in SPECIAL)
            items.append(f"{counted(length, 'character')} of {whose}")
    if longest := values["memorised"].get("longest"):
        length = sum(size for size, _, _ in longest)
        items.append(f"{counted(len(longest), 'quotation')} from the training data ({counted(length, 'character')})")
    if first and not run.answers:  # a prompt is among the characters of the validation data
        items.append(f"{counted(len(first), 'character')} of text that the model generated")
    return ", ".join(items)
