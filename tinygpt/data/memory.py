"""Write a dataset from pairs or text in memory.

pairs = write_dataset(folder / "notes", {"train": pairs, "val": others, "test": more}, labels=["yes", "no"])
text = write_dataset(folder / "plays", "To be, or not ...", tokenizer=pairs.tokenizer)  # nine tenths are for training
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock
from tinygpt.data.dataset import Dataset, require_name
from tinygpt.data.pairs import Texts, characters, tokenizer_of_pairs, write_pairs
from tinygpt.data.tasks.generate import Pair
from tinygpt.data.token_files import write_token_files
from tinygpt.data.tokenizer import CharTokenizer, Tokenizer


def write_dataset(
    folder: str | Path,
    content: str | Mapping[str, str] | Mapping[str, Sequence[Pair]],
    labels: Sequence[str] = (),
    tokenizer: Tokenizer | Texts | None = None,
) -> Dataset:
    """Write a dataset into a folder, and open it.

    content: a text, or by split (train, val) its parts; or by split (train, val, test) prompts with their responses.
    labels: of a classification task. tokenizer: that of another dataset, or texts with all characters of its
    vocabulary; None: that of the content's characters. Errors: TinyGPTError for a split that is missing, empty or
    unknown, for labels of a text, and for a character that the tokenizer lacks.
    """
    folder = Path(folder).expanduser()
    require_name(folder.name, str(folder.parent))
    labels = [labels] if isinstance(labels, str) else list(labels)
    if isinstance(content, str):
        cut = len(content) * 9 // 10
        content = {"train": content[:cut], "val": content[cut:]}
    texts = {split: part for split, part in content.items() if isinstance(part, str)}
    pairs = {split: list(part) for split, part in content.items() if not isinstance(part, str)}
    needed = ("train", "val", "test") if pairs else ("train", "val")
    if texts and (pairs or labels):
        what = "labels" if labels else "texts and pairs"
        raise TinyGPTError(
            f"{folder}: {what}, where each split is a text", "prompts with their responses in each split"
        )
    if unknown := content.keys() - set(needed):
        raise TinyGPTError(f"{folder}: unknown split {min(unknown)}", f"give {', '.join(needed)}")
    if empty := [split for split in needed if not (pairs or texts).get(split)]:
        raise TinyGPTError(f"{folder}: the split {empty[0]} is empty", f"give {', '.join(needed)}")
    if not isinstance(tokenizer, Tokenizer):
        known = pairs or texts if tokenizer is None else tokenizer
        tokenizer = tokenizer_of_pairs(known) if pairs else CharTokenizer(sorted(characters(known)))
    if pairs and tokenizer.pair is None:
        raise TinyGPTError(f"{folder}: the tokenizer has no special tokens for pairs", "take that of another task")
    with folder_lock(folder, "dataset"):
        if pairs:
            write_pairs(folder, pairs, labels, tokenizer, {})
        else:
            write_texts(folder, texts, tokenizer)
    return Dataset(str(folder.parent), folder.name)


def write_texts(folder: Path, texts: Mapping[str, str], tokenizer: Tokenizer) -> None:
    """Write the splits of a text into a folder that the caller has locked."""
    pieces = ((split, tokenizer.encode(text)) for split, text in texts.items())
    facts = {"options": {}, "characters": {split: len(text) for split, text in texts.items()}}
    checksum = hashlib.sha256("".join(texts.values()).encode("utf-8", "surrogatepass")).hexdigest()
    write_token_files(folder, texts, pieces, tokenizer, checksum, facts)
