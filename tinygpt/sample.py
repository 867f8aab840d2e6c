"""`tinygpt sample`: a checkpoint and a prompt in, text out. The checkpoint's own tokenizer is used.

Text streams as it is made when there is one sample; several samples of the prompt are made as one batch.
"""

import codecs
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config.schema import SampleConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import END, SPECIAL, CharTokenizer, Tokenizer, tokenizer_from_dict
from tinygpt.errors import TinyGPTError
from tinygpt.files import read_text, strict_json
from tinygpt.generate import Choice, generate
from tinygpt.model import GPT
from tinygpt.training import device


def sample(config: SampleConfig) -> None:
    """Print `num_samples` continuations of `start`."""
    checkpoint = load_model(config.ckpt, config.adapter)
    tokenizer = checkpoint_tokenizer(checkpoint, config)
    prompt = encode_prompt(prompt_text(config.start), tokenizer, config.skip_unknown, config.plain)
    config = dataclasses.replace(config, stop=config.stop or (END if answers(tokenizer) and not config.plain else ""))
    compute = device.choose(config.device, "float32" if config.dtype == "auto" else config.dtype)
    model = checkpoint.build_model().to(compute.device, compute.dtype).eval()
    if answers(tokenizer) and not config.plain:
        require_room(prompt, model)
    try:
        if config.num_samples == 1 and not config.json:
            stream(model, prompt, config, compute, tokenizer)
        else:
            batch(model, prompt, config, compute, tokenizer)
    except (MemoryError, RuntimeError) as error:
        if not device.is_out_of_memory(error):
            raise
        what = f"--num_samples={config.num_samples} and --max_new_tokens={config.max_new_tokens}"
        raise TinyGPTError(
            f"out of memory on {compute.device} with {what}", "lower --num_samples or --max_new_tokens", status=1
        ) from None


def stream(model: GPT, prompt: list[int], config: SampleConfig, compute: device.Compute, tokenizer: Tokenizer) -> None:
    """Write one sample, each token as soon as it is generated."""
    rows = new_tokens(model, prompt, config, compute, tokenizer.vocab_size)
    first = list(itertools.islice(rows, 1))  # raises errors before anything is written
    writer = StreamWriter(tokenizer, config.stop)
    writer.write(tokenizer.decode(prompt))
    try:
        for row in itertools.chain(first, rows):
            if writer.feed(int(row[0])):
                break
    finally:
        writer.close()


def batch(model: GPT, prompt: list[int], config: SampleConfig, compute: device.Compute, tokenizer: Tokenizer) -> None:
    """Generate all samples at once, and write them when they are complete."""
    values = config.num_samples * max(config.max_new_tokens, model.config.block_size * model.config.n_embd)
    if values > 1 << 46:  # more than any machine has; from 2^63 on, numpy and torch overflow
        raise MemoryError
    made = np.empty((config.max_new_tokens, config.num_samples), dtype=np.uint16)  # the type of token files
    for step, row in enumerate(new_tokens(model, prompt, config, compute, tokenizer.vocab_size)):
        made[step] = row.cpu().numpy()
    for index in range(config.num_samples):
        text = until(tokenizer.decode(made[:, index].tolist()), config.stop)
        if config.json:
            print(strict_json({"sample": index, "prompt": tokenizer.decode(prompt), "text": text}))
        else:
            print(f"{tokenizer.decode(prompt)}{text}\n{'-' * 15}")


def checkpoint_tokenizer(checkpoint: Checkpoint, config: SampleConfig) -> Tokenizer:
    """The tokenizer inside the checkpoint; for nanoGPT's files that of the prepared dataset that its config names."""
    if checkpoint.tokenizer is not None:
        tokenizer = tokenizer_from_dict(checkpoint.tokenizer, config.ckpt)
    elif name := str(checkpoint.config.get("dataset", "")):
        tokenizer = Dataset(config.data_dir, name).tokenizer
    else:
        raise TinyGPTError(
            f"{config.ckpt} holds no tokenizer, and does not say what it was trained on",
            "tinygpt train --init_from=PATH makes one that does",
        )
    checkpoint.require_symbols(tokenizer, config.ckpt)
    return tokenizer


