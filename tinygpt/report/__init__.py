"""`tinygpt report` and `tinygpt export`: one HTML file of a run, or of a model alone, in which the model answers.

    collect.py      the content of the page, as plain values
    curves.py       the loss curves as SVG
    overlap.py      quotations from the training text in samples
    weights.py      the model as JSON
    model.js        the model in plain JavaScript
    page.html.j2    the template; page.css and page.js belong to it

The page needs no other file: it has the weights, the style, the script and the drawings. Its content security policy
forbids every request, and allows only the script with the checksum that it names. So nothing that a run wrote can
become code. All values go through Jinja2's escaping.

The package imports evaluate, finetune, sample and the modules below them. Heavy imports are inside the functions.

    tinygpt report out
"""

import base64
import hashlib
import importlib.resources
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygpt.config.schema import ExportConfig, ReportConfig
from tinygpt.errors import TinyGPTError
from tinygpt.files import replacing, require_writable

if TYPE_CHECKING:
    from tinygpt.report.collect import LoadedRun


def report(config: ReportConfig) -> None:
    """Write the page of a run. It reports what is missing. Errors: TinyGPTError if nothing can be shown."""
    environment = templates()
    from tinygpt.evaluate.doctor import read_run
    from tinygpt.report import collect
    from tinygpt.report.curves import RUN_COLOURS, draw_curves

    folders = [Path(name) for name in config.runs]
    path = destination(config.output, folders[0], "report.html")
    if len(folders) > RUN_COLOURS:
        raise TinyGPTError(f"{len(folders)} runs over each other cannot be told apart", f"at most {RUN_COLOURS}")
    entries, settings = read_run(folders[0])
    run = collect.load_run(str(folders[0]), config)
    with collect.own_pace(run.model):
        drawn = [collect.curves(folder) for folder in folders]
        training = collect.training_text(run)
        values = {
            "kind": "report",
            "title": title(run),
            "summary": collect.summary(run, entries, settings),
            "runs": drawn,
            "wide": draw_curves(drawn, 860, run.unit) if any(one["steps"] for one in drawn) else "",
            "narrow": draw_curves(drawn, 360, run.unit) if any(one["steps"] for one in drawn) else "",
            "samples": collect.samples(entries, training, run.tokenizer.decode([0])),
            "passages": collect.passages(run),
            "memorised": collect.memorised(run, training) if training else {},
            "reproduce": collect.reproduce(run, settings or run.checkpoint.config),
        }
        write(environment, run, values, path)


def export(config: ExportConfig) -> None:
    """Write the page of a model alone. Errors: TinyGPTError for a model that is too large, or not of characters."""
    environment = templates()
    from tinygpt.checkpoint.adapter import load_model
    from tinygpt.report import collect

    beside = Path(config.ckpt) if Path(config.ckpt).is_dir() else Path(config.ckpt).parent
    path = destination(config.output, beside, "model.html")
    run = collect.load_run(config.ckpt, config, load_model(config.ckpt, config.adapter))
    collect.live_model(run)
    values: dict[str, Any] = {"kind": "export", "title": title(run), "samples": [], "passages": {}, "runs": []}
    with collect.own_pace(run.model):
        write(environment, run, values, path)


def destination(output: str, folder: Path, name: str) -> Path:
    """Choose the path of the page. Errors: TinyGPTError, before the work, if no file can be written there."""
    path = Path(output) if output else folder / name
    if output or path.parent.is_dir():  # a missing run folder is reported later, in a message of its own
        require_writable(path, f"-o {name}")
    return path


def title(run: "LoadedRun") -> str:
    """Name of the dataset, and of the run if it has one."""
    name = str(run.checkpoint.config.get("wandb_run_name") or "run")
    return str(run.checkpoint.config.get("dataset") or "a model") + (f", {name}" if name != "run" else "")


def templates() -> Any:
    """Make Jinja2's environment. Errors: TinyGPTError if the package is not installed."""
    try:
        import jinja2
    except ImportError:
        raise TinyGPTError("a report needs the package jinja2", "pip install jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinygpt.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


def percent(value: float, digits: int = 0) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}%}".replace("%", " %")


def write(environment: Any, run: "LoadedRun", values: dict[str, Any], path: Path) -> None:
    """Fill the template and write the file, atomically."""
    from tinygpt.report import collect

    model, silent = None, ""
    try:
        model = collect.live_model(run)
    except TinyGPTError as error:
        silent = error.message
    cells = {
        split: [[cell["rank"], cell["p"], cell["loss"], cell["top"]] if "p" in cell else 0 for cell in found]
        for split, found in values["passages"].items()
    }
    script = "\n".join(read(name) for name in ("model.js", "page.js"))
    page = environment.get_template("page.html.j2").render(
        values,
        unit=run.unit,
        answers=run.answers,
        parameters=run.model.num_params(),
        block_size=run.model.config.block_size,
        silent=silent,
        missing=run.missing,
        opening=collect.opening(run, [] if silent else collect.fresh(run, run.model, count=1, length=80)),
        embedding=collect.embedding_map(run),
        data={"model": model, "answers": run.answers, "cells": cells},
        css=read("page.css"),
        script=script,
        checksum=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))
    print(f"written: {path}, {len(page.encode('utf-8', 'replace')) / 1e6:.1f} MB; open it in any browser")


def read(name: str) -> str:
    return (importlib.resources.files("tinygpt.report") / name).read_text(encoding="utf-8")
