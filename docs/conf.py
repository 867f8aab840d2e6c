"""Settings of Sphinx for the site: README.md, docs/ and the pages that they link. scripts/site.py builds it.

The source folder is the whole checkout, so that a link means the same in the site as in a code host's view of the file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import figures

project = "tinygpt"
author = "the authors of tinygpt"
extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "docs/**.md"]

myst_heading_anchors = 4
html_theme = "furo"
html_title = "tinygpt"
html_theme_options = {"footer_icons": [], "source_repository": ""}
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would have to fetch each page, which a browser refuses in a folder
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go, .c1"  # no comment is copied

NAVIGATION = {
    "Start": "docs/tutorial docs/how-to/install data/README",
    "How to": "own-labels fine-tune search-documents pretrained share serve privacy python gpus large-models nanogpt",
    "Understand": "training fine-tuning retrieval choosing reliability",
    "Look up": "configuration python labs glossary",
    "Teach": "index claims slides worksheet solutions",
    "Develop": "CONTRIBUTING docs/developers/code docs/developers/performance docs/developers/experiments "
    "docs/developers/withdrawn CHANGELOG",
}
FOLDERS = {
    "How to": "docs/how-to/",
    "Look up": "docs/reference/",
    "Understand": "docs/explanation/",
    "Teach": "docs/teaching/",
}
NAVIGATION = {name: [FOLDERS.get(name, "") + page for page in pages.split()] for name, pages in NAVIGATION.items()}


def complete(app, name: str, text: list[str]) -> None:
    """Add the navigation to the first page, and to each page what measured its figures."""
    if name == root_doc:
        for caption, pages in NAVIGATION.items():
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
    text[0] = figures.COMMENT.sub(lambda found: provenance(found[1].split()), text[0])


def provenance(names: list[str]) -> str:
    """A table of measurements: command, machine, month."""
    known = figures.measurements()
    rows = [known[name] for name in names if known.get(name, {}).get("date")]
    if not rows:
        return ""
    lines = [f"| `{row['command']}` | {row['machine']} | {row['date']} |" for row in rows]
    head = ["", "---", "", "**Where the figures come from**", "", "| measured by | machine | month |", "|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n"


def setup(app) -> None:
    app.connect("source-read", complete)
