"""`tinygpt prepare`: convert text to token files, in two passes and constant memory.

The first pass collects the vocabulary and counts the characters. The second encodes the text and writes it as a
training and a validation split. Both read the text in blocks, see data/text_files.py, and work on several at a time in
`workers` processes, see data/parallel.py. data/pairs.py prepares pairs.

    prepare(PrepareConfig("mine", input=("notes.txt",)))
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tinygpt.base.configs import suggest, withdrawn
from tinygpt.base.configs.core import PrepareConfig, prepare_options
from tinygpt.base.errors import TinyGPTError, require_installed
from tinygpt.base.files import folder_lock, replacing
from tinygpt.base.terminal import counted
from tinygpt.data import preview
from tinygpt.data.bpe import train_bpe, training_pieces
from tinygpt.data.corpora import CORPORA
from tinygpt.data.input_files import TEXT_FILES, input_files, notes_on_unread, of_one_ending
from tinygpt.data.pairs import prepare_pairs
from tinygpt.data.parallel import in_order
from tinygpt.data.sheets import PAIR_FILES
from tinygpt.data.tasks import TASKS
from tinygpt.data.text_files import InputText, Lines, is_json_lines, plain, require_encoding
from tinygpt.data.token_files import write_token_files
from tinygpt.data.tokenizer import (
    OWN_TOKENIZERS,
    SPECIAL,
    Block,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    cut_safely,
    describe,
    tokenizer_from_dict,
)
from tinygpt.data.workbook import UNREADABLE

NO_SPECIAL = "pairs need special tokens, which GPT-2's vocabulary does not have"


def prepare(config: PrepareConfig) -> None:
    """Write DATA_DIR/NAME/{train.bin, val.bin, meta.json}, complete or not at all, and print a summary."""
    folder = Path(config.data_dir) / config.name
    check_request(config)
    pairs = config.format == "pairs" or config.name in TASKS
    inputs: Sequence[str] = config.input
    if not pairs:
        tables = tuple(ending for ending in (*PAIR_FILES, *UNREADABLE) if ending not in TEXT_FILES)
        inputs = [path for item in inputs for path in of_one_ending(item, config.encoding, tables)]
    paths = input_files(inputs, *((PAIR_FILES, UNREADABLE) if pairs else (TEXT_FILES,)))
    for line in notes_on_unread(inputs, paths, [f"*{ending}" for ending in (PAIR_FILES if pairs else TEXT_FILES)]):
        print(line)
    if pairs:
        model_tokenizer = None if config.tokenizer in OWN_TOKENIZERS else tokenizer_for_pairs(config.tokenizer)
        return prepare_pairs(config, paths, model_tokenizer)
    if config.text_field != PrepareConfig.text_field and not any(map(is_json_lines, paths)):
        raise TinyGPTError("--text_field applies only to JSON Lines", "drop it, or give *.jsonl files to --input")
    text = InputText(paths, config.encoding, config.text_field, config.workers)
    if text.paths:
        tokenizer = make_tokenizer(text, config)  # finds a mistake in the text before anything is written
    with folder_lock(folder, "dataset"):
        if not text.paths:
            corpus = CORPORA[config.name]
            path = folder / "input.txt"
            print(f"text: {corpus.about}, shipped with tinygpt")
            with replacing(path) as file:
                file.write(corpus.text().encode())
            text = InputText([path], config.encoding)
            tokenizer = make_tokenizer(text, config)
        train = train_characters(text, config)  # the second pass
        characters = {"train": train, "val": text.characters - train}
        extra = {"options": prepare_options(config), "characters": characters}
        results = in_order(functools.partial(encode, tokenizer), pieces(text, tokenizer, train), config.workers)
        with contextlib.closing(results):
            ids = itertools.chain.from_iterable(results)
            meta = write_token_files(folder, characters, ids, tokenizer, text.sha256.hexdigest(), extra)
    preview.show_text(folder, tokenizer, meta)


def make_tokenizer(text: InputText, config: PrepareConfig) -> Tokenizer:
    """Collect the vocabulary in a first pass, and train BPE in a second. Errors: TinyGPTError for text that cannot be
    decoded or is too short."""
    default = CORPORA[config.name].tokenizer if config.name in CORPORA else "char"
    name = default if config.tokenizer == "auto" else config.tokenizer
    tokenizer: Tokenizer | None = None
    if name == "gpt2":
        tokenizer = GPT2Tokenizer()
    elif name not in ("char", "bpe"):
        tokenizer = tokenizer_of_model(name)
    if tokenizer and len(tokenizer.end_of_text):
        text.document_end = ""
    seen = text.survey()
    if not 0 < train_characters(text, config) < text.characters:
        size = counted(text.characters, "character")
        problem = f"a text of {size} is too short for a training and a validation split"
        hint = "give more text to --input, or another --val_fraction"
        raise TinyGPTError(f"{problem} with val_fraction {config.val_fraction}", hint)
    if name == "bpe":
        train = train_characters(text, config)
        parts = by_split(in_order(plain, text.blocks("reading"), text.workers), train)
        blocks = (block for split, block in parts if split == "train")
        return train_bpe(training_pieces(blocks, train), config.vocab_size)
    if tokenizer is None:
        return CharTokenizer(map(chr, np.flatnonzero(seen)))
    if isinstance(tokenizer, CharTokenizer) and (unknown := tokenizer.unknown(seen)):
        other_count = len(unknown) - 1
        others = f" and {counted(other_count, 'other character')}" if other_count else ""
        joined = " (each file begins on a new line)" if unknown == "\n" else ""
        problem = f"the text has {describe(unknown[0])}){others}, not in the vocabulary of {name}{joined}"
        raise TinyGPTError(problem, "drop --tokenizer for a vocabulary of its own, or change the text")
    return tokenizer


def tokenizer_of_model(path: str) -> Tokenizer:
    """Load the tokenizer of a checkpoint. Errors: TinyGPTError if there is no such file, or it has no tokenizer."""
    if not Path(path).exists():
        hint = f"one of {', '.join(OWN_TOKENIZERS)}, or the path of a checkpoint"
        raise TinyGPTError(f"--tokenizer={path}: no such tokenizer or file", hint)
    from tinygpt.checkpoint.store import load

    checkpoint = load(path)
    if checkpoint.tokenizer is None:
        raise TinyGPTError(f"{path} contains no tokenizer", "use a checkpoint that tinygpt wrote")
    return tokenizer_from_dict(checkpoint.tokenizer, path)


def tokenizer_for_pairs(path: str) -> Tokenizer:
    """Load the tokenizer of a checkpoint, with special tokens for pairs."""
    tokenizer = tokenizer_of_model(path).joined(CharTokenizer(SPECIAL))
    if tokenizer.pair is None:
        raise TinyGPTError(NO_SPECIAL, "tinygpt import gpt2 makes a model whose vocabulary can get them")
    return tokenizer


def train_characters(text: InputText, config: PrepareConfig) -> int:
    """Return the number of characters of the training split, which is the start of the text."""
    return int(text.characters * (1 - config.val_fraction))


def by_split(blocks: Iterable[Block], train_characters: int) -> Iterator[tuple[str, Block]]:
    """Yield each block with the name of its split; a block that crosses the boundary is cut in two."""
    remaining = train_characters
    for block in blocks:
        head = block[:remaining]
        tail = block[remaining:]
        remaining -= len(head)
        if head:
            yield "train", head
        if tail:
            yield "val", tail


def pieces(text: InputText, tokenizer: Tokenizer, train: int) -> Iterator[tuple[Block | Lines, int]]:
    """Yield the text in pieces to encode, each with the number of characters that the training split still takes."""
    sized = zip(text.blocks("encoding"), itertools.chain(text.sizes, itertools.repeat(0)))  # noqa: B905 (has no end)
    anywhere = isinstance(tokenizer, CharTokenizer)
    for uncut, blocks in itertools.groupby(sized, key=lambda block: anywhere or isinstance(block[0], Lines)):
        if not uncut:
            cut = cut_safely((block for block, _ in blocks), tokenizer.cut_before)  # type: ignore[misc]
            blocks = ((piece, len(piece)) for piece in cut)
        for piece, size in blocks:
            yield piece, train
            train -= size


def encode(tokenizer: Tokenizer, item: tuple[Block | Lines, int]) -> list[tuple[str, np.ndarray]]:
    """Encode a result of `pieces` to ids, uint16 (n,), with their split. BPE encodes each document of JSON Lines apart,
    so that its ids do not depend on the others."""
    block, train = item
    ids: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    documents = None if isinstance(tokenizer, CharTokenizer) or not isinstance(block, Lines) else block.documents()
    for text in [plain(block)] if documents is None else documents:
        for split, part in by_split([text], max(0, train)):
            ids[split] += tokenizer.encode_blocks([part])
        train -= len(text)
        if documents:
            ids[split].append(tokenizer.end_of_text)
    return [(split, np.concatenate(parts)) for split, parts in ids.items() if parts]


def check_vocab_size(config: PrepareConfig) -> None:
    """Check what a tokenizer that is trained needs. Errors: TinyGPTError."""
    given = "vocab_size" in config.given or config.vocab_size != PrepareConfig.vocab_size
    if config.tokenizer != "bpe" and given:
        raise TinyGPTError("--vocab_size applies only to --tokenizer=bpe", "drop --vocab_size, or add --tokenizer=bpe")
    if config.tokenizer == "bpe":
        require_installed("--tokenizer=bpe", "tokenizers")
    if (config.format == "pairs" or config.name in TASKS) and config.vocab_size < 256 + len(SPECIAL):
        tokens = f"256 bytes and {len(SPECIAL)} special tokens"
        problem = f"vocab_size is {config.vocab_size}, but pairs need at least {256 + len(SPECIAL)}: {tokens}"
        raise TinyGPTError(problem, f"--vocab_size={PrepareConfig.vocab_size}")


def check_request(config: PrepareConfig) -> None:
    """Check the options before anything is written. Errors: TinyGPTError for options that contradict each other."""
    built_in = [*CORPORA, *TASKS]
    if config.name in built_in and config.input:
        kind = "corpus" if config.name in CORPORA else "task"
        raise TinyGPTError(
            f"{config.name} is a built-in {kind} and takes no --input", "choose another name for your own text"
        )
    if config.name in CORPORA and config.format == "pairs":
        raise TinyGPTError(f"{config.name} is plain text, not pairs", "drop --format=pairs")
    with_synthetic = [name for name, task in TASKS.items() if task.synthetic]
    if config.synthetic and config.name not in with_synthetic:
        raise TinyGPTError(f"--synthetic applies only to the built-in task {', '.join(with_synthetic)}")
    if config.name not in built_in and not config.input:
        withdrawn.refuse_task(config.name)
        name = config.name
        path = "path/to/text.txt"
        if Path(name).exists():  # the name of a file, instead of that of the new dataset
            path = name
            name = Path(name).stem
        hint = suggest.command("prepare", name, "--input", path, *suggest.data_dir_flag(config.data_dir))
        problem = f"{config.name!r} is not a built-in corpus or task ({', '.join(built_in)}), and no --input was given"
        raise TinyGPTError(problem, hint)
    if (config.format == "pairs" or config.name in TASKS) and config.text_field != PrepareConfig.text_field:
        raise TinyGPTError("--text_field applies only to plain text", "drop it; pairs have --prompt_field")
    if (config.format == "pairs" or config.name in TASKS) and config.tokenizer == "gpt2":
        raise TinyGPTError(NO_SPECIAL, "drop --tokenizer=gpt2, or use --tokenizer=bpe")
    check_vocab_size(config)
    own_pairs = config.format == "pairs" and config.name not in TASKS
    for key in ("labels", "skip_bad", "prompt_field", "response_field", "test_fraction"):
        if getattr(config, key) != getattr(PrepareConfig, key) and not own_pairs:
            hint = f"drop --{key}" if config.name in built_in else f"drop --{key}, or add --format pairs"
            raise TinyGPTError(f"--{key} applies only to your own pairs", hint)
    distinct = {label.strip() for label in config.labels} - {""}
    if config.labels and (len(distinct) < 2 or len(distinct) < len(config.labels)):
        raise TinyGPTError("--labels needs at least two different labels", "for example --labels ok breach")
    like_pairs = all(name.lower().endswith(".xlsx") for name in config.input)
    if config.format != "pairs" and config.name not in built_in and like_pairs:
        raise TinyGPTError(f"{config.input[0]} looks like prompts and responses", "add --format pairs")
    require_encoding(config.encoding)
