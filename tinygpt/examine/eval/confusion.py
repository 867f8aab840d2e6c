"""The confusion matrix of a report of classify.py: as text, and as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.terminal import counted, cut, escaped
from tinygpt.examine.report.drawing import drawing


def matrix_lines(report: dict[str, Any], columns: int) -> list[str]:
    """Format the confusion matrix, with each row's recall at its end and each column's precision below it.
    columns: of the terminal."""
    labels = [escaped(label) for label in report["labels"]]
    L = len(report["labels"])
    width = min(10, max(5, (columns - 8 - 15) // L))  # of a column; the recall takes 8, the names at least 15
    heads = [label[: width - 1].strip() for label in labels]
    if len(set(heads)) < L:  # equal when they are cut: numbers instead
        heads = [str(number) for number in range(1, L + 1)]
        labels = [f"{number:>2} {label}" for number, label in zip(heads, labels, strict=True)]
    left = min(max(9, *map(len, labels)) + 1, max(15, columns - 8 - L * width))
    lines = ["confusion matrix: a row for each true label, a column for each answer"]
    lines.append(f"{'true':<{left}}{''.join(f'{head:>{width}}' for head in heads)}{'recall':>8}")
    rates = [report["per_label"][label] for label in report["labels"]]
    for label, counts, rate in zip(labels, report["confusion"], rates, strict=True):
        cells = "".join(f"{count or '·':>{width}}" for count in counts)
        recall = f"{rate['recall']:.2f}" if rate["support"] else "-"
        lines.append(f"{cut(label, left - 1):<{left}}{cells}{recall:>8}")
    answered = zip(rates, np.sum(report["confusion"], axis=0), strict=True)
    precisions = (f"{rate['precision']:.2f}" if count else "-" for rate, count in answered)
    return [*lines, f"{'precision':<{left}}" + "".join(f"{precision:>{width}}" for precision in precisions)]


def draw_confusion(report: dict[str, Any], path: Path) -> None:
    """Draw the confusion matrix as a PNG: counts, coloured by their fraction of the row. Errors: TinyGPTError."""
    confusion = np.array(report["confusion"])
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    names = [cut(escaped(label), 24) for label in report["labels"]]
    L = len(confusion)
    with drawing(path, "the picture of the confusion matrix", (190 + 40 * L, 160 + 36 * L)) as (figure, axes):
        axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1, edgecolors="lightgray", linewidth=0.5)
        middles = np.arange(L) + 0.5  # of the cells
        axes.set_xticks(middles, names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(middles, names)
        axes.set(xlabel="answer", ylabel="true label", ylim=(L, 0))
        for i, j in np.argwhere(confusion):
            color = "white" if share[i, j] > 0.5 else "black"
            axes.text(j + 0.5, i + 0.5, f"{confusion[i, j]}", ha="center", va="center", color=color, fontsize=9)
        accuracy = 100 * report["results"]["model"]["accuracy"]
        title = f"{report['task']}, {report['split']}: accuracy {accuracy:.1f}% of {counted(report['n'], 'prompt')}"
        figure.suptitle(title, fontsize=12)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
