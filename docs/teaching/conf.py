"""Settings of Sphinx for the deck: slides.md with two slides for each claim of claims.md. scripts/site.py builds it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import docs  # noqa: E402

project = "tinygpt"
extensions = ["myst_parser", "sphinx_revealjs"]
root_doc = "docs/teaching/slides"
include_patterns = ["docs/teaching/slides.md"]
html_copy_source = False
revealjs_style_theme = "white"
revealjs_css_files = ["deck.css"]
revealjs_static_path = ["deck"]
revealjs_script_conf = {"hash": True, "transition": "none", "slideNumber": "c/t", "width": 1280, "height": 720}
revealjs_script_plugins = [{"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"}]  # S: the speaker's notes


def setup(app):
    page = (ROOT / "docs/teaching/claims.md").read_text(encoding="utf-8")
    app.connect("source-read", lambda app, name, text: text.__setitem__(0, docs.deck(text[0], page)))
