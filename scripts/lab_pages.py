"""Make the pages of all labs for the case that a laptop fails: they open in any browser, without tinygpt or a network.

python scripts/lab_pages.py pages                    # the short form of each lab: half an hour on two cores
python scripts/lab_pages.py pages labels reports     # these labs only
python scripts/lab_pages.py pages --full             # all seeds: two hours

pages/index.html lists the pages. The results stay in out-lab-*; the same command again makes only what is missing.
"""

import argparse
import html
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tinygpt.files import replacing
from tinygpt.lab.command import BASES, LABS


def tinygpt(*command: str) -> bool:
    print(f"\n$ tinygpt {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, "-m", "tinygpt", *command]).returncode == 0


def make(name: str, pages: Path, full: bool) -> bool:
    """Run a lab, with the base model that it needs, and copy its page."""
    lab = LABS[name]
    if "ckpt" in lab.models and not Path("out-fast/ckpt.pt").exists():
        base = tinygpt("prepare", "shakespeare_char") and tinygpt(*shlex.split(BASES["ckpt"])[1:])
        if not base:
            return False
    out = f"out-lab-{name}" + "-quick" * (lab.quick and not full)
    form = [] if full else ["--quick"] if lab.quick else ["--seeds=1"]
    if not tinygpt("lab", name, *form, f"--out_dir={out}"):
        return False
    shutil.copy(f"{out}/{name}.html", pages)
    return True


def write_index(pages: Path) -> None:
    """List the pages that are there, also those of earlier calls."""
    items = [
        f'<li><a href="{name}.html">{name}</a>: {html.escape(lab.about)}</li>'
        for name, lab in LABS.items()
        if (pages / f"{name}.html").exists()
    ]
    head = '<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>Labs</title>\n<h1>Labs</h1>\n<ul>\n'
    with replacing(pages / "index.html") as file:
        file.write((head + "\n".join(items) + "\n</ul>\n</html>\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, help="the folder for the pages")
    parser.add_argument("labs", nargs="*", metavar="LAB", help=f"of {', '.join(LABS)}; default: all")
    parser.add_argument("--full", action="store_true", help="the complete labs, not their short forms")
    args = parser.parse_args()
    if unknown := set(args.labs) - set(LABS):
        parser.error(f"no such lab: {', '.join(sorted(unknown))}; choose from {', '.join(LABS)}")
    args.pages.mkdir(parents=True, exist_ok=True)
    failed = [name for name in args.labs or LABS if not make(name, args.pages, args.full)]
    write_index(args.pages)
    print(f"\nopen {args.pages / 'index.html'} in a browser")
    if failed:
        sys.exit(f"no page of {', '.join(failed)}: read the messages above, then run the same command again")
