"""Make the generated parts of docs/: the table of keys, and the deck; and the tree of all files, and the labs' pages.

python scripts/docs.py                           # rewrite docs/CONFIGURATION.md and docs/slides.md
python scripts/docs.py --check                   # exit 1 if they would change (tests/test_docs.py)
python scripts/docs.py --tree                    # print the tree: a line for each file
python scripts/docs.py --labs pages              # the page of each lab, for a laptop that fails: half an hour
python scripts/docs.py --labs pages labels why   # these labs only; --full: all seeds, two hours

The deck is Markdown for Marp (marp.app), which shows it in an editor or writes HTML or PDF:

npx @marp-team/marp-cli docs/slides.md --html --allow-local-files --output docs/slides.html

It is made from the table of claims in docs/TEACHING.md: a claim, then what an experiment says. pages/index.html lists
the pages of the labs, which open in any browser, without tinygpt or a network. Their results stay in out-lab-*; the
same command again makes only what is missing.
"""

import argparse
import ast
import html
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.fields import keys, meanings
from tinygpt.base.files import replacing
from tinygpt.learn.lab.command import BASES, LABS

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (".py", ".yaml", ".sh", ".ps1", ".md", ".js", ".css", ".j2")
IN_A_LINE = {  # folders that are not listed file by file
    "notebooks": "gpt_from_scratch: the notebook with its outputs, and its cells as text, for reviews",
    "tests": "a file for each subject: a module, a promise, features together",
}
HEAD = """---
marp: true
paginate: true
headingDivider: 2
title: What fine-tuned and small models are good for, and how they fail
style: |
  section { font-size: 26px; padding: 50px 60px; }
  h1, h2 { font-size: 40px; color: #1f4e79; }
  h1 { font-size: 52px; }
  code { font-size: 22px; }
---

# What fine-tuned and small models are good for, and how they fail

Vote on each claim before the next slide: true, true in part, or false? The course calls 1 to 10 billion parameters
small; most models here have 0.1 to 135 million. Commands with a folder `out-...` need models prepared beforehand
(TEACHING.md).

**Terms.** N-gram baseline: a classifier that counts pieces of words. SmolLM2: a public model, 135 million parameters.
LoRA trains small added matrices only. Replay mixes in old data. Zero-shot: not trained for the task. Closed book:
without documents.

![h:200](report.png)
"""
TAIL = """## Start simple, add complexity only when it is needed

1. prompt an existing model
2. retrieve documents, if it lacks facts
3. fine-tune, for a style, a format or a narrow task

Compare each step with the n-gram baseline, which takes seconds. Where a mistake is expensive, a person decides.

<!-- Each group names the cheapest step for its own case, and the number that would convince it. -->
"""
PICTURES = {"methods --data_dir=data-synthetic --out_dir=out-lab-synthetic": "compare"}
PICTURES |= {"methods --pretrained=out-smollm2": "curve"}


# ---- the table of keys, and the tree --------------------


