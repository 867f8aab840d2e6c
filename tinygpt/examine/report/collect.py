"""Collect the content of a page from a run's folder, as plain values for the template."""

import contextlib
import copy
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

from tinygpt.base import __version__, device
from tinygpt.base.configs import suggest
from tinygpt.base.configs.adapt import ExportConfig
from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import without_folders
from tinygpt.base.terminal import counted
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.snapshots import snapshots
from tinygpt.checkpoint.store import Checkpoint, load, tokenizer_of
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.prompts import encode_prompt
from tinygpt.data.rows import PairRows
from tinygpt.data.tokenizer import END, SPECIAL, CharTokenizer, Tokenizer
from tinygpt.examine.eval.baselines import ngram_baselines, omissions_note
from tinygpt.examine.report.overlap import SHORTEST, TrainingText, marked
from tinygpt.examine.report.weights import BLOCK, differences, pack
from tinygpt.generate import Sampling, answer, generate, refuse_diverged, require_finite
from tinygpt.model import GPT
from tinygpt.training.log import is_number, read_metrics
from tinygpt.training.losses import bits_per_character, loss_and_error, perplexity, short_number
from tinygpt.training.verdict import evaluations, judge

PASSAGE = 600  # tokens of each split whose losses are shown
CONTEXT = 1024  # most tokens read at once for these losses: with 135 M parameters they take 25 s on one core
EXAMPLES = 8  # examples of each split whose losses are shown, for prompts with responses
HELD_OUT = 20_000  # tokens of the validation text that are searched for quotations, to compare the samples with
MOST_TEXT = 10_000_000  # first tokens of the training text, in which quotations are looked up
WORK = 10**11  # most parameters times tokens of the loss measurement: 3 s on two cores
QUICK = 20  # a page of a run that is training, which must not take time from it, may cost WORK / QUICK
PARTS = {"wte": "token embedding", "wpe": "position embedding", "wbe": "bigram embedding", "attn": "attention"}
MARGIN = 24  # around the map of the embedding vectors, which is 700 wide
SMALL = 4_000_000  # most parameters of a model for which one thread is enough
LARGEST = 9_000_000  # most parameters of a model in a page: 24 MB, which Node runs at 80 tokens per second on one core
MOST = 25_000_000  # bytes of models in a page: others beyond it are not compared
ROOM = 7_600_000  # bytes of models in a page, beyond which it gets no snapshots: 8 MB with everything else


@dataclasses.dataclass
class LoadedRun:
    """A run's folder, with its best model loaded."""

    folder: Path
    checkpoint: Checkpoint
    model: GPT
    tokenizer: Tokenizer
    compute: device.Compute
    dataset: Dataset | None
    missing: str  # why there is no dataset, or in what the dataset differs from that of the run
    quick: bool  # it is training

    @property
    def name(self) -> str:
        return self.folder.name or self.folder.resolve().name

    @property
    def answers(self) -> bool:
        return self.tokenizer.pair is not None and self.tokenizer.stop == END

    @property
    def is_large(self) -> bool:
        """Return whether the model is too large for a page, which then has no model and no newly generated text."""
        return self.model.num_params() > LARGEST

    def affordable(self, work: int) -> int:
        """Limit a number of operations: a page of a run that is training may cost only `1 / QUICK` of it."""
        return work // QUICK if self.quick else work

    @property
    def unit(self) -> str:
        return "character" if isinstance(self.tokenizer, CharTokenizer) else "token"

    @property
    def context(self) -> int:
        """Return the context length for the losses of a passage."""
        return min(self.model.config.block_size, CONTEXT)

    def split(self, name: str) -> np.ndarray:
        assert self.dataset is not None
        return self.dataset.splits[name]

    def training_text(self) -> TrainingText:
        return TrainingText(self.tokenizer.decode(self.split("train")[:MOST_TEXT].tolist()))

    def held_out_pairs(self) -> list[tuple[str, str]]:
        """Return the prompts and responses of the validation split; none for plain text or without the dataset."""
        return self.dataset.sources["val"].examples(self.tokenizer) if self.dataset else []


