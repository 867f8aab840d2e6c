"""Write out-samples/samples.md: what a model writes at each loss, and what it quotes, for docs/explanation/training.md.

python scripts/samples.py            # half an hour or more on two cores; the run is kept in out-samples/

The first part is one run of shakespeare_char_best with independent draws. The second part compares the models that the
three presets have made in out-nanogpt/, out-best/ and out-record/, and is omitted without them.
"""

import argparse
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

import tinygpt
from tinygpt import api
from tinygpt.data.prompts import encode_prompt
from tinygpt.examine.report.overlap import SHORTEST, TrainingText
from tinygpt.generate import Sampling, generate

TARGETS = [4.2, 3.3, 2.5, 2.0, 1.9, 1.6, 1.5, 1.4]
SEEN = [
    "nothing is learned: every character is as probable as another",
    "which characters are frequent: e, t and the space, but few capitals",
    "which character follows which: pronounceable words that do not exist",
    "short words are right, and lines have the length of verse",
    "names, a colon, a line of verse; two of three words exist",
    "five of six words exist, and neighbouring words go together",
    "whole clauses are grammatical; the speech has no topic",
    "near the end of the run: grammar for a line or two, no plot",
]
OUT = Path("out-samples")
PROMPT, LENGTH = "ROMEO:", 220
HEAD = """# Is my sample normal at this loss?

What one model writes for the prompt `ROMEO:` while its loss falls: the preset `shakespeare_char_best` with
`--sampling=independent` (0.8 M parameters, Tiny Shakespeare), saved when its validation loss reached each value. Each
loss below is measured on the complete validation split; the share of words that occur in the training text is that of
4,000 generated characters. If your sample looks like one at a higher loss, look at the temperature first (here 0.8,
top-k 200). Losses of other texts, alphabets and tokenizers cannot be compared with these.

"""
MODELS = {
    "nanoGPT's recipe": "out-nanogpt/last.pt",
    "best preset": "out-best/last.pt",
    "record preset": "out-record/last.pt",
}
TEMPERATURES, SAMPLES, LENGTH_QUOTED = (0.8, 1.0), 100, 500
QUOTED = f"""## Does a better model only quote more?

Each model writes {SAMPLES} samples of {LENGTH_QUOTED} characters from a line feed (top-k 200). The table has the share
of all stretches of {SHORTEST} characters that occur word for word in the training text (the mean of the samples and its
standard error), and the longest quotation. The last row is the same for the validation text, which Shakespeare wrote
and no model was trained on. Headings that name the speaker are removed: many names would count as quotations.

| text | loss | quotations at temperature 0.8 | at 1.0 | longest, in characters |
|---|---|---|---|---|
"""


def train() -> None:
    """Train once, and keep the best model so far whenever its loss has reached the next target.

    The loss falls from 4.3 to 3.3 in ten iterations, so the model of the first target has a run of two of its own."""
    due, reached = TARGETS[1:], list[float]()

    def keep(entry: dict[str, Any]) -> None:
        if entry["kind"] == "train" and reached:  # the checkpoint of the last evaluation is complete now
            shutil.copy(OUT / "ckpt.pt", OUT / f"loss-{reached.pop()}.pt")
        elif entry["kind"] == "eval" and due and entry["val_loss"] < due[0] + 0.005:
            while due and entry["val_loss"] < due[0] + 0.005:
                reached[:] = [due.pop(0)]

    preset = "configs/shakespeare_char_best.yaml"
    often: dict[str, Any] = {"sampling": "independent", "eval_iters": 4, "log_interval": 1, "quiet": True}
    api.train(preset, out_dir=OUT / "first", max_iters=2, eval_interval=2, **often)
    shutil.copy(OUT / "first/ckpt.pt", OUT / f"loss-{TARGETS[0]}.pt")
    api.train(preset, callback=keep, out_dir=OUT, eval_interval=10, **often)
    for target in (*reached, *due):  # the last one, or one that was missed by little: the best model
        shutil.copy(OUT / "ckpt.pt", OUT / f"loss-{target}.pt")


