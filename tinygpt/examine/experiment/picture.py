"""The pictures of an experiment: lines and points in a plane, histograms, intervals.

Each is a function that draws into the axes of matplotlib: Plane("lines", "accuracy (%)", [Line("model", x, y)])(axes).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
    above: int = 0  # columns of a legend above the plane; 0: inside

    def __call__(self, axes: Any) -> None:
        for line in self.lines:
            look = {"markersize": 4, **line.look}
            axes.plot(line.x, line.y, line.style, color=line.color, label=line.label or None, **look)
        for label, (height, style) in self.levels.items():
            axes.axhline(height, color="gray", linestyle=style, label=label)
        axes.set(xlabel=self.x, ylabel=self.y, ylim=self.ylim, xscale="log" if self.log else "linear")
        if self.ticks:
            axes.set_xticks(list(self.ticks), list(self.ticks.values()))
            axes.minorticks_off()
        place = {"ncols": self.above, "loc": "lower left", "bbox_to_anchor": (0, 1)} if self.above else {}
        axes.legend(frameon=False, fontsize=8, **place)


@dataclass(frozen=True)
class Histograms:
    """Shares of values from 0 to 1, a histogram for each system, below each other."""

    x: str
    y: str
    # name -> label -> groups of values, which count equally
    systems: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
    # vertical lines: system -> label and value; infinity for none
    marks: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def __call__(self, axes: Any) -> None:
        figure, edges = axes.figure, np.linspace(0, 1, 21)
        axes.remove()
        for axes, name in zip(figure.subplots(len(self.systems), sharex=True), self.systems, strict=True):
            for index, (label, groups) in enumerate(self.systems[name].items()):
                weights = np.concatenate([np.full(len(group), 100 / len(group) / len(groups)) for group in groups])
                values = np.concatenate(list(map(np.asarray, groups)))
                axes.hist(values, edges, weights=weights, color=f"C{index}", alpha=0.5, label=label)
            label, value = self.marks.get(name, ("", math.inf))
            if math.isfinite(value):
                axes.axvline(value, color="black", label=label)
            axes.set_title(name, fontsize=10)
            axes.set(ylabel=self.y, xlim=(0, 1))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9, loc="upper right")
        axes.set_xlabel(self.x)


@dataclass(frozen=True)
class Intervals:
    """A share with its interval for each row, in percent, the first at the top."""

    x: str
    rows: dict[str, tuple[float, float, float]]  # label -> share, lower and upper end
    chosen: str  # the row in colour
    why: str  # it is chosen: a word below its label

    def __call__(self, axes: Any) -> None:
        labels = list(self.rows)[::-1]
        for position, label in enumerate(labels):
            share, low, high = (100 * number for number in self.rows[label])
            color = "C0" if label == self.chosen else "0.55"
            axes.plot([low, high], [position, position], color=color, linewidth=3, solid_capstyle="butt")
            axes.plot(share, position, "o", color=color, markersize=8)
        axes.set_yticks(range(len(labels)), [label + f"\n({self.why})" * (label == self.chosen) for label in labels])
        axes.set(xlabel=self.x, ylim=(-0.6, len(labels) - 0.4))
