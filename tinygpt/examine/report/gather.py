"""The values of a page: what the template shows of a run, or of a model alone."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygpt.base.configs.adapt import ExportConfig
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_of, without_folders
from tinygpt.examine.report.curves import draw_curves
from tinygpt.examine.report.page import destination, publish, templates

if TYPE_CHECKING:
    from tinygpt.examine.report.collect import LoadedRun


def export(config: ExportConfig) -> None:
    """Write the page of a model alone. Errors: TinyGPTError for one that is too large or has a subword tokenizer."""
    templates()
    from tinygpt.examine.report import collect

    folder = folder_of(config.ckpt)
    path = destination(config.output, folder, "model.html")
    run = collect.load_run(config.ckpt, config)
    collect.live_model(run)
    with collect.one_thread_if_small(run.model):
        publish(complete(run, [], {"kind": "export"}, opening=not run.answers), path)  # not text of the dataset


def gather(folders: list[Path], config: ReportConfig, quick: bool = False) -> dict[str, Any]:
    """Collect the values of a page for the template: it describes the run in the first folder. quick: for a run that is
    training, measured on less text, and without new samples."""
    from tinygpt.examine.doctor.run import read_run
    from tinygpt.examine.report import collect
    from tinygpt.examine.report.one_step import one_step

    entries, settings = read_run(folders[0])
    settings = without_folders(settings)
    run = collect.load_run(str(folders[0]), config, quick)
    with collect.one_thread_if_small(run.model):
        run_curves = [collect.curves(folder) for folder in folders]
        training = run.training_text() if run.dataset else None
        values: dict[str, Any] = {
            "kind": "report",
            "summary": collect.summary(run, entries, settings),
            "runs": run_curves,
            "wide": draw_curves(run_curves, 860, run.unit),
            "narrow": draw_curves(run_curves, 360, run.unit),
            "samples": [] if config.no_text else collect.samples(entries, training),
            "passages": {} if config.no_text else collect.passages(run),
            "step": {} if config.no_text else one_step(run),
            "memorised": {} if quick else collect.memorised(run, training, quote=not config.no_text),
            "reproduce": collect.reproduce(run, settings or without_folders(run.checkpoint.config)),
            "no_text": config.no_text,
            "quick": quick,
        }
        others = []
        for folder in folders[1:]:
            with contextlib.suppress(TinyGPTError):  # it may have no model, or one that diverged
                others.append(collect.load_run(str(folder), config))
        return complete(run, others, values, opening=not config.no_text)


def complete(run: "LoadedRun", others: list["LoadedRun"], values: dict[str, Any], opening: bool) -> dict[str, Any]:
    """Complete the values of a page: add those of every page, and empty ones for those that only a run has. others:
    runs whose models are compared with that of `run`. opening: put text into the text box."""
    from tinygpt.examine.report import collect

    nothing: dict[str, Any] = {"samples": [], "passages": {}, "runs": [], "memorised": {}, "step": {}}
    values = nothing | {"no_text": False, "quick": False} | values
    try:
        models, silent = collect.models(run, others), ""
    except TinyGPTError as error:
        models, silent = [], error.message
    cells = {
        split: [[cell["rank"], cell["p"], cell["loss"], cell["top"]] if "p" in cell else 0 for cell in passage]
        for split, passage in values["passages"].items()
    }
    first = collect.opening(run) if models and opening else ""
    embedding = collect.embedding_map(run)
    omitted = {"attention": "attention"} if silent else {}  # sections, and what they would show
    omitted |= {"tokens": "token ids and embedding map"} if silent and not embedding else {}
    omitted |= {"one-step": "one training step", "memorised": "memorised text"} if run.is_large else {}
    note = "whoever has this file has all of this"
    if models:
        note += ", and a model can reproduce text that it has memorised"
    if values["kind"] == "report" and not values["no_text"]:
        note += "; report --no_text leaves out samples and all text of the dataset"
    names = [model["name"] for model in models]
    return values | {
        "title": str(run.checkpoint.config.get("dataset") or "a model"),
        "unit": run.unit,
        "answers": run.answers,
        "parameters": run.model.num_params(),
        "silent": silent,
        "omitted": omitted,
        "missing": run.missing,
        "opening": first,
        "contents": collect.contents(run, values, first, models),
        "note": note,
        "embedding": embedding,
        "not_compared": [entry["name"] for entry in values["runs"] if entry["name"] not in names] if models else [],
        "comparable": len(models) > 1 or any(model["packed"].get("snapshots") for model in models),
        "any_answers": any(model["answers"] for model in models),
        "data": {"models": models, "cells": cells, "step": values["step"].get("cells", [])},
    }