def blocks() -> list[str]:
    """Format a section for each loss: the loss on the complete validation split, a sample, and how many words exist."""
    data = api.Dataset("data", "shakespeare_char")
    words, texts = set(data.tokenizer.decode(data.splits["train"].tolist()).split()), []
    for target, seen in zip(TARGETS, SEEN, strict=True):
        path = OUT / f"loss-{target}.pt"
        model, loss = tinygpt.load(path), api.evaluate(path, dataset="shakespeare_char", json=True)["loss"]
        written = model.generate(PROMPT, 4000, seed=2).split()
        share = sum(word in words for word in written) / len(written)
        sample = f"{PROMPT}{model.generate(PROMPT, LENGTH, seed=2)}"
        exist = f"{100 * share:.0f}% of its words occur in the training text."
        texts.append(f"## Loss {loss:.2f}\n\n{seen[0].upper()}{seen[1:]}. {exist}\n\n```text\n{sample}\n```\n")
    return texts


def without_headings(text: str) -> str:
    """Remove the lines that name the speaker: after a blank line, and with a colon at the end."""
    return re.sub(r"(?:\A|(?<=\n\n))[A-Z][^\n]*:\n", "", text)


def quotations() -> str:
    """Format the comparison of MODELS: how much each one quotes, and a sample of the first and the last one."""
    data = api.Dataset("data", "shakespeare_char")
    tokenizer = data.tokenizer
    train, val = (without_headings(tokenizer.decode(data.splits[split].tolist())) for split in ("train", "val"))
    training, rows, shown = TrainingText(train), [], []

    def row(name: str, loss: str, *groups: list[str]) -> str:
        cells = []
        for texts in groups:
            shares = [training.share(text) for text in texts if len(text) >= SHORTEST]
            cells.append(f"{statistics.mean(shares):.2%} ± {statistics.stdev(shares) / len(shares) ** 0.5:.2%}")
        longest = max((b - a for texts in groups for text in texts for a, b in training.stretches(text)), default=0)
        return f"| {name} | {loss} | {' | '.join((*cells, '')[:2])} | {longest} |"

    for name, path in MODELS.items():
        loss = api.evaluate(path, dataset="shakespeare_char", json=True)["loss"]
        model = tinygpt.load(path, device="cpu")
        prompt, groups = torch.tensor([encode_prompt("\n", tokenizer, plain=True)] * SAMPLES), []
        for choice in (Sampling(temperature=temperature, top_k=200) for temperature in TEMPERATURES):
            columns = list(generate(model.model, prompt, LENGTH_QUOTED, choice, tokenizer.vocab_size))
            texts = [tokenizer.decode(ids) for ids in torch.stack(columns, dim=1).tolist()]
            groups.append(list(map(without_headings, texts)))
        rows.append(row(name, f"{loss:.2f}", *groups))
        shown.append(f"{name[0].upper() + name[1:]}:\n\n```text\n{PROMPT}{model.generate(PROMPT, 600, seed=2)}\n```\n")
    pieces = [val[at : at + LENGTH_QUOTED] for at in range(0, len(val), LENGTH_QUOTED)]
    rows.append(row("the validation text", "", pieces))
    rows.append("\nA lower loss brings a few more quotations, still fewer than the validation text has.")
    return "\n".join([QUOTED.rstrip(), *rows, "", shown[0], shown[-1]])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    api.prepare("shakespeare_char")
    if not (OUT / f"loss-{TARGETS[-1]}.pt").exists():
        train()
    parts = blocks() + ([quotations()] if all(Path(path).exists() for path in MODELS.values()) else [])
    (OUT / "samples.md").write_text(HEAD + "\n".join(parts), encoding="utf-8")
