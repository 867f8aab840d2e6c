"""`tinygpt report` and `tinygpt export`: write a run, or a model alone, as one HTML file in which the model runs.

    collect.py      the content of the page, as plain values
    curves.py       the loss curves as SVG
    one_step.py     one training step with all its numbers
    overlap.py      quotations from the training text in samples
    weights.py      the model as JSON
    model.js        the model in plain JavaScript
    page.html.j2    the template; colours.css, page.css and the scripts of SCRIPTS belong to it
    live.js         keeps a page that `tinygpt watch` serves up to date; live.css, live.html.j2 and waiting.html.j2
                    belong to it

The page needs no other file: it contains the weights, the style, the script and the drawings. Its content security
policy forbids every request, and allows only the script with the checksum that it names. So no value of a run can run
as code. Jinja2 escapes all values.

Whoever has the file has its content, so the commands and the page list it. `report --no_text` leaves out samples and
all text of the dataset; `export` contains none, except the opening words, which the model generates.

The package imports evaluate, finetune, sample and the modules below them. Heavy imports are inside the functions.

    tinygpt report out
"""

import base64
import hashlib
import importlib.resources
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinygpt.config.schema import ExportConfig, ReportConfig
from tinygpt.errors import TinyGPTError
from tinygpt.files import replacing, require_writable
from tinygpt.report.curves import RUN_COLOURS, draw_curves

if TYPE_CHECKING:
    from tinygpt.report.collect import LoadedRun

SCRIPTS = ("model.js", "page.js", "attention.js", "write.js", "compare.js")


class Page(NamedTuple):
    """A page, and what it contains, for the command to print."""

    content: bytes
    policy: str  # its content security policy
    contents: str
    note: str


def report(config: ReportConfig) -> None:
    """Write the page of a run, which names what is missing. Errors: TinyGPTError if nothing can be shown."""
    templates()
    path = destination(config.output, Path(config.runs[0]), "report.html")
    if len(config.runs) > RUN_COLOURS:
        raise TinyGPTError(
            f"one figure cannot show the curves of {len(config.runs)} runs", f"name at most {RUN_COLOURS} run folders"
        )
    page = render(gather(config))
    write(page, path)
    announce(page, path)


def export(config: ExportConfig) -> None:
    """Write the page of a model alone. Errors: TinyGPTError for one that is too large or has a subword tokenizer."""
    templates()
    from tinygpt.checkpoint.adapter import load_model
    from tinygpt.report import collect

    folder = Path(config.ckpt) if Path(config.ckpt).is_dir() else Path(config.ckpt).parent
    path = destination(config.output, folder, "model.html")
    run = collect.load_run(config.ckpt, config, load_model(config.ckpt, config.adapter))
    collect.live_model(run)
    values: dict[str, Any] = {"kind": "export", "title": title(run), "samples": [], "passages": {}, "runs": []}
    values |= {"memorised": {}, "step": {}, "no_text": False}
    with collect.few_threads(run.model):
        page = render(complete(run, [], values, opening=not run.answers))  # a prompt would be text of the dataset
    write(page, path)
    announce(page, path)


def gather(config: ReportConfig, device_name: str = "auto", quick: bool = False) -> dict[str, Any]:
    """Collect the values of a run's page for the template.

    quick: for a run that is training: the loss on a part of the validation split, and no new samples.
    """
    from tinygpt.evaluate.doctor import read_run
    from tinygpt.report import collect
    from tinygpt.report.one_step import one_step

    folders = [Path(name) for name in config.runs]
    entries, settings = read_run(folders[0])
    settings = collect.without_folders(settings)
    run = collect.load_run(str(folders[0]), config, device_name=device_name)
    with collect.few_threads(run.model):
        drawn = [collect.curves(folder) for folder in folders]
        training = collect.training_text(run)
        values: dict[str, Any] = {
            "kind": "report",
            "title": title(run),
            "summary": collect.summary(run, entries, settings, collect.QUICK_WORK if quick else collect.WORK),
            "runs": drawn,
            "wide": draw_curves(drawn, 860, run.unit) if any(one["steps"] for one in drawn) else "",
            "narrow": draw_curves(drawn, 360, run.unit) if any(one["steps"] for one in drawn) else "",
            "samples": [] if config.no_text else collect.samples(entries, training, run.tokenizer.decode([0])),
            "passages": {} if config.no_text else collect.passages(run),
            "step": {} if config.no_text else one_step(run),
            "memorised": {} if quick else collect.memorised(run, training, quote=not config.no_text),
            "reproduce": collect.reproduce(run, settings or collect.without_folders(run.checkpoint.config)),
            "no_text": config.no_text,
        }
        others = collect.loadable(folders[1:], config)
        return complete(run, others, values, opening=not config.no_text) | {"quick": quick}


