"""Run the notebook and write it as one page with all outputs, which needs no network: gpt_from_scratch.html.

python scripts/notebook.py                       # Shakespeare; six minutes on two cores
python scripts/notebook.py --out notebooks/gpt_from_scratch.ipynb   # after a change of a cell: store the new outputs
python scripts/notebook.py --corpus naics --out naics.html
python scripts/notebook.py --until 5             # only the parts before part 5
python scripts/notebook.py --check               # fails if a number of the text does not hold, or a picture is missing

The kernel is that of this Python interpreter, whatever kernels the user has installed. nbconvert's full templates load
scripts from other servers, so the page has its own head around the template `basic`.
"""

import argparse
import base64
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from unittest import mock

import matplotlib.image
import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks/gpt_from_scratch.ipynb"
# The page may link to other sites, but must not load anything from them.
REQUESTS = re.compile(r"""<(?:script|link|iframe|object|embed)\b|\bsrc=["'](?!data:)|url\(|@import|\bfetch\(""", re.I)
CHOICE = 'CORPUS = "shakespeare"'  # the line of the first cell that chooses the text
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>GPT from an empty file</title>
<style>
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 system-ui, sans-serif; color: #222; }}
h2 {{ margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }}
pre {{ overflow-x: auto; font-size: 13px; line-height: 1.4; margin: 0; }}
.highlight {{ background: #f6f8fa; border: 1px solid #ddd; border-radius: 4px; padding: .6rem; margin: .6rem 0; }}
.jp-OutputArea-output pre, .output_text pre {{ padding: .3rem .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
img {{ max-width: 100%; height: auto; }}
.output_png {{ overflow-x: auto; }}
@media (max-width: 50rem) {{ img {{ max-width: none; }} }} /* phone: scroll, do not shrink */
nav {{ font-size: 14px; columns: 18rem; }}
nav a {{ display: block; }}
table {{ border-collapse: collapse; font-size: 14px; margin: .6rem 0; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #ccc; padding: .25rem .5rem; text-align: left; }}
details {{ background: #f3f7fb; border-left: 3px solid #0072B2; padding: .4rem .8rem; margin: .4rem 0 1rem; }}
summary {{ cursor: pointer; font-weight: 600; }}
.prompt, .jp-InputPrompt, .jp-OutputPrompt, .anchor-link {{ display: none; }}
{code}
</style>
</head>
<body>
<nav aria-label="Contents">
{contents}
</nav>
{body}
</body>
</html>
"""


def load(corpus: str = "shakespeare", until: int | None = None) -> nbformat.NotebookNode:
    """The notebook, with the corpus chosen; until: only the cells before this part."""
    notebook = nbformat.read(NOTEBOOK, 4)
    if until is not None:
        end = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith(f"## {until}."))
        notebook.cells = notebook.cells[:end]
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert CHOICE in first.source
    first.source = first.source.replace(CHOICE, f'CORPUS = "{corpus}"')
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: Path, say: Callable[[str], object] = lambda text: None) -> None:
    """Run all cells, with `folder` as the working folder, and store their outputs in the notebook.

    say: gets the heading of each part when it begins, with the minutes so far.
    """
    begun = time.monotonic()

    def announce(cell: nbformat.NotebookNode, cell_index: int) -> None:
        if cell.source.startswith("## "):
            say(f"{(time.monotonic() - begun) / 60:4.1f} min  {heading(cell)}")

    places = {"JUPYTER_PATH": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipython")}
    install = [sys.executable, "-m", "ipykernel", "install", "--prefix", str(folder), "--name", "python3"]
    subprocess.run(install, check=True, capture_output=True, env=os.environ | places)
    shutil.move(folder / "share/jupyter", folder / "jupyter")
    with mock.patch.dict(os.environ, places):
        resources = {"metadata": {"path": str(folder)}}
        quiet = ["--IPKernelApp.log_level=40"]  # it warns that it listens on a local port
        NotebookClient(
            notebook, timeout=1800, resources=resources, extra_arguments=quiet, on_cell_start=announce
        ).execute()


def heading(cell: nbformat.NotebookNode) -> str:
    return cell.source.splitlines()[0].removeprefix("## ")


def seconds(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """Compute how long the cells of each part took."""
    taken, part = {"start": 0.0}, "start"
    for cell in notebook.cells:
        if cell.source.startswith("## "):
            part = heading(cell)
            taken[part] = 0.0
        timing = cell.metadata.get("execution", {})
        if "shell.execute_reply" in timing:
            begun, ended = (
                datetime.fromisoformat(timing[key]) for key in ("iopub.execute_input", "shell.execute_reply")
            )
            taken[part] += (ended - begun).total_seconds()
    return taken


def store(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write the notebook with its outputs, without what differs from run to run: times and versions."""
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)


def page(notebook: nbformat.NotebookNode) -> str:
    """Format the notebook with its outputs as one HTML page."""
    exporter = HTMLExporter(template_name="basic", mathjax_url="", require_js_url="", jquery_url="")
    body, _ = exporter.from_notebook_node(notebook)
    headings = re.findall(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', body)
    contents = "\n".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in headings)
    code = HtmlFormatter(style="tango").get_style_defs(".highlight")
    return PAGE.format(code=code, contents=contents, body=body)


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def check_claims(notebook: nbformat.NotebookNode) -> None:
    """Each claim that a cell checks holds, and no cell warns."""
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
    ]
    claims = sum(len(re.findall(r"^check\(", cell.source, re.M)) for cell in notebook.cells)
    said = printed(notebook)
    assert "not yet: " not in said, said[said.index("not yet: ") :]
    assert said.count("right: ") == claims


def check_page(notebook: nbformat.NotebookNode) -> str:
    """Check the page: it loads nothing, and each part has pictures, each with a description. Returns the page."""
    found = page(notebook)
    assert not REQUESTS.search(re.sub(r"(?s)<pre>.*?</pre>", "", found))
    tags = re.findall(r"<img\b[^>]*>", found)
    for tag in tags:
        description = re.search(r'alt="([^"]*)"', tag)
        assert description and len(description[1]) > 30 and "No description" not in description[1], tag[-200:]
        png = re.search(r"data:image/png;base64,([^\"]+)", tag)
        assert png
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(png[1])), format="png")[..., :3]
        assert pixels.shape[1] > 300 and pixels.std() > 0.02  # not an empty sheet
    assert len(tags) >= len(re.findall("<h2 ", found)) > 0
    assert found.count("<details>") == sum(cell.source.count("<details>") for cell in notebook.cells)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the notebook, and write it with all outputs.")
    parser.add_argument("--corpus", choices=("shakespeare", "naics"), default="shakespeare")
    parser.add_argument("--until", type=int, help="only the parts before this one")
    parser.add_argument("--out", type=Path, default=Path(f"{NOTEBOOK.stem}.html"), help="a page, or an .ipynb file")
    parser.add_argument("--check", action="store_true", help="fail if a claim does not hold or the page is incomplete")
    args = parser.parse_args()
    notebook = load(args.corpus, args.until)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder), lambda text: print(text, flush=True))
    for part, taken in seconds(notebook).items():
        print(f"{taken:6.1f} s  {part}")
    if args.out.suffix == ".ipynb":
        store(notebook, args.out)
    else:
        args.out.write_text(page(notebook), encoding="utf-8")
    if args.check:
        check_claims(notebook)
        check_page(notebook)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
