"""From values to a page: one HTML file with its style and script inside, and a policy that forbids every request.

page = render({"kind": "report", ...})      # the values of gather.py
write(page, Path("out/report.html"))
"""

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinygpt.base.errors import library
from tinygpt.base.files import replacing, require_writable

SCRIPTS = [f"examine/report/{name}.js" for name in ("model", "page", "draw_attention", "walk", "write", "compare")]
STYLES = ["examine/report/colours.css", "examine/report/page.css"]


SIZE = "\ue000"  # stands for the size of the page until the page is complete


def render(
    values: dict[str, Any],
    template: str = "examine/report/page.html.j2",
    scripts: Sequence[str] = SCRIPTS,
    styles: Sequence[str] = STYLES,
) -> bytes:
    """Fill a template. template, scripts, styles: files of the package tinygpt."""
    script = "\n".join(map(read, scripts))
    css = "".join(map(read, styles))
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    if script:
        checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        rules.insert(1, f"script-src 'sha256-{checksum}'")
    policy = "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])
    own = {"policy": policy, "css": css, "script": script, "size": SIZE}
    page = templates().get_template(template).render(values | own)
    content = page.encode("utf-8", "replace")
    return content.replace(SIZE.encode(), megabytes(len(content)).encode(), 1)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def publish(values: dict[str, Any], path: Path) -> None:
    """Write the page of a run or a model, and print its path and what it contains."""
    page = render(values, scripts=SCRIPTS if values["kind"] == "report" else SCRIPTS[:-1])  # nothing to compare
    with replacing(path) as file:
        file.write(page)
    print(f"written: {path}, {megabytes(len(page))}; open it in any browser")
    print(f"contains: {values['contents']}")
    print(f"note: {values['note']}")
    if values["without_text"]:
        print(f"without samples and text of the dataset: {values['without_text']}")


def read(name: str) -> str:
    """Read a file of the package tinygpt."""
    return (importlib.resources.files("tinygpt") / name).read_text(encoding="utf-8")


def destination(output: str, folder: Path, name: str) -> Path:
    """Choose the path of the page. Errors: TinyGPTError, before any work, if no file can be written there."""
    path = Path(output) if output else folder / name
    if output or path.parent.is_dir():  # a missing run folder is reported later, in a message of its own
        require_writable(path, f"-o {name}")
    return path


def templates() -> Any:
    """Create Jinja2's environment for the templates of tinygpt. Errors: TinyGPTError if Jinja2 is not installed."""
    jinja2 = library("jinja2", "a report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinygpt", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # smaller
    environment.filters |= {"percent": percent, "short": short}
    return environment


def percent(value: float, digits: int = 0) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}%}"


def short(value: float) -> str:
    """Format a number with four significant digits; in powers of ten if it is very large or very small."""
    if not math.isfinite(value):
        return "not a finite number"
    if value and not 1e-4 <= abs(value) < 1e6:
        digits, _, power = f"{value:.3e}".partition("e")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{float(digits):g} · 10{raised}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