def key_table() -> str:
    """Return a table of every key of `tinygpt train` and the keys that `tinygpt finetune` adds."""
    docs = meanings(FinetuneConfig) | meanings(TrainConfig)
    own = keys(TrainConfig)
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key in (own | keys(FinetuneConfig) | own).values():  # train's keys first
        if key.name != "config":
            meaning = docs[key.name] if key.name in own else f"finetune: {docs[key.name]}"
            lines.append(f"| `{key.name}` | `{key.default}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def first_line(path: Path) -> str:
    """Return the first sentence of a file's docstring, or of its comment or heading."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix == ".md":  # not always the first line: a deck begins with its settings
        text = next((line[2:] for line in text.splitlines() if line.startswith("# ")), text)
    else:
        comments = [
            re.sub(r"^(#|//|<!--|\{#|/\*) ?", "", line) for line in text.splitlines() if not line.startswith("#!")
        ]
        text = "\n".join(comments)
    paragraph = text.strip().partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.])(?<!\bal[.])\s", paragraph, maxsplit=1)[0].rstrip(".:")


def tree() -> str:
    """List the folders, with one line per file."""
    lines = []
    for folder in ("tinygpt", "configs", "scripts", "docs", "notebooks", "data", "data/make", "tests"):
        lines.append(f"{folder}/")
        if folder in IN_A_LINE:
            lines[-1] = f"{lines[-1]:<29}{IN_A_LINE[folder]}"
            continue
        names = "*.md" if folder == "data" else "**/*"  # prepared datasets are next to data/README.md
        paths = (path for path in (ROOT / folder).glob(names) if path.is_file() and path.suffix in SHOWN)
        for path in sorted(paths, key=lambda path: (path.parent != ROOT / folder, path)):  # then the packages
            name = path.relative_to(ROOT / folder).as_posix().removesuffix("__init__.py")
            if name and not name.startswith("__"):
                lines.append(f"  {name:<26} {first_line(path)}")
    return "\n".join(lines)


def key_page() -> str:
    """Return CONFIGURATION.md with the table between `<!-- keys ... -->` and `<!-- end -->`."""
    page = (ROOT / "docs/CONFIGURATION.md").read_text(encoding="utf-8")
    pattern = r"(<!-- keys .*?-->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: found[1] + key_table() + "\n" + found[2], page, flags=re.DOTALL)


# ---- the deck --------------------


class Claim(NamedTuple):
    """A row of the table."""

    claim: str
    command: str
    expected: str
    question: str
    wrong: str


def claims(page: str) -> list[Claim]:
    """Read the rows of the table under `<!-- claims -->`."""
    table = page.partition("<!-- claims -->\n")[2].partition("\n\n")[0].splitlines()
    return [Claim(*(cell.strip() for cell in row.strip("| ").split(" | "))) for row in table[2:]]


def pictures(claim: Claim) -> list[str]:
    """The picture of a claim, if there is one: that of its command, of its lab, or of its task."""
    listed = [name for command, name in PICTURES.items() if command in claim.command]
    named = re.findall(r"tinygpt lab (\w+)|--task (\w+)", claim.command)
    return listed + [name for found in named for name in found if name and (ROOT / f"docs/{name}.png").exists()]


def slides(claim: Claim) -> str:
    """Two slides: the claim, on which the room votes; and the result. The wrong answer is a note for the speaker.

    Marp begins a slide at each heading (headingDivider)."""
    claim = Claim(*(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell) for cell in claim))  # links do not work in a deck
    picture = [f"![bg right:48% fit]({name}.png)" for name in pictures(claim)[:1]]
    title = claim.claim.removesuffix(" (ours)")
    ours = "Our claim" if title != claim.claim else "Claim"
    parts = [f"# {ours}: {title}", claim.command]
    parts += [f"## {title}?", *picture, claim.expected, f"**Discuss:** {claim.question}"]
    return "\n\n".join([*parts, f"<!-- Wrong answer: {claim.wrong} -->"]) + "\n"


def deck() -> str:
    page = (ROOT / "docs/TEACHING.md").read_text(encoding="utf-8")
    return "\n".join([HEAD, *map(slides, claims(page)), TAIL])


# ---- the pages of the labs --------------------


def tinygpt(*command: str) -> bool:
    print(f"\n$ tinygpt {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, "-m", "tinygpt", *command]).returncode == 0


def lab_page(name: str, pages: Path, full: bool) -> bool:
    """Run a lab, with the base model that it needs, and copy its page."""
    lab = LABS[name]
    if "ckpt" in lab.models and not Path("out-fast/ckpt.pt").exists():
        base = tinygpt("prepare", "shakespeare_char") and tinygpt(*shlex.split(BASES["ckpt"])[1:])
        if not base:
            return False
    out = f"out-lab-{name}-quick" if lab.quick and not full else f"out-lab-{name}"
    form = [] if full else ["--quick"] if lab.quick else ["--seeds=1"]
    if not tinygpt("lab", name, *form, f"--out_dir={out}"):
        return False
    shutil.copy(f"{out}/{name}.html", pages)
    return True


def lab_pages(pages: Path, names: list[str], full: bool) -> None:
    """Make the pages, and a list of those that are there, also of earlier calls."""
    pages.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if not lab_page(name, pages, full)]
    items = [
        f'<li><a href="{name}.html">{name}</a>: {html.escape(lab.about)}</li>'
        for name, lab in LABS.items()
        if (pages / f"{name}.html").exists()
    ]
    head = '<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>Labs</title>\n<h1>Labs</h1>\n<ul>\n'
    with replacing(pages / "index.html") as file:
        file.write((head + "\n".join(items) + "\n</ul>\n</html>\n").encode())
    print(f"\nopen {pages / 'index.html'} in a browser")
    if failed:
        sys.exit(f"no page of {', '.join(failed)}: read the messages above, then run the same command again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if a page would change")
    parser.add_argument("--tree", action="store_true", help="print a line for each file, the first of its docstring")
    parser.add_argument("--labs", type=Path, metavar="FOLDER", help="make the pages of the labs in this folder")
    parser.add_argument("lab", nargs="*", help=f"with --labs: of {', '.join(LABS)}; default: all")
    parser.add_argument("--full", action="store_true", help="with --labs: the complete labs, not their short forms")
    args = parser.parse_args()
    if unknown := set(args.lab) - set(LABS):
        parser.error(f"no such lab: {', '.join(sorted(unknown))}; choose from {', '.join(LABS)}")
    if args.tree:
        print(tree())
        return
    if args.labs:
        lab_pages(args.labs, args.lab or list(LABS), args.full)
        return
    for name, make in {"CONFIGURATION.md": key_page, "slides.md": deck}.items():
        page = ROOT / "docs" / name
        wanted = make()
        stale = not page.exists() or page.read_text(encoding="utf-8") != wanted
        if stale and args.check:
            sys.exit(f"docs/{name} is not up to date; run: python scripts/docs.py")
        if stale:
            page.write_text(wanted, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
