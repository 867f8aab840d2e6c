"""`tinygpt eval`: measure a model on a split, next to n-gram baselines.

tinygpt eval --ckpt out/ckpt.pt
"""

import io
import math
import sys
from pathlib import Path

from tinygpt import terminal
from tinygpt.checkpoint.adapter import load_model
from tinygpt.config.schema import EvalConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import CharTokenizer, fingerprint, tokenizer_from_dict
from tinygpt.errors import TinyGPTError, diverged
from tinygpt.evaluate import classify
from tinygpt.evaluate.baselines import ngram_baselines
from tinygpt.evaluate.loss import mean_loss, perplexity, short_number
from tinygpt.files import read_text, replacing, require_writable, strict_json
from tinygpt.model import GPT
from tinygpt.training import device


def evaluate(config: EvalConfig) -> None:
    """`tinygpt eval`: whole-split loss, perplexity and bits per character of a checkpoint; for a labelled task its
    accuracy, beside simpler ways to the same labels."""
    prompts = lines_of(Path(config.predict)) if config.predict else []
    if config.output:
        require_writable(Path(config.output), f"--output {'labels.csv' if config.predict else 'confusion.png'}")
    checkpoint = load_model(config.ckpt, config.adapter)
    name = config.task or config.dataset or str(checkpoint.config.get("dataset", ""))
    if not name:
        raise TinyGPTError(f"{config.ckpt} does not say what it was trained on", "--dataset=NAME")
    dataset = Dataset(config.data_dir, name)
    if checkpoint.tokenizer is not None:
        own = tokenizer_from_dict(checkpoint.tokenizer, config.ckpt)
        fresh = dataset.fingerprint
        if not dataset.adopt_tokenizer(own):
            raise TinyGPTError(
                f"{config.ckpt} and dataset {name!r} have different vocabularies "
                f"({fingerprint(own.to_dict())} and {fresh})",
                "evaluate on the dataset it was trained on, or train on this one",
            )
    checkpoint.require_symbols(dataset.tokenizer, config.ckpt)
    compute = device.choose(config.device, "float32" if config.dtype == "auto" else config.dtype)
    model = checkpoint.build_model().to(compute.device, compute.dtype).eval()
    if dataset.labels:
        label_task(config, model, dataset, compute, prompts)
    elif config.task or config.predict:
        raise TinyGPTError(f"dataset {name!r} is not a labelled task", "tinygpt prepare transactions makes one")
    else:
        show_loss(config, model, dataset, compute)


def label_task(config: EvalConfig, model: GPT, dataset: Dataset, compute: device.Compute, prompts: list[str]) -> None:
    """Measure how well the model labels a split; with --predict, label `prompts` instead."""
    tokenizer, labels = dataset.tokenizer, dataset.labels
    assert isinstance(tokenizer, CharTokenizer)
    if config.predict:
        total, _ = classify.label_scores(model, tokenizer, prompts, labels, compute.device, skip_unknown=True)
        write = classify.predict_json if config.json else classify.predict_csv
        if config.output:
            with replacing(Path(config.output)) as file:
                text = io.TextIOWrapper(file, "utf-8", newline="")
                write(text, prompts, labels, classify.probabilities(total))
                text.detach()  # which flushes it
            print(f"written: {config.output}, {len(prompts):,} lines")
        else:
            write(sys.stdout, prompts, labels, classify.probabilities(total))
        note_unknown(tokenizer, prompts)
        return
    train, wanted = (dataset.sources[split].texts(tokenizer) for split in ("train", config.split))  # type: ignore[union-attr]
    total, mean = classify.label_scores(model, tokenizer, [prompt for prompt, _ in wanted], labels, compute.device)
    report = classify.make_report(dataset.name, config.split, wanted, labels, total, mean, train)
    if config.json:
        print(strict_json({"ckpt": config.ckpt, **report.to_dict()}))
        return
    print(report.text())
    beside = Path(config.ckpt) if Path(config.ckpt).is_dir() else Path(config.ckpt).parent
    picture = Path(config.output) if config.output else beside / "confusion.png"
    try:
        classify.draw_confusion(report, picture)
        print(f"\nwritten: {picture}")
    except TinyGPTError as error:
        if config.output:
            raise
        print(f"\nno picture: {error.message}")


def lines_of(path: Path) -> list[str]:
    """Read the lines of a text file that are not blank. Only LF and CRLF end a line."""
    hint = "--predict FILE, with one prompt per line"
    lines = [line.strip() for line in read_text(path, hint).split("\n") if line.strip()]
    if not lines:
        raise TinyGPTError(f"{path}: empty", hint)
    return lines


def note_unknown(tokenizer: CharTokenizer, prompts: list[str]) -> None:
    """Report on standard error how many prompts contain characters outside the model's vocabulary."""
    known = [len(tokenizer.encode(prompt, skip_unknown=True)) for prompt in prompts]
    changed = sum(count < len(prompt) for count, prompt in zip(known, prompts, strict=True))
    if changed:
        empty = known.count(0)
        rest = f", of which {empty:,} {'is' if empty == 1 else 'are'} now empty" if empty else ""
        what = "note: removed characters outside the model's vocabulary"
        terminal.print_error(f"{what} from {changed:,} of {len(prompts):,} lines{rest}")


def show_loss(config: EvalConfig, model: GPT, dataset: Dataset, compute: device.Compute) -> None:
    """The loss of the whole validation split, and for plain text the losses of the n-gram baselines."""
    train, val = dataset.splits["train"], dataset.splits["val"]
    if len(val) < 2:
        raise TinyGPTError(f"{dataset.folder}/val.bin has {len(val)} token, too few to measure", "prepare more text")
    if dataset.pairs:
        dataset.require(model.config.block_size)  # an example that is cut would be measured only in part
    source = dataset.sources["val"]
    loss = mean_loss(model, source, source.every(model.config.block_size), compute)
    if not math.isfinite(loss):
        raise diverged(f"{config.ckpt}: the loss is", loss)
    block_size = model.config.block_size
    targets = int(source.targets(source.every(block_size), source.width(block_size)).sum())
    tokens_per_character = len(val) / max(int(dataset.meta.get("characters", {}).get("val", len(val))), 1)
    if dataset.pairs:
        tokens_per_character = 1.0
    baselines = {} if dataset.pairs else ngram_baselines(train, val, dataset.tokenizer.vocab_size)
    losses = {**baselines, "model": loss}
    if config.json:
        result = {
            "ckpt": config.ckpt,
            "dataset": dataset.name,
            "tokens": targets,
            "loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_character": loss / math.log(2) * tokens_per_character,
            "baselines": baselines,
        }
        print(strict_json(result))
        return
    what = "response tokens" if dataset.pairs else "tokens, each predicted once"
    print(f"{config.ckpt} on the validation split of {dataset.name}: {targets:,} {what}\n")
    print(f"{'':<10}{'loss':>8}{'perplexity':>13}{'bits per character':>21}")
    for key, value in losses.items():
        bits = value / math.log(2) * tokens_per_character
        print(f"{key:<10}{value:>8.4f}{short_number(perplexity(value)):>13}{bits:>21.3f}")
    if baselines:
        print("\nn-gram baselines: uniform gives every token the same probability; unigram, bigram and trigram")
        print("estimate it from the training split, given the previous 0, 1 and 2 tokens")
