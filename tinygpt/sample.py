"""`tinygpt sample`: generate text with a checkpoint (generate.py makes the tokens and the text).

loaded = LoadedModel.load("out", "", config)    # config: a SampleConfig
for (piece,) in loaded.samples(loaded.encode("ROMEO:"), config):
    print(piece, end="")
"""

import itertools
import secrets
from collections.abc import Iterator

import torch

from tinygpt.base.configs.core import SampleConfig
from tinygpt.base.device import is_out_of_memory
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import strict_json
from tinygpt.base.terminal import print_error
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.data.prompts import encode_prompt, prompt_text, require_room
from tinygpt.generate import Sampling, TextStream, generate

MOST_VALUES = 1 << 46  # of a batch: more than any machine has; from 2^63 on, torch overflows


class LoadedModel(Loaded):
    """A trained model that continues text."""

    def encode(self, prompt: str, skip_unknown: bool = False, plain: bool = False) -> list[int]:
        """Encode a prompt. Errors: TinyGPTError as in `encode_prompt`, and for one to answer that does not fit the
        context."""
        ids = encode_prompt(prompt, self.tokenizer, skip_unknown, plain)
        if self.tokenizer.pair is not None and not plain:
            require_room(ids, self.model.config.block_size)
        return ids

    def samples(self, prompt: list[int], config: SampleConfig) -> Iterator[list[str]]:
        """Continue a prompt `num_samples` times as one batch: after each token, yield the new text of every sample."""
        idx = torch.tensor([prompt], device=self.compute.device).expand(config.num_samples, -1)  # int64 (B, T)
        sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
        vocab_size = self.tokenizer.vocab_size
        steps = generate(self.model, idx, config.max_new_tokens, sampling, vocab_size, config.exact_window)
        stops = [config.stop] if config.plain else [self.tokenizer.stop, config.stop]
        first = list(itertools.islice(steps, 1))  # too many samples fail here, before each gets a stream
        texts = [TextStream(self.tokenizer, stops) for _ in range(config.num_samples)]
        for tokens in itertools.chain(first, steps):  # int64 (B,)
            yield ["" if text.stopped else text.feed(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
            if all(text.stopped for text in texts):
                return
        yield [text.end() for text in texts]


def sample(config: SampleConfig) -> None:
    """Print `num_samples` continuations of `start`: a single one is streamed, several are generated as one batch."""
    loaded = LoadedModel.load(config.ckpt, config.adapter, config, config.data_dir)
    text = prompt_text(config.start)
    prompt = loaded.encode(text, config.skip_unknown, config.plain)
    tokenizer = loaded.tokenizer
    start = tokenizer.decode(prompt[len(tokenizer.start) :])
    if tokenizer.pair is not None and not config.plain:
        start = tokenizer.decode(tokenizer.encode(text.strip("\n"), config.skip_unknown))
        start += "" if config.json else "\n"
    drawn = config.seed < 0
    if drawn:
        config.seed = secrets.randbelow(10**6)
    single = config.num_samples == 1 and not config.json
    try:
        shape = loaded.model.config
        values = config.num_samples * max(config.max_new_tokens, shape.block_size * shape.n_embd)
        if not single and values > MOST_VALUES:
            raise MemoryError  # reported below
        steps = loaded.samples(prompt, config)
        steps = itertools.chain([next(steps)], steps)  # errors of the first step are raised before any output
        if drawn and config.temperature > 0:
            print_error(f"seed: {config.seed} (the same text again: --seed={config.seed})")
        if single:
            print_stream(start, steps)
        else:
            print_batch(start, steps, config.json)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        settings = f"--num_samples={config.num_samples} and --max_new_tokens={config.max_new_tokens}"
        problem = f"out of memory on {loaded.compute.device} with {settings}"
        raise TinyGPTError(problem, "lower --num_samples or --max_new_tokens", status=1) from None


def print_stream(start: str, steps: Iterator[list[str]]) -> None:
    """Print one sample, each token as soon as it is generated."""
    print(start, end="", flush=True)
    try:
        for (piece,) in steps:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def print_batch(start: str, steps: Iterator[list[str]], json: bool) -> None:
    """Print all samples when each has ended."""
    for index, parts in enumerate(zip(*steps, strict=True)):
        text = "".join(parts)
        print(
            strict_json({"sample": index, "prompt": start, "text": text}) if json else f"{start}{text}\n---------------"
        )
