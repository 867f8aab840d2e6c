"""Print what `tinygpt prepare` made: the size, a preview of the tokens, and the next command."""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import PrepareConfig
from tinygpt.base.terminal import listed
from tinygpt.data.bpe import MOST_READ
from tinygpt.data.tasks import TASKS, Pair
from tinygpt.data.token_files import TOKEN
from tinygpt.data.tokenizer import OWN_TOKENIZERS, CharTokenizer, GPT2Tokenizer, Tokenizer

LORA = ["--lora_rank=8", "--learning_rate=5e-3", "--max_iters=1500", "--weight_decay=0", "--patience=0"]
PRETRAINED_BLOCK_SIZE = 128  # block_size of the preset finetune_transactions_pretrained


def show_text(folder: Path, tokenizer: Tokenizer, meta: dict[str, Any]) -> None:
    """Print the size of a dataset of text, its first lines as tokens and back, and the next command."""
    characters = sum(meta["characters"].values())
    tokens = meta["tokens"]
    trained = meta["options"].get("tokenizer") == "bpe"
    print(f"characters: {characters:,}")
    if isinstance(tokenizer, CharTokenizer):
        symbols = [symbol if symbol.isprintable() else repr(symbol)[1:-1] for symbol in tokenizer.symbols[:100]]
        more = " ..." if tokenizer.vocab_size > len(symbols) else ""
        print(f"vocabulary: {tokenizer.vocab_size:,}: {''.join(symbols)}{more}")
    else:
        ratio = characters / sum(tokens.values())
        name = "GPT-2's BPE" if isinstance(tokenizer, GPT2Tokenizer) else "that of the model"
        if trained:
            part = "a part of " if meta["characters"]["train"] > MOST_READ else ""
            name = f"BPE trained on {part}the training split"
        print(f"vocabulary: {tokenizer.vocab_size:,} ({name}, {ratio:.2f} characters per token)")
        show_shortage(tokenizer, meta["options"])
    print(f"tokens:     {tokens['train']:,} for training, {tokens['val']:,} for validation")
    border = "" if isinstance(tokenizer, CharTokenizer) else " (| between two tokens)"
    print(f"the first lines, as tokens and decoded again{border}:")
    start = np.fromfile(folder / "train.bin", dtype=TOKEN, count=60)
    start = np.split(start, np.flatnonzero(np.isin(start, tokenizer.end_of_text)))[0]  # the first document
    text = tokenizer.decode(start.tolist()).rstrip("\ufffd")  # a part of a character at its end
    for line in list(filter(None, text.split("\n")))[:3]:
        ids = tokenizer.encode(line).tolist()
        print(f"  {listed([str(i) for i in ids], 14, ' ')}\n    -> {bordered(tokenizer, ids)}")
    print(f"written:    {folder}/train.bin, val.bin, meta.json")
    if min(tokens.values()) < 2:
        print("\nThis is too little text to train on: use more text or a larger --val_fraction.")
        return
    if (model := meta["options"].get("tokenizer", "auto")) not in OWN_TOKENIZERS:
        flags = [f"--ckpt={model}", *own_flags(folder.name, ""), *suggest.data_dir_flag(folder.parent)]
        print(f"\nnext: {suggest.command('finetune', *flags)}")
        return
    flags = [f"--dataset={folder.name}", "--budget=5m", f"--out_dir=out-{folder.name}"]
    if folder.name == "shakespeare_char":
        flags = ["configs/shakespeare_char.yaml"]
    print(f"\nnext: {suggest.command('train', *flags, *suggest.data_dir_flag(folder.parent))}")