def prompt_text(start: str) -> str:
    """--start as it is, or the content of the file behind FILE:."""
    if not start.startswith("FILE:"):
        return start
    return read_text(Path(start.removeprefix("FILE:")), "--start FILE:path/to/prompt.txt")


def answers(tokenizer: Tokenizer) -> bool:
    """Whether the model was fine-tuned on prompts and responses: its vocabulary has their marks."""
    return isinstance(tokenizer, CharTokenizer) and len(tokenizer.special) == len(SPECIAL)


def encode_prompt(text: str, tokenizer: Tokenizer, skip_unknown: bool, plain: bool = False) -> list[int]:
    """Ids of the prompt, at least one: a model predicts from something. An empty prompt stands for a line's start.

    A model that answers is asked: PROMPT text RESPONSE.
    """
    if isinstance(tokenizer, CharTokenizer) and answers(tokenizer) and not plain:
        if not text.strip():
            raise TinyGPTError("this model answers prompts, and there is none", '--start "a prompt", or --plain')
        ids = tokenizer.encode_pair(text.strip("\n"), None, skip_unknown).tolist()
        if not tokenizer.decode(ids[1:-1]).strip():
            raise nothing_left()
        return ids
    if text in ("", "\n"):
        try:
            return tokenizer.encode("\n").tolist()
        except TinyGPTError:
            return [0]  # a vocabulary without line ends
    ids = tokenizer.encode(text, skip_unknown).tolist()
    if not ids:
        raise nothing_left()
    return ids


def nothing_left() -> TinyGPTError:
    return TinyGPTError("nothing is left of the prompt without its unknown characters", "use another --start")


def require_room(prompt: list[int], model: GPT) -> None:
    """Refuse a prompt that is longer than the context: without its beginning, it would lack its first special token.

    Errors: TinyGPTError.
    """
    block_size = model.config.block_size
    if len(prompt) > block_size:
        raise TinyGPTError(
            f"the prompt has {len(prompt):,} tokens, including special tokens; the model reads at most {block_size:,}",
            "shorten the prompt, or train with a larger --block_size",
        )


def new_tokens(
    model: GPT, prompt: list[int], config: SampleConfig, compute: device.Compute, vocab_size: int
) -> Iterator[torch.Tensor]:
    """The batch of generated ids, one step at a time: int64 (num_samples,)."""
    idx = torch.tensor([prompt], dtype=torch.long, device=compute.device).expand(config.num_samples, -1)
    choice = Choice(config.temperature, config.top_k, config.top_p, config.seed)
    yield from generate(model, idx, config.max_new_tokens, choice, vocab_size, config.exact_window)


def until(text: str, stop: str) -> str:
    """The text before the first `stop`."""
    return text.partition(stop)[0] if stop else text


class StreamWriter:
    """Tokens to the terminal as they come: whole characters only, and nothing of a stop text that may be beginning."""

    def __init__(self, tokenizer: Tokenizer, stop: str) -> None:
        self.tokenizer, self.stop, self.held, self.stopped = tokenizer, stop, "", False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> bool:
        """Write one token; True when the stop text is complete."""
        self.held += self.decoder.decode(self.tokenizer.token_bytes(token))
        if self.stop and self.stop in self.held:
            self.held, self.stopped = until(self.held, self.stop), True
            return True
        keep = next((n for n in range(len(self.stop), 0, -1) if self.held.endswith(self.stop[:n])), 0)
        self.write(self.held[: len(self.held) - keep])
        self.held = self.held[len(self.held) - keep :]
        return False

    def close(self) -> None:
        unfinished = "" if self.stopped else self.decoder.decode(b"", final=True)  # a character cut in two
        self.write(self.held + unfinished + "\n")

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
