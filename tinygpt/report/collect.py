"""Collect the content of a page from a run's folder, as plain values for the template."""

import contextlib
import dataclasses
import hashlib
import math
import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tinygpt import __version__
from tinygpt.checkpoint.health import refuse_diverged, require_finite
from tinygpt.checkpoint.store import Checkpoint, load, tokenizer_of
from tinygpt.config import suggest
from tinygpt.config.schema import ExportConfig, ReportConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.prompts import answers
from tinygpt.data.rows import PairRows
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, Tokenizer
from tinygpt.errors import TinyGPTError, diverged
from tinygpt.evaluate.baselines import ngram_baselines
from tinygpt.evaluate.doctor import evaluations, is_number, judge, read_run
from tinygpt.evaluate.loss import bits_per_character, measured_loss, perplexity, short_number
from tinygpt.evaluate.origin import data_dir
from tinygpt.model import GPT
from tinygpt.report.overlap import SHORTEST, Training, marked
from tinygpt.report.weights import pack
from tinygpt.sample import Choice, answer, generate
from tinygpt.training import device
from tinygpt.training.build import for_inference

PASSAGE = 600  # characters of each split whose losses are shown
EXAMPLES = 8  # of each split, for prompts and responses
HELD_OUT = 20_000  # tokens of the validation text, whose share of quotations is shown next to the samples'
MOST_TEXT = 10_000_000  # tokens of the training text that are searched: the first ones
WORK = 10**11  # parameters times tokens of the loss measurement: 3 s on two cores
MARGIN = 24  # around the map of the embedding vectors, which is 700 wide
SMALL = 4_000_000  # parameters up to which one thread is enough
LARGEST = 20_000_000  # parameters of a model in a page


@dataclasses.dataclass
class LoadedRun:
    """A run's folder, with its best model loaded."""

    folder: Path
    checkpoint: Checkpoint
    model: GPT
    tokenizer: Tokenizer
    compute: device.Compute
    dataset: Dataset | None
    missing: str  # why there is no dataset

    @property
    def answers(self) -> bool:
        return isinstance(self.tokenizer, CharTokenizer) and answers(self.tokenizer)

    @property
    def unit(self) -> str:
        return "character" if isinstance(self.tokenizer, CharTokenizer) else "token"

    def split(self, name: str) -> np.ndarray:
        assert self.dataset is not None
        return self.dataset.splits[name]

    def held_out_pairs(self) -> list[tuple[str, str]]:
        """Prompts and responses of the validation split; none for plain text or without the dataset."""
        return self.dataset.sources["val"].texts(self.tokenizer) if self.dataset else []


def load_run(path: str, config: ReportConfig | ExportConfig, checkpoint: Checkpoint | None = None) -> LoadedRun:
    """Load the best model of a folder, or `checkpoint`, and its dataset if that is here.

    Errors: TinyGPTError for a missing checkpoint or tokenizer, and for a model that diverged.
    """
    checkpoint = checkpoint or load(path)
    place = data_dir(config, checkpoint.config)
    tokenizer = tokenizer_of(checkpoint, path, place)
    compute = device.choose("auto", "float32")
    model = for_inference(checkpoint, compute)
    refuse_diverged(model, path)
    missing, dataset = "", None
    name = str(checkpoint.config.get("dataset", ""))
    try:
        dataset = Dataset(place, name)
        if not dataset.adopt_tokenizer(tokenizer):
            dataset, missing = None, f"dataset {name!r} and this model have different vocabularies"
        elif checkpoint.data and not dataset.is_of(checkpoint.data):
            missing = f"dataset {name!r} is not the text that the model was trained on"
    except TinyGPTError as error:
        missing = error.message
    return LoadedRun(Path(path), checkpoint, model, tokenizer, compute, dataset, missing)


