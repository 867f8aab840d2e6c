"""The pictures of an experiment: lines and points in a plane, and rows.

Each draws into the axes of matplotlib: Plane("lines", "accuracy (%)", [Line("model", x, y)])(axes).
The style, and the colours C0 to C5, gray, lightgray and black, are those of the pages (report/drawing.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygpt.examine.report.drawing import legend


@dataclass(frozen=True)
class Line:
    """A line, or points."""

    label: str  # in the legend; empty: none
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: str = "o-"  # marker and line, as in matplotlib
    color: str = "gray"
    look: Mapping[str, Any] = field(default_factory=dict)  # further properties, as in matplotlib: {"alpha": 0.5}


@dataclass(frozen=True)
class Plane:
    """Lines and points."""

    x: str  # what the axes show
    y: str
    lines: Sequence[Line]
    ticks: Mapping[Any, str] = field(default_factory=dict)  # of the x axis, in place of matplotlib's
    log: bool = False  # the x axis is logarithmic
    levels: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # horizontal lines by label: height and style
    ylim: tuple[float, float] | None = None

    def __call__(self, axes: Any) -> None:
        for line in self.lines:
            look = {"markersize": 5, **line.look}
            axes.plot(line.x, line.y, line.style, color=line.color, label=line.label or None, **look)
        for label, (height, style) in self.levels.items():
            axes.axhline(height, color="gray", linestyle=style, label=label)
        axes.set(xlabel=self.x, ylabel=self.y, ylim=self.ylim, xscale="log" if self.log else "linear")
        if self.ticks:
            axes.set_xticks(list(self.ticks), list(self.ticks.values()))
            axes.minorticks_off()
        legend(axes.figure, *axes.get_legend_handles_labels())


def name_rows(axes: Any, labels: Sequence[str]) -> None:
    """Write the names of rows above these, the first at the top, and make the figure as high as they need."""
    for position, label in enumerate(labels):
        place: Any = {"xycoords": ("axes fraction", "data"), "xytext": (0, 10), "textcoords": "offset points"}
        axes.annotate(label, (0, position), **place)
    axes.set(yticks=[], ylim=(len(labels) - 0.5, -0.8))
    axes.figure.set_figheight((48 * len(labels) + 90) / 72)
    legend(axes.figure, *axes.get_legend_handles_labels())
