"""From values to a page: one HTML file with its style and script inside, and a policy that forbids every request.

    page = render({"kind": "report", ...})      # the values of collect.py
    write(page, Path("out/report.html"))

`render` is for the pages of this package; `templates` and `read` are for those of other packages, too.
"""

import base64
import hashlib
import importlib.resources
import math
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.errors import library
from tinygpt.files import replacing, require_writable

SCRIPTS = ("model.js", "page.js", "attention.js", "write.js", "compare.js")


class Page(NamedTuple):
    """A page, and what it contains, for the command to print."""

    content: bytes
    policy: str  # its content security policy
    contents: str
    note: str


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


def destination(output: str, folder: Path, name: str) -> Path:
    """Choose the path of the page. Errors: TinyGPTError, before any work, if no file can be written there."""
    path = Path(output) if output else folder / name
    if output or path.parent.is_dir():  # a missing run folder is reported later, in a message of its own
        require_writable(path, f"-o {name}")
    return path


def templates(package: str = "tinygpt.report") -> Any:
    """Create Jinja2's environment for the templates of a package. Errors: TinyGPTError if Jinja2 is not installed."""
    jinja2 = library("jinja2", "a report")
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
    if not math.isfinite(value):
        return "not a finite number"
    if value and not 1e-4 <= abs(value) < 1e6:
        digits, _, power = f"{value:.3e}".partition("e")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{float(digits):g} · 10{raised}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
