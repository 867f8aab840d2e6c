"""The files that the command lines of scripts/same.txt read: texts, labelled sheets, configs, documents, damaged files.

from same_inputs import write_inputs

write_inputs(folder)    # the same content each time
"""

import io
import json
import random
import re
import zipfile
from pathlib import Path

import openpyxl

WORDS = ["the", "king", "of", "Rome", "and", "his", "old", "queen", "love", "all", "day", "long", "no", "man", "may"]
LABELS = {
    "food": ["bread", "cheese", "apple", "soup", "tea"],
    "travel": ["train", "taxi", "flight", "ferry", "bus"],
    "home": ["rent", "lamp", "chair", "water", "carpet"],
}
SETTINGS = {  # of a training that takes less than a second
    "dataset": "tiny",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 32,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_iters": 20,
    "eval_interval": 10,
    "eval_iters": 2,
    "warmup_iters": 2,
    "learning_rate": 0.01,
    "min_lr": 0.001,
    "device": "cpu",
    "log_interval": 5,
}
TUNING = (  # the settings that finetune has, too
    "max_iters",
    "eval_interval",
    "batch_size",
    "learning_rate",
    "warmup_iters",
    "device",
    "log_interval",
)


def verses(draw: random.Random, lines: int) -> str:
    alphabet = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?'-*#\"()"
    return "".join(" ".join(draw.choices(WORDS, k=8)) + ".\n" for _ in range(lines)) + f"{alphabet}\n"


def sheet(draw: random.Random, rows: int) -> list[list[str]]:
    """Return the rows of a labelled sheet, with a header."""
    lines = [["prompt", "response", "customer", "date"]]
    for row in range(rows):
        label = draw.choice([*LABELS])
        text = f"{draw.choice(['paid', 'card', 'SQ *'])} {draw.choice(LABELS[label])} {draw.randint(10, 99)}"
        lines.append([text, label, f"c{row % 17}", f"2025-{1 + row % 12:02}-{1 + row % 28:02}"])
    return lines


def write_inputs(folder: Path) -> None:
    """Write the files that the commands of every scene read."""
    draw = random.Random(1)
    text = verses(draw, 500)
    rows = sheet(draw, 240)
    records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    files = {
        "text.txt": text,
        "more/a.txt": verses(draw, 50),
        "more/b.txt": verses(draw, 60),
        "pages.jsonl": "".join(json.dumps({"text": verses(draw, 5), "page": n}) + "\n" for n in range(40)),
        "pairs.csv": "".join(",".join(row) + "\n" for row in rows),
        "pairs.tsv": "".join("\t".join(row) + "\n" for row in rows),
        "semicolon.csv": "".join(";".join(row) + "\n" for row in rows),
        "pairs.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "new.csv": "".join(",".join((row[0], row[2])) + "\n" for row in rows[:12]),
        "new.txt": "".join(f"{row[0]}\n" for row in rows[1:9]),
        "tiny.yaml": "".join(f"{key}: {value}\n" for key, value in SETTINGS.items()),
        "tiny.py": "".join(f"{key} = {value!r}\n" for key, value in SETTINGS.items()),
        "tune.yaml": "".join(f"{key}: {SETTINGS[key]}\n" for key in TUNING),
        "unknown.yaml": "n_layr: 3\n",
        "broken.yaml": "n_layer: [3\n",
        "docs/office.md": "# Office\n\nThe office opens at nine. Notice is three months.\n\n- Coffee is free.\n",
        "docs/prices.csv": "item,price\nlamp,40 euros\nchair,95 euros\n",
        "docs/page.html": "<h1>Travel</h1><p>The train to Rome leaves on Mondays.</p>",
        "questions.jsonl": '{"question": "When does the office open?", "answer": "nine"}\n'
        '{"question": "Who is the king?", "answer": ""}\n',
        "prompt.txt": "the king",
        "key.txt": "0123456789abcdef-for-tests\n",
        "empty.txt": "",
        "bad.jsonl": '{"prompt": "a", "response": "b"}\n{"prompt": 3\n',
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "latin.txt").write_bytes("le café du roi, tôt ou tard\n".encode("cp1252") * 200)
    (folder / "random.pt").write_bytes(random.Random(2).randbytes(5000))
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)  # type: ignore[union-attr]
    stream = io.BytesIO()
    book.save(stream)
    with zipfile.ZipFile(stream) as saved, zipfile.ZipFile(folder / "pairs.xlsx", "w") as archive:
        for name in saved.namelist():  # without the time of saving
            content = re.sub(rb"20\d\d-[\w:-]+Z", b"2025-01-01T00:00:00Z", saved.read(name))
            archive.writestr(zipfile.ZipInfo(name), content)
