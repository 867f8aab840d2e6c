"""Build the site: README.md and docs/ as pages with navigation and search, and the slides as a deck.

python scripts/site.py            # in site/: open site/index.html in a browser; no server, no network
python scripts/site.py FOLDER

Sphinx (extra `dev`) makes both. A warning, such as a link that leads nowhere, is an error.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORWARD = '<!DOCTYPE html><meta charset="utf-8"><title>tinygpt</title><meta http-equiv="refresh" content="0; url={}">\n'


def build(builder: str, settings: Path, folder: Path) -> None:
    """Run Sphinx on the whole checkout. Errors: CalledProcessError, after Sphinx's own message."""
    command = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", "--keep-going", "-E", "-b", builder]
    subprocess.run([*command, "-c", settings, "-d", folder / ".doctrees", ROOT, folder], check=True)
    shutil.rmtree(folder / ".doctrees")
    (folder / ".buildinfo").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "site")
    folder = parser.parse_args().folder
    if not importlib.util.find_spec("sphinx"):
        sys.exit("the site needs Sphinx: pip install -e '.[dev]'")
    try:
        build("html", ROOT / "docs", folder)
        build("revealjs", ROOT / "docs/teaching", folder / "slides")
    except subprocess.CalledProcessError:
        sys.exit("the site was not built: see the warnings above")
    (folder / "index.html").write_text(FORWARD.format("README.html"), encoding="utf-8")
    (folder / "slides/index.html").write_text(FORWARD.format("docs/teaching/slides.html"), encoding="utf-8")
    print(f"open {folder / 'index.html'} and {folder / 'slides/index.html'} in a browser")


if __name__ == "__main__":
    main()
