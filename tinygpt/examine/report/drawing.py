"""Draw with matplotlib in the style of the pages: PNG files in the light colours, inline SVG in the page's colours.

Measured for one run of 400 points: matplotlib's SVG 30 KB in 0.7 s; Altair's, through vl-convert, 17 KB in 1.0 s and
94 MB of packages; Altair with its inline bundle 898 KB of script in 1.5 s. An SVG needs no script, so it can be printed
and the page's content security policy does not block it. Its colours are those of the page's style sheet.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinygpt.base.errors import library
from tinygpt.base.files import replacing
from tinygpt.examine.report.page import read

RUN_COLOURS = 6  # in colours.css: --run-0, --run-1, ...
GRAYS = {"#000000": "ink", "#808080": "soft", "#d3d3d3": "line"}  # black, gray and lightgray


def colours() -> dict[str, str]:
    """Read the light colours of the pages: {"ink": "#1e2024", ...}."""
    light, _, _ = read("examine/report/colours.css").partition("@media")
    return dict(re.findall(r"--([\w-]+): (#\w{6});", light))


@contextlib.contextmanager
def styled(feature: str, size: tuple[float, float]) -> Iterator[Any]:
    """Yield an empty figure of `size` pixels in the style of the pages, to be saved before the block ends.

    Errors: TinyGPTError if matplotlib, which `feature` needs, is not installed.
    """
    matplotlib = library("matplotlib", feature)
    figure_class = library("matplotlib.figure", feature).Figure
    page = colours()
    cycle = matplotlib.cycler(color=[page[f"run-{index}"] for index in range(RUN_COLOURS)])
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"tinygpt-{size[0]}",
        "text.parse_math": False,  # a folder may have dollars in its name
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.prop_cycle": cycle,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), page["line"]),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor", "axes.labelcolor", "text.color"), page["soft"]),
    }
    with matplotlib.rc_context(style):
        yield figure_class(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


@contextlib.contextmanager
def drawing(path: Path, feature: str, size: tuple[float, float] = (620, 380)) -> Iterator[tuple[Any, Any]]:
    """Yield a figure of `size` pixels and its axes, and write them as the PNG `path` when the block ends.

    Errors: TinyGPTError as in `replacing` and `styled`.
    """
    with styled(feature, size) as figure:
        yield figure, figure.subplots()
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=150)


def as_svg(figure: Any) -> str:
    """Return the <svg> element of a figure, in the page's colours and fonts, as wide as its container."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'width="[^"]*" height="[^"]*"', 'role="presentation"', svg, count=1)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)  # two drawings in one page would have the same ids
    svg = re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    for colour, name in ({colour: name for name, colour in colours().items()} | GRAYS).items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def legend(figure: Any, handles: Any, labels: Any, columns: int = 0) -> None:
    """Place a legend above the figure: so many columns, or as many as fit."""
    if labels:
        columns = columns or max(1, int(72 * figure.get_figwidth() / (50 + 7 * max(map(len, labels)))))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.4)
