"""`tinygpt eval`: measure a model on a split, next to simple baselines.

tinygpt eval out
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base import device, terminal
from tinygpt.base.configs.examine import EvalConfig
from tinygpt.base.errors import TinyGPTError, diverged
from tinygpt.base.files import folder_of, require_writable, strict_json
from tinygpt.checkpoint.adapter import load_model
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.examine.eval import classify, respond
from tinygpt.examine.eval.baselines import ngram_losses, omissions_note
from tinygpt.examine.eval.confusion import draw_confusion
from tinygpt.model import GPT
from tinygpt.training.losses import bits_per_character, mean_loss, perplexity, short_number

MISLEADING = 0.9  # share of the most frequent label from which the report warns about accuracy


def evaluate(config: EvalConfig) -> None:
    """Run the command."""
    measure(config)


def measure(config: EvalConfig) -> dict[str, Any]:
    """Print the accuracy on a labelled task and its baselines, or the loss. Returns what --json prints."""
    if config.output:
        require_writable(Path(config.output), "--output confusion.png")
    if config.task and config.dataset not in ("", config.task):
        raise TinyGPTError(f"--task={config.task} and --dataset={config.dataset} are two datasets", "give one of them")
    checkpoint = load_model(config.ckpt, config.adapter)
    name = config.task or config.dataset or str(checkpoint.config.get("dataset", ""))
    if not name:
        raise TinyGPTError(f"{config.ckpt} does not name the dataset that it was trained on", "--dataset=NAME")
    data_folder = data_dir(config, checkpoint.config, config.adapter or config.ckpt)
    try:
        dataset = Dataset(data_folder, name)
    except TinyGPTError as error:
        if Path(data_folder, name).exists():
            raise
        raise TinyGPTError(error.message, f"--data_dir=FOLDER of the datasets, or {error.hint}") from None
    if checkpoint.tokenizer is not None:
        hint = "evaluate on the dataset it was trained on, or train on this one"
        dataset.require_tokenizer(tokenizer_from_dict(checkpoint.tokenizer, config.ckpt), config.ckpt, hint)
    checkpoint.require_embeddings(dataset.tokenizer, config.ckpt)
    if not {"task", "dataset"} & config.given and checkpoint.data and not dataset.has_checksums(checkpoint.data):
        terminal.print_error(f"note: {dataset.folder} has other text than the one that the model was trained on")
    compute = device.choose_for_inference(config.device, config.dtype, checkpoint.num_params, config.threads)
    model = checkpoint.for_inference(compute, config.fast)
    if config.task and not dataset.pairs:
        raise TinyGPTError(f"dataset {name!r} is not a labelled task", "tinygpt prepare transactions, which makes one")
    if config.output and not dataset.labels:
        raise TinyGPTError(f"--output is the picture of labels, but {name!r} is not a labelled task", "drop --output")
    if "split" in config.given and not (config.task or dataset.labels):
        what = f"--split is for a task, but the loss of {name!r} is measured on the complete validation split"
        raise TinyGPTError(what, f"--task={name}" if dataset.pairs else "drop --split")
    if dataset.labels:
        return measure_task(config, model, dataset)
    if not config.task:
        return measure_loss(config, model, dataset, compute)
    report = {"ckpt": config.ckpt, **respond.make_report(model, dataset, config.split, compute)}
    print(strict_json(report) if config.json else respond.as_text(report))
    return report


def measure_task(config: EvalConfig, model: GPT, dataset: Dataset) -> dict[str, Any]:
    """Print and return the report on a labelled task, and draw its confusion matrix."""
    tokenizer = dataset.tokenizer
    labels = dataset.labels
    train = dataset.sources["train"].examples(tokenizer)
    evaluated = dataset.sources[config.split].examples(tokenizer)
    scores = classify.label_scores(model, tokenizer, [prompt for prompt, _ in evaluated], labels)
    report = classify.make_report(dataset.name, config.split, evaluated, labels, *scores, train)
    report = {"ckpt": config.ckpt, **report}
    if config.json:
        print(strict_json(report))
        return report
    print(classify.as_text(report))
    counts = np.bincount(classify.label_indices(train, labels), minlength=len(labels))
    if counts.max() >= MISLEADING * counts.sum():
        rare = terminal.escaped(labels[counts.argmin()])
        print(
            f"\nnote: {rare!r} is rare, so the accuracy misleads: see its recall and precision; --json has the\n"
            "probabilities, from which to choose a threshold"
        )
    picture = Path(config.output) if config.output else folder_of(config.ckpt) / "confusion.png"
    try:
        draw_confusion(report, picture)
        print(f"\nwritten: {picture}")
    except TinyGPTError as error:
        if config.output:
            raise
        print(f"\nno picture: {error.message}")
    return report


def measure_loss(config: EvalConfig, model: GPT, dataset: Dataset, compute: device.Compute) -> dict[str, Any]:
    """Print and return the loss on the whole validation split, and for plain text those of n-gram models."""
    val = dataset.splits["val"]
    source = dataset.sources["val"]
    block_size = model.config.block_size
    if len(val) < 2:
        raise TinyGPTError(f"{dataset.folder}/val.bin has {len(val)} token, too few to measure", "prepare more text")
    if dataset.pairs:
        dataset.require(block_size)  # an example that is cut would be measured only in part
    rows = source.all_rows(block_size)
    loss = mean_loss(model, source, rows, compute)
    if not math.isfinite(loss):
        raise diverged(f"{config.ckpt}: the loss is", loss)
    targets = int(source.targets(rows, source.width(block_size)).sum())
    train = dataset.splits["train"]
    vocabulary = dataset.tokenizer.vocab_size
    baselines = {} if dataset.pairs else ngram_losses(train, val, vocabulary)
    note = omissions_note(len(train), len(val) - 1) if baselines else ""
    results = {
        "ckpt": config.ckpt,
        "dataset": dataset.name,
        "tokens": targets,
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_character": bits_per_character(loss, dataset),
        "baselines": baselines,
        "note": note,
    }
    if config.json:
        print(strict_json(results))
        return results
    what = "response tokens" if dataset.pairs else "tokens, each predicted once"
    print(f"{config.ckpt} on the validation split of {dataset.name}: {targets:,} {what}\n")
    losses = [
        (name, value, short_number(perplexity(value)), bits_per_character(value, dataset))
        for name, value in {**baselines, "model": loss}.items()
    ]
    heads = {"": "<10", "loss": ">8.4f", "perplexity": ">13", "bits per character": ">21.3f"}
    print("\n".join(terminal.table(heads, losses)))
    if baselines:
        print(
            "\nuniform: every token has the same probability. unigram, bigram, trigram: n-gram models, which estimate\n"
            "it by counting in the training split, given the previous 0, 1 and 2 tokens\n"
            "losses printed during training are estimates from a part of the split, unless eval_iters is 0"
        )
    if note:
        print(f"note: {note}")
    return results