def load_run(path: str, config: ReportConfig | ExportConfig, quick: bool = False) -> LoadedRun:
    """Load the best model of a folder, with the adapter of `export`, and its dataset if that is here. Errors:
    TinyGPTError for a missing checkpoint or tokenizer, and for a model that diverged."""
    checkpoint = load_model(path, config.adapter if isinstance(config, ExportConfig) else "")
    data_folder = data_dir(config, checkpoint.config, path)
    tokenizer = tokenizer_of(checkpoint, path, data_folder)
    compute = device.choose("cpu" if isinstance(config, ReportConfig) and config.live else "auto", "float32")
    model = checkpoint.for_inference(compute)
    refuse_diverged(model, path)
    missing, dataset = "", None
    name = str(checkpoint.config.get("dataset", ""))
    try:
        dataset = Dataset(data_folder, name)
        if not dataset.adopt_tokenizer(tokenizer):
            dataset, missing = None, f"dataset {name!r} and this model have different vocabularies"
        elif checkpoint.data and not dataset.has_checksums(checkpoint.data):
            missing = f"dataset {name!r} is not the text that the model was trained on"
    except TinyGPTError as error:
        missing = error.message.replace(data_folder, without_folders(data_folder))
    return LoadedRun(Path(path), checkpoint, model, tokenizer, compute, dataset, missing, quick)


@contextlib.contextmanager
def one_thread_if_small(model: GPT) -> Iterator[None]:
    """Compute with one thread if the model is small: its matrix products are too small to divide (see threads.py).

    On two busy cores, the report of the 0.8 M model took 11 s with one thread and 50 s with two.
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
    total, size = sum(parts.values()), run.model.num_params()
    without = f", {size:,} without the position embeddings," if size < total else ""
    shared = f" ({shape.kv_heads} of keys and values)" if shape.kv_heads < shape.n_head else ""
    tokens = len(run.split("train")) if run.dataset else 0
    verdict = judge(entries, settings, without_folders(str(run.folder)), size, tokens)
    done = max((entry["step"] for entry in entries), default=run.checkpoint.step)
    seconds = max((entry["seconds"] for entry in entries), default=0.0)
    facts = {
        "model": f"{total:,} parameters{without} in {counted(shape.n_layer, 'layer')} of "
        f"{counted(shape.n_head, 'head')}{shared}, width {shape.n_embd}, context of {shape.block_size} {run.unit}s",
        "trained on": trained_on(run),
        "iterations": f"{done:,} of {settings.get('max_iters', done):,}; this page describes the best model, of "
        f"iteration {run.checkpoint.step:,}",
        "training time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s",
        "machine": machine(run.folder),
    }
    measured, note = losses(run)
    tables = {"losses": measured, "losses_note": note, "before_after": before_after(entries)}
    return {"facts": facts, "verdict": verdict, "parts": parts, **tables}


def parameters(model: GPT) -> dict[str, int]:
    """Count the parameters of each part of the model; of tied weights, once."""
    names = PARTS | {"mlp": "MLP", "ln_1": "norms", "ln_2": "norms", "ln_f": "norms", "lm_head": "head"}
    parts: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        parts[next(part for key, part in names.items() if key in name.split("."))] += weight.numel()
    return dict(parts)


def trained_on(run: LoadedRun) -> str:
    name = str(run.checkpoint.config.get("dataset", "an unknown dataset"))
    if run.dataset is None:
        return f"{name} (note: {run.missing})"
    source, size = run.dataset.sources["train"], f"{len(run.split('train')):,} {run.unit}s of text"
    if isinstance(source, PairRows):
        size = f"{counted(len(source.starts), 'prompt')} with responses"
    note = f" (note: {run.missing})" if run.missing else ""
    return f"{name}: {size}, a vocabulary of {run.tokenizer.vocab_size:,} tokens{note}"


def machine(folder: Path) -> str:
    """Read the first line of config.yaml, a comment in which `train` records versions, device and dtype."""
    path = folder / "config.yaml"
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if path.is_file() else ""
    return first.removeprefix("# ") if first.startswith("# tinygpt") else "not recorded"


def losses(run: LoadedRun) -> tuple[list[dict[str, Any]], str]:
    """Measure the losses of the n-gram baselines and of the model on the same targets of the validation split, or on
    the part of it that WORK allows; and say what the baselines leave out."""
    if run.dataset is None or len(run.split("val")) < 2:
        return [], ""
    source, block_size = run.dataset.sources["val"], run.model.config.block_size
    most_rows = max(1, run.affordable(WORK) // run.model.num_params() // source.width(block_size))
    rows = source.all_rows(block_size)[:most_rows]
    loss, error = loss_and_error(run.model, source, rows, run.compute)
    train, val = run.split("train"), run.split("val")
    target_indices = np.arange(min(len(rows) * block_size, len(val) - 1))  # the same targets
    if isinstance(source, PairRows):
        spans = [np.arange(r, e - 1) for r, e in zip(source.responses[rows], source.ends[rows], strict=True)]
        target_indices = np.concatenate(spans)
    measured = ngram_baselines(train, val, run.tokenizer.vocab_size, target_indices) | {"this model": loss}
    bits_per_nat = bits_per_character(1.0, run.dataset)
    table = []
    for name, value in measured.items():
        units = {"perplexity": short_number(perplexity(value)), "bits": value * bits_per_nat}
        known = error if name == "this model" and math.isfinite(error) else None
        table.append({"name": name, "loss": value, "error": known} | units)
    return table, omissions_note(len(train), len(target_indices))


def before_after(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the losses that `finetune` measured before and after training; empty if the run has none."""
    last = {entry["kind"]: entry for entry in entries}
    new_data = "loss on the responses" if last.get("after", {}).get("prompts") else "loss on the new text"
    names = {"response_loss": new_data, "base_loss": "loss on the base model's text"}
    pairs = {names[key]: [last.get(kind, {}).get(key) for kind in ("before", "after")] for key in names}
    return {name: pair for name, pair in pairs.items() if all(map(is_number, pair))}


