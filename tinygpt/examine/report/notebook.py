"""Show a run in a notebook: the loss curves, the newest sample and the verdict, as HTML.

run_html(Path("out"), "out", "finished (no change larger than two standard errors)")
"""

import html
from pathlib import Path
from typing import Any

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import table
from tinygpt.examine.report.curves import curves, draw_curves
from tinygpt.training.log import read_metrics

COLOURS = "--run-0:#2458c6;--soft:#646a74;--line:#b9b6b0;--sans:sans-serif"


def run_html(folder: Path, name: str, verdict: str) -> str:
    """Show a run. Without the extra `report`, a table has the losses. Errors: TinyGPTError without metrics.jsonl."""
    try:
        curve = draw_curves([curves(folder)], width=620, unit="token")
    except TinyGPTError:  # matplotlib is not installed
        losses = [[entry[key] for key in ("step", "train_loss", "val_loss")] for entry in entries_of(folder, "eval")]
        heads = {"step": ">8", "training": ">12.4f", "validation": ">12.4f"}
        curve = f"<pre>{'<br>'.join(table(heads, losses))}</pre>"
    sample = "".join(
        f"<p>sample at step {newest['step']:,}:</p><pre>{html.escape(newest['text'])}</pre>"
        for newest in entries_of(folder, "sample")[-1:]
    )
    title = f"<b>{html.escape(name)}</b>: {html.escape(verdict)}"
    return f'<div style="max-width:48em;{COLOURS}"><p>{title}</p>{curve}{sample}</div>'


def entries_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in read_metrics(folder) if entry["kind"] == kind]