@contextlib.contextmanager
def own_pace(model: GPT) -> Iterator[None]:
    """Compute with one thread for a small model, whose matrix products are too short to share.

    The 0.8 M model's report took 11 s with one thread and 50 s with two, on two cores that other programs used as well:
    at each product one thread waited for the other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if model.num_params() < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---- summary ----------------------------------------------------------------------------------------------------


def summary(run: LoadedRun, entries: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Collect facts about the run, its losses, the parameters of each part, and the verdict."""
    shape, parts = run.model.config, parameters(run.model)
    total, counted = sum(parts.values()), run.model.num_params()
    without = f", {counted:,} without the position embeddings," if counted < total else ""
    tokens = len(run.split("train")) if run.dataset else 0
    verdict = judge(entries, settings, str(run.folder), counted, tokens)
    done = max((entry["step"] for entry in entries), default=run.checkpoint.step)
    seconds = max((entry["seconds"] for entry in entries if is_number(entry.get("seconds"))), default=0.0)
    facts = {
        "model": f"{total:,} parameters{without} in {shape.n_layer} layers of {shape.n_head} heads, width "
        f"{shape.n_embd}, context of {shape.block_size} {run.unit}s",
        "trained on": trained_on(run),
        "iterations": f"{done:,} of {settings.get('max_iters', done):,}; the model in this page is the best one, "
        f"after {run.checkpoint.step:,}",
        "took": f"{seconds // 60:.0f} min {seconds % 60:.0f} s",
        "machine": machine(run.folder),
    }
    return {"facts": facts, "verdict": verdict, "parts": parts, "losses": losses(run), "before_after": before(entries)}


def parameters(model: GPT) -> dict[str, int]:
    """Count the parameters of each part of the model."""
    names = {"wte": "token embedding", "wpe": "position embedding", "wbe": "bigram embedding"}
    names |= {"attn": "attention", "mlp": "MLP", "ln_1": "norms", "ln_2": "norms", "ln_f": "norms", "lm_head": "head"}
    parts: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        parts[next(part for key, part in names.items() if key in name.split("."))] += weight.numel()
    return dict(parts)


def trained_on(run: LoadedRun) -> str:
    name = str(run.checkpoint.config.get("dataset", "an unknown dataset"))
    if run.dataset is None:
        return f"{name} (note: {run.missing})"
    source, known = run.dataset.sources["train"], f"a vocabulary of {run.tokenizer.vocab_size:,}"
    if isinstance(source, PairRows):
        size = f"{len(source.starts):,} prompts with their responses"
    else:
        size = f"{len(run.split('train')):,} {run.unit}s of text"
    return f"{name}: {size}, {known}" + (f" (note: {run.missing})" if run.missing else "")


def machine(folder: Path) -> str:
    """Read the first line of config.yaml, a comment in which `train` notes versions, device and dtype."""
    try:
        first = (folder / "config.yaml").read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        first = ""
    return first.removeprefix("# ") if first.startswith("# tinygpt") else "not noted"


