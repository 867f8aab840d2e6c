"""Encode a prompt, as a user types it, into the tokens that a model continues.

ids = encode_prompt(prompt_text("FILE:prompt.txt"), tokenizer)
"""

from pathlib import Path

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import read_text
from tinygpt.data.tokenizer import Tokenizer


def prompt_text(start: str) -> str:
    """Return --start, or the content of the file that it names with FILE:."""
    if not start.startswith("FILE:"):
        return start
    return read_text(Path(start.removeprefix("FILE:")), "--start FILE:path/to/prompt.txt")


def encode_prompt(text: str, tokenizer: Tokenizer, skip_unknown: bool = False, plain: bool = False) -> list[int]:
    """Encode a prompt to at least one id, since a model needs a context. An empty prompt becomes a line end.

    For a model that answers prompts they end where the response begins; with `plain` they are the text alone. Errors:
    TinyGPTError for characters that the tokenizer does not know (`skip_unknown` leaves them out), and if none is left.
    """
    answering = tokenizer.pair is not None and not plain
    if answering and not text.strip():
        raise TinyGPTError(
            "this model answers prompts, but the prompt is empty",
            "give a prompt, or write plain text: tinygpt sample RUN --plain",
        )
    if not answering and text in ("", "\n"):
        try:
            return tokenizer.start.tolist() or tokenizer.encode("\n").tolist()
        except TinyGPTError:
            return [0]  # a vocabulary without line ends
    ids = tokenizer.encode(text, skip_unknown)
    if not len(ids) or (answering and not tokenizer.decode(ids).strip()):
        raise TinyGPTError("without characters outside the vocabulary, the prompt is empty", "use another --start")
    if answering:
        return tokenizer.encode_prompt(text.strip("\n"), skip_unknown).tolist()
    return [*tokenizer.start.tolist(), *ids.tolist()]


def require_room(prompt: list[int], block_size: int) -> None:
    """Check that a prompt fits the context: cut at its start, it would lack a special token. Errors: TinyGPTError."""
    if len(prompt) > block_size:
        size = f"{len(prompt):,} tokens, including special tokens; the model reads at most {block_size:,}"
        raise TinyGPTError(f"the prompt has {size}", "shorten the prompt, or tinygpt train with a larger --block_size")
