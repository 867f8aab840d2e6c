"""Make what the code says about itself: the table of keys in docs/CONFIGURATION.md, and the tree of all files.

python scripts/docs.py            # rewrite the table
python scripts/docs.py --check    # exit 1 if it would change (tests/test_docs.py)
python scripts/docs.py --tree     # print the tree: a line for each file
"""

import argparse
import ast
import re
import sys
from pathlib import Path

from tinygpt.config import schema
from tinygpt.config.fields import keys, meanings

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (".py", ".yaml", ".sh", ".ps1", ".md", ".js", ".css", ".j2")
IN_A_LINE = {  # folders that are not listed file by file
    "notebooks": "gpt_from_scratch: the notebook with its outputs, and its cells as text, for reviews",
    "tests": "a file for each subject: a module, a promise, features together",
}


def key_table() -> str:
    """Return a table of every key of `tinygpt train` and the keys that `tinygpt finetune` adds."""
    docs = meanings(schema.FinetuneConfig) | meanings(schema.TrainConfig)
    own = keys(schema.TrainConfig)
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key in (own | keys(schema.FinetuneConfig) | own).values():  # train's keys first
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
    for folder in ("tinygpt", "configs", "scripts", "docs", "notebooks", "data", "tests"):
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


def rewritten(page: str) -> str:
    """Return CONFIGURATION.md with the table between `<!-- keys ... -->` and `<!-- end -->`."""
    pattern = r"(<!-- keys .*?-->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: found[1] + key_table() + "\n" + found[2], page, flags=re.DOTALL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if the page would change")
    parser.add_argument("--tree", action="store_true", help="print a line for each file, the first of its docstring")
    args, page = parser.parse_args(), ROOT / "docs/CONFIGURATION.md"
    after = rewritten(before := page.read_text(encoding="utf-8"))
    if args.tree:
        print(tree())
    elif args.check and after != before:
        sys.exit("docs/CONFIGURATION.md is not up to date; run: python scripts/docs.py")
    elif after != before:
        page.write_text(after, encoding="utf-8", newline="\n")
