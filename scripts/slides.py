"""Make the deck docs/slides.md from the table of claims in docs/TEACHING.md: a claim, then what an experiment says.

python scripts/slides.py            # rewrite it
python scripts/slides.py --check    # exit 1 if it would change (tests/test_docs.py)

The deck is Markdown for Marp (marp.app), which shows it in an editor or writes HTML or PDF:

npx @marp-team/marp-cli docs/slides.md --html --allow-local-files --output docs/slides.html
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent.parent / "docs"
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
small; most models here have 0.1 to 135 million. Commands with `--ckpt out-...` need models prepared beforehand
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
    return listed + [name for found in named for name in found if name and (DOCS / f"{name}.png").exists()]


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
    page = (DOCS / "TEACHING.md").read_text(encoding="utf-8")
    return "\n".join([HEAD, *map(slides, claims(page)), TAIL])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the slides would change")
    check = parser.parse_args().check
    path, wanted = DOCS / "slides.md", deck()
    stale = not path.exists() or path.read_text(encoding="utf-8") != wanted
    if check:
        sys.exit("docs/slides.md is not up to date; run: python scripts/slides.py" if stale else 0)
    path.write_text(wanted, encoding="utf-8", newline="\n")
