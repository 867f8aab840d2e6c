"""Keep the README true: rewrite its parts that are made from the code (the tree, the table of config keys).

python scripts/readme.py            # rewrite README.md
python scripts/readme.py --check    # exit 1 if it would change (tests/test_docs.py)
"""

import ast
import dataclasses
import itertools
import re
import sys
from pathlib import Path

from tinygpt.config import schema

ROOT = Path(__file__).resolve().parent.parent


SHOWN = (".py", ".yaml", ".sh", ".md", ".js", ".css", ".j2")
IN_A_LINE = {
    "notebooks": "gpt_from_scratch: the notebook without its outputs, and the same as text, which can be reviewed",
    "tests": "a file for each subject: a module, a promise, features together",
}


def field_docs(name: str) -> dict[str, str]:
    """The text under each field of a dataclass in tinygpt/config/schema.py."""
    tree = ast.parse((ROOT / "tinygpt/config/schema.py").read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    docs = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs


def key_table() -> str:
    """Every key of `tinygpt train` with its default and meaning, then the keys that `tinygpt finetune` adds."""
    docs = field_docs("FinetuneConfig") | field_docs("TrainConfig")
    own = {field.name for field in dataclasses.fields(schema.TrainConfig)}
    lines = ["| key | default | meaning |", "|---|---|---|"]
    added = [field for field in dataclasses.fields(schema.FinetuneConfig) if field.name not in own]
    for field in [*dataclasses.fields(schema.TrainConfig), *added]:
        if field.name != "config":
            meaning = docs[field.name] if field.name in own else f"finetune: {docs[field.name]}"
            lines.append(f"| `{field.name}` | `{field.default}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def first_line(path: Path) -> str:
    """What a file says of itself: the first sentence of a docstring or of a comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        comments = [
            re.sub(r"^(#|//|<!--|\{#|/\*) ?", "", line) for line in text.splitlines() if not line.startswith("#!")
        ]
        text = "\n".join(comments)
    paragraph = text.strip().partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.])\s", paragraph, maxsplit=1)[0].rstrip(".:")


def tree() -> str:
    """One line a file."""
    lines = []
    for folder in ("tinygpt", "configs", "scripts", "docs", "notebooks", "data", "tests"):
        lines.append(f"{folder}/")
        if folder in IN_A_LINE:
            lines[-1] = f"{lines[-1]:<29}{IN_A_LINE[folder]}"
            continue
        paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in SHOWN)
        for path in sorted(paths, key=lambda path: (path.parent != ROOT / folder, path)):  # then the packages
            name = str(path.relative_to(ROOT / folder)).removesuffix("__init__.py")
            if name and not name.startswith("__"):
                lines.append(f"  {name:<26} {first_line(path)}")
    return "```\n" + "\n".join(lines) + "\n```"


def rewritten(text: str) -> str:
    """The README with each part between `<!-- NAME -->` and `<!-- end -->` made anew."""
    for name, part in (("tree", tree()), ("keys", key_table())):
        pattern = rf"(<!-- {name} .*?-->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda found, part=part: found[1] + part + "\n" + found[2], text, flags=re.DOTALL)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = rewritten(before)
    if "--check" in sys.argv:
        sys.exit(before != after)
    readme.write_text(after, encoding="utf-8")