# ---- curves and samples -----------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, Any]:
    """Read the losses, learning rates and gradient norms of a run. Errors: TinyGPTError without metrics.jsonl."""
    entries = read_metrics(folder)
    steps, train, val, error = evaluations(entries)
    lines = [
        (entry["step"], entry["lr"], entry["grad_norm"])
        for entry in entries
        if entry["kind"] == "train" and is_number(entry.get("lr")) and is_number(entry.get("grad_norm"))
    ]
    measured = {"train": train.tolist(), "val": val.tolist(), "error": error.tolist()}
    return {"name": folder.name or folder.resolve().name, "steps": steps, "lines": lines} | measured


def samples(entries: list[dict[str, Any]], training: TrainingText | None) -> list[dict[str, Any]]:
    """Cut the samples that `train` generated into pieces, and mark those that are quotations from the training text."""
    cut_samples = []
    for entry in (entry for entry in entries if entry["kind"] == "sample"):
        text = entry["text"]
        stretches, share = (training.stretches(text), training.share(text)) if training else ([], math.nan)
        sample = {"step": entry["step"], "prompt": entry["prompt"], "pieces": marked(text, stretches)}
        cut_samples.append(sample | {"share": share})
    return cut_samples


def memorised(run: LoadedRun, training: TrainingText | None, quote: bool) -> dict[str, Any]:
    """Measure the fraction of quotations in new samples of the best and the newest model, and in the validation text.

    Returns {"texts": whether any sample is long enough, "shares": {name: (fraction, characters)}, "longest": [(length,
    name, text), ...] of the quotations in the samples, none without `quote`, "characters": length of the windows};
    empty without a training text, and for a model that is too large for a page: its samples would take minutes.
    """
    if training is None or run.is_large:
        return {}
    texts = {f"best model (step {run.checkpoint.step:,})": fresh(run, run.model)}
    with contextlib.suppress(TinyGPTError):  # a folder with the best model alone
        last = load(run.folder / "last.pt")
        if last.step > run.checkpoint.step:
            texts[f"newest model (step {last.step:,})"] = fresh(run, last.for_inference(run.compute))
    longest = [
        (end - start, name, text[start:end])
        for name, group in texts.items()
        for text in group
        for start, end in training.stretches(text)
        if quote
    ]
    if pairs := run.held_out_pairs():
        texts["validation responses"] = [response for _, response in pairs]
    else:
        texts["validation text"] = [run.tokenizer.decode(run.split("val")[:HELD_OUT].tolist())]
    return {
        "texts": any(len(text) >= SHORTEST for group in texts.values() for text in group),
        "shares": {name: (training.share(*group), sum(map(len, group))) for name, group in texts.items()},
        "longest": sorted(longest, key=lambda quotation: -quotation[0])[:5],
        "characters": SHORTEST,
    }


