"""`tinygpt lab adapt`: a model goes on learning while it reads. It scores a chunk of text, then takes an optimizer step
on it (dynamic evaluation, Krause et al. 2018). What does it gain, what does it forget, and what does this cost?"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.files import read_text
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, spread
from tinygpt.learn.lab.definition import Lab, learn, seeds, stage

FULL = (1500, 30_000, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3))  # iterations, characters to read, learning rates of Adam
QUICK = (250, 8000, (1e-4, 3e-4, 1e-3))
CHUNK = 32  # characters before each step; the model also sees earlier ones, as many as fit into its context
CLOSE = 0.05  # nats per character: smaller changes may be due to the choice of the text
TUNING, SAME, OTHER = "training split", "Shakespeare", "industries"  # the texts
WAYS = {"static": "--", "adapting": "o-", "trained on industries": ":"}  # to read, with their lines in the picture
STATIC, ADAPTING, TRAINED = WAYS


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    steps, length, rates = QUICK if config.quick else FULL
    trainings, texts = contents(length, config.text if "text" in config.given else "")
    for seed in seeds(config):
        for author, splits in trainings.items():
            yield stage(f"train on {author}, seed {seed}", steps / 20, train, folder, splits, author, steps, seed)
        for text in texts:
            yield stage(f"read {text}, seed {seed}", length / 500, measure, folder, texts, rates, seed=seed, text=text)


def contents(length: int, own: str = "") -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the splits to train on, and the ends of the texts to read, which no training contains."""
    shakespeare, texts = api.corpus("shakespeare_char"), {OTHER: api.corpus("naics")}
    if own:
        text = read_text(Path(own), "--text FILE")
        texts[f"{Path(own).name}, {len(text):,} characters"] = text  # of an edited file, the stages run again
    known, cut = set(shakespeare), int(0.9 * len(shakespeare))
    texts = {name: "".join(filter(known.__contains__, text)) for name, text in texts.items()}
    if min(map(len, texts.values())) < 1000:
        raise api.TinyGPTError(f"{own}: too short to read", "a --text FILE with 1,000 letters or more")
    ends = {name: text[-length:] for name, text in {TUNING: shakespeare[:cut], SAME: shakespeare, **texts}.items()}
    starts = {SAME: shakespeare[: cut - length], OTHER: texts[OTHER][:-length]}
    return {author: {"train": start, "val": ends[author]} for author, start in starts.items()}, ends


def train(folder: Path, splits: dict[str, str], author: str, iterations: int, seed: int) -> None:
    dataset = api.write_dataset(folder / f"data/{author}-{seed}", splits, tokenizer=[api.corpus("shakespeare_char")])
    learn("lab_canary", folder / f"{author}-{seed}", dataset, seed=seed, max_iters=iterations)


def measure(folder: Path, texts: dict[str, str], rates: list[float], seed: int, text: str) -> list[dict[str, object]]:
    """Read a text in each way. `after`: the static loss on Shakespeare that follows."""
    found: list[dict[str, object]] = []
    for way, rate in [(STATIC, 0.0), *((ADAPTING, rate) for rate in rates), (TRAINED, 0.0)]:
        model = api.load(folder / f"{OTHER if way == TRAINED else SAME}-{seed}", device="cpu", threads=1)
        began = time.perf_counter()
        losses = read(model, texts[text], rate)
        ms = 1000 * (time.perf_counter() - began) / len(losses)
        curve, after = [part.mean() for part in np.array_split(losses, 10)], read(model, texts[SAME]).mean()
        found.append({"way": way, "rate": rate, "loss": losses.mean(), "curve": curve, "after": after, "ms": ms})
    return found


def read(loaded: api.LoadedModel, text: str, rate: float = 0) -> np.ndarray:
    """Return the loss of each character but the first, in nats (n - 1,). With a rate, this changes the model."""
    model, ids, end, losses = loaded.model, torch.tensor(loaded.encode(text)), 0, []
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for targets in ids[1:].split(CHUNK):
        end += len(targets)
        with torch.set_grad_enabled(rate > 0):
            logits, _ = model(ids[None, max(0, end - model.config.block_size) : end])
            loss = cross_entropy(logits[0, -len(targets) :], targets, reduction="none")
        losses += loss.tolist()
        if rate > 0:
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    return np.array(losses)


def summarise(reads: Records, _: LabConfig) -> Summary:
    tuned = reads.where(text=TUNING, way=ADAPTING).by("seed")
    rates = {seed: min(own, key=lambda one: one["loss"])["rate"] for seed, own in tuned.items()}
    chosen = Records(one for one in reads if one["rate"] in (0, rates[one["seed"]]) and one["text"] != TUNING)
    groups, texts = chosen.by("text", "way"), list(chosen.by("text"))
    cells = [
        {"reading": f"{way}, rate {rate:g}" if rate else way}
        | {text: spread(own.where(text=text).values("loss"), ".2f") for text in reads.by("text")}
        | {f"{SAME}, after": spread(own.where(text=OTHER).values("after"), ".2f"), "ms": f"{own.median('ms'):.2f}"}
        for (way, rate), own in reads.by("way", "rate").items()
    ]
    note = (
        "Loss in nats per character, median over the seeds (minimum to maximum), on texts that no training contains, "
        "without characters that Tiny Shakespeare lacks. A chosen rate is the best on the end of the training split; "
        f"by seed: {', '.join(map(str, rates.values()))}. Is it the best for the other texts? Shakespeare, after: "
        f"having read {OTHER}. ms: per character, one thread. Trained on {OTHER}: on the rest of that text."
    )
    slow, fast = (chosen.where(way=way).median("ms") for way in (ADAPTING, STATIC))
    verdicts = [
        *(change("Adapting", text, groups[text, STATIC], groups[text, ADAPTING]) for text in texts),
        change("Retraining instead of adapting", OTHER, groups[OTHER, ADAPTING], groups[OTHER, TRAINED]),
        change(f"Adapting to {OTHER}", SAME, groups[SAME, STATIC], groups[OTHER, ADAPTING], "after"),
        Verdict(f"Adapting takes {slow / fast:.1f} times as long as static reading.", "median times per character"),
    ]
    lines = [
        Line(f"{text}, {way}", range(1, 11), np.median(own.values("curve"), axis=0), WAYS[way], f"C{texts.index(text)}")
        for (text, way), own in groups.items()
        if way != TRAINED or text == OTHER
    ]
    table, plane = Table("Losses", cells, note), Plane("tenth of the text", "nats per character", lines, above=2)
    return Summary("Learning while reading", "What does it gain, forget and cost?", [table], verdicts, "Losses", plane)


def change(what: str, text: str, before: Records, after: Records, key: str = "loss") -> Verdict:
    changes = [new - old for old, new in zip(before.values("loss"), after.values(key), strict=True)]
    does = "lowers" if max(changes) < -CLOSE else "raises" if min(changes) > CLOSE else "does not clearly change"
    medians = f"from {before.median('loss'):.2f} to {after.median(key):.2f} nats per character"
    rule = f"a change counts if it has the same sign and more than {CLOSE} nats in each seed"
    return Verdict(f"{what} {does} the loss on {text} {medians}: {spread(changes, '+.2f')}.", rule)


LAB = Lab("a model that goes on learning while it reads", stages, summarise, others=("text",), quick=True)