def losses(run: LoadedRun) -> list[dict[str, Any]]:
    """Measure the loss of the n-gram baselines and of the model, on the same targets of the validation split."""
    if run.dataset is None or len(run.split("val")) < 2:
        return []
    source, block_size = run.dataset.sources["val"], run.model.config.block_size
    rows = source.every(block_size)[: max(1, WORK // run.model.num_params() // source.width(block_size))]
    loss, error = measured_loss(run.model, source, rows, run.compute)
    if not math.isfinite(loss):
        raise diverged("the loss is", loss)
    val = run.split("val")
    where: slice | np.ndarray = slice(len(rows) * block_size)  # the same targets
    if isinstance(source, PairRows):
        spans = [np.arange(r, e - 1) for r, e in zip(source.responses[rows], source.ends[rows], strict=True)]
        where = np.concatenate(spans)
    measured = ngram_baselines(run.split("train"), val, run.tokenizer.vocab_size, where) | {"this model": loss}
    return [
        {
            "name": name,
            "loss": value,
            "error": error if name == "this model" and math.isfinite(error) else None,
            "perplexity": short_number(perplexity(value)),
            "bits": bits_per_character(value, run.dataset),
        }
        for name, value in measured.items()
    ]


def before(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Losses that `finetune` measured before and after; empty if the run has none."""
    found = {entry["kind"]: entry for entry in entries if entry["kind"] in ("before", "after")}
    names = {"response_loss": "loss on the responses", "base_loss": "loss on the base model's own text"}
    if len(found) < 2:
        return {}
    both = {names[key]: (found["before"].get(key), found["after"].get(key)) for key in names}
    return {name: pair for name, pair in both.items() if all(map(is_number, pair))}


# ---- curves and samples -----------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, Any]:
    """Evaluations and training lines of a run. Errors: TinyGPTError for a folder without metrics.jsonl."""
    entries, settings = read_run(folder)
    steps, train, val, error, _ = evaluations(entries, settings)
    lines = [
        (entry["step"], entry["lr"], entry["grad_norm"])
        for entry in entries
        if entry["kind"] == "train" and is_number(entry.get("lr")) and is_number(entry.get("grad_norm"))
    ]
    return {
        "name": folder.name or str(folder.resolve().name),
        "steps": steps,
        "train": train.tolist(),
        "val": val.tolist(),
        "error": error.tolist(),
        "lines": lines,
    }


def samples(entries: list[dict[str, Any]], training: Training | None, first: str) -> list[dict[str, Any]]:
    """Samples that `train` took, in pieces, each with whether it is a quotation from the training text."""
    found = []
    for entry in entries:
        if entry["kind"] == "sample" and isinstance(entry.get("text"), str):
            text = entry["text"]
            stretches = training.stretches(text) if training else []
            share = training.share(text) if training else math.nan
            prompt = str(entry.get("prompt", first))
            found.append({"step": entry["step"], "prompt": prompt, "pieces": marked(text, stretches), "share": share})
    return found


def training_text(run: LoadedRun) -> Training | None:
    return Training(run.tokenizer.decode(run.split("train")[:MOST_TEXT].tolist())) if run.dataset else None


def memorised(run: LoadedRun, training: Training) -> dict[str, Any]:
    """Fraction of quotations in new samples of the best and the newest model, and in held-out text."""
    texts = {f"best model (step {run.checkpoint.step:,})": fresh(run, run.model)}
    try:
        last = load(run.folder / "last.pt")
        if last.step > run.checkpoint.step:
            texts[f"newest model (step {last.step:,})"] = fresh(run, for_inference(last, run.compute))
    except TinyGPTError:
        pass  # a folder with the best model alone
    longest = [
        (end - start, name, text[start:end])
        for name, made in texts.items()
        for text in made
        for start, end in training.stretches(text)
    ]
    if pairs := run.held_out_pairs():
        texts["held-out responses"] = [response for _, response in pairs]
    else:
        texts["held-out text"] = [run.tokenizer.decode(run.split("val")[:HELD_OUT].tolist())]
    return {
        "texts": any(len(text) >= SHORTEST for made in texts.values() for text in made),
        "shares": {name: (training.share(*made), sum(map(len, made))) for name, made in texts.items()},
        "longest": sorted(longest, key=lambda found: -found[0])[:5],
        "characters": SHORTEST,
    }


def fresh(run: LoadedRun, model: GPT, count: int = 4, length: int = 500) -> list[str]:
    """Generate text: `count` samples at temperature 0.8, or for a model that answers prompts, greedy responses."""
    if run.answers and isinstance(run.tokenizer, CharTokenizer):
        return [answer(model, run.tokenizer, prompt) for prompt, _ in run.held_out_pairs()[:EXAMPLES]]
    start = torch.zeros(count, 1, dtype=torch.long, device=run.compute.device)
    choice = Choice(temperature=0.8, top_k=200)
    made = torch.stack(list(generate(model, start, length, choice, run.tokenizer.vocab_size)), dim=1)
    return [run.tokenizer.decode(row) for row in made.tolist()]


# ---- inside -----------------------------------------------------------------------------------------------------


def passages(run: LoadedRun) -> dict[str, list[dict[str, Any]]]:
    """A passage of the training text and one of the held-out text, with the model's prediction of each token."""
    if run.dataset is None:
        return {}
    found = {}
    for split in ("train", "val"):
        source, tokens = run.dataset.sources[split], run.split(split)
        if isinstance(source, PairRows):
            bounds = list(zip(source.starts, source.responses, source.ends, strict=True))[:EXAMPLES]
            found[split] = [
                cell
                for start, response, end in bounds
                for cell in guesses(run, tokens[start:end], 1, int(response - start))
            ]
        else:
            block_size = run.model.config.block_size
            first = max(1, min(len(tokens) // 2, len(tokens) - PASSAGE))
            if "\n" in (text := run.tokenizer.decode(tokens[first : first + 200].tolist()))[:-1]:
                first += len(run.tokenizer.encode(text[: text.index("\n") + 1]))  # begin at a line's beginning
            start = max(0, first - block_size)
            found[split] = guesses(run, tokens[start : first + PASSAGE], first - start)[first - start :]
    return found


@torch.inference_mode()
def guesses(run: LoadedRun, tokens: np.ndarray, first: int, silent: int = 0) -> list[dict[str, Any]]:
    """A cell for each token; from `first` on, after `silent`, with its loss, rank, probability and five best tokens.

    Each token is predicted from at least half a context, as far as the tokens reach.
    """
    block_size, count = run.model.config.block_size, len(tokens)
    half, ids = max(1, block_size // 2), torch.from_numpy(tokens.astype(np.int64)).to(run.compute.device)
    names = [run.tokenizer.decode([token]) for token in tokens.tolist()]
    cells: list[dict[str, Any]] = [{"text": name} for name in names]
    for start in range(first, count, half):
        low, high = max(0, start - max(1, block_size - half)), min(start + half, count)
        logits = run.model(ids[None, low : high - 1])[0][0, start - low - 1 :, : run.tokenizer.vocab_size]
        require_finite(logits)
        chances, best = logits.softmax(-1), logits.topk(min(5, run.tokenizer.vocab_size)).indices
        own = chances.gather(1, ids[start:high, None])
        ranks = (chances > own).sum(1) + 1
        for row, place in enumerate(range(start, high)):
            if place > silent:
                top = [(run.tokenizer.decode([int(i)]), round(chances[row, i].item(), 4)) for i in best[row]]
                p = own[row].item()
                cells[place] |= {"p": p, "loss": -math.log(max(p, 1e-9)), "rank": int(ranks[row]), "top": top}
    return cells


def embedding_map(run: LoadedRun) -> dict[str, Any]:
    """Project the tokens' embedding vectors onto their first two principal components (Pearson 1901)."""
    symbols = run.tokenizer.symbols if isinstance(run.tokenizer, CharTokenizer) else []
    if len(symbols) < 3 or run.model.config.n_embd < 2:
        return {}
    vectors = device.to_host(run.model.transformer["wte"].weight[: len(symbols)])
    centred = vectors - vectors.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    places = left[:, :2] * scale[:2] * (1, -1)  # y points down in a picture
    places -= places.min(0)
    places *= (700 - 2 * MARGIN) / max(places[:, 0].max(), places[:, 1].max() / 0.8, 1e-9)  # one scale for both axes
    places += MARGIN
    size = [700, math.ceil(places[:, 1].max() + MARGIN)]
    points = [
        {"text": symbol, "x": x, "y": y, "kind": kind_of(symbol)}
        for symbol, (x, y) in zip(symbols, places.tolist(), strict=True)
    ]
    return {
        "points": points,
        "size": size,
        "explained": (scale[:2] ** 2 / max((scale**2).sum(), 1e-300)).tolist(),
        "width": vectors.shape[1],
    }


def kind_of(symbol: str) -> str:
    if symbol in SPECIAL:
        return "mark"
    if symbol.isalpha():
        vowel = symbol.lower() in "aeiou"
        return ("vowel" if vowel else "consonant") if symbol.islower() else "capital"
    return "digit" if symbol.isdigit() else "other"


def live_model(run: LoadedRun) -> dict[str, Any]:
    """Pack the model for the page's script. Errors: TinyGPTError for one that is too large, or that `pack` refuses."""
    if run.model.num_params() > LARGEST:
        what = f"the model has {run.model.num_params():,} parameters, more than the {LARGEST:,} of a model in a page"
        raise TinyGPTError(what, "train a smaller model")
    return pack(run.model, run.tokenizer)


def opening(run: LoadedRun, made: list[str]) -> str:
    """First content of the text box: words that the model generated, or a prompt."""
    if run.answers:
        return next((prompt for prompt, _ in run.held_out_pairs()), "")
    text = made[0].lstrip()[:60] if made else ""
    return text.rpartition(" ")[0] or text


# ---- reproduce --------------------------------------------------------------------------------------------------


def reproduce(run: LoadedRun, settings: dict[str, Any]) -> dict[str, Any]:
    """Configuration, checksums, versions and commands that reproduce the run."""
    path = run.folder / "ckpt.pt"
    sums = {f"{run.folder.name}/ckpt.pt": hashlib.sha256(path.read_bytes()).hexdigest()} if path.is_file() else {}
    name = str(run.checkpoint.config.get("dataset", ""))
    sums |= {f"{name} {file}": str(value) for file, value in sorted(run.checkpoint.data.items())}
    place = suggest.data_dir_flag(run.dataset.folder.parent if run.dataset else "data")
    again = suggest.command(suggest.training_command(settings), "config.yaml")
    prepare = run.dataset.prepare_command if run.dataset else suggest.command("prepare", name)
    versions = f"tinygpt {__version__}, torch {torch.__version__}, numpy {np.__version__}, Python "
    return {
        "commands": [prepare, again, suggest.command("report", run.folder, *place)],
        "config": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "sums": sums,
        "trained": machine(run.folder),
        "here": f"{versions}{platform.python_version()}, {platform.system()} {platform.machine()}, threads: "
        f"{torch.get_num_threads()}",
    }
