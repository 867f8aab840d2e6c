"""The summary of a run: facts, losses, n-gram models, parameters, the verdict, and what reproduces it."""

import copy
import hashlib
import math
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tinygpt.base import __version__
from tinygpt.base.configs import suggest
from tinygpt.base.files import without_folders
from tinygpt.base.terminal import counted
from tinygpt.data.rows import PairRows
from tinygpt.examine.eval.baselines import ngram_losses, omissions_note
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.model import GPT
from tinygpt.training.log import is_number, machine_of
from tinygpt.training.losses import bits_per_character, loss_and_error, perplexity, short_number
from tinygpt.training.verdict import MEANINGS, judge

WORK = 10**11  # most parameters times tokens of the loss measurement: 3 s on two cores
PARTS = {"wte": "token embedding", "wpe": "position embedding", "wbe": "bigram embedding", "attn": "attention"}


def summary(run: LoadedRun, entries: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Collect facts about the run, its losses, the parameters of each part, and the verdict."""
    shape = run.model.config
    parts = parameters(run.model)
    total = sum(parts.values())
    size = run.model.num_params()
    without = f", {size:,} without the position embeddings," if size < total else ""
    shared = f" ({shape.kv_heads} of keys and values)" if shape.kv_heads < shape.n_head else ""
    tokens = len(run.split("train")) if run.dataset else 0
    verdict = judge(entries, settings, without_folders(str(run.path)), size, tokens)
    done = max((entry["step"] for entry in entries), default=run.checkpoint.step)
    seconds = max((entry["seconds"] for entry in entries), default=0.0)
    facts = {
        "model": f"{total:,} parameters{without} in {counted(shape.n_layer, 'layer')} of "
        f"{counted(shape.n_head, 'head')}{shared}, width {shape.n_embd}, context of {shape.block_size} {run.unit}s",
        "trained on": trained_on(run),
        "iterations": f"{done:,} of {settings.get('max_iters', done):,}; this page describes the best model, of "
        f"iteration {run.checkpoint.step:,}",
        "training time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s",
    }
    measured, note = losses(run)
    return {
        "facts": facts,
        "verdict": verdict,
        "meaning": MEANINGS[verdict.kind],
        "parts": parts,
        "losses": measured,
        "losses_note": note,
        "curves_are_estimates": bool(settings.get("eval_iters", 1)),
        "before_after": before_after(entries),
    }


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
    source = run.dataset.sources["train"]
    size = f"{len(run.split('train')):,} {run.unit}s of text"
    if isinstance(source, PairRows):
        size = f"{counted(len(source.starts), 'prompt')} with responses"
    note = f" (note: {run.missing})" if run.missing else ""
    return f"{name}: {size}, a vocabulary of {run.tokenizer.vocab_size:,} tokens{note}"


def losses(run: LoadedRun) -> tuple[list[dict[str, Any]], str]:
    """Measure the losses of the n-gram models and of the model on the same targets of the validation split, or on
    the part of it that WORK allows; and say what they leave out."""
    if run.dataset is None or len(run.split("val")) < 2:
        return [], ""
    source = run.dataset.sources["val"]
    block_size = run.model.config.block_size
    most_rows = max(1, WORK // run.model.num_params() // source.width(block_size))
    rows = source.all_rows(block_size)[:most_rows]
    loss, error = loss_and_error(run.model, source, rows, run.compute)
    train = run.split("train")
    val = run.split("val")
    target_indices = np.arange(min(len(rows) * block_size, len(val) - 1))  # the same targets
    if isinstance(source, PairRows):
        spans = [np.arange(r, e - 1) for r, e in zip(source.responses[rows], source.ends[rows], strict=True)]
        target_indices = np.concatenate(spans)
    measured = ngram_losses(train, val, run.tokenizer.vocab_size, target_indices) | {"this model": loss}
    bits_per_nat = bits_per_character(1.0, run.dataset)
    table = [
        {
            "name": name,
            "loss": value,
            "error": error if name == "this model" and math.isfinite(error) else None,
            "perplexity": short_number(perplexity(value)),
            "bits": value * bits_per_nat,
        }
        for name, value in measured.items()
    ]
    return table, omissions_note(len(train), len(target_indices))


def before_after(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the losses that `finetune` measured before and after training; empty if the run has none."""
    last = {entry["kind"]: entry for entry in entries}
    new_data = "loss on the responses" if last.get("after", {}).get("prompts") else "loss on the new text"
    names = {"response_loss": new_data, "base_loss": "loss on the base model's text"}
    pairs = {names[key]: [last.get(kind, {}).get(key) for kind in ("before", "after")] for key in names}
    return {name: pair for name, pair in pairs.items() if all(map(is_number, pair))}


def reproduce(run: LoadedRun, settings: dict[str, Any]) -> dict[str, Any]:
    """Collect configuration, checksums, versions and commands that reproduce the run, without absolute paths."""
    path = run.path / "ckpt.pt"
    sums = {}
    if path.is_file():
        with open(path, "rb") as file:
            sums[f"{run.path.name}/ckpt.pt"] = hashlib.file_digest(file, "sha256").hexdigest()
    name = str(run.checkpoint.config.get("dataset", ""))
    sums |= {f"{name} {file}": str(value) for file, value in sorted(run.checkpoint.data.items())}
    prepare = suggest.command("prepare", name)
    data_folder = "data"
    if run.dataset:
        dataset = copy.copy(run.dataset)
        dataset.meta = dataset.meta | {"options": without_folders(dataset.meta.get("options"))}
        dataset.folder = Path(data_folder := without_folders(str(dataset.folder.parent))) / dataset.name
        prepare = dataset.prepare_command
    train_command = suggest.command(suggest.training_command(settings), "config.yaml")
    folder = without_folders(str(run.path))
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
        "trained": machine_of(run.path),
        "here": f"{versions}, {system}, threads: {torch.get_num_threads()}",
    }
