"""Make the table of keys; also the tree of all files, the pages of the labs, and the slides of the claims.

python scripts/docs.py                           # rewrite the table in docs/reference/configuration.md
python scripts/docs.py --check                   # exit 1 if it would change (tests/test_docs.py)
python scripts/docs.py --tree                    # print the tree: a line for each file
python scripts/docs.py --labs pages              # the page of each lab, for a laptop that fails: half an hour
python scripts/docs.py --labs pages labels why   # these labs only; --full: all seeds, two hours

pages/index.html lists the pages of the labs, which open in any browser, without tinygpt or a network. Their results
stay in out-lab-*; the same command again makes only what is missing. The slides are part of scripts/site.py.
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
KEYS = "docs/reference/configuration.md"
SHOWN = (".py", ".yaml", ".sh", ".ps1", ".md", ".js", ".css", ".j2")
IN_A_LINE = {  # folders that are not listed file by file
    "notebooks": "gpt_from_scratch: the notebook with its outputs, and its cells as text, for reviews",
    "tests": "a file for each subject: a module, a promise, features together",
}
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
    """Return configuration.md with the table between `<!-- keys ... -->` and `<!-- end -->`."""
    page = (ROOT / KEYS).read_text(encoding="utf-8")
    pattern = r"(<!-- keys .*?-->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: found[1] + key_table() + "\n" + found[2], page, flags=re.DOTALL)


# ---- the deck --------------------


class Claim(NamedTuple):
    """A section of docs/teaching/claims.md."""

    title: str
    commands: str
    result: str
    question: str
    answer: str
    wrong: str
    picture: str = ""


def claims(page: str) -> list[Claim]:
    """Read the sections that have a question. Errors: AttributeError for one that lacks another part."""
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        if "**Question:**" in section:
            title, commands, result = section.split("\n\n")[:3]
            parts = (
                re.search(rf"^- \*\*{name}:\*\* (.*?)(?=\n- |\n\n|\Z)", section, re.DOTALL | re.MULTILINE)[1]  # type: ignore[index]
                for name in ("Question", "Answer", "Common wrong answer")
            )
            picture = re.search(r"^!\[.*?\]\(.*?\)$", section, re.MULTILINE)
            found.append(Claim(title, commands, result, *parts, picture[0] if picture else ""))
    return [Claim(*(" ".join(part.split()) for part in claim)) for claim in found]


def slides(claim: Claim) -> str:
    """Two slides: the claim, on which the room votes; and the result, with the answers as a note for the speaker."""
    claim = Claim(*(re.sub(r"(?<!!)\[([^]]*)\]\([^)]*\)", r"\1", part) for part in claim))  # no links in a deck
    title = claim.title.removesuffix(" (ours)")
    ours = "Our claim" if title != claim.title else "Claim"
    note = f"```{{revealjs-notes}}\nWrong answer: {claim.wrong}\n\nAnswer: {claim.answer}\n```"
    parts = [f"## {ours}: {title}", claim.commands, "Vote: does it hold, in part, or not?"]
    parts += [f"## {title}?", claim.result, f"**Discuss:** {claim.question}", claim.picture, note]
    return "\n\n".join(part for part in parts if part) + "\n"


def deck(text: str, page: str) -> str:
    """The deck: docs/teaching/slides.md with the slides of all claims of claims.md at its line `<!-- claims -->`."""
    return text.replace("<!-- claims -->", "\n".join(map(slides, claims(page))))


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
    page, wanted = ROOT / KEYS, key_page()
    stale = page.read_text(encoding="utf-8") != wanted
    if stale and args.check:
        sys.exit(f"{KEYS} is not up to date; run: python scripts/docs.py")
    if stale:
        page.write_text(wanted, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
