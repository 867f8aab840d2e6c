"""`train --watch`: a page of the run in OUT_DIR/report.html, written again after each evaluation.

It shows the losses and the newest samples, and reloads itself; it has no model and no script. When the run has ended,
`tinygpt report` writes the full report in its place (cli.py).

    log.add_sink("--watch", lambda: Page(out, "shakespeare_char", 2000, read_metrics(out)))
"""

import html
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinygpt.base.files import replacing
from tinygpt.base.terminal import counted, duration
from tinygpt.training.log import is_number

RELOAD = '<meta http-equiv="refresh" content="5">\n'
REPORT_NEEDS = ("jinja2", "matplotlib")  # packages
SAMPLES = 3  # the newest ones
WIDTH = 640
HEIGHT = 280
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{reload}<title>{title} · tinygpt</title>
<style>
:root {{ color-scheme: light dark; --soft: light-dark(#646a74, #9aa0aa); --run: light-dark(#2458c6, #8fb1ff); }}
body {{ max-width: 44rem; margin: 0 auto; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif; }}
svg {{ width: 100%; font-size: 16px; fill: var(--soft); }}
polyline {{ fill: none; stroke: var(--run); stroke-width: 2; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--soft); padding-left: 1rem; }}
figcaption {{ color: var(--soft); }}
</style>
</head>
<body>
<h1>{title}</h1>
<p><b>{state}</b></p>
<figure style="margin: 0">
{curves}
<figcaption>Loss in nats per token; solid: validation, dashed: training.</figcaption>
</figure>
{samples}
</body>
</html>
"""


class Page:
    """A sink of a run's log: it gets each line of metrics.jsonl, and writes the page. Errors: TinyGPTError."""

    name = "--watch"

    def __init__(self, out: Path, title: str, max_iters: int, entries: Sequence[dict[str, Any]]) -> None:
        """entries: the lines that metrics.jsonl has already, of a run that is resumed."""
        self.path = out / "report.html"
        self.title = title
        self.max_iters = max_iters
        self.evaluations = [entry for entry in entries if entry["kind"] == "eval"]
        self.samples = [entry for entry in entries if entry["kind"] == "sample"]
        self.show("training")

    def write(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "eval":
            self.evaluations.append(entry)
        elif entry["kind"] == "sample":
            self.samples.append(entry)
        else:
            return
        self.show("training")

    def close(self, state: str) -> None:
        self.show(state)

    def show(self, state: str) -> None:
        """Write the page. It reloads itself if another one will follow."""
        progress = ""
        if self.evaluations:
            newest = self.evaluations[-1]
            seconds = duration(newest["seconds"])
            done = f"iteration {newest['step']:,} of {self.max_iters:,} after {seconds}"
            progress = f": {done}, validation loss {newest['val_loss']:.3f}"
        written = time.strftime("%H:%M:%S")
        replaced = state == "finished" and all(map(find_spec, REPORT_NEEDS))  # by the full report
        page = TEMPLATE.format(
            reload=RELOAD if state == "training" or replaced else "",
            title=html.escape(self.title),
            state=html.escape(f"{state}{progress} ({written})"),
            curves=curves(self.evaluations),
            samples="\n".join(map(sample, reversed(self.samples[-SAMPLES:]))),
        )
        with replacing(self.path) as file:
            file.write(page.encode("utf-8", "replace"))


def sample(entry: dict[str, Any]) -> str:
    """Format a sample, whose text may contain HTML."""
    text = html.escape(f"{entry.get('prompt', '')}{entry.get('text', '')}")
    return f"<h2>Sample at iteration {entry['step']:,}</h2>\n<pre>{text}</pre>"


def curves(evaluations: Sequence[dict[str, Any]]) -> str:
    """Draw both losses as an SVG. After four evaluations the untrained model's, which is far above, is left out."""
    if len(evaluations) > 4:
        evaluations = evaluations[1:]
    lines = {
        key: [(entry["step"], entry[key]) for entry in evaluations if is_number(entry.get(key))]
        for key in ("val_loss", "train_loss")
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        return "<p>The first evaluation has not ended yet.</p>"
    first = min(step for step, _ in points)
    last = max(step for step, _ in points)
    low = min(loss for _, loss in points)
    high = max(loss for _, loss in points)

    def place(step: int, loss: float) -> str:
        x = 50 + (WIDTH - 60) * (step - first) / max(1, last - first)
        y = 10 + (HEIGHT - 40) * (high - loss) / max(1e-9, high - low)
        return f"{x:.1f},{y:.1f}"

    drawn = [
        f'<polyline points="{" ".join(place(*point) for point in line)}"{dashes}/>'
        for line, dashes in zip(lines.values(), ("", ' stroke-dasharray="6 4" opacity="0.6"'), strict=True)
    ]
    labels = [
        f'<text x="0" y="16">{high:.2f}</text><text x="0" y="{HEIGHT - 26}">{low:.2f}</text>',
        f'<text x="50" y="{HEIGHT - 6}">{first:,}</text>',
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">{counted(last, "iteration")}</text>',
    ]
    parts = "\n".join([*drawn, *labels])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss curves">\n{parts}\n</svg>'