def fresh(run: LoadedRun, model: GPT, count: int = 4, length: int = 500) -> list[str]:
    """Generate text: `count` samples at temperature 0.8, or for a model that answers prompts, greedy responses."""
    if run.answers:
        return [answer(model, run.tokenizer, prompt) for prompt, _ in run.held_out_pairs()[:EXAMPLES]]
    start = torch.tensor([encode_prompt("", run.tokenizer, plain=True)] * count, device=run.compute.device)
    choice = Sampling(temperature=0.8, top_k=200)
    token_ids = torch.stack(list(generate(model, start, length, choice, run.tokenizer.vocab_size)), dim=1)
    return [run.tokenizer.decode(row) for row in token_ids.tolist()]


# ---- inside -----------------------------------------------------------------------------------------------------


def passages(run: LoadedRun) -> dict[str, list[dict[str, Any]]]:
    """Predict a passage of each split, train and val: a cell for each token, see `predictions`."""
    if run.dataset is None:
        return {}
    cells: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for split in cells:
        source, tokens = run.dataset.sources[split], run.split(split)
        if isinstance(source, PairRows):
            for start, response, end in list(zip(source.starts, source.responses, source.ends, strict=True))[:EXAMPLES]:
                cells[split] += predictions(run, tokens[start:end], 1, int(response - start))
        else:
            first = max(1, min(len(tokens) // 2, len(tokens) - PASSAGE))
            if "\n" in (text := run.tokenizer.decode(tokens[first : first + 200].tolist()))[:-1]:
                first += len(run.tokenizer.encode(text[: text.index("\n") + 1]))  # begin at the start of a line
            start = max(0, first - run.context)
            cells[split] = predictions(run, tokens[start : first + PASSAGE], first - start)[first - start :]
    return cells


@torch.inference_mode()
def predictions(run: LoadedRun, tokens: np.ndarray, first: int, prompt_end: int = 0) -> list[dict[str, Any]]:
    """Make a cell for each token: {"text"}, and from position `first` and after `prompt_end` also the prediction.

    A prediction is {"p", "loss", "rank" of the token, "top": [(text, probability), ...] of the five most probable}.
    Its context is at least half of `run.context`, or all earlier tokens if there are fewer.
    """
    count = len(tokens)
    half, ids = max(1, run.context // 2), torch.from_numpy(tokens.astype(np.int64)).to(run.compute.device)
    names = [run.tokenizer.decode([token]) for token in tokens.tolist()]
    cells: list[dict[str, Any]] = [{"text": name} for name in names]
    for start in range(first, count, half):
        low, high = max(0, start - max(1, run.context - half)), min(start + half, count)
        logits = run.model(ids[None, low : high - 1])[0][0, start - low - 1 :, : run.tokenizer.vocab_size]
        require_finite(logits)
        probabilities, best = logits.softmax(-1), logits.topk(min(5, run.tokenizer.vocab_size)).indices
        token_probabilities = probabilities.gather(1, ids[start:high, None])
        ranks = (probabilities > token_probabilities).sum(1) + 1
        for row, position in enumerate(range(start, high)):
            if position > prompt_end:
                top = [(run.tokenizer.decode([int(i)]), round(probabilities[row, i].item(), 4)) for i in best[row]]
                p = token_probabilities[row].item()
                cells[position] |= {"p": p, "loss": -math.log(max(p, 1e-9)), "rank": int(ranks[row]), "top": top}
    return cells


def embedding_map(run: LoadedRun) -> dict[str, Any]:
    """Project the tokens' embedding vectors onto their first two principal components (Pearson 1901)."""
    vocabulary = run.tokenizer.symbols if isinstance(run.tokenizer, CharTokenizer) else []
    if len(vocabulary) < 3 or run.model.config.n_embd < 2:
        return {}
    vectors = device.to_host(run.model.transformer["wte"].weight[: len(vocabulary)])
    centred = vectors - vectors.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    xy = left[:, :2] * scale[:2] * (1, -1)  # y points down in a picture
    xy -= xy.min(0)
    xy *= (700 - 2 * MARGIN) / max(xy[:, 0].max(), xy[:, 1].max() / 0.8, 1e-9)  # one scale for both axes
    xy += MARGIN
    size = [700, math.ceil(xy[:, 1].max() + MARGIN)]
    explained = (scale[:2] ** 2 / max((scale**2).sum(), 1e-300)).tolist()
    token_points = zip(vocabulary, xy.tolist(), strict=True)
    points = [{"text": token, "x": x, "y": y, "kind": kind_of(token)} for token, (x, y) in token_points]
    return {"points": points, "size": size, "explained": explained, "width": vectors.shape[1]}


def kind_of(token: str) -> str:
    if token in SPECIAL:
        return "special"
    if token.isalpha():
        vowel = token.lower() in "aeiou"
        return ("vowel" if vowel else "consonant") if token.islower() else "capital"
    return "digit" if token.isdigit() else "other"


def live_model(run: LoadedRun) -> dict[str, Any]:
    """Pack the model for the page's script: {"name", "step", "answers", "packed"}. Errors: TinyGPTError for one that is
    too large, or that `pack` refuses."""
    if run.is_large:
        what = f"the model has {run.model.num_params():,} parameters, and a page can hold at most {LARGEST:,}"
        raise TinyGPTError(what, "tinygpt export --format=gguf or --format=hf")
    packed = pack(run.model, run.tokenizer)
    return {"name": run.name, "step": run.checkpoint.step, "answers": run.answers, "packed": packed}


def models(run: LoadedRun, others: list[LoadedRun]) -> list[dict[str, Any]]:
    """Pack the models of the page, each as in `live_model`, first that of `run` with the snapshots of its training.
    A model of `others` that cannot run in a page, or exceeds MOST, is left out. Errors: see `live_model`, for `run`."""
    packed_models = [live_model(run)]
    packed = packed_models[0]["packed"]
    size = len(packed["data"])
    for other in others:
        with contextlib.suppress(TinyGPTError):
            entry = live_model(other)
            if size + len(entry["packed"]["data"]) <= MOST:
                size += len(entry["packed"]["data"])
                packed_models.append(entry)
    packed["snapshots"] = packed_snapshots(run, packed, ROOM - size)
    return packed_models


def packed_snapshots(run: LoadedRun, packed: dict[str, Any], room: int) -> list[dict[str, Any]]:
    """Pack the snapshots of a run as differences from its packed model: as many as fit into `room` bytes, without those
    that are damaged or another run's."""
    paths, best = snapshots(run.folder), run.checkpoint
    steps = [step for step in paths if step != best.step]
    weight_count = sum(math.prod(tensor["shape"]) for tensor in packed["tensors"].values())
    count = min(len(steps), max(0, room) // math.ceil(weight_count * (1 + 2 / BLOCK) * 4 / 3))
    snapshot_models: dict[int, GPT] = {}
    for step in (steps[i] for i in np.linspace(0, len(steps) - 1, count).round().astype(int)):
        with contextlib.suppress(TinyGPTError):
            state = load(paths[step])
            if (state.step, state.tokenizer, state.model_args) == (step, best.tokenizer, best.model_args):
                snapshot_models[step] = state.build_model()
    return differences(packed, best.step, snapshot_models, run.tokenizer)


def opening(run: LoadedRun) -> str:
    """Make the first content of the text box: words that the model generates, or a prompt of the validation split."""
    if run.answers:
        return next((prompt for prompt, _ in run.held_out_pairs()), "")
    (text,) = fresh(run, run.model, count=1, length=80)
    text = text.lstrip()[:60]
    return text.rpartition(" ")[0] or text


def contents(run: LoadedRun, values: dict[str, Any], first: str, packed: list[dict[str, Any]]) -> str:
    """List what a reader of the page gets, with amounts. first: the opening; packed: the models, from `models`."""
    items = []
    for index, entry in enumerate(packed):
        weights = sum(math.prod(tensor["shape"]) for tensor in entry["packed"]["tensors"].values())
        whose = f" in {entry['name']}" if index else ""
        items.append(f"all weights of the model{whose} ({weights:,} parameters)")
        if count := len(entry["packed"].get("snapshots", ())):
            items.append(f"{counted(count, 'snapshot')} of its training")
        if index:
            items.append(f"its vocabulary ({len(entry['packed']['vocabulary']):,} tokens)")
    if packed or isinstance(run.tokenizer, CharTokenizer):
        words = "" if isinstance(run.tokenizer, CharTokenizer) else ", words of the training data among them"
        items.append(f"the vocabulary ({run.tokenizer.vocab_size:,} tokens{words})")
    if runs := len(values["runs"]):
        items += ["the run's settings, column and file names", f"the losses of {counted(runs, 'run')}"]
    if samples := values["samples"]:
        length = sum(len(entry["prompt"]) + sum(len(piece) for piece, _ in entry["pieces"]) for entry in samples)
        items.append(f"{counted(len(samples), 'sample')} ({counted(length, 'character')})")
    shown = values["passages"] | values["step"]
    for key, whose in (("train", "the training data"), ("val", "the validation data"), ("cells", "a training batch")):
        if key in shown:
            length = sum(len(cell["text"]) for cell in shown[key] if cell["text"] not in SPECIAL)
            items.append(f"{counted(length, 'character')} of {whose}")
    if longest := values["memorised"].get("longest"):
        length = sum(size for size, _, _ in longest)
        items.append(f"{counted(len(longest), 'quotation')} from the training data ({counted(length, 'character')})")
    if first and not run.answers:  # a prompt is among the characters of the validation data
        items.append(f"{counted(len(first), 'character')} of text that the model generated")
    return ", ".join(items)


def reproduce(run: LoadedRun, settings: dict[str, Any]) -> dict[str, Any]:
    """Collect configuration, checksums, versions and commands that reproduce the run, without absolute paths."""
    path = run.folder / "ckpt.pt"
    sums = {}
    if path.is_file():
        with open(path, "rb") as file:
            sums[f"{run.folder.name}/ckpt.pt"] = hashlib.file_digest(file, "sha256").hexdigest()
    name = str(run.checkpoint.config.get("dataset", ""))
    sums |= {f"{name} {file}": str(value) for file, value in sorted(run.checkpoint.data.items())}
    prepare, data_folder = suggest.command("prepare", name), "data"
    if run.dataset:
        dataset = copy.copy(run.dataset)
        dataset.meta = dataset.meta | {"options": without_folders(dataset.meta.get("options"))}
        dataset.folder = Path(data_folder := without_folders(str(dataset.folder.parent))) / dataset.name
        prepare = dataset.prepare_command
    train_command = suggest.command(suggest.training_command(settings), "config.yaml")
    folder = without_folders(str(run.folder))
    versions = f"tinygpt {__version__}, torch {torch.__version__}, numpy {np.__version__}"
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return {
        "commands": [
            prepare,
            train_command,
            suggest.command("report", Path(folder), *suggest.data_dir_flag(data_folder)),
        ],
        "config": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "sums": sums,
        "trained": machine(run.folder),
        "here": f"{versions}, {system}, threads: {torch.get_num_threads()}",
    }