def destination(output: str, folder: Path, name: str) -> Path:
    """Choose the path of the page. Errors: TinyGPTError, before any work, if no file can be written there."""
    path = Path(output) if output else folder / name
    if output or path.parent.is_dir():  # a missing run folder is reported later, in a message of its own
        require_writable(path, f"-o {name}")
    return path


def title(run: "LoadedRun") -> str:
    """Title of the page: the name of the dataset, and that of the run if it has one."""
    name = str(run.checkpoint.config.get("wandb_run_name") or "run")
    return str(run.checkpoint.config.get("dataset") or "a model") + (f", {name}" if name != "run" else "")


def templates(package: str = "tinygpt.report") -> Any:
    """Create Jinja2's environment for the templates of a package. Errors: TinyGPTError if Jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        raise TinyGPTError("a report needs the package jinja2", "pip install jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short}
    return environment


def percent(value: float, digits: int = 0) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}%}".replace("%", " %")


def short(value: float) -> str:
    """A number with four significant digits; in powers of ten if it is very large or very small."""
    if value and not 1e-4 <= abs(value) < 1e6:
        digits, _, power = f"{value:.3e}".partition("e")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{float(digits):g} · 10{raised}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def complete(run: "LoadedRun", others: list["LoadedRun"], values: dict[str, Any], opening: bool) -> dict[str, Any]:
    """Add what the pages of runs and of models share.

    others: runs whose models are compared with that of `run`. opening: put text into the text box.
    """
    from tinygpt.report import collect

    models, silent = [], ""
    try:
        models = collect.models(run, others)
    except TinyGPTError as error:
        silent = error.message
    cells = {
        split: [[cell["rank"], cell["p"], cell["loss"], cell["top"]] if "p" in cell else 0 for cell in found]
        for split, found in values["passages"].items()
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
    return values | {
        "quick": False,
        "unit": run.unit,
        "answers": run.answers,
        "parameters": run.model.num_params(),
        "block_size": run.model.config.block_size,
        "silent": silent,
        "omitted": omitted,
        "missing": run.missing,
        "opening": first,
        "contents": collect.contents(run, values, first, models),
        "note": note,
        "embedding": embedding,
        "comparable": len(models) > 1 or any(one["packed"].get("snapshots") for one in models),
        "any_answers": any(one["answers"] for one in models),
        "data": {"models": models, "cells": cells, "step": values["step"].get("cells", [])},
    }


def render(values: dict[str, Any], version: str = "", template: str = "page.html.j2") -> Page:
    """Fill the template. `version`: of a page that `tinygpt watch` serves and updates; empty for a file."""
    live = bool(version)
    scripts = [*(SCRIPTS if "data" in values else ()), *(("live.js",) if live else ())]
    script = "\n".join(read(name) for name in scripts)
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{checksum}'; style-src 'unsafe-inline'; img-src data:; "
    policy += "connect-src 'self'; " * live + "base-uri 'none'; form-action 'none'"
    css = read("colours.css") + read("page.css") + (read("live.css") if live else "")
    page = templates().get_template(template).render(values, version=version, policy=policy, css=css, script=script)
    return Page(page.encode("utf-8", "replace"), policy, values.get("contents", ""), values.get("note", ""))


def write(page: Page, path: Path) -> None:
    """Write the file atomically."""
    with replacing(path) as file:
        file.write(page.content)


def announce(page: Page, path: Path) -> None:
    """Print the path of the file and what it contains."""
    print(f"written: {path}, {len(page.content) / 1e6:.1f} MB; open it in any browser")
    print(f"contains: {page.contents}")
    print(f"note: {page.note}")


def read(name: str, package: str = "tinygpt.report") -> str:
    return (importlib.resources.files(package) / name).read_text(encoding="utf-8")