def bordered(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of these ids; of subwords with a border between two tokens, and a part of a character as bytes."""
    if isinstance(tokenizer, CharTokenizer):
        shown = tokenizer.decode(ids)
    else:
        tokens = [(tokenizer.decode([token]), tokenizer.token_bytes(token)) for token in ids]
        shown = "|".join("".join(f"<{byte:02x}>" for byte in raw) if "\ufffd" in text else text for text, raw in tokens)
    return re.sub(suggest.CONTROL, lambda match: repr(match[0])[1:-1], shown)


def show_shortage(tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    """Print a note if BPE that was trained on a short text has fewer tokens than the command wanted."""
    wanted = options.get("vocab_size", PrepareConfig.vocab_size)
    size = tokenizer.vocab_size
    if options.get("tokenizer") == "bpe" and size < wanted:
        print(f"note: {size:,} tokens, not {wanted:,}: no other pair of tokens occurs twice in the training split")


def show_pairs(
    config: PrepareConfig, meta: dict[str, Any], tokenizer: Tokenizer, splits: dict[str, list[Pair]], source: str
) -> None:
    """Print the size of a dataset of pairs, some training examples, and the next command."""
    folder = Path(config.data_dir) / config.name
    task = TASKS.get(config.name)
    print(f"pairs:      {', '.join(f'{count:,} {name}' for name, count in meta['examples'].items())} (from {source})")
    if meta["labels"]:
        show_labels(meta["labels"], splits)
    lengths = [len(tokenizer.encode_pair(*pair)) for part in splits.values() for pair in part]
    print(f"lengths:    at most {max(lengths)} tokens, {np.mean(lengths):.0f} on average, special tokens included")
    if not isinstance(tokenizer, CharTokenizer):
        texts = "".join(prompt + response for part in splits.values() for prompt, response in part)
        ratio = len(texts) / (sum(lengths) - len(tokenizer.encode_pair("", "")) * len(lengths))
        print(f"vocabulary: {tokenizer.vocab_size:,}, {ratio:.2f} characters per token")
        show_shortage(tokenizer, meta["options"])
    for prompt, response in splits["train"][: config.show or 1]:
        ids = tokenizer.encode_prompt(prompt), tokenizer.encode_response(response)
        print(f"  {coloured(*(bordered(tokenizer, part.tolist()) for part in ids))}")
    marked = "green part" if sys.stdout.isatty() else "part in [ ]"
    print(f"  (the loss is computed on the {marked} only)")
    print(f"written:    {folder}/train.bin, val.bin, test.bin, meta.json")
    if task and task.library:
        print(f"            {folder}/documents/, questions-val.jsonl and questions-test.jsonl, for tinygpt ask")
    if task and task.database:
        print(f"            {folder}/bank.db, the SQLite database that the responses query")
    print_next_commands(config, folder, tokenizer, max(lengths) - 1)


def show_labels(labels: list[str], splits: dict[str, list[Pair]]) -> None:
    """Print the share of each label in all splits, and which splits lack one."""
    counts = {name: Counter(label for _, label in part) for name, part in splits.items()}
    total = sum(counts.values(), Counter())
    shares = (f"{label} {100 * total[label] / total.total():.1f}%" for label in labels)
    print(f"labels:     {', '.join(shares)}")
    for name, count in counts.items():
        missing = [repr(label) for label in labels if not count[label]]
        if missing:
            print(f"note: the split {name} has no example of {listed(missing)}")


def print_next_commands(config: PrepareConfig, folder: Path, tokenizer: Tokenizer, width: int) -> None:
    """Print the command that trains on the pairs, preceded by those that train a base model if one is needed.

    Pairs longer than the presets' context get a base model of their own, with block_size `width`. Pairs that are
    encoded with a model's tokenizer are for LoRA of that model.
    """

    def show(command: str, *arguments: str) -> None:
        print(f"next: {suggest.command(command, *arguments, *suggest.data_dir_flag(folder.parent))}")

    task = TASKS.get(config.name, TASKS["transactions"])
    base = task.base
    flags: list[str] = []
    print()
    if config.tokenizer == "bpe":  # a vocabulary that no model has yet
        flags = [f"--block_size={width}"] if width > suggest.PRESET_BLOCK_SIZE else []
        return show("train", "configs/shakespeare_char.yaml", *own_flags(config.name, "shakespeare_char"), *flags)
    if config.tokenizer not in OWN_TOKENIZERS:
        characters = isinstance(tokenizer, CharTokenizer)
        preset = "configs/finetune_transactions_pretrained.yaml"
        if characters:
            preset = "configs/finetune_transactions.yaml"
            flags = LORA
        elif width > PRETRAINED_BLOCK_SIZE:
            flags = [f"--block_size={width}"]
        return show("finetune", preset, f"--ckpt={config.tokenizer}", *own_flags(config.name, "transactions"), *flags)
    if not base:
        return show("train", task.preset)
    if base == "out-fast" and width > suggest.PRESET_BLOCK_SIZE:
        base = f"out-fast-{width}"
        flags = [f"--block_size={width}", f"--out_dir={base}"]
    base_task = base.removeprefix("out-")  # the task that trains the base model, as reports for reports_a
    if not Path(f"{base}/ckpt.pt").exists():
        text = base_task if base_task in TASKS else "shakespeare_char"
        recipe = TASKS[text].preset if text in TASKS else "configs/shakespeare_char_fast.yaml"
        if text not in TASKS:
            print("without a pretrained model, first train a base model, which takes under a minute:")
        if not (folder.parent / text / "meta.json").exists():
            show("prepare", text)
        show("train", recipe, *flags)
    dataset = next(name for name, other in TASKS.items() if other.preset == task.preset)
    show("finetune", task.preset, f"--ckpt={base}/ckpt.pt", *own_flags(config.name, dataset), *task.flags)


def own_flags(name: str, dataset: str) -> list[str]:
    """Return the flags with which a preset for `dataset` trains on the dataset `name`."""
    return [] if name == dataset else [f"--dataset={name}", f"--out_dir=out-{name.replace('_', '-')}"]


def coloured(prompt: str, response: str) -> str:
    """Format an example with the targets of the loss in green, or in brackets where there are no colours."""
    return f"\033[2m{prompt}\033[0m\033[32m{response}\033[0m" if sys.stdout.isatty() else f"{prompt}[{response}]"
